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
    points_of,
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
    index, traces = int(curve.rho > 0), []
    tint = colour(index)
    for panel in PANELS:
        x, y = points_of(curve, panel)
        line = go.Scatter(
            x=x[1:],
            y=y[1:],
            mode="lines",
            line={"color": tint, "dash": LINE_DASHES[index], "width": 2},
            name=curve_label(curve),
            showlegend=panel == "bias2",
            hovertemplate="%{x}: %{y:.5g}<extra></extra>",
        )
        traces.append((line, panel))
        if panel in {"risk", "cost"}:
            best = [curve.best.iteration] if has_ring(curve) else []
            look = {"color": tint, "size": 13, "symbol": "circle-open"}
            said = "smallest risk, at %{x}: %{y:.5g}<extra></extra>"
            traces.append((_marks(x[best], y[best], look, said), panel))
        for found in estimates:
            look = {"color": tint, "size": 5, "symbol": SYMBOLS[index]}
            said = "%{x}: %{y:.5g}<extra>Monte Carlo, ±2 standard errors</extra>"
            bars = {"array": errors_of(found, panel), "thickness": 1, "width": 2}
            traces.append((_marks(*points_of(found, panel), look, said, error_y=bars), panel))
    return traces


def _marks(x: Any, y: Any, look: dict[str, Any], said: str, **bars: Any) -> Any:
    hidden = {"mode": "markers", "showlegend": False, "hovertemplate": said}
    return go.Scatter(x=x, y=y, marker=look, **hidden, **bars)


def _title(pair: TradeOff, simulated: Sequence[Simulated]) -> dict[str, Any]:
    heading = (
        f"{pair.gd.risk_of.capitalize()} error of {pair.modes.curvatures.size} modes, from zero, "
        f"step size η = {pair.gd.eta:.4g}"
    )
    below = (
        "curves: closed form; rings: smallest risk; bias²: error of the mean over the noise in the "
        "data; variance: what that noise adds"
    )
    if simulated:
        below += (
            f"<br>points: {simulated[0].runs:,} Monte Carlo runs, ±2 standard errors; those of one "
            "curve share their noise"
        )
    text = f"{heading}<br><span style='font-size:11px'>{below}</span>"
    return {"text": text, "x": 0.0, "xref": "paper", "y": 0.96, "yanchor": "top"}


def _slider(pairs: list[TradeOff], owners: list[int | None], shown: int) -> dict[str, Any]:
    steps = []
    for k, pair in enumerate(pairs):
        visible = {"visible": [owner is None or owner == k for owner in owners]}
        label = f"{pair.sam.rho:.3g}"
        steps.append({"method": "restyle", "args": [visible], "label": label})
    current = {"prefix": "SAM's ρ = "}
    return {"active": shown, "steps": steps, "currentvalue": current, "pad": {"t": 60}}


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
