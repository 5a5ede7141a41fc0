"""Random designs, and the linear model run many times with fresh noise, by its gradient alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from landscape.checks import real, whole
from landscape.errors import one_of
from landscape.results import FloatArray
from landscape.theory.modes import RISKS, check_array, check_stable

DESIGNS = ("gaussian", "decaying", "deficient")
SIGNALS = ("sharp", "even")


def random_design(
    name: str, *, n: int = 40, d: int = 20, signal: str = "sharp", seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Draw a design whose largest curvature is 1, and a truth of length 1.

    Args:
        name: ``gaussian``: entries of a standard normal; ``decaying``: eigenvalues dᵢ = 1/i²;
            ``deficient``: normal, of half the rank it could have.
        n: number of examples.
        d: number of weights.
        signal: ``sharp``: w₀ along XᵀXz/n + z/10, most of it where the curvature is high, which
            favours SAM; ``even``: along z itself; z is normal.
        seed: of both.

    Returns:
        X, shape (n, d), with λ₁(XᵀX/n) = 1, and w₀, shape (d,), with ‖w₀‖ = 1.

    Raises:
        InvalidArgumentError: if a name is unknown, n or d is below 1, or the seed below 0.

    >>> design, truth = random_design("gaussian", n=30, d=5)
    >>> design.shape, round(float(np.linalg.norm(design, 2) ** 2 / 30), 12)
    ((30, 5), 1.0)
    """
    one_of(name, DESIGNS, what="design")
    one_of(signal, SIGNALS, what="signal")
    whole("n", n, least=1)
    whole("d", d, least=1)
    rng = np.random.default_rng(whole("seed", seed, least=0))
    x = rng.standard_normal((n, d))
    if name == "deficient":
        rank = max(1, min(n, d) // 2)
        x = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d))
    if name == "decaying":
        left, _, right = np.linalg.svd(x, full_matrices=False)
        x = (left / np.arange(1, min(n, d) + 1)) @ right
    x *= np.sqrt(n) / np.linalg.norm(x, 2)
    z = rng.standard_normal(d)
    truth = x.T @ (x @ z) / n + 0.1 * z if signal == "sharp" else z
    return x, truth / np.linalg.norm(truth)


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Means over pairs of runs a, b, with standard errors; arrays of shape (m,)."""

    iterations: FloatArray
    bias2: FloatArray  # of ⟨a − w₀, b − w₀⟩
    bias2_se: FloatArray
    variance: FloatArray  # of ‖a − b‖² / 2
    variance_se: FloatArray
    risk: FloatArray  # of (‖a − w₀‖² + ‖b − w₀‖²) / 2
    risk_se: FloatArray
    runs: int  # two for each pair
    seed: int  # of the noise
    rho: float  # 0: gradient descent


def simulate(
    design: FloatArray,
    truth: FloatArray,
    *,
    noise: float,
    eta: float,
    rho: float = 0.0,
    at: Sequence[int],
    runs: int = 2000,
    risk: str = "in-sample",
    seed: int = 0,
) -> Simulated:
    """Run gradient descent or unnormalised SAM from zero on data with fresh Gaussian noise.

    Runs are paired. For independent runs a and b, E⟨a − w₀, b − w₀⟩ is exactly bias² and
    E ‖a − b‖²/2 exactly the variance, so each estimate is a mean of independent unbiased terms.

    Args:
        design: X, shape (n, d).
        truth: w₀, shape (d,).
        noise: σ, standard deviation of the noise, in the unit of y.
        eta: step size η.
        rho: SAM's ρ; 0: gradient descent.
        at: iterations to report, each at least 1, growing.
        runs: number of runs, at least 4; an odd one is left out.
        risk: ``in-sample`` or ``parameter``; see `landscape.theory.least_squares`.
        seed: of the noise.

    Returns:
        The estimates.

    Raises:
        InvalidArgumentError: if shapes do not fit, η is unstable, or a number is out of range.

    Cost: runs · d² operations per gradient, and runs · (n + d) numbers of memory.
    """
    x = check_array(design, name="design", shape=(None, None))
    w0 = check_array(truth, name="truth", shape=(x.shape[1],))
    times = sorted({whole("iteration in at", time, least=1) for time in at} or {1})
    half = whole("runs", runs, least=4) // 2
    real("noise", noise, least=0.0)
    one_of(risk, RISKS, what="risk")
    hessian = x.T @ x / len(x)
    check_stable(float(np.linalg.norm(hessian, 2)), eta=eta, rho=rho)
    metric = x.T / np.sqrt(len(x)) if risk == "in-sample" else np.eye(len(w0))
    # A stream of its own: a design drawn with the same seed must not come back as the noise.
    rng = np.random.default_rng([whole("seed", seed, least=0), 1])
    pull = (x @ w0 + noise * rng.standard_normal((2 * half, len(x)))) @ x / len(x)
    w: FloatArray = np.zeros((2 * half, len(w0)))
    terms = []
    for step in range(1, times[-1] + 1):
        gradient = w @ hessian - pull
        if rho > 0:
            gradient = (w + rho * gradient) @ hessian - pull
        w = w - eta * gradient
        if step in times:
            terms.append(_pair_terms((w - w0) @ metric))
    means, errors = np.mean(terms, axis=2).T, (np.std(terms, axis=2, ddof=1) / np.sqrt(half)).T
    return Simulated(
        iterations=np.array(times, dtype=np.float64),
        **dict(zip(("bias2", "variance", "risk"), means, strict=True)),
        **dict(zip(("bias2_se", "variance_se", "risk_se"), errors, strict=True)),
        runs=2 * half,
        seed=seed,
        rho=rho,
    )


def _pair_terms(error: FloatArray) -> FloatArray:
    """Return the terms of bias², variance and risk of each pair, shape (3, pairs)."""
    a, b = np.split(error, 2)
    terms = (a * b, (a - b) ** 2 / 2, (a**2 + b**2) / 2)
    return np.stack([np.sum(term, axis=1) for term in terms])
