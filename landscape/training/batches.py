"""The training data, shuffled anew in every epoch and cut into batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from landscape.errors import DataError
from landscape.problem._batches import as_batches
from landscape.problem._batching import Batching
from landscape.problem.data import describe
from landscape.randomness import seeded


class Batches:
    """The training batches; each iteration is one epoch, in an order of its own."""

    def __init__(self, source: Any, batch_size: int, *, seed: int) -> None:
        self._unshuffled = as_batches(source, batch_size)  # refuses what is no data
        self._source = source
        self._batch_size = batch_size
        self._generator = seeded(seed)

    def __iter__(self) -> Iterator[Any]:
        source = self._source
        if is_arrays(source):
            parts = [torch.as_tensor(part) for part in source]
            return (tuple(part[i] for part in parts) for i in self._order(len(parts[0])))
        if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            order = self._order(len(source))  # type: ignore[arg-type]
            return iter(DataLoader(source, batch_sampler=[i.tolist() for i in order]))
        return iter(self._unshuffled)

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators that the order is drawn from, besides torch's global one."""
        parts = (self._source, getattr(self._source, "sampler", None))
        of_source = [getattr(part, "generator", None) for part in parts]
        unique = {id(g): g for g in of_source if isinstance(g, torch.Generator)}
        return [self._generator, *unique.values()]

    def _order(self, n: int) -> list[Tensor]:
        order = torch.randperm(n, generator=self._generator)
        return list(torch.split(order, _lengths(n, self._batch_size))) if n else []


def is_arrays(source: Any) -> bool:
    """Return whether the data are a tuple of tensors or arrays."""
    return isinstance(source, tuple) and all(isinstance(a, (Tensor, np.ndarray)) for a in source)


def cut_batch(batch: Any, size: int, batching: Batching | None = None) -> list[Any]:
    """Cut a batch into micro-batches; a last one of a single example joins the one before it.

    >>> [part["x"].tolist() for part in cut_batch({"x": torch.arange(5)}, 2)]
    [[0, 1], [2, 3, 4]]
    """
    batching = batching or Batching()
    n = batching.known_size(batch)
    if n != 1 and not batching.can_split(batch):
        msg = (
            "micro_batch needs batches whose parts all have one row for each example, got "
            f"{describe(batch)}; leave what belongs to the batch as a whole out of it, say "
            "batch_axis, or leave micro_batch out"
        )
        raise DataError(msg)
    ends = np.cumsum([0, *_lengths(batching.size(batch), size)]).tolist()
    return [batching.part(batch, first, last) for first, last in itertools.pairwise(ends)]


def _lengths(n: int, size: int) -> list[int]:
    # BatchNorm has no variance to divide by in a single example.
    lengths = [min(size, n - start) for start in range(0, n, size)]
    if len(lengths) > 1 and lengths[-1] == 1 and size > 1:
        lengths[-2:] = [size + 1]
    return lengths
