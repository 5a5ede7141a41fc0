"""An orthonormal basis that grows by band Lanczos steps, and bounds on the spectrum from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from scipy.optimize import brentq
from scipy.special import betaincinv
from torch import Tensor

from landscape.linalg.krylov import Floats, Operator, combine, dot, norm, orthogonalise

# Default of the chance, at most, that an eigenvalue was missed.
FAILURE_PROBABILITY = 1e-2
# Of the rows that a basis may have, so many are allocated at first, and at each growth.
_FIRST_ROWS = 32
Projections = Callable[[Tensor], Floats]


def n_wanted(n: int, *, k: int, both_ends: bool) -> int:
    """Return how many pairs are sought: k, or k from each end, none of them twice."""
    return min(2 * k, n) if both_ends else k


@dataclass(frozen=True)
class SpectrumEnd:
    """The number of pairs wanted at one end; sign −1 for the lower one, the upper one of −H."""

    sign: float
    wanted: int

    def order(self, numbers: Floats) -> Floats:
        """Return numbers that belong to descending values from this end inwards."""
        return numbers if self.sign > 0.0 else numbers[::-1]

    def values(self, values: Floats) -> Floats:
        """Return the values from this end inwards, of −H if it is the lower one: descending."""
        return self.sign * self.order(values)


@dataclass(frozen=True)
class Ritz:
    """Ritz values, descending; estimates of their residuals; coefficients, one column each."""

    values: Floats
    estimates: Floats
    coefficients: Floats


class KrylovBasis:
    """An orthonormal basis V, the projection T = VᵀHV, and the pending vectors P that come next.

        H V = V T + P C,   (V, P) orthonormal

    One pending vector makes it Lanczos, several make it band Lanczos: each pending vector in turn
    becomes a basis vector, and what its product adds to the space becomes a pending one, unless
    that is rounding only (deflation); if none is left the space is invariant, and the next vector
    is random. All coefficients of H v are kept, so that T is right for any basis.
    """

    def __init__(
        self,
        operator: Operator,
        *,
        k: int,
        capacity: int | None,
        both_ends: bool = False,
        project: Projections | None = None,
    ) -> None:
        self.operator, self.k = operator, k  # k pairs are sought at the upper end
        self.n_wanted = n_wanted(operator.n, k=k, both_ends=both_ends)
        low = self.n_wanted - k
        self.ends = (SpectrumEnd(1.0, k), SpectrumEnd(-1.0, low)) if low else (SpectrumEnd(1.0, k),)
        self.capacity = operator.n if capacity is None else min(capacity, operator.n)
        self.size = 0
        self.pending: list[Tensor] = []  # P, the first one is next
        self.couplings = np.zeros((0, 0))  # C, shape (pending, size)
        # The matrix of the run from a single random vector, and whether it is still the run's own.
        self.chain: LanczosTridiagonal | None = LanczosTridiagonal(operator.n)
        self._intact = True
        self.largest = 0.0  # |Ritz value| seen
        self.asymmetry = 0.0  # largest |vᵢᵀHvⱼ − vⱼᵀHvᵢ| seen
        self._starts = self._unseen = 0
        self._project = project
        needed = min(_FIRST_ROWS + self.n_wanted, self.capacity)
        first = self.capacity if capacity is not None else needed
        self._vectors = torch.empty(
            (first, operator.length), dtype=operator.storage, device=operator.device
        )
        # The projection of H, and behind it those of the parts that H is the sum of, with room.
        self._projections = np.zeros((1, needed, needed))

    @property
    def rows(self) -> Tensor:
        """The basis, shape (size, n)."""
        return self._vectors[: self.size]

    @property
    def projection(self) -> Floats:
        """T, shape (size, size)."""
        return self._projections[0, : self.size, : self.size]

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space, so that the Ritz pairs are the eigenpairs."""
        return self.size == self.operator.n

    @property
    def due(self) -> bool:
        """Whether enough steps went by since the last Ritz values."""
        ready = self.size >= self.n_wanted and not self._starts
        full = self.size == self.capacity or not self.pending
        return ready and (self._unseen > self.size // 32 or full)

    def begin(self, starts: Iterable[Tensor], *, random: bool = True) -> None:
        """Start from several vectors; those that depend on the ones before are left out."""
        for v in starts:
            self._join(v)
        self._starts = len(self.pending)
        if self._starts > 1 or not random:
            self.chain = None

    def join(self, v: Tensor) -> None:
        """Put a unit vector orthogonal to the basis first among the pending ones; overwrites it."""
        self._join(v)
        self.pending.insert(0, self.pending.pop())
        self.couplings = np.roll(self.couplings, 1, axis=0)
        self._intact = False

    def step(self) -> None:
        """Add the next vector to the basis, with one product."""
        if self.size == self.capacity:  # keep the wanted Ritz vectors and half of the others
            spare = (self.capacity - self.n_wanted) // 2
            self.compress(self.ritz().coefficients[:, self.outermost(spare=spare)])
        elif self.size == len(self._vectors):
            rows = min(2 * self.size, self.capacity)
            vectors = self._vectors.new_empty((rows, self.operator.length))
            vectors[: self.size] = self._vectors
            self._vectors = vectors
        if self.size == self._projections.shape[1]:
            self._projections = np.pad(self._projections, ((0, 0), (0, self.size), (0, self.size)))
        known = self._enter()
        w = self.operator(self._vectors[self.size - 1])
        column = orthogonalise(w, self.rows, known=known)
        # Before, symmetry gave the entries that the product has now measured.
        difference = float(np.abs(column[:-1] - known).max(initial=0.0))
        self.asymmetry = max(self.asymmetry, difference)
        self.operator.check_symmetric(self.asymmetry)
        self._projections[0, : self.size, self.size - 1] = column
        self._projections[0, self.size - 1, : self.size] = column
        self._project_parts()
        coupling = self._suspend(w)
        if self.chain is not None and self._intact and not self.chain.exhausted:
            self.chain.alphas.append(float(column[-1]))
            self.chain.betas.append(coupling)
        self._unseen += 1

    def ritz(self) -> Ritz:
        """Return the Ritz pairs, with ‖HVs − θVs‖ = ‖C s‖ as their residuals."""
        values, vectors = np.linalg.eigh(self.projection)
        values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
        estimates = np.linalg.norm(self.couplings @ vectors, axis=0)
        self.largest = max(self.largest, float(np.abs(values).max()))
        self._unseen = 0
        return Ritz(values, estimates, vectors)

    def worst(self, ritz: Ritz) -> float:
        """Return the largest residual estimate of the wanted pairs, relative to ‖H‖."""
        worst = max(float(e.order(ritz.estimates)[: e.wanted].max()) for e in self.ends)
        return worst / self.largest if self.largest else 0.0

    def outermost(self, *, spare: int = 0) -> list[int]:
        """Return the positions of the wanted Ritz pairs, and of ``spare`` further ones."""
        inwards = spare // 2 if len(self.ends) > 1 else 0
        top = self.k + spare - inwards
        bottom = self.n_wanted - self.k + inwards
        return [*range(top), *range(self.size - bottom, self.size)]

    def raised(self, edge: float, end: SpectrumEnd) -> Floats:
        """Return upper bounds on the eigenvalues of H that are sought at an end, descending.

        In the basis V and its complement W, H = [[T, B], [Bᵀ, K]] with BW = CᵀPᵀ. With no
        eigenvalue of K above μ, H ≤ [[T, Cᵀ], [C, μI]] on the span of V and P, and ≤ μ on the
        rest, in the sense of quadratic forms; so the i-th eigenvalue is at most the i-th of
        that matrix (Weyl). It is at least the i-th Ritz value (Cauchy).
        """
        c, mu = self.couplings, end.sign * edge
        if not math.isfinite(mu):
            return np.full(end.wanted, math.inf)
        bordered = np.block([[end.sign * self.projection, c.T], [c, mu * np.eye(len(c))]])
        values = np.append(np.linalg.eigvalsh(bordered), np.full(end.wanted, mu))
        return np.sort(values)[::-1][: end.wanted]

    def part_forms(self, coefficients: Floats) -> Floats | None:
        """Return yᵀH_b y of each part of H, for the vectors y = Vs with these coefficients."""
        parts = self._projections[1:, : self.size, : self.size]
        if not len(parts):
            return None
        return np.asarray(np.einsum("ik,bij,jk->bk", coefficients, parts, coefficients))

    def extract(self, coefficients: Floats) -> Tensor:
        """Return unit vectors with given coefficients, shape (k, n); the basis is given up."""
        self.pending, k = [], coefficients.shape[1]
        combine(coefficients, self.rows, out=self._vectors[:k])
        vectors = self._vectors[:k].clone()
        self._vectors = self._vectors[:0].clone()
        for v in vectors:
            v.div_(norm(v))
        return vectors

    def _join(self, v: Tensor) -> None:
        """Add a unit vector to the pending ones, unless it depends on them."""
        length = 1.0
        # Twice, with the length restored between, as in `Operator.unit_vector`.
        for _ in range(2 if self.pending else 0):
            for q in self.pending:
                v.sub_(q, alpha=dot(q, v))
            length *= (rest := norm(v))
            v.div_(rest or 1.0)
        if length > 10.0 * self.operator.storage_eps:
            self.pending.append(v)
            self.couplings = np.pad(self.couplings, ((0, 1), (0, 0)))

    def _enter(self) -> Floats:
        """Make the next vector a basis vector, and return what VᵀH is known to have on it."""
        known = np.zeros(self.size)
        if self.pending:
            self._vectors[self.size] = self.pending.pop(0)
            known, self.couplings = self.couplings[0], self.couplings[1:]
        else:
            self._vectors[self.size] = self.operator.random_unit_vector(self.rows)
        self._starts = max(self._starts - 1, 0)
        self.size += 1
        self.couplings = np.pad(self.couplings, ((0, 0), (0, 1)))
        return known

    def _project_parts(self) -> None:
        if self._project is None:
            return
        columns = self._project(self.rows)
        if len(self._projections) == 1:
            rows = self._projections.shape[1]
            parts = np.zeros((len(columns), rows, rows))
            self._projections = np.concatenate([self._projections, parts])
        self._projections[1:, : self.size, self.size - 1] = columns
        self._projections[1:, self.size - 1, : self.size] = columns

    def _suspend(self, w: Tensor) -> float:
        """Take the rest of a product for a pending vector, unless it is rounding only."""
        if self.complete:
            self.pending, self.couplings = [], np.zeros((0, self.size))
            return 0.0
        for _ in range(2 if self.pending else 0):
            for i, q in enumerate(self.pending):
                overlap = dot(q, w)
                w.sub_(q, alpha=overlap)
                self.couplings[i, -1] += overlap
        length = norm(w)
        if length <= 10.0 * self.operator.storage_eps * self.operator.norm:
            return 0.0
        w.div_(length)
        if self.pending:
            # Little may be left of it, in which rounding against the basis has grown.
            orthogonalise(w, self.rows)
            w.div_(norm(w))
        self.pending.append(w)
        self.couplings = np.pad(self.couplings, ((0, 1), (0, 0)))
        self.couplings[-1, -1] = length
        return length

    def compress(self, mix: Floats) -> None:
        """Keep linear combinations of the basis only, orthonormal columns of coefficients."""
        old = self._projections[:, : self.size, : self.size]
        combine(mix, self.rows, out=self._vectors[: mix.shape[1]])
        projections = np.einsum("ik,bij,jl->bkl", mix, old, mix, optimize=True)
        self.size = mix.shape[1]
        self._projections[:] = 0.0
        self._projections[:, : self.size, : self.size] = projections
        self.couplings = self.couplings @ mix
        self._intact = False


def least_cosine(n: int, failure: float) -> float:
    """Return what |cos(x, v)| falls short of with a stated chance, for x uniform on the sphere."""
    # The square of the cosine follows Beta(1/2, (n − 1)/2), whatever the unit vector v.
    return math.sqrt(float(betaincinv(0.5, (n - 1) / 2.0, failure))) if n > 1 else 1.0


@dataclass
class LanczosTridiagonal:
    """The tridiagonal matrix of an uninterrupted Lanczos run from a random vector."""

    n: int  # dimension of the space that the start was uniform in
    alphas: list[float] = field(default_factory=list)  # diagonal
    # Off-diagonal, and the norm of the last residual; 0 where the space is exhausted.
    betas: list[float] = field(default_factory=list)

    @property
    def exhausted(self) -> bool:
        """Whether the run met an invariant subspace, after which it is another run."""
        return bool(self.betas) and self.betas[-1] == 0.0

    def values(self, sign: float) -> Floats:
        """Return the Ritz values times a sign, descending."""
        values = eigvalsh_tridiagonal(np.array(self.alphas), np.array(self.betas[:-1]))
        return np.sort(sign * values)[::-1]

    def progress(self, edge: float, sign: float, *, failure: float) -> float:
        """Return how far the run has come on its way to show that nothing lies beyond an edge."""
        if not self.alphas:
            return 0.0
        distances = sign * edge - self.values(sign)
        if self.exhausted and distances[0] >= 0.0:
            return math.inf
        if distances[0] <= 0.0:
            return 0.0
        growth = float(np.log(distances).sum() - np.log(self.betas).sum())
        needed = -math.log(least_cosine(self.n, failure))
        return growth / needed if needed > 0.0 else math.inf

    def bound(self, sign: float, *, failure: float) -> float:
        """Return a number that no eigenvalue exceeds, but for a stated chance.

        After m steps from x, p(H)x is a unit vector for p(t) = Π (t − θⱼ) / Π βⱼ. Its component
        along the top eigenvector is p(λ₁) cos(x, v₁), so |p(λ₁)| ≤ 1/|cos(x, v₁)| ≤ 1/c, with c
        from `least_cosine`. As p grows beyond θ₁, λ₁ is at most the t > θ₁ where p(t) = 1/c.

        References:
            Van Dorsselaer, Hochstenbach and van der Vorst (2000), Computing probabilistic bounds
            for extreme eigenvalues of symmetric matrices with the Lanczos method, SIAM J. Matrix
            Anal. Appl. 22.
        """
        if not self.alphas:
            return sign * math.inf
        values = self.values(sign)
        if self.exhausted:
            return sign * float(values[0])
        level = float(np.log(self.betas).sum()) - math.log(least_cosine(self.n, failure))
        below = values[0] - values[1:]

        def excess(log_distance: float) -> float:
            factors = np.log(math.exp(log_distance) + below)
            return log_distance + float(factors.sum()) - level

        # All factors are at least the first, so that p has reached the level by there.
        high = level / len(values) + 1e-9
        reach = 1.0
        while excess(high - reach) > 0.0:
            reach *= 2.0
        root = float(brentq(excess, high - reach, high, xtol=1e-9)) + 1e-9
        return sign * (float(values[0]) + math.exp(root))


class Enclosure:
    """Bounds on the spectrum from several searches, each from another random vector.

    The r-th search is granted the failure probability δ/2ʳ⁺¹ at each end, so that all together fail
    with δ at most, however many there are and whichever of them is the sharpest.
    """

    def __init__(self, failure: float) -> None:
        self.lower, self.upper = -math.inf, math.inf
        self._failure = failure / 2.0

    def grant(self) -> float:
        """Return the failure probability of the next search, at each end."""
        self._failure /= 2.0
        return self._failure

    def narrow(self, lower: float, upper: float) -> None:
        """Tighten the bounds by those of a search."""
        self.lower, self.upper = max(self.lower, lower), min(self.upper, upper)
