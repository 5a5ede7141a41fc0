"""The bound on what a random start can miss, and what counts as stagnation."""

from __future__ import annotations

import numpy as np
import pytest

from landscape.linalg.krylov import Stagnation
from landscape.linalg.power import miss_probability


@pytest.mark.parametrize(("gap", "m"), [(0.3, 4), (0.3, 5), (0.1, 7), (0.1, 9)])
def test_miss_probability_bounds_what_happens(gap, m):
    """Spectra as hard as can be: the rest just below the bar."""
    n, trials = 40, 2000
    rest = (1 - gap) * (1 + np.cos(np.linspace(0, np.pi, n - 1))) / 2
    values = np.concatenate([[1.0], rest])
    rng = np.random.default_rng(0)
    missed = [power_quotient(values, rng.normal(size=n), m) <= 1 - gap for _ in range(trials)]
    assert np.mean(missed) <= miss_probability(gap, n, steps=m)


def power_quotient(values, b, m):
    v = values ** (m - 1) * b
    return v @ (values * v) / (v @ v)


def test_miss_probability_falls_with_work_and_rises_with_size():
    def chance(gap, n, steps):
        return miss_probability(gap, n, steps=steps)

    assert chance(0.5, 10**4, 0) == chance(0.0, 10, 1000) == 1.0
    assert chance(0.5, 10**4, 20) < chance(0.5, 10**4, 15) < chance(0.5, 10**6, 15) < 1.0
    assert chance(0.9, 10**4, 12) < chance(0.5, 10**4, 12)


def test_stagnation_is_hovering_near_rounding():
    def first(residuals, rounding=1e-16):
        stagnation = Stagnation()
        verdicts = [stagnation.reached(r, rounding=rounding) for r in residuals]
        return verdicts.index(True) + 1 if any(verdicts) else None

    jumpy = 10.0 ** np.random.default_rng(0).uniform(-16, -14.5, size=500)
    assert first([1.0] * 1000) is None
    assert first([1e-15] * 60) == 50
    assert first([*np.geomspace(1, 1e-15, 200), *[1e-15] * 300]) <= 325
    assert first(np.geomspace(1, 1e-14, 2000), rounding=1e-15) is None
    assert first(jumpy) <= 100
    assert first(np.geomspace(1e-14, 1e-8, 60)) is None
