"""Lines, surfaces and averages, kept point by point as they are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from landscape.errors import InvalidArgumentError, StudyError
from landscape.study.claims import Claims
from landscape.study.codec import dumps, loads
from landscape.study.file import StudyFile

Points = Mapping[tuple[int, int], Mapping[str, float]]
RECORD_SECONDS = 0.1  # how long points wait to be recorded together


class Grid:
    """The points of one line or surface in a study file; made by `Study.grid`.

    Several processes may record points of one grid at once, and ``claims`` tell what each of them
    measures. Whoever is first to record a point wins, and the others are silently ignored: they
    measured the same thing. ``id`` is the number of the measurement in the file, ``shape`` that of
    the points along x and y, (n, 1) for a line.
    """

    def __init__(self, file: StudyFile, id: int, shape: tuple[int, int]) -> None:
        self._file, self.id, self.shape = file, id, shape
        self.claims = Claims(file, id)

    @property
    def done(self) -> dict[tuple[int, int], dict[str, float]]:
        """What is recorded so far, by any process: the values by column, by point."""
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT i, j, measured FROM points WHERE measurement = ? ORDER BY i, j", (self.id,)
            ).fetchall()
        return {(row["i"], row["j"]): loads(row["measured"]) for row in rows}

    def settle(self, how: Mapping[str, Any]) -> dict[str, Any]:
        """Note how the points are measured, in JSON values; return the first note, which stays.

        Args:
            how: the note.

        Returns:
            The first note: what is resumed, or shared by several processes, is made in one way.
        """
        with self._file.writing() as connection:
            connection.execute(
                "UPDATE measurements SET record = ? WHERE id = ? AND record IS NULL",
                (dumps({"how": dict(how)}), self.id),
            )
        noted = self.settled
        return dict(how) if noted is None else noted

    @property
    def settled(self) -> dict[str, Any] | None:
        """How the points are measured, if it is noted."""
        with self._file.reading() as connection:
            row = connection.execute(
                "SELECT record FROM measurements WHERE id = ? AND status = 'partial'", (self.id,)
            ).fetchone()
        noted = None if row is None or row["record"] is None else loads(row["record"]).get("how")
        return None if noted is None else dict(noted)

    def record(self, i: int, j: int, values: Mapping[str, float]) -> None:
        """Record one point, as `record_all` does."""
        self.record_all({(i, j): values})

    def record_all(self, points: Points) -> None:
        """Record points in one transaction; they are on the disk when this returns.

        Args:
            points: floats by column (NaN and infinity stay), by the indices along x and y from 0.

        Raises:
            InvalidArgumentError: if there is no such point.
        """
        n_x, n_y = self.shape
        rows: list[tuple[int, int, int, str]] = []
        for (i, j), values in points.items():
            if not (0 <= i < n_x and 0 <= j < n_y):
                msg = f"point ({i}, {j}) lies outside the grid of {n_x} × {n_y}"
                raise InvalidArgumentError(msg)
            columns = {name: float(value) for name, value in values.items()}
            rows.append((self.id, int(i), int(j), dumps(columns)))
        try:
            self._insert(rows)
        except StudyError:
            for row in rows:  # a disk that is full may have room for some of them
                self._insert([row])

    def _insert(self, rows: Sequence[tuple[object, ...]]) -> None:
        with self._file.writing() as connection:
            connection.executemany("INSERT OR IGNORE INTO points VALUES (?, ?, ?, ?)", rows)


@contextmanager
def recording(grid: Grid | None) -> Iterator[Callable[[Points], None]]:
    """Record points of a grid as they are measured, those of a tenth of a second together.

    What waits is recorded at the end, also after an exception; a kill loses what was measured in
    the tenth of a second before it.

    Args:
        grid: where to record; None: keep nothing.

    Yields:
        The function to give points to, as `Grid.record_all` takes them; none: record what waits.
    """
    waiting: dict[tuple[int, int], Mapping[str, float]] = {}
    recorded = time.perf_counter()

    def record() -> None:
        nonlocal recorded
        if grid is not None and waiting:
            grid.record_all(waiting)
        waiting.clear()
        recorded = time.perf_counter()

    def add(points: Points) -> None:
        waiting.update(points)
        if not points or time.perf_counter() - recorded >= RECORD_SECONDS:
            record()

    with grid.claims.kept() if isinstance(grid, Grid) else nullcontext():
        try:
            yield add
        finally:
            record()
