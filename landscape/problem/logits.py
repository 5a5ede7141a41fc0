"""A loss of logits that have been centred and scaled to length 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LossError
from landscape.problem.data import describe
from landscape.problem.losses import BatchTerms, Loss, StandardLoss, forward

_SMALLEST = 1e-10
_OF_LOGITS = (nn.CrossEntropyLoss, nn.MultiMarginLoss)


def normalised_logits(logits: Tensor) -> Tensor:
    """Return (z − mean z) / max(‖z − mean z‖₂, 1e-10), over the classes.

    That is what the code of Andriushchenko et al. (2023) does. Their text divides by the standard
    deviation of the logits instead: those are √K times as long, with K classes.

    Args:
        logits: z, shape (B, K) or (B, K, …).

    Returns:
        The same shape.

    >>> normalised_logits(torch.tensor([[3.0, -1.0]])).double().round(decimals=4).tolist()
    [[0.7071, -0.7071]]
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    unit: Tensor = centred / length.clamp_min(_SMALLEST)
    return unit


class NormalisedLogits:
    """A classification loss after the logits were normalised: `normalised_logits`.

    Attributes:
        sums: whether the data set's loss is the plain sum.
        splits: always True: it is a function of the model's output.
        name: of the loss, and that its logits are normalised.
    """

    splits = True

    def __init__(self, loss: Loss) -> None:
        """Wrap a loss.

        Args:
            loss: of (output, target), the output being logits.

        Raises:
            LossError: if the loss is not one of classes by their logits.
        """
        module = getattr(loss, "_module", None)
        if not loss.splits or (isinstance(loss, StandardLoss) and not _takes_logits(module)):
            name = type(module).__name__ if module is not None else "batch_loss(model, batch)"
            msg = (
                f"logits can be normalised for a loss of classes alone, and {name} is none: give "
                "loss=torch.nn.CrossEntropyLoss(), or a function (output, target) of logits"
            )
            raise LossError(msg)
        self.sums = loss.sums
        self.name = f"{loss.name} of normalised logits"
        self._loss = loss

    def __call__(self, model: nn.Module, batch: Any) -> tuple[BatchTerms, Any]:
        """Return the terms of a batch, and (output, target) as the model gave them."""
        output, target = forward(model, batch)
        return self.of_output(output, target, batch), (output, target)

    def of_output(self, output: Any, target: Any, batch: Any) -> BatchTerms:
        """Return the terms of a batch from the model's output."""
        _require_classes(output, target)
        return self._loss.of_output(normalised_logits(output), target, batch)


def _takes_logits(module: Any) -> bool:
    return isinstance(module, _OF_LOGITS)


def _are_shares(target: Tensor, output: Tensor) -> bool:
    """Tell whether floating-point targets are probabilities of the classes."""
    if target.shape != output.shape or bool((target < 0).any()):
        return False
    return bool(((target.sum(dim=1) - 1).abs() < 1e-3).all())


def _require_classes(output: Any, target: Any) -> None:
    tensors = isinstance(output, Tensor) and isinstance(target, Tensor)
    logits = tensors and output.ndim >= 2 and output.shape[1] > 1
    if not logits or (target.is_floating_point() and not _are_shares(target, output)):
        msg = (
            f"logits can be normalised for classes alone: expected logits of shape (B, K) with K "
            f"at least 2, and classes or their probabilities, got an output of {describe(output)} "
            f"and a target of {describe(target)}"
        )
        raise LossError(msg)
