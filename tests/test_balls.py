"""The ball ‖ε‖ₚ ≤ ρ: its norm, the maximiser of a linear function on it, and the nearest point."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from landscape.errors import InvalidArgumentError
from landscape.sharpness._ball import Ball

ORDERS = (1.0, 1.01, 1.5, 2.0, 3.0, 100.0, math.inf)
every_order = pytest.mark.parametrize("p", ORDERS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

numbers = st.floats(-1e3, 1e3, allow_nan=False, width=32)
vectors = hnp.arrays(np.float64, st.integers(1, 12), elements=numbers)
radii = st.floats(1e-3, 10.0)


def norm(vector, p):
    """Compute ‖v‖ₚ in logarithms, so that no power of a small number vanishes."""
    sizes = np.abs(np.asarray(vector, dtype=np.float64))
    if not sizes.any() or math.isinf(p):
        return float(sizes.max())
    logs = p * np.log(sizes[sizes > 0])
    return float(np.exp((logs.max() + np.log(np.exp(logs - logs.max()).sum())) / p))


def dual_order(p):
    return {1.0: math.inf, math.inf: 1.0}.get(p) or p / (p - 1)


# -- norms ---------------------------------------------------------------------------------------


@every_order
@settings(deadline=None)
@given(vector=vectors)
def test_norms_are_the_norms(p, vector):
    ball, tensor = Ball(1.0, p), torch.from_numpy(vector)
    assert ball.norm(tensor) == pytest.approx(norm(vector, p), rel=1e-9)
    assert ball.dual_norm(tensor) == pytest.approx(norm(vector, dual_order(p)), rel=1e-9)


@pytest.mark.parametrize(
    ("p", "q"), [(1, math.inf), (1.5, 3), (2, 2), (3, 1.5), (1.25, 5), (math.inf, 1)]
)
def test_the_orders_are_conjugate(p, q):
    assert Ball(1.0, p).q == pytest.approx(q)


@every_order
def test_norms_of_tiny_and_huge_vectors_neither_vanish_nor_overflow(p):
    for size in (1e-30, 1e30):
        vector = size * torch.tensor([3.0, -4.0, 0.0], dtype=torch.float32)
        assert Ball(1.0, p).norm(vector) == pytest.approx(norm(vector.numpy(), p), rel=1e-6)
        expected = norm(vector.numpy(), dual_order(p))
        assert Ball(1.0, p).dual_norm(vector) == pytest.approx(expected, rel=1e-6)


@every_order
def test_norms_that_are_not_finite_say_so(p):
    assert math.isnan(Ball(1.0, p).norm(torch.tensor([1.0, math.nan])))
    assert math.isinf(Ball(1.0, p).norm(torch.tensor([1.0, -math.inf])))
    assert Ball(1.0, p).norm(torch.zeros(3)) == 0.0


def test_norms_of_float32_are_summed_in_float64():
    ones = torch.full((10_000_000,), 0.1, dtype=torch.float32)
    assert Ball(1.0, 2.0).norm(ones) == pytest.approx(0.1 * math.sqrt(1e7), rel=1e-7)
    assert Ball(1.0, 1.0).norm(ones) == pytest.approx(1e6, rel=1e-7)


# -- the dual maximiser --------------------------------------------------------------------------


@every_order
@settings(deadline=None)
@given(gradient=vectors, rho=radii, seed=st.integers(0, 1000))
def test_the_dual_is_a_feasible_maximiser(p, gradient, rho, seed):
    """Its product with g is ρ‖g‖_q, which by Hölder no point of the ball exceeds."""
    ball = Ball(rho, p)
    epsilon = ball.dual(torch.from_numpy(gradient)).numpy()
    most = rho * norm(gradient, dual_order(p))
    assert norm(epsilon, p) <= rho * (1 + 1e-9)
    assert gradient @ epsilon == pytest.approx(most, rel=1e-9)
    if gradient.any():
        assert norm(epsilon, p) == pytest.approx(rho, rel=1e-9)
    points = np.random.default_rng(seed).laplace(size=(50, len(gradient)))
    for point in points:
        assert gradient @ point * rho / norm(point, p) <= most * (1 + 1e-9)


def test_the_dual_is_what_each_norm_says():
    gradient = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)
    assert Ball(0.5, 2).dual(gradient).tolist() == pytest.approx([0.3, -0.4, 0.0])
    assert Ball(0.5, math.inf).dual(gradient).tolist() == [0.5, -0.5, 0.0]
    assert Ball(0.5, 1).dual(gradient).tolist() == [0.0, -0.5, 0.0]
    # Foret et al. (2021), eq. 2: ρ sign(g) |g|^(q−1) / ‖g‖_q^(q−1), here p = 3 and q = 3/2.
    g = gradient.numpy()
    expected = 0.5 * np.sign(g) * np.sqrt(np.abs(g)) / (np.abs(g) ** 1.5).sum() ** (1 / 3)
    assert Ball(0.5, 3).dual(gradient).tolist() == pytest.approx(expected.tolist())


@every_order
@every_dtype
def test_the_dual_does_not_depend_on_the_length_of_the_gradient(p, dtype):
    gradient = torch.tensor([3.0, -4.0, 1.0, 0.0], dtype=dtype)
    whole = Ball(0.5, p).dual(gradient)
    rounding = 4 * torch.finfo(dtype).eps
    assert norm(whole.numpy(), p) == pytest.approx(0.5, rel=rounding)
    for size in (1e-30, 1e30):
        assert Ball(0.5, p).dual(size * gradient).tolist() == pytest.approx(
            whole.tolist(), rel=100 * rounding, abs=1e-12
        )
        assert whole.dtype == dtype


@every_order
def test_in_float32_the_dual_is_that_of_float64_rounded_once(p):
    """Powers like |g|^100 would multiply the rounding of float32 by 100."""
    gradient = torch.linspace(0.9, -1.1, 101)
    single, double = Ball(0.5, p).dual(gradient), Ball(0.5, p).dual(gradient.double())
    assert torch.allclose(single.double(), double, rtol=2e-7, atol=1e-40)


@every_order
def test_the_dual_of_nothing_is_nothing(p):
    assert not Ball(0.5, p).dual(torch.zeros(4)).any()


def test_of_equal_entries_p_one_takes_only_one():
    epsilon = Ball(0.5, 1).dual(torch.tensor([1.0, -2.0, 2.0]))
    assert epsilon.count_nonzero() == 1
    assert epsilon.abs().max() == 0.5


# -- the nearest point ---------------------------------------------------------------------------


@every_order
@settings(deadline=None)
@given(vector=vectors, rho=radii)
def test_projections_are_feasible_and_idempotent_and_leave_the_inside_alone(p, vector, rho):
    ball = Ball(rho, p)
    given_point = torch.from_numpy(vector)
    once = ball.project_(given_point.clone())
    assert norm(once.numpy(), p) <= rho * (1 + 1e-9)
    assert ball.project_(once.clone()).numpy() == pytest.approx(once.numpy(), rel=1e-9, abs=1e-12)
    if norm(vector, p) <= rho * (1 - 1e-12):
        assert torch.equal(once, given_point)
    else:
        assert norm(once.numpy(), p) == pytest.approx(rho, rel=1e-9)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@settings(deadline=None)
@given(vector=vectors, rho=radii, seed=st.integers(0, 1000))
def test_for_three_norms_the_projection_is_the_nearest_point(p, vector, rho, seed):
    """P is nearest if and only if (v − P)ᵀ(z − P) ≤ 0 for all z of the ball."""
    ball = Ball(rho, p)
    nearest = ball.project_(torch.tensor(vector)).numpy()
    outwards = vector - nearest
    rounding = 1e-9 * (1 + np.abs(vector).max()) * rho * len(vector)
    farthest = rho * norm(outwards, dual_order(p))
    assert farthest - outwards @ nearest <= rounding
    for point in np.random.default_rng(seed).laplace(size=(20, len(vector))):
        other = rho * point / norm(point, p)
        assert np.linalg.norm(vector - nearest) <= np.linalg.norm(vector - other) + rounding


@every_dtype
def test_projections_keep_the_dtype_and_stay_inside_to_rounding(dtype):
    vector = torch.linspace(-3, 5, 1001, dtype=dtype)
    for p in ORDERS:
        point = Ball(0.7, p).project_(vector.clone())
        assert point.dtype == dtype
        assert Ball(0.7, p).norm(point) <= 0.7 * (1 + 1e3 * torch.finfo(dtype).eps)


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, -1.0, math.nan, math.inf])
def test_refuses_a_radius_that_is_none(rho):
    with pytest.raises(InvalidArgumentError, match="rho must be a finite number above zero, got"):
        Ball(rho)


@pytest.mark.parametrize("p", [0.999, 0.0, -2.0, math.nan, -math.inf])
def test_refuses_a_norm_that_is_none(p):
    with pytest.raises(InvalidArgumentError, match=r"p must be at least 1 \(inf is allowed\), got"):
        Ball(1.0, p)
