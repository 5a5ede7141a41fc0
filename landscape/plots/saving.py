"""Writing pictures and files: whole or not at all, and the same bytes for the same input."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError, LandscapeError, one_of
from landscape.plots.style import styled

FORMATS = ("png", "pdf", "svg")
_UNDATED: dict[str, dict[str, Any]] = {
    "png": {},
    "pdf": {"CreationDate": None, "ModDate": None},
    "svg": {"Date": None},
}
_FIXED: Any = {"svg.hashsalt": "landscape", "svg.fonttype": "path", "pdf.fonttype": 42}


def save_figure(
    figure: Any,
    path: str | os.PathLike[str],
    *,
    formats: Sequence[str] = (),
    dpi: float = 200.0,
) -> list[Path]:
    """Write a figure to one or several files; the same figure gives the same bytes.

    Args:
        figure: a matplotlib figure; or a plotly figure, which becomes a page of its own.
        path: where to write; its suffix names the format (``.html`` for a plotly figure).
        formats: any of ``png``, ``pdf`` and ``svg``, to write each beside the other under the
            name of ``path``; empty: only the format that the suffix names.
        dpi: dots per inch of a PNG, and of the reliefs inside a PDF or SVG.

    Returns:
        The paths of the files.

    Raises:
        InvalidArgumentError: if a format is unknown, or none is named.
    """
    target = Path(path)
    suffix = target.suffix[1:].lower()
    if not isinstance(figure, Figure):
        return [_save_page(figure, target, suffix)]
    for name in formats:
        one_of(name, FORMATS, what="picture format")
    if not formats and suffix not in FORMATS:
        msg = (
            f"cannot tell the picture format of {str(path)!r}: "
            f"end it in {', '.join('.' + name for name in FORMATS)}, or name the formats"
        )
        raise InvalidArgumentError(msg)
    stem = target.with_suffix("") if suffix in FORMATS else target
    wanted = {name: stem.with_name(f"{stem.name}.{name}") for name in dict.fromkeys(formats)}
    wanted = wanted or {suffix: target}
    for name, place in wanted.items():
        write_file(place, picture_bytes(figure, name, dpi=dpi))
    return list(wanted.values())


def _save_page(figure: Any, target: Path, suffix: str) -> Path:
    from landscape.plots.page import figure_page

    if suffix not in {"html", "htm"}:
        msg = f"an interactive figure is saved as .html; got {str(target)!r}"
        raise InvalidArgumentError(msg)
    return write_file(target, figure_page(figure).encode())


def picture_bytes(figure: Figure, name: str, *, dpi: float) -> bytes:
    """Return a figure as the bytes of a picture file; the same figure gives the same bytes.

    Args:
        figure: a matplotlib figure.
        name: ``png``, ``pdf`` or ``svg``.
        dpi: dots per inch.

    Returns:
        The bytes.
    """
    stream = io.BytesIO()
    with styled(), mpl.rc_context(_FIXED):
        figure.savefig(stream, format=name, dpi=dpi, metadata=_UNDATED[name])
    return stream.getvalue()


def check_place(path: str | os.PathLike[str]) -> None:
    """Refuse a path that could not be written to, before the work that is to end in it.

    Args:
        path: where a file is to be written.

    Raises:
        LandscapeError: if the folder does not exist, or a folder stands at the path.
    """
    target = Path(path)
    real = Path(os.path.realpath(target))
    if os.path.isdir(real):
        msg = f"cannot write {str(target)!r}: a folder of that name is in the way; name a file"
        raise LandscapeError(msg)
    if not os.path.isdir(real.parent):
        msg = f"cannot write {str(target)!r}: the folder {str(real.parent)!r} does not exist"
        raise LandscapeError(msg)


def write_file(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file so that it is there whole or not at all.

    Args:
        path: where to write; what stands there is replaced, a link is followed.
        content: the bytes.

    Returns:
        The path.

    Raises:
        LandscapeError: if the folder does not exist, a folder stands at the path, or the file
            cannot be written.
    """
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
    except OSError as error:
        _forget(draft)
        msg = f"cannot write {str(target)!r}: {error.strerror or error}"
        raise LandscapeError(msg) from error
    except BaseException:
        _forget(draft)
        raise
    return target


def _forget(draft: Path) -> None:
    with contextlib.suppress(OSError):
        draft.unlink()
