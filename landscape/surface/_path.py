"""Loss along a path between two checkpoints: a straight line, or a curve trained to be low."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
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
from landscape.measurement import Columns, Run, Work, identity_of, one_by_one
from landscape.problem import Problem, check_problem
from landscape.results import FloatArray, LossPath
from landscape.study import Study
from landscape.surface._curves import Curve
from landscape.surface._mode_connectivity import MOMENTUM, train_curve
from landscape.surface._planes import require_same_elsewhere
from landscape.surface._points import METRIC, columns_of, held_out_columns

Endpoint: TypeAlias = "Problem | str | PathLike[str] | Mapping[str, Any] | nn.Module"


# Ends that are off by this share of the losses on the path are not the checkpoints.
_FAR = 0.1
# No curve of use was ever so many times as long as the line.
_LONG = 10.0


@dataclass(frozen=True, kw_only=True)
class CurveTraining:
    """How a curve between two checkpoints is trained; see `path`.

    Attributes:
        bends: inner control vectors of a curve, at least 1.
        epochs: passes over the data, with a step for each batch of the problem; 0: leave the bends
            on the line.
        lr: learning rate at the start.
        weight_decay: adds ½ weight_decay ‖w(t)‖² to the loss.
    """

    bends: int = 1
    epochs: int = 50
    lr: float = 0.05
    weight_decay: float = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the training."""
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                msg = f"{name} must be a finite number of at least 0, got {value!r}"
                raise InvalidArgumentError(msg)
        return {
            "bends": int(self.bends),
            "epochs": whole("epochs", self.epochs, least=0),
            "lr": float(self.lr),
            "momentum": MOMENTUM,
            "weight_decay": float(self.weight_decay),
        }


def path(
    problem: Problem,
    end: Endpoint,
    *,
    curve: CurveKind = "linear",
    t: npt.ArrayLike | None = None,
    n: int = 51,
    statistics: Statistics | None = None,
    seed: int = 0,
    held_out: Problem | None = None,
    study: Study | None = None,
    progress: bool | None = None,
    **training: Any,
) -> LossPath:
    """Measure L(w(t)) from one checkpoint (t = 0) to another (t = 1), and the barrier between.

    A linear path is w(t) = (1 − t) w₀ + t w₁. The others run over ``bends`` inner control
    vectors, which start on that line and are trained to lower E L(w(t)), t uniform on (0, 1). Both
    ends are the checkpoints' weights bit for bit; the record holds their plain losses too, which
    those on the path equal only where the BatchNorm statistics are theirs.

    Args:
        problem: what to measure, at the first checkpoint.
        end: the other checkpoint: a problem at it, or what `Problem.at` takes.
        curve: shape: ``linear``; ``bezier``, of degree bends + 1; or ``polygon``, of bends + 1
            segments.
        t: ascending coordinates in [0, 1]; the ends are added; None: n of them, evenly spaced.
        n: how many, where t is not given.
        statistics: BatchNorm statistics: ``recalibrated`` (gathered anew at each point, from the
            problem's data, for the held-out data too), ``frozen`` or ``interpolated`` (only
            linear); None: the first where the model has BatchNorm layers and is in ``eval`` mode.
        seed: of the training, and of the dropout masks in ``train`` mode.
        held_out: the same problem on other data, measured at the same points; its weights do not
            matter.
        study: where points and training are kept, and taken up again after a kill; a killed
            training repeats one epoch at most.
        progress: show a bar on stderr; None: where stderr is a terminal.
        **training: bends, epochs, lr and weight_decay: see `landscape.surface.CurveTraining`.

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
    check_problem(problem)
    ts, how = _coordinates(t, n), CurveTraining(**training)
    other = problem.at(end)
    require_same_elsewhere(problem, other)
    straight = _straight(problem, other, curve, how.bends)
    held = None if held_out is None else held_out.at(problem)
    if held is not None and held.space != problem.space:
        msg = (
            f"held_out explores {held.space.n:,} parameters and the problem {problem.space.n:,}; "
            "choose the same ones for both with .only(...)"
        )
        raise InvalidArgumentError(msg)
    which = _statistics(problem, statistics, curve)
    run = Run(study=study, seed=seed, progress=progress)
    line = {"end": other.checkpoint_hash, "curve": curve, "seed": seed}
    trained = line | how.settings
    settings = (line if curve == "linear" else trained) | {
        "t": ts.tolist(),
        "statistics": which,
        "held_out": None,
    }
    if held is not None:
        settings["held_out"] = {
            "split": held.split,
            "data": held.batches.fingerprint,
            "problem": identity_of(held, study),
            "mode": held.mode,
        }

    def measure(work: Work) -> dict[str, Any]:
        with ExitStack() as stack:
            evaluator = work.evaluator
            others = [other] if held is None else [other, held]
            entered = [stack.enter_context(Evaluator(p, seed=seed)) for p in others]
            at_end = entered[0]
            along = straight
            losses: FloatArray = np.empty(0)
            if curve != "linear":
                along, losses = train_curve(
                    work, straight, end=other.name, settings=trained, run=run
                )
            buffers = _buffers(evaluator, at_end, which)

            def point(i: int) -> Columns:
                vector = along.at(float(ts[i]))
                own = buffers(vector, float(ts[i]))
                found = columns_of(evaluator.loss(vector, buffers=own))
                if held is not None:
                    like = held.device, held.dtype
                    moved = {name: buffer.to(*like) for name, buffer in (own or {}).items()}
                    loss = entered[1].loss(vector.to(*like), buffers=moved)
                    found |= held_out_columns(loss, held.split)
                return found

            grid, what = work.grid((len(ts), 1)), f"path from {problem.name}"
            with work.by_point(len(ts), grid):
                ends = (_plain(evaluator), _plain(at_end))
                columns = one_by_one(len(ts), point, grid=grid, what=what, progress=progress)
                evaluator.passes["forwards"] += sum(e.passes["forwards"] for e in entered)
            return {
                "t": ts,
                "loss": columns.pop("loss"),
                "loss_se": columns.pop("loss_se"),
                "metrics": {name.removeprefix(METRIC): values for name, values in columns.items()},
                "end": other.name,
                "curve": curve,
                "bends": along.bends.cpu().numpy(),
                "distance": along.distance,
                "length": along.length,
                "end_losses": ends,
                "statistics": which,
                "held_out": "" if held is None else held.split,
                "training_losses": losses,
            }

    # Points and training have bars of their own.
    result = dataclasses.replace(run, progress=False).record(LossPath, problem, settings, measure)
    _warn(result)
    # Like that of the first, the name of the other checkpoint is no part of what was measured.
    return dataclasses.replace(result, end=other.name)


Buffers: TypeAlias = "Callable[[Tensor, float], Mapping[str, Tensor] | None]"


def _buffers(evaluator: Evaluator, at_end: Evaluator, statistics: str) -> Buffers:
    """Return what gives the buffers at a point of the path; None: the checkpoint's own."""
    if statistics == "recalibrated":
        return lambda vector, t: recalibrated(evaluator, vector)
    if statistics == "interpolated":
        own, theirs = (float_buffers(e.problem) for e in (evaluator, at_end))
        return lambda vector, t: interpolated(own, {"end": (t, theirs)})
    return lambda vector, t: None


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


