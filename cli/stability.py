"""``landscape stability``: how large a step of gradient descent the loss bears."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landscape.results import Cost

from .measuring import Price, measure_each
from .options import CommonOptions, common_options
from .runs import run_option
from .sections import PRECISION, WHAT, Command, option

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Result
    from landscape.study import Study


@click.command("stability", cls=Command)
@option("--lr", type=float, default=1.0, section=WHAT, help="Learning rate of the step.")
@option("--sgd-batch", type=int, help="Also the batch sharpness, of batches of so many examples.")
@option("--batches", type=int, default=64, section=PRECISION, help="How many batches are drawn.")
@common_options
@run_option
def command(common: CommonOptions, lr: float, sgd_batch: int | None, batches: int) -> None:
    """Measure critical, directional and batch sharpness, which 2/η is held against.

    Critical: 2/η of the largest step along the gradient that does not raise the loss; directional:
    gᵀHg/‖g‖²; batch: the mean of that over random batches. For the update of another optimizer see
    update_sharpness in Python.

    \b
    Examples:
      landscape stability last.pt --problem task.py --lr 0.1 --sgd-batch 128
      landscape stability --run sgd='run/*.pt' --problem task.py --sgd-batch 128
    """
    from landscape.stability import batch_sharpness, update_sharpness

    def measure(problem: Problem, study: Study) -> list[Result]:
        run = {**common.run, "study": study}
        results: list[Result] = [update_sharpness(problem, lr=lr, **run)]
        if sgd_batch is not None:
            results.append(batch_sharpness(problem, sgd_batch, n_batches=batches, **run))
        return results

    def price(problem: Problem) -> Price:
        passes = 0 if sgd_batch is None else -(-batches * sgd_batch // problem.batches.n_examples)
        of_batches = Cost(gradients=passes + 1, hvps=passes) if passes else Cost()
        most = Cost(forwards=120, gradients=1, hvps=1) + of_batches
        return Price(most, Cost(forwards=10, gradients=1, hvps=1) + of_batches)

    measure_each(common, measure, price=price)
