"""Pickles read as data: nothing is imported, and only what rebuilds tensors is called.

The module stands in for ``pickle`` in torch's readers. No class and no function ever lies on the
unpickler's stack, only their names; what they would make becomes a `Placeholder`.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np
import torch

# Nobody saves these beside weights but to have something run.
_COMMANDS = {"os", "posix", "nt", "sys", "subprocess", "shutil", "importlib", "runpy", "socket"}
_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "input", "breakpoint"}
_CONSTANTS: dict[str, Any] = {
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, (torch.dtype, torch.layout, torch.qscheme))
} | {"torch.storage.UntypedStorage": torch.UntypedStorage}


class ForbiddenError(pickle.UnpicklingError):
    """A pickle asks for something that runs commands."""


class _Name(str):
    """The name of a class or function that a pickle refers to."""

    __slots__ = ()


class Placeholder(dict[Any, Any]):
    """An object of a class that is not loaded: its name, arguments, items and state."""

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.name, self.args = name, args
        self.state: Any = None
        self.elements: list[Any] = []

    __hash__ = object.__hash__  # type: ignore[assignment]  # metadata have them as keys

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def append(self, element: Any) -> None:
        self.elements.append(element)

    add = append

    def attributes(self) -> dict[str, Any]:
        """Return the parameters, buffers and parts of a module; of others, the attributes."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:  # attributes, and slots
            state = {k: v for part in state if isinstance(part, dict) for k, v in part.items()}
        if not isinstance(state, dict):
            return {}
        parts = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, dict) for part in parts):
            return state
        passing = state.get("_non_persistent_buffers_set", ())
        return {k: v for part in parts for k, v in part.items() if k not in passing}  # type: ignore[union-attr]

    def array(self) -> np.ndarray[Any, Any] | None:
        """Return the NumPy array of numbers that the object is, if it is one."""
        try:
            if self.name.endswith("multiarray._reconstruct"):
                _, shape, kind, fortran, data = self.state
            elif self.name.endswith("numeric._frombuffer"):
                data, kind, shape, fortran = *self.args[:3], self.args[3] == "F"
            else:
                return None
            dtype = np.dtype(kind.state[1].replace("|", "=") + kind.args[0])
            content = data.encode("latin1") if isinstance(data, str) else data
            flat = np.frombuffer(content, dtype if dtype.kind in "biufc" else "O")
            return np.array(flat.reshape(shape, order="F" if fortran else "C"))
        except (AttributeError, IndexError, TypeError, ValueError):
            return None  # of objects, or no array at all


def _call(function: Any, args: tuple[Any, ...]) -> Any:
    known = _CALLS.get(function) if isinstance(function, _Name) else None
    return known(*args) if known else Placeholder(str(function), args)


def _of_type(function: Any, _type: Any, args: tuple[Any, ...], state: Any) -> Any:
    made = _call(function, args)
    if isinstance(made, Placeholder):
        made.state = state
    return made


def _plain(rebuild: Callable[..., Any], n: int = 4) -> Callable[..., Any]:
    """Rebuild a tensor without the gradient, the hooks and the attributes of the pickle."""
    return lambda *args: rebuild(*args[:n], False, OrderedDict(), *args[n + 2 :])


_utils: Any = torch._utils
_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.bytes": lambda *_: b"",  # of empty bytes only
    "_codecs.encode": lambda text, *_: text.encode("latin1"),
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch.serialization._get_layout": lambda name: _CONSTANTS[name],
    "torch.storage._load_from_bytes": lambda data: torch.load(
        io.BytesIO(data), "cpu", weights_only=True
    ),
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_tensor": _utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _plain(_utils._rebuild_tensor_v2),
    "torch._utils._rebuild_tensor_v3": _plain(_utils._rebuild_tensor_v3),
    "torch._utils._rebuild_sparse_tensor": _utils._rebuild_sparse_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _utils._rebuild_meta_tensor_no_storage,
    "torch._utils._rebuild_qtensor": _plain(_utils._rebuild_qtensor, 5),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, dtype, *_: data.to(dtype),
}


class Unpickler(pickle._Unpickler):
    """Unpickler on whose stack nothing can be called; of every protocol."""

    stack: list[Any]
    append: Callable[[Any], None]

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("__builtin__", "builtins")
        text = f"{module}.{name}"
        if module.split(".")[0] in _COMMANDS or (module == "builtins" and name in _BUILTINS):
            raise ForbiddenError(text)
        return _CONSTANTS.get(text, _Name(text))

    def get_extension(self, code: int) -> None:
        msg = f"extension code {code}"
        raise ForbiddenError(msg)

    def _instantiate(self, function: Any, args: Any) -> None:
        self.append(_call(function, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self._instantiate(self.stack.pop(), args)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Placeholder):
            self.stack[-1].state = state

    def load_binpersid(self) -> None:
        # Old whole modules carry their source beside the class.
        key = self.stack.pop()
        is_class = isinstance(key, tuple) and key[0] == "module"
        self.append(key[1] if is_class else self.persistent_load(key))

    dispatch: ClassVar[Any] = pickle._Unpickler.dispatch | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.BINPERSID[0]: load_binpersid,
    }


def load(stream: IO[bytes], *, encoding: str = "utf-8") -> Any:
    """Read one pickle."""
    return Unpickler(stream, encoding=encoding).load()
