"""Nothing is guessed: how a model takes its inputs, what a loss is given, how many examples."""

from __future__ import annotations

import functools
import warnings
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, IterableDataset

import landscape as ls
from landscape.doctor import contents, diagnose
from landscape.doctor.context import DiagnosticContext
from landscape.errors import (
    DataError,
    InvalidArgumentError,
    LossError,
    LossNotAdditiveWarning,
    MisleadingWarning,
    ProblemError,
    first_line,
)
from landscape.evaluate import Evaluator
from landscape.evaluate._plans import sample_of
from landscape.problem import Problem, load_problem
from landscape.problem._batches import Batches
from landscape.problem._batching import Batching
from landscape.problem._calling import forward
from landscape.problem.data import copied, move, n_bytes, tensors_in, written_to
from landscape.problem.losses import make_loss

CPU, D = torch.device("cpu"), torch.float64

with warnings.catch_warnings():  # torch says once that this layout is in beta
    warnings.simplefilter("ignore")
    torch.eye(2).to_sparse_csr()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=D)


def labels(*shape: int, n: int = 3) -> Tensor:
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(1))


def measured(problem: Problem) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ls.evaluation(problem).loss


def by_hand(model: nn.Module, data: list[Any]) -> float:
    """The mean cross-entropy over the examples, from the model as its owner calls it."""
    with torch.no_grad():
        each = [F.cross_entropy(model(x), y, reduction="none").reshape(-1) for x, y in data]
    return float(torch.cat(each).mean())


# How a model takes its inputs

Pair = namedtuple("Pair", "a b")


@dataclass
class Held:
    a: int
    b: int


class Given(nn.Module):
    """Gives back what its forward was given."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


def one(x):
    return ("one", x)


def two(x, y):
    return ("two", x, y)


def optional(x, y=None):
    return ("optional", x, y)


def several(*x):
    return ("several", *x)


def first_and_rest(x, *rest):
    return ("rest", x, *rest)


def by_name(**x):
    return ("names", x)


def one_and_names(x, **more):
    return ("one and names", x, more)


def only_by_name(*, a, b=1):
    return ("only", a, b)


def a_and_b(a=None, b=None):
    return ("ab", a, b)


SEQUENCES = [drawn(4, 2), drawn(7, 2)]
ALIKE = [drawn(5, 2), drawn(5, 2)]
Y = labels(5)


@pytest.mark.parametrize(
    ("function", "inputs", "target", "expected"),
    [
        (one, (1, 2), Y, ("one", (1, 2))),
        (one, [1], Y, ("one", [1])),
        (one, {"x": 1}, Y, ("one", {"x": 1})),
        (two, (1, 2), Y, ("two", 1, 2)),
        (two, [1, 2], Y, ("two", 1, 2)),
        (two, {"y": 1, "x": 2}, Y, ("two", 2, 1)),
        (two, Pair(1, 2), Y, TypeError),
        (one, Pair(1, 2), Y, ("one", Pair(1, 2))),
        (one, Held(1, 2), Y, ("one", Held(1, 2))),
        (optional, (1, 2), Y, ("optional", 1, 2)),
        (optional, (1,), Y, ("optional", 1, None)),
        (optional, (1, 2, 3), Y, ("optional", (1, 2, 3), None)),
        (optional, ALIKE, Y, ("optional", *ALIKE)),
        (optional, SEQUENCES, labels(2), ("optional", SEQUENCES, None)),
        (optional, SEQUENCES[:1], labels(1), ("optional", SEQUENCES[:1], None)),
        (optional, SEQUENCES, [{"box": 1}] * 2, ("optional", SEQUENCES, None)),
        (optional, {"other": 1}, Y, ("optional", {"other": 1}, None)),
        (several, (1, 2), Y, ("several", 1, 2)),
        (several, [1], Y, ("several", 1)),
        (first_and_rest, (1, 2, 3), Y, ("rest", 1, 2, 3)),
        (by_name, {"a": 1}, Y, ("names", {"a": 1})),
        (one_and_names, {"x": 1, "z": 2}, Y, ("one and names", 1, {"z": 2})),
        (one_and_names, {"a": 1, "z": 2}, Y, ("one and names", {"a": 1, "z": 2}, {})),
        (only_by_name, {"a": 3}, Y, ("only", 3, 1)),
        (a_and_b, {"a": 3}, Y, ("ab", 3, None)),
        (a_and_b, {"a": 3, "unknown": 4}, Y, TypeError),
        (two, (1, 2, 3), Y, TypeError),
        (one, 7, Y, ("one", 7)),
    ],
)
def test_inputs_are_taken_apart_where_forward_takes_them_so(
    function: Any, inputs: Any, target: Any, expected: Any
) -> None:
    model = Given(function)
    if expected is TypeError:
        with pytest.raises(TypeError):
            forward(model, (inputs, target))
    else:
        assert forward(model, (inputs, target)) == (expected, target)


def test_the_signature_is_that_of_the_module_inside_and_read_once() -> None:
    class Two(nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return x, y

    wrapped = nn.DataParallel(Two())
    assert forward(wrapped, ((1, 2), Y))[0] == (1, 2)
    assert forward(torch.compile(Two(), backend="eager"), ((1, 2), Y))[0] == (1, 2)
    hooked = Two()
    hooked.forward = functools.wraps(hooked.forward)(lambda *a, inner=hooked.forward: inner(*a))
    assert forward(hooked, ((1, 2), Y))[0] == (1, 2)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 4), nn.Linear(4, 3)

    def forward(self, x: Any) -> Tensor:
        return self.head(self.cell(x)[1][0][-1])


class Reader(nn.Module):
    """Of a list of sequences, or of one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            return self.head(torch.tanh(self.step(x)).mean(0))
        return self.head(torch.stack([torch.tanh(self.step(s)).mean(0) for s in x]))


