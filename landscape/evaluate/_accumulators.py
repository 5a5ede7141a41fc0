"""Weights to evaluate at, and sums over the batches of a data set, in float64, divided once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.errors import DataError, ProblemError
from landscape.problem._parameters import ParameterSpace
from landscape.problem._shards import Sum
from landscape.problem.data import describe
from landscape.problem.losses import BatchTerms
from landscape.processes import share


class Displaced:
    """Weights that are computed in the model's own parameters, in place of a vector of them."""

    def __init__(self, write: Callable[[list[Tensor]], None]) -> None:
        """Take what writes them into the tensors of the space, in order."""
        self.write = write


Weights = Tensor | Displaced | None  # None: the origin


@dataclass(frozen=True)
class LossValue:
    """The loss of the whole data set at one weight vector."""

    value: float  # Σ sum / Σ weight; the plain sum, for a loss with ``reduction="sum"``
    se: float  # standard error over the examples; NaN where the loss gives no per-example terms
    metrics: Mapping[str, float] = field(default_factory=dict)  # means over the examples
    # Where they were asked for and the loss gives terms: loss and weight of each example, float64,
    # shape (N,), on the CPU, in the order of the data. The loss is Σ loss / Σ weight.
    examples: tuple[Tensor, Tensor] | None = None


class GradientSum:
    """Sum of gradients over batches, as one flat vector.

    Short vectors are added in float64. Long ones are added in their own type in blocks of eight,
    and the blocks in float64: that rounds less than the gradient of one batch does by itself, and
    reads and writes a quarter of the memory.
    """

    _LONG, _BLOCK = 2**19, 8

    def __init__(self, space: ParameterSpace, like: Tensor) -> None:
        """Start from zero; `like` has the type and device of the gradients."""
        self._space, self._like = space, like
        self._total: Tensor | None = None
        self._block: Tensor | None = None
        self._n = 0
        self.is_empty = True

    def add(self, gradients: list[Tensor | None]) -> None:
        """Add the gradient of each tensor, None for zero; the list is emptied on the way."""
        self.is_empty = self.is_empty and all(gradient is None for gradient in gradients)
        if self._space.n < self._LONG:
            self._add_short(gradients)
        else:
            self._add_long(gradients)
        self._n += 1

    def _add_short(self, gradients: list[Tensor | None]) -> None:
        parts = [
            self._like.new_zeros(size) if gradient is None else _dense(gradient).reshape(-1)
            for gradient, size in zip(gradients, self._space.sizes, strict=True)
        ]
        flat = torch.cat(parts)
        self._total = flat if self._total is None else self._total.double().add_(flat)

    def _add_long(self, gradients: list[Tensor | None]) -> None:
        is_first = self._n % self._BLOCK == 0
        if self._block is None:
            self._block = self._like.new_empty(self._space.length)
        elif is_first and self._total is None:
            self._total = self._block.to(torch.float64, copy=True)
        elif is_first and self._total is not None:
            self._total.add_(self._block)
        for i, view in enumerate(self._space.views(self._block)):
            gradient, gradients[i] = gradients[i], None  # freed as soon as it is added
            if is_first:
                view.zero_() if gradient is None else view.copy_(_dense(gradient))
            elif gradient is not None:
                view.add_(_dense(gradient))

    def result(self, divisor: float = 1.0, *, shared: bool = False) -> Tensor:
        """Return the sum over the divisor, shape (n,), in the type of the gradients.

        With ``shared``, of all processes that share the data.
        """
        total, block = self._total, self._block
        if block is not None:
            total = block if total is None else total.add_(block)
        here = share() if shared else None
        if total is None:
            total = self._like.new_zeros(self._space.length)
        if here is not None:
            total = here.add_up(total.double())
        return (total if divisor == 1.0 else total.div_(divisor)).to(self._like.dtype)


