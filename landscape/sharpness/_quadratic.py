"""The quadratic model of a loss in a Euclidean ball: its maximum, found in a growing subspace."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.krylov import Floats, combine, dot, norm, orthogonalise
from landscape.processes import sum_over_shards

# Of what is added to the basis, the part that is new must be more than rounding.
_NEW = 1e-6
_MIX = 1e-5  # of a random vector, in the vector that the subspace begins with


def maximise_in_ball(hessian: Floats, gradient: Floats, rho: float) -> tuple[Floats, float]:
    """Maximise gᵀy + ½ yᵀHy over ‖y‖₂ ≤ ρ, by the eigenvalues of a small dense H.

    At the maximum (μI − H) y = g with μ ≥ max(λ₁, 0), and ‖y‖ = ρ unless μ = 0. In the hard case,
    where g has no part along the top eigenvector, that vector fills y up to the boundary.

    References:
        Moré, Sorensen (1983), Computing a trust region step, SIAM J. Sci. Stat. Comput. 4.

    >>> y, multiplier = maximise_in_ball(np.diag([2.0, 1.0]), np.array([0.0, 0.5]), 1.0)
    >>> np.abs(y).round(4).tolist(), multiplier
    ([0.866, 0.5], 2.0)
    """
    values, vectors = np.linalg.eigh(hessian)
    c = vectors.T @ gradient
    floor = max(0.0, float(values[-1]))
    gaps = floor - values  # μ = floor + s: small distances from the floor keep their digits
    if not c[gaps == 0].any():
        y = np.divide(c, gaps, out=np.zeros_like(c), where=gaps > 0)
        left = rho**2 - float(y @ y)
        if left >= 0:
            if floor > 0:
                y[-1] += math.sqrt(left)
            return vectors @ y, floor
    s = _secular_root(c, gaps, rho)
    y = np.divide(c, s + gaps, out=np.zeros_like(c), where=c != 0)
    return vectors @ (y * (rho / np.linalg.norm(y))), floor + s


def _secular_root(c: Floats, gaps: Floats, rho: float) -> float:
    """Return s > 0 with Σ cᵢ² / (s + gapᵢ)² = ρ², by bisection over orders of magnitude."""
    high = float(np.linalg.norm(c)) / rho
    low = max(float(np.linalg.norm(c[gaps == 0])) / rho, 1e-200 * high)
    for _ in range(200):
        s = math.sqrt(low) * math.sqrt(high)
        longer = np.linalg.norm(np.divide(c, s + gaps, out=np.zeros_like(c), where=c != 0)) > rho
        low, high = (s, high) if longer else (low, s)
        if high <= low * (1 + 1e-15):
            break
    return high


class QuadraticModel:
    """gᵀd + ½ dᵀHd with H known by its products, on a Krylov subspace that grows.

    The subspace is that of the direction of g with 1e-5 of a random vector added, which has
    a part along every eigenvector, so that the hard case is no exception; where g = 0, of the
    random vector alone. Orthogonalised in full, H V = V T + β v eᵀ holds to rounding: residuals
    are read off T, and no product is kept. Where the subspace is invariant (β = 0), it goes on
    with what is left of g.

    Attributes:
        products: how many products with H were made.

    References:
        Gould, Lucidi, Roma, Toint (1999), Solving the trust-region subproblem using the Lanczos
        method, SIAM J. Optim. 9.
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        gradient: Tensor | None,
        other: Tensor,
        *,
        max_products: int,
    ) -> None:
        """Begin the subspace; no product is made yet."""
        size = max(1, min(max_products, int(sum_over_shards(len(other)))))
        self._matvec: Callable[[Tensor], Tensor] | None = matvec
        self._basis = other.new_empty((size, len(other)))
        self._small, self._slopes = np.zeros((size, size)), np.zeros(size)  # VᵀHV and Vᵀg
        self._slope = 0.0 if gradient is None else norm(gradient)
        self._gradient = gradient if self._slope else None
        self._beta = self._scale = 0.0
        self.products = 0
        self._has_next = self._take(_mixed(self._gradient, self._slope, other))

    @property
    def is_full(self) -> bool:
        """Whether the subspace may grow no further."""
        return self.is_released or self.products == len(self._small)

    @property
    def is_released(self) -> bool:
        """Whether the basis was freed."""
        return self._matvec is None

    def grow(self, rho: float, *, tol: float, max_products: int | None = None) -> None:
        """Extend the subspace until maximiser and top eigenpair have converged, or it is full."""
        most = len(self._small) if max_products is None else max_products
        while self._has_next and not self.is_full and self.products < most:
            if self._beta > 0 and self._error(rho) <= tol:
                return
            assert self._matvec is not None
            self._extend(self._matvec(self._basis[self.products]))

    def release(self) -> None:
        """Free the basis; the small matrices stay, and what they say of the model."""
        self._matvec = self._gradient = None
        self._basis = self._basis.new_empty((0, 0))

    def maximum(self, rho: float) -> tuple[Tensor, float]:
        """Maximise the model over the part of the ball that lies in the subspace."""
        return self._combined(self._solve(rho)[0]), self.rise(rho)

    def rise(self, rho: float) -> float:
        """Return the largest rise of the model over the part of the ball in the subspace."""
        y = self._solve(rho)[0]
        return float(self._slopes[: self.products] @ y + 0.5 * y @ self._projected @ y)

    @property
    def top_value(self) -> float:
        """The largest Ritz value, a lower bound on the largest eigenvalue."""
        return float(np.linalg.eigvalsh(self._projected)[-1])

    @property
    def top_error(self) -> float:
        """Residual of the pair with the largest Ritz value."""
        return self._beta * abs(float(np.linalg.eigh(self._projected)[1][-1, -1]))

    def top(self) -> tuple[float, float, Tensor]:
        """Return the largest Ritz value of the subspace."""
        values, vectors = np.linalg.eigh(self._projected)
        return float(values[-1]), self.top_error, self._combined(vectors[:, -1])

    def _take(self, vector: Tensor) -> bool:
        """Take a vector as the next of the basis, overwriting it; False: it is of the subspace."""
        k, size = self.products, norm(vector)
        if size == 0 or not math.isfinite(size):
            return False
        vector /= size
        if k:
            orthogonalise(vector, self._basis[:k])
        left = norm(vector)
        if left <= _new(vector):
            return False
        torch.div(vector, left, out=self._basis[k])
        if self._gradient is not None:
            self._slopes[k] = dot(self._basis[k], self._gradient)
        return True

    def _extend(self, image: Tensor) -> None:
        """Take the image of the last vector of the basis, and find the next vector."""
        k = self.products
        size = norm(image)
        row = orthogonalise(image, self._basis[: k + 1])
        self._small[k, : k + 1] = self._small[: k + 1, k] = row
        self.products, self._scale = k + 1, max(self._scale, size)
        self._beta = norm(image)
        if self._beta <= _new(image) * size:
            self._beta = 0.0
        if self.is_full:
            self._has_next = False
        elif self._beta:
            self._has_next = self._take(image)
        else:
            self._has_next = self._gradient is not None and self._take(self._gradient.clone())

    @property
    def _projected(self) -> Floats:
        return self._small[: self.products, : self.products]

    def _error(self, rho: float) -> float:
        """The larger of the relative residuals of the maximiser and of the top eigenpair."""
        step, scale = abs(float(self._solve(rho)[0][-1])), self._slope + rho * self._scale
        return max(self._beta * step / scale, self.top_error / self._scale)

    def _solve(self, rho: float) -> tuple[Floats, float]:
        return maximise_in_ball(self._projected, self._slopes[: self.products], rho)

    def _combined(self, y: Floats) -> Tensor:
        basis = self._basis[: self.products]
        out = basis.new_empty((1, basis.shape[1]))
        return combine(y[:, None], basis, out=out)[0]


def _mixed(gradient: Tensor | None, slope: float, other: Tensor) -> Tensor:
    """Return the direction of g with 1e-5 of that of a random vector."""
    if gradient is None:
        return other.clone()
    size = norm(other)
    mixed = gradient / slope
    return mixed.add_(other, alpha=_MIX / size) if size else mixed


def _new(vector: Tensor) -> float:
    """Return the share of a unit vector above which it is more than rounding."""
    return max(_NEW, 100 * torch.finfo(vector.dtype).eps)
