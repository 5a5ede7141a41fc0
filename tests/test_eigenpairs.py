"""Top eigenpairs of the Hessian against the dense float64 Hessian of torch.func."""

from __future__ import annotations

import math
import random
from functools import cache

import numpy as np
import pytest
import torch
from cases import CASES, case_named
from oracles import Quadratic, quadratic_problem, spectrum
from torch import nn

from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.errors import InvalidArgumentError, NonFiniteError
from landscape.evaluate import Evaluator
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.study import Study

# torch's own forward-mode derivatives, which the dense Hessian is made with, still use it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=str)
K = 3


@cache
def dense(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the Hessian, its eigenvalues descending, and eigenvectors as rows."""
    hessian = case_named(name).dense_hessian().numpy()
    hessian = (hessian + hessian.T) / 2
    values, vectors = np.linalg.eigh(hessian)
    return hessian, values[::-1], vectors[:, ::-1].T


@cache
def found_by_lanczos(name: str):
    return top_eigenpairs(case_named(name).build(5), K, tol=1e-10)


def largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def assert_same_vectors(found: np.ndarray, name: str, *, tol: float) -> None:
    """Compare up to sign where an eigenvalue stands alone, else compare the subspace."""
    _, values, vectors = dense(name)
    gap = 1e-3 * largest(values)
    for i, vector in enumerate(found):
        near = vectors[np.abs(values - values[i]) < gap]
        # The part of the vector outside the eigenspace of its eigenvalue.
        assert np.linalg.norm(vector - near.T @ (near @ vector)) <= tol
        if len(near) == 1:
            assert min(np.abs(vector - near[0]).max(), np.abs(vector + near[0]).max()) <= tol


@every_case
def test_lanczos_equals_the_dense_hessian(case):
    hessian, values, _ = dense(case.name)
    problem = case.build(None if case.depends_on_batches else 5)
    found = top_eigenpairs(problem, K, tol=1e-10)
    assert found.converged
    assert (found.method, found.values.shape) == ("lanczos", (K,))
    assert np.abs(found.values - values[:K]).max() <= 1e-8 * largest(values)
    relative = np.abs(found.values / values[:K] - 1)
    assert relative[np.abs(values[:K]) > 1e-6 * largest(values)].max() <= 1e-8
    assert_same_vectors(found.vectors, case.name, tol=1e-6)
    assert found.vectors @ found.vectors.T == pytest.approx(np.eye(K), abs=1e-12)
    true = np.linalg.norm(found.vectors @ hessian - found.values[:, None] * found.vectors, axis=1)
    assert found.residuals == pytest.approx(true, abs=1e-12 * largest(values))
    assert true.max() <= 1e-10 * largest(values) * 1.01


@every_case
def test_power_iteration_equals_the_dense_hessian(case):
    hessian, values, _ = dense(case.name)
    found = top_eigenpairs(case.build(), 1, method="power", tol=1e-6, max_matvecs=20_000)
    assert found.converged
    assert found.method == "power"
    assert found.values[0] == pytest.approx(values[0], rel=1e-6)
    assert found.residuals[0] <= 1e-6 * largest(values)
    v = found.vectors[0]
    true = np.linalg.norm(hessian @ v - found.values[0] * v)
    assert found.residuals[0] == pytest.approx(true, abs=1e-12 * largest(values))
    gap = values[0] - values[1]
    if gap > 1e-2 * values[0]:  # sin θ ≤ residual / gap (Davis, Kahan)
        assert_same_vectors(found.vectors, case.name, tol=2e-6 * largest(values) / gap)


@pytest.mark.parametrize("case", [case for case in CASES if not case.depends_on_batches], ids=str)
@pytest.mark.parametrize("partition", [[13], [1] * 13, [2, 7, 4]])
def test_values_are_the_same_for_any_batching(case, partition):
    found = top_eigenpairs(case.build(partition=partition), K, tol=1e-10)
    other = found_by_lanczos(case.name)
    assert np.abs(found.values - other.values).max() <= 1e-12 * largest(other.values)


def test_float32_equals_float64_to_its_rounding():
    for name in ("mlp", "conv_batch_norm_eval", "class_weights"):
        _, values, _ = dense(name)
        found = top_eigenpairs(case_named(name).build(5, dtype="float32"), K, tol=1e-5)
        assert found.converged
        assert found.values == pytest.approx(values[:K], rel=2e-5)
        assert found.vectors.dtype == np.float32
        assert found.values.dtype == np.float64


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_top_means_algebraic_also_where_the_most_negative_is_larger(method):
    values = np.array([-50.0, -3.0, 0.5, 1.0, 2.0, 4.0])
    problem = quadratic_problem(Quadratic(spectrum(values, 0), np.ones(6)), n_examples=5)
    found = top_eigenpairs(problem, 2, method=method, tol=1e-9, max_matvecs=20_000)
    assert found.values == pytest.approx([4.0, 2.0], rel=1e-8)


def test_repeated_eigenvalues_are_found_as_often_as_they_occur():
    values = np.array([3.0, 3.0, 3.0, 1.0, -1.0])
    problem = quadratic_problem(Quadratic(spectrum(values, 0), np.ones(5)))
    found = top_eigenpairs(problem, 4, tol=1e-10)
    assert found.values == pytest.approx([3.0, 3.0, 3.0, 1.0], rel=1e-9)


def test_all_eigenpairs_of_a_small_model():
    values = np.array([3.0, 1.0, 0.0, -2.0])
    problem = quadratic_problem(Quadratic(spectrum(values, 0), np.ones(4)))
    found = top_eigenpairs(problem, 4, tol=1e-10)
    assert found.values == pytest.approx(values, abs=1e-9)
    rebuilt = found.vectors.T @ np.diag(found.values) @ found.vectors
    assert rebuilt == pytest.approx(spectrum(values, 0), abs=1e-9)


# -- evidence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_too_few_products_are_said_not_to_have_converged(method):
    values = np.linspace(-1, 1, 40)
    problem = quadratic_problem(Quadratic(spectrum(values, 0), np.zeros(40)))
    found = top_eigenpairs(problem, 2, method=method, tol=1e-10, max_matvecs=10)
    assert not found.converged
    assert found.matvecs <= 10
    hessian = spectrum(values, 0)
    true = np.linalg.norm(found.vectors @ hessian - found.values[:, None] * found.vectors, axis=1)
    assert found.residuals == pytest.approx(true, rel=1e-9)
    assert found.residuals.max() > 1e-3


@pytest.mark.parametrize("products", ["double-backward", "forward-over-reverse"])
def test_products_are_counted_however_they_are_made(monkeypatch, products):
    made = []
    matmat = Hessian.matmat
    monkeypatch.setattr(Hessian, "matmat", lambda self, v: made.append(1) or matmat(self, v))
    found = top_eigenpairs(
        case_named("mlp").build(5), 2, tol=1e-8, products=products, data_groups=0
    )
    # The three products of the noise test are with a sixteenth of the examples.
    assert found.matvecs == len(made) == found.cost.hvps > 4
    assert found.cost.forwards == 1
    assert found.products.startswith(products.replace("-", " "))
    assert found.values == pytest.approx(dense("mlp")[1][:2], rel=1e-8)


def test_the_same_call_gives_the_same_bits_and_the_seed_only_the_way():
    problem = case_named("mlp").build(5)
    first, again = (top_eigenpairs(problem, K, seed=3) for _ in range(2))
    assert first.values.tobytes() == again.values.tobytes()
    assert first.vectors.tobytes() == again.vectors.tobytes()
    assert first.vectors.tobytes() != top_eigenpairs(problem, K, seed=4).vectors.tobytes()
    other = top_eigenpairs(problem, K, seed=4, tol=1e-10)
    assert other.values == pytest.approx(dense("mlp")[1][:K], rel=1e-9)
    assert first.settings == {
        "k": K,
        "method": "lanczos",
        "tol": 1e-4,
        "max_matvecs": 1000,
        "data_groups": None,
        "seed": 3,
    }


def test_a_study_answers_the_second_time(tmp_path, monkeypatch):
    problem = case_named("mlp").build(5)
    with Study(tmp_path / "landscape.db") as study:
        first = top_eigenpairs(problem, 2, study=study)
        monkeypatch.setattr(Hessian, "matmat", None)
        again = top_eigenpairs(problem, 2, study=study)
        assert again.values.tobytes() == first.values.tobytes()
        assert again.vectors.tobytes() == first.vectors.tobytes()


# -- leaving things as they were -----------------------------------------------------------------


@every_case
def test_model_and_generators_stay_as_they_were(case):
    problem = case.build(None if case.depends_on_batches else 5)
    model = problem.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    top_eigenpairs(problem, 1, max_matvecs=6)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert [part.training for part in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, 32, 1000])
def test_refuses_a_number_of_eigenpairs_that_there_is_not(k):
    problem = case_named("mlp").build()
    with pytest.raises(
        InvalidArgumentError, match=f"k must be from 1 to the number of parameters, 31; got {k}"
    ):
        top_eigenpairs(problem, k)


def test_refuses_an_unknown_method():
    with pytest.raises(
        InvalidArgumentError, match=r"unknown method 'lanzcos' \(nearest: lanczos\).*lanczos, power"
    ):
        top_eigenpairs(case_named("mlp").build(), method="lanzcos")


@pytest.mark.parametrize("tol", [0.0, -1.0, math.nan])
def test_refuses_a_tolerance_that_is_none(tol):
    with pytest.raises(InvalidArgumentError, match="tol must be a finite number above zero"):
        top_eigenpairs(case_named("mlp").build(), tol=tol)


def test_refuses_a_loss_that_is_not_finite():
    model = nn.Linear(2, 1)
    problem = Problem(model, nn.MSELoss(), (torch.full((3, 2), math.nan), torch.zeros(3, 1)))
    with pytest.raises(NonFiniteError, match="the loss of Linear on the train data is nan"):
        top_eigenpairs(problem)
    with Evaluator(problem) as evaluator:
        assert math.isnan(evaluator.loss().value)
