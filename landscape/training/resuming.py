"""A training in the middle: everything that the rest of it depends on, in a file."""

from __future__ import annotations

import dataclasses
import io
import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Subset,
    TensorDataset,
    default_collate,
)

from landscape.errors import CheckpointError
from landscape.files import write_file
from landscape.problem._formats import read_checkpoint
from landscape.problem.data import move
from landscape.problem.digest import digest_of
from landscape.problem.losses import Loss
from landscape.randomness import forked_rng
from landscape.training.batches import Batches
from landscape.training.labels import Relabelled
from landscape.training.records import Epoch, Trained
from landscape.training.settings import differences

_FORMAT = "landscape training state, version 3"
_FIRST = 64  # examples
_MEASURED = "the model or the loss"  # what another loss at the start tells of


@dataclass
class Run:
    """What changes while a model is trained.

    Attributes:
        model: with its weights and buffers.
        optimizer: with its moments.
        scheduler: of the learning rate.
        batches: with the generators of the order.
        settings: what was asked for.
        start: what it started from, as `start_of` says it; empty where no state is kept.
        log: one record per finished epoch.
        gradients: gradients of a batch computed so far.
        seconds: wall-clock time so far, that of calls before this one among it.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    batches: Batches
    settings: Mapping[str, Any]
    start: Mapping[str, str | float]
    log: list[Epoch] = field(default_factory=list)
    gradients: int = 0
    seconds: float = 0.0

    def result(self) -> Trained:
        """Return the training as far as it has come."""
        return Trained(
            model=self.model,
            log=tuple(self.log),
            settings=self.settings,
            gradients=self.gradients,
            seconds=self.seconds,
        )


def start_of(model: nn.Module, source: Any, loss: Loss) -> dict[str, str | float]:
    """Describe what a training starts from, but for its settings."""
    weights = {name: value.detach() for name, value in model.named_parameters()}
    buffers = {name: value.detach() for name, value in model.named_buffers()}
    return {
        "the initial weights": digest_of(weights, buffers),
        "the loss": loss.name,
        "the training data": digest_of(_told_of(source)),
        _MEASURED: _first_loss(model, source, loss),
    }


def _first_loss(model: nn.Module, source: Any, loss: Loss) -> float:
    """Evaluate the loss on the first examples of tensors; NaN of data that reading may change."""
    plain = isinstance(source, DataLoader) and source.collate_fn is default_collate
    data: Any = source.dataset if plain else source
    parts = data.tensors if isinstance(data, TensorDataset) else data
    tensors = isinstance(parts, tuple) and all(isinstance(x, (Tensor, np.ndarray)) for x in parts)
    if not tensors or not parts or not len(parts[0]):
        return math.nan
    batch = tuple(torch.as_tensor(part[:_FIRST]) for part in parts)
    training = [part for part in model.modules() if part.training]
    parameter = next(model.parameters())
    model.eval()
    try:
        with forked_rng(), torch.no_grad():
            terms, _ = loss(model, move(batch, parameter.device, parameter.dtype))
    finally:
        for part in training:
            part.training = True
    return float(terms.total)


def _told_of(source: Any) -> Any:
    if isinstance(source, (tuple, list)):
        return [_told_of(part) for part in source]
    if isinstance(source, (Tensor, np.ndarray, dict)):
        return source
    if isinstance(source, Relabelled):
        return source.labels, _told_of(source.source)
    if isinstance(source, DataLoader):
        how = source.batch_size, source.drop_last, type(source.sampler), source.collate_fn
        return how, _told_of(source.dataset)
    if isinstance(source, Subset):
        return list(source.indices), _told_of(source.dataset)
    if isinstance(source, ConcatDataset):
        return [_told_of(part) for part in source.datasets]
    held = {k: v for k, v in getattr(source, "__dict__", {}).items() if _is_data(v)}
    return type(source), _length_of(source), held


def _length_of(source: Any) -> int | None:
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None


def _is_data(value: Any) -> bool:
    """Tell tensors, arrays, numbers and texts, also in lists, from what changes in use."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    simple = (Tensor, np.ndarray, str, float, bool, pathlib.PurePath)
    return bool(parts) and all(isinstance(part, simple) for part in parts)


def write_state(path: Path, run: Run) -> None:
    """Write the state between two epochs; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(
        {
            "format": _FORMAT,
            "settings": dict(run.settings),
            "start": dict(run.start),
            "model": run.model.state_dict(),
            "buffers": dict(run.model.named_buffers()),  # those that no state dict holds, too
            "optimizer": run.optimizer.state_dict(),
            "scheduler": run.scheduler.state_dict(),
            "generators": [g.get_state() for g in run.batches.generators],
            "random": _random_states(run.model),
            "log": [dataclasses.asdict(epoch) for epoch in run.log],
            "gradients": run.gradients,
            "seconds": run.seconds,
        },
        content,
    )
    write_file(path, content.getvalue())


def take_up(path: Path, run: Run) -> None:
    """Put a fresh training into the state that a file holds; do nothing where there is no file."""
    if not path.exists():
        return
    saved = read_checkpoint(path)
    if not isinstance(saved, Mapping) or saved.get("format") != _FORMAT:
        msg = f"{path} holds no state of a training; name another file, or delete this one"
        raise CheckpointError(msg)
    _check_same(path, saved, run)
    run.model.load_state_dict(saved["model"])
    buffers = dict(run.model.named_buffers())
    with torch.no_grad():
        for name, value in saved["buffers"].items():
            buffers[name].copy_(value)
    run.optimizer.load_state_dict(saved["optimizer"])
    run.scheduler.load_state_dict(saved["scheduler"])
    for generator, state in zip(run.batches.generators, saved["generators"], strict=True):
        generator.set_state(state)
    _set_random_states(run.model, saved["random"])
    run.log[:] = [Epoch(**epoch) for epoch in saved["log"]]
    run.gradients, run.seconds = saved["gradients"], saved["seconds"]


def _check_same(path: Path, saved: Mapping[str, Any], run: Run) -> None:
    differing = differences(saved["settings"], run.settings)
    if not differing:
        others = [what for what, now in run.start.items() if not _same(saved["start"][what], now)]
        # Other weights or data are reason enough for another measured loss.
        others = [what for what in others if what != _MEASURED] or others
        differing = [f"not as before: {', '.join(others)}"] if others else []
    if differing:
        msg = (
            f"{path} holds a training that was interrupted, with other settings: "
            f"{'; '.join(differing)}. Use the settings of before to finish it, "
            "or delete the file to begin anew (landscape train --restart does)"
        )
        raise CheckpointError(msg)


def _same(before: str | float, now: str | float) -> bool:
    if isinstance(before, float) and isinstance(now, float):
        both_unknown = math.isnan(before) and math.isnan(now)
        return both_unknown or math.isclose(before, now, rel_tol=1e-5, abs_tol=1e-7)
    return before == now


def _random_states(model: nn.Module) -> dict[str, Tensor]:
    # The two generators that a training seeds: the CPU's, and that of the model's own GPU.
    device = next(model.parameters()).device
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def _set_random_states(model: nn.Module, states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], next(model.parameters()).device)
