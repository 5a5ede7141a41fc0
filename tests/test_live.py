"""The one live model: weights written in place, turns, and all of it given back."""

from __future__ import annotations

import gc
import hashlib
import random
import signal
import sys
import threading
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import landscape as ls
from landscape.errors import LossError, MisleadingWarning, ProblemError
from landscape.evaluate import Engine, Evaluator, Plan
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.problem._live import preserved

D = torch.float64
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=D)
Y = torch.arange(12) % 3
LOSS = nn.CrossEntropyLoss()


def of(model: nn.Module, loss: Any = LOSS, **options: Any) -> Problem:
    return Problem(model, loss, (X, Y), **options)


def written(model: nn.Module, vector: Tensor) -> nn.Module:
    """The oracle: the weights written into the model by hand."""
    nn.utils.vector_to_parameters(vector, model.parameters())
    return model


def by_hand(model: nn.Module, vector: Tensor, x: Tensor = X) -> tuple[float, Tensor, Tensor]:
    """Loss, gradient and dense Hessian of a plain model at weights, by a plain loop."""
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    written(model, vector)
    own = list(model.parameters())
    value = LOSS(model(x), Y)
    slopes = torch.autograd.grad(value, own, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in slopes])
    rows = [torch.autograd.grad(g, own, retain_graph=True, materialize_grads=True) for g in flat]
    hessian = torch.stack([torch.cat([t.reshape(-1) for t in row]) for row in rows])
    written(model, before)
    return float(value.detach()), flat.detach(), hessian


# What reaches a parameter by another way than the module's attribute


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.stem(x)))


class ByLambda(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.block = lambda t: torch.tanh(self.stem(t))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


class ByList(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.stem.weight, self.stem.bias]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.linear(x, *self.weights)))


class ByHook(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None
        self.stem.register_forward_hook(lambda m, a, out: setattr(self, "seen", torch.tanh(out)))

    def forward(self, x: Tensor) -> Tensor:
        self.stem(x)
        return self.head(self.seen)


class ByWeakReference(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.owner = weakref.ref(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.owner().stem(x)))  # type: ignore[union-attr]


class ByView(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.transposed = self.stem.weight.t()  # a view of its memory, with a history

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ self.transposed + self.stem.bias))


class ByRecomputation(Plain):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        block = lambda t: torch.tanh(self.stem(t))  # noqa: E731
        if self.reentrant:
            x = x.detach().requires_grad_(True)
        return self.head(checkpoint(block, x, use_reentrant=self.reentrant))


class ByReentrantRecomputation(ByRecomputation):
    reentrant = True


