"""The Lanczos recurrence from one vector, a product at a time, and rows of vectors that grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.krylov import Floats, Operator, inner, norm, orthogonalise

# Rounding of a Lanczos step, relative to ‖A‖, in units of the rounding of one number.
ROUNDING = 10.0


class Rows:
    """Vectors as the rows of a matrix that grows."""

    def __init__(self, operator: Operator, capacity: int = 8) -> None:
        shape = (capacity, operator.n)
        self._size = 0
        self._all = torch.empty(shape, dtype=operator.storage, device=operator.device)

    @property
    def rows(self) -> Tensor:
        """The vectors so far, shape (m, n)."""
        return self._all[: self._size]

    def append(self, v: Tensor) -> None:
        """Copy a vector into the next row."""
        if self._size == len(self._all):
            more = torch.empty_like(self._all) if self._size else self._all.new_empty(1, len(v))
            self._all = torch.cat([self._all, more])
        self._all[self._size] = v
        self._size += 1

    def products(self, vectors: Tensor) -> Floats:
        """Return the inner products with other vectors, one column for each."""
        columns = [inner(self.rows, v).cpu().numpy() for v in vectors]
        products = np.array(columns, dtype=np.float64).reshape(len(vectors), self._size)
        return np.asarray(products.T)


class LanczosRun:
    """A Lanczos basis V with full reorthogonalisation: A V = V T + β vₘ₊₁ eₘᵀ.

    Attributes:
        basis: V, one vector per row, after the vectors that it is orthogonal to.
        vector: vₘ₊₁, to be multiplied next; None where the space is exhausted.
        alphas: diagonal of T.
        betas: its off-diagonal, and last β, 0 where the space was exhausted.
    """

    def __init__(
        self, operator: Operator, *, capacity: int, against: Sequence[Tensor] = ()
    ) -> None:
        """Start from a random vector; all vectors are orthogonal to the rows of ``against``."""
        self._operator = operator
        self.basis = Rows(operator, capacity + len(against))
        for row in against:
            self.basis.append(row)
        self.alphas: list[float] = []
        self.betas: list[float] = []
        full = len(against) == operator.n
        self.vector = None if full else operator.random_unit_vector(self.basis.rows)

    def advance(self, product: Tensor) -> None:
        """Take the product with `vector`, which is overwritten, into the basis."""
        operator = self._operator
        if self.vector is not None:
            self.basis.append(self.vector)
        rows = self.basis.rows
        self.alphas.append(float(orthogonalise(product, rows)[-1]))
        beta = norm(product)
        tiny = ROUNDING * operator.storage_eps * operator.norm
        exhausted = len(rows) == operator.n or beta <= tiny
        self.betas.append(0.0 if exhausted else beta)
        self.vector = None if exhausted else product.div_(beta)

    def next_vector(self) -> Tensor:
        """Return `vector`, or where the space is exhausted a random one of its complement."""
        if self.vector is None:
            self.vector = self._operator.random_unit_vector(self.basis.rows)
        return self.vector

    def projection(self) -> Floats:
        """Return T, shape (m, m)."""
        off = self.betas[:-1]
        return np.asarray(np.diag(self.alphas) + np.diag(off, 1) + np.diag(off, -1))

    def forget(self) -> None:
        """Drop the vectors; T remains."""
        self.vector, self.basis = None, Rows(self._operator, 0)
