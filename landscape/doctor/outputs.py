"""Check of the outputs of a classifier: where they saturate, curvature says little."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from landscape.doctor.context import DiagnosticContext, check, not_applicable
from landscape.errors import LandscapeError
from landscape.results.diagnoses import Check
from landscape.wording import number

RADII = (0.05, 0.2)

_SURE = 1e-3  # loss of an example below which it is learned by heart
_FLAT = 0.02  # mean curvature of the softmax, 1 − Σ p²; at a loss of L it is about 2 L
_MOSTLY = 0.5
_BEYOND = 4.0  # rise at a distance over what gradient and curvature predict


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
        beyond = max(numbers[f"beyond {rho:g}"] for rho in RADII)
        text += (
            f"; at ρ = {RADII[-1]:g} along the top eigenvector the loss rises by "
            f"{number(numbers[f'rise {RADII[-1]:g}'])}, where its curvature says "
            f"{number(numbers[f'predicted {RADII[-1]:g}'])}"
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
    for rho in RADII:
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
    kept = (labels >= 0) & (labels < output.shape[1])  # the others are ignored by the loss
    logits, labels = logits[kept], labels[kept]
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
