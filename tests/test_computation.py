"""Whatever a network or a loss computes with is part of the problem's identity, and no more is.

Each case is a problem file with a number in it: two numbers give two fingerprints, and one number
the same one in another process too. Where the number decides the loss, the losses differ.
"""

from __future__ import annotations

import array
import copy
import operator
import re
import subprocess
import sys
from collections import UserList
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.errors import ProblemError
from landscape.problem import Problem, load_task
from landscape.problem.computation import digest_of, digest_of_layers, loose_tensors
from landscape.problem.origins import origin_of
from landscape.study import Study

HEAD = """
import argparse, dataclasses, enum, functools, logging, math, re
from types import SimpleNamespace
import torch
import torch.nn.functional as F
from torch import nn

def data(split):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, generator=generator), torch.arange(8) % 2
"""
NET = """
class Net(nn.Module):
    {body}

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        {init}

    def forward(self, x):
        return self.layer(x) * {use}

def model():
    torch.manual_seed(0)
    return Net()

loss = nn.CrossEntropyLoss()
"""


def net(*, use: str, body: str = "pass", init: str = "pass", top: str = "") -> str:
    return HEAD + top + NET.format(use=use, body=body, init=init)


def with_loss(*lines: str) -> str:
    plain = NET.format(use="1.0", body="pass", init="pass").replace("loss = ", "_ = ")
    return "\n".join((HEAD, plain, *lines))


MODELS = {
    "a plain attribute": net(init="self.s = V", use="self.s"),
    "a function": net(
        init="self.act = torch.tanh if V > 1 else torch.relu", use="1", top="\n"
    ).replace("self.layer(x) * 1", "self.act(self.layer(x))"),
    "a function of torch's Python part": net(
        init="self.act = F.silu if V > 1 else F.gelu", use="1"
    ).replace("self.layer(x) * 1", "self.act(self.layer(x))"),
    "a lambda": net(init="self.act = lambda x: x * V", use="self.act(1.0)"),
    "a partial": net(
        init="self.act = functools.partial(torch.mul, torch.tensor(V))", use="self.act(1.0)"
    ),
    "a tuple": net(init="self.s = (1, V)", use="self.s[1]"),
    "a list": net(init="self.s = [1, V]", use="self.s[1]"),
    "a dictionary": net(init="self.s = {'s': V}", use="self.s['s']"),
    "None": net(init="self.s = None if V > 1 else 2.0", use="(self.s or 1.0)"),
    "a namespace": net(init="self.c = SimpleNamespace(s=V)", use="self.c.s"),
    "arguments": net(init="self.c = argparse.Namespace(s=V)", use="self.c.s"),
    "a configuration": net(
        top="\nclass Config:\n    def __init__(self, s): self.s = s\n",
        init="self._c = Config(V)",
        use="self._c.s",
    ),
    "slots": net(
        top="\nclass Config:\n    __slots__ = 's'\n    def __init__(self, s): self.s = s\n",
        init="self.c = Config(V)",
        use="self.c.s",
    ),
    "a private slot": net(
        top="\nclass Config:\n    __slots__ = ('__s',)\n    def __init__(self, s): self.__s = s\n"
        "    def get(self): return self.__s\n",
        init="self.c = Config(V)",
        use="self.c.get()",
    ),
    "a dataclass": net(
        top="\n@dataclasses.dataclass\nclass Config:\n    s: float\n",
        init="self.c = Config(V)",
        use="self.c.s",
    ),
    "a method of a dataclass": net(
        top="\n@dataclasses.dataclass\nclass Config:\n    def s(self): return V\n",
        init="self.c = Config()",
        use="self.c.s()",
    ),
    "an enumeration": net(
        top="\nclass Kind(enum.Enum):\n    A = 1.0\n    B = 2.0\n",
        init="self.kind = Kind.A if V > 1 else Kind.B",
        use="self.kind.value",
    ),
    "a dtype": net(
        init="self.type = torch.bfloat16 if V > 1 else torch.float32",
        use="torch.tensor(1.001).to(self.type).float()",
    ),
    "a set": net(init="self.s = frozenset({V, 'b', (1, 2)})", use="max(self.s - {'b', (1, 2)})"),
    "an attribute of the class": net(body="s = V", use="self.s"),
    "a list of the class": net(body="s = [V]", use="self.s[0]"),
    "a property": net(body="s = property(lambda self: V)", use="self.s"),
    "a cached property": net(
        body="@functools.cached_property\n    def s(self): return V", use="self.s"
    ),
    "a static method": net(body="@staticmethod\n    def s(): return V", use="self.s()"),
    "a class method": net(body="@classmethod\n    def s(cls): return V", use="self.s()"),
    "a class inside": net(body="class Inner:\n        s = V", use="self.Inner.s"),
    "a base class": net(top="\nclass Base:\n    s = V\n", use="self.s").replace(
        "class Net(nn.Module)", "class Net(Base, nn.Module)"
    ),
    "a global": net(top="\nS = V\n", use="S"),
    "a global class": net(top="\nclass C:\n    S = V\n", use="C.S"),
    "a global object": net(top="\nC = SimpleNamespace(S=V)\n", use="C.S"),
    "a global function of torch": net(
        top="\nACT = torch.relu if V > 1 else torch.tanh\n", use="1"
    ).replace("self.layer(x) * 1", "ACT(self.layer(x))"),
    "a cached function": net(top="\n@functools.lru_cache\ndef s(): return V\n", use="s()"),
    "an attribute of a function": net(top="\ndef s(): return s.v\ns.v = V\n", use="s()"),
    "a decorated function": net(top="\n@torch.no_grad()\ndef s(): return V\n", use="s()"),
    "a tensor": net(init="self.s = torch.tensor(V)", use="self.s"),
    "tensors in a list": net(init="self.s = [torch.tensor(V)]", use="self.s[0]"),
    "a buffer that is not persistent": net(
        init="self.register_buffer('s', torch.tensor(V), persistent=False)", use="self.s"
    ),
    "a hook": net(
        init="self.layer.register_forward_hook(lambda m, a, out: out * V)", use="1.0"
    ),
    "a setting of a layer of torch": net(init="self.drop = nn.LeakyReLU(V / 10)", use="1").replace(
        "self.layer(x) * 1", "self.drop(self.layer(x))"
    ),
    "an activation in a layer of torch": net(
        init="self.block = nn.TransformerEncoderLayer(2, 1, 2, dropout=0.0, "
        "activation=torch.tanh if V > 1 else torch.sigmoid)",
        use="1",
    ).replace("self.layer(x) * 1", "self.block(self.layer(x)[None])[0]"),
}  # fmt: skip
LOSSES = {
    "a constant": with_loss("def loss(o, t): return F.cross_entropy(o * V, t)"),
    "a global object": with_loss(
        "C = SimpleNamespace(v=V)", "def loss(o, t): return F.cross_entropy(o * C.v, t)"
    ),
    "another method": with_loss(
        "class Loss:",
        "    def scale(self): return V",
        "    def __call__(self, o, t): return F.cross_entropy(o * self.scale(), t)",
        "loss = Loss()",
    ),
    "a list of a module": with_loss(
        "class Loss(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.v = [V]",
        "    def forward(self, o, t): return F.cross_entropy(o * self.v[0], t)",
        "loss = Loss()",
    ),
    "slots": with_loss(
        "class Loss:",
        "    __slots__ = 'v'",
        "    def __call__(self, o, t): return F.cross_entropy(o * self.v, t)",
        "loss = Loss()",
        "loss.v = V",
    ),
    "a function that is chosen": with_loss(
        "ACT = torch.tanh if V > 1 else torch.relu",
        "def loss(o, t): return F.cross_entropy(ACT(o), t)",
    ),
}


