"""How wide a basin is: the area of the plane in which the loss has risen by at most δ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from landscape.errors import InvalidArgumentError
from landscape.results.base import FloatArray
from landscape.results.surfaces import Surface


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
    linear on each: the area is exact where the loss is linear, and off by O(h²) where it is smooth
    and the spacing of the grid is h. A convex loss lies below its linear pieces, so that the area
    of its basin is then underestimated.

    Args:
        surface: the record.
        delta: δ > 0, above the loss at the checkpoint.

    Returns:
        The area, in units of the axes and in parameter space, and what there is to know of it.

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
    return LevelSetArea(
        delta=float(delta),
        in_axes=in_axes,
        area=in_axes * first * second * sine,
        is_cut=bool((below & _next_to_unknown(surface.loss)).any()),
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


def _next_to_unknown(loss: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which points lie on the border, or share a square with one that is not finite."""
    unknown = np.pad(~np.isfinite(loss), 1, constant_values=True)
    squares = np.lib.stride_tricks.sliding_window_view(unknown, (3, 3))
    return np.asarray(squares.any(axis=(2, 3)))


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
