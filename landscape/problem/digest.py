"""What a value or a callable is made of, as a digest: the same in every process.

Two data sets, or two losses, that give the same numbers should have one digest, and two that do
not must not. A value is followed into containers and attributes; a function into its code, its
defaults, what it closes over, and the constants and functions of its own file that it names.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import types
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (str, int, float, complex, bool, bytes, type(None))
_BRANCHING = (Mapping, tuple, list, types.CodeType)
_GLOBAL = (*_PLAIN, Mapping, tuple, list, Set, Tensor, np.ndarray, nn.Module, types.FunctionType)


def digest_of(function: Any) -> str:
    """Digest what a callable computes, as far as Python lets one see it.

    Args:
        function: a module (its description, settings, tensors and ``forward``), a function (its
            compiled code and the values that it uses), or any object that can be called.

    Returns:
        A short hexadecimal digest, the same in every process.
    """
    content = Content()
    content.add(function)
    return content.hexdigest()


class Content:
    """A SHA-256 of values as they are added."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._seen: set[int] = set()

    def hexdigest(self) -> str:
        """Return the first 16 hexadecimal digits."""
        return self._digest.hexdigest()[:16]

    def add(self, value: Any) -> None:
        """Add a value with everything in it.

        Args:
            value: anything; of an object that cannot be looked into, only the type counts.
        """
        self._seen.clear()
        self._add(value)

    def _add(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._mark(repr(value))
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self._mark(f"{value.dtype}{value.shape}")
            self._digest.update(value.tobytes())
        elif isinstance(value, (type, types.ModuleType)):
            self._mark(getattr(value, "__qualname__", value.__name__))
        elif id(value) in self._seen:
            self._mark("again")
        else:
            self._seen.add(id(value))
            # A loader may make lists of what others hand over as tuples.
            kind = type(value)
            self._mark("tuple" if kind is list else kind.__qualname__)
            self._add_parts(value)
            if isinstance(value, _BRANCHING):  # equal ones may or may not be one object
                self._seen.discard(id(value))

    def _mark(self, text: str) -> None:
        self._digest.update(f"[{text}]".encode())

    def _add_tensor(self, tensor: Tensor) -> None:
        value = tensor.detach().cpu()
        if value.layout != torch.strided:
            self._mark(str(value.layout))
            value = value.to_dense()
        value = value.contiguous().resolve_conj().resolve_neg()
        self._mark(f"{value.dtype}{tuple(value.shape)}")
        self._digest.update(value.reshape(-1).view(torch.uint8).numpy().data)

    def _add_named(self, parts: Iterable[tuple[Any, Any]]) -> None:
        for name, part in parts:
            self._mark(str(name))
            self._add(part)

    def _add_parts(self, value: Any) -> None:
        parts = parts_of(value)
        if parts is not None:
            self._add_named(parts)
        elif isinstance(value, Set):
            # In sorted order: its own changes from one process to the next.
            self._add(sorted(repr(v) if isinstance(v, _PLAIN) else type(v).__name__ for v in value))
        elif isinstance(value, functools.partial):
            self._add_named(enumerate((value.func, value.args, value.keywords)))
        elif isinstance(value, types.MethodType):
            self._add_named(enumerate((value.__func__, value.__self__)))
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.CodeType):
            self._add_code(value)
        elif isinstance(value, nn.Module):
            self._add_module(value)
        else:
            self._mark(getattr(value, "__qualname__", ""))  # built-in functions
            self._add_method(value, "__call__")
            self._add_named(getattr(value, "__dict__", {}).items())

    def _add_function(self, function: types.FunctionType) -> None:
        self._mark(function.__qualname__)
        self._add(function.__code__)
        self._add(function.__defaults__)
        self._add(function.__kwdefaults__)
        self._add([_content_of(cell) for cell in function.__closure__ or ()])
        for name in sorted(_names_in(function.__code__)):
            used = function.__globals__.get(name)
            own = getattr(used, "__globals__", function.__globals__) is function.__globals__
            if isinstance(used, _GLOBAL) and own:
                self._add_named([(name, used)])

    def _add_code(self, code: types.CodeType) -> None:
        self._digest.update(code.co_code + repr(code.co_names).encode())
        for constant in code.co_consts:
            self._add(constant)

    def _add_module(self, module: nn.Module) -> None:
        self._mark(repr(module))
        self._add_method(module, "forward")
        plain = {k: v for k, v in vars(module).items() if isinstance(v, _PLAIN)}
        self._add_named(sorted((k, v) for k, v in plain.items() if k != "training"))
        self._add_named(sorted(module.state_dict().items()))

    def _add_method(self, value: Any, name: str) -> None:
        method = getattr(type(value), name, None)
        # The code of torch's own layers changes with torch, whose version is recorded.
        if isinstance(method, types.FunctionType) and not _is_torchs(method):
            self._add(method)


def parts_of(value: Any) -> list[tuple[Any, Any]] | None:
    """List what a container holds, with its place there.

    Args:
        value: any nesting of tuples, lists, mappings and dataclasses.

    Returns:
        Pairs (place, part); None for a leaf.
    """
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def _is_torchs(function: types.FunctionType) -> bool:
    return function.__module__.split(".", 1)[0] == "torch"


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _names_in(code: types.CodeType) -> set[str]:
    """List the globals that a function reads, itself or in functions inside it."""
    inner = [_names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    own = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return own.union(*inner)