class Adjoint(torch.autograd.Function):
    """Keeps the layer, and runs it again in the backward pass, as reversible networks do."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.layer, ctx.x = layer, x
        with torch.no_grad():
            return torch.tanh(layer(x))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        with torch.enable_grad():
            x = ctx.x.detach().requires_grad_(True)
            out = torch.tanh(ctx.layer(x))
            found = torch.autograd.grad(out, [x, *ctx.layer.parameters()], slope)
        return None, *found


class ByAdjoint(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(Adjoint.apply(self.stem, x, *self.stem.parameters()))


ROUTES = [
    ByLambda,
    ByList,
    ByHook,
    ByWeakReference,
    ByView,
    ByRecomputation,
    ByReentrantRecomputation,
    ByAdjoint,
]


@pytest.mark.filterwarnings("ignore:.*use_reentrant")
@pytest.mark.parametrize("make", ROUTES)
def test_every_route_to_a_parameter_sees_the_weights_of_the_point(make: type[Plain]) -> None:
    plain, model = Plain().double(), make()
    if make is ByView:
        model = make().double()
        model.transposed = model.stem.weight.t()
    model = model.double()
    model.load_state_dict(plain.state_dict())
    problem = of(model)
    at = problem.weights + 0.3
    value, gradient, hessian = by_hand(plain, at)
    with Evaluator(problem) as evaluator:
        found = evaluator.gradient(at)
        assert evaluator.loss(at).value == pytest.approx(value, rel=1e-12)
        assert torch.allclose(found[1], gradient, rtol=1e-11, atol=1e-13)
        operator = Hessian(evaluator, at=at)
        vector = torch.linspace(-1, 1, len(at), dtype=D)
        assert torch.allclose(operator.matvec(vector), hessian @ vector, rtol=1e-6, atol=1e-8)


def test_a_regulariser_over_a_global_model_and_a_checkpoint() -> None:
    net, trained = Plain().double(), Plain().double()
    decay = lambda m: 0.05 * sum(p.square().sum() for p in m.parameters())  # noqa: E731
    problem = of(net, lambda o, t: F.cross_entropy(o, t) + decay(net)).at(trained.state_dict())
    found = ls.evaluation(problem)
    assert found.loss == pytest.approx(float((LOSS(trained(X), Y) + decay(trained)).detach()))


@pytest.mark.parametrize("kept", [0, 2**30])
def test_kept_graphs_hold_while_other_weights_are_measured(kept: int) -> None:
    plain = Plain().double()
    problem = of(plain, batch_size=5)
    vector = torch.linspace(-1, 1, problem.space.n, dtype=D)
    expected = by_hand(plain, problem.weights)[2] @ vector
    with Evaluator(problem) as evaluator:
        operator = Hessian(evaluator, graph_bytes=kept)
        for _ in range(2):
            assert torch.allclose(operator.matvec(vector), expected, rtol=1e-11, atol=1e-13)
            evaluator.loss(evaluator.origin + 1.0)  # writes other weights in between


def test_the_owners_own_graph_survives_a_measurement() -> None:
    model = Plain().double()
    loss = LOSS(model(X), Y)
    ls.top_eigenpairs(of(model), k=1)
    loss.backward()
    assert model.stem.weight.grad is not None


# Turns


def checkpoints() -> tuple[Problem, Problem, Problem]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = {k: torch.rand_like(v) + 0.1 for k, v in model.state_dict().items() if v.ndim}
        states.append(state | {"1.num_batches_tracked": torch.tensor(seed)})
    base = of(model)
    return base, *(base.at(state, name=f"w{i}") for i, state in enumerate(states))  # type: ignore[return-value]


def test_problems_on_one_model_take_turns() -> None:
    base, one, other = checkpoints()
    expected = [ls.evaluation(problem).loss for problem in (base, one, other)]
    assert len(set(expected)) == 3
    with Evaluator(one) as first:
        assert first.loss().value == expected[1]
        with Evaluator(other) as second, Evaluator(base) as third:
            for _ in range(2):
                assert first.loss().value == expected[1]
                assert second.loss().value == expected[2]
                assert third.loss().value == expected[0]
                assert torch.equal(base.weights, third.origin)
        assert first.loss().value == expected[1]
    with Evaluator(base) as first:  # whose weights and buffers are the owner's
        assert ls.evaluation(one).loss == expected[1]
        assert first.loss().value == expected[0]


def test_turns_of_other_types_and_modes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
    narrow = Problem(model, LOSS, (X.float(), Y))
    wide = Problem(model, LOSS, (X, Y), dtype="float64", mode="train")
    expected = [ls.evaluation(problem).loss for problem in (narrow, wide)]
    with Evaluator(narrow) as first, Evaluator(wide) as second:
        operator = Hessian(first)
        product = operator.matvec(first.origin)
        for _ in range(2):
            assert [first.loss().value, second.loss().value] == expected
            assert torch.equal(operator.matvec(first.origin), product)
    assert model[0].weight.dtype == torch.float32


def test_a_problem_at_a_checkpoint_copies_no_model_and_reads_it_once() -> None:
    base, one, _ = checkpoints()
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    assert one.model is base.model
    state = one.state()
    assert not torch.equal(state["0.weight"], before["0.weight"])
    with Evaluator(base):  # and inside a measurement of other weights
        again = base.at({k: v.clone() for k, v in state.items()})
    assert torch.equal(again.weights, one.weights)
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())


def test_two_threads_at_once_are_refused() -> None:
    problem, said = of(Plain().double()), list[str]()

    def measure() -> None:
        try:
            ls.evaluation(problem)
        except ProblemError as error:
            said.append(str(error))

    with Evaluator(problem) as evaluator:
        thread = threading.Thread(target=measure)
        thread.start()
        thread.join()
        assert evaluator.loss().value > 0
    assert len(said) == 1
    assert "is being measured in another thread" in said[0]
    thread = threading.Thread(target=measure)  # one after the other is fine
    thread.start()
    thread.join()
    assert len(said) == 1


def test_an_evaluator_that_was_not_entered() -> None:
    with pytest.raises(ProblemError, match="use it in a with statement"):
        Evaluator(of(Plain().double())).loss()


# What is given back


class Busy(nn.Module):
    """Does to itself whatever a forward pass can do."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3, max_norm=0.5, sparse=True)
        self.norm, self.drop, self.head = nn.BatchNorm1d(3), nn.Dropout(0.3), nn.Linear(3, 3)
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.table = torch.zeros(4)
        self.log: list[float] = []
        self.head.register_forward_hook(lambda m, a, out: self.log.append(float(out.sum())))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.passing.data.mul_(1.5)
        self.table[0] += 1
        self.last = x
        random.random()
        np.random.rand()
        h = self.words((x.detach() * 7).long().sum(dim=1).abs() % 5)
        return self.head(self.drop(self.norm(h + x.to(h))))


