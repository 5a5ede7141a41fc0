"""Surfaces as reliefs to turn, one or several on one scale, made with plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.errors import InvalidArgumentError
from landscape.plots import captions
from landscape.plots.interactive.common import Page, colour_scale, inert, layout
from landscape.plots.interactive.trajectories import run_traces
from landscape.plots.scales import Scale, common_scale
from landscape.plots.style import BAD, COLOUR_MAP, colours_by_name, shorten
from landscape.plots.surfaces import check_grid
from landscape.plots.trajectories import check_runs
from landscape.results import Surface, Trajectory
from landscape.results.comparison import Comparison, Measured

CAMERA = {"eye": {"x": 1.5, "y": -1.85, "z": 0.95}, "center": {"x": 0, "y": 0, "z": -0.12}}
Ranges = tuple[list[float], list[float]]


def explore_surface(
    surface: Surface,
    *,
    trajectories: Sequence[Trajectory] = (),
    name: str | None = None,
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    cmap: str = COLOUR_MAP,
    colours: Mapping[str, str] | None = None,
) -> go.Figure:
    """Draw the loss over a plane as a relief that can be turned; hovering shows x, y and the loss.

    Args:
        surface: the record.
        trajectories: runs that were projected on the same plane, to draw as paths.
        name: what to call it; None: the checkpoint's name.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        cmap: a matplotlib colour map.
        colours: colours of the runs by name; None: those of the property cycle.

    Returns:
        The plotly figure, with a switch between a linear and a log scale.
    """
    called = surface.name if name is None else name
    model = Measured(name=called, surface=surface, trajectories=tuple(trajectories))
    options = {"scale": scale, "limits": limits, "cmap": cmap, "colours": colours}
    return explore_comparison(Comparison(models=(model,)), **options)  # type: ignore[arg-type]


def explore_comparison(
    comparison: Comparison,
    *,
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    cmap: str = COLOUR_MAP,
    colours: Mapping[str, str] | None = None,
) -> go.Figure:
    """Draw the surfaces of several checkpoints side by side, on one scale and with one colour bar.

    Args:
        comparison: what was measured; checkpoints without a surface are left out.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        cmap: a matplotlib colour map.
        colours: a colour for each name; None: those of the property cycle.

    Returns:
        The plotly figure, with a switch between a linear and a log scale.

    Raises:
        InvalidArgumentError: if no checkpoint has a surface, or a scale is unknown.
    """
    surfaces = [m.surface for m in comparison.models if m.surface is not None]
    if not surfaces:
        msg = "nothing to draw: no checkpoint of this comparison has a surface"
        raise InvalidArgumentError(msg)
    for surface in surfaces:
        check_grid(surface)
    first = common_scale(surfaces, scale, limits=limits)
    other = switched_scale(surfaces, first, limits)
    tints = colours_by_name(comparison.names, colours)
    ranges = common_ranges(surfaces)

    figures = [_reliefs(comparison, one, ranges, tints, cmap) for one in (first, other)]
    return _with_switch(figures, [first.spacing, other.spacing])


def switched_scale(
    surfaces: Sequence[Surface], scale: Scale, limits: tuple[float, float] | None = None
) -> Scale:
    """Return the log scale for a linear one, and the linear one for any other."""
    name = "log" if scale.spacing == "linear" else "linear"
    rise = {"log": "log-excess", "linear": "excess"}[name]
    return common_scale(surfaces, rise if scale.rise else name, limits=limits)


def _with_switch(figures: Sequence[go.Figure], spacings: Sequence[str]) -> go.Figure:
    """Return the first figure, with buttons that move all heights to the other one and back."""
    buttons = []
    for spacing, figure in zip(spacings, figures, strict=True):
        change: dict[str, Any] = {}
        for key in sorted(key for key in figure.layout if key.startswith("scene")):
            axis = figure.layout[key].zaxis
            change |= {f"{key}.zaxis.{k}": axis[k] for k in ("range", "tickvals", "ticktext")}
        bar = figure.layout.coloraxis
        change |= {f"coloraxis.{k}": bar[k] for k in ("cmin", "cmax")}
        change |= {f"coloraxis.colorbar.{k}": bar.colorbar[k] for k in ("tickvals", "ticktext")}
        heights = {"z": [trace.z for trace in figure.data]}
        label = "linear" if spacing == "linear" else "log"
        buttons.append({"label": label, "method": "update", "args": [heights, change]})
    look = {"type": "buttons", "direction": "right", "x": 0.0, "y": 1.0, "yanchor": "bottom"}
    return figures[0].update_layout(updatemenus=[{**look, "xanchor": "left", "buttons": buttons}])


def _reliefs(
    comparison: Comparison,
    scale: Scale,
    ranges: Ranges,
    tints: Mapping[str, str],
    cmap: str,
) -> go.Figure:
    models = [(m, m.surface) for m in comparison.models if m.surface is not None]
    figure = Page()
    planes = {captions.plane_of(surface) for _, surface in models}
    for k, (model, surface) in enumerate(models):
        key = "scene" if k == 0 else f"scene{k + 1}"
        figure.add_traces(_surface_traces(surface, scale, name=model.name, scene=key))
        check_runs(surface, model.trajectories)
        if model.trajectories:
            # a relief hides what runs behind its walls
            figure.update_traces(opacity=0.8, selector={"type": "surface", "scene": key})
            runs = model.trajectories
            figure.add_traces(run_traces(runs, surface, scale, scene=key, colours=tints))
            figure.update_layout(legend={"orientation": "h", "y": 0.0, "yanchor": "bottom"})
        left, right, low, high = _cell(k, len(models))
        of = ranges if len(planes) == 1 else common_ranges([surface])
        domain = {"x": [left, right], "y": [low, high]}
        figure.update_layout({key: {**_scene(scale, of), "domain": domain}})
        figure.add_annotation(
            **{"text": f"<b>{inert(shorten(model.name))}</b>", "showarrow": False},
            **{"x": (left + right) / 2, "y": high, "xref": "paper", "yref": "paper"},
            **{"yanchor": "bottom", "font": {"color": tints[model.name], "size": 15}},
        )
    height = 480 * -(-len(models) // 4)
    return figure.update_layout(coloraxis=_colour_axis(scale, cmap=cmap), **layout(height=height))


def _surface_traces(surface: Surface, scale: Scale, *, name: str, scene: str) -> list[Any]:
    """Build the traces of one relief."""
    heights = scale.forward(scale.shown(surface)).T  # plotly wants rows along y
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
    points: dict[str, Any] = {"mode": "markers", "scene": scene, "showlegend": False}
    bad = ~np.isfinite(surface.loss) & surface.is_measured
    if bad.any():
        i, j = np.nonzero(bad)
        at = {"x": surface.x[i], "y": surface.y[j]}
        at["z"] = np.full(i.size, float(scale.forward(scale.low)))
        hover = {
            "text": [str(value) for value in surface.loss[i, j]],
            "hovertemplate": "x %{x:.4g}<br>y %{y:.4g}<br>loss %{text}",
        }
        look = {"symbol": "diamond", "size": 4, "color": BAD}
        said = inert(captions.bad_points(surface))
        traces.append(go.Scatter3d(**at, marker=look, name=said, **points, **hover))
    if not surface.is_measured.all():
        i, j = np.nonzero(surface.is_measured & np.isfinite(surface.loss))
        at = {"x": surface.x[i], "y": surface.y[j], "z": heights.T[i, j]}
        said = inert(captions.unmeasured_points(surface, dotted=True))
        look = {"size": 2, "color": "#000000"}
        traces.append(go.Scatter3d(**at, marker=look, name=said, hoverinfo="skip", **points))
    return traces


def _hover_texts(surface: Surface, name: str) -> Any:
    # rows along y; an array, since plotly.py makes one text of each inner list
    called = inert(shorten(name))
    rows = [
        [
            f"{called}<br>x {x:.4g}<br>y {y:.4g}<br>loss {surface.loss[i, j]:.5g}"
            f"{'' if surface.is_measured[i, j] else ' (interpolated)'}"
            for i, x in enumerate(surface.x)
        ]
        for j, y in enumerate(surface.y)
    ]
    return np.array(rows)


def common_ranges(surfaces: Sequence[Surface]) -> Ranges:
    """Return ranges of x and y that hold every surface."""
    x = np.concatenate([surface.x for surface in surfaces])
    y = np.concatenate([surface.y for surface in surfaces])
    return [float(x.min()), float(x.max())], [float(y.min()), float(y.max())]


def _scene(scale: Scale, ranges: Ranges) -> dict[str, Any]:
    """Return the axes, view and proportions that every relief shares."""
    grid = {"gridcolor": "#dddddd", "backgroundcolor": "#fafafa", "showbackground": True}
    across = {"nticks": 5, **grid}
    ends = scale.forward([scale.low, scale.high]).tolist()
    return {
        "xaxis": {"title": {"text": "x"}, "range": ranges[0], **across},
        "yaxis": {"title": {"text": "y"}, "range": ranges[1], **across},
        "zaxis": {"title": {"text": ""}, "range": ends, **_ticks(scale, 6), **grid},
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": 1, "z": 0.8},
        "camera": CAMERA,
    }


def _colour_axis(scale: Scale, *, cmap: str) -> dict[str, Any]:
    """Return the colour axis that every relief shares."""
    bottom, top = scale.forward([scale.low, scale.high]).tolist()
    title = {"text": inert(scale.label), "side": "right"}
    bar = {"title": title, "thickness": 14, "len": 0.8, **_ticks(scale, 8)}
    return {"cmin": bottom, "cmax": top, "colorscale": colour_scale(cmap), "colorbar": bar}


def _ticks(scale: Scale, most: int) -> dict[str, Any]:
    ticks = scale.levels(most)
    texts = [captions.level_text(v) for v in ticks]
    return {"tickvals": scale.forward(ticks).tolist(), "ticktext": texts}


def _cell(k: int, n: int) -> tuple[float, float, float, float]:
    columns, rows = min(n, 4), -(-n // 4)
    column, row = k % 4, k // 4
    width, height = 0.94 / columns, 1.0 / rows
    low = 1 - (row + 1) * height
    return column * width, (column + 1) * width, low, low + 0.93 * height
