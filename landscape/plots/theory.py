"""Bias², variance and risk of gradient descent and SAM on a linear model, against the steps."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.plots.sheet import Box, draw_key, frame, place
from landscape.plots.style import DASHES, FAINT, colour, marker, plain, styled
from landscape.results import FloatArray
from landscape.theory import Risks, Simulated, TradeOff
from landscape.wording import number

PANELS = ("bias2", "variance", "risk", "cost")
"""Squared bias, variance and risk against iterations, and risk against gradient evaluations."""

PANEL_TITLES = {
    "bias2": "bias²",
    "variance": "variance",
    "risk": "risk = bias² + variance",
    "cost": "risk, at equal cost",
}
_ROOM = (6.4, 4.5)
_GAP = (0.62, 0.62)


@styled()
def theory_figure(
    pair: TradeOff,
    *,
    simulated: Sequence[Simulated] = (),
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw bias², variance and risk against iterations, and the risk against gradients spent.

    Args:
        pair: gradient descent and SAM on one model.
        simulated: Monte Carlo estimates of either, to lay on the curves with ±2 standard errors.
        title: a line above the picture, or None.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    parts = theory_caption(pair, simulated)
    rows = 2 + bool(simulated)
    figure, box = frame(parts, title=title, caption=caption, key=rows, room=_ROOM)
    panels = {name: place(figure, part) for name, part in zip(PANELS, _quarters(box), strict=True)}
    for index, curve in enumerate((pair.gd, pair.sam)):
        for name, axes in panels.items():
            _draw_curve(axes, curve, name, index=index)
    for estimate in simulated:
        for name, axes in panels.items():
            _draw_simulated(axes, estimate, name, labelled=estimate is simulated[0])
    for name, axes in panels.items():
        _dress(axes, name, last=pair.gd.bias2.size - 1)
    draw_key(panels["bias2"], room=box[2])
    return figure


def theory_caption(pair: TradeOff, simulated: Sequence[Simulated]) -> list[str]:
    """Say what a picture shows."""
    parts = [
        f"{pair.gd.risk_of} error of {pair.modes.curvatures.size} modes from zero, step size "
        f"η = {pair.gd.eta:g}, η(d₁ + ρd₁²) = {number(pair.largest_step)}; curves in closed form",
        order_of(pair),
        f"rings: smallest risk; SAM spends two gradients per iteration; at equal cost it shrinks "
        f"the bias more only where the curvature is above 1/(η + ρ) = {number(pair.faster_from)}, "
        f"in {fast_modes(pair)} modes",
    ]
    if simulated:
        parts.append(f"points: {simulated[0].runs:,} Monte Carlo runs, ±2 standard errors")
    return parts


def order_of(pair: TradeOff) -> str:
    """Say whether SAM has the lower bias and the higher variance."""
    kept = pair.lower_bias and pair.higher_variance
    if pair.proved and not pair.gd.variance.any():
        return "without noise SAM has lower bias² at every iteration (η(d₁ + ρd₁²) ≤ 1)"
    if pair.proved:
        return "SAM has lower bias² and higher variance at every iteration (η(d₁ + ρd₁²) ≤ 1)"
    found = "holds at every iteration shown" if kept else "does NOT hold at every iteration"
    return f"η(d₁ + ρd₁²) > 1: lower bias² and higher variance of SAM {found}"


def fast_modes(pair: TradeOff) -> str:
    """Say how many modes SAM shrinks more per gradient evaluation."""
    return f"{pair.n_faster} of {pair.modes.curvatures.size}"


def curve_label(curve: Risks) -> str:
    """Name a curve, with its best stopping time."""
    name = f"SAM, ρ = {curve.rho:g}" if curve.rho > 0 else "gradient descent"
    best = curve.best
    if curve.still_falling:
        return f"{name}: risk still falling at iteration {best.iteration}: {number(best.risk)}"
    return (
        f"{name}: best at iteration {best.iteration}, gradient {best.gradients}, "
        f"risk {number(best.risk)}"
    )


def has_ring(curve: Risks) -> bool:
    """Return whether the smallest risk has a place: on a log axis, and not at the end."""
    return curve.best.iteration > 0 and not curve.still_falling


def values_of(found: Risks | Simulated, panel: str) -> FloatArray:
    """Return what one panel shows of a curve or an estimate."""
    values: FloatArray = getattr(found, "risk" if panel == "cost" else panel)
    return values


def places_of(found: Risks | Simulated, panel: str) -> FloatArray:
    """Return where along its axis a panel shows the values."""
    per_step = 2 if found.rho > 0 and panel == "cost" else 1
    return per_step * found.iterations


def _quarters(box: Box) -> list[Box]:
    left, bottom, width, height = box
    wide, high = (width - _GAP[0]) / 2, (height - _GAP[1]) / 2
    return [
        (left + column * (wide + _GAP[0]), bottom + row * (high + _GAP[1]), wide, high)
        for row in (1, 0)
        for column in (0, 1)
    ]


def _draw_curve(axes: Axes, curve: Risks, panel: str, *, index: int) -> None:
    x, y = places_of(curve, panel)[1:], values_of(curve, panel)
    label = plain(curve_label(curve))
    axes.plot(x, y[1:], color=colour(index), linestyle=DASHES[index], label=label, zorder=2)
    best = curve.best.iteration
    if panel in {"risk", "cost"} and has_ring(curve):
        axes.plot(
            *([x[best - 1]], [y[best]], "o"),
            markersize=9,
            markerfacecolor="none",
            markeredgewidth=1.4,
            color=colour(index),
            zorder=4,
        )


def _draw_simulated(axes: Axes, estimate: Simulated, panel: str, *, labelled: bool) -> None:
    index = int(estimate.rho > 0)
    axes.errorbar(
        places_of(estimate, panel),
        values_of(estimate, panel),
        yerr=2 * getattr(estimate, f"{'risk' if panel == 'cost' else panel}_se"),
        fmt=marker(index),
        markersize=3.2,
        color=colour(index),
        elinewidth=0.9,
        capsize=1.5,
        zorder=3,
    )
    if labelled:
        axes.plot([], [], "o", color=FAINT, markersize=3.2, label="Monte Carlo, ±2 standard errors")


def _dress(axes: Axes, panel: str, *, last: int) -> None:
    axes.set_xscale("log")
    # At equal cost gradient descent ends after K gradients, so the panel ends there for both.
    axes.set_xlim(0.9, 1.1 * max(last, 2))
    axes.set_xlabel("gradient evaluations" if panel == "cost" else "iterations")
    axes.set_ylabel(PANEL_TITLES[panel])
    axes.set_ylim(bottom=0.0)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
