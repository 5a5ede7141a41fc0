"""Bounds on the ends of the spectrum, bounds on the values, and the memory that a basis takes."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_linalg_eigen import BULK, solve, symmetric

from landscape.errors import InvalidArgumentError
from landscape.linalg import lanczos, power_iteration
from landscape.linalg.basis import (
    Enclosure,
    KrylovBasis,
    LanczosTridiagonal,
    SpectrumEnd,
    least_cosine,
)
from landscape.linalg.krylov import SCRATCH_BYTES, Operator
from landscape.linalg.lanczos import basis_for

HARD = (1 + np.cos(np.linspace(0, np.pi, 199))) / 2
SPECTRA = {
    "uniform": np.linspace(0, 1, 200),
    "outlier": np.array([1.3, *HARD]),
    "outlier below": np.array([-0.3, *HARD]),
    "outlier among the rest": np.array([1.02, *HARD]),
}


def on_diagonal(values, **kwargs):
    diagonal = torch.as_tensor(np.asarray(values, dtype=np.float64))
    options = {"dtype": torch.float64, "device": "cpu"} | kwargs
    return lanczos(lambda v: diagonal.to(v.dtype) * v, len(diagonal), **options)


def chain_of(values, steps, *, seed):
    """Return the tridiagonal matrix from a random start, by Gram-Schmidt on a dense basis."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=len(values))
    rows, chain = [v / np.linalg.norm(v)], LanczosTridiagonal(len(values))
    for _ in range(steps):
        w = values * rows[-1]
        chain.alphas.append(float(rows[-1] @ w))
        for _ in range(2):
            w -= np.array(rows).T @ (np.array(rows) @ w)
        chain.betas.append(float(np.linalg.norm(w)))
        rows.append(w / chain.betas[-1])
    return chain, rows


def basis_of(matrix, steps, *, k, width=1):
    options = {"dtype": matrix.dtype, "device": "cpu", "seed": 0, "max_matvecs": 1000}
    operator = Operator(lambda v: matrix @ v, len(matrix), **options)
    basis = KrylovBasis(operator, k=k, capacity=None)
    if steps:
        basis.begin(operator.random_unit_vector() for _ in range(width))
    for _ in range(steps):
        basis.step()
    return basis


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("failure", [0.01, 0.3])
def test_least_cosine_is_the_quantile_of_random_directions(n, failure):
    x = np.random.default_rng(0).normal(size=(40_000, n))
    cosines = np.abs(x[:, 0]) / np.linalg.norm(x, axis=1)
    share = np.mean(cosines < least_cosine(n, failure))
    assert share == pytest.approx(failure, abs=4 * math.sqrt(failure * (1 - failure) / 40_000))


def test_polynomial_is_the_one_that_makes_the_last_residual():
    """Where p = 1/c by hand: from p(H) x, whose norm is that of the next basis vector, 1."""
    values = SPECTRA["uniform"]
    chain, rows = chain_of(values, 6, seed=0)
    at = rows[-1] / rows[0]  # p at every eigenvalue, as H is diagonal
    for sign, end in ((1.0, values[-1]), (-1.0, values[0])):
        edge = chain.bound(sign, failure=0.3)
        level = 1 / least_cosine(200, 0.3)
        theta = chain.values(1.0)
        assert abs(np.prod((edge - theta) / chain.betas)) == pytest.approx(level, rel=1e-6)
        assert chain.progress(edge, sign, failure=0.3) == pytest.approx(1.0, abs=1e-6)
        growth = abs(np.prod((end - theta) / chain.betas))
        assert growth == pytest.approx(abs(at[values == end][0]), rel=1e-6)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_bounds_fail_no_more_often_than_stated(name, steps):
    values, failure, trials = SPECTRA[name], 0.1, 300
    chains = [chain_of(values, steps, seed=seed)[0] for seed in range(trials)]
    most = trials * failure + 3 * math.sqrt(trials * failure * (1 - failure))
    assert sum(c.bound(1.0, failure=failure) < values.max() for c in chains) <= most
    assert sum(c.bound(-1.0, failure=failure) > values.min() for c in chains) <= most
    shown = [c.progress(values.max() * (1 - 1e-9), 1.0, failure=failure) >= 1 for c in chains]
    assert sum(shown) <= most


def test_bound_is_not_so_wide_that_it_cannot_fail():
    """After one step p is linear: with c its quantile, a start aligned worse must break it."""
    values = np.array([1.0, *np.zeros(199)])
    chains = [chain_of(values, 1, seed=seed)[0] for seed in range(300)]
    failed = np.mean([c.bound(1.0, failure=0.2) < 1.0 for c in chains])
    assert failed == pytest.approx(0.2, abs=0.07)


