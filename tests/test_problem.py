from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES, Case, case_named
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from landscape.errors import LossError, ProblemError
from landscape.evaluate import Evaluator, measure_signature, provenance_of
from landscape.problem import Problem

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def of(model: nn.Module, loss: Any = None, **options: Any) -> Problem:
    return Problem(model, loss or nn.MSELoss(), (X, X), **options)


def value_of(problem: Problem) -> float:
    with Evaluator(problem) as evaluator:
        return evaluator.loss().value


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_problem_at_its_own_weights_is_the_same(case: Case) -> None:
    problem = case.build()
    other = problem.at(problem.model.state_dict())
    assert other.model is problem.model
    assert other.checkpoint_hash == problem.checkpoint_hash
    assert measure_signature(other) == measure_signature(problem)
    assert value_of(other) == value_of(problem)


def old_hooks() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(
            nn.utils.weight_norm(nn.Linear(3, 4)), nn.utils.spectral_norm(nn.Linear(4, 3))
        )


def new_hooks() -> nn.Module:
    first = parametrizations.weight_norm(nn.Linear(3, 4))
    return nn.Sequential(first, parametrizations.spectral_norm(nn.Linear(4, 3)))


@pytest.mark.parametrize("make", [old_hooks, new_hooks])
def test_models_whose_weights_are_computed_by_hooks(make: Callable[[], nn.Module]) -> None:
    source, model = make().eval(), make().eval()
    output = source(X)  # after which the hooks hold tensors with a history
    model(X)
    problem = of(model).at(source)
    assert value_of(problem) == pytest.approx(
        float((output - X).square().mean().detach()), rel=1e-6
    )
    assert value_of(of(model)) != value_of(problem)


def test_a_model_that_cannot_be_copied_is_measured_all_the_same() -> None:
    class Stuck(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            msg = "there is only one"
            raise TypeError(msg)

    source = nn.Linear(3, 3)
    assert value_of(of(Stuck(3, 3)).at(source)) == value_of(of(source))


def test_a_model_that_is_none() -> None:
    with pytest.raises(ProblemError, match=r"must be a torch\.nn\.Module, not function"):
        Problem(lambda x: x, nn.MSELoss(), (X, X))


def test_names() -> None:
    problem = of(nn.Linear(3, 3))
    assert problem.name == "Linear"
    named = problem.named("mine")
    assert (named.name, problem.name) == ("mine", "Linear")
    assert named.model is problem.model
    assert repr(named) == (
        "Problem('mine': Linear with 12 parameters, train data, eval mode, float32 on cpu)"
    )


# What identifies a measurement


@pytest.mark.parametrize(
    "loss",
    [
        nn.L1Loss(),
        nn.MSELoss(reduction="sum"),
        nn.HuberLoss(),
        nn.HuberLoss(delta=0.5),
        lambda o, t: (o - t).square().mean(),
    ],
)
def test_the_name_of_a_loss_has_its_settings(loss: Any) -> None:
    assert of(nn.Linear(3, 3), loss).loss.name != of(nn.Linear(3, 3)).loss.name
    assert of(nn.Linear(3, 3), loss).loss.name == of(nn.Linear(3, 3), loss).loss.name


def test_the_signature_depends_on_the_metrics_and_not_on_their_order() -> None:
    def one(o: Tensor, t: Tensor) -> Tensor:
        return (o - t).abs().mean()

    def two(o: Tensor, t: Tensor) -> Tensor:
        return (o - t).abs().amax(1)

    found = [{}, {"a": one}, {"b": one}, {"a": two}, {"a": one, "b": two}]
    model = nn.Linear(3, 3)
    prints = [measure_signature(of(model, metrics=metrics)).identity for metrics in found]
    assert len(set(prints)) == len(found)
    swapped = measure_signature(of(model, metrics={"b": two, "a": one})).identity
    assert swapped == prints[-1]


def test_the_functional_form_of_a_loss_is_the_same_loss() -> None:
    problem = of(nn.Linear(3, 3), nn.functional.mse_loss)
    assert problem.loss.name == of(nn.Linear(3, 3)).loss.name


def test_the_hash_depends_on_weights_buffers_and_what_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    first = of(model).checkpoint_hash
    assert of(model.double()).checkpoint_hash != first
    model.float()
    model[1].running_mean.add_(1)
    second = of(model).checkpoint_hash
    assert second != first
    model[0].bias.requires_grad_(False)  # another landscape, of fewer dimensions
    assert of(model).checkpoint_hash not in {first, second}


def test_provenance() -> None:
    problem = case_named("frozen").build(4, "float32", split="test")
    found = provenance_of(problem)
    assert (found.checkpoint, found.split, found.mode) == ("frozen", "test", "eval")
    assert (found.device, found.dtype) == ("cpu", "float32")
    assert (found.n_parameters, found.n_examples) == (16, 13)
    assert found.checkpoint_hash == problem.checkpoint_hash
    assert found.data_fingerprint == problem.batches.fingerprint
    assert found.problem_fingerprint == measure_signature(problem).identity
    assert (found.loss, found.signature) == (problem.loss.name, measure_signature(problem))
    assert found.versions["torch"] == torch.__version__


# Types


@pytest.mark.parametrize(
    ("own", "asked", "computed"),
    [
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, None, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.float32, "float64", torch.float64),
        (torch.float64, torch.float32, torch.float32),
        (torch.float32, "torch.float64", torch.float64),
    ],
)
def test_what_is_computed_in(own: torch.dtype, asked: Any, computed: torch.dtype) -> None:
    problem = of(nn.Linear(3, 3).to(own), dtype=asked)
    assert problem.dtype == computed
    with Evaluator(problem) as evaluator:
        assert evaluator.gradient()[1].dtype == computed
    assert problem.model.weight.dtype == own


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_the_signature_tells_models_of_the_same_weights_apart():
    data = torch.ones(2, 3), torch.zeros(2, dtype=torch.long)

    def signature(model):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 0.5)
            parameter.data[0] = 1.0
        return measure_signature(Problem(model, nn.CrossEntropyLoss(), data))

    models = [nn.Linear(3, 2), Scaled(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Tanh())]
    found = [signature(model) for model in models]
    for i, one in enumerate(found):
        assert [one.agrees(other, "float32") for other in found] == [i == j for j in range(3)]
    assert signature(Scaled(3, 2)) == signature(Scaled(3, 2).eval())


def test_parameters_that_are_not_the_same_have_another_name():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    problem = Problem(model, nn.CrossEntropyLoss(), (torch.randn(4, 3), torch.arange(4) % 2))
    nested, both = problem.only("0").only("0.weight"), problem.only("0", "0.weight")
    assert (nested.space.n, both.space.n) == (6, 8)
    assert (nested.parameters, both.parameters) == ("0 & 0.weight", "0, 0.weight")


class WrongSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2.5 * ctx.saved_tensors[0] * grad


def test_the_derivative_of_some_parameters_says_nothing_about_the_others() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(WrongSlope.apply(self.body(x)))

    problem = of(Model())
    with Evaluator(problem.only("head")) as evaluator:
        evaluator.gradient()  # does not pass through the wrong one
    with pytest.raises(LossError, match="is not the slope of the loss"):
        with Evaluator(problem) as evaluator:
            evaluator.gradient()
