from __future__ import annotations

import importlib
import subprocess
import sys
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.problem.computation import digest_of

ROOT = Path(__file__).parents[1]
ALPHA = 0.1


def scaled(alpha: float) -> Callable[..., Any]:
    return lambda output, target: alpha * (output - target).abs()


def with_default(alpha: float) -> Callable[..., Any]:
    def loss(output: Any, target: Any, alpha: float = alpha) -> Any:
        return alpha * (output - target)

    return loss


def with_keyword(alpha: float) -> Callable[..., Any]:
    def loss(output: Any, target: Any, *, alpha: float = alpha) -> Any:
        return alpha * (output - target)

    return loss


class Scaled:
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, output: Any, target: Any) -> Any:
        return self.alpha * (output - target)

    def loss(self, output: Any, target: Any) -> Any:
        return self.alpha + output


class Module(nn.Module):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.bfloat16))


class PlainSetting(nn.Module):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha


def nested(alpha: float) -> Callable[..., Any]:
    inner = scaled(alpha)
    return lambda output, target: inner(output, target) + 1


SETTINGS: list[Callable[[float], Any]] = [
    scaled,
    with_default,
    with_keyword,
    nested,
    Scaled,
    Module,
    PlainSetting,
    lambda alpha: Scaled(alpha).loss,
    lambda alpha: partial(F.huber_loss, delta=alpha),
    lambda alpha: nn.HuberLoss(delta=alpha),
    lambda alpha: nn.CrossEntropyLoss(label_smoothing=alpha),
    lambda alpha: nn.CrossEntropyLoss(weight=torch.tensor([alpha, 1.0])),
    lambda alpha: scaled(torch.tensor(alpha)),
    lambda alpha: scaled(np.array([alpha])),
    lambda alpha: scaled([{"alpha": alpha}]),
    lambda alpha: scaled(SimpleNamespace(alpha=alpha)),
    lambda alpha: scaled(nn.CrossEntropyLoss(label_smoothing=alpha)),
]


@pytest.mark.parametrize("make", SETTINGS)
def test_what_a_callable_uses_is_part_of_it(make: Callable[[float], Any]) -> None:
    assert digest_of(make(0.1)) == digest_of(make(0.1))
    assert digest_of(make(0.1)) != digest_of(make(0.2))


def compiled(source: str) -> Callable[..., Any]:
    space: dict[str, Any] = {}
    exec(source, space)
    return space["loss"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def loss(o, t): return (o - t) ** 2", "def loss(o, t): return (o - t) ** 3"),
        ("def loss(o, t): return abs(o - t)", "def loss(o, t): return abs(t - o)"),
        ("def loss(o, t): return o.mean()", "def loss(o, t): return o.sum()"),
        ("A = 1\ndef loss(o, t): return A * o", "A = 2\ndef loss(o, t): return A * o"),
        (
            "A = {'a': 1}\ndef loss(o, t): return A['a']",
            "A = {'a': 2}\ndef loss(o, t): return A['a']",
        ),
        (
            "def help(o): return o\ndef loss(o, t): return help(o)",
            "def help(o): return -o\ndef loss(o, t): return help(o)",
        ),
        (
            "A = 1\ndef loss(o, t): return [A * p for p in o]",
            "A = 2\ndef loss(o, t): return [A * p for p in o]",
        ),
        ("def loss(o, t): return (lambda: 1)()", "def loss(o, t): return (lambda: 2)()"),
    ],
)
def test_another_code_or_constant_is_another_loss(one: str, other: str) -> None:
    assert digest_of(compiled(one)) == digest_of(compiled(one))
    assert digest_of(compiled(one)) != digest_of(compiled(other))


def test_constants_that_are_not_used_do_not_count() -> None:
    body = "def loss(o, t): return o.shape\n"
    assert digest_of(compiled("shape = 1\n" + body)) == digest_of(compiled("shape = 2\n" + body))


def test_modules_with_another_forward_are_different() -> None:
    class One(nn.Module):
        def forward(self, o: Tensor, t: Tensor) -> Tensor:
            return o - t

    first = digest_of(One())
    One.forward = lambda self, o, t: o + t
    assert digest_of(One()) != first


Pair = namedtuple("Pair", "x y")


@dataclass
class Held:
    x: Any
    y: Any


class Opaque:
    """A batch that only its owner can look into, as in a graph library."""

    def __init__(self, x: Any, y: Any) -> None:
        self._store = {"x": x, "y": y}


@pytest.mark.parametrize("kind", [Pair, Held, Opaque, lambda x, y: UserDict(x=x, y=y)])
def test_every_value_in_a_batch_counts(kind: Callable[[Any, Any], Any]) -> None:
    x, y = torch.arange(3.0), torch.arange(3)
    first = digest_of(kind(x, y))
    assert digest_of(kind(x.clone(), y.clone())) == first
    for other in (kind(x + 1, y), kind(x, y + 1), kind(y, x), kind(x.double(), y), kind(x, y[:2])):
        assert digest_of(other) != first


def test_names_and_places_count() -> None:
    x, y = torch.zeros(2), torch.ones(2)
    found = [
        {"x": x, "y": y},
        {"x": y, "y": x},
        {"x": x, "z": y},
        (x, y),
        ((x,), y),
        (x, y, None),
        (torch.cat([x, y]),),
    ]
    assert len({digest_of(batch) for batch in found}) == len(found)
    assert digest_of([x, y]) == digest_of((x, y))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 3),
        torch.tensor(1.5),
        torch.tensor([True, False]),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(6.0).expand(2, 6),
        torch.ones(2, requires_grad=True),
    ],
)
def test_tensors_of_every_kind(tensor: Tensor) -> None:
    again = tensor.detach().clone(memory_format=torch.contiguous_format)
    assert digest_of(tensor) == digest_of(again)
    if again.numel():
        again.reshape(-1)[0] = 0 if again.reshape(-1)[0] else 1
        assert digest_of(tensor) != digest_of(again.reshape(tensor.shape))


def test_objects_that_hold_each_other_have_an_end() -> None:
    one, other = SimpleNamespace(value=1), SimpleNamespace(value=2)
    one.next, other.next = other, one
    assert digest_of(one) != digest_of(other)
    ring: list[Any] = [1]
    ring.append(ring)
    assert digest_of(ring) == digest_of(ring)


def test_every_process_finds_the_same_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
KINDS = {"a", "b", "c", "d", "e", "f"}

def loss(output, target, *, some=frozenset({"u", "v", "w", "x", "y", "z"})):
    return output if "u" in {"u", "v", "w", "x", "y"} and KINDS and some else target
"""
    (tmp_path / "mine.py").write_text(source)
    script = (
        "import mine; from landscape.problem.computation import digest_of;"
        "print(digest_of(mine.loss))"
    )
    monkeypatch.syspath_prepend(tmp_path)
    here = digest_of(importlib.import_module("mine").loss)
    there = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": f"{ROOT}:{tmp_path}"},  # another order of sets
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert there == here


def test_tensors_without_values_are_told_apart_by_their_shape() -> None:
    one, other = (torch.empty(n, device="meta") for n in (2, 3))
    assert digest_of(one) == digest_of(torch.empty(2, device="meta")) != digest_of(other)
