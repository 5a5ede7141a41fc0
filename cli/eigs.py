"""``landscape eigs``: extreme eigenvalues of a curvature operator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import click

from .library_options import library_options
from .measuring import measure_each, price_of_eigenpairs
from .options import CommonOptions, common_options
from .output import print_rows
from .runs import run_option
from .sections import WHAT, Command, option

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Eigenpairs, Result
    from landscape.study import Study


@click.command("eigs", cls=Command)
@library_options(
    "curvature.top_eigenpairs", "both_ends", section=WHAT, k="-k", split="--ggn-split ggn_split"
)
@click.option("--layers", is_flag=True, help="Measure each layer's diagonal block instead.")
@library_options("curvature.top_eigenpairs", "operator", "scale", section=WHAT)
@library_options(
    "curvature.top_eigenpairs",
    *("method", "tol", "max_matvecs", "block", "data_groups", "evidence", "failure_probability"),
    *("products", "memory", "basis"),
)
@option(
    "--warm-start/--cold-start",
    section="How precisely",
    default=True,
    help="Start each checkpoint from the eigenvectors of the previous one and a random vector.",
)
@common_options
@run_option
def command(
    common: CommonOptions, k: int, layers: bool, warm_start: bool, ggn_split: bool, **options: Any
) -> None:
    """Find the k largest (algebraic) eigenvalues of the Hessian of the loss, with evidence.

    ± is the standard error over another sample of the data; some eigenvalue lies within the
    residual ‖Hv − θv‖ of each. Several checkpoints are followed one after the other, as over
    training: give them in order.

    \b
    Examples:
      landscape eigs sgd.pt sam.pt --problem digits -k 5
      landscape eigs run/*.pt --problem task.py -k 3 --study run.db
      landscape eigs sgd.pt --problem digits --params head --both-ends --operator ggn
    """
    from landscape.curvature import eigenpairs_by_layer, top_eigenpairs

    options |= {"split": ggn_split, **common.run}
    price = price_of_eigenpairs(
        2 * k if options["both_ends"] else k,
        max_matvecs=options["max_matvecs"],
        data_error=options["data_groups"] != 0 and options["evidence"] == "full",
        ggn_split=ggn_split,
    )
    previous: list[Eigenpairs] = []

    def measure(problem: Problem, study: Study) -> Sequence[Result]:
        if layers:
            return list(eigenpairs_by_layer(problem, k, study=study, **options).values())
        follows = warm_start and previous and options["method"] == "lanczos"
        start = previous[-1] if follows else None
        previous.append(top_eigenpairs(problem, k, start=start, study=study, **options))
        return previous[-1:]

    measure_each(
        common,
        measure,
        price=lambda problem: price * (len(problem.space.layers()) if layers else 1),
        summarise=None if layers or k == 1 else _print_overlaps,
    )


def _print_overlaps(measured: Sequence[Sequence[Result]]) -> None:
    from landscape.curvature import overlap

    pairs = [cast("Eigenpairs", results[0]) for results in measured]
    for first, second in pairwise(pairs):
        if first.vectors.size and second.vectors.size:
            print_rows(overlap(first, second).rows())
