"""Batches cut to fit in memory, several vectors at once, forms by group, and the noise test."""

from __future__ import annotations

import gc
import weakref
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn

from landscape.curvature._prepared import noise_floor
from landscape.errors import LossError, NonFiniteError, ProblemError
from landscape.evaluate import DoubleBackward, Evaluator
from landscape.linalg import SymmetricOperator
from landscape.operators import CURVATURES, Hessian, parameter_scale, pieces
from landscape.problem import Problem

SIZE = 101


def wide(loss: Any = None, **options: Any) -> Problem:
    """One batch of 101 examples, large enough to be cut."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, 6, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    loss = loss or nn.CrossEntropyLoss()
    return Problem(model, loss, (x, torch.arange(SIZE) % 3), **options)


def vectors(problem: Problem, n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, problem.space.n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", CURVATURES)
@pytest.mark.parametrize("share", [0.6, 0.4, 0.25])
def test_a_batch_whose_graph_does_not_fit_is_cut(kind: str, share: float) -> None:
    problem = wide()
    with Evaluator(problem) as evaluator:
        operator = CURVATURES[kind]
        (piece,) = pieces(problem, None)
        whole = operator(evaluator)._build(piece).n_bytes
        limit = int(share * whole)
        cut = operator(evaluator, graph_bytes=4 * limit)  # a quarter is for one part
        expected = operator(evaluator).matmat(vectors(problem))
        assert torch.allclose(cut.matmat(vectors(problem)), expected, rtol=1e-12, atol=1e-14)
        size = operator(evaluator).size_that_fits(limit)
        parts = list(pieces(problem, size))
        assert sum(problem.batching.size(part.batch) for part in parts) == SIZE
        sizes = [problem.batching.size(part.batch) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        # Measured, not estimated: the graph of a part is within the limit.
        assert all(operator(evaluator)._build(part).n_bytes <= limit for part in parts[:2])
        assert f"1 batch cut into {len(parts)} parts" in cut.describe()


def test_a_loss_over_the_whole_batch_is_never_cut() -> None:
    def contrastive(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        output = model(batch[0])
        total = (output - output.mean(dim=0)).square().sum()
        return total, torch.tensor(float(len(output)))

    x = wide().batches
    problem = Problem(wide().model, batch_loss=contrastive, data=list(x))
    with Evaluator(problem) as evaluator:
        assert not evaluator.divisible
        small = Hessian(evaluator, graph_bytes=10_000)
        expected = Hessian(evaluator).matmat(vectors(problem))
        assert torch.allclose(small.matmat(vectors(problem)), expected, rtol=1e-12)
        assert "cut" not in small.describe()
        quadratic_forms, _ = small.quadratic_forms(vectors(problem), n_groups=8)
        assert len(quadratic_forms) == 1


def test_a_weight_that_is_no_sum_is_never_cut() -> None:
    def constant(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")
        return losses, torch.tensor(1.0)

    problem = Problem(wide().model, batch_loss=constant, data=list(wide().batches))
    with Evaluator(problem) as evaluator:
        assert not evaluator.divisible
        expected = Hessian(evaluator).matmat(vectors(problem))
        found = Hessian(evaluator, graph_bytes=10_000).matmat(vectors(problem))
    assert torch.allclose(found, expected, rtol=1e-12)


def test_batches_are_not_cut_in_train_mode() -> None:
    with Evaluator(wide(mode="train")) as evaluator:
        assert not evaluator.divisible
        assert Hessian(evaluator).size_that_fits(1000) is None


@pytest.mark.parametrize("kind", CURVATURES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_several_vectors_at_once_and_forms_by_group(case: Case, kind: str) -> None:
    if kind != "hessian" and (case.name == "sum_and_weight" or case.depends_on_batches):
        pytest.skip("no loss of the single example, or of the output")
    problem = case.build(None if case.depends_on_batches else 4)
    with Evaluator(problem) as evaluator:
        v = vectors(problem)
        operator = CURVATURES[kind](evaluator)
        expected = torch.stack([CURVATURES[kind](evaluator).matvec(row) for row in v])
        before = evaluator.passes["hvps"]
        assert torch.allclose(operator.matmat(v), expected, rtol=1e-12, atol=1e-13)
        assert evaluator.passes["hvps"] == before + 3
        quadratic_forms, weights = operator.quadratic_forms(v, n_groups=8)
    assert quadratic_forms.shape == (len(weights), 3)
    is_sum = case.name == "plain_sum"
    found = quadratic_forms.sum(axis=0) / (1.0 if is_sum else weights.sum())
    assert found == pytest.approx((v * expected).sum(dim=1).numpy(), rel=1e-10, abs=1e-12)
    if case.name == "mlp":
        assert len(quadratic_forms) >= 4


def test_groups_are_as_fine_as_asked() -> None:
    problem = wide()
    with Evaluator(problem) as evaluator:
        quadratic_forms, weights = Hessian(evaluator).quadratic_forms(vectors(problem), n_groups=10)
    assert len(quadratic_forms) == 10
    assert sorted(set(weights.tolist())) == [10.0, 11.0]


# What cannot be measured


def test_a_product_that_is_not_finite_names_the_batch() -> None:
    def root(output: Tensor, target: Tensor) -> Tensor:
        return output.pow(1.5).sum(dim=1)  # at zero: a slope, and no second derivative

    x = torch.ones(8, 2)
    x[5] = 0.0
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    with Evaluator(Problem(model, root, (x, x), batch_size=2)) as evaluator:
        with pytest.raises(NonFiniteError, match=r"batch 2 of the train data is not finite"):
            Hessian(evaluator).matvec(torch.ones(2))


class Hidden(torch.autograd.Function):
    """x³, its slope computed where autograd does not see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return slope * 3 * x**2


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Hidden.apply(x)


