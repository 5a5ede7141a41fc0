"""Derivatives of a user's loss, and what torch says of those that are missing, in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from landscape.errors import LossError


def differentiate(
    total: Tensor, leaf: Tensor, *, create_graph: bool = False, along: Tensor | None = None
) -> Tensor:
    """Return the gradient of the loss of a batch.

    Args:
        total: the loss.
        leaf: what to differentiate by, such as the weights, shape (n,).
        create_graph: whether to differentiate once more.
        along: for a total that is no scalar: the vector u of Jᵀu, of the same shape.

    Returns:
        The gradient, or Jᵀu, in the shape of the leaf.

    Raises:
        LossError: if there is no gradient, or no way to compute it.
    """
    gradient = None
    if total.requires_grad:
        with needing_derivatives("once"):
            (gradient,) = torch.autograd.grad(
                total, leaf, along, create_graph=create_graph, allow_unused=True
            )
    if gradient is None:
        msg = (
            "the loss does not depend on the parameters in a differentiable way; is there a "
            "detach(), a no_grad() or an argmax between the parameters and the loss, or does the "
            "loss use another model than the one that it is given?"
        )
        raise LossError(msg)
    return gradient


@contextmanager
def needing_derivatives(how_often: str) -> Iterator[None]:
    """Turn what torch says of a missing derivative into an error of ours.

    Args:
        how_often: ``once`` or ``twice``.

    Yields:
        Nothing.

    Raises:
        LossError: in place of a RuntimeError.
        OutOfMemoryError: what is no fault of the loss.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = (str(error).splitlines() or [""])[0]
        msg = (
            f"the loss cannot be differentiated {how_often}: {first}; replace the operation by "
            "one whose derivative torch knows"
        )
        raise LossError(msg) from error
