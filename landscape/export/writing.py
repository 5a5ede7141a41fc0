"""One record into one file, in the format that the file's suffix names: CSV, NumPy, HDF5, VTK."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from landscape.errors import InvalidArgumentError
from landscape.export.hdf5 import hdf5_bytes
from landscape.files import write_file
from landscape.results import KINDS, FloatArray, Line, Result, Surface, to_record
from landscape.results.base import metric_columns
from landscape.study.codec import dumps


def table_bytes(result: Result) -> bytes:
    r"""Return the columns of a record, those of `Result.table`, as comma-separated values.

    Numbers are written by repr, which is exact; NaN and infinity read ``nan``, ``inf`` and
    ``-inf``. Lines end in ``\n``, text is UTF-8.
    """
    columns = {  # numbers of an array are written as floats
        name: values.astype(float).ravel().tolist() if isinstance(values, np.ndarray) else values
        for name, values in result.table().items()
    }
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return stream.getvalue().encode()


def archive_bytes(result: Result) -> bytes:
    """Return a record as an ``.npz`` archive, exactly, to be read without pickle.

    It holds each array under the name of its field (``loss``, ``metrics.accuracy``), and under
    ``record`` the rest as JSON, see `dumps`.
    """
    scalars, arrays = to_record(result)
    parts: dict[str, Any] = {"record": np.array(dumps({"kind": result.kind, **scalars})), **arrays}
    stream = io.BytesIO()
    np.savez(stream, **parts)
    return stream.getvalue()


def vtk_bytes(surface: Surface) -> bytes:
    """Return a surface as a structured grid in the legacy VTK format, binary, in float64.

    The point (i, j) stands at (x[i], y[j], loss[i, j]): the coordinates in units of the
    directions, and the raw loss as the height. Where the loss is not finite the height is that of
    the highest finite one (of the lowest, for −inf), because no point can stand at NaN. The values
    at the points are never touched: ``loss`` (the active one), ``loss_se`` and the further means.
    """
    n_x, n_y = surface.loss.shape
    values = {"loss_se": surface.loss_se}
    values |= metric_columns(surface.metrics, ("loss", "loss_se"))
    parts = [
        _text("# vtk DataFile Version 3.0", _title(surface), "BINARY", "DATASET STRUCTURED_GRID"),
        _text(f"DIMENSIONS {n_x} {n_y} 1", f"POINTS {n_x * n_y} double"),
        _numbers(_points(surface)),
        _text(f"POINT_DATA {n_x * n_y}", "SCALARS loss double 1", "LOOKUP_TABLE default"),
        _numbers(surface.loss.T),
        _text(f"FIELD FieldData {len(values)}"),
    ]
    for name, array in values.items():
        parts += [_text(f"{quote(name)} 1 {n_x * n_y} double"), _numbers(array.T)]
    return b"".join(parts)


def _points(surface: Surface) -> FloatArray:
    finite = surface.loss[np.isfinite(surface.loss)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    height = np.nan_to_num(surface.loss, nan=high, posinf=high, neginf=low)
    # The points of a VTK grid run along x first: rows of constant y, one after the other.
    return np.stack([*np.meshgrid(surface.x, surface.y), height.T], axis=-1)


def _title(surface: Surface) -> str:
    title = f"Loss surface of {surface.name}, {surface.plane}"
    printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in title)
    return printable[:255]  # what the format allows, without the end of the line


def _text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _numbers(values: FloatArray) -> bytes:
    return values.astype(">f8").tobytes() + b"\n"


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
    """Refuse a file that could not hold a record of this kind, before anything is written."""
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
