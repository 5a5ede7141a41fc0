"""Loss over a plane: contours, filled contours, heat map and relief, one picture or one panel.

A surface holds loss[i, j] at (x[i], y[j]); matplotlib wants rows along y. The one place that turns
the array is `_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import words
from landscape.plots.reliefs import draw_relief
from landscape.plots.runs import (
    PANELS,
    PANELS_SAID,
    check_runs,
    draw_run_panels,
    draw_runs,
    draw_runs_on_relief,
    runs_caption,
)
from landscape.plots.scales import Floats, Scale, common_scale
from landscape.plots.sheet import Box, draw_key, one_panel, place
from landscape.plots.style import COLOUR_MAP, SMALL, styled
from landscape.results import Surface, Trajectory
from landscape.wording import number

SURFACE_KINDS = ("contour", "contourf", "heatmap", "3d")
_BAD = "#B00000"


@styled()
def surface_figure(
    surface: Surface,
    *,
    trajectories: Sequence[Trajectory] = (),
    kind: str = "contourf",
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    levels: int | Sequence[float] = 10,
    cmap: str = COLOUR_MAP,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw the loss over a plane.

    Args:
        surface: the record.
        trajectories: runs that were projected on the same plane, to draw as paths; two panels
            under the picture then show their losses and how far they lie off the plane.
        kind: ``contour``, ``contourf`` (filled), ``heatmap`` (each point one cell) or ``3d``.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        levels: about how many contour levels, or the levels themselves.
        cmap: a matplotlib colour map.
        title: a line above the picture; None: the checkpoint's name.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    one_of(kind, SURFACE_KINDS, what="kind of surface picture")
    check_grid(surface)
    runs = list(trajectories)
    check_runs(surface, runs)
    drawn = common_scale([surface], scale, limits=limits)
    text = words.surfaces_caption([surface], [surface.name], drawn, dotted=kind != "3d")
    if runs:
        text = " ".join([text, runs_caption(runs, surface), PANELS_SAID])
    heading = surface.name if title is None else title
    lift = PANELS + 0.175 * -(-len(runs) // 2) if runs else 0.0
    figure, box = one_panel(text, title=heading, caption=caption, room=(4.4, 3.6 + lift))
    left, low, _, _ = box
    bottom, side = low + lift, 3.6
    if kind == "3d":
        axes: Any = place(figure, (0.1, bottom - 0.4, 4.3, 4.1), projection="3d")
        draw_relief(axes, surface, drawn, cmap=cmap)
        draw_runs_on_relief(axes, runs, surface, drawn)
    else:
        axes = place(figure, (left, bottom, side, side))
        draw_map(axes, surface, drawn, kind=kind, levels=levels, cmap=cmap)
        draw_runs(axes, runs)
    bar = (left + side + 0.15, bottom, 0.14, side)
    add_colour_bar(figure, drawn, levels, cmap=cmap, box=bar)
    if runs:
        boxes = ((left - 0.1, low, 1.75, 1.1), (left + 2.35, low, 1.75, 1.1))
        draw_run_panels(figure, boxes, runs)
        draw_key(figure.axes[-2], room=4.4, n_columns=2)
    return figure


def check_grid(surface: Surface) -> None:
    """Refuse a grid that has no area."""
    shape = (surface.x.size, surface.y.size)
    if surface.loss.shape != shape:
        got = surface.loss.shape
        msg = f"a surface of {shape[0]} × {shape[1]} points needs losses of that shape; got {got}"
        raise InvalidArgumentError(msg)
    if min(shape) < 2:
        msg = (
            f"a surface needs at least 2 × 2 points to be drawn; got {shape[0]} × {shape[1]}: "
            "measure a finer grid, or a line"
        )
        raise InvalidArgumentError(msg)


def draw_map(
    axes: Axes,
    surface: Surface,
    scale: Scale,
    *,
    kind: str = "contourf",
    levels: int | Sequence[float] = 10,
    cmap: str = COLOUR_MAP,
) -> None:
    """Draw a surface seen from above into axes."""
    z = _rows(surface, scale)
    x, y, norm = surface.x, surface.y, scale.norm()
    chosen = contour_levels(scale, levels)
    if np.ma.count(z) == 0:
        axes.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))
        axes.text(0.5, 0.5, "no finite loss", ha="center", va="center", transform=axes.transAxes)
    elif kind == "heatmap":
        axes.pcolormesh(x, y, z, shading="nearest", norm=norm, cmap=cmap, rasterized=True)
    elif kind == "contourf":
        bands = np.concatenate([[scale.low], chosen, [scale.high]])
        axes.contourf(x, y, z, bands, norm=norm, cmap=cmap)
        look = {"colors": "white", "linewidths": 0.5, "alpha": 0.75}
        _draw_contours(axes, surface, z, chosen, labelled=False, **look)
    else:
        look = {"norm": norm, "cmap": cmap, "linewidths": 1.3}
        _draw_contours(axes, surface, z, chosen, labelled=True, **look)
    _mark_bad_points(axes, surface, cells=kind == "heatmap")
    _mark_measured_points(axes, surface)
    if covers_origin(surface):
        axes.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=2.4, zorder=5)
        axes.plot(0, 0, "+", color="black", markersize=8, markeredgewidth=1.1, zorder=6)
    axes.set_xlabel(axis_label("x", "d₁", surface.direction_norms[0]))
    axes.set_ylabel(axis_label("y", "d₂", surface.direction_norms[1]))


def contour_levels(scale: Scale, levels: int | Sequence[float]) -> Floats:
    """Return the levels to draw: those asked for that lie in the range, or some of the scale's."""
    if isinstance(levels, (int, np.integer)):
        if levels < 1:
            msg = f"levels must be at least 1, or the levels themselves; got {levels}"
            raise InvalidArgumentError(msg)
        return scale.levels(int(levels))
    asked = np.unique(np.asarray(levels, dtype=np.float64))
    return np.asarray(asked[(asked > scale.low) & (asked < scale.high)])