def write(folder: Path, source: str, value: float) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "task.py"
    file.write_text(f"V = {value}\n{source}")
    return file


def loaded(file: Path) -> Problem:
    return load_task(file).problem(split="train")


@pytest.mark.parametrize("source", [*MODELS.values(), *LOSSES.values()], ids=[*MODELS, *LOSSES])
def test_what_decides_the_loss_decides_the_key(source: str, tmp_path: Path) -> None:
    one, other = (loaded(write(tmp_path / str(v), source, v)) for v in (1.0, 2.0))
    again = loaded(write(tmp_path / "again", source, 1.0))
    losses = [ls.evaluation(problem).loss for problem in (one, other, again)]
    assert losses[0] != losses[1]
    assert losses[0] == losses[2]
    keys = [(p.fingerprint, p.checkpoint_hash) for p in (one, other, again)]
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]
    assert keys[0] == (one.fingerprint, one.checkpoint_hash)  # measuring changes nothing


def test_every_process_finds_the_same_keys(tmp_path: Path) -> None:
    files = [
        write(tmp_path / str(i), source, 1.0)
        for i, source in enumerate((*MODELS.values(), *LOSSES.values()))
    ]
    script = """
import sys
from landscape.problem import load_task
for file in reversed(sys.argv[1:]):
    problem = load_task(file).problem(split="train")
    print(problem.fingerprint, problem.checkpoint_hash)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, files)],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [(problem.fingerprint, problem.checkpoint_hash) for problem in map(loaded, files)]
    there = [tuple(line.split()) for line in ran.stdout.splitlines()]
    assert there == here[::-1]


def test_a_study_does_not_give_another_network_the_numbers_of_the_first(tmp_path: Path) -> None:
    source = MODELS["a function"]
    one, other = (loaded(write(tmp_path / str(v), source, v)) for v in (1.0, 2.0))
    alone = ls.trace(other).value
    with Study(tmp_path / "s.db") as study:
        assert ls.trace(one, study=study).value != alone
        assert ls.trace(other, study=study).value == alone


def test_a_setting_that_is_changed_later_counts() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.1))
    problem = Problem(model, nn.MSELoss(), (torch.randn(4, 2), torch.randn(4, 2)))
    before = problem.fingerprint
    model[1].negative_slope = 0.9
    assert problem.fingerprint != before


FILLED = (
    HEAD
    + """
