"""The plain loss of a checkpoint, with its standard error, metrics and gradient norm."""

from __future__ import annotations

import math
import warnings
from typing import Any

from landscape.errors import LossError, MisleadingWarning
from landscape.evaluate import Evaluator
from landscape.linalg.krylov import norm
from landscape.measurement import Run, Work
from landscape.problem import Problem, check_problem
from landscape.results import Evaluation
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
        The gradient norm is NaN, with a warning, where autograd does not give the gradient. Cost:
        one forward and one gradient pass.
    """
    check_problem(problem)

    def measure(work: Work) -> dict[str, Any]:
        loss = work.evaluator.loss()
        return {
            "loss": loss.value,
            "loss_se": loss.se,
            "metrics": dict(loss.metrics),
            "gradient_norm": _gradient_norm(work.evaluator),
        }

    return Run(study=study, seed=seed).record(Evaluation, problem, {"seed": seed}, measure)


def _gradient_norm(evaluator: Evaluator) -> float:
    try:
        gradient = evaluator.gradient()[1]
    except LossError as error:  # the loss is right all the same
        warnings.warn(f"no gradient norm: {error}", MisleadingWarning, stacklevel=7)
        return math.nan
    return norm(gradient)
