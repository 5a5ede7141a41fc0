"""Weights, and the settings that led to them, in a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import InvalidArgumentError, one_of
from landscape.files import check_place
from landscape.training.records import Trained

SUFFIXES = (".pt", ".safetensors")


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
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _WRITERS[path.suffix](state, settings, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def check_checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a place where no checkpoint is to be written, before hours of training.

    `save_checkpoint` makes the folders that are missing; a folder that is mistyped is told here.

    Args:
        path: where to write.

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
