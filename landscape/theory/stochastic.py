"""Stochastic SAM on least squares, one example at a time: its mean and covariance, exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landscape.checks import positive, real, whole
from landscape.results import FloatArray
from landscape.theory import checks


@dataclass(frozen=True, kw_only=True)
class Stochastic:
    """What stochastic SAM does on average over the order of the examples.

    Attributes:
        means: E wₖ, shape (K + 1, d).
        covariances: cov wₖ, shape (K + 1, d, d).
        limit: what E wₖ tends to, shape (d,): least squares with the weights 1 + ρ‖xᵢ‖².
        eta: step size.
        rho: SAM's ρ; 0: stochastic gradient descent.
    """

    means: FloatArray
    covariances: FloatArray
    limit: FloatArray
    eta: float
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
        The moments after 0, 1, …, K steps. The covariance may grow without bound where the mean
        converges: it is returned as it is.

    Raises:
        InvalidArgumentError: if shapes do not fit, or the mean diverges at η.

    Cost: n d² operations per iteration, K d² numbers of memory.

    Reference: derived here; the setting is that of Behdin, Mazumder 2023, arXiv 2302.11836.

    Two examples of one weight, y = 1 and y = 3: after one step of η = 0.1, 0.1 or 0.3.

    >>> found = stochastic_sam(np.ones((2, 1)), np.array([1.0, 3.0]), eta=0.1, iterations=1)
    >>> found.means[1].round(12).tolist(), found.spread.round(12).tolist()
    ([0.2], [0.0, 0.01])
    """
    x = checks.array(design, name="design", shape=(None, None))
    y = checks.array(targets, name="targets", shape=(len(x),))
    last = whole("iterations", iterations, least=1)
    positive("eta", eta)
    real("rho", rho, least=0.0)
    weights = 1.0 + rho * np.sum(x**2, axis=1)
    mean_hessian = (x.T * weights) @ x / len(x)
    top = float(np.linalg.norm(mean_hessian, 2))
    checks.stable(top, eta=eta, rho=0.0, what="λ₁(E[Hᵢ + ρHᵢ²])")
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
    """Return the covariance one step later: the mean of the covariances, and that of the means."""
    along = x @ covariance  # row i: Cxᵢ
    cross = (x.T * steps) @ along / len(x)
    twice = (x.T * (steps**2 * np.sum(along * x, axis=1))) @ x / len(x)
    moves = -(steps * (x @ mean - y))[:, None] * x
    moves = moves - moves.mean(axis=0)
    return np.asarray(covariance - cross - cross.T + twice + moves.T @ moves / len(x))
