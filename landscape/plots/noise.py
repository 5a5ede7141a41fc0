"""Test accuracy against the share of wrong training labels, and what SAM gains over SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError
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
    shifts,
    tick_at,
)
from landscape.plots.sheet import draw_key, frame, place
from landscape.plots.style import FAINT, plain, styled
from landscape.results import FloatArray

_GAP = 0.72
_SECOND = 0.13
"""Height of the second line of the labels under an axis, in inches."""


@styled()
def noise_figure(
    shares: Sequence[float],
    accuracy: Mapping[str, npt.ArrayLike],
    *,
    chosen: Mapping[str, Sequence[float]] | None = None,
    n_test: int,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw test accuracy against the share of wrong training labels, and what is gained over SGD.

    Args:
        shares: of training labels that were made wrong, ascending, in [0, 1].
        accuracy: for each optimizer, SGD among them, the test accuracy in [0, 1], shape
            (n_shares, n_seeds); seeds in the same order for all.
        chosen: the radius ρ that was chosen at each share, for any of the optimizers.
        n_test: number of test examples.
        title: a line above the picture, or None.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.

    Raises:
        InvalidArgumentError: if SGD or another optimizer is missing, shares do not ascend in
            [0, 1], an accuracy is outside [0, 1], or a shape is another.
    """
    found = _accuracies(shares, accuracy)
    radii = _chosen(chosen or {}, found, len(shares))
    order = places(found)
    others = [name for name in found if name != BASELINE]
    gains = {name: 100 * (found[name] - found[BASELINE]) for name in others}
    below = len(radii) == 1
    parts = [
        f"test accuracy on {n_test:,} examples with part of the training labels wrong; one example "
        f"is {100 / n_test:.2g} points; {MEANS}",
        f"right: what is gained over {BASELINE}, paired by seed",
        *(_radii_in_words(shares, name, values) for name, values in radii.items() if not below),
        left_out(found.values()),
    ]
    room = (7.2, 2.7 + _SECOND * below)
    figure, box = frame(parts, title=title, caption=caption, key=len(found), room=room)
    box = (box[0], box[1] + _SECOND * below, box[2], 2.7)
    left, right = (place(figure, part) for part in beside(box, 2, gap=_GAP))
    each = (box[2] - _GAP) / 2
    for axes in (left, right):
        _share_axis(axes, shares, radii, room=each)
    for (name, values), shift in zip(found.items(), shifts(len(found)), strict=True):
        look: Any = {"index": order[name], "shift": shift}
        draw_means(left, [100 * s for s in shares], 100 * values, label=plain(name), **look)
    for (name, values), shift in zip(gains.items(), shifts(len(gains)), strict=True):
        label = plain(f"{name} − {BASELINE}")
        look = {"index": order[name], "shift": shift}
        draw_means(right, [100 * s for s in shares], values, label=label, **look)
    right.axhline(0.0, color=FAINT, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1.2)
    across = "wrong training labels (%)"
    across += f"; below: ρ chosen for {plain(next(iter(radii)))}" if below else ""
    dress(left, across=across, up="test accuracy (%)")
    dress(right, across=across, up="difference (percentage points)")
    for axes in (left, right):
        draw_key(axes, room=each)
    return figure


def _share_axis(
    axes: Axes, shares: Sequence[float], radii: Mapping[str, FloatArray], *, room: float
) -> None:
    percent = [100 * share for share in shares]
    pad = 0.09 * (percent[-1] - percent[0]) or 5.0
    axes.set_xlim(percent[0] - pad, percent[-1] + pad)
    texts = [f"{p:.3g}" for p in percent]
    if len(radii) == 1:
        (values,) = radii.values()
        texts = [f"{t}\nρ {words.level_text(v)}" for t, v in zip(texts, values, strict=True)]
    tick_at(axes, percent, texts, room=room)


def _radii_in_words(shares: Sequence[float], name: str, radii: FloatArray) -> str:
    pairs = zip(shares, radii, strict=True)
    listed = ", ".join(f"{words.level_text(r)} at {100 * s:.3g} %" for s, r in pairs)
    return f"radii ρ chosen for {name}: {listed}"


def _accuracies(
    shares: Sequence[float], accuracy: Mapping[str, npt.ArrayLike]
) -> dict[str, FloatArray]:
    if BASELINE not in accuracy or len(accuracy) < 2:
        msg = (
            f"accuracy must hold {BASELINE} and an optimizer to compare with it; got "
            f"{sorted(accuracy)}"
        )
        raise InvalidArgumentError(msg)
    rising = all(a < b for a, b in pairwise(shares))
    if not shares or not rising or shares[0] < 0 or shares[-1] > 1:
        msg = f"shares must ascend within [0, 1]; got {list(shares)}: 0.2 stands for 20 %"
        raise InvalidArgumentError(msg)
    found = {
        name: replicates(values, rows=len(shares), what=f"accuracy[{name!r}]", of="shares")
        for name, values in accuracy.items()
    }
    for name, values in found.items():
        if values.shape != found[BASELINE].shape:
            msg = (
                f"accuracy[{name!r}] has {values.shape[1]} seeds and accuracy[{BASELINE!r}] "
                f"{found[BASELINE].shape[1]}: give the same seeds in the same order"
            )
            raise InvalidArgumentError(msg)
        if np.any((values < 0) | (values > 1)):
            msg = f"accuracy[{name!r}] reaches outside [0, 1]: give shares, not per cent"
            raise InvalidArgumentError(msg)
    return found


def _chosen(
    chosen: Mapping[str, Sequence[float]], accuracy: Mapping[str, FloatArray], n_shares: int
) -> dict[str, FloatArray]:
    radii: dict[str, FloatArray] = {
        name: np.asarray(values, dtype=np.float64) for name, values in chosen.items()
    }
    for name, values in radii.items():
        if name not in accuracy or values.shape != (n_shares,):
            msg = (
                f"chosen[{name!r}] has shape {values.shape}; expected one radius for each of "
                f"{n_shares} shares, of one of {sorted(accuracy)}"
            )
            raise InvalidArgumentError(msg)
    return radii
