"""Results into the study file and out of it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from landscape.errors import InvalidArgumentError, StudyError, one_of
from landscape.results import (
    KINDS,
    Cost,
    Line,
    Provenance,
    Result,
    Signature,
    Surface,
    Trajectory,
    from_record,
    to_record,
)
from landscape.results.comparison import Comparison, Measured
from landscape.results.frames import data_frame, html_table
from landscape.study._names import Name
from landscape.study.codec import PLACE, content_key, dumps, loads, pack, printable, unpack
from landscape.study.contrast import APART, Candidate, choose
from landscape.study.file import StudyFile
from landscape.study.grid import Grid

# Columns of a measurement that entries and candidates have under the same name.
_SHARED = ("id", "kind", "checkpoint_hash", "split")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a study's table of contents, with parts of the record."""

    id: int  # for `Study.load` and `Study.delete`
    kind: str
    name: str
    checkpoint_hash: str
    split: str
    status: str  # ``complete``, or ``partial`` for a line or surface that was begun
    created: str  # when it was measured, as ISO 8601
    cost: str  # in words; empty while partial
    points_done: int  # recorded so far; 0 if not kept by point
    points_total: int
    settings: Mapping[str, Any]
    parameters: str = ""
    loss: str = ""


class Study:
    """One file with every measurement on a set of checkpoints; a context manager.

    A study that is opened for reading works on a write-protected file and folder, and while another
    process writes. One that is opened for writing belongs to the thread that opened it.

    Args:
        path: the file.
        create: whether to create it if it does not exist.
        readonly: whether to open it for reading only; then nothing is ever created.

    Raises:
        StudyError: if the file cannot be used; the message says why and what to do.
    """

    def __init__(self, path: str | Path, *, create: bool = True, readonly: bool = False) -> None:
        self.path = Path(path).expanduser()
        self._file = StudyFile(self.path, create=create, readonly=readonly)

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r})"

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()

    @property
    def readonly(self) -> bool:
        """Whether it was opened for reading only."""
        return self._file.readonly

    def save(self, result: Result) -> int:
        """Save a result, in place of an earlier one of the same computation and settings.

        The earlier one's name and the points that were recorded for it are kept. An array of more
        than 256 MiB is left out, with a warning; it reads as an array of shape (0,).

        Args:
            result: any record of `landscape.results`.

        Returns:
            The number of the measurement, for `load`.
        """
        scalars, arrays = to_record(result)
        cost = scalars.pop("cost")
        del scalars["settings"], scalars["provenance"]  # these have columns of their own
        finished = {"status": "complete", "cost": dumps(cost), "record": dumps(scalars)}
        packed = list(map(pack, arrays.keys(), arrays.values()))
        with self._file.writing() as connection:
            provenance = registered(connection, result.provenance)
            _set_name(connection, provenance.checkpoint, provenance.checkpoint_hash)
            key = content_key(result.kind, provenance, result.settings)
            earlier = row_of_key(connection, key)
            if earlier is not None:
                name = loads(earlier["provenance"])["checkpoint"]
                provenance = dataclasses.replace(provenance, checkpoint=name)
            row = _identity(result.kind, provenance, result.settings) | finished
            new = ", ".join(f"{c} = excluded.{c}" for c in (*row, "revision") if c != "key")
            insert(connection, row, f"DO UPDATE SET {new}")
            number = int(row_of_key(connection, key)["id"])
            for table in ("arrays", "claims"):
                connection.execute(f"DELETE FROM {table} WHERE measurement = ?", (number,))
            connection.executemany(
                "INSERT INTO arrays VALUES (?, ?, ?, ?, ?)",
                [(number, name, *parts) for name, parts in zip(arrays, packed, strict=True)],
            )
        return number

    def find(self, kind: str, provenance: Provenance, settings: Mapping[str, Any]) -> Result | None:
        """Return the finished result of the same computation and settings, if there is one.

        The signature of what is to be measured has to agree with the one that was measured then.

        Args:
            kind: kind of the result, a key of `landscape.results.KINDS`.
            provenance: what is to be measured; its name, versions and time do not matter.
            settings: what is asked for.

        Returns:
            The result, under the name that it was saved under; or None.
        """
        with self._file.reading() as connection:
            known = _identified(connection, provenance) or provenance
            row = row_of_key(connection, content_key(kind, known, settings))
            is_there = row is not None and row["status"] == "complete"
            return self._result(connection, row) if is_there else None

    def identify(self, provenance: Provenance) -> Provenance:
        """Return a provenance with the identity (``problem_fingerprint``) known to the study."""
        with self._file.reading() as connection:
            known = _identified(connection, provenance)
        if known or self.readonly:
            return known or provenance
        # A signature that is new is remembered.
        with self._file.writing() as connection:
            return registered(connection, provenance)

    def set_name(self, name: str, checkpoint_hash: str, path: str = "") -> None:
        """Remember the name of these weights, and their file's path; a file is renamed."""
        new = Name(name=printable(name), path=printable(path), checkpoint_hash=checkpoint_hash)
        if new not in self.names():
            here = os.path.relpath(path, self.path.absolute().parent) if path else ""
            with self._file.writing() as connection:
                # What is an end of its path may not have been given as a name.
                parts = Path(name).parts
                if here and Path(path).parts[-len(parts) :] != parts:
                    _rename(connection, here, name)
                _set_name(connection, name, checkpoint_hash, here)

    def names(self) -> list[Name]:
        """List the names of the checkpoints."""
        folder = self.path.absolute().parent
        with self._file.reading() as connection:
            rows = connection.execute("SELECT * FROM names ORDER BY rowid").fetchall()
        return [
            Name(
                name=row["name"],
                path=os.path.normpath(folder / row["path"]) if row["path"] else "",
                checkpoint_hash=row["checkpoint_hash"],
            )
            for row in rows
        ]

    def set_run(self, run: str, steps: Mapping[str, float]) -> None:
        """Remember checkpoints as those of a training run.

        Args:
            run: name of the run.
            steps: epoch or step of each checkpoint, by the checkpoint's name.
        """
        with self._file.writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?)",
                [(printable(run), printable(name), step) for name, step in steps.items()],
            )

    def runs(self) -> dict[str, dict[str, float]]:
        """Return the steps of the checkpoints of each training run by name, ascending."""
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM runs ORDER BY min(rowid) OVER (PARTITION BY run), step, name"
            ).fetchall()
        runs: dict[str, dict[str, float]] = {}
        for row in rows:
            runs.setdefault(row["run"], {})[row["name"]] = row["step"]
        return runs

    def load(self, id: int, name: str | None = None) -> Result:
        """Return a finished result.

        Args:
            id: its number, from `save` or `entries`.
            name: what to call the checkpoint; None: as it was saved.

        Returns:
            The result, equal to the one that was saved.

        Raises:
            StudyError: if the measurement is not finished yet, or cannot be read.
        """
        with self._file.reading() as connection:
            row = self._row(connection, id)
            if row["status"] != "complete":
                msg = (
                    f"the {row['kind']} {id} of {row['checkpoint']} is not finished yet; "
                    "run the same command again: it goes on where it stopped"
                )
                raise StudyError(msg)
            return self._result(connection, row, name)

    def load_unfinished(self, id: int) -> Line | Surface:
        """Return a line or surface that was begun, to look at; NaN where nothing is measured yet.

        Args:
            id: its number, from `entries`.

        Returns:
            The record; its loss at the checkpoint and the norms of its directions are NaN, since
            they are saved when it is finished. ``is_measured`` tells which points are known.

        Raises:
            StudyError: if the measurement is none that is kept point by point.
        """
        with self._file.reading() as connection:
            row = self._row(connection, id)
        is_line = row["kind"] == Line.kind
        if not (is_line or row["kind"] == Surface.kind) or row["n_x"] is None:
            msg = (
                f"the {row['kind']} {id} is no line or surface that was begun: there is nothing to "
                "load"
            )
            raise StudyError(msg)
        settings = loads(row["settings"])
        shape = int(row["n_x"]), int(row["n_y"])
        loss, loss_se = np.full(shape, np.nan), np.full(shape, np.nan)
        measured = np.zeros(shape, dtype=bool)
        for point, values in Grid(self._file, id, shape).done.items():
            loss[point], loss_se[point] = values["loss"], values.get("loss_se", np.nan)
            measured[point] = True
        where = loads(row["provenance"])
        known = {"settings": settings, "cost": {}, "provenance": where, "origin_loss": np.nan}
        x = np.asarray(settings["x"])
        if is_line:
            known |= {"direction": settings["direction"], "direction_norm": np.nan}
            arrays = {"loss": loss[:, 0], "loss_se": loss_se[:, 0], "x": x}
            arrays["metrics.measured"] = measured[:, 0].astype(float)
            return cast("Line", from_record(Line.kind, known, arrays))
        known |= {"plane": settings["plane"], "direction_norms": [np.nan] * 2, "cosine": np.nan}
        arrays = {"loss": loss, "loss_se": loss_se, "measured": measured, "x": x}
        arrays["y"] = np.asarray(settings["y"])
        return cast("Surface", from_record(Surface.kind, known, arrays))

    def delete(self, id: int) -> None:
        """Delete a measurement by its number, finished or not, with its points."""
        with self._file.writing() as connection:
            weights = self._row(connection, id)["checkpoint_hash"]
            connection.execute("DELETE FROM measurements WHERE id = ?", (id,))
            # The names of weights of which nothing is left are free again.
            connection.execute(
                "DELETE FROM names WHERE checkpoint_hash = :weights AND NOT EXISTS"
                " (SELECT 1 FROM measurements WHERE checkpoint_hash = :weights)",
                {"weights": weights},
            )
            connection.execute("DELETE FROM runs WHERE name NOT IN (SELECT name FROM names)")

    def entries(self, kind: str | None = None, checkpoint: str | None = None) -> list[Entry]:
        """List what the study holds, in the order in which it was begun.

        Args:
            kind: only this kind of result.
            checkpoint: only the checkpoint of this name or this hash; what was saved under another
                name of the same weights is listed under this one.

        Returns:
            One entry for each measurement.
        """
        if kind is not None:
            one_of(kind, KINDS, what="kind of result")
        name = None if checkpoint is None else printable(checkpoint)
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT *, (SELECT count(*) FROM points WHERE measurement = id) AS n_done"
                " FROM measurements WHERE (:kind IS NULL OR kind = :kind)"
                " AND (:name IS NULL OR :name IN (checkpoint, checkpoint_hash)"
                " OR (checkpoint_hash != '' AND checkpoint_hash ="
                " (SELECT checkpoint_hash FROM names WHERE name = :name))) ORDER BY id",
                {"kind": kind, "name": name},
            ).fetchall()
        listed = [_entry(row) for row in rows]
        if name is None or name in {entry.checkpoint_hash for entry in listed}:
            return listed
        return [dataclasses.replace(entry, name=name) for entry in listed]

    def to_pandas(self, kind: str | None = None) -> Any:
        """Return the main numbers of every finished measurement as a pandas DataFrame.

        Args:
            kind: only this kind of result.

        Returns:
            A row for each measurement; the columns of `Result.summary` behind number, checkpoint,
            kind and split.

        Raises:
            MissingDependencyError: without pandas.
        """
        finished = [entry for entry in self.entries(kind) if entry.status == "complete"]
        return data_frame(
            [
                {
                    **{"id": entry.id, "checkpoint": entry.name, "kind": entry.kind},
                    **{"split": entry.split, **self.load(entry.id).summary()},
                }
                for entry in finished
            ]
        )

    def _repr_html_(self) -> str:
        """Show what the study holds as a table in a notebook."""
        names = ("id", "name", "kind", "split", "status", "created", "cost")
        rows = [{name: getattr(entry, name) for name in names} for entry in self.entries()]
        return html_table(rows, caption=f"Study {self.path}")

    def grid(
        self,
        kind: str,
        provenance: Provenance,
        settings: Mapping[str, Any],
        *,
        shape: tuple[int, int],
    ) -> Grid:
        """Return the points of a measurement, to record them one by one and to resume.

        The measurement is listed as partial until `save` is given the result of the same
        computation and settings. Points of another computation are never among them.

        Args:
            kind: kind of the result, such as ``line`` or ``surface``.
            provenance: what is being measured.
            settings: what was asked for; the result must have the same.
            shape: number of points along x and y; (n, 1) for a line.

        Returns:
            The points, with those that are recorded already.

        Raises:
            InvalidArgumentError: if points of another shape are recorded under these settings.
            StudyError: if the study was opened for reading only and holds no such points.
        """
        n_x, n_y = (int(n) for n in shape)
        known = self.identify(provenance)
        row = _identity(kind, known, settings) | {"status": "partial", "n_x": n_x, "n_y": n_y}
        if not self._file.readonly:
            with self._file.writing() as connection:
                _set_name(connection, known.checkpoint, known.checkpoint_hash)
                shape_if_new = "SET n_x = excluded.n_x, n_y = excluded.n_y WHERE n_x IS NULL"
                insert(connection, row, f"DO UPDATE {shape_if_new}")
        with self._file.reading() as connection:
            stored = row_of_key(connection, row["key"])
        if stored is None:
            msg = f"{self.path} holds no points of this {kind}, and was opened for reading only"
            raise StudyError(msg)
        if (stored["n_x"], stored["n_y"]) != (n_x, n_y):
            msg = (
                f"{self.path} holds {stored['n_x']} × {stored['n_y']} points under these settings, "
                f"and {n_x} × {n_y} were asked for; the settings must tell the two apart"
            )
            raise InvalidArgumentError(msg)
        return Grid(self._file, int(stored["id"]), (n_x, n_y))

    def comparison(
        self, names: Iterable[str] | None = None, *, parameters: str | None = None
    ) -> Comparison:
        """Put the checkpoints side by side, each with the newest finished result of each role.

        All results are of one data set, split, mode, dtype, loss and model as far as possible; the
        table names those that are not. Of checkpoints that share a name, the one measured last has
        it, and an older one reads ``name@hash``. Those that share their weights are one.

        Args:
            names: the checkpoints to show, in this order; all, in the order in which they were
                first measured, if None.
            parameters: pattern of the parameters that were explored, as in the entries; empty: all
                of them. None: all, or, if nothing explored all, those that were explored last.

        Returns:
            The checkpoints; none if the study holds no finished result.
        """
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM measurements WHERE status = 'complete' ORDER BY revision"
            ).fetchall()
            named = connection.execute("SELECT name, checkpoint_hash FROM names").fetchall()
            shown = None if names is None else map(printable, names)
            chosen = choose(map(_candidate, rows), shown, parameters, dict(map(tuple, named)))
            by_id = {row["id"]: row for row in rows}
            models: list[Measured] = []
            for name, roles in chosen.items():
                results: dict[str, Any] = {
                    role: self._result(connection, by_id[id], name if names else None)
                    for role, id in roles.items()
                }
                runs = self._runs(connection, rows, results.get("surface"))
                apart = {kind: results.pop(kind) for kind in APART if kind in results}
                if runs:  # which are drawn on the surface
                    apart.pop(Trajectory.kind, None)
                others = tuple(apart.values())
                models.append(Measured(name=name, trajectories=runs, others=others, **results))
        return Comparison(models=tuple(models))

    def _runs(
        self, connection: sqlite3.Connection, rows: Iterable[sqlite3.Row], surface: Surface | None
    ) -> tuple[Trajectory, ...]:
        """Return the training runs that were projected on the plane of a surface."""
        if surface is None:
            return ()
        origin = (Trajectory.kind, surface.provenance.checkpoint_hash)
        alike = (row for row in rows if (row["kind"], row["checkpoint_hash"]) == origin)
        runs = (self._result(connection, row) for row in alike)
        return tuple(run for run in runs if isinstance(run, Trajectory) and run.lies_in(surface))

    def _row(self, connection: sqlite3.Connection, id: int) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute(
            "SELECT * FROM measurements WHERE id = ?", (id,)
        ).fetchone()
        if row is None:
            msg = f"{self.path} holds no measurement {id}; list those that it holds first"
            raise StudyError(msg)
        return row

    def _result(
        self, connection: sqlite3.Connection, row: sqlite3.Row, name: str | None = None
    ) -> Result:
        parts = connection.execute(
            "SELECT name, dtype, shape, data FROM arrays WHERE measurement = ? ORDER BY rowid",
            (row["id"],),
        )
        try:
            arrays = {name: unpack(dtype, shape, data) for name, dtype, shape, data in parts}
            scalars = {field: loads(row[field]) for field in ("settings", "provenance", "cost")}
            if name is not None:
                scalars["provenance"]["checkpoint"] = name
            return from_record(row["kind"], loads(row["record"]) | scalars, arrays)
        except (KeyError, TypeError, ValueError) as error:
            msg = (
                f"the {row['kind']} {row['id']} in {self.path} cannot be read ({error}): it was "
                "written by another version of landscape-sharpness, or is damaged; upgrade, or "
                "delete it and measure again"
            )
            raise StudyError(msg) from error


