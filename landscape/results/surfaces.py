"""Losses along a line and over a plane, and how wide a basin is there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from landscape.errors import InvalidArgumentError
from landscape.results.base import Columns, FloatArray, Result, Summary, metric_columns
from landscape.results.frames import labelled_arrays
from landscape.wording import number


@dataclass(frozen=True, kw_only=True, repr=False)
class Sampled(Result):
    """What lines and surfaces have in common.

    Attributes:
        loss: raw losses; NaN and infinity stay.
        loss_se: standard error of each over the examples.
        metrics: further numbers at each point, in the shape of the losses: means over the examples,
            and, if asked for, loss and metrics of other data (``test loss``), the regulariser
            (``penalty``), the difference to another checkpoint (``difference``, ``difference_se``).
        origin_loss: the plain loss L(w), measured apart from the points.
        statistics: of BatchNorm at each point: ``frozen``, ``recalibrated`` or ``interpolated``.
        engine: how the points were evaluated, in words.
        precision: ``exact``, or the lower precision that was asked for.
        precision_error: largest difference to the exact loss at the points where both were
            measured; 0 where exact.
    """

    loss: FloatArray
    loss_se: FloatArray
    metrics: Mapping[str, FloatArray] = field(default_factory=dict)
    origin_loss: float
    statistics: str = "frozen"
    engine: str = ""
    precision: str = "exact"
    precision_error: float = 0.0

    def _arrays(self, coordinates: Mapping[str, FloatArray], **words: str) -> Any:
        """Return losses and metrics over the coordinates as an xarray Dataset."""
        words |= {"checkpoint": self.name, "split": self.provenance.split}
        variables = {"loss": self.loss, "loss_se": self.loss_se, **self.metrics}
        return labelled_arrays(variables, coordinates, words)

    def loss_summary(self) -> Summary:
        """Return the loss at the checkpoint, and the smallest and largest of all."""
        finite = self.loss[np.isfinite(self.loss)]
        low, high = (finite.min(), finite.max()) if finite.size else (math.nan, math.nan)
        return {
            "loss at the checkpoint": self.origin_loss,
            "lowest": float(low),
            "highest": float(high),
            "points": self.loss.size,
        }

    def loss_rows(self) -> list[tuple[str, str]]:
        """Return the losses and how they were measured as rows."""
        bad = int((~np.isfinite(self.loss)).sum())
        note = f"; {bad} of {self.loss.size} points not finite, kept as they are" if bad else ""
        rows = [
            ("loss at the checkpoint", number(self.origin_loss)),
            ("losses", _span(self.loss) + note),
            ("standard errors", _span(self.loss_se, nothing="not known")),
        ]
        rows += [
            (name, _span(values))
            for name, values in self.metrics.items()
            if not name.endswith("_se") and np.isfinite(values).any()
        ]
        if self.statistics != "frozen":
            rows.append(("BatchNorm statistics", f"{self.statistics} at each point"))
        if self.precision != "exact":
            error = f"{self.precision_error:.1e}"
            compared = f"up to {error} from the exact loss at the 5 points compared"
            rows.append(("precision", f"{self.precision}, {compared}"))
        if self.engine:
            rows.append(("evaluated", self.engine))
        return rows


@dataclass(frozen=True, kw_only=True, repr=False)
class Line(Sampled):
    """Loss along one direction: L(w + x d).

    Attributes:
        x: coordinates, in units of the direction, shape (nx,); so are the losses.
        direction: what the direction is, in words (``filter-normalised random``, ``worst case``).
        direction_norm: ‖d‖, so that x · ‖d‖ is the distance in parameter space.
    """

    kind, heading, role = "line", "Line", "random_line"
    csv_columns: ClassVar = {name: name for name in ("x", "distance", "loss", "loss_se")}
    x: FloatArray
    direction: str
    direction_norm: float

    @property
    def is_measured(self) -> npt.NDArray[np.bool_]:
        """Where the loss was measured, shape (nx,): everywhere, unless the line is unfinished."""
        return np.asarray(self.metrics.get("measured", np.ones(self.x.size)), dtype=bool)

    @property
    def distance(self) -> FloatArray:
        """Signed Euclidean distance from the checkpoint, shape (nx,)."""
        return np.asarray(self.x * self.direction_norm)

    def to_xarray(self) -> Any:
        """Return losses and metrics over ``x`` as an xarray Dataset."""
        return self._arrays({"x": self.x}, direction=self.direction)

    def summary(self) -> Summary:
        """Return the direction and the range of the losses."""
        return {"direction": self.direction, **self.loss_summary()}

    def rows(self) -> list[tuple[str, str]]:
        """Return what was measured and the range of the losses as rows."""
        return [
            ("direction", f"{self.direction}, ‖d‖ = {number(self.direction_norm)}"),
            ("points", f"{self.x.size} on [{self.x.min():g}, {self.x.max():g}]"),
            *self.loss_rows(),
        ]


@dataclass(frozen=True, kw_only=True, repr=False)
class Surface(Sampled):
    """Loss over a plane: loss[i, j] = L(w + x[i] d₁ + y[j] d₂).

    Attributes:
        x: coordinates along the first direction, shape (nx,).
        y: coordinates along the second direction, shape (ny,); losses have shape (nx, ny).
        plane: what the plane is, in words.
        direction_norms: ‖d₁‖ and ‖d₂‖.
        cosine: cosine of the angle between the directions.
        measured: where the loss was measured, and not interpolated, shape (nx, ny); empty: at
            every point. Where it was not, standard errors and metrics are NaN.
        interpolation_error: largest error of the interpolated surface that was seen, in units of
            ``criterion``; 0 where every point is measured.
        tolerance: what it was to stay below; 0 where every point was to be measured.
        criterion: ``range``: errors are relative to the range of the finite losses; ``log``: they
            are those of ln(loss).
    """

    kind, heading, role = "surface", "Loss surface", "surface"
    x: FloatArray
    y: FloatArray
    plane: str
    direction_norms: tuple[float, float]
    cosine: float
    measured: npt.NDArray[np.bool_] = field(default_factory=lambda: np.ones((0, 0), dtype=bool))
    interpolation_error: float = 0.0
    tolerance: float = 0.0
    criterion: str = "range"

    @property
    def is_measured(self) -> npt.NDArray[np.bool_]:
        """Where the loss was measured, shape (nx, ny)."""
        return self.measured if self.measured.size else np.ones(self.loss.shape, dtype=bool)

    def table(self) -> Columns:
        """Return a row for each point, y running fastest; measured is 0 where interpolated."""
        columns: dict[str, Any] = {
            "x": np.repeat(self.x, self.y.size),
            "y": np.tile(self.y, self.x.size),
            "loss": self.loss,
            "loss_se": self.loss_se,
            "measured": list(map(int, self.is_measured.flat)),
        }
        return columns | metric_columns(self.metrics, columns)

    def to_xarray(self) -> Any:
        """Return losses and metrics over ``x`` and ``y`` as an xarray Dataset."""
        return self._arrays({"x": self.x, "y": self.y}, plane=self.plane)

    def summary(self) -> Summary:
        """Return the plane, the range of the losses, and the error of an interpolation."""
        estimated = {"interpolation error": self.interpolation_error} if self.tolerance else {}
        return {"plane": self.plane, **self.loss_summary(), **estimated}

    def rows(self) -> list[tuple[str, str]]:
        """Return what was measured and the range of the losses as rows."""
        norms = " and ".join(number(v) for v in self.direction_norms)
        known = math.isfinite(self.cosine)
        axes = f", norms {norms}, cosine {self.cosine:+.3f}" if known else ""
        ranges = (f"[{axis.min():g}, {axis.max():g}]" for axis in (self.x, self.y))
        return [
            ("plane", f"{self.plane}{axes}"),
            ("points", f"{self.x.size} × {self.y.size} on {' × '.join(ranges)}"),
            *self._interpolation_rows(),
            *self.loss_rows(),
        ]

    def _interpolation_rows(self) -> list[tuple[str, str]]:
        if not self.tolerance:
            return []
        n = int(self.is_measured.sum())
        if n == self.loss.size:
            return [("measured", f"all {n:,} points")]
        missed = "" if self.interpolation_error <= self.tolerance else "NOT reached: "
        unit = {"range": "of the range", "log": "in ln(loss)"}[self.criterion]
        error = f"{self.interpolation_error:.1e} {unit} ({missed}tolerance {self.tolerance:g})"
        return [
            ("measured", f"{n:,} of {self.loss.size:,} points, the others interpolated"),
            ("interpolation error", error),
        ]


def spread_rows(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return mean ± standard deviation of the losses over lines with the same coordinates."""
    x, losses = lines[0].x, np.stack([line.loss for line in lines])
    chosen = sorted({0, len(x) // 4, len(x) - 1 - len(x) // 4, len(x) - 1})
    mean, deviation = losses.mean(axis=0), losses.std(axis=0, ddof=1)
    return [
        (f"loss at x = {x[k]:+.3g}", f"{number(mean[k])} ± {number(deviation[k])}") for k in chosen
    ]


def _span(values: FloatArray, *, nothing: str = "none finite") -> str:
    finite = values[np.isfinite(values)]
    return f"{number(finite.min())} to {number(finite.max())}" if finite.size else nothing


@dataclass(frozen=True, kw_only=True)
class LevelSetArea:
    """Area of {L ≤ L(w) + δ} in the plane of a surface.

    Attributes:
        delta: δ, how far the loss may rise.
        in_axes: the area in units of the two directions.
        area: the same in parameter space: times ‖d₁‖ ‖d₂‖ sin of the angle between them.
        is_cut: whether the set reaches the border of the grid or a point that is not finite, so
            that the area is a lower bound.
        n_points: points of the grid in the set; with only a few the area is rough.
    """

    delta: float
    in_axes: float
    area: float
    is_cut: bool
    n_points: int


def level_set_area(surface: Surface, delta: float) -> LevelSetArea:
    """Measure the set {L ≤ L(w) + δ} in the plane, all its parts together.

    Every square of the grid is cut into four triangles that meet in its middle, and the loss is
    linear on each: the area is off by O(h²) for a smooth loss and the spacing h, and too small for
    a convex one, which lies below its linear pieces.

    Args:
        surface: the record.
        delta: δ > 0, above the loss at the checkpoint.

    Returns:
        The area, in units of the axes and in parameter space.

    Raises:
        InvalidArgumentError: if δ is not a positive finite number, the loss at the checkpoint is
            not finite, or the grid has no area.

    >>> area_below(np.array([0.0, 2.0]), np.array([0.0, 1.0]), np.array([[0, 0], [4, 4.0]]), 1.0)
    0.5
    """
    _check(surface, delta)
    level = surface.origin_loss + delta
    below = surface.loss <= level
    in_axes = area_below(surface.x, surface.y, surface.loss, level)
    first, second = surface.direction_norms
    sine = math.sqrt(max(0.0, 1 - surface.cosine**2)) if math.isfinite(surface.cosine) else math.nan
    # On the border, or in a square with a point that is not finite.
    unknown = np.pad(~np.isfinite(surface.loss), 1, constant_values=True)
    squares = np.lib.stride_tricks.sliding_window_view(unknown, (3, 3))
    return LevelSetArea(
        delta=float(delta),
        in_axes=in_axes,
        area=in_axes * first * second * sine,
        is_cut=bool((below & squares.any(axis=(2, 3))).any()),
        n_points=int(np.count_nonzero(below)),
    )


def area_below(x: npt.ArrayLike, y: npt.ArrayLike, values: npt.ArrayLike, level: float) -> float:
    """Return the area in which the linear pieces of values on a grid are at most a level."""
    z = np.asarray(values, dtype=np.float64)
    corners = np.stack([z[:-1, :-1], z[1:, :-1], z[1:, 1:], z[:-1, 1:]])
    finite = np.isfinite(corners).all(axis=0)
    corners = np.where(finite, corners, 0.0)
    middle = corners.mean(axis=0)
    shares = [_share(np.stack([corners[k], corners[(k + 1) % 4], middle]), level) for k in range(4)]
    cells = np.multiply.outer(np.diff(np.asarray(x, float)), np.diff(np.asarray(y, float)))
    return float(np.sum(cells * np.where(finite, np.mean(shares, axis=0), 0.0)))


def _share(values: FloatArray, level: float) -> FloatArray:
    """Return the part of each triangle in which a linear function is at most a level."""
    low, middle, high = np.sort(values, axis=0)
    down, up = np.maximum(level - low, 0.0), np.maximum(high - level, 0.0)
    # What overflows lies outside the part where it is taken.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rising = down**2 / ((middle - low) * (high - low))
        falling = 1 - up**2 / ((high - low) * (high - middle))
    inner = np.where(level < middle, rising, falling)
    return np.where(level >= high, 1.0, np.where(level < low, 0.0, inner))


def _check(surface: Surface, delta: float) -> None:
    if not (isinstance(delta, (int, float, np.number)) and 0 < delta < math.inf):
        msg = f"delta must be a positive finite rise of the loss; got {delta!r}"
        raise InvalidArgumentError(msg)
    if not math.isfinite(surface.origin_loss):
        msg = (
            f"the loss of {surface.name} at the checkpoint is {surface.origin_loss}: there is no "
            "level to rise from; measure the surface again, which records it"
        )
        raise InvalidArgumentError(msg)
    if min(surface.loss.shape) < 2:
        msg = f"a grid of {surface.loss.shape} points has no area: measure at least 2 × 2"
        raise InvalidArgumentError(msg)
