"""Loss along a line and over a plane, every point computed from the origin."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from landscape.checks import check_real, whole
from landscape.choices import Criterion, Precision, Statistics
from landscape.errors import InvalidArgumentError, NonFiniteWarning, ToleranceWarning, one_of
from landscape.measurement import cached_measurement, grid_of
from landscape.problem import Problem
from landscape.results import FloatArray, Line, Provenance, Surface
from landscape.study import Study
from landscape.surface._directions import Direction, Plane, given_direction
from landscape.surface._extra_metrics import PointOptions
from landscape.surface._interpolation import CRITERIA, Interpolated, interpolated_surface
from landscape.surface._points import Points, metrics_of, seed_of_masks
from landscape.surface._random_directions import random_direction, random_plane

N_LINE, N_SURFACE = 51, 25


def line(
    problem: Problem,
    direction: Direction | Tensor | npt.NDArray[Any] | Mapping[str, Tensor] | None = None,
    *,
    x: npt.ArrayLike | None = None,
    seed: int = 0,
    statistics: Statistics = "frozen",
    held_out: Problem | None = None,
    weight_decay: float = 0.0,
    against: tuple[Problem, Direction] | None = None,
    precision: Precision = "exact",
    compile: bool = False,
    tune: bool = False,
    study: Study | None = None,
    progress: bool | None = None,
) -> Line:
    """Measure L(w + x d) at the coordinates x.

    Args:
        problem: what to measure.
        direction: d; None: a filter-normalised random one.
        x: coordinates in units of d, shape (nx,); None: 51 of them on [−1, 1].
        seed: of a random direction, and of the dropout masks in ``train`` mode.
        statistics: of BatchNorm at each point, see `surface`.
        held_out: the same model on other data, see `surface`.
        weight_decay: λ of a regulariser, see `surface`.
        against: another checkpoint and a direction of its own, see `surface`.
        precision: see `surface`.
        compile: see `surface`.
        tune: see `surface`.
        study: where points are kept while they are measured, and taken up again after a kill: it
            loses the point in flight, or those of the last tenth of a second.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The raw losses with their standard errors. Cost: nx + 1 forward passes, and those that
        the options of `surface` add.

    Raises:
        InvalidArgumentError: if x has no two different finite numbers, or d does not fit.
    """
    if direction is None:
        direction = random_direction(problem, seed)
    elif not isinstance(direction, Direction):
        direction = given_direction(problem, direction)
    along, xs = direction, _coordinates(x, "x", N_LINE)
    options = PointOptions(
        statistics=statistics,
        held_out=_at_weights(problem, held_out),
        weight_decay=weight_decay,
        against=against,
        precision=precision,
        compile=compile,
        tune=tune,
    )
    options.check(problem, along)
    settings = {
        **along.identity(),
        "x": xs.tolist(),
        **options.settings(along, study),
        **_masks(seed, problem, options),
    }

    def measure(provenance: Provenance) -> Line:
        grid = grid_of(study, "line", provenance, settings, (len(xs), 1))
        what = f"line of {problem.name}"
        coordinates = (xs, np.zeros(1))
        with Points(
            problem, along, coordinates, options, seed=seed, kept=grid, what=what, progress=progress
        ) as points:
            points.measure(list(np.ndindex(len(xs), 1)))
            columns = {name: values[:, 0] for name, values in points.arrays().items()}
            return Line(
                x=xs,
                direction=along.description,
                direction_norm=along.norm,
                **_sampled(points, columns, options),
                settings=settings,
                cost=points.cost,
                provenance=provenance,
            )

    result = cached_measurement(Line, problem, settings, study, measure)
    _warn_not_finite(result.loss, statistics)
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
    statistics: Statistics = "frozen",
    held_out: Problem | None = None,
    weight_decay: float = 0.0,
    against: tuple[Problem, Plane] | None = None,
    precision: Precision = "exact",
    compile: bool = False,
    tune: bool = False,
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
        seed: of a random plane, and of the dropout masks in ``train`` mode.
        tolerance: above 0: measure as few points as it takes to interpolate the others with an
            error within it, see `landscape.surface._interpolation`; 0: measure all.
        criterion: what the tolerance is relative to: ``range`` of the losses, or ``log``: an
            error of ln(loss), which is finer near the minimum.
        max_points: measure no more than these; the error that was reached is in the result.
        statistics: BatchNorm statistics at each point: ``frozen`` as in the checkpoint,
            ``recalibrated`` from the data (one forward pass more for each point), or
            ``interpolated`` between the checkpoints that span the plane; beyond them the loss is
            NaN where a variance falls below zero.
        held_out: the same model on other data, measured at the same points; its loss and metrics
            are in ``metrics``, behind the name of its split.
        weight_decay: λ of a regulariser ½ λ ‖w‖² over the parameters, which is kept apart as
            ``metrics["penalty"]``; the loss stays that of the data.
        against: another checkpoint on the same data, and a plane of its own; the difference of
            the losses at equal coordinates, with the standard error over the same examples, is
            in ``metrics["difference"]``. One more forward pass for each point.
        precision: ``exact``; or ``bfloat16``, ``float16``, ``tf32``, compared with the exact loss
            at five points, the largest difference being kept in the result.
        compile: use torch.compile, if it works here and gives the same numbers.
        tune: choose how to evaluate by a short timing, where all points take more than 10
            seconds: the size of the pieces, the layout of images, several points at once. The
            choice can change roundings from run to run; the study notes it.
        study: where points are kept while they are measured, and taken up again after a kill: it
            loses the point in flight, or those of the last tenth of a second.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The raw losses, shape (nx, ny), with their standard errors. Cost: nx · ny + 1 forward
        passes, or as many as the tolerance takes.

    Raises:
        InvalidArgumentError: if x or y have no two different finite numbers, or the axes of the
            plane are parallel.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), arXiv:1712.09913.
    """
    plane = random_plane(problem, seed) if plane is None else _a_plane(plane)
    plane.check()
    xs, ys = _coordinates(x, "x", n), _coordinates(y, "y", n)
    options = PointOptions(
        statistics=statistics,
        held_out=_at_weights(problem, held_out),
        weight_decay=weight_decay,
        against=against,
        precision=precision,
        compile=compile,
        tune=tune,
    )
    options.check(problem, plane)
    adaptive = _adaptive(tolerance, criterion, max_points)
    settings = {
        **plane.identity(),
        "x": xs.tolist(),
        "y": ys.tolist(),
        **adaptive,
        **options.settings(plane, study),
        **_masks(seed, problem, options),
    }

    def measure(provenance: Provenance) -> Surface:
        grid = grid_of(study, "surface", provenance, settings, (len(xs), len(ys)))
        what = f"surface of {problem.name}"
        with Points(
            problem, plane, (xs, ys), options, seed=seed, kept=grid, what=what, progress=progress
        ) as points:
            if adaptive:
                found = interpolated_surface(xs, ys, points.measure, **adaptive)
            else:
                points.measure(list(np.ndindex(len(xs), len(ys))))
                found = None
            return Surface(
                x=xs,
                y=ys,
                plane=plane.description,
                direction_norms=(plane.x.norm, plane.y.norm),
                cosine=plane.cosine,
                **(_sampled(points, points.arrays(), options) | _interpolation(found, adaptive)),
                settings=settings,
                cost=points.cost,
                provenance=provenance,
            )

    result = cached_measurement(Surface, problem, settings, study, measure)
    _warn_not_finite(result.loss[result.is_measured], statistics)
    _warn_not_reached(result)
    return result


