"""What pictures of repeated runs share: colours by optimizer, means with intervals, ticks that fit.

A replicate is one training run, told from the others by its seed. Arrays hold one column per seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from landscape.errors import InvalidArgumentError
from landscape.intervals import Interval, mean_interval
from landscape.plots.sheet import Box
from landscape.plots.style import SMALL, colour, marker, text_width
from landscape.results import FloatArray

BASELINE = "SGD"
"""The optimizer that the others are compared with."""

SPANS = 10.0
"""Values whose largest is so many times their smallest are drawn on a log axis."""

MEANS = "means over seeds with 95 % t intervals, every seed a faint dot"
"""What captions say of `draw_means`."""

_ENDS = ("value", "low", "high")


def places(names: Iterable[str]) -> dict[str, int]:
    """Return the place of each optimizer in the order of colours: SGD and SAM have their own.

    Args:
        names: of the optimizers.

    Returns:
        0 for SGD, 1 for SAM, and 2, 3, … for the others in their order; from 0 where neither is.

    >>> places(["SAM", "ASAM", "SGD"])
    {'SAM': 1, 'ASAM': 2, 'SGD': 0}
    """
    called = list(names)
    known = {BASELINE: 0, "SAM": 1} if {BASELINE, "SAM"} & set(called) else {}
    return {name: known.setdefault(name, len(known)) for name in called}


def replicates(values: npt.ArrayLike, *, rows: int, what: str, of: str) -> FloatArray:
    """Return an array with a row for each setting and a column for each seed.

    Args:
        values: the numbers.
        rows: how many settings there are.
        what: what the numbers are, for the message.
        of: what the rows are, for the message.

    Returns:
        Shape (rows, n_seeds).

    Raises:
        InvalidArgumentError: if the shape is another.
    """
    array: FloatArray = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != rows or not array.size:
        msg = (
            f"{what} must have the shape (n_{of}, n_seeds) = ({rows}, n_seeds); got {array.shape}: "
            f"give a row for each of the {of} and a column for each seed"
        )
        raise InvalidArgumentError(msg)
    return array


def seeds(values: npt.ArrayLike, *, what: str) -> FloatArray:
    """Return a vector with a number for each run.

    Args:
        values: the numbers.
        what: what they are, for the message.

    Returns:
        Shape (n_seeds,).

    Raises:
        InvalidArgumentError: if the shape is another.
    """
    array: FloatArray = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        msg = f"{what} must have the shape (n,); got {array.shape}: give a number for each run"
        raise InvalidArgumentError(msg)
    return array


def summary(values: FloatArray) -> Interval:
    """Return the mean of the runs that are finite with its 95 % t interval.

    Args:
        values: one number for each run, shape (n_seeds,).

    Returns:
        The mean and its interval; all NaN where no run is finite.
    """
    kept = values[np.isfinite(values)]
    return mean_interval(kept) if kept.size else Interval(np.nan, np.nan, np.nan, 0)


def left_out(arrays: Iterable[FloatArray]) -> str:
    """Say how many runs are not finite, or nothing where all are.

    Args:
        arrays: what is drawn.

    Returns:
        A phrase such as ``2 of 40 values not finite, left out``.
    """
    found = list(arrays)
    n_bad = sum(int(np.count_nonzero(~np.isfinite(array))) for array in found)
    return f"{n_bad} of {sum(a.size for a in found)} values not finite, left out" if n_bad else ""


def wide(values: npt.ArrayLike) -> bool:
    """Return whether values are positive and span so much that a log axis shows more.

    Args:
        values: any shape; what is not finite does not count.

    Returns:
        True where the largest is `SPANS` times the smallest or more.
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return bool(array.size and array.min() > 0 and array.max() >= SPANS * array.min())


