"""The quadratic model of a loss in a Euclidean ball: its maximum, found in a growing subspace."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.krylov import Floats, combine, inner, norm, orthogonalise

# Of what is added to the basis, the part that is new must be more than rounding.
_NEW = 1e-6


def maximise_in_ball(hessian: Floats, gradient: Floats, rho: float) -> tuple[Floats, float]:
    """Maximise gᵀy + ½ yᵀHy over ‖y‖₂ ≤ ρ, by the eigenvalues of a small dense H.

    At the maximum (μI − H) y = g with μ ≥ max(λ₁, 0), and ‖y‖ = ρ unless μ = 0. In the hard case,
    where g has no part along the top eigenvector, that vector fills y up to the boundary.

    Args:
        hessian: symmetric, shape (k, k).
        gradient: shape (k,).
        rho: radius.

    Returns:
        y of shape (k,), and the multiplier μ.

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
    """gᵀd + ½ dᵀHd with H known by its products, on a subspace that grows where it matters.

    The subspace begins with g and a random vector, which has a part along every eigenvector, so
    that the hard case and g = 0 are no exceptions. It grows by the residual of the maximiser over
    ‖d‖₂ ≤ ρ, or of the top eigenpair, whichever is the worse. Without the random vector that is
    the Lanczos method of Gould et al.

    Attributes:
        products: how many products with H were made.
        slope: ‖g‖₂.

    References:
        Gould, Lucidi, Roma, Toint (1999), Solving the trust-region subproblem using the Lanczos
        method, SIAM J. Optim. 9.
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        gradient: Tensor,
        other: Tensor,
        *,
        max_products: int,
    ) -> None:
        """Begin the subspace; no product is made yet.

        Args:
            matvec: d ↦ Hd.
            gradient: g, shape (n,).
            other: the random vector, shape (n,).
            max_products: dimension of the subspace at most.
        """
        size = max(1, min(max_products, len(gradient)))
        self._matvec = matvec
        self._gradient = gradient
        self._basis = gradient.new_zeros((size, len(gradient)))
        self._images = torch.zeros_like(self._basis)
        self._seeds = [gradient, other]
        self.products = 0
        self.slope = norm(gradient)

    @property
    def is_full(self) -> bool:
        """Whether the subspace may grow no further."""
        return self.products == len(self._basis)

    def grow(self, rho: float, *, tol: float) -> None:
        """Extend the subspace until maximiser and top eigenpair have converged, or it is full.

        Args:
            rho: radius of the ball.
            tol: residuals to reach, relative to the largest ‖Hv‖ of the basis, and to ‖g‖ with it.
        """
        while self._seeds and not self.is_full:
            self._add(self._seeds.pop(0))
        while not self.is_full and self.products:
            step, pair = self._step_residual(rho), self._pair_residual()
            if max(step[1], pair[1]) <= tol:
                return
            worse, other = (step, pair) if step[1] >= pair[1] else (pair, step)
            if not (self._add(worse[0]) or self._add(other[0])):
                return

    def maximum(self, rho: float) -> tuple[Tensor, float]:
        """Maximise the model over the part of the ball that lies in the subspace.

        Args:
            rho: radius.

        Returns:
            The step of shape (n,), and the rise of the model there.
        """
        y, _, small = self._solve(rho)
        rise = float(self._coordinates() @ y + 0.5 * y @ small @ y)
        return self._combined(y, self._basis), rise

    def top(self) -> tuple[float, float, Tensor]:
        """Return the largest Ritz value of the subspace.

        Returns:
            The value, a lower bound on the largest eigenvalue; ‖Hu − θu‖; and the unit vector u of
            shape (n,).
        """
        values, vectors = np.linalg.eigh(self._small())
        vector = self._combined(vectors[:, -1], self._basis)
        image = self._combined(vectors[:, -1], self._images)
        return float(values[-1]), norm(image - float(values[-1]) * vector), vector

    def _add(self, vector: Tensor) -> bool:
        """Orthogonalise a vector against the basis and take it in, if that leaves anything."""
        size = norm(vector)
        if size == 0 or not math.isfinite(size):
            return False
        vector = vector / size
        orthogonalise(vector, self._basis[: self.products])
        left = norm(vector)
        if left <= max(_NEW, 100 * torch.finfo(vector.dtype).eps):
            return False
        vector /= left
        self._basis[self.products] = vector
        self._images[self.products] = self._matvec(vector)
        self.products += 1
        return True

    def _step_residual(self, rho: float) -> tuple[Tensor, float]:
        y, multiplier, _ = self._solve(rho)
        curved = self._combined(y, self._images)
        residual = self._gradient + curved - multiplier * self._combined(y, self._basis)
        scale = self.slope + rho * self._scale
        return residual, norm(residual) / scale if scale else 0.0

    def _pair_residual(self) -> tuple[Tensor, float]:
        values, vectors = np.linalg.eigh(self._small())
        top = vectors[:, -1]
        residual = self._combined(top, self._images)
        residual -= float(values[-1]) * self._combined(top, self._basis)
        return residual, norm(residual) / self._scale if self._scale else 0.0

    @property
    def _scale(self) -> float:
        return max((norm(image) for image in self._images[: self.products]), default=0.0)

    def _solve(self, rho: float) -> tuple[Floats, float, Floats]:
        small = self._small()
        return *maximise_in_ball(small, self._coordinates(), rho), small

    def _coordinates(self) -> Floats:
        return inner(self._basis[: self.products], self._gradient).cpu().numpy()

    def _small(self) -> Floats:
        k = self.products
        rows = [inner(self._basis[:k], image) for image in self._images[:k]]
        small = torch.stack(rows).cpu().numpy().astype(np.float64)
        return np.asarray((small + small.T) / 2)

    def _combined(self, y: Floats, rows: Tensor) -> Tensor:
        out = torch.empty_like(self._gradient[None])
        return combine(y[:, None], rows[: self.products], out=out)[0]