def _masks(seed: int, problem: Problem, options: PointOptions) -> dict[str, int]:
    rival = None if options.against is None else options.against[0]
    return seed_of_masks(seed, problem, options.held_out, rival)


def _a_plane(plane: Plane) -> Plane:
    given: object = getattr(plane, "plane", plane)  # that of a principal plane is meant
    if not isinstance(given, Plane):
        msg = f"a surface lies over a Plane of two directions, not a {type(given).__name__}"
        raise InvalidArgumentError(msg)
    return given


def _at_weights(problem: Problem, held_out: Problem | None) -> Problem | None:
    """Give held-out data a model of their own, with the buffers of the one that is measured."""
    if not (held_out is None or isinstance(held_out, Problem)):
        msg = (  # type: ignore[unreachable]
            f"held_out takes a Problem on other data, not a {type(held_out).__name__}: "
            "ls.Problem(model, loss, data, split='test')"
        )
        raise InvalidArgumentError(msg)
    return None if held_out is None else held_out.at(problem)


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


def _sampled(
    points: Points, columns: Mapping[str, FloatArray], options: PointOptions
) -> dict[str, Any]:
    """Return the fields that a line and a surface share."""
    return {
        "loss": columns["loss"],
        "loss_se": columns["loss_se"],
        "metrics": metrics_of(columns),
        "origin_loss": points.origin_loss,
        "statistics": points.statistics,
        "engine": points.engine,
        "precision": options.precision,
        "precision_error": points.precision_error(),
    }


def _interpolation(found: Interpolated | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "loss": found.loss,
        "measured": found.measured,
        "interpolation_error": found.error,
        "tolerance": asked["tolerance"],
        "criterion": asked["criterion"],
    }


def _warn_not_reached(surface: Surface) -> None:
    if surface.interpolation_error > surface.tolerance:
        msg = (
            f"the tolerance of {surface.tolerance:g} was not reached with "
            f"{int(surface.is_measured.sum()):,} points: the interpolation error is "
            f"{surface.interpolation_error:.2g}; allow more points (max_points), or a larger one"
        )
        warnings.warn(msg, ToleranceWarning, stacklevel=3)


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
