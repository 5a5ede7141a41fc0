"""``landscape average``: the average rise of the loss under random noise on the weights."""

from __future__ import annotations

from typing import Any

import click

from landscape.results import Cost

from .library_options import library_options
from .measuring import measure_each
from .options import CommonOptions, common_options
from .runs import run_option
from .sections import WHAT, Command


@click.command("average", cls=Command)
@click.option(
    "--sigma",
    "sigmas",
    multiple=True,
    type=float,
    help="Size σ of the noise; several, ascending, give a profile with the same noise scaled."
    "  [default: 0.05]",
)
@click.option("--rho", "rhos", multiple=True, type=float, hidden=True)
@library_options("sharpness.SamplingOptions", "distribution", "adaptive", "eta", section=WHAT)
@library_options(
    "sharpness.SamplingOptions",
    *("max_samples", "prediction", "tune"),
    n_samples="--samples",
    relative_error="--tol",
)
@common_options
@run_option
def command(
    common: CommonOptions, sigmas: tuple[float, ...], rhos: tuple[float, ...], **options: Any
) -> None:
    """Measure the average rise of the loss, E[L(w+ε) − L(w)], with its interval.

    Every draw of ε is tried with both signs, and is the same for every checkpoint.

    \b
    Examples:
      landscape average sgd.pt sam.pt --problem digits --sigma 0.05
      landscape average sgd.pt --problem digits --adaptive elementwise --sigma 0.1 --sigma 0.2
    """
    from landscape.sharpness import N_PROBES, average_profile, check_profile

    if rhos:
        click.echo("Notice: --rho of this command is called --sigma.", err=True)
    sizes = sigmas or rhos or (0.05,)
    check_profile(sizes, seed=common.seed, **options)  # before anything is loaded
    passes = len(sizes) * (2 * options["max_samples"] + 1)
    measure_each(
        common,
        lambda problem, study: average_profile(
            problem, sizes, study=study, **common.run, **options
        ),
        price=lambda problem: Cost(forwards=passes, hvps=N_PROBES * options["prediction"]),
    )