@pytest.mark.parametrize("kwargs", [{}, {"block": 2}, {"max_basis": 8}, {"k": 3}])
@pytest.mark.parametrize("name", ["uniform", "outlier", "outlier below"])
@pytest.mark.parametrize("products", [7, 30])
def test_solution_bounds_cover_the_spectrum(name, kwargs, products):
    values = SPECTRA[name]
    found = [on_diagonal(values, seed=s, max_matvecs=products, **kwargs) for s in range(100)]
    delta = found[0].failure_probability
    most = 100 * delta + 3 * math.sqrt(100 * delta)
    assert delta == 0.01
    assert sum(f.upper_bound < values.max() for f in found) <= most
    assert sum(f.lower_bound > values.min() for f in found) <= most
    assert all(f.upper_bound >= f.values[0] and f.lower_bound <= f.values[-1] for f in found)


@pytest.mark.parametrize("kwargs", [{}, {"k": 4}, {"max_basis": 20}])
def test_bound_is_tight_once_converged(kwargs):
    values = [5, 4, 3.5, 3, *BULK, -7]
    _, found = solve(lanczos, values, tol=1e-6, **kwargs)
    assert found.converged
    assert 5 <= found.upper_bound <= 5.05
    _, both = solve(lanczos, values, tol=1e-6, both_ends=True, **kwargs)
    assert -7.07 <= both.lower_bound <= -7


def test_bound_from_several_starts_is_that_of_the_search_after_them():
    _, few = solve(lanczos, np.linspace(0, 1, 100), block=4, max_matvecs=12)
    assert few.upper_bound == math.inf
    assert few.lower_bound == -math.inf
    _, more = solve(lanczos, np.linspace(0, 1, 600), block=2)
    assert more.converged
    assert 1.0 <= more.upper_bound <= 1.01
    assert -1.0 <= more.lower_bound <= 0.0


def test_nothing_is_searched_where_every_failure_is_allowed():
    _, checked = solve(lanczos, [5, 3, *BULK], k=2)
    _, bare = solve(lanczos, [5, 3, *BULK], k=2, failure_probability=1.0)
    assert bare.converged
    assert bare.matvecs < checked.matvecs
    assert (bare.upper_bound, bare.lower_bound, bare.failure_probability) == (
        math.inf,
        -math.inf,
        1.0,
    )
    np.testing.assert_array_equal(bare.errors, bare.residuals)
    with pytest.raises(InvalidArgumentError, match=r"failure_probability = 0; expected"):
        solve(lanczos, [5, 3, *BULK], failure_probability=0)


# What a bound on the complement says of the whole


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA.keys())
def test_a_bound_on_the_complement_bounds_every_eigenvalue(values, width):
    """With μ the true end of the complement's spectrum, from its dense block."""
    matrix = symmetric(values)
    exact = np.sort(values)[::-1]
    for steps in (width, 7, 40):
        basis = basis_of(matrix, steps, k=4, width=width)
        q = np.linalg.qr(basis.rows.numpy().T, mode="complete")[0][:, steps:]
        block = np.linalg.eigvalsh(q.T @ matrix.numpy() @ q)
        for sign, edge in ((1.0, block[-1]), (-1.0, block[0])):
            raised = basis.raised(edge, SpectrumEnd(sign, 4))
            assert (raised >= np.sort(sign * exact)[::-1][:4] - 1e-13).all()
            assert np.isinf(basis.raised(sign * math.inf, SpectrumEnd(sign, 4))).all()


def test_the_bound_is_attained_where_the_pending_vector_is_an_eigenvector_of_the_complement():
    matrix = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 1.0]]).double()
    basis = basis_of(matrix, 0, k=2)
    basis.begin([torch.eye(3).double()[0]], random=False)
    basis.step()
    raised = basis.raised(3.0, SpectrumEnd(1.0, 2))
    assert raised[0] == pytest.approx(np.linalg.eigvalsh(matrix.numpy())[-1], rel=1e-14)
    assert raised[1] == pytest.approx(3.0)  # the rest may lie anywhere up to there


