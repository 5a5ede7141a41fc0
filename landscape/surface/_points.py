"""Many points of one line or plane, kept in the study while they are measured.

What is no pass is done for a block of points at once: adding up, standard errors, transactions. A
kill loses the block in flight and what was measured in the tenth of a second before it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.choices import Precision, Statistics
from landscape.errors import InvalidArgumentError, NonFiniteError, did_you_mean, one_of
from landscape.evaluate import (
    PLAIN,
    STATISTICS,
    Displaced,
    Engine,
    Evaluator,
    LossValue,
    check_variances,
    float_buffers,
    interpolated,
    normalisers,
    recalibrated,
)
from landscape.measurement import (
    Columns,
    Index,
    Work,
    check_pair,
    error_of_difference,
    identity_of,
    missing,
    resumable,
    settled_plan,
)
from landscape.problem import Problem
from landscape.problem.digest import Content
from landscape.processes import norm_over_shards, together
from landscape.randomness import whole_seed
from landscape.results import FloatArray
from landscape.study import Study
from landscape.surface._directions import Direction, Plane

METRIC = "metrics."  # as the arrays of a saved result are named
_CHECKED = 5  # points where a lower precision is compared with the exact loss
_BLOCK = 32  # points that are evaluated together, at most
_BLOCK_SECONDS = 0.02  # what takes longer by itself is a block of its own
_BLOCK_TERMS = 2**22  # losses of examples that are in memory at once
_LARGE = 2**24  # parameters of models whose points are never vectors


@dataclass(frozen=True, kw_only=True)
class PointOptions:
    """What is measured at each point of a line or surface besides the loss, and how.

    Attributes:
        statistics: BatchNorm statistics at each point: ``frozen`` as in the checkpoint,
            ``recalibrated`` from the data (one forward pass more for each point), or
            ``interpolated`` between the checkpoints that span the plane; beyond them the loss is
            NaN where a variance falls below zero.
        held_out: the same model on other data, measured at the same points; its loss and metrics
            are in ``metrics``, behind the name of its split.
        weight_decay: λ of a regulariser ½ λ ‖w‖² over the parameters, which is kept apart as
            ``metrics["penalty"]``; the loss stays that of the data.
        against: another checkpoint on the same data, and a direction or plane of its own; the
            difference of the losses at equal coordinates, with the standard error over the same
            examples, is in ``metrics["difference"]``. One more forward pass for each point.
        precision: ``exact``; or ``bfloat16``, ``float16``, ``tf32``, compared with the exact loss
            at five points, the largest difference being kept in the result.
        compile: use torch.compile, if it works here and gives the same numbers.
        tune: choose how to evaluate by a short timing, where all points take more than 10
            seconds: the size of the pieces, the layout of images, several points at once. The
            choice can change roundings from run to run; the study notes it.
    """

    statistics: Statistics = "frozen"
    held_out: Problem | None = None
    weight_decay: float = 0.0
    against: tuple[Problem, Direction | Plane] | None = None
    precision: Precision = "exact"
    compile: bool = False
    tune: bool = False

    @classmethod
    def of(cls, function: str, options: Mapping[str, Any]) -> PointOptions:
        """Return the options that a function was given, or name one that there is not."""
        for name in options.keys() - cls.__dataclass_fields__.keys():
            near = did_you_mean(name, cls.__dataclass_fields__)
            msg = f"{function}() has no argument {name!r}{near}; see help(landscape.{function})"
            raise TypeError(msg)
        return cls(**options)

    def at(self, problem: Problem, where: Direction | Plane) -> PointOptions:
        """Return the options with held-out data at the weights of the problem, if all fits."""
        held_out: object = self.held_out
        if not (held_out is None or isinstance(held_out, Problem)):
            msg = (
                f"held_out takes a Problem on other data, not a {type(held_out).__name__}: "
                "ls.Problem(model, loss, data, split='test')"
            )
            raise InvalidArgumentError(msg)
        held_out = None if held_out is None else held_out.at(problem)
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
        if self.statistics == "interpolated" and not all(s.spanning(0.0, 0.0) for s in spans):
            msg = (
                "interpolated statistics lie between checkpoints, and nothing but this one spans "
                "the points: use a plane through checkpoints, or statistics='recalibrated'"
            )
            raise InvalidArgumentError(msg)
        if held_out is not None:
            _check_held_out(problem, held_out)
        columns = {"difference", "difference_se"} if self.against is not None else set[str]()
        columns |= {"penalty"} if self.weight_decay else set()
        taken = columns & problem.metrics.keys()
        if taken:
            names = ", ".join(sorted(taken))
            msg = f"a metric is called {names}, as is what was asked for: rename it"
            raise InvalidArgumentError(msg)
        return dataclasses.replace(self, held_out=held_out)

    def settings(self, where: Direction | Plane, study: Study | None) -> dict[str, Any]:
        """Return the options that differ from the defaults, as JSON values."""
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


def _digest_of_buffers(where: Direction | Plane) -> str:
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


class Points:
    """Measures points of a grid, inside of an entered evaluator.

    Attributes:
        origin_loss: the plain loss L(w).
        engine: evaluates the points.
        columns: what was measured at each point so far.
    """

    def __init__(
        self,
        work: Work,
        where: Direction | Plane,
        coordinates: tuple[FloatArray, FloatArray],
        options: PointOptions,
        *,
        seed: int,
        progress: bool | None,
        stack: ExitStack,
    ) -> None:
        """Choose how to evaluate, and enter what else is measured into the stack."""
        self._evaluator, self._where, self._xy = work.evaluator, where, coordinates
        self._problem, self._options, self._progress = work.evaluator.problem, options, progress
        self._seed, self._stack = seed, stack
        self.shape = len(coordinates[0]), len(coordinates[1])
        self._grid = work.grid(self.shape)
        stack.enter_context(work.by_point(math.prod(self.shape), self._grid))
        self.columns: dict[Index, Columns] = {} if self._grid is None else dict(self._grid.done)
        self._is_line = isinstance(where, Direction)
        self._origin = self._evaluator.loss(keep=self._is_line)
        self.origin_loss = self._origin.value
        n_points = math.prod(self.shape) if options.tune else 1
        plan = settled_plan(self._evaluator, self._grid, n_points=n_points, compile=options.compile)
        self.engine = Engine(self._evaluator, plan, precision=options.precision)
        # By size alone: the roundings of the two ways differ, and a point keeps its bits.
        is_alone = plan.points == 1 and not options.weight_decay
        self._is_large = is_alone and self._problem.space.n >= _LARGE
        self._n_at_once = 1
        self._others: list[Evaluator] = []
        if options.held_out is not None:
            self._held_out = self._enter(options.held_out)
        if options.against is not None:
            self._rival = self._enter(options.against[0])

    @property
    def statistics(self) -> str:
        """What was done to BatchNorm: nothing where there is none to recalibrate."""
        none = self._options.statistics == "recalibrated" and not normalisers(self._problem.model)
        return "frozen" if none else self._options.statistics

    def measure(self, indices: Sequence[Index]) -> list[float]:
        """Measure what is missing of some points; return the losses."""
        resumable(self._blocks(indices), self._measure, done=self.columns, grid=self._grid)
        return [self.columns[index]["loss"] for index in indices]

    def fields(self) -> dict[str, Any]:
        """Return the fields that lines and surfaces share; NaN where nothing was measured."""
        precision_error = self._precision_error()
        spent = sum(other.passes["forwards"] for other in self._others)
        self._evaluator.passes["forwards"] += spent
        arrays: dict[str, FloatArray] = {}
        for index, values in self.columns.items():
            for name, value in values.items():
                arrays.setdefault(name, np.full(self.shape, np.nan))[index] = value
        return {
            "loss": arrays.pop("loss"),
            "loss_se": arrays.pop("loss_se"),
            "metrics": {name.removeprefix(METRIC): values for name, values in arrays.items()},
            "origin_loss": self.origin_loss,
            "statistics": self.statistics,
            "engine": str(self.engine.plan),
            "precision": self._options.precision,
            "precision_error": precision_error,
        }

    def _precision_error(self) -> float:
        """Compare some of the points with the exact loss."""
        if self._options.precision == "exact":
            return 0.0
        known = sorted(self.columns)
        chosen = {known[k] for k in np.linspace(0, len(known) - 1, _CHECKED).astype(int)}
        largest = 0.0
        for index in sorted(chosen):
            rough = self.columns[index]["loss"]
            try:
                buffers = self._buffers(index)
            except NonFiniteError:
                continue
            exact = self._evaluator.loss(self._weights(index), buffers=buffers).value
            if exact == rough or (math.isnan(exact) and math.isnan(rough)):
                continue
            finite = math.isfinite(exact) and math.isfinite(rough)
            largest = max(largest, abs(exact - rough) if finite else math.inf)
        return largest

    def _enter(self, problem: Problem) -> Engine:
        evaluator = self._stack.enter_context(Evaluator(problem, seed=self._seed))
        self._others.append(evaluator)
        return Engine(evaluator, PLAIN, precision=self._options.precision)

    def _blocks(self, indices: Sequence[Index]) -> Iterator[list[Index]]:
        """Cut points into blocks, and leave out what is known."""
        # A part of a chunk that is missing after a kill is measured with the whole of it: in
        # another company a point would have other roundings. Blocks of chunks have none.
        size = 1 if self.statistics != "frozen" else max(1, self.engine.plan.points)
        what = f"{'line' if self.shape[1] == 1 else 'surface'} of {self._problem.name}"
        shown: dict[str, Any] = {"what": what, "progress": self._progress}
        left = missing(indices, self.columns, grid=self._grid, size=size, **shown)
        most = max(1, min(_BLOCK, _BLOCK_TERMS // self._problem.batches.n_examples) // size)
        block, n = list[Index](), 0
        for chunk in chain(left, [[]]):  # an empty one ends a block
            block, n = [*block, *chunk], n + bool(chunk)
            if chunk and n < self._n_at_once:
                continue
            started = time.perf_counter()
            yield block
            seconds = (time.perf_counter() - started) / max(n, 1)
            block, n = [], 0
            # Processes that evaluate a point together take the same blocks, by no clock of theirs.
            quick = most if together() else int(min(most, _BLOCK_SECONDS / max(seconds, 1e-9)))
            in_blocks = self.statistics == "frozen" and not self._is_large
            self._n_at_once = max(1, quick) if in_blocks else 1

    def _measure(self, block: Sequence[Index]) -> list[Columns]:
        options, weights = self._options, [self._weights(index) for index in block]
        try:
            buffers = self._buffers(block[0])  # those of all: others than frozen are alone
        except NonFiniteError:  # a variance below zero, beyond the checkpoints that span the plane
            return [{"loss": math.nan, "loss_se": math.nan} for _ in block]
        paired = self._is_line or options.against is not None
        losses = self.engine.losses(weights, buffers=buffers, keep=paired)
        columns = [columns_of(loss) for loss in losses]
        if self._is_line and self._origin.examples is not None:
            for found, loss in zip(columns, losses, strict=True):
                error = error_of_difference(self._problem, loss, self._origin)
                found[f"{METRIC}rise_se"] = error
        # One problem after the other: evaluators take turns with a model.
        if options.weight_decay:
            for found, vector in zip(columns, weights, strict=True):
                assert isinstance(vector, Tensor)
                own = float(torch.linalg.vector_norm(vector, dtype=torch.float64))
                norm = norm_over_shards(own)
                found[f"{METRIC}penalty"] = 0.5 * options.weight_decay * norm**2
        if options.held_out is not None:
            for found, vector in zip(columns, weights, strict=True):
                loss = self._held_out.loss(vector, buffers=buffers)
                found |= held_out_columns(loss, options.held_out.split)
        if options.against is not None:
            for found, index, loss in zip(columns, block, losses, strict=True):
                found |= self._difference(loss, self._coordinates(index), *options.against)
        return columns

    def _difference(
        self, ours: LossValue, at: tuple[float, float], problem: Problem, where: Direction | Plane
    ) -> Columns:
        """Measure the difference to another checkpoint on the same examples."""
        value = error = math.nan
        evaluator = self._rival.evaluator
        try:
            buffers = _buffers_at(evaluator, where, at, self._options.statistics)
        except NonFiniteError:
            pass
        else:
            vector = where.at(evaluator.origin, *at)
            theirs = self._rival.loss(vector, buffers=buffers, keep=True)
            value = ours.value - theirs.value
            error = error_of_difference(problem, ours, theirs)
        return {f"{METRIC}difference": value, f"{METRIC}difference_se": error}

    def _weights(self, index: Index) -> Tensor | Displaced:
        """Return the weights of a point; those of a large model take no memory of their own."""
        origin, at = self._evaluator.origin, self._coordinates(index)
        if not self._is_large:
            return self._where.at(origin, *at)
        space, vectors = self._problem.space, self._where.vectors

        def write(slots: list[Tensor]) -> None:
            torch._foreach_copy_(slots, space.views(origin))
            for vector, coordinate in zip(vectors, at, strict=False):
                torch._foreach_add_(slots, space.views(vector), alpha=coordinate)

        return Displaced(write)

    def _coordinates(self, index: Index) -> tuple[float, float]:
        return float(self._xy[0][index[0]]), float(self._xy[1][index[1]])

    def _buffers(self, index: Index) -> dict[str, Tensor] | None:
        at = self._coordinates(index)
        return _buffers_at(self._evaluator, self._where, at, self._options.statistics)


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


def _buffers_at(
    evaluator: Evaluator, where: Direction | Plane, at: tuple[float, float], statistics: str
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


def seed_of_masks(seed: int, *problems: Problem | None) -> dict[str, int]:
    """Return the seed as a setting, where a problem draws dropout masks from it."""
    number = whole_seed(seed)
    drawn = any(problem is not None and problem.mode == "train" for problem in problems)
    return {"seed": number} if drawn else {}
