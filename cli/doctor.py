"""``landscape doctor``: is this checkpoint set up so that its sharpness can be trusted?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import click

from .measuring import measure_each
from .options import CommonOptions, common_options
from .output import print_line, print_rows
from .sections import Command

if TYPE_CHECKING:
    from landscape.results import Result
    from landscape.results.diagnoses import Diagnosis


@click.command("doctor", cls=Command)
@click.option("--held-out", metavar="SPLIT", help="Compare with the loss on this split, e.g. test.")
@common_options
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

    other = common.held_out(held_out)
    measure_each(
        common,
        lambda problem, study: diagnose(
            problem,
            held_out=None if other is None else other.at(problem),
            study=study,
            **common.run,
        ),
        price=lambda problem: PRICE,
        introduce=_print_verdicts,
        summarise=_print_checks,
    )


def _print_verdicts(results: Sequence[Result]) -> None:
    for result in results:
        diagnosis = cast("Diagnosis", result)
        warned = [check.name for check in diagnosis.checks if check.verdict == "warning"]
        # warnings last, with the names of the checks
        counts = sorted(diagnosis.counted, key=lambda text: "warning" in text)
        names = f": {', '.join(warned)}" if warned else ""
        style = "bold yellow" if warned else "bold green"
        print_line(f"{diagnosis.name}: {', '.join(counts)}{names}", style)


def _print_checks(measured: Sequence[Sequence[Result]]) -> None:
    for (diagnosis,) in measured:
        click.echo(f"\n{diagnosis.name}")
        print_rows(diagnosis.rows(), indent="  ")
