"""A callback of Lightning's Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from landscape.callbacks._monitor import Monitor
from landscape.errors import missing_dependency
from landscape.problem import Problem

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    _NAME = "lightning"
    raise missing_dependency(_NAME, extra=_NAME, purpose="LightningMonitor") from error


class LightningMonitor(Callback):
    """Measure a LightningModule on a fixed probe, and log the numbers to the Trainer's loggers.

    ``Trainer(…, callbacks=[LightningMonitor(probe, every=100, budget=0.01)])``. The update is that
    of the gradient as it is clipped by its norm; clipping by value comes after what is measured.

    Args:
        probe: makes the problem of the module that is trained: its loss on a fixed batch.
        **options: those of `Monitor` but ``optimizer`` and ``log``.
    """

    def __init__(self, probe: Callable[[Any], Problem], **options: Any) -> None:
        self._probe, self._options = probe, options
        self._monitor: Monitor | None = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Measure before the optimizer's step, with the gradients of the step."""
        if not trainer.is_global_zero:
            return
        if self._monitor is None:
            self._monitor = Monitor(self._probe(pl_module), optimizer, **self._options)
        # Lightning clips after this: the update is that of the gradient after clipping.
        limit, scale = trainer.gradient_clip_val, 1.0
        if limit and str(trainer.gradient_clip_algorithm or "norm").lower().endswith("norm"):
            gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
            norms = [float(torch.linalg.vector_norm(g)) for g in gradients if g is not None]
            scale = max(1.0, math.hypot(*norms) / float(limit))
        numbers = self._monitor.step(at=trainer.global_step, loss_scale=scale)
        for logger in trainer.loggers if numbers else ():
            logger.log_metrics(numbers, step=trainer.global_step)
