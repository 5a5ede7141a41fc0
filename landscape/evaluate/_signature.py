"""What a problem computes, in a few losses and a derivative on its first examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._sums import LossSums, LossValue
from landscape.problem import Problem
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
        # Drawn in float32, on the CPU: every device moves the same way, and copies cost memory.
        step = torch.randn(len(w), generator=seeded(0)).to(w)
        step *= NEAR * (float(w.norm()) or 1.0) / float(step.norm())
        near, far = (
            _loss(evaluator, torch.add(w, step, alpha=far), batch) for far in (1.0, FAR / NEAR)
        )
        slope = _slope(evaluator, w, step, batch)
    losses = (here.value, near.value, far.value)
    return Signature(losses=losses, slope=slope, metrics=dict(here.metrics))


def _first_examples(evaluator: Evaluator) -> Iterator[Any]:
    """Yield the first of each batch and the whole; some cannot be cut, or weigh nothing."""
    batching = evaluator.problem.batching
    for whole in evaluator.problem.batches:
        can_split = evaluator.divisible and batching.can_split(whole)
        if can_split and batching.size(whole) > N_EXAMPLES:
            yield batching.part(whole, 0, N_EXAMPLES)
        yield whole


def _loss(evaluator: Evaluator, weights: Tensor, batch: Any) -> LossValue:
    sums = LossSums(evaluator.problem.loss.sums)
    try:
        with torch.no_grad():
            terms, metrics = evaluator.on_batch(weights, batch, 0, evaluator.result)
        sums.add(terms)
        sums.add_metrics(metrics)
        return sums.result()
    except LandscapeError:  # some refuse weights far from trained ones; what follows says the rest
        return LossValue(math.nan, math.nan, {})


def _slope(evaluator: Evaluator, weights: Tensor, step: Tensor, batch: Any) -> float:
    sums = LossSums(evaluator.problem.loss.sums)
    try:
        terms, slope = evaluator.batch_slope(weights, step, batch, 0)
        sums.add(terms)
        return slope / sums.divisor
    except LandscapeError:  # a measurement that takes derivatives says what is wrong
        return math.nan