def lists(*lengths: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    return [drawn(n, 2, seed=n + seed) for n in lengths], labels(len(lengths))


def packed(*lengths: int) -> tuple[PackedSequence, Tensor]:
    ordered = list(lengths) == sorted(lengths, reverse=True)
    return pack_sequence(lists(*lengths)[0], enforce_sorted=ordered), labels(len(lengths))


@pytest.mark.parametrize(
    ("model", "data", "n"),
    [
        (Recurrent(), [packed(4, 1, 3), packed(2, 5)], 5),
        (Recurrent(), [packed(6, 4, 3), packed(2, 2)], 5),
        (Reader(), [lists(9, 2, 5, 3), lists(1, 4), lists(4)], 7),
        (Reader(), [lists(4, 4, 4, 4), lists(2, 2, 1)], 7),
        (Reader(), [(drawn(n, 2), labels()) for n in (4, 9, 2)], 3),
    ],
    ids=["packed", "packed in order", "lists", "lists of one length", "single samples"],
)
@pytest.mark.parametrize("kind", ["module", "mean", "each"])
def test_sequences_count_as_examples(model: Any, data: Any, n: int, kind: str) -> None:
    model = model.double()
    losses = {
        "module": nn.CrossEntropyLoss(),
        "mean": lambda o, t: F.cross_entropy(o, t),
        "each": lambda o, t: F.cross_entropy(o, t, reduction="none").reshape(-1),
    }
    problem = Problem(model, losses[kind], data)
    assert measured(problem) == pytest.approx(by_hand(model, data), rel=1e-12)
    assert problem.batches.n_examples == n


def test_a_batch_of_no_batch_size() -> None:
    class Samples:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            if i > 2:
                raise IndexError(i)
            return drawn(i + 2, 2), labels(3)[i]

    model, source = Reader().double(), Samples()
    loader = DataLoader(source, batch_size=None)  # type: ignore[arg-type]
    problem = Problem(model, nn.CrossEntropyLoss(), loader)
    assert measured(problem) == pytest.approx(by_hand(model, list(loader)), rel=1e-12)
    assert problem.batches.n_examples == 3


# Along which axis


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        return self.head(self.cell(x, state)[0][-1])


def time_first(*sizes: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    return [(drawn(t, b, 2, seed=t), labels(b)) for t, b in sizes]


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(o, t)])
@pytest.mark.parametrize(
    "option", [{"batch_axis": 1}, {"batch_axis": (1, 0)}, {"examples": lambda b: len(b[1])}]
)
def test_time_first_batches(loss: Any, option: dict[str, Any]) -> None:
    model, data = TimeFirst().double(), time_first((6, 4), (3, 5), (4, 4))
    problem = Problem(model, loss, data, **option)
    assert measured(problem) == pytest.approx(by_hand(model, data), rel=1e-12)
    assert problem.batches.n_examples == 13
    if "batch_axis" in option:
        part = problem.on_examples(2, 7)
        assert [x.shape[1] for x, _ in part.batches] == [2, 3]
        assert torch.equal(next(iter(part.batches))[0], data[0][0][:, 2:])


