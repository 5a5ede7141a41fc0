"""``landscape eigs``: extreme eigenvalues of a curvature operator."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from .measuring import MAX_MATVECS, measure_each, measure_layers, price_of_eigenpairs
from .options import CommonOptions, measuring
from .output import print_rows
from .spectral import spectral

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Eigenpairs
    from landscape.study import Study


@click.command("eigs")
@click.option("-k", "k", default=1, show_default=True, help="How many, from the top.")
@click.option("--both-ends", is_flag=True, help="The k smallest too, in the same run.")
@click.option("--layers", is_flag=True, help="Of each layer's diagonal block instead.")
@spectral
@click.option(
    "--method",
    type=click.Choice(["lanczos", "power"]),
    default="lanczos",
    show_default=True,
    help="Thick-restart Lanczos, or deflated power iteration.",
)
@click.option(
    "--tol",
    default=1e-4,
    show_default=True,
    help="Residual ‖Hv − θv‖ to reach, relative to the largest |θ|.",
)
@click.option(
    "--max-matvecs", default=MAX_MATVECS, show_default=True, help="Products to spend at most."
)
@click.option(
    "--block", default=1, show_default=True, help="Random vectors to start from; for clusters."
)
@click.option(
    "--warm-start/--cold-start",
    default=True,
    show_default=True,
    help="Start each checkpoint from the eigenvectors of the one before and a random vector.",
)
@click.option(
    "--ggn-split",
    is_flag=True,
    help="Say how much of each is Gauss-Newton, how much rest.",
)
@click.option(
    "--data-groups",
    type=int,
    default=None,
    show_default="8 to 16",
    help="Groups of examples for the error over another sample; 0: leave it out.",
)
@click.option(
    "--evidence",
    type=click.Choice(["full", "residuals"]),
    default="full",
    show_default=True,
    help="Residuals alone: no search for missed eigenvalues, no error over the data.",
)
@click.option(
    "--failure-probability",
    default=0.01,
    show_default=True,
    help="Chance that an eigenvalue is missed, or that a bound fails.",
)
@measuring
def command(
    common: CommonOptions, k: int, layers: bool, warm_start: bool, ggn_split: bool, **options: Any
) -> None:
    """Find the k largest (algebraic) eigenvalues of the Hessian of the loss, with evidence.

    Each comes with its residual ‖Hv − θv‖ (some eigenvalue lies within it of θ), and with
    how far it would move with another sample of the data. Several checkpoints are followed one
    after the other, as over training: give them in order.

    \b
    Examples:
      landscape eigs sgd.pt sam.pt --problem digits -k 5
      landscape eigs run/*.pt --problem task.py -k 3 --study run.db
      landscape eigs sgd.pt --problem digits --params head --both-ends --operator ggn
    """
    from landscape.curvature import eigenpairs_by_layer, top_eigenpairs

    options |= {"seed": common.seed, "progress": common.progress, "split": ggn_split}
    pairs = 2 * k if options["both_ends"] else k
    has_data_error = options["data_groups"] != 0 and options["evidence"] == "full"
    price = price_of_eigenpairs(
        pairs,
        max_matvecs=options["max_matvecs"],
        data_error=has_data_error,
        ggn_split=ggn_split,
    )
    if layers:
        measure_layers(
            common,
            lambda problem, study: eigenpairs_by_layer(problem, k, study=study, **options),
            price=lambda problem: price,
        )
        return
    found: list[Eigenpairs] = []

    def measure(problem: Problem, study: Study) -> Eigenpairs:
        start = found[-1] if warm_start and found and options["method"] == "lanczos" else None
        found.append(top_eigenpairs(problem, k, start=start, study=study, **options))
        return found[-1]

    measure_each(common, measure, price=lambda problem: price)
    if not common.as_json and k > 1 and all(pairs.vectors.size for pairs in found):
        _print_overlaps(found)


def _print_overlaps(found: list[Eigenpairs]) -> None:
    from landscape.curvature import overlap

    for first, second in pairwise(found):
        print_rows(overlap(first, second).rows())
