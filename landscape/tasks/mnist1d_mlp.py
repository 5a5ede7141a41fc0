"""The MNIST-1D signals with a multilayer perceptron."""

from __future__ import annotations

from torch import nn

from landscape.tasks.layers import mlp
from landscape.tasks.mnist1d import data, loss, metrics

__all__ = ["data", "loss", "metrics", "model"]


def model() -> nn.Module:
    """Return the network, its weights as PyTorch initialises them.

    Returns:
        A multilayer perceptron of 15,210 parameters.

    >>> sum(p.numel() for p in model().parameters())
    15210
    """
    return mlp((40, 100, 100, 10))
