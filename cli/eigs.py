"""``landscape eigs``: top eigenvalues of the Hessian."""

from __future__ import annotations

import click

from landscape.results import Cost

from .measuring import measure_each
from .options import Measuring, measuring


@click.command("eigs")
@click.option("-k", "k", default=1, show_default=True, help="How many, from the top.")
@click.option(
    "--method",
    type=click.Choice(["lanczos", "power"]),
    default="lanczos",
    show_default=True,
    help="Lanczos with full reorthogonalisation, or deflated power iteration.",
)
@click.option(
    "--tol",
    default=1e-4,
    show_default=True,
    help="Residual ‖Hv − θv‖ to reach, relative to the largest |θ|.",
)
@click.option("--max-matvecs", default=1000, show_default=True, help="HVPs to spend at most.")
@measuring
def command(told: Measuring, k: int, method: str, tol: float, max_matvecs: int) -> None:
    """Find the k largest (algebraic) eigenvalues of the Hessian of the loss.

    Each comes with its true residual ‖Hv − θv‖: some eigenvalue lies within it of θ.

    \b
    Example:
      landscape eigs sgd.pt sam.pt --problem digits -k 5
    """
    from landscape.measure.eigenpairs import top_eigenpairs

    measure_each(
        told,
        lambda problem, study: top_eigenpairs(
            problem,
            k,
            method=method,
            tol=tol,
            max_matvecs=max_matvecs,
            seed=told.seed,
            study=study,
            progress=told.progress,
        ),
        price=lambda problem: Cost(forwards=1, hvps=max_matvecs),
    )
