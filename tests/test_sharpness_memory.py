"""How many vectors of the model's size the search for sharpness holds at once."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape.errors import InvalidArgumentError
from landscape.evaluate import Evaluator
from landscape.linalg import krylov
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.sharpness._ball import Ball
from landscape.sharpness._m_sharpness import m_sharpness
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._search import PRODUCTS, VECTORS, Search, SearchOptions, room
from landscape.sharpness._worst_case import check_second_order, sharpness

WIDTH = 800  # as many parameters as gradients are added up in blocks from


class Peak(TorchDispatchMode):
    """Adds up the storages that operations have made and that live, of at least a tenth of n."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.least, self.unit = 4 * n // 10, 4 * n
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def see(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if size < self.least or key in self.live:
            return
        self.live[key] = size
        self.now += size
        weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def perceptron(*, batches: int = 1) -> Problem:
    """A network whose parameters far outweigh its activations."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    x, y = torch.randn(8, WIDTH), torch.arange(8) % 3
    return Problem(model, nn.CrossEntropyLoss(), (x, y), batch_size=8 // batches)


def vectors_held(p: float, adaptive: str, *, vectors: int, phase: str, rho: float) -> float:
    """Peak of a part of the search, less that of a bare gradient or a bare product at w."""
    problem = perceptron()
    n = problem.space.n
    ball = Ball(rho, p, adaptive)
    options = SearchOptions(max_gradients=30, memory=vectors * 4 * n)
    with Evaluator(problem) as evaluator:
        evaluator.origin  # noqa: B018
        Hessian(evaluator).matvec(torch.ones(n))  # the derivatives are tested before
        with Peak(n) as bare:
            if phase == "climbs":
                evaluator.gradient()
            else:
                Hessian(evaluator).matvec(torch.ones(n))
        with Peak(n) as peak:
            origin = BallObjective(evaluator, ball)
            search = Search(origin, ball, options)
            search.start_from_gradient()
            if phase == "climbs":
                search.start("-gradient", -origin.point.gradient)
                search.start("random", origin.drawn(0))
            else:
                search.start_from_model(PRODUCTS)
                search.polish()
                check_second_order(search)
    return (peak.peak - bare.peak) / peak.unit


@pytest.mark.parametrize(
    ("p", "adaptive", "vectors", "phase", "rho"),
    [
        (2.0, "none", VECTORS, "climbs", 5.0),
        (2.0, "none", VECTORS, "models", 5.0),
        (2.0, "none", 8, "climbs", 5.0),
        (2.0, "elementwise", VECTORS, "models", 1.0),
        (math.inf, "none", VECTORS, "climbs", 0.05),
        (1.0, "none", VECTORS, "climbs", 5.0),
    ],
)
def test_the_search_holds_no_more_vectors_than_it_is_given(
    monkeypatch, p, adaptive, vectors, phase, rho
):
    monkeypatch.setattr(krylov, "_CHUNK", 2**14, raising=False)  # of its scratch, not of vectors
    assert vectors_held(p, adaptive, vectors=vectors, phase=phase, rho=rho) <= vectors


@pytest.mark.parametrize(("protocol", "memory"), [("search", VECTORS), ("auto-pgd", None)])
def test_subsets_hold_no_more_vectors_than_one_search(monkeypatch, protocol, memory):
    """Beyond what entering, a product and a gradient on a subset take by themselves."""
    monkeypatch.setattr(krylov, "_CHUNK", 2**14, raising=False)
    problem = perceptron()
    n = problem.space.n
    with Peak(n) as bare, Evaluator(problem.on_examples(0, 4)) as evaluator:
        evaluator.gradient()
        Hessian(evaluator).matvec(torch.ones(n))
    with Peak(n) as peak:
        found = m_sharpness(
            problem,
            5.0,
            m=4,
            protocol=protocol,
            max_gradients=30,
            memory=None if memory is None else memory * 4 * n,
        )
    assert (peak.peak - bare.peak) / peak.unit <= VECTORS
    assert any("memory for 12 vectors" in note for note in found.notes) == (memory is not None)


def test_the_published_protocol_for_subsets_has_no_memory_to_divide():
    with pytest.raises(InvalidArgumentError, match="bounds a search, and protocol is 'auto-pgd'"):
        m_sharpness(perceptron(), m=4, protocol="auto-pgd", memory=1e9)


def test_the_counter_counts():
    with Peak(100_000) as peak:
        kept = [torch.ones(100_000) for _ in range(3)]
        torch.ones(100_000)
        kept.append(kept[0][5:])  # a view takes no memory
    assert peak.peak == 4 * peak.unit
    assert peak.now == 3 * peak.unit
    del kept
    assert peak.now == 0


def test_history_and_model_are_divided_as_memory_allows():
    small = room(1000, None, scaled=False)
    assert (small.pairs, small.products, small.keeps_model, small.note) == (10, 16, True, "")
    large = room(10**9, None, scaled=False)
    assert (large.pairs, large.products, large.keeps_model) == (2, 6, False)
    assert large.note == (
        "memory for 12 vectors of the model's size: a quadratic model of at most 6 products, an "
        "L-BFGS history of 2 pairs, no starts along the top eigenvector"
    )
    between = room(10**6, 30e6, scaled=False)
    assert (between.pairs, between.products) == (10, 16)
    assert between.note.endswith("no starts along the top eigenvector")
    tight = room(10**6, 8.5e6, scaled=False)
    assert (tight.pairs, tight.products) == (0, 2)
    assert tight.note.startswith("memory for 8 vectors of the model's size: a quadratic model of")
    with pytest.raises(InvalidArgumentError, match=r"takes 9 at least: give 9,000,000 bytes"):
        room(10**6, 8.5e6, scaled=True)


def test_a_short_memory_is_said_and_finds_the_same_maximum():
    problem = perceptron()
    n = problem.space.n
    short = sharpness(problem, 0.5, memory=8 * 4 * n)
    assert "memory for 8 vectors of the model's size" in dict(short.rows())["note"]
    assert short.settings["memory"] == 8 * 4 * n
    assert short.value == pytest.approx(sharpness(problem, 0.5).value, rel=1e-3)
    with pytest.raises(InvalidArgumentError, match="holds 7 vectors"):
        sharpness(problem, 0.5, memory=7.9 * 4 * n)
