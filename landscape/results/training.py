"""How a checkpoint came about: the log of its training, and its run in a plane of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from landscape.results.base import Columns, FloatArray, Result, Summary
from landscape.results.surfaces import Surface
from landscape.wording import Quantity, number

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

    kind, heading = "training", "Training"
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
        return {
            "optimizer": str(self.settings.get("optimizer", "")),
            "epochs": len(self.epochs),
            "loss of the last epoch": float(self.train_loss[-1]) if len(self.epochs) else math.nan,
        }

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


@dataclass(frozen=True, kw_only=True, repr=False)
class Trajectory(Result):
    """A run of checkpoints wᵢ beside the plane w + x d₁ + y d₂.

    A run does not lie in a plane: each checkpoint has its own loss, and its projection, the
    nearest point of the plane, has another.

    Attributes:
        run: what to call the run; empty: no name.
        names: of the checkpoints, in order, m of them.
        x: least-squares coordinate of each along the first direction, shape (m,).
        y: the same along the second direction, shape (m,).
        distances: Euclidean distance ‖wᵢ − w‖ of each from the origin, shape (m,).
        off_plane: Euclidean distance of each from the plane, shape (m,).
        loss: raw loss of each checkpoint with its own buffers, shape (m,); NaN and infinity stay.
        loss_se: standard error of each over the examples, shape (m,).
        projected_loss: raw loss of each projection, with the buffers of the origin, shape (m,).
        projected_loss_se: standard error of each over the examples, shape (m,).
        plane: what the plane is, in words.
        direction_norms: ‖d₁‖ and ‖d₂‖.
        cosine: cosine of the angle between the directions.
        origin_loss: the plain loss L(w).
    """

    kind, heading = "trajectory", "Training runs in a plane"
    csv_columns: ClassVar[Mapping[str, str]] = {
        **{"name": "names", "x": "x", "y": "y", "off_plane": "off_plane"},
        **{"loss": "loss", "loss_se": "loss_se", "distance": "distances"},
        **{"projected_loss": "projected_loss", "projected_loss_se": "projected_loss_se"},
    }
    run: str = ""
    names: tuple[str, ...]
    x: FloatArray
    y: FloatArray
    distances: FloatArray
    off_plane: FloatArray
    loss: FloatArray
    loss_se: FloatArray
    projected_loss: FloatArray
    projected_loss_se: FloatArray
    plane: str
    direction_norms: tuple[float, float]
    cosine: float
    origin_loss: float

    @property
    def difference(self) -> FloatArray:
        """Loss of each checkpoint less that of its projection, shape (m,)."""
        return np.asarray(self.loss - self.projected_loss)

    @property
    def off_share(self) -> FloatArray:
        """Part of each distance from the origin that lies off the plane, 0 to 1, shape (m,)."""
        known = self.distances > 0
        zeros = np.zeros(known.shape)
        return np.asarray(np.divide(self.off_plane, self.distances, out=zeros, where=known))

    @property
    def label(self) -> str:
        """What to call the run in a picture."""
        return self.run or f"run of {len(self.names)} checkpoints"

    def lies_in(self, surface: Surface) -> bool:
        """Return whether a surface was measured in the same plane, and of the same losses."""
        digests = ("checkpoint_hash", "data_fingerprint", "problem_fingerprint")
        alike = all(
            getattr(self.provenance, name) == getattr(surface.provenance, name)
            for name in (*digests, "mode", "parameters")
        )
        axes = [self.settings.get("d1"), self.settings.get("d2")]
        same_axes = axes == [surface.settings.get("d1"), surface.settings.get("d2")]
        # The projections of a run are measured with frozen statistics.
        return alike and surface.statistics == "frozen" and None not in axes and same_axes

    def summary(self) -> Summary:
        """Return the run, how far it lies off the plane, and its first and last loss."""
        return {
            "run": self.run,
            "checkpoints": len(self.names),
            "off the plane": float(self.off_plane.max()),
            "first loss": Quantity(float(self.loss[0]), float(self.loss_se[0])),
            "last loss": Quantity(float(self.loss[-1]), float(self.loss_se[-1])),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return where the run lies and how its losses differ from those of the plane as rows."""
        worst = int(np.argmax(self.off_plane))
        off, share = float(self.off_plane[worst]), float(self.off_share[worst])
        part = f"{share:.0%} of the distance from the origin ({self.names[worst]})"
        losses, projected = (
            f"{number(float(values[0]))} to {number(float(values[-1]))}"
            for values in (self.loss, self.projected_loss)
        )
        return [
            *([("run", self.run)] if self.run else []),
            ("plane", self.plane),
            ("checkpoints", f"{len(self.names)}, from {self.names[0]} to {self.names[-1]}"),
            ("off the plane", f"up to {number(off)}, {part}"),
            ("loss at the origin", number(self.origin_loss)),
            ("losses", losses),
            ("losses of the projections", projected),
        ]
