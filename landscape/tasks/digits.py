"""Handwritten digits, 8 × 8 pixels, with a small ResNet: a real problem that needs no download.

The 1,797 images are those of scikit-learn, the test part of a set published by E. Alpaydin and
C. Kaynak (UCI Machine Learning Repository, 1998).
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import missing_dependency, one_of
from landscape.tasks.networks import ResNet

N_TRAIN = 1437
N_FIT = 1150
ROWS = {
    "train": slice(N_TRAIN),
    "test": slice(N_TRAIN, None),
    "fit": slice(N_FIT),
    "validation": slice(N_FIT, N_TRAIN),
}


def model() -> nn.Module:
    """Return the network, its weights as PyTorch initialises them.

    >>> sum(p.numel() for p in model().parameters())
    77754
    """
    return ResNet()


def data(split: str) -> tuple[Tensor, Tensor]:
    """Return the images, standardised over all pixels of the training images, and their classes.

    >>> [tuple(part.shape) for part in data("test")]
    [(360, 1, 8, 8), (360,)]
    """
    one_of(split, ROWS, what="split")
    images, classes = _images()
    # RandomState, because its stream is frozen for good (NEP 19); that of default_rng is not.
    order = np.random.RandomState(0).permutation(len(images))
    train = images[order[:N_TRAIN]]
    chosen = order[ROWS[split]]
    x = (images[chosen] - train.mean()) / train.std()
    return (
        torch.from_numpy(x.astype(np.float32)).unsqueeze(1),
        torch.from_numpy(classes[chosen].astype(np.int64)),
    )


@functools.cache
def _images() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        purpose = "the built-in problem 'digits'"
        raise missing_dependency("scikit-learn", extra="demo", purpose=purpose) from error  # noqa: EM101
    bunch = load_digits()
    return bunch.images, bunch.target


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Say for each example whether the largest logit is that of its class.

    >>> accuracy(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([1, 0]))
    tensor([1., 0.])
    """
    return (output.argmax(dim=1) == target).to(torch.float32)


loss = nn.CrossEntropyLoss()
metrics = {"accuracy": accuracy}
