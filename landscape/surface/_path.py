"""Loss along a path between two checkpoints: a straight line, or a curve trained to be low."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from landscape.checks import whole
from landscape.choices import CurveKind, Statistics
from landscape.errors import InvalidArgumentError, MisleadingWarning, NonFiniteWarning, one_of
from landscape.evaluate import (
    STATISTICS,
    Evaluator,
    float_buffers,
    interpolated,
    normalisers,
    recalibrated,
    require_finite,
)
from landscape.measurement import cached_measurement, identity_of, missing, resumable
from landscape.problem import Problem
from landscape.results import FloatArray, LossPath, Provenance
from landscape.study import Study
from landscape.surface._curves import Curve
from landscape.surface._extra_metrics import METRIC, columns_of, held_out_columns
from landscape.surface._mode_connectivity import MOMENTUM, train_curve
from landscape.surface._planes import require_same_elsewhere

Endpoint: TypeAlias = "Problem | str | PathLike[str] | Mapping[str, Any] | nn.Module"


# Ends that are off by this share of the losses on the path are not the checkpoints.
_FAR = 0.1
# No curve of use was ever so many times as long as the line.
_LONG = 10.0


def path(
    problem: Problem,
    end: Endpoint,
    *,
    curve: CurveKind = "linear",
    bends: int = 1,
    t: npt.ArrayLike | None = None,
    n: int = 51,
    statistics: Statistics | None = None,
    epochs: int = 50,
    lr: float = 0.05,
    weight_decay: float = 0.0,
    seed: int = 0,
    held_out: Problem | None = None,
    study: Study | None = None,
    progress: bool | None = None,
) -> LossPath:
    """Measure L(w(t)) from one checkpoint (t = 0) to another (t = 1), and the barrier between.

    A linear path is w(t) = (1 − t) w₀ + t w₁. The others run over ``bends`` inner control
    vectors, which start on that line and are trained to lower E L(w(t)), t uniform on (0, 1): see
    `landscape.surface._mode_connectivity.train_curve`. Every point is computed from the control
    vectors; both ends are the checkpoints' weights bit for bit.

    A model with BatchNorm needs statistics at each point. With ``frozen`` ones (those of the
    first checkpoint) the loss at t = 0 is its plain loss bit for bit, and that at t = 1 is not the
    plain loss of the other; with ``interpolated`` ones it is, to rounding. Recalibrated ones
    differ a little from those that a checkpoint was saved with; the record holds the plain losses
    of both ends too. Other buffers stay those of the first checkpoint,
    unless all are interpolated.

    Args:
        problem: what to measure, at the first checkpoint.
        end: the other checkpoint: a problem at it, or what `Problem.at` takes.
        curve: ``linear``; ``bezier``, of degree bends + 1; or ``polygon``, of bends + 1 segments.
        bends: inner control vectors of a curve, at least 1.
        t: ascending coordinates in [0, 1]; the ends are added; None: n of them, evenly spaced.
        n: how many, where t is not given.
        statistics: ``recalibrated`` (gathered anew at each point, from the problem's data, for
            the held-out data too), ``frozen`` or ``interpolated`` (only linear); None: the first
            where the model has BatchNorm layers and is in ``eval`` mode.
        epochs: passes of the training over the data, with a step for each batch of the problem;
            0: leave the bends on the line.
        lr: learning rate of the training at its start.
        weight_decay: weight decay of the training: adds ½ weight_decay ‖w(t)‖² to the loss.
        seed: of the training, and of the dropout masks in ``train`` mode.
        held_out: the same problem on other data, measured at the same points; its weights do not
            matter.
        study: where points and training are kept, and taken up again after a kill; a killed
            training repeats one epoch at most.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The raw losses with their standard errors, the barrier, and the bends. Cost: a forward
        pass at each point, and one more where statistics are gathered, one for each end, one at
        each point over the held-out data; and one gradient pass per epoch of the training.

    Raises:
        InvalidArgumentError: if the ends are identical, or differ in parameters that are not
            explored, an argument is out of range, or the statistics do not fit the mode or the
            curve.
        CheckpointError: if the end is of another architecture.
        NonFiniteError: if the loss at an end, or in the training, is NaN or infinite.

    References:
        Goodfellow, Vinyals, Saxe (2015), arXiv:1412.6544, for the line; Garipov, Izmailov,
        Podoprikhin, Vetrov, Wilson (2018), arXiv:1802.10026, for the curves; Entezari, Sedghi,
        Saukh, Neyshabur (2022), arXiv:2110.06296, for the barrier.
    """
    ts = _coordinates(t, n)
    other = problem.at(end)
    require_same_elsewhere(problem, other)
    straight = _straight(problem, other, curve, bends)
    held = _held_out(problem, held_out)
    which = _statistics(problem, statistics, curve)
    line = {"end": other.checkpoint_hash, "curve": curve, "seed": seed}
    told = _training(bends, epochs=epochs, lr=lr, weight_decay=weight_decay)
    trained_as = None if curve == "linear" else line | told
    settings = (trained_as or line) | {
        "t": ts.tolist(),
        "statistics": which,
        "held_out": _identity(held, study),
    }

    def measure(provenance: Provenance) -> LossPath:
        with _entered(problem, other, held, seed=seed) as (evaluator, at_end, evaluated):
            ends = (_plain(evaluator), _plain(at_end))
            along = straight
            losses: FloatArray = np.empty(0)
            if trained_as is not None:
                along, record = train_curve(
                    evaluator,
                    straight,
                    end=other.name,
                    settings=trained_as,
                    provenance=provenance,
                    study=study,
                    progress=progress,
                )
                losses = record.losses
            points = _Points(evaluator, evaluated, along, _buffers(evaluator, at_end, which))
            columns = points.measure(ts, provenance, settings, study=study, progress=progress)
            spent = [e.passes["forwards"] for e in (at_end, evaluated) if e is not None]
            evaluator.passes["forwards"] += sum(spent)
            return LossPath(
                t=ts,
                loss=columns.pop("loss"),
                loss_se=columns.pop("loss_se"),
                metrics={name.removeprefix(METRIC): values for name, values in columns.items()},
                end=other.name,
                curve=curve,
                bends=along.bends.cpu().numpy(),
                distance=along.distance,
                length=along.length,
                end_losses=ends,
                statistics=which,
                held_out="" if held is None else held.split,
                training_losses=losses,
                settings=settings,
                cost=evaluator.cost,
                provenance=provenance,
            )

    result = cached_measurement(LossPath, problem, settings, study, measure)
    _warn_not_finite(result.loss)
    _warn_of_the_ends(result)
    _warn_of_the_training(result)
    # Like that of the first, the name of the other checkpoint is no part of what was measured.
    return result if result.end == other.name else dataclasses.replace(result, end=other.name)


Buffers: TypeAlias = "Callable[[Tensor, float], Mapping[str, Tensor] | None]"


class _Points:
    """Points of a path, each kept in the study as soon as it is measured."""

    def __init__(
        self, evaluator: Evaluator, held_out: Evaluator | None, curve: Curve, buffers: Buffers
    ) -> None:
        self._evaluator = evaluator
        self._held_out = held_out
        self._curve = curve
        self._buffers = buffers

    def measure(
        self,
        ts: FloatArray,
        provenance: Provenance,
        settings: Mapping[str, Any],
        *,
        study: Study | None,
        progress: bool | None,
    ) -> dict[str, FloatArray]:
        """Measure what is missing; return each column as an array of shape (nt,)."""
        shape = (len(ts), 1)
        kept = (
            None if study is None else study.grid(LossPath.kind, provenance, settings, shape=shape)
        )
        done = {} if kept is None else dict(kept.done)
        indices = [(i, 0) for i in range(len(ts))]
        blocks = missing(
            indices, done, what=f"path from {provenance.checkpoint}", progress=progress
        )
        resumable(
            blocks, lambda some: [self._at(float(ts[i])) for i, _ in some], done=done, kept=kept
        )
        return {name: np.array([done[index][name] for index in indices]) for name in done[0, 0]}

    def _at(self, t: float) -> dict[str, float]:
        vector = self._curve.at(t)
        buffers = self._buffers(vector, t)
        found = columns_of(self._evaluator.loss(vector, buffers=buffers))
        if self._held_out is None:
            return found
        problem = self._held_out.problem
        there = {k: b.to(problem.device, problem.dtype) for k, b in (buffers or {}).items()}
        loss = self._held_out.loss(vector.to(problem.device, problem.dtype), buffers=there)
        return found | held_out_columns(loss, problem.split)


def _buffers(evaluator: Evaluator, at_end: Evaluator, statistics: str) -> Buffers:
    """Return what gives the buffers at a point of the path; None: the checkpoint's own."""
    if statistics == "recalibrated":
        return lambda vector, t: recalibrated(evaluator, vector)
    if statistics == "interpolated":
        own, theirs = (float_buffers(each.problem) for each in (evaluator, at_end))
        return lambda vector, t: interpolated(own, {"end": (t, theirs)})
    return lambda vector, t: None


