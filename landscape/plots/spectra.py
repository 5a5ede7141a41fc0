"""Eigenvalues with their residuals, and the largest rise in a ball with that of each start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import captions, style
from landscape.results import Eigenpairs, Sharpness
from landscape.results.sharpness import ball_of
from landscape.wording import number

RATIO = 50.0
"""Ratio of the largest to the smallest value from which ``auto`` spaces logarithmically."""

_WIDE: dict[str, Any] = {"linewidth": 6, "alpha": 0.3, "zorder": 1.5}
_SPLIT: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 5, "zorder": 4}
_BOUND: dict[str, Any] = {"linestyle": "none", "marker": 7, "markersize": 6, "zorder": 4}


@style.styled()
def plot_eigs(
    eigenpairs: Eigenpairs | Sequence[Eigenpairs],
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    scale: str = "auto",
    gauss_newton: bool = True,
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw eigenvalues with their residuals, several checkpoints side by side.

    Those from the lower end of the spectrum stand at the right, the smallest one last.

    Args:
        eigenpairs: one record or several.
        ax: axes to draw into; None: those of a new picture.
        names: a name for each; None: the checkpoints'.
        colours: a colour for each name; None: those of the property cycle.
        scale: ``linear``, ``log``, or ``auto``: ``log`` where every value is positive and the
            largest is more than 50 times the smallest.
        gauss_newton: whether to mark vᵀGv, where it was measured.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.
    """
    records, called = style.records_and_names(eigenpairs, names)
    axes = style.new_axes(ax)
    tints = style.colours_by_name(called, colours, ax)
    logarithmic = space(axes, np.concatenate([r.values for r in records]), scale)
    n_places = _n_places(records)
    split = gauss_newton and any(len(record.gauss_newton) for record in records)
    bounded = [_has_visible_bound(record, logarithmic=logarithmic) for record in records]
    for index, (record, name) in enumerate(zip(records, called, strict=True)):
        at = _places(record, n_places) + 0.5 * ((index + 0.5) / len(records) - 0.5)
        tint, shape = tints[name], style.markers_by_name(tints)[name]
        _draw_spectrum(axes, at, record, style.shorten(name), tint=tint, shape=shape)
        if split and len(record.gauss_newton):
            # beside the eigenvalue, which it is close to for the largest ones
            axes.plot(at + 0.13, record.gauss_newton, color=tint, **_SPLIT)
        if bounded[index]:
            axes.plot(at[:1], [record.upper_bound], color=tint, **_BOUND)
    _number_places(axes, records, n_places)
    axes.set_ylabel("eigenvalue λ")
    if any(len(record.data_errors) for record in records):
        sample = "another sample of the data: ±1 standard error"
        axes.plot([], [], color=style.FAINT, linewidth=6, alpha=0.3, label=sample)
    if split:
        axes.plot([], [], color=style.FAINT, label="vᵀGv, the Gauss-Newton part", **_SPLIT)
    if any(bounded):
        bound = "no eigenvalue lies above, but for a small probability"
        axes.plot([], [], color=style.FAINT, label=bound, **_BOUND)
    parts = _eigs_parts(records, called)
    return style.finish(axes, ax, parts, title=title, caption=caption, names=called)


def _draw_spectrum(
    axes: Axes, at: Any, record: Eigenpairs, name: str, *, tint: str, shape: str
) -> None:
    look: dict[str, Any] = {"fmt": shape, "color": tint, "capsize": 3, "elinewidth": 1.0}
    look |= {"markerfacecolor": tint if record.converged else "white", "markersize": 5.5}
    label = style.plain(name if record.converged else f"{name} (not converged)")
    axes.errorbar(at, record.values, yerr=record.residuals, label=label, **look)
    if len(record.data_errors):
        low, high = record.values - record.data_errors, record.values + record.data_errors
        axes.vlines(at, low, high, color=tint, **_WIDE)


