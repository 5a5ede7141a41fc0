from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import TiedModel
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from landscape.errors import InvalidArgumentError, LossError, ProblemError
from landscape.evaluate import Evaluator
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.problem._live import preserved
from landscape.problem._parameters import ParameterSpace
from landscape.randomness import forked_rng

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


class Shaped(nn.Module):
    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        for i, shape in enumerate(shapes):
            self.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape)))


def read(module: nn.Module, dtype: torch.dtype = torch.float64) -> Tensor:
    space, own = ParameterSpace.of(module), dict(module.named_parameters())
    return space.flatten({name: own[name].detach().to(CPU, dtype) for name in space.names})


# Named tensors and the flat vector


@given(st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=5))
def test_flat_and_named_are_each_others_inverse(shapes: list[tuple[int, ...]]) -> None:
    module = Shaped(shapes)
    space = ParameterSpace.of(module)
    assert space.names == tuple(f"p{i}" for i in range(len(shapes)))
    assert space.shapes == tuple(torch.Size(shape) for shape in shapes)
    assert space.n == sum(space.sizes) == sum(p.numel() for p in module.parameters())

    vector = torch.arange(float(space.n))
    named = space.unflatten(vector)
    assert [tuple(t.shape) for t in named.values()] == shapes
    assert torch.equal(space.flatten(named), vector)
    assert torch.equal(
        torch.cat([t.reshape(-1) for t in named.values()]), vector
    )  # in the module's order

    own = space.unflatten(read(module, torch.float32))
    assert all(torch.equal(own[name], p) for name, p in module.named_parameters())


def test_unflattening_views_and_differentiates() -> None:
    space = ParameterSpace.of(Shaped([(2,), (3,), (1,)]))
    vector = torch.arange(6.0, requires_grad=True)
    named = space.unflatten(vector)
    assert named["p1"].data_ptr() == vector.data_ptr() + 2 * 4
    (gradient,) = torch.autograd.grad((named["p1"] ** 2).sum(), vector)  # p0 and p2 are not used
    assert gradient.tolist() == [0, 0, 4, 6, 8, 0]


@pytest.mark.parametrize("shapes", [[(3,)], [(3,), (2, 2)]])
def test_reading_copies(shapes: list[tuple[int, ...]]) -> None:
    module = Shaped(shapes)
    before = [p.detach().clone() for p in module.parameters()]
    vector = read(module, torch.float32)
    vector.zero_()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
    assert not vector.requires_grad


def test_tied_frozen_and_integer_tensors() -> None:
    assert ParameterSpace.of(TiedModel()).names == ("first.weight", "first.bias", "second.bias")
    module = Shaped([(2,), (3,)])
    module.p0.requires_grad_(False)
    module.register_parameter("index", nn.Parameter(torch.arange(3), requires_grad=False))
    assert ParameterSpace.of(module).names == ("p1",)


def test_nothing_trainable() -> None:
    with pytest.raises(ProblemError, match=r"no trainable parameter.*requires_grad_\(True\)"):
        ParameterSpace.of(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("make", [lambda: nn.LazyLinear(2), lambda: nn.Linear(2, 2, device="meta")])
def test_parameters_without_values(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ProblemError, match=r"0.weight has no values yet.*run the model once"):
        ParameterSpace.of(nn.Sequential(make()))


def test_complex_parameters_are_not_left_out_silently() -> None:
    module = nn.Linear(2, 2)
    module.register_parameter("phase", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    with pytest.raises(ProblemError, match="the parameter phase is complex"):
        ParameterSpace.of(module)
    module.phase.requires_grad_(False)
    assert ParameterSpace.of(module).names == ("weight", "bias")


# What is given back


def rng_states() -> list[Any]:
    kind, keys, *rest = np.random.get_state()
    return [torch.get_rng_state().tolist(), kind, keys.tolist(), *rest, random.getstate()]


def draw() -> list[float]:
    return [float(torch.rand(())), float(np.random.rand()), random.random()]


def test_a_name_is_no_pattern_where_it_is_a_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"w[0]": 15, "w0": 3, "w?": 2, "[b]": 7}
            self.p = nn.ParameterDict({k: torch.zeros(n) for k, n in sizes.items()})
            self.q = nn.ModuleDict({"l[1]": nn.Linear(2, 2), "l1": nn.Linear(3, 3)})

    space = ParameterSpace.of(Net())
    for name, size in zip(space.names, space.sizes, strict=True):
        assert space.only([name]).names == (name,)
        assert space.only([name]).n == size
    assert space.only(["q.l[1]"]).names == ("q.l[1].weight", "q.l[1].bias")
    assert space.only(["q.l[0-9]"]).names == ("q.l1.weight", "q.l1.bias")
    assert space.only(["p.w[?]"]).names == ("p.w?",)  # as in a shell: a literal ?
    assert space.only(["p.*", "q.l1"]).n == 15 + 3 + 2 + 7 + 12


def test_generators_are_given_back() -> None:
    before = rng_states()
    with forked_rng():
        assert rng_states() == before
        draw()
        assert rng_states() != before
    assert rng_states() == before


@pytest.mark.parametrize("seed", [10**23, -(2**63) - 1, 1.5, "1", True])
def test_what_is_no_seed_is_refused_and_nothing_drawn(seed: Any) -> None:
    state = torch.get_rng_state()
    with (
        pytest.raises(InvalidArgumentError, match=f"at most 64 bits, got {seed!r}"),
        forked_rng(seed),
    ):
        pytest.fail("it was taken")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_of_numpy_seeds_all_three_generators_alike() -> None:
    drawn = []
    for seed in (7, np.int64(7)):
        with forked_rng(seed):
            drawn.append((float(torch.rand(())), float(np.random.rand()), random.random()))
    assert drawn[0] == drawn[1]


def test_generators_are_given_back_after_an_exception() -> None:
    before = rng_states()
    with suppress(KeyboardInterrupt), forked_rng(7):
        draw()
        raise KeyboardInterrupt
    assert rng_states() == before


def test_a_seed_decides_what_is_drawn() -> None:
    found = []
    for seed in (1, 1, 2, 2**40):
        with forked_rng(seed):
            found.append(draw())
    assert found[0] == found[1]
    for i in range(3):  # each of the three generators
        assert len({values[i] for values in found}) == 3
    with forked_rng(3):
        first = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(2), first)  # the same initial weights as in a script


