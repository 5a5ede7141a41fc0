"""The shift of power iteration, its stopping rule, and its deflation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_linalg_eigen import BULK, Counted, solve, symmetric

from landscape.linalg import power_iteration
from landscape.linalg.power import _LowerEnd


@pytest.mark.parametrize("bottom", [-0.9, -1.0, -1.1, -3.0, -20.0])
def test_most_negative_eigenvalue_neither_wins_nor_stalls(bottom):
    for seed in range(5):
        _, found = solve(power_iteration, [1, bottom, *BULK / 2], seed=seed, tol=1e-5)
        assert found.converged
        assert found.matvecs < 100 * abs(bottom)
        np.testing.assert_allclose(found.values, 1.0, atol=1e-6)


def test_cost_is_that_of_a_well_chosen_shift():
    """The ratio is (0.5 + 0.6) / (1 + 0.6) or so, hence about 40 products for 1e-6."""
    for seed in range(5):
        _, found = solve(power_iteration, [1, -1, *BULK / 2], seed=seed)
        assert found.matvecs < 60


@pytest.mark.parametrize("seed", range(5))
def test_small_change_is_not_convergence(seed):
    """At 0.97 of the top of a uniform spectrum the quotient moves by 1e-3 per step."""
    values = np.linspace(0, 1, 500)
    _, found = solve(power_iteration, values, tol=1e-4, seed=seed)
    assert found.converged
    assert found.values[0] > 1 - 1e-5
    _, found = solve(power_iteration, values, tol=1e-4, seed=seed, max_matvecs=100)
    assert not found.converged
    assert found.values[0] < 0.999


def test_start_at_the_bottom_is_not_taken_for_the_top():
    operator = Counted(symmetric([2, 1, *BULK / 2, -5]))
    start = torch.linalg.eigh(operator.matrix).eigenvectors[:, 0]
    found = power_iteration(operator, 100, start=start, **operator.options())
    np.testing.assert_allclose(found.values, 2.0, atol=1e-9)
    assert found.converged


def test_unfinished_check_of_a_given_start_is_not_called_converged():
    operator = Counted(symmetric([6, 5, *BULK]))
    start = torch.linalg.eigh(operator.matrix).eigenvectors[:, -2]
    for limit in (1, 4):
        found = power_iteration(operator, 99, start=start, max_matvecs=limit, **operator.options())
        assert found.matvecs == limit
        assert not found.converged


def test_locked_vectors_do_not_grow_back_below_zero():
    """Deflation leaves zeros in place of what was found, above all of a negative spectrum."""
    values = -np.linspace(1, 3, 60)
    _, found = solve(power_iteration, values, k=3, tol=1e-8)
    np.testing.assert_allclose(found.values, values[:3], atol=1e-10)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(3).double(), atol=1e-12, rtol=0)


def test_close_pairs_end_within_the_tolerance_of_the_whole_operator():
    values = [3, 2.97, 2.94, 2.91, *BULK]
    operator, found = solve(power_iteration, values, k=4, tol=1e-4)
    assert found.converged
    product = found.vectors @ operator.matrix
    rest = product - torch.from_numpy(found.values)[:, None] * found.vectors
    assert (rest.norm(dim=1) <= 3e-4).all()
    np.testing.assert_allclose(found.values, values[:4], atol=3e-4)


def test_lower_end_is_exact_on_two_eigenvectors():
    top, bottom = 3.0, -2.0
    end = _LowerEnd()
    v = np.array([0.99, np.sqrt(1 - 0.99**2)])
    for _ in range(2):
        w = v * [top, bottom]
        theta = v @ w
        residual = np.linalg.norm(w - theta * v)
        end.see(theta, residual)
        v = w - end.shift(theta, residual) * v
        v /= np.linalg.norm(v)
    assert end.ritz == pytest.approx(bottom, abs=1e-12)


def test_lower_end_is_never_below_the_smallest_eigenvalue():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.normal(size=30)
        v = rng.normal(size=30)
        v /= np.linalg.norm(v)
        end = _LowerEnd()
        for _ in range(30):
            w = values * v
            theta = v @ w
            residual = np.linalg.norm(w - theta * v)
            end.see(theta, residual)
            v = w - end.shift(theta, residual) * v
            v /= np.linalg.norm(v)
        width = np.ptp(values)
        assert end.ritz >= values.min() - 1e-9
        assert end.floor >= values.min() - 0.21 * width
