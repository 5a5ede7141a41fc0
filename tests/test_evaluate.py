from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, N_EXAMPLES, Case, case_named, cut, equal_batches, in_batches, partitions
from hypothesis import given, settings
from torch import Tensor, nn

from landscape.errors import (
    DataError,
    InvalidArgumentError,
    NonFiniteError,
    ProblemError,
)
from landscape.evaluate import Evaluator, require_finite
from landscape.operators import Hessian
from landscape.problem import Problem

N = N_EXAMPLES


def elsewhere(evaluator: Evaluator) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shift = torch.randn(len(evaluator.origin), generator=generator, dtype=torch.float64)
    return evaluator.origin + 0.3 * shift


# Against torch.func on the whole data


@pytest.mark.parametrize(("case", "size"), in_batches(None, 1, 4))
def test_loss_and_gradient_are_those_of_the_whole_data(case: Case, size: int | None) -> None:
    with Evaluator(case.build(size)) as evaluator:
        for at in (None, elsewhere(evaluator)):
            value, gradient = evaluator.gradient(at)
            scale = float(case.dense_gradient(at).abs().max())
            assert evaluator.loss(at).value == pytest.approx(case.dense_loss(at), rel=1e-12)
            assert value.value == pytest.approx(case.dense_loss(at), rel=1e-12)
            assert (gradient - case.dense_gradient(at)).abs().max() <= 1e-12 * max(scale, 1)
            assert gradient.dtype == torch.float64
            assert not gradient.requires_grad


@pytest.mark.parametrize("case", [c for c in CASES if not c.depends_on_batches], ids=str)
@settings(max_examples=4)
@given(sizes=partitions())
def test_any_batching_gives_the_same(case: Case, sizes: list[int]) -> None:
    found = []
    for problem in (case.build(), case.build(partition=sizes)):
        with Evaluator(problem) as evaluator:
            found.append(evaluator.gradient())
    (whole, gradient), (parts, same) = found
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.se == pytest.approx(whole.se, rel=1e-10, nan_ok=True)
    assert torch.allclose(same, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_float64_to_its_rounding(case: Case) -> None:
    problem = case.build(None if case.depends_on_batches else 4, "float32")
    with Evaluator(problem) as evaluator:
        value, gradient = evaluator.gradient()
    assert value.value == pytest.approx(case.dense_loss(), rel=1e-5)
    assert gradient.dtype == torch.float32
    assert torch.allclose(gradient.double(), case.dense_gradient(), rtol=1e-4, atol=1e-5)


def test_many_small_batches_in_float32_add_up_without_loss() -> None:
    # In float32 the sum of the gradients of 500 batches would be off by more than 1e-6.
    x, y = torch.ones(500, 1), torch.full((500, 1), 0.1)
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.0)
        model.bias.fill_(0.0)
    with Evaluator(Problem(model, nn.MSELoss(), (x, y), batch_size=1)) as evaluator:
        value, gradient = evaluator.gradient()
    assert value.value == pytest.approx(float(np.float32(0.1)) ** 2, rel=1e-7)
    assert gradient.tolist() == pytest.approx([-2 * float(np.float32(0.1))] * 2, rel=1e-7)


def test_gradient_by_finite_differences() -> None:
    case = case_named("batch_norm_train")  # the oracle of this case is written by hand
    with Evaluator(case.build()) as evaluator:
        gradient = evaluator.gradient()[1]
        for i in range(len(gradient)):
            step = 1e-5 * F.one_hot(torch.tensor(i), len(gradient))
            rise = evaluator.loss(evaluator.origin + step).value
            fall = evaluator.loss(evaluator.origin - step).value
            assert (rise - fall) / 2e-5 == pytest.approx(float(gradient[i]), abs=1e-8)


