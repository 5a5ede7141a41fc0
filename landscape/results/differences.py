"""How much more one checkpoint has of each measure than another, on the same examples and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from landscape.results.base import Columns, FloatArray, Result
from landscape.wording import number


@dataclass(frozen=True, kw_only=True, repr=False)
class Differences(Result):
    """Measures of a checkpoint less those of another one.

    Attributes:
        against: name of the other checkpoint.
        names: of the measures, m of them.
        own: values at this checkpoint, shape (m,).
        other: values at the other one, shape (m,).
        standard_error: of own − other, shape (m,): over the same examples, with each maximiser as
            it was found; for averages over the same draws of noise.
        low: lower ends of the 95 % intervals of own − other, shape (m,).
        high: upper ends.
        notes: what makes the comparison mislead.
    """

    kind: ClassVar[str] = "differences"
    heading: ClassVar[str] = "Differences to another checkpoint"
    against: str
    names: tuple[str, ...]
    own: FloatArray
    other: FloatArray
    standard_error: FloatArray
    low: FloatArray
    high: FloatArray
    notes: tuple[str, ...] = ()

    @property
    def difference(self) -> FloatArray:
        """Own less other, shape (m,)."""
        return np.asarray(self.own - self.other)

    def table(self) -> Columns:
        """Return a row for each measure."""
        names = ("own", "other", "difference", "standard_error", "low", "high")
        return {"measure": self.names, **{name: getattr(self, name) for name in names}}

    def rows(self) -> list[tuple[str, str]]:
        """Return each difference with its interval as rows, and the notes."""
        rows = []
        for k, name in enumerate(self.names):
            own, other, low, high, difference = (
                number(float(values[k]))
                for values in (self.own, self.other, self.low, self.high, self.difference)
            )
            sign = "" if self.low[k] > 0 or self.high[k] < 0 else ", NOT told from zero"
            interval = f"95 %: {low} to {high}{sign}"
            rows.append((name, f"{difference}  ({interval};  {own} less {other})"))
        return rows + [("note", note) for note in self.notes]