def _statistics(problem: Problem, statistics: str | None, curve: str) -> str:
    if statistics is not None:
        one_of(statistics, STATISTICS, what="statistics")
    if statistics == "interpolated" and curve != "linear":
        msg = (
            f"statistics='interpolated' fits a linear path only: the bends of a {curve} curve have "
            "none of their own; use 'recalibrated'"
        )
        raise InvalidArgumentError(msg)
    if statistics is not None and problem.mode == "train":
        msg = (
            f"statistics={statistics!r} cannot be combined with train mode, in which BatchNorm "
            "uses the statistics of each batch; leave statistics out, or measure in eval mode"
        )
        raise InvalidArgumentError(msg)
    if not normalisers(problem.model):
        return "none"
    return "batch" if problem.mode == "train" else statistics or "recalibrated"


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


def _warn(result: LossPath) -> None:
    """Warn of losses that are not finite, and of ends and curves that mislead."""
    bad = int((~np.isfinite(result.loss)).sum())
    if bad:
        msg = (
            f"the loss is not finite at {bad} of {result.loss.size} points; they are kept as they "
            "are"
        )
        warnings.warn(msg, NonFiniteWarning, stacklevel=3)
    ends, plain = result.loss[[0, -1]], np.array(result.end_losses)
    size = max(float(np.ptp(result.loss)), *np.abs(plain).tolist())
    if np.abs(ends - plain).max() > _FAR * size:
        msg = (
            f"with {result.statistics} BatchNorm statistics the losses at the ends are "
            f"{ends[0]:.4g} and {ends[1]:.4g}, those of the checkpoints {plain[0]:.4g} and "
            f"{plain[1]:.4g}: the barrier is none between these; use statistics='recalibrated'"
        )
        warnings.warn(msg, MisleadingWarning, stacklevel=3)
    if result.length > _LONG * result.distance:
        msg = (
            f"the trained curve is {result.length / result.distance:.3g} times as long as the "
            "straight line: its training seems to have diverged; lower lr"
        )
        warnings.warn(msg, MisleadingWarning, stacklevel=3)
