"""The plain loss of a checkpoint, with its standard error, metrics and gradient norm."""

from __future__ import annotations

import torch

from landscape.evaluate import Evaluator
from landscape.measure.recall import recall_or_measure
from landscape.problem import Problem
from landscape.results import Evaluation, Provenance
from landscape.study import Study


def evaluation(problem: Problem, *, seed: int = 0, study: Study | None = None) -> Evaluation:
    """Measure L(w) = Σ sum / Σ weight over the data set, its metrics, and ‖∇L(w)‖.

    The gradient norm tells whether w is near a stationary point at all.

    Args:
        problem: what to measure.
        seed: of the dropout masks, in ``train`` mode.
        study: where the result is kept, and looked up first.

    Returns:
        The loss with its standard error over the examples (of the ratio, by the delta method).
        Cost: one forward and one gradient pass.
    """
    settings = {"seed": seed}

    def measure(provenance: Provenance) -> Evaluation:
        with Evaluator(problem, seed=seed) as evaluator:
            loss = evaluator.loss()
            _, gradient = evaluator.gradient()
            return Evaluation(
                loss=loss.value,
                loss_se=loss.se,
                metrics=dict(loss.metrics),
                gradient_norm=float(torch.linalg.vector_norm(gradient, dtype=torch.float64)),
                settings=settings,
                cost=evaluator.cost,
                provenance=provenance,
            )

    return recall_or_measure(Evaluation, problem, settings, study, measure)
