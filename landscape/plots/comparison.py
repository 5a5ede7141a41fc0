"""Checkpoints side by side on one scale: reliefs, maps, and the rise along lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import captions, style
from landscape.plots.lines import draw_lines
from landscape.plots.scales import Floats, Scale, common_scale
from landscape.plots.surfaces import (
    SURFACE_KINDS,
    add_colour_bar,
    check_grid,
    draw_map,
    draw_relief,
    is_smoothed,
)
from landscape.plots.trajectories import check_runs, draw_runs, draw_runs_on_relief, runs_parts
from landscape.results import Line
from landscape.results.comparison import Comparison, Measured

PER_ROW = 4
_LINES = {"worst_line": "worst-case", "random_line": "random"}


@style.styled()
def plot_comparison(
    comparison: Comparison,
    *,
    figure: Figure | SubFigure | None = None,
    kind: str = "both",
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    levels: int | Sequence[float] = 10,
    cmap: str = style.COLOUR_MAP,
    colours: Mapping[str, str] | None = None,
    lines: bool = True,
    title: str | None = None,
    caption: bool | None = None,
) -> Figure | SubFigure:
    """Draw checkpoints side by side: reliefs and maps on one scale, and lines overlaid.

    Every relief has the same height range, colours and view; every map the same levels, and one
    colour bar serves all. Surfaces share their axes where they were measured through planes of one
    kind; others have axes of their own. The rise of the loss along each checkpoint's own worst-case
    direction stands below, since random slices do not show the worst case.

    Args:
        comparison: what was measured, any part of it missing; runs are drawn on the surfaces.
        figure: an empty figure to draw into; None: a new one.
        kind: ``both`` (reliefs and filled contours); or only ``3d``, ``contour``, ``contourf`` or
            ``heatmap``.
        scale: scale of the surfaces: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``;
            see `common_scale`. The lines always show the rise, on a linear scale.
        limits: smallest and largest value of the surfaces to show; None: those of the data.
        levels: about how many contour levels, or the levels themselves.
        cmap: a matplotlib colour map.
        colours: a colour for each name; None: those of the property cycle.
        lines: whether to draw the lines.
        title: a line above all; None: none.
        caption: whether to write what is drawn; None: if the figure is a new one.

    Returns:
        The figure; a new one belongs to no window.

    Raises:
        InvalidArgumentError: if an argument is unknown, or nothing was measured.
    """
    one_of(kind, ("both", *SURFACE_KINDS), what="kind of surface picture")
    models = [model for model in comparison.models if model.surface is not None]
    drawn_lines = {role: of for role in _LINES if lines and (of := lines_of(comparison, role))}
    if not models and not drawn_lines:
        msg = "nothing to draw: no checkpoint of this comparison has a surface or a line"
        raise InvalidArgumentError(msg)
    tints = style.colours_by_name(comparison.names, colours)
    is_new = figure is None
    figure, panels = _sheet(figure, len(models), list(drawn_lines), kind)
    parts: list[str] = []
    if models:
        options: dict[str, Any] = {"levels": levels, "cmap": cmap}
        drawn = common_scale([m.surface for m in models if m.surface], scale, limits=limits)
        parts += _draw_surfaces(panels, models, drawn, kind, tints, options)
    for role in drawn_lines:
        _draw_rises(panels[role], comparison, role, tints)
    if drawn_lines:
        role = max(drawn_lines, key=lambda role: len(drawn_lines[role]))
        style.draw_key(panels[role])
        parts += _line_parts(drawn_lines)
    if title:
        style.write_title(figure, title)
    if caption or (caption is None and is_new):
        style.write_caption(figure, parts)
    return figure


def lines_of(comparison: Comparison, role: str) -> list[tuple[str, Line]]:
    """Return the lines of one role with the names of their checkpoints."""
    return [(m.name, getattr(m, role)) for m in comparison.models if getattr(m, role) is not None]


def _sheet(
    figure: Figure | SubFigure | None, n: int, lines: Sequence[str], kind: str
) -> tuple[Figure | SubFigure, dict[str, Any]]:
    """Lay the panels out: rows of reliefs, rows of maps, and a row of lines."""
    rows: list[list[str]] = []
    heights: list[float] = []
    n_columns = min(n, PER_ROW) or 1
    if n == 1 and kind == "both":
        rows, heights, n_columns = [["3d 0", "map 0"]], [3.0], 2
    elif n:
        for what in ("3d", "map") if kind == "both" else ("3d",) if kind == "3d" else ("map",):
            names = [f"{what} {k}" for k in range(n)] + ["."] * (-n % n_columns)
            rows += [names[k : k + n_columns] for k in range(0, len(names), n_columns)]
            heights += [2.6] * (len(names) // n_columns)
    width = math.lcm(n_columns, len(lines) or 1)
    mosaic: Any = [[name for name in row for _ in range(width // len(row))] for row in rows]
    if lines:
        mosaic.append([role for role in lines for _ in range(width // len(lines))])
        heights.append(2.4)
    size = (max(3.1 * n_columns + 0.8, 6.4), sum(heights) + 0.3)
    if figure is None:
        figure = style.Picture(figsize=size, layout="constrained")
    kinds: Any = {name: {"projection": "3d"} for row in mosaic for name in row if name[:3] == "3d "}
    panels = figure.subplot_mosaic(mosaic, height_ratios=heights, per_subplot_kw=kinds)
    return figure, panels


def _draw_surfaces(
    panels: Mapping[str, Any],
    models: Sequence[Measured],
    scale: Scale,
    kind: str,
    tints: Mapping[str, str],
    options: Mapping[str, Any],
) -> list[str]:
    """Draw each surface as relief, map or both, and return the parts of the caption."""
    surfaces = [model.surface for model in models if model.surface is not None]
    alike = len({captions.plane_of(surface) for surface in surfaces}) == 1
    ends = [(axis.min(), axis.max()) for s in surfaces for axis in (s.x, s.y)]
    x_range, y_range = (
        (min(low for low, _ in ends[k::2]), max(high for _, high in ends[k::2])) for k in (0, 1)
    )
    looks: list[Any] = []
    for k, (model, surface) in enumerate(zip(models, surfaces, strict=True)):
        check_grid(surface)
        check_runs(surface, model.trajectories)
        relief, flat = panels.get(f"3d {k}"), panels.get(f"map {k}")
        if relief is not None:
            draw_relief(relief, surface, scale, cmap=options["cmap"])
            draw_runs_on_relief(relief, model.trajectories, surface, scale, tints)
        if flat is not None:
            draw_map(flat, surface, scale, kind=kind if kind != "both" else "contourf", **options)
            draw_ball(flat, model)
            draw_runs(flat, model.trajectories, tints)
            flat.set_box_aspect(1)
        for axes in filter(None, (relief, flat)):
            axes.set_title(style.plain(style.shorten(model.name, 22)), color=tints[model.name])
            if alike:
                axes.set(xlim=x_range, ylim=y_range)
        looks.append(flat if flat is not None else relief)
    add_colour_bar(looks, scale, cmap=options["cmap"])
    return _surface_parts(models, scale, kind, alike=alike, blank=len(set(ends[::2])) > 1)


def _surface_parts(
    models: Sequence[Measured], scale: Scale, kind: str, *, alike: bool, blank: bool
) -> list[str]:
    surfaces = [model.surface for model in models if model.surface is not None]
    smooth = kind in {"both", "contour", "contourf"} and any(map(is_smoothed, surfaces))
    names = [model.name for model in models]
    parts = captions.surface_parts(surfaces, names, scale, dotted=kind != "3d", smooth=smooth)
    parts.insert(1, "" if alike else "the planes are not of one kind: each has axes of its own")
    parts.append("blank: not measured" if alike and blank and kind != "3d" else "")
    for model, surface in zip(models, surfaces, strict=True):
        said = runs_parts(model.trajectories, surface)
        parts += [f"On {style.shorten(model.name)}: {said[0]}", *said[1:]] if said else []
    return parts + ([] if kind == "3d" else sorted({ball_size(model) for model in models}))


def ball_outline(model: Measured) -> tuple[Floats, Floats] | None:
    """Return where the plane of a surface cuts the sphere ‖ε‖₂ = ρ that sharpness was sought in."""
    surface, sharpness = model.surface, model.sharpness
    if surface is None or sharpness is None:
        return None
    if sharpness.p != 2 or sharpness.settings.get("adaptive"):
        return None
    first, second = surface.direction_norms
    mixed = first * second * surface.cosine
    gram = np.array([[first**2, mixed], [mixed, second**2]])
    if not np.isfinite(gram).all() or np.linalg.det(gram) <= 0:
        return None
    angle = np.linspace(0.0, 2 * np.pi, 181)
    circle = sharpness.rho * np.array([np.cos(angle), np.sin(angle)])
    x, y = np.linalg.solve(np.linalg.cholesky(gram).T, circle)
    return x, y


def ball_size(model: Measured) -> str:
    """Say how the ball that sharpness was sought in looks on the map."""
    outline = ball_outline(model)
    if outline is None or model.surface is None or model.sharpness is None:
        return ""
    ball = f"the ball ‖ε‖₂ ≤ {model.sharpness.rho:g} in which the sharpness was sought"
    part = np.ptp(outline[0]) / np.ptp(model.surface.x)
    if part < 0.03:
        return f"{ball} is smaller than the +"
    return f"dashed, {ball}" if part < 1 else ""


def draw_ball(axes: Axes, model: Measured) -> None:
    """Draw the outline of the ball onto a map, where it can be seen."""
    outline = ball_outline(model)
    if outline is not None and ball_size(model).startswith("dashed"):
        axes.plot(*outline, color="white", linewidth=2.0, zorder=3)
        axes.plot(*outline, color="black", linewidth=0.9, linestyle=(0, (4, 2)), zorder=3.1)


def _draw_rises(axes: Axes, comparison: Comparison, role: str, tints: Mapping[str, str]) -> None:
    """Draw the rise of the loss of each checkpoint, and what the search in the ball reached."""
    names, lines = zip(*lines_of(comparison, role), strict=True)
    by_distance = draw_lines(axes, lines, common_scale(lines, "excess"), names=names, colours=tints)
    axes.set_title(f"Each along its own {_LINES[role]} direction", weight="normal")
    for model in comparison.models:
        found = model.sharpness
        if role == "worst_line" and model.worst_line is not None and found and by_distance:
            at = float(np.linalg.norm(found.epsilon))
            look: Any = {"markersize": 5, "markeredgecolor": "white", "zorder": 6}
            axes.plot(at, found.value, "o", color=tints[model.name], clip_on=False, **look)


def _line_parts(drawn: Mapping[str, Sequence[tuple[str, Line]]]) -> list[str]:
    by_role = [
        captions.per_name([line for _, line in of], [name for name, _ in of], captions.direction)
        for of in drawn.values()
    ]
    names, lines = zip(*(pair for of in drawn.values() for pair in of), strict=True)
    dots = "; dots, the largest rise found in the ball (a lower bound)"
    return [
        "rise of the loss along a line through each checkpoint: "
        + "; ".join(by_role)
        + (dots if "worst_line" in drawn else ""),
        captions.band_note(lines, common_scale(lines, "excess")),
        captions.bad_points_at_top(lines, names),
    ]
