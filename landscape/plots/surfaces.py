"""Loss over a plane: contours, filled contours, heat map and relief.

A surface holds loss[i, j] at (x[i], y[j]); matplotlib's maps want rows along y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from scipy.interpolate import Akima1DInterpolator

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import captions, style
from landscape.plots.scales import Floats, Scale, common_scale
from landscape.plots.trajectories import check_runs, draw_runs, draw_runs_on_relief, runs_parts
from landscape.results import Surface, Trajectory

SURFACE_KINDS = ("contour", "contourf", "heatmap", "3d")
VIEW = {"elev": 27.0, "azim": -58.0}
HEIGHT = 0.8
"""Height of the box of a relief by its width."""
LIGHT = (-0.48, -0.22, 0.85)
"""Direction from which the light comes, in the box."""

_SHADE = 0.4  # how much darker than its colour a slope that the light only grazes is drawn
_FINE = 121  # points along each axis that contours are interpolated to


@style.styled()
def plot_surface(
    surface: Surface,
    *,
    ax: Axes | None = None,
    trajectories: Sequence[Trajectory] = (),
    kind: str | None = None,
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    levels: int | Sequence[float] = 10,
    cmap: str = style.COLOUR_MAP,
    colours: Mapping[str, str] | None = None,
    colour_bar: bool = True,
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw the loss over a plane.

    Args:
        surface: the record.
        ax: axes to draw into, three-dimensional ones for a relief; None: those of a new picture.
        trajectories: runs that were projected on the same plane, to draw as paths.
        kind: ``contour``, ``contourf`` (filled), ``heatmap`` (each point one cell) or ``3d``;
            None: ``contourf``, or ``3d`` in three-dimensional axes.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        levels: about how many contour levels, or the levels themselves.
        cmap: a matplotlib colour map.
        colours: colours of the runs by name; None: those of the property cycle.
        colour_bar: whether to add a colour bar.
        title: a line above the picture; None: the checkpoint's name.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.
    """
    in_space = ax is not None and ax.name == "3d"
    kind = kind or ("3d" if in_space else "contourf")
    one_of(kind, SURFACE_KINDS, what="kind of surface picture")
    check_grid(surface)
    runs = list(trajectories)
    check_runs(surface, runs)
    drawn = common_scale([surface], scale, limits=limits)
    size = (5.0, 4.1)
    axes: Any = ax
    if kind == "3d":
        if ax is None:
            picture = style.Picture(figsize=size, layout="constrained")
            axes = picture.add_subplot(axes_class=style.ReliefPanel)
        elif not in_space:
            msg = "a relief takes axes in three dimensions: subplot_kw={'projection': '3d'}"
            raise InvalidArgumentError(msg)
        draw_relief(axes, surface, drawn, cmap=cmap)
        draw_runs_on_relief(axes, runs, surface, drawn, colours)
    else:
        axes = style.new_axes(ax, size=size)
        axes.set_box_aspect(1)
        draw_map(axes, surface, drawn, kind=kind, levels=levels, cmap=cmap)
        draw_runs(axes, runs, colours)
    if colour_bar:
        add_colour_bar(axes, drawn, cmap=cmap)
    smooth = kind in {"contour", "contourf"} and is_smoothed(surface)
    options = {"dotted": kind != "3d", "smooth": smooth}
    parts = captions.surface_parts([surface], [surface.name], drawn, **options)
    parts += runs_parts(runs, surface)
    heading = surface.name if title is None else title
    return style.finish(axes, ax, parts, title=heading, caption=caption)


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
    cmap: str = style.COLOUR_MAP,
) -> None:
    """Draw a surface seen from above into axes."""
    axes.grid(visible=False)
    x, y = surface.x, surface.y
    z: Any = np.ma.masked_invalid(scale.shown(surface).T)
    norm, chosen = scale.norm(), contour_levels(scale, levels)
    if kind != "heatmap" and is_smoothed(surface):
        x, y, z = _smooth(surface, scale)
    if np.ma.count(z) == 0:
        axes.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))
        axes.text(0.5, 0.5, "no finite loss", ha="center", va="center", transform=axes.transAxes)
    elif kind == "heatmap":
        axes.pcolormesh(x, y, z, shading="nearest", norm=norm, cmap=cmap, rasterized=True)
    else:
        # matplotlib warns of levels that the data does not reach
        reached = chosen[(chosen > z.min()) & (chosen < z.max())]
        look: Any = {"norm": norm, "cmap": cmap, "linewidths": 1.3}
        if kind == "contourf":
            axes.contourf(x, y, z, [scale.low, *chosen, scale.high], norm=norm, cmap=cmap)
            look = {"colors": "white", "linewidths": 0.5, "alpha": 0.75}
        if reached.size:
            lines = axes.contour(x, y, z, reached, **look)
            if kind == "contour":
                axes.clabel(lines, fmt=captions.level_text, fontsize=style.SMALL - 1)
    _mark_bad_points(axes, surface, cells=kind == "heatmap")
    _mark_measured_points(axes, surface)
    mark_checkpoint(axes, surface)
    axes.set_xlabel(captions.axis_label("x", "d₁", surface.direction_norms[0]))
    axes.set_ylabel(captions.axis_label("y", "d₂", surface.direction_norms[1]))


