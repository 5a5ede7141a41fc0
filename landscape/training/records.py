"""A task to train, a trained model, and its log as a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import nn

from landscape.problem import Problem
from landscape.results import Cost, TrainingLog


class Task(Protocol):
    """A problem file, or any object with the same names; ``loss`` or ``batch_loss`` is read too."""

    @property
    def model(self) -> Callable[[], nn.Module]:
        """Returns a new network."""

    @property
    def data(self) -> Callable[[str], Any]:
        """Returns the data of a split."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training data.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean loss over the pass, of each batch at the weights before its step.
        lr: learning rate during the pass.
        seconds: wall-clock time.
    """

    epoch: int
    train_loss: float
    lr: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model with its log, settings and cost.

    Attributes:
        model: the model, in eval mode, on the device that trained it.
        log: one record per epoch.
        settings: the settings that were read; plain JSON values.
        gradients: computed gradients of a batch; its micro-batches, one each, count as one.
        seconds: wall-clock time.
    """

    model: nn.Module
    log: tuple[Epoch, ...]
    settings: Mapping[str, Any]
    gradients: int
    seconds: float


def training_log(trained: Trained, problem: Problem, *, task: str) -> TrainingLog:
    """Return the log of a training as a record.

    Args:
        trained: the result of `landscape.training.train`.
        problem: the problem on the training data, at the trained weights.
        task: name of the problem, for the record's settings.

    Returns:
        The record.

    Raises:
        DataError: if the data have no fingerprint, as where a loader shuffles.

    Cost: one pass over the data for their fingerprint, if it is not known yet.
    """
    settings, epochs = dict(trained.settings), len(trained.log)
    # Only SAM's family has a radius.
    n_gradients = 1 if settings["rho"] is None else 1 + int(settings.get("ascent_steps", 1))
    # The weights of micro-batches take a forward pass.
    n_forwards = 1 if settings.get("micro_batch") else 0
    columns = {
        name: np.array([getattr(epoch, name) for epoch in trained.log], dtype=np.float64)
        for name in ("train_loss", "lr", "seconds")
    }
    return TrainingLog(
        settings={"problem": task, **settings},
        cost=Cost(
            forwards=epochs * n_forwards, gradients=epochs * n_gradients, seconds=trained.seconds
        ),
        provenance=problem.provenance(),
        epochs=np.array([epoch.epoch for epoch in trained.log], dtype=np.int64),
        gradients=trained.gradients,
        **columns,
    )
