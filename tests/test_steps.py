"""The rise after a climb of k steps: closed forms on quadratics, and beside the search."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import InvalidArgumentError
from landscape.problem import Problem, load_problem
from landscape.sharpness._k_steps import stepwise_sharpness
from landscape.sharpness._worst_case import sharpness
from landscape.study import Study


def least_squares(
    *, start=(1.0, -2.0, 0.5), seed: int = 0
) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A quadratic loss, its Hessian and its gradient at w."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([start], dtype=torch.float64))
    problem = Problem(model, nn.MSELoss(), (x, torch.zeros(20, 1, dtype=torch.float64)))
    hessian = (2 / 20) * (x.T @ x).numpy()
    return problem, hessian, hessian @ np.array(start)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_each_climb_is_that_of_the_formula(p: float) -> None:
    problem, hessian, gradient = least_squares()
    found = stepwise_sharpness(problem, 0.3, p=p, steps=(1, 2, 7), progress=False)
    for k, rise, norm in zip(found.steps, found.rises, found.norms, strict=True):
        epsilon = np.zeros(3)
        for _ in range(k):
            epsilon = epsilon + dual(gradient + hessian @ epsilon, 0.3 / k, p)
        assert rise == pytest.approx(
            gradient @ epsilon + epsilon @ hessian @ epsilon / 2, rel=1e-10
        )
        assert norm == pytest.approx(np.linalg.norm(epsilon, ord=p), rel=1e-10)
        assert norm <= 0.3 * (1 + 1e-12)


def dual(g: np.ndarray, rho: float, p: float) -> np.ndarray:
    if p == 1:
        return rho * np.sign(g) * (np.abs(g) == np.abs(g).max())
    q = 1.0 if math.isinf(p) else p / (p - 1)
    powers = np.sign(g) * np.abs(g) ** (q - 1)
    return rho * powers / np.linalg.norm(powers, ord=p)


def test_one_step_is_that_of_the_search_and_none_is_above_it() -> None:
    problem = load_problem("digits-mlp")
    found = stepwise_sharpness(problem, 0.2, steps=(1, 3, 20), progress=False)
    searched = sharpness(problem, 0.2, progress=False)
    assert found.rises[0] == pytest.approx(searched.one_step, rel=1e-5)
    assert (found.rises <= searched.value * (1 + 1e-5)).all()
    assert found.loss == pytest.approx(searched.loss)


def test_at_a_minimum_no_number_of_steps_climbs() -> None:
    problem, _, _ = least_squares(start=(0.0, 0.0, 0.0))
    found = stepwise_sharpness(problem, 0.3, steps=(1, 5), progress=False)
    assert found.rises.tolist() == [0.0, 0.0]
    assert sharpness(problem, 0.3, progress=False).value > 0.01


def test_the_cost_is_a_gradient_for_each_step_and_a_pass_for_each_end(tmp_path) -> None:
    problem, _, _ = least_squares()
    with Study(tmp_path / "s.db") as study:
        found = stepwise_sharpness(problem, 0.3, steps=(1, 4), study=study, progress=False)
        again = stepwise_sharpness(problem, 0.3, steps=(1, 4), study=study, progress=False)
    assert found.cost.gradients == 1 + 0 + 3  # the first gradient serves all
    assert found.cost.forwards == 2
    assert again.provenance.created == found.provenance.created
    assert again.rises.tolist() == found.rises.tolist()


@pytest.mark.parametrize("steps", [(), (0, 1), (2, 1), (1, 1), (1.5,)])
def test_steps_that_are_none_are_refused(steps) -> None:
    problem, _, _ = least_squares()
    with pytest.raises(InvalidArgumentError, match="whole numbers in ascending order"):
        stepwise_sharpness(problem, 0.3, steps=steps, progress=False)


@pytest.mark.parametrize(("rho", "p"), [(0.0, 2.0), (-1.0, 2.0), (math.nan, 2.0), (0.1, 0.5)])
def test_a_ball_that_is_none_is_refused(rho: float, p: float) -> None:
    problem, _, _ = least_squares()
    with pytest.raises(InvalidArgumentError):
        stepwise_sharpness(problem, rho, p=p, progress=False)
