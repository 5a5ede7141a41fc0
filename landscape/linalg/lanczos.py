"""Top eigenpairs by thick-restart Lanczos with full reorthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import (
    MISS_RISK,
    Callback,
    EigenSolution,
    Floats,
    Matvec,
    Operator,
    chance_of_a_miss,
    check_request,
    check_start,
    combine,
    norm,
    orthogonalise,
    rayleigh,
)

# Rows to begin with when the basis may grow as needed.
_FIRST_ROWS = 32


def lanczos(
    matvec: Matvec,
    n: int,
    *,
    k: int = 1,
    tol: float = 1e-6,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    seed: int = 0,
    dtype: torch.dtype,
    device: torch.device | str,
    start: Tensor | None = None,
    callback: Callback | None = None,
) -> EigenSolution:
    """Find the k largest (algebraic) eigenpairs of a symmetric operator by Lanczos.

    Builds an orthonormal basis V of a Krylov space, every new vector orthogonalised twice against
    all others, so that no eigenvalue shows up as a ghost copy of itself. The eigenpairs (θ, s) of
    VᵀHV give the Ritz pairs (θ, Vs). Once their residuals, estimated for free, meet the
    tolerance, they are computed with a product for each, and only these true residuals decide:

        ‖Hvᵢ − θᵢvᵢ‖ ≤ tol · max |θ|,  the largest |θ| over all Ritz values seen, of either sign.

    That scale is ‖H‖₂ in effect. Rounding in H v is proportional to it, so a tolerance relative to
    each θᵢ could not be met by a small one; and for an operator that is small as a whole (a flat
    minimum) nothing absolute enters. Should rounding keep a true residual above its estimate, the
    search goes on as long as that helps, and else returns ``converged=False``.

    A residual proves an eigenvalue near θ, not that none was missed: one start vector meets each
    repeated eigenvalue once. So the search is run again from a random vector in the complement
    of what was found, until the chance that it holds an eigenvalue above θₖ is below 1e-4
    (`chance_of_a_miss`), or its own top pair has converged below θₖ. Whatever it finds joins the
    basis, and all is repeated.

    Args:
        matvec: v ↦ Hv for a flat vector of ``n`` entries of ``dtype`` on ``device``.
        n: size of H.
        k: number of eigenpairs, 1 ≤ k ≤ n.
        tol: tolerance on the residuals, relative to the largest |θ|. Near the rounding of
            ``dtype`` (1e-6 in float32, through a network) it may not be attainable.
        max_matvecs: products that may be spent, at least 2k; None: max(1000, 20 k).
        max_basis: basis vectors that may be stored, at least max(8, k + 3); when they are used
            up the basis is compressed to the best Ritz vectors (thick restart), which takes
            less memory and more products. None: as many as needed.
        seed: seed of every random vector.
        dtype: floating-point type that ``matvec`` takes.
        device: device that ``matvec`` takes.
        start: first vector, shape (n,), such as an eigenvector of the checkpoint before; None:
            random. The search for missed eigenvalues starts at random in any case.
        callback: called after each product with the number of products so far and the largest
            residual estimate relative to the largest |θ|, infinite until there is one.

    Returns:
        The eigenpairs in descending order, with true residuals. Vectors are float32 at least.

    Raises:
        InvalidArgumentError: if an argument is out of its range, or a product is of another shape.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: m products to converge, k for the true residuals, and for the check about 10 where θₖ
    stands clear of the rest of the spectrum, up to about m where it does not; each repeated
    eigenvalue takes one round more. Memory: the basis, k eigenvectors and three vectors.

    References:
        Parlett (1998), The Symmetric Eigenvalue Problem; Wu and Simon (2000), thick-restart
        Lanczos, SIAM J. Matrix Anal. Appl. 22; Kuczyński and Woźniakowski (1992), random starts,
        SIAM J. Matrix Anal. Appl. 13.

    >>> diagonal = torch.tensor([-9.0, 0.0, 1.0, 3.0, 3.0])
    >>> found = lanczos(lambda v: diagonal * v, 5, k=3, dtype=torch.float32, device="cpu")
    >>> found.values.round(5).tolist(), found.converged
    ([3.0, 3.0, 1.0], True)
    """  # noqa: DOC502 - raised by what it calls, and part of its contract
    limit = max(1000, 20 * k) if max_matvecs is None else max_matvecs
    check_request(n, k=k, tol=tol, dtype=dtype, max_matvecs=limit, least=2 * k)
    _check_basis(max_basis, n, k)
    operator = Operator(
        matvec, n, dtype=dtype, device=device, seed=seed, max_matvecs=limit, callback=callback
    )
    basis = KrylovBasis(operator, k=k, capacity=max_basis)
    if start is not None:
        check_start(start, n)
        basis.following = operator.unit_vector(start)
    return _solve(basis, k, tol)


@dataclass(frozen=True)
class _Ritz:
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

    def ritz(self) -> _Ritz:
        """Return the Ritz pairs, with ‖HVs − θVs‖ estimated as coupling · |last entry of s|."""
        values, vectors = np.linalg.eigh(self._projection[: self.size, : self.size])
        values, vectors = values[::-1].copy(), vectors[:, ::-1].copy()
        estimates = self.coupling * np.abs(vectors[-1])
        self.largest = max(self.largest, float(np.abs(values).max()))
        self.lowest = min(self.lowest, float(values[-1] - estimates[-1]))
        self._unseen = 0
        return _Ritz(values, estimates, vectors)

    def lock(self, vectors: Tensor, values: Floats) -> None:
        """Start afresh from converged eigenvectors and a random vector orthogonal to them."""
        self._keep(vectors, values)
        self.following = None
        self.coupling = 0.0
        self.steps = self.unbroken = 0
        self._restarted = False

    def _set_following(self, w: Tensor) -> None:
        """Take the rest of a product as the next vector, unless it is rounding only."""
        self.coupling = norm(w)
        if self.complete or self.coupling <= 10.0 * self.operator.eps * self.operator.norm:
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


def _check_basis(max_basis: int | None, n: int, k: int) -> None:
    least = max(8, k + 3)
    if max_basis is not None and max_basis < min(least, n):
        msg = (
            f"max_basis = {max_basis} vectors; expected at least {min(least, n)} for k = {k} "
            f"and n = {n}; raise max_basis, lower k, or use power_iteration, which stores none"
        )
        raise InvalidArgumentError(msg)


def _solve(basis: KrylovBasis, k: int, tol: float) -> EigenSolution:
    """Return the top pairs: search, measure, check for missed ones, until none was missed."""
    demanded, worst_before = tol, math.inf
    while True:
        _search(basis, partial(_within, basis=basis, limit=demanded))
        values, residuals, vectors = _measured_pairs(basis)
        met = bool(residuals.max() <= tol * basis.largest)
        finished = basis.complete
        if not (finished or basis.operator.left <= k):
            worst = float(residuals.max())
            if not met and worst < 0.9 * worst_before:
                demanded, worst_before = demanded / 10.0, worst
                continue
            # Stagnation is no reason to skip the check: a missed eigenvalue is the larger error.
            slack = max(tol * basis.largest, float(residuals.max()))
            basis.lock(vectors, values)
            finished = _none_missed(basis, values, slack)
            if not finished:
                demanded, worst_before = tol, math.inf
                continue
        return EigenSolution(
            values=values,
            residuals=residuals,
            vectors=vectors,
            matvecs=basis.operator.matvecs,
            converged=met and finished,
        )


def _search(basis: KrylovBasis, done: Callable[[_Ritz], bool]) -> _Ritz:
    """Return Ritz pairs that will do, or the last ones before products or dimensions run out."""
    while True:
        out_of_budget = basis.operator.left <= basis.k
        if basis.due or out_of_budget:
            ritz = basis.ritz()
            if basis.size > basis.k or basis.complete:
                basis.operator.residual = _relative(ritz, basis)
            if done(ritz) or basis.complete or out_of_budget:
                return ritz
        basis.step()


def _within(ritz: _Ritz, *, basis: KrylovBasis, limit: float) -> bool:
    return bool((ritz.estimates[: basis.k] <= limit * basis.largest).all())


def _relative(ritz: _Ritz, basis: KrylovBasis) -> float:
    worst = float(ritz.estimates[: basis.k].max())
    return worst / basis.largest if basis.largest else 0.0


def _measured_pairs(basis: KrylovBasis) -> tuple[Floats, Floats, Tensor]:
    """Return the top Ritz pairs with true residuals, for one product each."""
    k, operator = basis.k, basis.operator
    vectors = basis.rows.new_empty((k, operator.n))
    combine(basis.ritz().coefficients[:, :k], basis.rows, out=vectors)
    for v in vectors:
        v.div_(norm(v))
    measured = np.array([rayleigh(v, operator(v)) for v in vectors])
    order = np.argsort(-measured[:, 0], kind="stable")
    return measured[order, 0], measured[order, 1], vectors[torch.from_numpy(order)]


def _none_missed(basis: KrylovBasis, values: Floats, slack: float) -> bool:
    """Return whether the complement of the locked pairs holds nothing that belongs among them."""
    k, n = basis.k, basis.operator.n

    def found(ritz: _Ritz) -> bool:
        return bool((ritz.values[:k] > values + slack).any())

    def cleared(ritz: _Ritz) -> bool:
        if basis.size == k:
            return False
        span = float(values[-1]) - basis.lowest
        gap = (float(values[-1]) - float(ritz.values[k])) / span if span > 0.0 else 0.0
        chance = chance_of_a_miss(gap, n - k, krylov_steps=basis.unbroken, steps=basis.steps)
        return bool(ritz.estimates[k] <= slack) or chance <= MISS_RISK

    ritz = _search(basis, lambda r: found(r) or cleared(r))
    return not found(ritz) and (cleared(ritz) or basis.complete)
