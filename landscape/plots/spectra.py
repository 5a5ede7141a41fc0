"""Eigenvalues with their residuals; the largest rise in a ball with the starts that led to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import words
from landscape.plots.lines import called_by, draw_legend
from landscape.plots.sheet import draw_key, frame, place
from landscape.plots.style import FAINT, colour, fit, marker, plain, styled
from landscape.results import Eigenpairs, Sharpness
from landscape.results.sharpness import ball_of
from landscape.wording import number

AXIS_SCALES = ("auto", "linear", "log")
RATIO = 50.0
"""Ratio of the largest to the smallest value from which ``auto`` spaces logarithmically."""

SAMPLE = "another sample of the data: ±1 standard error"
SPLIT = "vᵀGv, the Gauss-Newton part"
BOUND = "no eigenvalue lies above, but for a small probability"
_LOOKS: Mapping[str, Mapping[str, Any]] = {
    SAMPLE: {"color": FAINT, "linewidth": 6, "alpha": 0.3, "solid_capstyle": "butt"},
    SPLIT: {"color": FAINT, "linestyle": "none", "marker": "x", "markersize": 5, "zorder": 4},
    BOUND: {"color": FAINT, "linestyle": "none", "marker": 7, "markersize": 6, "zorder": 4},
}


@styled()
def eigs_figure(
    eigenpairs: Eigenpairs | Sequence[Eigenpairs],
    *,
    names: Sequence[str] | None = None,
    scale: str = "auto",
    gauss_newton: bool = True,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw eigenvalues with their residuals, several checkpoints side by side.

    Those from the lower end of the spectrum stand at the right, the smallest one last.

    Args:
        eigenpairs: one record or several.
        names: a name for each; None: the checkpoints'.
        scale: ``linear``, ``log``, or ``auto``: ``log`` where every value is positive and the
            largest is more than 50 times the smallest.
        gauss_newton: whether to mark vᵀGv, where it was measured.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    pairs = [eigenpairs] if isinstance(eigenpairs, Eigenpairs) else list(eigenpairs)
    called = called_by(pairs, names)
    logarithmic = is_logarithmic(np.concatenate([p.values for p in pairs]), scale)
    shown = [record if gauss_newton else _without_split(record) for record in pairs]
    bounded = [has_visible_bound(record, logarithmic=logarithmic) for record in pairs]
    extras = [*_extras(shown), *([BOUND] if any(bounded) else [])]
    n_named = len(pairs) if len(pairs) > 1 or extras or not pairs[0].converged else 0
    heading = called[0] if title is None and len(pairs) == 1 else title
    parts = _eigs_caption(shown, called)
    figure, box = frame(parts, title=heading, caption=caption, key=n_named + len(extras))
    axes = place(figure, box)
    space(axes, logarithmic=logarithmic)
    n_places = n_places_of(pairs)
    for index, (record, name) in enumerate(zip(shown, called, strict=True)):
        at = places(record, n_places) + 0.5 * ((index + 0.5) / len(pairs) - 0.5)
        _draw_spectrum(axes, at, record, name, index=index, bound=bounded[index])
    _number_places(axes, pairs, n_places)
    axes.set_ylabel("eigenvalue θ")
    if n_named:
        for extra in extras:
            axes.plot([], [], label=extra, **_LOOKS[extra])
        draw_key(axes, room=box[2])
    return figure


def _draw_spectrum(
    axes: Axes, at: Any, record: Eigenpairs, name: str, *, index: int, bound: bool
) -> None:
    tint = colour(index)
    axes.errorbar(
        at,
        record.values,
        yerr=record.residuals,
        fmt=marker(index),
        color=tint,
        markersize=5.5,
        markerfacecolor=tint if record.converged else "white",
        capsize=3,
        elinewidth=1.0,
        label=plain(name if record.converged else f"{name} (not converged)"),
    )
    if len(record.data_errors):
        reach = record.data_errors
        ends = (record.values - reach, record.values + reach)
        axes.vlines(at, *ends, color=tint, linewidth=6, alpha=0.3, zorder=1.5)
    if len(record.gauss_newton):
        # beside the eigenvalue, which it is close to for the largest ones
        axes.plot(at + 0.13, record.gauss_newton, **{**_LOOKS[SPLIT], "color": tint})
    if bound:
        axes.plot(at[:1], [record.upper_bound], **{**_LOOKS[BOUND], "color": tint})


def _number_places(axes: Axes, pairs: Sequence[Eigenpairs], n_places: int) -> None:
    axes.set_xlim(0.4, n_places + 0.6)
    n_lowest = max(record.n_lowest for record in pairs)
    if not n_lowest:
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
        axes.set_xlabel("number of the eigenvalue, largest first")
        return
    ticks, labels = tick_labels(pairs, n_places, most=14)
    axes.set_xticks(ticks, labels)
    n_top = max(record.n_top for record in pairs)
    if n_top:
        axes.axvspan(n_top + 0.65, n_top + 1.35, color="0.95", linewidth=0, zorder=0.5)
        middle = axes.get_xaxis_transform()
        axes.text(n_top + 1, 0.5, "…", ha="center", color=FAINT, transform=middle)
    axes.set_xlabel("eigenvalue: the largest and, at the right, the smallest")


def n_places_of(pairs: Sequence[Eigenpairs]) -> int:
    """Return how many places the eigenvalues need side by side, with a gap before the lowest."""
    n_top = max(record.n_top for record in pairs)
    n_lowest = max(record.n_lowest for record in pairs)
    return n_top + n_lowest + bool(n_top and n_lowest)


def places(record: Eigenpairs, n_places: int) -> Any:
    """Return where the eigenvalues stand: the largest from the left, the lowest from the right."""
    lowest = n_places - np.arange(record.n_lowest)[::-1]
    return np.concatenate([np.arange(1, record.n_top + 1), lowest]).astype(float)


def tick_labels(
    pairs: Sequence[Eigenpairs], n_places: int, *, most: int
) -> tuple[list[int], list[str]]:
    """Return which places to label, and how."""
    known = {
        int(at): label
        for record in pairs
        for at, label in zip(places(record, n_places), record.labels(), strict=True)
    }
    stride = -(-len(known) // most)
    n_top = max(record.n_top for record in pairs)
    kept = [at for at in known if (at - 1 if at <= n_top else n_places - at) % stride == 0]
    return sorted(kept), [known[at] for at in sorted(kept)]


def has_visible_bound(record: Eigenpairs, *, logarithmic: bool) -> bool:
    """Return whether the upper bound can be told from λ1 in a picture, and would not squash it."""
    if not record.n_top or not np.isfinite(record.upper_bound):
        return False
    ends = np.array([min(record.values.min(), record.values[0]), record.values[0]])
    bound = float(record.upper_bound)
    if logarithmic:
        ends, bound = np.log(ends), float(np.log(bound))
    else:
        ends[0] = min(ends[0], 0.0)
    reach = float(ends[1] - ends[0])
    return bool(0.02 * reach < bound - ends[1] < reach)


def _without_split(record: Eigenpairs) -> Eigenpairs:
    return dataclasses.replace(record, gauss_newton=np.empty(0))


def _extras(pairs: Sequence[Eigenpairs]) -> list[str]:
    moved = any(len(record.data_errors) for record in pairs)
    split = any(len(record.gauss_newton) for record in pairs)
    return [text for text, shown in ((SAMPLE, moved), (SPLIT, split)) if shown]


def _eigs_caption(pairs: Sequence[Eigenpairs], called: Sequence[str]) -> list[str]:
    which = "largest and smallest" if any(record.n_lowest for record in pairs) else "largest"
    groups = any(len(record.data_errors) for record in pairs)
    return [
        f"{which} eigenvalues {words.of_operator(pairs, called)}; an eigenvalue "
        "lies within each bar (‖Hv − θv‖, shown where it is wider than the marker)",
        words.each(pairs, called, search),
        words.each(pairs, called, _bounds),
        "the standard error over the examples holds the eigenvector fixed" if groups else "",
        words.each(pairs, called, words.source),
    ]


def _bounds(record: Eigenpairs) -> str:
    if not np.isfinite(record.upper_bound):
        return ""
    chance = f"{100 * record.failure_probability:g}% chance of failure"
    return f"no eigenvalue above {number(record.upper_bound)} ({chance})"


@styled()
def sharpness_figure(
    sharpness: Sharpness | Sequence[Sharpness],
    *,
    names: Sequence[str] | None = None,
    scale: str = "auto",
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw the largest rise found in a ball, the rise of each start, and SAM's one-step value.

    Args:
        sharpness: one record or several.
        names: a name for each; None: the checkpoints'.
        scale: ``linear``, ``log`` or ``auto``, as in `eigs_figure`.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    records = [sharpness] if isinstance(sharpness, Sharpness) else list(sharpness)
    called = called_by(records, names)
    values = np.concatenate([[r.value, r.one_step, *r.start_values] for r in records])
    logarithmic = is_logarithmic(values[np.isfinite(values)], scale)
    parts = [
        "Largest rise of the loss found in the ball, a lower bound on the maximum: "
        + words.each(records, called, _search_in_ball),
        words.each(records, called, words.source),
    ]
    figure, box = frame(parts, title=title, caption=caption)
    axes = place(figure, box)
    space(axes, logarithmic=logarithmic)
    for index, record in enumerate(records):
        _draw_search(axes, record, index=index, first=index == 0)
    room = 4.6 / len(records)
    axes.set_xticks(range(len(records)), [fit(name, room) for name in called])
    axes.set_xlim(-0.6, len(records) - 0.4)
    axes.margins(y=0.2)  # room for the legend
    axes.set_ylabel("rise of the loss, L(w + ε) − L(w)")
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    draw_legend(axes, room=5.0, n_columns=3)
    return figure


def _draw_search(axes: Axes, record: Sharpness, *, index: int, first: bool) -> None:
    tint = colour(index)
    spread = np.linspace(-0.12, 0.12, len(record.start_values)) if record.starts else np.zeros(0)
    axes.plot(
        *([index - 0.25, index + 0.25], [record.value] * 2),
        color=tint,
        linewidth=2.5,
        solid_capstyle="butt",
        label="largest rise found (≥)" if first else None,
    )
    axes.plot(
        *(index + spread, record.start_values, "o"),
        color=tint,
        markerfacecolor="white",
        markersize=4.5,
        label="where each start ended" if first else None,
    )
    axes.plot(
        *(index, record.one_step, "D"),
        color=FAINT,
        markersize=5,
        label="one step of SAM" if first else None,
    )


def search(record: Eigenpairs) -> str:
    """Say how eigenvalues were searched for, and whether they were found."""
    bound = "the ends lie at least so far out" if record.n_lowest else "a lower bound"
    verdict = "converged" if record.converged else f"NOT converged, {bound}"
    return f"{record.method.capitalize()}, {record.matvecs:,} products, {verdict}"


def _search_in_ball(record: Sharpness) -> str:
    verdict = "converged" if record.converged else "NOT converged"
    return f"{ball_of(record)}, gap {record.gap:.0e} ({verdict})"


def is_logarithmic(values: Any, scale: str) -> bool:
    """Return whether values are to be drawn on a log axis."""
    one_of(scale, AXIS_SCALES, what="scale")
    if not values.size:
        msg = "nothing to draw: the records hold no finite value"
        raise InvalidArgumentError(msg)
    low, high = float(values.min()), float(values.max())
    if scale == "log" and low <= 0:
        msg = (
            f"a log scale needs positive values; the smallest is {number(low)}: use scale='linear'"
        )
        raise InvalidArgumentError(msg)
    return scale == "log" or (scale == "auto" and low > 0 and high > RATIO * low)


def space(axes: Axes, *, logarithmic: bool) -> None:
    """Make the upright axis logarithmic, or mark its zero."""
    if logarithmic:
        axes.set_yscale("log", nonpositive="clip")
    else:
        axes.axhline(0.0, color=FAINT, linewidth=0.7, zorder=0.8)
