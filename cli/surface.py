"""``landscape surface``: loss over a plane of two directions."""

from __future__ import annotations

import click

from landscape.results import Cost

from .measuring import measure_each
from .options import Measuring, measuring


@click.command("surface")
@click.option("--points", default=25, show_default=True, help="Points along each axis.")
@click.option("--points-y", default=None, type=int, help="Points along the second axis, if other.")
@click.option("--range", "half_width", default=1.0, show_default=True, help="From −RANGE to RANGE.")
@click.option("--range-y", default=None, type=float, help="The same for the second axis, if other.")
@measuring
def command(
    told: Measuring,
    points: int,
    points_y: int | None,
    half_width: float,
    range_y: float | None,
) -> None:
    """Measure the loss over a plane of two filter-normalised random directions.

    Every point is stored as it is measured: stopped at any instant, the same command goes on.

    \b
    Example:
      landscape surface sgd.pt sam.pt --problem digits --points 25 --range 1
    """
    from landscape.measure.surfaces import span, surface

    x = span(half_width, points)
    y = span(half_width if range_y is None else range_y, points if points_y is None else points_y)
    measure_each(
        told,
        lambda problem, study: surface(
            problem, x=x, y=y, seed=told.seed, study=study, progress=told.progress
        ),
        price=lambda problem: Cost(forwards=len(x) * len(y) + 1),
    )
