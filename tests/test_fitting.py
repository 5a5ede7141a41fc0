"""Batches whose passes would keep too much are cut: the same numbers, within the limit."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import landscape as ls
from landscape.evaluate import (
    PLAIN,
    Displaced,
    Engine,
    Evaluator,
    _selftest,
    _values,
    check_hessian,
    measure_signature,
)
from landscape.evaluate._values import counting, kept_by
from landscape.problem import Problem
from landscape.problem.problem import Footprint


class Sized(nn.Module):
    """A perceptron that notes the sizes of what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 4))
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.body(x)


def problem_of(loss: Any = None, *, n: int = 40, **options: Any) -> Problem:
    torch.manual_seed(0)
    data = torch.randn(n, 3, dtype=torch.float64), torch.randint(4, (n,))
    batches = [(data[0][:25], data[1][:25]), (data[0][25:], data[1][25:])]
    return Problem(Sized().double(), loss or nn.CrossEntropyLoss(), batches, **options)


def sizes_of(evaluator: Evaluator, call: Any) -> list[int]:
    sizes: list[int] = evaluator.model.sizes
    sizes.clear()
    call()
    return list(sizes)


def low_limit(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(_values, "_LEAST", {"cpu": n_bytes})


@pytest.mark.parametrize("loss", [None, F.cross_entropy, nn.CrossEntropyLoss(reduction="sum")])
def test_cut_batches_give_the_same_numbers(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = {"accuracy": lambda output, target: (output.argmax(1) == target).double().mean()}
    problem = problem_of(loss, metrics=accuracy)
    direction = list(torch.randn(problem.space.n, dtype=torch.float64).split(problem.space.sizes))
    batch = next(iter(problem.batches))

    def measured(largest: int) -> list[Any]:
        with Evaluator(problem) as evaluator:
            assert max(sizes_of(evaluator, evaluator.gradient)) == largest
            terms, own = evaluator.batch_gradient(None, batch, 0)
            loss, gradient = evaluator.gradient()
            return [
                [loss.value, loss.se, *gradient.tolist()],
                [evaluator.loss().value, evaluator.loss().metrics["accuracy"]],
                [Engine(evaluator, PLAIN).loss().value],
                [float(terms.total.detach()), float(terms.weight), *own.tolist()],
                [evaluator.batch_slope(None, direction.__getitem__, batch, 0)[1]],
            ]

    whole = measured(25)
    problem.trials.additive = None  # as if it were a new problem
    low_limit(monkeypatch, 10 * 50 * 8)
    cut = measured(9)
    for one, other in zip(whole, cut, strict=True):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-15, nan_ok=True)


def test_what_a_pass_keeps_is_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4_000
    low_limit(monkeypatch, limit)
    with Evaluator(problem_of()) as evaluator:
        problem = evaluator.problem
        kept = [kept_by(evaluator, piece) for _, piece in evaluator.pieces()]
        assert len(kept) > 4
        assert max(kept) <= limit  # type: ignore[type-var]
        assert sum(problem.batching.size(p) for _, p in evaluator.pieces()) == 40
        assert [i for i, _ in evaluator.pieces()] == sorted(i for i, _ in evaluator.pieces())


def test_the_limit_can_be_given() -> None:
    problem = problem_of()
    for graph_bytes, largest in ((None, 25), (1e9, 25), (5_000, 9), (1.0, 1)):
        with Evaluator(problem, graph_bytes=graph_bytes) as evaluator:
            assert max(sizes_of(evaluator, evaluator.loss)) == largest
            assert sum(sizes_of(evaluator, evaluator.loss)) == 40


def test_the_count_is_that_of_autograd() -> None:
    """By hand: tanh keeps its output, the cross-entropy log-probabilities, both in float64."""
    problem = problem_of()
    with Evaluator(problem) as evaluator:
        batch = next(iter(problem.batches))
        kept = kept_by(evaluator, batch)
    # Besides: the weights of the mean, a few numbers.
    assert 25 * (50 + 4) * 8 <= kept <= 25 * (50 + 4) * 8 + 64  # type: ignore[operator]


def test_a_loss_that_does_not_add_up_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    low_limit(monkeypatch, 1)

    def contrastive(model: nn.Module, batch: Any) -> Tensor:
        output = model(batch[0])
        return (output - output.mean(dim=0)).square().sum(dim=1)

    def largest(problem: Problem) -> int:
        with Evaluator(problem) as evaluator:
            return max(sizes_of(evaluator, evaluator.gradient))

    torch.manual_seed(0)
    data = [(torch.randn(25, 3),)]
    assert largest(Problem(Sized(), data=data, batch_loss=contrastive)) == 25
    assert largest(problem_of(mode="train")) == 25


def test_a_metric_that_does_not_add_up_keeps_batches_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low_limit(monkeypatch, 1)
    spread = {"spread": lambda output, target: output.max() - output.min()}
    with Evaluator(problem_of(metrics=spread)) as evaluator:
        assert max(sizes_of(evaluator, evaluator.loss)) == 25


def test_longer_batches_are_cut_finer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured on a batch of short sequences holds for one of long ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    batches = [(torch.randint(11, (8, n)), torch.randint(2, (8, n))) for n in (4, 32)]

    def per_example(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.movedim(2, 1), target, reduction="none").mean(dim=1)

    low_limit(monkeypatch, 8000)
    with Evaluator(Problem(model, per_example, batches)) as evaluator:
        kept = [kept_by(evaluator, piece) for _, piece in evaluator.pieces()]
        sizes = [len(piece[0]) for _, piece in evaluator.pieces()]
    assert sizes[0] == 8
    assert max(sizes[1:]) < 4
    assert max(kept) <= 8000  # type: ignore[type-var]


def test_parts_of_a_footprint() -> None:
    footprint = Footprint(once=100.0, each=10.0)
    assert footprint.of(50) == 600
    assert footprint.share(50, 600) == 1.0
    assert footprint.share(50, 350) == 0.5
    assert footprint.share(50, 10) == 0.01  # what does not fit by itself must not cut for ever


def test_counting_leaves_the_gradient_alone() -> None:
    problem = problem_of()
    with Evaluator(problem) as evaluator:
        _, gradient = evaluator.gradient()
        batch = next(iter(problem.batches))
        with counting(evaluator, batch):
            _, own = evaluator.gradient()
            terms = evaluator.terms(None, batch, 0)
            (slope,) = torch.autograd.grad(terms.total, evaluator.parameters[:1], create_graph=True)
            (second,) = torch.autograd.grad(slope.square().sum(), evaluator.parameters[:1])
        terms = evaluator.terms(None, batch, 0)
        (slope,) = torch.autograd.grad(terms.total, evaluator.parameters[:1], create_graph=True)
        (expected,) = torch.autograd.grad(slope.square().sum(), evaluator.parameters[:1])
    assert torch.equal(gradient, own)
    assert torch.equal(second, expected)


def test_counting_leaves_no_graph_behind() -> None:
    problem = problem_of()
    kept: list[Any] = []
    with Evaluator(problem) as evaluator:
        with counting(evaluator, next(iter(problem.batches))):
            hook = evaluator.model.body[1].register_forward_hook(
                lambda part, args, output: kept.append(weakref.ref(output))
            )
            evaluator.loss()
            with torch.enable_grad():
                _ = evaluator.terms(None, next(iter(problem.batches)), 0)
        hook.remove()
    assert len(kept) == 3
    assert all(reference() is None for reference in kept)


def test_weights_that_are_computed_in_place() -> None:
    problem = problem_of()
    with Evaluator(problem) as evaluator:
        step = torch.randn(problem.space.n, dtype=torch.float64)
        calls = []

        def write(slots: list[Tensor]) -> None:
            calls.append(1)
            views = problem.space.views(evaluator.origin)
            for slot, w, d in zip(slots, views, problem.space.views(step), strict=True):
                torch.add(w, d, alpha=0.5, out=slot)

        at = Displaced(write)
        expected, slope = evaluator.gradient(evaluator.origin + 0.5 * step)
        loss, own = evaluator.gradient(at)
        assert evaluator.loss(at).value == loss.value == pytest.approx(expected.value, rel=1e-14)
        assert torch.allclose(own, slope, rtol=1e-12)
        assert len(calls) == 1  # what is in place is not written again
        evaluator.loss()
        evaluator.loss(at)
        assert len(calls) == 2


def test_a_slope_in_groups_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    from landscape.evaluate import _evaluator

    problem = problem_of()
    ends = problem.space.groups(200)
    assert ends == [2, 3, 4]
    assert problem.space.groups(1) == [1, 2, 3, 4]
    assert problem.space.groups(10**6) == [4]
    direction = list(torch.randn(problem.space.n, dtype=torch.float64).split(problem.space.sizes))
    batch = next(iter(problem.batches))
    slopes = []
    with Evaluator(problem) as evaluator:
        for size in (2**24, 1):
            monkeypatch.setattr(_evaluator, "_GROUP", size)
            slopes.append(evaluator.batch_slope(None, direction.__getitem__, batch, 0)[1])
        gradient = evaluator.batch_gradient(None, batch, 0)[1]
    assert slopes == pytest.approx([float(gradient @ torch.cat(direction))] * 2, rel=1e-12)


# Memory, in sizes of the model


class Peak(TorchDispatchMode):
    """Follows the bytes of all that is computed, and their largest sum."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._weights = {p.untyped_storage()._cdata for p in model.parameters()}
        self._alive: dict[int, int] = {}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._weights and storage._cdata not in self._alive:
            self._alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.largest = max(self.largest, sum(self._alive.values()))


def wide(monkeypatch: pytest.MonkeyPatch) -> tuple[Problem, int]:
    """A problem whose weights take far more memory than its activations."""
    monkeypatch.setattr(_selftest, "WIDE_PARAMETERS", 2**16)
    monkeypatch.setattr(_values, "WIDE_PARAMETERS", 2**16)
    monkeypatch.setattr(_selftest, "_DRAWN", 2**12)
    torch.manual_seed(0)
    layers = [part for _ in range(8) for part in (nn.Linear(300, 300), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(300, 3))
    problem = Problem(model, nn.CrossEntropyLoss(), (torch.randn(8, 300), torch.arange(8) % 3))
    _ = problem.batches
    return problem, 4 * problem.space.n


def test_memory_of_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy that is given back, the gradient of the test, and one that is being made."""
    problem, size = wide(monkeypatch)
    with Peak(problem.model) as found, Evaluator(problem) as evaluator:
        evaluator.gradient()
    assert found.largest <= 3.2 * size


def test_memory_of_the_test_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, size = wide(monkeypatch)
    with Peak(problem.model) as found, Evaluator(problem) as evaluator:
        assert check_hessian(evaluator) == ""
    assert found.largest <= 7.2 * size


def test_memory_of_a_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    from landscape.evaluate import _evaluator, _signature

    problem, size = wide(monkeypatch)
    monkeypatch.setattr(_signature, "WIDE_PARAMETERS", 2**16)
    monkeypatch.setattr(_evaluator, "_GROUP", 2**16)
    with Peak(problem.model) as found:
        measure_signature(problem)
    assert found.largest <= 1.7 * size


def test_memory_of_a_surface(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two directions, the copy that is given back, and the signature: no point is a vector."""
    from landscape.evaluate import _evaluator, _signature
    from landscape.linalg import krylov
    from landscape.surface import _points as points

    monkeypatch.setattr(points, "_LARGE", 0)
    monkeypatch.setattr(krylov, "_LONG", 0)
    monkeypatch.setattr(_signature, "WIDE_PARAMETERS", 2**16)
    monkeypatch.setattr(_evaluator, "_GROUP", 2**16)
    problem, size = wide(monkeypatch)
    plane = ls.random_plane(problem)
    with Peak(problem.model) as found:
        ls.surface(problem, plane=plane, n=3, progress=False)
    assert found.largest <= 3.7 * size
