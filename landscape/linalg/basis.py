"""An orthonormal basis that grows by Lanczos steps, and can be compressed or started afresh."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.krylov import Floats, Operator, combine, norm, orthogonalise

# Rows to begin with when the basis may grow as needed.
_FIRST_ROWS = 32


@dataclass(frozen=True)
class Ritz:
    """Ritz values, descending; estimates of their residuals; coefficients, one column each."""

    values: Floats
    estimates: Floats
    coefficients: Floats


class KrylovBasis:
    """An orthonormal basis V, the projection VᵀHV, and the vector that comes next.

    Every coefficient of H v against the basis is kept, so that the projection is right whatever
    the basis holds: a Krylov sequence, vectors kept by a restart, or converged ones.

    Attributes:
        size: vectors in the basis.
        following: the next basis vector; None: to be drawn at random, because the space so far
            is invariant or the search starts afresh.
        coupling: norm of what the last product added to the space.
        steps: products since the search last started.
        unbroken: those of them before its first restart.
        largest: largest |Ritz value| seen.
        lowest: lower end of the spectrum, as far as seen: smallest Ritz value less its residual.
        inherited: relative residual of the locked pairs, which no later estimate sees.
    """

    def __init__(self, operator: Operator, *, k: int, capacity: int | None) -> None:
        self.operator = operator
        self.k = k
        self.capacity = operator.n if capacity is None else min(capacity, operator.n)
        self.size = 0
        self.following: Tensor | None = None
        self.coupling = 0.0
        self.steps = 0
        self.unbroken = 0
        self.largest = 0.0
        self.lowest = math.inf
        self.inherited = 0.0
        self._restarted = False
        self._unseen = 0
        first = self.capacity if capacity is not None else min(_FIRST_ROWS + k, self.capacity)
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
        return self.size >= self.k and (
            self._unseen > self.size // 32 or self.size == self.capacity or self.coupling == 0.0
        )

    def step(self) -> None:
        """Add the next vector to the basis, with one product."""
        if self.size == self.capacity:
            self._restart()
        elif self.size == len(self._vectors):
            self._grow()
        v = self.following
        self._vectors[self.size] = self.operator.random_unit_vector(self.rows) if v is None else v
        self.size += 1
        w = self.operator(self._vectors[self.size - 1])
        column = orthogonalise(w, self.rows)
        self._projection[: self.size, self.size - 1] = column
        self._projection[self.size - 1, : self.size] = column
        self._set_following(w)
        self.steps += 1
        self._unseen += 1
        self.unbroken += not self._restarted

    def ritz(self) -> Ritz:
        """Return the Ritz pairs, with ‖HVs − θVs‖ estimated as coupling · |last entry of s|."""
        values, vectors = np.linalg.eigh(self._projection[: self.size, : self.size])
        values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
        estimates = self.coupling * np.abs(vectors[-1])
        self.largest = max(self.largest, float(np.abs(values).max()))
        self.lowest = min(self.lowest, float(values[-1] - estimates[-1]))
        self._unseen = 0
        return Ritz(values, estimates, vectors)

    def lock(self, vectors: Tensor, values: Floats, residual: float) -> None:
        """Start afresh from converged eigenvectors and a random vector orthogonal to them."""
        self._keep(vectors, values)
        self.inherited = residual / self.largest if self.largest else 0.0
        self.following = None
        self.coupling = 0.0
        self.steps = self.unbroken = 0
        self._restarted = False

    def _set_following(self, w: Tensor) -> None:
        """Take the rest of a product as the next vector, unless it is rounding only."""
        self.coupling = norm(w)
        if self.complete or self.coupling <= 10.0 * self.operator.storage_eps * self.operator.norm:
            self.following, self.coupling = None, 0.0
        else:
            self.following = w.div_(self.coupling)

    def _restart(self) -> None:
        """Keep the best Ritz vectors only: the wanted ones and half of the others."""
        ritz = self.ritz()
        kept = self.k + (self.capacity - self.k) // 2
        combine(ritz.coefficients[:, :kept], self.rows, out=self._vectors[:kept])
        self._keep(self._vectors[:kept], ritz.values[:kept])
        self._restarted = True

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
