"""Losses along a path between two checkpoints, and the curve that was trained for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from landscape.results.base import Columns, FloatArray, Result, Summary, no_values
from landscape.wording import number, with_error

_STATISTICS: Mapping[str, str] = {
    "recalibrated": "gathered anew from the data at each point",
    "frozen": "those of the first checkpoint at every point",
    "interpolated": "interpolated between those of the checkpoints",
    "batch": "of each batch (train mode)",
}


def above_chord(t: FloatArray, values: FloatArray) -> FloatArray:
    """Return how far values lie above the straight line between the first and the last of them.

    >>> above_chord(np.array([0.0, 0.5, 1.0]), np.array([1.0, 5.0, 3.0])).tolist()
    [0.0, 3.0, 0.0]
    """
    return np.asarray(values - ((1 - t) * values[0] + t * values[-1]))


@dataclass(frozen=True, kw_only=True, repr=False)
class LossPath(Result):
    """Loss along a path w(t) between two checkpoints, t from 0 to 1.

    Attributes:
        t: coordinates, ascending from 0 to 1, shape (nt,).
        loss: raw losses L(w(t)), shape (nt,); NaN and infinity stay.
        loss_se: standard error of each over the examples.
        metrics: further means over the examples, each of shape (nt,); with held-out data also
            ``<split> loss``, ``<split> loss_se`` and ``<split> <metric>`` for each of its metrics.
        end: name of the checkpoint at t = 1; `name` is that at t = 0.
        curve: ``linear``, ``bezier`` or ``polygon``.
        bends: inner control vectors, shape (k, n); (0, n) for a straight line.
        distance: ‖w(1) − w(0)‖₂.
        length: Euclidean length of the path.
        end_losses: plain losses of the two checkpoints, each with its own buffers.
        statistics: what BatchNorm used: ``recalibrated``, ``frozen`` (those at t = 0),
            ``interpolated``, ``batch`` (train mode), or ``none`` for a model without such layers.
        held_out: split of the held-out data; empty: there were none.
        training_losses: mean loss along the curve in each epoch of its training.
    """

    kind, heading = "path", "Paths between checkpoints"
    csv_columns: ClassVar = {"t": "t", "loss": "loss", "loss_se": "loss_se"}
    t: FloatArray
    loss: FloatArray
    loss_se: FloatArray
    metrics: Mapping[str, FloatArray] = field(default_factory=dict)
    end: str
    curve: str
    bends: FloatArray
    distance: float
    length: float
    end_losses: tuple[float, float]
    statistics: str
    held_out: str = ""
    training_losses: FloatArray = field(default_factory=no_values)

    @property
    def route(self) -> str:
        """From which checkpoint to which."""
        return f"{self.name} → {self.end}"

    @property
    def shape(self) -> str:
        """What the path is, in words."""
        return curve_words(self.curve, len(self.bends))

    @property
    def held_out_loss(self) -> FloatArray:
        """Losses on the held-out data, shape (nt,); empty if there were none."""
        return np.asarray(self.metrics[f"{self.held_out} loss"] if self.held_out else np.empty(0))

    @property
    def held_out_se(self) -> FloatArray:
        """Their standard errors over the examples."""
        name = f"{self.held_out} loss_se"
        return np.asarray(self.metrics[name] if self.held_out else np.empty(0))

    @property
    def barrier(self) -> float:
        """Height max over t of L(t) − ((1 − t) L(0) + t L(1)), at least 0; NaN where a loss is.

        References:
            Entezari, Sedghi, Saukh, Neyshabur (2022), arXiv:2110.06296, definition 2.
        """
        return float(above_chord(self.t, self.loss).max())

    @property
    def barrier_t(self) -> float:
        """Where the barrier is highest; NaN where its height is."""
        rise = above_chord(self.t, self.loss)
        return math.nan if np.isnan(rise).any() else float(self.t[int(rise.argmax())])

    @property
    def above_ends(self) -> float:
        """Rise max over t of L(t) − max(L(0), L(1)), at least 0."""
        return float(self.loss.max() - max(self.loss[0], self.loss[-1]))

    @property
    def above_mean(self) -> float:
        """Rise max over t of L(t) − (L(0) + L(1)) / 2.

        References:
            Frankle, Dziugaite, Roy, Carbin (2020), arXiv:1912.05671, who call it the error
            barrier height, of the error in place of the loss.
        """
        return float(self.loss.max() - (self.loss[0] + self.loss[-1]) / 2)

    @property
    def held_out_barrier(self) -> float:
        """The barrier on the held-out data; NaN if there were none."""
        values = self.held_out_loss
        return float(above_chord(self.t, values).max()) if values.size else math.nan

    def summary(self) -> Summary:
        """Return the barrier and the length of the path."""
        held_out = {f"barrier, {self.held_out}": self.held_out_barrier} if self.held_out else {}
        return {
            "path": f"→ {self.end}, {self.shape}",
            "barrier": self.barrier,
            **held_out,
            "length": self.length,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return what was measured, the barrier and what it was compared with as rows."""
        ratio = ""
        if self.curve != "linear":
            ratio = f", {self.length / self.distance:.4g} times that distance"
        ends = [with_error(self.loss[k], self.loss_se[k]) for k in (0, -1)]
        plain = ", ".join(number(value) for value in self.end_losses)
        rows = [
            ("path", f"{self.route}, {self.shape}, {self.t.size} points"),
            ("distance of the ends", number(self.distance)),
            ("length of the path", f"{number(self.length)}{ratio}"),
            ("loss at the ends", f"{ends[0]} and {ends[1]} (as the checkpoints are: {plain})"),
            ("barrier", _barrier_words(self.t, self.loss, self.loss_se)),
            ("above the higher end", number(self.above_ends)),
            ("above the mean of the ends", number(self.above_mean)),
        ]
        if self.held_out:
            barrier = _barrier_words(self.t, self.held_out_loss, self.held_out_se)
            rows.append((f"barrier, {self.held_out} data", barrier))
        if self.statistics in _STATISTICS:
            rows.append(("BatchNorm statistics", _STATISTICS[self.statistics]))
        if self.curve != "linear":
            rows.append(("training", _training_words(self.training_losses)))
        return rows


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainedCurve(Result):
    """A curve between two checkpoints, and how far its training has come.

    Attributes:
        end: name of the checkpoint at t = 1; `name` is that at t = 0.
        curve: ``bezier`` or ``polygon``.
        bends: inner control vectors, shape (k, n).
        velocity: momentum of each, of the same shape; empty before the first epoch.
        losses: mean loss along the curve in each epoch so far, shape (epochs done,).
        epochs: epochs that were asked for.
    """

    kind = "curve"
    end: str
    curve: str
    bends: FloatArray
    velocity: FloatArray
    losses: FloatArray
    epochs: int

    def table(self) -> Columns:
        """Return the mean loss along the curve in each epoch of its training."""
        return {"epoch": range(1, self.losses.size + 1), "loss": self.losses}

    def rows(self) -> list[tuple[str, str]]:
        """Return what was trained, and how far, as rows."""
        return [
            ("curve", f"{self.name} → {self.end}, {curve_words(self.curve, len(self.bends))}"),
            ("epochs", f"{self.losses.size} of {self.epochs}"),
            ("training", _training_words(self.losses)),
        ]