def portrait(model: nn.Module) -> str:
    """A digest of parameters, buffers, attributes, modes, gradients, hooks' results and RNG."""
    digest = hashlib.sha256()
    for name, part in model.named_modules():
        digest.update(f"{name} {id(part)} {part.training} {sorted(vars(part))}".encode())
        for key, value in sorted(vars(part).items()):
            items = value.items() if isinstance(value, dict) else [(key, value)]
            for inner, item in items:
                digest.update(f"{key} {inner} {id(item)}".encode())
                if isinstance(item, Tensor):
                    digest.update(item.detach().numpy().tobytes())
                    grad = item.grad if item.is_leaf else None
                    digest.update(f"{item.dtype} {item.requires_grad} {id(grad)}".encode())
                elif isinstance(item, list):
                    digest.update(repr(item).encode())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(repr((np.random.get_state()[1].tolist(), random.getstate())).encode())
    digest.update(
        repr((torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled())).encode()
    )
    return digest.hexdigest()


def busy(mode: str) -> Problem:
    torch.manual_seed(0)
    model = Busy().train(mode != "train")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.head.bias.requires_grad_(False)
    return Problem(model, LOSS, (X.float(), Y), mode=mode, dtype="float64", batch_size=5)


def work(problem: Problem) -> None:
    with Evaluator(problem) as evaluator:
        evaluator.loss(evaluator.origin + 0.1)
        evaluator.gradient()
        Hessian(evaluator).matvec(evaluator.origin)
        Engine(evaluator, Plan(fold=True, points=2)).losses([evaluator.origin] * 2)


@contextmanager
def interrupting(at: int, event: Callable[[], None]) -> Iterator[list[Any]]:
    """Do something at the n-th call of a function of the core; list the code of the calls."""
    calls: list[Any] = []

    def trace(frame: FrameType, what: str, argument: Any) -> None:
        code = frame.f_code
        if what == "call" and "landscape" in code.co_filename and "tests" not in code.co_filename:
            calls.append(code)
            if len(calls) == at:
                event()

    sys.setprofile(trace)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Give the handler of Ctrl-C back to the tests that follow, whatever this one finds."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.usefixtures("interrupts", "only_new_garbage")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("how", ["interrupt", "exception"])
