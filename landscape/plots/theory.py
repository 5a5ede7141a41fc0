"""Bias², variance and risk of gradient descent and SAM on a linear model, against the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from landscape.plots import style
from landscape.results import FloatArray
from landscape.theory import Risks, Simulated, TradeOff
from landscape.wording import number

PANELS = {
    "bias2": "bias²",
    "variance": "variance",
    "risk": "risk = bias² + variance",
    "cost": "risk, at equal cost",
}
"""Squared bias, variance and risk against iterations, and risk against gradient evaluations."""


@style.styled()
def plot_theory(
    pair: TradeOff,
    *,
    axes: Mapping[str, Axes] | None = None,
    simulated: Sequence[Simulated] = (),
    title: str | None = None,
    caption: bool | None = None,
) -> Figure | SubFigure:
    """Draw bias², variance and risk against iterations, and the risk against gradients spent.

    Args:
        pair: gradient descent and SAM on one model.
        axes: any of the panels ``bias2``, ``variance``, ``risk`` and ``cost``; None: all four, of a
            new picture.
        simulated: Monte Carlo estimates of either, to lay on the curves with ±2 standard errors.
        title: a line above the picture, or None.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The figure of the panels.
    """
    panels = axes
    if panels is None:
        sheet = style.Picture(figsize=(7.2, 5.2), layout="constrained")
        panels = sheet.subplot_mosaic([["bias2", "variance"], ["risk", "cost"]])
    for name, panel in panels.items():
        for index, curve in enumerate((pair.gd, pair.sam)):
            _draw_curve(panel, curve, name, index=index)
        for estimate in simulated:
            _draw_simulated(panel, estimate, name)
        panel.set_xscale("log")
        # At equal cost gradient descent ends after K gradients, so the panel ends there for both.
        panel.set_xlim(0.9, 1.1 * max(pair.gd.bias2.size - 1, 2))
        panel.set_xlabel("gradient evaluations" if name == "cost" else "iterations")
        panel.set_ylabel(PANELS[name])
        panel.set_ylim(bottom=0.0)
    first: Any = next(iter(panels.values()))
    if simulated:
        label = "Monte Carlo, ±2 standard errors"
        first.plot([], [], "o", color=style.FAINT, markersize=3.2, label=label)
    if axes is None:
        style.draw_key(first)
        if title:
            style.write_title(first.figure, title)
    else:
        first.legend()
    if caption or (caption is None and axes is None):
        style.write_caption(first.figure, _parts(pair, simulated))
    figure: Figure | SubFigure = first.figure
    return figure


def _parts(pair: TradeOff, simulated: Sequence[Simulated]) -> list[str]:
    n_runs = sum(estimate.runs for estimate in simulated[:1])
    return [
        f"{pair.gd.risk_of} error of {pair.modes.curvatures.size} modes from zero, step size "
        f"η = {pair.gd.eta:g}, η(d₁ + ρd₁²) = {number(pair.largest_step)}; curves in closed form",
        order_of(pair),
        f"rings: smallest risk; SAM spends two gradients per iteration; at equal cost it shrinks "
        f"the bias more only where the curvature is above 1/(η + ρ) = {number(pair.faster_from)}, "
        f"in {fast_modes(pair)} modes",
        f"points: {n_runs:,} Monte Carlo runs, ±2 standard errors" if n_runs else "",
    ]


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


def points_of(found: Risks | Simulated, panel: str) -> tuple[FloatArray, FloatArray]:
    """Return what one panel shows of a curve or an estimate: places along its axis, and values."""
    per_step = 2 if found.rho > 0 and panel == "cost" else 1
    return per_step * found.iterations, getattr(found, "risk" if panel == "cost" else panel)


def errors_of(found: Simulated, panel: str) -> FloatArray:
    """Return two standard errors of what one panel shows of an estimate."""
    errors: FloatArray = getattr(found, f"{'risk' if panel == 'cost' else panel}_se")
    return 2 * errors


def _draw_curve(axes: Axes, curve: Risks, panel: str, *, index: int) -> None:
    x, y = points_of(curve, panel)
    look: Any = {"color": style.colour(index), "linestyle": style.DASHES[index], "zorder": 2}
    axes.plot(x[1:], y[1:], label=style.plain(curve_label(curve)), **look)
    best = curve.best.iteration
    if panel in {"risk", "cost"} and has_ring(curve):
        ring: Any = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.4}
        axes.plot(x[[best]], y[[best]], "o", color=style.colour(index), zorder=4, **ring)


def _draw_simulated(axes: Axes, estimate: Simulated, panel: str) -> None:
    index = int(estimate.rho > 0)
    look: Any = {"fmt": style.marker(index), "color": style.colour(index), "markersize": 3.2}
    look |= {"elinewidth": 0.9, "capsize": 1.5, "zorder": 3}
    axes.errorbar(*points_of(estimate, panel), yerr=errors_of(estimate, panel), **look)