def test_metrics_are_means_over_the_examples() -> None:
    parts = case_named("mlp").parts()
    metrics = {"accuracy": lambda o, t: o.argmax(1) == t, "norm": lambda o, t: o.norm(dim=1).mean()}
    x, y = parts.data
    problem = Problem(parts.model, parts.loss, cut((x, y), equal_batches(4)), metrics=metrics)
    with Evaluator(problem) as evaluator:
        found = evaluator.loss().metrics
    output = parts.model(x).detach()
    assert found["accuracy"] == pytest.approx(float((output.argmax(1) == y).double().mean()))
    assert found["norm"] == pytest.approx(float(output.norm(dim=1).mean()), rel=1e-12)


# What the weights are


def test_the_origin_is_read_when_the_evaluator_is_made() -> None:
    problem = case_named("mlp").build()
    with Evaluator(problem) as evaluator:
        first = evaluator.loss().value
    with torch.no_grad():
        problem.model[0].weight.mul_(2)  # the training goes on
    with Evaluator(problem) as evaluator:
        assert evaluator.loss().value != first


def test_the_vector_that_is_handed_over_is_not_changed() -> None:
    with Evaluator(case_named("batch_norm_train").build()) as evaluator:
        at = elsewhere(evaluator)
        kept = at.clone()
        evaluator.loss(at)
        evaluator.gradient(at)
        Hessian(evaluator, at=at).matvec(at)
    assert torch.equal(at, kept)
    assert not at.requires_grad


def test_tied_weights_move_together() -> None:
    case = case_named("tied")
    problem = case.build()
    assert problem.space.names == ("first.weight", "first.bias", "second.bias")
    with Evaluator(problem) as evaluator:
        at = elsewhere(evaluator)
        value = evaluator.loss(at).value
    parts = case.parts()
    weight, first, second = at.split([9, 3, 3])
    x, y = parts.data
    hidden = torch.tanh(x @ weight.reshape(3, 3).T + first)
    expected = F.cross_entropy(hidden @ weight.reshape(3, 3).T + second, y)
    assert value == pytest.approx(float(expected), rel=1e-12)


def test_unused_parameters_have_no_gradient() -> None:
    problem = case_named("unused").build(4)
    with Evaluator(problem) as evaluator:
        named = problem.space.unflatten(evaluator.gradient()[1])
    assert not named["idle.weight"].any()
    assert not named["idle.bias"].any()
    assert named["first.weight"].all()


def test_frozen_parameters_keep_their_values() -> None:
    case = case_named("frozen")
    problem = case.build()
    assert problem.space.names == ("0.bias", "2.weight")
    with Evaluator(problem) as evaluator:
        value = evaluator.loss(torch.zeros_like(evaluator.origin)).value
    bias = case.parts().model[2].bias.detach().expand(N, -1)
    assert value == pytest.approx(float(F.cross_entropy(bias, case.parts().data[1])), rel=1e-12)


def test_running_statistics_are_used_in_eval_mode_and_not_in_train_mode() -> None:
    case = case_named("conv_batch_norm_eval")
    values = []
    for mode in ("eval", "train"):
        parts = case.parts()
        problem = Problem(parts.model, parts.loss, parts.data, mode=mode)
        with Evaluator(problem) as evaluator:
            values.append(evaluator.loss().value)
        parts.model.train(mode == "train")
        expected = parts.loss(parts.model(parts.data[0]), parts.data[1])
        assert values[-1] == pytest.approx(float(expected.detach()), rel=1e-12)
    assert values[0] != values[1]


# Randomness in train mode


def dropping(**options: Any) -> Problem:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    x = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    options = {"mode": "train"} | options
    data = cut((x, torch.arange(N) % 3), equal_batches(4))
    return Problem(model, nn.CrossEntropyLoss(), data, **options)


def test_dropout_masks_are_the_same_on_every_pass() -> None:
    with Evaluator(dropping()) as evaluator:
        first = evaluator.loss().value
        torch.rand(7)
        assert evaluator.loss().value == first
        assert evaluator.gradient()[0].value == first
        assert torch.equal(evaluator.gradient()[1], evaluator.gradient()[1])
    with Evaluator(dropping()) as evaluator:
        assert evaluator.loss().value == first