def test_an_interrupt_at_any_call_leaves_the_model_as_it_was(mode: str, how: str) -> None:
    class Injected(Exception):
        pass

    def fail() -> None:
        raise Injected

    event = (lambda: signal.raise_signal(signal.SIGINT)) if how == "interrupt" else fail
    problem = busy(mode)
    _ = problem.batches
    before = portrait(problem.model)
    with interrupting(0, event) as calls, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work(problem)
    assert portrait(problem.model) == before
    # Each function once, at one of its calls, and every so many calls.
    first = {code: i + 1 for i, code in enumerate(calls)}
    steps = sorted({*first.values(), *np.linspace(1, len(calls), 15).astype(int).tolist()})
    assert len(steps) > 60
    caught = 0
    for at in steps:
        problem = busy(mode)
        _ = problem.batches
        before = portrait(problem.model)
        try:
            with interrupting(at, event), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work(problem)
        except (KeyboardInterrupt, Injected, ls.LandscapeError):
            caught += 1
        if how == "exception":  # one in the closing itself is put right with the evaluator's end
            gc.collect()
        assert portrait(problem.model) == before, calls[at - 1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, calls[at - 1]
    assert caught > 0.7 * len(steps)


def test_a_nested_guard_shows_the_owners_values() -> None:
    problem = of(Plain().double())
    own = problem.weights
    with Evaluator(problem) as evaluator:
        at = evaluator.origin + 1.0
        value = evaluator.loss(at).value
        with preserved(problem.model):
            assert torch.equal(nn.utils.parameters_to_vector(problem.model.parameters()), own)
        assert evaluator.loss(at).value == value


def test_memory_is_written_in_place_where_the_type_allows_it() -> None:
    model, seen = Plain().double(), set[int]()
    place = model.stem.weight.data_ptr()
    model.stem.register_forward_hook(lambda m, a, o: seen.add(m.weight.data_ptr()))
    ls.top_eigenpairs(of(model), k=1)
    assert seen == {place}


# What is wrapped, and what cannot be written


def test_wrappers_are_taken_off() -> None:
    plain = Plain().double()
    right = ls.top_eigenpairs(of(plain), k=1).values[0]
    for wrapped in (
        torch.compile(plain, backend="aot_eager"),
        nn.DataParallel(plain),
        nn.DataParallel(torch.compile(plain, backend="aot_eager")),
    ):
        problem = of(wrapped)
        assert problem.model is plain
        assert problem.space.names[0] == "stem.weight"
        assert ls.top_eigenpairs(problem, k=1).values[0] == right


def test_a_part_that_is_compiled() -> None:
    plain = Plain().double()
    right = ls.top_eigenpairs(of(plain), k=1).values[0]

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.compile(plain, backend="aot_eager")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = Partly()
    model(X)  # it has been compiled
    assert ls.top_eigenpairs(of(model), k=1).values[0] == pytest.approx(right, rel=1e-10)


def test_parameters_that_share_memory_are_refused() -> None:
    model = Plain().double()
    model.other = nn.Parameter(model.stem.weight.data.view(-1)[3:9])
    with pytest.raises(ProblemError, match=r"stem.weight and other share memory|other and stem"):
        of(model)


def test_parameters_made_under_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = Plain().double()
    with pytest.raises(ProblemError, match="was made under"):
        of(model)


# Embeddings


def words(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(6, 4, **options), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_max_norm_is_differentiated_as_part_of_the_function(norm_type: float) -> None:
    index = torch.arange(12) % 5  # the last row is not used
    model = words(max_norm=1.0, norm_type=norm_type)
    before = model[0].weight.detach().clone()
    problem = Problem(model, LOSS, (index, Y))

    def function(vector: Tensor) -> Tensor:
        table, head, bias = vector.split([24, 12, 3])
        table = table.view(6, 4)
        norms = torch.linalg.vector_norm(table, ord=norm_type, dim=1, keepdim=True)
        table = torch.where(norms > 1.0, table / (norms + 1e-7), table)
        return F.cross_entropy(torch.tanh(table[index]) @ head.view(3, 4).T + bias, Y)

    at = problem.weights
    expected = torch.autograd.functional.hessian(function, at)
    with Evaluator(problem) as evaluator:
        value, gradient = evaluator.gradient()
        product = Hessian(evaluator).matvec(torch.ones_like(at))
    assert value.value == pytest.approx(float(function(at)), rel=1e-12)
    assert torch.allclose(gradient, torch.func.grad(function)(at), atol=1e-12)
    assert torch.allclose(product, expected.sum(dim=1), atol=1e-10)
    assert torch.equal(model[0].weight, before)


def test_sparse_gradients_are_made_dense() -> None:
    index = torch.arange(12) % 6
    dense, sparse = words(), words(sparse=True)
    expected, found = (
        ls.top_eigenpairs(Problem(m, LOSS, (index, Y)), k=2) for m in (dense, sparse)
    )
    assert found.values == pytest.approx(expected.values, rel=1e-10)
    assert sparse[0].sparse


# A parametrization of any kind


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_layers_against_differences(name: str) -> None:
    torch.manual_seed(0)
    layer = getattr(parametrizations, name)(nn.Linear(3, 3))
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 3)).double().eval()
    problem = of(model)
    with Evaluator(problem) as evaluator:
        vector = torch.linspace(-1, 1, problem.space.n, dtype=D)
        product = Hessian(evaluator).matvec(vector)
        up, down = (evaluator.gradient(evaluator.origin + s * 1e-5 * vector)[1] for s in (1, -1))
    assert torch.allclose(product, (up - down) / 2e-5, rtol=1e-5, atol=1e-7)


def test_an_autocast_context_around_the_call_casts_the_weights_of_each_point() -> None:
    problem = Problem(Plain(), LOSS, (X.float(), Y))
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore", MisleadingWarning)
        evaluator = Evaluator(problem).__enter__()
        losses = {evaluator.loss(evaluator.origin + step).value for step in (0.0, 0.3, -0.2)}
        evaluator.__exit__()
    assert len(losses) == 3


