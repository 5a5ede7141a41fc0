"""Eigenvalues over training made with plotly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.plots.interactive.common import LEGEND, LINE_DASHES, SYMBOLS, inert, layout
from landscape.plots.style import colour, shorten
from landscape.plots.sweeps import Sweep, sweep_of
from landscape.results import Eigenpairs
from landscape.wording import number

_GRID = {
    "showgrid": True,
    "gridcolor": "#e8e8e8",
    "zeroline": True,
    "zerolinecolor": "#888888",
    "zerolinewidth": 1,
}


def sweep_interactive(
    records: Sequence[Eigenpairs],
    *,
    names: Sequence[str] | None = None,
    x: Sequence[float] | None = None,
    x_label: str | None = None,
) -> go.Figure:
    """Draw eigenvalues over training, one line for each.

    Args:
        records: the eigenpairs of several checkpoints.
        names: a name for each; None: the checkpoints'.
        x: a number for each; None: as in `sweep_figure`.
        x_label: what x counts; None: the word before the number in the names.

    Returns:
        The plotly figure.
    """
    sweep = sweep_of([records] if isinstance(records, Eigenpairs) else list(records), names, x)
    figure = go.Figure()
    for k, label in enumerate(sweep.labels):
        if np.nansum(sweep.data_errors[k]) > 0:
            group = {"legendgroup": label}
            figure.add_trace(
                _wide_bars(sweep.x, sweep.values[k], sweep.data_errors[k], colour(k), **group)
            )
        figure.add_trace(_track(sweep, k))
    axis: dict[str, Any] = {"title": {"text": inert(x_label or sweep.x_label or "checkpoint")}}
    height = {"title": {"text": "eigenvalue θ"}, **_GRID}
    if not sweep.x_label:
        axis |= {"tickvals": sweep.x, "ticktext": [inert(shorten(n, 20)) for n in sweep.names]}
    figure.update_layout(xaxis=axis, yaxis=height, legend=LEGEND, **layout(height=430))
    figure.update_layout(margin={"t": 80 if len(sweep.labels) > 7 else 50})
    return figure


def _track(sweep: Sweep, k: int) -> Any:
    marks = [_symbol(k, record.converged) for record in sweep.records]
    told = [
        f"{inert(shorten(name))}<br>{_told(record, record.labels().index(sweep.labels[k]))}"
        if sweep.labels[k] in record.labels()
        else ""
        for name, record in zip(sweep.names, sweep.records, strict=True)
    ]
    return go.Scatter(
        x=sweep.x,
        y=sweep.values[k],
        error_y={"type": "data", "array": sweep.residuals[k]},
        mode="lines+markers",
        line={"color": colour(k), "width": 1.6, "dash": LINE_DASHES[k // 7 % 4]},
        marker={"color": colour(k), "size": 8, "symbol": marks},
        name=sweep.labels[k],
        legendgroup=sweep.labels[k],
        text=told,
        hovertemplate="%{text}<extra></extra>",
    )


def _told(record: Eigenpairs, k: int) -> str:
    """Say everything of one eigenvalue, for hovering."""
    told = f"{record.labels()[k]} = {record.values[k]:.5g} ± {record.residuals[k]:.1e}"
    if len(record.data_errors):
        told += f"<br>another sample: ± {number(float(record.data_errors[k]))}"
    if len(record.gauss_newton):
        told += f"<br>vᵀGv = {number(float(record.gauss_newton[k]))}"
    if k == 0 and record.n_top and np.isfinite(record.upper_bound):
        told += f"<br>no eigenvalue above {number(record.upper_bound)}"
    return told if record.converged else f"{told}<br>not converged"


def _wide_bars(x: Any, y: Any, reach: Any, tint: str, **kwargs: Any) -> Any:
    error = {"type": "data", "array": reach, "thickness": 8, "width": 0, "color": tint}
    return go.Scatter(
        x=x,
        y=y,
        error_y=error,
        mode="markers",
        marker={"size": 1, "color": tint},
        opacity=0.3,
        hoverinfo="skip",
        showlegend=False,
        **kwargs,
    )


def _symbol(index: int, converged: bool) -> str:
    return SYMBOLS[index % len(SYMBOLS)] + ("" if converged else "-open")
