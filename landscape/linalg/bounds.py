"""What a random start proves of the ends of a spectrum, and what residuals prove of its values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal
from scipy.optimize import brentq
from scipy.special import betaincinv

from landscape.linalg.krylov import Floats

# Chance, at most, that an eigenvalue lies beyond the upper bound of a solution; lower bound alike.
FAILURE_PROBABILITY = 0.01


def least_cosine(n: int, failure: float) -> float:
    """Return what |cos(x, v)| falls short of with a stated chance, for x uniform on the sphere.

    The square of the cosine follows Beta(1/2, (n − 1)/2), whatever the unit vector v.

    Args:
        n: dimension.
        failure: the chance, between 0 and 1.

    Returns:
        The quantile, above 0.

    >>> round(least_cosine(2, 0.5), 6)  # half the angles are more than 45° off
    0.707107
    """
    return math.sqrt(float(betaincinv(0.5, (n - 1) / 2.0, failure))) if n > 1 else 1.0


@dataclass
class Chain:
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
        found = eigvalsh_tridiagonal(np.array(self.alphas), np.array(self.betas[:-1]))
        return np.sort(sign * found)[::-1]

    def progress(self, edge: float, sign: float, *, failure: float) -> float:
        """Return how far the run has come on its way to show that nothing lies beyond an edge.

        Args:
            edge: number that no eigenvalue is to exceed (fall short of, if the sign is −1).
            sign: 1 for the upper end, −1 for the lower one.
            failure: chance that the start hides an eigenvalue there.

        Returns:
            log p(edge) / log(1/c), see `bound`: at least 1 where it is shown.
        """
        if not self.alphas:
            return 0.0
        distances = sign * edge - self.values(sign)
        if distances[0] <= 0.0:
            return 0.0
        if self.exhausted:
            return math.inf
        growth = float(np.log(distances).sum() - np.log(self.betas).sum())
        needed = -math.log(least_cosine(self.n, failure))
        return growth / needed if needed > 0.0 else math.inf

    def bound(self, sign: float, *, failure: float) -> float:
        """Return a number that no eigenvalue exceeds, but for a stated chance.

        After m steps from x, p(H)x is a unit vector for p(t) = Π (t − θⱼ) / Π βⱼ. Its component
        along the top eigenvector is p(λ₁) cos(x, v₁), so |p(λ₁)| ≤ 1/|cos(x, v₁)| ≤ 1/c, with c
        from `least_cosine`. As p grows beyond θ₁, λ₁ is at most the t > θ₁ where p(t) = 1/c.

        Args:
            sign: 1 for the upper end, −1 for the lower one.
            failure: chance that the bound does not hold.

        Returns:
            The upper bound on the eigenvalues, or the lower one; infinite without any steps.

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


def widened(lowest: float, highest: float, n: int, *, degree: int, failure: float) -> float:
    """Return how far the spectrum reaches beyond its extreme Ritz values, on either side.

    For a space that contains {x, Hx, …, Hᵈ⁻¹x} of a random x, the chance that λ₁ − θ₁ exceeds
    ε (λ₁ − λₙ) is at most 1.648 √n exp(−√ε (2d − 1)); the lower end is the same for −H
    (Kuczyński and Woźniakowski, 1992). As both hold, λ₁ − λₙ ≤ (θ₁ − θₘ) / (1 − 2ε).

    Args:
        lowest: smallest Ritz value.
        highest: largest Ritz value.
        n: dimension of the space that x is uniform in.
        degree: d.
        failure: chance that it reaches farther, on one side or the other.

    Returns:
        ε (λ₁ − λₙ); infinite while the degree is too small to say anything.
    """
    if degree < 1:
        return math.inf
    share = (math.log(1.648 * math.sqrt(n) * 2.0 / failure) / (2 * degree - 1)) ** 2
    return share * (highest - lowest) / (1.0 - 2.0 * share) if share < 0.5 else math.inf


class Enclosure:
    """Bounds on the spectrum from several searches, each from a random vector of its own.

    The r-th search is granted the failure probability δ/2ʳ, so that all together fail with δ at
    most, however many there are and whichever of them is the sharpest.

    Attributes:
        upper: no eigenvalue is larger, but for the chance δ; infinite until something is known.
        lower: no eigenvalue is smaller, but for the chance δ.
    """

    def __init__(self) -> None:
        self.upper = math.inf
        self.lower = -math.inf
        self._failure = FAILURE_PROBABILITY

    def grant(self) -> float:
        """Return the failure probability of the next search."""
        self._failure /= 2.0
        return self._failure

    def narrow(self, lower: float, upper: float) -> None:
        """Take note of what a search has shown."""
        self.lower, self.upper = max(self.lower, lower), min(self.upper, upper)


@dataclass(frozen=True)
class Rest:
    """Where the eigenvalues that were not asked for lie, pessimistically; empty if low > high."""

    low: float
    high: float

    def joined(self, value: float) -> Rest:
        """Return the interval stretched to a value."""
        return Rest(min(self.low, value), max(self.high, value))


def kato_temple(values: Floats, residuals: Floats, rest: Rest) -> Floats:
    """Return how far each value is from an eigenvalue, given that none lies hidden between.

    If no other eigenvalue is closer than g to θ, then |θ − λ| ≤ ‖Hv − θv‖² / g. The others are
    taken to lie within the residuals of the other values, or in the rest.

    Args:
        values: Rayleigh quotients, shape (k,).
        residuals: their residuals, shape (k,).
        rest: where the eigenvalues that were not asked for lie.

    Returns:
        The bounds, shape (k,): the residual itself where the gap is not larger than it.

    References:
        Kato (1949), On the upper and lower bounds of eigenvalues, J. Phys. Soc. Japan 4; Parlett
        (1998), The Symmetric Eigenvalue Problem, section 11.7.

    >>> one = np.array([3.0]), np.array([0.1])
    >>> kato_temple(*one, Rest(-math.inf, 2.0)).round(6).tolist()
    [0.01]
    """
    distance = np.abs(values[:, None] - values[None, :]) - residuals[None, :]
    np.fill_diagonal(distance, np.inf)
    gap = distance.min(axis=1)
    if rest.low <= rest.high:
        gap = np.minimum(gap, np.maximum(values - rest.high, rest.low - values))
    clear = gap > residuals
    return np.where(clear, residuals**2 / np.where(clear, gap, 1.0), residuals)