def test_dropout_masks_come_from_the_seed_and_differ_between_batches() -> None:
    with Evaluator(dropping()) as one, Evaluator(dropping(), seed=1) as other:
        assert one.loss().value != other.loss().value
    x = torch.ones(8, 5, dtype=torch.float64)
    masks: list[Tensor] = []

    class Seeing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            masks.append(F.dropout(x, 0.5, self.training))
            return super().forward(masks[-1])

    model = Seeing(5, 1).double()
    with Evaluator(
        Problem(model, nn.MSELoss(), (x, x[:, :1]), mode="train", batch_size=4)
    ) as evaluator:
        masks.clear()
        evaluator.loss()
        evaluator.loss()
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])


def test_gradient_and_hessian_are_of_the_loss_with_these_masks() -> None:
    with Evaluator(dropping()) as evaluator:
        gradient = evaluator.gradient()[1]
        direction = elsewhere(evaluator) - evaluator.origin
        products = [Hessian(evaluator, graph_bytes=room).matvec(direction) for room in (0, 2**30)]
        up, down = (evaluator.origin + s * 1e-5 * direction for s in (1, -1))
        slope = (evaluator.loss(up).value - evaluator.loss(down).value) / 2e-5
        turn = (evaluator.gradient(up)[1] - evaluator.gradient(down)[1]) / 2e-5
    assert slope == pytest.approx(float(gradient @ direction), rel=1e-7)
    for product in products:
        assert torch.allclose(product, turn, atol=1e-8)


def test_statistics_that_a_layer_updates_do_not_pass_from_batch_to_batch() -> None:
    # spectral_norm takes a step of power iteration at each call in train mode.
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)).double()
    for _ in range(60):  # at its end, where the gradient by autograd is that of the loss
        _ = model.weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    found = []
    for size in (12, 4, 1):
        problem = Problem(model, nn.MSELoss(), (x, x), mode="train", batch_size=size)
        with Evaluator(problem) as evaluator:
            value, gradient = evaluator.gradient()
            product = Hessian(evaluator).matvec(torch.ones_like(gradient))
        found.append((value.value, gradient, product))
    for value, gradient, product in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-12)
        assert torch.allclose(gradient, found[0][1], rtol=1e-10)
        # By differences: autograd does not see the vectors of the norm move with the weights.
        assert torch.allclose(product, found[0][2], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("draw", [torch.rand, np.random.rand, lambda n: [random.random()] * n])
def test_every_generator_repeats_in_train_mode(draw: Any) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(draw(1)[0])

    x = torch.ones(4, 2)
    with Evaluator(Problem(Noisy(2, 2), nn.MSELoss(), (x, x), mode="train")) as evaluator:
        assert evaluator.loss().value == evaluator.loss().value


@pytest.mark.parametrize("draw", [torch.rand, np.random.rand, lambda n: [random.random()] * n])
def test_randomness_in_eval_mode_is_refused(draw: Any) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e-6 * float(draw(1)[0])

    x = torch.ones(4, 2, dtype=torch.float64)
    match = r"another loss for the same batch .*, in eval mode\): is there randomness.*F\.dropout"
    problem = Problem(Noisy(2, 2).double(), nn.MSELoss(), (x, x + 1))
    with pytest.raises(ProblemError, match=match), Evaluator(problem):
        pass


def test_dropout_that_is_always_on_is_refused() -> None:
    class Forgetful(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x))

    x = torch.ones(40, 6)
    with pytest.raises(ProblemError, match=r"F\.dropout without training=self\.training"):
        with Evaluator(Problem(Forgetful(6, 2), nn.MSELoss(), (x, x[:, :2]))):
            pass


# What is counted


def test_passes_are_counted() -> None:
    with Evaluator(case_named("mlp").build(4)) as evaluator:
        assert evaluator.cost.forwards == 0  # trying the loss on a batch is no pass
        evaluator.loss()
        evaluator.loss()
        evaluator.gradient()
        operator = Hessian(evaluator)
        for _ in range(3):
            operator.matvec(evaluator.origin)
        cost = evaluator.cost
    assert (cost.forwards, cost.gradients, cost.hvps) == (2, 1, 3)
    assert cost.seconds > 0