@contextmanager
def _entered(
    problem: Problem, other: Problem, held_out: Problem | None, *, seed: int
) -> Iterator[tuple[Evaluator, Evaluator, Evaluator | None]]:
    with Evaluator(problem, seed=seed) as evaluator, Evaluator(other, seed=seed) as at_end:
        if held_out is None:
            yield evaluator, at_end, None
        else:
            with Evaluator(held_out, seed=seed) as evaluated:
                yield evaluator, at_end, evaluated


def _plain(evaluator: Evaluator) -> float:
    loss = evaluator.loss().value
    require_finite(loss, evaluator.problem)
    return loss


def _straight(problem: Problem, other: Problem, curve: str, bends: int) -> Curve:
    n_bends = 0 if curve == "linear" else whole("bends", bends, least=0)
    start, end = problem.weights, other.weights
    if bool((start == end).all()):
        msg = (
            f"both ends of the path, {problem.name} and {other.name}, have the same weights, so "
            "there is nothing between them; give another checkpoint as the end"
        )
        raise InvalidArgumentError(msg)
    return Curve.straight(curve, start, end, n_bends)


def _held_out(problem: Problem, held_out: Problem | None) -> Problem | None:
    if held_out is None:
        return None
    held = held_out.at(problem)
    if held.space != problem.space:
        msg = (
            f"held_out explores {held.space.n:,} parameters and the problem {problem.space.n:,}; "
            "choose the same ones for both with .only(...)"
        )
        raise InvalidArgumentError(msg)
    return held


