"""``landscape surface``: loss over a plane of two directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .idle import refuse_given
from .measuring import measure_each
from .options import CommonOptions, measuring
from .planes import PlaneOptions, make_plane, plane_options
from .pointwise import Pointwise, coordinates, ends_of, pointwise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from landscape.problem import Problem
    from landscape.results import Surface
    from landscape.study import Study
    from landscape.surface import Plane


@click.command("surface")
@click.option(
    "--points",
    default=25,
    show_default=True,
    type=click.IntRange(min=2),
    help="Points along each axis.",
)
@click.option(
    "--points-y",
    default=None,
    type=click.IntRange(min=2),
    help="Points along the second axis, if other.",
)
@click.option(
    "--range-y", default=None, metavar="R|LO,HI", help="Range of the second axis, if other."
)
@click.option(
    "--tolerance",
    default=0.0,
    show_default=True,
    help="Measure as few points as an interpolation within it takes, e.g. 0.001; 0: all.",
)
@click.option(
    "--criterion",
    type=click.Choice(["range", "log"]),
    default="range",
    show_default=True,
    help="The tolerance is relative to the range of the losses; or one of ln(loss), finer near "
    "the minimum.",
)
@click.option(
    "--max-points", default=None, type=click.IntRange(min=1), help="Limit for --tolerance."
)
@measuring
@pointwise(
    usual="1 for random, a distance of 2 ρ for eigenvectors and worst-case; what holds the "
    "checkpoints of --via"
)
@plane_options
def command(
    common: CommonOptions,
    each: Pointwise,
    plane: PlaneOptions,
    points: int,
    points_y: int | None,
    range_y: str | None,
    **adaptive: Any,
) -> None:
    """Measure the loss over a plane of two directions through each checkpoint.

    Every point is stored as it is measured: stopped at any instant, the same command goes on.

    \b
    Examples:
      landscape surface sgd.pt sam.pt --problem digits --points 25 --range 1
      landscape surface sgd.pt sam.pt --problem digits --points 51 --tolerance 0.001
      landscape surface sgd.pt --problem digits --plane worst-case --rho 0.2
      landscape surface last.pt --problem task.py --plane trajectory --via e1.pt --via e2.pt
    """
    from landscape.surface import surface

    if not adaptive["tolerance"]:
        refuse_given(["criterion"], "is of an interpolated surface: give --tolerance too")
    sizes = (points, points if points_y is None else points_y)

    def prepare(problems: Mapping[str, Problem], study: Study) -> None:
        def axes(problem: Problem) -> Any:
            found, _ = make_plane(problem, study, common, plane)
            return found.x, found.y

        each.prepare(problems, study, axes)

    def measure(problem: Problem, study: Study) -> Surface:
        def spanned(at: Problem) -> Plane:
            return make_plane(at, study, common, plane)[0]

        found, usual = make_plane(problem, study, common, plane)
        ends = [each.ends(usual[axis], axis) for axis in (0, 1)]
        if range_y is not None:
            ends[1] = ends_of("--range-y", range_y)
        x, y = (coordinates(*span, n) for span, n in zip(ends, sizes, strict=True))
        return surface(
            problem,
            found,
            x=x,
            y=y,
            seed=common.seed,
            **adaptive,
            **each.arguments(problem, spanned),
            study=study,
            progress=common.progress,
        )

    price = each.price(sizes[0] * sizes[1], plane.price, axes=2)
    measure_each(common, measure, price=lambda problem: price, prepare=prepare)
