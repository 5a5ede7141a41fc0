"""Loss along paths between checkpoints, with the barrier on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from landscape.errors import one_of
from landscape.plots import captions, style
from landscape.plots.lines import mark_bad
from landscape.results import FloatArray, LossPath
from landscape.results.paths import above_chord
from landscape.wording import number

_STATISTICS = {
    "recalibrated": "BatchNorm statistics gathered anew at each point",
    "frozen": "BatchNorm statistics of the first checkpoint",
    "interpolated": "BatchNorm statistics interpolated between the checkpoints",
}


@style.styled()
def plot_path(
    paths: LossPath | Sequence[LossPath],
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    scale: str = "linear",
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw the loss along paths, one colour per record, with bands of ±2 standard errors.

    Held-out data are dashed. A dotted line joins the losses of the ends; a thin line from there up
    to the point of the curve that is highest above it is the barrier.

    Args:
        paths: one record, or several to lay over each other.
        ax: axes to draw into; None: those of a new picture.
        names: a name for each; None: its two checkpoints.
        colours: a colour for each label in the key; None: those of the property cycle.
        scale: ``linear`` or ``log``.
        title: a line above the picture; None: the checkpoints, where they are the same for all.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.
    """
    one_of(scale, ("linear", "log"), what="scale of a picture of paths")
    records, called = style.records_and_names(paths, names)
    called = [record.route for record in records] if names is None else called
    shared = called[0] if title is None and len(set(called)) == 1 else ""
    labels = [
        ", ".join(filter(None, [record.shape, "" if shared else style.shorten(name)]))
        for record, name in zip(records, called, strict=True)
    ]
    keys = [f"{k} {label}" for k, label in enumerate(labels)]
    tints = style.colours_by_name(keys, None, ax) | dict(colours or {})
    axes = style.new_axes(ax)
    axes.set_yscale(scale, **({"nonpositive": "clip"} if scale == "log" else {}))
    for record, label, key in zip(records, labels, keys, strict=True):
        tint = tints.get(label, tints[key])
        _draw(axes, record.t, record.loss, record.loss_se, label=label, tint=tint)
        if record.held_out:
            values, errors = record.held_out_loss, record.held_out_se
            label = f"{label}, {record.held_out} data"
            _draw(axes, record.t, values, errors, label=label, tint=tint, dashed=True)
    axes.set(xlabel="t, from the first checkpoint (0) to the second (1)", xlim=(0.0, 1.0))
    axes.set_ylabel("loss L(w(t))")
    heading = shared if title is None else title
    parts = _parts(records, called, scale)
    axes = style.finish(axes, ax, parts, title=heading, caption=caption)
    if ax is None and len(axes.get_legend_handles_labels()[1]) == 1:
        style.draw_key(axes)  # which says the barrier
    return axes


def _draw(
    axes: Axes,
    t: FloatArray,
    loss: FloatArray,
    errors: FloatArray,
    *,
    label: str,
    tint: str,
    dashed: bool = False,
) -> None:
    values = np.where(np.isfinite(loss), loss, np.nan)
    bad, rise = t[~np.isfinite(loss)], above_chord(t, values)
    chord = (1 - t) * values[0] + t * values[-1]
    top = int(rise.argmax()) if not bad.size and float(rise.max()) > 0 else None
    barrier = "barrier not known" if bad.size else "no barrier"
    if top is not None:
        barrier = f"barrier {number(float(rise[top]))} at t = {number(float(t[top]))}"
    dash: Any = (0, (5, 2)) if dashed else "solid"
    axes.plot(t, values, color=tint, linestyle=dash, label=style.plain(f"{label}: {barrier}"))
    spread = 2 * np.where(np.isfinite(errors), errors, np.nan)
    if np.any(spread > 0):
        low = values - spread
        if axes.get_yscale() == "log":
            low = np.maximum(low, 1e-3 * np.nanmin(values))
        look: dict[str, Any] = {"alpha": 0.15, "linewidth": 0, "zorder": 1.5}
        axes.fill_between(t, low, values + spread, color=tint, **look)
    axes.plot(t, chord, color=style.FAINT, linestyle=(0, (1, 2)), linewidth=0.8, zorder=1.8)
    if top is not None and not dashed:  # those of held-out data would lie beside it
        look = {"linewidth": 0.9, "marker": "o", "markersize": 3.5, "markevery": [1]}
        axes.plot([t[top]] * 2, [chord[top], values[top]], color=tint, **look)
    mark_bad(axes, bad, tint)


def _parts(records: Sequence[LossPath], called: Sequence[str], scale: str) -> list[str]:
    banded = any(np.any(np.asarray(record.loss_se) > 0) for record in records)
    held = sorted({record.held_out for record in records if record.held_out})
    return [
        "loss along a path between two checkpoints; dotted: the straight line between the losses "
        "of its ends; thin line to a point: the barrier, how far the loss rises above it",
        captions.per_name(records, called, lambda r: f"{r.t.size} points"),
        f"solid: {captions.per_name(records, called, captions.source)}",
        f"dashed: {' and '.join(held)} data" if held else "",
        "bands: ±2 standard errors of the loss over the examples" if banded else "",
        captions.per_name(records, called, lambda r: _STATISTICS.get(r.statistics, "")),
        "loss on a log scale" if scale == "log" else "",
        captions.with_ending(captions.per_name(records, called, _bad), ", marked × at the top"),
    ]


def _bad(record: LossPath) -> str:
    losses = (record.loss, record.held_out_loss)
    n = sum(int(np.count_nonzero(~np.isfinite(values))) for values in losses)
    return f"{n} of {sum(values.size for values in losses)} points not finite" if n else ""
