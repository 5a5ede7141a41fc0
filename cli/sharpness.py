"""``landscape sharpness``: the largest rise of the loss within a ball."""

from __future__ import annotations

import click

from landscape.results import Cost

from .measuring import measure_each
from .options import Measuring, measuring


@click.command("sharpness")
@click.option("--rho", default=0.05, show_default=True, help="Radius of the ball.")
@click.option("--p", "p", default=2.0, show_default=True, help="Norm of the ball, 1 to inf.")
@click.option("--tol", default=1e-4, show_default=True, help="Relative optimality gap to reach.")
@click.option(
    "--max-gradients",
    default=200,
    show_default=True,
    help="Gradient passes to spend at most, after scouting the starts.",
)
@measuring
def command(told: Measuring, rho: float, p: float, tol: float, max_gradients: int) -> None:
    """Measure max over ‖ε‖ₚ ≤ ρ of L(w+ε) − L(w), with how good the maximum found is.

    The value is a lower bound, with its optimality gap; the one-step value that SAM uses stands
    beside it.

    \b
    Example:
      landscape sharpness sgd.pt sam.pt --problem digits --rho 0.2
    """
    from landscape.balls import Ball
    from landscape.measure.sharpness import sharpness

    Ball(rho, p)  # a bad radius or norm is said before anything is loaded
    measure_each(
        told,
        lambda problem, study: sharpness(
            problem,
            rho,
            p=p,
            tol=tol,
            max_gradients=max_gradients,
            seed=told.seed,
            study=study,
            progress=told.progress,
        ),
        price=lambda problem: Cost(gradients=40 + max_gradients, hvps=18),
    )
