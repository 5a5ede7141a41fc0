"""Loss along directions: several checkpoints in one panel, and the spread over many directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import captions, style
from landscape.plots.scales import Floats, Scale, common_scale
from landscape.results import Line

LINE_AXES = ("auto", "distance", "direction")


@style.styled()
def plot_line(
    lines: Line | Sequence[Line],
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    axis: str = "auto",
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw the loss along a direction, one curve per record.

    Args:
        lines: one record, or several to lay over each other.
        ax: axes to draw into; None: those of a new picture.
        names: a name for each; None: the checkpoints'.
        colours: a colour for each name; None: those of the property cycle.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        axis: ``distance`` ‖w′ − w‖₂, ``direction`` (x, in units of d), or ``auto``: the distance
            wherever it is known.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.
    """
    records, called = style.records_and_names(lines, names)
    drawn = common_scale(records, scale, limits=limits)
    axes = style.new_axes(ax)
    tints = style.colours_by_name(called, colours, ax)
    draw_lines(axes, records, drawn, names=called, colours=tints, axis=axis)
    if limits is not None:
        axes.set_ylim(drawn.low, drawn.high)
    parts = captions.line_parts(records, called, drawn)
    return style.finish(axes, ax, parts, title=title, caption=caption, names=called)


def draw_lines(
    axes: Axes,
    lines: Sequence[Line],
    scale: Scale,
    *,
    names: Sequence[str],
    colours: Mapping[str, str],
    axis: str = "auto",
) -> bool:
    """Draw lines with bands of ±2 standard errors, and return whether against the distance."""
    by_distance = _use_distance(lines, axis)
    directions = list(dict.fromkeys(line.direction for line in lines))
    scale.apply(axes)
    for line, name in zip(lines, names, strict=True):
        label = name if len(directions) == 1 else f"{style.shorten(name)}, {line.direction}"
        dash: Any = style.DASHES[directions.index(line.direction) % len(style.DASHES)]
        x = line.distance if by_distance else np.asarray(line.x)
        _draw_line(axes, x, line, scale, color=colours[name], linestyle=dash, label=label)
    if by_distance:
        axes.set_xlabel("signed distance from the checkpoint, ‖w′ − w‖₂")
    elif len(lines) == 1:
        axes.set_xlabel(captions.axis_label("x", "d", lines[0].direction_norm))
    else:
        axes.set_xlabel("x, in units of each direction")
    axes.set_ylabel(scale.label)
    return by_distance


def _draw_line(axes: Axes, x: Any, line: Line, scale: Scale, *, label: str, **look: Any) -> None:
    values = scale.values(line)
    known = np.isfinite(values)
    drawn = np.where(known, values, np.nan)
    axes.plot(x, drawn, label=style.plain(style.shorten(label, 60)), **look)
    beside = np.pad(known, 1)
    lonely = known & ~(beside[:-2] | beside[2:])
    axes.plot(x[lonely], values[lonely], ".", color=look["color"], markersize=4)
    spread = 2 * captions.standard_errors(line, rise=scale.rise)
    if np.any(spread > 0):
        low = drawn - spread
        if scale.spacing == "log":
            low = np.maximum(low, scale.low * 1e-3)
        band: Any = {"alpha": 0.18, "linewidth": 0, "zorder": 1.5}
        axes.fill_between(x, low, drawn + spread, color=look["color"], **band)
    mark_bad(axes, x[~known & line.is_measured], look["color"])


def mark_bad(axes: Axes, x: Any, tint: str) -> None:
    """Mark places at the top of a panel where a value is not finite."""
    if len(x):
        top = axes.get_xaxis_transform()
        axes.plot(x, np.full(len(x), 0.975), "x", color=tint, markersize=5, transform=top)


def _use_distance(lines: Sequence[Line], axis: str) -> bool:
    one_of(axis, LINE_AXES, what="axis of a line picture")
    known = all(np.isfinite(line.direction_norm) and line.direction_norm > 0 for line in lines)
    if axis == "distance" and not known:
        msg = "the norm of a direction is unknown or zero: draw with axis='direction'"
        raise InvalidArgumentError(msg)
    return known and axis != "direction"


