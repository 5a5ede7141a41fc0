"""``landscape average``: the average rise of the loss under random noise on the weights."""

from __future__ import annotations

from typing import Any

import click

from landscape.results import Cost

from .measuring import measure_each
from .options import CommonOptions, measuring


@click.command("average")
@click.option(
    "--sigma",
    "sigmas",
    multiple=True,
    type=float,
    help="Size σ of the noise; several, ascending, give a profile with the same noise scaled."
    "  [default: 0.05]",
)
@click.option("--rho", "rhos", multiple=True, type=float, hidden=True)
@click.option(
    "--distribution",
    type=click.Choice(["gaussian", "ball", "sphere", "box"]),
    default="gaussian",
    show_default=True,
    help="Gaussian of standard deviation σ for each weight; uniform in the ball or on the sphere "
    "of radius σ, or in the box [−σ, σ].",
)
@click.option(
    "--adaptive",
    type=click.Choice(["none", "elementwise", "filterwise"]),
    default="none",
    show_default=True,
    help="Relative to |w| + η, or to the norms of the filters + η.",
)
@click.option("--eta", default=0.0, show_default=True, help="η of the adaptive scale.")
@click.option("--samples", "n_samples", default=32, show_default=True, help="Draws to begin with.")
@click.option(
    "--tol",
    "relative_error",
    default=0.1,
    show_default=True,
    help="Half-width of the 95 % interval to reach, relative to the average.",
)
@click.option("--max-samples", default=128, show_default=True, help="Draws to spend at most.")
@click.option(
    "--prediction/--no-prediction",
    default=True,
    show_default=True,
    help="What the quadratic model predicts, from 16 Hessian-vector products.",
)
@click.option(
    "--tune",
    is_flag=True,
    help="Choose how to evaluate by a short timing, for long runs; can change roundings.",
)
@measuring
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
    check_profile(sizes, seed=common.seed, **options)  # said before anything is loaded
    passes = len(sizes) * (2 * options["max_samples"] + 1)
    measure_each(
        common,
        lambda problem, study: average_profile(
            problem, sizes, seed=common.seed, study=study, progress=common.progress, **options
        ),
        price=lambda problem: Cost(forwards=passes, hvps=N_PROBES * options["prediction"]),
    )
