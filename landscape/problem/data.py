"""The batches of a data set: read once where they fit, the same on every pass, fingerprinted."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from landscape.errors import DataError, LandscapeError
from landscape.problem.digest import Content, parts_of

CACHE_BYTES = 4 * 2**30
BATCH_SIZE = 512


class Batches:
    """A data set as batches on one device, the same values in the same order on every pass.

    The source is read twice before anything is measured: a source that gives other examples, or
    another order, is refused by name. What fits in ``cache_bytes`` is then kept on the device, as
    a copy: a loader may use its memory again.

    Attributes:
        fingerprint: digest of all values.
        n_examples: number of examples.
        n_batches: number of batches.
    """

    def __init__(
        self,
        source: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int = BATCH_SIZE,
        freeze: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Read the source.

        Args:
            source: a pair of tensors or arrays (inputs, targets), a map-style data set, or any
                re-iterable of batches (a DataLoader, a list).
            device: where the batches go.
            dtype: what floating-point tensors become.
            batch_size: for sources that are not batched yet.
            freeze: keep the values of one pass as the data set, without reading it again.
            cache_bytes: keep the batches if they take no more.

        Raises:
            DataError: if the source is empty, one-shot, cannot be read, or differs between two
                passes.
        """
        self._source = as_batches(source, batch_size)
        self._to = (device, dtype)
        self._kept: list[Any] | None = []
        room = cache_bytes if not freeze else float("inf")
        digest = Content()
        self.n_examples = self.n_batches = 0
        for batch in self._read():
            digest.add(batch)
            self.n_batches += 1
            self.n_examples += examples_in(batch)
            room -= _bytes_of(batch)
            if room < 0:
                self._kept = None
            if self._kept is not None:
                self._kept.append(copied(move(batch, device, dtype)))
        self.fingerprint = digest.hexdigest()
        if self.n_examples == 0:
            msg = "the data set is empty: it gave no batch with an example in it"
            raise DataError(msg)
        if not freeze and not _is_fixed(source):
            self._check_second_pass(source)

    def __iter__(self) -> Iterator[Any]:
        if self._kept is not None:
            return iter(self._kept)
        return (move(batch, *self._to) for batch in self._read())

    def _read(self) -> Iterator[Any]:
        n_read = 0
        try:
            for batch in self._source:
                yield map_leaves(batch, _as_tensor)
                n_read += 1
        except LandscapeError:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            msg = f"reading batch {n_read} of the data failed with {type(error).__name__}: {first}"
            raise DataError(msg) from error

    def _check_second_pass(self, source: Any) -> None:
        digest, n_examples = Content(), 0
        for batch in self._read():
            digest.add(batch)
            n_examples += examples_in(batch)
        if digest.hexdigest() == self.fingerprint:
            return
        if n_examples == 0:
            msg = (
                f"the {type(source).__name__} gives nothing on a second pass: it is used up, and a "
                "measurement needs many passes; give a list of batches, a DataLoader, or tensors"
            )
            raise DataError(msg)
        first, second = (_example_digests(self._read()) for _ in range(2))
        msg = _difference(source, first, second)
        raise DataError(msg)


def as_batches(source: Any, batch_size: int = BATCH_SIZE) -> Iterable[Any]:
    """Turn what a user hands over as data into a re-iterable of batches.

    Args:
        source: see `Batches`.
        batch_size: for sources that are not batched yet.

    Returns:
        Something that can be iterated again and again.

    Raises:
        DataError: for a generator, or for what is no data at all.
    """
    if isinstance(source, tuple) and source and all(_is_array(part) for part in source):
        return _slices(tuple(_as_tensor(part) for part in source), batch_size)
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        return DataLoader(source, batch_size=batch_size, shuffle=False)
    if isinstance(source, IterableDataset):
        return DataLoader(source, batch_size=batch_size)
    if isinstance(source, Iterator):
        msg = (
            "the data are a one-shot iterator (a generator?), which is used up after one pass, and "
            "a measurement needs many; give a list of batches, a DataLoader, or tensors"
        )
        raise DataError(msg)
    if isinstance(source, Iterable) and not isinstance(source, (str, bytes, Mapping, Tensor)):
        return source
    msg = (
        f"cannot read batches from {describe(source)}; expected a DataLoader, a Dataset, a pair "
        "of tensors (inputs, targets), or a list of batches"
    )
    raise DataError(msg)


