"""``landscape density``: the spectral density of a curvature operator."""

from __future__ import annotations

from typing import Any

import click

from landscape.results import Cost

from .library_options import library_options
from .measuring import measure_each
from .options import CommonOptions, common_options
from .runs import run_option
from .sections import WHAT, Command


@click.command("density", cls=Command)
@library_options("curvature.spectral_density", "operator", "scale", section=WHAT)
@library_options(
    "curvature.spectral_density",
    *("steps", "bandwidth", "confidence", "products", "memory", "basis"),
    outliers="--outliers -k",
    n_probes="--probes",
)
@common_options
@run_option
def command(common: CommonOptions, **options: Any) -> None:
    """Estimate the density of the Hessian's eigenvalues, with its band and the mass below zero.

    \b
    Examples:
      landscape density sgd.pt sam.pt --problem digits --probes 4 --steps 40
      landscape plot --what density -o density.png
    """
    from landscape.curvature import spectral_density

    hvps = options["n_probes"] * options["steps"] + max(200, 20 * options["outliers"]) + 2
    measure_each(
        common,
        lambda problem, study: spectral_density(problem, study=study, **common.run, **options),
        price=lambda problem: Cost(forwards=1, hvps=hvps),
    )
