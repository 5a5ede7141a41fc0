"""The sharpness that a climb of a few steps finds, as a function of their number."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError
from landscape.measurement import Run, Work
from landscape.problem import Problem, check_problem
from landscape.results import StepwiseSharpness
from landscape.sharpness._ball import Ball
from landscape.sharpness._objective import BallObjective
from landscape.study import Study

STEPS = (1, 2, 3, 5, 10, 20)


def stepwise_sharpness(
    problem: Problem,
    rho: float = 0.05,
    *,
    p: float = 2.0,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> StepwiseSharpness:
    """Measure the rise of the loss at the end of a climb of k steps, for several k.

    ε ← ε + (ρ/k) · dual of ∇L(w + ε), k times from ε = 0, over the whole data set: what SAM sees
    with k inner steps, a lower bound on `sharpness`.

    Args:
        problem: what to measure.
        rho: radius ρ, in the units of the weights.
        p: order of the norm, at least 1; ``math.inf`` is allowed.
        steps: numbers of steps, ascending, each at least 1.
        seed: of dropout masks, in train mode.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The rises; infinite or NaN where the loss overflows. Cost: one gradient, k − 1 more for each
        climb of k steps, and a forward pass at its end.

    Raises:
        InvalidArgumentError: if ρ is not above zero, p is below 1, or the steps are not whole,
            ascending and at least 1.

    Reference: Foret, Kleiner, Mobahi, Neyshabur 2021, arXiv 2010.01412, section C.6, table 11.
    """
    check_problem(problem)
    ball = Ball(float(rho), float(p))
    counts = [int(k) for k in steps]
    rising = all(a < b for a, b in itertools.pairwise(counts))
    if not counts or counts[0] < 1 or not rising or counts != list(steps):
        msg = (
            "steps must be whole numbers in ascending order, each at least 1, such as (1, 2, 5), "
            f"got {list(steps)!r}"
        )
        raise InvalidArgumentError(msg)
    settings = {"rho": ball.rho, "p": ball.p, "steps": counts, "seed": seed}

    def measure(work: Work) -> dict[str, Any]:
        evaluator = work.evaluator
        objective = BallObjective(evaluator, ball, count=work.count)
        ends = [_climb(objective, k) for k in counts]
        rises = [evaluator.loss(evaluator.origin + end).value - objective.loss for end in ends]
        return {
            "rho": ball.rho,
            "p": ball.p,
            "loss": objective.loss,
            "steps": np.array(counts, dtype=np.int64),
            "rises": np.array(rises),
            "norms": np.array([ball.norm(end) for end in ends]),
        }

    run = Run(study=study, seed=seed, progress=progress)
    return run.record(StepwiseSharpness, problem, settings, measure, what="climbs", unit="gradient")


def _climb(origin: BallObjective, k: int) -> Tensor:
    step = Ball(origin.ball.rho / k, origin.ball.p)
    epsilon, gradient = origin.point.epsilon, origin.point.gradient
    for j in range(k):
        if j:
            gradient = origin.objective(epsilon)[1]
        if not bool(torch.isfinite(gradient).all()):
            break
        epsilon = epsilon + step.dual(gradient)
    return epsilon
