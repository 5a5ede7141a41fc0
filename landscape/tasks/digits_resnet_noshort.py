"""The handwritten digits with a network of 20 layers that has no shortcuts."""

from __future__ import annotations

from torch import nn

from landscape.tasks.digits import data, loss, metrics
from landscape.tasks.networks import ResNet

__all__ = ["data", "loss", "metrics", "model"]


def model() -> nn.Module:
    """Return the network, its weights as PyTorch initialises them.

    Returns:
        A plain stack of convolutions with BatchNorm, 67,906 parameters.

    Reference: as the ResNets without shortcuts in Li, Xu, Taylor, Studer, Goldstein 2018, arXiv
    1712.09913, section 5; smaller.

    >>> sum(p.numel() for p in model().parameters())
    67906
    """
    return ResNet((8, 16, 32), blocks=3, shortcuts=False)
