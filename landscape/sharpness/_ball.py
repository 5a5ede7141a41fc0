"""The ball ‖T⁻¹ε‖ₚ ≤ ρ that sharpness is measured in: norm, dual maximiser, projection."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.checks import real
from landscape.errors import InvalidArgumentError, one_of
from landscape.linalg.krylov import norm
from landscape.operators import SCALES, parameter_scale
from landscape.problem import Problem

_BLOCK = 2**15  # numbers converted to float64 at a time


@dataclass(frozen=True)
class Ball:
    """All ε = Td with ‖d‖ₚ ≤ ρ; the methods take d, the coordinates in which it is a plain ball.

    Attributes:
        rho: radius, above zero.
        p: order of the norm, at least 1; infinity is allowed.
        adaptive: the diagonal of T: ``none`` (1), ``elementwise`` (|w| + η) or ``filterwise``.
        eta: η.
    """

    rho: float
    p: float = 2.0
    adaptive: str = "none"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho) and self.rho > 0):
            msg = f"rho must be a finite number above zero, got {self.rho!r}"
            raise InvalidArgumentError(msg)
        if math.isnan(self.p) or self.p < 1:
            msg = f"p must be at least 1 (inf is allowed), got {self.p!r}"
            raise InvalidArgumentError(msg)
        one_of(self.adaptive, SCALES, what="scale of an adaptive ball")
        object.__setattr__(self, "eta", real("eta", self.eta, least=0.0))
        if self.adaptive == "none" and self.eta != 0:
            msg = f"eta = {self.eta!r} belongs to an adaptive ball: give adaptive='elementwise' too"
            raise InvalidArgumentError(msg)

    @property
    def q(self) -> float:
        """Order of the dual norm, 1/p + 1/q = 1."""
        if self.p == 1:
            return math.inf
        return 1.0 if math.isinf(self.p) else self.p / (self.p - 1)

    @property
    def scaling(self) -> dict[str, Any]:
        """What identifies T as a setting; nothing for the plain ball."""
        return {} if self.adaptive == "none" else {"adaptive": self.adaptive, "eta": self.eta}

    def scale(self, problem: Problem) -> Tensor | None:
        """Return the diagonal of T, shape (n,); None for the plain ball."""
        if self.adaptive == "none":
            return None
        return parameter_scale(problem, self.adaptive, eta=self.eta)

    def norm(self, d: Tensor) -> float:
        """Return ‖d‖ₚ, summed in float64."""
        return _norm(d, self.p)

    def dual_norm(self, gradient: Tensor) -> float:
        """Return ‖g‖_q, so that max gᵀd over the ball is ρ‖g‖_q, summed in float64."""
        return _norm(gradient, self.q)

    def dual(self, gradient: Tensor) -> Tensor:
        """Return a maximiser of gᵀd over the ball, the step of SAM; zero for a zero gradient."""
        # d = ρ sign(g) |g|^(q−1) / ‖g‖_q^(q−1); for p = ∞ ρ sign(g); for p = 1 all of ρ on one
        # coordinate with the largest |g| (Foret et al. 2021, eq. 2, and its limits).
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

    def project_(self, d: Tensor) -> Tensor:
        """Move a point, in place, to the nearest one of the ball (p = 1, 2, ∞), or scale it back.

        For other p the point that is scaled back is in the ball, but not the nearest.

        Args:
            d: shape (n,), overwritten.

        Returns:
            ``d``.
        """
        if math.isinf(self.p):
            return d.clamp_(-self.rho, self.rho)
        size = self.norm(d)
        if size <= self.rho:
            return d
        return _soft_threshold_(d, self.rho) if self.p == 1 else d.mul_(self.rho / size)


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
