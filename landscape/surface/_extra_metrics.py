"""What is measured at each point of a line or surface besides the loss, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError, NonFiniteError, one_of
from landscape.evaluate import (
    STATISTICS,
    Engine,
    Evaluator,
    LossValue,
    Weights,
    check_variances,
    error_of_mean,
    float_buffers,
    interpolated,
    recalibrated,
)
from landscape.measurement import check_pair, identity_of
from landscape.problem import Problem
from landscape.problem.digest import Content
from landscape.study import Study

METRIC = "metrics."  # as the arrays of a saved result are named


class AffineSlice(Protocol):
    """Turns coordinates into weights: a plane, or a line."""

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """The vectors that span it, each of shape (n,)."""

    def at(self, origin: Tensor, x: float, y: float) -> Tensor:
        """Return the weights at (x, y)."""

    def spanning(self, x: float, y: float) -> list[tuple[float, Mapping[str, Tensor]]]:
        """Return the coordinate and the buffers of each checkpoint that spans it."""

    def identity(self) -> dict[str, Any]:
        """Return what identifies it, as JSON values."""


@dataclass(frozen=True, kw_only=True)
class PointOptions:
    """What is measured at each point besides the loss, and how.

    Attributes:
        statistics: of BatchNorm: ``frozen``, ``recalibrated`` or ``interpolated``.
        held_out: the same model on other data, measured at the same points.
        weight_decay: λ of the regulariser ½ λ ‖w‖², kept apart as ``penalty``; 0: none.
        against: another checkpoint and where its points lie; the difference to it is measured on
            the same examples.
        precision: ``exact``, ``bfloat16``, ``float16`` or ``tf32``.
        compile: whether torch.compile may be tried.
        tune: whether a long run chooses how to evaluate by timing.
    """

    statistics: str = "frozen"
    held_out: Problem | None = None
    weight_decay: float = 0.0
    against: tuple[Problem, AffineSlice] | None = None
    precision: str = "exact"
    compile: bool = False
    tune: bool = False

    def check(self, problem: Problem, where: AffineSlice) -> None:
        """Refuse what does not fit."""
        one_of(self.statistics, STATISTICS, what="statistics of BatchNorm")
        if self.against is not None:
            _check_against(self.against)
            check_pair(problem, self.against[0])
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            msg = f"weight_decay must be a finite number, at least 0; got {self.weight_decay!r}"
            raise InvalidArgumentError(msg)
        if self.statistics != "frozen" and problem.mode == "train":
            msg = f"in train mode BatchNorm uses its batch: no {self.statistics} statistics"
            raise InvalidArgumentError(msg)
        spans = [where, *([] if self.against is None else [self.against[1]])]
        if self.statistics == "interpolated" and not all(w.spanning(0.0, 0.0) for w in spans):
            msg = (
                "interpolated statistics lie between checkpoints, and nothing but this one spans "
                "the points: use a plane through checkpoints, or statistics='recalibrated'"
            )
            raise InvalidArgumentError(msg)
        if self.held_out is not None:
            _check_held_out(problem, self.held_out)
        taken = self.columns & problem.metrics.keys()
        if taken:
            names = ", ".join(sorted(taken))
            msg = f"a metric is called {names}, as is what was asked for: rename it"
            raise InvalidArgumentError(msg)

    @property
    def columns(self) -> set[str]:
        """Names of what is kept beside the metrics of the problem."""
        paired = {"difference", "difference_se"} if self.against is not None else set[str]()
        return paired | ({"penalty"} if self.weight_decay else set())

    def settings(self, where: AffineSlice, study: Study | None) -> dict[str, Any]:
        """Return what differs from the usual, as JSON values."""
        found: dict[str, Any] = {}
        if self.statistics != "frozen":
            found["statistics"] = self.statistics
        if self.statistics == "interpolated":
            found["buffers"] = _digest_of_buffers(where)
        if self.held_out is not None:
            found["held_out"] = {"split": self.held_out.split, **_source(self.held_out, study)}
        if self.weight_decay:
            found["weight_decay"] = self.weight_decay
        if self.against is not None:
            other, its = self.against
            found["against"] = {
                "checkpoint": other.checkpoint_hash,
                **its.identity(),
                **_source(other, study),
                **({"buffers": _digest_of_buffers(its)} if "buffers" in found else {}),
            }
        if self.precision != "exact":
            found["precision"] = self.precision
        return found


def _source(problem: Problem, study: Study | None) -> dict[str, str]:
    """Return what else than the weights decides the losses of a problem."""
    return {
        "data": problem.batches.fingerprint,
        "problem": identity_of(problem, study),
        "mode": problem.mode,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "parameters": problem.parameters,
    }


def _digest_of_buffers(where: AffineSlice) -> str:
    content = Content()
    for _, buffers in where.spanning(0.0, 0.0):
        for name, buffer in sorted(buffers.items()):
            content.add((name, buffer))
    return content.hexdigest()


def _check_against(against: object) -> None:
    if not (isinstance(against, tuple) and len(against) == 2 and isinstance(against[0], Problem)):
        msg = (
            "against takes another problem and its own plane or direction, as in "
            f"against=(other, ls.random_plane(other)), not {type(against).__name__}"
        )
        raise InvalidArgumentError(msg)


def _check_held_out(problem: Problem, held_out: Problem) -> None:
    if held_out.space != problem.space:
        msg = (
            f"the held-out problem explores {held_out.space.n:,} parameters and the problem "
            f"{problem.space.n:,}, or others of that number; make both of the same model, with the "
            "same .only(...)"
        )
        raise InvalidArgumentError(msg)
    ours, theirs = ((p.dtype, p.device) for p in (problem, held_out))
    if ours != theirs:
        msg = (
            f"the held-out problem is in {theirs[0]} on {theirs[1]}, the problem in {ours[0]} on "
            f"{ours[1]}; give both the same dtype and device"
        )
        raise InvalidArgumentError(msg)


@dataclass(frozen=True)
class Point:
    """One point that has been measured.

    Attributes:
        at: its coordinates.
        weights: its weights, a vector of shape (n,) wherever there is a weight decay.
        buffers: the buffers that it was measured with; None: the model's own.
        loss: its loss.
    """

    at: tuple[float, float]
    weights: Weights
    buffers: Mapping[str, Tensor] | None
    loss: LossValue


ExtraMetric = Callable[[Point], dict[str, float]]


def penalty(weight_decay: float) -> ExtraMetric:
    """Measure the regulariser ½ λ ‖w‖² at each point."""

    def measure(point: Point) -> dict[str, float]:
        assert isinstance(point.weights, Tensor)
        norm = float(torch.linalg.vector_norm(point.weights, dtype=torch.float64))
        return {f"{METRIC}penalty": 0.5 * weight_decay * norm**2}

    return measure


def on_held_out(problem: Problem, engine: Engine) -> ExtraMetric:
    """Measure other data at each point, with the buffers of the point."""

    def measure(point: Point) -> dict[str, float]:
        return held_out_columns(engine.loss(point.weights, buffers=point.buffers), problem.split)

    return measure


def difference(
    evaluator: Evaluator, engine: Engine, where: AffineSlice, statistics: str
) -> ExtraMetric:
    """Measure the difference to another checkpoint at each point, on the same examples."""

    def measure(point: Point) -> dict[str, float]:
        names = f"{METRIC}difference", f"{METRIC}difference_se"
        try:
            buffers = buffers_at(evaluator, where, point.at, statistics)
        except NonFiniteError:
            return dict.fromkeys(names, math.nan)
        vector = where.at(evaluator.origin, *point.at)
        theirs = engine.loss(vector, buffers=buffers, keep=True)
        found = _paired(point.loss, theirs, plain_sum=evaluator.problem.loss.sums)
        return dict(zip(names, found, strict=True))

    return measure


def columns_of(loss: LossValue) -> dict[str, float]:
    """Lay out a loss as columns."""
    # The prefix keeps a metric that is itself called "loss" apart.
    metrics = {f"{METRIC}{name}": value for name, value in loss.metrics.items()}
    return {"loss": loss.value, "loss_se": loss.se} | metrics


def held_out_columns(loss: LossValue, split: str) -> dict[str, float]:
    """Lay out a loss on other data as columns behind the name of its split."""
    own = {"loss": loss.value, "loss_se": loss.se}
    metrics = {f"metric {k}" if k in own else k: v for k, v in loss.metrics.items()}
    return {f"{METRIC}{split} {name}": value for name, value in (own | metrics).items()}


def buffers_at(
    evaluator: Evaluator, where: AffineSlice, at: tuple[float, float], statistics: str
) -> dict[str, Tensor] | None:
    """Return the buffers to measure a point with."""
    if statistics == "frozen":
        return None
    if statistics == "recalibrated":
        return recalibrated(evaluator, where.at(evaluator.origin, *at))
    own = float_buffers(evaluator.problem)
    others = {str(k): part for k, part in enumerate(where.spanning(*at))}
    found = interpolated(own, others)
    check_variances(found, f"({at[0]:g}, {at[1]:g})")
    return found


def _paired(ours: LossValue, theirs: LossValue, *, plain_sum: bool) -> tuple[float, float]:
    """Return the difference of two losses on the same examples, and its standard error."""
    difference = ours.value - theirs.value
    if ours.examples is None or theirs.examples is None:
        return difference, math.nan
    (s, w), (s_other, _) = ours.examples, theirs.examples
    return difference, error_of_mean(s - s_other, w, plain_sum=plain_sum)
