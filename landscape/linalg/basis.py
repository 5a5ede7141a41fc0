"""An orthonormal basis that grows by band Lanczos steps, and is compressed or started afresh."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.bounds import Chain
from landscape.linalg.budget import n_wanted
from landscape.linalg.checks import check_symmetric
from landscape.linalg.krylov import (
    Floats,
    Operator,
    combine,
    inner,
    norm,
    orthogonalise,
)

# Rows to begin with when the basis may grow as needed.
_FIRST_ROWS = 32


@dataclass(frozen=True)
class End:
    """One end of the spectrum: its sign, 1 for the largest and −1 for the smallest, and how many.

    What is said of the largest holds for the smallest as well, once −H takes the place of H.
    """

    sign: float
    wanted: int

    def order(self, numbers: Floats) -> Floats:
        """Return numbers that go with descending values from this end inwards."""
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
    that is rounding only (deflation); if none is left the space is invariant, and
    the next vector is drawn at random. Every coefficient of H v against the basis is kept, so
    that the projection is right whatever the basis holds: a Krylov sequence, vectors kept by a
    restart, or converged ones.

    Attributes:
        k: pairs sought at the upper end.
        ends: the ends of the spectrum that are sought.
        n_wanted: pairs sought in all.
        size: vectors in the basis.
        pending: P, the first one is next.
        couplings: C, shape (pending, size).
        width: start vectors of this search.
        steps: products since the search last started.
        unbroken: those of them before its first restart.
        chain: the tridiagonal matrix of the run from a single random vector; None: no such run.
        largest: largest |Ritz value| seen.
        lowest: lower end of the spectrum, as far as seen: smallest Ritz value less its residual.
        highest: upper end alike.
        inherited: relative residual of the locked pairs, which no later estimate sees.
        asymmetry: largest |vᵢᵀHvⱼ − vⱼᵀHvᵢ| seen.
    """

    def __init__(
        self, operator: Operator, *, k: int, capacity: int | None, both_ends: bool = False
    ) -> None:
        self.operator = operator
        self.k = k
        self.n_wanted = n_wanted(operator.n, k=k, both_ends=both_ends)
        low = self.n_wanted - k
        self.ends = (End(1.0, k), End(-1.0, low)) if low else (End(1.0, k),)
        self.capacity = operator.n if capacity is None else min(capacity, operator.n)
        self.size = 0
        self.pending: list[Tensor] = []
        self.couplings = np.zeros((0, 0))
        self.width = 1
        self.steps = 0
        self.unbroken = 0
        self.chain: Chain | None = Chain(operator.n)
        self.largest = 0.0
        self.lowest = math.inf
        self.highest = -math.inf
        self.inherited = 0.0
        self.asymmetry = 0.0
        self.restarted = False
        self._random = True
        self._starts = 0
        self._blind = 0
        self._unseen = 0
        needed = min(_FIRST_ROWS + self.n_wanted, self.capacity)
        first = self.capacity if capacity is not None else needed
        self._vectors = torch.empty(
            (first, operator.n), dtype=operator.storage, device=operator.device
        )
        self._projection = np.zeros((first, first))

    @property
    def rows(self) -> Tensor:
        """The basis, shape (size, n)."""
        return self._vectors[: self.size]

    @property
    def complete(self) -> bool:
        """Whether the basis spans the whole space, so that the Ritz pairs are the eigenpairs."""
        return self.size == self.operator.n

    @property
    def due(self) -> bool:
        """Whether enough steps went by since the last Ritz values to be worth a look."""
        ready = self.size >= self.n_wanted and not self._starts
        full = self.size == self.capacity or not self.pending
        return ready and (self._unseen > self.size // 32 or full)

    @property
    def degree(self) -> int:
        """Powers of H on each random start that the space holds, without a restart; else 0."""
        return self.unbroken // self.width if self._random else 0

    def begin(self, starts: Iterable[Tensor], *, random: bool = True) -> None:
        """Start from several vectors; those that depend on the ones before are left out.

        Args:
            starts: unit vectors in the storage dtype, which are overwritten.
            random: whether they are random, so that bounds follow from them.
        """
        self.pending = []
        for v in starts:
            length = 1.0
            # Twice, with the length restored between, as in `Operator.unit_vector`.
            for _ in range(2 if self.pending else 0):
                for q in self.pending:
                    v.sub_(q, alpha=float(inner(q[None], v)))
                length *= (rest := norm(v))
                v.div_(rest or 1.0)
            if length > 10.0 * self.operator.storage_eps:
                self.pending.append(v)
        self.width = self._starts = len(self.pending)
        self.couplings = np.zeros((self.width, 0))
        self._random = random
        if self.width > 1 or not random:
            self.chain = None

    def step(self) -> None:
        """Add the next vector to the basis, with one product."""
        if self.size == self.capacity:
            self._restart()
        elif self.size == len(self._vectors):
            self._grow()
        known = self._enter()
        w = self.operator(self._vectors[self.size - 1])
        column = orthogonalise(w, self.rows)
        self._compare(column[self._blind : -1], known[self._blind :])
        self._projection[: self.size, self.size - 1] = column
        self._projection[self.size - 1, : self.size] = column
        coupling = self._suspend(w)
        if self.chain is not None and not (self.restarted or self.chain.exhausted):
            self.chain.alphas.append(float(column[-1]))
            self.chain.betas.append(coupling)
        self.steps += 1
        self._unseen += 1
        self.unbroken += not self.restarted

    def ritz(self) -> Ritz:
        """Return the Ritz pairs, with ‖HVs − θVs‖ = ‖C s‖ as estimates of their residuals."""
        values, vectors = np.linalg.eigh(self._projection[: self.size, : self.size])
        values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
        estimates = np.linalg.norm(self.couplings @ vectors, axis=0)
        self.largest = max(self.largest, float(np.abs(values).max()))
        self.lowest = min(self.lowest, float(values[-1] - estimates[-1]))
        self.highest = max(self.highest, float(values[0] + estimates[0]))
        self._unseen = 0
        return Ritz(values, estimates, vectors)

    def worst(self, ritz: Ritz) -> float:
        """Return the largest residual estimate of the wanted pairs, relative to ‖H‖."""
        worst = max(float(e.order(ritz.estimates)[: e.wanted].max()) for e in self.ends)
        return worst / self.largest if self.largest else 0.0

    def outermost(self, *, spare: int = 0) -> list[int]:
        """Return the positions of the wanted Ritz pairs, and of spare ones further in."""
        inwards = spare // 2 if len(self.ends) > 1 else 0
        top = self.k + spare - inwards
        bottom = self.n_wanted - self.k + inwards
        return [*range(top), *range(self.size - bottom, self.size)]

    def lock(self, vectors: Tensor, values: Floats, residual: float) -> None:
        """Start afresh from converged eigenvectors and a random vector orthogonal to them."""
        self._keep(vectors, values)
        self.inherited = residual / self.largest if self.largest else 0.0
        # What H adds to a locked vector is not kept: no pending vector stands for it.
        self._blind = self.size
        self.pending, self.couplings = [], np.zeros((0, self.size))
        self.width, self._starts = 1, 0
        self.steps = self.unbroken = 0
        self.restarted = False
        self._random = True
        self.chain = Chain(self.operator.n - self.size)

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

    def _suspend(self, w: Tensor) -> float:
        """Take the rest of a product for a pending vector, unless it is rounding only."""
        if self.complete:
            self.pending, self.couplings = [], np.zeros((0, self.size))
            return 0.0
        for _ in range(2):
            for i, q in enumerate(self.pending):
                overlap = float(inner(q[None], w))
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

    def _compare(self, column: Floats, known: Floats) -> None:
        difference = float(np.abs(column - known).max(initial=0.0))
        self.asymmetry = max(self.asymmetry, difference)
        check_symmetric(self.asymmetry, self.operator)

    def _restart(self) -> None:
        """Keep the best Ritz vectors only: the wanted ones and half of the others."""
        ritz = self.ritz()
        kept = self.outermost(spare=(self.capacity - self.n_wanted) // 2)
        mix = ritz.coefficients[:, kept]
        combine(mix, self.rows, out=self._vectors[: len(kept)])
        self._keep(self._vectors[: len(kept)], ritz.values[kept])
        self.couplings = self.couplings @ mix
        self._blind = self.size if self._blind else 0
        self.restarted = True

    def _keep(self, vectors: Tensor, values: Floats) -> None:
        self.size = len(vectors)
        self._vectors[: self.size] = vectors
        self._projection[:] = 0.0
        np.fill_diagonal(self._projection[: self.size, : self.size], values)

    def _grow(self) -> None:
        rows = min(2 * self.size, self.capacity)
        vectors = self._vectors.new_empty((rows, self.operator.n))
        vectors[: self.size] = self._vectors
        projection = np.zeros((rows, rows))
        projection[: self.size, : self.size] = self._projection
        self._vectors, self._projection = vectors, projection
