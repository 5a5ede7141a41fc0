"""``landscape trace``: the trace of a curvature operator."""

from __future__ import annotations

from typing import Any

import click

from landscape.results import Cost

from .library_options import library_options
from .measuring import measure_each
from .options import CommonOptions, common_options
from .runs import run_option
from .sections import WHAT, Command


@click.command("trace", cls=Command)
@library_options("curvature.trace", "layers", "operator", "scale", section=WHAT)
@library_options(
    "curvature.trace", *("method", "confidence", "max_matvecs", "products", "memory"), rtol="--tol"
)
@common_options
@run_option
def command(common: CommonOptions, **options: Any) -> None:
    """Estimate the trace of the Hessian of the loss, until its interval is narrow enough.

    \b
    Examples:
      landscape trace sgd.pt sam.pt --problem digits
      landscape trace sgd.pt --problem digits --layers --tol 0.2
    """
    from landscape.curvature import trace

    measure_each(
        common,
        lambda problem, study: trace(problem, study=study, **common.run, **options),
        price=lambda problem: Cost(forwards=1, hvps=options["max_matvecs"] + 3),
    )
