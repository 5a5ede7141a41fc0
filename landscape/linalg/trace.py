"""The trace of a symmetric operator from random probes, four ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch

from landscape.checks import whole
from landscape.linalg.estimators import (
    Blockwise,
    Hutchinson,
    HutchPlusPlus,
    KrylovAware,
    Method,
    XTrace,
)
from landscape.linalg.krylov import Floats, Matmat, Matvec, Operator
from landscape.linalg.sampling import (
    ProbeSource,
    StoppingRule,
    check_confidence,
    exact_diagonal,
)
from landscape.processes import Spread
from landscape.randomness import next_seed
from landscape.stats import Interval

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack

# Products of the probes, relative to n, before the n unit vectors take over; and those with unit
# vectors for small blocks, relative to the probes.
_EXTRA = 0.2


@dataclass(frozen=True, kw_only=True)
class TraceSolution:
    """An estimate of the trace of a symmetric operator, with its evidence.

    Attributes:
        value: the estimate of tr(A) = Σ λᵢ.
        standard_error: of the estimate; rounding of the products is not part of it.
        low: lower end of the confidence interval.
        high: upper end; the interval is asymmetric where the samples are skewed.
        confidence: probability that such an interval covers tr(A).
        samples: one estimate of tr(A) per probe; ``value`` is their mean, shape (n_probes,).
        n_probes: probes drawn; 0 where the trace is exact.
        matvecs: products spent.
        converged: whether the half-width met the tolerance, by `StoppingRule`.
        exact: whether the value comes from the unit vectors, without sampling error.
        groups: traces of the diagonal blocks, each field of shape (n_groups,). Their intervals
            are for each block alone.
    """

    value: float
    standard_error: float
    low: float
    high: float
    confidence: float
    samples: Floats
    n_probes: int
    matvecs: int
    converged: bool
    exact: bool
    groups: Interval

    @property
    def half_width(self) -> float:
        """Distance from the value to the farther end of the confidence interval."""
        return max(self.high - self.value, self.value - self.low)


class TraceOptions(TypedDict, total=False):
    """Options of every estimator of a trace.

    Attributes:
        dtype: floating-point type that ``matvec`` takes.
        device: device that ``matvec`` takes.
        spread: which entries of a vector this process holds, see `sharing`; None: all.
        rtol: tolerance on the half-width of the confidence interval, relative to |value|; 0.05.
        atol: absolute tolerance on it, 0; the larger of the two counts. Both 0: as many probes as
            ``max_matvecs`` allows.
        confidence: probability that the interval is to cover tr(A), 0.95.
        max_matvecs: products that may be spent, 1000; at least those of two probes. Where it
            allows n products, and n/5 of them do not meet the tolerance, the n unit vectors are
            used instead, and the answer is exact.
        seed: seed of the probes, 0.
    """

    dtype: Required[torch.dtype]
    device: Required[torch.device | str]
    spread: Spread | None
    rtol: float
    atol: float
    confidence: float
    max_matvecs: int
    seed: int


def hutchinson_trace(
    matvec: Matvec,
    n: int,
    *,
    probes: str = "rademacher",
    groups: Sequence[slice] = (),
    matmat: Matmat | None = None,
    **options: Unpack[TraceOptions],
) -> TraceSolution:
    """Estimate the trace of a symmetric operator A by Hutchinson's method.

        tr(A) ≈ (1/p) Σ vᵀAv,   E[vvᵀ] = I

    One probe has variance 2 (‖A‖_F² − Σ aᵢᵢ²) with random signs and 2 ‖A‖_F² with Gaussian
    entries. The same probes give the trace of every diagonal block A_gg, as v_g·(Av)_g is
    unbiased for it: its variance also holds the rest of the block's rows. A fifth more products
    than probes makes the traces of the smallest blocks exact, as far as ``max_matvecs`` allows.

    Args:
        matvec: v ↦ Av for a flat vector of ``n`` entries.
        n: size of A.
        probes: ``rademacher`` (random signs), ``gaussian`` or ``sphere`` (of radius √n).
        groups: the blocks, as slices of the flat vector, such as one per layer. If they
            partition it, their traces sum to the total.
        matmat: product with several vectors, one in each row, for the probes; None: one by one.
        **options: see `TraceOptions`; ``dtype`` and ``device`` are required.

    Returns:
        The estimate.

    Raises:
        InvalidArgumentError: if an argument is out of its range, or a product is of another shape.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: one product per probe, at least 32, and those for small blocks; about 8 ‖A‖_F² / w² for
    a 95 % interval of half-width w. Memory: two vectors.

    References:
        Hutchinson (1990), A stochastic estimator of the trace of the influence matrix, Commun.
        Stat. Simul. Comput. 19; Girard (1989), Numer. Math. 56.

    >>> d = torch.tensor([3.0, -1.0, 0.5])
    >>> found = hutchinson_trace(
    ...     lambda v: d * v, 3, groups=[slice(0, 1), slice(1, 3)], dtype=torch.float32, device="cpu"
    ... )
    >>> found.value, found.groups.value.tolist(), found.exact
    (2.5, [3.0, -0.5], True)
    """
    return _estimate(Hutchinson, probes, matvec, n, groups=groups, matmat=matmat, **options)


def hutchpp_trace(
    matvec: Matvec, n: int, *, probes: str = "rademacher", **options: Unpack[TraceOptions]
) -> TraceSolution:
    """Estimate the trace of a symmetric operator A by Hutch++.

    With an orthonormal basis Q of the range of AS, S a block of p random vectors, and P = I − QQᵀ:

        tr(A) ≈ tr(QᵀAQ) + (1/p) Σ gᵀPAPg

    The first term is exact for what Q captures, and given Q, the samples gᵀPAPg are independent and
    unbiased. When p is doubled, Q grows and all products are used again.

    Args:
        matvec: v ↦ Av for a flat vector of ``n`` entries.
        n: size of A.
        probes: ``rademacher`` (random signs), ``gaussian`` or ``sphere`` (of radius √n).
        **options: see `TraceOptions`; ``dtype`` and ``device`` are required.

    Returns:
        The estimate. Of an operator of rank below p it is exact to rounding.

    Raises:
        InvalidArgumentError: if an argument is out of its range, or a product is of another shape.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: 3p products, at least 48; their number grows as 1/w for a positive semi-definite A and
    half-width w, not as 1/w². Memory: 3p vectors.

    References:
        Meyer, Musco, Musco and Woodruff (2021), Hutch++: optimal stochastic trace estimation,
        SOSA; arXiv:2010.09649.

    >>> u = torch.linspace(-1, 1, 500, dtype=torch.float64)
    >>> found = hutchpp_trace(lambda v: (u @ v) * u, 500, dtype=torch.float64, device="cpu")
    >>> abs(found.value - float(u @ u)) < 1e-10, found.matvecs
    (True, 33)
    """
    return _estimate(HutchPlusPlus, probes, matvec, n, **options)


def xtrace(
    matvec: Matvec, n: int, *, normalise: bool = True, **options: Unpack[TraceOptions]
) -> TraceSolution:
    """Estimate the trace of a symmetric operator A by XTrace.

    Each of p probes ω is the residual probe of a Hutch++ whose basis comes from all the others:
    with Qᵢ an orthonormal basis of the range of A times the probes but ωᵢ, and Pᵢ = I − QᵢQᵢᵀ,

        tr(A) ≈ (1/p) Σ tᵢ,   tᵢ = tr(QᵢᵀAQᵢ) + ωᵢᵀPᵢAPᵢωᵢ

    Every tᵢ is unbiased, but they are not independent: the published error, their sample variance
    s² over p, is too small by up to half where few eigenvalues stand out. For E[tᵢ | the other
    probes] = tr(A), the variance of the mean is exactly E[s²]/p + E[δᵢⱼδⱼᵢ], with δᵢⱼ the change of
    tᵢ when ωⱼ too is left out of its basis; both make up the standard error, the second by its
    magnitude. It is up to a few times too large where eigenvalues fall by half or more in a step.

    Args:
        matvec: v ↦ Av for a flat vector of ``n`` entries.
        n: size of A.
        normalise: rescale each Pᵢωᵢ to the length √(n − rank Qᵢ) that it has on average, so that
            a multiple of the identity in A adds no variance. The probes are uniform on the
            sphere of radius √n.
        **options: see `TraceOptions`; ``dtype`` and ``device`` are required.

    Returns:
        The estimate. Of an operator of rank below p it is exact to rounding.

    Raises:
        InvalidArgumentError: if an argument is out of its range, or a product is of another shape.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: 2p products, at least 32; the error falls as fast as the eigenvalues do. Memory: 2p
    vectors.

    References:
        Epperly, Tropp and Webber (2024), XTrace: making the most of every sample in stochastic
        trace estimation, SIAM J. Matrix Anal. Appl. 45; arXiv:2301.07825.

    >>> u = torch.linspace(-1, 1, 500, dtype=torch.float64)
    >>> found = xtrace(lambda v: (u @ v) * u, 500, dtype=torch.float64, device="cpu")
    >>> abs(found.value - float(u @ u)) < 1e-10, found.matvecs
    (True, 17)
    """
    return _estimate(partial(XTrace, normalise=normalise), "sphere", matvec, n, **options)


def krylov_trace(
    matvec: Matvec,
    n: int,
    *,
    groups: Sequence[slice] = (),
    matmat: Matmat | None = None,
    **options: Unpack[TraceOptions],
) -> TraceSolution:
    """Estimate the trace of a symmetric operator A by Hutchinson's method beside a Krylov space.

    With the Lanczos basis V of a random vector, A V = V T + β v eₘᵀ, and P = I − VVᵀ:

        tr(A) ≈ tr(T) + (1/p) Σ gᵀPAPg

    The outliers of both ends converge in V first, and T gives tr(VᵀAV) without further products.
    Given V, the samples are independent and unbiased. The probes are uniform on a sphere, and Pg
    is rescaled to its mean length, so that a multiple of the identity in A adds no variance. The
    traces of diagonal blocks are estimated in the same way, from (A − PAP)_gg, which is known, and
    (Pg)_g·(PAPg)_g.

    Args:
        matvec: v ↦ Av for a flat vector of ``n`` entries.
        n: size of A.
        groups: the blocks, as slices of the flat vector, such as one per layer. If they
            partition it, their traces sum to the total.
        matmat: product with several vectors, one in each row, for the probes; None: one by one.
        **options: see `TraceOptions`; ``dtype`` and ``device`` are required, and ``seed`` is that
            of the Lanczos run, which the seed of the probes follows.

    Returns:
        The estimate. Of an operator of rank below p it is exact to rounding.

    Raises:
        InvalidArgumentError: if an argument is out of its range, or a product is of another shape.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: 2p products for p probes and as many Lanczos vectors, at least 24, and with groups a
    fifth more for small ones. Memory: 2p vectors, 3p with groups.

    References:
        Chen and Hallman (2023), Krylov-aware stochastic trace estimation, SIAM J. Matrix Anal.
        Appl. 44, arXiv:2205.01736; Meyer, Musco, Musco and Woodruff (2021), arXiv:2010.09649.

    >>> u = torch.linspace(-1, 1, 500, dtype=torch.float64)
    >>> found = krylov_trace(lambda v: (u @ v) * u, 500, dtype=torch.float64, device="cpu")
    >>> abs(found.value - float(u @ u)) < 1e-10, found.matvecs
    (True, 24)
    """
    return _estimate(KrylovAware, "sphere", matvec, n, groups=groups, matmat=matmat, **options)


def _estimate(
    kind: Callable[..., Method],
    probes: str,
    matvec: Matvec,
    n: int,
    *,
    groups: Sequence[slice] = (),
    matmat: Matmat | None = None,
    rtol: float = 0.05,
    atol: float = 0.0,
    confidence: float = 0.95,
    max_matvecs: int = 1000,
    seed: int = 0,
    dtype: torch.dtype,
    device: torch.device | str,
    spread: Spread | None = None,
) -> TraceSolution:
    """Draw until the stopping rule is met or the budget is spent, or take the unit vectors."""
    operator = Operator(
        matvec,
        n,
        matmat=matmat,
        dtype=dtype,
        device=device,
        seed=seed,
        max_matvecs=max_matvecs,
        spread=spread,
    )
    # The seed of the operator draws the start of a Lanczos run, which the probes must not repeat.
    source = ProbeSource(operator, probes, next_seed(seed) if kind is KrylovAware else seed)
    method = kind(operator, source, groups)
    check_confidence(confidence)
    whole("max_matvecs", max_matvecs, least=min(2 * method.cost, n))
    rule = StoppingRule(first=method.first, rtol=rtol, atol=atol, growth=method.growth)
    # Where n products can be afforded, probes may spend so little that n still follow.
    affords_exact = n <= max_matvecs
    spendable = min(max_matvecs - n, int(_EXTRA * n)) if affords_exact else max_matvecs
    most = spendable // method.cost
    if affords_exact and most < 2 * method.first:  # one look is never enough
        return _exact(method, confidence)
    before, expected, met = None, math.inf, False
    for n_probes in rule.looks(most):
        method.draw(n_probes)
        estimate = method.estimate(confidence)
        if before is not None:
            share = len(before.samples) / n_probes
            expected = method.width_before(before, estimate, confidence) * math.sqrt(share)
        met = rule.met(float(estimate.total.value), width=estimate.width, width_before=expected)
        if met:
            break
        before = estimate
    if affords_exact and not met:
        return _exact(method, confidence)
    if isinstance(method, Blockwise) and method.groups:
        few = min(operator.left, int(_EXTRA * operator.matvecs))
        estimate = method.settle(few, confidence)
    return TraceSolution(
        **{name: float(value) for name, value in vars(estimate.total).items()},
        confidence=confidence,
        samples=estimate.samples,
        n_probes=n_probes,
        matvecs=operator.matvecs,
        converged=met,
        exact=False,
        groups=estimate.groups,
    )


def _exact(method: Method, confidence: float) -> TraceSolution:
    diagonal = exact_diagonal(method.operator)
    value = float(diagonal.sum())
    return TraceSolution(
        value=value,
        standard_error=0.0,
        low=value,
        high=value,
        confidence=confidence,
        samples=np.empty(0),
        n_probes=0,
        matvecs=method.operator.matvecs,
        converged=True,
        exact=True,
        groups=Interval.exact(np.array([diagonal[group].sum() for group in method.groups])),
    )
