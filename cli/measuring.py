"""The way of every measuring verb: build the problems, price or measure, store, summarise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from landscape.results import Cost
from landscape.wording import number

from .options import CommonOptions
from .output import as_dict, print_results, print_rows, to_json

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Eigenpairs, Result
    from landscape.study import Study

HVP_IN_GRADIENTS = 2.5  # between a kept graph and a recomputed one
SCOUTING = 80  # gradient passes of a search for sharpness, beside those that a person allows
# The quadratic model, three checks of the second-order condition, three second-order steps.
SEARCH_HVPS = 8 + 3 * 12 + 3 * 11
SEARCH = Cost(forwards=2, gradients=SCOUTING + 200, hvps=SEARCH_HVPS)  # sharpness, p = 2

MAX_MATVECS = 1000  # products that a search for eigenpairs takes at most, unless told


def price_of_eigenpairs(
    pairs: int, *, max_matvecs: int = MAX_MATVECS, data_error: bool = True, ggn_split: bool = False
) -> Cost:
    """Return the passes that a search for eigenpairs takes at most."""
    return Cost(forwards=1, hvps=max_matvecs + pairs * (data_error + ggn_split) + 3)


def measure_each(
    common: CommonOptions,
    measure: Callable[[Problem, Study], Result | Sequence[Result]],
    *,
    price: Callable[[Problem], Cost],
    prepare: Callable[[Mapping[str, Problem], Study], None] | None = None,
    summarise: Callable[[Sequence[Result]], list[tuple[str, str]]] | None = None,
) -> None:
    """Measure every checkpoint, store each result, and print one summary."""
    from landscape.study import Study

    problems = common.problems(common.base_problem(common.task()))
    if common.dry_run:
        print_price(problems, price, as_json=common.as_json)
        return
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with Study(common.study) as study:
        if prepare is not None:
            prepare(problems, study)
        measured = [measure(problem, study) for problem in problems.values()]
    each = [found if isinstance(found, Sequence) else [found] for found in measured]
    results = [result for found in each for result in found]
    print_results(results, as_json=common.as_json, study=common.study, since=started)
    for found in each:
        if summarise is not None and len(found) > 1 and not common.as_json:
            click.echo(f"{found[0].name}, over {len(found)} directions")
            print_rows(summarise(found), indent="  ")


def measure_layers(
    common: CommonOptions,
    measure: Callable[[Problem, Study], dict[str, Eigenpairs]],
    *,
    price: Callable[[Problem], Cost],
) -> None:
    """Measure every layer of every checkpoint, store each result, and print a table of layers."""
    from landscape.study import Study

    problems = common.problems(common.base_problem(common.task()))
    if common.dry_run:
        print_price(problems, price, times=_n_layers, as_json=common.as_json)
        return
    with Study(common.study) as study:
        found = {name: measure(problem, study) for name, problem in problems.items()}
    if common.as_json:
        listed = {
            name: {layer: as_dict(result) for layer, result in layers.items()}
            for name, layers in found.items()
        }
        click.echo(to_json(listed))
        return
    for name, layers in found.items():
        click.echo(name)
        print_rows([_layer_row(layer, result) for layer, result in layers.items()], indent="  ")
    click.echo(f"Stored in {common.study}.")


def _n_layers(problem: Problem) -> int:
    return len(problem.space.layers())


def _layer_row(layer: str, result: Eigenpairs) -> tuple[str, ...]:
    size = f"{result.provenance.n_parameters:,} parameters"
    values = "  ".join(
        f"{label} {number(float(value))} ± {float(residual):.1e}"
        for label, value, residual in zip(
            result.labels(), result.values, result.residuals, strict=True
        )
    )
    return layer, size, values if result.converged else f"{values}  NOT converged"


def print_price(
    problems: dict[str, Problem],
    price: Callable[[Problem], Cost],
    *,
    times: Callable[[Problem], int] = lambda problem: 1,
    as_json: bool = False,
) -> None:
    """Say what measuring would cost at most, from one timed forward and one gradient pass."""
    from landscape.evaluate import Evaluator

    rows, common, total = [], {}, 0.0
    for name, problem in problems.items():
        with Evaluator(problem) as evaluator:
            forward, gradient = _timed(evaluator.loss), _timed(evaluator.gradient)
        cost = price(problem)
        in_gradients = cost.gradients + HVP_IN_GRADIENTS * cost.hvps
        n = times(problem)
        seconds = n * (cost.forwards * forward + in_gradients * gradient)
        total += seconds
        passes = str(cost).rsplit(" in ", 1)[0]
        each = "" if n == 1 else f"{n} × "
        rows.append((name, f"at most {each}{passes}", f"about {seconds:,.0f} s"))
        counts = {key: n * getattr(cost, key) for key in ("forwards", "gradients", "hvps")}
        common[name] = {**counts, "seconds": seconds}
    if as_json:
        click.echo(to_json({"dry_run": True, "at_most": common, "seconds": total}))
        return
    print_rows(rows)
    click.echo(f"Dry run: nothing measured; at most about {total:,.0f} s on this machine.")


def _timed(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
