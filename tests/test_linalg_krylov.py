"""Inner products, orthogonalisation, random vectors, and the order of the answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from landscape.errors import NonFiniteError
from landscape.linalg import krylov
from landscape.linalg.krylov import combine, dot, inner, norm, orthogonalise


def vectors(m, n, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, dtype=torch.float64, generator=generator).to(dtype)


@pytest.mark.parametrize("chunk", [7, 64, 2**22])
def test_sums_of_float32_are_float64_whatever_the_chunks(monkeypatch, chunk):
    monkeypatch.setattr(krylov, "_CHUNK", chunk)
    basis, w = vectors(3, 1000, dtype=torch.float32), vectors(1, 1000, dtype=torch.float32)[0]
    exact = basis.double() @ w.double()
    torch.testing.assert_close(inner(basis, w), exact, rtol=1e-14, atol=1e-12)
    assert norm(w) == pytest.approx(float(w.double().norm()), rel=1e-14)
    theta, residual = krylov.rayleigh(w, basis[0])
    assert theta == pytest.approx(float(exact[0] / (w.double() @ w.double())), rel=1e-12)
    rest = basis[0].double() - theta * w.double()
    assert residual == pytest.approx(float(rest.norm()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 300, 2**15, 2**15 + 1, 100_000, 2**21 + 77])
def test_a_pair_of_vectors_is_multiplied_as_in_float64(dtype, n):
    a, b = vectors(2, n, dtype=dtype)
    alike = torch.full((n,), 0.1, dtype=dtype)
    for left, right in [(a, b), (a, a), (alike, alike), (alike, -b)]:
        scale = float(left.double().norm() * right.double().norm())
        exact = float((left.double() * right.double()).sum())
        error = 1e-7 if n > 2**21 and dtype == torch.float32 else 1e-12
        assert abs(dot(left, right) - exact) <= error * scale
        assert dot(left, right) == float(inner(left[None], right)[0])


@pytest.mark.parametrize("size", [1e-20, 1e25, math.inf, math.nan])
def test_long_pairs_neither_overflow_nor_vanish(size):
    a = torch.full((2**21 + 77,), size)
    assert norm(a) == pytest.approx(size * math.sqrt(len(a)), rel=1e-7, nan_ok=True)


@pytest.mark.parametrize("chunk", [7, 2**22])
def test_combinations_may_overwrite_their_own_basis(monkeypatch, chunk):
    monkeypatch.setattr(krylov, "_CHUNK", chunk)
    basis, mix = vectors(5, 40), vectors(5, 2).numpy()
    expected = torch.from_numpy(mix.T) @ basis
    combine(mix, basis, out=basis[:2])
    torch.testing.assert_close(basis[:2], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_passes_leave_nothing_of_a_vector_almost_in_the_span(dtype):
    basis = torch.linalg.qr(vectors(50, 5)).Q.T.contiguous().to(dtype)
    eps = torch.finfo(dtype).eps
    outside = vectors(1, 50, seed=1)[0]
    outside -= basis.double().T @ (basis.double() @ outside)
    w = (basis.double().sum(0) + 1e3 * eps * outside).to(dtype)
    coefficients = orthogonalise(w, basis)
    np.testing.assert_allclose(coefficients, 1.0, atol=1e3 * eps)
    assert inner(basis, w).abs().max() <= 4 * eps * norm(w)


def test_empty_basis_changes_nothing():
    w = vectors(1, 10)[0]
    before = w.clone()
    assert orthogonalise(w, torch.empty(0, 10, dtype=torch.float64)).shape == (0,)
    assert w.equal(before)


def operator(n, *, dtype=torch.float32, seed=0):
    return krylov.Operator(lambda v: v, n, dtype=dtype, device="cpu", seed=seed, max_matvecs=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_vector_is_orthogonal_even_to_all_but_one_dimension(dtype):
    basis = torch.linalg.qr(vectors(30, 30)).Q.to(dtype)[:29]
    v = operator(30, dtype=dtype).random_unit_vector(basis)
    assert norm(v) == pytest.approx(1.0, abs=1e-6)
    assert inner(basis, v).abs().max() <= 10 * torch.finfo(dtype).eps


def test_random_vectors_follow_from_the_seed_and_differ():
    one, two, other = operator(20), operator(20), operator(20, seed=1)
    first = one.random_unit_vector()
    assert first.equal(two.random_unit_vector())
    assert not first.equal(one.random_unit_vector())
    assert not first.equal(other.random_unit_vector())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1e300, r"has finite entries of up to 1e\+300, and its length overflows torch.float64"),
        (math.inf, "not finite: 0 NaN and 50 infinite of 50 entries"),
        (math.nan, "not finite: 50 NaN and 0 infinite of 50 entries"),
    ],
)
def test_what_is_too_large_is_told_from_what_is_not_finite(value, words):
    hv = krylov.Operator(
        lambda v: torch.full_like(v, value),
        50,
        dtype=torch.float64,
        device="cpu",
        seed=0,
        max_matvecs=10,
    )
    with pytest.raises(NonFiniteError, match=words):
        hv(torch.ones(50, dtype=torch.float64))
