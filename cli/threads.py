"""The option ``--threads``: how many threads to compute with, and whether one would be faster."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .sections import PROBLEM, option

if TYPE_CHECKING:
    from landscape.problem import Problem

F = TypeVar("F", bound=Callable[..., Any])

AUTO = "auto"
_SHORT = 0.01  # seconds; nothing is said of gradients that take less


def _checked(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or value == AUTO or (value.isdecimal() and int(value) >= 1):
        return value
    msg = f"expected a number of threads, at least 1, or auto; got {value!r}"
    raise click.BadParameter(msg)


def threads_option(function: F) -> F:
    """Add ``--threads``."""
    return option(
        "--threads",
        section=PROBLEM,
        callback=_checked,
        default=None,
        metavar="N|auto",
        help="Threads to compute with; auto: one, where a timed gradient is faster with it; can "
        "change roundings.  [default: OMP_NUM_THREADS, or the processors that may be used]",
    )(function)


def use_threads(asked: str | None) -> None:
    """Set the number of threads until the command ends, as asked or as the processors allow."""
    import torch

    from landscape.threads import usable_cpus

    before = torch.get_num_threads()
    if asked in (None, AUTO):
        free = "OMP_NUM_THREADS" not in os.environ
        n = min(before, usable_cpus()) if free else before
    else:
        n = int(asked)
    context = click.get_current_context(silent=True)
    if context is not None:  # also where auto takes one later
        context.call_on_close(lambda: torch.set_num_threads(before))
    torch.set_num_threads(n)


def compare_before_work(asked: str | None) -> None:
    """Compare as soon as the command has to measure something, see `compare_with_one`."""
    from landscape.measurement import before_work

    context = click.get_current_context()
    context.with_resource(before_work(lambda problem: compare_with_one(asked, problem)))


def compare_with_one(asked: str | None, problem: Problem) -> None:
    """Say if a gradient is clearly faster with one thread; with ``auto``, take what is faster."""
    import torch

    from landscape.processes import shards
    from landscape.threads import CLEARLY

    n = torch.get_num_threads()
    if shards() is not None:  # what one process measures again, all have to
        return
    if n == 1 or asked not in (None, AUTO) or problem.device.type != "cpu":
        return
    seconds = _timed(problem, n, at_least=0.0 if asked == AUTO else _SHORT)
    if seconds is None:
        return
    times = f"a gradient of one batch takes {seconds[0]:.2g} s with {n} threads, {seconds[1]:.2g} s"
    if asked == AUTO:
        if seconds[1] < seconds[0]:
            torch.set_num_threads(1)
        click.echo(f"{times} with one: {torch.get_num_threads()} taken (--threads auto)", err=True)
    elif seconds[0] >= CLEARLY * seconds[1]:
        click.echo(f"{times[0].upper()}{times[1:]} with one: add --threads 1", err=True)


def _timed(problem: Problem, n: int, *, at_least: float) -> tuple[float, float] | None:
    from landscape.errors import LandscapeError
    from landscape.evaluate import Evaluator
    from landscape.threads import compared_with_one

    try:
        with Evaluator(problem) as evaluator:
            batch = next(iter(problem.batches))
            return compared_with_one(
                lambda: evaluator.batch_gradient(None, batch, 0), n, at_least=at_least
            )
    except (LandscapeError, RuntimeError):
        return None  # the measurement itself says what is wrong, if it needs gradients
