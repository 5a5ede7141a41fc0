"""Loss along a direction, several checkpoints in one panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import words
from landscape.plots.scales import Scale, common_scale
from landscape.plots.sheet import one_panel, place
from landscape.plots.style import DASHES, colour, fit, plain, styled
from landscape.results import Line
from landscape.wording import number

LINE_AXES = ("auto", "distance", "direction")


@styled()
def line_figure(
    lines: Line | Sequence[Line],
    *,
    names: Sequence[str] | None = None,
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    axis: str = "auto",
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw the loss along a direction, one curve per record.

    Args:
        lines: one record, or several to lay over each other.
        names: a name for each; None: the checkpoints'.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        axis: ``distance`` ‖w′ − w‖₂, ``direction`` (x, in units of d), or ``auto``: the distance
            wherever it is known.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    lines = [lines] if isinstance(lines, Line) else list(lines)
    called = called_by(lines, names)
    drawn = common_scale(lines, scale, limits=limits)
    text = words.lines_caption(lines, called, drawn)
    heading = called[0] if title is None and len(lines) == 1 else title
    figure, box = one_panel(text, title=heading, caption=caption)
    axes = place(figure, box)
    draw_lines(axes, lines, drawn, names=called, axis=axis, limited=limits is not None)
    if len(lines) > 1:
        draw_legend(axes, room=box[2])
    return figure


def called_by(results: Sequence[Any], names: Sequence[str] | None) -> list[str]:
    """Return a name for each record: those given, or the checkpoints'."""
    if not results:
        msg = "nothing to draw: no record was given"
        raise InvalidArgumentError(msg)
    called = [result.name for result in results] if names is None else list(names)
    if len(called) != len(results):
        msg = f"names must hold one name per record; got {len(called)} for {len(results)} records"
        raise InvalidArgumentError(msg)
    return called


def draw_lines(
    axes: Axes,
    lines: Sequence[Line],
    scale: Scale,
    *,
    names: Sequence[str],
    axis: str = "auto",
    limited: bool = False,
    colours: Sequence[str] | None = None,
    **style: Any,
) -> None:
    """Draw lines into axes, with bands of ±2 standard errors where they are known."""
    by_distance = use_distance(lines, axis)
    distinct, directions = (
        list(dict.fromkeys(names)),
        list(dict.fromkeys(line.direction for line in lines)),
    )
    _space(axes, scale)
    for k, (line, name) in enumerate(zip(lines, names, strict=True)):
        look = {
            "color": colours[k] if colours else colour(distinct.index(name)),
            "linestyle": DASHES[directions.index(line.direction) % len(DASHES)],
            "label": name if len(directions) == 1 else f"{name}, {line.direction}",
            **style,
        }
        x = line.distance if by_distance else np.asarray(line.x)
        _draw_line(axes, x, line, scale, look)
    if limited:
        axes.set_ylim(scale.low, scale.high)
    axes.set_ylabel(scale.label)
    axes.set_xlabel(_x_label(lines, by_distance))
    axes.grid(visible=True)
    axes.set_axisbelow(True)


def _draw_line(axes: Axes, x: Any, line: Line, scale: Scale, look: dict[str, Any]) -> None:
    values = scale.values(line)
    finite = np.isfinite(values)
    drawn = np.where(finite, values, np.nan)
    curve = axes.plot(x, drawn, **{**look, "label": plain(look["label"])})[0]
    lonely = finite & ~_has_neighbour(finite)
    axes.plot(x[lonely], values[lonely], ".", color=look["color"], markersize=4)
    if words.has_band(line):
        spread = 2 * np.asarray(line.loss_se, dtype=np.float64)
        low = drawn - spread
        if scale.spacing == "log":
            low = np.maximum(low, scale.low * 1e-3)
        axes.fill_between(
            x, low, drawn + spread, color=look["color"], alpha=0.18, linewidth=0, zorder=1.5
        )
    if not finite.all():
        axes.plot(
            x[~finite],
            np.full(np.count_nonzero(~finite), 0.975),
            "x",
            color=curve.get_color(),
            markersize=5,
            transform=axes.get_xaxis_transform(),
        )


def draw_legend(axes: Axes, *, room: float, n_columns: int = 1) -> None:
    """Add a legend whose labels are shortened to fit."""
    handles, labels = axes.get_legend_handles_labels()
    short = [fit(label.replace(r"\$", "$"), 0.6 * room) for label in labels]
    where: Any = "best" if n_columns == 1 else "upper center"
    legend = axes.legend(handles, short, loc=where, ncols=n_columns, frameon=True)
    legend.get_frame().set(linewidth=0, alpha=0.8)


def use_distance(lines: Sequence[Line], axis: str) -> bool:
    """Return whether lines are drawn against the distance in parameter space."""
    one_of(axis, LINE_AXES, what="axis of a line picture")
    known = all(np.isfinite(line.direction_norm) and line.direction_norm > 0 for line in lines)
    if axis == "distance" and not known:
        msg = "the norm of a direction is unknown or zero: draw with axis='direction'"
        raise InvalidArgumentError(msg)
    return axis == "distance" or (axis == "auto" and known)


def _x_label(lines: Sequence[Line], by_distance: bool) -> str:
    if by_distance:
        return "signed distance from the checkpoint, ‖w′ − w‖₂"
    if len(lines) == 1:
        return f"x, in units of d (‖d‖ = {number(lines[0].direction_norm)})"
    return "x, in units of each direction"


def _space(axes: Axes, scale: Scale) -> None:
    if scale.spacing == "log":
        axes.set_yscale("log", nonpositive="clip")
    elif scale.spacing == "symlog":
        axes.set_yscale("symlog", linthresh=scale.threshold)


def _has_neighbour(finite: Any) -> Any:
    padded = np.pad(finite, 1)
    return padded[:-2] | padded[2:]


def mark(axes: Axes, x: float, y: float, *, index: int) -> None:
    """Mark one point of a panel in the colour of a checkpoint."""
    axes.plot(
        x,
        y,
        "o",
        color=colour(index),
        markersize=5,
        markeredgecolor="white",
        clip_on=False,
        zorder=6,
    )
