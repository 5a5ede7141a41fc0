"""The MNIST-1D signals with a transformer that reads patches of 4 samples."""

from __future__ import annotations

from torch import nn

from landscape.tasks.layers import Transformer
from landscape.tasks.mnist1d import data, loss, metrics

__all__ = ["data", "loss", "metrics", "model"]


def model() -> nn.Module:
    """Return the network, its weights as PyTorch initialises them.

    Returns:
        A transformer of 17,962 parameters.

    >>> sum(p.numel() for p in model().parameters())
    17962
    """
    return Transformer((1, 40), patch=(1, 4))