def test_m_sharpness_cuts_along_the_axis() -> None:
    model, data = TimeFirst().double(), time_first((6, 6))
    by_axis = Problem(model, nn.CrossEntropyLoss(), data, batch_axis=1)
    x, y = data[0]
    apart = [(x[:, i : i + 2].contiguous(), y[i : i + 2]) for i in (0, 2, 4)]
    by_batch = Problem(model, nn.CrossEntropyLoss(), apart, batch_axis=1)
    values = [ls.m_sharpness(p, 0.1, m=2, seed=0).values for p in (by_axis, by_batch)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_state_beside_the_inputs_has_an_axis_of_its_own() -> None:
    batch = ((drawn(6, 4, 2), drawn(1, 4, 4)), labels(4))
    batching = Batching(axis=((1, 1), 0))
    assert (batching.size(batch), batching.can_split(batch)) == (4, True)
    head, tail = batching.split(batch, 3)
    assert head[0][0].shape == (6, 3, 2)
    assert tail[0][1].shape == (1, 1, 4)


def test_what_has_no_axis_goes_to_both_parts() -> None:
    batch = {"x": drawn(6, 2), "classes": drawn(3), "names": ["a", "b"]}
    assert not Batching(examples=lambda b: 6).can_split(batch)
    batching = Batching(axis={"x": 0})
    assert batching.can_split(batch)
    head, tail = batching.split(batch, 2)
    assert (len(head["x"]), len(tail["x"])) == (2, 4)
    assert head["classes"] is tail["classes"] is batch["classes"]


@pytest.mark.parametrize(
    ("batch", "n", "splits"),
    [
        ((drawn(4, 2), labels(4)), 4, True),
        ({"x": drawn(4, 2), "ids": ["a", "b", "c", "d"]}, 4, True),
        (lists(9, 2, 5), 3, True),
        (([drawn(4, 2), drawn(4, 3)], labels(4)), 4, True),
        (([drawn(2, 2), drawn(2, 3)], labels(2)), 2, False),  # two arguments, or two examples?
        (packed(3, 1), 2, True),
        ([(drawn(5, 2), 1), (drawn(7, 2), 0)], 2, True),  # a list of samples
        (["a", "b", "c"], 3, True),
        ({"texts": ["a", "b"], "labels": [0, 1]}, 2, True),
        ((drawn(4, 2), drawn(5, 2)), None, False),
        ({"x": drawn(4, 2), "edges": drawn(2, 9)}, None, False),
        ((drawn(4, 2), torch.tensor(0.1)), None, False),  # a sample, or a number for all?
        ((drawn(4, 2), drawn(4, 4).relu().to_sparse()), 4, False),  # a graph
        ((drawn(4, 9).relu().to_sparse(), labels(4)), 4, True),
        ((drawn(4, 9).relu().to_sparse_csr(), labels(4)), 4, True),
        (None, 1, False),
        (drawn(1, 3), 1, False),
    ],
)
def test_the_number_of_examples(batch: Any, n: int | None, splits: bool) -> None:
    batching = Batching()
    assert batching.known_size(batch) == n
    assert batching.can_split(batch) is splits
    if splits:
        head, tail = batching.split(batch, 1)
        assert [batching.size(part) for part in (head, tail)] == [1, n - 1]
    if n is None:
        with pytest.raises(DataError, match=r"how many examples are in a batch of .*batch_axis"):
            batching.size(batch)


def test_parts_of_packed_and_sparse_batches_hold_the_same_values() -> None:
    sequences, _ = lists(3, 5, 2)
    head, tail = Batching().split((pack_sequence(sequences, enforce_sorted=False), labels(3)), 2)
    again = [*torch.nn.utils.rnn.unpack_sequence(head[0])]
    again += torch.nn.utils.rnn.unpack_sequence(tail[0])
    assert all(torch.equal(a, b) for a, b in zip(again, sequences, strict=True))
    matrix = drawn(5, 7).relu()
    for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        parts = Batching().split((matrix.to_sparse(layout=layout), labels(5)), 2)
        assert {part[0].layout for part in parts} == {layout}
        assert torch.equal(torch.cat([part[0].to_dense() for part in parts]), matrix)


def test_examples_that_the_task_counts_wrongly() -> None:
    for wrong in ("3", -1, 2.5, True, None):
        with pytest.raises(DataError, match="must return the number of examples"):
            Batching(examples=lambda b, n=wrong: n).size(drawn(3))
    with pytest.raises(InvalidArgumentError, match="examples must be a function"):
        Batching(examples=3)  # type: ignore[arg-type]
    for axis in ("1", 1.0, True, (0, "x")):
        with pytest.raises(InvalidArgumentError, match="batch_axis must be a whole number"):
            Batching(axis=axis)


def test_a_loss_of_each_example_counts_where_the_tensors_do_not() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3).double()

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.head(x.index_add(0, edges[1], x[edges[0]]))

    model = Graph()
    data = [((drawn(5, 2), labels(2, 9, n=5)), labels(5)), ((drawn(3, 2), labels(2, 4)), labels(3))]
    each = lambda o, t: F.cross_entropy(o, t, reduction="none")  # noqa: E731
    with torch.no_grad():
        right = float(torch.cat([each(model(*x), y) for x, y in data]).mean())
    summed = lambda o, t: (F.cross_entropy(o, t, reduction="sum"), len(t))  # noqa: E731
    for loss in (nn.CrossEntropyLoss(), each, summed):
        problem = Problem(model, loss, data)
        assert measured(problem) == pytest.approx(right, rel=1e-12)
        assert problem.batches.n_examples == 8
    with pytest.raises(LossError, match=r"neither given by examples .* failed with TypeError"):
        _ = Problem(model, F.cosine_embedding_loss, data[:1]).batches
    with pytest.raises(DataError, match=r"how many examples .*\(2, 9\).*examples = lambda batch"):
        _ = Problem(model, lambda o, t: F.cross_entropy(o, t), data).batches


