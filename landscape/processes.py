"""Several processes that measure one problem together.

Under ``torchrun`` every process runs the same program on the same data. Inside of `sharing` the
sums over the data set (losses, gradients, products) are taken over consecutive parts, one for each
process, and added up; everything else is computed by all of them alike. The results are the same
bits on every process, so that all take the same way through a search.

With ``shard="parameters"`` each process holds a part of each parameter too (`Spread`), and of every
vector of their length. All walk through the same batches, and each takes a part of the examples of
each batch; the sums over entries of a vector are added up over the processes.

Inside of `pooling` the data are not shared: points are handed out, each is measured by one process
with the bits of a process that is alone, and all get what every process measured.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from landscape.errors import LandscapeError, ProblemError, one_of

T = TypeVar("T")

SHARDS = ("data", "parameters")
_SPLIT = ("loss", "eigs", "trace", "density", "sharpness", "line", "surface")
_TIMEOUT = timedelta(minutes=30)  # of a process that waits for another one's part


@dataclass(frozen=True)
class Share:
    """Which process of how many this is."""

    rank: int
    n: int
    shard: str = "data"  # or the parameters, and the examples of each batch

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def span(self, n_items: int) -> range:
        """Return the consecutive items of this process; their numbers differ by one at most."""
        return range(n_items * self.rank // self.n, n_items * (self.rank + 1) // self.n)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, in its own memory where that will do."""
        if tensor.is_cuda and dist.get_backend() == "gloo":
            msg = (
                f"{self.n} processes and {torch.cuda.device_count()} CUDA devices: start at most "
                "as many processes as devices, or measure with --device cpu"
            )
            raise ProblemError(msg)
        total = tensor.contiguous()
        dist.all_reduce(total)
        return total

    def gather(self, value: T) -> list[T]:
        """Return a value of each process, in their order."""
        found: list[Any] = [None] * self.n
        dist.all_gather_object(found, value)
        return found

    def chain(self, items: list[T]) -> list[T]:
        """Return the items of all processes, in their order."""
        return [item for part in self.gather(items) for item in part]

    def add_arrays(self, array: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the sum of small arrays over all processes, added in their order."""
        total: npt.NDArray[np.float64] = np.sum(np.array(self.gather(array), np.float64), axis=0)
        return total

    def of_first(self, value: T) -> T:
        """Return the value of the first process."""
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


_SHARE: ContextVar[Share | None] = ContextVar("_SHARE", default=None)
# The same for threads of autograd, of which CUDA has its own: they know no context variables.
_IN_THREADS: list[Share] = []


def together() -> Share | None:
    """Return which process this is, inside of `sharing` with more than one; else None."""
    return _SHARE.get()


def share() -> Share | None:
    """Return which process this is, where the batches are shared out; else None."""
    here = _SHARE.get()
    return here if here is not None and here.shard == "data" else None


def shards() -> Share | None:
    """Return which process this is, where the parameters are split; else None."""
    here = _SHARE.get() or (_IN_THREADS[-1] if _IN_THREADS else None)
    return here if here is not None and here.shard == "parameters" else None


@dataclass(frozen=True)
class Spread:
    """Which entries of a vector this process holds, where the parameters are split.

    Of each tensor of m entries, laid out flat, process r of N holds c of them from r·c on, with
    c = ⌈m/N⌉; the last processes hold fewer, or none.
    """

    rank: int
    n_processes: int
    sizes: tuple[int, ...]  # of the whole tensors, which follow each other in the vector

    @functools.cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First entry, and the one after the last, of this process's part of each tensor."""
        found, start = [], 0
        for size in self.sizes:
            chunk = -(-size // self.n_processes)
            ends = (min(size, (self.rank + k) * chunk) for k in (0, 1))
            found.append((start + next(ends), start + next(ends)))
            start += size
        return found

    @property
    def n(self) -> int:
        """Length of the whole vector."""
        return sum(self.sizes)

    @property
    def length(self) -> int:
        """Entries that are held here."""
        return sum(last - first for first, last in self.spans)

    def part(self, whole: Tensor) -> Tensor:
        """Return what is held here of vectors, along their last axis."""
        return torch.cat([whole[..., first:last] for first, last in self.spans], dim=-1)

    def draw_(
        self, out: Tensor, draw: Callable[[int], Tensor], *, width: int, least: int = 1
    ) -> Tensor:
        """Fill the part of a vector that every process draws as a whole, a piece at a time."""
        ends = [*range(width, self.n - least + 1, width), self.n]
        places = [0, *accumulate(last - first for first, last in self.spans)]
        for start, end in zip([0, *ends], ends, strict=False):
            drawn = draw(end - start)
            for (first, last), at in zip(self.spans, places, strict=False):
                low, high = max(first, start), min(last, end)
                if low < high:
                    piece = drawn[low - start : high - start]
                    out[at + low - first : at + high - first] = piece.to(out)
        return out

    def place(self, entry: int) -> int | None:
        """Return where an entry of the whole vector is held; None: by another process."""
        at = 0
        for first, last in self.spans:
            if first <= entry < last:
                return at + entry - first
            at += last - first
        return None

    def whole(self, parts: Tensor) -> Tensor:
        """Return whole vectors on the CPU from the parts of all processes, one in each row."""
        rows = parts.detach().cpu()
        out = rows.new_empty((*rows.shape[:-1], self.n))
        for rank in range(self.n_processes):
            other = Spread(rank, self.n_processes, self.sizes)
            piece = rows if rank == self.rank else rows.new_empty((*rows.shape[:-1], other.length))
            piece = piece.contiguous().to(parts.device)
            dist.broadcast(piece, src=rank)
            held = torch.split(piece.cpu(), [b - a for a, b in other.spans], dim=-1)
            for (first, last), values in zip(other.spans, held, strict=True):
                out[..., first:last] = values
        return out


def over_shards(total: Tensor) -> Tensor:
    """Return the sum of what each process has of a vector's entries; as it is if it has all."""
    here = shards()
    return total if here is None else here.add_up(total.clone())


def sum_over_shards(value: float) -> float:
    """Return the sum of a number over the processes that hold parts of a vector."""
    return (
        value if shards() is None else float(over_shards(torch.tensor(value, dtype=torch.float64)))
    )


def norm_over_shards(length: float) -> float:
    """Return the length of a vector from that of the part that is held here."""
    return length if shards() is None else math.sqrt(sum_over_shards(length * length))


def largest_over_shards(value: int) -> int:
    """Return the largest of a number that the processes have to agree on."""
    here = shards()
    return value if here is None else max(here.gather(value))


class Pool:
    """Points that the processes take in turn, and what they have measured of them.

    All processes have to hand out the same items, and to end each hand-out by `joint`.
    """

    _numbers = itertools.count()  # the same on all processes

    def __init__(self, here: Share) -> None:
        self.here, self._store = here, dist.distributed_c10d._get_default_store()
        self._begin()

    def _begin(self) -> None:
        self._number, self._n_sent = next(self._numbers), [0] * self.here.n

    def _key(self, *parts: object) -> str:
        return " ".join(map(str, ("points", self._number, *parts)))

    def handed_out(self, items: Iterable[T]) -> Iterator[T]:
        """Keep the items that no other process has taken, until one of them fails."""
        mine = self._store.add(self._key("taken"), 1) - 1
        for number, item in enumerate(items):
            if number == mine:
                if self._store.check([self._key("failed")]):
                    return
                yield item
                mine = self._store.add(self._key("taken"), 1) - 1

    @contextmanager
    def joint(self, keep: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
        """Keep the points of all processes: on the first one as they come, on all at the end.

        What is raised on one process is raised on all, once the points in flight are kept.

        Args:
            keep: takes points by their indices, on this process.

        Yields:
            The function to give the points to that this process has measured.
        """
        own: dict[Any, Any] = {}
        error: Exception | None = None

        def add(points: Mapping[Any, Any]) -> None:
            own.update(points)
            keep(points)
            for others in self._exchanged(points):
                keep(others)

        try:
            yield add
            keep({})  # records what waits
        except Exception as raised:
            error = raised
            self._store.set(self._key("failed"), "")
        every = self.here.gather((own, self._to_all(error)))
        self._begin()
        error = error or next((its for _, its in every if its is not None), None)
        # What is known is kept, but for a study that is what has failed.
        with nullcontext() if error is None else suppress(Exception):
            for points, _ in every:
                keep(points)
        if error is not None:
            raise error

    def _to_all(self, error: Exception | None) -> Exception | None:
        if error is None or isinstance(error, LandscapeError):
            return error
        return _described(error, f"process {self.here.rank} of {self.here.n} failed: ")

    def _exchanged(self, points: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
        """Send points to the first process; there, return what the others have sent."""
        if not self.here.is_first:
            key = self._key(self.here.rank, self._n_sent[self.here.rank])
            self._store.set(key, pickle.dumps(points).hex())
            self._n_sent[self.here.rank] += 1
            return
        for rank in range(1, self.here.n):
            while self._store.check([key := self._key(rank, self._n_sent[rank])]):
                yield pickle.loads(bytes.fromhex(self._store.get(key).decode()))
                self._store.delete_key(key)
                self._n_sent[rank] += 1


def _described(error: Exception, where: str = "") -> LandscapeError:
    """Return an error that can be handed over to other processes."""
    return ProblemError(f"{where}{type(error).__name__}: {error}")


_POOL: ContextVar[Pool | None] = ContextVar("_POOL", default=None)


def pool() -> Pool | None:
    """Return what hands out points, inside of `pooling`; else None."""
    return _POOL.get()


@contextmanager
def pooling(here: Share) -> Iterator[Pool]:
    """Take turns at points instead of sharing the data."""
    found = Pool(here)
    tokens = _SHARE.set(None), _POOL.set(found)
    try:
        yield found
    finally:
        _SHARE.reset(tokens[0])
        _POOL.reset(tokens[1])


def agreed(find: Callable[[], T]) -> T:
    """Return what the first process finds; where they share the data, all take part in it."""
    found, here = pool(), together()
    if found is not None:
        return found.here.of_first(find() if found.here.is_first else None)  # type: ignore[return-value]
    return find() if here is None else here.of_first(find())


@contextmanager
def sharing(shard: str = "data") -> Iterator[Share]:
    """Measure together with the other processes of the default group of ``torch.distributed``.

    All of them have to make the same calls, on the same data, with the same settings.

    Args:
        shard: what is split: ``data`` (each process holds the whole model, and evaluates some of
            the batches), or ``parameters`` (each holds a part of every parameter and vector, and
            evaluates a part of every batch), for models that do not fit on one device. Problems
            on models of ``fully_shard`` are made inside of the context, with ``parameters``.

    Yields:
        Which process this is.

    Raises:
        ProblemError: if no process group has been set up.

    Example:
        Under ``torchrun --nproc-per-node 2``::

            torch.distributed.init_process_group("gloo")
            with sharing():
                pairs = ls.top_eigenpairs(problem)  # the same on both processes
    """
    one_of(shard, SHARDS, what="what is split over processes")
    if not (dist.is_available() and dist.is_initialized()):
        msg = (
            "no process group: call torch.distributed.init_process_group() first, or run the "
            "command under torchrun, which sets it up"
        )
        raise ProblemError(msg)
    found = Share(dist.get_rank(), dist.get_world_size(), shard)
    token = _SHARE.set(found if found.n > 1 else None)
    if found.n > 1 and shard == "parameters":
        _IN_THREADS.append(found)
    try:
        yield found
    finally:
        _SHARE.reset(token)
        if found in _IN_THREADS:
            _IN_THREADS.remove(found)


def is_first() -> bool:
    """Tell whether this process is the one that prints and writes."""
    here = together()
    return here is None or here.is_first


def split_of() -> str:
    """Say what is split over how many processes; empty: nothing."""
    here = together()
    return "" if here is None else f"{here.shard} over {here.n} processes"


def size_of_launch() -> int:
    """Return how many processes a launcher such as torchrun has started; 1: none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def launched(shard: str = "data") -> Iterator[Share]:
    """Set up the group of a launcher's processes, and share measurements with them."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        msg = (
            f"WORLD_SIZE is {size_of_launch()}, but {', '.join(missing)} is not set: start the "
            "command by torchrun, or unset WORLD_SIZE"
        )
        raise ProblemError(msg)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", str(size_of_launch())))
    cuda = torch.cuda.is_available() and n_local <= torch.cuda.device_count()  # alike on all
    if cuda:
        torch.cuda.set_device(local)
    ended = threading.Event()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # the parent is torchrun
        threading.Thread(target=_end_with, args=(os.getppid(), ended), daemon=True).start()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    with sharing(shard) as found:
        yield found
    ended.set()
    dist.destroy_process_group()  # after an error others may still wait in it


def _end_with(launcher: int, ended: threading.Event) -> None:
    """End this process with its launcher, which a kill gives no time to end it."""
    while os.getppid() == launcher:
        if ended.wait(1.0):
            return
    if os.environ.get("RANK") == "0":
        os.write(2, b"Error: the launcher has ended, and its processes with it\n")
    os._exit(1)


def own(numbered: Iterable[tuple[int, T]], n_items: int) -> Iterator[tuple[int, T]]:
    """Keep the numbered items that are this process's to evaluate; all of them without others."""
    here = share()
    if here is None:
        yield from numbered
        return
    span = here.span(n_items)
    for number, item in numbered:
        if number >= span.stop:
            return
        if number in span:
            yield number, item


def n_own(n_items: int) -> int:
    """Return how many of the items are this process's; all without others."""
    here = share()
    return n_items if here is None else len(here.span(n_items))


def all_of(statement: bool) -> bool:
    """Tell whether a statement holds on all processes that share the data."""
    here = share()
    return statement if here is None else all(here.gather(statement))


def check_alike(described: Mapping[str, str]) -> None:
    """Refuse to measure together what differs from process to process; a word on each part."""
    here = together()
    if here is None:
        return
    check_split(described.get("measurement", "").partition(" with ")[0])
    every = here.gather(dict(described))
    for name, expected in every[0].items():
        others = [rank for rank, of in enumerate(every) if of.get(name) != expected]
        if others:
            msg = (
                f"the processes do not measure the same: the {name} of process "
                f"{', '.join(map(str, others))} is not that of process 0 ({expected}); give all "
                "the same data, in the same order, the same checkpoint and the same options"
            )
            raise ProblemError(msg)


def check_split(kind: str) -> None:
    """Refuse a kind of measurement that takes whole vectors, where the parameters are split."""
    if kind and kind not in _SPLIT and shards() is not None:
        msg = (
            f"a measurement of {kind} takes whole vectors of parameters, and these are split over "
            f"the processes: {', '.join(_SPLIT)} can be measured so; use sharing(shard='data')"
        )
        raise ProblemError(msg)


class OfFirst:
    """An object that the first process holds, and that answers on all of them.

    Methods that answer are called there, and their results handed to the others; methods that
    only write are called there alone, and what others need of it they ask for. What is raised by
    a call that answers is raised on all processes.

    Args:
        make: makes the object.
        kind: its class.
        writing: names of its methods that only write.
        parts: kind and writing methods of what a method returns where that cannot be handed over.
        here: which process this is; None: that of `share`.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        kind: type,
        *,
        writing: Sequence[str],
        parts: Mapping[str, tuple[type, Sequence[str]]] | None = None,
        here: Share | None = None,
    ) -> None:
        self._kind, self._writing, self._parts = kind, frozenset(writing), parts or {}
        self._target: Any = None
        here = here or together()
        assert here is not None
        self._here = here

        def hold() -> None:
            self._target = make()

        self._answer(hold)

    def __enter__(self) -> OfFirst:
        return self

    def __exit__(self, *error: object) -> None:
        if self._target is not None:
            self._target.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        if not callable(getattr(self._kind, name, None)):
            return self._answer(lambda: getattr(self._target, name))

        def call(*args: Any, **kwargs: Any) -> Any:
            def made() -> Any:
                return getattr(self._target, name)(*args, **kwargs)

            if name in self._writing:
                return None if self._target is None else made()
            if name in self._parts:
                kind, writing = self._parts[name]
                return OfFirst(made, kind, writing=writing, here=self._here)
            return self._answer(made)

        return call

    def _answer(self, make: Callable[[], Any]) -> Any:
        value, error = None, None
        if self._here.is_first:
            try:
                value = make()
            except Exception as raised:
                error = raised if isinstance(raised, LandscapeError) else _described(raised)
        value, error = self._here.of_first((value, error))
        if error is not None:
            raise error
        return value
