"""Which measure of sharpness goes with test error: rank correlations, and the points themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from landscape.errors import InvalidArgumentError
from landscape.intervals import Interval
from landscape.plots import words
from landscape.plots.replicates import left_out, same_keys, seeds, tick_at, wide
from landscape.plots.sheet import Box, draw_key, frame, place
from landscape.plots.style import (
    COLOUR_MAP,
    FAINT,
    MARKERS,
    SMALL,
    colour,
    fit,
    plain,
    styled,
)
from landscape.results import FloatArray

MOST_PANELS = 12
"""So many measures are shown point by point."""

_COLUMNS = 4
_ENDS = ("value", "low", "high")
_FOREST = 2.1
_NAMES = 1.5
_RIGHT = 5.5
_GAP = 0.7
_APART = 0.24
"""Between two small panels, in inches; a label under one reaches at most half of it out."""


@styled()
def correlation_figure(
    measures: Mapping[str, npt.ArrayLike],
    error: npt.ArrayLike,
    correlations: Mapping[str, Interval],
    *,
    groups: Sequence[str],
    within: Mapping[str, Interval] | None = None,
    within_what: str = "models of one group",
    n_test: int,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw Kendall's τ of each measure with the test error, and measure against error.

    Args:
        measures: for each measure, a number for each model, shape (n_models,).
        error: test error of each model in [0, 1], shape (n_models,).
        correlations: τ of each measure with the error and its interval; the order is kept.
        groups: for each model, the group whose colour it has, such as ``ρ = 0.1``.
        within: τ of each measure where only some of the models are compared with each other.
        within_what: which models those are.
        n_test: number of test examples.
        title: a line above the picture, or None.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.

    Raises:
        InvalidArgumentError: if nothing was given, a shape is another, or the names differ.
    """
    found, lost = _checked(measures, error, correlations, groups=groups, within=within)
    shown = list(correlations)[:MOST_PANELS]
    parts = [
        f"left: Kendall's τ of each measure with the test error over {lost.size} models, with "
        "bootstrap intervals; τ > 0: the larger the measure, the more errors",
        f"squares: only {within_what} are compared with each other" if within else "",
        f"right: each measure against the test error on {n_test:,} examples, one mark per model",
        f"{len(shown)} of {len(correlations)} measures are shown on the right"
        if len(shown) < len(correlations)
        else "",
        left_out([*found.values(), lost]),
    ]
    looks = group_looks(groups)
    key, n_rows = _key_rows(len(looks)), -(-len(shown) // _COLUMNS)
    height = max(1.2 * n_rows - 0.42, 0.3 * len(correlations) + 0.2, 1.9)
    room = (_NAMES + _FOREST + _GAP + _RIGHT - 0.5, height)
    figure, box = frame(parts, title=title, caption=caption, key=max(key, 2), room=room)
    left = box[0] - 0.5
    forest = place(figure, (left + _NAMES, box[1], _FOREST, height))
    _draw_forest(forest, correlations, within, within_what)
    field = (left + _NAMES + _FOREST + _GAP, box[1], _RIGHT, height)
    panels = [place(figure, part) for part in _grid(field, len(shown))]
    for axes, name in zip(panels, shown, strict=True):
        _draw_scatter(axes, found[name], 100 * lost, groups, looks, room=_panel_width())
        axes.set_title(fit(name, _panel_width() + 0.1, size=SMALL), fontsize=SMALL, pad=3)
    for k, axes in enumerate(panels):
        if k % _COLUMNS == 0:
            axes.set_ylabel("test error (%)", fontsize=SMALL)
        else:
            axes.tick_params(labelleft=False)
    _draw_groups(figure, looks, left=field[0], bottom=box[1] + height + 0.2)
    return figure


def group_looks(groups: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the colour and the marker of each group.

    Args:
        groups: for each model, its group.

    Returns:
        For each group, in the order of appearance, a colour and a marker; colours run along one
        map, since groups are mostly values of one setting.
    """
    names = list(dict.fromkeys(groups))
    scale = mpl.colormaps[COLOUR_MAP]
    at = np.linspace(0.0, 0.88, len(names))
    return {name: (to_hex(scale(at[k])), MARKERS[k % len(MARKERS)]) for k, name in enumerate(names)}


def _draw_forest(
    axes: Axes,
    correlations: Mapping[str, Interval],
    within: Mapping[str, Interval] | None,
    within_what: str,
) -> None:
    series: list[tuple[str, Mapping[str, Interval], str, float]] = [
        ("all models", correlations, "o", -0.14 if within else 0.0)
    ]
    series += [(within_what, within, "s", 0.14)] if within else []
    names = list(correlations)
    for k, (label, found, sign, shift) in enumerate(series):
        rows = [found[name] for name in names]
        value, low, high = (np.array([getattr(r, e) for r in rows]) for e in _ENDS)
        axes.errorbar(
            value,
            np.arange(len(names)) + shift,
            xerr=[value - low, high - value],
            fmt=sign,
            color=("black", colour(4))[k],
            markersize=4,
            elinewidth=1.1,
            capsize=2.2,
            label=label,
            zorder=3,
        )
        for at in np.flatnonzero(~np.isfinite(value)):
            axes.text(0.04, at + shift, "not defined", size=SMALL, color=FAINT, va="center")
    axes.axvline(0.0, color=FAINT, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1.2)
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [fit(n, _NAMES - 0.1, size=SMALL) for n in names])
    axes.set_xlabel("Kendall's τ with test error")
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    draw_key(axes, room=_FOREST)


def _draw_scatter(
    axes: Axes,
    measure: FloatArray,
    error: FloatArray,
    groups: Sequence[str],
    looks: Mapping[str, tuple[str, str]],
    *,
    room: float,
) -> None:
    of = np.array(groups)
    for name, (tint, sign) in looks.items():
        inside = of == name
        axes.plot(
            *(measure[inside], error[inside], sign),
            color=tint,
            markersize=3.2,
            markeredgewidth=0,
            alpha=0.85,
            label=plain(name),
        )
    if wide(measure):
        axes.set_xscale("log")
    _few_ticks(axes, room=room)
    _same_height(axes, error)
    axes.tick_params(pad=2)
    axes.grid(visible=True)
    axes.set_axisbelow(True)


def _few_ticks(axes: Axes, *, room: float) -> None:
    """Label two or three values under a small panel, none of them reaching into the next one."""
    logarithmic = axes.get_xscale() == "log"
    low, high = axes.get_xlim()
    locator = LogLocator(numticks=4) if logarithmic else MaxNLocator(3)
    ticks = [float(t) for t in locator.tick_values(low, high) if low <= t <= high]
    texts = [words.level_text(t) for t in ticks]
    tick_at(axes, ticks, texts, room=room, overhang=_APART / 2 - 0.02)


def _same_height(axes: Axes, error: FloatArray) -> None:
    """Give every panel the same axis of errors, also where a measure lacks some of the models."""
    known = error[np.isfinite(error)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    pad = 0.08 * (high - low) or 0.5
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _panel_width() -> float:
    return (_RIGHT - _APART * (_COLUMNS - 1)) / _COLUMNS


def _grid(field: Box, n: int) -> list[Box]:
    left, bottom, _, height = field
    n_rows, wide_ = -(-n // _COLUMNS), _panel_width()
    pitch = (height + 0.42) / n_rows
    return [
        (
            left + (k % _COLUMNS) * (wide_ + _APART),
            bottom + height - (k // _COLUMNS) * pitch - (pitch - 0.42),
            wide_,
            pitch - 0.42,
        )
        for k in range(n)
    ]


def _key_rows(n_groups: int) -> int:
    return -(-n_groups // _COLUMNS) + 1


def _draw_groups(
    figure: Figure, looks: Mapping[str, tuple[str, str]], *, left: float, bottom: float
) -> None:
    """Name the groups above the small panels."""
    wide_, high = figure.get_size_inches()
    n_columns = min(_COLUMNS, len(looks))
    order = [name for k in range(n_columns) for name in list(looks)[k::n_columns]]  # row by row
    handles = [
        Line2D([], [], linestyle="", marker=looks[n][1], color=looks[n][0], markersize=4)
        for n in order
    ]
    figure.legend(
        handles,
        [fit(name, _RIGHT / _COLUMNS - 0.45) for name in order],
        loc="lower left",
        bbox_to_anchor=(left / wide_, bottom / high),
        ncols=n_columns,
        borderpad=0.1,
        borderaxespad=0.0,
        labelspacing=0.45,
        frameon=False,
    )


def _checked(
    measures: Mapping[str, npt.ArrayLike],
    error: npt.ArrayLike,
    correlations: Mapping[str, Interval],
    *,
    groups: Sequence[str],
    within: Mapping[str, Interval] | None,
) -> tuple[dict[str, FloatArray], FloatArray]:
    if not correlations:
        msg = "nothing to draw: no measure was given"
        raise InvalidArgumentError(msg)
    same_keys(measures, correlations, what="measures", as_in="correlations")
    if within is not None:
        same_keys(within, correlations, what="within", as_in="correlations")
    lost = seeds(error, what="error")
    found: dict[str, FloatArray] = {
        name: np.asarray(values, dtype=np.float64) for name, values in measures.items()
    }
    sizes = {name: values.shape for name, values in found.items() if values.shape != lost.shape}
    if sizes or len(groups) != lost.size:
        msg = (
            f"each measure and groups must hold one entry for each of {lost.size} models; got "
            f"{len(groups)} groups and measures of other shapes: {sizes or 'none'}"
        )
        raise InvalidArgumentError(msg)
    return found, lost
