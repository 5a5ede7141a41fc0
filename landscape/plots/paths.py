"""Loss along paths between checkpoints, and what any picture of them shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import one_of
from landscape.plots import words
from landscape.plots.lines import called_by
from landscape.plots.sheet import draw_key, frame, place
from landscape.plots.style import FAINT, colour, plain, shorten, styled
from landscape.results import FloatArray, LossPath
from landscape.results.paths import above_chord
from landscape.wording import number

PATH_SCALES = ("linear", "log")
T_LABEL = "t, from the first checkpoint (0) to the second (1)"
LOSS_LABEL = "loss L(w(t))"


@styled()
def path_figure(
    paths: LossPath | Sequence[LossPath],
    *,
    names: Sequence[str] | None = None,
    scale: str = "linear",
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw the loss along paths, one colour per record, with bands of ±2 standard errors.

    Held-out data are dashed. A dotted line joins the losses of the ends; a thin line from there up
    to the point of the curve that is highest above it is the barrier.

    Args:
        paths: one record, or several to lay over each other.
        names: a name for each; None: its two checkpoints.
        scale: ``linear`` or ``log``.
        title: a line above the picture; None: the checkpoints, where they are the same for all.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    one_of(scale, PATH_SCALES, what="scale of a picture of paths")
    records, called = path_records(paths, names)
    shared = called[0] if title is None and len(set(called)) == 1 else None
    curves = drawn_paths(records, called if shared is None else [""] * len(records))
    parts = _caption(records, called, scale)
    heading = shared if title is None else title
    figure, box = frame(parts, title=heading, caption=caption, key=len(curves))
    axes = place(figure, box)
    if scale == "log":
        axes.set_yscale("log", nonpositive="clip")
    for curve in curves:
        _draw(axes, curve)
    axes.set(xlabel=T_LABEL, ylabel=LOSS_LABEL, xlim=(0.0, 1.0))
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    draw_key(axes, room=box[2])
    return figure


class DrawnPath:
    """The losses of one record on one part of the data, as they are drawn.

    Attributes:
        t: coordinates, shape (nt,).
        values: losses; NaN where they are not finite.
        bad: coordinates of those.
        spread: two standard errors; NaN where they are not known.
        chord: the straight line between the losses of the ends.
        top: index of the point that is highest above it; None if there is none, or no telling.
        label: what it is, with the barrier.
        tint: its colour.
        dashed: whether these are held-out data.
    """

    def __init__(
        self, t: FloatArray, values: FloatArray, errors: FloatArray, *, label: str, tint: str
    ) -> None:
        self.t, self.tint, self.dashed = np.asarray(t), tint, False
        self.values = np.where(np.isfinite(values), values, np.nan)
        self.bad = self.t[~np.isfinite(values)]
        self.spread = np.where(np.isfinite(errors), 2 * np.asarray(errors), np.nan)
        rise = above_chord(self.t, self.values)
        self.chord = (1 - self.t) * self.values[0] + self.t * self.values[-1]
        self.top: int | None = None
        if not self.bad.size and float(rise.max()) > 0:
            self.top = int(rise.argmax())
            height, where = number(float(rise.max())), number(float(self.t[self.top]))
            self.label = f"{label}: barrier {height} at t = {where}"
        else:
            self.label = f"{label}: barrier not known" if self.bad.size else f"{label}: no barrier"

    @property
    def has_band(self) -> bool:
        """Whether there are standard errors to draw."""
        return bool(np.nanmax(self.spread, initial=0.0) > 0)


def drawn_paths(records: Sequence[LossPath], names: Sequence[str]) -> list[DrawnPath]:
    """Return what is drawn of each record: its own data, and the held-out ones if there are."""
    drawn = []
    for k, (record, name) in enumerate(zip(records, names, strict=True)):
        label, tint = ", ".join(filter(None, [record.shape, shorten(name)])), colour(k)
        drawn.append(DrawnPath(record.t, record.loss, record.loss_se, label=label, tint=tint))
        if record.held_out:
            values, errors = record.held_out_loss, record.held_out_se
            label = f"{label}, {record.held_out} data"
            drawn.append(DrawnPath(record.t, values, errors, label=label, tint=tint))
            drawn[-1].dashed = True
    return drawn


def path_records(
    paths: LossPath | Sequence[LossPath], names: Sequence[str] | None
) -> tuple[list[LossPath], list[str]]:
    """Return records with a name for each: those given, or from where to where they lead."""
    records = [paths] if isinstance(paths, LossPath) else list(paths)
    called = called_by(records, names)
    return records, [record.route for record in records] if names is None else called


def _draw(axes: Axes, curve: DrawnPath) -> None:
    dash: Any = (0, (5, 2)) if curve.dashed else "solid"
    axes.plot(curve.t, curve.values, color=curve.tint, linestyle=dash, label=plain(curve.label))
    if curve.has_band:
        low, high = curve.values - curve.spread, curve.values + curve.spread
        if axes.get_yscale() == "log":
            low = np.maximum(low, 1e-3 * np.nanmin(curve.values))
        axes.fill_between(curve.t, low, high, color=curve.tint, alpha=0.15, linewidth=0, zorder=1.5)
    axes.plot(curve.t, curve.chord, color=FAINT, linestyle=(0, (1, 2)), linewidth=0.8, zorder=1.8)
    if curve.top is not None and not curve.dashed:  # those of held-out data would lie beside it
        ends = [curve.chord[curve.top], curve.values[curve.top]]
        look: dict[str, Any] = {
            "color": curve.tint,
            "linewidth": 0.9,
            "marker": "o",
            "markersize": 3.5,
        }
        axes.plot([curve.t[curve.top]] * 2, ends, markevery=[1], **look)
    axes.plot(
        curve.bad,
        np.full(curve.bad.size, 0.975),
        "x",
        color=curve.tint,
        markersize=5,
        transform=axes.get_xaxis_transform(),
    )


def _caption(records: Sequence[LossPath], called: Sequence[str], scale: str) -> list[str]:
    banded = any(np.any(np.asarray(record.loss_se) > 0) for record in records)
    held = sorted({record.held_out for record in records if record.held_out})
    bad = words.each(records, called, _bad_points)
    return [
        "loss along a path between two checkpoints; dotted: the straight line between the losses "
        "of its ends; thin line to a point: the barrier, how far the loss rises above it",
        words.each(records, called, lambda r: f"{r.t.size} points"),
        f"solid: {words.each(records, called, words.source)}",
        f"dashed: {' and '.join(held)} data" if held else "",
        "bands: ±2 standard errors of the loss over the examples" if banded else "",
        words.each(records, called, _statistics),
        "loss on a log scale" if scale == "log" else "",
        f"{bad}, marked × at the top" if bad else "",
    ]


def _bad_points(record: LossPath) -> str:
    losses = (record.loss, record.held_out_loss)
    n = sum(int(np.count_nonzero(~np.isfinite(values))) for values in losses)
    return f"{n} of {sum(values.size for values in losses)} points not finite" if n else ""


def _statistics(record: LossPath) -> str:
    told = {
        "recalibrated": "BatchNorm statistics gathered anew at each point",
        "frozen": "BatchNorm statistics of the first checkpoint",
        "interpolated": "BatchNorm statistics interpolated between the checkpoints",
    }
    return told.get(record.statistics, "")