def contour_levels(scale: Scale, levels: int | Sequence[float]) -> Floats:
    """Return the levels to draw: those asked for that lie in the range, or some of the scale's."""
    if isinstance(levels, (int, np.integer)):
        if levels < 1:
            msg = f"levels must be at least 1, or the levels themselves; got {levels}"
            raise InvalidArgumentError(msg)
        return scale.levels(int(levels))
    asked = np.unique(np.asarray(levels, dtype=np.float64))
    return np.asarray(asked[(asked > scale.low) & (asked < scale.high)])


def add_colour_bar(axes: Any, scale: Scale, *, cmap: str = style.COLOUR_MAP) -> None:
    """Add the one colour bar of some axes."""
    first = np.ravel(axes)[0]
    pad = 0.08 if first.name == "3d" else 0.02
    bar = first.figure.colorbar(
        ScalarMappable(scale.norm(), cmap), ax=axes, aspect=25, pad=pad, label=scale.label
    )
    bar.outline.set_linewidth(0.5)


def mark_checkpoint(axes: Axes, surface: Surface, *height: float) -> None:
    """Mark the origin of the plane with a +, where it lies within the grid."""
    x, y = surface.x, surface.y
    if x.min() <= 0 <= x.max() and y.min() <= 0 <= y.max():
        at: Any = [[0.0], [0.0], *([z] for z in height)]
        axes.plot(*at, "+", color="white", markersize=9, markeredgewidth=2.4, zorder=5)
        axes.plot(*at, "+", color="black", markersize=8, markeredgewidth=1.1, zorder=6)


def is_smoothed(surface: Surface) -> bool:
    """Return whether contours are interpolated between the points: all finite, and not so many."""
    rising = bool((np.diff(surface.x) > 0).all() and (np.diff(surface.y) > 0).all())
    return rising and bool(np.isfinite(surface.loss).all()) and max(surface.loss.shape) < _FINE


def _smooth(surface: Surface, scale: Scale) -> tuple[Floats, Floats, Floats]:
    """Interpolate by Akima's cubics along both axes, which a cliff does not make swing."""
    x, y = (np.linspace(at[0], at[-1], _FINE) for at in (surface.x, surface.y))
    shown = scale.shown(surface)
    z = Akima1DInterpolator(surface.x, shown, axis=0)(x)
    z = Akima1DInterpolator(surface.y, z, axis=1)(y).T
    return x, y, np.clip(z, shown.min(), shown.max())


def _mark_bad_points(axes: Axes, surface: Surface, *, cells: bool) -> None:
    """Hatch what a point that is not finite leaves blank, and mark the point."""
    bad = ~np.isfinite(surface.loss) & surface.is_measured
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
    look: Any = {"facecolor": "none", "edgecolor": "0.6", "hatch": "/////", "linewidth": 0}
    axes.add_collection(PolyCollection(corners, zorder=0.5, **look), autolim=False)
    i, j = np.nonzero(bad)
    axes.plot(
        surface.x[i], surface.y[j], "x", color=style.BAD, markersize=4, zorder=4, clip_on=False
    )


