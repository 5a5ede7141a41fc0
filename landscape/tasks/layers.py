"""More small networks for the built-in problems: perceptron, transformer, ResNet for signals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    """Self-attention with several heads: softmax(q kᵀ / √d) v for each, then a linear layer.

    It is written out, because the fused kernels of PyTorch have no second derivative.

    Reference: Vaswani et al. 2017, arXiv 1706.03762.
    """

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
    """Attention and a perceptron, each after LayerNorm and with a shortcut around it.

    Reference: Xiong et al. 2020, arXiv 2002.04745 (LayerNorm first).
    """

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


class SignalBlock(nn.Module):
    """Two convolutions over time with a shortcut around them: relu(shortcut(x) + f(x)).

    Reference: He, Zhang, Ren, Sun 2015, arXiv 1512.03385 (shortcut of type B).
    """

    def __init__(self, n_in: int, n_out: int, *, batch_norm: bool) -> None:
        super().__init__()
        stride = 1 if n_in == n_out else 2
        self.conv1 = _convolution(n_in, n_out, 5, stride=stride, batch_norm=batch_norm)
        self.conv2 = _convolution(n_out, n_out, 5, stride=1, batch_norm=batch_norm)
        self.shortcut: nn.Module = nn.Identity()
        if n_in != n_out:
            self.shortcut = _convolution(n_in, n_out, 1, stride=2, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.shortcut(x) + self.conv2(F.relu(self.conv1(x))))


class SignalResNet(nn.Module):
    """A residual network for signals: convolution, blocks, average over time, linear layer.

    Reference: He, Zhang, Ren, Sun 2015, arXiv 1512.03385.

    >>> SignalResNet()(torch.zeros(3, 1, 40)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 48),
        *,
        batch_norm: bool = True,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = _convolution(1, widths[0], 5, stride=1, batch_norm=batch_norm)
        pairs = itertools.pairwise((widths[0], *widths))
        self.blocks = nn.Sequential(
            *(SignalBlock(n_in, n_out, batch_norm=batch_norm) for n_in, n_out in pairs)
        )
        self.head = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.blocks(F.relu(self.stem(x))).mean(dim=2))
        return logits


def _convolution(
    n_in: int, n_out: int, size: int, *, stride: int, batch_norm: bool
) -> nn.Sequential:
    # BatchNorm subtracts the mean, so that a bias before it would do nothing.
    convolution = nn.Conv1d(
        n_in, n_out, size, stride=stride, padding=size // 2, bias=not batch_norm
    )
    return nn.Sequential(convolution, nn.BatchNorm1d(n_out) if batch_norm else nn.Identity())
