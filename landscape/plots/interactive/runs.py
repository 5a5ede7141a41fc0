"""Training runs on reliefs made with plotly, and the losses of their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from landscape.plots.interactive.common import inert, layout
from landscape.plots.lines import called_by
from landscape.plots.runs import named_runs, relief_dots, relief_path, run_colour, run_names
from landscape.plots.scales import Scale
from landscape.plots.style import shorten
from landscape.results import Surface, Trajectory
from landscape.wording import number, with_error


def run_traces(
    runs: Sequence[Trajectory], surface: Surface, scale: Scale, *, scene: str = "scene"
) -> list[Any]:
    """Build the traces of runs on a relief: a path that follows it, and a dot per checkpoint."""
    bottom, top = (float(v) for v in scale.forward([scale.low, scale.high]))
    lift = 0.004 * (top - bottom)  # clear of the relief, which would hide half of each line
    traces: list[Any] = []
    for index, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        tint, key = run_colour(index), f"{scene} run {index}"
        x, y, z = relief_path(run, surface, scale)
        shared = {"scene": scene, "legendgroup": key, "name": inert(shorten(name))}
        traces.append(
            go.Scatter3d(
                **{"x": x, "y": y, "z": z + lift, "mode": "lines", "hoverinfo": "skip"},
                line={"color": tint, "width": 7},
                showlegend=True,
                **shared,
            )
        )
        x, y, z = relief_dots(run, surface, scale)
        m = len(run.names)
        symbols = ["circle"] * m
        symbols[-1] = "diamond"
        symbols[0] = "circle-open" if m > 1 else "diamond"
        traces.append(
            go.Scatter3d(
                **{"x": x, "y": y, "z": z + lift, "mode": "markers"},
                marker={
                    "symbol": symbols,
                    "color": tint,
                    "size": [8 if i in {0, m - 1} else 5 for i in range(m)],
                    "line": {"color": "#ffffff", "width": 1},
                },
                hovertext=hover_texts(run, name),
                hoverinfo="text",
                showlegend=False,
                **shared,
            )
        )
    return traces


def hover_texts(run: Trajectory, name: str) -> list[str]:
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


def trajectory_interactive(
    trajectories: Trajectory | Sequence[Trajectory], *, names: Sequence[str] | None = None
) -> go.Figure:
    """Draw the losses of the checkpoints of runs and of their projections, and the distances.

    Args:
        trajectories: one record or several.
        names: a name for each; None: those of the runs.

    Returns:
        The plotly figure.
    """
    runs = [trajectories] if isinstance(trajectories, Trajectory) else list(trajectories)
    called_by(runs, names)
    runs = runs if names is None else named_runs(runs, names)
    figure = make_subplots(rows=1, cols=2)
    for index, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        at, called = np.arange(1, len(run.names) + 1), inert(shorten(name))
        texts, tint = hover_texts(run, name), run_colour(index)
        for column, values, what, dash in (
            (1, run.loss, "loss of the checkpoints", "solid"),
            (1, run.projected_loss, "of their projections", "dash"),
            (2, run.off_plane, "distance off the plane", "solid"),
            (2, run.distances, "from its origin", "dot"),
        ):
            figure.add_scatter(
                x=at,
                y=np.where(np.isfinite(values), values, np.nan),
                mode="lines+markers",
                line={"color": tint, "dash": dash},
                name=f"{called}: {what}",
                hovertext=texts,
                hoverinfo="text",
                legendgroup=str(index),
                row=1,
                col=column,
            )
    values = np.concatenate([np.concatenate([r.loss, r.projected_loss]) for r in runs])
    finite = values[np.isfinite(values)]
    logarithmic = finite.size and finite.min() > 0 and finite.max() > 10 * finite.min()
    figure.update_xaxes(title_text="number of the checkpoint")
    figure.update_yaxes(title_text="loss", type="log" if logarithmic else None, col=1)
    figure.update_yaxes(title_text="distance", rangemode="tozero", col=2)
    figure.update_layout(legend={"orientation": "h", "y": -0.2}, **layout(height=430))
    return figure