def joined(parts: list[BatchTerms]) -> BatchTerms:
    """Return the terms of a batch from those of its parts, in order."""
    first, *others = parts
    if not others:
        return first
    terms = [part.terms for part in parts if part.terms is not None]
    weights = [part.weights for part in parts if part.weights is not None]
    known = len(terms) == len(weights) == len(parts)
    return BatchTerms(
        torch.stack([part.total for part in parts]).sum(),
        sum(float(part.weight) for part in parts),
        torch.cat(terms) if known else None,
        torch.cat(weights) if known else None,
        first.is_guess,
    )


def of_all(
    terms: BatchTerms, *, before: int = 0, after: int = 0, counts: bool = True
) -> BatchTerms:
    """Return the terms of a batch from what each process found on its part, differentiably.

    Before and behind this part are so many examples of others; what does not count is the whole
    batch, which another process has evaluated too.
    """
    device = terms.total.device
    weight = torch.as_tensor(terms.weight, dtype=torch.float64, device=device)
    rows = [terms.total.double()[None], weight[None]]
    known = terms.terms is not None and terms.weights is not None
    if terms.terms is not None and terms.weights is not None:
        rows += [F.pad(row.double(), (before, after)) for row in (terms.terms, terms.weights)]
    own = torch.cat(rows)
    total: Tensor = Sum.apply(own if counts else own * 0.0)  # type: ignore[no-untyped-call]
    n = (len(total) - 2) // 2
    return BatchTerms(
        total[0],
        total[1].detach(),
        total[2 : 2 + n] if known else None,
        total[2 + n :].detach() if known else None,
        terms.is_guess,
    )


def blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Cut a tensor into flat blocks that stay in the caches, for what is made of one at a time."""
    return torch.split(tensor.reshape(-1), 2**20)


def inner_product(one: Tensor, other: Tensor) -> Tensor:
    """Return Σ one · other in float64."""
    pairs = zip(blocks(_dense(one)), blocks(other), strict=True)
    return torch.stack([(a * b).sum(dtype=torch.float64) for a, b in pairs]).sum()


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


class LossSums:
    """Accumulates what batches contribute; waits for the device once, at the end."""

    def __init__(self, sums: bool) -> None:
        """Start from nothing."""
        self._plain_sum = sums
        self._totals: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._examples: list[tuple[Tensor, Tensor]] | None = []
        self._metrics: dict[str, list[tuple[Tensor, int]]] = {}
        self._known: list[float] | None = None

    def add(self, terms: BatchTerms) -> None:
        """Add one batch."""
        self._known, total = None, terms.total.detach()
        weight = torch.as_tensor(terms.weight, dtype=torch.float64, device=total.device)
        self._totals.append(total)
        self._weights.append(weight)
        # Kept as they are, and summed once at the end: a sum for every batch would cost more than
        # the forward pass of a small model.
        if terms.terms is None or terms.weights is None:
            self._examples = None
        elif self._examples is not None:
            self._examples.append((terms.terms.detach(), terms.weights.detach()))

    def add_metrics(self, totals: Mapping[str, tuple[Tensor, int]]) -> None:
        """Add the metrics of one batch."""
        for name, pair in totals.items():
            self._metrics.setdefault(name, []).append(pair)

    @property
    def examples(self) -> tuple[Tensor, Tensor] | None:
        """Loss and weight of each example, shape (N,), float64; None where there are none."""
        if self._examples is None:
            return None
        terms, weights = (
            (parts[0] if len(parts) == 1 else torch.cat(parts)).double()
            for parts in zip(*self._examples, strict=True)
        )
        return terms, torch.ones_like(terms) if self._plain_sum else weights

    @property
    def totals(self) -> list[float]:
        """Σ of the loss s, of the weight w, of s·s, s·w and w·w over examples; their number."""
        if self._known is None:
            total, weight = _added(self._totals), _added(self._weights)
            squares, n, examples = [torch.full_like(total, math.nan)] * 3, 0, self.examples
            if examples is not None:
                s, w = examples
                squares, n = [s @ s, s @ w, w @ w], len(s)
            self._known = [*torch.stack([total, weight, *squares]).tolist(), float(n)]
        return self._known

    @property
    def metrics(self) -> dict[str, float]:
        """The means of the metrics over the examples."""
        return {name: total / size for name, (total, size) in self._metric_totals().items()}

    def _metric_totals(self) -> dict[str, tuple[float, int]]:
        return {
            name: (float(torch.stack([t for t, _ in parts]).sum()), sum(n for _, n in parts))
            for name, parts in self._metrics.items()
        }

    @staticmethod
    def share(every: Sequence[LossSums], *, keep: bool = False) -> None:
        """Add what the other processes have summed of their parts of the data, if there are any.

        The losses of the examples are gathered only if they are to be kept.
        """
        here = share()
        if here is None or not every:
            return
        device = next((t.device for sums in every for t in sums._totals), torch.device("cpu"))
        local = [
            (
                sums.totals if sums._totals else None,
                sums._metric_totals(),
                _on_host(sums.examples) if keep and sums._totals else None,
            )
            for sums in every
        ]
        for sums, parts in zip(every, zip(*here.gather(local), strict=True), strict=True):
            totals = [np.array(known) for known, _, _ in parts if known is not None]
            sums._known = [float(value) for value in sum(totals[1:], totals[0])]
            names = dict.fromkeys(name for _, metrics, _ in parts for name in metrics)
            sums._metrics = {
                name: [
                    (torch.tensor(metrics[name][0], dtype=torch.float64), metrics[name][1])
                    for _, metrics, _ in parts
                    if name in metrics
                ]
                for name in names
            }
            sums._examples = None
            gathered = [examples for known, _, examples in parts if known is not None]
            if keep and all(examples is not None for examples in gathered):
                sums._examples = [(s.to(device), w.to(device)) for s, w in gathered]

    @property
    def divisor(self) -> float:
        """Σ weight, or 1 for a plain sum."""
        return final_divisor(self.totals[1], plain_sum=self._plain_sum)

    def result(self, *, keep: bool = False) -> LossValue:
        """Divide."""
        total, _, ss, sw, ww, n = self.totals
        value = total / self.divisor
        # Standard error of the ratio Σs/Σw over examples (delta method); of n·mean for a sum.
        ratio = total / n if self._plain_sum and n else value
        residual = ss - 2 * ratio * sw + ratio * ratio * ww
        se = math.nan
        if n > 1 and math.isfinite(residual):
            se = math.sqrt(max(residual, 0.0) * n / (n - 1)) / self.divisor
        kept = self.examples if keep else None
        examples = None if kept is None else (kept[0].cpu(), kept[1].cpu())
        return LossValue(value, se, self.metrics, examples)


def _on_host(examples: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if examples is None else (examples[0].cpu(), examples[1].cpu())


def _added(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def metric_total(name: str, value: Any, size: int) -> tuple[Tensor, int]:
    """Sum a metric of one batch over its examples."""
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.empty(0, 0)
    if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != size):
        msg = (
            f"metric {name!r} returned {describe(value)} for a batch of {size}; expected one "
            "value per example, or their mean"
        )
        raise ProblemError(msg)
    return tensor.double().sum() * (size if tensor.ndim == 0 else 1), size


def error_of_mean(values: Tensor, weights: Tensor, *, plain_sum: bool) -> float:
    """Return the standard error over the examples of Σ values / Σ weights, by the delta method.

    With differences of losses at two weight vectors, example by example, it is that of the paired
    difference.
    """
    n = len(values)
    if n < 2:
        return math.nan
    w = torch.ones_like(values) if plain_sum else weights
    rest = values - values.sum() / w.sum() * w
    error = math.sqrt(float(rest @ rest) * n / (n - 1))
    return error if plain_sum else error / float(w.sum())


def final_divisor(weight: float, *, plain_sum: bool) -> float:
    """Return what the sums over the data are divided by, once."""
    if not weight > 0:
        msg = "the total weight of the data is zero: is every target ignored (ignore_index)?"
        raise DataError(msg)
    return 1.0 if plain_sum else weight
