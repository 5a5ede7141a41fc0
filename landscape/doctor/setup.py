"""Checks of how the problem is evaluated: determinism, batching, mode, BatchNorm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from landscape.doctor.context import DiagnosticContext, not_applicable
from landscape.evaluate import LossSums, normalisers, recalibrated
from landscape.problem._batching import Batching
from landscape.results.diagnoses import Check
from landscape.wording import number, with_error

_SHIFT = 0.5  # of a running mean, in standard deviations of its channel
_STRETCH = 2.0  # of a running variance
_CHANGE = 0.1  # of the loss, relative


def loss(patient: DiagnosticContext) -> Check:
    """Say what the loss is, and whether anything can be measured from there."""
    found = patient.loss
    numbers = {"loss": found.value, "loss_se": found.se, **found.metrics}
    text = f"loss {with_error(found.value, found.se)}"
    text += "".join(f", {name} {number(value)}" for name, value in found.metrics.items())
    if math.isfinite(found.value) and patient.problem.loss.doubts:
        return Check(
            name="loss",
            verdict="warning",
            finding=f"{text}: it may not be what is meant",
            advice=". ".join(patient.problem.loss.doubts),
            numbers=numbers,
        )
    if math.isfinite(found.value):
        return Check(name="loss", verdict="fine", finding=text, numbers=numbers)
    return Check(
        name="loss",
        verdict="warning",
        finding=f"{text}: nothing can be measured from there",
        advice="look for NaN in the data and in the weights (below); choose another checkpoint",
        numbers=numbers,
    )


def determinism(patient: DiagnosticContext) -> Check:
    """Evaluate twice, and compare the bits. Cost: one forward and one gradient pass."""
    first = patient.finite_loss
    second = patient.evaluator.loss().value
    gradients = patient.gradient, patient.evaluator.gradient()[1]
    moved = float(torch.linalg.vector_norm(gradients[1] - gradients[0], dtype=torch.float64))
    size = float(torch.linalg.vector_norm(gradients[0], dtype=torch.float64))
    relative = moved / size if size else moved
    numbers = {"loss_difference": abs(second - first), "gradient_difference": relative}
    if first == second and moved == 0.0:
        text = "two evaluations give the same bits, of the loss and of the gradient"
        return Check(name="determinism", verdict="fine", finding=text, numbers=numbers)
    rounding = math.sqrt(torch.finfo(patient.problem.dtype).eps)
    large = relative > rounding or abs(second - first) > rounding * abs(first)
    return Check(
        name="determinism",
        verdict="warning" if large else "note",
        finding=f"two evaluations differ: the loss by {number(abs(second - first))}, the gradient "
        f"by {relative:.1e} of its norm",
        advice="make the forward pass deterministic (torch.use_deterministic_algorithms), or take "
        "differences below these numbers for noise",
        numbers=numbers,
    )


def batching(patient: DiagnosticContext) -> Check:
    """Evaluate every batch in two halves. Cost: one forward pass."""
    whole = patient.finite_loss
    evaluator, batches = patient.evaluator, patient.problem.batches
    batching = patient.problem.batching
    if batches.n_examples == batches.n_batches:
        return not_applicable("batching", "every batch holds one example: there is none to cut")
    if not any(map(batching.can_split, batches)):
        return not_applicable("batching", "only their owner can cut these batches")
    sums = LossSums(patient.problem.loss.sums)
    evaluator.passes["forwards"] += 1
    halves = enumerate(half for batch in batches for half in _halves(batching, batch))
    with torch.no_grad():
        for terms, _ in evaluator.over(None, halves):
            sums.add(terms)
    difference = abs(sums.result().value - whole)
    # A loss near zero is a difference of logits of size 1: their rounding is what is left of it.
    eps = torch.finfo(patient.problem.dtype).eps
    bound = max(math.sqrt(eps) * abs(whole), 100 * eps)
    numbers = {"loss": whole, "in_halves": sums.result().value, "difference": difference}
    if difference <= bound:
        text = f"with batches of half the size the loss is the same, to {difference:.1e}"
        return Check(name="batching", verdict="fine", finding=text, numbers=numbers)
    return Check(
        name="batching",
        verdict="warning",
        finding=f"with batches of half the size the loss is {number(sums.result().value)} in place "
        f"of {number(whole)}: what is measured depends on how the data are cut",
        advice="use eval mode (BatchNorm), return losses per example or a pair (sum, weight); if "
        "examples interact on purpose, keep one batch size for all checkpoints",
        numbers=numbers,
    )


def _halves(batching: Batching, batch: Any) -> list[Any]:
    if not batching.can_split(batch):
        return [batch]
    return list(batching.split(batch, batching.size(batch) // 2))


def mode(patient: DiagnosticContext) -> Check:
    """Say which layers behave in another way while they are trained."""
    model = patient.problem.model
    dropouts = [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p > 0]
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    numbers = {"dropout_layers": float(len(dropouts)), "batchnorm_layers": float(len(norms))}
    which = f"{len(norms)} BatchNorm and {len(dropouts)} dropout layers"
    if patient.problem.mode == "eval":
        text = f"eval mode: {which}, with running statistics and no dropout"
        return Check(name="mode", verdict="fine", finding=text, numbers=numbers)
    text = f"train mode: {which}; statistics of each batch, dropout masks fixed by the seed"
    advice = "measure in eval mode, unless the loss of training itself is meant"
    if dropouts:
        advice += "; the sharpness of one draw of masks is not that of the network: try more seeds"
    verdict = "warning" if dropouts else "note"
    return Check(name="mode", verdict=verdict, finding=text, advice=advice, numbers=numbers)


def batchnorm(patient: DiagnosticContext) -> Check:
    """Compare the running statistics with those of the data. Cost: two forward passes."""
    layers = normalisers(patient.problem.model)
    if not layers:
        return not_applicable("BatchNorm", "no layer with running statistics")
    if patient.problem.mode == "train":
        return not_applicable("BatchNorm", "in train mode the running statistics are not used")
    own = patient.finite_loss
    fresh = recalibrated(patient.evaluator, patient.evaluator.origin)
    anew = patient.evaluator.loss(buffers=fresh).value
    shifts, stretches, state = {}, {}, patient.problem.state()
    for name, layer in layers.items():
        prefix = f"{name}." if name else ""
        mean, variance = (fresh[f"{prefix}running_{part}"].double() for part in ("mean", "var"))
        kept = state[f"{prefix}running_var"].to(variance) + layer.eps
        shift = (mean - state[f"{prefix}running_mean"].to(mean)).abs() / kept.sqrt()
        shifts[name] = float(shift.max())
        stretches[name] = float(((variance + layer.eps) / kept).log().abs().max().exp())
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
        return Check(name="BatchNorm", verdict="fine", finding=text, numbers=numbers)
    return Check(
        name="BatchNorm",
        verdict="warning" if changed and off else "note",
        finding=f"{text}; furthest off: {worst or 'the model itself'}",
        advice="gather the statistics anew from the training data without augmentation, and "
        "measure that checkpoint; lines and surfaces can (--statistics recalibrated)",
        numbers=numbers,
    )
