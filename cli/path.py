"""``landscape path``: loss along a path between two checkpoints."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .idle import refuse_given
from .measuring import print_price
from .options import CommonOptions, measuring
from .output import print_results


@click.command("path")
@click.option(
    "--curve",
    type=click.Choice(["linear", "bezier", "polygon"]),
    default="linear",
    show_default=True,
    help="A straight line; or a Bezier curve or polygonal chain, trained to have a low loss.",
)
@click.option("--bends", default=1, show_default=True, help="Bends of a curve.")
@click.option(
    "--points",
    default=51,
    show_default=True,
    type=click.IntRange(min=3),
    help="Number of points, the ends too.",
)
@click.option("--epochs", default=50, show_default=True, help="Passes to train a curve.")
@click.option("--lr", default=0.05, show_default=True, help="Learning rate to train a curve.")
@click.option("--weight-decay", default=0.0, show_default=True, help="To train a curve.")
@click.option(
    "--statistics",
    type=click.Choice(["recalibrated", "frozen", "interpolated"]),
    default=None,
    help="Of BatchNorm at each point: gathered anew, those of the first checkpoint, or (only on a "
    "line) interpolated.  [default: recalibrated]",
)
@click.option("--held-out", default=None, metavar="SPLIT", help="Measure these data too.")
@measuring
def command(common: CommonOptions, points: int, held_out: str | None, **asked: Any) -> None:
    """Measure the loss from one CHECKPOINT to another, and the barrier between the two.

    Every point is stored as it is measured, and a curve after every epoch of its training:
    stopped at any instant, the same command goes on.

    \b
    Examples:
      landscape path sgd.pt sam.pt --problem digits --held-out test
      landscape path one.pt two.pt --problem task.py --curve bezier --epochs 100
    """
    from landscape.study import Study
    from landscape.surface import path

    if len(common.checkpoints) != 2:
        msg = (
            "a path leads from one checkpoint to another: give two, got "
            f"{len(common.checkpoints)}: {' '.join(common.files)}"
        )
        raise InvalidArgumentError(msg)
    _refuse_idle(asked["curve"])
    task = common.task()
    problem, end = common.problems(common.base_problem(task)).values()
    other = None if held_out is None else common.base_problem(task, split=held_out)
    if other is not None and common.params:
        other = other.only(*common.params)
    if common.dry_run:
        route = f"{problem.name} to {end.name}"
        price = _price(problem, points, asked, other)
        print_price({route: problem}, lambda problem: price, as_json=common.as_json)
        return
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with Study(common.study) as study:
        study.set_name(end.name, end.checkpoint_hash, end.path)
        result = path(
            problem,
            end,
            n=points,
            held_out=other,
            seed=common.seed,
            study=study,
            progress=common.progress,
            **asked,
        )
    print_results([result], as_json=common.as_json, study=common.study, since=started)


def _price(problem: Any, points: int, asked: dict[str, Any], held_out: Any) -> Cost:
    from landscape.evaluate import normalisers

    gathered = bool(normalisers(problem.model)) and asked["statistics"] in (None, "recalibrated")
    each = 1 + gathered + (held_out is not None)
    trained = 0 if asked["curve"] == "linear" else asked["epochs"]
    return Cost(forwards=each * points + 2, gradients=trained)


def _refuse_idle(curve: str) -> None:
    """Refuse settings of a training that there is none of."""
    if curve == "linear":
        why = "is of a trained curve: give --curve bezier or polygon too"
        refuse_given(["bends", "epochs", "lr", "weight_decay"], why)