def test_a_problem_file_says_it(tmp_path: Any) -> None:
    source = """
import torch
from torch import nn
def model(): return nn.Linear(2, 3)
def data(split): return [(torch.ones(6, 4, 2), torch.zeros(4, dtype=torch.long))]
def loss(output, target): return nn.functional.cross_entropy(output[-1], target)
"""
    (tmp_path / "task.py").write_text(source)
    with pytest.raises(DataError, match=r"Say it in the problem file by examples = .*batch_axis"):
        _ = load_problem(tmp_path / "task.py").batches
    (tmp_path / "axis.py").write_text(source + "batch_axis = 1\n")
    (tmp_path / "count.py").write_text(source + "def examples(batch): return len(batch[1])\n")
    for name in ("axis.py", "count.py"):
        assert load_problem(tmp_path / name).batches.n_examples == 4
    assert (
        load_problem(tmp_path / "axis.py", batch_axis=0, examples=lambda b: 2).batches.n_examples
        == 2
    )


# Which outputs a loss is given


class Heads(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(3, 4).double(), nn.Linear(3, 1).double(), kind

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        kinds = {"tuple": (a, b), "list": [a, b], "dict": {"a": a, "b": b}, "named": Pair(a, b)}
        return kinds[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "named"])
def test_a_function_gets_what_the_model_returned(kind: str) -> None:
    x, target = drawn(12, 3), {"a": labels(12, n=4), "b": drawn(12, 1)}
    model = Heads(kind)
    given = []

    def both(output: Any, target: Any) -> Tensor:
        given.append((type(output), type(target)))
        a, b = output.values() if kind == "dict" else output
        return F.cross_entropy(a, target["a"]) + F.mse_loss(b, target["b"])

    right = float(both(model(x), target).detach())
    metrics = {"same": lambda o, t: both(o, t)}
    problem = Problem(model, both, [(x[:5], {k: v[:5] for k, v in target.items()}),
                                    (x[5:], {k: v[5:] for k, v in target.items()})],
                      metrics=metrics)  # fmt: skip
    found = ls.evaluation(problem)
    assert found.loss == pytest.approx(right, rel=1e-12)
    assert found.metrics["same"] == pytest.approx(right, rel=1e-12)
    assert len(set(given)) == 1
    key = "'a'" if kind == "dict" else "0"
    match = rf"CrossEntropyLoss needs tensors, .* several values\. Write .*output\[{key}\], target"
    with pytest.raises(LossError, match=match):
        measured(Problem(model, nn.CrossEntropyLoss(), [(x, target["a"])]))


def test_the_gauss_newton_matrix_of_several_outputs() -> None:
    x, target = drawn(7, 3), drawn(7, 4)
    model = Heads("tuple")
    loss = lambda o, t: (o[0] - t).square().sum(1) + o[1].square().sum(1)  # noqa: E731
    problem = Problem(model, loss, [(x, target)])
    hessian, ggn = (ls.trace(problem, operator=kind, seed=0) for kind in ("hessian", "ggn"))
    assert ggn.value == pytest.approx(hessian.value, rel=1e-6)  # the model is linear


def test_a_loss_module_takes_the_logits_of_a_hugging_face_output() -> None:
    class Output(dict):
        @property
        def logits(self) -> Tensor:
            return self["logits"]

    class Model(nn.Linear):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
            logits = super().forward(input_ids) * attention_mask
            return Output(loss=None, logits=logits, states=(logits,))

    model = Model(2, 3).double()
    x, y, mask = drawn(5, 2), labels(5), torch.ones(5, 1, dtype=D)
    right = float(F.cross_entropy(nn.Linear.forward(model, x), y).detach())
    inputs = {"input_ids": x, "attention_mask": mask}
    assert measured(Problem(model, nn.CrossEntropyLoss(), [(inputs, y)])) == pytest.approx(right)
    own = Problem(model, lambda o, t: F.cross_entropy(o.logits, t), [(inputs, y)])
    assert measured(own) == pytest.approx(right)


# Means over tokens


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 7).double()

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


def sentences(*lengths: int, width: int = 6, pad: int = -100) -> tuple[Tensor, Tensor]:
    ids = labels(len(lengths), width, n=7)
    kept = torch.arange(width) < torch.tensor(lengths)[:, None]
    return ids, torch.where(kept, ids.roll(1, 1), pad)


def token_mean(output: Tensor, target: Tensor, pad: int = -100) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=pad)


