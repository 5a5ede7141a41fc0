"""Evidence for a maximiser in a ball: the second-order condition, and the error of the rise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.evaluate import Engine, Evaluator
from landscape.linalg.krylov import dot
from landscape.measurement import error_of_difference
from landscape.sharpness._ascent import Point
from landscape.sharpness._quadratic import QuadraticModel

PRODUCTS = 12
_TOL = 1e-2
_CLEAR = 0.25  # residual over |μ − λ|, so that the sign is clear


@dataclass(frozen=True)
class SecondOrder:
    """The second-order condition at a point d of the sphere ‖d‖₂ = ρ."""

    multiplier: float  # μ = Gᵀd / ρ²
    smallest: float  # smallest eigenvalue of μI − H on the tangent space
    error: float  # residual of that eigenvalue
    direction: Tensor  # its unit eigenvector, shape (n,)

    @property
    def fails(self) -> bool:
        """Whether the loss rises along a tangent, by more than the errors."""
        return self.smallest < -max(self.error, 1e-3 * abs(self.multiplier))


def second_order(
    matvec: Callable[[Tensor], Tensor],
    point: Point,
    rho: float,
    start: Tensor,
    *,
    max_products: int = PRODUCTS,
) -> SecondOrder:
    """Find the smallest eigenvalue of μI − H on the tangent space of the sphere.

    On the sphere a maximum needs (μI − H) ≥ 0 on the tangents; below zero, ε is a saddle.
    """
    epsilon = point.epsilon
    square = dot(epsilon, epsilon)

    def tangent_(v: Tensor) -> Tensor:
        return v.sub_(epsilon, alpha=dot(epsilon, v) / square)

    model = QuadraticModel(
        lambda v: tangent_(matvec(v)),  # the basis is of tangents
        None,
        tangent_(start),
        max_products=min(max_products, max(1, len(epsilon) - 1)),
    )
    multiplier = point.along / rho**2
    model.grow(rho, tol=_TOL)
    if not model.products:  # the sphere has no tangent, or the start is not of it
        return SecondOrder(multiplier, math.inf, 0.0, torch.zeros_like(epsilon))
    while model.top_error > _CLEAR * abs(multiplier - model.top_value) and not model.is_full:
        before = model.products
        model.grow(rho, tol=0.0, max_products=before + 1)
        if model.products == before:
            break
    value, residual, direction = model.top()
    return SecondOrder(multiplier, multiplier - value, residual, direction)


def error_of_rise(evaluator: Evaluator, epsilon: Tensor) -> float:
    """Return the standard error of L(w+ε) − L(w) over the examples, ε being as it is."""
    vectors = [evaluator.origin + epsilon, evaluator.origin]
    after, before = Engine(evaluator).losses(vectors, keep=True)
    return error_of_difference(evaluator.problem, after, before)
