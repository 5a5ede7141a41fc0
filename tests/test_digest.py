from __future__ import annotations

import subprocess
import sys
from collections import UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from landscape.errors import ProblemError
from landscape.problem.digest import Content

ROOT = Path(__file__).parents[1]


def digest_of(value: Any) -> str:
    content = Content()
    content.add(value)
    return content.hexdigest()


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


VALUES = """[
    {"a", "b", "c", "d", "e", "f"},
    {frozenset({"u", "v"}): ("x", 1.5), "pairs": deque([(1, None)])},
    UserDict(x=torch.arange(3), y=np.float32(2)),
    Path("a/b"), torch.float32, torch.device("cpu"), range(3), torch.relu,
]"""


IMPORTS = """
import torch, numpy as np
from pathlib import Path
from collections import UserDict, deque
from landscape.problem.digest import Content
content = Content()
"""


def test_every_process_finds_the_same_digest() -> None:
    program = f"{IMPORTS}\ncontent.add({VALUES})\ndigest = content.hexdigest()\n"
    here: dict[str, Any] = {}
    exec(program, here)
    there = subprocess.run(
        [sys.executable, "-c", f"{program}print(digest)"],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)},  # another order of sets
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert there == here["digest"]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_csr(),
        lambda x: x.to_sparse_csc(),
        lambda x: x.to_sparse_bsr((1, 1)),
        lambda x: torch.nested.nested_tensor([x[0], x[1, :2]]),
        lambda x: torch.nested.nested_tensor([x[0], x[1, :2]], layout=torch.jagged),
        lambda x: torch.quantize_per_tensor(x, 0.5, 0, torch.qint8),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse .* is in beta:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_tensors_of_other_layouts(make: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 3.0]])
    first = digest_of(make(x))
    assert digest_of(make(x.clone())) == first
    for changed in (2 * x, x.flip(0), x.flip(1)):
        assert digest_of(make(changed)) != first


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_the_order_of_the_entries_of_a_sparse_tensor_does_not_count() -> None:
    places, values = torch.tensor([[0, 1], [1, 0]]), torch.tensor([2.0, 3.0])
    one = torch.sparse_coo_tensor(places, values, (2, 2))
    other = torch.sparse_coo_tensor(places.flip(1), values.flip(0), (2, 2))
    assert digest_of(one) == digest_of(other)


def test_equal_parts_may_be_one_object_or_two() -> None:
    part = [1.5, "a"]
    assert digest_of([part, part]) == digest_of([part, list(part)])


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ProblemError, match="a list of the problem is nested too deeply"):
        digest_of(deep)


def test_an_object_without_state_counts_by_its_type() -> None:
    assert digest_of(i for i in range(2)) == digest_of(i for i in range(3)) != digest_of(None)


def test_tensors_without_values_are_told_apart_by_their_shape() -> None:
    one, other = (torch.empty(n, device="meta") for n in (2, 3))
    assert digest_of(one) == digest_of(torch.empty(2, device="meta")) != digest_of(other)
