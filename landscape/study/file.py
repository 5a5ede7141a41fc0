"""The file itself: its schema, how it is opened, its transactions, and what can go wrong.

Writers keep one connection in WAL mode with ``synchronous=FULL``: what was committed survives a
kill and a power cut. Readers open the file anew for each read, so that they hold no lock between
two reads and always see what is finished. (WAL needs shared memory: all processes that use one
file must run on one machine.)

Never open a study file by other means than SQLite in a process that has it open: closing any file
descriptor of it drops the locks that SQLite holds.
"""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from landscape.errors import NetworkFolderWarning, StudyError

APPLICATION_ID = 0x4C534850  # "LSHP"; `file landscape.db` shows it
SCHEMA_VERSION = 4
BUSY_SECONDS = 60.0

# SQLite keeps these statements with their comments, so that `.schema` documents the file.
SCHEMA = (
    """CREATE TABLE about ( -- what this file is, in words
    topic TEXT PRIMARY KEY,
    text TEXT NOT NULL
)""",
    """CREATE TABLE measurements ( -- one row for each measurement, finished or begun
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE, -- SHA-256 of content, computation and settings, no names
    kind TEXT NOT NULL, -- loss, sharpness, eigs, line, surface
    checkpoint TEXT NOT NULL, -- the name that it was first measured under, or renamed to
    checkpoint_hash TEXT NOT NULL, -- digest of the weights and buffers
    data_fingerprint TEXT NOT NULL, -- digest of the data
    split TEXT NOT NULL, -- part of the data: train, test
    status TEXT NOT NULL CHECK (status IN ('partial', 'complete')),
    created TEXT NOT NULL, -- when it was measured, ISO 8601, UTC
    revision INTEGER NOT NULL, -- counts what is written: the larger, the newer
    settings TEXT NOT NULL, -- JSON: what was asked for
    provenance TEXT NOT NULL, -- JSON: where it came from
    cost TEXT, -- JSON: what it spent; NULL while partial
    record TEXT, -- JSON: the numbers measured, arrays apart; while partial: how it is measured
    n_x INTEGER, -- points of a line or surface along x; NULL if not kept by point
    n_y INTEGER -- and along y; 1 for a line
)""",
    """CREATE TABLE arrays ( -- the arrays of a measurement
    measurement INTEGER NOT NULL REFERENCES measurements (id) ON DELETE CASCADE,
    name TEXT NOT NULL, -- field of the record; a dot leads into a field: metrics.accuracy
    dtype TEXT NOT NULL, -- in NumPy's notation: <f8 is float64, little-endian
    shape TEXT NOT NULL, -- JSON
    data BLOB, -- raw bytes in C order; NULL: larger than 256 MiB and left out
    PRIMARY KEY (measurement, name)
)""",
    """CREATE TABLE points ( -- the points of a line or surface, each as soon as it is measured
    measurement INTEGER NOT NULL REFERENCES measurements (id) ON DELETE CASCADE,
    i INTEGER NOT NULL, -- index along x, from 0
    j INTEGER NOT NULL, -- index along y, from 0
    measured TEXT NOT NULL, -- JSON: loss and what else was measured there
    PRIMARY KEY (measurement, i, j)
)""",
)
ADDED_IN_2 = (
    """CREATE TABLE computations ( -- what problems computed, as a few numbers
    place TEXT NOT NULL, -- SHA-256 of weights, data, split, mode, device, dtype and parameters
    identity TEXT NOT NULL, -- problem_fingerprint of the measurements
    signature TEXT NOT NULL, -- JSON: losses, a derivative and metrics on the first examples
    PRIMARY KEY (place, identity)
)""",
    """CREATE TABLE names ( -- what checkpoints are called; several names may have the same weights
    name TEXT PRIMARY KEY, -- given, or the shortest end of the path that tells the files apart
    path TEXT NOT NULL, -- of the file, from the folder of the study; empty: not known
    checkpoint_hash TEXT NOT NULL -- digest of the weights that were last measured under the name
)""",
)
ADDED_IN_3 = (
    """CREATE TABLE runs ( -- the checkpoints of training runs
    run TEXT NOT NULL, -- name of the run
    name TEXT NOT NULL, -- of the checkpoint, see the table names
    step REAL NOT NULL, -- epoch or step of the training, or position in the run
    PRIMARY KEY (run, name)
)""",
)
ADDED_IN_4 = (
    """CREATE TABLE claims ( -- blocks of points that commands are measuring now
    measurement INTEGER NOT NULL REFERENCES measurements (id) ON DELETE CASCADE,
    i INTEGER NOT NULL, -- indices of the first point of the block
    j INTEGER NOT NULL,
    claimant TEXT NOT NULL, -- computer and number of the process
    expires REAL NOT NULL, -- when others may take over, in seconds since 1970; put off meanwhile
    PRIMARY KEY (measurement, i, j)
)""",
)
_NAMES_BEFORE_2 = """INSERT OR REPLACE INTO names
    SELECT checkpoint, '', checkpoint_hash FROM measurements ORDER BY revision"""
