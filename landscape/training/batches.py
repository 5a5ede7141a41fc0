"""The training data, shuffled anew in every epoch and cut into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from landscape.problem.data import as_batches


class Batches:
    """The training batches; each iteration is one epoch, in an order of its own.

    Args:
        source: what a task's ``data`` returned.
        batch_size: examples in a batch, where the batches are cut here.
        seed: of the order.

    Raises:
        DataError: if no batches can be read from the source.
    """

    def __init__(self, source: Any, batch_size: int, *, seed: int) -> None:
        self._as_they_come = as_batches(source, batch_size)  # refuses what is no data
        self._source = source
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Any]:
        source = self._source
        # What as_batches accepted as a pair of arrays, it cut along the first axis.
        if isinstance(source, tuple) and all(isinstance(a, (Tensor, np.ndarray)) for a in source):
            parts = [torch.as_tensor(part) for part in source]
            return (tuple(part[i] for part in parts) for i in self._order(len(parts[0])))
        if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            order = self._order(len(source))  # type: ignore[arg-type]
            return iter(DataLoader(source, batch_sampler=[i.tolist() for i in order]))
        return iter(self._as_they_come)

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators that the order is drawn from, beside torch's global one."""
        parts = (self._source, getattr(self._source, "sampler", None))
        given = [getattr(part, "generator", None) for part in parts]
        own = {id(g): g for g in given if isinstance(g, torch.Generator)}
        return [self._generator, *own.values()]

    def _order(self, n: int) -> list[Tensor]:
        order = torch.randperm(n, generator=self._generator)
        cut = list(torch.split(order, self._batch_size))
        if len(cut) > 1 and len(cut[-1]) == 1 and self._batch_size > 1:
            cut[-2:] = [torch.cat(cut[-2:])]
        return cut if n else []
