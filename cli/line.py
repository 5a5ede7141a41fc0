"""``landscape line``: loss along one direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost, spread_rows

from .measuring import SEARCH, measure_each, price_of_eigenpairs
from .options import CommonOptions, common_options
from .output import print_rows
from .pointwise import PointOptions, coordinates, point_options
from .sections import Command, refuse_given

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landscape.problem import Problem
    from landscape.results import Line, Result
    from landscape.study import Study
    from landscape.surface import Direction

_PRICES = {"worst-case": SEARCH, "eigenvector": price_of_eigenpairs(1)}


@click.command("line", cls=Command)
@click.option(
    "--direction",
    "kind",
    type=click.Choice(["random", "worst-case", "eigenvector"]),
    default="random",
    help="Filter-normalised random; the maximiser of the sharpness; top of the Hessian.",
)
@click.option("--points", default=51, type=click.IntRange(min=2), help="Number of points.")
@click.option("--rho", default=0.05, help="Radius for worst-case.")
@click.option(
    "--seeds",
    default=1,
    type=click.IntRange(min=1),
    help="Number of random directions, from --seed on; draw them with plot --what band.",
)
@common_options
@point_options(default_range="1 for random; a distance of 2 ρ for the others")
def command(
    common: CommonOptions, at_points: PointOptions, kind: str, points: int, rho: float, seeds: int
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
    reach = 1.0 if kind == "random" else 2.0 * rho

    def prepare(problems: Mapping[str, Problem], study: Study) -> None:
        def first(problem: Problem) -> tuple[Direction, ...]:
            return (_direction(problem, study, common, kind, rho, common.seed),)

        at_points.prepare(problems, study, first)

    def measure(problem: Problem, study: Study) -> list[Line]:
        x = coordinates(at_points.ends((-reach, reach)), points)
        lines = []
        for seed in range(common.seed, common.seed + seeds):

            def direction(at: Problem, seed: int = seed) -> Direction:
                return _direction(at, study, common, kind, rho, seed)

            keywords = at_points.keywords(problem, direction)
            lines.append(line(problem, direction(problem), x=x, study=study, **keywords))
        return lines

    measure_each(
        common,
        measure,
        price=lambda problem: at_points.price(points * seeds, _PRICES.get(kind, Cost())),
        prepare=prepare,
        summarise=_print_spread if seeds > 1 else None,
    )


def _print_spread(measured: Sequence[Sequence[Result]]) -> None:
    for lines in measured:
        click.echo(f"{lines[0].name}, over {len(lines)} directions")
        print_rows(spread_rows(lines), indent="  ")  # type: ignore[arg-type]


def _direction(
    problem: Problem, study: Study, common: CommonOptions, kind: str, rho: float, seed: int
) -> Direction:
    from landscape.curvature import top_eigenpairs
    from landscape.sharpness import sharpness
    from landscape.surface import given_direction, random_direction, worst_case_direction

    if kind == "worst-case":
        worst = sharpness(problem, rho, study=study, **common.run)
        return worst_case_direction(problem, worst)
    if kind == "eigenvector":
        pairs = top_eigenpairs(problem, study=study, **common.run)
        return given_direction(
            problem, pairs.vectors[0], kind="eigenvector", description="top Hessian eigenvector"
        )
    return random_direction(problem, seed)
