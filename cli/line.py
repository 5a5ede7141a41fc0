"""``landscape line``: loss along one direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost, spread_rows

from .idle import refuse_given
from .measuring import SEARCH, measure_each, price_of_eigenpairs
from .options import CommonOptions, measuring
from .pointwise import Pointwise, coordinates, pointwise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from landscape.problem import Problem
    from landscape.results import Line
    from landscape.study import Study
    from landscape.surface import Direction


@click.command("line")
@click.option(
    "--direction",
    "kind",
    type=click.Choice(["random", "worst-case", "eigenvector"]),
    default="random",
    show_default=True,
    help="Filter-normalised random; the maximiser of the sharpness; top of the Hessian.",
)
@click.option(
    "--points", default=51, show_default=True, type=click.IntRange(min=2), help="Number of points."
)
@click.option("--rho", default=0.05, show_default=True, help="Radius for worst-case.")
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Along so many random directions, from --seed on; draw them with plot --what band.",
)
@measuring
@pointwise(usual="1 for random; a distance of 2 ρ for the others")
def command(
    common: CommonOptions, each: Pointwise, kind: str, points: int, rho: float, seeds: int
) -> None:
    """Measure the loss along one direction through each checkpoint.

    \b
    Examples:
      landscape line sgd.pt sam.pt --problem digits --direction worst-case --rho 0.2
      landscape line sgd.pt sam.pt --problem digits --seeds 10 --held-out test
    """
    from landscape.surface import line

    if seeds > 1 and kind != "random":
        msg = f"--seeds is for random directions, and the {kind} one is one: leave --seeds out"
        raise InvalidArgumentError(msg)
    if kind == "random":
        refuse_given(["rho"], "is read by --direction worst-case and eigenvector: leave it out")
    usual = 1.0 if kind == "random" else 2.0 * rho

    def prepare(problems: Mapping[str, Problem], study: Study) -> None:
        each.prepare(
            problems,
            study,
            lambda problem: (_direction(problem, study, common, kind, rho, common.seed),),
        )

    def measure(problem: Problem, study: Study) -> list[Line]:
        x = coordinates(*each.ends((-usual, usual)), points)

        def along(seed: int) -> Line:
            def direction(at: Problem) -> Direction:
                return _direction(at, study, common, kind, rho, seed)

            return line(
                problem,
                direction(problem),
                x=x,
                seed=common.seed,
                **each.arguments(problem, direction),
                study=study,
                progress=common.progress,
            )

        return [along(seed) for seed in range(common.seed, common.seed + seeds)]

    searching = {"worst-case": SEARCH, "eigenvector": price_of_eigenpairs(1)}.get(kind, Cost())
    measure_each(
        common,
        measure,
        price=lambda problem: each.price(points * seeds, searching),
        prepare=prepare,
        summarise=spread_rows,  # type: ignore[arg-type]
    )


def _direction(
    problem: Problem, study: Study, common: CommonOptions, kind: str, rho: float, seed: int
) -> Direction:
    from landscape.curvature import top_eigenpairs
    from landscape.sharpness import sharpness
    from landscape.surface import given_direction, random_direction, worst_case_direction

    shared: dict[str, Any] = {"seed": common.seed, "study": study, "progress": common.progress}
    if kind == "worst-case":
        return worst_case_direction(problem, sharpness(problem, rho, **shared))
    if kind == "eigenvector":
        pairs = top_eigenpairs(problem, **shared)
        return given_direction(
            problem, pairs.vectors[0], kind="eigenvector", description="top Hessian eigenvector"
        )
    return random_direction(problem, seed)
