"""Sharpness along updates and of batches, against closed forms and dense Hessians."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from cases import case_named
from torch import nn

import landscape as ls
from landscape.errors import InvalidArgumentError
from landscape.optim import next_update, preconditioner
from landscape.stability import batch_sharpness, update_sharpness
from landscape.study import Study

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
SMOOTH = ("mlp", "conv_batch_norm_eval", "ignore_index", "class_weights", "tied", "frozen")
N = 9


def regression(scale: float = 1.0, n: int = N) -> ls.Problem:
    """Linear regression, whose loss is quadratic; g and H are known for any examples."""
    torch.manual_seed(3)
    x, y = torch.randn(n, 4, dtype=torch.float64), scale * torch.randn(n, 1, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    return ls.Problem(model, nn.MSELoss(), (x, y))


def parts_of(problem: ls.Problem, rows: object = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and Hessian of the regression on some examples."""
    x, y = (torch.cat(part) for part in zip(*problem.batches, strict=True))
    x, y = x[rows], y[rows]
    w = problem.weights
    return 2 * x.T @ (x @ w - y[:, 0]) / len(x), 2 * x.T @ x / len(x)


# -- along an update -------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("lr", [1e-3, 0.1, 30.0])
def test_on_a_quadratic_critical_is_directional_sharpness(scale: float, lr: float) -> None:
    problem = regression(scale)
    g, h = parts_of(problem)
    found = update_sharpness(problem, lr=lr)
    exact = float(g @ h @ g / (g @ g))
    assert found.directional == pytest.approx(exact, rel=1e-10)
    assert found.critical == pytest.approx(exact, rel=1e-6)
    assert found.low <= found.critical_lr <= found.high <= found.low * (1 + 1 / 16)
    assert found.slope == pytest.approx(float(g @ g), rel=1e-12)
    torch.manual_seed(5)
    u = g + 0.3 * g.norm() * torch.randn(4, dtype=torch.float64) / 2
    along = update_sharpness(problem, -lr * u, lr=lr)
    exact = float(u @ h @ u / (u @ g))
    assert (along.directional, along.critical) == pytest.approx((exact, exact), rel=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_crossing_is_where_the_loss_is_back(name: str) -> None:
    case = case_named(name)
    problem = case.build(5)
    found = update_sharpness(problem, tol=1e-8)
    at, g = problem.weights, case.dense_gradient()
    start = case.dense_loss()
    assert case.dense_loss(at - found.low * g) <= start < case.dense_loss(at - found.high * g)
    assert found.high <= found.low * (1 + 1e-8)
    h = case.dense_hessian()
    assert found.directional == pytest.approx(float(g @ h @ g / (g @ g)), rel=1e-8)
    assert found.loss == pytest.approx(start, rel=1e-12)


def test_the_error_of_the_crossing_is_that_of_paired_losses() -> None:
    """Against the spread over samples of the examples that the crossing is measured on."""
    torch.manual_seed(0)
    x = torch.randn(4000, 3, dtype=torch.float64)
    y = (x.sum(1, keepdim=True) + torch.randn(4000, 1, dtype=torch.float64)).detach()
    model = nn.Linear(3, 1, bias=False).double()
    update = torch.tensor([0.4, 0.3, 0.2], dtype=torch.float64)
    found = [
        update_sharpness(ls.Problem(model, nn.MSELoss(), (x[i : i + 100], y[i : i + 100])), update)
        for i in range(0, 4000, 100)
    ]
    spread = np.std([one.critical_lr for one in found], ddof=1)
    stated = np.mean([one.critical_lr_se for one in found])
    assert stated == pytest.approx(spread, rel=0.35)


def test_the_update_of_an_optimizer_by_parameter_name_and_vector() -> None:
    problem = case_named("mlp").build(5)
    parameters = list(problem.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    for p in parameters:
        p.grad = torch.ones_like(p)
    update = next_update(optimizer)
    names = {id(p): name for name, p in problem.model.named_parameters()}
    by_name = {names[id(p)]: u for p, u in update.items()}
    flat = problem.space.flatten(by_name)
    found = [update_sharpness(problem, one, lr=0.01) for one in (update, by_name, flat)]
    assert found[0].critical_lr == found[1].critical_lr == found[2].critical_lr
    u = -flat.double() / 0.01
    g, h = case_named("mlp").dense_gradient(), case_named("mlp").dense_hessian()
    assert found[0].directional == pytest.approx(float(u @ h @ u / (u @ g)), rel=1e-8)


@pytest.mark.parametrize("name", ["tied", "mlp"])
def test_the_step_of_descent_is_the_same_by_parameter(name: str) -> None:
    """Of tied weights too, which have several names."""
    problem = case_named(name).build(5)
    parameters = list(problem.model.parameters())
    gradient = problem.space.views(case_named(name).dense_gradient())
    by_name = dict(zip(problem.space.names, gradient, strict=True))
    for key, p in problem.model.named_parameters():
        p.grad = by_name[key].reshape(p.shape).to(p)
    update = next_update(torch.optim.SGD(parameters, lr=0.5))
    found, own = update_sharpness(problem, update, lr=0.5), update_sharpness(problem, lr=0.5)
    assert found.critical_lr == pytest.approx(own.critical_lr, rel=1e-9)
    assert found.directional == pytest.approx(own.directional, rel=1e-9)


def test_an_ascending_update_bears_no_step_and_a_slope_without_end_any() -> None:
    problem = regression()
    g, _ = parts_of(problem)
    assert update_sharpness(problem, g).critical_lr == 0.0
    assert update_sharpness(problem, g).critical == math.inf

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w * x

    data = [torch.ones(3, 1, dtype=torch.float64)]
    falling = ls.Problem(Linear(), data=data, batch_loss=lambda model, x: model(x)[:, 0])
    endless = update_sharpness(falling, directional=False)
    assert endless.critical_lr == math.inf
    assert endless.critical == 0.0


def test_a_loss_that_overflows_has_risen() -> None:
    problem = regression()
    problem.loss = ls.Problem(
        problem.model,
        lambda out, y: torch.where((out - y).abs() > 50, torch.nan, (out - y) ** 2)[:, 0],
        next(iter(problem.batches)),
    ).loss
    found = update_sharpness(problem, lr=1e4, directional=False)
    assert 0 < found.critical_lr < 1e4


@pytest.mark.parametrize(
    ("update", "words"),
    [
        (torch.zeros(4), "not zero everywhere"),
        (torch.full((4,), math.nan), "finite"),
        (torch.ones(3), r"shape \(4,\), got \(3,\)"),
        ({"bias": torch.ones(1)}, "names 'bias', which is no parameter"),
        ({"weight": torch.ones(4)}, "the update of weight has another shape"),
    ],
)
def test_bad_updates_are_named(update: object, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        update_sharpness(regression(), update)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="lr must be"):
        update_sharpness(regression(), lr=0.0)


# -- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 8, 9])
def test_batch_sharpness_of_all_batches_is_that_of_enumeration(size: int) -> None:
    problem = regression()
    exact, norms = [], []
    for rows in itertools.combinations(range(N), size):
        g, h = parts_of(problem, list(rows))
        exact.append(float(g @ h @ g / (g @ g)))
        norms.append(float(g @ g))
    found = batch_sharpness(problem, size, n_batches=40)
    assert found.exhaustive
    assert found.value == pytest.approx(np.mean(exact), rel=1e-12)
    full = parts_of(problem)[0]
    if size < N:  # E‖g_B‖² − ‖g‖² = tr Σ/b (n − b)/(n − 1), Σ over the examples
        each = torch.stack([parts_of(problem, [i])[0] for i in range(N)])
        noise = float((each - full).square().sum() / N / (full @ full))
        assert found.noise == pytest.approx(noise, rel=1e-10)


def test_random_batches_cover_the_mean_and_are_drawn_by_the_seed() -> None:
    problem = regression()
    exact = batch_sharpness(problem, 3, n_batches=100).value  # 84 batches
    found = [batch_sharpness(problem, 3, n_batches=60, seed=seed) for seed in range(8)]
    assert not found[0].exhaustive
    covered = [one.low <= exact <= one.high for one in found]
    assert sum(covered) >= 6
    again = batch_sharpness(problem, 3, n_batches=60, seed=0)
    assert again.values.tobytes() == found[0].values.tobytes()
    assert found[0].values.tobytes() != found[1].values.tobytes()


@pytest.mark.parametrize("name", ["mlp", "class_weights", "ignore_index", "per_example"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_batch_of_all_data_is_the_data(name: str, batch_size: int | None) -> None:
    case = case_named(name)
    problem = case.build(batch_size)
    found = batch_sharpness(problem, problem.batches.n_examples)
    g, h = case.dense_gradient(), case.dense_hessian()
    assert found.values == pytest.approx([float(g @ h @ g / (g @ g))], rel=1e-9)
    assert math.isnan(found.noise)


def test_examples_of_unequal_shapes_are_batches_of_one() -> None:
    """Padded differently in the data: the sum over tokens is the same."""
    torch.manual_seed(0)
    tokens = [torch.randint(1, 7, (n,)) for n in (3, 5, 4, 6)]
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double()

    def batch_loss(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        logits = model(batch[:, :-1])
        total = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
        )
        return total, batch[:, 1:].numel()

    problem = ls.Problem(model, data=[t[None] for t in tokens], batch_loss=batch_loss)
    found = batch_sharpness(problem, 4)
    g = ls.evaluation(problem)
    assert found.loss == pytest.approx(g.loss)
    assert len(found.values) == 1
    assert update_sharpness(problem).directional == pytest.approx(found.value, rel=1e-9)


def test_the_noise_scale_of_a_sum_is_that_of_the_mean() -> None:
    mean = regression()
    total = ls.Problem(mean.model, nn.MSELoss(reduction="sum"), next(iter(mean.batches)))
    options = {"n_batches": 40}
    expected = batch_sharpness(mean, 2, **options).noise
    assert batch_sharpness(total, 2, **options).noise == pytest.approx(expected, rel=1e-9)


def test_batches_are_kept_as_they_are_measured(tmp_path, monkeypatch) -> None:
    problem, n = regression(), [0]
    chosen = ls.Problem.with_examples

    def counted(self: ls.Problem, indices: object) -> ls.Problem:
        n[0] += 1
        if n[0] == 5:
            raise KeyboardInterrupt
        return chosen(self, indices)  # type: ignore[arg-type]

    monkeypatch.setattr(ls.Problem, "with_examples", counted)
    with Study(tmp_path / "s.db") as study:
        with pytest.raises(KeyboardInterrupt):
            batch_sharpness(problem, 3, n_batches=10, study=study)
        found = batch_sharpness(problem, 3, n_batches=10, study=study)
        assert n[0] == 5 + 6  # four were kept
        assert found.values.tobytes() == batch_sharpness(problem, 3, n_batches=10).values.tobytes()
        assert found.cost.hvps == 4  # ten batches of three of nine examples
    monkeypatch.setattr(ls.Problem, "with_examples", chosen)
    with Study(tmp_path / "t.db") as study:
        first = batch_sharpness(problem, 3, n_batches=10, study=study)
        update = update_sharpness(problem, study=study)
        assert batch_sharpness(problem, 3, n_batches=10, study=study).values.tobytes() == (
            first.values.tobytes()
        )
        assert update_sharpness(problem, study=study).critical_lr == update.critical_lr
        assert {entry.kind for entry in study.entries()} == {"batch-sharpness", "update-sharpness"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"batch_size": 0}, "batch_size"), ({"batch_size": 10}, "at most"), ({"n_batches": 1}, "n_b")],
)
def test_bad_batches_are_named(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        batch_sharpness(regression(), **{"batch_size": 2, **arguments})


# -- preconditioned --------------------------------------------------------------------------


def test_preconditioned_sharpness_is_that_of_the_dense_matrix() -> None:
    case = case_named("mlp")
    problem = case.build(5)
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.01)
    torch.manual_seed(1)
    for _ in range(2):
        for p in problem.model.parameters():
            p.grad = torch.randn_like(p)
        before = problem.weights
        optimizer.step()
        problem = case.build(5)
    # The moments belong to another model object of the same shapes: taken over by their order.
    scale = torch.cat([p.reshape(-1) for p in preconditioner(optimizer).values()])
    h = case.dense_hessian() + 0.1 * torch.eye(len(before), dtype=torch.float64)
    root = scale.double().rsqrt()
    exact = np.linalg.eigvalsh((root[:, None] * h * root).numpy())[::-1]
    found = ls.top_eigenpairs(problem, 3, preconditioner=scale, weight_decay=0.1, tol=1e-9)
    assert found.values == pytest.approx(exact[:3], rel=1e-9)
    assert found.settings["preconditioner"]
    plain = ls.top_eigenpairs(problem, 1, preconditioner=torch.ones_like(scale), tol=1e-9)
    assert plain.values == pytest.approx(ls.top_eigenpairs(problem, 1, tol=1e-9).values, rel=1e-9)
    with pytest.raises(InvalidArgumentError, match="preconditioner must be"):
        ls.top_eigenpairs(problem, preconditioner=-scale)
    assert found.operator == "preconditioned Hessian"
    with pytest.raises(InvalidArgumentError, match="of scale preconditioner"):
        ls.overlap(found, ls.top_eigenpairs(problem, 3))
    with pytest.raises(InvalidArgumentError, match="goes with a preconditioner"):
        ls.top_eigenpairs(problem, weight_decay=0.1)
    with pytest.raises(InvalidArgumentError, match="leave out the preconditioner"):
        ls.top_eigenpairs(problem, preconditioner=scale, split=True)
    with pytest.raises(InvalidArgumentError, match="either scale or preconditioner"):
        ls.top_eigenpairs(problem, preconditioner=scale, scale="elementwise")


# -- alignment -------------------------------------------------------------------------------


def test_the_share_of_the_gradient_in_the_top_eigenvectors() -> None:
    case = case_named("mlp")
    problem = case.build(5)
    pairs = ls.top_eigenpairs(problem, 4, tol=1e-10)
    gradient, hessian = case.dense_gradient().numpy(), case.dense_hessian().numpy()
    vectors = np.linalg.eigh((hessian + hessian.T) / 2)[1][:, ::-1][:, :4]
    exact = np.cumsum((vectors.T @ gradient) ** 2) / (gradient @ gradient)
    assert ls.gradient_alignment(problem, pairs) == pytest.approx(exact, rel=1e-6)
    ones = torch.ones(problem.space.n, dtype=torch.float64)
    other = ls.top_eigenpairs(problem, 2, preconditioner=ones)
    with pytest.raises(InvalidArgumentError, match="scale preconditioner; expected those of"):
        ls.gradient_alignment(problem, other)
