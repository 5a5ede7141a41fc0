"""What a problem computes, in a few losses and a derivative on its first examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.evaluate._accumulators import Displaced, LossSums, LossValue, Weights
from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._values import WIDE_EXAMPLES, WIDE_PARAMETERS
from landscape.problem import Problem
from landscape.problem._parameters import ParameterSpace
from landscape.processes import norm_over_shards
from landscape.randomness import seeded
from landscape.results import Provenance, Signature

N_EXAMPLES = 64
NEAR, FAR = 0.01, 0.3  # of ‖w‖


def provenance_of(problem: Problem) -> Provenance:
    """Return where a number measured now comes from, and what the problem computes."""
    return problem.provenance(measure_signature(problem))


def measure_signature(problem: Problem) -> Signature:
    """Measure three losses, a directional derivative and the metrics on at most 64 examples."""
    # Not kept: what a model reads from globals or files may change from one call to the next.
    with Evaluator(problem) as evaluator:
        w = evaluator.origin
        for batch in _first_examples(evaluator):
            here = _loss(evaluator, w, batch)
            if not math.isnan(here.value):
                break
        step = _Step(w, evaluator.problem.space)
        near, far = (_loss(evaluator, step.times(far), batch) for far in (1.0, FAR / NEAR))
        slope = _slope(evaluator, step, batch)
    losses = (here.value, near.value, far.value)
    return Signature(losses=losses, slope=slope, metrics=dict(here.metrics))


def _first_examples(evaluator: Evaluator) -> Iterator[Any]:
    """Yield the first of each batch and the whole; some cannot be cut, or weigh nothing."""
    batching = evaluator.problem.batching
    n = N_EXAMPLES if evaluator.problem.space.n <= WIDE_PARAMETERS else WIDE_EXAMPLES
    for whole in evaluator.problem.batches:
        can_split = evaluator.divisible and batching.can_split(whole)
        if can_split and batching.size(whole) > n:
            yield batching.part(whole, 0, n)
        yield whole


class _Step:
    """The step from the weights to the near point; beyond 2**24 entries its numbers recur."""

    def __init__(self, w: Tensor, space: ParameterSpace) -> None:
        self._space, self._w = space, w
        # Drawn in float32, on the CPU: every device moves the same way, and copies cost memory.
        self._drawn = torch.randn(min(space.n, WIDE_PARAMETERS), generator=seeded(0)).to(w)
        rounds, rest = divmod(space.n, len(self._drawn))
        length = math.hypot(
            math.sqrt(rounds) * float(self._drawn.norm()), float(self._drawn[:rest].norm())
        )
        self._drawn *= NEAR * (norm_over_shards(float(w.norm())) or 1.0) / length
        ends = list(accumulate(space.sizes))
        whole = list(zip([0, *ends], ends, strict=False))
        self._spans = whole if space.spread is None else space.spread.spans

    def part(self, i: int) -> Tensor:
        """Return the step of one tensor."""
        first, last = self._spans[i]
        n, pieces = len(self._drawn), list[Tensor]()
        while first < last:
            at = first % n
            pieces.append(self._drawn[at : at + last - first])
            first += len(pieces[-1])
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces or [self._drawn[:0]])
        return flat.view(self._space.shapes[i])

    def times(self, factor: float) -> Displaced:
        """Return the weights after so many steps."""

        def write(slots: list[Tensor]) -> None:
            torch._foreach_copy_(slots, self._space.views(self._w))
            for i, slot in enumerate(slots):
                slot.add_(self.part(i), alpha=factor)

        return Displaced(write)


def _loss(evaluator: Evaluator, weights: Weights, batch: Any) -> LossValue:
    try:
        return evaluator.loss(weights, batches=[(0, batch)])
    except LandscapeError:  # some refuse weights far from trained ones; what follows says the rest
        return LossValue(math.nan, math.nan, {})


def _slope(evaluator: Evaluator, step: _Step, batch: Any) -> float:
    sums = LossSums(evaluator.problem.loss.sums)
    try:
        terms, slope = evaluator.batch_slope(None, step.part, batch, 0)
        sums.add(terms)
        return slope / sums.divisor
    except LandscapeError:  # a measurement that takes derivatives says what is wrong
        return math.nan
