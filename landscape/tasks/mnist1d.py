"""MNIST-1D: signals of 40 samples in the shape of the ten digits, with a one-dimensional ResNet.

The package makes the signals by itself, without network; they are harder than their size suggests:
a multilayer perceptron stays far behind a network of convolutions.

Reference: Greydanus, Kobak 2024, "Scaling Down Deep Learning with MNIST-1D", arXiv 2011.14439.
"""

from __future__ import annotations

import functools
import random

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import missing_dependency, one_of
from landscape.tasks.digits import accuracy
from landscape.tasks.networks import ResNet

ROWS = {
    "train": slice(4000),
    "test": slice(4000, None),
    "fit": slice(3200),
    "validation": slice(3200, 4000),
}


def model(*, batch_norm: bool = True) -> nn.Module:
    """Return the network, its weights as PyTorch initialises them.

    >>> sum(p.numel() for p in model().parameters())
    32634
    """
    return ResNet((16, 32, 48), size=5, dim=1, batch_norm=batch_norm)


def data(split: str) -> tuple[Tensor, Tensor]:
    """Return the signals of `make_dataset` with its own settings (seed 42), and their classes."""
    one_of(split, ROWS, what="split")
    signals, classes = _signals()
    rows = ROWS[split]
    return torch.from_numpy(signals[rows].copy()), torch.from_numpy(classes[rows].copy())


@functools.cache
def _signals() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        purpose = "the built-in problem 'mnist1d'"
        raise missing_dependency("mnist1d", extra="demo", purpose=purpose) from error  # noqa: EM101
    # The package seeds both global generators.
    states = random.getstate(), np.random.get_state()
    try:
        made = make_dataset(get_dataset_args())
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    signals = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    classes = np.concatenate([made["y"], made["y_test"]]).astype(np.int64)
    return signals[:, None, :], classes


loss = nn.CrossEntropyLoss()
metrics = {"accuracy": accuracy}
