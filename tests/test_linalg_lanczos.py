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
    rows, projection = basis.rows.numpy(), basis.projection
    np.testing.assert_allclose(rows @ rows.T, np.eye(steps), atol=1e-13)
    np.testing.assert_allclose(projection, rows @ matrix.numpy() @ rows.T, atol=1e-13)
    np.testing.assert_allclose(np.triu(projection, 2), 0.0, atol=1e-12)
    rest = matrix.numpy() @ rows.T - rows.T @ projection
    np.testing.assert_allclose(rest[:, :-1], 0.0, atol=1e-12)
    if steps < len(matrix):
        (following,) = basis.pending
        expected = basis.couplings[0, -1] * following.numpy()
        np.testing.assert_allclose(rest[:, -1], expected, atol=1e-12)
    else:
        assert basis.complete
        assert not basis.pending


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
    projection = basis.projection
    np.testing.assert_allclose(rows @ rows.T, np.eye(size), atol=1e-13)
    np.testing.assert_allclose(projection, rows @ matrix.numpy() @ rows.T, atol=1e-12)


def test_the_projection_of_every_part_is_kept_through_restarts_and_joins():
    parts = [symmetric([3, 2, *BULK], seed=seed) for seed in range(3)]
    matrix, last = sum(parts), []

    def matvec(v):
        last[:] = [v]
        return matrix @ v

    def project(rows):
        return np.array([(rows @ (part @ last[0])).numpy() for part in parts])

    for options in ({}, {"max_basis": 9}, {"both_ends": True}, {"block": 2}):
        found = lanczos(
            matvec, 99, k=2, project_parts=project, dtype=torch.float64, device="cpu", **options
        )
        forms = np.array(
            [np.einsum("ki,ij,kj->k", found.vectors, part, found.vectors) for part in parts]
        )
        np.testing.assert_allclose(found.part_forms, forms, atol=1e-12)
        np.testing.assert_allclose(found.part_forms.sum(axis=0), found.values, atol=1e-11)


def test_joined_vector_goes_on_from_the_space_that_is_there():
    matrix = symmetric([5, 3, *BULK])
    basis = basis_of(matrix, k=2, steps=6)
    basis.join(basis.operator.random_unit_vector(basis.rows))
    for _ in range(9):
        basis.step()
    rows, held = basis.rows.numpy(), torch.stack(basis.pending).numpy()
    rest = matrix.numpy() @ rows.T - rows.T @ basis.projection - held.T @ basis.couplings
    np.testing.assert_allclose(rest, 0.0, atol=1e-12)
    np.testing.assert_allclose(rows @ rows.T, np.eye(15), atol=1e-13)
    assert len(held) == 2


@pytest.mark.parametrize("k", [1, 3])
def test_verification_sees_what_the_products_are_off_by(k):
    """Products rounded to seven bits: the basis alone would promise far smaller residuals."""
    matrix = symmetric([9, 6, 4, *BULK])
    seen = []

    def rounded(v):
        w = (matrix @ v).to(torch.bfloat16).double()
        seen.append(float((w - matrix @ v).norm()))
        return w

    found = lanczos(rounded, 100, k=k, tol=1e-4, dtype=torch.float64, device="cpu", max_matvecs=300)
    assert not found.converged
    rest = found.vectors @ matrix - torch.from_numpy(found.values)[:, None] * found.vectors
    assert (found.residuals >= 0.3 * rest.norm(dim=1).numpy()).all()
    assert (found.residuals <= 5 * max(seen)).all()


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
    assert not basis.pending
    assert basis.chain.exhausted
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


# Several start vectors


