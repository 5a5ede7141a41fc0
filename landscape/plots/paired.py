"""Quantities of two optimizers, seed by seed: one line for each pair of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError
from landscape.intervals import ratio_interval
from landscape.plots.replicates import left_out, places, seeds, summary, typeset, wide
from landscape.plots.sheet import frame, place, write
from landscape.plots.style import FAINT, SMALL, colour, fit, marker, styled, text_width, wrap
from landscape.results import FloatArray

_COLUMNS = 4
_WIDTH, _HEIGHT = 1.7, 1.75
_GAP = (0.62, 0.85)
_BESIDE = 0.2
_OUT = 0.42


@styled()
def seeds_figure(
    quantities: Mapping[str, Mapping[str, npt.ArrayLike]],
    *,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw quantities of two optimizers with a line from one to the other for each seed.

    Args:
        quantities: for each quantity, by its label, the numbers of two optimizers, shape
            (n_seeds,) each, the same seeds in the same order.
        title: a line above the picture, or None.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.

    Raises:
        InvalidArgumentError: if nothing was given, or a quantity is not of two optimizers, the
            same in all, with one number for each seed.
    """
    found = _checked(quantities)
    first, second = next(iter(found.values()))
    parts = [
        f"lines: one seed each, from {first} to {second}; beside them the mean and its 95 % t "
        f"interval; {second} / {first}: ratio of geometric means, paired by seed, with its 95 % "
        "interval, where all values are positive",
        left_out([values for pair in found.values() for values in pair.values()]),
    ]
    rows = -(-len(found) // _COLUMNS)
    columns = -(-len(found) // rows)
    room = (
        max(columns, 2) * (_WIDTH + _GAP[0]) - _GAP[0],
        rows * (_HEIGHT + _GAP[1]) - _GAP[1],
    )
    figure, box = frame(parts, title=title, caption=caption, key=3, room=room)
    for k, (label, pair) in enumerate(found.items()):
        left = box[0] + (k % columns) * (_WIDTH + _GAP[0])
        bottom = box[1] + box[3] - (k // columns) * (_HEIGHT + _GAP[1]) - _HEIGHT
        axes = place(figure, (left, bottom, _WIDTH, _HEIGHT))
        _draw_pair(axes, pair)
        # The text begins above the numbers along the axis, so that it ends with the panel.
        top, span, left = bottom + _HEIGHT + 0.1, _WIDTH + _OUT + 0.1, left - _OUT
        said = fit(ratio_of(pair, room=span), span, size=SMALL)
        write(figure, said, left=left, bottom=top, size=SMALL, color="0.2")
        for n, line in enumerate(reversed(wrap(label, span)[:2])):
            write(figure, line, left=left, bottom=top + 0.16 + 0.145 * n)
    return figure


def ratio_of(pair: Mapping[str, FloatArray], *, room: float = math.inf) -> str:
    """Say how the second of two optimizers stands to the first.

    Args:
        pair: the numbers of each, shape (n_seeds,).
        room: for the text, in inches; where it is short, two digits of each number are left.

    Returns:
        A phrase such as ``SAM / SGD = 0.35 (0.30 to 0.41)``; without a ratio where a value is not
        positive.
    """
    (first, a), (second, b) = pair.items()
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if not a.size or min(a.min(), b.min()) <= 0:
        return f"{second} / {first}: no ratio"
    ratio = ratio_interval(b, a)
    text = f"{second} / {first} = {typeset(ratio)}"
    if text_width(text, SMALL) <= room or ratio.n == 1:
        return text
    return f"{second} / {first} = {ratio.value:.2g} ({ratio.low:.2g} to {ratio.high:.2g})"


def _draw_pair(axes: Axes, pair: Mapping[str, FloatArray]) -> None:
    ends = np.stack(list(pair.values()))
    axes.plot([0.0, 1.0], ends, color=FAINT, linewidth=0.7, alpha=0.6, zorder=1.5)
    order = places(pair)
    for k, (name, values) in enumerate(pair.items()):
        tint = colour(order[name])
        axes.plot([float(k)] * values.size, values, ".", color=tint, markersize=4, zorder=2)
        mean = summary(values)
        axes.errorbar(
            [k + (_BESIDE if k else -_BESIDE)],
            [mean.value],
            yerr=[[mean.value - mean.low], [mean.high - mean.value]],
            fmt=marker(order[name]),
            color=tint,
            markersize=4.5,
            elinewidth=1.2,
            capsize=2.5,
            zorder=3,
        )
    axes.set_xlim(-0.45, 1.45)
    axes.set_xticks([0.0, 1.0], [fit(name, 0.8, size=SMALL) for name in pair])
    if wide(ends):
        axes.set_yscale("log", nonpositive="clip")
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)


def _checked(
    quantities: Mapping[str, Mapping[str, npt.ArrayLike]],
) -> dict[str, dict[str, FloatArray]]:
    if not quantities:
        msg = "nothing to draw: no quantity was given"
        raise InvalidArgumentError(msg)
    names = list(next(iter(quantities.values())))
    found: dict[str, dict[str, FloatArray]] = {}
    for label, pair in quantities.items():
        if len(pair) != 2 or set(pair) != set(names):
            msg = (
                f"{label!r} is of {list(pair)}; expected two optimizers, the same for every "
                f"quantity ({names})"
            )
            raise InvalidArgumentError(msg)
        found[label] = {n: seeds(pair[n], what=f"{label!r} of {n}") for n in names}
        sizes = [values.size for values in found[label].values()]
        if sizes[0] != sizes[1]:
            msg = (
                f"{label!r} has {sizes[0]} values of {names[0]} and {sizes[1]} of {names[1]}: give "
                "the same seeds in the same order"
            )
            raise InvalidArgumentError(msg)
    return found
