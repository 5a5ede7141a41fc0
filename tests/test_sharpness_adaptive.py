"""Adaptive balls ‖T⁻¹ε‖ₚ ≤ ρ against the plain ball in the coordinates d = T⁻¹ε."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import (
    Quadratic,
    best_vertex,
    in_krylov_subspace,
    quadratic_problem,
    spectrum,
    trust_region,
)
from torch import nn

from landscape.errors import InvalidArgumentError
from landscape.operators import parameter_scale
from landscape.problem import Problem
from landscape.sharpness._search import FEW_PRODUCTS
from landscape.sharpness._worst_case import sharpness

EXACT = {"tol": 1e-10, "max_gradients": 400}


def quadratic(n: int, seed: int, *, convex: bool = True) -> tuple[Quadratic, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=n) if convex else rng.standard_normal(n)
    q = Quadratic(spectrum(values, seed), 0.1 * rng.standard_normal(n), constant=0.3)
    return q, rng.standard_normal(n)


def transformed(q: Quadratic, t: np.ndarray) -> Quadratic:
    return Quadratic(t[:, None] * q.hessian * t, t * q.gradient, q.constant)


@pytest.mark.parametrize("eta", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("n_zeros", [0, 3])
def test_quadratics_are_exact_by_the_change_of_variables(eta, convex, n_zeros):
    for seed in range(3):
        q, at = quadratic(12, seed, convex=convex)
        at[:n_zeros] = 0.0
        t = np.abs(at) + eta
        exact = trust_region(transformed(q, t), 0.4)
        found = sharpness(
            quadratic_problem(q, at=at), 0.4, adaptive="elementwise", eta=eta, **EXACT
        )
        assert found.value == pytest.approx(exact.value, rel=1e-6)
        assert found.value == pytest.approx(q.rise(found.epsilon), rel=1e-9)
        moved = t > 0
        d = found.epsilon[moved] / t[moved]
        assert np.linalg.norm(d) == pytest.approx(found.norm, rel=1e-9)
        assert found.norm <= 0.4 * (1 + 1e-12)
        if eta == 0:
            assert not found.epsilon[:n_zeros].any()  # what is exactly zero stays so
        # A few products see what the Krylov subspace of Tg does, and never more than there is.
        few = trust_region(in_krylov_subspace(transformed(q, t), FEW_PRODUCTS), 0.4)
        assert few.value * (1 - 1e-3) <= found.quadratic_maximum <= exact.value * (1 + 1e-9)


@pytest.mark.parametrize("p", [1.0, math.inf])
def test_vertices_of_adaptive_balls(p):
    for seed in range(4):
        q, at = quadratic(7, seed)
        t = np.abs(at)
        exact, _ = best_vertex(lambda d, q=q, t=t: q.rise(t * d), 7, rho=0.5, p=p)
        found = sharpness(quadratic_problem(q, at=at), 0.5, p=p, adaptive="elementwise", **EXACT)
        assert found.value == pytest.approx(exact, rel=1e-9)


def logistic(x: np.ndarray, w: np.ndarray) -> Problem:
    model = nn.Linear(len(w), 1, bias=False).double()
    model.weight.data = torch.from_numpy(w)[None]
    data = (torch.from_numpy(x)[None], torch.ones(1, 1, dtype=torch.float64))
    return Problem(model, nn.BCEWithLogitsLoss(), data)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize(("adaptive", "eta"), [("elementwise", 0.0), ("filterwise", 0.1)])
def test_one_example_of_logistic_regression_in_closed_form(p, adaptive, eta):
    """Along ε = Td the logit falls by at most ρ‖Tx‖_q."""
    rng = np.random.default_rng(5)
    x, w, rho = rng.standard_normal(6), rng.standard_normal(6), 0.4
    t = (np.abs(w) if adaptive == "elementwise" else np.linalg.norm(w) * np.ones(6)) + eta
    q = {1.0: math.inf, math.inf: 1.0}.get(p) or p / (p - 1)
    reach = rho * np.linalg.norm(t * x, q)
    exact = np.logaddexp(0, reach - x @ w) - np.logaddexp(0, -x @ w)
    found = sharpness(logistic(x, w), rho, p=p, adaptive=adaptive, eta=eta, **EXACT)
    assert found.value == pytest.approx(exact, rel=1e-9)
    assert found.one_step == pytest.approx(exact, rel=1e-9)


def test_where_all_weights_are_equal_the_adaptive_ball_is_the_plain_one_scaled():
    q, _ = quadratic(9, 2)
    problem = quadratic_problem(q, at=np.full(9, -0.5))
    plain = sharpness(problem, 0.2, **EXACT)
    adaptive = sharpness(problem, 0.4, adaptive="elementwise", **EXACT)
    assert adaptive.value == pytest.approx(plain.value, rel=1e-9)
    assert adaptive.epsilon == pytest.approx(plain.epsilon, abs=1e-5)


def relu_net(factor: float) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (20,), generator=generator)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    model.double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    model[0].weight.data *= factor
    model[2].weight.data /= factor
    return Problem(model, nn.CrossEntropyLoss(), (x, y))


@pytest.mark.parametrize("adaptive", ["elementwise", "filterwise"])
def test_rescaling_relu_layers_changes_the_plain_ball_alone(adaptive):
    """Dinh et al. (2017): the same function, with other weights."""
    one, other = (sharpness(relu_net(f), 0.05, adaptive=adaptive, tol=1e-8) for f in (1.0, 8.0))
    assert other.value == pytest.approx(one.value, rel=1e-6)
    plain = [sharpness(relu_net(f), 0.05, tol=1e-8).value for f in (1.0, 8.0)]
    assert abs(plain[1] / plain[0] - 1) > 0.5


def test_the_small_radius_limit_is_half_the_top_of_tht():
    q, at = quadratic(10, 4)
    q = Quadratic(q.hessian, np.zeros(10))
    t = np.abs(at)
    top = np.linalg.eigvalsh(t[:, None] * q.hessian * t)[-1]
    found = sharpness(quadratic_problem(q, at=at), 1e-3, adaptive="elementwise", **EXACT)
    assert found.value == pytest.approx(0.5e-6 * top, rel=1e-6)
    assert found.top_eigenvalue == pytest.approx(top, rel=1e-3)


def test_two_weights_by_brute_force():
    """A grid over the ball of a network with two weights."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.8, -1.5], dtype=torch.float64))

        def forward(self, x):
            return self.w[1] * torch.tanh(self.w[0] * x)

    x = torch.linspace(-2, 2, 15, dtype=torch.float64)[:, None]
    y = torch.sin(2 * x)
    problem = Problem(Two(), nn.MSELoss(), (x, y))
    angles, radii = np.meshgrid(np.linspace(0, 2 * np.pi, 2001), np.linspace(0.05, 1, 40))
    units = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1).reshape(-1, 2)
    for rho, adaptive in itertools.product((0.1, 1.0), ("none", "elementwise")):
        t = np.ones(2) if adaptive == "none" else np.array([0.8, 1.5])
        moved = np.array([0.8, -1.5]) + rho * t * units
        outputs = moved[:, 1:] * np.tanh(moved[:, :1] * x.numpy()[:, 0])
        losses = ((outputs - y.numpy()[:, 0]) ** 2).mean(axis=1)
        found = sharpness(problem, rho, adaptive=adaptive, **EXACT)
        best = losses.max() - found.loss
        assert best * (1 - 1e-9) <= found.value <= best * (1 + 1e-4)


