"""Several checkpoints measured alike, to be set side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from landscape.curvature import top_eigenpairs
from landscape.errors import InvalidArgumentError
from landscape.loss import evaluation
from landscape.problem import Problem
from landscape.results.comparison import Comparison, Measured
from landscape.sharpness import sharpness
from landscape.study import Study
from landscape.surface import (
    line,
    random_direction,
    random_plane,
    span,
    surface,
    worst_case_direction,
)

N_COMPARED_LINE = 41
WORST_CASE_REACH = 2.0  # lines along the worst case go on to this multiple of the radius


def compare(
    problems: Mapping[str, Problem],
    *,
    rho: float = 0.05,
    k: int = 1,
    n: int = 25,
    half_width: float = 1.0,
    seed: int = 0,
    test: Problem | None = None,
    study: Study | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Measure every checkpoint with the same settings.

    For each: loss and metrics, on held-out data too if given; the top eigenvalues of the Hessian;
    the sharpness at one ρ; the loss along its own worst-case direction and along a
    filter-normalised random one, by distance; and a filter-normalised random surface. The random
    directions come from the same Gaussian numbers, normalised to each checkpoint's own filters.

    Args:
        problems: what to compare, by the names to show.
        rho: radius of the ball.
        k: number of eigenvalues.
        n: the surfaces have n × n points.
        half_width: surfaces reach from −half_width to half_width in both directions.
        seed: of every random choice.
        test: the problem on held-out data; measured at each checkpoint's weights.
        study: where results are kept, and looked up first.
        progress: show bars on stderr; None: where stderr is a terminal.

    Returns:
        All results; ``.table()``, ``.plot()`` and ``.report(path)`` show them.

    Raises:
        InvalidArgumentError: if there is nothing to compare.

    Cost: per checkpoint about n² + 80 forward passes, 60 gradients and 40 HVPs; where the largest
    rise is hard to find, 250 gradients.
    """
    if not isinstance(problems, Mapping):
        # Typed as a mapping, and a list is what people try first.
        msg = f"give the problems by name, {{'SGD': …, 'SAM': …}}, not a {type(problems).__name__}"  # type: ignore[unreachable]
        raise InvalidArgumentError(msg)
    if not problems:
        msg = "nothing to compare: give at least one checkpoint"
        raise InvalidArgumentError(msg)

    shared: dict[str, Any] = {"seed": seed, "study": study, "progress": progress}

    def measured(name: str, problem: Problem) -> Measured:
        problem = problem.named(name)
        held_out = None if test is None else test.at(problem, name=name)
        pairs = top_eigenpairs(problem, k, **shared)
        # As sharpness is called by itself: what one of the two has found, the other does not seek.
        sharp = sharpness(problem, rho, **shared)
        distances = span(WORST_CASE_REACH * rho, N_COMPARED_LINE)
        worst, random = worst_case_direction(problem, sharp), random_direction(problem, seed)
        coordinates = span(half_width, n)
        return Measured(
            name=name,
            evaluation=evaluation(problem, seed=seed, study=study),
            test=None if held_out is None else evaluation(held_out, seed=seed, study=study),
            eigenpairs=pairs,
            sharpness=sharp,
            worst_line=line(problem, worst, x=distances, **shared),
            random_line=line(problem, random, x=distances / random.norm, **shared),
            surface=surface(
                problem,
                random_plane(problem, seed),
                x=coordinates,
                y=coordinates,
                **shared,
            ),
        )

    return Comparison(models=tuple(measured(name, p) for name, p in problems.items()))
