"""``landscape surface``: loss over a plane of two directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .measuring import measure_each
from .options import Measuring, measuring

if TYPE_CHECKING:
    from landscape.directions import Plane
    from landscape.problem import Problem
    from landscape.results import Surface
    from landscape.study import Study

PLANES = ("random", "eigenvectors", "worst-case", "through", "trajectory")


@click.command("surface")
@click.option(
    "--plane",
    "kind",
    type=click.Choice(PLANES),
    default="random",
    show_default=True,
    help="Two random directions; top eigenvectors; worst case and a random one; through the "
    "checkpoints of --via; principal plane of theirs.",
)
@click.option("--via", multiple=True, metavar="CHECKPOINT", help="For through (2) and trajectory.")
@click.option(
    "--normalisation",
    type=click.Choice(["filter", "layer", "global", "none"]),
    default="filter",
    show_default=True,
    help="Of random directions, to the weights.",
)
@click.option("--biases", is_flag=True, help="Random directions move biases and gains too.")
@click.option(
    "--orthogonal",
    type=click.Choice(["none", "euclidean", "filter"]),
    default="none",
    show_default=True,
    help="Make random directions orthogonal, in this metric.",
)
@click.option("--points", default=25, show_default=True, help="Points along each axis.")
@click.option("--points-y", default=None, type=int, help="Points along the second axis, if other.")
@click.option(
    "--range",
    "half_width",
    default=None,
    type=float,
    help="From −RANGE to RANGE.  [default: 1 for random, a distance of 2 ρ for eigenvectors and "
    "worst-case; what holds the checkpoints of --via]",
)
@click.option("--range-y", default=None, type=float, help="The same for the second axis, if other.")
@click.option("--rho", default=0.05, show_default=True, help="Radius for worst-case.")
@measuring
def command(told: Measuring, via: tuple[str, ...], **asked: Any) -> None:
    """Measure the loss over a plane of two directions through each checkpoint.

    Every point is stored as it is measured: stopped at any instant, the same command goes on.

    \b
    Examples:
      landscape surface sgd.pt sam.pt --problem digits --points 25 --range 1
      landscape surface sgd.pt --problem digits --plane worst-case --rho 0.2
      landscape surface last.pt --problem task.py --plane trajectory --via e1.pt --via e2.pt
    """
    from landscape.measure.surfaces import surface

    needed = {"through": 2, "trajectory": 2}.get(asked["kind"], 0)
    exact = asked["kind"] == "through"
    if len(via) < needed or (exact and len(via) > 2) or (via and not needed):
        number = f"{'two' if exact else 'at least two'} checkpoints" if needed else "none"
        msg = f"--plane {asked['kind']} goes via {number}; got {len(via)}: {', '.join(via)}"
        raise InvalidArgumentError(msg)
    nx = asked["points"]
    ny = nx if asked["points_y"] is None else asked["points_y"]

    def measure(problem: Problem, study: Study) -> Surface:
        plane, ranges = _plane(problem, study, told, via, asked)
        x, y = (_coordinates(*ends, n) for ends, n in zip(ranges, (nx, ny), strict=True))
        return surface(
            problem, plane, x=x, y=y, seed=told.seed, study=study, progress=told.progress
        )

    searching = {"eigenvectors": Cost(hvps=60), "worst-case": Cost(gradients=240, hvps=18)}
    before = searching.get(asked["kind"], Cost())
    price = Cost(forwards=nx * ny + 1, gradients=before.gradients, hvps=before.hvps)
    measure_each(told, measure, price=lambda problem: price)


def _plane(
    problem: Problem, study: Study, told: Measuring, via: tuple[str, ...], asked: dict[str, Any]
) -> tuple[Plane, list[tuple[float, float]]]:
    """Return the plane, and the ends of both axes."""
    from landscape import directions
    from landscape.measure.eigenpairs import top_eigenpairs
    from landscape.measure.sharpness import sharpness

    shared: dict[str, Any] = {"seed": told.seed, "study": study, "progress": told.progress}
    random = {"normalisation": asked["normalisation"], "vectors": asked["biases"]}
    reach = 2.0 * asked["rho"]
    if asked["kind"] == "eigenvectors":
        pairs = top_eigenpairs(problem, 2, **shared)
        return directions.eigenvector_plane(problem, pairs), _symmetric(asked, reach)
    if asked["kind"] == "worst-case":
        found = sharpness(problem, asked["rho"], **shared)
        second = directions.random_direction(problem, told.seed, **random)
        return directions.worst_case_plane(problem, found, second), _symmetric(asked, reach)
    if asked["kind"] == "through":
        plane = directions.plane_through(problem, *via)
        return plane, [(-0.5, 1.5)] * 2 if asked["half_width"] is None else _symmetric(asked, 1.0)
    if asked["kind"] == "trajectory":
        principal = directions.principal_plane(problem, via)
        _say_explained(principal)
        if asked["half_width"] is not None:
            return principal.plane, _symmetric(asked, 1.0)
        return principal.plane, [_around(axis) for axis in principal.trajectory.coordinates.T]
    plane = directions.random_plane(problem, told.seed, orthogonal=asked["orthogonal"], **random)
    return plane, _symmetric(asked, 1.0)


def _symmetric(asked: dict[str, Any], usual: float) -> list[tuple[float, float]]:
    x = usual if asked["half_width"] is None else asked["half_width"]
    y = x if asked["range_y"] is None else asked["range_y"]
    return [(-x, x), (-y, y)]


def _around(coordinates: Any) -> tuple[float, float]:
    """Return a range that holds the checkpoints and the origin, with a quarter to spare."""
    low, high = min(0.0, float(coordinates.min())), max(0.0, float(coordinates.max()))
    margin = 0.25 * (high - low)
    return low - margin, high + margin


def _coordinates(low: float, high: float, n: int) -> Any:
    import numpy as np

    from landscape.measure.surfaces import span

    return span(high, n) if low == -high else np.linspace(low, high, n)


def _say_explained(principal: Any) -> None:
    shares = " and ".join(f"{share:.1%}" for share in principal.explained)
    click.echo(f"The plane holds {shares} of the run along its two axes.", err=True)