def test_other_parameters_than_the_explored_ones_do_not_matter():
    problem = relu_net(1.0).only("2")
    found = sharpness(problem, 0.1, adaptive="filterwise")
    assert found.epsilon.shape == (18,)
    with pytest.raises(InvalidArgumentError, match="no parameter matches"):
        relu_net(1.0).only("7")


# -- settings and errors -------------------------------------------------------------------------


def test_settings_name_the_search_and_adaptive_ones_the_scale():
    q, at = quadratic(4, 0)
    problem = quadratic_problem(q, at=at)
    plain = {"rho", "p", "tol", "max_gradients", "eigenvectors", "seed", "search"}
    assert set(sharpness(problem, 0.1).settings) == plain
    found = sharpness(problem, 0.1, adaptive="elementwise", eta=0.5)
    assert set(found.settings) == plain | {"adaptive", "eta"}
    assert (found.adaptive, found.eta) == ("elementwise", 0.5)
    assert found.rows()[0][0] == "sharpness (ρ = 0.1, p = 2, adaptive elementwise, η = 0.5)"


@pytest.mark.parametrize("adaptive", ["elementwise", "filterwise"])
def test_refuses_a_ball_that_is_one_point(adaptive):
    model = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    data = (torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))
    problem = Problem(model, nn.CrossEntropyLoss(), data)
    with pytest.raises(InvalidArgumentError, match=r"all 6 weights of Linear are zero.*eta > 0"):
        sharpness(problem, 0.1, adaptive=adaptive)
    assert sharpness(problem, 0.1, adaptive=adaptive, eta=0.01).value > 0


def test_refuses_scales_that_are_none():
    q, at = quadratic(4, 0)
    problem = quadratic_problem(q, at=at)
    with pytest.raises(InvalidArgumentError, match="unknown scale of an adaptive ball 'layerwise'"):
        sharpness(problem, 0.1, adaptive="layerwise")
    with pytest.raises(InvalidArgumentError, match=r"eta = 0.1 belongs to an adaptive ball"):
        sharpness(problem, 0.1, eta=0.1)
    for eta in (-1.0, math.nan, math.inf):
        with pytest.raises(InvalidArgumentError, match="eta must be a finite number of at least 0"):
            parameter_scale(problem, "elementwise", eta=eta)