def curve_words(curve: str, n_bends: int) -> str:
    """Say what a curve is.

    >>> curve_words("bezier", 1), curve_words("polygon", 2), curve_words("linear", 0)
    ('Bezier curve with 1 bend', 'polygonal chain with 2 bends', 'straight line')
    """
    names = {"linear": "straight line", "bezier": "Bezier curve", "polygon": "polygonal chain"}
    if not n_bends:
        return names[curve]
    return f"{names[curve]} with {n_bends} bend{'' if n_bends == 1 else 's'}"


def _barrier_words(t: FloatArray, values: FloatArray, errors: FloatArray) -> str:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return f"not known: the loss is not finite at {bad} of {t.size} points"
    rise = above_chord(t, values)
    i = int(rise.argmax())
    if rise[i] <= 0:
        return "0: no point lies above the straight line between the losses of the ends"
    at = f"t = {t[i]:g} (loss {with_error(float(values[i]), float(errors[i]))})"
    return f"{number(rise[i])} at {at}, above the straight line between the losses of the ends"


def _training_words(losses: FloatArray) -> str:
    if not losses.size:
        return "none: the bends lie on the straight line"
    ends = f"{number(losses[0])} in the first, {number(losses[-1])} in the last"
    return f"{losses.size} epochs, mean loss along the curve {ends}"
