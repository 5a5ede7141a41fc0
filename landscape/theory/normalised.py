"""Normalised SAM on a quadratic: it never arrives, but bounces across the sharpest direction."""

from __future__ import annotations

import numpy as np

from landscape.checks import positive, real, whole
from landscape.errors import InvalidArgumentError
from landscape.results import FloatArray
from landscape.theory import checks


def two_cycle_amplitude(top: float, *, eta: float, rho: float) -> float:
    """Return how far from the minimum normalised SAM bounces in the end, ηρd₁ / (2 − ηd₁).

    On L(w) = wᵀHw/2, w ← w − η H(w + ρ Hw/‖Hw‖) takes ±a u₁ to ∓a u₁, u₁ the eigenvector of the
    largest eigenvalue d₁. Along every other eigenvector there is such a cycle too, but only the
    one along u₁ is stable.

    Args:
        top: the largest curvature d₁.
        eta: step size η, below 2/d₁.
        rho: SAM's ρ, ‖ε‖₂.

    Returns:
        a, in the unit of the weights.

    Raises:
        InvalidArgumentError: if η d₁ is not below 2, or a number is out of range.

    Reference: Bartlett, Long, Bousquet 2022, arXiv 2210.01513.

    >>> round(two_cycle_amplitude(4.0, eta=0.25, rho=0.5), 12)
    0.5
    """
    positive("top", top)
    real("rho", rho, least=0.0)
    checks.stable(top, eta=eta, rho=0.0)
    return eta * rho * top / (2.0 - eta * top)


def normalised_path(
    hessian: FloatArray, start: FloatArray, *, eta: float, rho: float, iterations: int
) -> FloatArray:
    """Return the path of normalised SAM on L(w) = wᵀHw/2.

    w ← w − η H(w + ρ Hw/‖Hw‖); where Hw = 0 it stays.

    Args:
        hessian: H, shape (d, d), symmetric and positive semidefinite.
        start: w at the beginning, shape (d,).
        eta: step size η.
        rho: SAM's ρ, ‖ε‖₂.
        iterations: K, at least 1.

    Returns:
        w after 0, 1, …, K steps, shape (K + 1, d).

    Raises:
        InvalidArgumentError: if shapes do not fit, H is not symmetric, or η d₁ is not below 2.

    Cost: two products with H per iteration.

    >>> normalised_path(np.eye(1), np.ones(1), eta=0.5, rho=1.0, iterations=2).ravel().tolist()
    [1.0, 0.0, 0.0]
    """
    h = checks.array(hessian, name="hessian", shape=(None, None))
    h = checks.array(h, name="hessian", shape=(len(h), len(h)))
    w = checks.array(start, name="start", shape=(len(h),))
    if not np.allclose(h, h.T, rtol=1e-10, atol=1e-10 * float(np.abs(h).max())):
        msg = "hessian is not symmetric; expected the matrix of a quadratic: pass (H + Hᵀ)/2"
        raise InvalidArgumentError(msg)
    real("rho", rho, least=0.0)
    checks.stable(float(np.linalg.norm(h, 2)), eta=eta, rho=0.0)
    path = [w]
    for _ in range(whole("iterations", iterations, least=1)):
        gradient = h @ w
        norm = float(np.linalg.norm(gradient))
        epsilon = gradient * (rho / norm) if norm > 0 else np.zeros_like(w)
        w = w - eta * (h @ (w + epsilon))
        path.append(w)
    return np.array(path)
