"""The loss of a checkpoint, and how much more it has of each measure than another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from landscape.results.base import Columns, FloatArray, Result, Summary, metric_columns
from landscape.wording import Quantity, number, with_error


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation(Result):
    """The loss of a checkpoint over the data set.

    Attributes:
        loss: Σ terms / Σ weights, accumulated in float64.
        loss_se: standard error of the loss over examples; NaN where the loss gives no terms.
        metrics: further means over the examples, accuracy among them.
        gradient_norm: Euclidean norm of the gradient of the loss.
    """

    kind, heading, role = "loss", "Loss", "evaluation"
    loss: float
    loss_se: float
    gradient_norm: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)

    def table(self) -> Columns:
        """Return loss, loss_se, gradient_norm and the metrics; one row."""
        names = ("loss", "loss_se", "gradient_norm")
        numbers = {name: getattr(self, name) for name in names}
        numbers |= metric_columns(self.metrics, names)
        return {name: [float(value)] for name, value in numbers.items()}

    def summary(self) -> Summary:
        """Return the loss, its metrics and the norm of the gradient."""
        loss = {"loss": Quantity(self.loss, self.loss_se)}
        return {**loss, **self.metrics, "gradient norm": self.gradient_norm}

    def rows(self) -> list[tuple[str, str]]:
        """Return the loss, its metrics and the norm of the gradient as rows."""
        return [
            ("loss", with_error(self.loss, self.loss_se)),
            *((name, number(value)) for name, value in self.metrics.items()),
            ("gradient norm", number(self.gradient_norm)),
        ]


@dataclass(frozen=True, kw_only=True, repr=False)
class Differences(Result):
    """Measures of a checkpoint less those of another one, on the same examples and noise.

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

    kind, heading = "differences", "Differences to another checkpoint"
    csv_columns: ClassVar[Mapping[str, str]] = {
        "measure": "names",
        **{name: name for name in ("own", "other", "difference", "standard_error", "low", "high")},
    }
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
