"""What a training leaves: the model with its log, a record of it, and checkpoint files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import InvalidArgumentError, one_of
from landscape.files import check_place, write_file
from landscape.problem import Problem
from landscape.results import Cost, TrainingLog

SUFFIXES = (".pt", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training data, numbered from 1."""

    epoch: int
    train_loss: float  # mean over the pass, of each batch at the weights before its step
    lr: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model with its log, settings and cost."""

    model: nn.Module  # in eval mode, on the device that trained it
    log: tuple[Epoch, ...]
    settings: Mapping[str, Any]  # those that were read; plain JSON values
    gradients: int  # of a batch; its micro-batches, one each, count as one
    seconds: float


def training_log(trained: Trained, problem: Problem, *, task: str) -> TrainingLog:
    """Return the log of a training as a record.

    Args:
        trained: the result of `landscape.training.train`.
        problem: the problem on the training data, at the trained weights.
        task: name of the problem, for the record's settings.

    Returns:
        The record.

    Raises:
        DataError: if the data have no fingerprint, as where a loader shuffles.
    """
    settings, epochs = dict(trained.settings), len(trained.log)
    # Only SAM's family has a radius.
    n_gradients = 1 if settings["rho"] is None else 1 + int(settings.get("ascent_steps", 1))
    # The weights of micro-batches take a forward pass.
    n_forwards = epochs if settings.get("micro_batch") else 0
    columns = {
        name: np.array([getattr(epoch, name) for epoch in trained.log], dtype=np.float64)
        for name in ("train_loss", "lr", "seconds")
    }
    return TrainingLog(
        settings={"problem": task, **settings},
        cost=Cost(forwards=n_forwards, gradients=epochs * n_gradients, seconds=trained.seconds),
        provenance=problem.provenance(),
        epochs=np.array([epoch.epoch for epoch in trained.log], dtype=np.int64),
        gradients=trained.gradients,
        **columns,
    )


def save_checkpoint(trained: Trained | nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the weights and the training settings to a file.

    The file appears only when it is complete. A ``.pt`` file holds ``{"state_dict": …,
    "settings": …}``, a ``.safetensors`` file the settings as JSON text in its metadata. Tensors are
    on the CPU; tied weights are written once for each of their names.

    Args:
        trained: the result of `train`, or a module.
        path: ends in ``.pt`` or ``.safetensors``. Missing folders are made.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: if the suffix is unknown, or the state of a ``.safetensors`` file
            holds anything but tensors.
        LandscapeError: if the file cannot be written.
    """
    path = _with_known_suffix(path)
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
    encode = _encode_pt if path.suffix == ".pt" else _encode_safetensors
    content = encode(state, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_file(path, content)


def check_checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a path that no checkpoint can be written to, before hours of training."""
    known = _with_known_suffix(path)
    check_place(known)
    return known


def _with_known_suffix(path: str | os.PathLike[str]) -> Path:
    one_of(Path(path).suffix, SUFFIXES, what=f"suffix of the checkpoint {Path(path).name!r}:")
    return Path(path)


def _encode_pt(state: dict[str, Any], settings: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    torch.save({"state_dict": state, "settings": settings}, content)
    return content.getvalue()


def _encode_safetensors(state: dict[str, Any], settings: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        msg = (
            f"the state holds what is no tensor ({', '.join(other)}), for which .safetensors has "
            "no room; save to a .pt file"
        )
        raise InvalidArgumentError(msg)
    # One entry only: safetensors writes several in an order that changes from run to run.
    content: bytes = save(state, metadata={"settings": json.dumps(settings)})
    return content
