"""Test error against the radius of SAM, and the sharpness that k inner steps find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from landscape.errors import InvalidArgumentError
from landscape.intervals import ratio_interval
from landscape.plots import words
from landscape.plots.replicates import (
    BASELINE,
    MEANS,
    beside,
    draw_means,
    dress,
    left_out,
    places,
    replicates,
    same_keys,
    seeds,
    shifts,
    summary,
    tick_at,
    typeset,
    wide,
)
from landscape.plots.sheet import Box, draw_key, frame, place
from landscape.plots.style import FAINT, colour, plain, styled
from landscape.results import FloatArray
from landscape.wording import number

_GAP = 0.72


@styled()
def radius_figure(
    rhos: Sequence[float],
    errors: Mapping[int, npt.ArrayLike],
    baseline: npt.ArrayLike,
    *,
    steps: Sequence[int],
    rises: Mapping[str, npt.ArrayLike],
    searched: Mapping[str, npt.ArrayLike],
    rho: float,
    n_test: int,
    note: str = "",
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw test error against SAM's ρ for each m, and the sharpness that k inner steps find.

    Args:
        rhos: radii that SAM was trained with, positive, ascending.
        errors: for each m (examples that share one ascent), the test error in [0, 1], shape
            (n_rhos, n_seeds).
        baseline: test error without SAM (ρ = 0), shape (n_seeds,).
        steps: numbers k of inner ascent steps, positive, ascending.
        rises: for each optimizer, the rise of the loss that k steps find, shape
            (n_steps, n_seeds).
        searched: for each optimizer, what the full search finds, shape (n_seeds,).
        rho: radius of the ball on the right.
        n_test: number of test examples.
        note: what else the caption is to say, such as how the optimizers on the right were told.
        title: a line above the picture, or None.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.

    Raises:
        InvalidArgumentError: if radii or steps do not ascend from above zero, the optimizers of
            `rises` and `searched` or the numbers of their seeds differ, or a shape is another.
    """
    _ascending(rhos, "rhos")
    _ascending(steps, "steps")
    same_keys(searched, rises, what="searched", as_in="rises")
    n_rhos, n_steps = len(rhos), len(steps)
    lost = {
        m: 100 * replicates(e, rows=n_rhos, what=f"errors[{m}]", of="rhos")
        for m, e in errors.items()
    }
    flat = 100 * seeds(baseline, what="baseline")
    found = {
        name: replicates(r, rows=n_steps, what=f"rises[{name!r}]", of="steps")
        for name, r in rises.items()
    }
    full = {name: seeds(searched[name], what=f"searched[{name!r}]") for name in found}
    _same_seeds(found, full)
    parts = [
        f"left: test error on {n_test:,} examples after training with SAM, against its radius ρ; "
        f"m: examples that share one ascent; {MEANS}; grey: ρ = 0, plain {BASELINE}, and its "
        "interval",
        f"right: rise of the loss at distance ρ = {number(rho)} that k steps of ascent find, a "
        "lower bound on the maximum; dashed: what the full search finds",
        note,
        *(ratio_in_words(name, steps, found[name], full[name]) for name in found),
        left_out([*lost.values(), flat, *found.values(), *full.values()]),
    ]
    rows = max(len(lost), len(found)) + 1
    figure, box = frame(parts, title=title, caption=caption, key=rows, room=(7.6, 2.7))
    boxes = beside(box, 2, gap=_GAP)
    left, right = (place(figure, part) for part in boxes)
    _draw_errors(left, rhos, lost, flat, room=boxes[0][2])
    _draw_rises(right, steps, found, full, box=boxes[1])
    for axes in (left, right):
        draw_key(axes, room=boxes[0][2])
    return figure


