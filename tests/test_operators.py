from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, case_named, cut, equal_batches, in_batches, partitions
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from landscape.errors import LossError, NonFiniteError
from landscape.evaluate import DoubleBackward, Evaluator, graph_bytes
from landscape.operators import CURVATURES, Hessian
from landscape.operators._curvature import pieces
from landscape.operators._hessian import ForwardOverReverse
from landscape.problem import Problem


def dense(operator: Hessian) -> Tensor:
    """The matrix of an operator, column by column."""
    eye = torch.eye(operator.n, dtype=operator.dtype)
    return torch.stack([operator.matvec(column) for column in eye], dim=1)


@pytest.mark.parametrize("room", [0, 2**30], ids=["built anew", "kept"])
@pytest.mark.parametrize(("case", "size"), in_batches(None, 4))
def test_the_hessian_is_that_of_the_whole_data(case: Case, size: int | None, room: int) -> None:
    expected = case.dense_hessian()
    with Evaluator(case.build(size)) as evaluator:
        operator = Hessian(evaluator, graph_bytes=room)
        found = dense(operator)
    assert (operator.n, operator.dtype) == (len(expected), torch.float64)
    scale = max(1.0, float(expected.abs().max()))
    assert (found - expected).abs().max() <= 1e-12 * scale
    assert (found - found.T).abs().max() <= 1e-12 * scale


BY_OUTPUT = [
    pytest.param(case, size, room, id=f"{case}-{size or 'all'}-{'kept' if room else 'anew'}")
    for case in CASES
    if not case.depends_on_batches and case.name != "sum_and_weight"
    for size, room in ((None, 2**30), (4, 0))
]


@pytest.mark.parametrize(("case", "size", "room"), BY_OUTPUT)
@pytest.mark.parametrize("kind", ["ggn", "fisher"])
def test_jacobian_operators_are_those_of_the_whole_data(
    case: Case, size: int | None, room: int, kind: str
) -> None:
    expected = case.dense_ggn() if kind == "ggn" else case.dense_fisher()
    with Evaluator(case.build(size)) as evaluator:
        found = CURVATURES[kind](evaluator, graph_bytes=room).dense()
    scale = max(1.0, float(expected.abs().max()))
    assert (found - expected).abs().max() <= 1e-12 * scale
    assert float(torch.linalg.eigvalsh(expected)[0]) >= -1e-12 * scale


@pytest.mark.parametrize("kind", ["ggn", "fisher"])
def test_operators_that_need_more_than_the_loss_says_so(kind: str) -> None:
    said = {"ggn": "splits the loss at the model's output", "fisher": "the loss of each example"}
    with Evaluator(case_named("sum_and_weight").build()) as evaluator:

        def product() -> None:
            operator = CURVATURES[kind](evaluator)
            operator.matvec(torch.ones(operator.n, dtype=torch.float64))

        with pytest.raises(LossError, match=said[kind]):
            product()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("way", ["forward-over-reverse", "differences"])
def test_every_way_gives_the_same_products(case: Case, way: str) -> None:
    expected = case.dense_hessian()
    with Evaluator(case.build(None if case.depends_on_batches else 4)) as evaluator:
        operator = Hessian(evaluator, products=way)
        vectors = torch.randn(3, operator.n, generator=torch.manual_seed(1), dtype=torch.float64)
        found = operator.matmat(vectors)
        exact = Hessian(evaluator).matmat(vectors)
    scale = float(expected.abs().max()) * float(vectors.norm(dim=1).max())
    tolerance = 1e-12 if way == "forward-over-reverse" else 1e-6
    assert (exact - vectors @ expected).abs().max() <= 1e-12 * max(1.0, scale)
    assert (found - exact).abs().max() <= tolerance * max(1.0, scale)
    assert way.replace("-", " ").replace("differences", "finite differences") in operator.describe()


