"""What a value is made of, as a digest: the same in every process.

Two data sets that give the same numbers should have one digest, and two that do not must not. A
value is followed into containers and attributes; `landscape.problem.computation` follows code.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import pathlib
import re
import types
from collections import deque
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN = (str, int, float, complex, bool, bytes, type(None))
# Whose text says all that there is to them, and is the same in every process.
_SHOWN = (
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype),
    *(range, slice, type(...), decimal.Decimal, fractions.Fraction, pathlib.PurePath, re.Pattern),
    *(datetime.date, datetime.time, datetime.timedelta),
)
_BRANCHING = (Mapping, tuple, list, deque, types.CodeType)


class Content:
    """A SHA-256 of values as they are added."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._seen: dict[int, object] = {}  # by id; held, so that no id is given twice

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
        if isinstance(value, PLAIN):
            self._mark(repr(value))
        elif isinstance(value, _SHOWN):
            self._mark(f"{type(value).__qualname__} {value}")
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self._mark(f"{value.dtype}{value.shape}")
            self._digest.update(value.tobytes())
        elif isinstance(value, types.ModuleType):
            self._mark(value.__name__)
        elif id(value) in self._seen:
            self._mark("again")
        else:
            self._seen[id(value)] = value
            # A loader may make lists of what others hand over as tuples.
            kind = type(value)
            self._mark("tuple" if kind is list else kind.__qualname__)
            self._add_parts(value)
            if isinstance(value, _BRANCHING):  # equal ones may or may not be one object
                self._seen.pop(id(value), None)

    def _mark(self, text: str) -> None:
        self._digest.update(f"[{text}]".encode())

    def _add_tensor(self, tensor: Tensor) -> None:
        if tensor.is_meta:  # nothing is in it
            self._mark(f"meta {tensor.dtype}{tuple(tensor.shape)}")
            return
        value = tensor.detach().cpu()
        if value.layout != torch.strided:
            self._mark(str(value.layout))
            value = value.to_dense()
        value = value.contiguous().resolve_conj().resolve_neg()
        self._mark(f"{value.dtype}{tuple(value.shape)}")
        self._digest.update(value.reshape(-1).view(torch.uint8).numpy().data)

    def _add_named(self, parts: Iterable[tuple[Any, Any]]) -> None:
        for name, part in parts:
            self._mark(str(name) if isinstance(name, PLAIN) else type(name).__qualname__)
            self._add(part)

    def _add_parts(self, value: Any) -> None:
        parts = parts_of(value)
        if parts is not None:
            self._add_named(parts)
        elif isinstance(value, Set):
            self._add_set(value)
        else:
            self._mark(getattr(value, "__qualname__", ""))
            self._add_named(attributes_of(value).items())

    def _add_set(self, value: Set[Any]) -> None:
        digests = []
        for item in value:
            content = type(self)()
            content.add(item)
            digests.append(content.hexdigest())
        self._add(sorted(digests))  # its own order changes from one process to the next


def parts_of(value: Any) -> list[tuple[Any, Any]] | None:
    """List what a container holds, with its place there.

    Args:
        value: any nesting of tuples, lists, mappings, enumerations and dataclasses.

    Returns:
        Pairs (place, part); None for a leaf.
    """
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list, deque)):
        return list(enumerate(value))
    if isinstance(value, enum.Enum):
        return [(value.name, value.value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def attributes_of(value: Any) -> dict[str, Any]:
    """Return what an object holds, in ``__dict__`` and in ``__slots__``.

    Args:
        value: any object.

    Returns:
        The values by name, in the order in which they came.
    """
    found = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            name = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found.setdefault(name, getattr(value, name))
    return found
