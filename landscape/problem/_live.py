"""The one live model: what running it can change, and how all of that is given back.

A measurement writes weights into the model's own parameters. The first one that opens a session
on a model takes a snapshot, and the last one that closes it puts everything back, bit for bit.
Values are written through aliases (``tensor.data``), which have version counters of their own:
graphs that were recorded before stay valid, the user's among them.
"""

from __future__ import annotations

import copy
import signal
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from landscape.errors import ProblemError
from landscape.problem._parameters import is_dtensor
from landscape.randomness import forked_rng

F = TypeVar("F", bound=Callable[..., Any])
# Names of the parameters of one type and device, and their values end to end.
Flat = dict[tuple[torch.dtype, torch.device], tuple[tuple[str, ...], Tensor]]

_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, deque, set)
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside of torch.compile, DistributedDataParallel and DataParallel."""
    while type(model).__name__ in _WRAPPERS and type(model).__module__.startswith("torch."):
        inner = getattr(model, "_orig_mod", None)
        model = model.module if inner is None else inner  # type: ignore[assignment]
    for part in model.modules():
        if any(cls.__name__ == "FSDPModule" for cls in type(part).__mro__):
            part.reshard()  # type: ignore[operator]  # FSDP2 may hold whole parameters
    if type(model).__name__ == "FullyShardedDataParallel":
        msg = (
            "the model is sharded by FSDP (FullyShardedDataParallel): measure the plain model at "
            "the whole checkpoint, saved with FSDP's StateDictType.FULL_STATE_DICT"
        )
        raise ProblemError(msg)
    return model


class Snapshot:
    """All of a module that running it can change: attributes, values, gradients and modes."""

    # `named` are parameters and buffers under all of their names, `flat` the trainable parameters
    # of each type and device, laid end to end; not to be written.

    def __init__(self, model: nn.Module) -> None:
        self.named = dict(tensors_by_name(model))
        modules = list(model.modules())
        self._parts = [(part, list(_content_of(vars(part)))) for part in modules]
        self._kinds = [(part, type(part)) for part in modules]
        tensors = {id(t): t for t in self.named.values()}
        tensors |= {id(t): t for part, _ in self._parts for t in _tensors_in(vars(part))}
        leaves = [t for t in tensors.values() if t.is_leaf and not is_lazy(t)]
        self._flags = [(t, t.data, t.requires_grad, t.grad) for t in leaves]
        with torch.no_grad():
            self.flat, self._values = _flat(model)
            for tensor in leaves:
                if id(tensor) not in self._values and is_plain(tensor):
                    self._values[id(tensor)] = tensor.detach().clone()
        self._aliases = {id(t): alias for t, alias, _, _ in self._flags}
        self._trainable = {id(t) for t, _, requires_grad, _ in self._flags if requires_grad}

    def value_of(self, tensor: Tensor) -> Tensor:
        """Return the value that a tensor had; not to be written."""
        alias = self._aliases.get(id(tensor))
        return self._values.get(id(tensor), tensor.detach() if alias is None else alias)

    def alias_of(self, tensor: Tensor) -> Tensor:
        """Return a tensor that shares the memory of a leaf as its owner left it."""
        return self._aliases.get(id(tensor), tensor.data)

    def requires_grad(self, tensor: Tensor) -> bool:
        """Tell whether a leaf required a gradient."""
        return id(tensor) in self._trainable

    @torch.no_grad()
    def restore(self) -> int:
        """Put everything back, again if called twice; return how many tensors had been moved."""
        for part, kind in self._kinds:
            if type(part) is not kind:
                part.__class__ = kind
        for part, ((_, attributes), *inside) in self._parts:
            for value, content in ((vars(part), attributes), *inside):
                _refill(value, content)
        aliases, values, n_moved = [], [], 0
        for tensor, alias, requires_grad, grad in self._flags:
            if not _same_memory(tensor, alias):
                tensor.data = alias
                n_moved += 1
            if id(tensor) in self._values:
                aliases.append(alias)
                values.append(self._values[id(tensor)])
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad
        if aliases:
            torch._foreach_copy_(aliases, values)
        return n_moved


_UNINTERRUPTIBLE: set[CodeType] = set()


def uninterruptible(function: F) -> F:
    """Mark a function that Ctrl-C must not end half-way; it is delivered afterwards."""
    _UNINTERRUPTIBLE.add(function.__code__)
    return function


class Session:
    """A model in the hands of measurements: they take turns, and the last one puts it back."""

    _open: dict[int, Session] = {}  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.snapshot = Snapshot(model)
        self.turn: object = None  # the measurement whose weights are in place; None: the owner's
        self.moves = 0  # of parameters to another type or device; graphs do not survive that
        self._members: set[object] = set()
        self._thread = threading.get_ident()
        self._interrupts = _Interrupts()

    @classmethod
    @uninterruptible
    def enter(cls, model: nn.Module, member: object) -> Session:
        """Open a session on a model, or join the one that is open, under a token."""
        with cls._lock:
            session = cls._open.get(id(model))
            if session is None:
                cls._check_apart(model)
                session = cls(model)
                session._interrupts.start()
                cls._open[id(model)] = session
            else:
                session.check_thread()
            session._members.add(member)
        return session

    @classmethod
    def _check_apart(cls, model: nn.Module) -> None:
        """Refuse a model that shares parameters with another one that is being measured."""
        own = {id(p) for p in model.parameters()}
        for other in cls._open.values():
            if any(id(p) in own for p in other.model.parameters()):
                msg = (
                    f"the model {type(model).__name__} shares parameters with a "
                    f"{type(other.model).__name__} that is being measured, and their weights are "
                    "written in place: measure one after the other"
                )
                raise ProblemError(msg)

    @classmethod
    def snapshot_of(cls, model: nn.Module) -> Snapshot | None:
        """Return what the owner of a model left, while it is being measured."""
        session = cls._open.get(id(model))
        return None if session is None else session.snapshot

    def check_thread(self) -> None:
        """Refuse two measurements of one model at once."""
        if self._thread != threading.get_ident():
            msg = (
                f"the model {type(self.model).__name__} is being measured in another thread: its "
                "weights are written in place, so measure one after the other, or give each "
                "thread a model of its own (copy.deepcopy)"
            )
            raise ProblemError(msg)

    @uninterruptible
    def put_back(self) -> None:
        """Give the model back as its owner left it, until the next turn."""
        self.turn = None
        try:
            self.moves += self.snapshot.restore()
        except BaseException:
            self.moves += 1
            self.snapshot.restore()  # nothing that ends it half-way may leave it half done
            raise

    def deliver(self) -> None:
        """Raise what Ctrl-C was held back for."""
        self._interrupts.deliver()

    @uninterruptible
    def leave(self, member: object) -> None:
        """Give the model back to the others, or to its owner; again if called twice."""
        self._members.discard(member)
        if self._open.get(id(self.model)) is not self:
            return
        self.put_back()  # if that fails, the session is still there to be closed
        if self._members:
            self.deliver()
            return
        del self._open[id(self.model)]
        try:
            self._interrupts.stop()
        except BaseException:
            self._interrupts.stop()
            raise


class preserved:
    """Context that starts from the owner's values and gives a model back as it was."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._generators = model, forked_rng()

    @uninterruptible
    def __enter__(self) -> None:
        self._generators.__enter__()
        self._session = Session.enter(self._model, self)
        if self._session.turn is not None:
            self._session.put_back()
        self._session.turn = self

    @uninterruptible
    def __exit__(self, *error: object) -> None:
        try:
            self._session.leave(self)
        except BaseException:
            self._session.leave(self)
            raise
        self._generators.__exit__(None, None, None)


