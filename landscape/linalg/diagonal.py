"""The diagonal of a symmetric operator from random probes, with an error for each entry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.checks import whole
from landscape.linalg.krylov import Floats, Matvec, Operator, wide
from landscape.linalg.sampling import ProbeSource, check_confidence, exact_diagonal
from landscape.stats import student


@dataclass(frozen=True, kw_only=True)
class DiagonalSolution:
    """An estimate of the diagonal of a symmetric operator, with its evidence.

    Attributes:
        values: estimates of aᵢᵢ, float64, shape (n,).
        standard_errors: of each entry, from probe to probe, shape (n,).
        half_widths: of the confidence interval around each entry, shape (n,).
        confidence: probability that one such interval covers its aᵢᵢ; not all of them at once.
        n_probes: probes drawn; 0 where the diagonal is exact.
        matvecs: products spent.
        exact: whether the entries come from the unit vectors, without sampling error.
    """

    values: Floats
    standard_errors: Floats
    half_widths: Floats
    confidence: float
    n_probes: int
    matvecs: int
    exact: bool


def estimate_diagonal(
    matvec: Matvec,
    n: int,
    *,
    n_probes: int = 100,
    confidence: float = 0.95,
    seed: int = 0,
    dtype: torch.dtype,
    device: torch.device | str,
) -> DiagonalSolution:
    """Estimate the diagonal of a symmetric operator A from its products with random signs.

        d = (1/p) Σ v ⊙ Av,   vᵢ = ±1 with equal chance

    Each term is unbiased, (v ⊙ Av)ᵢ = aᵢᵢ + Σ_{j≠i} aᵢⱼ vᵢvⱼ, with variance Σ_{j≠i} aᵢⱼ²: the
    error of an entry is set by the rest of its row, and a diagonal operator is met exactly. The
    terms are symmetric around aᵢᵢ, so Student's interval applies.

    Args:
        matvec: v ↦ Av for a flat vector of ``n`` entries of ``dtype`` on ``device``.
        n: size of A.
        n_probes: probes to draw, at least 2. From n up, the n unit vectors are used instead,
            and the answer is exact.
        confidence: probability that the interval of an entry is to cover it.
        seed: seed of the probes.
        dtype: floating-point type that ``matvec`` takes.
        device: device that ``matvec`` takes.

    Returns:
        The entries with their standard errors. Rounding of the products is not part of them.

    Raises:
        InvalidArgumentError: if an argument is out of its range, or a product is of another shape.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: min(n_probes, n) products. Memory: three float64 vectors.

    References:
        Bekas, Kokiopoulou and Saad (2007), An estimator for the diagonal of a matrix, Appl.
        Numer. Math. 57.

    >>> d = torch.tensor([3.0, -1.0, 0.5])
    >>> found = estimate_diagonal(lambda v: d * v, 3, dtype=torch.float32, device="cpu")
    >>> found.values.tolist(), found.exact
    ([3.0, -1.0, 0.5], True)
    """
    check_confidence(confidence)
    whole("n_probes", n_probes, least=min(2, n))
    operator = Operator(
        matvec, n, dtype=dtype, device=device, seed=seed, max_matvecs=min(n, n_probes)
    )
    if n_probes >= n:
        values, errors = exact_diagonal(operator), np.zeros(n)
    else:
        values, errors = _sampled(operator, n_probes, seed)
    return DiagonalSolution(
        values=values,
        standard_errors=errors,
        half_widths=student(confidence, max(1, n_probes - 1)) * errors,
        confidence=confidence,
        n_probes=0 if n_probes >= n else n_probes,
        matvecs=operator.matvecs,
        exact=n_probes >= n,
    )


def _sampled(operator: Operator, n_probes: int, seed: int) -> tuple[Floats, Floats]:
    """Return the means of v ⊙ Av and their standard errors, by Welford's updates."""
    source = ProbeSource(operator, "rademacher", seed)
    mean = torch.zeros(operator.n, dtype=wide(operator.device), device=operator.device)
    squares = torch.zeros_like(mean)
    for count in range(1, n_probes + 1):
        v = source.draw()
        # A sign times a number is exact, in whatever type.
        sample = (v * operator(v)).to(mean.dtype)
        deviation = sample - mean
        mean += deviation / count
        squares += deviation * (sample - mean)
    errors = (squares / (n_probes - 1) / n_probes).sqrt()
    return _array(mean), _array(errors)


def _array(tensor: Tensor) -> Floats:
    return tensor.cpu().numpy().astype(np.float64)
