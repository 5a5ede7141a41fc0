"""What a training is made from, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


class Task(Protocol):
    """What can be trained: a problem file, or any object with the same names.

    Besides these two, ``loss`` (output, target) or ``batch_loss`` (model, batch) is read.
    """

    @property
    def model(self) -> Callable[[], nn.Module]:
        """Makes the network, its weights fresh."""

    @property
    def data(self) -> Callable[[str], Any]:
        """Gives the data of a split."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What is known of one pass over the training data.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean loss over the pass, each batch at the weights that it met.
        lr: learning rate during the pass.
        seconds: wall-clock time.
    """

    epoch: int
    train_loss: float
    lr: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model and how it came about.

    Attributes:
        model: the model, in eval mode, on the device that trained it.
        log: one record per epoch.
        settings: everything that was asked for; plain JSON values.
        gradients: how often the gradient of a batch was computed; those of the micro-batches of
            one batch, one each, are one together.
        seconds: wall-clock time.
    """

    model: nn.Module
    log: tuple[Epoch, ...]
    settings: Mapping[str, Any]
    gradients: int
    seconds: float
