"""How wide basins are: area of {L ≤ L(w) + δ} against δ, several checkpoints in one panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import captions, style
from landscape.plots.surfaces import check_grid
from landscape.results import FloatArray, Surface
from landscape.results.surfaces import LevelSetArea, level_set_area

FEW = 9
"""Points of the grid in the set below which its area is called rough."""
_N_DELTAS = 61


@dataclass(frozen=True, kw_only=True)
class Areas:
    """The numbers of a picture of areas, for each checkpoint and rise."""

    deltas: FloatArray  # rises of the loss, ascending, shape (m,)
    values: FloatArray  # areas, shape (checkpoints, m)
    is_cut: Any  # where an area is a lower bound
    is_rough: Any  # where `_is_rough` says so
    by_distance: bool  # whether areas are those of parameter space, else in units of the axes


def areas_of(
    surfaces: Sequence[Surface], *, deltas: Sequence[float] | None = None, units: str = "auto"
) -> Areas:
    """Find the areas to draw."""
    one_of(units, ("auto", "distance", "axes"), what="unit of areas")
    for surface in surfaces:
        check_grid(surface)
    planes = list(dict.fromkeys(map(captions.plane_of, surfaces)))
    if len(planes) > 1:
        msg = (
            f"areas in planes of other kinds ({'; '.join(planes)}) do not compare: draw them "
            "apart, or measure the surfaces with the same options of the plane"
        )
        raise InvalidArgumentError(msg)
    known = all(np.isfinite([*s.direction_norms, s.cosine]).all() for s in surfaces)
    if units == "distance" and not known:
        msg = "the norm of a direction is unknown: draw with units='axes'"
        raise InvalidArgumentError(msg)
    rises = _deltas(surfaces) if deltas is None else np.asarray(list(deltas), dtype=np.float64)
    if rises.ndim != 1 or not rises.size or not (rises > 0).all() or (np.diff(rises) <= 0).any():
        msg = f"deltas must be positive rises of the loss, ascending; got {deltas!r}"
        raise InvalidArgumentError(msg)
    by_distance = known and units != "axes"
    areas = [[level_set_area(surface, float(d)) for d in rises] for surface in surfaces]
    pairs = list(zip(surfaces, areas, strict=True))
    return Areas(
        deltas=rises,
        values=np.array([[a.area if by_distance else a.in_axes for a in row] for row in areas]),
        is_cut=np.array([[a.is_cut for a in row] for row in areas]),
        is_rough=np.array([[_is_rough(surface, a) for a in row] for surface, row in pairs]),
        by_distance=by_distance,
    )


def _is_rough(surface: Surface, area: LevelSetArea) -> bool:
    """Return whether few points lie in the set, or δ is below ten times the interpolation error."""
    error = surface.interpolation_error
    if surface.criterion == "range":
        known = surface.loss[surface.is_measured & np.isfinite(surface.loss)]
        error *= float(np.ptp(known)) if known.size else 0.0
    else:
        error *= surface.origin_loss + area.delta
    return area.n_points < FEW or area.delta < 10 * error


def _deltas(surfaces: Sequence[Surface]) -> FloatArray:
    lowest, highest = [], []
    for surface in surfaces:
        rises = np.ravel(surface.loss) - surface.origin_loss
        positive = np.sort(rises[np.isfinite(rises) & (rises > 0)])
        if positive.size:
            lowest.append(positive[min(3, positive.size - 1)])
            highest.append(positive[-1])
    if not highest or not min(lowest) < max(highest):
        names = ", ".join(surface.name for surface in surfaces)
        msg = f"the loss rises nowhere on the surface of {names}: there is no area to draw"
        raise InvalidArgumentError(msg)
    return np.geomspace(min(lowest), max(highest), _N_DELTAS)


def area_parts(areas: Areas, index: int) -> list[tuple[str, Any]]:
    """Split the curve of a checkpoint into parts that are drawn alike."""
    values = np.where(areas.values[index] > 0, areas.values[index], np.nan)
    kinds = np.where(areas.is_cut[index], 1, np.where(areas.is_rough[index], 2, 0))
    parts = []
    for kind, dash in enumerate(("solid", "dashed", "dotted")):
        here = kinds == kind
        joined = here.copy()
        joined[1:] |= here[:-1] & (kinds[1:] == 1)  # a part ends where the dashed one begins
        joined[:-1] |= here[1:] & (kinds[:-1] == 2)
        parts.append((dash, np.where(joined, values, np.nan)))
    return parts


@style.styled()
def plot_area(
    surfaces: Surface | Sequence[Surface],
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    deltas: Sequence[float] | None = None,
    units: str = "auto",
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw the area of {L ≤ L(w) + δ} in the plane against δ, one curve per checkpoint.

    Near a minimum with Hessian H in the plane it is 2 π δ / √det H: a wide minimum lies higher,
    and the slope of 1 in this log-log picture ends where the loss is no longer quadratic.

    Args:
        surfaces: one record or several, through planes of one kind.
        ax: axes to draw into; None: those of a new picture.
        names: a name for each; None: the checkpoints'.
        colours: a colour for each name; None: those of the property cycle.
        deltas: rises of the loss; None: as far as the grids tell.
        units: ``distance`` (areas of parameter space), ``axes``, or ``auto``: distances wherever
            they are known.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.
    """
    records, called = style.records_and_names(surfaces, names)
    areas = areas_of(records, deltas=deltas, units=units)
    axes = style.new_axes(ax)
    tints = style.colours_by_name(called, colours, ax)
    axes.set(xscale="log", yscale="log")
    for index, name in enumerate(called):
        for dash, values in area_parts(areas, index):
            label = style.plain(style.shorten(name)) if dash == "solid" else None
            axes.plot(areas.deltas, values, linestyle=dash, color=tints[name], label=label)
    axes.set_xlim(areas.deltas[0], areas.deltas[-1] if areas.deltas.size > 1 else None)
    unit = "in parameter space" if areas.by_distance else "in units of d₁ · d₂"
    axes.set(xlabel="rise of the loss, δ", ylabel=f"area of {{L ≤ L(w) + δ}}, {unit}")
    parts = _parts(areas, records, called)
    return style.finish(axes, ax, parts, title=title, caption=caption, names=called)


def _parts(areas: Areas, surfaces: Sequence[Surface], names: Sequence[str]) -> list[str]:
    cut = "dashed: the set reaches the border of the grid, and the area is a lower bound"
    rough = f"dotted, rough: less than {FEW} points of the grid lie in the set"
    if not all(surface.is_measured.all() for surface in surfaces):
        rough += ", or δ is below ten times the error of the interpolation"
    return [
        "area of the plane in which the loss is at most δ above the checkpoint's own; the plane: "
        + captions.per_name(surfaces, names, captions.plane_and_grid),
        cut if areas.is_cut.any() else "",
        rough if (areas.is_rough & ~areas.is_cut).any() else "",
        captions.per_name(surfaces, names, captions.unmeasured_points),
        captions.per_name(surfaces, names, captions.bad_points),
        captions.per_name(surfaces, names, captions.source),
    ]
