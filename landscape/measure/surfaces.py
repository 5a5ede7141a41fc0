"""Loss along a line and over a plane, every point computed from the origin."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from landscape.directions import Direction, Plane, given_direction, random_direction, random_plane
from landscape.errors import InvalidArgumentError, NonFiniteWarning
from landscape.evaluate import Evaluator, LossValue
from landscape.measure.recall import recall_or_measure
from landscape.problem import Problem
from landscape.progress import progress_bar
from landscape.results import FloatArray, Line, Provenance, Surface
from landscape.study import Study

N_LINE, N_SURFACE = 51, 25
_METRIC = "metrics."  # as the arrays of a saved result are named


def line(
    problem: Problem,
    direction: Direction | Tensor | npt.NDArray[Any] | Mapping[str, Tensor] | None = None,
    *,
    x: npt.ArrayLike | None = None,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> Line:
    """Measure L(w + x d) at the coordinates x.

    Args:
        problem: what to measure.
        direction: d; None: a filter-normalised random one.
        x: coordinates in units of d, shape (nx,); None: 51 of them on [−1, 1].
        seed: of a random direction.
        study: where points are kept as they are measured, and taken up again after a kill.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The raw losses with their standard errors. Cost: nx + 1 forward passes.

    Raises:
        InvalidArgumentError: if x has no two different finite numbers, or d does not fit.
    """
    if direction is None:
        direction = random_direction(problem, seed)
    elif not isinstance(direction, Direction):
        direction = given_direction(problem, direction)
    xs = _coordinates(x, "x", N_LINE)
    settings = {"direction": direction.kind, "d": direction.settings(), "x": xs.tolist()}

    def measure(provenance: Provenance) -> Line:
        with Evaluator(problem) as evaluator:
            vector = direction.vector

            def at(i: int, _: int) -> Tensor:
                return evaluator.origin.add(vector, alpha=float(xs[i]))

            grid = _Grid("line", provenance, settings, (len(xs), 1), study)
            columns = grid.measure(evaluator, at, f"line of {problem.name}", progress)
            return Line(
                x=xs,
                loss=columns["loss"][:, 0],
                loss_se=columns["loss_se"][:, 0],
                metrics={name: values[:, 0] for name, values in _metrics(columns).items()},
                direction=direction.description,
                direction_norm=direction.norm,
                origin_loss=evaluator.loss().value,
                settings=settings,
                cost=evaluator.cost,
                provenance=provenance,
            )

    result = recall_or_measure(Line, problem, settings, study, measure)
    _warn_not_finite(result.loss)
    return result


def surface(
    problem: Problem,
    plane: Plane | None = None,
    *,
    x: npt.ArrayLike | None = None,
    y: npt.ArrayLike | None = None,
    n: int = N_SURFACE,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> Surface:
    """Measure L(w + x[i] d₁ + y[j] d₂) on a grid.

    Args:
        problem: what to measure.
        plane: d₁ and d₂; None: filter-normalised random ones.
        x: coordinates along d₁, shape (nx,); None: n of them on [−1, 1].
        y: coordinates along d₂, shape (ny,); None: n of them on [−1, 1].
        n: how many, where x or y are not given.
        seed: of a random plane.
        study: where points are kept as they are measured, and taken up again after a kill.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The raw losses, shape (nx, ny), with their standard errors. Cost: nx · ny + 1 forward
        passes.

    Raises:
        InvalidArgumentError: if x or y have no two different finite numbers, or the axes of the
            plane are parallel.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), arXiv:1712.09913.
    """
    plane = random_plane(problem, seed) if plane is None else plane
    plane.check()
    xs, ys = _coordinates(x, "x", n), _coordinates(y, "y", n)
    settings = {
        "plane": plane.x.kind,
        "d1": plane.x.settings(),
        "d2": plane.y.settings(),
        "x": xs.tolist(),
        "y": ys.tolist(),
    }

    def measure(provenance: Provenance) -> Surface:
        with Evaluator(problem) as evaluator:

            def at(i: int, j: int) -> Tensor:
                return plane.at(evaluator.origin, float(xs[i]), float(ys[j]))

            grid = _Grid("surface", provenance, settings, (len(xs), len(ys)), study)
            columns = grid.measure(evaluator, at, f"surface of {problem.name}", progress)
            return Surface(
                x=xs,
                y=ys,
                loss=columns["loss"],
                loss_se=columns["loss_se"],
                metrics=_metrics(columns),
                plane=plane.description,
                direction_norms=(plane.x.norm, plane.y.norm),
                cosine=plane.cosine,
                origin_loss=evaluator.loss().value,
                settings=settings,
                cost=evaluator.cost,
                provenance=provenance,
            )

    result = recall_or_measure(Surface, problem, settings, study, measure)
    _warn_not_finite(result.loss)
    return result


class _Grid:
    """Points of a grid, each kept in the study as soon as it is measured."""

    def __init__(
        self,
        kind: str,
        provenance: Provenance,
        settings: Mapping[str, Any],
        shape: tuple[int, int],
        study: Study | None,
    ) -> None:
        self._shape = shape
        self._kept = None if study is None else study.grid(kind, provenance, settings, shape=shape)

    def measure(
        self,
        evaluator: Evaluator,
        at: Callable[[int, int], Tensor],
        what: str,
        progress: bool | None,
    ) -> dict[str, FloatArray]:
        """Measure what is missing; return each column as an array of the grid's shape."""
        points = dict(self._kept.done) if self._kept is not None else {}
        todo = [index for index in np.ndindex(*self._shape) if index not in points]
        for i, j in progress_bar(todo, what=what, total=len(todo), show=progress):
            values = _columns(evaluator.loss(at(i, j)))
            if self._kept is not None:
                self._kept.record(i, j, values)
            points[i, j] = values
        names = next(iter(points.values()))
        return {
            name: np.array([points[index][name] for index in np.ndindex(*self._shape)]).reshape(
                self._shape
            )
            for name in names
        }