# Parts that are idle


def test_an_idle_part_has_slope_zero_and_an_idle_loss_is_refused() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(2, 2)}).double()
    problem = Problem(
        model, batch_loss=lambda m, b: F.cross_entropy(m["used"](b[0]), b[1]), data=[(X, Y)]
    )
    idle = problem.only("idle")
    with Evaluator(idle) as evaluator:
        assert not evaluator.gradient()[1].any()
        assert not Hessian(evaluator).matvec(evaluator.origin).any()
    layers = ls.eigenpairs_by_layer(problem, k=1)
    assert layers["idle"].values[0] == 0.0
    assert layers["used"].values[0] == pytest.approx(ls.top_eigenpairs(problem).values[0])
    nothing = Problem(model, batch_loss=lambda m, b: b[0].square().mean(), data=[(X, Y)])
    with Evaluator(nothing) as evaluator, pytest.raises(LossError, match="does not depend on the"):
        evaluator.gradient()


# Layers that learn their shapes


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_learn_their_shapes_from_the_data() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(3))

    trained = make()
    trained(X.float())
    trained.eval()
    problem = Problem(make(), LOSS, (X, Y), dtype="float64").at(trained.state_dict())
    right = LOSS(trained.double()(X), Y)
    assert ls.evaluation(problem).loss == pytest.approx(float(right.detach()), rel=1e-12)
    assert problem.model[1].training


# What a model may do to itself


def test_layers_that_are_unfrozen_later_are_no_part_of_the_problem() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].requires_grad_(False)
    problem = of(model)
    model[0].requires_grad_(False)  # as in gradual unfreezing: another layer of the same size
    model[2].requires_grad_(True)
    right = float(LOSS(model(X), Y).detach())
    assert problem.space.names == ("0.weight", "0.bias")
    assert ls.evaluation(problem).loss == pytest.approx(right, rel=1e-12)
    assert ls.evaluation(problem.at(model.state_dict())).loss == pytest.approx(right, rel=1e-12)