@pytest.mark.parametrize("capacity", [None, 12])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(
    "values", [[5, 3, *BULK], [5, 5, 5, 2, 2, 1] * 5], ids=["simple", "copies"]
)
def test_band_relation_holds_through_deflation_and_restarts(values, width, capacity):
    matrix = symmetric(values)
    basis = basis_of(matrix, k=2, capacity=capacity)
    basis.begin(basis.operator.random_unit_vector() for _ in range(width))
    for _ in range(min(40, len(matrix))):
        basis.step()
        rows, size = basis.rows.numpy(), basis.size
        held = torch.stack([*basis.pending, *torch.zeros(1, len(matrix)).double()]).numpy()[:-1]
        projection = basis.projection
        np.testing.assert_allclose(rows @ rows.T, np.eye(size), atol=1e-13)
        np.testing.assert_allclose(held @ rows.T, 0.0, atol=1e-12)
        rest = matrix.numpy() @ rows.T - rows.T @ projection - held.T @ basis.couplings
        np.testing.assert_allclose(rest, 0.0, atol=1e-11)
        assert len(held) <= width
        ritz = basis.ritz()
        vectors = ritz.coefficients.T @ rows
        off = np.linalg.norm(vectors @ matrix.numpy() - ritz.values[:, None] * vectors, axis=1)
        np.testing.assert_allclose(off, ritz.estimates, atol=1e-11)
        np.testing.assert_allclose(held @ held.T, np.eye(len(held)), atol=1e-13)
        if basis.complete:
            break
    assert basis.asymmetry < 1e-13


def test_start_vectors_that_depend_on_others_are_left_out():
    basis = basis_of(symmetric(BULK))
    one = torch.eye(97).double()
    basis.begin([one[0].clone(), one[1].clone(), (one[0] + one[1]) / 2**0.5, one[2].clone()])
    assert len(basis.pending) == 3
    torch.testing.assert_close(torch.stack(basis.pending), one[:3])
    full = basis_of(symmetric([3.0, 1.0]))
    full.begin(full.operator.random_unit_vector() for _ in range(5))
    assert len(full.pending) == 2


@pytest.mark.parametrize("block", [1, 2, 3, 5])
@pytest.mark.parametrize("max_basis", [None, 16])
def test_threefold_eigenvalue_is_found_three_times_for_any_block(block, max_basis):
    values = [10, 10, 10, 4, *BULK]
    for seed in range(3):
        _, found = solve(lanczos, values, k=4, block=block, max_basis=max_basis, seed=seed)
        assert found.converged
        np.testing.assert_allclose(found.values, [10, 10, 10, 4], atol=1e-9)


def test_block_finds_copies_without_another_round():
    values = [10, 10, 10, *np.linspace(-1, 1, 997)]
    _, single = solve(lanczos, values, k=3)
    _, block = solve(lanczos, values, k=3, block=3)
    assert block.matvecs < single.matvecs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_start_from_exact_eigenvectors_does_not_hide_a_larger_one(dtype):
    operator = Counted(symmetric([9, 6, 5, 4, *BULK], dtype=dtype))
    vectors = torch.linalg.eigh(operator.matrix).eigenvectors.T
    for k in (1, 2, 3):
        start = vectors[[-2, -3, -4]] * 7
        found = lanczos(operator, 101, k=k, tol=1e-5, start=start, **operator.options())
        assert found.converged
        np.testing.assert_allclose(found.values, [9, 6, 5][:k], atol=1e-4)


def test_start_of_several_good_vectors_saves_products():
    values = np.linspace(0, 1, 300) ** 2
    operator = Counted(symmetric(values))
    vectors = torch.linalg.eigh(operator.matrix).eigenvectors.T[-4:]
    cold = lanczos(operator, 300, k=4, tol=1e-4, **operator.options())
    warm = lanczos(operator, 300, k=4, tol=1e-4, start=vectors, **operator.options())
    assert warm.matvecs < cold.matvecs


def test_scale_of_the_operator_does_not_drop_a_start():
    matrix = symmetric([3, 2, *BULK]) * 1e25
    operator = Counted(matrix)
    start = torch.randn(2, 99, generator=torch.Generator().manual_seed(0))
    found = lanczos(operator, 99, k=2, start=start, **operator.options())
    np.testing.assert_allclose(found.values / 1e25, [3, 2], rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block": 0}, "block must be a whole number of at least 1, got 0"),
        ({"start": torch.ones(2, 98)}, r"expected \(99,\), one flat vector, or \(b, 99\)"),
        ({"start": torch.ones(0, 99)}, r"start has shape \(0, 99\)"),
        ({"start": torch.eye(99)[:2] * torch.tensor([[1.0], [0.0]])}, "start has norm 0.0"),
    ],
)
def test_starts_that_will_not_do_are_refused(change, words):
    with pytest.raises(InvalidArgumentError, match=words):
        solve(lanczos, [5, 3, *BULK], **change)


# Both ends