class _Interrupts:
    """Holds Ctrl-C back while a function that is marked as uninterruptible runs."""

    def __init__(self) -> None:
        self._previous: Any = None
        self._pending = False

    def start(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGINT)
        if callable(previous):
            self._previous = previous
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        inner = frame
        while inner is not None:
            if inner.f_code in _UNINTERRUPTIBLE:
                self._pending = True
                return
            inner = inner.f_back
        self._previous(number, frame)

    def deliver(self) -> None:
        if self._pending:
            self._pending = False
            self._previous(signal.SIGINT, None)

    def stop(self) -> None:
        if self._previous is not None and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._previous)
        self.deliver()


def flat_copy(model: nn.Module) -> tuple[dict[str, Tensor], Flat]:
    """Copy parameters and buffers by name, and the trainable ones as views of flat vectors."""
    with torch.no_grad():
        flat, values = _flat(model)
        state = {}
        for name, tensor in tensors_by_name(model):
            if id(tensor) not in values:
                values[id(tensor)] = tensor.detach().clone()
            state[name] = values[id(tensor)]
    return state, flat


def _flat(model: nn.Module) -> tuple[Flat, dict[int, Tensor]]:
    """Copy the trainable parameters of each type and device into one vector; and views, by id."""
    groups: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad and is_plain(p):
            groups.setdefault((p.dtype, p.device), {})[name] = p
    flat: Flat = {}
    values: dict[int, Tensor] = {}
    for key, group in groups.items():
        vector = torch.cat([p.detach().reshape(-1) for p in group.values()])
        flat[key] = tuple(group), vector
        pieces = torch.split(vector, [p.numel() for p in group.values()])
        pairs = zip(group.values(), pieces, strict=True)
        values |= {id(p): piece.view(p.shape) for p, piece in pairs}
    return flat, values


