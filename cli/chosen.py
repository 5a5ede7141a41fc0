"""Which records of a study a picture is to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from landscape.errors import InvalidArgumentError, StudyError

if TYPE_CHECKING:
    from landscape.results import Result
    from landscape.study import Entry, Study

Named = list[tuple[str, "Result"]]


def newest(study: Study, kind: str, names: Sequence[str] = ()) -> Named:
    """Return the newest finished record of a kind for each checkpoint, all of one operator.

    That is the operator of the newest record; those of a part of the parameters are left out.

    Args:
        study: where to look.
        kind: a key of `landscape.results.KINDS`.
        names: the checkpoints, in the order to show them; empty: all, as they were begun.

    Returns:
        The checkpoints' names with their records.
    """
    whole = [e for e in study.entries(kind) if e.status == "complete" and not e.parameters]
    last = max(whole, key=lambda entry: (entry.created, entry.id), default=None)
    found = [entry for entry in whole if last is not None and _alike(entry, last)]
    ids: dict[str, int] = {}
    for entry in sorted(found, key=lambda entry: (entry.created, entry.id)):
        ids[entry.name] = entry.id
    order = dict.fromkeys(names or (entry.name for entry in found))
    missing = [name for name in order if name not in ids]
    if missing or not ids:
        whose = f" of {', '.join(missing)}" if missing else ""
        known = f"; it holds those of {', '.join(sorted(ids))}" if ids else ""
        msg = f"{study.path} holds no finished {kind}{whose}{known}; measure it first"
        raise StudyError(msg)
    return [(name, study.load(ids[name])) for name in order]


def _alike(one: Entry, other: Entry) -> bool:
    """Tell whether two measurements are of the same operator, or of none."""
    usual = {"operator": "hessian", "scale": "none"}
    return all(one.settings.get(k, v) == other.settings.get(k, v) for k, v in usual.items())


def numbered(study: Study, ids: Sequence[int]) -> Named:
    """Return measurements by their numbers, all of one kind.

    Args:
        study: where to look.
        ids: their numbers, in the order to show them.

    Returns:
        A name for each, which tells them apart, with its record.
    """
    results = [study.load(id) for id in ids]
    kinds = dict.fromkeys(result.kind for result in results)
    if len(kinds) > 1:
        msg = (
            f"one picture shows one kind of record; the measurements {', '.join(map(str, ids))} "
            f"are of the kinds {', '.join(kinds)}"
        )
        raise InvalidArgumentError(msg)
    shared = Counter(result.name for result in results)
    return [
        (result.name if shared[result.name] == 1 else f"{result.name} (number {id})", result)
        for id, result in zip(ids, results, strict=True)
    ]