ABOUT = {
    "what": "Measurements of landscape-sharpness: loss landscapes of PyTorch checkpoints.",
    "start": "SELECT id, kind, checkpoint, status, settings, record FROM measurements;",
    "json": 'Columns in JSON write a float that is not finite as {"$float": "nan"}, "inf", "-inf";'
    " a key that begins with $ gets a second one.",
    "arrays": "NumPy: numpy.frombuffer(data, dtype).reshape(shape).",
    "version": "PRAGMA user_version is the version of the schema.",
}

_REASONS = {
    "database or disk is full": "the disk is full: {path} could not grow; nothing measured so far "
    "is lost: free some space and run the same command again",
    "disk I/O error": "the disk is full or failing: {path} could not be written; nothing measured "
    "so far is lost: free some space or check the disk, and run the same command again",
    "not a database": "{path} is not a study file (nor any SQLite file); name another file",
    "malformed": "the study file {path} is damaged; keep a copy, and save what can be read with: "
    "sqlite3 {path} .recover | sqlite3 recovered.db",
    "locked": "another process has been writing to {path} for more than "
    f"{BUSY_SECONDS:g} seconds; wait until it ends, or end it, and run the same command again",
    "readonly database": "{path} cannot be written: the file or its folder is write-protected; "
    "change its permissions, name another file, or only read it (readonly=True)",
    "unable to open": "{path} cannot be opened or created; check that its folder can be written "
    "(SQLite keeps two more files there while it is in use), or copy what is there to one that can",
    "FOREIGN KEY": "the measurement was deleted from {path} while its points were being recorded; "
    "run the same command again to begin anew",
    "thread": "the study {path} was opened in another thread; open it in the one that uses it",
}
# File systems of network folders, as /proc/mounts names them.
_NETWORK = re.compile(
    "nfs|cifs|smb|9p|afs|ceph|lustre|gpfs|beegfs|glusterfs|fuse[.](sshfs|gluster)"
)
_EMPTY = "{path} is empty: nothing was measured into it yet; name another file"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever SQLite or the system reports into a `StudyError` that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        reason = next(
            (reason for part, reason in _REASONS.items() if part in str(error)),
            "the study file {path} cannot be used; it may be damaged, or of another program",
        )
        msg = f"{reason.format(path=path)} (SQLite: {error})"
        raise StudyError(msg) from error
    except OSError as error:
        msg = f"{path} cannot be used ({error.strerror}); name another file"
        raise StudyError(msg) from error


class StudyFile:
    """A study file that is known to be one, and its transactions."""

    def __init__(self, path: Path, *, create: bool, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self.closed = False
        self.connection: sqlite3.Connection | None = None
        with explained(path):
            _check_place(path, create=create and not readonly)
            if readonly:
                _open_for_reading(path).close()
            else:
                _warn_of_network(path)
                self.connection = _open_for_writing(path, create=create)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read from one consistent state of the file."""
        writer = self._writer()
        with explained(self.path), ExitStack() as stack:
            reader = writer or stack.enter_context(closing(_open_for_reading(self.path)))
            yield stack.enter_context(_transaction(reader, "BEGIN"))

    @contextmanager
    def writing(self, *, lasting: bool = True) -> Iterator[sqlite3.Connection]:
        """Write in one transaction: all of it is in the file afterwards, or nothing.

        What need not last survives a kill, but a power cut only once something else is written.
        """
        writer = self._writer()
        if writer is None:
            msg = f"{self.path} was opened for reading only; open it without readonly=True to write"
            raise StudyError(msg)
        with explained(self.path):
            writer.execute(f"PRAGMA synchronous = {'FULL' if lasting else 'NORMAL'}")
            with _transaction(writer, "BEGIN IMMEDIATE") as connection:
                yield connection

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self.closed = True
        if self.connection is not None:
            with explained(self.path):
                self.connection.close()

    def _writer(self) -> sqlite3.Connection | None:
        if self.closed:
            msg = f"the study {self.path} is closed; open it again"
            raise StudyError(msg)
        return self.connection


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[sqlite3.Connection]:
    try:
        connection.execute(begin)
        yield connection
        connection.commit()
    except BaseException:  # Ctrl-C too must not leave half a transaction open
        if connection.in_transaction:
            connection.rollback()
        raise


def _check_place(path: Path, *, create: bool) -> None:
    if path.is_dir():
        msg = f"{path} is a folder; name a file in it, such as {path / 'landscape.db'}"
        raise StudyError(msg)
    if not path.exists():
        if not create:
            msg = f"there is no study file {path}; measure something first, or name another file"
            raise StudyError(msg)
        if not path.parent.is_dir():
            msg = f"the folder {path.parent} does not exist; create it first, or name another file"
            raise StudyError(msg)
    elif 0 < path.stat().st_size < 512:
        # SQLite would take a file of one byte for an empty one and write over it.
        msg = f"{path} is not a study file (nor any SQLite file); name another file"
        raise StudyError(msg)


def _warn_of_network(path: Path) -> None:
    """Say that files in network folders are not safe to write, where the system tells."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return
    folder, found = path.resolve().parent, (Path("/"), "")
    for _, place, kind, *_ in mounts:
        at = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), place))
        if folder.is_relative_to(at) and len(at.parts) >= len(found[0].parts):
            found = at, kind
    if _NETWORK.match(found[1]):
        msg = (
            f"{path} is in a network folder ({found[1]}), where SQLite cannot keep processes "
            "apart: a study can be damaged; write it on a local disk, and landscape merge what "
            "several computers have measured"
        )
        warnings.warn(msg, NetworkFolderWarning, stacklevel=5)


