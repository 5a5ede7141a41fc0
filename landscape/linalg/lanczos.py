"""Top eigenpairs by thick-restart Lanczos with full reorthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError
from landscape.linalg.basis import KrylovBasis, Ritz
from landscape.linalg.krylov import (
    Callback,
    EigenSolution,
    Floats,
    Matvec,
    Operator,
    check_request,
    check_start,
    combine,
    descending,
    norm,
    rayleigh,
)
from landscape.linalg.stopping import MISS_RISK, Stagnation, chance_of_a_miss

# A residual estimate below this, relative to the largest |θ|, is rounding of the small problem.
_ROUNDING = 1e-13


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
    minimum) nothing absolute enters. Where rounding keeps a true residual above its estimate, the
    search goes on as long as that helps; after that the answer says ``converged=False``.

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
    eigenvalue takes one round more. Memory: the basis, 2k eigenvectors and three vectors.

    References:
        Parlett (1998), The Symmetric Eigenvalue Problem; Wu and Simon (2000), thick-restart
        Lanczos, SIAM J. Matrix Anal. Appl. 22; Kuczyński and Woźniakowski (1992), random starts,
        SIAM J. Matrix Anal. Appl. 13.

    >>> diagonal = torch.tensor([-9.0, 0.0, 1.0, 3.0, 3.0])
    >>> found = lanczos(lambda v: diagonal * v, 5, k=3, dtype=torch.float32, device="cpu")
    >>> found.values.round(5).tolist(), found.converged
    ([3.0, 3.0, 1.0], True)
    """
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
    # An estimate a tenth of the rounding in a product adds nothing to a true residual.
    floor = max(_ROUNDING, 0.1 * basis.operator.eps)
    demanded, worst_before = max(tol, floor), math.inf
    while True:
        estimate = _converge(basis, demanded)
        values, residuals, vectors = _measured_pairs(basis)
        worst = float(residuals.max())
        met = worst <= tol * basis.largest
        finished = basis.complete
        if not (finished or basis.operator.left <= k):
            if not met and floor < estimate <= demanded and worst < 0.9 * worst_before:
                demanded, worst_before = max(estimate / 10.0, floor), worst
                continue
            # Stagnation is no reason to skip the check: a missed eigenvalue is the larger error.
            basis.lock(vectors, values, worst)
            finished = _none_missed(basis, values, max(tol * basis.largest, worst))
            if not finished:
                demanded, worst_before = max(tol, floor), math.inf
                continue
        return EigenSolution(
            values=values,
            residuals=residuals,
            vectors=vectors,
            matvecs=basis.operator.matvecs,
            converged=met and finished,
        )


def _search(basis: KrylovBasis, done: Callable[[Ritz], bool]) -> Ritz:
    """Return Ritz pairs that will do, or the last ones before products or dimensions run out."""
    while True:
        out_of_budget = basis.operator.left <= basis.k
        if basis.due or out_of_budget:
            ritz = basis.ritz()
            basis.operator.residual = max(_relative(ritz, basis), basis.inherited)
            if done(ritz) or basis.complete or out_of_budget:
                return ritz
        basis.step()


def _converge(basis: KrylovBasis, limit: float) -> float:
    """Return the relative residual estimate, once it is within a limit or falls no further."""
    stagnation = Stagnation()

    def done(ritz: Ritz) -> bool:
        estimate, rounding = _relative(ritz, basis), basis.operator.eps
        return estimate <= limit or stagnation.reached(estimate, rounding=rounding)

    return _relative(_search(basis, done), basis)


def _relative(ritz: Ritz, basis: KrylovBasis) -> float:
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
    return descending(measured, vectors)


def _none_missed(basis: KrylovBasis, values: Floats, slack: float) -> bool:
    """Return whether the complement of the locked pairs holds nothing that belongs among them."""
    k, n = basis.k, basis.operator.n

    def found(ritz: Ritz) -> bool:
        return bool((ritz.values[:k] > values + slack).any())

    def cleared(ritz: Ritz) -> bool:
        if basis.size == k:
            return False
        span = float(values[-1]) - basis.lowest
        gap = (float(values[-1]) - float(ritz.values[k])) / span if span > 0.0 else 0.0
        chance = chance_of_a_miss(gap, n - k, krylov_steps=basis.unbroken, steps=basis.steps)
        return bool(ritz.estimates[k] <= slack) or chance <= MISS_RISK

    ritz = _search(basis, lambda r: found(r) or cleared(r))
    return not found(ritz) and (cleared(ritz) or basis.complete)
