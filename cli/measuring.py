"""What every measurement command does: build the problems, price or measure them, print a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landscape.results import Cost

from .options import CommonOptions
from .output import print_results, print_table, to_json

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Result
    from landscape.study import Study

    Measure = Callable[[Problem, Study], Result | Sequence[Result]]

HVP_IN_GRADIENTS = 2.5  # between a kept graph and a recomputed one
SCOUTING = 80  # gradient passes of a sharpness search before max_gradients counts
# The quadratic model, three checks of the second-order condition, three second-order steps.
SEARCH_HVPS = 8 + 3 * 12 + 3 * 11
SEARCH = Cost(forwards=2, gradients=SCOUTING + 200, hvps=SEARCH_HVPS)  # sharpness, p = 2
MAX_MATVECS = 1000  # default of top_eigenpairs


def price_of_eigenpairs(
    pairs: int, *, max_matvecs: int = MAX_MATVECS, data_error: bool = True, ggn_split: bool = False
) -> Cost:
    """Return an upper bound on the passes of a search for eigenpairs."""
    return Cost(forwards=1, hvps=max_matvecs + pairs * (data_error + ggn_split) + 3)


def measure_each(
    common: CommonOptions,
    measure: Measure,
    *,
    price: Callable[[Problem], Cost],
    prepare: Callable[[Mapping[str, Problem], Study], None] | None = None,
    summarise: Callable[[Sequence[Sequence[Result]]], None] | None = None,
) -> None:
    """Measure every checkpoint, save each result, and print one table.

    Args:
        common: the options shared by all measurement commands.
        measure: measures one checkpoint.
        price: upper bound on the passes of one checkpoint.
        prepare: called with all problems before the first is measured.
        summarise: called with the results of each checkpoint, to print more than the table.
    """
    measure_problems(
        common, common.problems(), measure, price=price, prepare=prepare, summarise=summarise
    )


def measure_problems(
    common: CommonOptions,
    problems: Mapping[str, Problem],
    measure: Measure,
    *,
    price: Callable[[Problem], Cost],
    prepare: Callable[[Mapping[str, Problem], Study], None] | None = None,
    summarise: Callable[[Sequence[Sequence[Result]]], None] | None = None,
) -> None:
    """Measure problems by name, see `measure_each`."""
    from landscape.measurement import n_begun
    from landscape.progress import labelled
    from landscape.study import Study

    if common.dry_run:
        print_price(common, problems, price, measure)
        return
    measured, n_recalled = [], 0
    with Study(common.study) as study:
        if prepare is not None:
            prepare(problems, study)
        for number, problem in enumerate(problems.values(), start=1):
            begun = n_begun()
            with labelled(f"{number} of {len(problems)}: " if len(problems) > 1 else ""):
                results = measure(problem, study)
            measured.append(results if isinstance(results, Sequence) else [results])
            n_recalled += len(measured[-1]) if n_begun() == begun else 0
        common.save_runs(study, problems.values())
    flat = [result for results in measured for result in results]
    print_results(flat, common.output_format, study=common.study, n_recalled=n_recalled)
    if summarise is not None and common.output_format == "table":
        summarise(measured)


def print_price(
    common: CommonOptions,
    problems: Mapping[str, Problem],
    price: Callable[[Problem], Cost],
    measure: Measure | None = None,
) -> None:
    """Print an upper bound on the cost, from one timed forward and one gradient pass."""
    from landscape.evaluate import Evaluator

    rows, most, total = [], {}, 0.0
    for name, problem in problems.items():
        is_recalled = measure is not None and _is_recalled(common, problem, measure)
        cost = Cost() if is_recalled else price(problem)
        with Evaluator(problem) as evaluator:
            forward, gradient = _timed(evaluator.loss), _timed(evaluator.gradient)
        in_gradients = cost.gradients + HVP_IN_GRADIENTS * cost.hvps
        seconds = cost.forwards * forward + in_gradients * gradient
        total += seconds
        passes = (
            str(cost).rsplit(" in ", 1)[0] if not is_recalled else "nothing: it is in the study"
        )
        rows.append({"checkpoint": name, "at most": passes, "seconds": f"about {seconds:,.0f}"})
        counts = {key: getattr(cost, key) for key in ("forwards", "gradients", "hvps")}
        most[name] = {**counts, "seconds": seconds}
    if common.output_format == "json":
        click.echo(to_json({"dry_run": True, "at_most": most, "seconds": total}))
        return
    print_table(rows, common.output_format)
    verdict = f"Dry run: nothing measured; at most about {total:,.0f} s on this machine."
    click.echo(verdict, err=common.output_format != "table")


class _WorkNeeded(Exception):
    """Raised in place of the first pass of a measurement that is not in the study."""


def _is_recalled(common: CommonOptions, problem: Problem, measure: Measure) -> bool:
    """Return whether the study holds the measurement already."""
    from landscape.measurement import before_work
    from landscape.study import Study

    def stop(problem: Any) -> None:
        raise _WorkNeeded

    if not Path(common.study).expanduser().is_file():
        return False
    try:
        with Study(common.study, readonly=True) as study, before_work(stop):
            measure(problem, study)
    except _WorkNeeded:
        return False
    return True


def _timed(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
