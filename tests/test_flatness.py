"""The measures of flatness against closed forms, dense Hessians and gradients by hand."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from cases import CASES, Case, Parts, case_named
from oracles import Quadratic, quadratic_problem, spectrum
from torch import nn

from landscape.errors import InvalidArgumentError, NonFiniteError
from landscape.evaluate import Evaluator
from landscape.export.writing import table_bytes
from landscape.linalg import SymmetricOperator
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.results import Flatness
from landscape.sharpness._flatness import FLOOR, flatness
from landscape.sharpness._perturbations import Perturbations
from landscape.sharpness._relative_flatness import neuron_blocks, relative_flatness
from landscape.study import Study

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
FEW = {"n_samples": 4, "max_products": 200}

HESSIAN = spectrum(np.array([7.0, 2.0, 1.0, 0.5]), 0)
GRADIENT = np.array([0.3, -1.0, 0.2, 0.5])
AT = np.array([1.0, -2.0, 0.5, 0.1])


def bowl(*, gradient=GRADIENT, **options) -> Problem:
    return quadratic_problem(Quadratic(HESSIAN, gradient, 0.7), at=AT, **options)


def by_pairs(weight: torch.Tensor, block: torch.Tensor, groups: int = 1) -> float:
    """Σ ⟨wₛ, wₛ'⟩ tr(Hₛₛ') by the definition, over the pairs of neurons of each group."""
    d, m = len(weight), weight[0].numel()
    rows, blocks = weight.reshape(d, m), block.reshape(d, m, d, m)
    return sum(
        float(rows[s] @ rows[t]) * float(blocks[s, :, t].trace())
        for s in range(d)
        for t in range(d)
        if s // (d // groups) == t // (d // groups)
    )


def grouped() -> Case:
    def make() -> Parts:
        model = nn.Sequential(
            nn.Conv1d(4, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
        )
        x, y = torch.randn(13, 4, 3, dtype=torch.float64), torch.randint(3, (13,))
        loss = nn.CrossEntropyLoss()
        return Parts(model, (x, y), lambda net, a, b: loss(net(a), b), loss=loss)

    return Case("grouped", make)


def relu_case(factor: float = 1.0) -> Case:
    """A network whose first layer is rescaled against its second: the same function."""

    def make() -> Parts:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
        with torch.no_grad():
            model[0].weight *= factor
            model[0].bias *= factor
            model[2].weight /= factor
        x, y = torch.randn(13, 3, dtype=torch.float64), torch.randint(3, (13,))
        loss = nn.CrossEntropyLoss()
        return Parts(model, (x, y), lambda net, a, b: loss(net(a), b), loss=loss)

    return Case("relu", make)


# Fisher-Rao norm


@pytest.mark.parametrize(
    "name", ["mlp", "regression", "class_weights", "ignore_index", "plain_sum", "sum_and_weight"]
)
@pytest.mark.parametrize("size", [None, 4])
def test_the_fisher_rao_norm_by_gradients_of_each_example(name, size):
    case = case_named(name)
    if name == "sum_and_weight":
        assert "per-example" in flatness(case.build(size), **FEW).left_out["fisher_rao"]
        return
    problem = case.build(size)
    w = problem.weights
    found = flatness(problem, **FEW)
    assert found.fisher_rao == pytest.approx(float(w @ case.dense_fisher() @ w), rel=1e-10)
    assert found.fisher_rao_se > 0


def test_the_error_of_the_fisher_rao_norm_is_that_over_the_examples():
    case = case_named("mlp")
    parts = case.parts()
    w = torch.cat([p.detach().reshape(-1) for p in parts.model.parameters()])
    squares = []
    for i in range(13):
        parts.model.zero_grad()
        parts.reference(parts.model, *parts.example(i)).backward()
        g = torch.cat([p.grad.reshape(-1) for p in parts.model.parameters()])
        squares.append(float(w @ g) ** 2)
    found = flatness(case.build(), **FEW)
    assert found.fisher_rao == pytest.approx(np.mean(squares), rel=1e-10)
    assert found.fisher_rao_se == pytest.approx(np.std(squares, ddof=1) / math.sqrt(13), rel=1e-9)


# Relative flatness


@pytest.mark.parametrize(
    "case",
    [*(case_named(n) for n in ("mlp", "conv_batch_norm_eval", "regression")), grouped()],
    ids=str,
)
def test_relative_flatness_by_the_blocks_of_the_dense_hessian(case):
    problem, dense = case.build(5), case.dense_hessian()
    found = flatness(problem, n_samples=2, max_products=200)
    weights = problem.space.unflatten(problem.weights)
    expected, start = {}, 0
    for name, size in zip(problem.space.names, problem.space.sizes, strict=True):
        part = slice(start, start + size)
        start += size
        layer = problem.model.get_submodule(name.rpartition(".")[0])
        if name.endswith("weight") and not isinstance(layer, nn.BatchNorm2d):
            groups = getattr(layer, "groups", 1)
            expected[name.removesuffix(".weight")] = by_pairs(
                weights[name], dense[part, part], groups
            )
    assert found.layers == tuple(expected)
    assert found.relative_flatness == pytest.approx(list(expected.values()), rel=1e-9)
    assert (found.relative_flatness_se == 0).all()


@pytest.mark.parametrize("seeds", [200])
def test_intervals_of_the_relative_flatness_cover_it(seeds):
    problem = relu_case().build()
    with Evaluator(problem) as evaluator:
        dense = Hessian(evaluator).dense()
    operator = SymmetricOperator(lambda v: dense @ v, len(dense), dtype=torch.float64, device="cpu")
    blocks = neuron_blocks(problem)
    n = sum(block.size for block in blocks)
    exact = relative_flatness(operator, blocks, relative_error=0.1, max_products=n, seed=0)
    found = [
        relative_flatness(operator, blocks, relative_error=1e-9, max_products=16, seed=seed)
        for seed in range(seeds)
    ]
    covered = [(f.low <= exact.value) & (exact.value <= f.high) for f in found]
    assert (np.mean(covered, axis=0) >= 0.90).all()
    assert (np.mean(covered, axis=0) <= 0.99).all()
    z = np.array([(f.value - exact.value) / f.standard_error for f in found])
    assert (np.abs(z.mean(axis=0)) < 4 / math.sqrt(seeds) * np.maximum(1.0, z.std(axis=0))).all()


def test_factors_have_few_columns_and_the_right_products():
    for problem in (relu_case().build(), grouped().build()):
        tensors = problem.space.unflatten(problem.weights)
        for block in neuron_blocks(problem):
            groups, d, r = block.factor.shape
            rows = tensors[block.name].reshape(groups, d, -1)
            assert r == min(d, rows.shape[-1])
            torch.testing.assert_close(
                block.factor @ block.factor.mT, rows @ rows.mT, rtol=1e-12, atol=1e-14
            )


def test_what_rescaling_layers_changes():
    one, other = (flatness(relu_case(f).build(), rise=0.01, **FEW) for f in (1.0, 7.0))
    assert other.loss == pytest.approx(one.loss, rel=1e-12)
    assert other.fisher_rao == pytest.approx(one.fisher_rao, rel=1e-9)
    assert other.relative_flatness == pytest.approx(one.relative_flatness, rel=1e-9)
    assert {"fisher_rao", "relative_flatness"} == Flatness.INVARIANT
    ours, theirs = one.columns(), other.columns()
    for name in ("gradient_norm", "gap", "pac_bayes", "pac_bayes_magnitude"):
        changed = abs(theirs[name][0] / ours[name][0] - 1)
        assert changed > (1e-3 if name == "pac_bayes_magnitude" else 0.1), name
    marked = [label for label, _ in one.rows() if label.endswith("*")]
    assert marked == [
        "Fisher-Rao norm, squared *",
        "relative flatness 0 *",
        "relative flatness 2 *",
        "*",
    ]


# Surrogate gap


def test_the_surrogate_gap_of_a_quadratic():
    found, rho, size = flatness(bowl(), rho=0.3, **FEW), 0.3, np.linalg.norm(GRADIENT)
    unit = GRADIENT / size
    assert found.gradient_norm == pytest.approx(size, rel=1e-12)
    assert found.gap == pytest.approx(rho * size + 0.5 * rho**2 * unit @ HESSIAN @ unit, rel=1e-12)
    assert found.gap_slope == pytest.approx(rho * size / found.gap, rel=1e-12)


def test_near_a_minimum_the_gap_sees_the_top_eigenvalue():
    _, vectors = np.linalg.eigh(HESSIAN)
    found = flatness(bowl(gradient=1e-9 * vectors[:, -1]), rho=0.05, **FEW)
    assert found.gap_eigenvalue == pytest.approx(7.0, rel=1e-6)
    assert found.gap_slope < 1e-6


def test_at_a_stationary_point_there_is_no_gap():
    found = flatness(bowl(gradient=0 * GRADIENT), **FEW)
    assert found.gradient_norm == 0.0
    assert math.isnan(found.gap)
    assert found.left_out["gap"] == "the gradient is zero, and has no direction"
    rows = dict(found.rows())
    assert rows["surrogate gap h (ρ = 0.05)"] == rows["2h/ρ²"]
    assert rows["2h/ρ²"].startswith("not measured: the gradient is zero")


def test_the_error_of_the_gap_is_that_of_paired_examples():
    case, rho = case_named("mlp"), 0.1
    found = flatness(case.build(), rho=rho, **FEW)
    parts = case.parts()
    before = nn.functional.cross_entropy(
        parts.model(parts.data[0]), parts.data[1], reduction="none"
    )
    before.mean().backward()
    size = math.sqrt(sum(float(p.grad.square().sum()) for p in parts.model.parameters()))
    with torch.no_grad():
        for p in parts.model.parameters():
            p += rho * p.grad / size
        after = nn.functional.cross_entropy(
            parts.model(parts.data[0]), parts.data[1], reduction="none"
        )
    rises = (after - before).detach().numpy()
    assert found.gap == pytest.approx(rises.mean(), rel=1e-9)
    assert found.gap_se == pytest.approx(rises.std(ddof=1) / math.sqrt(13), rel=1e-9)


# The noise that the weights bear


@pytest.mark.parametrize("magnitude", [False, True])
def test_the_noise_that_a_quadratic_bears(magnitude):
    rise, n = 0.2, 120
    found = flatness(bowl(), rise=rise, n_samples=n, max_products=2)
    t = np.abs(AT) + FLOOR if magnitude else np.ones(4)
    draws = Perturbations(torch.from_numpy(t), "gaussian", seed=0)
    curved = np.array([0.5 * z @ HESSIAN @ z for z in (draws.draw(k).numpy() for k in range(n))])
    name = "pac_bayes_magnitude" if magnitude else "pac_bayes"
    value, error = getattr(found, name)
    sigma = found.sigma_magnitude if magnitude else found.sigma
    assert sigma == pytest.approx(math.sqrt(rise / curved.mean()), rel=2e-4)
    expected = 0.5 * np.trace(t[:, None] * HESSIAN * t) / rise
    assert abs(value - expected) < 4 * error
    relative = curved.std(ddof=1) / math.sqrt(n) / curved.mean()
    assert error / value == pytest.approx(relative, rel=0.03)  # the slope is of a finite step


def test_a_loss_that_never_rises_so_far():
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def bounded(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.sigmoid(model(batch[0])).mean(dim=1)

    found = flatness(Problem(model, batch_loss=bounded, data=(x, x)), rise=2.0, **FEW)
    assert math.isnan(found.sigma)
    assert found.left_out["pac_bayes"].startswith("the average rise stays below 2 as far as σ =")
    assert dict(found.rows())["1/σ² (rise of 2)"].startswith("not measured: the average rise")


def test_a_loss_that_overflows_far_away_bears_less_noise():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.0)
    x = torch.ones(1, 1, dtype=torch.float64)

    def steep(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.cosh(1e4 * model(batch[0])).mean(dim=1)

    found = flatness(Problem(model, batch_loss=steep, data=(x, x)), rise=0.5, n_samples=50)
    z = np.array(
        [float(Perturbations(torch.ones(1), "gaussian", seed=0).draw(k)) for k in range(50)]
    )
    assert np.cosh(1e4 * found.sigma * z).mean() - 1 == pytest.approx(0.5, rel=1e-3)


# As a whole


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_can_be_measured(case):
    problem = case.build(None if case.depends_on_batches else 5)
    before = copy.deepcopy(problem.model.state_dict())
    found = flatness(problem, n_samples=2, max_products=3)
    no_terms = case.name == "sum_and_weight"
    assert set(found.left_out) == ({"fisher_rao"} if no_terms else set())
    gradient = case.dense_gradient()
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-9)
    for name, values in problem.model.state_dict().items():
        assert torch.equal(values, before[name])


def test_without_a_layer_there_is_no_relative_flatness():
    found = flatness(case_named("mlp").build().only("*.bias"), **FEW)
    assert found.layers == ()
    assert found.left_out["relative_flatness"].startswith("no linear or convolutional layer")
    assert dict(found.rows())["relative flatness *"].startswith("not measured: no linear")


def test_the_measures_are_kept_in_the_study(tmp_path):
    problem = case_named("mlp").build()
    with Study(tmp_path / "s.db") as study:
        first = flatness(problem, study=study, **FEW)
        again = flatness(problem, study=study, **FEW)
    assert repr(again.columns()) == repr(first.columns())  # NaN is not equal to itself
    assert again.cost == first.cost
    assert again.left_out == first.left_out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho must be a finite number above zero, got 0.0"),
        ({"rise": math.nan}, "rise must be a finite number above zero, got nan"),
        ({"relative_error": -1.0}, "relative_error must be a finite number above zero"),
        ({"n_samples": 1}, "n_samples must be a whole number of at least 2, got 1"),
        ({"max_products": 1.5}, "max_products must be a whole number of at least 2, got 1.5"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        flatness(bowl(), **options)


def test_a_checkpoint_without_a_finite_loss_is_refused():
    model = nn.Linear(2, 2).double()
    nn.init.constant_(model.weight, math.inf)
    x = torch.ones(3, 2, dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), (x, x))
    with pytest.raises(NonFiniteError, match="nothing can be measured from there"):
        flatness(problem)


def test_the_verb_prints_every_measure(here, run):
    args = ("flatness", "a.pt", "b.pt", "--problem", "task.py", "--samples", "2")
    ran = run(*args)
    assert ran.code == 0
    for words in ("Fisher-Rao norm, squared *", "relative flatness 2 *", "2h/ρ²", "1/σ²"):
        assert words in ran.out
    shown = run("show", "a", "b").out
    assert shown.count("does not change when layers of a ReLU network are rescaled") == 2
    records = json.loads(run(*args, "--json").out)
    assert [r["kind"] for r in records] == ["flatness", "flatness"]
    assert records[0]["layers"] == ["0", "2"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [(("--rise", "0"), 2, "rise must be"), (("--dry-run",), 0, "")],
)
def test_the_verb_refuses_what_cannot_be_measured(here, run, args, code, message):
    ran = run("flatness", "a.pt", "--problem", "task.py", *args)
    assert ran.code == code
    assert message in ran.err


def test_a_table_of_the_measures_has_their_errors():
    found = flatness(bowl(), **FEW)
    header, *rows = table_bytes(found).decode().splitlines()
    assert header == "measure,value,standard_error"
    listed = {name: (value, error) for name, value, error in (row.split(",") for row in rows)}
    assert list(listed) == list(found.columns())
    assert float(listed["gap"][0]) == found.gap
    assert float(listed["pac_bayes"][1]) == found.pac_bayes[1]
