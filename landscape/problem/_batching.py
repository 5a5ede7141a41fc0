"""How many examples a batch holds, and along which axes they are cut."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from landscape.errors import DataError, InvalidArgumentError
from landscape.problem.data import (
    branches,
    describe,
    leaves,
    map_leaves,
    rows_of,
    tensors_in,
    with_parts,
)

_CUT_LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


@dataclass(frozen=True)
class Batching:
    """The number of examples of a batch, and its cut in parts."""

    examples: Callable[[Any], int] | None = None  # of the batch; None: its tensors say it
    # Axis of the examples, or axes in the nesting of the batch, as in `torch.vmap`; None in it
    # stands for what has no such axis. A tensor with too few axes has them first.
    axis: Any = 0
    pairs: bool = False  # batches are (inputs, target)
    by_target: bool = False  # the target alone says the number, as for a loss module of torch

    def __post_init__(self) -> None:
        given: object = self.examples
        if not (given is None or callable(given)):
            msg = f"examples must be a function of a batch, got {given!r}"
            raise InvalidArgumentError(msg)
        if not all(leaf is None or type(leaf) is int for leaf in leaves(self.axis)):
            msg = (
                "batch_axis must be a whole number, or numbers and None in the nesting of a batch, "
                f"such as (1, 0) for (inputs, target); got {self.axis!r}"
            )
            raise InvalidArgumentError(msg)

    @property
    def target_axis(self) -> int:
        """Axis of the examples in the target of a pair."""
        axis = self.axis[1] if isinstance(self.axis, (tuple, list)) else self.axis
        return axis if isinstance(axis, int) else 0

    def size(self, batch: Any) -> int:
        """Return the number of examples of a batch, or raise a DataError that asks for it."""
        n = self.known_size(batch)
        if n is None:
            shapes = ", ".join(dict.fromkeys(map(describe, tensors_in(batch)))) or "no tensor"
            msg = (
                f"how many examples are in a batch of {describe(batch)}? Its parts do not agree on "
                f"one number ({shapes}). Say it in the problem file by examples = lambda batch: …, "
                "or by batch_axis = 1, or (1, 0) for (inputs, target); in Python by "
                "Problem(…, examples=…) or Problem(…, batch_axis=…)"
            )
            raise DataError(msg)
        return n

    def known_size(self, batch: Any) -> int | None:
        """Return the number of examples of a batch; None where nothing says it."""
        if self.examples is not None:
            return _whole(self.examples(batch))
        target = batch[1] if type(batch) in {tuple, list} and len(batch) == 2 else ()
        if _is_number(target):
            return 1 if self.pairs else None  # a single example, or a number for all of them
        if self.by_target and isinstance(target, Tensor):
            return target.size(_fitting(target, self.target_axis))
        sizes = self._sizes(batch)
        if sizes is None:
            plain = (str, bytes, numbers.Number, type(None), Tensor)
            return 1 if all(isinstance(leaf, plain) for leaf in leaves(batch)) else None
        return next(iter(sizes)) if len(sizes) == 1 else None

    def can_split(self, batch: Any) -> bool:
        """Tell whether a batch has two or more examples and each part of it can be cut."""
        n = self.known_size(batch)
        return n is not None and n > 1 and self._cutter(batch, n) is not None

    def split(self, batch: Any, at: int) -> tuple[Any, Any]:
        """Cut a batch after its first ``at`` examples; what has no such axis goes to both parts."""
        return self.part(batch, 0, at), self.part(batch, at, self.size(batch))

    def part(self, batch: Any, first: int, last: int) -> Any:
        """Return some consecutive examples of a batch, or raise a DataError."""
        n = self.size(batch)
        if (first, last) == (0, n):
            return batch
        cut = self._cutter(batch, n)
        if cut is None:
            msg = (
                f"a batch of {describe(batch)} cannot be cut: a part of it has no row for each "
                "example, or can be cut between its entries or within them. Say along which axis "
                "by batch_axis, or give data in batches of as many examples as a subset is to have"
            )
            raise DataError(msg)
        return cut(slice(first, last))

    def between(self, batches: Iterable[Any], first: int, last: int) -> Iterator[Any]:
        """Cut consecutive examples out of the batches of a whole data set."""
        for batch in batches:
            size = self.size(batch)
            low, high = max(first, 0), min(last, size)
            if low < high:
                yield self.part(batch, low, high)
            first, last = first - size, last - size
            if last <= 0:
                break

    def chosen(self, batches: Iterable[Any], indices: Sequence[int]) -> list[Any]:
        """Return examples of a data set by their ascending indices, in one batch where that works.

        Examples of other shapes, or that do not run along the first axis, stay batches of one.
        """
        parts, first, left = [], 0, list(indices)
        for batch in batches:
            last = first + self.size(batch)
            here = [i - first for i in left if i < last]
            left = left[len(here) :]
            parts += [self.part(batch, i, i + 1) for i in here]
            first = last
        tensors = [leaves(part) for part in parts]
        alike = self.axis == 0 and len(set(map(len, tensors))) == 1
        alike = alike and all(
            all(isinstance(t, Tensor) and t.ndim and t.size(0) == 1 for t in every)
            and len({(t.shape, t.dtype) for t in every}) == 1
            for every in zip(*tensors, strict=True)
        )
        if not alike or not tensors[0]:
            return parts
        joined = iter([torch.cat(every) for every in zip(*tensors, strict=True)])
        return [map_leaves(parts[0], lambda leaf: next(joined))]

    def _cutter(self, batch: Any, n: int) -> Callable[[slice], Any] | None:
        if n not in (self._sizes(batch) or ()):
            return None
        return _cutter(batch, self.axis, n, entries=self._has_entries(batch))

    def _sizes(self, batch: Any) -> set[int] | None:
        entries = self._has_entries(batch)
        sizes = _sizes(batch, self.axis, entries=entries)
        return _sizes(batch, self.axis, entries=entries, objects=True) if sizes is None else sizes

    def _has_entries(self, batch: Any) -> bool:
        """Tell whether a whole batch may be a list of examples, and not one of its parts."""
        of_parts = self.pairs or not isinstance(batch, list)
        return not (of_parts or any(isinstance(part, (Tensor, list)) for part in batch))


def _axis_at(axis: Any, place: Any) -> Any:
    """Return the axis for a part of a container; a part that is not named has none."""
    if isinstance(axis, Mapping):
        return axis.get(place)
    if not isinstance(axis, (tuple, list)):
        return axis
    return axis[place] if isinstance(place, int) and place < len(axis) else None


def _fitting(tensor: Tensor, axis: Any) -> int:
    return axis if isinstance(axis, int) and -tensor.ndim <= axis < tensor.ndim else 0


def _whole(n: Any) -> int:
    value: Any = n.item() if isinstance(n, Tensor) and n.numel() == 1 else n
    if type(value) is bool or not isinstance(value, numbers.Integral) or int(value) < 0:
        msg = f"examples(batch) must return the number of examples in the batch, got {n!r}"
        raise DataError(msg)
    return int(value)


def _count(value: Any) -> int | None:
    """Return the number of examples that an object states by itself."""
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])
    stated = getattr(value, "num_graphs", getattr(value, "batch_size", None))
    if isinstance(stated, torch.Size):
        return stated[0] if len(stated) else None
    return int(stated) if isinstance(stated, numbers.Integral) else None


def _sizes(
    value: Any, axis: Any, *, entries: bool = True, objects: bool = False
) -> set[int] | None:
    """Return the numbers of examples that a value fits; None if it says nothing."""
    # `entries`: a list may hold one entry for each example; `objects`: also a list of other things
    # than tensors, which otherwise says nothing.
    if axis is None:
        return None
    if isinstance(value, Tensor):
        return {value.size(_fitting(value, axis))} if value.ndim else None
    parts = branches(value)
    if parts is None:
        n = _count(value)
        inside = {t.size(0) for t in tensors_in(value) if t.dim()} if n is None else {n}
        return (inside if len(inside) == 1 else set()) if inside else None
    in_parts = [_sizes(part, _axis_at(axis, place), objects=objects) for place, part in parts]
    known = [sizes for sizes in in_parts if sizes is not None]
    inner = set.intersection(*known) if known else None
    if entries and _are_alike(value) and (known or objects):
        return {len(value)} if _are_samples(value) else {len(value)} | (inner or set())
    return inner


def _are_alike(value: Any) -> bool:
    """Tell whether a value is a list of things of one type, as one of examples is."""
    return isinstance(value, list) and len(set(map(type, value))) == 1


def _are_samples(value: list[Any]) -> bool:
    """Tell whether the entries of a list hold numbers, as single examples do and batches do not."""
    return branches(value[0]) is not None and any(map(_is_number, leaves(value[0])))


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, numbers.Number) or (isinstance(leaf, Tensor) and not leaf.dim())


def _by_entries(value: Any, axis: Any, n: int) -> bool | None:
    """Tell whether a list is cut between its entries; None if within them would do as well."""
    if len(value) != n or _are_samples(value):
        return len(value) == n
    inner = _sizes(value, axis, entries=False)
    return None if inner is not None and n in inner else True


def _cutter(
    value: Any, axis: Any, n: int, *, entries: bool = True
) -> Callable[[slice], Any] | None:
    """Return the function that takes rows of a value; None if it cannot be cut."""
    if axis is None or (isinstance(value, Tensor) and not value.ndim):
        return lambda rows: value
    if isinstance(value, Tensor):
        along = _fitting(value, axis)
        fits = value.size(along) == n and _has_rows(value)
        return (lambda rows: rows_of(value, rows, along)) if fits else None
    parts = branches(value)
    if parts is None:
        return _object_cutter(value, n)
    by_entries = _by_entries(value, axis, n) if entries and _are_alike(value) else False
    if by_entries is not False:
        return value.__getitem__ if by_entries else None
    inside = {place: _cutter(part, _axis_at(axis, place), n) for place, part in parts}
    cutters = {place: cutter for place, cutter in inside.items() if cutter is not None}
    whole = len(cutters) == len(inside)
    return (
        (lambda r: with_parts(value, {place: cut(r) for place, cut in cutters.items()}))
        if whole
        else None
    )


def _object_cutter(value: Any, n: int) -> Callable[[slice], Any] | None:
    count = _count(value)
    if count is None and not hasattr(value, "to"):
        return lambda rows: value
    if count != n:
        return None
    if isinstance(value, PackedSequence):
        alike = value.sorted_indices is None
        return lambda rows: pack_sequence(unpack_sequence(value)[rows], enforce_sorted=alike)
    if hasattr(value, "to_data_list"):  # a batch of graphs
        return lambda rows: type(value).from_data_list(value.to_data_list()[rows])
    return None


def _has_rows(tensor: Tensor) -> bool:
    """Tell whether a tensor can be cut; a square sparse matrix relates the examples."""
    if tensor.is_nested or tensor.layout == torch.strided:
        return True
    square = tensor.ndim == 2 and tensor.size(0) == tensor.size(1)
    return tensor.layout in _CUT_LAYOUTS and not square
