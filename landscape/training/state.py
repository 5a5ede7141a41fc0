"""The state of a training between two epochs, and the file that it is resumed from."""

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
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, default_collate

from landscape.errors import CheckpointError
from landscape.files import write_file
from landscape.optim.passes import rng_states, set_rng_states
from landscape.problem._formats import read_checkpoint
from landscape.problem.data import move
from landscape.problem.digest import digest_of
from landscape.problem.losses import Loss
from landscape.randomness import forked_rng
from landscape.training.data import Batches, Relabelled, is_arrays
from landscape.training.outcome import Epoch, Trained
from landscape.training.settings import differences

_FORMAT = "landscape training state, version 3"
_N_FIRST = 64  # examples of the loss that recognises a model
_MODEL_OR_LOSS = "the model or the loss"


@dataclass
class Run:
    """A training in progress."""

    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    scheduler: LambdaLR
    batches: Batches
    settings: Mapping[str, Any]
    start: Mapping[str, str | float]  # see `identify_start`; empty where no state is kept
    log: list[Epoch] = field(default_factory=list)
    gradients: int = 0  # with those of interrupted calls
    seconds: float = 0.0

    def result(self) -> Trained:
        """Return the model as trained so far."""
        fields = {name: getattr(self, name) for name in ("model", "settings", "gradients")}
        return Trained(log=tuple(self.log), seconds=self.seconds, **fields)


def identify_start(model: nn.Module, source: Any, loss: Loss) -> dict[str, str | float]:
    """Return digests of the initial weights, the loss and the data, and the initial loss."""
    weights = {name: value.detach() for name, value in model.named_parameters()}
    buffers = {name: value.detach() for name, value in model.named_buffers()}
    return {
        "the initial weights": digest_of(weights, buffers),
        "the loss": loss.name,
        "the training data": digest_of(_content(source)),
        _MODEL_OR_LOSS: _first_loss(model, source, loss),
    }


def _first_loss(model: nn.Module, source: Any, loss: Loss) -> float:
    """Evaluate the loss on the first examples of tensors; NaN of data that reading may change."""
    plain = isinstance(source, DataLoader) and source.collate_fn is default_collate
    data: Any = source.dataset if plain else source
    parts = data.tensors if isinstance(data, TensorDataset) else data
    if not is_arrays(parts) or not parts or not len(parts[0]):
        return math.nan
    batch = tuple(torch.as_tensor(part[:_N_FIRST]) for part in parts)
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


def _content(source: Any) -> Any:
    if isinstance(source, (tuple, list)):
        return [_content(part) for part in source]
    if isinstance(source, (Tensor, np.ndarray, dict)):
        return source
    if isinstance(source, Relabelled):
        return source.labels, _content(source.source)
    if isinstance(source, DataLoader):
        options = source.batch_size, source.drop_last, type(source.sampler), source.collate_fn
        return options, _content(source.dataset)
    if isinstance(source, Subset):
        return list(source.indices), _content(source.dataset)
    if isinstance(source, ConcatDataset):
        return [_content(part) for part in source.datasets]
    attributes = {k: v for k, v in getattr(source, "__dict__", {}).items() if _is_data(v)}
    try:
        length = len(source)
    except (TypeError, NotImplementedError):
        length = None
    return type(source), length, attributes


def _is_data(value: Any) -> bool:
    """Return whether a value is a tensor, array, number or text, or a list of them."""
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
            "buffers": dict(run.model.named_buffers()),  # also those that no state dict holds
            "optimizer": run.optimizer.state_dict(),
            "scheduler": run.scheduler.state_dict(),
            "generators": [g.get_state() for g in run.batches.generators],
            "random": {device.type: state for device, state in _rng_states(run.model).items()},
            "log": [dataclasses.asdict(epoch) for epoch in run.log],
            "gradients": run.gradients,
            "seconds": run.seconds,
        },
        content,
    )
    write_file(path, content.getvalue())


def resume(path: Path, run: Run) -> None:
    """Load the state of an interrupted training into a fresh one, if the file exists."""
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
    devices = _rng_states(run.model)
    set_rng_states({d: saved["random"][d.type] for d in devices if d.type in saved["random"]})
    run.log[:] = [Epoch(**epoch) for epoch in saved["log"]]
    run.gradients, run.seconds = saved["gradients"], saved["seconds"]


def _check_same(path: Path, saved: Mapping[str, Any], run: Run) -> None:
    differing = differences(saved["settings"], run.settings)
    if not differing:
        parts = [name for name, now in run.start.items() if not _same(saved["start"][name], now)]
        # Other weights or data explain another initial loss.
        parts = [name for name in parts if name != _MODEL_OR_LOSS] or parts
        differing = [f"not as before: {', '.join(parts)}"] if parts else []
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


def _rng_states(model: nn.Module) -> dict[torch.device, Tensor]:
    # The two generators that a training seeds: the CPU's, and that of the model's own GPU.
    return rng_states([next(model.parameters()).device])