def connect(path: Path, parameters: str) -> sqlite3.Connection:
    """Connect to a file that is known to be a study."""
    uri = f"{path.absolute().as_uri()}?{parameters}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


def _schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of the schema, 0 for an empty file; refuse what is no study."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version, tables) == (0, 0, 0):
        return 0
    if application != APPLICATION_ID:
        msg = f"{path} is a SQLite file of another program, not a study file; name another file"
        raise StudyError(msg)
    if version > SCHEMA_VERSION:
        msg = (
            f"{path} has version {version} of the study schema, and this program knows versions "
            f"up to {SCHEMA_VERSION}; upgrade landscape-sharpness"
        )
        raise StudyError(msg)
    return int(version)


def _open_for_writing(path: Path, *, create: bool) -> sqlite3.Connection:
    connection = connect(path, "mode=rwc" if create else "mode=rw")
    try:
        # Nothing may be written before it is certain that the file is ours.
        with _transaction(connection, "BEGIN"):
            version = _schema_version(connection, path)
        if not (version or create):
            raise StudyError(_EMPTY.format(path=path))
        connection.execute("PRAGMA foreign_keys = ON")
        with _transaction(connection, "BEGIN IMMEDIATE"):
            version = _schema_version(connection, path)
            if version == 0:
                _write_schema(connection)
            elif version < SCHEMA_VERSION:
                _upgrade(connection, version)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        _switch_to_wal(connection)  # last: before it, nobody sees a file without its tables
    except BaseException:
        connection.close()
        raise
    return connection


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    # SQLite does not wait for other processes here, so that two that create one file must retry.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _write_schema(connection: sqlite3.Connection) -> None:
    for statement in (*SCHEMA, *ADDED_IN_2, *ADDED_IN_3, *ADDED_IN_4):
        connection.execute(statement)
    connection.executemany("INSERT INTO about VALUES (?, ?)", ABOUT.items())
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _upgrade(connection: sqlite3.Connection, version: int, create: str = "CREATE") -> None:
    """Add the tables that an older version lacks."""
    added = {2: ADDED_IN_2, 3: ADDED_IN_3, 4: ADDED_IN_4}
    for statement in itertools.chain(*(tables for n, tables in added.items() if version < n)):
        connection.execute(statement.replace("CREATE", create, 1))
    if version < 2:
        connection.execute(_NAMES_BEFORE_2)


def _open_for_reading(path: Path) -> sqlite3.Connection:
    # With the right to write, a reader tidies up SQLite's two side files when it closes; without,
    # it would leave them behind. So a write-protected file without a log is read as it stands.
    log = path.resolve().with_name(f"{path.resolve().name}-wal")
    writable = os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    if not writable and not log.exists():
        return _opened_to_read(path, "immutable=1")
    try:
        return _opened_to_read(path, "mode=rw")
    except sqlite3.OperationalError as error:
        # The folder may be write-protected or its disk full; only a log must not be passed over.
        if "locked" in str(error) or (log.exists() and log.stat().st_size > 0):
            raise
    return _opened_to_read(path, "immutable=1")


def _opened_to_read(path: Path, parameters: str) -> sqlite3.Connection:
    connection = connect(path, parameters)
    try:
        with _transaction(connection, "BEGIN"):
            version = _schema_version(connection, path)
        if version == 0:
            raise StudyError(_EMPTY.format(path=path))
        if version < SCHEMA_VERSION:  # the file stays as it is
            connection.execute("PRAGMA temp_store = MEMORY")
            _upgrade(connection, version, "CREATE TEMP")
        connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection
