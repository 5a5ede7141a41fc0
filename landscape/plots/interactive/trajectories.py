"""Training runs on reliefs made with plotly, and the losses of their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from landscape.plots.interactive.common import Page, inert, layout
from landscape.plots.scales import Scale
from landscape.plots.style import shorten
from landscape.plots.trajectories import (
    finite,
    named_runs,
    relief_dots,
    relief_path,
    run_colours,
    run_names,
    spans_decades,
)
from landscape.results import Surface, Trajectory
from landscape.wording import number, with_error


def run_traces(
    runs: Sequence[Trajectory],
    surface: Surface,
    scale: Scale,
    *,
    scene: str = "scene",
    colours: Mapping[str, str] | None = None,
) -> list[Any]:
    """Build the traces of runs on a relief: a path that follows it, and a dot per checkpoint."""
    bottom, top = (float(v) for v in scale.forward([scale.low, scale.high]))
    lift = 0.004 * (top - bottom)  # clear of the relief, which would hide half of each line
    tints = run_colours(runs, colours)
    traces: list[Any] = []
    for index, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        key, tint = f"{scene} run {index}", tints[name]
        shared = {"scene": scene, "legendgroup": key, "name": inert(shorten(name))}
        x, y, z = relief_path(run, surface, scale)
        line = {"mode": "lines", "line": {"color": tint, "width": 7}, "hoverinfo": "skip"}
        traces.append(go.Scatter3d(x=x, y=y, z=z + lift, showlegend=True, **line, **shared))
        x, y, z = relief_dots(run, surface, scale)
        m = len(run.names)
        symbols = ["circle-open" if m > 1 else "diamond", *["circle"] * (m - 2), "diamond"][:m]
        sizes = [8 if i in {0, m - 1} else 5 for i in range(m)]
        look: dict[str, Any] = {"symbol": symbols, "color": tint, "size": sizes}
        look["line"] = {"color": "#ffffff", "width": 1}
        hover = {"hovertext": _hover_texts(run, name), "hoverinfo": "text", "showlegend": False}
        dots = {"mode": "markers", "marker": look, **hover, **shared}
        traces.append(go.Scatter3d(x=x, y=y, z=z + lift, **dots))
    return traces


def _hover_texts(run: Trajectory, name: str) -> list[str]:
    """Say of each checkpoint where it lies and what it and its projection lose."""
    return [
        f"{inert(shorten(name))}: {inert(shorten(checkpoint))}<br>"
        f"x {run.x[i]:.4g}, y {run.y[i]:.4g}<br>"
        f"loss {with_error(float(run.loss[i]), float(run.loss_se[i]))}<br>"
        "loss of its projection "
        f"{with_error(float(run.projected_loss[i]), float(run.projected_loss_se[i]))}<br>"
        f"{number(float(run.off_plane[i]))} off the plane ({run.off_share[i]:.0%})"
        for i, checkpoint in enumerate(run.names)
    ]


def explore_trajectory(
    trajectories: Trajectory | Sequence[Trajectory],
    *,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
) -> go.Figure:
    """Draw the losses of the checkpoints of runs and of their projections, and the distances.

    Args:
        trajectories: one record or several.
        names: a name for each; None: those of the runs.
        colours: a colour for each name; None: those of the property cycle.

    Returns:
        The plotly figure.
    """
    runs = named_runs(trajectories, names)
    tints = run_colours(runs, colours)
    figure = make_subplots(rows=1, cols=2, figure=Page())
    for index, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        shared = {"hovertext": _hover_texts(run, name), "hoverinfo": "text", "row": 1}
        for column, values, quantity, dash in (
            (1, run.loss, "loss of the checkpoints", "solid"),
            (1, run.projected_loss, "of their projections", "dash"),
            (2, run.off_plane, "distance off the plane", "solid"),
            (2, run.distances, "from its origin", "dot"),
        ):
            figure.add_scatter(
                x=np.arange(1, len(run.names) + 1),
                y=finite(values),
                mode="lines+markers",
                line={"color": tints[name], "dash": dash},
                name=f"{inert(shorten(name))}: {quantity}",
                legendgroup=str(index),
                col=column,
                **shared,
            )
    losses = np.concatenate([[*run.loss, *run.projected_loss] for run in runs])
    figure.update_xaxes(title_text="number of the checkpoint")
    figure.update_yaxes(title_text="loss", type="log" if spans_decades(losses) else None, col=1)
    figure.update_yaxes(title_text="distance", rangemode="tozero", col=2)
    return figure.update_layout(legend={"orientation": "h", "y": -0.2}, **layout(height=430))
