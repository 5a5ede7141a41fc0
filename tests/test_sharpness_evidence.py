"""What stands beside the value: the quadratic model, the second-order condition, the error."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from oracles import Quadratic, in_krylov_subspace, quadratic_problem, spectrum, trust_region
from torch import nn

from landscape.evaluate import Evaluator
from landscape.problem import Problem
from landscape.results import from_record, to_record
from landscape.sharpness._ascent import Point
from landscape.sharpness._ball import Ball
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._quadratic import QuadraticModel, maximise_in_ball
from landscape.sharpness._search import FEW_PRODUCTS, Search, SearchOptions
from landscape.sharpness._worst_case import (
    check_second_order,
    error_of_rise,
    second_order,
    sharpness,
)


def random_quadratic(n: int, seed: int, *, size: float = 0.1) -> Quadratic:
    rng = np.random.default_rng(seed)
    return Quadratic(spectrum(rng.standard_normal(n), seed), size * rng.standard_normal(n))


# -- the quadratic model -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_the_small_problem_is_solved_exactly(size, shift):
    for seed in range(5):
        q = random_quadratic(6, seed, size=size)
        q = Quadratic(q.hessian + shift * np.eye(6), q.gradient)
        for rho in (0.01, 1.0, 30.0):
            exact = trust_region(q, rho)
            y, multiplier = maximise_in_ball(q.hessian, q.gradient, rho)
            assert q.rise(y) == pytest.approx(exact.value, rel=1e-9, abs=1e-300)
            assert np.linalg.norm(y) <= rho * (1 + 1e-9)
            assert multiplier == pytest.approx(exact.multiplier, rel=1e-6, abs=1e-9)


def test_the_hard_case_is_no_exception():
    two = np.diag([1.0, 2.0])
    y, multiplier = maximise_in_ball(two, np.array([0.1, 0.0]), 0.5)
    assert multiplier == 2.0
    assert np.abs(y) == pytest.approx([0.1, math.sqrt(0.25 - 0.01)])
    inside, multiplier = maximise_in_ball(-two, np.array([0.1, 0.2]), 0.5)
    assert multiplier == 0.0
    assert inside == pytest.approx([0.1, 0.1])
    flat, multiplier = maximise_in_ball(np.zeros((2, 2)), np.zeros(2), 0.5)
    assert not flat.any()
    assert multiplier == 0.0


@pytest.mark.parametrize("size", [0.0, 1e-3, 10.0, "hard"])
def test_the_growing_subspace_finds_maximum_and_top_eigenpair(size):
    for seed in range(3):
        q = random_quadratic(40, seed, size=1.0 if size == "hard" else size)
        values, vectors = np.linalg.eigh(q.hessian)
        g = q.gradient - vectors[:, -1] * (vectors[:, -1] @ q.gradient) * (size == "hard")
        q = Quadratic(q.hessian, g)
        hessian = torch.from_numpy(q.hessian)
        other = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        model = QuadraticModel(
            lambda v, h=hessian: h @ v, torch.from_numpy(g), other, max_products=40
        )
        model.grow(1.0, tol=1e-8)
        step, rise = model.maximum(1.0)
        exact = trust_region(q, 1.0).value
        assert rise == pytest.approx(exact, rel=1e-9)
        assert q.rise(step.numpy()) == pytest.approx(exact, rel=1e-9)
        value, residual, vector = model.top()
        assert value == pytest.approx(values[-1], rel=1e-6)
        assert residual <= 1e-6
        assert abs(vector.numpy() @ vectors[:, -1]) == pytest.approx(1, abs=1e-6)
        assert model.products <= 40


def test_prediction_and_maximum_of_the_model_stand_beside_the_value():
    """The model is that of a few products: exact in the Krylov subspace of the gradient."""
    q = random_quadratic(14, 1)
    found = sharpness(quadratic_problem(q), 0.3)
    inner = in_krylov_subspace(q, FEW_PRODUCTS)
    assert found.quadratic_maximum == pytest.approx(trust_region(inner, 0.3).value, rel=1e-3)
    top = np.linalg.eigvalsh(inner.hessian)[-1]
    assert found.top_eigenvalue == pytest.approx(top, rel=1e-3)
    assert found.slope == pytest.approx(np.linalg.norm(q.gradient), rel=1e-12)
    assert found.prediction == pytest.approx(0.3 * found.slope + 0.045 * top, rel=1e-3)
    assert found.prediction >= found.quadratic_maximum * (1 - 1e-9)
    other = sharpness(quadratic_problem(q), 0.3, p=3)
    assert math.isnan(other.quadratic_maximum)
    assert not [label for label, _ in other.rows() if "quadratic" in label]


# -- the second-order condition ------------------------------------------------------------------


def test_the_multiplier_is_that_of_the_trust_region_and_the_check_holds():
    for seed in range(4):
        q = random_quadratic(12, seed)
        found = sharpness(quadratic_problem(q), 0.5, tol=1e-10)
        exact = trust_region(q, 0.5)
        assert found.multiplier == pytest.approx(exact.multiplier, rel=1e-5)
        unit = exact.epsilon / 0.5
        basis = np.linalg.svd(unit[None])[2][1:]
        dense = basis @ (exact.multiplier * np.eye(12) - q.hessian) @ basis.T
        assert found.second_order == pytest.approx(
            np.linalg.eigvalsh(dense)[0], abs=1e-3 * exact.multiplier
        )
        assert found.is_local_maximum
        assert "a local maximum" in dict(found.rows())["μI − H on the tangents"]


@pytest.mark.parametrize(
    ("starts", "values", "said"),
    [
        (("gradient", "random"), [2.0, 1.0], "NOT even a local maximum"),
        (("gradient", "+tangent 1", "-tangent 1"), [2.0, 1.9, 2.0], "found nothing higher"),
        # The last climb along a tangent led on: where it ended nobody has tried.
        (("gradient", "+tangent 1", "-tangent 1"), [2.0, 2.1, 2.0], "NOT even a local maximum"),
    ],
)
def test_a_failed_condition_says_whether_anybody_went_on_from_there(starts, values, said):
    found = sharpness(quadratic_problem(random_quadratic(12, 0)), 0.5)
    failed = dataclasses.replace(
        found,
        second_order=-found.multiplier,
        starts=starts,
        start_values=np.array(values),
        start_gaps=np.zeros(len(starts)),
    )
    assert failed.is_local_maximum is False
    assert said in dict(failed.rows())["μI − H on the tangents"]


def test_a_saddle_on_the_sphere_is_told_from_a_maximum():
    """g = 0: every eigenvector meets the first-order condition, only the top one is a maximum."""
    h = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    start = torch.tensor([0.5, -0.3, 0.7], dtype=torch.float64)
    for i, smallest in enumerate([1.0, -1.0, -2.0]):
        d = torch.zeros(3, dtype=torch.float64)
        d[i] = 0.5
        point = Point.of(Ball(0.5), d, 0.0, h @ d)
        assert point.gap(Ball(0.5), slope=0.0, noise=0.0) == 0.0
        found = second_order(lambda v: h @ v, point, 0.5, start.clone())
        assert found.smallest == pytest.approx(smallest, abs=1e-9)
        assert found.multiplier == pytest.approx(float(h[i, i]))
        assert found.fails == (i > 0)


def test_a_search_that_ended_at_a_saddle_goes_on_from_it():
    """Started at the second eigenvector, with nothing else to start from but it and its likes."""
    q = Quadratic(np.diag([3.0, 2.0, 1.0]), np.zeros(3))
    with Evaluator(quadratic_problem(q)) as evaluator:
        ball, options = Ball(0.5), SearchOptions(tol=1e-8, max_gradients=100)
        search = Search(BallObjective(evaluator, ball), ball, options)
        search.start_at("saddle", torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64))
        assert search.gap == 0.0
        assert search.left == 100
        condition = check_second_order(search)
        assert search.best.value == pytest.approx(0.125 * 3.0, rel=1e-8)
        assert condition is not None
        assert not condition.fails


def test_one_dimension_has_no_tangent():
    q = Quadratic(np.array([[2.0]]), np.array([0.1]))
    found = sharpness(quadratic_problem(q), 0.5)
    assert found.value == pytest.approx(0.05 + 0.25)
    assert found.is_local_maximum is None


def test_a_random_vector_without_tangent_makes_no_product():
    h = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    d = torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64)
    point = Point.of(Ball(0.5), d, 0.375, h @ d)
    found = second_order(lambda v: h @ v, point, 0.5, 4 * d)
    assert (found.multiplier, found.smallest, found.error) == (3.0, math.inf, 0.0)
    assert not found.fails
    assert not found.direction.any()


def test_second_order_steps_finish_what_first_order_ones_did_not():
    """An ill-conditioned sphere: after few passes the climb is far from its gap."""
    rng = np.random.default_rng(0)
    h = spectrum(np.concatenate([[1.0, 0.9999, 0.999], rng.uniform(0, 0.99, 37)]), 0)
    q = Quadratic(h, 1e-3 * rng.standard_normal(40))
    with Evaluator(quadratic_problem(q)) as evaluator:
        ball, options = Ball(1.0), SearchOptions(tol=1e-10, max_gradients=4)
        search = Search(BallObjective(evaluator, ball), ball, options)
        search.start_from_gradient()
        before, search.left = search.gap, 16
        search.polish()
        assert search.gap < before / 3
        assert search.best.value <= trust_region(q, 1.0).value * (1 + 1e-12)


# -- the error of the rise -----------------------------------------------------------------------


def regression(n: int, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    nn.init.constant_(model.weight, 0.3)
    nn.init.constant_(model.bias, -0.1)
    return Problem(model, nn.MSELoss(), (x, y), batch_size=7)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_error_is_that_of_paired_differences(reduction):
    plain = regression(25)
    problem = Problem(plain.model, nn.MSELoss(reduction=reduction), list(plain.batches))
    epsilon = torch.tensor([0.1, -0.2, 0.3, 0.05], dtype=torch.float64)
    x, y = (torch.cat(parts) for parts in zip(*plain.batches, strict=True))

    def losses(shift):
        weight, bias = 0.3 + shift[:3], -0.1 + shift[3]
        return ((x @ weight + bias - y[:, 0]) ** 2).numpy()

    rises = losses(epsilon) - losses(torch.zeros(4, dtype=torch.float64))
    expected = rises.std(ddof=1) / math.sqrt(25) * (25 if reduction == "sum" else 1)
    with Evaluator(problem) as evaluator:
        assert error_of_rise(evaluator, epsilon) == pytest.approx(expected, rel=1e-9)


def test_the_error_is_not_known_of_one_example_or_of_a_loss_without_terms():
    assert math.isnan(sharpness(regression(1), 0.1).value_se)
    assert math.isnan(sharpness(quadratic_problem(random_quadratic(3, 0)), 0.1).value_se)
    assert sharpness(regression(9), 0.1).value_se > 0


# -- the record ----------------------------------------------------------------------------------


def test_a_given_start_is_used_and_part_of_the_settings():
    q = random_quadratic(8, 0, size=0.0)
    problem = quadratic_problem(q)
    worst = trust_region(q, 0.3).epsilon
    found = sharpness(problem, 0.3, start=worst, max_gradients=1)
    assert found.start_values[found.starts.index("given")] == pytest.approx(q.rise(worst), rel=1e-9)
    assert len(found.settings["start"]) == 16
    with pytest.raises(ValueError, match=r"expected a finite start ε of shape \(8,\)"):
        sharpness(problem, 0.3, start=np.ones(7))


def test_records_of_old_studies_are_read_and_have_rows_too():
    """They hold none of the newer evidence."""
    scalars, arrays = to_record(sharpness(regression(9), 0.1))
    known = "value one_step gap gradients rho p loss norm converged starts settings cost provenance"
    old = from_record("sharpness", {name: scalars[name] for name in known.split()}, arrays)
    rows = dict(old.rows())
    assert rows["sharpness (ρ = 0.1, p = 2)"].startswith("≥ ")
    assert "±" not in rows["sharpness (ρ = 0.1, p = 2)"]
    assert not any("tangent" in label or "quadratic" in label for label in rows)


def test_overflow_names_the_largest_finite_radius():
    class Pole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    data = (torch.ones(1, 1, dtype=torch.float64),)
    problem = Problem(
        Pole(), batch_loss=lambda m, b: (-torch.log(1 - m.w @ m.w) + m.w.sum(), 1), data=data
    )
    with pytest.warns(UserWarning, match=r"the largest radius with a finite loss was [01]"):
        found = sharpness(problem, 3.0)
    assert 0.99 < found.finite_radius <= 1.0
    assert f"at {found.n_overflowed} points" in dict(found.rows())["not finite"]
