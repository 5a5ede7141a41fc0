"""What Lanczos and power iteration promise alike, on matrices whose spectrum is known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.errors import InvalidArgumentError, LandscapeError, NonFiniteError
from landscape.linalg import lanczos, power_iteration

SOLVERS = {
    "lanczos": lanczos,
    "restarted": partial(lanczos, max_basis=8),
    "power": partial(power_iteration, max_matvecs=20_000),
}
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())

BULK = np.linspace(-1.0, 1.0, 97)
SPECTRA = {
    "outliers": ([100, 50, 25, *BULK], 3),
    "one of each sign": ([1, -1, *BULK / 2], 1),
    "most negative is largest": ([5, 3, *BULK, -50], 2),
    "all negative": ([-1, -2, *(-3 - np.abs(BULK))], 3),
    "threefold": ([10, 10, 10, *BULK], 3),
    "threefold, one asked for": ([10, 10, 10, 5, *BULK], 1),
    "threefold below the top": ([20, 10, 10, 10, *BULK], 4),
    "two pairs": ([10, 10, 4, 4, *BULK], 4),
    "flat": ([1e-6, 4e-7, *(BULK * 1e-7)], 2),
    "zero": ([0.0] * 30, 3),
    "all alike": ([2.0] * 30, 3),
    "rank one": ([3.0] + [0.0] * 40, 2),
    "rank one, negative": ([-3.0] + [0.0] * 40, 2),
    "projector": ([1.0] * 20 + [0.0] * 20, 5),
    "single": ([-2.0], 1),
    "everything": ([3, 3, 1, 0, -2, -2, -7], 7),
}


def symmetric(values, *, dtype=torch.float64, seed=0):
    """Return a dense symmetric matrix with these eigenvalues and random eigenvectors."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    matrix = (basis * np.asarray(values, dtype=np.float64)) @ basis.T
    return torch.from_numpy((matrix + matrix.T) / 2).to(dtype)


