"""``landscape path``: loss along a path between two checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .library_options import library_options
from .measuring import measure_each
from .options import CommonOptions, common_options
from .sections import WHAT, Command, refuse_given

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Result
    from landscape.study import Study


@click.command("path", cls=Command)
@library_options("surface.path", "curve", section=WHAT)
@library_options("surface.CurveTraining", "bends", section=WHAT)
@click.option(
    "--points", default=51, type=click.IntRange(min=3), help="Number of points, the ends too."
)
@library_options("surface.path", "statistics", section=WHAT)
@click.option("--held-out", metavar="SPLIT", help="Measure this split too, e.g. test.")
@library_options("surface.CurveTraining", "epochs", "lr", "weight_decay")
@common_options
def command(common: CommonOptions, points: int, held_out: str | None, **options: Any) -> None:
    """Measure the loss from one CHECKPOINT to another, and the barrier between the two.

    Every point is saved as it is measured, and a curve after every epoch of its training:
    stopped at any instant, the same command goes on.

    \b
    Examples:
      landscape path sgd.pt sam.pt --problem digits --held-out test
      landscape path one.pt two.pt --problem task.py --curve bezier --epochs 100
    """
    from landscape.surface import path

    if len(common.checkpoints) != 2:
        msg = (
            "a path leads from one checkpoint to another: give two, got "
            f"{len(common.checkpoints)}: {' '.join(common.files)}"
        )
        raise InvalidArgumentError(msg)
    if options["curve"] == "linear":
        why = "is of a trained curve: give --curve bezier or polygon too"
        refuse_given(["bends", "epochs", "lr", "weight_decay"], why)
    problem, end = common.problems().values()
    other = common.held_out(held_out)

    def measure(problem: Problem, study: Study) -> Result:
        if not study.readonly:
            study.set_name(end.name, end.checkpoint_hash, end.path)
        return path(problem, end, n=points, held_out=other, study=study, **common.run, **options)

    def price(problem: Problem) -> Cost:
        from landscape.evaluate import normalisers

        is_recalibrated = bool(normalisers(problem.model)) and options["statistics"] in (
            None,
            "recalibrated",
        )
        passes = 1 + is_recalibrated + (other is not None)
        trained = 0 if options["curve"] == "linear" else options["epochs"]
        return Cost(forwards=passes * points + 2, gradients=trained)

    measure_each(common, measure, price=price, problems={problem.name: problem})
