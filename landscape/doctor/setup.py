"""Checks of how the problem is evaluated: determinism, batching, mode, BatchNorm, derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from landscape.doctor.context import DiagnosticContext, check, not_applicable
from landscape.errors import LandscapeError, LossError
from landscape.evaluate import (
    Evaluator,
    LayerTrial,
    LossSums,
    check_hessian,
    in_type,
    layer_trials,
    normalisers,
    recalibrated,
    rounding_of_products,
    sample,
)
from landscape.results.diagnoses import Check
from landscape.wording import number, with_error

_SHIFT = 0.5  # of a running mean, in standard deviations of its channel
_STRETCH = 2.0  # of a running variance
_CHANGE = 0.1  # of the loss, relative
_RIGHT = 1e-4  # error of a derivative, relative, in float64


def loss(context: DiagnosticContext) -> Check:
    """Say what the loss is, and whether anything can be measured from there."""
    found = context.loss
    numbers = {"loss": found.value, "loss_se": found.se, **found.metrics}
    text = f"loss {with_error(found.value, found.se)}"
    text += "".join(f", {name} {number(value)}" for name, value in found.metrics.items())
    doubts = context.problem.loss.doubts
    if not math.isfinite(found.value):
        advice = "look for NaN in the data and in the weights (below); choose another checkpoint"
        return check("warning", f"{text}: nothing can be measured from there", numbers, advice)
    if doubts:
        return check("warning", f"{text}: it may not be what is meant", numbers, ". ".join(doubts))
    return check("fine", text, numbers)


def determinism(context: DiagnosticContext) -> Check:
    """Evaluate twice, and compare the bits. Cost: one forward and one gradient pass."""
    first = context.finite_loss
    second = context.evaluator.loss().value
    gradients = context.gradient, context.evaluator.gradient()[1]
    moved = float(torch.linalg.vector_norm(gradients[1] - gradients[0], dtype=torch.float64))
    size = float(torch.linalg.vector_norm(gradients[0], dtype=torch.float64))
    relative = moved / size if size else moved
    numbers = {"loss_difference": abs(second - first), "gradient_difference": relative}
    if first == second and moved == 0.0:
        text = "two evaluations give the same bits, of the loss and of the gradient"
        return check("fine", text, numbers)
    rounding = math.sqrt(torch.finfo(context.problem.dtype).eps)
    large = relative > rounding or abs(second - first) > rounding * abs(first)
    return check(
        "warning" if large else "note",
        f"two evaluations differ: the loss by {number(abs(second - first))}, the gradient "
        f"by {relative:.1e} of its norm",
        numbers,
        "make the forward pass deterministic (torch.use_deterministic_algorithms), or take "
        "differences below these numbers for noise",
    )


def batching(context: DiagnosticContext) -> Check:
    """Evaluate every batch in two halves. Cost: one forward pass."""
    whole = context.finite_loss
    evaluator, batches = context.evaluator, context.problem.batches
    batching = context.problem.batching
    if batches.n_examples == batches.n_batches:
        return not_applicable("every batch holds one example: there is none to cut")
    if not any(map(batching.can_split, batches)):
        return not_applicable("only their owner can cut these batches")
    sums = LossSums(context.problem.loss.sums)
    evaluator.passes["forwards"] += 1

    def halves() -> Iterator[Any]:
        for batch in batches:
            if batching.can_split(batch):
                yield from batching.split(batch, batching.size(batch) // 2)
            else:
                yield batch

    with torch.no_grad():
        for terms, _ in evaluator.over(None, enumerate(halves())):
            sums.add(terms)
    difference = abs(sums.result().value - whole)
    # A loss near zero is a difference of logits of size 1: their rounding is what is left of it.
    eps = torch.finfo(context.problem.dtype).eps
    bound = max(math.sqrt(eps) * abs(whole), 100 * eps)
    numbers = {"loss": whole, "in_halves": sums.result().value, "difference": difference}
    if difference <= bound:
        text = f"with batches of half the size the loss is the same, to {difference:.1e}"
        return check("fine", text, numbers)
    return check(
        "warning",
        f"with batches of half the size the loss is {number(sums.result().value)} in place "
        f"of {number(whole)}: what is measured depends on how the data are cut",
        numbers,
        "use eval mode (BatchNorm), return losses per example or a pair (sum, weight); if "
        "examples interact on purpose, keep one batch size for all checkpoints",
    )


def mode(context: DiagnosticContext) -> Check:
    """Say which layers behave in another way while they are trained."""
    model = context.problem.model
    dropouts = [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p > 0]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    numbers = {"dropout_layers": float(len(dropouts)), "batchnorm_layers": float(len(norms))}
    which = f"{len(norms)} BatchNorm and {len(dropouts)} dropout layers"
    if context.problem.mode == "eval":
        text = f"eval mode: {which}, with running statistics and no dropout"
        return check("fine", text, numbers)
    text = f"train mode: {which}; statistics of each batch, dropout masks fixed by the seed"
    advice = "measure in eval mode, unless the loss of training itself is meant"
    if dropouts:
        advice += "; the sharpness of one draw of masks is not that of the network: try more seeds"
    return check("warning" if dropouts else "note", text, numbers, advice)


def batchnorm(context: DiagnosticContext) -> Check:
    """Compare the running statistics with those of the data. Cost: two forward passes."""
    layers = normalisers(context.problem.model)
    if not layers:
        return not_applicable("no layer with running statistics")
    if context.problem.mode == "train":
        return not_applicable("in train mode the running statistics are not used")
    own = context.finite_loss
    fresh = recalibrated(context.evaluator, context.evaluator.origin)
    anew = context.evaluator.loss(buffers=fresh).value
    shifts, stretches, state = {}, {}, context.problem.state()
    for name, layer in layers.items():
        prefix = f"{name}." if name else ""
        mean, variance = (fresh[f"{prefix}running_{part}"].double() for part in ("mean", "var"))
        spread = state[f"{prefix}running_var"].to(variance) + layer.eps
        shift = (mean - state[f"{prefix}running_mean"].to(mean)).abs() / spread.sqrt()
        shifts[name] = float(shift.max())
        stretches[name] = float(((variance + layer.eps) / spread).log().abs().max().exp())
    worst = max(shifts, key=lambda name: max(shifts[name] / _SHIFT, stretches[name] / _STRETCH))
    numbers = {"loss": own, "loss_recalibrated": anew}
    numbers |= {f"shift {name}": value for name, value in shifts.items()}
    numbers |= {f"stretch {name}": value for name, value in stretches.items()}
    text = (
        f"running means are off by at most {number(max(shifts.values()))} standard deviations, "
        f"variances by a factor of {number(max(stretches.values()))}; the loss is {number(own)} "
        f"with the checkpoint's statistics, {number(anew)} with those of the data"
    )
    off = max(shifts.values()) > _SHIFT or max(stretches.values()) > _STRETCH
    changed = not abs(anew - own) <= _CHANGE * abs(own)
    if not off and not changed:
        return check("fine", text, numbers)
    return check(
        "warning" if changed and off else "note",
        f"{text}; furthest off: {worst or 'the model itself'}",
        numbers,
        "gather the statistics anew from the training data without augmentation, and "
        "measure that checkpoint; lines and surfaces can (--statistics recalibrated)",
    )


def derivatives(context: DiagnosticContext) -> Check:
    """Compare gradients and second derivatives with differences. Cost: a few examples."""
    evaluator = context.evaluator
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
    tried = f"{len(trials)} layers tried in {str(dtype)[6:]} on a few examples"
    text = f"{tried}; off: {'; '.join(map(_row, wrong))}" if wrong else tried
    try:
        reason = check_hessian(evaluator)
    except LossError as error:
        return check(
            "warning",
            f"{text}; {error}",
            numbers,
            "measure the loss alone (line, surface, average), or replace the operation",
        )
    if reason:
        return check(
            "note",
            f"{text}; {reason}",
            numbers,
            "products are made by differences of gradients, at 4 gradients each",
        )
    numbers["rounding"] = rounding_of_products(evaluator)
    # A layer alone may have a kink where it was tried; the model as a whole has passed.
    text = (
        f"{tried}; gradient and Hessian product agree with differences (rounding of a product "
        f"{numbers['rounding']:.0e})"
    )
    return check("fine", text, numbers)


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
