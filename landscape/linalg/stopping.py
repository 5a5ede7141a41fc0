"""When to stop: residuals at rounding level, and the chance that something was missed."""

from __future__ import annotations

import math

# Chance, at most, that power iteration ends its search before it has met an eigenvalue.
MISS_PROBABILITY = 1e-4


class Stagnation:
    """Tells when residuals have come down to rounding and fall no further.

    They have if, near rounding, the smallest of the last quarter of the steps is not half the
    smallest of the quarter before. If it is ten times as large, that is no stagnation, but a
    larger eigenvalue coming into view.
    """

    def __init__(self) -> None:
        self._history: list[float] = []

    def reached(self, residual: float, *, rounding: float) -> bool:
        """Take note of a residual, and return whether it is time to give up."""
        self._history.append(residual)
        steps = len(self._history)
        if steps < 50 or steps % 25:
            return False
        quarter = max(25, steps // 4)
        before = min(self._history[-2 * quarter : -quarter])
        last = min(self._history[-quarter:])
        return last <= 1e3 * rounding and 0.5 * before <= last <= 10.0 * before


def miss_probability(gap: float, n: int, *, steps: int) -> float:
    """Bound the chance that power iteration from a random start has not yet seen an eigenvalue.

    With a start uniform on the sphere, and μ the largest Rayleigh quotient so far, the chance that
    an eigenvalue λ exists with (λ − μ) ≥ ε (λ − λₙ) is at most 0.824 √n (1 − ε)^(m − ½) after m
    steps, whatever the spectrum (Kuczyński and Woźniakowski, 1992, theorem 4.1).

    >>> miss_probability(0.0, 100, steps=50)
    1.0
    >>> miss_probability(0.9, 10**6, steps=10) < 1e-4
    True
    """
    gap = min(max(gap, 0.0), 1.0)
    return min(1.0, 0.824 * math.sqrt(n) * (1.0 - gap) ** (steps - 0.5)) if steps else 1.0
