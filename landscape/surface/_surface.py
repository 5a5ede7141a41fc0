"""Loss along a line and over a plane, every point computed from the origin."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from landscape.checks import check_real, whole
from landscape.choices import Criterion
from landscape.errors import InvalidArgumentError, NonFiniteWarning, ToleranceWarning, one_of
from landscape.measurement import Run, Work
from landscape.problem import Problem, check_problem
from landscape.results import FloatArray, Line, Surface
from landscape.study import Study
from landscape.surface._directions import Direction, Plane, given_direction
from landscape.surface._interpolation import CRITERIA, interpolated_surface
from landscape.surface._points import PointOptions, Points, seed_of_masks
from landscape.surface._random_directions import random_direction, random_plane

N_LINE = 51

R = TypeVar("R", Line, Surface)


def line(
    problem: Problem,
    direction: Direction | Tensor | npt.NDArray[Any] | Mapping[str, Tensor] | None = None,
    *,
    x: npt.ArrayLike | None = None,
    n: int = N_LINE,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Line:
    """Measure L(w + x d) at the coordinates x.

    Args:
        problem: what to measure.
        direction: d; None: a filter-normalised random one.
        x: coordinates in units of d, shape (nx,); None: n of them on [−1, 1].
        n: how many, where x is not given.
        seed: of a random direction, and of the dropout masks in ``train`` mode.
        study: where points are kept while they are measured, and taken up again after a kill: it
            loses the point in flight, or those of the last tenth of a second.
        progress: show a bar on stderr; None: where stderr is a terminal.
        **options: as for `surface`.

    Returns:
        The raw losses with their standard errors. Cost: nx + 1 forward passes, and those that
        the options add.

    Raises:
        InvalidArgumentError: if x has no two different finite numbers, or d does not fit.
    """
    check_problem(problem)
    if direction is None:
        direction = random_direction(problem, seed)
    elif not isinstance(direction, Direction):
        direction = given_direction(problem, direction)
    xs = _coordinates(x, "x", n)
    point_options = PointOptions.of("line", options).at(problem, direction)
    settings = {**direction.identity(), "x": xs.tolist()}
    along = direction

    def fields(points: Points) -> dict[str, Any]:
        points.measure(list(np.ndindex(points.shape)))
        found = points.fields()
        found["metrics"] = {name: values[:, 0] for name, values in found["metrics"].items()}
        found |= {name: found[name][:, 0] for name in ("loss", "loss_se")}
        return found | {"x": xs, "direction": along.description, "direction_norm": along.norm}

    run = Run(study=study, seed=seed, progress=progress)
    axes = xs, np.zeros(1)
    result = _record(Line, problem, along, axes, point_options, settings, fields, run)
    _warn_not_finite(result.loss, point_options.statistics)
    return result


def surface(
    problem: Problem,
    plane: Plane | None = None,
    *,
    x: npt.ArrayLike | None = None,
    y: npt.ArrayLike | None = None,
    n: int = 25,
    seed: int = 0,
    tolerance: float = 0.0,
    criterion: Criterion = "range",
    max_points: int | None = None,
    study: Study | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Surface:
    """Measure L(w + x[i] d₁ + y[j] d₂) on a grid.

    Args:
        problem: what to measure.
        plane: d₁ and d₂; None: filter-normalised random ones.
        x: coordinates along d₁, shape (nx,); None: n of them on [−1, 1].
        y: coordinates along d₂, shape (ny,); None: n of them on [−1, 1].
        n: how many, where x or y are not given.
        seed: of a random plane, and of the dropout masks in ``train`` mode.
        tolerance: above 0: measure as few points as it takes to interpolate the others with an
            error within it, see `landscape.surface._interpolation`; 0: measure all.
        criterion: what the tolerance is relative to: ``range`` of the losses, or ``log``: an
            error of ln(loss), which is finer near the minimum.
        max_points: measure no more than these; the error that was reached is in the result.
        study: where points are kept while they are measured, and taken up again after a kill: it
            loses the point in flight, or those of the last tenth of a second.
        progress: show a bar on stderr; None: where stderr is a terminal.
        **options: statistics, held_out, weight_decay, against, precision, compile and tune: see
            `landscape.surface.PointOptions`.

    Returns:
        The raw losses, shape (nx, ny), with their standard errors. Cost: nx · ny + 1 forward
        passes, or as many as the tolerance takes.

    Raises:
        InvalidArgumentError: if x or y have no two different finite numbers, or the axes of the
            plane are parallel.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), arXiv:1712.09913.
    """
    check_problem(problem)
    given: object = random_plane(problem, seed) if plane is None else plane
    given = getattr(given, "plane", given)  # that of a principal plane is meant
    if not isinstance(given, Plane):
        msg = f"a surface lies over a Plane of two directions, not a {type(given).__name__}"
        raise InvalidArgumentError(msg)
    given.check()
    over, xs, ys = given, _coordinates(x, "x", n), _coordinates(y, "y", n)
    point_options = PointOptions.of("surface", options).at(problem, over)
    adaptive = _adaptive(tolerance, criterion, max_points)
    settings = {**over.identity(), "x": xs.tolist(), "y": ys.tolist(), **adaptive}

    def fields(points: Points) -> dict[str, Any]:
        interpolation = {}
        if adaptive:
            found = interpolated_surface(xs, ys, points.measure, **adaptive)
            interpolation = {
                "loss": found.loss,
                "measured": found.measured,
                "interpolation_error": found.error,
                "tolerance": tolerance,
                "criterion": criterion,
            }
        else:
            points.measure(list(np.ndindex(points.shape)))
        return {
            "x": xs,
            "y": ys,
            "plane": over.description,
            "direction_norms": (over.x.norm, over.y.norm),
            "cosine": over.cosine,
            **points.fields(),
            **interpolation,
        }

    run = Run(study=study, seed=seed, progress=progress)
    result = _record(Surface, problem, over, (xs, ys), point_options, settings, fields, run)
    _warn_not_finite(result.loss[result.is_measured], point_options.statistics)
    if result.interpolation_error > result.tolerance:
        msg = (
            f"the tolerance of {result.tolerance:g} was not reached with "
            f"{int(result.is_measured.sum()):,} points: the interpolation error is "
            f"{result.interpolation_error:.2g}; allow more points (max_points), or a larger one"
        )
        warnings.warn(msg, ToleranceWarning, stacklevel=2)
    return result


def _record(
    cls: type[R],
    problem: Problem,
    where: Direction | Plane,
    coordinates: tuple[FloatArray, FloatArray],
    options: PointOptions,
    settings: Mapping[str, Any],
    fields: Callable[[Points], dict[str, Any]],
    run: Run,
) -> R:
    """Recall or measure the points of a grid; ``fields`` measures them and makes the record."""
    rival = None if options.against is None else options.against[0]
    masks = seed_of_masks(run.seed, problem, options.held_out, rival)
    settings = {**settings, **options.settings(where, run.study), **masks}

    def measure(work: Work) -> dict[str, Any]:
        with ExitStack() as stack:
            shared: dict[str, Any] = {"seed": run.seed, "progress": run.progress, "stack": stack}
            return fields(Points(work, where, coordinates, options, **shared))

    # The points have a bar of their own.
    return replace(run, progress=False).record(cls, problem, settings, measure)


def _adaptive(tolerance: float, criterion: str, max_points: int | None) -> dict[str, Any]:
    """Check what is asked of an interpolation, and return what is not the usual."""
    one_of(criterion, CRITERIA, what="criterion")
    check_real(tolerance=tolerance)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        msg = f"the tolerance must be a finite number, at least 0; got {tolerance!r}"
        raise InvalidArgumentError(msg)
    if not tolerance:
        if max_points is not None:
            msg = "max_points limits an interpolated surface: give a tolerance too"
            raise InvalidArgumentError(msg)
        return {}
    limit = {} if max_points is None else {"max_points": whole("max_points", max_points)}
    return {"tolerance": tolerance, "criterion": criterion, **limit}


def _coordinates(values: npt.ArrayLike | None, name: str, n: int) -> FloatArray:
    if values is None:
        n = whole("n", n)
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


def _warn_not_finite(loss: FloatArray, statistics: str) -> None:
    bad = int((~np.isfinite(loss)).sum())
    if bad:
        msg = f"the loss is not finite at {bad} of {loss.size} points; they are kept as they are"
        if statistics == "interpolated":
            msg += (
                ". Beyond the checkpoints that span a plane, an interpolated variance falls below "
                "zero, which is NaN: stay between them, or use statistics='recalibrated'"
            )
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
    check_real(half_width=half_width)
    n = whole("n", n)
    if not (math.isfinite(half_width) and half_width > 0) or n < 2:
        msg = f"expected a finite half-width above 0 and n ≥ 2, got {half_width!r} and {n!r}"
        raise InvalidArgumentError(msg)
    half = np.arange(-(n - 1), n, 2) / (n - 1)
    return np.asarray(half_width * half)
