"""Chooses a plan: what holds, and on request what a short measurement says is faster."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.evaluate._engine import Runner, plan_that_holds
from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._folding import Fold
from landscape.evaluate._plans import Plan, arranged, sample_of
from landscape.processes import shards

# Below this many points, or seconds for all of them, nothing is timed.
_FEW_POINTS, _SHORT = 32, 10.0
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


def choose_plan(evaluator: Evaluator, *, n_points: int = 1, compile: bool = False) -> Plan:
    """Choose how to evaluate the loss at many weight vectors.

    BatchNorm is folded wherever that holds. For 32 points or more that take 10 seconds or more,
    layout, size of the pieces and points at once are timed against each other on the first
    examples at the origin, and taken where they are clearly faster (3 %) than what is simpler;
    that takes about 4 % of the forward passes. For 1 point the plan is the same on every run.
    """
    if n_points < 1:
        msg = f"a plan is for at least 1 point, got n_points = {n_points}"
        raise InvalidArgumentError(msg)
    plan, folds = plan_that_holds(evaluator, Plan(fold=True))
    wanted = plan
    times = evaluator.problem.mode == "eval" and shards() is None  # their clocks would differ
    if times and n_points >= _FEW_POINTS:
        wanted = _fastest(evaluator, plan, folds, n_points)
    if compile:
        wanted = replace(wanted, compiled=True, points=1)
    return plan if wanted == plan else plan_that_holds(evaluator, wanted)[0]


def _fastest(evaluator: Evaluator, plan: Plan, folds: Sequence[Fold], n_points: int) -> Plan:
    """Return the simplest of the plans that none beats clearly, timed in turn within a budget."""
    base = _Candidate(evaluator, plan, folds)
    base.time()  # warm: allocations, and the algorithms that a device chooses
    base.seconds.clear()
    once = base.time()
    point = base.seconds[0] * evaluator.problem.batches.n_examples
    if n_points * point < _SHORT:
        return plan
    left = max(_SHARE * n_points * point, _AT_LEAST) - 2 * once
    # Two turns of each at least, or there is nothing to go by.
    affordable = max(0, int(left / (2 * once)))
    rivals = _rivals(evaluator, plan, point)[:affordable]
    racing = [base, *(_Candidate(evaluator, rival, folds) for rival in rivals)]
    for _ in range(_ROUNDS):
        for candidate in racing:
            if left > 0:
                left -= candidate.try_to_time()
        racing = [candidate for candidate in racing if candidate.seconds]
        best = min(min(candidate.seconds) for candidate in racing)
        racing = [c for c in racing if min(c.seconds) <= _HOPELESS * best]
    medians = [statistics.median(candidate.seconds) for candidate in racing]
    pairs = zip(racing, medians, strict=True)
    good = [candidate.plan for candidate, median in pairs if median <= _CLEARLY * min(medians)]
    return min(good, key=lambda p: (p.piece is not None) + p.channels_last + (p.points > 1))


class _Candidate:
    """A plan that is timed; `seconds` are those of each turn, for one point and one example."""

    def __init__(self, evaluator: Evaluator, plan: Plan, folds: Sequence[Fold]) -> None:
        batching, sizes = evaluator.problem.batching, _sizes(evaluator)
        # Whole batches, where they are what the model will see.
        n = max(*sizes, plan.piece or 0)
        sample = sample_of(evaluator, n, at_most=None if plan.piece is None else n)
        self.plan, self.seconds = plan, list[float]()
        self._pieces = list(arranged(batching, sample, plan))
        self._n = plan.points * sum(batching.size(piece) for _, piece in self._pieces)
        self._runner = Runner(evaluator, plan, folds)
        self._vectors = [evaluator.origin] * plan.points

    def time(self) -> float:
        """Time the plan once; return the seconds that this took."""
        started = time.perf_counter()
        for sums in self._runner.sums(self._vectors, lambda: self._pieces):
            _ = sums.totals  # waits for the device
        spent = time.perf_counter() - started
        self.seconds.append(spent / self._n)
        return spent

    def try_to_time(self) -> float:
        """Time the plan; one that fails, for want of memory, say, is out of the race."""
        started = time.perf_counter()
        try:
            return self.time()
        except (LandscapeError, RuntimeError):
            self.seconds = [math.inf]
            return time.perf_counter() - started


def _rivals(evaluator: Evaluator, plan: Plan, point: float) -> list[Plan]:
    """List the plans to try, the more promising ones first, for points of so many seconds."""
    sizes: list[int | None] = [*_sizes(evaluator)] if evaluator.divisible else []
    if point < _SMALL:
        large = [replace(plan, piece=_LARGE)] if sizes else []
        return [*large, replace((large or [plan])[0], points=_AT_ONCE)]
    sizes.insert(1, None)
    images = any(p.ndim == 4 for p in evaluator.problem.model.parameters())
    layouts = (True, False) if images else (False,)
    found = [replace(plan, piece=n, channels_last=last) for n in sizes for last in layouts]
    return [each for each in found if each != plan]


def _sizes(evaluator: Evaluator) -> tuple[int, ...]:
    return _SIZES.get(evaluator.problem.device.type, _SIZES["cuda"])
