"""``landscape line``: loss along one direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landscape.results import Cost

from .measuring import measure_each
from .options import Measuring, measuring

if TYPE_CHECKING:
    from landscape.directions import Direction
    from landscape.problem import Problem
    from landscape.study import Study


@click.command("line")
@click.option(
    "--direction",
    "kind",
    type=click.Choice(["random", "worst-case", "eigenvector"]),
    default="random",
    show_default=True,
    help="Filter-normalised random; the maximiser of the sharpness; top of the Hessian.",
)
@click.option("--points", default=51, show_default=True, help="Number of points.")
@click.option(
    "--range",
    "half_width",
    default=None,
    type=float,
    help="From −RANGE to RANGE.  [default: 1 for random; a distance of 2 ρ for the others]",
)
@click.option("--rho", default=0.05, show_default=True, help="Radius for worst-case.")
@measuring
def command(told: Measuring, kind: str, points: int, half_width: float | None, rho: float) -> None:
    """Measure the loss along one direction through each checkpoint.

    \b
    Example:
      landscape line sgd.pt sam.pt --problem digits --direction worst-case --rho 0.2
    """
    from landscape.measure.surfaces import line, span

    if half_width is None:
        half_width = 1.0 if kind == "random" else 2.0 * rho
    x = span(half_width, points)
    measure_each(
        told,
        lambda problem, study: line(
            problem,
            _direction(problem, study, told, kind, rho),
            x=x,
            seed=told.seed,
            study=study,
            progress=told.progress,
        ),
        price=lambda problem: Cost(
            forwards=points + 1,
            gradients=240 if kind == "worst-case" else 0,
            hvps=0 if kind == "random" else 30,
        ),
    )


def _direction(problem: Problem, study: Study, told: Measuring, kind: str, rho: float) -> Direction:
    from landscape.directions import given_direction, random_direction, worst_case_direction
    from landscape.measure.eigenpairs import top_eigenpairs
    from landscape.measure.sharpness import sharpness

    shared = {"seed": told.seed, "study": study, "progress": told.progress}
    if kind == "worst-case":
        return worst_case_direction(problem, sharpness(problem, rho, **shared))  # type: ignore[arg-type]
    if kind == "eigenvector":
        pairs = top_eigenpairs(problem, **shared)  # type: ignore[arg-type]
        return given_direction(
            problem, pairs.vectors[0], kind="eigenvector", description="top Hessian eigenvector"
        )
    return random_direction(problem, told.seed)
