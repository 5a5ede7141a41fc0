"""One study out of several: what another file holds is added to a study."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from landscape.errors import InvalidArgumentError
from landscape.results.records import provenance_from
from landscape.study.codec import content_key, dumps, loads
from landscape.study.store import Study, insert, registered, row_of_key


@dataclass
class Merged:
    """What a study took from another one.

    Attributes:
        finished: results that were new, newer, or finished there only.
        points: points of measurements that are not finished.
        known: measurements that were there, as new and as far.
        renamed: new names of checkpoints whose names belong to other weights here.
    """

    finished: int = 0
    points: int = 0
    known: int = 0
    renamed: dict[str, str] = field(default_factory=dict)


def merge(study: Study, other: Study) -> Merged:
    """Take everything that another study holds into a study, in one transaction.

    Measurements of the same content and settings are kept once: a finished one before one that was
    begun, of two that are finished the newer one; the points of two that were begun are united.
    Checkpoints, training runs and what problems computed come along. A checkpoint whose name
    belongs to other weights here is called ``name@hash``, a run with such checkpoints ``run@file``.

    Args:
        study: where to; open for writing.
        other: where from; it stays as it is.

    Returns:
        What was taken.

    Raises:
        InvalidArgumentError: if both are one file.
        StudyError: if one of them cannot be used.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Study(f"{folder}/a.db") as study, Study(f"{folder}/b.db") as other:
    ...         merge(study, other)
    Merged(finished=0, points=0, known=0, renamed={})
    """
    if os.path.samefile(study.path, other.path):
        msg = f"{study.path} cannot be merged with itself: name another study"
        raise InvalidArgumentError(msg)
    merged = Merged()
    known_names = {name.name: name.checkpoint_hash for name in study.names()}
    names = {(name.name, name.checkpoint_hash): name for name in other.names()}
    for called, weights in names:
        if known_names.get(called, weights) != weights:
            merged.renamed[called] = f"{called}@{weights[:8]}"
    runs, their_runs, study_name = study.runs(), other.runs(), other.path.stem
    with other._file.reading() as source, study._file.writing() as target:
        for name in names.values():
            here = os.path.relpath(name.path, study.path.absolute().parent) if name.path else ""
            new = merged.renamed.get(name.name, name.name)
            target.execute(
                "INSERT OR IGNORE INTO names VALUES (?, ?, ?)", (new, here, name.checkpoint_hash)
            )
        rows = source.execute("SELECT * FROM measurements ORDER BY revision").fetchall()
        origins = [provenance_from(loads(row["provenance"])) for row in rows]
        known = [registered(target, origin) for origin in origins]
        target.executemany(
            "INSERT OR IGNORE INTO computations VALUES (?, ?, ?)",
            source.execute("SELECT place, identity, signature FROM computations ORDER BY rowid"),
        )
        # Two runs of one name with other weights at their steps are two runs.
        mixed = {
            run: f"{run}@{study_name}"
            for run, of in their_runs.items()
            if run in runs and merged.renamed.keys() & of.keys()
        }
        merged.renamed.update({f"run {run}": f"run {new}" for run, new in mixed.items()})
        target.executemany(
            "INSERT OR IGNORE INTO runs VALUES (?, ?, ?)",
            [
                (mixed.get(run, run), merged.renamed.get(name, name), step)
                for run, name, step in source.execute("SELECT * FROM runs ORDER BY rowid")
            ],
        )
        identities = {
            theirs.problem_fingerprint: ours.problem_fingerprint
            for theirs, ours in zip(origins, known, strict=True)
            if theirs.problem_fingerprint != ours.problem_fingerprint
        }
        for row, origin in zip(rows, known, strict=True):
            settings = row["settings"]
            for theirs, ours in identities.items():  # of other problems, such as held-out data
                settings = settings.replace(dumps(theirs), dumps(ours))
            called = row["checkpoint"]
            if (called, row["checkpoint_hash"]) in names:
                called = merged.renamed.get(called, called)
            origin = dataclasses.replace(origin, checkpoint=called)
            changes = {
                "key": content_key(row["kind"], origin, loads(settings)),
                "checkpoint": called,
                "settings": settings,
                "provenance": dumps(dataclasses.asdict(origin)),
            }
            _take({**dict(row), **changes}, source, target, merged)
    return merged


def _take(
    row: Mapping[str, Any], source: sqlite3.Connection, target: sqlite3.Connection, merged: Merged
) -> None:
    """Take one measurement, if it says more than what is there."""
    earlier = row_of_key(target, row["key"])
    finished = row["status"] == "complete"
    newer = earlier is None or earlier["status"] == "partial" or row["created"] > earlier["created"]
    if earlier is not None and (earlier["status"] == "complete" and not (finished and newer)):
        merged.known += 1
        return
    if earlier is None or finished:
        columns = {name: row[name] for name in row if name not in {"id", "revision"}}
        changes = ", ".join(f"{c} = excluded.{c}" for c in (*columns, "revision") if c != "key")
        insert(target, columns, f"DO UPDATE SET {changes}")
        merged.finished += finished
    number = row_of_key(target, row["key"])["id"]
    if finished:
        target.execute("DELETE FROM arrays WHERE measurement = ?", (number,))
        parts = source.execute("SELECT * FROM arrays WHERE measurement = ?", (row["id"],))
        target.executemany(
            "INSERT INTO arrays VALUES (?, ?, ?, ?, ?)", ((number, *part[1:]) for part in parts)
        )
    points = source.execute("SELECT * FROM points WHERE measurement = ?", (row["id"],))
    before = target.total_changes
    target.executemany(
        "INSERT OR IGNORE INTO points VALUES (?, ?, ?, ?)", ((number, *part[1:]) for part in points)
    )
    if not finished:
        merged.points += target.total_changes - before
        merged.known += earlier is not None and target.total_changes == before
