"""Surfaces as VTK files, for ParaView."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np

from landscape.results import FloatArray, Surface
from landscape.results.base import metric_columns

_LONGEST_TITLE = 255  # what the format allows, without the end of the line


def vtk_bytes(surface: Surface) -> bytes:
    """Return a surface as a structured grid in the legacy VTK format, binary, in float64.

    The point (i, j) stands at (x[i], y[j], loss[i, j]): the coordinates in units of the
    directions, as in our pictures, and the raw loss as the height; other scales are a filter away
    (Transform, or Warp By Scalar). Where the loss is not finite the height is that of the highest
    finite one (of the lowest, for −inf), because no point can stand at NaN. The values at the
    points are never touched: ``loss`` (the active one), ``loss_se`` and the further means, NaN and
    infinity among them.
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
    # The points of a VTK grid run along x first: rows of constant y, one after the other.
    x, y = np.meshgrid(surface.x, surface.y)
    return np.stack([x, y, _height(surface.loss).T], axis=-1)


def _height(loss: FloatArray) -> FloatArray:
    finite = loss[np.isfinite(loss)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return np.nan_to_num(loss, nan=high, posinf=high, neginf=low)


def _title(surface: Surface) -> str:
    title = f"Loss surface of {surface.name}, {surface.plane}"
    printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in title)
    return printable[:_LONGEST_TITLE]


def _text(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _numbers(values: FloatArray) -> bytes:
    return values.astype(">f8").tobytes() + b"\n"