class Averaging(Plain):
    """Moves a frozen average of its weights in every pass, as momentum encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Linear(3, 5).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.target.weight.lerp_(self.stem.weight, 1e-3)
        return self.head(torch.tanh(self.stem(x)) + self.target(x))


class Clamping(Plain):
    def forward(self, x: Tensor) -> Tensor:
        self.stem.weight.data = self.stem.weight.data.clamp(-1.0, 1.0)
        return super().forward(x)


class Decaying(Plain):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.stem.weight.data.mul_(0.9)
        return out


@pytest.mark.parametrize("make", [Averaging, Clamping, Decaying])
def test_what_a_pass_does_to_weights_does_not_reach_the_next(make: type[Plain]) -> None:
    model = make().double()
    problem = of(model, batch_size=5)
    before = [p.detach().clone() for p in model.parameters()]
    with Evaluator(problem) as evaluator:
        at, far = evaluator.origin, evaluator.origin + 2.0
        losses = [[evaluator.loss(w).value for w in (at, far)] for _ in range(3)]
    assert losses[0] == losses[1] == losses[2]
    assert losses[0][0] != losses[0][1]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_model_that_merges_its_weights_for_evaluation() -> None:
    class Merging(nn.Linear):
        """As layers of low-rank adapters do."""

        def __init__(self) -> None:
            super().__init__(3, 3)
            self.a, self.merged = nn.Parameter(torch.rand(3, 3)), False

        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            if self.merged == mode:
                self.weight.data += (-1 if mode else 1) * self.a.data
                self.merged = not mode
            return self

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight if self.merged else self.weight + self.a, self.bias)

    model = Merging().double()
    right = float(LOSS(model(X), Y).detach())
    with Evaluator(of(model)) as evaluator:
        assert evaluator.loss().value == pytest.approx(right, rel=1e-12)
        twice = 2 * evaluator.origin
        named = evaluator.problem.space.unflatten(twice)
        scaled = LOSS(F.linear(X, named["weight"] + named["a"], named["bias"]), Y)
        assert evaluator.loss(twice).value == pytest.approx(float(scaled), rel=1e-12)
    assert not model.merged


def test_a_script_module() -> None:
    model = Plain().double().eval()
    right = ls.top_eigenpairs(of(model), k=1).values[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(model.stem, nn.Tanh(), model.head))
        assert ls.top_eigenpairs(of(scripted), k=1).values[0] == pytest.approx(right, rel=1e-9)


def test_containers_generators_and_expanded_buffers_are_given_back() -> None:
    class Keeping(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.queue, self.counts = deque([0.0], maxlen=3), Counter(a=1)
            self.nested, self.pair = [[1.0]], (torch.zeros(2),)
            self.generator = torch.Generator().manual_seed(0)
            self.register_buffer("mask", torch.ones(1, dtype=D).expand(3))

        def forward(self, x: Tensor) -> Tensor:
            self.queue.append(1.0)
            self.counts["b"] += 1
            self.nested[0].append(2.0)
            self.pair[0].add_(1.0)
            torch.rand(1, generator=self.generator)
            return super().forward(x) * self.mask

    model = Keeping().double()
    state = model.generator.get_state()
    ls.top_eigenpairs(of(model), k=1)
    assert list(model.queue) == [0.0]
    assert model.counts == Counter(a=1)
    assert model.nested == [[1.0]]
    assert not model.pair[0].any()
    assert torch.equal(model.generator.get_state(), state)


# What is refused


def test_tensors_in_one_memory_and_shared_layers_are_refused() -> None:
    model = Plain().double()
    model.register_buffer("tied", model.stem.weight.detach())
    with pytest.raises(ProblemError, match=r"stem.weight and tied share memory|tied and stem"):
        of(model)
    whole = Plain().double()
    part = Problem(nn.Sequential(whole.stem), nn.MSELoss(), (X, torch.zeros(12, 5, dtype=D)))
    with Evaluator(of(whole)), pytest.raises(ProblemError, match="shares parameters with a Plain"):
        ls.evaluation(part)


def test_an_evaluator_is_entered_once() -> None:
    evaluator = Evaluator(of(Plain().double()))
    with evaluator, pytest.raises(ProblemError, match="entered already"):
        evaluator.__enter__()


def test_max_norm_of_a_shared_weight_is_refused() -> None:
    model = words(max_norm=1.0)
    model.append(nn.Linear(4, 6, bias=False).double())
    model[3].weight = model[0].weight
    problem = Problem(model, batch_loss=lambda m, b: m[:3](b[0]).sum(1), data=[(Y, Y)])
    with pytest.raises(ProblemError, match="0 has max_norm and shares its weight"):
        ls.evaluation(problem)


class Sometimes(Plain):
    """Checkpoints long batches alone."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 6:
            return super().forward(x)
        x = x.detach().requires_grad_(True)
        block = lambda t: torch.tanh(self.stem(t))  # noqa: E731
        return self.head(checkpoint(block, x, use_reentrant=True))


@pytest.mark.filterwarnings("ignore:.*use_reentrant")
def test_reentrant_checkpoints_of_later_batches() -> None:
    plain, model = Plain().double(), Sometimes().double()
    model.load_state_dict(plain.state_dict())
    batches = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    _, gradient, hessian = by_hand(plain, of(plain).weights)
    vector = torch.linspace(-1, 1, len(gradient), dtype=D)
    with Evaluator(Problem(model, LOSS, batches)) as evaluator:
        assert torch.allclose(evaluator.gradient()[1], gradient, rtol=1e-11, atol=1e-13)
        operator = Hessian(evaluator)
        assert torch.allclose(operator.matvec(vector), hessian @ vector, rtol=1e-6, atol=1e-8)
        assert "use_reentrant=False" in operator.describe()


class Cut(nn.Module):
    """A large layer whose gradient is cut, beside one with a large gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(3, 3), nn.Linear(3, 300)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = torch.tanh(self.large(x)).mean(dim=1, keepdim=True)
        return 10 * self.small(x) + hidden * torch.arange(3.0, dtype=x.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_layer_that_autograd_passes_over_is_found(dtype: str) -> None:
    problem = Problem(Cut(), LOSS, (X, Y), dtype=dtype)
    with Evaluator(problem) as evaluator, pytest.raises(LossError, match="not the slope"):
        evaluator.gradient()


def test_forward_mode_that_sees_other_weights_is_refused() -> None:
    net = Plain().double()
    held = list(net.parameters())  # which forward mode does not replace
    problem = of(net, lambda o, t: F.cross_entropy(o, t) + sum(p.square().sum() for p in held))
    with Evaluator(problem) as evaluator:
        operator = Hessian(evaluator, products="forward-over-reverse")
        with pytest.raises(LossError, match="another product than double backward"):
            operator.matvec(evaluator.origin)
