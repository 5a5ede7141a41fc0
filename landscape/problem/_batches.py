"""The batches of a data set: read once where they fit, the same on every pass, fingerprinted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from landscape.errors import DataError, LandscapeError, first_line
from landscape.problem._batching import Batching
from landscape.problem._sequences import Rows
from landscape.problem.data import (
    as_tensor,
    copied,
    describe,
    is_array,
    leaves,
    map_leaves,
    move,
    n_bytes,
    tensors_in,
)
from landscape.problem.digest import Content, digest_of

CACHE_BYTES = 4 * 2**30
BATCH_SIZE = 512
MAX_EXAMPLES = 10_000_000
N_KINDS, N_FEW = 8, 64
"""Structures of batches, and examples of each, that are kept apart for tests of the loss."""


class Batches:
    """A data set as batches on one device, the same values in the same order on every pass."""

    # The source is read twice before anything is measured: one that gives other examples, or
    # another order, is refused. What fits in `cache_bytes` is then kept on the device, as a copy:
    # a loader may use its memory again. `kinds` has examples of the first batch of each structure,
    # with its number; `largest` is the number of bytes of the largest batch.

    def __init__(
        self,
        source: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batching: Batching | None = None,
        count: Callable[[Any], int] | None = None,
        batch_size: int = BATCH_SIZE,
        freeze: bool = False,
        max_examples: int = MAX_EXAMPLES,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Read the source, and again to compare unless it is in memory or frozen."""
        # `count` counts the examples of a batch as it was read, by default by its tensors;
        # `max_examples` ends a source without a length; `freeze` keeps one pass for good.
        self._source = as_batches(source, batch_size)
        self._limit = None if _has_length(self._source) else max_examples
        self._to = (device, dtype)
        self.batching = batching or Batching()
        self.kinds: list[tuple[int, Any]] = []
        self._kept: list[Any] | None = []
        known: set[Any] = set()
        room = cache_bytes if not freeze else float("inf")
        digest = Content()
        self.n_examples = self.n_batches = self.largest = 0
        for batch in self._read():
            digest.add(batch)
            self.n_examples += (count or self.batching.size)(batch)
            if self._limit is not None and max(self.n_examples, self.n_batches + 1) > self._limit:
                msg = (
                    f"the data have no length, and did not end after {self._limit:,} examples: is "
                    "it an endless stream? Take a part of it (itertools.islice in data()), or give "
                    "Problem(…, max_examples=…)"
                )
                raise DataError(msg)
            room -= n_bytes(batch)
            if room < 0:
                self._kept = None
            is_new = len(known) < N_KINDS and (kind := structure(batch)) not in known
            moved = move(batch, device, dtype)
            self.largest = max(self.largest, n_bytes(moved))
            if self._kept is not None:
                self._kept.append(copied(moved))
            if is_new:
                known.add(kind)
                self.kinds.append((self.n_batches, copied(self._head(moved))))
            self.n_batches += 1
        self.fingerprint = digest.hexdigest()
        if self.n_examples == 0:
            msg = "the data set is empty: it gave no batch with an example in it"
            raise DataError(msg)
        in_memory = type(source) in {list, tuple} and all(map(is_array, leaves(source)))
        if not freeze and not in_memory:
            self._check_second_pass(source)

    def __iter__(self) -> Iterator[Any]:
        if self._kept is not None:
            return iter(self._kept)
        return (move(batch, *self._to) for batch in self._read())

    def _head(self, batch: Any) -> Any:
        can_split = self.batching.can_split(batch) and self.batching.size(batch) > N_FEW
        return self.batching.split(batch, N_FEW)[0] if can_split else batch

    def _read(self) -> Iterator[Any]:
        n_read = 0
        try:
            for batch in self._source:
                yield map_leaves(batch, as_tensor)
                n_read += 1
        except LandscapeError:
            raise
        except Exception as error:
            msg = (
                f"reading batch {n_read} of the data failed with {type(error).__name__}: "
                f"{first_line(error)}"
            )
            raise DataError(msg) from error

    def _check_second_pass(self, source: Any) -> None:
        again = Content()
        for batch in islice(self._read(), self.n_batches + 1):
            again.add(batch)
        if again.hexdigest() == self.fingerprint:
            return
        if again.hexdigest() == Content().hexdigest():
            msg = (
                f"the {type(source).__name__} gives nothing on a second pass: it is used up, and a "
                "measurement needs many passes; give a list of batches, a DataLoader, or tensors"
            )
            raise DataError(msg)
        first, second = (_example_digests(self._read(), self.batching) for _ in range(2))
        raise DataError(_difference(source, first, second))