def draw_means(
    axes: Axes,
    x: Sequence[float],
    values: FloatArray,
    *,
    index: int,
    label: str,
    shift: float = 0.0,
) -> list[Interval]:
    """Draw means over seeds with 95 % t intervals, and every seed as a faint dot.

    Args:
        axes: where to draw.
        x: place of each row.
        values: shape (len(x), n_seeds).
        index: place in the order of colours.
        label: for the key, escaped for matplotlib.
        shift: by which part of the axis to move all to the right, so that bars do not hide
            each other; the axis must have its scale and limits.

    Returns:
        The means and their intervals, one for each row.
    """
    moved = _moved(axes, np.asarray(x, dtype=np.float64), shift)
    found = [summary(row) for row in values]
    tint = colour(index)
    dots = np.repeat(moved, values.shape[1])
    axes.plot(dots, values.ravel(), ".", color=tint, alpha=0.35, markersize=4, zorder=1.8)
    mean, low, high = (np.array([getattr(f, name) for f in found]) for name in _ENDS)
    axes.errorbar(
        moved,
        mean,
        yerr=[mean - low, high - mean],
        fmt=marker(index) + "-",
        color=tint,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        linewidth=1.3,
        elinewidth=1.1,
        capsize=2.2,
        label=label,
        zorder=3,
    )
    return found


def _moved(axes: Axes, x: FloatArray, shift: float) -> FloatArray:
    if not shift:
        return x
    scale, (left, right) = axes.xaxis.get_transform(), axes.get_xlim()
    first, last = scale.transform(np.array([left, right]))
    return np.asarray(scale.inverted().transform(scale.transform(x) + shift * (last - first)))


def shifts(n: int) -> list[float]:
    """Return by how much to move each of several series, so that bars stand side by side.

    Args:
        n: how many series.

    Returns:
        Parts of the axis, around zero.

    >>> shifts(1), shifts(2)
    ([0.0], [-0.009, 0.009])
    """
    return [0.018 * (k - (n - 1) / 2) for k in range(n)]


def tick_at(
    axes: Axes,
    x: Sequence[float],
    texts: Sequence[str],
    *,
    room: float,
    overhang: float = np.inf,
) -> bool:
    """Label places along the axis across, leaving out labels that do not fit beside the last one.

    Args:
        axes: whose axis; it must have its scale and limits.
        x: the places, ascending.
        texts: a label for each, of one line or several.
        room: width of the axes in inches.
        overhang: how far a label may reach out of the panel, in inches.

    Returns:
        Whether all labels fit.
    """
    scale, (left, right) = axes.xaxis.get_transform(), axes.get_xlim()
    first, last = scale.transform(np.array([left, right]))
    at = room * (scale.transform(np.asarray(x, dtype=np.float64)) - first) / (last - first)
    widths = [max(text_width(line, SMALL) for line in text.split("\n")) for text in texts]
    end, shown = -np.inf, []
    for place, width, text in zip(at, widths, texts, strict=True):
        inside = -overhang <= place - width / 2 and place + width / 2 <= room + overhang
        fits = inside and place - width / 2 > end + 0.05
        end = place + width / 2 if fits else end
        shown.append(text if fits else "")
    axes.set_xticks(list(x), shown)
    axes.set_xticks([], minor=True)
    return all(shown)


def beside(box: Box, n: int, *, gap: float) -> list[Box]:
    """Divide a box into columns.

    Args:
        box: left, bottom, width and height in inches.
        n: how many columns.
        gap: between two of them, in inches.

    Returns:
        The boxes from left to right.
    """
    left, bottom, width, height = box
    each = (width - gap * (n - 1)) / n
    return [(left + k * (each + gap), bottom, each, height) for k in range(n)]


def dress(axes: Axes, *, across: str, up: str) -> None:
    """Name the axes of a panel and lay a grid under it.

    Args:
        axes: the panel.
        across: what its axis across shows.
        up: what the other one shows.
    """
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(visible=True)
    axes.set_axisbelow(True)


def typeset(interval: Interval) -> str:
    """Write an interval with true minus signs.

    Args:
        interval: the estimate and its ends.

    Returns:
        A text such as ``−0.5 (−0.6 to −0.4)``.
    """
    return str(interval).replace("-", "\N{MINUS SIGN}")


def same_keys(found: Mapping[str, object], wanted: Iterable[str], *, what: str, as_in: str) -> None:
    """Refuse a mapping that is not of the same names as another.

    Args:
        found: the mapping.
        wanted: the names of the other one.
        what: what the mapping is, for the message.
        as_in: what the other one is.

    Raises:
        InvalidArgumentError: if the names differ.
    """
    if set(found) != set(wanted):
        msg = (
            f"{what} must have the names of {as_in}, {sorted(wanted)}; got {sorted(found)}: give "
            "one entry for each"
        )
        raise InvalidArgumentError(msg)
