"""Checkpoint files: weights and training settings."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InvalidArgumentError, one_of
from landscape.files import check_place, write_file
from landscape.training.records import Trained

SUFFIXES = (".pt", ".safetensors")


def save_checkpoint(trained: Trained | nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the weights and the training settings to a file.

    The file appears under its name only when it is complete, and replaces one that was there.
    ``torch.load(path, weights_only=True)`` reads a ``.pt`` file as ``{"state_dict": …,
    "settings": …}``; a ``.safetensors`` file carries the settings as JSON text in its metadata.
    Tensors are on the CPU; tied weights are written once for each of their names.

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
    content = _ENCODERS[path.suffix](state, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_file(path, content)


def check_checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a path that no checkpoint can be written to, before hours of training.

    Args:
        path: path of the checkpoint, in a folder that exists.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: if the suffix is unknown.
        LandscapeError: if the folder does not exist, or a folder stands at the path.
    """
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


_ENCODERS = {".pt": _encode_pt, ".safetensors": _encode_safetensors}
