"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from landscape.errors import LandscapeError


def check_place(path: str | os.PathLike[str]) -> None:
    """Refuse a path that could not be written to, before the work that is to end in it."""
    target = Path(path)
    real = Path(os.path.realpath(target))
    if os.path.isdir(real):
        msg = f"cannot write {str(target)!r}: a folder of that name is in the way; name a file"
        raise LandscapeError(msg)
    if not os.path.isdir(real.parent):
        msg = f"cannot write {str(target)!r}: the folder {str(real.parent)!r} does not exist"
        raise LandscapeError(msg)


def write_file(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file so that it is there whole or not at all."""
    check_place(path)
    target = Path(path)
    real = Path(os.path.realpath(target))
    draft = real.with_name(f".{real.name[:100]}.{os.getpid()}.part")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(real)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if not isinstance(error, OSError):
            raise
        msg = f"cannot write {str(target)!r}: {error.strerror or error}"
        raise LandscapeError(msg) from error
    return target