def _identity(kind: str, provenance: Provenance, settings: Mapping[str, Any]) -> dict[str, Any]:
    columns = ("checkpoint", "checkpoint_hash", "data_fingerprint", "split", "created")
    return {
        "key": content_key(kind, provenance, settings),
        "kind": kind,
        **{column: printable(getattr(provenance, column)) for column in columns},
        "settings": dumps(settings),
        "provenance": dumps(dataclasses.asdict(provenance)),
    }


def _place(provenance: Provenance) -> str:
    parts = [getattr(provenance, field) for field in (*PLACE, "parameters")]
    return hashlib.sha256(dumps(parts).encode()).hexdigest()


def _identified(connection: sqlite3.Connection, provenance: Provenance) -> Provenance | None:
    """Return a provenance with the identity of the first stored signature that agrees, if any."""
    if provenance.signature is None:
        return None
    rows = connection.execute(
        "SELECT identity, signature FROM computations WHERE place = ? ORDER BY rowid",
        (_place(provenance),),
    )
    for identity, signature in rows:
        if provenance.signature.agrees(Signature(**loads(signature)), provenance.dtype):
            return dataclasses.replace(provenance, problem_fingerprint=identity)
    return None


def registered(connection: sqlite3.Connection, provenance: Provenance) -> Provenance:
    """Identify, and remember a signature that is new."""
    identified = _identified(connection, provenance) or provenance
    if provenance.signature is not None:
        signature = dumps(dataclasses.asdict(provenance.signature))
        connection.execute(
            "INSERT OR IGNORE INTO computations VALUES (?, ?, ?)",
            (_place(provenance), identified.problem_fingerprint, signature),
        )
    return identified