class Batching:
    """How many examples a batch holds, and along which axis it is cut."""

    def size(self, batch: Any) -> int:
        return examples_in(batch)

    def split(self, batch: Any, at: int) -> tuple[Any, Any]:
        return split_batch(batch, at)

    def can_split(self, batch: Any) -> bool:
        size = self.size(batch)
        if size < 2:
            return False
        halves = self.split(batch, size // 2)
        return [self.size(half) for half in halves] == [size // 2, size - size // 2]


def examples_in(batch: Any) -> int:
    """Return the number of examples in a batch: the length of its first tensor.

    Args:
        batch: tensors in any nesting of tuples, lists and mappings.

    Returns:
        The number of examples.

    >>> examples_in({"x": torch.zeros(5, 2), "y": torch.zeros(5)})
    5
    """
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    explicit = getattr(batch, "batch_size", None) or getattr(batch, "num_graphs", None)
    return int(explicit) if explicit is not None else 1


def split_batch(batch: Any, at: int) -> tuple[Any, Any]:
    """Cut a batch in two along its first axis.

    Args:
        batch: tensors in any nesting.
        at: how many examples go to the first part.

    Returns:
        The two parts; what is no tensor of that length goes to both.
    """
    size = examples_in(batch)

    def cut(part: slice) -> Callable[[Any], Any]:
        return lambda leaf: (
            leaf[part] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf
        )

    return map_leaves(batch, cut(slice(None, at))), map_leaves(batch, cut(slice(at, None)))


def move(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Put a batch on a device, its floating-point tensors in a dtype.

    Args:
        batch: tensors in any nesting, or anything with a ``to`` method.
        device: where it goes.
        dtype: what floating-point tensors become.

    Returns:
        The batch there.
    """

    def place(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype)
        return leaf.to(device) if hasattr(leaf, "to") else leaf

    return map_leaves(batch, place)


def rebuilt(batch: Any) -> Any:
    """Build the containers of a batch anew, around the same tensors.

    Args:
        batch: tensors in any nesting.

    Returns:
        An equal batch, from which a user's loss may pop an entry without harm to the first.
    """
    return map_leaves(batch, lambda leaf: leaf)


def copied(batch: Any) -> Any:
    """Copy the tensors of a batch.

    Args:
        batch: tensors in any nesting.

    Returns:
        The same nesting; what is no tensor is not copied.
    """
    return map_leaves(batch, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def written_to(batch: Any) -> bool:
    """Tell whether a tensor of a batch has been changed in place since `copied` made it.

    Args:
        batch: what `copied` returned.

    Returns:
        Whether one has.
    """
    return any(leaf._version > 0 for leaf in leaves(batch) if isinstance(leaf, Tensor))


def map_leaves(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every leaf, keeping the nesting.

    Args:
        batch: any nesting of tuples (named ones too), lists, mappings and dataclasses.
        function: what to apply.

    Returns:
        The same nesting with the results.
    """
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_leaves(part, function) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_leaves(part, function) for part in batch)
    if isinstance(batch, Mapping):
        return _replaced(batch, {key: map_leaves(part, function) for key, part in batch.items()})
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        twin = copy.copy(batch)
        for field in dataclasses.fields(batch):
            part = map_leaves(getattr(batch, field.name), function)
            object.__setattr__(twin, field.name, part)  # a frozen one, too
        return twin
    return function(batch)


def _replaced(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return a mapping of the same kind, which may carry methods that the user's loss relies on."""
    if type(batch) is dict:
        return values
    if isinstance(batch, dict):  # its copy owns its entries: one of another kind may share them
        twin = copy.copy(batch)
        for key, value in values.items():
            twin[key] = value
        return twin
    try:
        return type(batch)(values)  # type: ignore[call-arg]
    except TypeError:
        return values


def leaves(batch: Any) -> list[Any]:
    """List the leaves of a nesting, in order.

    Args:
        batch: see `map_leaves`.

    Returns:
        The leaves.
    """
    parts = parts_of(batch)
    return [batch] if parts is None else [leaf for _, part in parts for leaf in leaves(part)]


def describe(value: Any) -> str:
    """Say in a few words what a value is, for a message.

    Args:
        value: anything.

    Returns:
        Its type, with shape and dtype for tensors.

    >>> describe((torch.zeros(2, 3), 1))
    'a tuple of (a float32 tensor of shape (2, 3), int)'
    """
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)) and len(value) <= 4:
        return f"a {type(value).__name__} of ({', '.join(describe(part) for part in value)})"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(str, list(value)[:8]))}"
    return type(value).__name__


