"""Many points of one plane or line, kept in the study while they are measured.

What is no pass is done for a block of points at once: adding up, standard errors, transactions. A
kill loses the block in flight and what was measured in the tenth of a second before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from landscape.errors import NonFiniteError
from landscape.evaluate import (
    PLAIN,
    Displaced,
    Engine,
    Evaluator,
    Plan,
    choose_plan,
    normalisers,
)
from landscape.measurement import Index, resumable
from landscape.problem import Problem
from landscape.progress import progress_bar
from landscape.randomness import whole_seed
from landscape.results import Cost, FloatArray
from landscape.study import Grid
from landscape.surface._extra_metrics import (
    METRIC,
    AffineSlice,
    ExtraMetric,
    Point,
    PointOptions,
    buffers_at,
    columns_of,
    difference,
    on_held_out,
    penalty,
)

_CHECKED = 5  # points where a lower precision is compared with the exact loss
_BLOCK = 32  # points that are evaluated together, at most
_BLOCK_SECONDS = 0.02  # what takes longer by itself is a block of its own
_BLOCK_TERMS = 2**22  # losses of examples that are in memory at once
_LARGE = 2**24  # parameters of models whose points are never vectors


class Points:
    """Measures points of a grid; a context.

    Attributes:
        origin_loss: the plain loss L(w).
        engine: how the points are evaluated, in words.
        columns: what was measured at each point so far.
    """

    def __init__(
        self,
        problem: Problem,
        where: AffineSlice,
        coordinates: tuple[FloatArray, FloatArray],
        options: PointOptions,
        *,
        seed: int = 0,
        kept: Grid | None = None,
        what: str = "points",
        progress: bool | None = None,
    ) -> None:
        """Prepare; entering starts the evaluators."""
        self._problem, self._where, self._xy = problem, where, coordinates
        self._options, self._seed, self._kept = options, seed, kept
        self._what, self._progress = what, progress
        self.columns: dict[Index, dict[str, float]] = {} if kept is None else dict(kept.done)
        self.engine = ""
        self.origin_loss = math.nan
        self._n_at_once = 1
        self._stack = ExitStack()

    def __enter__(self) -> Points:
        with ExitStack() as stack:
            self._evaluator = stack.enter_context(Evaluator(self._problem, seed=self._seed))
            self.origin_loss = self._evaluator.loss().value
            self._main = self._engine()
            self._others: list[Evaluator] = []
            self._besides = self._beside(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def statistics(self) -> str:
        """What was done to BatchNorm: nothing where there is none to recalibrate."""
        none = self._options.statistics == "recalibrated" and not normalisers(self._problem.model)
        return "frozen" if none else self._options.statistics

    @property
    def cost(self) -> Cost:
        """What all evaluators have spent together."""
        own = self._evaluator.cost
        forwards = own.forwards + sum(other.passes["forwards"] for other in self._others)
        return Cost(forwards=forwards, seconds=own.seconds)

    def measure(self, indices: Sequence[Index]) -> list[float]:
        """Measure what is missing of some points."""
        resumable(self._blocks(indices), self._measured, done=self.columns, kept=self._kept)
        return [self.columns[index]["loss"] for index in indices]

    def arrays(self) -> dict[str, FloatArray]:
        """Return each column in the shape of the grid, NaN where nothing was measured."""
        shape = (len(self._xy[0]), len(self._xy[1]))
        names = dict.fromkeys(name for values in self.columns.values() for name in values)
        found = {name: np.full(shape, np.nan) for name in names}
        for index, values in self.columns.items():
            for name, value in values.items():
                found[name][index] = value
        return found

    def precision_error(self) -> float:
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

    def _engine(self) -> Engine:
        """Choose how to evaluate, or go on as it was begun."""
        noted = None if self._kept is None else self._kept.settled
        if noted is None:
            n_points = len(self._xy[0]) * len(self._xy[1]) if self._options.tune else 1
            plan = choose_plan(self._evaluator, n_points=n_points, compile=self._options.compile)
            noted = plan.settings()
            if self._kept is not None:
                noted = self._kept.settle(noted)
        plan = Plan.of(noted)
        self.engine = str(plan)
        # By size alone: the roundings of the two ways differ, and a point keeps its bits.
        is_alone = plan.points == 1 and not self._options.weight_decay
        self._is_large = is_alone and self._problem.space.n >= _LARGE
        return Engine(self._evaluator, plan, precision=self._options.precision)

    def _beside(self, stack: ExitStack) -> list[ExtraMetric]:
        """Prepare what else is measured at each point."""
        options, found = self._options, list[ExtraMetric]()
        if options.weight_decay:
            found.append(penalty(options.weight_decay))
        if options.held_out is not None:
            _, engine = self._other(stack, options.held_out)
            found.append(on_held_out(options.held_out, engine))
        if options.against is not None:
            rival, where = options.against
            evaluator, engine = self._other(stack, rival)
            found.append(difference(evaluator, engine, where, options.statistics))
        return found

    def _other(self, stack: ExitStack, problem: Problem) -> tuple[Evaluator, Engine]:
        evaluator = stack.enter_context(Evaluator(problem, seed=self._seed))
        self._others.append(evaluator)
        return evaluator, Engine(evaluator, PLAIN, precision=self._options.precision)

    def _blocks(self, indices: Sequence[Index]) -> Iterator[list[Index]]:
        """Cut what is asked for into blocks, and leave out what is known."""
        # A part of a chunk that is missing after a kill is measured with the whole of it: in
        # another company a point would have other roundings. Blocks of chunks have none.
        size = 1 if self.statistics != "frozen" else max(1, self._main.plan.points)
        every = [indices[k : k + size] for k in range(0, len(indices), size)]
        chunks = [chunk for chunk in every if any(index not in self.columns for index in chunk)]
        left = iter(progress_bar(chunks, what=self._what, total=len(chunks), show=self._progress))
        most = max(1, min(_BLOCK, _BLOCK_TERMS // self._problem.batches.n_examples) // size)
        while some := list(islice(left, self._n_at_once)):
            started = time.perf_counter()
            yield [index for chunk in some for index in chunk]
            each = (time.perf_counter() - started) / len(some)
            quick = int(min(most, _BLOCK_SECONDS / max(each, 1e-9)))
            together = self.statistics == "frozen" and not self._is_large
            self._n_at_once = max(1, quick) if together else 1

    def _measured(self, block: Sequence[Index]) -> list[dict[str, float]]:
        weights = [self._weights(index) for index in block]
        try:
            buffers = self._buffers(block[0])  # those of all: others than frozen are alone
        except NonFiniteError:  # a variance below zero, beyond the checkpoints that span the plane
            return [{"loss": math.nan, "loss_se": math.nan} for _ in block]
        paired = self._options.against is not None
        losses = self._main.losses(weights, buffers=buffers, keep=paired)
        points = [
            Point(self._coordinates(index), own, buffers, loss)
            for index, own, loss in zip(block, weights, losses, strict=True)
        ]
        found = [columns_of(loss) for loss in losses]
        for beside in self._besides:  # one after the other: evaluators take turns with a model
            found = [own | beside(point) for own, point in zip(found, points, strict=True)]
        return found

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
        return buffers_at(
            self._evaluator,
            self._where,
            self._coordinates(index),
            self._options.statistics,
        )


def seed_of_masks(seed: int, *problems: Problem | None) -> dict[str, int]:
    """Return the seed as a setting, where a problem draws dropout masks from it."""
    number = whole_seed(seed)
    drawn = any(problem is not None and problem.mode == "train" for problem in problems)
    return {"seed": number} if drawn else {}


def metrics_of(columns: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Return the columns other than the loss and its standard error."""
    return {
        name.removeprefix(METRIC): values
        for name, values in columns.items()
        if name.startswith(METRIC)
    }
