"""``landscape doctor``: is this checkpoint set up so that its sharpness can be trusted?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from landscape.errors import InvalidArgumentError

from .measuring import measure_each
from .options import CommonOptions, measuring

if TYPE_CHECKING:
    from landscape.problem import Problem


@click.command("doctor")
@click.option(
    "--held-out", default=None, metavar="SPLIT", help="Compare with the loss on it, e.g. test."
)
@measuring
def command(common: CommonOptions, held_out: str | None) -> None:
    """Check a checkpoint and its problem before sharpness is measured on them.

    Determinism, batching, mode, BatchNorm statistics, gradient and lowest curvature (is it a
    minimum at all?), saturated outputs, data, weights and regulariser; and which measures move
    when the network is rescaled without changing what it computes. Each check says what was
    measured and what to do. Warnings are findings: the exit code is 0 with them too.

    \b
    Example:
      landscape doctor sgd.pt sam.pt --problem digits --held-out test
    """
    from landscape.doctor import PRICE, diagnose

    if held_out == common.split:
        msg = f"--held-out {held_out} is what is examined anyway (--split): name another"
        raise InvalidArgumentError(msg)
    other = None if held_out is None else _other(common, held_out)
    measure_each(
        common,
        lambda problem, study: diagnose(
            problem,
            held_out=None if other is None else other.at(problem),
            study=study,
            seed=common.seed,
            progress=common.progress,
        ),
        price=lambda problem: PRICE,
    )


def _other(common: CommonOptions, split: str) -> Problem:
    base = common.base_problem(common.task(), split=split)
    return base.only(*common.params) if common.params else base