def photo(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return id(tensor), tensor.requires_grad, tensor.dtype, tensor.detach().clone().numpy().tobytes()


def portrait(model: nn.Module) -> list[Any]:
    """All that a measurement could change, by identity and by value."""
    found: list[Any] = [rng_states()]
    for name, part in model.named_modules():
        found.append((name, id(part), part.training, sorted(vars(part))))
        for key, value in vars(part).items():
            if key in {"_parameters", "_buffers"}:
                content: Any = id(value), [(k, photo(t)) for k, t in value.items()]
            elif isinstance(value, Tensor):
                content = photo(value)
            elif isinstance(value, dict):  # submodules, hooks and what the model caches
                content = id(value), [(k, id(v)) for k, v in value.items()]
            else:
                content = repr(value)
            found.append((name, key, content))
    found += [(name, photo(p.grad)) for name, p in model.named_parameters()]
    return found


class Keeping(nn.Module):
    """Keeps what it has seen, as plain attributes and in a buffer, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.register_buffer("seen", torch.zeros(4))
        self.calls = 0
        self.history: list[float] = [1.0]
        self.cache: dict[str, Any] = {"x": None}
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        draw()
        h = self.fc(x)
        self.calls += 1
        self.last = h
        self.seen += h.detach().mean(dim=0)
        self.more = h.detach()
        self.history.append(float(h.detach().sum()))
        self.cache[len(self.history)] = h
        return h


def with_old_hooks() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = nn.utils.weight_norm(nn.Linear(3, 4))
        return nn.Sequential(first, nn.Tanh(), nn.utils.spectral_norm(nn.Linear(4, 3)))


def with_parametrizations() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)),
        nn.Tanh(),
        parametrizations.spectral_norm(nn.Linear(4, 3)),
    )


def mlp(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), middle, nn.Tanh(), nn.Linear(4, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: mlp(nn.BatchNorm1d(4)),
    "dropout": lambda: mlp(nn.Dropout(0.4)),
    "hooks": with_old_hooks,
    "parametrizations": with_parametrizations,
    "keeping": lambda: nn.Sequential(Keeping(), nn.Tanh(), nn.Linear(4, 3)),
}


def used(model: nn.Module) -> nn.Module:
    """As in the middle of a training: gradients, mixed modes, one part frozen."""
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    next(model.parameters()).grad = None
    model.train()
    list(model.children())[-1].eval()
    next(iter(model[-1].parameters())).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    return model


class Watched(nn.Module):
    """Runs a model and then something else."""

    def __init__(self, model: nn.Module, event: Callable[[], None]) -> None:
        super().__init__()
        self.model = model
        self.event = event

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        self.event()
        return out


def loss_of(evaluator: Evaluator) -> None:
    evaluator.loss()


def gradient_of(evaluator: Evaluator) -> None:
    evaluator.gradient()


def product_of(evaluator: Evaluator) -> None:
    Hessian(evaluator).matvec(torch.ones_like(evaluator.origin))


def light_product_of(evaluator: Evaluator) -> None:
    operator = Hessian(evaluator, graph_bytes=0, products="double-backward")
    for _ in range(2):
        operator.matvec(torch.ones_like(evaluator.origin))


X = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(11) % 3
WORK = [loss_of, gradient_of, product_of, light_product_of]


def problem_of(model: nn.Module, mode: str, loss: Any = None) -> Problem:
    return Problem(model, loss or nn.CrossEntropyLoss(), (X, Y), mode=mode, batch_size=4)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("work", WORK)
def test_a_model_is_left_as_it_was(name: str, mode: str, work: Any) -> None:
    model = used(MODELS[name]())
    problem = problem_of(model, mode)
    before = portrait(model)
    # In train mode the vectors of a spectral norm move in every pass: its gradient is refused.
    moves = mode == "train" and name == "hooks" and work is not loss_of
    may = mode == "train" and name == "parametrizations"
    # Those of the parametrization settle as they move, so that it may pass.
    allowed = suppress(LossError) if may else nullcontext()
    with refused() if moves else allowed, Evaluator(problem) as evaluator:
        work(evaluator)
        work(evaluator)
    assert portrait(model) == before


def refused() -> Any:
    return pytest.raises(
        LossError, match=r"is not the slope.*2.*spectral norm|_SpectralNorm.*second deriv"
    )


def stop(error: BaseException, at: int) -> Callable[[], None]:
    """Raise at a call, and at all later ones unless it is an interrupt."""
    calls = itertools.count(1)

    def event() -> None:
        call = next(calls)
        if call == at or (call > at and not isinstance(error, KeyboardInterrupt)):
            raise error

    return event


@pytest.mark.parametrize("at", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("work", [gradient_of, product_of])
def test_a_model_is_left_as_it_was_by_ctrl_c(name: str, mode: str, work: Any, at: int) -> None:
    model = Watched(MODELS[name](), stop(KeyboardInterrupt(), at))
    used(model.model)
    problem = problem_of(model, mode)
    before = portrait(model)
    with pytest.raises(KeyboardInterrupt), Evaluator(problem) as evaluator:
        work(evaluator)
    assert portrait(model) == before
    # And the work can be done after all, but for a spectral norm in train mode (see above).
    moves = mode == "train" and name in {"hooks", "parametrizations"}
    with suppress(LossError) if moves else nullcontext(), Evaluator(problem) as evaluator:
        work(evaluator)
    assert portrait(model) == before


@pytest.mark.parametrize("at", [1, 3, 4, 5])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("work", WORK)
def test_a_model_is_left_as_it_was_by_a_loss_that_fails(mode: str, work: Any, at: int) -> None:
    event = stop(ZeroDivisionError("no"), at)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        event()
        return nn.functional.cross_entropy(output, target, reduction="none")

    model = used(MODELS["keeping"]())
    problem = problem_of(model, mode, loss)
    before = portrait(model)
    with pytest.raises(ProblemError, match=r"batch \d of the train data.*ZeroDivisionError"):
        with Evaluator(problem) as evaluator:
            work(evaluator)
    assert portrait(model) == before


def test_a_model_is_left_as_it_was_while_reading_fails() -> None:
    model = used(MODELS["keeping"]())

    def batches() -> Iterator[Any]:
        model(X)  # features made by the model itself
        yield X, Y
        msg = "no more"
        raise OSError(msg)

    class Source:
        def __iter__(self) -> Iterator[Any]:
            return batches()

    problem = Problem(model, nn.CrossEntropyLoss(), Source())
    kept = portrait(model)
    with pytest.raises(ProblemError, match="reading batch 1 of the data failed with OSError"):
        _ = problem.batches
    # The buffer is the user's own doing; all the rest is as it was.
    assert [x for x in portrait(model) if x[1:2] != ("_buffers",)] == [
        x for x in kept if x[1:2] != ("_buffers",)
    ]


def test_what_is_changed_inside_is_given_back() -> None:
    model = used(MODELS["batch norm"]())
    before = portrait(model)
    with preserved(model):
        model.eval()
        model[0].weight.requires_grad_(False)
        model[1].running_mean = torch.ones(4)
        model[0].bias = nn.Parameter(torch.ones(4))
        model.zero_grad()
        model.extra = 3
        model.add_module("more", nn.Linear(2, 2))
        del model[3]
        draw()
        assert portrait(model) != before
    assert portrait(model) == before


SCRIPT = """
import random, sys, time
import numpy as np, torch
from torch import nn
from landscape.evaluate import Evaluator
from landscape.problem import Problem

class Slow(nn.Sequential):
    def forward(self, x):
        print("running", flush=True)
        time.sleep(0.05)
        return super().forward(x)

def state():
    return (
        [t.tolist() for t in model.state_dict().values()], [m.training for m in model.modules()],
        torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(),
    )

model = Slow(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
x = torch.randn(40, 3)
problem = Problem(model, nn.MSELoss(), (x, x), mode="train", batch_size=10)
before = state()
try:
    with Evaluator(problem) as evaluator:
        while True:
            evaluator.gradient()
except KeyboardInterrupt:
    print("same" if state() == before else "different", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a single process there")
def test_a_real_ctrl_c_leaves_the_model_as_it_was() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(8):  # in the middle of the second gradient
        assert process.stdout.readline() == "running\n"
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert rest.split()[-1] == "same"
    assert process.returncode == 0
