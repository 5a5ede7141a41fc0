"""Extreme eigenpairs by thick-restart Lanczos with full reorthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError
from landscape.linalg.basis import End, KrylovBasis, Ritz
from landscape.linalg.bounds import FAILURE_PROBABILITY, Enclosure, Rest, kato_temple, widened
from landscape.linalg.budget import least_basis, n_wanted
from landscape.linalg.checks import check_request, check_start
from landscape.linalg.krylov import (
    Callback,
    EigenSolution,
    Floats,
    Matvec,
    Operator,
    combine,
    descending,
    norm,
    rayleigh,
)
from landscape.linalg.stopping import MISS_RISK, Stagnation, chance_of_a_miss

# A residual estimate below this, relative to the largest |θ|, is rounding of the small problem.
_ROUNDING = 1e-13
# Length of the random part of a start that was given, relative to the rest.
_FRESH = 0.05


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
    both_ends: bool = False,
    block: int = 1,
    start: Tensor | None = None,
    callback: Callback | None = None,
) -> EigenSolution:
    """Find the k largest (algebraic) eigenpairs of a symmetric operator by Lanczos, or both ends.

    Builds an orthonormal basis V of a Krylov space, every new vector orthogonalised twice against
    all others, so that no eigenvalue shows up as a ghost copy of itself. The eigenpairs (θ, s) of
    VᵀHV give the Ritz pairs (θ, Vs). Once their residuals, estimated for free, meet the
    tolerance, they are computed with a product for each, and only these true residuals decide:

        ‖Hvᵢ − θᵢvᵢ‖ ≤ tol · max |θ|,  the largest |θ| over all Ritz values seen, of either sign.

    That scale is ‖H‖₂ in effect. Rounding in H v is proportional to it, so a tolerance relative to
    each θᵢ could not be met by a small one; and for an operator that is small as a whole (a flat
    minimum) nothing absolute enters. Where rounding keeps a true residual above its estimate, the
    search goes on as long as that helps; after that the answer says ``converged=False``.

    A residual proves an eigenvalue near θ, not that none was missed. The tridiagonal matrix of an
    uninterrupted run from a random vector bounds the chance that one lies above θ₁
    (`Chain.bound`); this settles it for k = 1. One vector, however, meets each repeated
    eigenvalue only once. So for k > 1 the search is run again from a random vector in the
    complement of what was found, until the chance that it holds an eigenvalue above θₖ is below
    1e-4, by that bound or by one on the gap (`chance_of_a_miss`), or its own top pair has
    converged below θₖ. Whatever it finds joins the basis, and all is repeated.

    With several random vectors to start from (``block``) the basis is that of band Lanczos: b
    vectors meet a b-fold eigenvalue b times, and clusters more evenly, but reach a degree of m/b
    only after m products.

    Args:
        matvec: v ↦ Hv for a flat vector of ``n`` entries of ``dtype`` on ``device``.
        n: size of H.
        k: number of eigenpairs, 1 ≤ k ≤ n; of each end, where both are sought.
        tol: tolerance on the residuals, relative to the largest |θ|. Near the rounding of
            ``dtype`` (1e-6 in float32, through a network) it may not be attainable.
        max_matvecs: products that may be spent, at least 2K; None: max(1000, 20 K),
            where K = min(2k, n) if both ends are sought, else k.
        max_basis: basis vectors that may be stored, at least max(8, K + 3); when they are used
            up the basis is compressed to the best Ritz vectors (thick restart), which takes
            less memory and more products. None: as many as needed. See `basis_for`.
        seed: seed of every random vector.
        dtype: floating-point type that ``matvec`` takes.
        device: device that ``matvec`` takes.
        both_ends: find the k smallest eigenpairs as well, from the same basis: min(2k, n) pairs
            in all, to the same tolerance.
        block: number of random start vectors, if none is given.
        start: vectors to start near, shape (n,) or (b, n), such as eigenvectors of the checkpoint
            before: their sum, with a random vector of a twentieth of its length, so that nothing
            new is left out; None: random. The search for missed eigenvalues starts at random in
            any case.
        callback: called after each product with the number of products so far and the largest
            residual estimate relative to the largest |θ|, infinite until there is one.

    Returns:
        The eigenpairs in descending order, with true residuals, the lower end last. Vectors are
        float32 at least. The bounds on the whole spectrum come from the uninterrupted part of
        each run from a single random vector; from several vectors, or after an early restart,
        they are wide or infinite, unless the search for missed eigenvalues was needed.

    Raises:
        InvalidArgumentError: if an argument is out of its range, a product is of another shape,
            or H is not symmetric.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: m products to converge, K for the true residuals, and for the check a few for k = 1,
    else about 10 where θₖ stands clear of the rest of the spectrum, up to about m where it does
    not; each repeated eigenvalue takes one round more. Memory, in vectors of n entries: the basis
    (max_basis), a pending one for each start vector, 2K results, and 3 for work. Without
    max_basis the basis is as large as the products are many, and half as large again while it is
    copied to more room.

    References:
        Parlett (1998), The Symmetric Eigenvalue Problem; Wu and Simon (2000), thick-restart
        Lanczos, SIAM J. Matrix Anal. Appl. 22; Ruhe (1979), band Lanczos, Math. Comput. 33;
        Kuczyński and Woźniakowski (1992), random starts, SIAM J. Matrix Anal. Appl. 13; van
        Dorsselaer, Hochstenbach and van der Vorst (2000), bounds, SIAM J. Matrix Anal. Appl. 22.

    >>> diagonal = torch.tensor([-9.0, 0.0, 1.0, 3.0, 3.0])
    >>> found = lanczos(lambda v: diagonal * v, 5, k=3, dtype=torch.float32, device="cpu")
    >>> found.values.round(5).tolist(), found.converged
    ([3.0, 3.0, 1.0], True)
    >>> found = lanczos(
    ...     lambda v: diagonal * v, 5, both_ends=True, dtype=torch.float32, device="cpu"
    ... )
    >>> found.values.round(5).tolist(), found.n_lowest
    ([3.0, -9.0], 1)
    """
    wanted = n_wanted(n, k=k, both_ends=both_ends)
    limit = max(1000, 20 * wanted) if max_matvecs is None else max_matvecs
    check_request(n, k=k, tol=tol, dtype=dtype, max_matvecs=limit, least=2 * wanted)
    _check_basis(max_basis, n, k=k, wanted=wanted)
    if block < 1:
        msg = f"block = {block} start vectors; expected at least 1"
        raise InvalidArgumentError(msg)
    if start is not None:
        check_start(start, n, several=True)
    operator = Operator(
        matvec, n, dtype=dtype, device=device, seed=seed, max_matvecs=limit, callback=callback
    )
    basis = KrylovBasis(operator, k=k, capacity=max_basis, both_ends=both_ends)
    if start is None:
        basis.begin(operator.random_unit_vector() for _ in range(block))
    else:
        basis.begin([_warm(operator, start)], random=False)
    return _solve(basis, tol)


def _check_basis(max_basis: int | None, n: int, *, k: int, wanted: int) -> None:
    least = least_basis(n, wanted)
    if max_basis is not None and max_basis < least:
        ends = " at both ends" if wanted > k else ""
        msg = (
            f"max_basis = {max_basis} vectors; expected at least {least} for k = {k}{ends} "
            f"and n = {n}; raise max_basis, lower k, or use power iteration, which stores none"
        )
        raise InvalidArgumentError(msg)


def _warm(operator: Operator, start: Tensor) -> Tensor:
    """Return one vector with all the given ones in it, and a little of every other direction.

    One Krylov space that begins near all of them takes fewer products than a block of them.
    """
    rows = start.reshape(-1, operator.n)
    mixed = operator.random_unit_vector().mul_(_FRESH * math.sqrt(len(rows)))
    for row in rows:
        mixed.add_(operator.unit_vector(row))
    return mixed.div_(norm(mixed))


@dataclass
class _Pairs:
    """Ritz pairs with true residuals, and where the other eigenvalues appear to be."""

    values: Floats
    residuals: Floats
    vectors: Tensor
    rest: Rest

    @property
    def worst(self) -> float:
        """The largest residual."""
        return float(self.residuals.max())


def _solve(basis: KrylovBasis, tol: float) -> EigenSolution:
    """Return the wanted pairs: search, measure, check for missed ones, until none was missed."""
    # An estimate a tenth of the rounding in a product adds nothing to a true residual.
    floor = max(_ROUNDING, 0.1 * basis.operator.eps)
    demanded, worst_before = max(tol, floor), math.inf
    enclosure, locked = Enclosure(), (np.empty(0), np.empty(0))
    while True:
        estimate = _converge(basis, demanded)
        pairs = _measured_pairs(basis)
        met = pairs.worst <= tol * basis.largest
        slack = max(tol * basis.largest, pairs.worst)
        finished = basis.complete or _shown(basis, pairs, slack) >= 1.0
        if not basis.complete and basis.operator.left > basis.n_wanted:
            if not met and floor < estimate <= demanded and pairs.worst < 0.9 * worst_before:
                demanded, worst_before = max(estimate / 10.0, floor), pairs.worst
                continue
            # Stagnation is no reason to skip the check: a missed eigenvalue is the larger error.
            finished = finished or _settled(basis, pairs, slack)
            if not finished:
                _enclose(enclosure, basis, *locked)
                basis.lock(pairs.vectors, pairs.values, pairs.worst)
                locked = (pairs.values, pairs.residuals)
                finished = _none_missed(basis, pairs, slack)
            if not finished:
                demanded, worst_before = max(tol, floor), math.inf
                del pairs  # the basis holds its vectors, and new ones need the room
                continue
        _enclose(enclosure, basis, *locked)
        return _solution(basis, pairs, enclosure, converged=met and finished)


def _solution(
    basis: KrylovBasis, pairs: _Pairs, enclosure: Enclosure, *, converged: bool
) -> EigenSolution:
    operator = basis.operator
    rounding = 10.0 * operator.eps * max(basis.largest, operator.norm)
    return EigenSolution(
        values=pairs.values,
        n_lowest=basis.n_wanted - basis.k,
        residuals=pairs.residuals,
        errors=kato_temple(pairs.values, pairs.residuals, pairs.rest),
        upper_bound=max(enclosure.upper, float(pairs.values[0])) + rounding,
        lower_bound=min(enclosure.lower, float(pairs.values[-1])) - rounding,
        failure_probability=FAILURE_PROBABILITY,
        asymmetry=basis.asymmetry / (operator.norm or 1.0),
        vectors=pairs.vectors,
        matvecs=operator.matvecs,
        converged=converged,
    )


def _search(basis: KrylovBasis, done: Callable[[Ritz], bool]) -> Ritz:
    """Return Ritz pairs that will do, or the last ones before products or dimensions run out."""
    while True:
        out_of_budget = basis.operator.left <= basis.n_wanted
        if basis.due or out_of_budget:
            ritz = basis.ritz()
            basis.operator.residual = max(basis.worst(ritz), basis.inherited)
            if done(ritz) or basis.complete or out_of_budget:
                return ritz
        basis.step()


def _converge(basis: KrylovBasis, limit: float) -> float:
    """Return the relative residual estimate, once it is within a limit or falls no further."""
    stagnation = Stagnation()

    def done(ritz: Ritz) -> bool:
        estimate, rounding = basis.worst(ritz), basis.operator.eps
        return estimate <= limit or stagnation.reached(estimate, rounding=rounding)

    return basis.worst(_search(basis, done))


def _measured_pairs(basis: KrylovBasis) -> _Pairs:
    """Return the wanted Ritz pairs with true residuals, for one product each."""
    operator, ritz = basis.operator, basis.ritz()
    vectors = basis.rows.new_empty((basis.n_wanted, operator.n))
    combine(ritz.coefficients[:, basis.outermost()], basis.rows, out=vectors)
    for v in vectors:
        v.div_(norm(v))
    measured = np.array([rayleigh(v, operator(v)) for v in vectors])
    return _Pairs(*descending(measured, vectors), _rest(basis, ritz))


def _rest(basis: KrylovBasis, ritz: Ritz) -> Rest:
    """Return where the eigenvalues beyond the wanted ones begin, as far as the basis shows."""
    if basis.size == basis.n_wanted:
        edge = -math.inf if basis.complete else math.inf
        return Rest(-edge, edge)
    edges = {1.0: math.inf, -1.0: math.inf}
    for end in basis.ends:
        estimate = end.order(ritz.estimates)[end.wanted]
        edges[end.sign] = float(end.values(ritz.values)[end.wanted] + estimate)
    return Rest(-edges[-1.0], edges[1.0])


def _enclose(enclosure: Enclosure, basis: KrylovBasis, values: Floats, residuals: Floats) -> None:
    """Add what a search has shown of the whole spectrum, given the pairs locked before it."""
    failure = enclosure.grant()
    if basis.complete:
        ritz = basis.ritz().values
        lower, upper = float(ritz[-1]), float(ritz[0])
    elif basis.chain is not None:
        lower, upper = (basis.chain.bound(sign, failure=failure) for sign in (-1.0, 1.0))
    else:
        ritz, degree = basis.ritz().values, basis.degree
        lower, upper = float(ritz[-1]), float(ritz[0])
        reach = widened(lower, upper, basis.operator.n, degree=degree, failure=failure)
        lower, upper = lower - reach, upper + reach
    if len(values):
        # With R the residuals of what is locked, H is block diagonal but for √2 ‖R‖ at most.
        coupling = math.sqrt(2.0) * float(np.linalg.norm(residuals))
        lower = min(lower, float(values[-1])) - coupling
        upper = max(upper, float(values[0])) + coupling
    enclosure.narrow(lower, upper)


def _shown(basis: KrylovBasis, pairs: _Pairs, slack: float) -> float:
    """Return how near the run itself is to showing that nothing lies beyond; at least 1: it does.

    That will do where one pair is sought at an end, as copies of its eigenvalue do not matter.
    """
    if basis.k > 1 or basis.chain is None:
        return 0.0
    edges = [(end, end.sign * float(end.values(pairs.values)[0]) + slack) for end in basis.ends]
    return min(basis.chain.progress(e.sign * t, e.sign, failure=MISS_RISK) for e, t in edges)


def _settled(basis: KrylovBasis, pairs: _Pairs, slack: float) -> bool:
    """Return whether the run, continued, shows that nothing lies beyond.

    The component of the start along the top eigenvector need not be found again, which takes
    fewer products than a search in the complement, if it is half way there already.
    """
    most = 2 * basis.unbroken
    if _shown(basis, pairs, slack) < 0.5:
        return False

    def done(ritz: Ritz) -> bool:
        halted = basis.restarted or basis.unbroken >= most or _found(basis, ritz, pairs, slack)
        return halted or _shown(basis, pairs, slack) >= 1.0

    ritz = _search(basis, done)
    return _shown(basis, pairs, slack) >= 1.0 and not _found(basis, ritz, pairs, slack)


def _found(basis: KrylovBasis, ritz: Ritz, pairs: _Pairs, slack: float) -> bool:
    """Return whether a Ritz value shows that an eigenvalue was missed."""
    held = [(e, e.values(pairs.values)[: e.wanted]) for e in basis.ends]
    return any((e.values(ritz.values)[: e.wanted] > best + slack).any() for e, best in held)


def _none_missed(basis: KrylovBasis, pairs: _Pairs, slack: float) -> bool:
    """Return whether the complement of the locked pairs holds nothing that belongs among them."""

    def cleared(ritz: Ritz) -> bool:
        return all(_cleared(basis, end, ritz, pairs, slack) for end in basis.ends)

    ritz = _search(basis, lambda r: _found(basis, r, pairs, slack) or cleared(r))
    if basis.size > basis.n_wanted:
        for end in basis.ends:
            value = end.sign * float(end.values(ritz.values)[end.wanted])
            pairs.rest = pairs.rest.joined(value)
    return not _found(basis, ritz, pairs, slack) and (cleared(ritz) or basis.complete)


def _cleared(basis: KrylovBasis, end: End, ritz: Ritz, pairs: _Pairs, slack: float) -> bool:
    """Return whether the search may end: by either bound, or as its own best pair converged."""
    if basis.size == basis.n_wanted or basis.chain is None:
        return False
    last = float(end.values(pairs.values)[end.wanted - 1])
    if end.order(ritz.estimates)[end.wanted] <= slack:
        return True
    edge = end.sign * (last + slack)
    if basis.chain.progress(edge, end.sign, failure=MISS_RISK) >= 1.0:
        return True
    floor = basis.lowest if end.sign > 0.0 else -basis.highest
    gap = (last - float(end.values(ritz.values)[end.wanted])) / ((last - floor) or 1.0)
    n = basis.operator.n - basis.n_wanted
    return chance_of_a_miss(gap, n, krylov_steps=basis.unbroken, steps=basis.steps) <= MISS_RISK
