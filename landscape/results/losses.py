"""The loss of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from landscape.results.base import Columns, Result, Summary, metric_columns
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

    kind: ClassVar[str] = "loss"
    heading: ClassVar[str] = "Loss"
    role: ClassVar[str] = "evaluation"
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
        rows = [("loss", with_error(self.loss, self.loss_se))]
        rows += [(name, number(value)) for name, value in self.metrics.items()]
        rows.append(("gradient norm", number(self.gradient_norm)))
        return rows
