"""The frame of every measurement: look it up in the study, or make it and keep it.

`Run.record` is the whole of it for a measurement at one checkpoint; `resumable` is the loop of
those that are made of many points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from landscape.errors import DataError, InvalidArgumentError
from landscape.evaluate import Evaluator, provenance_of
from landscape.problem import Problem
from landscape.progress import counting, progress_bar
from landscape.results import Provenance, Result
from landscape.study import Grid, Recorder, Study

R = TypeVar("R", bound=Result)
Index = tuple[int, int]
Columns = dict[str, float]

_WAITING: ContextVar[Callable[[Problem], object] | None] = ContextVar("_WAITING", default=None)


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


def begin_work(problem: Problem) -> None:
    """Make the call that waits for the first work, see `before_work`."""
    call = _WAITING.get()
    if call is not None:
        _WAITING.set(None)
        call(problem)


def look_up(
    cls: type[R], problem: Problem, settings: Mapping[str, Any], study: Study | None
) -> tuple[Provenance, R | None]:
    """Return the provenance of a measurement and what the study holds; None: the work begins."""
    provenance = provenance_of(problem)
    if study is not None:
        provenance = study.identify(provenance)
        found = study.find(cls.kind, provenance, settings)
        if isinstance(found, cls):
            return provenance, found
    begin_work(problem)
    return provenance, None


def keep(record: R, problem: Problem, study: Study | None, *, new: bool) -> R:
    """Save a new record in the study, and return it under the problem's name."""
    if study is None:
        return record
    if new:
        study.save(record)
    if not study.readonly:
        study.set_name(problem.name, record.provenance.checkpoint_hash, problem.path)
    named = dataclasses.replace(record.provenance, checkpoint=problem.name)
    return dataclasses.replace(record, provenance=named)


def cached_measurement(
    cls: type[R],
    problem: Problem,
    settings: Mapping[str, Any],
    study: Study | None,
    measure: Callable[[Provenance], R],
) -> R:
    """Return the result that the study holds for these settings, or measure and save it."""
    provenance, found = look_up(cls, problem, settings, study)
    result = measure(provenance) if found is None else found
    return keep(result, problem, study, new=found is None)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a measurement is made with."""

    evaluator: Evaluator  # at the checkpoint
    count: Callable[[Any], Any]  # decorates a function whose calls the progress bar counts
    # The points that the study keeps, for the shape of a grid; None without a study.
    grid: Callable[[Index], Grid | None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """How measurements are run."""

    study: Study | None = None  # where records are kept, and looked up first
    seed: int = 0  # of the dropout masks
    progress: bool | None = None  # whether to show a bar; None: where stderr is a terminal

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
        """Recall a record, or measure its fields at the checkpoint and save it."""
        provenance, found = look_up(cls, problem, settings, self.study)
        if found is not None:
            return keep(found, problem, self.study, new=False)
        grid = partial(grid_of, self.study, cls.kind, provenance, settings)
        title = f"{what or cls.kind} of {problem.name}"
        with (
            Evaluator(problem, seed=self.seed) as evaluator,
            counting(title, show=self.progress, unit=unit, total=total) as count,
        ):
            fields = measure(Work(evaluator=evaluator, count=count, grid=grid))
            cost = evaluator.cost
        record = cls(**fields, settings=settings, cost=cost, provenance=provenance)
        return keep(record, problem, self.study, new=True)


def resumable(
    blocks: Iterable[Sequence[Index]],
    measure: Callable[[Sequence[Index]], Iterable[Columns]],
    *,
    done: dict[Index, Columns],
    kept: Grid | None,
) -> None:
    """Measure blocks of points into ``done``, and record in the study what is new of each.

    A kill loses the block in flight, and what was measured in the tenth of a second before it.
    """
    with Recorder(kept) as recorder:
        for block in blocks:
            measured = zip(block, measure(block), strict=True)
            new = {index: columns for index, columns in measured if index not in done}
            done |= new
            recorder.add(new)


def missing(
    indices: Sequence[Index],
    done: Mapping[Index, Columns],
    *,
    size: int = 1,
    what: str,
    progress: bool | None,
) -> Iterable[Sequence[Index]]:
    """Cut points into blocks of a size, alike whatever is done, and give those with new points."""
    every = [indices[first : first + size] for first in range(0, len(indices), size)]
    blocks = [block for block in every if any(index not in done for index in block)]
    return progress_bar(blocks, what=what, total=len(blocks), show=progress)


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


def check_pair(
    problem: Problem, other: Problem, *, alike: Sequence[str] = ("mode", "dtype")
) -> None:
    """Refuse to pair problems that differ by more than their models."""
    for what in alike:
        ours, theirs = str(getattr(problem, what)), str(getattr(other, what))
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
