"""What a problem computes, in a few losses and a derivative on its first examples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from landscape.derivatives import differentiate
from landscape.errors import LandscapeError
from landscape.evaluate import Evaluator
from landscape.problem import Problem
from landscape.problem.data import examples_in, split_batch
from landscape.results import Signature
from landscape.sums import LossSums, LossValue

N_EXAMPLES = 64
NEAR, FAR = 0.01, 0.3  # of ‖w‖


def measure_signature(problem: Problem) -> Signature:
    """Measure three losses, a directional derivative and the metrics on at most 64 examples."""
    with Evaluator(problem) as evaluator:
        w = evaluator.origin
        for batch in _first_examples(problem):
            here = _loss(evaluator, w, batch)
            if not math.isnan(here.value):
                break
        # Drawn on the CPU, so that every device moves the same way.
        step = torch.randn(len(w), generator=torch.Generator().manual_seed(0)).to(w)
        step *= NEAR * (float(w.norm()) or 1.0) / float(step.norm())
        points = (w + step, torch.add(w, step, alpha=FAR / NEAR))
        near, far = (_loss(evaluator, point, batch) for point in points)
        slope = _slope(evaluator, w, step, batch)
    losses = (here.value, near.value, far.value)
    return Signature(losses=losses, slope=slope, metrics=dict(here.metrics))


def _first_examples(problem: Problem) -> Iterator[Any]:
    """Yield the first of each batch and the whole; some cannot be cut, or weigh nothing."""
    for whole in problem.batches:
        first = split_batch(whole, N_EXAMPLES)[0]
        if problem.additive and examples_in(first) == N_EXAMPLES:
            yield first
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
    leaf, sums = weights.detach().requires_grad_(True), LossSums(evaluator.problem.loss.sums)
    try:
        with torch.enable_grad():
            terms = evaluator.terms(leaf, batch, 0)
            gradient = differentiate(terms.total, leaf)
        sums.add(terms)
        return float((gradient * step).sum(dtype=torch.float64)) / sums.divisor
    except LandscapeError:  # a measurement that takes derivatives says what is wrong
        return math.nan
