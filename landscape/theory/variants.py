"""Two other versions of SAM on a quadratic: normalised, and stochastic (one example per step)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landscape.checks import positive, real, whole
from landscape.results import FloatArray
from landscape.theory.modes import check_array, check_stable, check_symmetric


def two_cycle_amplitude(top: float, *, eta: float, rho: float) -> float:
    """Return the amplitude of normalised SAM's final oscillation, ηρd₁ / (2 − ηd₁).

    On L(w) = wᵀHw/2, w ← w − η H(w + ρ Hw/‖Hw‖) takes ±a u₁ to ∓a u₁, u₁ the eigenvector of the
    largest eigenvalue d₁. Every other eigenvector has such a cycle too, but it is not stable.

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
    check_stable(top, eta=eta, rho=0.0)
    return eta * rho * top / (2.0 - eta * top)


def normalised_path(
    hessian: FloatArray, start: FloatArray, *, eta: float, rho: float, iterations: int
) -> FloatArray:
    """Return the path of normalised SAM on L(w) = wᵀHw/2.

    w ← w − η H(w + ρ Hw/‖Hw‖); where Hw = 0 it stays.

    Args:
        hessian: H, shape (d, d), symmetric and positive semidefinite.
        start: initial w, shape (d,).
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
    h = check_symmetric(hessian, name="hessian")
    w = check_array(start, name="start", shape=(len(h),))
    real("rho", rho, least=0.0)
    check_stable(float(np.linalg.norm(h, 2)), eta=eta, rho=0.0)
    path = [w]
    for _ in range(whole("iterations", iterations, least=1)):
        gradient = h @ w
        norm = float(np.linalg.norm(gradient))
        epsilon = gradient * (rho / norm) if norm > 0 else np.zeros_like(w)
        w = w - eta * (h @ (w + epsilon))
        path.append(w)
    return np.array(path)


@dataclass(frozen=True, kw_only=True)
class Stochastic:
    """Moments of stochastic SAM over the order of the examples; ρ = 0: stochastic descent."""

    means: FloatArray  # E wₖ, shape (K + 1, d)
    covariances: FloatArray  # cov wₖ, shape (K + 1, d, d)
    limit: FloatArray  # limit of E wₖ: least squares with the weights 1 + ρ‖xᵢ‖², shape (d,)
    eta: float  # step size
    rho: float

    @property
    def spread(self) -> FloatArray:
        """E ‖wₖ − E wₖ‖², shape (K + 1,)."""
        return np.asarray(np.trace(self.covariances, axis1=1, axis2=2))


def stochastic_sam(
    design: FloatArray, targets: FloatArray, *, eta: float, rho: float = 0.0, iterations: int
) -> Stochastic:
    """Return mean and covariance of unnormalised SAM that draws one example for each step.

    From w₀ = 0, with i drawn anew and the same example for both gradients,

        w ← w − η (1 + ρ‖xᵢ‖²) xᵢ (xᵢᵀw − yᵢ).

    Expectations are sums over all n examples, so they are exact. The mean follows the matrix
    E[Hᵢ + ρHᵢ²] = H + ρH² + ρ E(Hᵢ − H)²: one more regulariser than full-batch SAM has, and
    another limit, least squares with the weights 1 + ρ‖xᵢ‖².

    Args:
        design: X, shape (n, d).
        targets: y, shape (n,).
        eta: step size η.
        rho: SAM's ρ; 0: stochastic gradient descent.
        iterations: K, at least 1.

    Returns:
        The moments after 0, 1, …, K steps. The covariance may diverge where the mean converges.

    Raises:
        InvalidArgumentError: if shapes do not fit, or the mean diverges at η.

    Cost: n d² operations per iteration, K d² numbers of memory.

    Reference: derived here; the setting is that of Behdin, Mazumder 2023, arXiv 2302.11836.

    Two examples of one weight, y = 1 and y = 3: after one step of η = 0.1, 0.1 or 0.3.

    >>> moments = stochastic_sam(np.ones((2, 1)), np.array([1.0, 3.0]), eta=0.1, iterations=1)
    >>> moments.means[1].round(12).tolist(), moments.spread.round(12).tolist()
    ([0.2], [0.0, 0.01])
    """
    x = check_array(design, name="design", shape=(None, None))
    y = check_array(targets, name="targets", shape=(len(x),))
    last = whole("iterations", iterations, least=1)
    positive("eta", eta)
    real("rho", rho, least=0.0)
    weights = 1.0 + rho * np.sum(x**2, axis=1)
    mean_hessian = (x.T * weights) @ x / len(x)
    top = float(np.linalg.norm(mean_hessian, 2))
    check_stable(top, eta=eta, rho=0.0, curvature="λ₁(E[Hᵢ + ρHᵢ²])")
    means, seconds = np.zeros((last + 1, x.shape[1])), np.zeros((last + 1, *mean_hessian.shape))
    pull = (weights * y) @ x / len(x)
    for k in range(last):
        means[k + 1] = means[k] - eta * (mean_hessian @ means[k] - pull)
        seconds[k + 1] = _next_covariance(means[k], seconds[k], x, y, eta * weights)
    return Stochastic(
        means=means,
        covariances=seconds,
        limit=np.asarray(np.linalg.pinv(mean_hessian, hermitian=True) @ pull),
        eta=eta,
        rho=rho,
    )


def _next_covariance(
    mean: FloatArray, covariance: FloatArray, x: FloatArray, y: FloatArray, steps: FloatArray
) -> FloatArray:
    """Return the covariance one step later: mean of the covariances + covariance of the means."""
    along = x @ covariance  # row i: Cxᵢ
    cross = (x.T * steps) @ along / len(x)
    twice = (x.T * (steps**2 * np.sum(along * x, axis=1))) @ x / len(x)
    moves = -(steps * (x @ mean - y))[:, None] * x
    moves = moves - moves.mean(axis=0)
    return np.asarray(covariance - cross - cross.T + twice + moves.T @ moves / len(x))
