"""Surfaces as reliefs to turn, one or several on one scale, made with plotly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.errors import InvalidArgumentError
from landscape.plots import words
from landscape.plots.interactive.common import colour_scale, inert, layout
from landscape.plots.runs import check_runs
from landscape.plots.scales import Scale, common_scale
from landscape.plots.style import COLOUR_MAP, colour, shorten
from landscape.plots.surfaces import check_grid
from landscape.results import Surface, Trajectory
from landscape.results.comparison import Comparison

CAMERA = {"eye": {"x": 1.5, "y": -1.85, "z": 0.95}, "center": {"x": 0, "y": 0, "z": -0.12}}
_BAD = "#B00000"


def surface_interactive(
    surface: Surface,
    *,
    trajectories: Sequence[Trajectory] = (),
    name: str | None = None,
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    cmap: str = COLOUR_MAP,
    ranges: tuple[list[float], list[float]] | None = None,
) -> go.Figure:
    """Draw the loss over a plane as a relief that can be turned; hovering shows x, y and the loss.

    Args:
        surface: the record.
        trajectories: runs that were projected on the same plane, to draw as paths.
        name: what to call it; None: the checkpoint's name.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        cmap: a matplotlib colour map.
        ranges: of x and y, to show several surfaces alike; None: those of the data.

    Returns:
        The plotly figure.
    """
    check_grid(surface)
    drawn = common_scale([surface], scale, limits=limits)
    called = surface.name if name is None else name
    figure = go.Figure(surface_traces(surface, drawn, name=called))
    add_runs(figure, trajectories, surface, drawn)
    figure.update_layout(
        scene=scene(drawn, ranges),
        coloraxis=colour_axis(drawn, cmap=cmap),
        title={"text": inert(shorten(called, 60)), "x": 0.02},
        **layout(height=480),
    )
    return figure


def contrast_interactive(
    comparison: Comparison,
    *,
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    cmap: str = COLOUR_MAP,
) -> go.Figure:
    """Draw the surfaces of several checkpoints side by side, on one scale and with one colour bar.

    Args:
        comparison: what was measured; checkpoints without a surface are left out.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        cmap: a matplotlib colour map.

    Returns:
        The plotly figure.

    Raises:
        InvalidArgumentError: if no checkpoint has a surface, or a scale is unknown.
    """
    models = [(i, m, m.surface) for i, m in enumerate(comparison.models) if m.surface is not None]
    if not models:
        msg = "nothing to draw: no checkpoint of this comparison has a surface"
        raise InvalidArgumentError(msg)
    for _, _, surface in models:
        check_grid(surface)
    drawn = common_scale([surface for _, _, surface in models], scale, limits=limits)
    ranges = common_ranges([surface for _, _, surface in models])
    figure = go.Figure()
    for k, (index, model, surface) in enumerate(models):
        key = "scene" if k == 0 else f"scene{k + 1}"
        figure.add_traces(surface_traces(surface, drawn, name=model.name, scene=key))
        add_runs(figure, model.trajectories, surface, drawn, scene=key)
        left, right, low, high = _cell(k, len(models))
        domain = {"x": [left, right], "y": [low, high]}
        figure.update_layout({key: {**scene(drawn, ranges), "domain": domain}})
        figure.add_annotation(
            text=f"<b>{inert(shorten(model.name))}</b>",
            x=(left + right) / 2,
            y=high,
            xref="paper",
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            font={"color": colour(index), "size": 15},
        )
    rows = -(-len(models) // 4)
    figure.update_layout(coloraxis=colour_axis(drawn, cmap=cmap), **layout(height=460 * rows))
    return figure


def add_runs(
    figure: go.Figure,
    runs: Sequence[Trajectory],
    surface: Surface,
    scale: Scale,
    *,
    scene: str = "scene",
) -> None:
    """Draw runs on a relief, and name them."""
    from landscape.plots.interactive.runs import run_traces

    check_runs(surface, runs)
    if runs:
        # a relief hides what runs behind its walls
        figure.update_traces(opacity=0.8, selector={"type": "surface", "scene": scene})
        figure.add_traces(run_traces(runs, surface, scale, scene=scene))
        figure.update_layout(legend={"orientation": "h", "y": 0.0, "yanchor": "bottom"})


def surface_traces(surface: Surface, scale: Scale, *, name: str, scene: str = "scene") -> list[Any]:
    """Build the traces of one relief."""
    # plotly wants rows along y, the record has them along x
    heights = scale.forward(scale.shown(surface)).T
    traces: list[Any] = [
        go.Surface(
            x=surface.x,
            y=surface.y,
            z=heights,
            # as text: for a surface plotly.js reads customdata with x and y exchanged
            hovertext=_hover_texts(surface, name),
            hoverinfo="text",
            coloraxis="coloraxis",
            scene=scene,
            name=inert(shorten(name)),
            contours={"z": {"show": True, "usecolormap": False, "color": "rgba(0,0,0,0.25)"}},
            lighting={"ambient": 0.9, "diffuse": 0.25, "specular": 0.0},
        )
    ]
    bad = ~np.isfinite(surface.loss)
    if bad.any():
        traces.append(_bad_points(surface, bad, scale, scene))
    if not surface.is_measured.all():
        traces.append(_measured_points(surface, heights.T, scene))
    return traces


def _bad_points(surface: Surface, bad: Any, scale: Scale, scene: str) -> Any:
    i, j = np.nonzero(bad)
    return go.Scatter3d(
        x=surface.x[i],
        y=surface.y[j],
        z=np.full(i.size, float(scale.forward(scale.low))),
        mode="markers",
        marker={"symbol": "diamond", "size": 4, "color": _BAD},
        text=[str(value) for value in surface.loss[i, j]],
        scene=scene,
        name=inert(words.bad_points(surface)),
        showlegend=False,
        hovertemplate="x %{x:.4g}<br>y %{y:.4g}<br>loss %{text}<extra></extra>",
    )


def _measured_points(surface: Surface, heights: Any, scene: str) -> Any:
    i, j = np.nonzero(surface.is_measured & np.isfinite(surface.loss))
    return go.Scatter3d(
        x=surface.x[i],
        y=surface.y[j],
        z=heights[i, j],
        mode="markers",
        marker={"size": 2, "color": "#000000"},
        scene=scene,
        name=inert(words.interpolated_points(surface, dotted=True)),
        showlegend=False,
        hoverinfo="skip",
    )


def _hover_texts(surface: Surface, name: str) -> Any:
    # rows along y; an array, since plotly.py makes one text of each inner list
    called, measured = inert(shorten(name)), surface.is_measured
    how = {True: "", False: " (interpolated)"}
    rows = [
        [
            f"{called}<br>x {x:.4g}<br>y {y:.4g}<br>loss {surface.loss[i, j]:.5g}"
            f"{how[bool(measured[i, j])]}"
            for i, x in enumerate(surface.x)
        ]
        for j, y in enumerate(surface.y)
    ]
    return np.array(rows)


def common_ranges(surfaces: Sequence[Surface]) -> tuple[list[float], list[float]]:
    """Return ranges of x and y that hold every surface."""
    x = np.concatenate([surface.x for surface in surfaces])
    y = np.concatenate([surface.y for surface in surfaces])
    return [float(x.min()), float(x.max())], [float(y.min()), float(y.max())]


def scene(scale: Scale, ranges: tuple[list[float], list[float]] | None = None) -> dict[str, Any]:
    """Return the axes, view and proportions that every relief shares."""
    ticks = scale.levels(6)
    bottom, top = (float(v) for v in scale.forward([scale.low, scale.high]))
    grid = {"gridcolor": "#dddddd", "backgroundcolor": "#fafafa", "showbackground": True}
    z = {
        "title": {"text": ""},
        "range": [bottom, top],
        "tickvals": scale.forward(ticks).tolist(),
        "ticktext": [words.level_text(v) for v in ticks],
        **grid,
    }
    x: dict[str, Any] = {"title": {"text": "x"}, "nticks": 5, **grid}
    y: dict[str, Any] = {"title": {"text": "y"}, "nticks": 5, **grid}
    if ranges is not None:
        x["range"], y["range"] = ranges
    return {
        "xaxis": x,
        "yaxis": y,
        "zaxis": z,
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": 0.8},
        "camera": CAMERA,
    }


def colour_axis(scale: Scale, *, cmap: str = COLOUR_MAP) -> dict[str, Any]:
    """Return the colour axis that every relief shares."""
    bottom, top = (float(v) for v in scale.forward([scale.low, scale.high]))
    ticks = scale.levels(8)
    return {
        "cmin": bottom,
        "cmax": top,
        "colorscale": colour_scale(cmap),
        "colorbar": {
            "title": {"text": inert(scale.label), "side": "right"},
            "tickvals": scale.forward(ticks).tolist(),
            "ticktext": [words.level_text(v) for v in ticks],
            "thickness": 14,
            "len": 0.8,
        },
    }


def _cell(k: int, n: int) -> tuple[float, float, float, float]:
    columns, rows = min(n, 4), -(-n // 4)
    column, row = k % 4, k // 4
    width, height = 0.94 / columns, 1.0 / rows
    low = 1 - (row + 1) * height
    return column * width, (column + 1) * width, low, low + 0.93 * height
