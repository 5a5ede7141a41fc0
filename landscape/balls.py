"""The ball ‖ε‖ₚ ≤ ρ that sharpness is measured in: norm, dual maximiser, projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError


@dataclass(frozen=True)
class Ball:
    """All ε with ‖ε‖ₚ ≤ ρ.

    Attributes:
        rho: radius, above zero.
        p: order of the norm, at least 1; infinity is allowed.
    """

    rho: float
    p: float = 2.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho) and self.rho > 0):
            msg = f"rho must be a finite number above zero, got {self.rho!r}"
            raise InvalidArgumentError(msg)
        if math.isnan(self.p) or self.p < 1:
            msg = f"p must be at least 1 (inf is allowed), got {self.p!r}"
            raise InvalidArgumentError(msg)

    @property
    def q(self) -> float:
        """Order of the dual norm, 1/p + 1/q = 1."""
        if self.p == 1:
            return math.inf
        return 1.0 if math.isinf(self.p) else self.p / (self.p - 1)

    def norm(self, epsilon: Tensor) -> float:
        """Return ‖ε‖ₚ.

        Args:
            epsilon: shape (n,).

        Returns:
            The norm, computed in float64.
        """
        return _norm(epsilon, self.p)

    def dual_norm(self, gradient: Tensor) -> float:
        """Return ‖g‖_q, so that max gᵀε over the ball is ρ‖g‖_q.

        Args:
            gradient: shape (n,).

        Returns:
            The norm, computed in float64.
        """
        return _norm(gradient, self.q)

    def dual(self, gradient: Tensor) -> Tensor:
        """Return a maximiser of gᵀε over the ball: the step of SAM.

        ε = ρ sign(g) |g|^(q−1) / ‖g‖_q^(q−1); for p = ∞ ρ sign(g); for p = 1 all of ρ on one
        coordinate with the largest |g| (Foret et al. 2021, eq. 2, and its limits).

        Args:
            gradient: shape (n,).

        Returns:
            ε with ‖ε‖ₚ = ρ, shape (n,); zero for a zero gradient.
        """
        size = self.dual_norm(gradient)
        if size == 0.0:
            return torch.zeros_like(gradient)
        if self.p == 1:
            step = torch.zeros_like(gradient)
            top = gradient.abs().argmax()
            step[top] = self.rho * gradient[top].sign()
            return step
        if math.isinf(self.p):
            return self.rho * gradient.sign()
        unit = gradient.double() / size
        return (self.rho * unit.sign() * unit.abs().pow(self.q - 1)).to(gradient.dtype)

    def project(self, epsilon: Tensor) -> Tensor:
        """Return the nearest point of the ball in Euclidean distance (p = 1, 2, ∞).

        Args:
            epsilon: shape (n,).

        Returns:
            The projection, shape (n,); for other p the point scaled back to the ball, which is
            feasible but not the nearest.
        """
        if math.isinf(self.p):
            return epsilon.clamp(-self.rho, self.rho)
        size = self.norm(epsilon)
        if size <= self.rho:
            return epsilon
        if self.p == 1:
            return _soft_threshold(epsilon, self.rho)
        return epsilon * (self.rho / size)


def _norm(vector: Tensor, order: float) -> float:
    """Return ‖vector‖ of any order, in float64."""
    if order in {1, 2, math.inf}:
        return float(torch.linalg.vector_norm(vector, order, dtype=torch.float64))
    # Scaled first: |v|^100 of a small entry would underflow.
    largest = float(torch.linalg.vector_norm(vector, math.inf))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    scaled = vector.double() / largest
    return largest * float(torch.linalg.vector_norm(scaled, order))


def _soft_threshold(epsilon: Tensor, rho: float) -> Tensor:
    """Project onto the ℓ1 ball by sorting (Duchi et al. 2008)."""
    ordered = epsilon.abs().double().sort(descending=True).values
    excess = ordered.cumsum(0) - rho
    counts = torch.arange(1, len(ordered) + 1, dtype=torch.float64, device=epsilon.device)
    last = int((ordered * counts > excess).nonzero()[-1])
    threshold = (excess[last] / (last + 1)).to(epsilon.dtype)
    return epsilon.sign() * (epsilon.abs() - threshold).clamp_min(0)