def ratio_in_words(name: str, steps: Sequence[int], rises: FloatArray, searched: FloatArray) -> str:
    """Say which part of what the search finds the fewest steps find.

    Args:
        name: of the optimizer.
        steps: numbers of steps.
        rises: what they find, shape (n_steps, n_seeds).
        searched: what the search finds, shape (n_seeds,).

    Returns:
        A phrase such as ``SAM: one step / search = 0.83 (0.80 to 0.86)``: the ratio of geometric
        means over the seeds where both are positive, with its 95 % interval; empty where no seed
        has both.
    """
    count = "one step" if steps[0] == 1 else f"{steps[0]} steps"
    both = np.isfinite(rises[0]) & np.isfinite(searched) & (rises[0] > 0) & (searched > 0)
    if not both.any():
        return ""
    ratio = ratio_interval(rises[0][both], searched[both])
    return words.Named(f"{name}: {count} / search = {typeset(ratio)}")


def _draw_errors(
    axes: Axes,
    rhos: Sequence[float],
    errors: Mapping[int, FloatArray],
    baseline: FloatArray,
    *,
    room: float,
) -> None:
    _across(axes, rhos, [words.level_text(r) for r in rhos], room=room)
    level = summary(baseline)
    axes.axhline(level.value, color=FAINT, linewidth=1.2, label=f"ρ = 0 ({BASELINE})", zorder=1.4)
    axes.axhspan(level.low, level.high, color=FAINT, alpha=0.18, linewidth=0, zorder=1.1)
    moves = shifts(len(errors))
    for k, (m, values) in enumerate(errors.items()):
        draw_means(axes, rhos, values, index=1 + k, label=f"SAM, m = {m:,}", shift=moves[k])
    shown = np.concatenate([baseline, *(values.ravel() for values in errors.values())])
    if wide(shown):  # where a large radius learns nothing, the others would be a flat line
        low, high = (float(edge(shown[np.isfinite(shown)])) for edge in (np.min, np.max))
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(0.7 * low, min(1.3 * high, 115.0))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    dress(axes, across="radius ρ of SAM", up="test error (%)")


def _draw_rises(
    axes: Axes,
    steps: Sequence[int],
    rises: Mapping[str, FloatArray],
    searched: Mapping[str, FloatArray],
    *,
    box: Box,
) -> None:
    _across(axes, steps, [str(k) for k in steps], room=box[2])
    for name, index in places(rises).items():
        label = ratio_in_words(name, steps, rises[name], searched[name]) or name
        draw_means(axes, steps, rises[name], index=index, label=plain(label))
        level = summary(searched[name])
        axes.axhline(level.value, color=colour(index), linewidth=1.1, linestyle="--", zorder=1.6)
        if np.isfinite(level.low):
            tint: Any = {"color": colour(index), "alpha": 0.12, "linewidth": 0}
            axes.axhspan(level.low, level.high, **tint, zorder=1.1)
    axes.plot([], [], "--", color=FAINT, linewidth=1.1, label="what the full search finds")
    if wide(np.concatenate([v.ravel() for v in (*rises.values(), *searched.values())])):
        axes.set_yscale("log", nonpositive="clip")
    dress(axes, across="steps of ascent k", up="rise of the loss found")


def _across(axes: Axes, x: Sequence[float], texts: Sequence[str], *, room: float) -> None:
    """Give the axis across its scale and limits, logarithmic, with room at both ends."""
    axes.set_xscale("log")
    pad = (x[-1] / x[0]) ** 0.07 if len(x) > 1 else 2.0
    axes.set_xlim(x[0] / pad, x[-1] * pad)
    tick_at(axes, x, texts, room=room)


def _same_seeds(rises: Mapping[str, FloatArray], searched: Mapping[str, FloatArray]) -> None:
    for name, values in rises.items():
        if values.shape[1] != searched[name].size:
            msg = (
                f"rises[{name!r}] has {values.shape[1]} seeds and searched[{name!r}] "
                f"{searched[name].size}: give the same seeds in the same order"
            )
            raise InvalidArgumentError(msg)


def _ascending(values: Sequence[float], what: str) -> None:
    rising = all(a < b for a, b in pairwise(values))
    if not values or not rising or not values[0] > 0:
        msg = f"{what} must ascend from above zero; got {list(values)}"
        raise InvalidArgumentError(msg)