def test_a_random_search_misses_no_more_often_than_stated():
    """The start hides the second 10; the search may end before it has met it."""
    values = np.array([10.0, 10.0, *np.linspace(-9, 9, 600)])
    start = torch.zeros(602, dtype=torch.float64)
    start[0] = 1.0
    failure, trials = 0.3, 100
    found = [
        on_diagonal(values, k=2, start=start, seed=seed, failure_probability=failure, tol=1e-4)
        for seed in range(trials)
    ]
    missed = sum(f.converged and abs(f.values[1] - 10.0) > 0.01 for f in found)
    assert missed <= trials * failure + 3 * math.sqrt(trials * failure * (1 - failure))


@pytest.mark.parametrize("max_basis", [None, 10])
@pytest.mark.parametrize("distance", [0.0, 1e-9, 1e-4, 1e-2])
def test_near_copies_are_found_or_known_to_lie_below(distance, max_basis):
    values = [10, 10 - distance, 10 - 2 * distance, 4, 4 - distance, *BULK]
    exact = np.sort(values)[::-1]
    for k in (1, 2, 3, 4):
        for seed in range(4):
            found = on_diagonal(values, k=k, seed=seed, max_basis=max_basis, tol=1e-6)
            assert found.converged
            off = exact[:k] - found.values
            assert (np.abs(off) <= 4e-5).all()
            assert (off <= found.errors + 1e-13).all()


def test_errors_hold_for_the_eigenvalue_of_the_same_rank_as_often_as_stated():
    failed = 0
    for values in ([1, 0.997, 0.995, 0.991], [1, 1 - 5e-5]):
        exact = np.array([*values, *np.linspace(-0.3, 0.5, 116)])
        for seed in range(40):
            for k in (1, 2):
                found = on_diagonal(exact, k=k, tol=1e-2, seed=seed)
                failed += bool((np.abs(exact[:k] - found.values) > found.errors + 1e-13).any())
    assert failed <= 160 * 0.01 + 3 * math.sqrt(160 * 0.01)


def test_an_operator_that_is_zero_has_converged():
    for dtype in (torch.float32, torch.float64):
        found = lanczos(lambda v: 0 * v, 50, k=2, dtype=dtype, device="cpu")
        assert found.converged
        assert (found.values == 0).all()


def test_small_eigenvalues_of_a_large_space_are_not_taken_for_rounding():
    """A random vector has 1/√n of its length along an eigenvector: few digits in float32."""
    diagonal = torch.zeros(100_000)
    diagonal[:3] = torch.tensor([1.0, 0.01, 0.01])
    for seed in range(20):
        found = on_diagonal(diagonal, k=3, tol=1e-4, dtype=torch.float32, seed=seed)
        np.testing.assert_allclose(found.values, [1, 0.01, 0.01], atol=2e-4)


@pytest.mark.parametrize("max_basis", [None, 8])
def test_a_copy_above_the_last_value_sought_is_found_without_waiting(max_basis):
    values = [1, 1, 0.985, 0.98, *np.linspace(-0.3, 0.5, 196)]
    for seed in range(5):
        found = on_diagonal(values, k=3, tol=1e-2, seed=seed, max_basis=max_basis)
        assert found.converged
        assert found.matvecs <= 90
        np.testing.assert_allclose(found.values, [1, 1, 0.985], atol=0.02)


# How far a value is from an eigenvalue


def test_bounds_are_exact_where_the_space_is_exhausted():
    _, found = solve(lanczos, [3, 1, 0, -2], both_ends=True, k=2)
    assert found.upper_bound == pytest.approx(3, abs=1e-12)
    assert found.lower_bound == pytest.approx(-2, abs=1e-12)
    _, projector = solve(lanczos, [1.0] * 20 + [0.0] * 30)
    assert projector.upper_bound == pytest.approx(1, abs=1e-12)
    empty = LanczosTridiagonal(5)
    assert empty.bound(1.0, failure=0.1) == math.inf
    assert empty.progress(1e9, 1.0, failure=0.1) == 0.0


def test_bound_from_a_start_of_ones_own_comes_from_the_random_search_after_it():
    diagonal = torch.tensor([5.0, 4.0, *BULK]).double()
    start = torch.zeros(99).double()
    start[1] = 1.0
    found = on_diagonal(diagonal, start=start)
    assert found.converged
    assert 5 <= found.upper_bound <= 5.5


def test_searches_share_one_failure_probability():
    enclosure = Enclosure(0.01)
    granted = [enclosure.grant() for _ in range(20)]
    assert granted[:2] == [0.0025, 0.00125]
    assert 2 * sum(granted) <= 0.01
    enclosure.narrow(-2.0, 3.0)
    enclosure.narrow(-5.0, 2.0)
    assert (enclosure.lower, enclosure.upper) == (-2.0, 2.0)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-7])
