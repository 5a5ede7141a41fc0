"""The Krylov basis of Lanczos, its restarts, and its search for what was missed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_linalg_eigen import BULK, Counted, solve, symmetric

from landscape.errors import InvalidArgumentError
from landscape.linalg import lanczos
from landscape.linalg.basis import KrylovBasis
from landscape.linalg.krylov import Operator


def basis_of(matrix, *, k=1, capacity=None, steps=0):
    operator = Operator(
        lambda v: matrix @ v,
        len(matrix),
        dtype=matrix.dtype,
        device="cpu",
        seed=0,
        max_matvecs=10_000,
    )
    basis = KrylovBasis(operator, k=k, capacity=capacity)
    for _ in range(steps):
        basis.step()
    return basis


@pytest.mark.parametrize("steps", [1, 2, 40, 99])
def test_lanczos_relation(steps):
    matrix = symmetric([5, 3, *BULK])
    basis = basis_of(matrix, steps=steps)
    rows, projection = basis.rows.numpy(), basis._projection[:steps, :steps]
    np.testing.assert_allclose(rows @ rows.T, np.eye(steps), atol=1e-13)
    np.testing.assert_allclose(projection, rows @ matrix.numpy() @ rows.T, atol=1e-13)
    np.testing.assert_allclose(np.triu(projection, 2), 0.0, atol=1e-12)
    rest = matrix.numpy() @ rows.T - rows.T @ projection
    np.testing.assert_allclose(rest[:, :-1], 0.0, atol=1e-12)
    if steps < len(matrix):
        following = basis.coupling * basis.following.numpy()
        np.testing.assert_allclose(rest[:, -1], following, atol=1e-12)
    else:
        assert basis.complete
        assert basis.coupling == 0.0


def test_basis_stays_orthonormal_in_float32_long_after_convergence():
    matrix = symmetric([1000, 500, *BULK, *BULK, *BULK], dtype=torch.float32)
    basis = basis_of(matrix, steps=250)
    gram = basis.rows.double() @ basis.rows.double().T
    torch.testing.assert_close(gram, torch.eye(250).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("capacity", [8, 13])
def test_restarts_keep_the_relation_within_their_memory(capacity):
    matrix = symmetric([5, 3, *BULK, -4])
    basis = basis_of(matrix, k=2, capacity=capacity)
    for _ in range(100):
        basis.step()
        rows = basis.rows.numpy()
        assert len(rows) <= capacity == len(basis._vectors)
    size = len(rows)
    projection = basis._projection[:size, :size]
    np.testing.assert_allclose(rows @ rows.T, np.eye(size), atol=1e-13)
    np.testing.assert_allclose(projection, rows @ matrix.numpy() @ rows.T, atol=1e-12)


def test_steps_after_a_restart_are_counted_apart():
    basis = basis_of(symmetric([5, 3, *BULK]), capacity=8, steps=30)
    assert (basis.unbroken, basis.steps) == (8, 30)
    basis.lock(basis.rows[:1].clone(), np.array([1.0]), 0.0)
    basis.step()
    assert (basis.unbroken, basis.steps) == (1, 1)


def test_residual_estimates_are_the_true_ones_of_the_ritz_pairs():
    matrix = symmetric([5, 3, *BULK])
    for basis in (basis_of(matrix, steps=12), basis_of(matrix, k=2, capacity=9, steps=31)):
        ritz = basis.ritz()
        vectors = ritz.coefficients.T @ basis.rows.numpy()
        rest = vectors @ matrix.numpy() - ritz.values[:, None] * vectors
        np.testing.assert_allclose(np.linalg.norm(rest, axis=1), ritz.estimates, atol=1e-12)


def test_invariant_space_is_left_by_a_fresh_vector():
    values = [4.0] * 10 + [1.0] * 10
    basis = basis_of(symmetric(values), steps=2)
    assert basis.coupling == 0.0
    assert basis.following is None
    for _ in range(18):
        basis.step()
    np.testing.assert_allclose(basis.ritz().values, values, atol=1e-13)
    assert basis.complete


@pytest.mark.parametrize("max_basis", [8, 9, 20, 60])
def test_restarted_run_gives_the_answer_of_an_unrestarted_one(max_basis):
    values = np.sort(np.random.default_rng(1).normal(size=300))
    _, free = solve(lanczos, values, k=4, tol=1e-9)
    _, tight = solve(lanczos, values, k=4, tol=1e-9, max_basis=max_basis, max_matvecs=5000)
    assert free.converged
    assert tight.converged
    np.testing.assert_allclose(tight.values, free.values, atol=1e-12)
    np.testing.assert_allclose(tight.values, values[::-1][:4], atol=1e-12)
    overlap = (tight.vectors @ free.vectors.T).abs()
    torch.testing.assert_close(overlap, torch.eye(4).double(), atol=1e-6, rtol=0)
    assert tight.matvecs >= free.matvecs - 40


def test_restarts_keep_more_than_the_wanted_pairs():
    """Of 20 vectors 10 are kept; with the one wanted alone it takes thousands of products."""
    values = np.linspace(0, 1, 400)
    _, free = solve(lanczos, values, tol=1e-8)
    _, tight = solve(lanczos, values, tol=1e-8, max_basis=20)
    assert tight.converged
    assert tight.matvecs < 1.5 * free.matvecs


def test_wanted_pairs_come_out_even_with_the_smallest_basis():
    values = [9, 8, 7, 6, 5, 5, *BULK, -20]
    _, found = solve(lanczos, values, k=6, tol=1e-8, max_basis=9)
    np.testing.assert_allclose(found.values, values[:6], atol=1e-9)
    assert found.converged


def test_basis_too_small_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"max_basis = 7 .* at least 8 for k = 1"):
        solve(lanczos, BULK, max_basis=7)
    with pytest.raises(InvalidArgumentError, match=r"max_basis = 12 .* at least 13 for k = 10"):
        solve(lanczos, BULK, k=10, max_basis=12)
    _, found = solve(lanczos, [3.0, 1.0, 0.0], k=3, max_basis=3)
    np.testing.assert_allclose(found.values, [3, 1, 0], atol=1e-12)


def test_cost_where_the_top_stands_clear():
    _, found = solve(lanczos, [100, 50, 25, *np.linspace(-1, 1, 997)], k=3)
    assert found.converged
    assert found.matvecs <= 25


def test_check_is_not_stopped_by_a_few_products_that_saw_nothing():
    """A copy of the top hides among 20,000: a fresh vector has 0.7% of its length there."""
    diagonal = torch.cat([torch.tensor([10.0, 10.0]), torch.linspace(-9, 9, 20_000)]).double()
    start = torch.zeros(20_002, dtype=torch.float64)
    start[0] = 1.0
    for seed in range(20):
        found = lanczos(
            lambda v: diagonal * v,
            len(diagonal),
            k=2,
            tol=1e-6,
            seed=seed,
            start=start,
            dtype=torch.float64,
            device="cpu",
        )
        assert found.converged
        np.testing.assert_allclose(found.values, 10.0, atol=1e-6)


def test_check_cut_short_is_not_called_converged():
    """The start is an eigenvector: its residual is zero at once, and nothing else is known."""
    operator = Counted(symmetric([6, 5, *BULK]))
    start = torch.linalg.eigh(operator.matrix).eigenvectors[:, -2]
    found = lanczos(operator, 99, start=start, max_matvecs=4, **operator.options())
    assert found.matvecs <= 4
    assert not found.converged


def test_noise_in_the_products_ends_the_search_with_its_true_size():
    matrix = symmetric([10, 5, *BULK])
    generator = torch.Generator().manual_seed(1)

    def noisy(v):
        return matrix @ v + 1e-3 * torch.randn(99, generator=generator, dtype=torch.float64)

    found = lanczos(noisy, 99, k=2, dtype=torch.float64, device="cpu", max_matvecs=1000)
    assert not found.converged
    assert found.matvecs < 200
    np.testing.assert_allclose(found.values, [10, 5], atol=0.02)
    assert (found.residuals > 5e-3).all()
    assert (found.residuals < 5e-2).all()