@pytest.mark.parametrize("pad", [-100, -1, 0, 9])
def test_a_mean_over_tokens_is_recognised(pad: int) -> None:
    data = [sentences(6, 2, 3, pad=pad), sentences(1, 6, pad=pad)]
    loss = functools.partial(token_mean, pad=pad)
    with pytest.warns(LossNotAdditiveWarning) as caught:
        ls.evaluation(Problem(Tokens(), loss, data))
    words = str(caught[0].message)
    assert f"n = (target != {pad}).sum(); return mean * n, n" in words

    def written(output: Tensor, target: Tensor) -> Any:
        mean = loss(output, target)
        n = (target != pad).sum()
        return mean * n, n

    model = Tokens()
    whole = torch.cat([y for _, y in data])
    right = float(loss(model(torch.cat([x for x, _ in data])), whole).detach())
    assert measured(Problem(model, written, data)) == pytest.approx(right, rel=1e-12)


def test_a_mean_over_tokens_is_recognised_in_a_later_batch() -> None:
    even = [sentences(6, 6), sentences(4, 4, width=4)]
    assert measured(Problem(Tokens(), token_mean, even)) > 0
    for later in (sentences(4, 1, width=4), sentences(6, 2)):  # of another width, and of the same
        with pytest.warns(LossNotAdditiveWarning, match=r"loss of batch 2.*\(target != -100\)"):
            ls.evaluation(Problem(Tokens(), token_mean, [*even, later]))


def test_the_loss_that_a_language_model_computes_itself() -> None:
    class Causal(Tokens):
        def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            logits = super().forward(ids)
            return {"loss": token_mean(logits[:, :-1].float(), labels[:, 1:])}

    ids, targets = sentences(6, 3, 2)
    data = [{"ids": ids * (targets >= 0), "labels": targets}]
    problem = Problem(Causal(), data=data, batch_loss=lambda m, b: m(**b)["loss"])
    match = r"n = \(batch\['labels'\]\[:, 1:\] != -100\)\.sum\(\); return mean \* n, n"
    with pytest.warns(LossNotAdditiveWarning, match=match):
        found = diagnose(problem, progress=False)
    assert found["loss"].verdict == "warning"
    assert "return mean * n, n" in found["loss"].advice


def test_no_more_than_eight_structures_are_tested() -> None:
    calls = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(len(target))
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    data = [sentences(w, w, w, width=w) for w in range(2, 22)]
    problem = Problem(Tokens(), loss, data)
    with Evaluator(problem):
        assert len(problem.batches.kinds) == 8
        assert len(calls) == 4 + 3 * 7


# What is named at the first use


def test_log_probabilities_that_are_none() -> None:
    x, y = drawn(6, 3), labels(6)
    linear = nn.Linear(3, 3).double()
    for model in (linear, nn.Sequential(linear, nn.ReLU())):
        problem = Problem(model, nn.NLLLoss(), (x, y))
        with pytest.warns(MisleadingWarning, match=r"NLLLoss takes log-prob.*CrossEntropyLoss"):
            ls.evaluation(problem)
        measured(problem)  # said once
    negative = nn.Sequential(nn.Linear(3, 3), nn.LogSigmoid()).double()
    with pytest.warns(MisleadingWarning, match="their exp does not sum to 1"):
        found = diagnose(Problem(negative, nn.NLLLoss(), (x, y)), progress=False)
    assert "log-probabilities" in found["loss"].advice
    measured(Problem(nn.Sequential(linear, nn.LogSoftmax(1)), nn.NLLLoss(), (x, y)))


def test_a_class_in_place_of_a_loss() -> None:
    for options in ({"loss": nn.CrossEntropyLoss}, {"batch_loss": nn.MSELoss}):
        with pytest.raises(
            ProblemError, match=r"is the class (\w+) itself: make one of it, \1\(\)"
        ):
            Problem(nn.Linear(2, 2), data=[drawn(2)], **options)


@pytest.mark.parametrize(
    ("loss", "target", "words"),
    [
        (nn.CrossEntropyLoss(), labels(6).double(), r"labels\.long\(\)"),
        (nn.CrossEntropyLoss(), labels(6).int(), r"labels\.long\(\)"),
        (nn.CrossEntropyLoss(), labels(6) > 1, r"labels\.long\(\)"),
        (nn.CrossEntropyLoss(), F.one_hot(labels(6), 3), r"labels\.argmax\(1\)"),
        (nn.CrossEntropyLoss(), labels(6, 1), r"labels\.squeeze\(1\)"),
        (nn.CrossEntropyLoss(), labels(6, 2), r"indices of shape \(6,\)"),
        (nn.CrossEntropyLoss(), drawn(6, 2), r"indices of shape \(6,\)"),
        (nn.NLLLoss(), F.one_hot(labels(6), 3).double(), r"labels\.argmax\(1\)"),
        (nn.MultiMarginLoss(), labels(6).int(), r"labels\.long\(\)"),
        (nn.BCEWithLogitsLoss(), labels(6, 3, n=2), r"y\.float\(\)"),
        (nn.BCELoss(), labels(6, 3, n=2) > 0, r"y\.float\(\)"),
    ],
)
def test_labels_of_the_wrong_type(loss: Any, target: Tensor, words: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax(1)).double()
    with pytest.raises(LossError, match=rf"{type(loss).__name__}.*{words}"):
        measured(Problem(model, loss, [(drawn(6, 3), target)]))


