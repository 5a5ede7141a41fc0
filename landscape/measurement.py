"""The frame of every measurement: look it up in the study, or make it and keep it.

`Run.record` is the whole of it for a measurement at one checkpoint; `resumable` is the loop of
those that are made of many points, which several processes take in turn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from landscape.errors import DataError, InvalidArgumentError
from landscape.evaluate import (
    Evaluator,
    LossValue,
    Plan,
    choose_plan,
    error_of_mean,
    provenance_of,
)
from landscape.problem import Problem
from landscape.processes import agreed, check_alike, pool, pooling, share, split_of
from landscape.progress import counting, progress_bar
from landscape.results import FloatArray, Provenance, Result
from landscape.study import Grid, Study, claimed, recording

R = TypeVar("R", bound=Result)
Index = tuple[int, int]
Columns = dict[str, float]

_WAITING: ContextVar[Callable[[Problem], object] | None] = ContextVar("_WAITING", default=None)


_BEGUN: ContextVar[int] = ContextVar("_BEGUN", default=0)
_WAY: ContextVar[str] = ContextVar("_WAY", default="")  # in which processes share the work


@contextmanager
def before_work(call: Callable[[Problem], object]) -> Iterator[None]:
    """Call a function once inside of the context, with the first problem that is measured there.

    It is called before that, and not at all where every result is recalled.
    """
    token = _WAITING.set(call)
    try:
        yield
    finally:
        _WAITING.reset(token)


def n_begun() -> int:
    """Return how many measurements were begun, and not recalled, so far."""
    return _BEGUN.get()


def begin_work(problem: Problem) -> None:
    """Make the call that waits for the first work, see `before_work`."""
    _BEGUN.set(_BEGUN.get() + 1)
    _WAY.set(split_of())
    call = _WAITING.get()
    if call is not None:
        _WAITING.set(None)
        call(problem)


def cached_measurement(
    cls: type[R],
    problem: Problem,
    settings: Mapping[str, Any],
    study: Study | None,
    measure: Callable[[Provenance], R],
) -> R:
    """Return the result that the study holds for these settings, or measure and save it."""
    provenance, known = recall(cls, problem, settings, study)
    return known or save_record(measure(provenance), problem, study)


def recall(
    cls: type[R], problem: Problem, settings: Mapping[str, Any], study: Study | None
) -> tuple[Provenance, R | None]:
    """Return where a measurement belongs, and the result that the study holds, if it does."""
    provenance = provenance_of(problem)
    check_alike(
        {
            "data": provenance.data_fingerprint,
            "checkpoint": provenance.checkpoint_hash,
            "measurement": f"{cls.kind} with {dict(settings)}",
        }
    )
    if study is not None:
        provenance = study.identify(provenance)
        known = study.find(cls.kind, provenance, settings)
        if isinstance(known, cls):
            return provenance, _named(known, problem, study)
    begin_work(problem)
    return provenance, None


def save_record(result: R, problem: Problem, study: Study | None) -> R:
    """Save a result in the study, and return it under the name that is in use now."""
    provenance = dataclasses.replace(result.provenance, processes=_WAY.get())
    result = dataclasses.replace(result, provenance=provenance)
    if study is None:
        return result
    study.save(result)
    return _named(result, problem, study)


def _named(result: R, problem: Problem, study: Study) -> R:
    """Give a result, and its checkpoint in the study, the name that is in use now."""
    if not study.readonly:
        study.set_name(problem.name, result.provenance.checkpoint_hash, problem.path)
    provenance = dataclasses.replace(result.provenance, checkpoint=problem.name)
    return dataclasses.replace(result, provenance=provenance)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a measurement is made with.

    Attributes:
        evaluator: runs the model at the checkpoint.
        count: decorates a function whose calls are counted on the progress bar.
        grid: gives the points that the study keeps, for the shape of a grid; None without a study.
        provenance: of the record.
    """

    evaluator: Evaluator
    count: Callable[[Any], Any]
    grid: Callable[[Index], Grid | None]
    provenance: Provenance

    def by_point(self, n_points: int, grid: Grid | None) -> AbstractContextManager[None]:
        """Let processes take points in turn, see `by_point`; the passes of all are counted."""
        return by_point(n_points, grid, passes=self.evaluator.passes)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How measurements are run.

    Attributes:
        study: where records are kept, and looked up first.
        seed: of the dropout masks.
        progress: whether to show a bar; None: where stderr is a terminal.
    """

    study: Study | None = None
    seed: int = 0
    progress: bool | None = None

    def record(
        self,
        cls: type[R],
        problem: Problem,
        settings: Mapping[str, Any],
        measure: Callable[[Work], Mapping[str, Any]],
        *,
        what: str = "",
        unit: str = "pass",
        total: int | None = None,
    ) -> R:
        """Recall a record, or measure its fields at the checkpoint and save it.

        The cost is that of the evaluator, unless it is among the fields.
        """
        provenance, known = recall(cls, problem, settings, self.study)
        if known is not None:
            return known

        def grid(shape: Index) -> Grid | None:
            return grid_of(self.study, cls.kind, provenance, settings, shape)

        title = f"{what or cls.kind} of {problem.name}"
        with (
            Evaluator(problem, seed=self.seed) as evaluator,
            counting(title, show=self.progress, unit=unit, total=total) as count,
        ):
            work = Work(evaluator=evaluator, count=count, grid=grid, provenance=provenance)
            fields = dict(measure(work))
            fields = {"cost": evaluator.cost, **fields}
        return save_record(
            cls(**fields, settings=settings, provenance=provenance), problem, self.study
        )


@contextmanager
def by_point(
    n_points: int, grid: Grid | None, *, passes: dict[str, int] | None = None
) -> Iterator[None]:
    """Let processes take points in turn, if each can have one; else they share the data of each.

    A point has all of its data on one process, so that its bits do not depend on their number.

    Args:
        n_points: how many there are.
        grid: those that are recorded.
        passes: counts of passes, which become those of all processes.
    """
    here = share()
    if here is None or n_points - len(() if grid is None else grid.done) < here.n:
        yield
        return
    _WAY.set(f"points over {here.n} processes")
    passes = {} if passes is None else passes
    before = passes.copy()
    with pooling(here):
        yield
    spent = here.gather(passes)
    passes.update({name: n + sum(own[name] - n for own in spent) for name, n in before.items()})


def resumable(
    blocks: Iterable[Sequence[Index]],
    measure: Callable[[Sequence[Index]], Iterable[Columns]],
    *,
    done: dict[Index, Columns],
    grid: Grid | None,
) -> None:
    """Measure blocks of points into ``done``, and record in the study what is new of each.

    A kill loses the blocks in flight, and what was measured in the tenth of a second before it; of
    processes that take turns at points, also what others measured during the first one's block.
    """
    with recording(grid) as record:

        def keep(points: Mapping[Index, Columns]) -> None:
            new = {index: columns for index, columns in points.items() if index not in done}
            done.update(new)
            record(new)

        together = pool()
        with nullcontext(keep) if together is None else together.joint(keep) as add:
            for block in blocks:
                add(dict(zip(block, measure(block) if block else (), strict=True)))


def one_by_one(
    n: int,
    measure: Callable[[int], Columns],
    *,
    grid: Grid | None,
    what: str,
    progress: bool | None,
) -> dict[str, FloatArray]:
    """Measure what is missing of n items in turn; return each column, shape (n,)."""
    indices = [(i, 0) for i in range(n)]
    done = {} if grid is None else dict(grid.done)
    with by_point(n, grid):
        blocks = missing(indices, done, grid=grid, what=what, progress=progress)
        resumable(blocks, lambda block: [measure(i) for i, _ in block], done=done, grid=grid)
    return {name: np.array([done[index][name] for index in indices]) for name in done[0, 0]}


def missing(
    indices: Sequence[Index],
    done: dict[Index, Columns],
    *,
    grid: Grid | None,
    size: int = 1,
    what: str,
    progress: bool | None,
) -> Iterable[Sequence[Index]]:
    """Cut points into blocks of a size, alike whatever is done, and give those with new points.

    Those that other processes take are left out; what other commands measure is in ``done`` at the
    end.
    """
    every = [indices[first : first + size] for first in range(0, len(indices), size)]
    blocks = [block for block in every if any(index not in done for index in block)]
    shown = progress_bar(blocks, what=what, total=len(blocks), show=progress)
    if (together := pool()) is not None:
        return together.handed_out(shown)
    return claimed(shown, done=done, grid=grid) if isinstance(grid, Grid) else shown


def identity_of(problem: Problem, study: Study | None) -> str:
    """Return the identity of what a second problem computes, for the settings of a measurement."""
    provenance = provenance_of(problem)
    return (provenance if study is None else study.identify(provenance)).problem_fingerprint


def grid_of(
    study: Study | None,
    kind: str,
    provenance: Provenance,
    settings: Mapping[str, Any],
    shape: tuple[int, int],
) -> Grid | None:
    """Return the points that a study keeps, if there is one."""
    return None if study is None else study.grid(kind, provenance, settings, shape=shape)


def error_of_difference(problem: Problem, one: LossValue, other: LossValue) -> float:
    """Return the standard error of the difference of two losses on the same examples.

    By the delta method for a weighted mean of paired differences; NaN without the losses of single
    examples.
    """
    if one.examples is None or other.examples is None:
        return math.nan
    (losses, weights), (others, _) = one.examples, other.examples
    return error_of_mean(losses - others, weights, plain_sum=problem.loss.sums)


def settled_plan(
    evaluator: Evaluator, grid: Grid | None, *, n_points: int, compile: bool = False
) -> Plan:
    """Choose how to evaluate many points, or go on as the study notes that it was begun."""
    noted = None if grid is None else grid.settled
    if noted is None:
        noted = agreed(
            lambda: choose_plan(evaluator, n_points=n_points, compile=compile).settings()
        )
        noted = noted if grid is None else grid.settle(noted)
    return Plan.of(noted)


def check_pair(
    problem: Problem, other: Problem, *, alike: Sequence[str] = ("mode", "dtype")
) -> None:
    """Refuse to pair problems that differ by more than their models."""
    for what in alike:
        ours, theirs = (str(getattr(each, what)) for each in (problem, other))
        if ours != theirs:
            msg = (
                f"{problem.name} is measured with {what} {ours}, {other.name} with {theirs}: a "
                f"paired difference takes the same; give both the same {what}"
            )
            raise InvalidArgumentError(msg)
    if problem.loss.name != other.loss.name:
        msg = (
            f"{problem.name} and {other.name} have different losses ({problem.loss.name}, "
            f"{other.loss.name}): give both the same"
        )
        raise InvalidArgumentError(msg)
    if problem.batches.fingerprint != other.batches.fingerprint:
        msg = (
            f"{problem.name} and {other.name} are on different data: a paired difference takes "
            "the same examples"
        )
        raise DataError(msg)