_masks, seen = {}, []

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        outputs = []
        self.layer.register_forward_hook(lambda layer, x, out: outputs.append(1))

    def forward(self, x):
        seen.append(len(x))
        _masks.setdefault(len(x), torch.full((1,), V))
        return self.layer(x) * _masks[len(x)]

def model():
    torch.manual_seed(0)
    return Net()

loss = nn.CrossEntropyLoss()
"""
)


def test_what_a_model_fills_while_it_is_used_makes_it_no_other(tmp_path: Path) -> None:
    problem = loaded(write(tmp_path, FILLED, 2.0))
    fresh = loaded(write(tmp_path / "again", FILLED, 2.0)).fingerprint
    assert loaded(write(tmp_path / "other", FILLED, 1.0)).fingerprint != fresh
    with Study(tmp_path / "s.db") as study:
        for _ in range(2):
            ls.evaluation(problem, study=study)
            assert problem.fingerprint == fresh
        assert len(study.entries()) == 1


EQUAL_AT_A_GLANCE = {
    "nesting": ([[1], 2], [[1, 2]]),
    "nested settings": ({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "c": 2}}),
    "keys": ({(0, 1): 1.0}, {(1, 0): 1.0}),
    "classes as keys": ({nn.Linear: 1.0}, {nn.Conv2d: 1.0}),
    "patterns": (re.compile("a" * 250 + "b"), re.compile("a" * 250 + "c")),
    "flags": (re.compile("a"), re.compile("a", re.IGNORECASE)),
    "getters": (operator.itemgetter(0), operator.itemgetter(1)),
    "bytes": (bytearray(b"a"), bytearray(b"b")),
    "arrays": (array.array("d", [1.0]), array.array("d", [2.0])),
    "lists of the user's": (UserList([1]), UserList([2])),
    "objects in an array": (np.array([{"a": 1}]), np.array([{"a": 2}])),
}


@pytest.mark.parametrize("name", EQUAL_AT_A_GLANCE)
def test_values_that_look_alike_are_told_apart(name: str) -> None:
    one, other = EQUAL_AT_A_GLANCE[name]
    assert digest_of(one) == digest_of(copy.deepcopy(one)) != digest_of(other)


def once(x):
    return x * 1.0


def twice(x):
    return x * 2.0


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_scripted_functions_are_told_apart() -> None:
    assert digest_of(torch.jit.script(once)) != digest_of(torch.jit.script(twice))
    assert digest_of(torch.jit.script(once)) == digest_of(torch.jit.script(once))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_told_apart() -> None:
    one, same, other = (
        torch.nested.nested_tensor([torch.full((2,), v), torch.zeros(3)]) for v in (1.0, 1.0, 2.0)
    )
    assert digest_of(one) == digest_of(same) != digest_of(other)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_compiled_loss_is_known_by_the_loss() -> None:
    one, other = scaled_by(1.0), scaled_by(2.0)
    assert digest_of(torch.compile(one)) == digest_of(torch.compile(one))
    assert digest_of(torch.compile(one)) == digest_of(torch.compile(scaled_by(1.0)))
    assert digest_of(torch.compile(one)) != digest_of(torch.compile(other))


def scaled_by(factor: float) -> Callable[[Any, Any], Any]:
    return lambda output, target: factor * (output - target)


class Awkward:
    """What cannot be looked into, in each way."""

    __slots__ = ("x",)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no")


def test_what_cannot_be_looked_into_ends_nothing() -> None:
    ring: dict[str, Any] = {"tensor": torch.zeros(2)}
    ring["parent"] = {"child": ring}
    one, other = SimpleNamespace(), SimpleNamespace()
    one.friends, other.friends = {Key(other)}, {Key(one)}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.tree, self.friend, self.awkward = ring, one, Awkward()
            self.no_decay = {self.layer.weight}

    assert digest_of_layers(Net()) == digest_of_layers(Net())
    assert len(list(loose_tensors(Net()))) == 1


class Key:
    def __init__(self, of: object) -> None:
        self.of = of


def test_long_chains_and_shared_containers_take_no_time() -> None:
    chain: Any = None
    for _ in range(3000):
        chain = Linked(chain)
    functions = [lambda x: x]
    for _ in range(1500):
        functions.append(calling(functions[-1]))
    shared: Any = [1]
    for _ in range(60):  # two to the sixty ways through it
        shared = [shared, shared]
    digests = {digest_of(value) for value in (chain, functions[-1], shared)}
    assert len(digests) == 3


class Linked:
    def __init__(self, of: Any) -> None:
        self.of = of


def calling(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: function(x)


def test_lists_without_an_end_in_sight_are_refused_in_words() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ProblemError, match="holds things within each other too many times"):
        digest_of(deep)


class Trained(nn.Module):
    """What training and use leave behind in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.shared = [self.layer.weight]
        self._trainer = torch.optim.SGD(self.layer.parameters(), lr=0.1)

    def forward(self, x):
        return self.layer(x)


