"""Problems of Lightning: the loss of a module's step on its own dataloaders."""

from __future__ import annotations

import importlib
import inspect
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from landscape.errors import (
    CheckpointError,
    InvalidArgumentError,
    LossError,
    ProblemError,
    did_you_mean,
    first_line,
    one_of,
)
from landscape.problem._formats import read_checkpoint
from landscape.problem._sequences import in_order
from landscape.problem.problem import Problem
from landscape.problem.task import importable, users_code

# Of a split: the dataloader, the step, and the stage that its data are set up for.
_SPLITS = {
    "train": ("train_dataloader", "training_step", "fit"),
    "validation": ("val_dataloader", "validation_step", "fit"),
    "test": ("test_dataloader", "test_step", "test"),
}


class Step:
    """The loss of a batch by a step of its module."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: Any, batch: Any) -> Any:
        """Return what the step returned, or its entry ``loss``."""
        step = getattr(module, self.name)
        arguments = (batch, 0)[: len(inspect.signature(step).parameters)]
        with _silent(module):
            value = step(*arguments)
        loss = value.get("loss") if isinstance(value, Mapping) else value
        if isinstance(loss, torch.Tensor):
            return loss
        msg = (
            f"{self.name} of {type(module).__name__} returned {type(value).__name__}, and its loss "
            "is measured: let it return the loss, or a dictionary with loss"
        )
        raise LossError(msg)


@contextmanager
def _silent(module: nn.Module) -> Iterator[None]:
    """Let a module log nothing: that belongs to its training, which may be going on."""
    names, attributes = ("log", "log_dict"), vars(module)
    own = {name: attributes[name] for name in names if name in attributes}
    attributes.update({name: lambda *_, **__: None for name in names})
    try:
        yield
    finally:
        for name in names:
            del attributes[name]
        attributes.update(own)


def lightning_problem(
    module: nn.Module, data: Any, *, step: str = "training_step", **options: Any
) -> Problem:
    """Build a problem; see `Problem.from_lightning`."""
    one_of(step, [name for _, name, _ in _SPLITS.values()], what="step")
    if not (hasattr(module, "automatic_optimization") and callable(getattr(module, step, None))):
        msg = f"expected a LightningModule with {step}, got a {type(module).__name__}"
        raise ProblemError(msg)
    if not module.automatic_optimization:
        msg = (
            f"{type(module).__name__} optimises by hand (automatic_optimization = False), so that "
            f"{step} would change the weights: say in a problem file what the loss is"
        )
        raise ProblemError(msg)
    if isinstance(data, (list, tuple, Mapping)):
        inside = list(data.values() if isinstance(data, Mapping) else data)
        if any(isinstance(part, DataLoader) for part in inside):
            if len(inside) > 1:
                msg = f"there are {len(inside)} dataloaders: the loss is over one, give that"
                raise ProblemError(msg)
            data = inside[0]
    return Problem(module, data=in_order(data), batch_loss=Step(step), **options)


def library_problem(
    classes: str,
    *,
    split: str,
    checkpoint: str | PathLike[str] = "",
    unsafe_pickle: bool = False,
    **options: Any,
) -> Problem:
    """Build the problem of ``lightning:package.Module,package.DataModule`` at a checkpoint."""
    if not checkpoint:
        msg = (
            f"lightning:{classes} needs a .ckpt file, which holds the hyper-parameters: name it as "
            "the checkpoint (checkpoint=…)"
        )
        raise InvalidArgumentError(msg)
    loader, step, stage = _SPLITS[one_of(split, _SPLITS, what="split")]
    load = partial(_loaded, checkpoint=checkpoint, unsafe_pickle=unsafe_pickle)
    module_class, *others = (_class_of(name.strip()) for name in classes.split(","))
    module = load(module_class)
    others = others or _data_class(checkpoint, unsafe_pickle=unsafe_pickle)
    owner = load(others[0]) if others else module
    with users_code(inspect.getfile(type(owner))):
        owner.setup(stage)
        data = getattr(owner, loader)()
    stated: dict[str, Any] = {"name": module_class.__name__, "split": split, "step": step}
    return lightning_problem(module, data, **stated | options)


def _class_of(name: str) -> Any:
    """Import a class by its dotted name."""
    package, _, last = name.rpartition(".")
    spec = importable(package) if package else None
    if spec is None:
        msg = f"{name}: there is no module {package or name!r} to import; give package.Class"
        raise ProblemError(msg)
    with users_code(spec.origin or name):
        module = importlib.import_module(package)
    found = getattr(module, last, None)
    if not (inspect.isclass(found) and hasattr(found, "load_from_checkpoint")):
        classes = [n for n, value in vars(module).items() if inspect.isclass(value)]
        near = did_you_mean(last, classes)
        msg = f"{package} has no LightningModule or LightningDataModule called {last}{near}"
        raise ProblemError(msg)
    return found


def _data_class(checkpoint: str | PathLike[str], *, unsafe_pickle: bool) -> list[Any]:
    """Return the class of the data module that LightningCLI names in a checkpoint, if any."""
    saved = read_checkpoint(checkpoint, unsafe_pickle=unsafe_pickle)
    kept = saved.get("datamodule_hyper_parameters") if isinstance(saved, Mapping) else None
    name = kept.get("_class_path") if isinstance(kept, Mapping) else None
    return [_class_of(name)] if isinstance(name, str) else []


def _loaded(cls: Any, checkpoint: str | PathLike[str], *, unsafe_pickle: bool) -> Any:
    """Build an object by the hyper-parameters in a checkpoint."""
    try:
        with users_code(inspect.getfile(cls)):
            safe = not unsafe_pickle
            return cls.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=safe)
    except ProblemError as error:
        held = read_checkpoint(checkpoint, unsafe_pickle=unsafe_pickle)  # which may say it better
        cause = error.__cause__
        if not (isinstance(held, Mapping) and "pytorch-lightning_version" in held):
            reason = "is no checkpoint of Lightning, so it has no hyper-parameters"
        elif isinstance(cause, pickle.UnpicklingError):
            reason = (
                "is not loaded: unpickling its hyper-parameters would run code; only if you trust "
                "whoever made the file, allow it with unsafe_pickle=True (--unsafe-pickle)"
            )
        elif isinstance(cause, RuntimeError) and "state_dict" in str(cause):
            misfit = " ".join(line.strip() for line in str(cause).splitlines()[1:3])[:300]
            reason = f"holds the weights of another class than {cls.__name__}: {misfit}"
        elif isinstance(cause, TypeError) and "argument" in str(cause):
            reason = (
                f"does not hold all that {cls.__name__} is built from ({first_line(cause)}): it is "
                "of another class, or trained without self.save_hyperparameters()"
            )
        else:
            raise
        msg = f"{checkpoint} {reason}"
        raise CheckpointError(msg) from error