def tensors_by_name(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Give the parameters and buffers of a model under all of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def trainable_names(model: nn.Module) -> set[str]:
    """Return the names of parameters that require a gradient in their owner's hands."""
    snapshot = Session.snapshot_of(model)
    return {
        name
        for name, p in model.named_parameters()
        if (p.requires_grad if snapshot is None else snapshot.requires_grad(p))
    }


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the values that the owner gave to parameters and buffers; not to be written."""
    snapshot = Session.snapshot_of(model)
    if snapshot is None:
        return {name: tensor.detach() for name, tensor in tensors_by_name(model)}
    return {name: snapshot.value_of(tensor) for name, tensor in snapshot.named.items()}


def _tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and (type(value) in _CONTAINERS or type(value) is tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(item, depth - 1)


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor has values of its own that can be copied and written back."""
    if is_lazy(tensor) or tensor.is_meta or tensor.is_inference() or is_dtensor(tensor):
        return False
    if tensor.layout != torch.strided:
        return False
    # Expanded tensors have several entries in one place.
    return not any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _same_memory(one: Tensor, other: Tensor) -> bool:
    if one.layout != torch.strided or other.layout != torch.strided or is_dtensor(one):
        return one.layout == other.layout
    return (one.dtype, one.device, one.shape, one.stride()) == (
        other.dtype,
        other.device,
        other.shape,
        other.stride(),
    ) and one.data_ptr() == other.data_ptr()


def _content_of(value: Any, depth: int = 4) -> Iterator[tuple[Any, Any]]:
    """Give a container and the containers and generators in it, each with its content."""
    if isinstance(value, torch.Generator):
        yield value, value.get_state()
    elif type(value) in _CONTAINERS and depth:
        yield value, copy.copy(value)
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _content_of(item, depth - 1)


def _refill(value: Any, content: Any) -> None:
    """Give a container or a generator its content back, in place: others may hold it too."""
    if isinstance(value, torch.Generator):
        value.set_state(content)
        return
    value.clear()
    (value.extend if isinstance(value, (list, deque)) else value.update)(content)
