"""The way of every measuring verb: build the problems, price or measure, store, summarise."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from landscape.results import Cost

from .options import Measuring
from .output import print_results, print_rows

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Result
    from landscape.study import Study

HVP_IN_GRADIENTS = 2.5  # between a kept graph and a recomputed one


def measure_each(
    told: Measuring,
    measure: Callable[[Problem, Study], Result],
    *,
    price: Callable[[Problem], Cost],
) -> None:
    """Measure every checkpoint, store each result, and print one summary.

    Args:
        told: the shared options.
        measure: makes one result; the library call.
        price: passes that one result takes at most.
    """
    from landscape.study import Study

    problems = told.problems(told.base_problem(told.task()))
    if told.dry_run:
        print_price(problems, price)
        return
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with Study(told.study) as study:
        results = [measure(problem, study) for problem in problems.values()]
    print_results(results, as_json=told.as_json, study=told.study, since=started)


def print_price(problems: dict[str, Problem], price: Callable[[Problem], Cost]) -> None:
    """Say what measuring would cost at most, from one timed forward and one gradient pass.

    Args:
        problems: what would be measured.
        price: passes that one of them takes at most.
    """
    from landscape.evaluate import Evaluator

    rows, total = [], 0.0
    for name, problem in problems.items():
        with Evaluator(problem) as evaluator:
            forward, gradient = _timed(evaluator.loss), _timed(evaluator.gradient)
        cost = price(problem)
        in_gradients = cost.gradients + HVP_IN_GRADIENTS * cost.hvps
        seconds = cost.forwards * forward + in_gradients * gradient
        total += seconds
        passes = str(cost).rsplit(" in ", 1)[0]
        rows.append((name, f"at most {passes}", f"about {seconds:,.0f} s"))
    print_rows(rows)
    click.echo(f"Dry run: nothing measured; at most about {total:,.0f} s on this machine.")


def _timed(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