class Counted:
    """A matrix as a matvec that counts its products and keeps the vectors it was given."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.seen = []

    def __call__(self, v):
        self.seen.append(v.clone())
        return self.matrix @ v

    def options(self):
        return {"dtype": self.matrix.dtype, "device": self.matrix.device}


def solve(solver, values, *, dtype=torch.float64, **kwargs):
    operator = Counted(symmetric(values, dtype=dtype))
    return operator, solver(operator, len(values), **operator.options(), **kwargs)


def true_residuals(matrix, found):
    vectors = found.vectors.double()
    product = vectors @ matrix.double()
    theta = torch.from_numpy(found.values)
    return (product - theta[:, None] * vectors).norm(dim=1).numpy()


@every_solver
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_and_their_evidence(solver, name):
    values, k = SPECTRA[name]
    scale = np.abs(values).max()
    operator, found = solve(solver, values, k=k, tol=1e-8)

    assert found.converged
    np.testing.assert_allclose(found.values, np.sort(values)[::-1][:k], atol=1e-10 * scale, rtol=0)
    assert (np.diff(found.values) <= 0).all()
    assert found.values.dtype == found.residuals.dtype == np.float64
    assert (found.residuals <= 1e-8 * scale).all()
    np.testing.assert_allclose(
        found.residuals, true_residuals(operator.matrix, found), atol=1e-13 * scale
    )
    identity = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(found.vectors @ found.vectors.T, identity, atol=1e-12, rtol=0)
    assert found.matvecs == len(operator.seen)


@every_solver
@pytest.mark.parametrize("name", SPECTRA)
def test_float32_meets_its_tolerance(solver, name):
    values, k = SPECTRA[name]
    scale = np.abs(values).max()
    operator, found = solve(solver, values, k=k, tol=1e-5, dtype=torch.float32)

    assert found.converged
    np.testing.assert_allclose(found.values, np.sort(values)[::-1][:k], atol=1e-5 * scale, rtol=0)
    assert (true_residuals(operator.matrix, found) <= 1.05e-5 * scale).all()
    assert found.vectors.dtype == torch.float32


@every_solver
@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.integers(-4, 4), min_size=1, max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_small_integer_spectra_with_any_multiplicities(solver, values, share, seed):
    k = 1 + round(share * (len(values) - 1))
    _, found = solve(solver, values, k=k, tol=1e-8, seed=seed)
    assert found.converged
    np.testing.assert_allclose(found.values, sorted(values, reverse=True)[:k], atol=1e-8)


@every_solver
@pytest.mark.parametrize("k", [2, 3])
def test_repeated_eigenvalue_is_found_as_often_as_it_occurs_from_any_seed(solver, k):
    diagonal = torch.cat([torch.full((3,), 10.0), torch.linspace(-1, 1, 2000)]).double()
    for seed in range(20):
        found = solver(
            lambda v: diagonal * v,
            len(diagonal),
            k=k,
            tol=1e-6,
            seed=seed,
            dtype=torch.float64,
            device="cpu",
        )
        np.testing.assert_allclose(found.values, 10.0, atol=1e-9)
        assert found.converged


@every_solver
def test_uniform_spectrum_is_not_accepted_short_of_its_end(solver):
    values = np.linspace(0, 1, 200)
    for seed in range(5):
        _, hasty = solve(solver, values, max_matvecs=24, seed=seed)
        assert not hasty.converged
        assert hasty.residuals[0] > 1e-4
    _, patient = solve(solver, values)
    assert patient.converged
    np.testing.assert_allclose(patient.values, 1.0, atol=1e-9)


@every_solver
def test_no_ghost_copies_in_float32_however_long_it_runs(solver):
    values = [100, 50, 25, *np.linspace(-1, 1, 397)]
    _, found = solve(solver, values, k=5, tol=1e-9, max_matvecs=200, dtype=torch.float32)
    np.testing.assert_allclose(found.values[:3], [100, 50, 25], rtol=1e-5)
    assert (found.values[3:] < 1.001).all()
    assert not found.converged


@every_solver
def test_tolerance_beyond_rounding_ends_by_itself_and_says_so(solver):
    operator, found = solve(
        solver, [10, 5, *BULK], k=2, tol=1e-12, max_matvecs=5000, dtype=torch.float32
    )
    assert not found.converged
    assert found.matvecs < 500
    np.testing.assert_allclose(found.values, [10, 5], rtol=1e-6)
    assert (found.residuals < 1e-5).all()
    np.testing.assert_allclose(
        found.residuals, true_residuals(operator.matrix, found), rtol=0.5, atol=5e-6
    )


@every_solver
def test_asymmetric_operator_is_refused_or_never_called_converged(solver):
    """Power iteration compares only the vectors that it found, which is not enough here."""
    matrix = symmetric([10, 5, *BULK])
    matrix[0, 1:] += 0.3
    operator = Counted(matrix)
    options = operator.options() | {"max_matvecs": 400, "k": 2}
    if solver is SOLVERS["power"]:
        assert not solver(operator, len(matrix), **options).converged
    else:
        with pytest.raises(InvalidArgumentError, match=r"not symmetric: after .* u·Hv and v·Hu"):
            solver(operator, len(matrix), **options)
    assert len(operator.seen) <= 400


@every_solver
def test_rotation_is_refused(solver):
    matrix = torch.tensor([[3.0, 0.5], [-0.5, 1.0]]).double()
    with pytest.raises(InvalidArgumentError, match=r"not symmetric: .* expected at most 0.001"):
        solver(Counted(matrix), 2, k=2, dtype=torch.float64, device="cpu")


@every_solver
@pytest.mark.parametrize("exponent", [-40, -20, 30])
def test_nothing_absolute_enters(solver, exponent):
    values = np.array([3, 2, *BULK, -6])
    scale = 2.0**exponent
    _, plain = solve(solver, values, k=2)
    _, scaled = solve(solver, values * scale, k=2)
    assert scaled.matvecs == plain.matvecs
    np.testing.assert_allclose(scaled.values / scale, plain.values, rtol=1e-13)
    np.testing.assert_allclose(scaled.residuals / scale, plain.residuals, rtol=1e-3)


@every_solver
def test_tolerance_is_relative_to_the_largest_of_either_sign(solver):
    _, found = solve(solver, [1, *BULK / 10, -50], tol=1e-3)
    assert found.converged
    assert found.residuals[0] <= 0.05
    _, strict = solve(solver, [1, *BULK / 10, -50], tol=1e-9)
    np.testing.assert_allclose(strict.values, 1.0, atol=1e-9)
    assert strict.matvecs >= found.matvecs


@every_solver
def test_same_seed_same_bits_and_the_global_generator_is_left_alone(solver):
    state = torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    _, first = solve(solver, [5, 5, *BULK], k=2, seed=3)
    _, again = solve(solver, [5, 5, *BULK], k=2, seed=3)
    _, other = solve(solver, [5, 5, *BULK], k=2, seed=4)
    assert first.vectors.equal(again.vectors)
    assert first.values.tobytes() == again.values.tobytes()
    assert first.residuals.tobytes() == again.residuals.tobytes()
    assert not first.vectors.equal(other.vectors)
    assert state.equal(torch.random.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


@every_solver
def test_first_vector_is_the_same_in_every_dtype(solver):
    wide, _ = solve(solver, [5, *BULK])
    narrow, _ = solve(solver, [5, *BULK], dtype=torch.float32)
    torch.testing.assert_close(wide.seen[0].float(), narrow.seen[0], atol=1e-7, rtol=0)
    assert wide.seen[0].norm() == pytest.approx(1.0, abs=1e-14)


@every_solver
def test_every_product_is_taken_with_a_unit_vector(solver):
    operator, _ = solve(solver, [5, 5, *BULK, -9], k=2)
    for v in operator.seen:
        assert v.norm() == pytest.approx(1.0, abs=1e-12)


@every_solver
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_start_at_another_eigenvector_does_not_hide_the_top(solver, scale):
    operator = Counted(symmetric([6, 5, 4, *BULK]))
    vectors = torch.linalg.eigh(operator.matrix).eigenvectors
    for index in (-2, -3, 0):
        start = vectors[:, index] * scale
        found = solver(operator, len(start), start=start, **operator.options())
        np.testing.assert_allclose(found.values, 6.0, atol=1e-9)
        assert found.converged


@every_solver
def test_good_start_saves_products(solver):
    matrix = symmetric(np.linspace(0, 1, 300))
    matrix += symmetric([0.1] + [0] * 299, seed=1)
    eigenvector = torch.linalg.eigh(matrix).eigenvectors[:, -1]
    operator = Counted(matrix)
    _ = solver(operator, 300, tol=1e-5, **operator.options())
    warm = solver(operator, 300, tol=1e-5, start=eigenvector.float(), **operator.options())
    cold = len(operator.seen) - warm.matvecs
    assert warm.matvecs < cold
    # Lanczos adds a little of everything, so that nothing new is left out.
    near = 1 - 1e-12 if solver is SOLVERS["power"] else 0.998
    assert near <= float(operator.seen[cold] @ eigenvector) <= 1.000001


@every_solver
@pytest.mark.parametrize("k", [1, 3])
def test_budget_is_kept_to_the_last_product(solver, k):
    values = np.linspace(0, 1, 60)
    for limit in range(2 * k, 45, 4):
        operator, found = solve(solver, values, k=k, max_matvecs=limit)
        assert found.matvecs == len(operator.seen) <= limit
        assert found.values.shape == found.residuals.shape == (k,)
        assert found.vectors.shape == (k, 60)
        assert (np.diff(found.values) <= 0).all()
        np.testing.assert_allclose(
            found.residuals, true_residuals(operator.matrix, found), atol=1e-12
        )
        assert not found.converged or (found.residuals <= 1e-6).all()


@every_solver
def test_callback_counts_products_and_follows_the_residual(solver):
    calls = []
    _, found = solve(solver, [5, 3, *BULK], k=2, callback=lambda *call: calls.append(call))
    counts, residuals = zip(*calls, strict=True)
    assert counts == tuple(range(1, found.matvecs + 1))
    assert residuals[0] == np.inf
    assert min(residuals) < 1e-5


@every_solver
def test_exception_of_the_callback_passes_through(solver):
    def stop(count, residual):
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(solver, [5, 3, *BULK], callback=stop)


@every_solver
def test_product_may_be_the_argument_itself_or_a_buffer_used_again(solver):
    options = {"k": 2, "dtype": torch.float64, "device": "cpu"}
    identity = solver(lambda v: v, 20, **options)
    np.testing.assert_allclose(identity.values, 1.0, rtol=1e-14)
    gram = identity.vectors @ identity.vectors.T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64))

    diagonal, buffer = torch.tensor([7.0, 4.0, *BULK]).double(), torch.empty(99).double()
    reused = solver(lambda v: torch.mul(diagonal, v, out=buffer), 99, **options)
    np.testing.assert_allclose(reused.values, [7, 4], atol=1e-9)


@every_solver
def test_no_graph_is_kept(solver):
    diagonal = torch.tensor([7.0, 4.0, *BULK], requires_grad=True)
    found = solver(lambda v: diagonal * v, 99, tol=1e-4, dtype=torch.float32, device="cpu")
    assert not found.vectors.requires_grad
    assert found.vectors.grad_fn is None


@every_solver
def test_half_precision_operator_works_on_float32_vectors(solver):
    dtypes = set()
    matrix = symmetric([8, 4, *BULK], dtype=torch.bfloat16)

    def matvec(v):
        dtypes.add(v.dtype)
        return matrix @ v

    found = solver(matvec, 99, k=2, dtype=torch.bfloat16, device="cpu", max_matvecs=2000)
    assert dtypes == {torch.bfloat16}
    assert found.vectors.dtype == torch.float32
    np.testing.assert_allclose(found.values, [8, 4], rtol=0.01)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(2), atol=1e-5, rtol=0)
    assert not found.converged
    assert found.matvecs < 500


@every_solver
@pytest.mark.parametrize(
    ("bad", "count", "words"),
    [
        (float("nan"), 1, "product 1 .* not finite: 2 NaN and 0 infinite of 99 entries"),
        (float("inf"), 6, "product 6 .* not finite: 0 NaN and 2 infinite of 99 .*float64"),
    ],
)
def test_product_that_is_not_finite_is_named(solver, bad, count, words):
    operator = Counted(symmetric([5, 3, *BULK]))

    def matvec(v):
        w = operator(v)
        if len(operator.seen) == count:
            w[:2] = bad
        return w

    with pytest.raises(NonFiniteError, match=words):
        solver(matvec, 99, **operator.options())


@every_solver
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"k": 100}, "k = 100 .* n = 99; .*lower k"),
        ({"tol": 0.0}, "tol must be a finite number above zero, got 0.0"),
        ({"tol": float("nan")}, "tol must .* got nan"),
        ({"tol": float("inf")}, "tol must .* got inf"),
        ({"dtype": torch.int64}, "dtype = torch.int64; expected a real floating-point"),
        ({"dtype": torch.complex64}, "dtype = torch.complex64"),
        (
            {"k": 3, "max_matvecs": 2},
            "max_matvecs .* at least [36], got 2; .*lower k = 3",
        ),
        ({"start": torch.zeros(99)}, "start has norm 0.0; .*or start=None"),
        ({"start": torch.full((99,), torch.nan)}, "start has norm nan"),
        ({"start": torch.ones(9, 11)}, r"start has shape \(9, 11\); expected \(99,\)"),
    ],
)
def test_request_that_cannot_be_served_is_refused_before_any_product(solver, change, words):
    operator = Counted(symmetric([5, 3, *BULK]))
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        solver(operator, 99, **operator.options() | change)
    assert isinstance(caught.value, LandscapeError)
    assert not operator.seen


@every_solver
def test_product_of_another_shape_is_refused(solver):
    with pytest.raises(InvalidArgumentError, match=r"shape \(4,\), expected \(5,\)"):
        solver(lambda v: v[1:], 5, dtype=torch.float64, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_solver
def test_gpu_agrees_with_cpu(solver):
    matrix = symmetric([9, 9, 4, *BULK, -20], dtype=torch.float32)
    found = [
        solver(Counted(m), len(m), k=3, tol=1e-5, dtype=torch.float32, device=m.device)
        for m in (matrix, matrix.cuda())
    ]
    assert found[1].vectors.is_cuda
    assert found[0].converged
    assert found[1].converged
    np.testing.assert_allclose(found[0].values, found[1].values, atol=1e-4)
