"""The handwritten digits with a multilayer perceptron."""

from __future__ import annotations

from torch import nn

from landscape.tasks.digits import data, loss, metrics
from landscape.tasks.layers import mlp

__all__ = ["data", "loss", "metrics", "model"]


def model() -> nn.Module:
    """Return the network, its weights as PyTorch initialises them.

    Returns:
        A multilayer perceptron of 8,970 parameters.

    >>> sum(p.numel() for p in model().parameters())
    8970
    """
    return mlp((64, 64, 64, 10))
