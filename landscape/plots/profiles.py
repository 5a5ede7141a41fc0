"""Sharpness against the radius of the ball, several checkpoints in one panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from landscape.errors import InvalidArgumentError
from landscape.plots import captions, style
from landscape.results import FloatArray, Profile
from landscape.wording import number


@style.styled()
def plot_profile(
    profiles: Profile | Sequence[Profile],
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    relative: bool = False,
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw the largest rise found against the radius, both on log axes.

    Beside each curve stand the maximum of the quadratic model of the loss at the checkpoint
    (dashed, p = 2 alone), which tells up to which radius the Hessian describes the loss, and the
    rise after SAM's one step (dotted). Values that are not above zero have no place on a log axis
    and are left out.

    Args:
        profiles: one record or several, of one norm and scale.
        ax: axes to draw into; None: those of a new picture.
        names: a name for each; None: the checkpoints'.
        colours: a colour for each name; None: those of the property cycle.
        relative: whether to draw against ρ / ‖w‖, which compares weights of different size.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: if the records are of different balls, or no value is above zero.
    """
    records, called = style.records_and_names(profiles, names)
    _check(records)
    axes = style.new_axes(ax)
    tints = style.colours_by_name(called, colours, ax)
    for record, name in zip(records, called, strict=True):
        _draw(axes, record, name, tints[name], relative=relative)
    if any(np.isfinite(record.quadratic_maxima).any() for record in records):
        axes.plot([], [], "--", color=style.FAINT, linewidth=1.0, label="quadratic model")
    axes.plot([], [], ":", color=style.FAINT, linewidth=1.2, label="one step of SAM")
    if not all(record.reached.all() for record in records):
        axes.plot([], [], "o", color=style.FAINT, mfc="none", markersize=4, label="NOT converged")
    axes.set(xscale="log", yscale="log", xlabel=_x_label(records[0], relative=relative))
    axes.set_ylabel("rise of the loss, L(w + ε) − L(w)")
    parts = [
        "Largest rise of the loss found in balls of growing radius, lower bounds on the maxima; "
        "dashed: maximum of the quadratic model at the checkpoint; dotted: one step of SAM: "
        + captions.per_name(records, called, _search),
        captions.per_name(records, called, captions.source),
    ]
    return style.finish(axes, ax, parts, title=title, caption=caption, names=called)


def _check(records: Sequence[Profile]) -> None:
    """Refuse profiles that cannot stand in one panel."""
    balls = {(record.p, record.adaptive, record.eta) for record in records}
    if len(balls) > 1:
        listed = "; ".join(sorted(f"p = {p:g}, adaptive {a}, η = {eta:g}" for p, a, eta in balls))
        msg = f"the profiles are of different balls ({listed}): draw them apart"
        raise InvalidArgumentError(msg)
    if not any((record.values > 0).any() for record in records):
        msg = "nothing to draw: no value of the profiles is above zero"
        raise InvalidArgumentError(msg)


def _x_label(record: Profile, *, relative: bool) -> str:
    order = "∞" if np.isinf(record.p) else f"{record.p:g}"
    scaled = "" if record.adaptive == "none" else "T⁻¹"
    if relative:
        return f"radius relative to the weights, ρ / ‖{scaled}w‖ (p = {order})"
    return f"radius of the ball ‖{scaled}ε‖ ≤ ρ (p = {order})"


def _positive(values: FloatArray) -> FloatArray:
    return np.asarray(np.where(np.isfinite(values) & (values > 0), values, np.nan))


def _draw(axes: Axes, record: Profile, name: str, tint: str, *, relative: bool) -> None:
    x, done = record.relative_rhos if relative else record.rhos, record.reached
    values = _positive(record.values)
    look: dict[str, Any] = {"color": tint, "zorder": 3}
    axes.plot(x, values, "-", label=style.plain(style.shorten(name)), **look)
    axes.plot(x[done], values[done], "o", markersize=4, **look)
    axes.plot(x[~done], values[~done], "o", markerfacecolor="white", markersize=4, **look)
    axes.plot(x, _positive(record.quadratic_maxima), "--", color=tint, linewidth=1.0)
    axes.plot(x, _positive(record.one_steps), ":", color=tint, linewidth=1.2)


def _search(record: Profile) -> str:
    n, k = int(record.reached.sum()), record.rhos.size
    return f"{n} of {k} radii converged, ‖w‖ = {number(record.weight_norm)}"
