"""How numbers are written for people, the same in the terminal, in pictures and in the report."""

from __future__ import annotations

import math
from dataclasses import dataclass


def number(value: float) -> str:
    """Write a number for a person: four significant digits.

    >>> number(0.35217), number(12345.6), number(3.2e-7), number(float("nan"))
    ('0.3522', '1.235e+04', '3.2e-07', 'nan')
    """
    return f"{value:.4g}"


def with_error(value: float, error: float) -> str:
    """Write a number with its error, the error to two digits and the number to the same place.

    >>> with_error(0.123456, 0.00123), with_error(2.0, float("nan"))
    ('0.1235 ± 0.0012', '2')
    """
    if not math.isfinite(error) or not math.isfinite(value):
        return number(value)
    if error == 0.0:
        return f"{number(value)} ± 0"
    places = max(0, 1 - math.floor(math.log10(abs(error))))
    if places > 8 or abs(value) >= 1e6:
        return f"{value:.4g} ± {error:.1e}"
    return f"{value:.{places}f} ± {error:.{places}f}"


@dataclass(frozen=True)
class Quantity:
    """A number with its standard error, as a table shows it.

    Attributes:
        value: the number.
        error: its standard error; NaN: not known.
        bound: sign in front of it, such as ``≥`` for a lower bound.

    >>> str(Quantity(0.123456, 0.00123, bound="≥"))
    '≥ 0.1235 ± 0.0012'
    """

    value: float
    error: float = math.nan
    bound: str = ""

    def __str__(self) -> str:
        return f"{self.bound} {with_error(self.value, self.error)}".strip()


def cell_text(cell: object) -> str:
    """Write a cell of a table: numbers to four digits, a statement as yes or NO.

    >>> cell_text(0.35217), cell_text(1437), cell_text(False)
    ('0.3522', '1,437', 'NO')
    """
    if isinstance(cell, bool):
        return "yes" if cell else "NO"
    if isinstance(cell, float):
        return number(cell)
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
