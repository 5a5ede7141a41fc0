"""Checks of whether the checkpoint is a minimum at all: gradient and lowest curvature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from landscape.doctor.context import DiagnosticContext, check
from landscape.errors import LandscapeError
from landscape.operators import pieces
from landscape.results.diagnoses import Check
from landscape.wording import number

RHO = 0.05
"""A usual radius of the ball, SAM's own."""

_GROUPS = 16
_STEPS = 6
_FALL, _SLIGHT_FALL = 0.1, 0.01  # of the loss, relative
_SADDLE, _SLIGHT_SADDLE = 0.1, 0.01  # of the largest eigenvalue


def gradient(context: DiagnosticContext) -> Check:
    """Compare the slope with its noise and with the curvature, and walk down a few steps."""
    slope = _norm(context.gradient)
    noise = gradient_noise(context)
    numbers = {"norm": slope, "noise": noise}
    text = f"norm {number(slope)}"
    if math.isfinite(noise):
        text += f", another sample would move it by about {number(noise)}"
    try:
        curvature = context.curvature
    except LandscapeError as error:
        text += f"; no second derivative to compare it with ({error})"
        return check("note", text, numbers)
    linear, quadratic = RHO * slope, RHO**2 * curvature / 2
    fall = _fall(context, curvature)
    numbers |= {"linear": linear, "quadratic": quadratic, "fall": fall}
    text += (
        f"; at ρ = {RHO:g} the slope alone gives {number(linear)}, the curvature "
        f"{number(quadratic)}; {_STEPS} gradient steps lower the loss by {fall:.1%}"
    )
    if fall <= _SLIGHT_FALL and linear <= quadratic:
        return check("fine", text, numbers)
    advice = (
        "train on, or measure the loss that was trained on (regulariser, label smoothing); the "
        "cross-entropy of data learned by heart has no minimum at all, and falls on"
    )
    if linear > quadratic:
        advice += "; at this ρ the sharpness is a slope: choose a larger one"
        if curvature > 0:
            advice += f" (above {number(2 * slope / curvature)} the curvature takes over)"
    steep = fall > _FALL and linear > quadratic
    verdict = "warning" if steep else "note"
    text += ": not a minimum of this loss" if steep else ""
    return check(verdict, text, numbers, advice)


def gradient_noise(context: DiagnosticContext) -> float:
    """Estimate how far the gradient would move with another sample of as many examples.

    √(Σ ω_g ‖m_g − m‖² / (G − 1)) over G groups of examples with mean gradients m_g and shares ω_g
    of the weight: the standard error of the gradient, all entries together.
    """
    evaluator, problem = context.evaluator, context.problem
    size = -(-problem.batches.n_examples // _GROUPS) if evaluator.divisible else None
    total, squares, weights = torch.zeros_like(evaluator.origin, dtype=torch.float64), 0.0, []
    evaluator.passes["gradients"] += 1
    for piece in pieces(problem, size):
        terms, gradient = evaluator.batch_gradient(None, piece.batch, piece.number)
        group = gradient.double()
        weight = float(problem.batching.size(piece.batch) if problem.loss.sums else terms.weight)
        if weight > 0:
            total += group
            squares += float(group @ group) / weight
            weights.append(weight)
    if len(weights) < 2:
        return math.nan
    whole = sum(weights)
    spread = max(squares / whole - float(total @ total) / whole**2, 0.0)
    return math.sqrt(spread / (len(weights) - 1)) * (whole if problem.loss.sums else 1.0)


def lowest_curvature(context: DiagnosticContext) -> Check:
    """Look for directions in which the loss falls to both sides. Cost: shared with the gradient."""
    found = context.spectrum
    high, low = float(found.values[0]), float(found.values[-1])
    residual = float(found.residuals[-1])
    numbers = {"largest": high, "smallest": low, "residual": residual}
    text = (
        f"the smallest eigenvalue is at most {number(low)}, the largest at least {number(high)} "
        "(a few steps of Lanczos)"
    )
    # A Rayleigh quotient is never below the smallest eigenvalue: what is negative here is proof.
    share = -low / high if high > 0 else math.inf if low < 0 else 0.0
    slight = share <= _SLIGHT_SADDLE
    if slight and residual <= _SLIGHT_SADDLE * abs(high):
        return check("fine", text, numbers)
    if slight:
        text += f"; its residual is {number(residual)}, so that a lower one may have been missed"
        advice = "to know, ask for the lowest by themselves: landscape eigs --both-ends"
        return check("note", text, numbers, advice)
    advice = (
        "train on; largest eigenvalue and trace leave out how far the loss falls along the "
        "others: look at both ends (landscape eigs --both-ends) and at the density"
    )
    if share > _SADDLE:
        text += ": a saddle, no minimum"
    verdict = "warning" if share > _SADDLE else "note"
    return check(verdict, text, numbers, advice)


def _fall(context: DiagnosticContext, curvature: float) -> float:
    """Walk down with steps of 1/|λ|, and return the share of the loss that was lost."""
    start = lowest = context.finite_loss
    slope, point = context.gradient, context.evaluator.origin
    step = 1 / curvature if curvature > 0 else 0.0
    for _ in range(_STEPS):
        if step * _norm(slope) == 0.0:
            break
        there = point.add(slope, alpha=-step)
        value, new_slope = context.evaluator.gradient(there)
        if value.value < lowest:
            lowest, slope, point = value.value, new_slope, there
        else:
            step /= 4  # it curves more on the way than where it began
    return (start - lowest) / abs(start) if start else 0.0


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
