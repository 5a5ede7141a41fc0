"""``landscape flatness``: the other measures of flatness of the field."""

from __future__ import annotations

from typing import Any

import click

from landscape.results import Cost

from .measuring import measure_each
from .options import CommonOptions, measuring


@click.command("flatness")
@click.option("--rho", default=0.05, show_default=True, help="Radius of the surrogate gap.")
@click.option(
    "--rise",
    default=0.1,
    show_default=True,
    help="Average rise of the loss that the noise of 1/σ² is found for.",
)
@click.option(
    "--samples", "n_samples", default=16, show_default=True, help="Draws of the noise for 1/σ²."
)
@click.option(
    "--tol",
    "relative_error",
    default=0.05,
    show_default=True,
    help="Half-width of the 95 % interval of the relative flatness to reach, relative to it.",
)
@click.option("--max-products", default=200, show_default=True, help="Products to spend at most.")
@measuring
def command(common: CommonOptions, **options: Any) -> None:
    """Measure Fisher-Rao norm, relative flatness, surrogate gap and 1/σ², with their errors.

    A star marks what does not change when layers of a ReLU network are rescaled.

    \b
    Example:
      landscape flatness sgd.pt sam.pt --problem digits
    """
    from landscape.sharpness import MOST_SIGMAS, flatness

    passes = 2 * 2 * MOST_SIGMAS * options["n_samples"] + 3
    measure_each(
        common,
        lambda problem, study: flatness(
            problem, seed=common.seed, study=study, progress=common.progress, **options
        ),
        price=lambda problem: Cost(forwards=passes, gradients=1, hvps=options["max_products"] + 1),
    )
