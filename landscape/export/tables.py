r"""Records as tables of comma-separated values, one row of names first.

Numbers are written by repr, which is exact; NaN and infinity read ``nan``, ``inf`` and ``-inf``;
what was not measured is an empty cell. Lines end in ``\n``, text is UTF-8.
"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np

from landscape.results import Result


def table_bytes(result: Result) -> bytes:
    """Return the columns of a record, those of `Result.table`, as comma-separated values."""
    columns = result.table()
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*map(_cells, columns.values()), strict=True))
    return stream.getvalue().encode()


def _cells(values: Any) -> Any:
    """Return the values of a column; numbers of an array are written as floats."""
    return values.astype(float).ravel().tolist() if isinstance(values, np.ndarray) else values
