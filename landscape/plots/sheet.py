"""A sheet measured in inches: axes, text and tables placed so that nothing can overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from landscape.plots import words
from landscape.plots.style import SMALL, TEXT_SIZE, Picture, colour, fit, text_width, wrap

LEADING = 0.135
"""Distance between lines of small text, in inches."""

LINE = 0.155
"""The same for the text of tables."""

KEY = 0.175
"""Height of one row of the key that stands above a panel, in inches."""

_PAD = 0.075
_HEADER = 0.3

Box = tuple[float, float, float, float]


def place(figure: Figure, box: Box, **kwargs: Any) -> Axes:
    """Add axes at a place given in inches."""
    width, height = figure.get_size_inches()
    left, bottom, wide, high = box
    return figure.add_axes((left / width, bottom / height, wide / width, high / height), **kwargs)


def write(figure: Figure, text: str, *, left: float, bottom: float, **kwargs: Any) -> None:
    """Write one line at a place given in inches."""
    width, height = figure.get_size_inches()
    figure.text(left / width, bottom / height, text, **kwargs)


def write_lines(
    figure: Figure, lines: Sequence[str], *, left: float, top: float, size: float = SMALL
) -> None:
    """Write lines of small text under each other."""
    for i, line in enumerate(lines):
        write(figure, line, left=left, bottom=top - LEADING * i, size=size, color="0.2", va="top")


def one_panel(
    text: str, *, title: str | None, caption: bool, room: tuple[float, float] = (5.4, 2.9)
) -> tuple[Picture, Box]:
    """Make a figure for one panel with a heading above it and a caption under it."""
    width = room[0] + 1.0
    told = wrap(text, width - 0.4, size=SMALL) if caption else []
    below = 0.12 + LEADING * len(told)
    height = below + 0.5 + room[1] + (0.46 if title else 0.16)
    figure = Picture(figsize=(width, height))
    if title:
        heading = fit(title, width - 0.4, size=10, bold=True)
        write(figure, heading, left=0.2, bottom=height - 0.29, size=10, weight="bold")
    write_lines(figure, told, left=0.2, top=below - 0.04)
    return figure, (0.8, below + 0.5, *room)


def frame(
    parts: Sequence[str],
    *,
    title: str | None,
    caption: bool,
    key: int = 0,
    room: tuple[float, float] = (5.4, 2.9),
) -> tuple[Picture, Box]:
    """Make a figure for one panel, with rows for a key between the heading and the panel."""
    text = words.sentences(map(words.capital, parts))
    above = KEY * key + 0.06 * bool(key)
    figure, box = one_panel(text, title=title, caption=caption, room=(room[0], room[1] + above))
    return figure, (*box[:3], room[1])


def draw_key(axes: Axes, *, room: float, n_columns: int = 1) -> None:
    """Name what is drawn in rows above the panel, where no data can be; see `frame`."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: not isinstance(handles[i], ErrorbarContainer))
    order = [i for column in range(n_columns) for i in order[column::n_columns]]  # row by row
    short = [fit(labels[i].replace(r"\$", "$"), room / n_columns - 0.5) for i in order]
    axes.legend(
        [handles[i] for i in order],
        short,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=n_columns,
        borderpad=0.1,
        borderaxespad=0.3,
        labelspacing=0.45,
        frameon=False,
    )


def table_height(rows: Sequence[Sequence[str]], *, width: float, n_columns: int) -> float:
    """Return how high a table will be."""
    label, cell = _columns(rows, width, n_columns)
    return _HEADER + sum(_row_height(row, label, cell) for row in rows[1:]) + 0.1


def draw_table(
    figure: Figure,
    rows: Sequence[Sequence[str]],
    *,
    left: float,
    top: float,
    width: float,
    n_columns: int,
    first: int = 0,
) -> None:
    """Typeset a table; no text is cut, long cells take several lines."""
    label, cell = _columns(rows, width, n_columns)
    rule(figure, left=left, bottom=top, width=width, weight=1.0)
    for k, name in enumerate(rows[0][1:]):
        heading = fit(name, cell - 0.15, bold=True)
        at = {"left": left + label + cell * k, "bottom": top - 0.2}
        write(figure, heading, **at, size=TEXT_SIZE, weight="bold", color=colour(first + k))
    top -= _HEADER
    rule(figure, left=left, bottom=top, width=width, weight=0.6)
    for row in rows[1:]:
        _draw_row(figure, row, left=left, top=top, label=label, cell=cell)
        top -= _row_height(row, label, cell)
    rule(figure, left=left, bottom=top - 0.03, width=width, weight=1.0)


def _draw_row(
    figure: Figure, row: Sequence[str], *, left: float, top: float, label: float, cell: float
) -> None:
    for k, text in enumerate(row):
        x = left if k == 0 else left + label + cell * (k - 1)
        for n, line in enumerate(wrap(text, (label if k == 0 else cell) - 0.15)):
            at = {"left": x, "bottom": top - LINE * (n + 1) + 0.01}
            write(figure, line, **at, size=TEXT_SIZE, color="0.2" if k == 0 else "black")


def _columns(rows: Sequence[Sequence[str]], width: float, n_columns: int) -> tuple[float, float]:
    longest = max((text_width(row[0], TEXT_SIZE) for row in rows[1:]), default=0.0) + 0.25
    label = min(longest, 0.36 * width)
    return label, (width - label) / n_columns


def _row_height(row: Sequence[str], label: float, cell: float) -> float:
    n_lines = max(len(wrap(text, (label if k == 0 else cell) - 0.15)) for k, text in enumerate(row))
    return LINE * n_lines + _PAD


def rule(
    figure: Figure, *, left: float, bottom: float, width: float, weight: float, **kwargs: Any
) -> None:
    """Draw a horizontal rule at a place given in inches."""
    wide, high = figure.get_size_inches()
    ends = [left / wide, (left + width) / wide]
    look = {"color": "black", "linewidth": weight, **kwargs}
    figure.add_artist(Line2D(ends, [bottom / high] * 2, transform=figure.transFigure, **look))
