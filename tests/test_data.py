from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from cases import cut, equal_batches, partitions
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from landscape.errors import DataError, ProblemError
from landscape.evaluate import Evaluator
from landscape.problem import Problem
from landscape.problem._batches import Batches, as_batches
from landscape.problem._batching import Batching
from landscape.problem.data import (
    copied,
    describe,
    leaves,
    map_leaves,
    move,
    rebuilt,
    written_to,
)

CPU = torch.device("cpu")
N = 13
X = torch.arange(3.0 * N).reshape(N, 3).sin()
Y = torch.arange(N) % 3


def read(source: Any, **options: Any) -> Batches:
    options = {"device": CPU, "dtype": torch.float64, "batch_size": 4} | options
    return Batches(source, **options)


class Plain(Dataset):
    """A map-style data set of our own."""

    def __init__(self, x: Tensor = X) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(Y[i])


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (Plain()[i] for i in range(N))


class Anew:
    """Makes new batches each time that it is iterated."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make
        self.n_passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.n_passes += 1
        return self.make()


def cross_entropy(function: Callable[..., Tensor], *arguments: Any) -> float:
    return float(nn.functional.cross_entropy(function(*arguments).detach(), Y))


def batches_of_four() -> list[tuple[Tensor, Tensor]]:
    return cut((X, Y), equal_batches(4))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# What is read


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        (X.numpy(), Y.numpy()),
        (X, Y.numpy()),
        (np.asfortranarray(X.numpy()), Y.numpy().astype(">i8")),
        (X.flip(0).numpy()[::-1], Y.numpy()),
        Plain(),
        Stream(),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=4),
        DataLoader(Stream(), batch_size=4),
        batches_of_four(),
        tuple(batches_of_four()),
        [[x, y] for x, y in batches_of_four()],
        [(x.numpy(), y.numpy()) for x, y in batches_of_four()],
        Anew(lambda: iter(batches_of_four())),
    ],
    ids=lambda source: type(source).__name__,
)
def test_every_source_gives_the_same_batches(source: Any) -> None:
    batches = read(source)
    assert (batches.n_examples, batches.n_batches) == (N, 4)
    for _ in range(2):
        found = list(batches)
        assert [len(x) for x, _ in found] == [4, 4, 4, 1]
        assert torch.equal(torch.cat([x for x, _ in found]), X.double())
        assert torch.equal(torch.cat([y for _, y in found]), Y)
        assert {x.dtype for x, _ in found} == {torch.float64}


def test_read_only_arrays() -> None:
    x = X.numpy().copy()
    x.flags.writeable = False
    (batch,) = read((x, Y.numpy()), batch_size=N)  # torch would warn, and warnings are errors
    assert torch.equal(batch[0], X.double())


def test_half_precision_and_integers() -> None:
    (batch,) = read((X.half(), Y.int(), Y > 1), batch_size=N)
    assert [part.dtype for part in batch] == [torch.float64, torch.int32, torch.bool]


Pair = namedtuple("Pair", "x y")


@dataclass
class Held:
    x: Tensor
    y: Tensor
    note: str = field(default="", init=False)


@dataclass(frozen=True, slots=True)
class Frozen:
    x: Tensor
    y: Tensor


class Encoding(UserDict):
    """Like a BatchEncoding of transformers: a UserDict with attributes and a ``to``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: Any) -> Encoding:
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


class Closed(Mapping):
    """A mapping that is no dict and cannot be built from one."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._held = {"x": x, "y": y}

    def __getitem__(self, key: str) -> Tensor:
        return self._held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return 2


class Graphs:
    """Like a batch of a graph library: only its owner can look into it."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.num_graphs = x, y, len(x)

    def to(self, device: torch.device) -> Graphs:
        return Graphs(self.x.to(device), self.y.to(device))


def defaulting(x: Tensor, y: Tensor) -> defaultdict[str, Tensor]:
    made: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros(1))
    made.update(x=x, y=y)
    return made


KINDS: list[Callable[..., Any]] = [
    lambda x, y: {"x": x, "y": y},
    lambda x, y: OrderedDict(x=x, y=y),
    lambda x, y: Encoding(x=x, y=y),
    lambda x, y: {"inputs": {"x": x}, "y": [y]},
    defaulting,
    Closed,
    Pair,
    Held,
    Frozen,
]
NAMES = ["dict", "OrderedDict", "UserDict", "nested", "defaultdict", "Mapping", "named", "d", "f"]


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_every_kind_of_batch(kind: Callable[..., Any]) -> None:
    given = [kind(x, y) for x, y in batches_of_four()]
    batches = read(given)
    assert batches.n_examples == N
    for batch, original in zip(batches, given, strict=True):
        if kind is not Closed:
            assert type(batch) is type(original)
        assert [leaf.dtype for leaf in leaves(batch)[:2]] == [torch.float64, torch.int64]
        assert leaves(original)[0].dtype == torch.float32  # the user's own is as it was
        assert torch.equal(leaves(batch)[0], leaves(original)[0].double())


