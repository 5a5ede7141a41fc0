"""Eigenpairs of each layer's block: against dense blocks, and tested once for all layers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from cases import CASES, Case, case_named
from test_operators_pieces import Hidden, Square
from test_problem import WrongSlope
from torch import nn

from landscape.curvature._eigenpairs import eigenpairs_by_layer, top_eigenpairs
from landscape.errors import InvalidArgumentError, LossError
from landscape.evaluate import (
    Evaluator,
    _selftest,
    check_hessian,
    in_type,
    rounding_of_products,
    sample,
)
from landscape.operators import Hessian, parameter_scale
from landscape.problem import Problem
from landscape.study import Study

# torch's own forward-mode derivatives, which the dense Hessian is made with, still use it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

JACOBIAN_CASES = ("tied", "frozen", "unused", "plain_sum")


@cache
def dense(name: str, kind: str) -> np.ndarray:
    case = case_named(name)
    make = {"hessian": case.dense_hessian, "ggn": case.dense_ggn, "fisher": case.dense_fisher}
    matrix = make[kind]().numpy()
    return (matrix + matrix.T) / 2


def blocks(problem: Problem, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Return the diagonal block of the parameters that each module holds itself."""
    owners = [
        name.rpartition(".")[0] or name
        for name, size in zip(problem.space.names, problem.space.sizes, strict=True)
        for _ in range(size)
    ]
    chosen = {owner: np.array([o == owner for o in owners]) for owner in dict.fromkeys(owners)}
    return {owner: matrix[np.ix_(own, own)] for owner, own in chosen.items()}


def part_of(problem: Problem, layer: str) -> Problem:
    """Return the problem of one layer, chosen by the names of its parameters."""
    return problem.only(*(name for name in problem.space.names if name.startswith(layer)))