def structure(batch: Any) -> tuple[Any, ...]:
    """Return what batches have alike whose losses are reduced alike: sizes, and padding."""
    return tuple(
        (tuple(t.size(i) for i in range(1, t.dim())), str(t.dtype), *_padding(t))
        for t in tensors_in(batch)
    )


def _padding(tensor: Tensor) -> tuple[bool, ...]:
    """Tell whether rows of integers hold unequal numbers below zero, and unequal runs at an end."""
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    if not (whole and tensor.numel() and tensor.dim() in {1, 2}) or tensor.layout != torch.strided:
        return ()
    rows = tensor.reshape(tensor.size(0), -1)[:4096].int()
    runs = [(side == side[:, :1]).int().cumprod(1).sum(1) for side in (rows, rows.flip(1))]
    counts = [(rows < 0).sum(1), *(run for run in runs if rows.numel() > len(rows))]
    return tuple(len(count) > 0 and bool((count != count[0]).any()) for count in counts)


def as_batches(source: Any, batch_size: int = BATCH_SIZE) -> Iterable[Any]:
    """Turn what a user hands over as data into a re-iterable of batches, or raise a DataError."""
    if isinstance(source, tuple) and source and all(is_array(part) for part in source):
        return _slices(tuple(as_tensor(part) for part in source), batch_size)
    if isinstance(source, IterableDataset):
        return DataLoader(source, batch_size=batch_size)
    if is_map_style(source):
        form = getattr(source, "format", None)
        if isinstance(form, Mapping) and form.get("type") is None:
            source = source.with_format("torch")  # rows of Hugging Face's datasets hold lists
        collate = source.collate if isinstance(source, Rows) else None
        return DataLoader(source, batch_size=batch_size, shuffle=False, collate_fn=collate)
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


def is_map_style(source: Any) -> bool:
    """Tell whether a source gives single examples by their index."""
    if isinstance(source, Dataset):
        return not isinstance(source, IterableDataset)
    if isinstance(source, (Mapping, str, bytes, Tensor, type)):
        return False
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    table = hasattr(source, "column_names") and hasattr(source, "set_format")
    return indexed and (table or not hasattr(source, "__iter__"))


def _has_length(source: Any) -> bool:
    try:
        return isinstance(source, Sized) and len(source) >= 0
    except TypeError:  # a DataLoader of a stream
        return False


def _slices(parts: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    if any(part.layout != torch.strided or part.is_nested for part in parts):
        msg = "sparse tensors cannot be cut into batches here; give a list of batches instead"
        raise DataError(msg)
    lengths = {len(part) if part.ndim else 0 for part in parts}
    if len(lengths) != 1:
        msg = (
            "inputs and targets must have one length, got shapes "
            f"{', '.join(str(tuple(part.shape)) for part in parts)}"
        )
        raise DataError(msg)
    if lengths == {0}:
        return []
    return list(zip(*(torch.split(part, size) for part in parts), strict=True))


def _example_digests(batches: Iterable[Any], batching: Batching) -> list[str]:
    """Digest every example apart, in order; a batch that cannot be cut as one."""
    digests: list[str] = []
    for batch in batches:
        n = batching.size(batch) if batching.can_split(batch) else 0
        parts = [batching.part(batch, i, i + 1) for i in range(n)] or [batch]
        digests += map(digest_of, parts)
    return digests


def _difference(source: Any, first: list[str], second: list[str]) -> str:
    fixed_loader = "DataLoader(dataset, batch_size=…, shuffle=False)"
    if sorted(first) == sorted(second):
        return (
            f"the {type(source).__name__} is shuffled: two passes gave the same {len(first):,} "
            f"examples in another order; use {fixed_loader}, or keep the order of one pass with "
            "freeze_data=True (--freeze-data)"
        )
    if len(first) != len(second):
        change = f"first {len(first):,}, then {len(second):,} examples"
    else:
        moved = len(set(first) & set(second))
        change = f"only {moved:,} of {len(first):,} examples the same"
    return (
        f"the {type(source).__name__} gives other data on every pass ({change}): random "
        "augmentation, or random sampling (shuffle=True with drop_last=True)? Use the evaluation "
        f"transform with {fixed_loader}, or keep one pass with freeze_data=True (--freeze-data)"
    )