def test_methods_of_a_mapping_stay() -> None:
    (batch,) = read([Encoding(x=X, y=Y)])
    assert torch.equal(batch.x, X.double())
    (batch,) = read([defaulting(X, Y)])
    assert torch.equal(batch["other"], torch.zeros(1))


def test_anything_with_a_to() -> None:
    source = [Graphs(x, y) for x, y in batches_of_four()]
    batches = read(source)
    assert batches.n_examples == N
    other = [Graphs(x, y + 1) for x, y in batches_of_four()]
    assert read(other).fingerprint != batches.fingerprint


def test_a_batch_that_only_its_owner_can_cut_is_measured_without_a_warning() -> None:
    model = nn.Linear(3, 3)

    def batch_loss(net: nn.Module, batch: Graphs) -> Tensor:
        return nn.functional.cross_entropy(net(batch.x), batch.y)

    source = [Graphs(x, y) for x, y in batches_of_four()]
    with Evaluator(Problem(model, data=source, batch_loss=batch_loss)) as evaluator:
        value = evaluator.loss().value
    assert value == pytest.approx(cross_entropy(model, X), rel=1e-6)


# What is refused


@pytest.mark.parametrize(
    "source",
    [
        (b for b in batches_of_four()),
        iter(batches_of_four()),
        map(len, []),
        zip([X], [Y], strict=True),
    ],
    ids=["generator", "iterator", "map", "zip"],
)
def test_one_shot_iterators(source: Any) -> None:
    match = r"one-shot iterator \(a generator\?\).*needs many; give a list of batches"
    with pytest.raises(DataError, match=match):
        read(source)


def test_a_source_that_is_used_up_after_one_pass() -> None:
    held = iter(batches_of_four())
    with pytest.raises(DataError, match="the Anew gives nothing on a second pass: it is used up"):
        read(Anew(lambda: held))


@pytest.mark.parametrize(
    ("source", "what"),
    [(3, "int"), ("data", "str"), ({"x": X}, "a dict with the keys x"), (X, "X")],
)
def test_what_is_no_data(source: Any, what: str) -> None:
    what = r"a float32 tensor of shape \(13, 3\)" if what == "X" else what
    with pytest.raises(DataError, match=f"cannot read batches from {what}; expected a DataLoader"):
        read(source)


@pytest.mark.parametrize(
    "source",
    [[], (X[:0], Y[:0]), Plain(X[:0]), [(X[:0], Y[:0])], DataLoader(Plain(X[:0]), batch_size=2)],
    ids=["[]", "tensors", "dataset", "batch", "loader"],
)
def test_empty_data(source: Any) -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        read(source)


def test_inputs_and_targets_of_other_lengths() -> None:
    match = r"must have one length, got shapes \(13, 3\), \(12,\)"
    with pytest.raises(DataError, match=match):
        read((X, Y[:12]))


def test_sparse_tensors() -> None:
    x = X.relu().to_sparse()
    with pytest.raises(DataError, match="sparse tensors cannot be cut into batches here"):
        read((x, Y))
    first, second = (read([(part, Y)]) for part in (x, x * 2))
    assert first.n_examples == N
    assert torch.equal(next(iter(first))[0].to_dense(), X.relu().double())
    assert first.fingerprint != second.fingerprint


def test_a_shuffled_loader_is_refused_by_name() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, generator=seeded())
    match = r"the DataLoader is shuffled: .*the same 13 examples in another.*shuffle=False.*freeze"
    with pytest.raises(DataError, match=match):
        read(loader)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(
            TensorDataset(X, Y), batch_size=4, shuffle=True, drop_last=True, generator=seeded()
        ),
        DataLoader(
            Plain(),
            batch_size=4,
            sampler=RandomSampler(Plain(), replacement=True, num_samples=9, generator=seeded()),
        ),
    ],
    ids=["drop_last", "with replacement"],
)
def test_random_sampling_is_refused_by_name(loader: Any) -> None:
    with pytest.raises(DataError, match=r"gives other data on every pass \(only \d+ of .*shuffle"):
        read(loader)


class Augmented(Plain):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        x, y = super().__getitem__(i)
        return x + torch.rand(3), y


@pytest.mark.parametrize("shuffle", [False, True])
def test_augmentation_is_refused_by_name(shuffle: bool) -> None:
    loader = DataLoader(Augmented(), batch_size=4, shuffle=shuffle)
    match = r"on every pass \(only 0 of 13 examples the same\): random augmentation.*evaluation"
    with pytest.raises(DataError, match=match):
        read(loader)