@pytest.fixture
def tests_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note of each test of a Hessian product of how many parameters it is."""
    made: list[int] = []
    test = _selftest._wrong_product

    def noting(point: _selftest._Point) -> str:
        made.append(point.evaluator.problem.space.n)
        return test(point)

    monkeypatch.setattr(_selftest, "_wrong_product", noting)
    return made


def with_layers(*layers: nn.Module, loss: nn.Module | None = None) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    model = nn.Sequential(*layers).double()
    return Problem(model, loss or nn.CrossEntropyLoss(), (x, torch.arange(20) % 3))


class Apply(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function.apply(x)


@pytest.mark.parametrize(
    ("case", "kind"),
    [(case, "hessian") for case in CASES]
    + [(case_named(n), kind) for n in JACOBIAN_CASES for kind in ("ggn", "fisher")],
    ids=str,
)
def test_values_are_those_of_the_dense_blocks(case: Case, kind: str, tests_made: list[int]) -> None:
    problem = case.build(None if case.depends_on_batches else 5)
    found = eigenpairs_by_layer(problem, 2, both_ends=kind == "hessian", operator=kind, tol=1e-10)
    own = blocks(problem, dense(case.name, kind))
    largest = np.abs(dense(case.name, kind)).max()
    assert list(found) == list(own) == list(problem.space.layers())
    for layer, block in own.items():
        values = np.linalg.eigvalsh(block)[::-1]
        n_top, n_lowest = found[layer].n_top, found[layer].n_lowest
        expected = [*values[:n_top], *values[len(values) - n_lowest :]]
        assert n_top == min(2, len(values))
        assert found[layer].values == pytest.approx(expected, abs=1e-9 * largest)
    assert tests_made == [problem.space.n]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"evidence": "residuals"},
        {"method": "power", "tol": 1e-3},
        {"data_groups": 4, "memory": 3e5, "block": 2},
        {"scale": "elementwise", "split": True},
        {"products": "forward-over-reverse", "data_groups": 0},
        {"products": "differences", "tol": 1e-3},
        {"operator": "ggn", "scale": "filterwise"},
    ],
    ids=str,
)
def test_a_layer_is_measured_as_it_is_by_itself(options: dict[str, object]) -> None:
    problem = case_named("conv_batch_norm_eval").build(5)
    for layer, found in eigenpairs_by_layer(problem, 1, **options).items():
        alone = top_eigenpairs(part_of(problem, layer), 1, **options)
        assert found.values.tobytes() == alone.values.tobytes()
        assert found.vectors.tobytes() == alone.vectors.tobytes()
        assert found.products == alone.products
        assert found.settings == alone.settings
        assert found.provenance.parameters == alone.provenance.parameters
        assert found.cost.hvps == alone.cost.hvps
        assert np.array_equal(found.data_errors, alone.data_errors)


def test_all_pairs_where_a_layer_has_fewer_parameters() -> None:
    found = eigenpairs_by_layer(case_named("mlp").build(5), 20, tol=1e-11)
    whole = dense("mlp", "hessian")
    for layer, part in (("0", slice(0, 16)), ("2", slice(16, 31))):
        expected = np.linalg.eigvalsh(whole[part, part])[::-1][:20]
        assert found[layer].values == pytest.approx(expected, abs=1e-10)
    assert list(found) == ["0", "2"]


def test_scaled_blocks_are_the_blocks_of_the_scaled_hessian() -> None:
    problem = case_named("mlp").build(5)
    t = parameter_scale(problem, "filterwise").numpy()
    own = blocks(problem, t[:, None] * dense("mlp", "hessian") * t)
    found = eigenpairs_by_layer(problem, 2, scale="filterwise", tol=1e-10)
    for layer, block in own.items():
        expected = np.linalg.eigvalsh(block)[::-1][:2]
        assert found[layer].values == pytest.approx(expected, rel=1e-9)


def test_a_layer_that_the_loss_is_linear_in_has_a_block_of_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    problem = Problem(
        model,
        batch_loss=lambda net, batch: (net(batch[0]).sum(), len(batch[0])),
        data=(torch.eye(3, dtype=torch.float64),),
    )
    found = eigenpairs_by_layer(problem, 1, both_ends=True)
    assert not found["2"].values.any()
    assert found["0"].values.any()


# One test of the derivatives


def test_where_a_second_derivative_is_missing_the_layers_above_keep_theirs(
    tests_made: list[int],
) -> None:
    torch.manual_seed(0)
    problem = with_layers(nn.Linear(3, 4), Square(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    found = eigenpairs_by_layer(problem, 1, data_groups=0, tol=1e-4)
    ways = {layer: pairs.products for layer, pairs in found.items()}
    assert ways["0"].startswith("finite differences")
    assert "because of 1 (Square)" in ways["0"]
    assert ways["2"].startswith("double backward")
    assert ways["4"].startswith("double backward")
    assert tests_made == [problem.space.n, *(problem.only(layer).space.n for layer in found)]
    with pytest.raises(LossError, match=r"1 \(Square\), with .*cannot be differentiated twice"):
        eigenpairs_by_layer(problem, 1, products="double-backward")
    assert eigenpairs_by_layer(problem.only("2", "4"), 1, products="double-backward")


def test_a_wrong_second_derivative_in_one_layer_is_found_for_that_layer() -> None:
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), Apply(Hidden), nn.Linear(4, 3)
    found = eigenpairs_by_layer(with_layers(*layers), 1, data_groups=0, tol=1e-4)
    assert {layer: pairs.products.split(",")[0] for layer, pairs in found.items()} == {
        "0": "finite differences",
        "2": "finite differences",
        "4": "double backward",
    }


def test_a_wrong_gradient_refuses_the_layers_that_it_is_of() -> None:
    torch.manual_seed(0)
    problem = with_layers(nn.Linear(3, 4), Apply(WrongSlope), nn.Linear(4, 3))
    with pytest.raises(LossError, match="not the slope of the loss"):
        eigenpairs_by_layer(problem)
    assert list(eigenpairs_by_layer(problem.only("2"))) == ["2"]


def test_the_rounding_of_a_layer_is_that_of_its_part_of_the_product() -> None:
    problem = case_named("conv_batch_norm_eval").build(5, dtype="float32")
    with Evaluator(problem) as evaluator:
        check_hessian(evaluator)
        batch = sample(evaluator)
        with in_type(evaluator, torch.float64):
            point = _selftest._Point(evaluator, batch, torch.float64)
            direction, right = point.direction(), point.product(point.direction())
        point = _selftest._Point(evaluator, batch, torch.float32)
        off = point.product(direction.float()).double() - right
        assert rounding_of_products(evaluator) == pytest.approx(float(off.norm() / right.norm()))
    found = eigenpairs_by_layer(problem, 1, evidence="residuals")  # no noise beside the rounding
    for layer, part in problem.space.layers().items():
        expected = float(off[part].norm() / right[part].norm())
        assert 1e-9 < found[layer].noise == pytest.approx(expected)


def test_a_test_of_all_parameters_is_no_test_of_a_wider_problem() -> None:
    problem = case_named("mlp").build(5)
    eigenpairs_by_layer(problem.only("2"))
    assert problem.derivatives == {}
    eigenpairs_by_layer(problem)
    assert problem.only("2").derivatives == {}


# Study, names and arguments


def test_what_the_study_holds_of_a_layer_is_not_measured_again(tmp_path, monkeypatch) -> None:
    problem = case_named("tied").build(5)
    with Study(tmp_path / "landscape.db") as study:
        alone = top_eigenpairs(part_of(problem, "second"), 1, study=study)
        found = eigenpairs_by_layer(problem, 1, study=study)
        assert found["second"].provenance.created == alone.provenance.created
        assert len(study.entries("eigs")) == 2
        monkeypatch.setattr(Hessian, "matmat", None)
        again = eigenpairs_by_layer(problem, 1, study=study)
    assert {layer: pairs.values.tobytes() for layer, pairs in again.items()} == {
        layer: pairs.values.tobytes() for layer, pairs in found.items()
    }


def test_refuses_memory_that_is_no_number() -> None:
    with pytest.raises(InvalidArgumentError, match="memory"):
        eigenpairs_by_layer(case_named("mlp").build(), memory="much")


def test_layers_whose_names_look_like_patterns_are_their_own():
    """L = ½ Σ cᵢ |pᵢ|², so that the block of each parameter is cᵢ times the identity."""
    sizes, curvatures = {"w[0]": 15, "w0": 3}, {"w[0]": 7.0, "w0": 2.0}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            drawn = {k: torch.ones(n, dtype=torch.float64) for k, n in sizes.items()}
            self.a = nn.ModuleDict({k: nn.ParameterList([v]) for k, v in drawn.items()})

    def loss(model, batch):
        return sum(0.5 * c * (model.a[k][0] ** 2).sum() for k, c in curvatures.items()), 1

    problem = Problem(Net(), batch_loss=loss, data=(torch.ones(1, 1, dtype=torch.float64),))
    found = eigenpairs_by_layer(problem, 1, data_groups=0)
    assert {k: float(pairs.values[0]) for k, pairs in found.items()} == pytest.approx(
        {f"a.{k}": c for k, c in curvatures.items()}
    )
    assert {k: pairs.vectors.shape[1] for k, pairs in found.items()} == {"a.w[0]": 15, "a.w0": 3}