def test_a_second_derivative_that_is_hidden_is_found_by_differences() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), Cube()).double()
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 1.0]], dtype=torch.float64)
    with Evaluator(Problem(model, lambda o, t: o.sum(dim=1), (x, x))) as evaluator:
        operator = Hessian(evaluator)
        w = evaluator.origin
        expected = (6 * (x @ w))[:, None, None] * x[:, :, None] * x[:, None, :]
        found = operator.matvec(torch.ones(2, dtype=torch.float64))
        assert torch.allclose(found, expected.mean(dim=0).sum(dim=1), rtol=1e-6)
        assert "finite differences" in operator.describe()
        with pytest.raises(LossError, match=r"1 \(Cube\).*hides how"):
            Hessian(evaluator, products="double-backward").matvec(w)


def test_a_backward_pass_that_hides_a_part_is_found_by_differences() -> None:
    model = nn.Sequential(nn.Linear(6, 4), Cube(), nn.Linear(4, 3)).double()
    with Evaluator(Problem(model, nn.CrossEntropyLoss(), list(wide().batches))) as evaluator:
        v = vectors(evaluator.problem)[0]
        up, down = (evaluator.gradient(evaluator.origin + s * 1e-5 * v)[1] for s in (1, -1))
        operator = Hessian(evaluator)
        assert torch.allclose(operator.matvec(v), (up - down) / 2e-5, rtol=1e-5, atol=1e-7)
        assert "hides how its backward pass" in operator.describe()
        with pytest.raises(LossError, match="hides how its backward pass"):
            Hessian(evaluator, products="double-backward").matvec(v)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SquaredOnce.apply(x)


class SquaredOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


def test_the_layer_without_second_derivative_is_named() -> None:
    model = nn.Sequential(nn.Linear(6, 4), Square(), nn.Linear(4, 3)).double()
    data = list(wide().batches)
    with Evaluator(Problem(model, nn.CrossEntropyLoss(), data)) as evaluator:
        v = vectors(evaluator.problem)[0]
        with pytest.raises(
            LossError, match=r"1 \(Square\), with .*SquaredOnce: the loss cannot be .* twice"
        ):
            Hessian(evaluator, products="double-backward").matvec(v)
        operator = Hessian(evaluator)
        up, down = (evaluator.gradient(evaluator.origin + s * 1e-5 * v)[1] for s in (1, -1))
        assert torch.allclose(operator.matvec(v), (up - down) / 2e-5, rtol=1e-5, atol=1e-8)
        assert "because of 1 (Square)" in operator.describe()


