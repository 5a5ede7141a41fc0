"""Points of curves from their control vectors: hand-written de Casteljau, ends, lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import binom

from landscape.errors import InvalidArgumentError
from landscape.surface._curves import CURVES, Curve, bernstein, hats

N = 5
TS = (0.0, 1e-9, 0.2, 1 / 3, 0.5, 0.77, 1.0)


def random_curve(kind: str, n_bends: int, dtype=torch.float64, seed: int = 0) -> Curve:
    rows = np.random.default_rng(seed).standard_normal((n_bends + 2, N))
    start, *bends, end = torch.from_numpy(rows).to(dtype)
    inner = torch.stack(bends) if bends else start.new_empty(0, N)
    return Curve(kind, start, end, inner)


def controls(curve: Curve) -> np.ndarray:
    return torch.cat([curve.start[None], curve.bends, curve.end[None]]).double().numpy()


def de_casteljau(points: np.ndarray, t: float) -> np.ndarray:
    while len(points) > 1:
        points = (1 - t) * points[:-1] + t * points[1:]
    return points[0]


@pytest.mark.parametrize("n_bends", [1, 2, 5])
@pytest.mark.parametrize("t", TS)
def test_points_of_a_bezier_curve_are_those_of_de_casteljau(n_bends, t):
    curve = random_curve("bezier", n_bends)
    expected = de_casteljau(controls(curve), t)
    assert curve.at(t).numpy() == pytest.approx(expected, rel=1e-13, abs=1e-14)


@pytest.mark.parametrize("n_bends", [1, 2, 5])
@pytest.mark.parametrize("t", TS)
def test_points_of_a_chain_are_interpolated_between_its_vertices(n_bends, t):
    curve = random_curve("polygon", n_bends)
    places = np.linspace(0.0, 1.0, n_bends + 2)
    expected = [np.interp(t, places, column) for column in controls(curve).T]
    assert curve.at(t).numpy() == pytest.approx(np.array(expected), rel=1e-13, abs=1e-14)


@given(degree=st.integers(0, 40), t=st.floats(0.0, 1.0))
def test_bernstein_polynomials_are_those_of_the_formula_and_add_up_to_one(degree, t):
    found = np.array(bernstein(degree, t))
    k = np.arange(degree + 1)
    assert found == pytest.approx(binom(degree, k) * t**k * (1 - t) ** (degree - k), rel=1e-12)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1.0, abs=1e-13)


@given(n_segments=st.integers(1, 12), t=st.floats(0.0, 1.0))
def test_at_most_two_neighbouring_vertices_count_in_a_chain(n_segments, t):
    weights = np.array(hats(n_segments, t))
    used = np.flatnonzero(weights)
    assert len(used) <= 2
    assert used[-1] - used[0] <= 1
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-13)
    assert weights @ np.linspace(0, 1, n_segments + 1) == pytest.approx(t, abs=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "n_bends"), [("linear", 0), ("bezier", 3), ("polygon", 3)])
def test_the_ends_are_the_given_vectors_bit_for_bit(kind, n_bends, dtype):
    curve = random_curve(kind, n_bends, dtype)
    assert torch.equal(curve.at(0.0), curve.start)
    assert torch.equal(curve.at(1.0), curve.end)
    broken = Curve(kind, curve.start, curve.end * math.inf, curve.bends)
    assert torch.equal(broken.at(0.0), curve.start)


@pytest.mark.parametrize("kind", CURVES)
def test_a_curve_laid_along_the_line_is_the_line(kind):
    start, end = torch.from_numpy(np.random.default_rng(1).standard_normal((2, N)))
    curve = Curve.straight(kind, start, end, 0 if kind == "linear" else 4)
    for t in TS:
        expected = (1 - t) * start + t * end
        assert curve.at(t).numpy() == pytest.approx(expected.numpy(), rel=1e-14, abs=1e-15)
    assert curve.distance == pytest.approx(float((end - start).norm()), rel=1e-14)
    assert curve.length == pytest.approx(curve.distance, rel=1e-12)


def test_the_length_of_a_parabola_is_that_of_the_closed_form():
    """Over (0, 0), (1, 2), (2, 0) the curve is y = x (2 - x)."""
    rows = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
    curve = Curve("bezier", rows[0], rows[2], rows[1:2])
    exact = math.sqrt(5) + math.asinh(2) / 2  # ∫ √(1 + (2 - 2x)²) dx from 0 to 2
    assert curve.length == pytest.approx(exact, rel=1e-10)
    assert curve.distance == 2.0


def test_lengths_of_chains_and_of_curves_of_high_degree():
    chain = random_curve("polygon", 3)
    steps = np.diff(controls(chain), axis=0)
    assert chain.length == pytest.approx(np.linalg.norm(steps, axis=1).sum(), rel=1e-13)
    curve = random_curve("bezier", 4)
    fine = np.array([de_casteljau(controls(curve), t) for t in np.linspace(0, 1, 20001)])
    inscribed = np.linalg.norm(np.diff(fine, axis=0), axis=1).sum()
    assert inscribed <= curve.length <= inscribed * (1 + 1e-6)


def test_a_point_is_differentiable_by_the_bends_and_its_weights_are_the_derivative():
    curve = random_curve("bezier", 2)
    leaf = curve.bends.clone().requires_grad_(True)
    moved = Curve("bezier", curve.start, curve.end, leaf)
    (gradient,) = torch.autograd.grad(moved.at(0.3)[1], leaf)
    assert gradient[:, 1].tolist() == pytest.approx(moved.weights(0.3)[1:-1], rel=1e-15)
    assert gradient[:, [0, 2, 3, 4]].abs().max() == 0


@pytest.mark.parametrize(
    ("kind", "n_bends", "message"),
    [
        ("spline", 1, r"unknown curve 'spline' .*known: linear, bezier, polygon"),
        ("bezier", 0, "a bezier curve needs at least 1 bend, got 0; use curve='linear'"),
        ("polygon", -1, "a polygon curve needs at least 1 bend, got -1"),
        ("linear", 1, "a linear path has no bends, got 1; use curve='bezier' or 'polygon'"),
    ],
)
def test_refuses_curves_that_are_none(kind, n_bends, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Curve.straight(kind, torch.zeros(2), torch.ones(2), n_bends)
