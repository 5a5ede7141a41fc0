"""The handwritten digits with a transformer that reads patches of 2 × 2 pixels."""

from __future__ import annotations

from torch import nn

from landscape.tasks.digits import data, loss, metrics
from landscape.tasks.layers import Transformer

__all__ = ["data", "loss", "metrics", "model"]


def model() -> nn.Module:
    """Return the network, its weights as PyTorch initialises them.

    Returns:
        A transformer of 18,154 parameters.

    >>> sum(p.numel() for p in model().parameters())
    18154
    """
    return Transformer((8, 8), patch=(2, 2))
