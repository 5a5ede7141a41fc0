"""A callback of the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from landscape.callbacks._monitor import Monitor
from landscape.errors import missing_dependency
from landscape.problem import Problem

try:
    from transformers import TrainerCallback
except ImportError as error:
    _NAME = "transformers"
    raise missing_dependency(_NAME, extra="hub", purpose="TrainerMonitor") from error


class TrainerMonitor(TrainerCallback):
    """Measure the model of a Trainer on a fixed probe, and log the numbers where the Trainer logs.

    ``TrainerMonitor(trainer, probe, every=100, budget=0.01)`` before ``trainer.train()``: it adds
    itself to the callbacks. The numbers go through ``trainer.log``, and so to wandb, TensorBoard,
    MLflow and ``trainer.state.log_history``.

    Args:
        trainer: the Trainer.
        probe: makes the problem of the model that is trained: its loss on a fixed batch.
        **options: those of `Monitor` but ``optimizer`` and ``log``.
    """

    def __init__(self, trainer: Any, probe: Callable[[Any], Problem], **options: Any) -> None:
        self._trainer, self._probe, self._options = trainer, probe, options
        self._monitor: Monitor | None = None
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure before the optimizer's step, with the gradients of the step."""
        if not state.is_world_process_zero:
            return
        model = kwargs["model"]
        if self._monitor is None:
            optimizer = kwargs["optimizer"]
            optimizer = getattr(optimizer, "optimizer", optimizer)  # inside of accelerate's
            self._monitor = Monitor(self._probe(model), optimizer, **self._options)
        # accelerate's own forward casts, from within, to the type of the training.
        forward = getattr(model, "_original_forward", None)
        outer = vars(model).get("forward")
        try:
            if forward is not None and outer is not None:
                model.forward = forward
            numbers = self._monitor.step(at=state.global_step)
        finally:
            if forward is not None and outer is not None:
                model.forward = outer
        if numbers:
            self._trainer.log(numbers)
