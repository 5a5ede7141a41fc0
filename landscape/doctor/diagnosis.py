"""All checks on one checkpoint, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from landscape.doctor import contents, minimum, setup
from landscape.doctor.context import DiagnosticContext, not_applicable
from landscape.doctor.invariance import invariance
from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.measurement import Run, Work, identity_of
from landscape.problem import Problem, check_problem
from landscape.results import Cost
from landscape.results.diagnoses import Check, Diagnosis
from landscape.study import Study

PRICE = Cost(forwards=25, gradients=10, hvps=55)
"""What `diagnose` takes at most, in passes over the data."""

CHECKS: dict[str, Callable[[DiagnosticContext], Check]] = {
    "loss": setup.loss,
    "determinism": setup.determinism,
    "batching": setup.batching,
    "mode": setup.mode,
    "BatchNorm": setup.batchnorm,
    "derivatives": setup.derivatives,
    "gradient": minimum.gradient,
    "lowest curvature": minimum.lowest_curvature,
    "saturation": contents.saturation,
    "invariance": invariance,
    "data": contents.data,
    "held-out data": contents.held_out,
    "weights": contents.weights,
    "regulariser": contents.regulariser,
}


def diagnose(
    problem: Problem,
    *,
    held_out: Problem | None = None,
    study: Study | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Diagnosis:
    """Check whether a checkpoint and a problem are set up so that sharpness can be trusted.

    In order: is the loss finite, the same twice, and the same in other batches; train or eval
    mode; do BatchNorm's running statistics fit the data; are the derivatives of each layer right;
    is the checkpoint a minimum (gradient, lowest eigenvalue); do the outputs saturate; which
    measures move when the network is rescaled without changing what it computes; what is in the
    data and in the weights; would a regulariser outweigh the loss. A check that cannot be made
    says why, and the others go on.

    Args:
        problem: what to examine.
        held_out: the same model on other data, for the gap between the two.
        study: where the result is kept, and looked up first.
        seed: of every random choice.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The checks, each with a verdict (fine, note, warning, not applicable), what was measured
        and what to do. Cost: at most about 55 Hessian products, 10 gradient and 25 forward
        passes, together about 150 gradient passes.

    Raises:
        InvalidArgumentError: if the held-out problem is of another model.

    >>> import torch
    >>> x = torch.linspace(-1, 1, 200)[:, None]
    >>> problem = Problem(torch.nn.Linear(1, 1), torch.nn.MSELoss(), (x, 2 * x))
    >>> diagnose(problem, progress=False)["gradient"].verdict
    'warning'
    """
    check_problem(problem)
    settings: dict[str, Any] = {"seed": seed}
    if held_out is not None:
        if held_out.space != problem.space:
            msg = (
                "the held-out problem has other parameters than the one that is examined; make it "
                "of the same model, on other data"
            )
            raise InvalidArgumentError(msg)
        held_out = held_out.at(problem)
        settings["held_out"] = {
            "split": held_out.split,
            "data": held_out.batches.fingerprint,
            "problem": identity_of(held_out, study),
            "mode": held_out.mode,
            "dtype": str(held_out.dtype),
        }

    def measure(work: Work) -> dict[str, Any]:
        context = DiagnosticContext(work.evaluator, held_out, seed)
        attempt = work.count(_attempt)
        checks = tuple(attempt(context, name) for name in CHECKS)
        return {"checks": checks, **(vars(context.moved) if context.moved else {})}

    run = Run(study=study, seed=seed, progress=progress)
    return run.record(Diagnosis, problem, settings, measure, what="doctor", unit="check")


def _attempt(context: DiagnosticContext, name: str) -> Check:
    try:
        found = CHECKS[name](context)
    except LandscapeError as error:  # said in the report, where the other checks still help
        found = not_applicable(str(error))
    return dataclasses.replace(found, name=name)