def test_every_batch_is_checked_and_not_the_first_alone() -> None:
    model, loss = nn.Linear(3, 3).double(), nn.CrossEntropyLoss()
    data = [(drawn(4, 3), labels(4)), (drawn(4, 3), labels(4).int())]
    with pytest.raises(LossError, match=r"batch 1 of the train data.*labels\.long"):
        measured(Problem(model, loss, data))


def test_arguments_given_beforehand_to_a_function_of_torch() -> None:
    x, y = drawn(9, 3), torch.where(labels(9) == 1, -1, labels(9))
    problem = Problem(nn.Linear(3, 3).double(), functools.partial(F.cross_entropy, ignore_index=-1),
                      [(x[:4], y[:4]), (x[4:], y[4:])])  # fmt: skip
    right = float(F.cross_entropy(problem.model(x), y, ignore_index=-1).detach())
    assert measured(problem) == pytest.approx(right, rel=1e-12)


def test_the_name_of_a_loss() -> None:
    def name(loss: Any) -> str:
        return make_loss(loss, None).name

    assert "CrossEntropyLoss(ignore_index=-100" in name(F.cross_entropy)
    assert name(F.cross_entropy) == name(nn.CrossEntropyLoss())
    others = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), nn.MSELoss(),
              nn.CrossEntropyLoss(weight=torch.ones(3)), nn.CrossEntropyLoss(weight=torch.zeros(3)),
              functools.partial(token_mean, pad=1), functools.partial(token_mean, pad=2),
              token_mean]  # fmt: skip
    assert len({name(loss) for loss in others}) == len(others)
    assert name(token_mean).endswith("test_inputs_and_outputs.token_mean")


# What is data


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield drawn(2), labels()


@pytest.mark.parametrize("source", [Endless(), DataLoader(Endless(), batch_size=4)])
def test_an_endless_stream_is_stopped(source: Any) -> None:
    with pytest.raises(DataError, match=r"did not end after 100 examples.*max_examples"):
        _ = Problem(nn.Linear(2, 3), nn.CrossEntropyLoss(), source, max_examples=100).batches


def test_a_source_with_a_length_has_no_limit() -> None:
    data = [(drawn(4, 2), labels(4))] * 3
    assert Problem(nn.Linear(2, 3), nn.MSELoss(), data, max_examples=5).batches.n_examples == 12


class Table:
    """Like a data set of Hugging Face: rows by their index, and an iterator over them."""

    column_names = ("x", "y")

    def __init__(self, kind: str | None = None) -> None:
        self.format = {"type": kind}

    def set_format(self, kind: str) -> None: ...

    def with_format(self, kind: str) -> Table:
        return Table(kind)

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = {"x": drawn(7, 2)[i], "y": labels(7)[i]}
        return row if self.format["type"] == "torch" else {k: v.tolist() for k, v in row.items()}

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


class Indexed:
    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> dict[str, Any]:
        return Table("torch")[i]


@pytest.mark.parametrize("source", [Table(), Table("torch"), Indexed()])
def test_rows_by_their_index_are_data(source: Any) -> None:
    model = nn.Linear(2, 3).double()
    problem = Problem(
        model,
        data=source,
        batch_loss=lambda m, b: F.cross_entropy(m(b["x"]), b["y"]),
        batch_size=4,
    )
    right = float(F.cross_entropy(model(drawn(7, 2)), labels(7)).detach())
    assert measured(problem) == pytest.approx(right, rel=1e-12)
    assert [len(batch["y"]) for batch in problem.batches] == [4, 3]


class Graphs:
    """Like a batch of a graph library that changes itself when it is moved."""

    def __init__(self, sizes: list[int], features: Tensor, target: Tensor) -> None:
        self.sizes, self.store = sizes, {"x": features, "y": [target]}
        self.num_graphs = len(sizes)

    def to(self, device: Any) -> Graphs:
        self.store = {k: v for k, v in self.store.items()}
        return self

    def to_data_list(self) -> list[Any]:
        parts = zip(self.store["x"].split(self.sizes), self.store["y"][0], strict=True)
        return [Graphs([len(x)], x, y[None]) for x, y in parts]

    @classmethod
    def from_data_list(cls, parts: list[Graphs]) -> Graphs:
        features = torch.cat([part.store["x"] for part in parts])
        target = torch.cat([part.store["y"][0] for part in parts])
        return cls([len(part.store["x"]) for part in parts], features, target)


class Applied(Graphs):
    """The same, with a method that changes its tensors in place, as PyTorch Geometric has it."""

    def apply(self, function: Any) -> Applied:
        x, y = self.store["x"], self.store["y"][0]
        self.store = {"x": function(x), "y": [function(y)]}
        return self


def graph_loss(model: nn.Module, batch: Graphs) -> Tensor:
    pooled = torch.stack([part.mean(0) for part in batch.store["x"].split(batch.sizes)])
    return F.cross_entropy(model(pooled), batch.store["y"][0])


