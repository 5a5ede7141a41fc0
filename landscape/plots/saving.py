"""Writing pictures: the same bytes for the same input."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError, one_of
from landscape.files import write_file

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
        figure: a matplotlib figure, or axes of one; or a plotly figure, which becomes a page.
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
    if isinstance(figure, Axes):
        figure = figure.figure
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
    from landscape.plots.pages import figure_json, render_page

    if suffix not in {"html", "htm"}:
        msg = f"an interactive figure is saved as .html; got {str(target)!r}"
        raise InvalidArgumentError(msg)
    height = int(figure.layout.height or 480)
    page = render_page(
        "page.html.jinja",
        title="landscape",
        figures={"figure": figure_json(figure)},
        height=height,
    )
    return write_file(target, page.encode())


def picture_bytes(figure: Figure, name: str, *, dpi: float) -> bytes:
    """Return a figure as the bytes of a picture file; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with mpl.rc_context(_FIXED):
        figure.savefig(stream, format=name, dpi=dpi, metadata=_UNDATED[name])
    return stream.getvalue()
