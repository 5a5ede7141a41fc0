"""Train a task with SGD, Adam, AdamW or one of SAM's family, equal in all but the optimizer."""

from __future__ import annotations

from landscape.training.data import noisy_labels, with_label_noise
from landscape.training.loop import checkpoint_of_epoch, train
from landscape.training.outcome import (
    SUFFIXES,
    Epoch,
    Trained,
    check_checkpoint_path,
    save_checkpoint,
    training_log,
)
from landscape.training.settings import (
    ADAPTIVE,
    BASES,
    OPTIMIZERS,
    READERS,
    SAM_FAMILY,
    SCHEDULES,
    TrainingSettings,
)

__all__ = [
    "ADAPTIVE",
    "BASES",
    "OPTIMIZERS",
    "READERS",
    "SAM_FAMILY",
    "SCHEDULES",
    "SUFFIXES",
    "Epoch",
    "Trained",
    "TrainingSettings",
    "check_checkpoint_path",
    "checkpoint_of_epoch",
    "noisy_labels",
    "save_checkpoint",
    "train",
    "training_log",
    "with_label_noise",
]