def test_looking_for_the_layer_leaves_the_model_alone() -> None:
    tanh = nn.Tanh()  # used twice, on inputs of two widths
    model = nn.Sequential(
        nn.Linear(6, 8), tanh, nn.BatchNorm1d(8), Square(), nn.Linear(8, 7), tanh, nn.Linear(7, 3)
    )
    (batch,) = wide().batches
    problem = Problem(
        model, nn.CrossEntropyLoss(), (batch[0].float(), batch[1]), mode="train", dtype="float64"
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Evaluator(problem) as evaluator:
        operator = Hessian(evaluator)
        operator.matvec(vectors(problem)[0])
        assert "because of 3 (Square)" in operator.describe()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_differences_that_disagree_are_refused() -> None:
    # A staircase in the slope: no step of differences is right.
    class Steps(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return slope * (x + 1e-4 * torch.sin(1e6 * x))

    class Rough(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Steps.apply(x)

    model = nn.Sequential(nn.Linear(6, 4), Rough(), nn.Linear(4, 3)).double()
    with Evaluator(Problem(model, nn.CrossEntropyLoss(), list(wide().batches))) as evaluator:
        with pytest.raises(
            LossError, match=r"not the slope of the loss.*1 \(Rough\).*Function Steps"
        ):
            Hessian(evaluator)


# Noise


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_noise_of_an_honest_problem_is_rounding(case: Case, dtype: str) -> None:
    problem = case.build(None if case.depends_on_batches else 4, dtype)
    with Evaluator(problem) as evaluator:
        noise = noise_floor(Hessian(evaluator), seed=0)
        with Hessian(evaluator).on_sample() as sample:
            assert noise_floor(sample, seed=0).floor <= 100 * torch.finfo(problem.dtype).eps
    assert noise.repeat == 0.0
    assert noise.floor <= 100 * torch.finfo(problem.dtype).eps


def test_asymmetry_is_measured() -> None:
    a = torch.diag(torch.linspace(1, 2, 50, dtype=torch.float64))
    a[0, 1] += 0.3
    a[5, 2] -= 0.4
    operator = SymmetricOperator(lambda v: a @ v, 50, dtype=torch.float64, device="cpu")
    noise = noise_floor(operator, seed=0)
    assert noise.asymmetry > 1e-3


def test_a_problem_that_is_not_deterministic_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    calls = [0]

    def noisy(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1  # honest while the loss is checked
        shake = torch.rand(len(output), generator=generator) if calls[0] > 3 else 0.0
        return nn.functional.cross_entropy(output, target, reduction="none") * (1 + shake)

    with Evaluator(wide(noisy)) as evaluator:
        with pytest.raises(ProblemError, match=r"two products with the same vector differ by .*%"):
            noise_floor(Hessian(evaluator, graph_bytes=0), seed=0)


def test_noise_is_measured_where_the_loss_has_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 6, generator=generator), torch.arange(64) % 3
    y[:16] = -1
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    with Evaluator(Problem(model, loss, (x, y), batch_size=64)) as evaluator:
        with Hessian(evaluator).on_sample() as sample:
            assert noise_floor(sample, seed=0).asymmetry > 0.0


# Scales


def test_scales_of_the_parameters() -> None:
    problem = wide()
    named = problem.space.unflatten(parameter_scale(problem, "filterwise"))
    weight = dict(problem.model.named_parameters())["0.weight"].detach()
    assert torch.allclose(named["0.weight"], weight.norm(dim=1, keepdim=True).expand_as(weight))
    elementwise = parameter_scale(problem, "elementwise")
    assert torch.equal(elementwise, problem.weights.abs())
    assert torch.equal(named["0.bias"], problem.space.unflatten(elementwise)["0.bias"])


@pytest.mark.parametrize("kind", ["elementwise", "filterwise"])
def test_rescaling_the_layers_of_a_relu_network_leaves_the_scaled_spectrum(kind: str) -> None:
    spectra, plain = [], []
    for factor in (1.0, 7.0):
        problem = wide()
        problem.model[1] = nn.ReLU()
        with torch.no_grad():
            problem.model[0].weight.mul_(factor)
            problem.model[0].bias.mul_(factor)
            problem.model[2].weight.div_(factor)
        with Evaluator(problem) as evaluator:
            operator = Hessian(evaluator)
            scaled = operator.reparametrised(parameter_scale(problem, kind))
            spectra.append(np.linalg.eigvalsh(scaled.dense().numpy()))
            plain.append(np.linalg.eigvalsh(operator.dense().numpy()))
    assert spectra[0] == pytest.approx(spectra[1], abs=1e-10)
    assert abs(plain[0] - plain[1]).max() > 0.1


def test_graphs_of_a_piece_report_their_bytes() -> None:
    with Evaluator(wide()) as evaluator:
        (piece,) = pieces(evaluator.problem, None)
        assert DoubleBackward(evaluator, evaluator.origin, piece.batch, 0).n_bytes > SIZE * 20 * 8


@pytest.mark.parametrize("way", ["forward-over-reverse", "differences"])
def test_forms_by_group_in_every_way(way: str) -> None:
    problem = wide()
    with Evaluator(problem) as evaluator:
        found, weights = Hessian(evaluator, products=way).quadratic_forms(
            vectors(problem), n_groups=5
        )
        expected, _ = Hessian(evaluator).quadratic_forms(vectors(problem), n_groups=5)
    assert found == pytest.approx(expected, rel=1e-5)
    assert weights.sum() == SIZE


def test_a_graph_keeps_no_gradient() -> None:
    """What is differentiated again is the graph; the gradients are as large as the weights."""
    torch.manual_seed(0)
    model = nn.Linear(40, 20).double()
    data = torch.randn(4, 40, dtype=torch.float64), torch.randn(4, 20, dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), data)
    alive: list[weakref.ref[Tensor]] = []
    differentiated = torch.autograd.grad

    def noting(*args: Any, **kwargs: Any) -> Any:
        found = differentiated(*args, **kwargs)
        alive.extend(weakref.ref(g.untyped_storage()) for g in found)
        return found

    with Evaluator(problem) as evaluator, mock.patch("torch.autograd.grad", noting):
        piece = next(pieces(problem, None))
        product = DoubleBackward(evaluator, evaluator.origin, piece.batch, 0)
        gc.collect()
        assert alive
        assert all(storage() is None for storage in alive)
        v = torch.randn(problem.space.n, dtype=torch.float64)
        found = torch.cat([t.flatten() for t in product.times(v, retain=False) if t is not None])
        here, there = (evaluator.gradient(at)[1] for at in (None, evaluator.origin + v))
    assert torch.allclose(found / product.weight, there - here, rtol=1e-10)
