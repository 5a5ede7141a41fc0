"""Some of the examples of a data set, in its order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from landscape.errors import DataError
from landscape.problem._batching import Batching
from landscape.problem.data import describe


def examples_between(
    batches: Iterable[Any], first: int, last: int, *, batching: Batching
) -> list[Any]:
    """Cut consecutive examples out of the batches of a whole data set, or raise a DataError."""
    found, seen = [], 0
    for batch in batches:
        size = batching.size(batch)
        low, high = max(first - seen, 0), min(last - seen, size)
        if low < high:
            found.append(_cut(batch, low, high, batching))
        seen += size
        if seen >= last:
            break
    return found


def _cut(batch: Any, low: int, high: int, batching: Batching) -> Any:
    size = batching.size(batch)
    if high - low == size:
        return batch
    if not batching.can_split(batch):
        msg = (
            f"examples {low} to {high} of a batch of {size} were asked for, and a batch of "
            f"{describe(batch)} cannot be cut: say along which axis by batch_axis, or give data in "
            "batches of as many examples as a subset is to have"
        )
        raise DataError(msg)
    return batching.part(batch, low, high)