@pytest.mark.parametrize("kind", [Graphs, Applied])
def test_a_batch_of_graphs(kind: Any) -> None:
    given = [
        kind([3, 1, 2], drawn(6, 2).float(), labels(3)),
        kind([4], drawn(4, 2).float(), labels(1)),
    ]
    model = nn.Linear(2, 3).double()
    problem = Problem(model, data=given, batch_loss=graph_loss, dtype="float64")
    assert problem.batches.n_examples == 4
    assert {b.store["x"].dtype for b in problem.batches} == {D}
    assert {b.store["x"].dtype for b in given} == {torch.float32}  # the user's own stay
    double = [kind(b.sizes, b.store["x"].double(), b.store["y"][0]) for b in given]
    with torch.no_grad():
        right = sum(float(graph_loss(model, b)) * b.num_graphs for b in double) / 4
    assert measured(problem) == pytest.approx(right, rel=1e-12)
    (part,) = problem.on_examples(1, 3).batches
    assert torch.equal(part.store["x"], double[0].store["x"][3:])


def test_a_batch_of_graphs_that_is_written_to() -> None:
    def writing(model: nn.Module, batch: Graphs) -> Tensor:
        batch.store["x"].mul_(2)
        return graph_loss(model, batch)

    given = [Graphs([3, 3], drawn(6, 2), labels(2))]
    problem = Problem(nn.Linear(2, 3).double(), data=given, batch_loss=writing)
    assert measured(problem) == measured(problem)


# Tensors that are not strided

LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_tensors_of_a_batch(layout: torch.layout) -> None:
    matrix = drawn(5, 5).relu().float()
    given = [((drawn(5, 2).float(), matrix.to_sparse(layout=layout)), labels(5))]
    found = Batches(given, device=CPU, dtype=D)
    (batch,) = found
    assert torch.equal(batch[0][1].to_dense(), matrix.double())
    other = [((given[0][0][0], (matrix * 2).to_sparse(layout=layout)), labels(5))]
    assert Batches(other, device=CPU, dtype=D).fingerprint != found.fingerprint
    nonzero = int((matrix != 0).sum())
    assert n_bytes(given[0][0][1]) < 5 * 5 * 4 + 24 * nonzero
    twin = copied(batch)
    assert not written_to(twin)
    twin[0][1].mul_(2)
    assert written_to(twin)
    assert torch.equal(batch[0][1].to_dense(), matrix.double())


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_a_graph_network_with_its_matrix_in_the_batch(layout: torch.layout) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3).double()

        def forward(self, x: Tensor, matrix: Tensor) -> Tensor:
            return matrix @ self.head(x)

    model, x, matrix = Network(), drawn(6, 2), drawn(6, 6).relu()
    problem = Problem(
        model, nn.CrossEntropyLoss(), [((x, matrix.to_sparse(layout=layout)), labels(6))]
    )
    right = float(F.cross_entropy(model(x, matrix), labels(6)).detach())
    assert measured(problem) == pytest.approx(right, rel=1e-12)
    with Evaluator(problem) as evaluator:
        assert contents.data(DiagnosticContext(evaluator, None, 0)).numbers["not_finite"] == 0


def test_nested_tensors() -> None:
    nested = torch.nested.nested_tensor([drawn(2, 3), drawn(4, 3)], layout=torch.jagged)
    batch = (nested, labels(2))
    assert Batching().size(batch) == 2
    head, tail = Batching().split(batch, 1)
    assert torch.equal(head[0].unbind()[0], drawn(2, 3))
    assert torch.equal(tail[0].unbind()[0], drawn(4, 3))
    assert move(batch, CPU, torch.float32)[0].dtype == torch.float32


def test_packed_sequences_follow_the_dtype() -> None:
    batch = packed(2, 3)
    there = move(batch, CPU, torch.float32)
    assert isinstance(there[0], PackedSequence)
    assert there[0].data.dtype == torch.float32
    assert [t.dtype for t in tensors_in(there)].count(torch.float32) == 1


# Messages


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("", ""),
        ("\n  \nno such picture\nat all", "no such picture"),
        ("Error(s) in loading:\n\tMissing key", "Error(s) in loading: Missing key"),
        ("Caught KeyError in worker 0.\nOriginal Traceback (most recent call last):\n  File x"
         "\nKeyError: 'image'\n", "KeyError: 'image'"),
    ],
)  # fmt: skip
def test_the_first_line_that_says_something(message: str, said: str) -> None:
    assert first_line(ValueError(message)) == said


def test_a_worker_that_fails_is_heard() -> None:
    class Broken(Indexed):
        def __getitem__(self, i: int) -> Any:
            raise FileNotFoundError("no such picture: 3.png")

    loader = DataLoader(Broken(), batch_size=2, num_workers=1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"FileNotFoundError: no such picture: 3\.png$"):
        _ = Problem(nn.Linear(2, 3), nn.MSELoss(), loader).batches


