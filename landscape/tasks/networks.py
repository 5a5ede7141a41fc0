"""Small networks for the built-in problems."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with a shortcut around them: relu(shortcut(x) + f(x)).

    The shortcut is the identity where the shape stays, else a 1 × 1 convolution. Without a
    shortcut the block is relu(f(x)).

    Reference: He, Zhang, Ren, Sun 2015, arXiv 1512.03385 (shortcut of type B).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        stride: int = 1,
        batch_norm: bool = True,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(n_in, n_out, size=3, stride=stride, batch_norm=batch_norm)
        self.conv2 = _convolution(n_out, n_out, size=3, stride=1, batch_norm=batch_norm)
        self.shortcut: nn.Module | None = nn.Identity() if shortcut else None
        if shortcut and (stride != 1 or n_in != n_out):
            self.shortcut = _convolution(n_in, n_out, size=1, stride=stride, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        features: Tensor = self.conv2(F.relu(self.conv1(x)))
        return F.relu(features if self.shortcut is None else self.shortcut(x) + features)


class ResNet(nn.Module):
    """A residual network for small images: convolution, blocks, global average, linear layer.

    References: He, Zhang, Ren, Sun 2015, arXiv 1512.03385; without shortcuts: Li, Xu, Taylor,
    Studer, Goldstein 2018, arXiv 1712.09913, section 5.

    >>> import torch
    >>> ResNet()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        *,
        batch_norm: bool = True,
        shortcuts: bool = True,
        in_channels: int = 1,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = _convolution(in_channels, widths[0], size=3, stride=1, batch_norm=batch_norm)
        stages: list[nn.Module] = []
        n_in = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                made = BasicBlock(
                    n_in, width, stride=stride, batch_norm=batch_norm, shortcut=shortcuts
                )
                stages.append(made)
                n_in = width
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        features = self.blocks(F.relu(self.stem(x)))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def _convolution(
    n_in: int, n_out: int, *, size: int, stride: int, batch_norm: bool
) -> nn.Sequential:
    # BatchNorm subtracts the mean, so that a bias before it would do nothing.
    convolution = nn.Conv2d(
        n_in, n_out, size, stride=stride, padding=size // 2, bias=not batch_norm
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out) if batch_norm else nn.Identity())