@pytest.mark.parametrize(("factor", "taken"), [(1.0, True), (1.001, False)])
def test_forward_mode_is_taken_where_it_is_faster_and_right(
    factor: float, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = case_named("mlp").dense_hessian()
    slow, right = DoubleBackward.times, ForwardOverReverse.times

    def sleeping(self: DoubleBackward, vector: Tensor, *, retain: bool) -> Any:
        time.sleep(0.05)
        return slow(self, vector, retain=retain)

    def changed(self: ForwardOverReverse, vector: Tensor, *, retain: bool) -> Any:
        return [None if p is None else factor * p for p in right(self, vector, retain=retain)]

    monkeypatch.setattr(DoubleBackward, "times", sleeping)
    monkeypatch.setattr(ForwardOverReverse, "times", changed)
    with Evaluator(case_named("mlp").build()) as evaluator:
        operator = Hessian(evaluator, graph_bytes=0, products="fastest")
        assert torch.allclose(operator.matvec(torch.ones(31).double()), expected.sum(dim=1))
        assert operator.describe().startswith("forward over" if taken else "double backward")


@pytest.mark.parametrize("case", [c for c in CASES if not c.depends_on_batches], ids=str)
@settings(max_examples=3)
@given(sizes=partitions())
def test_any_batching_gives_the_same_hessian(case: Case, sizes: list[int]) -> None:
    found = []
    for problem in (case.build(), case.build(partition=sizes)):
        with Evaluator(problem) as evaluator:
            vector = torch.linspace(-1, 1, problem.space.n, dtype=torch.float64)
            found.append(Hessian(evaluator).matvec(vector))
    assert torch.allclose(found[0], found[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_hessian_elsewhere(case: Case) -> None:
    with Evaluator(case.build()) as evaluator:
        at = evaluator.origin + 0.2 * torch.linspace(-1, 1, len(evaluator.origin))
        vector = torch.linspace(1, -2, len(at), dtype=torch.float64)
        found = Hessian(evaluator, at=at).matvec(vector)
    assert torch.allclose(found, case.dense_hessian(at) @ vector, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_products_in_float32(case: Case) -> None:
    with Evaluator(case.build(None if case.depends_on_batches else 4, "float32")) as evaluator:
        vector = torch.linspace(-1, 1, len(evaluator.origin))
        found = Hessian(evaluator).matvec(vector)
    expected = case.dense_hessian() @ vector.double()
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_batch_statistics_by_finite_differences() -> None:
    # torch.func's own second derivative of F.batch_norm in train mode is wrong; ours is not.
    case = case_named("batch_norm_train")
    with Evaluator(case.build()) as evaluator:
        found = dense(Hessian(evaluator))
        columns = []
        for unit in torch.eye(len(found), dtype=torch.float64):
            up, down = (evaluator.gradient(evaluator.origin + s * 1e-5 * unit)[1] for s in (1, -1))
            columns.append((up - down) / 2e-5)
    assert torch.allclose(found, torch.stack(columns, dim=1), atol=1e-8)


# Graphs


@pytest.mark.parametrize("kept", [0, 1, 2, 4])
def test_graphs_are_kept_as_long_as_there_is_room(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    original = DoubleBackward.__init__

    def counting(self: DoubleBackward, evaluator: Any, at: Tensor, batch: Any, number: int) -> None:
        built.append(number)
        original(self, evaluator, at, batch, number)

    retained: list[bool] = []
    product = DoubleBackward.times

    def watched(self: DoubleBackward, vector: Tensor, *, retain: bool) -> Tensor:
        retained.append(retain)
        return product(self, vector, retain=retain)

    with Evaluator(case_named("mlp").build(4)) as evaluator:
        sizes = [
            DoubleBackward(evaluator, evaluator.origin, piece.batch, piece.number).n_bytes
            for piece in pieces(evaluator.problem, None)
        ]
        operator = Hessian(
            evaluator,
            graph_bytes=2 * (sum(sizes[:kept]) + 1) if kept else 0,
            products="double-backward",
        )
        monkeypatch.setattr(DoubleBackward, "__init__", counting)
        monkeypatch.setattr(DoubleBackward, "times", watched)
        operator._size = (None,)  # no batch is cut
        vector = torch.ones_like(evaluator.origin)
        first = operator.matvec(vector)
        assert built == [0, 1, 2, 3]
        for _ in range(2):
            built.clear()
            assert torch.equal(operator.matvec(vector), first)
            assert built == list(range(kept, 4))
    assert retained == 3 * [i < kept for i in range(4)]


def test_the_memory_of_a_graph_is_at_least_what_it_must_hold() -> None:
    x = torch.ones(100, 50, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 1)).double()
    with Evaluator(Problem(model, nn.MSELoss(), (x, x[:, :1]))) as evaluator:
        (piece,) = pieces(evaluator.problem, None)
        size = DoubleBackward(evaluator, evaluator.origin, piece.batch, 0).n_bytes
    one = 100 * 50 * 8  # the input, and the activation after the first layer
    weights = evaluator.origin.numel() * 8
    assert 2 * one + weights <= size <= 12 * one + weights


def test_a_leaf_has_no_graph() -> None:
    assert graph_bytes(torch.ones(3, requires_grad=True)) == 0
    assert graph_bytes(torch.ones(3)) == 0


def test_products_after_the_first_do_not_run_the_model() -> None:
    calls: list[int] = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x).square()

    x = torch.ones(5, 2)
    with Evaluator(Problem(Counting(2, 2), nn.MSELoss(), (x, x), batch_size=3)) as evaluator:
        operator = Hessian(evaluator)
        operator.matvec(evaluator.origin)
        assert calls[-2:] == [3, 2]
        calls.clear()
        for _ in range(3):
            operator.matvec(evaluator.origin)
    assert calls == []


# Models with something special about their derivatives


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(mixed.transpose(1, 2).flatten(2)).mean(dim=1)


class PlainAttention(Attention):
    """The same by matrix products and a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.mT / 2**0.5).masked_fill(later, -torch.inf)
        mixed = scores.softmax(-1) @ v
        return self.head(mixed.transpose(1, 2).flatten(2)).mean(dim=1)


def sequences() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 5, 4, generator=generator, dtype=torch.float64)
    return cut((x, torch.arange(13) % 3), equal_batches(6))


def test_attention_has_second_derivatives() -> None:
    torch.manual_seed(0)
    model = Attention().double()
    plain = PlainAttention().double()
    plain.load_state_dict(model.state_dict())
    found = []
    for each in (model, plain):
        with Evaluator(Problem(each, nn.CrossEntropyLoss(), sequences())) as evaluator:
            found.append((evaluator.gradient()[1], dense(Hessian(evaluator))))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-12)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-12)
    assert found[0][1].abs().max() > 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(4, 3, batch_first=True),
        lambda: nn.GRU(4, 3, batch_first=True),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    ],
    ids=["lstm", "gru", "transformer"],
)
def test_layers_of_torch_by_finite_differences(make: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = make()

        def forward(self, x: Tensor) -> Tensor:
            out = self.body(x)
            return (out[0] if isinstance(out, tuple) else out)[:, -1]

    with Evaluator(Problem(Model().double(), nn.CrossEntropyLoss(), sequences())) as evaluator:
        vector = torch.linspace(-1, 1, len(evaluator.origin), dtype=torch.float64)
        found = Hessian(evaluator).matvec(vector)
        up, down = (evaluator.gradient(evaluator.origin + s * 1e-5 * vector)[1] for s in (1, -1))
    assert torch.allclose(found, (up - down) / 2e-5, atol=1e-7)


def test_a_linear_loss_has_no_curvature() -> None:
    x = torch.ones(5, 2)
    problem = Problem(nn.Linear(2, 1), lambda o, t: o.sum(dim=1), (x, x), batch_size=2)
    with Evaluator(problem) as evaluator:
        operator = Hessian(evaluator)
        for _ in range(2):
            assert not operator.matvec(torch.ones(3)).any()


def test_a_gradient_that_depends_on_something_else_is_no_curvature() -> None:
    scale = torch.tensor(2.0, requires_grad=True)  # a parameter of the loss itself
    x = torch.ones(5, 2)
    problem = Problem(nn.Linear(2, 1), lambda o, t: scale * o.sum(dim=1), (x, x))
    with Evaluator(problem) as evaluator:
        assert not Hessian(evaluator).matvec(torch.ones(3)).any()


def test_a_parameter_in_which_the_loss_is_linear_has_zero_rows() -> None:
    problem = case_named("regression").build()
    model = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)}).double()

    def batch_loss(net: nn.Module, batch: Any) -> Tensor:
        return (net["a"](batch[0]).square() + net["b"](batch[0])).mean()

    data = list(problem.batches)
    with Evaluator(Problem(model, data=data, batch_loss=batch_loss)) as evaluator:
        found = dense(Hessian(evaluator))
    assert found[:4, :4].abs().max() > 0.1
    assert not found[4:].any()
    assert not found[:, 4:].any()


def test_a_loss_that_cannot_be_differentiated_twice() -> None:
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).log_softmax(-1)

    def ctc(output: Tensor, target: Tensor) -> Tensor:
        lengths = [torch.full((len(output),), n) for n in (5, 2)]
        return F.ctc_loss(output.transpose(0, 1), target, *lengths, reduction="none")

    data = torch.randn(4, 5, 4), torch.randint(1, 3, (4, 2))
    with Evaluator(Problem(Model(4, 3).double(), ctc, data)) as evaluator:
        vector = torch.linspace(-1, 1, 15, dtype=torch.float64)
        match = "outside of the layers: .*twice: derivative for .*ctc.* is not implemented"
        with pytest.raises(LossError, match=match):
            Hessian(evaluator, products="double-backward").matvec(vector)
        operator = Hessian(evaluator)
        found = operator.matvec(vector)
        up, down = (evaluator.gradient(evaluator.origin + s * 1e-4 * vector)[1] for s in (1, -1))
        assert torch.allclose(found, (up - down) / 2e-4, rtol=1e-6, atol=1e-8)
        assert operator.error < 1e-6
        assert "finite differences, relative error" in operator.describe()
        assert "ctc" in operator.describe()


def test_running_out_of_memory_is_not_called_a_fault_of_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with Evaluator(case_named("mlp").build()) as evaluator:
        monkeypatch.setattr(torch.autograd, "grad", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            evaluator.gradient()


def masked(mode: str = "train") -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (12,), generator=generator)
    layers = nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
    model = nn.Sequential(*layers).double()
    return Problem(model, nn.CrossEntropyLoss(), (x, y), batch_size=4, mode=mode)


def test_forward_mode_has_the_dropout_masks_of_double_backward() -> None:
    with Evaluator(masked()) as evaluator:
        vector = torch.linspace(-1, 1, len(evaluator.origin), dtype=torch.float64)
        found = Hessian(evaluator, products="forward-over-reverse").matvec(vector)
        expected = Hessian(evaluator, products="double-backward").matvec(vector)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_the_batch_of_any_product_that_is_not_finite_is_named() -> None:
    """The product along the first vector is finite in every batch."""

    def batch_loss(model: Any, batch: Any) -> Tensor:
        x, large = batch
        return (x * model.weight**2).sum(dim=1) + large * model.weight[0, 1] ** 2

    x, zeros = torch.ones(4, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    data = [(x, zeros), (x, zeros + 1e200), (x, zeros)]
    model = nn.Linear(2, 1, bias=False).double()
    vectors = torch.diag(torch.tensor([1.0, 1e200], dtype=torch.float64))
    with Evaluator(Problem(model, data=data, batch_loss=batch_loss)) as evaluator:
        operator = Hessian(evaluator, products="double-backward")
        with pytest.raises(NonFiniteError, match="with batch 1 of the train data"):
            operator.matmat(vectors)


def test_the_graphs_go_with_their_operator() -> None:
    with Evaluator(masked("eval")) as evaluator:
        operator = Hessian(evaluator)
        operator.matvec(torch.ones(operator.n, dtype=torch.float64))
        known = weakref.ref(operator)
        gc.disable()
        try:
            del operator
            assert known() is None
        finally:
            gc.enable()


class Hidden(torch.autograd.Function):
    """A sine whose backward pass does not show that it depends on the gradient that it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient.detach() * x.cos()


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Hidden.apply(x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["ggn", "fisher"])
def test_a_backward_pass_that_hides_its_dependence_is_refused(kind: str, dtype: str) -> None:
    """The gradient is right, and the matrix would lack the first layer without a word."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(9, 3, generator=generator), torch.randn(9, 2, generator=generator)
    model = nn.Sequential(nn.Linear(3, 4), Sine(), nn.Linear(4, 2))
    with Evaluator(Problem(model, nn.MSELoss(), data, dtype=dtype)) as evaluator:
        with pytest.raises(LossError, match=r"1 \(Sine\).*operator hessian goes on"):
            CURVATURES[kind](evaluator)


class Checkpointed(nn.Module):
    """Recomputes its layers in the backward pass, and counts how often they run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        self.runs = 0

    def run(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.layers(x)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.run, x, use_reentrant=False)


def test_measuring_a_graph_recomputes_nothing() -> None:
    """For each saved tensor that it looked at, activation checkpointing ran the layers again."""
    data = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    model = Checkpointed()
    with Evaluator(Problem(model, nn.CrossEntropyLoss(), data)) as evaluator:
        operator = Hessian(evaluator)
        operator.matvec(evaluator.origin)  # the derivatives have been tested
        (piece,) = pieces(evaluator.problem, None)
        product = operator._build(piece)
        model.runs = 0
        assert product.n_bytes > 0
        assert model.runs == 0
