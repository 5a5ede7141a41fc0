"""Checkpoint files as data: nothing in them is executed, and what is wrong with one is said.

Files of `torch.save` (any version, saved on any device) and of safetensors, told apart by what
they hold.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
from collections import deque
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from landscape.errors import CheckpointError, did_you_mean

_SUFFIXES = {".pt", ".pth", ".safetensors", ".ckpt", ".bin"}
_LISTED = 8


def read_checkpoint(path: str | PathLike[str], *, unsafe_pickle: bool = False) -> Any:
    """Read a checkpoint file to the CPU, without executing anything in it.

    Args:
        path: a ``.safetensors`` file, or what ``torch.save`` wrote.
        unsafe_pickle: unpickle whatever it holds, which runs any code that it contains.

    Returns:
        What the file holds: tensors in nested containers.

    Raises:
        CheckpointError: if there is no such file, or it is truncated, or no checkpoint, or would
            run code.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise CheckpointError(_no_such_file(file))
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        msg = f"{file} cannot be read: {error.strerror or error}"
        raise CheckpointError(msg) from error
    if not head:
        msg = f"{file} is empty (0 bytes): was the disk full when it was saved?"
        raise CheckpointError(msg)
    # By what it holds, not by its name. A safetensors file starts with the length of its header.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size:
        return _read_safetensors(file)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _read_torch(file, unsafe_pickle=unsafe_pickle)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    msg = (
        f"{file} is no checkpoint: neither a file that torch.save wrote nor a safetensors "
        f"file (it starts with {head[:8]!r})"
    )
    raise CheckpointError(msg)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file, device="cpu")
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        msg = f"{file} is no whole safetensors file ({error}); is it truncated?"
        raise CheckpointError(msg) from error


def _read_torch(file: Path, *, unsafe_pickle: bool) -> Any:
    try:
        # From a stream: of a path torch would look at the suffix.
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Detected pickle protocol"
            )  # said below, if it matters
            return torch.load(stream, map_location="cpu", weights_only=not unsafe_pickle)
    except pickle.UnpicklingError as error:
        # torch words every failure as if more trust would help.
        if unsafe_pickle or _breaks_off(file):
            raise CheckpointError(_damaged(file, error)) from error
        msg = (
            f"{file} is not loaded: it holds more than tensors, and unpickling that would run "
            f"code ({_first_reason(error)}). Save model.state_dict() instead; or, only if you "
            "trust whoever made the file, allow it with unsafe_pickle=True (--unsafe-pickle)"
        )
        raise CheckpointError(msg) from error
    except Exception as error:
        # Damaged files raise almost anything (EOFError, RuntimeError, struct.error, KeyError, …),
        # and on the unsafe path so does foreign code.
        if unsafe_pickle:
            msg = f"{file} cannot be unpickled: {type(error).__name__}: {error}"
            raise CheckpointError(msg) from error
        raise CheckpointError(_damaged(file, error)) from error


def _breaks_off(file: Path) -> bool:
    """Tell whether one of the pickles that a legacy file starts with has no end; runs none."""
    with file.open("rb") as stream:
        if stream.peek(1)[:1] != b"\x80":
            return False
        for _ in range(4):  # magic number, protocol, system, and then the content
            try:
                deque(pickletools.genops(stream), maxlen=0)
            except ValueError:
                return True
            if not stream.peek(1):
                return False
    return False


def _damaged(file: Path, error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")
    if isinstance(error, pickle.UnpicklingError):
        first = "its pickle breaks off"
    if "TorchScript" in str(error):
        return f"{file} is a TorchScript program, not weights; save model.state_dict() instead"
    return (
        f"{file} ({file.stat().st_size:,} bytes) is truncated or no checkpoint: "
        f"{first}; copy or save it again"
    )


def _first_reason(error: Exception) -> str:
    text = str(error).rsplit("WeightsUnpickler error:", 1)[-1].strip()
    for mark in ("Unsupported global: GLOBAL ", "GLOBAL "):
        if mark in text:
            return f"it asks for {text.split(mark, 1)[1].split()[0]}"
    if text.startswith("Unsupported operand"):
        return (
            f"{text.splitlines()[0]} of pickle: was it saved with a pickle_protocol other than 2?"
        )
    return text.split("\n", 1)[0][:160]


def _no_such_file(file: Path) -> str:
    if file.is_dir():
        inside = sorted(p.name for p in file.iterdir() if p.suffix in _SUFFIXES)
        return f"{file} is a directory; name a file in it: {listing(inside) or 'none fits'}"
    siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
    near = did_you_mean(file.name, siblings)
    return f"no such checkpoint file: {file}{near}"


def listing(names: Iterable[str]) -> str:
    """Join the first names, and count the others.

    Args:
        names: what to list.

    Returns:
        One line.
    """
    shown = list(names)
    rest = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f", … and {rest} more" if rest > 0 else "")