def _number_places(axes: Axes, records: Sequence[Eigenpairs], n_places: int) -> None:
    axes.set_xlim(0.4, n_places + 0.6)
    n_lowest = max(record.n_lowest for record in records)
    if not n_lowest:
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
        axes.set_xlabel("number of the eigenvalue, largest first")
        return
    n_top = max(record.n_top for record in records)
    known = {
        int(at): label
        for record in records
        for at, label in zip(_places(record, n_places), record.labels(), strict=True)
    }
    stride = -(-len(known) // 14)
    rank = {at: at - 1 if at <= n_top else n_places - at for at in known}
    ticks = sorted(at for at in known if rank[at] % stride == 0)
    axes.set_xticks(ticks, [known[at] for at in ticks])
    if n_top:
        axes.axvspan(n_top + 0.65, n_top + 1.35, color=style.FAINT, alpha=0.12, linewidth=0)
        middle = axes.get_xaxis_transform()
        axes.text(n_top + 1, 0.5, "…", ha="center", color=style.FAINT, transform=middle)
    axes.set_xlabel("eigenvalue: the largest and, at the right, the smallest")


def _n_places(records: Sequence[Eigenpairs]) -> int:
    """Return how many places the eigenvalues need side by side, with a gap before the lowest."""
    n_top = max(record.n_top for record in records)
    n_lowest = max(record.n_lowest for record in records)
    return n_top + n_lowest + bool(n_top and n_lowest)


def _places(record: Eigenpairs, n_places: int) -> Any:
    """Return where the eigenvalues stand: the largest from the left, the lowest from the right."""
    lowest = n_places - np.arange(record.n_lowest)[::-1]
    return np.concatenate([np.arange(1, record.n_top + 1), lowest]).astype(float)


def _has_visible_bound(record: Eigenpairs, *, logarithmic: bool) -> bool:
    """Return whether the upper bound can be told from λ1 in a picture, and would not squash it."""
    if not record.n_top or not np.isfinite(record.upper_bound):
        return False
    low, top, bound = float(record.values.min()), float(record.values[0]), record.upper_bound
    low, top, bound = np.log([low, top, bound]) if logarithmic else (min(low, 0.0), top, bound)
    return bool(0.02 * (top - low) < bound - top < top - low)


def _eigs_parts(records: Sequence[Eigenpairs], called: Sequence[str]) -> list[str]:
    ends = "largest and smallest" if any(record.n_lowest for record in records) else "largest"
    groups = any(len(record.data_errors) for record in records)
    return [
        f"{ends} eigenvalues {captions.of_operator(records, called)}; an eigenvalue "
        "lies within each bar (‖Hv − λv‖, shown where it is wider than the marker)",
        captions.per_name(records, called, _eigs_search),
        captions.per_name(records, called, _bounds),
        "the standard error over the examples holds the eigenvector fixed" if groups else "",
        captions.per_name(records, called, captions.source),
    ]


def _eigs_search(record: Eigenpairs) -> str:
    bound = "the ends lie at least so far out" if record.n_lowest else "a lower bound"
    verdict = "converged" if record.converged else f"NOT converged, {bound}"
    return f"{record.method.capitalize()}, {record.matvecs:,} products, {verdict}"


def _bounds(record: Eigenpairs) -> str:
    if not np.isfinite(record.upper_bound):
        return ""
    chance = f"{100 * record.failure_probability:g}% chance of failure"
    return f"no eigenvalue above {number(record.upper_bound)} ({chance})"


@style.styled()
def plot_sharpness(
    sharpness: Sharpness | Sequence[Sharpness],
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    scale: str = "auto",
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw the largest rise found in a ball, the rise of each start, and SAM's one-step value.

    Args:
        sharpness: one record or several.
        ax: axes to draw into; None: those of a new picture.
        names: a name for each; None: the checkpoints'.
        colours: a colour for each name; None: those of the property cycle.
        scale: ``linear``, ``log`` or ``auto``, as in `plot_eigs`.
        title: a line above the picture, or None.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.
    """
    records, called = style.records_and_names(sharpness, names)
    values = np.concatenate([[r.value, r.one_step, *r.start_values] for r in records])
    axes = style.new_axes(ax)
    tints = style.colours_by_name(called, colours)
    space(axes, values[np.isfinite(values)], scale)
    axes.plot([], [], color=style.FAINT, linewidth=2.5, label="largest rise found (≥)")
    axes.plot([], [], "o", color=style.FAINT, mfc="none", label="where each start ended")
    axes.plot([], [], "D", color=style.FAINT, label="one step of SAM")
    for at, (record, name) in enumerate(zip(records, called, strict=True)):
        spread = np.linspace(-0.12, 0.12, len(record.starts)) if record.starts else np.zeros(0)
        tint, ends = tints[name], [at - 0.25, at + 0.25]
        axes.plot(ends, [record.value] * 2, color=tint, linewidth=2.5, solid_capstyle="butt")
        if np.isfinite(record.value_se):
            axes.errorbar(at + 0.25, record.value, record.value_se, color=tint, capsize=3)
        axes.plot(at + spread, record.start_values, "o", color=tint, mfc="none")
        axes.plot(at, record.one_step, "D", color=style.FAINT)
    name_columns(axes, called)
    axes.set_ylabel("rise of the loss, L(w + ε) − L(w)")
    has_errors = any(np.isfinite(record.value_se) for record in records)
    parts = [
        "Largest rise of the loss found in the ball, a lower bound on the maximum: "
        + captions.per_name(records, called, _ball_search),
        "bars: ±1 standard error over the examples" if has_errors else "",
        captions.per_name(records, called, captions.source),
    ]
    return style.finish(axes, ax, parts, title=title, caption=caption)


def name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Name checkpoints that stand side by side under the panel, slanted where they are long."""
    room = 78 // len(names)
    short = [style.plain(style.shorten(name, 30)) for name in names]
    slanted: dict[str, Any] = {}
    if max(map(len, short)) > room:
        slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), short, **slanted)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")


def _ball_search(record: Sharpness) -> str:
    verdict = "converged" if record.converged else "NOT converged"
    return f"{ball_of(record)}, gap {record.gap:.0e} ({verdict})"


def space(axes: Axes, values: Any, scale: str) -> bool:
    """Make the upright axis logarithmic or mark its zero, and return whether it is logarithmic."""
    one_of(scale, ("auto", "linear", "log"), what="scale")
    if not values.size:
        msg = "nothing to draw: the records hold no finite value"
        raise InvalidArgumentError(msg)
    low, high = float(values.min()), float(values.max())
    if scale == "log" and low <= 0:
        msg = (
            f"a log scale needs positive values; the smallest is {number(low)}: use scale='linear'"
        )
        raise InvalidArgumentError(msg)
    logarithmic = scale == "log" or (scale == "auto" and low > 0 and high > RATIO * low)
    if logarithmic:
        axes.set_yscale("log", nonpositive="clip")
    else:
        axes.axhline(0.0, color=style.FAINT, linewidth=0.7, zorder=0.8)
    return logarithmic
