"""``landscape surface``: loss over a plane of two directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .library_options import library_options
from .measuring import measure_each
from .options import CommonOptions, common_options
from .planes import PlaneOptions, plane_options
from .pointwise import PointOptions, coordinates, ends_of, point_options
from .sections import Command, refuse_given

if TYPE_CHECKING:
    from collections.abc import Mapping

    from landscape.problem import Problem
    from landscape.results import Surface
    from landscape.study import Study
    from landscape.surface import Direction, Plane


@click.command("surface", cls=Command)
@click.option("--points", default=25, type=click.IntRange(min=2), help="Points along each axis.")
@click.option(
    "--points-y",
    type=click.IntRange(min=2),
    help="Points along the second axis.  [default: --points]",
)
@click.option("--range-y", metavar="R|LO,HI", help="Range of the second axis.  [default: --range]")
@library_options("surface.surface", "tolerance", "criterion", "max_points")
@common_options
@point_options(
    default_range="1 for random, a distance of 2 ρ for eigenvectors and worst-case; what holds "
    "the checkpoints of --via"
)
@plane_options
def command(
    common: CommonOptions,
    at_points: PointOptions,
    plane: PlaneOptions,
    points: int,
    points_y: int | None,
    range_y: str | None,
    **adaptive: Any,
) -> None:
    """Measure the loss over a plane of two directions through each checkpoint.

    Every point is saved as it is measured: stopped at any instant, the same command goes on.

    \b
    Examples:
      landscape surface sgd.pt sam.pt --problem digits --points 25 --range 1
      landscape surface sgd.pt sam.pt --problem digits --points 51 --tolerance 0.001
      landscape surface sgd.pt --problem digits --plane worst-case --rho 0.2
      landscape surface last.pt --problem task.py --plane trajectory --via 'run/*.pt'
    """
    from landscape.surface import surface

    if not adaptive["tolerance"]:
        refuse_given(["criterion"], "is of an interpolated surface: give --tolerance too")
    sizes = (points, points if points_y is None else points_y)

    def prepare(problems: Mapping[str, Problem], study: Study) -> None:
        def axes(problem: Problem) -> tuple[Direction, ...]:
            spanned, _ = plane.find(problem, study)
            return spanned.x, spanned.y

        at_points.prepare(problems, study, axes)

    def measure(problem: Problem, study: Study) -> Surface:
        def spanned(at: Problem) -> Plane:
            return plane.find(at, study)[0]

        own, default = plane.find(problem, study)
        ends = [at_points.ends(default[axis], axis) for axis in (0, 1)]
        if range_y is not None:
            ends[1] = ends_of("--range-y", range_y)
        x, y = (coordinates(pair, n) for pair, n in zip(ends, sizes, strict=True))
        keywords = at_points.keywords(problem, spanned)
        return surface(problem, own, x=x, y=y, study=study, **adaptive, **keywords)

    price = at_points.price(sizes[0] * sizes[1], plane.price, axes=2)
    measure_each(common, measure, price=lambda problem: price, prepare=prepare)
