"""A digest of values: the same for the same values, in every process."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterable, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import ProblemError
from landscape.problem.data import branches, strided_parts

_PLAIN = (str, int, float, complex, bool, bytes, type(None))
_BY_NAME = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)


class Content:
    """A SHA-256 of values as they are added: tensors, arrays, containers, and objects by state."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._around: list[int] = []  # ids of the objects that the one being added lies in

    def hexdigest(self) -> str:
        """Return the first 16 hexadecimal digits."""
        return self._digest.hexdigest()[:16]

    def add(self, value: Any) -> None:
        """Add a value with everything in it; of an object that has no state, its type."""
        self._around.clear()
        try:
            self._add(value)
        except RecursionError as error:
            kind = type(value).__qualname__
            msg = f"a {kind} of the problem is nested too deeply: keep it out of the data"
            raise ProblemError(msg) from error

    def _add(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self._mark(f"{value.dtype}{value.shape}")
            if value.dtype.hasobject:
                self._add(value.tolist())
            else:
                self._digest.update(value.tobytes())
        elif type(value) in _PLAIN:
            self._mark(repr(value))
        elif isinstance(value, _BY_NAME):
            self._mark(f"{getattr(value, '__module__', '')} {value.__name__}")
        elif id(value) in self._around:
            self._mark(f"around {self._around.index(id(value))}")
        else:
            self._around.append(id(value))
            self._add_object(value)
            self._around.pop()

    def _mark(self, text: str) -> None:
        self._digest.update(f"[{text}]".encode())

    def _add_tensor(self, tensor: Tensor) -> None:
        if tensor.is_nested:
            self._add(list(tensor.unbind()))
        elif len(strided_parts(tensor)) > 1:  # sparse
            entries = tensor.detach().to_sparse().coalesce()
            shape = tuple(tensor.shape)
            self._add([str(tensor.layout), shape, entries.indices(), entries.values()])
        elif tensor.is_meta:  # nothing is in it
            self._mark(f"meta {tensor.dtype}{tuple(tensor.shape)}")
        else:
            value = tensor.detach().cpu()
            value = value.dequantize() if value.is_quantized else value
            value = value if value.layout == torch.strided else value.to_dense()
            value = value.contiguous().resolve_conj().resolve_neg()
            self._mark(f"{value.dtype}{tuple(value.shape)}")
            self._digest.update(value.reshape(-1).view(torch.uint8).numpy().data)

    def _add_object(self, value: Any) -> None:
        # A loader may make lists of what others hand over as tuples.
        self._mark("tuple" if type(value) is list else type(value).__qualname__)
        parts = branches(value)
        for place, part in enumerate(_state_of(value)) if parts is None else parts:
            self._mark(str(place)) if isinstance(place, _PLAIN) else self._add(place)
            self._add(part)


def _state_of(value: Any) -> Iterable[Any]:
    """Return what pickle would build the object from."""
    if isinstance(value, Set):  # sorted: its own order changes from one process to the next
        return sorted(map(digest_of, value))
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as error:  # whatever somebody raises where there is no state
        return [type(error).__qualname__]
    if isinstance(reduced, str):
        return [reduced]
    function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    return [function, arguments, state, list(items or ()), list(pairs or ())]


def digest_of(*values: Any) -> str:
    """Return the digest of values, see `Content`."""
    content = Content()
    for value in values:
        content.add(value)
    return content.hexdigest()