@style.styled()
def plot_band(
    lines: Mapping[str, Sequence[Line]],
    *,
    ax: Axes | None = None,
    colours: Mapping[str, str] | None = None,
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw the mean and spread of the loss along several directions through each checkpoint.

    On a log scale both are those of ln(loss): a mean of losses less their deviation is often
    negative, which no log scale can show.

    Args:
        lines: at least two for each checkpoint, by its name, all at the same coordinates.
        ax: axes to draw into; None: those of a new picture.
        colours: a colour for each name; None: those of the property cycle.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: if a checkpoint has less than two lines, or their coordinates differ.
    """
    _check_bands(lines)
    drawn = common_scale([line for of in lines.values() for line in of], scale, limits=limits)
    axes = style.new_axes(ax)
    drawn.apply(axes)
    tints = style.colours_by_name(lines, colours, ax)
    means = {name: _draw_band(axes, name, of, drawn, tints[name]) for name, of in lines.items()}
    if limits is not None:
        axes.set_ylim(drawn.low, drawn.high)
    elif drawn.spacing == "log":
        axes.set_ylim(0.8 * drawn.low, 1.25 * drawn.high)
    axes.set_xlabel("x, in units of each direction")
    axes.set_ylabel(drawn.label)
    parts = _band_parts(lines, means, drawn)
    return style.finish(axes, ax, parts, title=title, caption=caption, names=list(lines))


def _draw_band(axes: Axes, name: str, records: Sequence[Line], scale: Scale, tint: str) -> Floats:
    """Draw the lines of one checkpoint with their mean and spread, and return the mean."""
    x = np.asarray(records[0].x, dtype=np.float64)
    values = np.stack([scale.values(line) for line in records])
    shown = np.where(np.isfinite(values).all(axis=0), values, np.nan)
    if scale.spacing == "log":
        shown = np.log(shown)
    mean, spread = shown.mean(axis=0), shown.std(axis=0, ddof=1)
    edges = [mean, mean - spread, mean + spread]
    mean, low, high = map(np.exp, edges) if scale.spacing == "log" else edges
    for line in np.where(np.isfinite(values), values, np.nan):
        axes.plot(x, line, color=tint, linewidth=0.5, alpha=0.45, zorder=1.8)
    axes.fill_between(x, low, high, color=tint, alpha=0.2, linewidth=0, zorder=1.5)
    label = f"{style.shorten(name)}, mean of {len(records)} directions"
    axes.plot(x, mean, color=tint, linewidth=1.8, label=style.plain(label), zorder=3)
    return np.asarray(mean)


def _check_bands(lines: Mapping[str, Sequence[Line]]) -> None:
    """Refuse lines that cannot be averaged."""
    if not lines:
        msg = "nothing to draw: no checkpoint was given"
        raise InvalidArgumentError(msg)
    few = {name: len(records) for name, records in lines.items() if len(records) < 2}
    if few:
        listed = ", ".join(f"{style.shorten(name)} has {n}" for name, n in few.items())
        msg = (
            f"a band takes at least two lines of a checkpoint; {listed}: measure more, "
            "e.g. landscape line --seeds 10"
        )
        raise InvalidArgumentError(msg)
    grids: dict[bytes, str] = {}
    for name, records in lines.items():
        for line in records:
            ends = f"[{line.x.min():g}, {line.x.max():g}]"
            points = f"one of {style.shorten(name)} has {line.x.size} points on {ends}"
            grids.setdefault(line.x.tobytes(), points)
    if len(grids) > 1:
        msg = (
            f"a band takes lines at the same coordinates; {', '.join(grids.values())}: "
            "measure all with the same points and range"
        )
        raise InvalidArgumentError(msg)


def _band_parts(
    lines: Mapping[str, Sequence[Line]], means: Mapping[str, Floats], scale: Scale
) -> list[str]:
    of = ", both of ln(loss)" if scale.spacing == "log" else ""
    names, records = list(lines), list(lines.values())
    random = any("random" in line[0].direction.lower() for line in records)
    return [
        "loss along directions through the checkpoint: "
        + captions.per_name(records, names, _directions),
        f"thick: the mean over the directions; band: ±1 standard deviation over them{of}, not an "
        "error of the mean; thin: each direction",
        scale.note,
        captions.per_name(list(means.values()), names, _gaps),
        captions.per_name(records, names, lambda of: captions.source(of[0])),
        captions.NOT_THE_WORST if random else "",
    ]


def _directions(lines: Sequence[Line]) -> str:
    kinds = list(dict.fromkeys(line.direction for line in lines))
    kind = kinds[0] if len(kinds) == 1 else f"{len(kinds)} kinds, {kinds[0]} among them"
    return f"{len(lines)} × {kind}, {lines[0].x.size} points"


def _gaps(mean: Floats) -> str:
    n = int(np.count_nonzero(~np.isfinite(mean)))
    return f"a gap of the mean at {n} of {mean.size} points, where a line is not finite" * (n > 0)
