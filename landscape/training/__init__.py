"""Train a task with SGD, Adam, AdamW or SAM, alike in everything but the optimizer."""

from __future__ import annotations

from landscape.training.checkpoints import SUFFIXES, check_checkpoint_path, save_checkpoint
from landscape.training.labels import noisy_labels, with_label_noise
from landscape.training.loop import checkpoint_of_epoch, train
from landscape.training.records import Epoch, Task, Trained
from landscape.training.settings import BASES, OPTIMIZERS, SCHEDULES

__all__ = [
    "BASES",
    "OPTIMIZERS",
    "SCHEDULES",
    "SUFFIXES",
    "Epoch",
    "Task",
    "Trained",
    "check_checkpoint_path",
    "checkpoint_of_epoch",
    "noisy_labels",
    "save_checkpoint",
    "train",
    "with_label_noise",
]
