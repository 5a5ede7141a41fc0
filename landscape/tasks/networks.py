"""Small networks for the built-in problems: ResNet, perceptron, transformer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two convolutions with a shortcut around them: relu(shortcut(x) + f(x)), or relu(f(x)).

    Reference: He, Zhang, Ren, Sun 2015, arXiv 1512.03385 (shortcut of type B).
    """

    def __init__(
        self, n_in: int, n_out: int, size: int, *, dim: int, batch_norm: bool, shortcut: bool
    ) -> None:
        super().__init__()
        stride = 1 if n_in == n_out else 2
        convolution = partial(_convolution, dim=dim, batch_norm=batch_norm)
        self.conv1 = convolution(n_in, n_out, size, stride=stride)
        self.conv2 = convolution(n_out, n_out, size)
        self.shortcut: nn.Module | None = nn.Identity() if shortcut else None
        if shortcut and stride != 1:
            self.shortcut = convolution(n_in, n_out, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        features: Tensor = self.conv2(F.relu(self.conv1(x)))
        return F.relu(features if self.shortcut is None else self.shortcut(x) + features)


class ResNet(nn.Module):
    """A residual network: convolution, blocks, average over positions, linear layer.

    ``dim`` is 2 for images and 1 for signals. The resolution is halved where the width changes.

    >>> ResNet()(torch.zeros(2, 1, 8, 8)).shape, ResNet(dim=1)(torch.zeros(2, 1, 40)).shape
    (torch.Size([2, 10]), torch.Size([2, 10]))
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        *,
        size: int = 3,
        dim: int = 2,
        batch_norm: bool = True,
        shortcuts: bool = True,
        in_channels: int = 1,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = _convolution(in_channels, widths[0], size, dim=dim, batch_norm=batch_norm)
        outputs = [width for width in widths for _ in range(blocks)]
        self.blocks = nn.Sequential(
            *(
                BasicBlock(*pair, size, dim=dim, batch_norm=batch_norm, shortcut=shortcuts)
                for pair in itertools.pairwise([widths[0], *outputs])
            )
        )
        self.head = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        features = self.blocks(F.relu(self.stem(x)))
        logits: Tensor = self.head(features.mean(dim=tuple(range(2, features.ndim))))
        return logits


def _convolution(
    n_in: int, n_out: int, size: int, *, stride: int = 1, dim: int, batch_norm: bool
) -> nn.Sequential:
    convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if dim == 1 else (nn.Conv2d, nn.BatchNorm2d)
    return nn.Sequential(
        # BatchNorm subtracts the mean, so that a bias before it would do nothing.
        convolution(n_in, n_out, size, stride=stride, padding=size // 2, bias=not batch_norm),
        norm(n_out) if batch_norm else nn.Identity(),
    )


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return a multilayer perceptron: linear layers with ReLU between them.

    >>> mlp((6, 4, 2))(torch.zeros(3, 2, 3)).shape
    torch.Size([3, 2])
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Attention(nn.Module):
    """Self-attention with several heads: softmax(q kᵀ / √d) v for each, then a linear layer."""

    # Written out, because the fused kernels of PyTorch have no second derivative.

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token gathers from all tokens."""
        n, t, width = x.shape
        parts = self.inward(x).reshape(n, t, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        shares = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
        gathered: Tensor = self.outward((shares @ v).transpose(1, 2).reshape(n, t, width))
        return gathered


class EncoderLayer(nn.Module):
    """Attention and a perceptron, each after LayerNorm and with a shortcut around it."""

    def __init__(self, width: int, heads: int, *, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.perceptron(self.norm2(x))
        return y


class Transformer(nn.Module):
    """A transformer for small images: patches, positions, encoder layers, mean, linear layer.

    Reference: Dosovitskiy et al. 2021, arXiv 2010.11929.

    >>> Transformer((8, 8), patch=(2, 2))(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        patch: tuple[int, int],
        width: int = 32,
        heads: int = 4,
        depth: int = 2,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        n_tokens = (size[0] // patch[0]) * (size[1] // patch[1])
        self.size = size
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.positions = nn.Parameter(0.2 * torch.randn(n_tokens, width))
        self.layers = nn.Sequential(
            *(EncoderLayer(width, heads, hidden=2 * width) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        images = x.reshape(len(x), 1, *self.size)
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(tokens)).mean(dim=1))
        return logits
