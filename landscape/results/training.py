"""How a checkpoint came about: the log of its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from landscape.results.base import Columns, FloatArray, Result, Summary
from landscape.wording import number

_SHOWN = ("lr", "rho", "p", "batch_size", "weight_decay", "schedule", "seed", "label_noise")


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingLog(Result):
    """The training that led to a checkpoint, epoch by epoch.

    Its provenance is that of the trained weights, on the data that they were trained on without
    label noise; its settings are all that was asked for, and the name of the problem.

    Attributes:
        epochs: number of each epoch, from 1, shape (e,).
        train_loss: mean loss over each epoch, every batch at the weights that it met, shape (e,).
        lr: learning rate during each epoch, shape (e,).
        seconds: wall-clock time of each epoch, shape (e,).
        gradients: how often the gradient of a batch was computed.
    """

    kind: ClassVar[str] = "training"
    heading: ClassVar[str] = "Training"
    distinguishing: ClassVar[tuple[str, ...]] = (
        *("problem", "optimizer", "base", "epochs", "lr", "rho", "p", "ascent_steps"),
        *("micro_batch", "batch_size", "label_noise", "seed"),
    )
    epochs: FloatArray
    train_loss: FloatArray
    lr: FloatArray
    seconds: FloatArray
    gradients: int

    def table(self) -> Columns:
        """Return a row for each epoch."""
        columns = {name: getattr(self, name) for name in ("train_loss", "lr", "seconds")}
        return {"epoch": list(map(int, self.epochs)), **columns}

    def summary(self) -> Summary:
        """Return the optimizer, the epochs and the loss of the last one."""
        last = (
            {"loss of the last epoch": float(self.train_loss[-1])} if len(self.train_loss) else {}
        )
        optimizer = {"optimizer": str(self.settings.get("optimizer", ""))}
        return {**optimizer, "epochs": len(self.epochs), **last}

    def rows(self) -> list[tuple[str, str]]:
        """Return the optimizer, its settings and the end of the training as rows."""
        settings = self.settings
        shown = [key for key in _SHOWN if settings.get(key) is not None]
        base = f" around {settings['base']}" if settings.get("base") else ""
        last = number(float(self.train_loss[-1])) if len(self.train_loss) else "none"
        return [
            ("problem", str(settings.get("problem", ""))),
            ("optimizer", f"{settings.get('optimizer', '')}{base}"),
            ("settings", ", ".join(f"{key} {settings[key]}" for key in shown)),
            ("epochs", str(len(self.epochs))),
            ("mean loss of the last epoch", last),
            ("gradients of a batch", f"{self.gradients:,}"),
        ]
