"""What every measurement command does: build the problems, price or measure them, print a table."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from landscape.results import Cost

from .options import CommonOptions, is_study, open_study
from .output import print_results, print_table, to_json

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Result
    from landscape.study import Study

    Measure = Callable[[Problem, Study], Result | Sequence[Result]]
    Prepare = Callable[[Mapping[str, Problem], Study], None]

HVP_IN_GRADIENTS = 2.5  # between a kept graph and a recomputed one
SCOUTING = 80  # gradient passes of a sharpness search before max_gradients counts
# The quadratic model, three checks of the second-order condition, three second-order steps.
SEARCH_HVPS = 8 + 3 * 12 + 3 * 11
MAX_MATVECS = 1000  # default of top_eigenpairs


@dataclass(frozen=True)
class Price:
    """What a search costs at most, and what it usually costs; a `Cost` is both."""

    most: Cost
    usual: Cost

    def __add__(self, other: Price | Cost) -> Price:
        most, usual = ends(other)
        return Price(self.most + most, self.usual + usual)

    def __mul__(self, n: int) -> Price:
        return Price(self.most * n, self.usual * n)


def ends(price: Price | Cost) -> tuple[Cost, Cost]:
    """Return the most and the usual cost."""
    return (price, price) if isinstance(price, Cost) else (price.most, price.usual)


SEARCH_USUALLY = Cost(forwards=2, gradients=10, hvps=12)
SEARCH = Price(Cost(forwards=2, gradients=SCOUTING + 200, hvps=SEARCH_HVPS), SEARCH_USUALLY)


def price_of_eigenpairs(
    pairs: int, *, max_matvecs: int = MAX_MATVECS, data_error: bool = True, ggn_split: bool = False
) -> Price:
    """Return the passes of a search for eigenpairs."""
    most = Cost(forwards=1, hvps=max_matvecs + pairs * (data_error + ggn_split) + 3)
    return Price(most, Cost(forwards=1, hvps=min(most.hvps, 20 + 5 * pairs)))


def measure_each(
    common: CommonOptions,
    measure: Measure,
    *,
    price: Callable[[Problem], Price | Cost],
    problems: Mapping[str, Problem] | None = None,
    prepare: Prepare | None = None,
    introduce: Callable[[Sequence[Result]], None] | None = None,
    summarise: Callable[[Sequence[Sequence[Result]]], None] | None = None,
) -> None:
    """Measure every checkpoint, save each result, and print one table.

    Args:
        common: the options shared by all measurement commands.
        measure: measures one checkpoint.
        price: the passes of one checkpoint, at most and usually.
        problems: what to measure, by name; None: the problem at every checkpoint.
        prepare: called with all problems before the first is measured.
        introduce: called with all results, to print what stands above the table.
        summarise: called with the results of each checkpoint, to print more than the table.
    """
    from landscape.measurement import n_begun
    from landscape.progress import labelled

    problems = common.problems() if problems is None else problems
    if common.dry_run:
        held = _recalled(common, problems, measure, prepare)
        print_price(common, problems, price, held=held)
        return
    measured, n_recalled = [], 0
    with open_study(common.study) as study:
        common.save_runs(study, problems.values())  # first, so that a kill does not lose them
        if prepare is not None:
            prepare(problems, study)
        for number, problem in enumerate(problems.values(), start=1):
            begun = n_begun()
            with labelled(f"{number} of {len(problems)}: " if len(problems) > 1 else ""):
                results = measure(problem, study)
            measured.append(results if isinstance(results, Sequence) else [results])
            n_recalled += len(measured[-1]) if n_begun() == begun else 0
    flat = [result for results in measured for result in results]
    if introduce is not None and common.output_format == "table":
        introduce(flat)
    print_results(flat, common.output_format, study=common.study, n_recalled=n_recalled)
    if summarise is not None and common.output_format == "table":
        summarise(measured)


def print_price(
    common: CommonOptions,
    problems: Mapping[str, Problem],
    price: Callable[[Problem], Price | Cost],
    *,
    held: Collection[str] = (),
) -> None:
    """Print the cost at most and usually, from one timed forward and one gradient pass.

    What the study holds already, by name, costs nothing and is not timed.
    """
    rows, most, total, usually = [], {}, 0.0, 0.0
    for name, problem in problems.items():
        costs = (Cost(), Cost()) if name in held else ends(price(problem))
        seconds = (0.0, 0.0) if name in held else _seconds(problem, costs)
        total, usually = total + seconds[0], usually + seconds[1]
        passes = "nothing: it is in the study" if name in held else str(costs[0]).rsplit(" in ")[0]
        spent = {"at most": passes, "seconds": f"about {seconds[0]:,.0f}"}
        usual = {"usual seconds": f"about {seconds[1]:,.0f}"} if costs[0] != costs[1] else {}
        rows.append({"checkpoint": name, **spent, **usual})
        counts = {key: getattr(costs[0], key) for key in ("forwards", "gradients", "hvps")}
        most[name] = {**counts, "seconds": seconds[0], "usual_seconds": seconds[1]}
    if common.output_format == "json":
        click.echo(to_json({"dry_run": True, "at_most": most, "seconds": total}))
        return
    print_table(rows, common.output_format)
    verdict = f"Dry run: nothing measured; at most about {total:,.0f} s on this machine"
    verdict += f", usually about {usually:,.0f} s." if usually < total else "."
    click.echo(verdict, err=common.output_format != "table")


def _seconds(problem: Problem, costs: tuple[Cost, Cost]) -> tuple[float, float]:
    from landscape.evaluate import Evaluator

    with Evaluator(problem) as evaluator:
        forward, gradient = _timed(evaluator.loss), _timed(evaluator.gradient)
    most, usual = (
        cost.forwards * forward + (cost.gradients + HVP_IN_GRADIENTS * cost.hvps) * gradient
        for cost in costs
    )
    return most, usual


class _WorkNeeded(Exception):
    """Raised in place of the first pass of a measurement that is not in the study."""


def _recalled(
    common: CommonOptions,
    problems: Mapping[str, Problem],
    measure: Measure,
    prepare: Prepare | None,
) -> set[str]:
    """Return the names of the problems whose measurement the study holds already."""
    from landscape.study import Study

    if not is_study(common.study):
        return set()
    with Study(common.study, readonly=True) as study:
        if prepare is not None and not _needs_no_work(lambda: prepare(problems, study)):
            return set()
        return {
            name
            for name, problem in problems.items()
            if _needs_no_work(functools.partial(measure, problem, study))
        }


def _needs_no_work(call: Callable[[], object]) -> bool:
    """Call a function up to the first measurement that the study does not hold."""
    from landscape.measurement import before_work

    def stop(problem: Any) -> None:
        raise _WorkNeeded

    try:
        with before_work(stop):
            call()
    except _WorkNeeded:
        return False
    return True


def _timed(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
