"""Bounds on the ends of a spectrum from a Lanczos run with a random start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from scipy.optimize import brentq
from scipy.special import betaincinv

from landscape.linalg.krylov import Floats

# Default of the chance, at most, that an eigenvalue was missed.
FAILURE_PROBABILITY = 1e-2


def least_cosine(n: int, failure: float) -> float:
    """Return what |cos(x, v)| falls short of with a stated chance, for x uniform on the sphere.

    The square of the cosine follows Beta(1/2, (n − 1)/2), whatever the unit vector v.

    >>> round(least_cosine(2, 0.5), 6)  # half the angles are more than 45° off
    0.707107
    """
    return math.sqrt(float(betaincinv(0.5, (n - 1) / 2.0, failure))) if n > 1 else 1.0


@dataclass
class LanczosTridiagonal:
    """The tridiagonal matrix of an uninterrupted Lanczos run from a random vector.

    Attributes:
        n: dimension of the space that the start was uniform in.
        alphas: diagonal.
        betas: off-diagonal, and the norm of the last residual; 0 where the space is exhausted.
    """

    n: int
    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)

    @property
    def exhausted(self) -> bool:
        """Whether the run met an invariant subspace, after which it is another run."""
        return bool(self.betas) and self.betas[-1] == 0.0

    def values(self, sign: float) -> Floats:
        """Return the Ritz values times a sign, descending."""
        values = eigvalsh_tridiagonal(np.array(self.alphas), np.array(self.betas[:-1]))
        return np.sort(sign * values)[::-1]

    def progress(self, edge: float, sign: float, *, failure: float) -> float:
        """Return how far the run has come on its way to show that nothing lies beyond an edge."""
        if not self.alphas:
            return 0.0
        distances = sign * edge - self.values(sign)
        if self.exhausted and distances[0] >= 0.0:
            return math.inf
        if distances[0] <= 0.0:
            return 0.0
        growth = float(np.log(distances).sum() - np.log(self.betas).sum())
        needed = -math.log(least_cosine(self.n, failure))
        return growth / needed if needed > 0.0 else math.inf

    def bound(self, sign: float, *, failure: float) -> float:
        """Return a number that no eigenvalue exceeds, but for a stated chance.

        After m steps from x, p(H)x is a unit vector for p(t) = Π (t − θⱼ) / Π βⱼ. Its component
        along the top eigenvector is p(λ₁) cos(x, v₁), so |p(λ₁)| ≤ 1/|cos(x, v₁)| ≤ 1/c, with c
        from `least_cosine`. As p grows beyond θ₁, λ₁ is at most the t > θ₁ where p(t) = 1/c.

        References:
            Van Dorsselaer, Hochstenbach and van der Vorst (2000), Computing probabilistic bounds
            for extreme eigenvalues of symmetric matrices with the Lanczos method, SIAM J. Matrix
            Anal. Appl. 22.
        """
        if not self.alphas:
            return sign * math.inf
        values = self.values(sign)
        if self.exhausted:
            return sign * float(values[0])
        level = float(np.log(self.betas).sum()) - math.log(least_cosine(self.n, failure))
        below = values[0] - values[1:]

        def excess(log_distance: float) -> float:
            factors = np.log(math.exp(log_distance) + below)
            return log_distance + float(factors.sum()) - level

        # All factors are at least the first, so that p has reached the level by there.
        high = level / len(values) + 1e-9
        reach = 1.0
        while excess(high - reach) > 0.0:
            reach *= 2.0
        root = float(brentq(excess, high - reach, high, xtol=1e-9)) + 1e-9
        return sign * (float(values[0]) + math.exp(root))


class Enclosure:
    """Bounds on the spectrum from several searches, each from another random vector.

    The r-th search is granted the failure probability δ/2ʳ⁺¹ at each end, so that all together fail
    with δ at most, however many there are and whichever of them is the sharpest.
    """

    def __init__(self, failure: float) -> None:
        self.upper = math.inf
        self.lower = -math.inf
        self._failure = failure / 2.0

    def grant(self) -> float:
        """Return the failure probability of the next search, at each end."""
        self._failure /= 2.0
        return self._failure

    def narrow(self, lower: float, upper: float) -> None:
        """Tighten the bounds by those of a search."""
        self.lower, self.upper = max(self.lower, lower), min(self.upper, upper)