def _set_name(
    connection: sqlite3.Connection, name: str, checkpoint_hash: str, path: str = ""
) -> None:
    connection.execute(
        # A record without a file does not take the name of one.
        "INSERT INTO names VALUES (:name, :path, :hash) ON CONFLICT (name) DO UPDATE SET"
        " checkpoint_hash = :hash, path = :path WHERE :path != '' OR (path = '' AND :hash != '')",
        {"name": printable(name), "path": printable(path), "hash": checkpoint_hash},
    )


def _rename(connection: sqlite3.Connection, path: str, new: str) -> None:
    """Give what is known of a file another name, in its measurements and runs too."""
    known = connection.execute("SELECT name FROM names WHERE path = ?", (printable(path),))
    for (old,) in known.fetchall():
        if old == printable(new):
            continue
        connection.execute("DELETE FROM names WHERE name = ?", (old,))
        connection.execute("UPDATE runs SET name = ? WHERE name = ?", (printable(new), old))
        rows = connection.execute("SELECT * FROM measurements WHERE checkpoint = ?", (old,))
        for row in rows.fetchall():
            provenance = dumps(loads(row["provenance"]) | {"checkpoint": new})
            connection.execute(
                "UPDATE measurements SET checkpoint = ?, provenance = ? WHERE id = ?",
                (printable(new), provenance, row["id"]),
            )


