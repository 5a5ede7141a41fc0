"""The handwritten digits with a ResNet that has no BatchNorm."""

from __future__ import annotations

from torch import nn

from landscape.tasks.digits import data, loss, metrics
from landscape.tasks.networks import ResNet

__all__ = ["data", "loss", "metrics", "model"]


def model() -> nn.Module:
    """Return the network, its weights as PyTorch initialises them.

    Returns:
        A ResNet of 77,418 parameters.

    >>> sum(p.numel() for p in model().parameters())
    77418
    """
    return ResNet(batch_norm=False)
