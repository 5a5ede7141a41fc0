"""Eigenvalues and other numbers over training made with plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.plots.interactive.common import LEGEND, LINE_DASHES, SYMBOLS, Page, inert, layout
from landscape.plots.style import colour, colours_by_name, shorten
from landscape.plots.sweeps import QUANTITIES, TrainingRun, training_runs
from landscape.results import Eigenpairs, FloatArray, Result
from landscape.wording import number

_GRID = {"showgrid": True, "gridcolor": "#e8e8e8", "zeroline": True, "zerolinecolor": "#888888"}


def explore_sweep(
    records: Sequence[Result] | Mapping[str, Sequence[Result]],
    *,
    names: Sequence[str] | None = None,
    runs: Sequence[str] | None = None,
    x: Sequence[float] | None = None,
    x_label: str | None = None,
    colours: Mapping[str, str] | None = None,
) -> go.Figure:
    """Draw eigenvalues, sharpness, traces or losses over training; hovering tells all of each.

    Args:
        records: of one kind of several checkpoints, or these by the name of their run.
        names: a name for each; None: the checkpoints'.
        runs: the name of the run of each; None: as in `plot_sweep`.
        x: a number for each; None: as in `plot_sweep`.
        x_label: what x counts; None: the word before the number in the names.
        colours: a colour for each run; None: those of the property cycle.

    Returns:
        The plotly figure; of several runs all eigenvalues can be chosen in the legend.
    """
    found, counted = training_runs(records, names=names, runs=runs, x=x)
    tints = colours_by_name([run.name for run in found], colours)
    figure = Page()
    for run in found:
        for k, (label, track) in enumerate(run.tracks().items()):
            text = f"{inert(shorten(run.name))}, {label}" if run.name else label
            shown = True if not (run.name and k) else "legendonly"
            look: Any = {"color": tints[run.name] if run.name else colour(k), "visible": shown}
            if np.nansum(track[3]) > 0:
                figure.add_trace(_wide_bars(run, track, text, **look))
            figure.add_trace(_track(run, track, label, text, k, **look))
    axis: dict[str, Any] = {"title": {"text": inert(x_label or counted or "checkpoint")}}
    if not counted:
        named = [inert(shorten(name, 20)) for name in found[0].names]
        axis |= {"tickvals": found[0].x, "ticktext": named}
    title = {"title": {"text": QUANTITIES[found[0].records[0].kind]}, **_GRID}
    figure.update_layout(xaxis=axis, yaxis=title, legend=LEGEND, **layout(height=430))
    return figure.update_layout(margin={"t": 80 if len(figure.data) > 7 else 50})


def _track(
    run: TrainingRun, track: FloatArray, label: str, text: str, k: int, *, color: str, visible: Any
) -> Any:
    done = [getattr(record, "converged", True) for record in run.records]
    symbol = SYMBOLS[k % len(SYMBOLS)]
    marks = [symbol if converged else f"{symbol}-open" for converged in done]
    bars = {"type": "data", "array": track[2], "arrayminus": track[1], "symmetric": False}
    return go.Scatter(
        x=run.x,
        y=track[0],
        error_y=bars,
        mode="lines+markers",
        line={"color": color, "width": 1.6, "dash": LINE_DASHES[k // 7 % 4]},
        marker={"color": color, "size": 8, "symbol": marks},
        name=text,
        legendgroup=text,
        visible=visible,
        text=[
            f"{inert(shorten(name))}<br>{_details(record, label)}"
            for name, record in zip(run.names, run.records, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _details(record: Result, label: str) -> str:
    """Say everything of one number, for hovering."""
    if not isinstance(record, Eigenpairs):
        return "<br>".join(f"{inert(name)}: {inert(text)}" for name, text in record.rows()[:4])
    if label not in record.labels():
        return ""
    k = record.labels().index(label)
    text = f"{label} = {record.quantity(k)}<br>residual {record.residuals[k]:.1e}"
    if len(record.gauss_newton):
        text += f"<br>vᵀGv = {number(float(record.gauss_newton[k]))}"
    if k == 0 and record.n_top and np.isfinite(record.upper_bound):
        text += f"<br>no eigenvalue above {number(record.upper_bound)}"
    return text if record.converged else f"{text}<br>not converged"


def _wide_bars(run: TrainingRun, track: FloatArray, text: str, *, color: str, visible: Any) -> Any:
    error = {"type": "data", "array": track[3], "thickness": 8, "width": 0, "color": color}
    look = {"mode": "markers", "marker": {"size": 1, "color": color}, "opacity": 0.3}
    hidden = {"hoverinfo": "skip", "showlegend": False, "legendgroup": text, "visible": visible}
    return go.Scatter(x=run.x, y=track[0], error_y=error, **look, **hidden)
