"""One step of the optimizer on one batch: on the whole of it, or on its micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from landscape.errors import InvalidArgumentError
from landscape.optim import SAM, frozen_statistics
from landscape.problem.data import move
from landscape.problem.losses import Loss
from landscape.training.batches import cut_batch


@dataclass(frozen=True)
class Stepped:
    """What a step met at the weights before it, and what it cost.

    Attributes:
        total: sum of the loss over the batch.
        weight: what the sum is to be divided by.
        gradients: gradients of a batch; those of its micro-batches are one together.
    """

    total: float
    weight: float
    gradients: int


def step(
    model: nn.Module, loss: Loss, optimizer: Optimizer, batch: Any, *, micro_batch: int | None
) -> Stepped:
    """Do one step of the optimizer.

    With micro-batches this is m-SAM: each has a perturbation of its own, made of the gradient of
    its own loss, and the step is made with Σ wᵢ ∇Lᵢ(w + εᵢ) / Σ wᵢ, wᵢ being the weight of the
    micro-batch in the loss: the number of its examples, or with class weights or ignored targets
    what the loss divides by. At ρ = 0 it is the gradient of the batch, whatever the loss weighs.

    Cost: one gradient of the batch, with SAM one more for each ascent step. With micro-batches
    also one forward pass, for their weights; not for a loss with ``reduction="sum"``, nor where a
    batch is a single micro-batch.

    Reference: m-SAM: Foret et al. 2021, arXiv 2010.01412, section 4.1.
    """
    first = next(model.parameters())
    there = move(batch, first.device, first.dtype)
    if micro_batch is None or not isinstance(optimizer, SAM):
        closure = _Closure(model, loss, optimizer, there)
        optimizer.step(closure)
        return Stepped(*closure.passes[0], gradients=len(closure.passes))
    pieces = cut_batch(there, micro_batch, loss.batching)
    n = loss.batching.size(there)
    closures = [
        _Closure(model, loss, optimizer, p, share=loss.batching.size(p) / n) for p in pieces
    ]
    optimizer.step_micro_batches(closures, weights=_weights(model, loss, pieces))
    at_w = [closure.passes[0] for closure in closures]
    total, weight = (sum(column) for column in zip(*at_w, strict=True))
    return Stepped(total, weight, gradients=len(closures[0].passes))


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
    # Computes the loss of a batch and its gradient, and notes (total, weight) of each pass.
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
    # What a loss divides by is known from a pass only, and SAM asks before the first one. Neither
    # the running statistics nor the random numbers shall notice it.
    if len(pieces) == 1:
        return None
    if loss.sums:
        return [float(loss.batching.size(piece)) for piece in pieces]
    device = next(model.parameters()).device
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with frozen_statistics(model), forked:
        found = [float(loss(model, piece)[0].weight) for piece in pieces]
    return found if any(found) else None  # all targets ignored: every gradient is zero
