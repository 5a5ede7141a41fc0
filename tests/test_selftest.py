"""The tests of derivatives: no false alarm over the cases, and how far the tolerance is off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from landscape import top_eigenpairs
from landscape.errors import LossError, MisleadingWarning
from landscape.evaluate import (
    Evaluator,
    _selftest,
    _values,
    check_gradient,
    check_hessian,
    layer_trials,
)
from landscape.problem import Problem


def offsets(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record how far each derivative is from the differences that it is compared with last."""
    found: list[float] = []
    contradiction = _selftest._contradiction

    def recording(claimed: Tensor, differences: Any, dtype: torch.dtype) -> Tensor | None:
        nearest = [float("inf")]

        def watched(step: float) -> tuple[Tensor, float]:
            value, unit = differences(step)
            rounding = torch.finfo(dtype).eps * unit
            size = max(float(claimed.norm()), float(value.norm()), 20.0 * rounding / 1e-5)
            nearest.append(float((claimed - value).norm()) / size)
            return value, unit

        result = contradiction(claimed, watched, dtype)
        found.append(min(nearest))
        return result

    monkeypatch.setattr(_selftest, "_contradiction", recording)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_right_derivatives_raise_no_alarm(
    case: Case, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = offsets(monkeypatch)
    for seed in range(4):
        with Evaluator(replace(case, seed=seed).build(dtype=dtype)) as evaluator:
            check_gradient(evaluator)
            assert check_hessian(evaluator) == ""
    assert max(found) < 1e-6  # a tenth of what is passed


@pytest.mark.parametrize("depth", [2, 6])
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_kinks_raise_no_alarm(
    depth: int, own: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide ReLU networks with max-pooling, also where the test has to do with float32."""
    if own == torch.float32:
        monkeypatch.setattr(_selftest, "WIDE_PARAMETERS", 0)
        monkeypatch.setattr(_values, "WIDE_PARAMETERS", 0)
    for seed in range(6):
        torch.manual_seed(seed)
        hidden = [p for _ in range(depth) for p in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), *hidden),
            *(nn.Flatten(), nn.Linear(8 * 36, 5)),
        )
        data = torch.randn(32, 1, 14, 14), torch.randint(5, (32,))
        problem = Problem(model, nn.CrossEntropyLoss(), data, dtype=own)
        with Evaluator(problem) as evaluator:
            check_gradient(evaluator)
            assert check_hessian(evaluator) == ""


class Hiding(torch.autograd.Function):
    """x², whose backward pass hides how it depends on x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        with torch.no_grad():
            return 2.0 * ctx.saved_tensors[0] * slope.detach()


def test_a_wide_model_is_tested_on_an_example_that_has_a_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Hiding.apply(super().forward(x))  # type: ignore[no-untyped-call, no-any-return]

    monkeypatch.setattr(_selftest, "WIDE_PARAMETERS", 0)
    monkeypatch.setattr(_values, "WIDE_PARAMETERS", 0)
    torch.manual_seed(0)
    target = torch.tensor([-100, 0, 1, 2, 0, 1])  # a wide model takes one example, if that counts
    data = torch.randn(6, 4), target
    with Evaluator(Problem(Net(4, 3), nn.CrossEntropyLoss(), data)) as evaluator:
        assert "Hiding" in check_hessian(evaluator)


def test_the_tests_cost_at_most_ten_passes_over_a_few_examples() -> None:
    sizes: list[int] = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return torch.tanh(super().forward(x))

    x = torch.randn(500, 3, dtype=torch.float64)
    with Evaluator(Problem(Counting(3, 3).double(), nn.MSELoss(), (x, x))) as evaluator:
        check_hessian(evaluator)
    assert max(sizes) == _values.EXAMPLES
    assert sum(sizes) <= 10 * _values.EXAMPLES


def test_the_trials_of_layers() -> None:
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            return 0.5 * slope

    class Halving(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Half.apply(x)

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), Halving(), nn.Hardsigmoid())
    problem = Problem(model.double(), nn.MSELoss(), (torch.randn(9, 3).double(), torch.zeros(9, 4)))
    with Evaluator(problem) as evaluator:
        batch = next(iter(problem.batches))
        trials = {t.name: t for t in layer_trials(evaluator, batch, torch.float64)}
    assert max(trials["0"].gradient, trials["0"].second) < 1e-6
    assert max(trials["1"].gradient, trials["1"].second) < 1e-6
    assert trials["2"].gradient == pytest.approx(0.5, rel=1e-3)
    assert "hardsigmoid" in trials["3"].failure


def test_a_gradient_that_is_slightly_off_is_used_with_a_warning() -> None:
    """That of torch's CrossMapLRN2d is, by some 1e-5, and has no second graph."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.CrossMapLRN2d(3), nn.Flatten(), nn.Linear(16, 3)
    model = nn.Sequential(*layers).double()
    x, y = torch.randn(12, 1, 4, 4, dtype=torch.float64), torch.randint(3, (12,))
    parameters = list(model.parameters())
    start = parameters_to_vector(parameters).detach()

    def gradient(w: Tensor) -> Tensor:
        vector_to_parameters(w, parameters)
        loss = nn.functional.cross_entropy(model(x), y)
        return parameters_to_vector(torch.autograd.grad(loss, parameters))

    steps = 1e-5 * torch.eye(len(start), dtype=torch.float64)
    hessian = torch.stack([(gradient(start + e) - gradient(start - e)) / 2e-5 for e in steps])
    vector_to_parameters(start, parameters)
    true = float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1])
    problem = Problem(model, nn.CrossEntropyLoss(), (x, y))
    with pytest.warns(MisleadingWarning, match=r"off by .*CrossMapLRN2d"):
        found = top_eigenpairs(problem, 1)
    assert found.values[0] == pytest.approx(true, rel=1e-3)


class InFloat32(nn.Module):
    """Runs a layer, or its input, in float32 whatever the type of the weights around it."""

    def __init__(self, inner: nn.Module, *, like: bool = True) -> None:
        super().__init__()
        self.inner, self.like = inner, like

    def forward(self, x: Tensor) -> Tensor:
        found = (
            self.inner(x.float()) if not list(self.inner.parameters()) else self.inner(x).float()
        )
        return found.to(x) if self.like else found


@pytest.mark.parametrize("where", ["loss", "norm", "logits"])
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_models_that_compute_parts_in_float32_raise_no_alarm(
    where: str, size: float, dtype: str
) -> None:
    """Of a large loss of which the chosen parameters move little: float64 is no use there."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)]
    if where == "norm":
        layers[1:2] = [InFloat32(nn.LayerNorm(8, elementwise_affine=False)), nn.Tanh()]
    if where == "logits":
        layers.append(InFloat32(nn.Identity(), like=False))
    model = nn.Sequential(*layers)
    with torch.no_grad():
        model[0].weight.mul_(size)
        model[0].bias.mul_(size)
    x, y = torch.randn(16, 6), torch.randint(5, (16,))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        output = output.float() if where == "loss" else output
        return nn.functional.cross_entropy(output, target, reduction="none") + 10.0

    problem = Problem(model, loss, (x, y), dtype=dtype).only("0")
    with Evaluator(problem) as evaluator:
        check_gradient(evaluator)
        assert check_hessian(evaluator) == ""


def test_a_wrong_gradient_is_found_in_float32_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), InFloat32(nn.Identity()), nn.Tanh(), nn.Linear(8, 5))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        output = (0.5 * output + 0.5 * output.detach()).float()
        return nn.functional.cross_entropy(output, target, reduction="none")

    x, y = torch.randn(16, 6), torch.randint(5, (16,))
    with (
        Evaluator(Problem(model, loss, (x, y))) as evaluator,
        pytest.raises(LossError, match="the gradient by autograd is not the slope of the loss"),
    ):
        check_gradient(evaluator)
