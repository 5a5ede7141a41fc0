"""Some of the examples of a data set, in its order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from landscape.errors import DataError
from landscape.problem.data import describe, examples_in, split_batch


def examples_between(batches: Iterable[Any], first: int, last: int) -> list[Any]:
    """Cut consecutive examples out of batches.

    Args:
        batches: of the whole data set.
        first: index of the first example, from 0.
        last: index after the last one.

    Returns:
        The batches that hold them, the first and the last one cut where need be.

    Raises:
        DataError: if a batch would have to be cut that cannot be.
    """
    found, seen = [], 0
    for batch in batches:
        size = examples_in(batch)
        low, high = max(first - seen, 0), min(last - seen, size)
        if low < high:
            found.append(_cut(batch, low, high, size))
        seen += size
        if seen >= last:
            break
    return found


def _cut(batch: Any, low: int, high: int, size: int) -> Any:
    if high - low == size:
        return batch
    part = split_batch(split_batch(batch, high)[0], low)[1] if low else split_batch(batch, high)[0]
    if examples_in(part) != high - low:
        msg = (
            f"examples {low} to {high} of a batch of {size} were asked for, and a batch of "
            f"{describe(batch)} cannot be cut: give data in batches of as many examples as a "
            "subset is to have"
        )
        raise DataError(msg)
    return part
