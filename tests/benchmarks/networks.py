"""The five networks that curvature is timed on, each trained a little with a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.tasks import digits
from landscape.tasks.networks import ResNet


class Transformer(nn.Module):
    """Two layers of attention, written out as fused kernels have no second derivative."""

    def __init__(self, *, tokens: int = 32, width: int = 64, heads: int = 4, layers: int = 2):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.1 * torch.randn(16, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        for block in self.blocks:
            x = x + block["out"](self._attention(block["qkv"](block["norm1"](x))))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return self.head(x.mean(1))

    def _attention(self, qkv: Tensor) -> Tensor:
        shape = (3, self.heads, qkv.shape[-1] // (3 * self.heads))
        q, k, v = qkv.unflatten(-1, shape).movedim(2, 0).transpose(2, 3)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(shape[-1])).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


class Recurrent(nn.Module):
    """An LSTM over the rows of an image, as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.lstm(images.flatten(1).unflatten(1, (8, 8)))[0][:, -1])


def conv_net() -> nn.Module:
    """Return a convolutional network for 8 × 8 digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@dataclass(frozen=True)
class Network:
    """How one of the five is made and trained."""

    name: str
    make: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    steps: int


def all_digits() -> tuple[Tensor, Tensor]:
    parts = [digits.data(split) for split in ("train", "test")]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def colour_images() -> tuple[Tensor, Tensor]:
    """Return 64 images of 3 × 32 × 32: one pattern for each class, under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 3, 32, 32, generator=generator)
    y = torch.randint(10, (64,), generator=generator)
    return 0.5 * patterns[y] + torch.randn(64, 3, 32, 32, generator=generator), y


def sequences() -> tuple[Tensor, Tensor]:
    """Return 512 sequences of 16 tokens, labelled by the sum of two of them."""
    tokens = torch.randint(32, (512, 16), generator=torch.Generator().manual_seed(0))
    return tokens, (tokens[:, 0] + tokens[:, 5]) % 10


NETWORKS = (
    Network("convolutional, 1,797 digits", conv_net, all_digits, 60),
    Network("digits ResNet, 1,437 digits", digits.model, lambda: digits.data("train"), 60),
    Network(
        "ResNet-20, 64 of 3 x 32 x 32", lambda: ResNet(blocks=3, in_channels=3), colour_images, 20
    ),
    Network("transformer, 512 sequences", Transformer, sequences, 100),
    Network("LSTM, 1,437 digits", Recurrent, lambda: digits.data("train"), 100),
)


def trained(network: Network) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the model after some steps of Adam on random quarters of the data, and the data."""
    torch.manual_seed(0)
    model, (x, y) = network.make(), network.data()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(network.steps):
        chosen = torch.randperm(len(y), generator=generator)[: max(32, len(y) // 16)]
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return model.eval(), x, y