@pytest.mark.parametrize("both_ends", [False, True])
@pytest.mark.parametrize(
    "values",
    [[9, 7, 6.99, *BULK, -4, -4.5], [5, 5, 3, *BULK, -8, -8], np.linspace(0, 1, 150) ** 3],
    ids=["alone", "pairs", "dense"],
)
def test_errors_bound_the_distance_to_the_eigenvalue(values, tol, both_ends):
    exact = np.sort(values)
    for seed in range(10):
        found = on_diagonal(values, k=3, tol=tol, both_ends=both_ends, seed=seed)
        distance = np.abs(found.values[:, None] - exact[None, :]).min(axis=1)
        assert found.converged
        assert (distance <= found.errors + 1e-13).all()
        if tol == 1e-7:
            order = [-1, -2, -3, 2, 1, 0] if both_ends else [-1, -2, -3]
            assert (np.abs(found.values - exact[order]) <= found.errors + 1e-13).all()


def test_errors_are_quadratic_where_a_value_stands_alone():
    found = on_diagonal([10.0, *BULK], tol=1e-3)
    gap = 10.0 - 1.0
    assert found.errors[0] >= 0.9 * found.residuals[0] ** 2 / gap
    # The bound on the complement lies between the rest, at 1, and the value itself.
    assert found.errors[0] <= 5 * found.residuals[0] ** 2 / gap


def test_errors_of_power_iteration_are_its_residuals():
    _, found = solve(power_iteration, [5, 3, *BULK], k=2)
    np.testing.assert_array_equal(found.errors, found.residuals)
    assert (found.upper_bound, found.lower_bound) == (math.inf, -math.inf)
    assert found.n_lowest == 0
    assert found.asymmetry < 1e-14
    _, single = solve(power_iteration, [5, 3, *BULK])
    assert math.isnan(single.asymmetry)


# Memory

PEAK = """
import sys
import torch
from landscape.linalg import lanczos
from landscape.linalg.lanczos import basis_for
n, budget, options = 2_000_000, float(sys.argv[1]), eval(sys.argv[2])
torch.set_num_threads(1)
small = torch.linspace(0, 1, 500)
lanczos(lambda v: small * v, 500, dtype=torch.float32, device="cpu")
diagonal = torch.linspace(0, 1, n)
diagonal[:3] = torch.tensor([3.0, 2.5, -2.0])
m = basis_for(budget, n, dtype=torch.float32, **options)
def memory(name):
    # Not getrusage: its peak is handed down by the process that started this one.
    with open("/proc/self/status") as file:
        return 1024 * int(next(line.split()[1] for line in file if line.startswith(name)))
before = memory("VmRSS")
lanczos(lambda v: diagonal * v, n, tol=1e-7, max_basis=m, max_matvecs=40,
        dtype=torch.float32, device="cpu", **options)
print(m, memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize(("options", "vectors"), [({}, 33), ({"both_ends": True, "block": 2}, 37)])
def test_peak_memory_stays_within_the_budget(options, vectors):
    budget = vectors * 4 * 2_000_000
    command = [sys.executable, "-c", PEAK, str(budget), repr(options)]
    # What malloc keeps of blocks that were freed is not used: let it give back all above 1 MB.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    basis, peak = map(int, done.stdout.split())
    assert basis * 4 * 2_000_000 <= peak <= budget


def test_budget_is_filled_but_not_exceeded():
    n = 10**7
    for vectors in (20, 50, 1000):
        m = basis_for(vectors * 8.0 * n + SCRATCH_BYTES + 5e6, n, k=2, dtype=torch.float64)
        assert vectors - 8 <= m <= vectors - 6  # 1 pending, 5 for work
    assert basis_for(1e12, 50, dtype=torch.float32) == 50
    single = basis_for(4e9, n, dtype=torch.float32)
    assert basis_for(4e9, n, dtype=torch.float16) == single
    assert basis_for(4e9, n, block=5, dtype=torch.float32) == single - 4
    assert basis_for(4e9, n, k=3, both_ends=True, dtype=torch.float32) == single - 1


def test_budget_too_small_names_the_least():
    words = "a budget of 100 MB for k = 3 .* at least 1348 MB, for a basis of 9 vectors"
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        basis_for(100e6, 2 * 10**7, k=3, both_ends=True, dtype=torch.float32)
    least = float(str(caught.value).split("at least ")[1].split()[0])
    assert basis_for(least * 1e6, 2 * 10**7, k=3, both_ends=True, dtype=torch.float32) == 9
