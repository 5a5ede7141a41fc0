"""Chooses the way of evaluating many points: what holds, and then what a short measurement says."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._folding import Fold
from landscape.evaluate._holding import plan_that_holds
from landscape.evaluate._pieces import arranged, sample_of
from landscape.evaluate._plans import Plan
from landscape.evaluate._running import Runner
from landscape.problem.data import Batching

# Below this many points, or seconds for all of them, nothing is timed, and the plan is the same on
# every run.
_FEW_POINTS = 32
_SHORT = 10.0
# Share of the time of all points that may go into timing, or so many seconds if that is more.
_SHARE, _AT_LEAST = 0.03, 0.1
_ROUNDS = 5
# What is slower than the best by less than this is not told from it: the simpler one is taken.
_CLEARLY = 1.03
_HOPELESS = 1.2
# Below this many seconds for a point, the calls into torch cost as much as what they compute.
_SMALL = 0.01
_SIZES = {"cpu": (256, 128, 512, 64), "cuda": (1024, 4096, 256)}
_LARGE, _AT_ONCE = 4096, 8


def choose_plan(
    evaluator: Evaluator,
    direction_like: Tensor | None = None,
    *,
    n_points: int,
    compile: bool = False,
) -> Plan:
    """Choose how to evaluate the loss at many weight vectors.

    BatchNorm is folded wherever that holds. Layout, size of the pieces and points at once are
    timed against each other on the first examples, and taken where they are clearly faster (3 %)
    than what is simpler, but only if 32 points or more are to be evaluated, and take 10 seconds or
    more.

    Args:
        evaluator: an entered evaluator.
        direction_like: where to time: at the origin plus this vector of shape (n,); None: at the
            origin.
        n_points: how many points are to be evaluated.
        compile: whether to use torch.compile, if it works here and gives the same numbers.

    Returns:
        A plan that holds.

    Raises:
        InvalidArgumentError: if n_points is below 1.

    Cost: about 4 % of the forward passes over the points, and those that an `Engine` takes to try
    a plan; compiling comes on top.
    """
    if n_points < 1:
        msg = f"a plan is for at least 1 point, got n_points = {n_points}"
        raise InvalidArgumentError(msg)
    plan, folds = plan_that_holds(evaluator, Plan(fold=True))
    if evaluator.problem.mode == "eval" and n_points >= _FEW_POINTS:
        shift = 0.0 if direction_like is None else direction_like
        clock = _Clock(evaluator, plan, folds, evaluator.origin + shift)
        plan = clock.fastest(n_points)
    if compile:
        plan = replace(plan, compiled=True, points=1)
    return plan_that_holds(evaluator, plan)[0]


@dataclass
class _Candidate:
    """A plan that is timed, with the seconds of each turn for one point and one example, if any."""

    runner: Runner
    batching: Batching
    pieces: list[tuple[int, Any]]
    seconds: list[float] = field(default_factory=list)
    failed: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def time(self, vector: Tensor) -> float:
        """Time the plan once; return the seconds that this took."""
        points = self.runner.plan.points
        n_examples = sum(self.batching.size(piece) for _, piece in self.pieces)
        started = time.perf_counter()
        for sums in self.runner.sums([vector] * points, lambda: self.pieces):
            _ = sums.totals  # waits for the device
        spent = time.perf_counter() - started
        self.seconds.append(spent / (points * n_examples))
        return spent


class _Clock:
    """Times plans in turn on the first examples, as long as the budget lasts."""

    def __init__(self, evaluator: Evaluator, plan: Plan, folds: Sequence[Fold], at: Tensor) -> None:
        self._evaluator, self._plan, self._folds, self._at = evaluator, plan, folds, at
        own = _SIZES.get(evaluator.problem.device.type, _SIZES["cuda"])
        self._sizes = own if evaluator.divisible else ()
        self._n = max(own)

    def fastest(self, n_points: int) -> Plan:
        """Return the simplest of the plans that nothing beats clearly."""
        base = self._candidate(self._plan)
        base.time(self._at)  # warm: allocations, and the algorithms that a device chooses
        base.seconds.clear()
        once = base.time(self._at)
        point = base.median * self._evaluator.problem.batches.n_examples
        if n_points * point < _SHORT:
            return self._plan
        left = max(_SHARE * n_points * point, _AT_LEAST) - 2 * once
        # Two turns of each at least, or there is nothing to go by.
        affordable = max(0, int(left / (2 * once)))
        racing = [base, *map(self._candidate, self._plans(point)[:affordable])]
        for _ in range(_ROUNDS):
            for candidate in racing:
                if left > 0:
                    left -= self._tried(candidate)
            racing = [each for each in racing if each.seconds and not each.failed]
            best = min(min(each.seconds) for each in racing)
            racing = [each for each in racing if min(each.seconds) <= _HOPELESS * best]
        best = min(each.median for each in racing)
        good = [each.runner.plan for each in racing if each.median <= _CLEARLY * best]
        return min(good, key=_complication)

    def _tried(self, candidate: _Candidate) -> float:
        """Time a plan; one that fails, for want of memory, say, is out of the race."""
        started = time.perf_counter()
        try:
            return candidate.time(self._at)
        except (LandscapeError, RuntimeError):
            if candidate.runner.plan == self._plan:
                raise
            candidate.seconds.clear()
            candidate.failed = True
            return time.perf_counter() - started

    def _candidate(self, plan: Plan) -> _Candidate:
        problem = self._evaluator.problem
        # Whole batches, where they are what the model will see.
        n = self._n if plan.piece is None else max(self._n, plan.piece)
        sample = sample_of(problem, n, at_most=None if plan.piece is None else n)
        runner = Runner(self._evaluator, plan, self._folds)
        pieces = list(arranged(problem.batching, sample, plan))
        return _Candidate(runner, problem.batching, pieces)

    def _plans(self, point: float) -> list[Plan]:
        """List the plans to try, the more promising ones first."""
        plan = self._plan
        if point < _SMALL:
            large = [replace(plan, piece=_LARGE)] if self._sizes else []
            return [*large, replace((large or [plan])[0], points=_AT_ONCE)]
        images = any(p.ndim == 4 for p in self._evaluator.problem.model.parameters())
        sizes: list[int | None] = [*self._sizes]
        sizes.insert(1, None)
        found = [
            replace(plan, piece=size, channels_last=last)
            for size in sizes
            for last in ((True, False) if images else (False,))
        ]
        return [each for each in found if each != plan]


def _complication(plan: Plan) -> int:
    return (plan.piece is not None) + plan.channels_last + (plan.points > 1)
