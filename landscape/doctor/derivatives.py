"""Check of the derivatives that autograd gives, as a whole and of each layer."""

from __future__ import annotations

import math

import torch

from landscape.doctor.context import DiagnosticContext
from landscape.errors import LandscapeError, LossError
from landscape.evaluate import (
    Evaluator,
    LayerTrial,
    check_hessian,
    in_type,
    layer_trials,
    rounding_of_products,
    sample,
)
from landscape.results.diagnoses import Check

_RIGHT = 1e-4  # relative, in float64
_NAME = "derivatives"


def derivatives(patient: DiagnosticContext) -> Check:
    """Compare gradients and second derivatives with differences. Cost: a few examples."""
    evaluator = patient.evaluator
    trials, dtype = _trials(evaluator)
    numbers = {
        f"{what} {trial.name or 'the model'}": getattr(trial, what)
        for trial in trials
        for what in ("gradient", "second")
    }
    bound = _RIGHT if dtype == torch.float64 else 0.1
    wrong = [t for t in trials if t.failure or max(t.gradient, t.second) > bound]
    inside = {t.name.rpartition(".")[0] for t in wrong if t.name}
    wrong = [t for t in wrong if t.name not in inside]  # the innermost layers are the cause
    text = f"{len(trials)} layers tried in {str(dtype)[6:]} on a few examples"
    if wrong:
        text += f"; off: {'; '.join(map(_row, wrong))}"
    try:
        reason = check_hessian(evaluator)
    except LossError as error:
        return Check(
            name=_NAME,
            verdict="warning",
            finding=f"{text}; {error}",
            advice="measure the loss alone (line, surface, average), or replace the operation",
            numbers=numbers,
        )
    if reason:
        return Check(
            name=_NAME,
            verdict="note",
            finding=f"{text}; {reason}",
            advice="products are made by differences of gradients, at 4 gradients each",
            numbers=numbers,
        )
    numbers["rounding"] = rounding_of_products(evaluator)
    text += "; gradient and Hessian product agree with differences (rounding of a product "
    text += f"{numbers['rounding']:.0e})"
    return Check(name=_NAME, verdict="fine", finding=text, numbers=numbers)


def _trials(evaluator: Evaluator) -> tuple[list[LayerTrial], torch.dtype]:
    """Try each layer in float64, or in the problem's own type where the model needs that."""
    problem = evaluator.problem
    few = sample(evaluator)
    try:
        with in_type(evaluator, torch.float64):
            return layer_trials(evaluator, few, torch.float64), torch.float64
    except LandscapeError:
        return layer_trials(evaluator, few, problem.dtype), problem.dtype


def _row(trial: LayerTrial) -> str:
    name = f"{trial.name or 'the model'} ({trial.kind})"
    if trial.failure:
        return f"{name} has no second derivative ({trial.failure})"
    parts = [
        f"{what} by {value:.1%}"
        for what, value in (("gradient", trial.gradient), ("second derivative", trial.second))
        if math.isfinite(value) and value > 0
    ]
    return f"{name}: {', '.join(parts)}"
