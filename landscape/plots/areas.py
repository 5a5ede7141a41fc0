"""How wide basins are: area of {L ≤ L(w) + δ} against δ, several checkpoints in one panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import words
from landscape.plots.lines import called_by
from landscape.plots.sheet import draw_key, frame, place
from landscape.plots.style import colour, plain, styled
from landscape.plots.surfaces import check_grid
from landscape.results import FloatArray, Surface
from landscape.results.surfaces import level_set_area

AREA_UNITS = ("auto", "distance", "axes")
FEW = 9
"""Points of the grid in the set below which its area is called rough."""

_N_DELTAS = 61


@dataclass(frozen=True, kw_only=True)
class Areas:
    """The numbers of a picture of areas.

    Attributes:
        deltas: rises of the loss, ascending, shape (m,).
        values: area for each checkpoint and rise, shape (checkpoints, m).
        is_cut: where it is a lower bound, of the same shape.
        is_rough: where less than nine points of the grid lie in the set, or the rise is less than
            ten times the error of an interpolation, of the same shape.
        by_distance: whether areas are those of parameter space, else in units of the axes.
    """

    deltas: FloatArray
    values: FloatArray
    is_cut: Any
    is_rough: Any
    by_distance: bool

    @property
    def label(self) -> str:
        """What is shown, for an axis."""
        unit = "in parameter space" if self.by_distance else "in units of d₁ · d₂"
        return f"area of {{L ≤ L(w) + δ}}, {unit}"


def areas_of(
    surfaces: Sequence[Surface], *, deltas: Sequence[float] | None = None, units: str = "auto"
) -> Areas:
    """Find the areas to draw."""
    one_of(units, AREA_UNITS, what="unit of areas")
    for surface in surfaces:
        check_grid(surface)
    known = all(np.isfinite([*s.direction_norms, s.cosine]).all() for s in surfaces)
    if units == "distance" and not known:
        msg = "the norm of a direction is unknown: draw with units='axes'"
        raise InvalidArgumentError(msg)
    rises = _deltas(surfaces) if deltas is None else np.asarray(list(deltas), dtype=np.float64)
    if rises.ndim != 1 or not rises.size or not (rises > 0).all() or (np.diff(rises) <= 0).any():
        msg = f"deltas must be positive rises of the loss, ascending; got {deltas!r}"
        raise InvalidArgumentError(msg)
    by_distance = known and units != "axes"
    found = [[level_set_area(surface, float(d)) for d in rises] for surface in surfaces]
    return Areas(
        deltas=rises,
        values=np.array([[a.area if by_distance else a.in_axes for a in row] for row in found]),
        is_cut=np.array([[a.is_cut for a in row] for row in found]),
        is_rough=np.array(
            [
                [a.n_points < FEW or a.delta < 10 * _error(surface, a.delta) for a in row]
                for surface, row in zip(surfaces, found, strict=True)
            ]
        ),
        by_distance=by_distance,
    )


def _error(surface: Surface, delta: float) -> float:
    """Return the error of an interpolated loss that has risen by delta; 0 where all is measured."""
    if surface.is_measured.all():
        return 0.0
    known = surface.loss[surface.is_measured & np.isfinite(surface.loss)]
    span = np.ptp(known) if surface.criterion == "range" else surface.origin_loss + delta
    return float(surface.interpolation_error * span)


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
    for kind, style in enumerate(("solid", "dashed", "dotted")):
        here = kinds == kind
        joined = here.copy()
        joined[1:] |= here[:-1] & (kinds[1:] == 1)  # a part ends where the dashed one begins
        joined[:-1] |= here[1:] & (kinds[:-1] == 2)
        parts.append((style, np.where(joined, values, np.nan)))
    return parts


@styled()
def area_figure(
    surfaces: Surface | Sequence[Surface],
    *,
    names: Sequence[str] | None = None,
    deltas: Sequence[float] | None = None,
    units: str = "auto",
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw the area of {L ≤ L(w) + δ} in the plane against δ, one curve per checkpoint.

    Near a minimum with Hessian H in the plane it is 2 π δ / √det H: a wide minimum lies higher,
    and the slope of 1 in this log-log picture ends where the loss is no longer quadratic.

    Args:
        surfaces: one record or several.
        names: a name for each; None: the checkpoints'.
        deltas: rises of the loss; None: as far as the grids tell.
        units: ``distance`` (areas of parameter space), ``axes``, or ``auto``: distances wherever
            they are known.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    records = [surfaces] if isinstance(surfaces, Surface) else list(surfaces)
    called = called_by(records, names)
    areas = areas_of(records, deltas=deltas, units=units)
    heading = called[0] if title is None and len(records) == 1 else title
    parts = area_caption(areas, records, called)
    key = -(-len(records) // 2)
    figure, box = frame(parts, title=heading, caption=caption, key=key)
    axes = place(figure, box)
    axes.set(xscale="log", yscale="log")
    for index, name in enumerate(called):
        for style, values in area_parts(areas, index):
            label = plain(name) if style == "solid" else None
            axes.plot(areas.deltas, values, linestyle=style, color=colour(index), label=label)
    axes.set_xlim(areas.deltas[0], areas.deltas[-1] if areas.deltas.size > 1 else None)
    axes.set_xlabel("rise of the loss, δ")
    axes.set_ylabel(areas.label)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    draw_key(axes, room=box[2], n_columns=2)
    return figure


def area_caption(areas: Areas, surfaces: Sequence[Surface], names: Sequence[str]) -> list[str]:
    """Say what a picture of areas shows."""
    cut = "dashed: the set reaches the border of the grid, and the area is a lower bound"
    rough = f"dotted, rough: less than {FEW} points of the grid lie in the set"
    if not all(surface.is_measured.all() for surface in surfaces):
        rough += ", or δ is below ten times the error of the interpolation"
    return [
        "area of the plane in which the loss is at most δ above the checkpoint's own; the plane: "
        + words.each(surfaces, names, words.grid),
        cut if areas.is_cut.any() else "",
        rough if (areas.is_rough & ~areas.is_cut).any() else "",
        words.each(surfaces, names, words.interpolated_points),
        words.each(surfaces, names, words.bad_points),
        words.each(surfaces, names, words.source),
    ]
