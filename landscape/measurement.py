"""Measured work is not repeated: look a measurement up in the study, or make it and keep it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from landscape.errors import DataError, InvalidArgumentError
from landscape.evaluate import provenance_of
from landscape.problem import Problem
from landscape.results import Provenance, Result
from landscape.study import Grid, Study

R = TypeVar("R", bound=Result)

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


def cached_measurement(
    cls: type[R],
    problem: Problem,
    settings: Mapping[str, Any],
    study: Study | None,
    measure: Callable[[Provenance], R],
) -> R:
    """Return the result that the study holds for these settings, or measure and save it."""
    provenance = provenance_of(problem)
    if study is None:
        begin_work(problem)
        return measure(provenance)
    provenance = study.identify(provenance)
    found = study.find(cls.kind, provenance, settings)
    if not isinstance(found, cls):
        begin_work(problem)
        found = measure(provenance)
        study.save(found)
    if not study.readonly:
        study.set_name(problem.name, provenance.checkpoint_hash, problem.path)
    named = dataclasses.replace(found.provenance, checkpoint=problem.name)
    return dataclasses.replace(found, provenance=named)


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
