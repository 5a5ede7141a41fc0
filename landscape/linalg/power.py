"""Top eigenpairs by shifted, deflated power iteration: slow, simple, and a check on Lanczos."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.krylov import (
    Callback,
    EigenSolution,
    Matvec,
    Operator,
    Stagnation,
    check_request,
    check_start,
    combine,
    inner,
    norm,
    orthogonalise,
    rayleigh,
)
from landscape.processes import Spread

# Chance, at most, that power iteration ends its search before it has met an eigenvalue.
_MISS_PROBABILITY = 1e-4


def power_iteration(
    matvec: Matvec,
    n: int,
    *,
    k: int = 1,
    tol: float = 1e-6,
    max_matvecs: int | None = None,
    seed: int = 0,
    dtype: torch.dtype,
    device: torch.device | str,
    spread: Spread | None = None,
    start: Tensor | None = None,
    callback: Callback | None = None,
) -> EigenSolution:
    """Find the k largest (algebraic) eigenpairs of a symmetric operator by power iteration.

    Each eigenvector is the limit of v ← P(H − σI)v / ‖·‖, where P projects out the previous ones.
    The shift makes the top eigenvalue the dominant one, whatever the size of the most negative:
    σ = ℓ + (θ − ℓ)/4, with θ the Rayleigh quotient of v and ℓ the smallest Ritz value on any
    span{v, Hv} so far. A pair is accepted on its residual alone, not on a small change of θ:

        ‖Hvᵢ − θᵢvᵢ‖ ≤ tol · max |θ|,  the largest |θ| over all Rayleigh quotients seen.

    In the end the operator is diagonalised within the span of the vectors, which makes the
    residuals those of H itself. A repeated eigenvalue is met as often as it occurs.

    Args:
        matvec: v ↦ Hv for a flat vector of ``n`` entries of ``dtype`` on ``device``.
        n: size of H.
        k: number of eigenpairs, 1 ≤ k ≤ n.
        tol: tolerance on the residuals, relative to the largest |θ|.
        max_matvecs: products that may be spent, at least k; None: max(10 000, 2000 k).
        seed: seed of every random vector.
        dtype: floating-point type that ``matvec`` takes.
        device: device that ``matvec`` takes.
        spread: which entries of a vector this process holds, see `sharing`; None: all.
        start: first vector for the first pair, shape (n,); None: random. As it can miss the top,
            one more pair is then sought at random until the chance of a miss is below 1e-4.
        callback: called after each product with the number of products so far and the residual
            relative to the largest |θ|, infinite until there is one.

    Returns:
        The eigenpairs in descending order, with true residuals. Vectors are float32 at least. The
        bounds are infinite and the errors the residuals.

    Raises:
        InvalidArgumentError: if an argument is out of its range, a product is of another shape,
            or H is not symmetric.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: about ln(1/tol) (λᵢ − λₙ) / (λᵢ − λᵢ₊₁) products for pair i. Memory: 2k + 3 vectors.

    References:
        Parlett (1998), The Symmetric Eigenvalue Problem, chapter 4; Kuczyński and Woźniakowski
        (1992), random starts, SIAM J. Matrix Anal. Appl. 13.

    >>> diagonal = torch.tensor([-9.0, 0.0, 1.0, 3.0, 3.0])
    >>> found = power_iteration(lambda v: diagonal * v, 5, k=3, dtype=torch.float32, device="cpu")
    >>> found.values.round(5).tolist(), found.converged
    ([3.0, 3.0, 1.0], True)
    """
    limit = max(10_000, 2_000 * k) if max_matvecs is None else max_matvecs
    check_request(n, k=k, tol=tol, max_matvecs=limit, least=k)
    operator = Operator(
        matvec,
        n,
        dtype=dtype,
        device=device,
        seed=seed,
        max_matvecs=limit,
        callback=callback,
        spread=spread,
    )
    deflation = _Deflation(operator, k, tol)
    if start is None:
        deflation.add()
    else:
        check_start(start, operator.length)
        deflation.add(operator.unit_vector(start))
    while deflation.size < k:
        deflation.add()
    if start is not None:
        deflation.replace_missed()
    return deflation.solution()


def miss_probability(gap: float, n: int, *, steps: int) -> float:
    """Bound the chance that power iteration from a random start has not yet seen an eigenvalue.

    With a start uniform on the sphere, and μ the largest Rayleigh quotient so far, the chance that
    an eigenvalue λ exists with (λ − μ) ≥ ε (λ − λₙ) is at most 0.824 √n (1 − ε)^(m − ½) after m
    steps, whatever the spectrum (Kuczyński and Woźniakowski, 1992, theorem 4.1).
    """
    gap = min(max(gap, 0.0), 1.0)
    return min(1.0, 0.824 * math.sqrt(n) * (1.0 - gap) ** (steps - 0.5)) if steps else 1.0


@dataclass(frozen=True)
class _Iterate:
    """A unit vector, its product with H, Rayleigh quotient, residual, and whether it will do."""

    v: Tensor
    product: Tensor
    theta: float
    residual: float
    accepted: bool


class _LowerEnd:
    """Bounds on the smallest eigenvalue λₙ from the iterates, and the shift that follows."""

    def __init__(self) -> None:
        self.ritz = math.inf  # smallest Ritz value on the span of two successive iterates, ≥ λₙ
        # Smallest θ − ‖Hv − θv‖; below λₙ by a fifth of the spectrum's width at most, since
        # ‖Hv − θv‖² ≤ (λ₁ − θ)(θ − λₙ) (Bhatia and Davis, 2000).
        self.floor = math.inf
        self._last: tuple[float, float, float] | None = None

    def see(self, theta: float, residual: float) -> None:
        """Learn from an iterate, which follows on the one that `shift` was asked for."""
        self.floor = min(self.floor, theta - residual)
        if self._last is not None:
            before, off, distance = self._last
            # With Hv = θv + r u, the next iterate is (dv + ru)/‖·‖; solve its quotient for uᵀHu.
            other = theta + distance**2 * (theta - before) / off**2 - 2.0 * distance
            lower = (before + other) / 2.0 - math.hypot((before - other) / 2.0, off)
            self.ritz = min(self.ritz, lower)

    def shift(self, theta: float, residual: float) -> float:
        """Return the shift for the next step from an iterate of this quotient and residual."""
        lowest = min(theta, self.ritz if math.isfinite(self.ritz) else self.floor)
        distance = 0.75 * (theta - lowest)
        # Where the residual is small, cancellation leaves nothing of uᵀHu.
        usable = residual > 1e-2 * distance
        self._last = (theta, residual, distance) if usable else None
        return theta - distance

    def forget(self) -> None:
        """Take the next iterate for a new start."""
        self._last = None


class _Deflation:
    """The eigenvectors so far, their products, and bounds on the spectrum."""

    def __init__(self, operator: Operator, k: int, tol: float) -> None:
        self.operator, self.k, self.tol = operator, k, tol
        self.size, self.largest, self.sound = 0, 0.0, True
        self.lower_end = _LowerEnd()
        shape = (k, operator.length)
        self._vectors = torch.empty(shape, dtype=operator.storage, device=operator.device)
        self._products = torch.empty_like(self._vectors)
        self._values = np.full(k, math.inf)

    def add(self, v: Tensor | None = None) -> None:
        """Find one more pair, from ``v`` or a random vector, leaving a product for each to come."""
        reserve = self.k - self.size - 1
        self._store(self.size, self._climb(v, reserve=reserve))
        self.size += 1

    def replace_missed(self) -> None:
        """Seek pairs above the lowest one found, from random vectors, until there is none."""
        while self.size < self.operator.n:
            row = int(np.argmin(self._values))
            bar = float(self._values[row])
            if self.operator.left <= 0:
                self.sound = False
                return
            iterate = self._climb(None, reserve=0, bar=bar)
            if iterate.theta <= bar + self.tol * self.largest:
                self.sound &= iterate.accepted
                return
            self._store(row, iterate)

    def solution(self) -> EigenSolution:
        """Return the eigenpairs of H within the span of the vectors found."""
        projection = torch.stack([inner(self._vectors, w) for w in self._products])
        symmetric = projection.cpu().numpy().astype(np.float64)
        asymmetry = float(np.abs(symmetric - symmetric.T).max())
        self.operator.check_symmetric(asymmetry)
        _, mix = np.linalg.eigh((symmetric + symmetric.T) / 2.0)
        for rows in (self._vectors, self._products):
            combine(mix[:, ::-1], rows, out=rows)
        pairs = zip(self._vectors, self._products, strict=True)
        measured = np.array([rayleigh(v, w) for v, w in pairs])
        order = np.argsort(-measured[:, 0], kind="stable")
        values, residuals = measured[order].T
        vectors = self._vectors
        if (np.diff(order) != 1).any():
            vectors = vectors[torch.from_numpy(order).to(vectors.device)]
        met = bool((residuals <= self.tol * self.largest).all())
        return EigenSolution(
            values=values,
            n_lowest=0,
            residuals=residuals,
            errors=residuals,
            upper_bound=math.inf,
            lower_bound=-math.inf,
            failure_probability=1.0,
            asymmetry=asymmetry / (self.operator.norm or 1.0) if self.k > 1 else math.nan,
            vectors=vectors,
            matvecs=self.operator.matvecs,
            converged=met and self.sound,
        )

    def _climb(self, v: Tensor | None, *, reserve: int, bar: float = -math.inf) -> _Iterate:
        """Return an iterate that converged, stagnated, ran out of products or stays below a bar."""
        locked = self._vectors[: self.size]
        v = self.operator.random_unit_vector(locked) if v is None else v
        self.lower_end.forget()
        highest, step, stagnation = -math.inf, 0, Stagnation()
        while True:
            product = self.operator(v)
            step += 1
            w = product.clone()
            orthogonalise(w, locked)
            theta, residual = rayleigh(v, w)
            self.largest = max(self.largest, abs(theta))
            self.lower_end.see(theta, residual)
            self.operator.residual = residual / self.largest if self.largest else 0.0
            highest = max(highest, theta)
            # k residuals within tol/√k leave, after the final rotation, each within tol.
            tolerance = self.tol * self.largest / math.sqrt(self.k)
            still = stagnation.reached(residual, rounding=self.operator.eps * self.largest)
            accepted = residual <= tolerance or still or self._stays_below(bar, highest, step)
            if accepted or self.operator.left <= reserve:
                return _Iterate(v, product, theta, residual, accepted)
            v = self._following(v, w, theta, residual)

    def _following(self, v: Tensor, w: Tensor, theta: float, residual: float) -> Tensor:
        locked = self._vectors[: self.size]
        w.sub_(v, alpha=self.lower_end.shift(theta, residual))
        # PHP is 0 on what is locked, which may lie above all that is sought: rounding would grow.
        orthogonalise(w, locked)
        length = norm(w)
        if length <= self.operator.storage_eps * self.operator.norm:
            # v is an eigenvector, of an eigenvalue at the shift itself: not the one sought.
            self.lower_end.forget()
            return self.operator.random_unit_vector(locked)
        return w.div_(length)

    def _stays_below(self, bar: float, highest: float, step: int) -> bool:
        if highest >= bar:
            return False
        gap = (bar - highest) / (bar - self.lower_end.floor)
        n = self.operator.n - self.size
        return miss_probability(gap, n, steps=step) <= _MISS_PROBABILITY

    def _store(self, row: int, iterate: _Iterate) -> None:
        self._vectors[row] = iterate.v
        self._products[row] = iterate.product
        self._values[row] = iterate.theta
        self.sound &= iterate.accepted