def test_a_list_that_changes_when_it_is_read_is_refused() -> None:
    class Noisy(list):
        def __iter__(self) -> Iterator[Any]:
            return ((x + torch.rand(3), y) for x, y in super().__iter__())

    with pytest.raises(DataError, match="the Noisy gives other data on every pass"):
        read(Noisy(batches_of_four()))


def test_data_that_cannot_be_read() -> None:
    class Broken(Plain):
        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            if i == 9:
                msg = "no such picture: 9.png\nreally"
                raise FileNotFoundError(msg)
            return super().__getitem__(i)

    match = r"reading batch 2 of the data failed with FileNotFoundError: no such picture: 9.png$"
    with pytest.raises(DataError, match=match):
        read(Broken())


# What is kept


@pytest.mark.parametrize("shuffle", [False, True])
def test_freezing_keeps_one_pass(shuffle: bool) -> None:
    loader = DataLoader(Augmented(), batch_size=4, shuffle=shuffle)
    batches = read(loader, freeze=True, cache_bytes=0)
    first, second = (torch.cat([x for x, _ in batches]) for _ in range(2))
    assert torch.equal(first, second)
    other = torch.cat([x for x, _ in read(loader, freeze=True)])
    assert not torch.equal(first, other)


def test_what_fits_is_read_twice_and_then_kept() -> None:
    source = Anew(lambda: iter(batches_of_four()))
    batches = read(source)
    for _ in range(5):
        list(batches)
    assert source.n_passes == 2


def test_what_is_frozen_is_read_once() -> None:
    source = Anew(lambda: iter(batches_of_four()))
    list(read(source, freeze=True))
    assert source.n_passes == 1


def test_tensors_in_memory_are_not_read_again() -> None:
    assert type(as_batches((X, Y), 4)) is list
    assert read((X, Y)).fingerprint == read(Anew(lambda: iter(batches_of_four()))).fingerprint


@pytest.mark.parametrize("room", [0, 100, 4 * (3 * 4 + 8) + 1])
def test_what_does_not_fit_is_streamed(room: int) -> None:
    source = Anew(lambda: iter(batches_of_four()))
    batches = read(source, cache_bytes=room)
    for _ in range(3):
        assert torch.equal(torch.cat([x for x, _ in batches]), X.double())
    assert source.n_passes == 2 + 3
    assert batches.fingerprint == read(batches_of_four()).fingerprint


def test_streamed_data_give_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = nn.Linear(3, 3), DataLoader(Plain(), batch_size=4)
    monkeypatch.setattr(Batches.__init__, "__kwdefaults__", Batches.__init__.__kwdefaults__)
    values = []
    for room in (0, 2**20):
        monkeypatch.setitem(Batches.__init__.__kwdefaults__, "cache_bytes", room)
        with Evaluator(Problem(model, nn.CrossEntropyLoss(), data)) as evaluator:
            values.append(evaluator.gradient()[0])
    assert values[0] == values[1]


def test_a_loader_may_use_its_memory_again() -> None:
    memory = torch.zeros(4, 3, dtype=torch.float64)

    def overwriting() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in cut((X[:12], Y[:12]), [4, 4, 4]):
            yield memory.copy_(x), y

    assert torch.equal(torch.cat([x for x, _ in read(Anew(overwriting))]), X[:12].double())


def test_what_the_user_changes_later_is_not_what_was_read() -> None:
    x = X.double()
    batches = read([(x, Y)])
    x.zero_()
    assert torch.equal(next(iter(batches))[0], X.double())


def test_a_loss_may_take_a_batch_apart() -> None:
    model = nn.Linear(3, 3)

    def batch_loss(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(batch.pop("x")), batch.pop("y"))

    def right(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return net(batch.pop("x")).argmax(1) == batch.pop("y")

    data = [{"x": x, "y": y} for x, y in batches_of_four()]
    metrics = {"right": right, "also right": right}
    problem = Problem(model, data=data, batch_loss=batch_loss, metrics=metrics)
    with Evaluator(problem) as evaluator:
        first, second = evaluator.loss(), evaluator.loss()
    assert first == second
    assert first.value == pytest.approx(cross_entropy(model, X), rel=1e-6)
    assert first.metrics["also right"] == float((model(X).argmax(1) == Y).double().mean())


def test_a_loss_may_take_a_target_apart() -> None:
    def loss(output: Tensor, target: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(output, target.pop("y"))

    def right(output: Tensor, target: dict[str, Tensor]) -> Tensor:
        return output.argmax(1) == target.pop("y")

    data = [(x, {"y": y}) for x, y in batches_of_four()]
    problem = Problem(nn.Linear(3, 3), loss, data, metrics={"right": right, "also": right})
    with Evaluator(problem) as evaluator:
        first = evaluator.loss()
        assert evaluator.loss() == first
    assert first.metrics["right"] == first.metrics["also"]


def test_a_model_may_take_its_inputs_apart() -> None:
    class Model(nn.Linear):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return super().forward(inputs.pop("x"))

    data = [({"x": x}, y) for x, y in batches_of_four()]
    with Evaluator(Problem(Model(3, 3), nn.CrossEntropyLoss(), data)) as evaluator:
        assert evaluator.loss() == evaluator.loss()


def test_a_model_may_write_to_its_inputs() -> None:
    class Writing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.5))

    model = Writing(3, 3)
    x = X.clone()
    problem = Problem(model, nn.CrossEntropyLoss(), cut((x, Y), [4, 9]))
    expected = cross_entropy(nn.Linear.forward, model, X - 0.5)
    with Evaluator(problem) as evaluator:
        values = [evaluator.loss().value, evaluator.gradient()[0].value, evaluator.loss().value]
    assert values == pytest.approx([expected] * 3, rel=1e-6)
    assert torch.equal(x, X)