def test_weights_and_trainers_are_no_part_of_the_architecture() -> None:
    one, other = Trained(), Trained()
    other._trainer.param_groups[0]["lr"] = 0.5
    other.seen = one.seen = torch.zeros(2)
    other.seen = torch.ones(2)
    assert digest_of_layers(one) == digest_of_layers(other)
    assert [name for name, _ in loose_tensors(other)] == [".seen"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 4, 2),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
        lambda: torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
    ],
)
def test_layers_of_torch_have_one_digest(make: Callable[[], nn.Module]) -> None:
    assert digest_of_layers(make()) == digest_of_layers(make())
    assert list(loose_tensors(make())) == []


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_scripted_modules_are_told_apart_by_their_code() -> None:
    relu, tanh = (torch.jit.script(nn.Sequential(nn.Linear(2, 2), f())) for f in (nn.ReLU, nn.Tanh))
    assert digest_of_layers(relu) != digest_of_layers(tanh)


def test_what_is_noted_in_use_does_not_count() -> None:
    import logging

    log = logging.getLogger("test_computation")

    def loss(output: Any, target: Any) -> Any:
        log.debug("called")
        return output - target

    before = digest_of(loss)
    logging.getLogger("test_computation.another").setLevel(10)
    log.setLevel(30)
    assert digest_of(loss) == before


CACHED = (
    HEAD
    + """
_cache = {}

def table(n):
    if n not in _cache:
        _cache[n] = torch.full((n,), V)
    return _cache[n]

class Net(nn.Module):
    use_cache = True

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.cached = None

    def forward(self, x):
        if self.cached is None:
            self.cached = table(2)
        return self.layer(x) * self.cached

def model():
    torch.manual_seed(0)
    return Net()

loss = nn.CrossEntropyLoss()
"""
)


def test_caches_that_are_filled_in_use_do_not_count(tmp_path: Path) -> None:
    problem = loaded(write(tmp_path, CACHED, 2.0))
    before = problem.fingerprint, problem.checkpoint_hash
    assert loaded(write(tmp_path / "other", CACHED, 1.0)).fingerprint != before[0]
    problem.model(torch.zeros(1, 3))
    assert problem.model.cached is not None
    assert (problem.fingerprint, problem.checkpoint_hash) == before
    switched = CACHED.replace("use_cache = True", "use_cache = False")
    assert loaded(write(tmp_path / "switched", switched, 2.0)).fingerprint != before[0]


def test_the_environment_of_the_process_does_not_count(monkeypatch) -> None:
    from os import environ

    def loss(output: Any, target: Any) -> Any:
        return output if environ.get("NO_SUCH_VARIABLE") else target

    before = digest_of(loss)
    monkeypatch.setenv("TEST_COMPUTATION", "1")
    assert digest_of(loss) == before


def test_whose_code_it_is() -> None:
    expected = {
        "torch.nn.modules.linear": "recorded",
        "numpy": "recorded",
        "collections": "recorded",
        "builtins": "recorded",
        "_abc": "recorded",
        "click": "installed",
        "landscape.tasks.digits": "own",
        "landscape.optim.sam": "recorded",
        __name__: "own",
        "no_such_module": "own",
        "__main__": "own",
    }
    for name in ("click", "landscape.tasks.digits"):
        __import__(name)
    assert {name: origin_of(name) for name in expected} == expected
