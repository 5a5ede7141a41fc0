"""One step of the optimizer on one batch: on the whole of it, or on its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from landscape.errors import InvalidArgumentError
from landscape.optim import SAM, frozen_statistics
from landscape.problem.data import move
from landscape.problem.losses import Loss
from landscape.training.batches import cut_batch


class StepResult(NamedTuple):
    """Sum of the loss and of its weights over a batch at the old weights; number of gradients."""

    total: float
    weight: float
    gradients: int


def step(
    model: nn.Module, loss: Loss, optimizer: Optimizer, batch: Any, *, micro_batch: int | None
) -> StepResult:
    """Do one step of the optimizer.

    With micro-batches this is m-SAM: each is perturbed by the gradient of its own loss, and the
    gradient of the step is Σ wᵢ ∇Lᵢ(w + εᵢ) / Σ wᵢ, wᵢ being the divisor of the micro-batch's loss:
    its number of examples, or less with class weights or ignored targets.

    Cost: one gradient of the batch, with SAM one more for each ascent step; with several
    micro-batches also one forward pass for their weights, but for ``reduction="sum"``.

    Reference: m-SAM: Foret et al. 2021, arXiv 2010.01412, section 4.1.
    """
    first = next(model.parameters())
    batch = move(batch, first.device, first.dtype)
    if micro_batch is None or not isinstance(optimizer, SAM):
        closure = _Closure(model, loss, optimizer, batch)
        optimizer.step(closure)
        return StepResult(*closure.passes[0], gradients=len(closure.passes))
    pieces = cut_batch(batch, micro_batch, loss.batching)
    n = loss.batching.size(batch)
    closures = [
        _Closure(model, loss, optimizer, p, share=loss.batching.size(p) / n) for p in pieces
    ]
    optimizer.step_micro_batches(closures, weights=_weights(model, loss, pieces))
    total, weight = (sum(c) for c in zip(*(c.passes[0] for c in closures), strict=True))
    return StepResult(total, weight, gradients=len(closures[0].passes))


def check_micro_batch(model: nn.Module, micro_batch: int | None) -> None:
    """Refuse micro-batches of one example where a layer normalises over the batch."""
    if micro_batch != 1:
        return
    names = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training]
    if names:
        msg = (
            f"micro_batch=1 leaves BatchNorm (layer {names[0]!r}) a single example to take the "
            "mean and the variance of; give micro_batch of at least 2, or a model without BatchNorm"
        )
        raise InvalidArgumentError(msg)


@dataclass
class _Closure:
    # Computes the loss of a batch and its gradient, and keeps (total, weight) of each pass.
    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    batch: Any
    share: float = 1.0
    passes: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self) -> float:
        self.optimizer.zero_grad()
        terms, _ = self.loss(self.model, self.batch)
        weight = float(terms.weight)
        # A summed loss grows with the batch: a micro-batch estimates that of the whole.
        mean = terms.total / (self.share if self.loss.sums else weight or 1.0)
        mean.backward()  # type: ignore[no-untyped-call]
        self.passes.append((terms.total.item(), weight))
        return mean.item()


def _weights(model: nn.Module, loss: Loss, pieces: Sequence[Any]) -> list[float] | None:
    # The divisor of a loss is known from a forward pass only, which must leave running statistics
    # and random numbers as they are.
    if len(pieces) == 1:
        return None
    if loss.sums:
        return [float(loss.batching.size(piece)) for piece in pieces]
    device = next(model.parameters()).device
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with frozen_statistics(model), forked:
        weights = [float(loss(model, piece)[0].weight) for piece in pieces]
    return weights if any(weights) else None  # all targets ignored: every gradient is zero
