"""The ball ‖ε‖ₚ ≤ ρ that sharpness is measured in: norm, dual maximiser, projection."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import norm

_BLOCK = 2**15  # numbers converted to float64 at a time


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
            The norm, summed in float64.
        """
        return _norm(epsilon, self.p)

    def dual_norm(self, gradient: Tensor) -> float:
        """Return ‖g‖_q, so that max gᵀε over the ball is ρ‖g‖_q.

        Args:
            gradient: shape (n,).

        Returns:
            The norm, summed in float64.
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
        if self.p == 2:
            return gradient * (self.rho / size)
        step = torch.empty_like(gradient)
        for part in _blocks(len(gradient)):
            unit = gradient[part].double() / size
            step[part] = self.rho * unit.sign() * unit.abs().pow(self.q - 1)
        return step

    def project(self, epsilon: Tensor) -> Tensor:
        """Return the nearest point of the ball in Euclidean distance (p = 1, 2, ∞).

        Args:
            epsilon: shape (n,).

        Returns:
            The projection, shape (n,); for other p the point scaled back to the ball, which is
            feasible but not the nearest.
        """
        return self.project_(epsilon.clone())

    def project_(self, epsilon: Tensor) -> Tensor:
        """Do the same in the memory of the argument.

        Args:
            epsilon: shape (n,), overwritten.

        Returns:
            ``epsilon``.
        """
        if math.isinf(self.p):
            return epsilon.clamp_(-self.rho, self.rho)
        size = self.norm(epsilon)
        if size <= self.rho:
            return epsilon
        if self.p == 1:
            return _soft_threshold_(epsilon, self.rho)
        return epsilon.mul_(self.rho / size)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(low, low + _BLOCK) for low in range(0, n, _BLOCK))


def _norm(vector: Tensor, order: float) -> float:
    """Return ‖vector‖ of any order, in float64."""
    if order == 2:
        return norm(vector)
    if order in {1, math.inf}:
        return float(torch.linalg.vector_norm(vector, order, dtype=torch.float64))
    # Scaled first: |v|^100 of a small entry would underflow.
    largest = float(torch.linalg.vector_norm(vector, math.inf))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    powers = ((vector[part].double() / largest).abs_() for part in _blocks(len(vector)))
    total = math.fsum(float(part.pow_(order).sum()) for part in powers)
    return float(largest * total ** (1 / order))


def _soft_threshold_(epsilon: Tensor, rho: float) -> Tensor:
    """Project onto the ℓ1 ball: the threshold t with Σ max(|εᵢ| − t, 0) = ρ (Michelot 1986)."""
    sizes, threshold, n_above = epsilon.abs(), -1.0, 0
    while True:
        above = sizes > threshold
        if (n := int(above.sum())) == n_above or not n:
            return epsilon.sign_().mul_(sizes.sub_(threshold).clamp_min_(0))
        n_above = n
        threshold = (float(sizes[above].sum(dtype=torch.float64)) - rho) / n
