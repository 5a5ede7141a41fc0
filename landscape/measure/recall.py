"""Measured work is not repeated: look a measurement up in the study, or make it and keep it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from landscape.problem import Problem
from landscape.results import Provenance, Result
from landscape.study import Study

R = TypeVar("R", bound=Result)


def recall_or_measure(
    cls: type[R],
    problem: Problem,
    settings: Mapping[str, Any],
    study: Study | None,
    measure: Callable[[Provenance], R],
) -> R:
    """Return the result that the study holds for these settings, or measure and save it.

    Args:
        cls: the kind of result.
        problem: what is measured; its weights, data and loss are part of the key.
        settings: everything else that the result depends on.
        study: where results are kept; None: measure, and keep nothing.
        measure: makes the result.

    Returns:
        The result, under the problem's present name.
    """
    provenance = problem.provenance()
    if study is not None:
        found = study.find(cls.kind, provenance, settings)
        if isinstance(found, cls):
            if found.name == problem.name:
                return found
            named = dataclasses.replace(found.provenance, checkpoint=problem.name)
            renamed = dataclasses.replace(found, provenance=named)
            study.save(renamed)  # the study lists it under the name that is in use now
            return renamed
    result = measure(provenance)
    if study is not None:
        study.save(result)
    return result
