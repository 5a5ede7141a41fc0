"""The MNIST-1D signals with a ResNet that has no BatchNorm."""

from __future__ import annotations

from torch import nn

from landscape.tasks.layers import SignalResNet
from landscape.tasks.mnist1d import data, loss, metrics

__all__ = ["data", "loss", "metrics", "model"]


def model() -> nn.Module:
    """Return the network, its weights as PyTorch initialises them.

    Returns:
        A ResNet of 32,346 parameters.

    >>> sum(p.numel() for p in model().parameters())
    32346
    """
    return SignalResNet(batch_norm=False)
