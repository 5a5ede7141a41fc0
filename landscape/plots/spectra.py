"""Eigenvalues with their residuals; the largest rise in a ball with the starts that led to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import words
from landscape.plots.lines import called_by, draw_legend
from landscape.plots.sheet import one_panel, place
from landscape.plots.style import FAINT, colour, fit, marker, plain, styled
from landscape.results import Eigenpairs, Sharpness
from landscape.wording import number

AXIS_SCALES = ("auto", "linear", "log")
RATIO = 50.0
"""Ratio of the largest to the smallest value from which ``auto`` spaces logarithmically."""


@styled()
def eigs_figure(
    eigenpairs: Eigenpairs | Sequence[Eigenpairs],
    *,
    names: Sequence[str] | None = None,
    scale: str = "auto",
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw eigenvalues with their residuals, several checkpoints side by side.

    Args:
        eigenpairs: one record or several.
        names: a name for each; None: the checkpoints'.
        scale: ``linear``, ``log``, or ``auto``: ``log`` where every value is positive and the
            largest is more than 50 times the smallest.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    pairs = [eigenpairs] if isinstance(eigenpairs, Eigenpairs) else list(eigenpairs)
    called = called_by(pairs, names)
    logarithmic = _logarithmic(np.concatenate([p.values for p in pairs]), scale)
    operator = pairs[0].settings.get("operator", "Hessian")
    parts = [
        f"Largest eigenvalues of the {operator}; an eigenvalue lies within each bar (‖Hv − θv‖, "
        "shown where it is wider than the marker)",
        words.each(pairs, called, _search),
        words.each(pairs, called, words.source),
    ]
    heading = called[0] if title is None and len(pairs) == 1 else title
    figure, axes = _frame(parts, heading, caption)
    if logarithmic:
        axes.set_yscale("log", nonpositive="clip")
    else:
        axes.axhline(0.0, color=FAINT, linewidth=0.7, zorder=0.8)
    for index, (record, name) in enumerate(zip(pairs, called, strict=True)):
        offset = 0.5 * ((index + 0.5) / len(pairs) - 0.5)
        _draw_spectrum(axes, record, name, index=index, offset=offset)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.set_xlim(0.4, max(len(p.values) for p in pairs) + 0.6)
    axes.set_xlabel("number of the eigenvalue, largest first")
    axes.set_ylabel("eigenvalue θ")
    if len(pairs) > 1 or not pairs[0].converged:
        draw_legend(axes, room=5.0)
    return figure


def _draw_spectrum(axes: Axes, record: Eigenpairs, name: str, *, index: int, offset: float) -> None:
    tint = colour(index)
    axes.errorbar(
        np.arange(1, len(record.values) + 1) + offset,
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
    logarithmic = _logarithmic(values[np.isfinite(values)], scale)
    parts = [
        "Largest rise of the loss found in the ball, a lower bound on the maximum: "
        + words.each(records, called, _search_in_ball),
        words.each(records, called, words.source),
    ]
    figure, axes = _frame(parts, title, caption)
    if logarithmic:
        axes.set_yscale("log", nonpositive="clip")
    else:
        axes.axhline(0.0, color=FAINT, linewidth=0.7, zorder=0.8)
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


def _search(record: Eigenpairs) -> str:
    verdict = "converged" if record.converged else "NOT converged, a lower bound"
    return f"{record.method.capitalize()}, {record.matvecs:,} products, {verdict}"


def _search_in_ball(record: Sharpness) -> str:
    verdict = "converged" if record.converged else "NOT converged"
    return f"ρ = {record.rho:g}, p = {record.p:g}, gap {record.gap:.0e} ({verdict})"


def _logarithmic(values: Any, scale: str) -> bool:
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


def _frame(parts: Sequence[str], title: str | None, caption: bool) -> tuple[Figure, Axes]:
    text = words.sentences(part[:1].upper() + part[1:] for part in parts)
    figure, box = one_panel(text, title=title, caption=caption)
    return figure, place(figure, box)
