"""``landscape trace``: the trace of a curvature operator."""

from __future__ import annotations

from typing import Any

import click

from landscape.results import Cost

from .measuring import measure_each
from .options import CommonOptions, measuring
from .spectral import spectral


@click.command("trace")
@click.option("--layers", is_flag=True, help="Of each layer's block too, from the same probes.")
@spectral
@click.option(
    "--method",
    type=click.Choice(["krylov", "hutch++", "xtrace", "hutchinson"]),
    default="krylov",
    show_default=True,
    help="Estimator; krylov or hutchinson with --layers.",
)
@click.option(
    "--tol",
    "rtol",
    default=0.05,
    show_default=True,
    help="Half-width of the confidence interval to reach, relative to the trace.",
)
@click.option("--confidence", default=0.95, show_default=True, help="Of the interval.")
@click.option("--max-matvecs", default=1000, show_default=True, help="Products to spend at most.")
@measuring
def command(common: CommonOptions, memory: float | None, **options: Any) -> None:
    """Estimate the trace of the Hessian of the loss, until its interval is narrow enough.

    \b
    Examples:
      landscape trace sgd.pt sam.pt --problem digits
      landscape trace sgd.pt --problem digits --layers --tol 0.2
    """
    from landscape.curvature import trace

    measure_each(
        common,
        lambda problem, study: trace(
            problem,
            memory=memory,
            seed=common.seed,
            study=study,
            progress=common.progress,
            **options,
        ),
        price=lambda problem: Cost(forwards=1, hvps=options["max_matvecs"] + 3),
    )