def test_reading_leaves_the_global_generators_alone() -> None:
    problem = Problem(
        nn.Linear(3, 3),
        nn.CrossEntropyLoss(),
        DataLoader(Augmented(), shuffle=True),
        freeze_data=True,
    )
    before = torch.get_rng_state()
    assert problem.batches.n_examples == N
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failed_reading_is_tried_again() -> None:
    source = batches_of_four()
    held: list[Any] = []
    problem = Problem(nn.Linear(3, 3), nn.CrossEntropyLoss(), held)
    with pytest.raises(DataError, match="empty"):
        _ = problem.batches
    held.extend(source)
    assert problem.batches.n_examples == N


# Fingerprints


def test_the_fingerprint_does_not_depend_on_the_source() -> None:
    sources = [(X, Y), Plain(), DataLoader(Stream(), batch_size=4), batches_of_four()]
    sources += [[(x.numpy(), y.numpy()) for x, y in batches_of_four()]]
    assert len({read(source).fingerprint for source in sources}) == 1


@given(row=st.integers(0, N - 1), column=st.integers(0, 2), part=st.sampled_from(["x", "y"]))
def test_the_fingerprint_changes_with_any_value(row: int, column: int, part: str) -> None:
    x, y = X.clone(), Y.clone()
    if part == "x":
        x[row, column] = torch.nextafter(x[row, column], torch.tensor(9.0))
    else:
        y[row] = 7
    assert read((x, y)).fingerprint != read((X, Y)).fingerprint


def test_the_fingerprint_changes_with_the_order() -> None:
    assert read((X.flip(0), Y.flip(0))).fingerprint != read((X, Y)).fingerprint


# The tools


@given(sizes=partitions(N), data=st.data())
def test_a_batch_is_cut_in_two(sizes: list[int], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([*KINDS[:4], Pair, Held]))
    batch, batching = kind(X, Y), Batching()
    first, second = batching.split(batch, sizes[0])
    assert [batching.size(part) for part in (first, second)] == [sizes[0], N - sizes[0]]
    for part in range(2):
        both = [leaves(first)[part], leaves(second)[part]]
        assert torch.equal(torch.cat(both), leaves(batch)[part])


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_copies_and_containers_built_anew(kind: Callable[..., Any]) -> None:
    batch = kind(X.clone(), Y)
    again, twin = rebuilt(batch), copied(batch)
    assert leaves(again)[0] is leaves(batch)[0]
    assert again is not batch
    assert not written_to(twin)
    leaves(twin)[0].add_(1)
    assert written_to(twin)
    assert torch.equal(leaves(batch)[0], X)


def test_moving_keeps_what_is_no_tensor() -> None:
    batch = {"x": X, "name": "a", "n": 3, "none": None}
    moved = move(batch, CPU, torch.float64)
    assert moved["x"].dtype == torch.float64
    assert (moved["name"], moved["n"], moved["none"]) == ("a", 3, None)
    assert map_leaves([1, (2, {"a": 3})], lambda leaf: -leaf) == [-1, (-2, {"a": -3})]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (X, "a float32 tensor of shape (13, 3)"),
        ([X, "a"], "a list of (a float32 tensor of shape (13, 3), str)"),
        ({"a": 1}, "a dict with the keys a"),
        ([1] * 5, "list"),
        (None, "NoneType"),
    ],
)
def test_description(value: Any, words: str) -> None:
    assert describe(value) == words


def test_a_problem_without_data() -> None:
    with pytest.raises(ProblemError, match="the problem has no data: give a DataLoader"):
        Problem(nn.Linear(3, 3), nn.CrossEntropyLoss())
