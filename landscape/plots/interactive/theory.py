"""Bias², variance and risk on a linear model made with plotly, with a slider over ρ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from landscape.errors import InvalidArgumentError
from landscape.plots.interactive.common import LINE_DASHES, SYMBOLS, Page, layout
from landscape.plots.style import colour
from landscape.plots.theory import (
    PANELS,
    curve_label,
    errors_of,
    has_ring,
    places_of,
    values_of,
)
from landscape.theory import Risks, Simulated, TradeOff

_CELLS = {"bias2": (1, 1), "variance": (1, 2), "risk": (2, 1), "cost": (2, 2)}


def explore_theory(
    pairs: TradeOff | Sequence[TradeOff],
    *,
    simulated: Sequence[Simulated] = (),
    shown: int = 0,
) -> go.Figure:
    """Draw bias², variance and risk of gradient descent and SAM, with a slider over SAM's ρ.

    Args:
        pairs: one model at one η, with one or several ρ, in the order of the slider.
        simulated: Monte Carlo estimates, drawn with the curves of the same ρ; those of gradient
            descent with all.
        shown: place of the pair to begin with.

    Returns:
        The plotly figure.

    Raises:
        InvalidArgumentError: if there is no pair, η differs, or ``shown`` names none.
    """
    listed = [pairs] if isinstance(pairs, TradeOff) else list(pairs)
    _check(listed, shown)
    figure = make_subplots(
        rows=2, cols=2, horizontal_spacing=0.1, vertical_spacing=0.14, figure=Page()
    )
    # Which pair a trace belongs to; None: to all.
    owners: list[int | None] = []
    for owner, curve in [(None, listed[0].gd), *((k, pair.sam) for k, pair in enumerate(listed))]:
        estimates = [found for found in simulated if found.rho == curve.rho]
        for trace, panel in _traces(curve, estimates):
            row, column = _CELLS[panel]
            trace.visible = owner is None or owner == shown
            figure.add_trace(trace, row=row, col=column)
            owners.append(owner)
    _dress(figure, last=listed[0].gd.bias2.size - 1)
    figure.update_layout(title=_title(listed[0], simulated), margin={"t": 150})
    figure.update_layout(sliders=[_slider(listed, owners, shown)] if len(listed) > 1 else [])
    return figure


def _check(pairs: list[TradeOff], shown: int) -> None:
    if not pairs:
        msg = "nothing to draw: no pair was given; make one with landscape.theory.trade_off"
        raise InvalidArgumentError(msg)
    etas = sorted({pair.gd.eta for pair in pairs})
    if len(etas) > 1:
        msg = f"the pairs have several step sizes {etas}; expected one: draw them apart"
        raise InvalidArgumentError(msg)
    if not 0 <= shown < len(pairs):
        msg = f"shown = {shown}; expected 0 to {len(pairs) - 1}, the place of one of the pairs"
        raise InvalidArgumentError(msg)


def _traces(curve: Risks, estimates: list[Simulated]) -> list[tuple[Any, str]]:
    traces = []
    for panel in PANELS:
        traces.append((_line(curve, panel), panel))
        if panel in {"risk", "cost"}:
            traces.append((_ring(curve, panel), panel))
        traces += [(_points(found, panel), panel) for found in estimates]
    return traces


def _line(curve: Risks, panel: str) -> Any:
    index = int(curve.rho > 0)
    return go.Scatter(
        x=places_of(curve, panel)[1:],
        y=values_of(curve, panel)[1:],
        mode="lines",
        line={"color": colour(index), "dash": LINE_DASHES[index], "width": 2},
        name=curve_label(curve),
        showlegend=panel == "bias2",
        hovertemplate="%{x}: %{y:.5g}<extra></extra>",
    )


def _ring(curve: Risks, panel: str) -> Any:
    best = curve.best.iteration
    where = slice(best, best + 1) if has_ring(curve) else slice(0)
    return go.Scatter(
        x=places_of(curve, panel)[where],
        y=values_of(curve, panel)[where],
        mode="markers",
        marker={"color": colour(int(curve.rho > 0)), "size": 13, "symbol": "circle-open"},
        showlegend=False,
        hovertemplate="smallest risk, at %{x}: %{y:.5g}<extra></extra>",
    )


def _points(found: Simulated, panel: str) -> Any:
    index = int(found.rho > 0)
    return go.Scatter(
        x=places_of(found, panel),
        y=values_of(found, panel),
        error_y={"array": errors_of(found, panel), "thickness": 1, "width": 2},
        mode="markers",
        marker={"color": colour(index), "size": 5, "symbol": SYMBOLS[index]},
        showlegend=False,
        hovertemplate="%{x}: %{y:.5g}<extra>Monte Carlo, ±2 standard errors</extra>",
    )


def _title(pair: TradeOff, simulated: Sequence[Simulated]) -> dict[str, Any]:
    said = [
        "curves: closed form; rings: smallest risk; bias²: error of the mean over the noise in the "
        "data; variance: what that noise adds"
    ]
    if simulated:
        said.append(
            f"points: {simulated[0].runs:,} Monte Carlo runs, ±2 standard errors; those of one "
            "curve share their noise"
        )
    heading = (
        f"{pair.gd.risk_of.capitalize()} error of {pair.modes.curvatures.size} modes, from zero, "
        f"step size η = {pair.gd.eta:.4g}"
    )
    below = "<br>".join(said)
    text = f"{heading}<br><span style='font-size:11px'>{below}</span>"
    return {"text": text, "x": 0.0, "xref": "paper", "y": 0.96, "yanchor": "top"}


def _slider(pairs: list[TradeOff], owners: list[int | None], shown: int) -> dict[str, Any]:
    steps = [
        {
            "method": "restyle",
            "args": [{"visible": [owner is None or owner == k for owner in owners]}],
            "label": f"{pair.sam.rho:.3g}",
        }
        for k, pair in enumerate(pairs)
    ]
    return {
        "active": shown,
        "steps": steps,
        "currentvalue": {"prefix": "SAM's ρ = "},
        "pad": {"t": 60},
    }


def _dress(figure: go.Figure, *, last: int) -> None:
    # A log axis of plotly takes the exponents of its limits; up to K for both, see `plot_theory`.
    limits = [math.log10(0.9), math.log10(1.1 * max(last, 2))]
    figure.update_xaxes(type="log", range=limits, title={"text": "iterations"}, dtick=1)
    figure.update_xaxes(title={"text": "gradient evaluations"}, row=2, col=2)
    for panel, (row, column) in _CELLS.items():
        title = {"text": PANELS[panel]}
        figure.update_yaxes(rangemode="tozero", title=title, row=row, col=column)
    legend = {"orientation": "v", "y": 1.02, "yanchor": "bottom", "x": 0.0}
    figure.update_layout(legend=legend, **layout(height=720))
