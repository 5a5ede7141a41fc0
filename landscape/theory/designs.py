"""Designs to look at the theory with: random directions, a chosen spectrum."""

from __future__ import annotations

import numpy as np

from landscape.checks import whole
from landscape.errors import one_of
from landscape.results import FloatArray

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
        InvalidArgumentError: if the name is unknown, n or d is below 1, or the seed
            below 0.

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
