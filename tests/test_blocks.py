"""Several points together: the bits of one after the other, and what does not allow that."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from landscape.evaluate import Engine, Evaluator
from landscape.problem import Problem

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(57, 5, generator=GENERATOR)
CLASSES = torch.randint(3, (57,), generator=GENERATOR)
VALUES = torch.randn(57, 3, generator=GENERATOR)
LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), CLASSES),
    "class weights": (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5])), CLASSES),
    "ignored": (nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1), CLASSES),
    "probabilities": (nn.CrossEntropyLoss(), VALUES.softmax(1)),
    "squares": (nn.MSELoss(), VALUES),
    "sum": (nn.MSELoss(reduction="sum"), VALUES),
    "absolute": (nn.L1Loss(), VALUES),
    "function": (lambda output, target: (output - target).square().sum(1), VALUES),
    "mean": (lambda output, target: (output - target).square().mean(), VALUES),
    "Huber": (nn.HuberLoss(), VALUES),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def vectors_of(evaluator, n=9):
    origin = evaluator.origin
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n, len(origin), generator=generator, dtype=torch.float64)
    return [origin, *(origin + row.to(origin) for row in noise)]


def assert_like_one_after_the_other(problem, *, together: bool) -> None:
    with Evaluator(problem) as evaluator:
        vectors = vectors_of(evaluator)
        expected = [evaluator.loss(vector) for vector in vectors]
        engine = Engine(evaluator)
        for found in (engine.losses(vectors), engine.losses(vectors, keep=True)):
            for one, other in zip(found, expected, strict=True):
                assert (one.value, one.metrics) == (other.value, other.metrics)
                assert one.se == other.se or (one.se != one.se and other.se != other.se)
        assert (engine._runner._blocks.n > 1) == together
        alone = [engine.loss(vector).value for vector in vectors]
        assert alone == [one.value for one in expected]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_size", [57, 20])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_the_bits_of_one_point_after_the_other(name, batch_size, dtype):
    loss, target = LOSSES[name]
    problem = Problem(network(), loss, (X, target), batch_size=batch_size, dtype=dtype)
    assert_like_one_after_the_other(problem, together=name not in ("function", "mean", "Huber"))


def test_metrics_are_those_of_each_point():
    problem = Problem(
        network(),
        nn.CrossEntropyLoss(),
        (X, CLASSES),
        metrics={"accuracy": lambda output, target: (output.argmax(1) == target).double()},
    )
    assert_like_one_after_the_other(problem, together=False)


class OwnBuffer(nn.Module):
    """Returns the same tensor again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.given: list[torch.Tensor] = []

    def forward(self, x):
        output = self.layer(x)
        if torch.is_grad_enabled():
            return output
        if not self.given or self.given[0].shape != output.shape:
            self.given = [torch.empty_like(output)]
        return self.given[0].copy_(output)


class Afterwards(OwnBuffer):
    """Writes to what it has returned when it is called again."""

    def forward(self, x):
        for output in self.given:
            output.zero_()
        output = self.layer(x)
        self.given = [] if torch.is_grad_enabled() else [output]
        return output


@pytest.mark.parametrize("model", [OwnBuffer, Afterwards])
def test_a_model_that_writes_to_what_it_has_returned(model):
    torch.manual_seed(0)
    problem = Problem(model(), nn.MSELoss(), (X, VALUES), batch_size=57)
    assert_like_one_after_the_other(problem, together=False)


def test_what_is_not_finite_stays_as_it_is():
    problem = Problem(network(), nn.CrossEntropyLoss(), (X, CLASSES), batch_size=20)
    with Evaluator(problem) as evaluator:
        vectors = vectors_of(evaluator, 3)
        vectors[1] = vectors[1] * float("nan")
        vectors[2] = vectors[2] * 1e38
        expected = [evaluator.loss(vector) for vector in vectors]
        found = Engine(evaluator).losses(vectors)
        assert [str(one.value) for one in found] == [str(one.value) for one in expected]
        assert [str(one.se) for one in found] == [str(one.se) for one in expected]


def test_no_vectors_have_no_losses():
    with Evaluator(Problem(network(), nn.MSELoss(), (X, VALUES))) as evaluator:
        assert Engine(evaluator).losses([]) == []
