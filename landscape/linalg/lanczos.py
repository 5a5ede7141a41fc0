"""Extreme eigenpairs by thick-restart Lanczos with full reorthogonalisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from landscape.checks import whole
from landscape.errors import InvalidArgumentError
from landscape.linalg.basis import (
    FAILURE_PROBABILITY,
    Enclosure,
    KrylovBasis,
    LanczosTridiagonal,
    Projections,
    SpectrumEnd,
    n_wanted,
)
from landscape.linalg.krylov import (
    SCRATCH_BYTES,
    Callback,
    EigenSolution,
    Floats,
    Matvec,
    Operator,
    Stagnation,
    check_request,
    check_start,
    combine,
    dot,
    norm,
    orthogonalise,
    rayleigh,
    subtract,
)
from landscape.processes import Spread
from landscape.progress import note_on_bar

# A residual estimate below this, relative to the largest |θ|, is rounding of the small problem.
_ROUNDING = 1e-13
# What residual estimates have to meet, of the tolerance: the rest is for the rounding they miss.
_SAFETY = 0.9
# Products after which a missed eigenvalue need not have come up again: another search follows.
_PATIENCE = 50
# Length of the random part of a start that was given, relative to the rest.
_FRESH = 0.05
# Memory: in the search for missed eigenvalues two vectors, a product and its copy in the storage
# dtype, and the argument in the operator's own. The results come after that, in their place.
_WORK = 5
# Four pieces in float64, of a basis of 64 vectors.
_SCRATCH_PER_ENTRY = 4 * 8 * 64
# The projection and what its dense eigensolver needs, in float64 matrices of the basis' size.
_SMALL = 5


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
    spread: Spread | None = None,
    both_ends: bool = False,
    block: int = 1,
    start: Tensor | None = None,
    failure_probability: float = FAILURE_PROBABILITY,
    project_parts: Projections | None = None,
    callback: Callback | None = None,
) -> EigenSolution:
    """Find the k largest (algebraic) eigenpairs of a symmetric operator by Lanczos, or both ends.

    Builds an orthonormal basis V of a Krylov space with full reorthogonalisation. The eigenpairs
    (θ, s) of VᵀHV give the Ritz pairs (θ, Vs), and HV = VT + βpeᵀ their residuals, which one
    product with a combination of all of them verifies. The pairs have converged if

        ‖Hvᵢ − θᵢvᵢ‖ ≤ tol · max |θ|,  the largest |θ| over all Ritz values seen, of either sign.

    A residual proves an eigenvalue near θ, not that none was missed: one vector meets each
    repeated eigenvalue only once. So a second run, from a random vector in the complement of the
    whole basis, bounds the eigenvalues of H there, by its polynomial and the angle that a random
    vector has to any other. With that bound μ, H ≤ [[T, βe], [βeᵀ, μ]] bounds every eigenvalue
    of H from above, and the search ends when none can exceed its Ritz value by more than twice
    the tolerance, or than twice the norm of all residuals together where that is more. If that run
    meets an eigenvalue that was missed, the basis is continued from one more random vector.

    Args:
        matvec: v ↦ Hv for a flat vector of ``n`` entries of ``dtype`` on ``device``.
        n: size of H.
        k: number of eigenpairs, 1 ≤ k ≤ n; of each end, where both are sought.
        tol: tolerance on the residuals, relative to the largest |θ|. Near the rounding of
            ``dtype`` (1e-6 in float32, through a network) it may not be attainable.
        max_matvecs: products that may be spent, at least 2K; None: max(1000, 20 K),
            where K = min(2k, n) if both ends are sought, else k.
        max_basis: basis vectors that may be stored, at least max(8, K + 3); then the basis is
            compressed to the best Ritz vectors (thick restart). None: as many as needed.
        seed: seed of every random vector.
        dtype: floating-point type that ``matvec`` takes.
        device: device that ``matvec`` takes.
        spread: which entries of a vector this process holds, see `sharing`; None: all.
        both_ends: find the k smallest eigenpairs as well, from the same basis: min(2k, n) pairs
            in all, to the same tolerance.
        block: random start vectors b, if none is given; they meet a b-fold eigenvalue b times.
        start: vectors to start near, shape (n,) or (b, n), such as eigenvectors of the checkpoint
            before: their sum, with a random vector of a twentieth of its length; None: random.
        failure_probability: chance, over the random vectors, that an eigenvalue is missed, or a
            bound on the spectrum fails. With 1 nothing is searched, and the bounds are infinite.
        project_parts: for an operator that is a sum of parts H_b, the function V ↦ VᵀH_b v for
            the vector v of the last product, rows V of shape (m, n), result of shape (parts, m).
        callback: called after each product with the number of products so far and the largest
            residual estimate relative to the largest |θ|, infinite until there is one.

    Returns:
        The eigenpairs in descending order, the lower end last. Vectors are float32 at least. The
        values are lower bounds on the eigenvalues, and ``errors`` says how far these may lie
        above, but for the failure probability.

    Raises:
        InvalidArgumentError: if an argument is out of its range, a product is of another shape,
            or H is not symmetric.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: m products to converge, 1 to verify the residuals, and about 5 to 10 to show that nothing
    was missed; each repeated eigenvalue takes one round more. Memory, in vectors of n entries: the
    basis (max_basis; else m, and half as much again while it grows), b, and the larger of 5 and k.

    References:
        Parlett (1998), The Symmetric Eigenvalue Problem; Wu and Simon (2000), thick-restart
        Lanczos, SIAM J. Matrix Anal. Appl. 22; Ruhe (1979), band Lanczos, Math. Comput. 33;
        van Dorsselaer, Hochstenbach and van der Vorst (2000), bounds from random starts, SIAM J.
        Matrix Anal. Appl. 22.

    >>> diagonal = torch.tensor([-9.0, 0.0, 1.0, 3.0, 3.0])
    >>> found = lanczos(lambda v: diagonal * v, 5, k=3, dtype=torch.float32, device="cpu")
    >>> found.values.round(5).tolist(), found.converged
    ([3.0, 3.0, 1.0], True)
    """
    wanted = n_wanted(n, k=k, both_ends=both_ends)
    limit = max(1000, 20 * wanted) if max_matvecs is None else max_matvecs
    check_request(n, k=k, tol=tol, max_matvecs=limit, least=2 * wanted)
    least = least_basis(n, wanted)
    if max_basis is not None and max_basis < least:
        ends = " at both ends" if wanted > k else ""
        msg = (
            f"max_basis = {max_basis} vectors; expected at least {least} for k = {k}{ends} "
            f"and n = {n}; raise max_basis, lower k, or use power iteration, which stores none"
        )
        raise InvalidArgumentError(msg)
    whole("block", block, least=1)
    if not 0.0 < failure_probability <= 1.0:
        msg = f"failure_probability = {failure_probability}; expected a number in (0, 1]"
        raise InvalidArgumentError(msg)
    if start is not None:
        check_start(start, n if spread is None else spread.length, several=True)
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
    basis = KrylovBasis(
        operator, k=k, capacity=max_basis, both_ends=both_ends, project=project_parts
    )
    if start is None:
        basis.begin(operator.random_unit_vector() for _ in range(block))
    else:
        basis.begin([_warm(operator, start)], random=False)
    return _solve(basis, tol, failure_probability)


def _warm(operator: Operator, start: Tensor) -> Tensor:
    """Return one vector with all the given ones in it, and a little of every other direction.

    One Krylov space that begins near all of them takes fewer products than a block of them.
    """
    rows = start.reshape(-1, operator.length)
    mixed = operator.random_unit_vector().mul_(_FRESH * math.sqrt(len(rows)))
    for row in rows:
        mixed.add_(operator.unit_vector(row))
    return mixed.div_(norm(mixed))


@dataclass(frozen=True)
class _Pairs:
    """The wanted Ritz pairs: coefficients in the basis, and residuals that were verified."""

    values: Floats
    residuals: Floats
    coefficients: Floats
    noise: float  # what the products were off by, √k ‖e‖


def _solve(basis: KrylovBasis, tol: float, failure: float) -> EigenSolution:
    """Return the wanted pairs: search, verify, look for missed ones, until none was missed."""
    # An estimate a tenth of the rounding in a product adds nothing to a true residual.
    floor = max(_ROUNDING, 0.1 * basis.operator.eps)
    demanded = first = max(_SAFETY * tol, floor)
    worst_before, enclosure = math.inf, Enclosure(failure)
    missed: list[tuple[SpectrumEnd, float]] = []
    while True:
        estimate = _converge(basis, demanded, missed)
        pairs = _verified(basis, tol)
        worst = float(pairs.residuals.max())
        met = worst <= tol * basis.largest
        helps = floor < estimate <= demanded and worst < 0.9 * worst_before
        if not met and helps and basis.operator.left > 1 and not basis.complete:
            demanded, worst_before = max(estimate / 10.0, floor), worst
            continue
        # Stagnation is no reason to skip the search: a missed eigenvalue is the larger error.
        search = _ComplementSearch(basis, pairs, slack=max(tol * basis.largest, worst))
        missed = search.run(enclosure) if failure < 1.0 else []
        if search.blocked:
            basis.compress(pairs.coefficients)
            pairs = replace(pairs, coefficients=np.eye(basis.size))
            search = _ComplementSearch(basis, pairs, slack=search.slack)
            missed = search.run(enclosure)
        if not missed or basis.operator.left <= 1:
            converged = met and (search.finished or failure >= 1.0)
            return _solution(basis, pairs, search, enclosure, failure, converged=converged)
        basis.join(basis.operator.random_unit_vector(basis.rows))
        demanded, worst_before = first, math.inf


def _solution(
    basis: KrylovBasis,
    pairs: _Pairs,
    search: _ComplementSearch,
    enclosure: Enclosure,
    failure: float,
    *,
    converged: bool,
) -> EigenSolution:
    operator, forms = basis.operator, basis.part_forms(pairs.coefficients)
    if basis.chain is not None and failure < 1.0:
        granted = enclosure.grant()
        enclosure.narrow(*(basis.chain.bound(sign, failure=granted) for sign in (-1.0, 1.0)))
    rounding = 10.0 * operator.eps * max(basis.largest, operator.norm)
    return EigenSolution(
        values=pairs.values,
        n_lowest=basis.n_wanted - basis.k,
        residuals=pairs.residuals,
        errors=search.rises + pairs.noise if search.finished else pairs.residuals,
        upper_bound=max(enclosure.upper, float(pairs.values[0])) + rounding,
        lower_bound=min(enclosure.lower, float(pairs.values[-1])) - rounding,
        failure_probability=failure,
        asymmetry=basis.asymmetry / (operator.norm or 1.0),
        vectors=basis.extract(pairs.coefficients),
        matvecs=operator.matvecs,
        converged=converged,
        part_forms=forms,
    )


def _converge(basis: KrylovBasis, limit: float, missed: list[tuple[SpectrumEnd, float]]) -> float:
    """Return the relative residual estimate, once it is within a limit or falls no further.

    Where an eigenvalue was missed, the last value sought must first rise beyond what it was.
    """
    stagnation, patience = Stagnation(), basis.operator.matvecs + _PATIENCE
    while True:
        out_of_budget = basis.operator.left <= 1
        if basis.due or out_of_budget:
            ritz = basis.ritz()
            estimate = basis.operator.residual = basis.worst(ritz)
            note_on_bar(f"residual {estimate:.1e} of {limit:.1e}")
            risen = all(e.values(ritz.values)[e.wanted - 1] > edge for e, edge in missed)
            converged = estimate <= limit and (risen or basis.operator.matvecs > patience)
            still = stagnation.reached(estimate, rounding=basis.operator.eps)
            if converged or still or basis.complete or out_of_budget:
                return estimate
        basis.step()


def _verified(basis: KrylovBasis, tol: float) -> _Pairs:
    """Return the wanted Ritz pairs, their residuals verified with one product, or one for each.

    HV = VT + PC holds to rounding, and the residual of y = Vs is PCs. One product with a
    combination of all wanted pairs of random signs, z = Σ ±yᵢ, shows what it is off by:
    e = Hz − Σ ±(VTs + PCs) = Σ ±eᵢ with E‖e‖² = Σ ‖eᵢ‖². Where that spoils a residual that
    would do, each pair gets a product of its own.
    """
    operator, ritz = basis.operator, basis.ritz()
    chosen = basis.outermost()
    values, mix = ritz.values[chosen], ritz.coefficients[:, chosen]
    signs = operator.random_signs(len(chosen)) / math.sqrt(len(chosen))
    z = combine((mix @ signs)[:, None], basis.rows, out=basis.rows.new_empty((1, operator.length)))[
        0
    ]
    e = operator(z.div_(norm(z)))
    subtract(e, mix @ (values * signs), basis.rows)
    for p, coupling in zip(basis.pending, basis.couplings @ mix @ signs, strict=True):
        e.sub_(p, alpha=float(coupling))
    noise = math.sqrt(len(chosen)) * norm(e)
    residuals = np.hypot(ritz.estimates[chosen], noise)
    limit = tol * basis.largest
    spoiled = residuals.max() > limit >= ritz.estimates[chosen].max()
    if spoiled and len(chosen) > 1 and operator.left >= len(chosen):
        rows = []
        for s in mix.T:
            y = combine(s[:, None], basis.rows, out=z[None])[0]
            rows.append(rayleigh(y.div_(norm(y)), operator(y)))
        measured = np.array(rows)
        order = np.argsort(-measured[:, 0], kind="stable")
        (values, residuals), mix = measured[order].T, mix[:, order]
    return _Pairs(values, residuals, mix, noise)


class _ComplementSearch:
    """A search for missed eigenvalues: Lanczos from a random vector in the basis' complement.

    With K the block of H on the complement, the run bounds its eigenvalues but for a stated
    chance (`LanczosTridiagonal.bound`), and so those of H (`KrylovBasis.raised`). Only the
    recurrence of three terms enters there, so that nothing of the run is stored.
    """

    def __init__(self, basis: KrylovBasis, pairs: _Pairs, *, slack: float) -> None:
        self.slack = slack  # how far an eigenvalue may be off
        self.finished = basis.complete  # whether it is shown that no eigenvalue was missed
        # Whether K has an eigenvalue so close to those sought that nothing can be shown with this
        # basis, of which vectors that have not converged couple to it.
        self.blocked = False
        # Upper bounds on λᵢ − θᵢ, for the lower end on θᵢ − λᵢ, in the order of the pairs.
        self.rises = np.full(basis.n_wanted, 0.0 if basis.complete else math.inf)
        self._basis = basis
        self._chain = LanczosTridiagonal(basis.operator.n - basis.size)
        self._held = [(end, end.values(pairs.values)[: end.wanted]) for end in basis.ends]
        # What couples the pairs to the complement moves them, however close K comes to them.
        self._limit = 2.0 * max(slack, float(np.linalg.norm(pairs.residuals)))

    def run(self, enclosure: Enclosure) -> list[tuple[SpectrumEnd, float]]:
        """Search until it is shown that nothing was missed, or seen that something was."""
        basis, failure, edges = self._basis, enclosure.grant(), {-1.0: -math.inf, 1.0: math.inf}
        if basis.complete:
            values = basis.ritz().values
            enclosure.narrow(float(values[-1]), float(values[0]))
            return []
        missed: list[tuple[SpectrumEnd, float]] = []
        for _ in self._steps():
            missed = self._missed()
            if not missed and self._reaches(failure):
                edges = {sign: self._chain.bound(sign, failure=failure) for sign in edges}
                self.rises = self._rises(edges)
                self.finished = bool((self.rises <= self._limit).all())
            self.blocked = not missed and not self.finished and self._is_blocked()
            if missed or self.finished or self.blocked:
                break
        if not self.finished and self._chain.alphas:
            edges = {sign: self._chain.bound(sign, failure=failure) for sign in edges}
            self.rises = self._rises(edges)
        low, high = (
            sign * basis.raised(edge, SpectrumEnd(sign, 1))[0] for sign, edge in edges.items()
        )
        enclosure.narrow(float(low), float(high))
        return missed

    def _steps(self) -> Iterator[None]:
        """Run Lanczos with K = QᵀHQ, product by product, as long as there are any."""
        basis, operator, chain = self._basis, self._basis.operator, self._chain
        u, before, beta = operator.random_unit_vector(basis.rows), None, 0.0
        while operator.left > 0 and not chain.exhausted:
            w = operator(u)
            length, alpha = norm(w), dot(u, w)
            w.sub_(u, alpha=alpha)
            if before is not None:
                w.sub_(before, alpha=beta)
            # Last, as what u has in the span of the basis comes back with u itself.
            orthogonalise(w, basis.rows)
            beta = norm(w)
            # Relative to this product: a random vector has little of the largest eigenvalue.
            if beta <= 10.0 * operator.storage_eps * length:
                beta = 0.0
            chain.alphas.append(alpha)
            chain.betas.append(beta)
            before, u = u, w.div_(beta or 1.0)
            yield

    def _reaches(self, failure: float) -> bool:
        """Return whether the bounds on K are where those on H may be good enough."""
        return all(
            self._chain.progress(e.sign * (held[-1] + self._limit), e.sign, failure=failure) >= 1.0
            for e, held in self._held
        )

    def _rises(self, edges: Mapping[float, float]) -> Floats:
        rises = [self._basis.raised(edges[e.sign], e) - held for e, held in self._held]
        return np.concatenate([rises[0], *(r[::-1] for r in rises[1:])])

    def _missed(self) -> list[tuple[SpectrumEnd, float]]:
        """Return the ends where one was missed, and what the last value sought must then exceed."""
        missed = []
        for end, held in self._held:
            seen = float(self._chain.values(end.sign)[0])
            if seen > held[-1] + self.slack:
                # The last value sought becomes the one before, or that of the complement.
                last = np.sort(np.append(held, seen))[-end.wanted]
                missed.append((end, float(max(last - self.slack, (last + held[-1]) / 2.0))))
        return missed

    def _is_blocked(self) -> bool:
        """Return whether even the eigenvalues of K that were seen raise the bounds too far."""
        if self._basis.size == self._basis.n_wanted:
            return False
        seen = {sign: sign * float(self._chain.values(sign)[0]) for sign in (-1.0, 1.0)}
        return bool((self._rises(seen) > self._limit).any())


def least_basis(n: int, wanted: int) -> int:
    """Return the smallest basis that restarted Lanczos can find so many pairs with."""
    return min(max(8, wanted + 3), n)


def basis_for(
    budget_bytes: float,
    n: int,
    *,
    k: int = 1,
    both_ends: bool = False,
    block: int = 1,
    dtype: torch.dtype,
) -> int:
    """Return the largest ``max_basis`` with which `lanczos` stays within a memory budget."""
    # The basis, pending vectors, results, scratch for sums and five small matrices of the size of
    # the basis; not what operator and caller hold.
    wanted = n_wanted(n, k=k, both_ends=both_ends)
    fixed, vector = _fixed_bytes(n, wanted, block, dtype)
    left = max(budget_bytes - fixed, 0.0)
    # The positive root m of 8·_SMALL·m² + vector·m = left, free of cancellation.
    fits = int(2.0 * left / (vector + math.sqrt(vector**2 + 32.0 * _SMALL * left)))
    least = least_basis(n, wanted)
    if min(fits, n) < least:
        needed = math.ceil(least_bytes(n, k=k, both_ends=both_ends, block=block, dtype=dtype) / 1e6)
        msg = (
            f"a budget of {budget_bytes / 1e6:.0f} MB for k = {k} eigenpairs of an operator of "
            f"size n = {n}; expected at least {needed} MB, for a basis of {least} vectors; raise "
            "the budget, lower k, or use power iteration"
        )
        raise InvalidArgumentError(msg)
    return min(fits, n)


def least_bytes(
    n: int, *, k: int = 1, both_ends: bool = False, block: int = 1, dtype: torch.dtype
) -> float:
    """Return the bytes that the smallest basis takes, see `basis_for`."""
    wanted = n_wanted(n, k=k, both_ends=both_ends)
    fixed, vector = _fixed_bytes(n, wanted, block, dtype)
    least = least_basis(n, wanted)
    return fixed + least * vector + 8 * _SMALL * least**2


def _fixed_bytes(n: int, wanted: int, block: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return what is needed beside the basis, and the size of a vector."""
    vector = n * torch.promote_types(dtype, torch.float32).itemsize
    # Sums are done in pieces of the basis, and those of a small one are small.
    scratch = min(SCRATCH_BYTES, _SCRATCH_PER_ENTRY * n)
    return (block + max(wanted, _WORK)) * vector + scratch, vector
