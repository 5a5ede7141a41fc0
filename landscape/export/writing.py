"""One record into one file, in the format that the file's suffix names."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import InvalidArgumentError
from landscape.export.hdf5 import hdf5_bytes
from landscape.export.vtk import vtk_bytes
from landscape.files import write_file
from landscape.results import KINDS, Line, Result, Surface, to_record
from landscape.study.codec import dumps


def table_bytes(result: Result) -> bytes:
    r"""Return the columns of a record, those of `Result.table`, as comma-separated values.

    Numbers are written by repr, which is exact; NaN and infinity read ``nan``, ``inf`` and
    ``-inf``. Lines end in ``\n``, text is UTF-8.
    """
    columns = result.table()
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*map(_cells, columns.values()), strict=True))
    return stream.getvalue().encode()


def _cells(values: Any) -> Any:
    """Return the values of a column; numbers of an array are written as floats."""
    return values.astype(float).ravel().tolist() if isinstance(values, np.ndarray) else values


def archive_bytes(result: Result) -> bytes:
    """Return a record as an ``.npz`` archive, exactly, to be read without pickle.

    It holds each array under the name of its field (``loss``, ``metrics.accuracy``), and under
    ``record`` the rest as JSON, with ``{"$float": "nan"}`` for a float that is not finite. The same
    record gives the same bytes.
    """
    scalars, arrays = to_record(result)
    parts: dict[str, Any] = {"record": np.array(dumps({"kind": result.kind, **scalars})), **arrays}
    stream = io.BytesIO()
    np.savez(stream, **parts)
    return stream.getvalue()


@dataclass(frozen=True)
class Format:
    """The kinds of record that a kind of file can hold, and what encodes them."""

    kinds: tuple[str, ...]
    encode: Callable[[Any], bytes]


_CLASSIC = Format((Line.kind, Surface.kind), hdf5_bytes)
FORMATS: Mapping[str, Format] = {
    ".csv": Format(tuple(KINDS), table_bytes),
    ".npz": Format(tuple(KINDS), archive_bytes),
    ".h5": _CLASSIC,
    ".hdf5": _CLASSIC,
    ".vtk": Format((Surface.kind,), vtk_bytes),
}
"""The formats, by the suffix that names them."""


def export_result(result: Result, path: str | os.PathLike[str]) -> Path:
    """Write a record to a file of its own; whole or not at all.

    Args:
        result: any record of `landscape.results`.
        path: where to write; ends in ``.csv``, ``.npz``, ``.h5``, ``.hdf5`` or ``.vtk``. What
            stands there is replaced.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: if the suffix is unknown, or such a file cannot hold the record.
        LandscapeError: if the file cannot be written.
        MissingDependencyError: if it is an HDF5 file and h5py is not installed.
    """
    check_format(result.kind, path)
    return write_file(path, FORMATS[Path(path).suffix.lower()].encode(result))


def check_format(kind: str, path: str | os.PathLike[str]) -> None:
    """Refuse a file that could not hold a record, before anything is written.

    Args:
        kind: kind of the record, a key of `landscape.results.KINDS`.
        path: where it is to be written.

    Raises:
        InvalidArgumentError: if the suffix is unknown, or such a file cannot hold the record.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        msg = f"cannot tell the format of {str(path)!r}: end it in {', '.join(FORMATS)}"
        raise InvalidArgumentError(msg)
    if kind not in FORMATS[suffix].kinds:
        fit = [name for name, one in FORMATS.items() if kind in one.kinds]
        msg = (
            f"a {suffix} file holds records of kind {' or '.join(FORMATS[suffix].kinds)}, and "
            f"this one is of kind {kind!r}: write it to {' or '.join(fit)}"
        )
        raise InvalidArgumentError(msg)
