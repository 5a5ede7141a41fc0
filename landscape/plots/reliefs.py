"""Loss over a plane as a relief: heights on the scale, colours of the heights, and a light."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from mpl_toolkits.mplot3d import Axes3D

from landscape.plots import words
from landscape.plots.scales import Floats, Scale
from landscape.plots.style import COLOUR_MAP, SMALL
from landscape.results import Surface

VIEW = {"elev": 27.0, "azim": -58.0}
HEIGHT = 0.8
"""Height of the box by its width."""

LIGHT = (-0.48, -0.22, 0.85)
"""Direction from which the light comes, in the box."""

_SHADE = 0.4  # how much darker than its colour a slope that the light only grazes is drawn
_BAD = "#B00000"


def draw_relief(axes: Any, surface: Surface, scale: Scale, *, cmap: str = COLOUR_MAP) -> None:
    """Draw a surface as a relief into three-dimensional axes."""
    x, y = np.meshgrid(surface.x, surface.y, indexing="ij")
    bottom, top = (float(v) for v in scale.forward([scale.low, scale.high]))
    z = scale.forward(scale.shown(surface))
    norm = Normalize(bottom, top)
    # matplotlib's own shade darkens everything, so that no colour is found on the colour bar
    colours = mpl.colormaps[cmap](norm(_middles(z)))
    colours[..., :3] *= light(surface, z, bottom=bottom, top=top)[..., None]
    relief = axes.plot_surface(
        x,
        y,
        z,
        rstride=1,
        cstride=1,
        facecolors=colours,
        linewidth=0.25,
        edgecolor=(0.0, 0.0, 0.0, 0.3),
        antialiased=True,
        shade=False,
        rasterized=True,
    )
    relief.set_norm(norm)
    relief.set_cmap(cmap)
    bad = ~np.isfinite(z)
    if bad.any():
        axes.plot(x[bad], y[bad], np.full(bad.sum(), bottom), "x", color=_BAD, markersize=4)
    axes.set_zlim(bottom, top)
    _dress_relief(axes, scale)


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
    return np.where(np.isfinite(cosine), 1 - _SHADE * (1 - np.clip(cosine, 0, 1)), 1.0)


def _middles(z: Floats) -> Any:
    return np.ma.masked_invalid((z[1:, 1:] + z[:-1, 1:] + z[1:, :-1] + z[:-1, :-1]) / 4)


def _dress_relief(axes: Axes3D, scale: Scale) -> None:
    ticks = scale.levels(5)
    axes.set_zticks(scale.forward(ticks), [words.level_text(v) for v in ticks])
    axes.set_xlabel("x", labelpad=-8)
    axes.set_ylabel("y", labelpad=-8)
    axes.view_init(**VIEW)
    axes.set_box_aspect((1, 1, HEIGHT), zoom=1.05)
    axes.tick_params(labelsize=SMALL - 0.5, pad=-3)
    axes.tick_params(axis="z", pad=0)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=4)
    axes.patch.set_alpha(0.0)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_facecolor((0.97, 0.97, 0.97, 1.0))
        axis.pane.set_edgecolor("0.8")
