"""A callback of Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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

    ``Trainer(…, callbacks=[LightningMonitor(probe, every=100, budget=0.01)])``.

    Args:
        probe: makes the problem of the module that is trained: its loss on a fixed batch.
        **options: those of `Monitor` but ``optimizer`` and ``log``.
    """

    def __init__(self, probe: Callable[[Any], Problem], **options: Any) -> None:
        self._probe, self._options = probe, options
        self._monitor: Monitor | None = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Measure before the optimizer's step, with the gradients of the step."""
        if self._monitor is None:
            self._monitor = Monitor(self._probe(pl_module), optimizer, **self._options)
        numbers = self._monitor.step(at=trainer.global_step)
        for logger in trainer.loggers if numbers else ():
            logger.log_metrics(numbers, step=trainer.global_step)