def _mark_measured_points(axes: Axes, surface: Surface) -> None:
    """Dot the points that were measured where others are interpolated."""
    if surface.is_measured.all() or not np.isfinite(surface.loss[~surface.is_measured]).any():
        return
    i, j = np.nonzero(surface.is_measured & np.isfinite(surface.loss))
    look: Any = {"markersize": 1.8, "markeredgewidth": 0.3, "markeredgecolor": "white", "zorder": 3}
    axes.plot(surface.x[i], surface.y[j], "o", color="black", **look)


def _edges(centres: Any) -> Any:
    middle = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[0] - middle[0], 2 * centres[-1] - middle[-1]
    return np.concatenate([[first], middle, [last]])


def draw_relief(axes: Any, surface: Surface, scale: Scale, *, cmap: str = style.COLOUR_MAP) -> None:
    """Draw a surface as a relief into three-dimensional axes."""
    x, y = np.meshgrid(surface.x, surface.y, indexing="ij")
    bottom, top = (float(v) for v in scale.forward([scale.low, scale.high]))
    z = scale.forward(scale.shown(surface))
    norm = Normalize(bottom, top)
    middles = (z[1:, 1:] + z[:-1, 1:] + z[1:, :-1] + z[:-1, :-1]) / 4
    # matplotlib's own shade darkens everything, so that no colour is found on the colour bar
    shades = mpl.colormaps[cmap](norm(np.ma.masked_invalid(middles)))
    shades[..., :3] *= light(surface, z, bottom=bottom, top=top)[..., None]
    look: Any = {"rstride": 1, "cstride": 1, "linewidth": 0.25, "edgecolor": (0, 0, 0, 0.3)}
    relief = axes.plot_surface(x, y, z, facecolors=shades, shade=False, rasterized=True, **look)
    relief.set_norm(norm)
    relief.set_cmap(cmap)
    bad = ~np.isfinite(z)
    if bad.any():
        axes.plot(x[bad], y[bad], np.full(bad.sum(), bottom), "x", color=style.BAD, markersize=4)
    origin = np.clip(0.0 if scale.rise else surface.origin_loss, scale.low, scale.high)
    if np.isfinite(origin):
        axes.computed_zorder = False  # else the relief may hide it
        mark_checkpoint(axes, surface, float(scale.forward(origin)))
    axes.set_zlim(bottom, top)
    ticks = scale.levels(5)
    axes.set_zticks(scale.forward(ticks), [captions.level_text(v) for v in ticks])
    axes.set_xlabel("x", labelpad=-8)
    axes.set_ylabel("y", labelpad=-8)
    axes.view_init(**VIEW)
    axes.set_box_aspect((1, 1, HEIGHT), zoom=1.0)
    axes.tick_params(labelsize=style.SMALL - 0.5, pad=-3)
    axes.tick_params(axis="z", pad=0)
    for axis in (axes.xaxis, axes.yaxis):  # clear of the corner
        axis.set_major_locator(MaxNLocator(4, prune="both"))
    axes.patch.set_alpha(0.0)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0.5, 0.5, 0.5), alpha=0.06)


def light(surface: Surface, z: Floats, *, bottom: float, top: float) -> Floats:
    """Return how bright each square of a relief is, from the angle at which the light falls."""
    heights = HEIGHT * (z - bottom) / (top - bottom)
    x, y = (np.asarray(at, dtype=np.float64) for at in (surface.x, surface.y))
    rise_x = np.diff(heights, axis=0) / (np.diff(x) / np.ptp(x))[:, None]
    rise_y = np.diff(heights, axis=1) / (np.diff(y) / np.ptp(y))[None, :]
    slope_x = (rise_x[:, 1:] + rise_x[:, :-1]) / 2
    slope_y = (rise_y[1:] + rise_y[:-1]) / 2
    toward = np.array(LIGHT) / np.linalg.norm(LIGHT)
    facing = toward[2] - slope_x * toward[0] - slope_y * toward[1]
    cosine = facing / np.sqrt(1 + slope_x**2 + slope_y**2)
    shade = 1 - _SHADE * (1 - np.clip(cosine, 0, 1))
    return cast("Floats", np.where(np.isfinite(cosine), shade, 1.0))