def _as_tensor(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray) or not _is_array(leaf):
        return leaf
    # torch takes neither foreign byte orders nor negative strides, and warns of read-only memory.
    unfit = not leaf.flags.writeable or min(leaf.strides, default=0) < 0
    return torch.as_tensor(leaf.astype(leaf.dtype.newbyteorder("="), copy=unfit))


def _is_array(part: Any) -> bool:
    """Tell whether something is a tensor, or an array of numbers."""
    return isinstance(part, Tensor) or (isinstance(part, np.ndarray) and part.dtype.kind in "biufc")


def _is_fixed(source: Any) -> bool:
    """Tell whether two passes cannot differ: tensors in memory."""
    return type(source) in {list, tuple} and all(_is_array(leaf) for leaf in leaves(source))


def _slices(parts: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    if any(part.layout != torch.strided for part in parts):
        msg = "sparse tensors cannot be cut into batches here; give a list of batches instead"
        raise DataError(msg)
    lengths = {len(part) if part.ndim else 0 for part in parts}
    if len(lengths) != 1:
        msg = (
            "inputs and targets must have one length, got shapes "
            f"{', '.join(str(tuple(part.shape)) for part in parts)}"
        )
        raise DataError(msg)
    return (
        list(zip(*(torch.split(part, size) for part in parts), strict=True))
        if lengths != {0}
        else []
    )


def _bytes_of(batch: Any) -> int:
    tensors = [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _example_digests(batches: Iterable[Any]) -> list[str]:
    """Digest every example apart, in order."""
    found = []
    for batch in batches:
        for i in range(examples_in(batch)):
            digest = Content()
            digest.add(split_batch(split_batch(batch, i)[1], 1)[0])
            found.append(digest.hexdigest())
    return found


def _difference(source: Any, first: list[str], second: list[str]) -> str:
    fixed_loader = "DataLoader(dataset, batch_size=…, shuffle=False)"
    if sorted(first) == sorted(second):
        return (
            f"the {type(source).__name__} is shuffled: two passes gave the same {len(first):,} "
            f"examples in another order; use {fixed_loader}, or keep the order of one pass with "
            "freeze_data=True (--freeze-data)"
        )
    if len(first) != len(second):
        what = f"first {len(first):,}, then {len(second):,} examples"
    else:
        moved = len(set(first) & set(second))
        what = f"only {moved:,} of {len(first):,} examples the same"
    return (
        f"the {type(source).__name__} gives other data on every pass ({what}): random "
        "augmentation, or random sampling (shuffle=True with drop_last=True)? Use the evaluation "
        f"transform with {fixed_loader}, or keep one pass with freeze_data=True (--freeze-data)"
    )
