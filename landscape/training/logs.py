"""The log of a training as a record, to be kept in a study beside what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.problem import Problem
from landscape.results import Cost, TrainingLog
from landscape.training.records import Trained
from landscape.training.settings import BASES


def training_log(trained: Trained, problem: Problem, *, task: str) -> TrainingLog:
    """Return the log of a training as a record.

    Args:
        trained: what `landscape.training.train` returned.
        problem: the problem on the data that it was trained on, at the trained weights.
        task: name of the problem, for the record's settings.

    Returns:
        The record.

    Raises:
        DataError: if the data cannot be told from others, as where a loader shuffles.

    Cost: one pass over the data, to tell them from others, if that was not done before.
    """
    settings = dict(trained.settings)
    columns = {
        name: np.array([getattr(epoch, name) for epoch in trained.log], dtype=np.float64)
        for name in ("train_loss", "lr", "seconds")
    }
    return TrainingLog(
        settings={"problem": task, **settings},
        cost=_cost(trained, settings),
        provenance=problem.provenance(),
        epochs=np.array([epoch.epoch for epoch in trained.log], dtype=np.int64),
        gradients=trained.gradients,
        **columns,
    )


def _cost(trained: Trained, settings: Mapping[str, Any]) -> Cost:
    epochs = len(trained.log)
    gradients = 1 if settings["optimizer"] in BASES else 1 + int(settings.get("ascent_steps", 1))
    # Micro-batches are weighed in a pass of their own, see `landscape.training.steps.step`.
    forwards = epochs if settings.get("micro_batch") else 0
    return Cost(forwards=forwards, gradients=epochs * gradients, seconds=trained.seconds)