# What is refused


def test_numbers_that_are_not_finite_are_kept() -> None:
    with Evaluator(case_named("regression").build(4)) as evaluator:
        far = torch.full_like(evaluator.origin, 1e200)
        assert evaluator.loss(far).value == math.inf
        assert math.isnan(evaluator.loss(far * math.nan).value)
        assert math.isnan(evaluator.loss(far * math.nan).se)


def test_a_start_that_is_not_finite() -> None:
    problem = case_named("mlp").build(split="test")
    require_finite(1.0, problem)
    for value in (math.nan, math.inf):
        match = rf"the loss of mlp on the test data is {value}: nothing can be measured from there"
        with pytest.raises(NonFiniteError, match=match):
            require_finite(value, problem)


def test_all_targets_ignored_also_in_a_product() -> None:
    parts = case_named("mlp").parts()
    x, y = parts.data
    problem = Problem(parts.model, nn.CrossEntropyLoss(ignore_index=9), (x, torch.full_like(y, 9)))
    with Evaluator(problem) as evaluator:
        for work in (evaluator.loss, evaluator.gradient):
            with pytest.raises(DataError, match="is every target ignored"):
                work()
        with pytest.raises(DataError, match="is every target ignored"):
            Hessian(evaluator).matvec(evaluator.origin)


def test_inference_mode() -> None:
    problem = case_named("mlp").build()
    with torch.inference_mode(), pytest.raises(ProblemError, match="leave it first"):
        Evaluator(problem)
    with torch.no_grad(), Evaluator(problem) as evaluator:  # this is no hindrance
        assert evaluator.gradient()[1].abs().max() > 0
        assert Hessian(evaluator).matvec(evaluator.origin).abs().max() > 0


def test_a_loss_that_uses_another_model_than_it_is_given() -> None:
    parts = case_named("mlp").parts()

    def batch_loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(parts.model(batch[0]), batch[1])

    problem = Problem(parts.model, data=[parts.data], batch_loss=batch_loss)
    at_zero = {name: torch.zeros_like(t) for name, t in parts.model.state_dict().items()}
    with Evaluator(problem.at(at_zero)) as evaluator:  # the live model is the one that is given
        assert evaluator.gradient()[0].value == pytest.approx(math.log(3))
    other = Problem(copy.deepcopy(parts.model), data=[parts.data], batch_loss=batch_loss)
    with Evaluator(other) as evaluator:
        with pytest.raises(ProblemError, match="does the loss use another model"):
            evaluator.gradient()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "test"}, "unknown mode 'test'; known: eval, train"),
        ({"mode": "Eval"}, r"unknown mode 'Eval' \(nearest: eval\)"),
        (
            {"dtype": "float16"},
            r"unknown dtype 'float16' \(nearest: float.*known: float32, float64",
        ),
        ({"dtype": torch.int64}, "unknown dtype 'int64'"),
        ({"device": "gpu"}, "unknown device 'gpu'; known: cpu, cuda"),
    ],
)
def test_options_of_a_problem(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        Problem(nn.Linear(1, 1), nn.MSELoss(), [], **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(InvalidArgumentError, match="sees no CUDA device; use cpu"):
        Problem(nn.Linear(1, 1), nn.MSELoss(), [], device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gpu_gives_the_same(case: Case) -> None:
    size = None if case.depends_on_batches else 4
    with Evaluator(case.build(size, device="cuda")) as evaluator:
        value, gradient = evaluator.gradient()
        product = Hessian(evaluator).matvec(torch.ones_like(gradient))
    assert value.value == pytest.approx(case.dense_loss(), rel=1e-10)
    assert torch.allclose(gradient.cpu(), case.dense_gradient(), atol=1e-10)
    expected = case.dense_hessian() @ torch.ones(len(gradient), dtype=torch.float64)
    assert torch.allclose(product.cpu(), expected, atol=1e-9)
