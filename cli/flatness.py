"""``landscape flatness``: the field's other measures of flatness."""

from __future__ import annotations

from typing import Any

import click

from landscape.results import Cost

from .library_options import library_options
from .measuring import measure_each
from .options import CommonOptions, common_options
from .runs import run_option
from .sections import WHAT, Command


@click.command("flatness", cls=Command)
@library_options("sharpness.flatness", "rho", "rise", section=WHAT)
@library_options(
    "sharpness.flatness", "max_products", n_samples="--samples", relative_error="--tol"
)
@common_options
@run_option
def command(common: CommonOptions, **options: Any) -> None:
    """Measure Fisher-Rao norm, relative flatness, surrogate gap and 1/σ², with their errors.

    Fisher-Rao norm and relative flatness do not change when layers of a ReLU network are rescaled.

    \b
    Example:
      landscape flatness sgd.pt sam.pt --problem digits
    """
    from landscape.sharpness import MOST_SIGMAS, flatness

    passes = 2 * 2 * MOST_SIGMAS * options["n_samples"] + 3
    measure_each(
        common,
        lambda problem, study: flatness(problem, study=study, **common.run, **options),
        price=lambda problem: Cost(forwards=passes, gradients=1, hvps=options["max_products"] + 1),
    )
