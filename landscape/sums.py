"""Sums over the batches of a data set, in float64, divided once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landscape.errors import DataError, ProblemError
from landscape.problem.data import describe
from landscape.problem.losses import BatchTerms


@dataclass(frozen=True)
class LossValue:
    """The loss of the whole data set at one weight vector.

    Attributes:
        value: Σ sum / Σ weight (the plain sum, for a loss with ``reduction="sum"``).
        se: standard error over the examples; NaN where the loss gives no per-example terms.
        metrics: means over the examples.
    """

    value: float
    se: float
    metrics: Mapping[str, float] = field(default_factory=dict)


class VectorSum:
    """Sum of vectors over batches: in float64, unless there is only one to add."""

    def __init__(self, n_batches: int) -> None:
        self._single = n_batches == 1
        self.value = torch.zeros(())

    def add(self, vector: Tensor) -> None:
        """Add one vector.

        Args:
            vector: shape (n,).
        """
        if self._single:
            self.value = vector
        elif self.value.ndim == 0:
            self.value = vector.double()
        else:
            self.value += vector


class LossSums:
    """Accumulates what batches contribute; waits for the device once, at the end."""

    def __init__(self, sums: bool) -> None:
        """Start from nothing.

        Args:
            sums: whether the loss of the data set is the plain sum.
        """
        self._plain_sum = sums
        self._rows: list[Tensor] = []
        self._metrics: dict[str, list[tuple[Tensor, int]]] = {}

    def add(self, terms: BatchTerms) -> None:
        """Add one batch.

        Args:
            terms: what it contributes to the loss.
        """
        total = terms.total.detach()
        weight = torch.as_tensor(terms.weight, dtype=torch.float64, device=total.device)
        if terms.terms is None or terms.weights is None:
            squares = [torch.full_like(total, math.nan)] * 3 + [torch.zeros_like(total)]
        else:
            s, w = terms.terms.detach().double(), terms.weights.double()
            if self._plain_sum:
                w = torch.ones_like(s)
            squares = [s @ s, s @ w, w @ w, torch.full_like(total, len(s))]
        self._rows.append(torch.stack([total, weight, *squares]))

    def add_metric(self, name: str, value: Any, size: int) -> None:
        """Add a metric of one batch.

        Args:
            name: which one.
            value: one value per example, or their mean.
            size: number of examples in the batch.

        Raises:
            ProblemError: if it is neither.
        """
        tensor = value.detach() if isinstance(value, Tensor) else _as_tensor(value)
        if tensor is None or tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != size):
            msg = (
                f"metric {name!r} returned {describe(value)} for a batch of {size}; expected one "
                "value per example, or their mean"
            )
            raise ProblemError(msg)
        total = tensor.double().sum() * (size if tensor.ndim == 0 else 1)
        self._metrics.setdefault(name, []).append((total, size))

    @property
    def totals(self) -> list[float]:
        """Σ of the loss s, of the weight w, of s·s, s·w and w·w over examples; their number."""
        values: list[float] = torch.stack(self._rows).sum(dim=0).tolist()
        return values

    @property
    def divisor(self) -> float:
        """Σ weight, or 1 for a plain sum."""
        return final_divisor(self.totals[1], plain_sum=self._plain_sum)

    def result(self) -> LossValue:
        """Divide.

        Returns:
            The loss of all that has been added.
        """
        total, _, ss, sw, ww, n = self.totals
        value = total / self.divisor
        metrics = {
            name: float(torch.stack([t for t, _ in parts]).sum()) / sum(size for _, size in parts)
            for name, parts in self._metrics.items()
        }
        # Standard error of the ratio Σs/Σw over examples (delta method); of n·mean for a sum.
        ratio = total / n if self._plain_sum and n else value
        residual = ss - 2 * ratio * sw + ratio**2 * ww
        se = math.nan
        if n > 1 and math.isfinite(residual):
            se = math.sqrt(max(residual, 0.0) * n / (n - 1)) / self.divisor
        return LossValue(value, se, metrics)


def final_divisor(weight: float, *, plain_sum: bool) -> float:
    """Return what the sums over the data are divided by, once.

    Args:
        weight: Σ weight over the data.
        plain_sum: whether the loss of the data set is the sum itself.

    Returns:
        The weight, or 1 for a plain sum.

    Raises:
        DataError: if nothing in the data has a weight.
    """
    if not weight > 0:
        msg = "the total weight of the data is zero: is every target ignored (ignore_index)?"
        raise DataError(msg)
    return 1.0 if plain_sum else weight


def _as_tensor(value: Any) -> Tensor | None:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