def _identity(held_out: Problem | None, study: Study | None) -> dict[str, str] | None:
    if held_out is None:
        return None
    return {
        "split": held_out.split,
        "data": held_out.batches.fingerprint,
        "problem": identity_of(held_out, study),
        "mode": held_out.mode,
    }


def _training(bends: int, *, epochs: int, lr: float, weight_decay: float) -> dict[str, Any]:
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            msg = f"{name} must be a finite number of at least 0, got {value!r}"
            raise InvalidArgumentError(msg)
    real = {"lr": float(lr), "momentum": MOMENTUM, "weight_decay": float(weight_decay)}
    return {"bends": int(bends), "epochs": whole("epochs", epochs, least=0), **real}


def _statistics(problem: Problem, asked: str | None, curve: str) -> str:
    if asked is not None:
        one_of(asked, STATISTICS, what="statistics")
    if asked == "interpolated" and curve != "linear":
        msg = (
            f"statistics='interpolated' fits a linear path only: the bends of a {curve} curve have "
            "none of their own; use 'recalibrated'"
        )
        raise InvalidArgumentError(msg)
    if asked is not None and problem.mode == "train":
        msg = (
            f"statistics={asked!r} cannot be combined with train mode, in which BatchNorm uses the "
            "statistics of each batch; leave statistics out, or measure in eval mode"
        )
        raise InvalidArgumentError(msg)
    if not normalisers(problem.model):
        return "none"
    return "batch" if problem.mode == "train" else asked or "recalibrated"


def _coordinates(values: npt.ArrayLike | None, n: int) -> FloatArray:
    if values is None:
        if whole("n", n, least=0) < 3:
            msg = f"a path needs at least 3 points, its ends and one between, got n = {n}"
            raise InvalidArgumentError(msg)
        return np.asarray(np.arange(n) / (n - 1))
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"t must be a list of coordinates from 0 to 1, got {values!r}"
        raise InvalidArgumentError(msg) from error
    inside = array.ndim == 1 and bool(((array >= 0) & (array <= 1)).all())
    if not inside or not array.size:
        got = f"{array[:5]}" if array.ndim == 1 else f"an array of shape {array.shape}"
        msg = f"t must be a list of coordinates from 0 to 1, got {got}"
        raise InvalidArgumentError(msg)
    if (np.diff(array) <= 0).any():
        msg = f"t must ascend from one coordinate to the next, got {array[:5]}…"
        raise InvalidArgumentError(msg)
    return np.union1d(array, [0.0, 1.0])


def _warn_of_the_ends(result: LossPath) -> None:
    """Say so where the ends of a path, with its statistics, are not the checkpoints at all."""
    ends, plain = result.loss[[0, -1]], np.array(result.end_losses)
    size = max(float(np.ptp(result.loss)), *np.abs(plain).tolist())
    if np.abs(ends - plain).max() > _FAR * size:
        msg = (
            f"with {result.statistics} BatchNorm statistics the losses at the ends are "
            f"{ends[0]:.4g} and {ends[1]:.4g}, those of the checkpoints {plain[0]:.4g} and "
            f"{plain[1]:.4g}: the barrier is none between these; use statistics='recalibrated'"
        )
        warnings.warn(msg, MisleadingWarning, stacklevel=3)


def _warn_of_the_training(result: LossPath) -> None:
    if result.length > _LONG * result.distance:
        msg = (
            f"the trained curve is {result.length / result.distance:.3g} times as long as the "
            "straight line: its training seems to have diverged; lower lr"
        )
        warnings.warn(msg, MisleadingWarning, stacklevel=3)


def _warn_not_finite(loss: FloatArray) -> None:
    bad = int((~np.isfinite(loss)).sum())
    if bad:
        msg = f"the loss is not finite at {bad} of {loss.size} points; they are kept as they are"
        warnings.warn(msg, NonFiniteWarning, stacklevel=3)
