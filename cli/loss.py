"""``landscape loss``: loss, metrics and gradient norm."""

from __future__ import annotations

import click

from landscape.results import Cost

from .measuring import measure_each
from .options import CommonOptions, common_options
from .runs import run_option
from .sections import Command


@click.command("loss", cls=Command)
@common_options
@run_option
def command(common: CommonOptions) -> None:
    """Measure the loss, its metrics and the norm of its gradient, with the standard error.

    \b
    Examples:
      landscape loss sgd.pt sam.pt --problem digits --split test
      landscape loss --run sgd='run/*.pt' --problem task.py
    """
    from landscape.loss import evaluation

    measure_each(
        common,
        lambda problem, study: evaluation(problem, seed=common.seed, study=study),
        price=lambda problem: Cost(forwards=1, gradients=1),
    )