def _columns(loss: LossValue) -> dict[str, float]:
    # The prefix keeps a metric that is itself called "loss" apart.
    metrics = {f"{_METRIC}{name}": value for name, value in loss.metrics.items()}
    return {"loss": loss.value, "loss_se": loss.se} | metrics


def _metrics(columns: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    return {
        name.removeprefix(_METRIC): values
        for name, values in columns.items()
        if name.startswith(_METRIC)
    }


def _coordinates(values: npt.ArrayLike | None, name: str, n: int) -> FloatArray:
    if values is None:
        if n < 2:
            msg = f"a grid needs at least 2 points along each axis, got n = {n}"
            raise InvalidArgumentError(msg)
        return span(1.0, n)
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"{name} must be a list of at least 2 finite coordinates, got {values!r}"
        raise InvalidArgumentError(msg) from error
    if array.ndim != 1 or array.size < 2 or not np.isfinite(array).all():
        msg = (
            f"{name} must be a list of at least 2 finite coordinates, got "
            f"{'NaN or infinity in it' if array.ndim == 1 and array.size > 1 else array.shape}"
        )
        raise InvalidArgumentError(msg)
    if (np.diff(array) <= 0).any():
        msg = f"{name} must ascend from one coordinate to the next, got {array[:5]}…"
        raise InvalidArgumentError(msg)
    return array


def _warn_not_finite(loss: FloatArray) -> None:
    bad = int((~np.isfinite(loss)).sum())
    if bad:
        msg = f"the loss is not finite at {bad} of {loss.size} points; they are kept as they are"
        warnings.warn(msg, NonFiniteWarning, stacklevel=3)


def span(half_width: float, n: int) -> FloatArray:
    """Return n coordinates on [−half_width, half_width], with an exact 0 if n is odd.

    Args:
        half_width: the largest coordinate.
        n: how many.

    Returns:
        Ascending coordinates, shape (n,).

    Raises:
        InvalidArgumentError: if the width is not above zero, or n is below 2.

    >>> span(1.0, 5).tolist()
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    if not (math.isfinite(half_width) and half_width > 0) or n < 2:
        msg = f"expected a finite half-width above 0 and n ≥ 2, got {half_width!r} and {n!r}"
        raise InvalidArgumentError(msg)
    half = np.arange(-(n - 1), n, 2) / (n - 1)
    return np.asarray(half_width * half)
