"""What a value is made of, as a digest: the same in every process.

Two data sets that give the same numbers should have one digest, and two that do not must not. A
value is followed into containers and attributes; `landscape.problem.computation` follows code.
"""

from __future__ import annotations

import array
import dataclasses
import datetime
import decimal
import enum
import fractions
import hashlib
import pathlib
import re
import types
from collections import UserList, deque
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError, ProblemError

PLAIN = (str, int, float, complex, bool, bytes, type(None))
# Whose text says all that there is to them, and is the same in every process.
_SHOWN = (
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype),
    *(range, slice, type(...), decimal.Decimal, fractions.Fraction, pathlib.PurePath),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
)
_BRANCHING = (Mapping, tuple, list, deque, types.CodeType)


class Content:
    """A SHA-256 of values as they are added."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        # By id, each with its own digest once that is known; held, so that no id is given twice.
        self._seen: dict[int, tuple[object, str]] = {}
        self._level = 0

    def hexdigest(self) -> str:
        """Return the first 16 hexadecimal digits."""
        return self._digest.hexdigest()[:16]

    def add(self, value: Any) -> None:
        """Add a value with everything in it.

        Args:
            value: anything; of an object that cannot be looked into, only the type counts.

        Raises:
            ProblemError: if it holds things within each other hundreds of times.
        """
        self._seen.clear()
        try:
            self._add(value)
            self._add_rest()
        except RecursionError as error:
            msg = (
                f"a {type(value).__qualname__} of the problem holds things within each other too "
                "many times to be told from others: keep it out of the model, the loss and the data"
            )
            raise ProblemError(msg) from error

    def _add_rest(self) -> None:
        """Add what was put off while the value was added."""

    def _add(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            self._mark(repr(value))
        elif isinstance(value, _SHOWN):
            self._mark(f"{type(value).__qualname__} {value}")
        elif isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self._mark(f"{value.dtype}{value.shape}")
            if value.dtype.hasobject:
                self._add(value.tolist())
            else:
                self._digest.update(value.tobytes())
        elif isinstance(value, types.ModuleType):
            self._mark(value.__name__)
        elif id(value) in self._seen:
            self._mark(self._seen[id(value)][1] or "again")
        elif self._level and isinstance(value, _BRANCHING):
            self._add_branch(value)
        else:
            self._seen[id(value)] = value, ""
            self._level += 1
            self._add_whole(value)
            self._level -= 1

    def _add_branch(self, value: Any) -> None:
        """Add the digest of a container; equal ones may or may not be one object."""
        outer, self._digest = self._digest, hashlib.sha256()
        self._seen[id(value)] = value, ""
        try:
            self._add_whole(value)
        finally:
            found, self._digest = self._digest.hexdigest(), outer
        self._seen[id(value)] = value, found
        self._mark(found)

    def _add_whole(self, value: Any) -> None:
        # A loader may make lists of what others hand over as tuples.
        kind = type(value)
        self._mark("tuple" if kind is list else kind.__qualname__)
        try:
            self._add_parts(value)
        except (RecursionError, LandscapeError):
            raise
        except Exception as error:  # somebody's attribute that cannot be read
            self._mark(f"not to be looked into: {type(error).__qualname__}")

    def _mark(self, text: str) -> None:
        self._digest.update(f"[{text}]".encode())

    def _add_tensor(self, tensor: Tensor) -> None:
        if tensor.is_meta:  # nothing is in it
            self._mark(f"meta {tensor.dtype}{tuple(tensor.shape)}")
            return
        if tensor.is_nested:
            self._add(list(tensor.unbind()))
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
            if isinstance(name, PLAIN):
                self._mark(str(name))
            elif isinstance(name, (tuple, frozenset, type, enum.Enum, *_SHOWN)):
                self._add(name)
            else:
                self._mark(type(name).__qualname__)
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
        # In sorted order: its own changes from one process to the next.
        self._add(sorted(self._apart(item) for item in value))

    def _apart(self, item: Any) -> str:
        if not isinstance(item, (*PLAIN, *_SHOWN, tuple, frozenset, enum.Enum)):
            return type(item).__qualname__  # which may lead back to the set
        content = Content()
        content.add(item)
        return content.hexdigest()


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
    if isinstance(value, re.Pattern):
        return [("pattern", value.pattern), ("flags", value.flags)]
    if isinstance(value, (bytearray, array.array)):
        return [("bytes", bytes(value))]
    if isinstance(value, UserList):
        return list(enumerate(value.data))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
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