def add_colour_bar(
    figure: Figure,
    scale: Scale,
    levels: int | Sequence[float] = 10,
    *,
    cmap: str = COLOUR_MAP,
    box: Box,
) -> Colorbar:
    """Add the one colour bar of a picture."""
    axes = place(figure, box, label="colour bar")
    bar = figure.colorbar(ScalarMappable(scale.norm(), cmap), cax=axes)
    ticks = contour_levels(scale, levels)
    bar.set_ticks(ticks.tolist(), labels=[words.level_text(v) for v in ticks])
    bar.minorticks_off()
    bar.outline.set_linewidth(0.5)
    bar.set_label(scale.label)
    return bar


def axis_label(letter: str, vector: str, norm: float) -> str:
    """Label an axis that counts in units of a direction."""
    size = f" (‖{vector}‖ = {number(norm)})" if math.isfinite(norm) else ""
    return f"{letter}, in units of {vector}{size}"


def covers_origin(surface: Surface) -> bool:
    """Return whether the checkpoint lies within the grid."""
    return bool(surface.x.min() <= 0 <= surface.x.max() and surface.y.min() <= 0 <= surface.y.max())


def _rows(surface: Surface, scale: Scale) -> Any:
    return np.ma.masked_invalid(scale.shown(surface).T)


def _draw_contours(
    axes: Axes, surface: Surface, z: Any, levels: Floats, *, labelled: bool, **style: Any
) -> None:
    """Draw those contours that the data reaches; matplotlib warns where it reaches none."""
    reached = levels[(levels > z.min()) & (levels < z.max())]
    if reached.size:
        lines = axes.contour(surface.x, surface.y, z, reached, **style)
        if labelled:
            axes.clabel(lines, fmt=words.level_text, fontsize=SMALL - 1)


def _mark_bad_points(axes: Axes, surface: Surface, *, cells: bool) -> None:
    """Hatch what a point that is not finite leaves blank, and mark the point."""
    bad = ~np.isfinite(surface.loss)
    if not bad.any():
        return
    if cells:
        x, y, blank = _edges(surface.x), _edges(surface.y), bad
    else:  # contours leave out every square that has such a point at a corner
        x, y = surface.x, surface.y
        blank = bad[:-1, :-1] | bad[1:, :-1] | bad[:-1, 1:] | bad[1:, 1:]
    corners = [
        [(x[i], y[j]), (x[i + 1], y[j]), (x[i + 1], y[j + 1]), (x[i], y[j + 1])]
        for i, j in zip(*np.nonzero(blank), strict=True)
    ]
    axes.add_collection(
        PolyCollection(
            corners, facecolor="0.94", edgecolor="0.6", hatch="/////", linewidth=0, zorder=0.5
        ),
        autolim=False,
    )
    i, j = np.nonzero(bad)
    axes.plot(surface.x[i], surface.y[j], "x", color=_BAD, markersize=4, zorder=4, clip_on=False)


def _mark_measured_points(axes: Axes, surface: Surface) -> None:
    """Dot the points that were measured where others are interpolated."""
    measured = surface.is_measured & np.isfinite(surface.loss)
    if surface.is_measured.all():
        return
    i, j = np.nonzero(measured)
    look: dict[str, Any] = {
        "markersize": 1.8,
        "markeredgewidth": 0.3,
        "markeredgecolor": "white",
        "zorder": 3,
    }
    axes.plot(surface.x[i], surface.y[j], "o", color="black", label="measured", **look)


def _edges(centres: Any) -> Any:
    middle = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[0] - middle[0], 2 * centres[-1] - middle[-1]
    return np.concatenate([[first], middle, [last]])