def test_logits_with_their_classes_last() -> None:
    loss = nn.CrossEntropyLoss()
    with pytest.raises(
        LossError, match=r"classes are the second axis, use output\.movedim\(-1, 1\)"
    ):
        measured(Problem(Tokens(), loss, [sentences(6, 3)]))


@pytest.mark.parametrize("kind", ["packed", "lists"])
def test_some_of_the_sequences(kind: str) -> None:
    model = (Recurrent() if kind == "packed" else Reader()).double()
    made = packed if kind == "packed" else lists
    data = [made(4, 1, 3), made(2, 5), made(6)]
    part = Problem(model, nn.CrossEntropyLoss(), data).on_examples(1, 4)
    each = []
    with torch.no_grad():
        for lengths, rows in (((4, 1, 3), (1, 2)), ((2, 5), (0,))):
            sequences, target = lists(*lengths)
            for i in rows:
                x = pack_sequence([sequences[i]]) if kind == "packed" else [sequences[i]]
                each.append(F.cross_entropy(model(x), target[i : i + 1]))
    assert measured(part) == pytest.approx(float(torch.stack(each).mean()), rel=1e-12)


def test_what_a_loader_makes_of_a_pair_of_inputs() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3).double()

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.head(x if mask is None else x * mask)

    x, y = drawn(6, 3), labels(6)
    samples = [((x[i], (x[i] > 0).to(D)), y[i]) for i in range(6)]
    loader = DataLoader(samples, batch_size=4)  # type: ignore[arg-type]
    assert type(next(iter(loader))[0]) is list
    model = Masked()
    right = float(F.cross_entropy(model(x, (x > 0).to(D)), y).detach())
    assert measured(Problem(model, nn.CrossEntropyLoss(), loader)) == pytest.approx(right)


def test_images_with_their_boxes() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 4, 1).double()

        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
            found = [self.head(image[None]).mean((0, 2, 3)) for image in images]
            boxes = [target["boxes"].mean(0) for target in targets]
            return (torch.stack(found) - torch.stack(boxes)).square().sum(1)

    def batch(n: int) -> Any:
        images = [drawn(3, 5 + i, 6, seed=i) for i in range(n)]
        return images, [{"boxes": drawn(i + 1, 4), "labels": labels(i + 1)} for i in range(n)]

    model, data = Detector(), [batch(4), batch(2)]
    right = float(torch.cat([model(*part) for part in data]).mean().detach())
    for loss in (lambda m, b: m(*b), lambda m, b: m(*b).mean()):
        assert measured(Problem(model, data=data, batch_loss=loss)) == pytest.approx(right)
    part = Problem(model, data=data, batch_loss=lambda m, b: m(*b)).on_examples(1, 3)
    each = model(*data[0]).detach()
    assert measured(part) == pytest.approx(float(each[1:3].mean()), rel=1e-12)


def test_objects_that_do_not_say_their_number() -> None:
    class Moved:
        def __init__(self, x: Tensor, y: Tensor) -> None:
            self.x, self.y = x, y

        def to(self, device: Any) -> Moved:
            return self

    def mean(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y)

    model = nn.Linear(2, 3).double()
    parts = [(drawn(n, 2), labels(n)) for n in (3, 4)]
    right = by_hand(model, parts)
    moved = Problem(model, data=[Moved(*p) for p in parts], batch_loss=mean)
    assert measured(moved) == pytest.approx(right, rel=1e-12)
    plain = [SimpleNamespace(x=x, y=y) for x, y in parts]
    with pytest.raises(DataError, match=r"how many examples are in a batch of SimpleNamespace"):
        measured(Problem(model, data=plain, batch_loss=mean))
    counted = Problem(model, data=plain, batch_loss=mean, examples=lambda b: len(b.y))
    assert measured(counted) == pytest.approx(right, rel=1e-12)


def test_a_list_that_could_be_cut_in_two_ways_is_not_cut() -> None:
    batch = [drawn(2, 2), drawn(2, 3)], labels(2)
    with pytest.raises(DataError, match=r"between its entries or within them"):
        Batching().split(batch, 1)


def test_a_batch_that_cannot_be_cut_is_refused_or_taken_whole() -> None:
    first, second = {"x": drawn(8, 2)}, {"x": drawn(8, 2), "scale": drawn(3)}
    batching = Batching(examples=lambda batch: len(batch["x"]))
    assert [batching.can_split(batch) for batch in (first, second)] == [True, False]
    with pytest.raises(DataError, match=r"keys x, scale cannot be cut: .* batch_axis"):
        batching.part(second, 0, 2)
    problem = Problem(
        nn.Linear(2, 1).double(),
        batch_loss=lambda model, batch: model(batch["x"]).square().mean(),
        data=[first, second],
        examples=batching.examples,
    )
    with Evaluator(problem) as evaluator:
        sample = sample_of(evaluator, 10, at_most=2)
    assert [len(batch["x"]) for _, batch in sample] == [2, 8]
