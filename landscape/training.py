"""Train a task with SGD or with SAM, alike in everything but the optimizer; save the checkpoint."""

from __future__ import annotations

import json
import math
import numbers
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, IterableDataset

from landscape.errors import DataError, InvalidArgumentError, NonFiniteError, ProblemError, one_of
from landscape.optim import SAM
from landscape.params import known_device
from landscape.problem.data import as_batches, describe, move
from landscape.problem.losses import Loss, make_loss
from landscape.progress import progress_bar

OPTIMIZERS = ("sgd", "sam")
SCHEDULES = ("cosine", "constant")
SUFFIXES = (".pt", ".safetensors")


class Task(Protocol):
    """What can be trained: a problem file, or any object with the same names.

    Besides these two, ``loss`` (output, target) or ``batch_loss`` (model, batch) is read.
    """

    @property
    def model(self) -> Callable[[], nn.Module]:
        """Makes the network, its weights fresh."""

    @property
    def data(self) -> Callable[[str], Any]:
        """Gives the data of a split."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What is known of one pass over the training data.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean loss over the pass, each batch at the weights that it met.
        lr: learning rate during the pass.
        seconds: wall-clock time.
    """

    epoch: int
    train_loss: float
    lr: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model and how it came about.

    Attributes:
        model: the model, in eval mode, on the device that trained it.
        log: one record per epoch.
        settings: everything that was asked for; plain JSON values.
        gradients: how often the gradient of a batch was computed.
        seconds: wall-clock time.
    """

    model: nn.Module
    log: tuple[Epoch, ...]
    settings: Mapping[str, Any]
    gradients: int
    seconds: float


def train(
    task: Task,
    *,
    optimizer: str = "sgd",
    epochs: int = 40,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    rho: float = 0.2,
    batch_size: int = 64,
    schedule: str = "cosine",
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool | None = None,
) -> Trained:
    """Train a model, with SGD or with SAM around the same SGD.

    One seed gives the same initial weights, the same order of the data and the same dropout masks
    to both, so that the optimizer is all that differs. Each part has a generator of its own, and
    torch's global RNG is left as it was.

    Tensors and map-style data sets are shuffled anew in every epoch and cut into batches here.
    Every example is used in every epoch: the last batch may be short, but one that would hold a
    single example joins the batch before it, because BatchNorm has no variance to divide by.
    A DataLoader, or any other re-iterable of batches, is used as it comes.

    Args:
        task: has ``model()``, ``data(split)`` and ``loss`` or ``batch_loss``, as a problem file.
        optimizer: ``sgd`` or ``sam``.
        epochs: passes over the training data; 0 gives the initial weights.
        lr: learning rate at the start.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD; not part of the loss that SAM perturbs.
        rho: radius of SAM's neighbourhood; SGD does not read it.
        batch_size: examples in a batch, where the batches are cut here.
        schedule: ``cosine`` (from lr to 0 in half a period, one value per epoch) or ``constant``.
        seed: at least 0.
        device: where to train.
        progress: whether to draw a bar; None: only where stderr is a terminal.

    Returns:
        The model in eval mode, with a log, the settings and the cost.

    Raises:
        InvalidArgumentError: if a setting is out of range or names something unknown.
        ProblemError: if the task cannot be trained; `landscape.errors.DataError` among them.
        NonFiniteError: if the loss becomes NaN or infinite.

    Cost: one gradient per batch and epoch, two with SAM.

    >>> from types import SimpleNamespace
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> line = SimpleNamespace(
    ...     model=lambda: nn.Linear(1, 1), data=lambda split: (x, 2 * x + 1), loss=nn.MSELoss()
    ... )
    >>> trained = train(line, epochs=300, lr=0.1, weight_decay=0.0, batch_size=4)
    >>> round(trained.model.weight.item(), 3), round(trained.model.bias.item(), 3)
    (2.0, 1.0)
    """
    started = time.perf_counter()
    one_of(optimizer, OPTIMIZERS, what="optimizer")
    one_of(schedule, SCHEDULES, what="schedule")
    settings = {
        "optimizer": optimizer,
        "epochs": _whole("epochs", epochs, least=0),
        "lr": _real("lr", lr, least=0.0),
        "momentum": _real("momentum", momentum, least=0.0, below=1.0),
        "weight_decay": _real("weight_decay", weight_decay, least=0.0),
        "rho": _real("rho", rho, least=0.0) if optimizer == "sam" else None,
        "batch_size": _whole("batch_size", batch_size, least=1),
        "schedule": schedule,
        "seed": _whole("seed", seed, least=0),
        "device": str(device),
    }
    where = known_device(device)
    initial, order, noise = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    loss = make_loss(getattr(task, "loss", None), getattr(task, "batch_loss", None))
    with _seeded(where, initial):
        model = _made(task.model()).to(where)
    with _seeded(where, noise):
        batches = _Batches(task.data("train"), batch_size, seed=order)
        log, gradients = _fit(model, loss, batches, settings=settings, progress=progress)
    seconds = time.perf_counter() - started
    return Trained(
        model=model.eval(), log=log, settings=settings, gradients=gradients, seconds=seconds
    )


def save_checkpoint(trained: Trained | nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the weights, with the settings that led to them, to a file.

    The file appears under its name only when it is complete, and replaces one that was there. It
    holds plain types and tensors on the CPU: ``torch.load(path, weights_only=True)`` reads a
    ``.pt`` file as ``{"state_dict": …, "settings": …}``; a ``.safetensors`` file carries the
    settings as JSON text in its metadata. Tied weights are written once for each of their names,
    so that the state dict is complete in either.

    Args:
        trained: what `train` returned, or a module.
        path: where to write; ends in ``.pt`` or ``.safetensors``. Missing folders are made.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: if the suffix is another, or the state holds what is no tensor and
            the format has no room for it.
    """
    path = check_checkpoint_path(path)
    model, settings = (
        (trained.model, dict(trained.settings)) if isinstance(trained, Trained) else (trained, {})
    )
    # Contiguous copies: tied or strided tensors would be refused, or drag their storage along.
    state = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        if isinstance(value, Tensor)
        else value
        for name, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _WRITERS[path.suffix](state, settings, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def check_checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a name that `save_checkpoint` could not write to, before hours of training.

    Args:
        path: where to write.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: if the suffix is unknown.
    """
    one_of(Path(path).suffix, SUFFIXES, what=f"suffix of the checkpoint {Path(path).name!r}:")
    return Path(path)


def _write_pt(state: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    # Through an open file: given a path, torch writes its name into the archive.
    with path.open("wb") as file:
        torch.save({"state_dict": state, "settings": settings}, file)


def _write_safetensors(state: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        msg = (
            f"the state holds what is no tensor ({', '.join(other)}), for which .safetensors has "
            "no room; save to a .pt file"
        )
        raise InvalidArgumentError(msg)
    # One entry only: safetensors writes several in an order that changes from run to run.
    save_file(state, path, metadata={"settings": json.dumps(settings)})


_WRITERS = {".pt": _write_pt, ".safetensors": _write_safetensors}


def _fit(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Any],
    *,
    settings: Mapping[str, Any],
    progress: bool | None,
) -> tuple[tuple[Epoch, ...], int]:
    optimizer = _make_optimizer(model, settings)
    scheduler = LambdaLR(optimizer, _schedule(settings["schedule"], settings["epochs"]))
    log: list[Epoch] = []
    gradients = 0
    model.train()
    name, epochs = settings["optimizer"], settings["epochs"]
    for epoch in progress_bar(range(1, epochs + 1), what=name, total=epochs, show=progress):
        started = time.perf_counter()
        lr = float(optimizer.param_groups[0]["lr"])
        train_loss, spent = _one_epoch(model, loss, optimizer, batches)
        if not math.isfinite(train_loss):
            msg = (
                f"the training loss of epoch {epoch} is {train_loss}; "
                f"try a smaller learning rate than {settings['lr']:g}"
            )
            raise NonFiniteError(msg)
        gradients += spent
        seconds = time.perf_counter() - started
        log.append(Epoch(epoch=epoch, train_loss=train_loss, lr=lr, seconds=seconds))
        scheduler.step()
    return tuple(log), gradients


def _one_epoch(
    model: nn.Module, loss: Loss, optimizer: Optimizer, batches: Iterable[Any]
) -> tuple[float, int]:
    # Returns the mean loss at the weights before each step, and the number of gradients.
    total = weight = 0.0
    gradients = 0
    for batch in batches:
        passes: list[tuple[float, float]] = []
        optimizer.step(_closure(model, loss, optimizer, batch=batch, passes=passes))
        at_w, *_ = passes
        total += at_w[0]
        weight += at_w[1]
        gradients += len(passes)
    if gradients == 0:
        msg = "the training data hold no example; is the split empty, or used up after one pass?"
        raise DataError(msg)
    return total / weight if weight else math.nan, gradients


def _closure(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    *,
    batch: Any,
    passes: list[tuple[float, float]],
) -> Callable[[], float]:
    first = next(model.parameters())
    there = move(batch, first.device, first.dtype)

    def closure() -> float:
        optimizer.zero_grad()
        terms, _ = loss(model, there)
        weight = float(terms.weight)
        mean = terms.total if loss.sums else terms.total / (weight or 1.0)
        mean.backward()  # type: ignore[no-untyped-call]
        passes.append((terms.total.item(), weight))
        return mean.item()

    return closure


def _make_optimizer(model: nn.Module, settings: Mapping[str, Any]) -> Optimizer:
    sgd = {key: settings[key] for key in ("lr", "momentum", "weight_decay")}
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(model.parameters(), **sgd)
    return SAM(model.parameters(), torch.optim.SGD, settings["rho"], model=model, **sgd)


def _schedule(name: str, epochs: int) -> Callable[[int], float]:
    if name == "constant":
        return lambda epoch: 1.0
    return lambda epoch: 0.5 * (1.0 + math.cos(math.pi * epoch / max(epochs, 1)))


class _Batches:
    """The training batches; each iteration is one epoch, in an order of its own."""

    def __init__(self, source: Any, batch_size: int, *, seed: int) -> None:
        self._as_they_come = as_batches(source, batch_size)  # refuses what is no data
        self._source = source
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Any]:
        source = self._source
        # What as_batches accepted as a pair of arrays, it cut along the first axis.
        if isinstance(source, tuple) and all(isinstance(a, (Tensor, np.ndarray)) for a in source):
            parts = [torch.as_tensor(part) for part in source]
            return (tuple(part[i] for part in parts) for i in self._order(len(parts[0])))
        if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            order = self._order(len(source))  # type: ignore[arg-type]
            return iter(DataLoader(source, batch_sampler=[i.tolist() for i in order]))
        return iter(self._as_they_come)

    def _order(self, n: int) -> list[Tensor]:
        order = torch.randperm(n, generator=self._generator)
        cut = list(torch.split(order, self._batch_size))
        if len(cut) > 1 and len(cut[-1]) == 1 and self._batch_size > 1:
            cut[-2:] = [torch.cat(cut[-2:])]
        return cut if n else []


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators inside, and leave them as they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed: it would seed the devices that are not forked, too.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _made(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        msg = f"the task's model() must return a torch.nn.Module, got {describe(model)}"
        raise ProblemError(msg)
    if not any(p.requires_grad for p in model.parameters()):
        msg = "the task's model has no parameter that requires a gradient: nothing to train"
        raise ProblemError(msg)
    return model


def _whole(name: str, value: Any, *, least: int) -> int:
    if not isinstance(value, numbers.Integral) or int(value) < least:
        msg = f"{name} must be a whole number of at least {least}, got {value!r}"
        raise InvalidArgumentError(msg)
    return int(value)


def _real(name: str, value: Any, *, least: float, below: float = math.inf) -> float:
    if not isinstance(value, numbers.Real) or not least <= float(value) < below:
        upper = f" and below {below:g}" if math.isfinite(below) else ""
        msg = f"{name} must be a finite number of at least {least:g}{upper}, got {value!r}"
        raise InvalidArgumentError(msg)
    return float(value)