def insert(connection: sqlite3.Connection, row: Mapping[str, Any], on_conflict: str) -> None:
    """Insert a measurement, newer than all others; say what to do where its key is known."""
    columns, values = ", ".join(row), ", ".join(f":{column}" for column in row)
    connection.execute(
        f"INSERT INTO measurements ({columns}, revision) VALUES ({values},"
        " (SELECT coalesce(max(revision), 0) + 1 FROM measurements))"
        f" ON CONFLICT (key) {on_conflict}",
        row,
    )


def row_of_key(connection: sqlite3.Connection, key: str) -> Any:
    """Return the measurement of a key, if there is one."""
    return connection.execute("SELECT * FROM measurements WHERE key = ?", (key,)).fetchone()


def _candidate(row: sqlite3.Row) -> Candidate:
    origin = loads(row["provenance"])  # of older versions, without some of these
    fields = ("parameters", "loss", "problem_fingerprint", "mode", "dtype")
    return Candidate(
        name=row["checkpoint"],
        settings=loads(row["settings"]),
        **{column: row[column] for column in (*_SHARED, "data_fingerprint")},
        **{field: origin.get(field, "") for field in fields},
    )


def _entry(row: sqlite3.Row) -> Entry:
    origin = loads(row["provenance"])
    return Entry(
        name=row["checkpoint"],
        cost="" if row["cost"] is None else str(Cost(**loads(row["cost"]))),
        points_done=row["n_done"],
        points_total=(row["n_x"] or 0) * (row["n_y"] or 0),
        settings=loads(row["settings"]),
        **{key: origin.get(key, "") for key in ("parameters", "loss")},
        **{column: row[column] for column in (*_SHARED, "status", "created")},
    )
