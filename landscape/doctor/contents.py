"""Checks of what is in the data, in the weights and in the outputs of a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from landscape.doctor.context import DiagnosticContext, check, not_applicable
from landscape.errors import LandscapeError
from landscape.evaluate import Evaluator
from landscape.problem._filters import filters, is_vector, owner_of
from landscape.problem.data import tensors_in, values_of
from landscape.results.diagnoses import Check
from landscape.wording import number, with_error

_FEW = 100  # examples, of which a mean has an error of a tenth of the spread
_APART = 100.0  # ratio of the gains of two layers
_GAP = 2.0  # held-out loss over the loss
_WEIGHT_DECAY = 5e-4
_RADII = (0.05, 0.2)

_SURE = 1e-3  # loss of an example below which it is learned by heart
_FLAT = 0.02  # mean curvature of the softmax, 1 − Σ p²; at a loss of L it is about 2 L
_MOSTLY = 0.5
_BEYOND = 4.0  # rise at a distance over what gradient and curvature predict


def data(context: DiagnosticContext) -> Check:
    """Count the examples, and look for inputs that are NaN or all the same. Cost: none."""
    batches, n_parameters = context.problem.batches, context.problem.space.n
    bad = entries = 0
    low, high = math.inf, -math.inf
    for tensor in _inputs(context):
        finite = torch.isfinite(tensor)
        entries += tensor.numel()
        bad += int((~finite).sum())
        if finite.any():
            low = min(low, float(tensor[finite].min()))
            high = max(high, float(tensor[finite].max()))
    numbers = {
        "examples": float(batches.n_examples),
        "parameters": float(n_parameters),
        "not_finite": float(bad),
        "lowest_input": low,
        "highest_input": high,
    }
    share = number(n_parameters / batches.n_examples)
    text = f"{batches.n_examples:,} examples; {n_parameters:,} parameters, {share} for each of them"
    if entries:
        text += f"; inputs from {number(low)} to {number(high)}"
    if bad:
        text += f"; {bad:,} of {entries:,} input values are NaN or infinite"
        return check("warning", text, numbers, "remove or repair these examples")
    if entries > 1 and low >= high:
        advice = "look at how the data are read and scaled: the network sees nothing in them"
        return check("warning", f"{text}: all inputs are the same number", numbers, advice)
    if batches.n_examples < _FEW:
        text += ": so few say little about others"
        return check("note", text, numbers, "measure on more examples")
    return check("fine", text, numbers)


def held_out(context: DiagnosticContext) -> Check:
    """Measure the loss on other data. Cost: one forward pass over them."""
    if context.held_out is None:
        return not_applicable("none were given")
    own = context.finite_loss
    state = context.problem.state()
    buffers = {name: state[name] for name, _ in context.problem.model.named_buffers()}
    with Evaluator(context.held_out, seed=context.seed) as evaluator:
        other = evaluator.loss(context.evaluator.origin, buffers=buffers)
    split = context.held_out.split
    numbers = {"loss": own, "held_out_loss": other.value, "held_out_loss_se": other.se}
    numbers |= {f"held_out_{name}": value for name, value in other.metrics.items()}
    text = f"{split} loss {with_error(other.value, other.se)}, against {number(own)}"
    ours = context.loss.metrics
    text += "".join(
        f"; {name} {number(value)}, against {number(ours.get(name, math.nan))}"
        for name, value in other.metrics.items()
    )
    error = math.hypot(*(se for se in (other.se, context.loss.se) if math.isfinite(se)), 0.0)
    large = other.value > own + (_GAP - 1) * abs(own) and other.value - own > 2 * error
    if math.isfinite(other.value) and not large:
        return check("fine", text, numbers)
    advice = (
        "a loss near zero flattens the landscape of the training data: look at the held-out "
        "surface too (landscape line --held-out)"
    )
    return check("note", f"{text}: fitted more closely than it generalises", numbers, advice)


def weights(context: DiagnosticContext) -> Check:
    """Look for tensors and filters of zeros, and for layers far apart in scale. Cost: none."""
    problem = context.problem
    tensors = problem.space.unflatten(problem.weights.double())
    not_finite = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    gains, zero, dead = {}, [], 0
    for name, tensor in tensors.items():
        owner = owner_of(problem.model, name)
        if is_vector(tensor, *owner):
            continue
        rows = filters(tensor, *owner)
        if not rows.any():
            zero.append(name)
            continue
        dead += int((~rows.any(dim=1)).sum())
        # Root mean square times √fan-in: about 1 to 2 for layers that keep the scale of a signal.
        gains[name] = float(rows.square().mean().sqrt()) * math.sqrt(rows.shape[1])
    apart = max(gains.values()) / min(gains.values()) if gains else 1.0
    n_zero = sum(int((tensor == 0).sum()) for tensor in tensors.values())
    numbers = {
        "zero_tensors": float(len(zero)),
        "zero_filters": float(dead),
        "zero_weights": n_zero / problem.space.n,
        "scale_ratio": apart,
        **{f"gain {name}": gain for name, gain in gains.items()},
    }
    text = (
        f"{n_zero / problem.space.n:.1%} of the weights are exactly zero, {dead} filters among "
        f"them; the scales of the layers differ by a factor of {number(apart)}"
    )
    advice = []
    if not_finite:
        text += f"; NaN or infinity in {', '.join(not_finite[:5])}"
        advice.append("choose another checkpoint")
    if zero:
        text += f"; all zero: {', '.join(zero[:5])}"
        advice.append("was the whole model saved and loaded? a layer of zeros passes nothing on")
    if dead:
        advice.append("zero filters do not move in adaptive balls and filter-normalised directions")
    if apart > _APART:
        low, high = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
        text += f" (smallest: {low}, largest: {high})"
        advice.append("one ρ for all layers is large for some of them: use adaptive measures")
    verdict = "warning" if zero or not_finite else "note" if advice else "fine"
    return check(verdict, text, numbers, "; ".join(advice))


def regulariser(context: DiagnosticContext) -> Check:
    """Compare the loss with a usual regulariser ½ λ ‖w‖². Cost: none."""
    own = context.finite_loss
    norm = float(torch.linalg.vector_norm(context.evaluator.origin, dtype=torch.float64))
    penalty = _WEIGHT_DECAY / 2 * norm**2
    numbers = {"norm": norm, "penalty": penalty, "loss": own}
    text = (
        f"norm of the weights {number(norm)}: with a weight decay of {_WEIGHT_DECAY:g} the "
        f"regulariser is {number(penalty)}, the loss {number(own)}"
    )
    if penalty <= abs(own):
        return check("fine", text, numbers)
    advice = (
        "if it was trained with weight decay, the regulariser ruled the end of training: the "
        "minimum is one of the sum (landscape line --weight-decay shows both)"
    )
    return check("note", f"{text}: what is measured is the loss alone, without it", numbers, advice)


def _inputs(context: DiagnosticContext) -> Iterator[Tensor]:
    """Give the floating-point tensors of the batches, targets left out where they are told."""
    pairs = context.problem.loss.splits
    for batch in context.problem.batches:
        part = batch[0] if pairs else batch
        yield from (values_of(t) for t in tensors_in(part) if t.is_floating_point())


def saturation(context: DiagnosticContext) -> Check:
    """Measure how sure the outputs are, and what the loss does beyond the curvature.

    With cross-entropy the Gauss-Newton matrix is Jᵀ (diag p − p pᵀ) J, and its middle vanishes as
    the probabilities p go to 0 and 1, whatever the network does: a network that has learned noisy
    labels by heart has a small largest eigenvalue and a large sharpness.
    """
    own = context.finite_loss
    found = _of_data(context)
    if found is None:
        return not_applicable("only for classes: logits of shape (n, classes, …) and labels")
    n = float(found["n"])
    numbers = {key: float(value) / n for key, value in found.items() if key != "n"}
    text = (
        f"mean largest probability {number(numbers['largest_probability'])}, "
        f"{numbers['learned']:.0%} of the examples with a loss below {_SURE:g}, mean norm of the "
        f"logits {number(numbers['logit_norm'])}"
    )
    beyond = 0.0
    try:
        numbers |= _rises(context, own)
    except LandscapeError as error:
        text += f"; nothing is known of the curvature ({error})"
    else:
        beyond = max(numbers[f"beyond {rho:g}"] for rho in _RADII)
        text += (
            f"; at ρ = {_RADII[-1]:g} along the top eigenvector the loss rises by "
            f"{number(numbers[f'rise {_RADII[-1]:g}'])}, where its curvature says "
            f"{number(numbers[f'predicted {_RADII[-1]:g}'])}"
        )
    flat = numbers["softmax_curvature"] < _FLAT
    if not flat and numbers["learned"] < _MOSTLY:
        return check("fine", text, numbers)
    return check(
        "warning" if flat and beyond > _BEYOND else "note",
        f"{text}: the outputs saturate, and curvature understates sharpness",
        numbers,
        "compare sharpness at a finite ρ in place of eigenvalues, with normalised logits "
        "too, and only checkpoints of about the same loss",
    )


def _rises(context: DiagnosticContext, own: float) -> dict[str, float]:
    """Measure the larger rise of the two ways along the top eigenvector, and predict it."""
    value = float(context.spectrum.values[0])
    vector = context.spectrum.vectors[0].to(context.evaluator.origin)
    slope = abs(float(vector.double() @ context.gradient.double()))
    found = {}
    for rho in _RADII:
        there = (context.evaluator.origin.add(vector, alpha=sign * rho) for sign in (1, -1))
        rise = max(context.evaluator.loss(point).value for point in there) - own
        predicted = rho * slope + rho**2 * value / 2
        found[f"rise {rho:g}"], found[f"predicted {rho:g}"] = rise, predicted
        found[f"beyond {rho:g}"] = rise / predicted if predicted > 0 else 0.0
    return found


def _of_data(context: DiagnosticContext) -> dict[str, Tensor] | None:
    """Sum over all examples what their probabilities say; None if there are none."""
    evaluator = context.evaluator

    def body(model: nn.Module, batch: Any) -> dict[str, Tensor] | None:
        arguments = evaluator.problem.loss(model, batch)[1]
        return _of_batch(*arguments) if evaluator.problem.loss.splits else None

    evaluator.passes["forwards"] += 1
    with torch.no_grad():
        parts = list(evaluator.over(None, enumerate(evaluator.problem.batches), body))
    if any(part is None for part in parts):
        return None
    sums = [part for part in parts if part is not None]
    return {name: torch.stack([part[name] for part in sums]).sum() for name in sums[0]}


def _of_batch(output: Any, target: Any) -> dict[str, Tensor] | None:
    classes = isinstance(target, Tensor) and not target.is_floating_point()
    if not classes or not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if output.ndim < 2 or output.shape[1] < 2 or output[:, 0].shape != target.shape:
        return None
    logits = output.movedim(1, -1).reshape(-1, output.shape[1]).double()
    labels = target.reshape(-1)
    counted = (labels >= 0) & (labels < output.shape[1])  # the others are ignored by the loss
    logits, labels = logits[counted], labels[counted]
    logs = torch.log_softmax(logits, dim=1)
    probabilities = logs.exp()
    losses = -logs.gather(1, labels[:, None].long())[:, 0]
    return {
        "n": torch.tensor(float(len(labels)), dtype=torch.float64, device=output.device),
        "largest_probability": probabilities.amax(dim=1).sum(),
        "softmax_curvature": (1 - probabilities.square().sum(dim=1)).sum(),
        "learned": (losses < _SURE).double().sum(),
        "accuracy": (logits.argmax(dim=1) == labels).double().sum(),
        "logit_norm": (logits - logits.mean(dim=1, keepdim=True)).norm(dim=1).sum(),
    }
