"""Batches as nestings: what is in them, moved, copied and described."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def branches(value: Any) -> list[tuple[Any, Any]] | None:
    """List the parts of a tuple, list, mapping or dataclass, with their places; None: a leaf."""
    if isinstance(value, (Tensor, PackedSequence)):  # a tuple to Python, one object to its users
        return None
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    return None


def leaves(batch: Any) -> list[Any]:
    """List the leaves of a nesting, in order."""
    parts = branches(batch)
    return [batch] if parts is None else [leaf for _, part in parts for leaf in leaves(part)]


def with_parts(value: Any, parts: dict[Any, Any]) -> Any:
    """Build a container of the same kind from other parts, given by their places."""
    if isinstance(value, (tuple, list)):
        named = isinstance(value, tuple) and hasattr(value, "_fields")
        return type(value)(*parts.values()) if named else type(value)(parts.values())
    if type(value) is dict:
        return parts
    if isinstance(value, Mapping) and not isinstance(value, dict):
        try:
            return type(value)(parts)  # type: ignore[call-arg]
        except TypeError:
            return parts
    # A copy carries methods that the user's loss may rely on, and owns its entries: a mapping of
    # another kind may share them. A dataclass may be frozen.
    twin = copy.copy(value)
    for place, part in parts.items():
        if isinstance(twin, dict):
            twin[place] = part
        else:
            object.__setattr__(twin, place, part)
    return twin


def map_leaves(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every leaf, keeping the nesting."""
    parts = branches(batch)
    if parts is None:
        return function(batch)
    return with_parts(batch, {place: map_leaves(part, function) for place, part in parts})


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor, also to those that an object with a ``to`` holds."""

    def on_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        return _map_object(leaf, function) if _is_object(leaf) else leaf

    return map_leaves(batch, on_leaf)


def tensors_in(batch: Any) -> list[Tensor]:
    """List the tensors of a batch, also those that an object with a ``to`` holds."""
    tensors: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(batch, note)
    return tensors


def _is_object(leaf: Any) -> bool:
    return callable(getattr(leaf, "to", None)) and not isinstance(leaf, (Tensor, type))


def _map_object(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, PackedSequence):  # its batch_sizes stay on the CPU
        orders = (value.sorted_indices, value.unsorted_indices)
        moved = [None if order is None else function(order) for order in orders]
        return PackedSequence(function(value.data), value.batch_sizes, *moved)

    def on_leaf(leaf: Any) -> Any:
        return function(leaf) if isinstance(leaf, Tensor) else leaf

    twin = copy.copy(value)
    if callable(getattr(twin, "apply", None)):  # as graph libraries have it: in place, or anew
        made = twin.apply(on_leaf)
        return twin if made is None else made
    slots = [name for cls in type(twin).__mro__ for name in getattr(cls, "__slots__", ())]
    for name in [*getattr(twin, "__dict__", {}), *slots]:
        part = getattr(twin, name, None)
        if any(isinstance(leaf, Tensor) for leaf in leaves(part)):
            object.__setattr__(twin, name, map_leaves(part, on_leaf))
    return twin


def move(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Put a batch on a device, its floating-point tensors in a dtype."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    def place(leaf: Any) -> Any:
        if _is_object(leaf) and not isinstance(leaf, PackedSequence):
            leaf = copy.copy(leaf)  # some change themselves
            moved = leaf.to(device)
            leaf = leaf if moved is None else moved
        return map_tensors(leaf, cast)

    return map_leaves(batch, place)


def rebuilt(batch: Any) -> Any:
    """Build the containers anew around the same tensors: a user's loss may pop an entry."""
    return map_leaves(batch, lambda leaf: leaf)


def copied(batch: Any) -> Any:
    """Copy the tensors of a batch."""
    return map_tensors(batch, lambda tensor: tensor.clone())


def written_to(batch: Any) -> bool:
    """Tell whether a tensor of a batch has been changed in place since `copied` made it."""
    return any(tensor._version > 0 for tensor in tensors_in(batch))


def n_bytes(batch: Any) -> int:
    """Return the memory that the tensors of a batch take."""
    return sum(part.nbytes for tensor in tensors_in(batch) for part in strided_parts(tensor))


def values_of(tensor: Tensor) -> Tensor:
    """Return the stored entries of a tensor, of any layout, as a strided one."""
    if tensor.is_nested:
        return torch.cat([part.reshape(-1) for part in tensor.unbind()])
    return strided_parts(tensor)[-1]


def strided_parts(tensor: Tensor) -> list[Tensor]:
    """List what a tensor is stored in: its entries last, and the indices of a sparse one."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor]


def describe(value: Any) -> str:
    """Say in a few words what a value is, for a message."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        shape = "that is nested" if value.is_nested else f"of shape {tuple(value.shape)}"
        return f"a {kind} tensor {shape}"
    if isinstance(value, (tuple, list)) and len(value) <= 4:
        return f"a {type(value).__name__} of ({', '.join(describe(part) for part in value)})"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(str, list(value)[:8]))}"
    return type(value).__name__


def as_tensor(leaf: Any) -> Any:
    """Turn an array of numbers into a tensor; anything else stays as it is."""
    if not isinstance(leaf, np.ndarray) or not is_array(leaf):
        return leaf
    # torch takes neither foreign byte orders nor negative strides, and warns of read-only memory.
    unfit = not leaf.flags.writeable or min(leaf.strides, default=0) < 0
    return torch.as_tensor(leaf.astype(leaf.dtype.newbyteorder("="), copy=unfit))


def is_array(part: Any) -> bool:
    """Tell whether something is a tensor, or an array of numbers."""
    return isinstance(part, Tensor) or (isinstance(part, np.ndarray) and part.dtype.kind in "biufc")


def rows_of(tensor: Tensor, rows: slice, axis: int = 0) -> Tensor:
    """Return some of the rows of a tensor of any layout."""
    if tensor.is_nested:
        return torch.nested.as_nested_tensor(list(tensor.unbind())[rows], layout=tensor.layout)
    if tensor.layout == torch.strided:
        return tensor[(slice(None),) * (axis % tensor.ndim) + (rows,)]
    index = torch.arange(*rows.indices(tensor.size(axis)), device=tensor.device)
    chosen = tensor.to_sparse(layout=torch.sparse_coo).index_select(axis, index)
    return chosen.to_sparse(layout=tensor.layout)
