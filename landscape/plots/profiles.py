"""Sharpness against the radius of the ball, several checkpoints in one panel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError
from landscape.plots import words
from landscape.plots.lines import called_by
from landscape.plots.sheet import draw_key, frame, place
from landscape.plots.style import FAINT, colour, plain, styled
from landscape.results import FloatArray, Profile
from landscape.wording import number


@styled()
def profile_figure(
    profiles: Profile | Sequence[Profile],
    *,
    names: Sequence[str] | None = None,
    relative: bool = False,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw the largest rise found against the radius, both on log axes.

    Beside each curve stand the maximum of the quadratic model of the loss at the checkpoint
    (dashed, p = 2 alone), which tells up to which radius the Hessian describes the loss, and the
    rise after SAM's one step (dotted). Values that are not above zero have no place on a log axis
    and are left out.

    Args:
        profiles: one record or several, of one norm and scale.
        names: a name for each; None: the checkpoints'.
        relative: whether to draw against ρ / ‖w‖, which compares weights of different size.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.

    Raises:
        InvalidArgumentError: if the records are of different balls, or no value is above zero.
    """
    records = [profiles] if isinstance(profiles, Profile) else list(profiles)
    called = called_by(records, names)
    check_profiles(records)
    parts = [
        "Largest rise of the loss found in balls of growing radius, lower bounds on the maxima; "
        "dashed: maximum of the quadratic model at the checkpoint; dotted: one step of SAM: "
        + words.each(records, called, _search_over_radii),
        words.each(records, called, words.source),
    ]
    heading = called[0] if title is None and len(records) == 1 else title
    n_columns = 3
    key = -(-(len(records) + 3) // n_columns)
    figure, box = frame(parts, title=heading, caption=caption, key=key)
    axes = place(figure, box)
    for index, (record, name) in enumerate(zip(records, called, strict=True)):
        _draw_profile(axes, record, plain(name), index=index, relative=relative)
    _draw_manners(axes, records)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x_label(records[0], relative=relative))
    axes.set_ylabel("rise of the loss, L(w + ε) − L(w)")
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    draw_key(axes, room=box[2], n_columns=n_columns)
    return figure


def check_profiles(records: Sequence[Profile]) -> None:
    """Refuse profiles that cannot stand in one panel."""
    balls = {(record.p, record.adaptive, record.eta) for record in records}
    if len(balls) > 1:
        listed = "; ".join(sorted(f"p = {p:g}, adaptive {a}, η = {eta:g}" for p, a, eta in balls))
        msg = f"the profiles are of different balls ({listed}): draw them apart"
        raise InvalidArgumentError(msg)
    if not any((record.values > 0).any() for record in records):
        msg = "nothing to draw: no value of the profiles is above zero"
        raise InvalidArgumentError(msg)


def x_label(record: Profile, *, relative: bool) -> str:
    """Say what the axis across shows."""
    order = "∞" if np.isinf(record.p) else f"{record.p:g}"
    scaled = "ε" if record.adaptive == "none" else "T⁻¹ε"
    if relative:
        return f"radius relative to the weights, ρ / ‖{scaled.replace('ε', 'w')}‖ (p = {order})"
    return f"radius of the ball ‖{scaled}‖ ≤ ρ (p = {order})"


def positive(values: FloatArray) -> FloatArray:
    """Return values with NaN where a log axis has no place for them."""
    return np.asarray(np.where(np.isfinite(values) & (values > 0), values, np.nan))


def _draw_profile(axes: Axes, record: Profile, name: str, *, index: int, relative: bool) -> None:
    x = record.relative_rhos if relative else record.rhos
    tint = colour(index)
    axes.plot(x, positive(record.values), "-", color=tint, label=name, zorder=3)
    done = record.reached
    axes.plot(x[done], positive(record.values)[done], "o", color=tint, markersize=4, zorder=3)
    axes.plot(
        *(x[~done], positive(record.values)[~done], "o"),
        color=tint,
        markerfacecolor="white",
        markersize=4,
        zorder=3,
    )
    axes.plot(x, positive(record.quadratic_maxima), "--", color=tint, linewidth=1.0)
    axes.plot(x, positive(record.one_steps), ":", color=tint, linewidth=1.2)


def _draw_manners(axes: Axes, records: Sequence[Profile]) -> None:
    """Name the dashes in the key."""
    if any(np.isfinite(record.quadratic_maxima).any() for record in records):
        axes.plot([], [], "--", color=FAINT, linewidth=1.0, label="quadratic model")
    axes.plot([], [], ":", color=FAINT, linewidth=1.2, label="one step of SAM")
    if not all(record.reached.all() for record in records):
        looks = {"color": FAINT, "markerfacecolor": "white", "markersize": 4}
        axes.plot([], [], "o", **looks, label="NOT converged")  # type: ignore[arg-type]


def _search_over_radii(record: Profile) -> str:
    n, k = int(record.reached.sum()), record.rhos.size
    return f"{n} of {k} radii converged, ‖w‖ = {number(record.weight_norm)}"
