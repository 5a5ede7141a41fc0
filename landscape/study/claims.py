"""Which process measures which points, where several commands work on one study."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from landscape.study.file import StudyFile, connect

if TYPE_CHECKING:
    from landscape.study.grid import Grid

Block = Sequence[tuple[int, int]]
CLAIM_SECONDS = 0.25  # what a process claims at a time takes about so long
EXPIRY_SECONDS = 30.0  # how long a claim is good for that is not put off
_WHERE = "WHERE measurement = ? AND i = ? AND j = ?"


class Claims:
    """What processes claim of the points of one measurement in a study file.

    A claim is good while its process lives, and for half a minute where that cannot be seen.
    """

    def __init__(self, file: StudyFile, measurement: int) -> None:
        self._file, self._measurement = file, measurement

    def claim(self, blocks: Iterable[Block]) -> tuple[list[Block], list[Block]]:
        """Claim the blocks with points that are not recorded, but for those of live processes.

        Returns:
            The blocks to measure here, and those that others are measuring.
        """
        mine: list[Block] = []
        others: list[Block] = []
        now = time.time()
        with self._file.writing(lasting=False) as connection:

            def row(table: str, point: tuple[int, int]) -> Any:
                where = (self._measurement, *point)
                return connection.execute(f"SELECT * FROM {table} {_WHERE}", where).fetchone()

            for block in blocks:
                if all(row("points", point) for point in block):
                    continue
                known = row("claims", block[0])
                if known and known["expires"] > now and _is_other(known["claimant"]):
                    others.append(block)
                    continue
                mine.append(block)
                connection.execute(
                    "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)",
                    (self._measurement, *block[0], _claimant(), now + EXPIRY_SECONDS),
                )
        return mine, others

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put off the expiry of the claims of this process from time to time."""
        ended, values = threading.Event(), (self._measurement, _claimant())

        def put_off() -> None:
            while not ended.wait(EXPIRY_SECONDS / 6):
                # What cannot be written expires: then another process measures the same again.
                with suppress(sqlite3.Error), closing(connect(self._file.path, "mode=rw")) as own:
                    own.execute(
                        "UPDATE claims SET expires = ? WHERE measurement = ? AND claimant = ?",
                        (time.time() + EXPIRY_SECONDS, *values),
                    )

        thread = threading.Thread(target=put_off, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def claimed(
    blocks: Iterable[Block], *, done: dict[tuple[int, int], Any], grid: Grid
) -> Iterator[Block]:
    """Keep the blocks that no other process measures; wait for the others, or take them over.

    An empty block comes before a wait: those before it have to be measured and recorded first, as
    another process may be waiting for them.

    Args:
        blocks: points that are measured together, the same in all processes.
        done: what is measured so far; what others have recorded is added at the end.
        grid: where all record.
    """
    left, size, n_others = iter(blocks), 1, 0
    waiting: list[Block] = []
    while batch := list(islice(left, size)):
        began = time.perf_counter()
        mine, others = grid.claims.claim(batch)
        waiting += others
        n_others += len(batch) - len(mine)
        yield from mine
        if mine:
            wanted = size * CLAIM_SECONDS / (time.perf_counter() - began)
            size = max(1, min(int(wanted), 2 * size))
    while waiting:
        yield []
        mine, waiting = grid.claims.claim(waiting)
        yield from mine
        if waiting and not mine:
            time.sleep(0.1)
    if n_others:
        done.update(grid.done)


def _claimant() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _is_other(claimant: str) -> bool:
    """Tell whether another process that may live has the claim."""
    host, _, pid = claimant.rpartition(" ")
    if host == socket.gethostname() and os.name == "posix":
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
    return claimant != _claimant()
