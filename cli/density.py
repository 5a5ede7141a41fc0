"""``landscape density``: the spectral density of a curvature operator."""

from __future__ import annotations

from typing import Any

import click

from landscape.results import Cost

from .measuring import measure_each
from .options import CommonOptions, measuring
from .spectral import spectral


@click.command("density")
@spectral
@click.option(
    "--outliers",
    "-k",
    default=5,
    show_default=True,
    help="Largest eigenvalues found by themselves.",
)
@click.option(
    "--steps", default=64, show_default=True, help="Lanczos steps of each probe, at most."
)
@click.option("--probes", "n_probes", default=8, show_default=True, help="Random vectors.")
@click.option(
    "--bandwidth",
    default=None,
    type=float,
    help="Width of the smoothing Gaussian, in the unit of λ.  [default: that of the bulk / steps]",
)
@click.option("--confidence", default=0.95, show_default=True, help="Of the band and intervals.")
@measuring
def command(common: CommonOptions, memory: float | None, **options: Any) -> None:
    """Estimate the density of the Hessian's eigenvalues, with its band and the mass below zero.

    \b
    Examples:
      landscape density sgd.pt sam.pt --problem digits --probes 4 --steps 40
      landscape plot --what density -o density.png
    """
    from landscape.curvature import spectral_density

    spent = options["n_probes"] * options["steps"] + max(200, 20 * options["outliers"]) + 2
    measure_each(
        common,
        lambda problem, study: spectral_density(
            problem,
            memory=memory,
            seed=common.seed,
            study=study,
            progress=common.progress,
            **options,
        ),
        price=lambda problem: Cost(forwards=1, hvps=spent),
    )
