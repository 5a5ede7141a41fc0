"""Eigenvalues, traces and spectral densities made with plotly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.errors import one_of
from landscape.plots import words
from landscape.plots.densities import Y_AXES, DensityView, density_label, density_view
from landscape.plots.interactive.common import LEGEND, LINE_DASHES, SYMBOLS, inert, layout
from landscape.plots.interactive.lines import band
from landscape.plots.lines import called_by
from landscape.plots.scales import Scale, symlog_ticks
from landscape.plots.spectra import n_places_of, places, tick_labels
from landscape.plots.style import colour, shorten
from landscape.plots.sweeps import Sweep, sweep_of
from landscape.plots.traces import Traces, gather, reaches, trace_axis, trace_label, trace_scale
from landscape.results import Density, Eigenpairs, TraceEstimate
from landscape.wording import number

_LISTED = {"orientation": "v", "y": 1.01, "yanchor": "bottom", "x": 0.0}
_GRID = {
    "showgrid": True,
    "gridcolor": "#e8e8e8",
    "zeroline": True,
    "zerolinecolor": "#888888",
    "zerolinewidth": 1,
}


def eigs_interactive(
    eigenpairs: Eigenpairs | Sequence[Eigenpairs],
    *,
    names: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
) -> go.Figure:
    """Draw eigenvalues with their residuals as error bars.

    Args:
        eigenpairs: one record or several.
        names: a name for each; None: the checkpoints'.
        colours: a colour for each; None: by place.

    Returns:
        The plotly figure.
    """
    pairs = [eigenpairs] if isinstance(eigenpairs, Eigenpairs) else list(eigenpairs)
    called = called_by(pairs, names)
    n_places = n_places_of(pairs)
    figure = go.Figure()
    for index, (record, name) in enumerate(zip(pairs, called, strict=True)):
        tint = colours[index] if colours else colour(index)
        at = places(record, n_places) + 0.4 * ((index + 0.5) / len(pairs) - 0.5)
        if len(record.data_errors):
            figure.add_trace(_wide_bars(at, record.values, record.data_errors, tint))
        figure.add_scatter(
            x=at,
            y=record.values,
            error_y={"type": "data", "array": record.residuals},
            mode="markers",
            marker={"color": tint, "size": 9, "symbol": _symbol(index, record.converged)},
            name=inert(shorten(name) if record.converged else f"{shorten(name)} (not converged)"),
            text=[_told(record, k) for k in range(len(record.values))],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    ticks, labels = tick_labels(pairs, n_places, most=24)
    lowest = any(record.n_lowest for record in pairs)
    ends = "eigenvalue: the largest and, at the right, the smallest"
    figure.update_layout(
        xaxis={
            "title": {"text": ends if lowest else "eigenvalue, largest first"},
            "tickvals": ticks,
            "ticktext": labels,
        },
        yaxis={"title": {"text": "eigenvalue θ"}},
        legend=LEGEND,
        **layout(height=400),
    )
    return figure


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


def trace_interactive(
    traces: TraceEstimate | Sequence[TraceEstimate],
    *,
    names: Sequence[str] | None = None,
    scale: str = "auto",
    per_parameter: bool = False,
) -> go.Figure:
    """Draw traces with their confidence intervals: one per checkpoint, or one per layer of each.

    Args:
        traces: one record or several, all with layers or all without.
        names: a name for each; None: the checkpoints'.
        scale: ``auto``, ``linear``, ``log`` or ``symlog``, as in `trace_figure`.
        per_parameter: whether to divide each trace by the number of its parameters.

    Returns:
        The plotly figure.
    """
    records = [traces] if isinstance(traces, TraceEstimate) else list(traces)
    called = called_by(records, names)
    shown = gather(records, per_parameter=per_parameter)
    spaced = trace_scale(shown, scale)
    figure = go.Figure()
    for index, (record, name) in enumerate(zip(records, called, strict=True)):
        label = f"{shorten(name)}: {trace_label(record)}"
        figure.add_trace(_trace_points(shown, spaced, record, index, label))
    axis = {"title": {"text": trace_axis(shown, records)}, **_GRID, **_axis(spaced)}
    if shown.layers:
        rows = list(range(len(shown.layers)))
        names_of = {
            "tickvals": rows,
            "ticktext": [inert(shorten(name, 44)) for name in shown.layers],
            "range": [len(rows) - 0.4, -0.6],
            "automargin": True,
            **_GRID,
            "zeroline": False,
        }
        figure.update_layout(xaxis=axis, yaxis=names_of)
        height = 140 + 26 * len(records) + (14 + 8 * len(records)) * len(rows)
    else:
        labels = [inert(shorten(name)) for name in called]
        at = {"tickvals": list(range(len(called))), "ticktext": labels}
        figure.update_layout(xaxis={**at, "range": [-0.6, len(called) - 0.4]}, yaxis=axis)
        height = 380
    figure.update_layout(legend=_LISTED, **layout(height=height))
    figure.update_layout(margin={"t": 40 + 22 * len(records)})
    return figure


def _trace_points(
    shown: Traces, spaced: Scale, record: TraceEstimate, index: int, label: str
) -> Any:
    values, ends = shown.values[index], reaches(shown, index)
    n = len(shown.values)
    layered = bool(shown.layers)
    at = np.arange(len(values)) + 0.7 * ((index + 0.5) / n - 0.5) if layered else [float(index)]
    low, high = values - ends[0], values + ends[1]
    if spaced.spacing == "log":
        low = np.maximum(low, spaced.low * 1e-3)
    if spaced.spacing == "symlog":
        # plotly has no such axis: what is drawn is the place of each value along one
        drawn, down, up = (spaced.forward(part) for part in (values, low, high))
    else:
        drawn, down, up = values, low, high
    bars = {"type": "data", "array": up - drawn, "arrayminus": drawn - down, "symmetric": False}
    told = shown.layers or (shorten(record.name),)
    spans = [
        f"{inert(name)}<br>{number(float(v))} ({number(float(a))} to {number(float(b))})"
        for name, v, a, b in zip(told, values, values - ends[0], values + ends[1], strict=True)
    ]
    return go.Scatter(
        **({"x": drawn, "y": at} if layered else {"x": at, "y": drawn}),
        **{"error_x" if layered else "error_y": bars},
        mode="markers",
        marker={"color": colour(index), "size": 8, "symbol": _symbol(index, record.converged)},
        name=inert(label),
        showlegend=True,
        text=spans,
        hovertemplate="%{text}<extra></extra>",
    )


def _axis(scale: Scale) -> dict[str, Any]:
    if scale.spacing == "symlog":
        return _labelled(scale, symlog_ticks(scale.low, scale.high, scale.threshold))
    if scale.spacing == "log":
        return {"type": "log", "exponentformat": "power", "dtick": 1}
    return {"tickmode": "auto", "exponentformat": "power", "rangemode": "tozero"}


def _labelled(axis: Scale | DensityView, ticks: Sequence[float]) -> dict[str, Any]:
    """Return an axis along which places are drawn, with the values at some of them."""
    texts = [words.level_text(tick) for tick in ticks]
    return {"tickmode": "array", "tickvals": axis.forward(ticks), "ticktext": texts}


def density_interactive(
    densities: Density | Sequence[Density],
    *,
    names: Sequence[str] | None = None,
    x_axis: str = "symlog",
    y_axis: str = "log",
) -> go.Figure:
    """Draw spectral densities with their bands, and buttons that change the spacing of the axes.

    Args:
        densities: one record or several.
        names: a name for each; None: the checkpoints'.
        x_axis: how λ is spaced at first, ``symlog`` or ``linear``.
        y_axis: how φ is spaced at first, ``log`` or ``linear``.

    Returns:
        The plotly figure.
    """
    records = [densities] if isinstance(densities, Density) else list(densities)
    called = called_by(records, names)
    one_of(y_axis, Y_AXES, what="scale of a spectral density")
    views = [density_view(records, "symlog"), density_view(records, "linear")]
    first = int(density_view(records, x_axis).spacing == "linear")
    traces = [
        [t for k, r in enumerate(records) for t in _density_traces(r, view, k, called)]
        for view in views
    ]
    figure = go.Figure([*traces[0], *traces[1]])
    shown = [[kind == k for kind in (0, 1) for _ in traces[kind]] for k in (0, 1)]
    for trace, visible in zip(figure.data, shown[first], strict=True):
        trace.visible = visible
    axes = [_density_axis(view) for view in views]
    heights = [_height_axis(views[0], kind) for kind in ("log", "linear")]
    across = [({"visible": v}, {"xaxis": a}) for v, a in zip(shown, axes, strict=True)]
    up = [({"yaxis": height},) for height in heights]
    figure.update_layout(
        xaxis=axes[first],
        yaxis=heights[y_axis == "linear"],
        legend={**_LISTED, "y": 1.15},
        updatemenus=[
            _buttons("update", across, ("λ symlog", "λ linear"), active=first, x=0.0),
            _buttons("relayout", up, ("φ log", "φ linear"), active=int(y_axis == "linear"), x=1.0),
        ],
        **layout(height=470 + 22 * len(records)),
    )
    figure.update_layout(margin={"t": 85 + 22 * len(records)})
    return figure


def _density_traces(record: Density, view: DensityView, index: int, called: Sequence[str]) -> Any:
    tint, group = colour(index), str(index)
    seen = (record.grid >= view.low) & (record.grid <= view.high)
    t, density = record.grid[seen], record.density[seen]
    low, high = record.low[seen], record.high[seen]
    x, least = view.forward(t), view.floor * 1e-3
    known = np.isfinite(low) & np.isfinite(high)
    yield band(
        x[known],
        np.maximum(low, least)[known],
        np.maximum(high, least)[known],
        tint,
        group=group,
    )
    yield go.Scatter(
        x=x,
        y=np.maximum(density, least),
        mode="lines",
        line={"color": tint, "width": 1.8},
        name=inert(density_label(record, called[index], room=7.0)),
        legendgroup=group,
        showlegend=True,
        customdata=np.stack([t, density, low, high], axis=1),
        hovertemplate="λ = %{customdata[0]:.4g}<br>φ = %{customdata[1]:.3g} "
        f"({record.confidence:.0%}: %{{customdata[2]:.3g}} to %{{customdata[3]:.3g}})"
        "<extra></extra>",
    )
    yield go.Scatter(
        x=view.forward(record.atoms),
        y=np.full(len(record.atoms), view.baseline(index, len(called))),
        mode="markers",
        marker={"color": tint, "size": 8, "symbol": _symbol(index, True)},
        legendgroup=group,
        showlegend=False,
        customdata=np.stack([record.atoms, record.atom_residuals], axis=1),
        hovertemplate="λ = %{customdata[0]:.5g} ± %{customdata[1]:.1e}, found by itself"
        "<extra></extra>",
    )


def _density_axis(view: DensityView) -> dict[str, Any]:
    what = "eigenvalue λ"
    if view.spacing == "symlog":
        what += f" (linear within ±{number(view.threshold)}, logarithmic outside)"
    ticks: dict[str, Any] = {"tickmode": "auto", "exponentformat": "power"}
    if view.spacing == "symlog":
        ticks = _labelled(view, symlog_ticks(view.low, view.high, view.threshold))
    ends = [float(end) for end in view.forward([view.low, view.high])]
    return {"title": {"text": what}, "range": ends, **_GRID, **ticks}


def _height_axis(view: DensityView, kind: str) -> dict[str, Any]:
    ends = [0.0, 0.53 * view.top]
    spaced: dict[str, Any] = {"type": "linear", "range": ends}
    if kind == "log":
        ends = [float(end) for end in np.log10([view.floor, view.top])]
        spaced = {"type": "log", "range": ends, "dtick": 1}
    return {"title": {"text": "density φ(λ)"}, "exponentformat": "power", **_GRID, **spaced}


def _buttons(
    method: str, args: Sequence[Any], labels: Sequence[str], *, active: int, x: float
) -> dict[str, Any]:
    pairs = zip(labels, args, strict=True)
    return {
        "type": "buttons",
        "direction": "right",
        "active": active,
        "buttons": [{"label": text, "method": method, "args": list(a)} for text, a in pairs],
        "x": x,
        "xanchor": "right" if x else "left",
        "y": 1.02,
        "yanchor": "bottom",
        "showactive": True,
    }
