"""Eigenpairs: other operators, both ends, errors over the data, starts, layers, and refusals."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from cases import CASES, case_named
from test_operators_pieces import wide
from torch import nn

from landscape.curvature._eigenpairs import overlap, top_eigenpairs
from landscape.errors import InvalidArgumentError, ProblemError
from landscape.evaluate import Evaluator
from landscape.operators import CURVATURES
from landscape.problem import Problem
from landscape.results import Eigenpairs
from landscape.stats import jackknife
from landscape.study import Study

# torch's own forward-mode derivatives, which the dense Hessian is made with, still use it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
K = 3
WITH_OUTPUT = [c for c in CASES if not c.depends_on_batches and c.name != "sum_and_weight"]


@cache
def dense(name: str, kind: str) -> np.ndarray:
    case = case_named(name)
    make = {"hessian": case.dense_hessian, "ggn": case.dense_ggn, "fisher": case.dense_fisher}
    matrix = make[kind]().numpy()
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("case", WITH_OUTPUT, ids=str)
@pytest.mark.parametrize("kind", ["ggn", "fisher"])
def test_eigenvalues_of_the_other_operators(case, kind):
    expected = np.linalg.eigvalsh(dense(case.name, kind))[::-1]
    found = top_eigenpairs(case.build(5), K, operator=kind, tol=1e-11)
    assert found.converged
    assert np.abs(found.values - expected[:K]).max() <= 1e-10 * expected[0]
    assert found.operator in {"generalised Gauss-Newton matrix", "empirical Fisher matrix"}
    assert found.products.startswith("two backward passes")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_ends_in_one_run(case):
    expected = np.linalg.eigvalsh(dense(case.name, "hessian"))[::-1]
    problem = case.build(None if case.depends_on_batches else 5)
    found = top_eigenpairs(problem, 2, both_ends=True, tol=1e-11)
    assert found.converged
    assert (found.n_top, found.n_lowest) == (2, 2)
    largest = np.abs(expected).max()
    wanted = [*expected[:2], *expected[-2:]]
    assert np.abs(found.values - wanted).max() <= 1e-10 * largest
    assert found.labels() == ["λ1", "λ2", "λn−1", "λn"]
    assert (found.errors <= 1e-9 * largest).all()
    assert found.upper_bound >= expected[0] - 1e-12 * largest
    assert found.lower_bound <= expected[-1] + 1e-12 * largest


def test_the_evidence_is_written_out():
    found = top_eigenpairs(wide(), 5, split=True)
    rows = dict(found.rows())
    assert " ± " in rows["λ1"]
    assert "residual " in rows["λ1"]
    assert "GGN" in rows["λ1"]
    assert "(1% chance of failure)" in rows["no eigenvalue above"]
    assert rows["λ1/λ5"] == f"{found.values[0] / found.values[4]:.4g}"
    assert rows["lanczos"].startswith("converged after")
    assert "double backward, 8 of 8 graphs kept" in rows["products"]
    assert found.n_groups == 8
    assert found.noise < 1e-12


def test_the_split_into_gauss_newton_and_rest():
    case = case_named("mlp")
    found = top_eigenpairs(case.build(5), K, tol=1e-11, split=True)
    ggn = np.einsum("ki,ij,kj->k", found.vectors, dense("mlp", "ggn"), found.vectors)
    assert found.gauss_newton == pytest.approx(ggn, rel=1e-9)
    rest = dense("mlp", "hessian") - dense("mlp", "ggn")
    remainder = np.einsum("ki,ij,kj->k", found.vectors, rest, found.vectors)
    assert found.values - found.gauss_newton == pytest.approx(remainder, rel=1e-6, abs=1e-9)


# The error over the data


def linear(n: int, batch_size: int, loss: nn.Module | None = None) -> tuple[Problem, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0, 0.3])
    model = nn.Linear(3, 1, bias=False).double()
    data = (x, torch.zeros(n, 1, dtype=torch.float64))
    return Problem(model, loss or nn.MSELoss(), data, batch_size=batch_size), x.numpy()


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_the_error_over_the_data_is_that_of_a_mean_over_examples(batch_size):
    # H = 2/n Σ xxᵀ: with the vector held fixed, θ is the mean of 2 (x·v)² over the examples.
    problem, x = linear(40, batch_size)
    found = top_eigenpairs(problem, 2, tol=1e-10, data_groups=40)
    terms = 2 * (x @ found.vectors.T) ** 2
    assert found.values == pytest.approx(terms.mean(axis=0), rel=1e-9)
    assert found.n_groups == 40
    expected = terms.std(axis=0, ddof=1) / np.sqrt(40)
    assert found.data_errors == pytest.approx(expected, rel=1e-9)


def test_the_error_over_the_data_of_a_sum():
    problem, x = linear(40, 7, nn.MSELoss(reduction="sum"))
    found = top_eigenpairs(problem, 1, tol=1e-10, data_groups=40)
    terms = 2 * (x @ found.vectors[0]) ** 2
    assert found.data_errors[0] == pytest.approx(np.sqrt(40) * terms.std(ddof=1), rel=1e-9)


def test_the_error_over_the_data_is_what_other_samples_show():
    estimates, errors = [], []
    model = nn.Linear(3, 1, bias=False).double()
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(160, 3, generator=generator, dtype=torch.float64)
        x *= torch.tensor([3.0, 1.0, 0.3])
        problem = Problem(model, nn.MSELoss(), (x, x[:, :1]), batch_size=160)
        found = top_eigenpairs(problem, 1, data_groups=16)
        estimates.append(found.values[0])
        errors.append(found.data_errors[0])
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)
    inside = np.abs(np.array(estimates) - 18.0) <= 2.131 * np.array(errors)  # Student, 15 degrees
    assert 0.90 <= inside.mean() <= 0.99


@pytest.mark.parametrize("batch_size", [60, 127, 23])
def test_uneven_groups_of_a_sum_and_of_a_mean_have_the_same_relative_error(batch_size):
    errors = []
    for reduction in ("mean", "sum"):
        problem = wide(nn.CrossEntropyLoss(reduction=reduction), batch_size=batch_size)
        found = top_eigenpairs(problem, 1, data_groups=2, tol=1e-8)
        errors.append(found.data_errors[0] / found.values[0])
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


@pytest.mark.parametrize("case", WITH_OUTPUT, ids=str)
@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
def test_parts_of_the_search_are_those_of_separate_products(case, kind):
    problem = case.build(3)
    found = top_eigenpairs(problem, 2, operator=kind, tol=1e-10, both_ends=True)
    if not found.n_groups:
        pytest.skip("the loss cannot be cut, and there is one batch only")
    with Evaluator(problem) as evaluator:
        operator = CURVATURES[kind](evaluator)
        assert operator.record_parts()
        operator.matvec(torch.as_tensor(found.vectors[0]))
        forms = operator.project_parts(torch.as_tensor(found.vectors))
        weights = operator.part_weights
        assert (weights > 0).sum() == found.n_groups
        divisor = 1.0 if problem.loss.sums else weights.sum()
        assert forms[:, 0].sum() / divisor == pytest.approx(found.values[0], rel=1e-9)
        vectors = torch.as_tensor(found.vectors)
        apart = []
        for v in vectors:
            operator.matvec(v)
            apart.append(operator.project_parts(v[None])[:, 0])
        errors = jackknife(np.array(apart).T[weights > 0], weights[weights > 0])
        errors = errors * weights.sum() if problem.loss.sums else errors
        assert found.data_errors == pytest.approx(errors, rel=1e-6, abs=1e-12)


def test_parts_that_do_not_fit_into_memory_are_made_apart(monkeypatch):
    problem = wide()
    expected = top_eigenpairs(problem, 2, data_groups=8, tol=1e-9)
    monkeypatch.setattr("landscape.operators._curvature._MOST_BYTES", 1000)
    found = top_eigenpairs(problem, 2, data_groups=8, tol=1e-9)
    assert found.n_groups == expected.n_groups == 8
    assert found.data_errors == pytest.approx(expected.data_errors, rel=1e-6)
    assert found.cost.hvps == found.matvecs + 2  # a product more for each pair


def test_evidence_can_be_left_out():
    full, bare = (top_eigenpairs(wide(), 2, evidence=which) for which in ("full", "residuals"))
    assert bare.converged
    assert bare.matvecs < full.matvecs
    assert bare.values == pytest.approx(full.values, rel=1e-7)
    assert bare.data_errors.size == 0
    assert (bare.upper_bound, bare.lower_bound) == (np.inf, -np.inf)
    assert "no eigenvalue above" not in dict(bare.rows())
    with pytest.raises(InvalidArgumentError, match="unknown evidence 'none'"):
        top_eigenpairs(wide(), 1, evidence="none")


def test_groups_without_weight_are_left_out():
    labels = torch.full((101,), -1)
    labels[:20] = torch.arange(20) % 3
    problem = wide()
    (batch,) = problem.batches
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    sparse = Problem(problem.model, loss, (batch[0], labels), batch_size=101)
    some = top_eigenpairs(sparse, 1, data_groups=16)
    assert 2 <= some.n_groups <= 5
    assert np.isfinite(some.data_errors).all()
    labels = torch.full((101,), -1)
    labels[0] = 1
    one = Problem(problem.model, loss, (batch[0], labels), batch_size=101)
    assert top_eigenpairs(one, 1, data_groups=16).n_groups == 0


def test_the_noise_of_the_products_is_in_the_errors():
    exact = top_eigenpairs(wide(), 2, tol=1e-11).values
    found = top_eigenpairs(
        wide(dtype="float32"), 2, tol=1e-5, products="differences", data_groups=0
    )
    assert (np.abs(found.values - exact) <= found.errors).all()


def test_the_jackknife_weighs_the_groups():
    sums, weights = np.array([[2.0], [3.0], [10.0]]), np.array([1.0, 2.0, 4.0])
    left = np.array([13 / 6, 12 / 5, 5 / 3])
    expected = np.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum())
    assert jackknife(sums, weights) == pytest.approx([expected])


def test_no_error_over_the_data_where_there_is_one_group():
    found = top_eigenpairs(case_named("batch_norm_train").build(), 1)
    assert found.data_errors.size == 0
    assert "±" not in dict(found.rows())["λ1"]
    assert top_eigenpairs(wide(), 1, data_groups=0).n_groups == 0


# Starts, scales and parts of the parameters


def test_a_start_from_the_checkpoint_before_takes_fewer_products(tmp_path):
    problem = wide()
    first = top_eigenpairs(problem, 3)
    state = {k: v + 1e-3 * torch.sin(v) for k, v in problem.model.state_dict().items()}
    later = problem.at(state, name="later")
    cold = top_eigenpairs(later, 3, data_groups=0)
    with Study(tmp_path / "s.db") as study:
        warm = top_eigenpairs(later, 3, start=first, data_groups=0, study=study)
        again = top_eigenpairs(later, 3, data_groups=0, study=study)
    assert warm.matvecs < cold.matvecs
    assert warm.values == pytest.approx(cold.values, rel=1e-6)
    assert (cold.start, warm.start) == ("random", "Sequential and a random vector")
    assert again.matvecs == warm.matvecs  # kept, whatever the start


def test_a_scale_makes_the_spectrum_blind_to_rescaled_layers():
    found = []
    for factor in (1.0, 5.0):
        problem = wide()
        problem.model[1] = nn.ReLU()
        with torch.no_grad():
            problem.model[0].weight.mul_(factor)
            problem.model[0].bias.mul_(factor)
            problem.model[2].weight.div_(factor)
        scaled = top_eigenpairs(problem, 2, scale="filterwise", tol=1e-10)
        found.append((scaled, top_eigenpairs(problem, 2, tol=1e-10)))
    (a, plain_a), (b, plain_b) = found
    assert a.values == pytest.approx(b.values, rel=1e-9)
    assert a.data_errors == pytest.approx(b.data_errors, rel=1e-6)
    assert abs(plain_a.values[0] / plain_b.values[0] - 1) > 0.2
    assert a.operator == "Hessian, rescaled filterwise"


def test_a_part_of_the_parameters_is_a_diagonal_block():
    case = case_named("mlp")
    problem = case.build(5)
    part = problem.only("2")
    found = top_eigenpairs(part, 2, tol=1e-11)
    block = dense("mlp", "hessian")[16:, 16:]
    assert part.space.names == ("2.weight", "2.bias")
    assert found.values == pytest.approx(np.linalg.eigvalsh(block)[::-1][:2], rel=1e-10)
    assert found.provenance.parameters == "2"
    assert found.provenance.n_parameters == 15
    assert problem.space.n == 31


@pytest.mark.parametrize(
    ("memory", "kept"), [(4e9, "1 of 1 graphs kept"), (500e3, "2 of 5 graphs kept")]
)
def test_memory_is_shared_between_basis_and_graphs(memory, kept):
    found = top_eigenpairs(wide(), 2, memory=memory, data_groups=0)
    expected = top_eigenpairs(wide(), 2, data_groups=0)
    assert found.values == pytest.approx(expected.values, rel=1e-6)
    assert kept in found.products


def test_no_graph_is_kept_where_the_smallest_basis_takes_all_memory(monkeypatch):
    expected = top_eigenpairs(wide(), 2, data_groups=0)
    assert "1 of 1 graphs kept" in expected.products
    monkeypatch.setattr("landscape.curvature._eigenpairs.BASIS_BYTES", 1)
    found = top_eigenpairs(wide(), 2, data_groups=0)
    assert "0 of 1 graphs kept" in found.products
    assert found.values == pytest.approx(expected.values, rel=1e-6)


def test_a_basis_on_the_host_leaves_the_memory_to_the_graphs(monkeypatch):
    expected = top_eigenpairs(wide(), 2, data_groups=8)
    monkeypatch.setattr("landscape.curvature._eigenpairs.HOST_BYTES", 1)  # the smallest basis
    found = top_eigenpairs(wide(), 2, basis="host", memory=1e6, data_groups=8)
    assert found.converged
    assert found.values == pytest.approx(expected.values, rel=1e-6)
    assert found.data_errors == pytest.approx(expected.data_errors, rel=1e-3)
    assert found.settings["basis"] == "host"
    assert "basis" not in expected.settings


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_a_basis_on_the_host_takes_no_memory_of_the_device(method):
    problem = wide(device="cuda")
    peaks, values = [], []
    for basis in ("device", "host"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = top_eigenpairs(problem, 2, method=method, basis=basis, tol=1e-3, memory=4e6)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        values.append(found.values)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert peaks[1] < peaks[0]


def test_power_iteration_needs_no_memory_for_a_basis():
    assert top_eigenpairs(wide(), 1, method="power", memory=1e5, tol=1e-3).converged


def test_overlap_of_known_subspaces():
    eye = np.eye(6)
    turned = np.array([np.cos(0.3) * eye[0] + np.sin(0.3) * eye[4], eye[1]])
    found = overlap(pairs(eye[:2], "a"), pairs(turned[::-1], "b"))
    assert found.cosines == pytest.approx([1.0, np.cos(0.3)])
    assert found.angles == pytest.approx([0.0, np.degrees(0.3)], abs=1e-6)
    assert found.mean_square == pytest.approx((1 + np.cos(0.3) ** 2) / 2)
    assert found.cross == pytest.approx(np.array([[0, np.cos(0.3)], [1, 0]]))
    assert found.rows()[0][0] == "overlap of a and b"
    with pytest.raises(InvalidArgumentError, match=r"shapes \(2, 6\) and \(2, 5\)"):
        overlap(pairs(eye[:2], "a"), pairs(np.eye(5)[:2], "b"))


def test_eigenspaces_of_other_coordinates_have_no_overlap():
    problem = linear(10, 10)[0]
    plain, scaled, halves = (
        top_eigenpairs(problem, 1, data_groups=0),
        [top_eigenpairs(problem, 1, scale="elementwise", data_groups=0)] * 2,
        [pairs(np.eye(6)[:2], name) for name in ("a", "b")],
    )
    with pytest.raises(InvalidArgumentError, match=r"are of scale none, .* of scale elementwise"):
        overlap(plain, scaled[0])
    assert overlap(*scaled).cosines == pytest.approx([1.0])
    at = dataclasses.replace(halves[1].provenance, parameters="2")
    with pytest.raises(InvalidArgumentError, match=r"a are of parameters all, those of b of .* 2"):
        overlap(halves[0], dataclasses.replace(halves[1], provenance=at))


def pairs(vectors: np.ndarray, name: str) -> Eigenpairs:
    made = top_eigenpairs(linear(10, 10)[0].named(name), 2)
    return dataclasses.replace(made, vectors=vectors)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": "hesian"}, r"unknown operator 'hesian' \(nearest: hessian\).*ggn, fisher"),
        ({"scale": "layerwise"}, "unknown scale 'layerwise'"),
        ({"products": "magic"}, "unknown way of making products 'magic'"),
        ({"operator": "ggn", "products": "differences"}, "is for the Hessian; ggn has one way"),
        ({"operator": "ggn", "split": True}, "is that of the Hessian, not of 'ggn'"),
        ({"method": "power", "both_ends": True}, "use method='lanczos'"),
        ({"method": "power", "failure_probability": 1e-6}, "searches for no missed eigenvalues"),
        ({"tol": 1e-18}, r"tol = 1e-18 is below the noise floor of the products in float64, .*e-1"),
        ({"memory": 1e5}, r"a budget of 0 MB .* expected at least \d+ MB"),
        ({"block": 0}, "block must be a whole number of at least 1, got 0"),
        ({"data_groups": -1}, "data_groups must be a whole number of at least 0, got -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refuses(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        top_eigenpairs(wide(), 1, **options)


def test_the_noise_floor_in_float32_is_said():
    with pytest.raises(InvalidArgumentError, match=r"in float32.* or compute in float64"):
        top_eigenpairs(wide(dtype="float32"), 1, tol=1e-9)


def test_parameters_that_match_nothing_are_listed():
    match = r"no parameter matches '3' .*the parameters are: 0.weight, 0.bias, 2.weight, 2.bias"
    with pytest.raises(InvalidArgumentError, match=match.replace(" .*", ".*")):
        wide().only("3")


def test_a_start_of_another_architecture_is_refused():
    other = top_eigenpairs(linear(10, 10)[0], 1)
    with pytest.raises(InvalidArgumentError, match="of 3 parameters, the problem has 203"):
        top_eigenpairs(wide(), 1, start=other)


@pytest.mark.parametrize(
    ("calls_before", "error", "said"),
    [
        (4, ProblemError, "forward over reverse gives another product"),
        (30, ProblemError, r"the loss is another one at each call.*differ by"),
    ],
)
def test_a_problem_that_changes_under_way_is_refused(calls_before, error, said):
    generator = torch.Generator().manual_seed(0)
    calls = [0]

    def noisy(output, target):
        calls[0] += 1
        shake = torch.rand(len(output), generator=generator) if calls[0] > calls_before else 0.0
        return nn.functional.cross_entropy(output, target, reduction="none") * (1 + shake)

    with pytest.raises(error, match=said):
        top_eigenpairs(wide(noisy), 1, products="forward-over-reverse")


def test_a_bfloat16_model_is_measured_in_float32():
    model = wide().model.to(torch.bfloat16)
    batches = [tuple(part for part in batch) for batch in wide().batches]
    rounded = {name: tensor.double() for name, tensor in model.state_dict().items()}
    found = top_eigenpairs(Problem(model, nn.CrossEntropyLoss(), batches), 2)
    expected = top_eigenpairs(wide().at(rounded), 2, tol=1e-10)
    assert (found.provenance.dtype, found.vectors.dtype) == ("float32", np.float32)
    assert found.converged
    assert found.values == pytest.approx(expected.values, rel=1e-5)
    assert next(model.parameters()).dtype == torch.bfloat16