@pytest.mark.parametrize("max_basis", [None, 14])
@pytest.mark.parametrize("block", [1, 3])
def test_both_ends_from_one_basis(max_basis, block):
    values = [9, 7, 7, *BULK, -3, -3, -20]
    operator, found = solve(
        lanczos, values, k=3, both_ends=True, max_basis=max_basis, block=block, tol=1e-8
    )
    assert found.converged
    assert found.n_lowest == 3
    np.testing.assert_allclose(found.values, [9, 7, 7, -3, -3, -20], atol=1e-8)
    rest = found.vectors @ operator.matrix
    rest -= torch.from_numpy(found.values)[:, None] * found.vectors
    np.testing.assert_allclose(found.residuals, rest.norm(dim=1), atol=1e-12)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(6).double(), atol=1e-12, rtol=0)
    _, top = solve(lanczos, values, k=3, tol=1e-8)
    assert top.n_lowest == 0


@pytest.mark.parametrize("k", range(1, 8))
def test_no_pair_is_returned_twice(k):
    values = [3, 3, 1, 0, -2, -2, -7]
    _, found = solve(lanczos, values, k=k, both_ends=True)
    lower = min(k, 7 - k)
    assert found.converged
    assert found.n_lowest == lower
    np.testing.assert_allclose(found.values, values[:k] + values[7 - lower :], atol=1e-9)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(k + lower).double(), atol=1e-12, rtol=0)


def test_both_ends_take_fewer_products_than_one_after_the_other():
    values = np.linspace(-1, 1, 400) ** 3
    _, top = solve(lanczos, values, k=2)
    _, both = solve(lanczos, values, k=2, both_ends=True)
    assert both.converged
    assert both.matvecs < 1.5 * top.matvecs


def test_both_ends_in_too_small_a_basis_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"at least 9 for k = 3 at both ends"):
        solve(lanczos, BULK, k=3, both_ends=True, max_basis=8)
    _, found = solve(lanczos, [4, 3, *BULK, -5], k=2, both_ends=True, max_basis=8)
    assert found.converged
    np.testing.assert_allclose(found.values, [4, 3, -1, -5], atol=1e-6)


# Symmetry


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kwargs", [{}, {"block": 3}, {"max_basis": 8}, {"k": 3}])
def test_random_matrix_is_refused_and_its_symmetric_part_is_not(dtype, kwargs):
    matrix = torch.randn(300, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    with pytest.raises(InvalidArgumentError, match=r"differ by [0-9.]+ of ‖H‖"):
        lanczos(Counted(matrix), 300, dtype=dtype, device="cpu", **kwargs)
    whole = Counted((matrix + matrix.T) / 2)
    found = lanczos(whole, 300, tol=1e-3, dtype=dtype, device="cpu", **kwargs)
    assert found.converged
    assert found.asymmetry < 30 * torch.finfo(dtype).eps


def test_asymmetry_is_that_of_the_projection():
    """With v₁, v₂ the basis, only the last coefficient of H v₁ and the first of H v₂ differ."""
    matrix = symmetric([5, 3, *BULK])
    skew = torch.zeros_like(matrix)
    skew[0, 1], skew[1, 0] = 1e-4, -1e-4
    basis = basis_of(matrix + skew, steps=2)
    v, w = basis.rows
    expected = abs(float(w @ (matrix + skew) @ v - v @ (matrix + skew) @ w))
    assert basis.asymmetry == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_noise_of_a_network_is_not_taken_for_asymmetry(dtype, noise):
    matrix = symmetric([10, 5, *BULK], dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)

    def noisy(v):
        e = torch.randn(99, generator=generator)
        return (matrix @ v.float() + 10 * noise * e / e.norm()).to(dtype)

    found = lanczos(noisy, 99, k=2, tol=1e-6, dtype=dtype, device="cpu", max_matvecs=200)
    assert 0 < found.asymmetry < 2 * noise
    np.testing.assert_allclose(found.values, [10, 5], atol=20 * noise)


@pytest.mark.parametrize(("k", "most"), [(1, 12), (5, 9)])
def test_evidence_costs_a_few_products(k, most):
    values = [30, 20, 14, 10, 7, 3, 2, *np.linspace(-1, 1, 998)]
    for seed in range(5):
        _, bare = solve(lanczos, values, k=k, tol=1e-4, failure_probability=1.0, seed=seed)
        _, found = solve(lanczos, values, k=k, tol=1e-4, seed=seed)
        assert found.converged
        assert found.matvecs - bare.matvecs <= most
