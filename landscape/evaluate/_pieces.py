"""The data as a plan wants them: batches joined and cut anew, images with the channels last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from landscape.evaluate._plans import Plan
from landscape.problem import Problem
from landscape.problem._batching import Batching
from landscape.problem.data import leaves, map_leaves

Numbered = Iterable[tuple[int, Any]]
# Pieces that take no more are made once and kept, beside the batches that they are made of.
_KEPT_BYTES = 2**30


def pieces_of(problem: Problem, plan: Plan) -> Callable[[], Numbered]:
    """Give the whole data as a plan wants them."""
    if plan.piece is None and not plan.channels_last:
        return lambda: enumerate(problem.batches)
    kept: list[tuple[int, Any]] | None = None
    first = next(iter(problem.batches))
    size = sum(leaf.nbytes for leaf in leaves(first) if isinstance(leaf, Tensor))
    if size * problem.batches.n_batches <= _KEPT_BYTES:
        kept = list(arranged(problem.batching, enumerate(problem.batches), plan))
    batching = problem.batching
    return lambda: arranged(batching, enumerate(problem.batches), plan) if kept is None else kept


def sample_of(problem: Problem, n: int, *, at_most: int | None) -> list[tuple[int, Any]]:
    """Return the first batches of the data."""
    found, missing = [], n
    for i, batch in islice(enumerate(problem.batches), n):
        few = missing if at_most is None else min(at_most, missing)
        too_many = at_most is not None and problem.batching.size(batch) > few
        if too_many and problem.batching.can_split(batch):
            batch = problem.batching.part(batch, 0, few)
        found.append((i, batch))
        missing -= problem.batching.size(batch)
        if missing <= 0:
            break
    return found


def arranged(batching: Batching, batches: Numbered, plan: Plan) -> Iterator[tuple[int, Any]]:
    """Arrange numbered batches as a plan wants them, in the order of the data."""
    for i, piece in batches if plan.piece is None else _cut_anew(batching, batches, plan.piece):
        yield i, map_leaves(piece, channels_last) if plan.channels_last else piece


def channels_last(leaf: Any) -> Any:
    """Lay the channels of images, or of the weights of a convolution, out last."""
    if isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.is_floating_point():
        # Not by contiguous(), which leaves one channel, or a kernel of one pixel, as it is, and
        # the layer then lays its output out the other way.
        return leaf.to(memory_format=torch.channels_last)
    return leaf


def _cut_anew(batching: Batching, batches: Numbered, size: int) -> Iterator[tuple[int, Any]]:
    """Join batches that can be joined, and cut what comes out into pieces of one size."""
    waiting: list[Any] = []
    first = 0
    for i, batch in batches:
        if waiting and not _joinable(batching, waiting[0], batch):
            yield from ((first, piece) for piece in _cut(batching, _joined(waiting), size))
            waiting = []
        if not waiting:
            first = i
        waiting.append(batch)
        if sum(map(batching.size, waiting)) >= size:
            *whole, rest = _cut(batching, _joined(waiting), size)
            yield from ((first, piece) for piece in whole)
            waiting, first = [rest], i
            if batching.size(rest) == size:
                yield first, rest
                waiting = []
    if waiting:
        yield from ((first, piece) for piece in _cut(batching, _joined(waiting), size))


def _cut(batching: Batching, batch: Any, size: int) -> Iterator[Any]:
    while batching.size(batch) > size and batching.can_split(batch):
        head, batch = batching.split(batch, size)
        yield head
    yield batch


def _joinable(batching: Batching, one: Any, other: Any) -> bool:
    pairs = list(zip(leaves(one), leaves(other), strict=False))
    first_axis = batching.axis == 0 and batching.can_split(one)
    return (
        first_axis
        and len(leaves(one)) == len(leaves(other))
        and all(
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and (a.ndim, b.ndim, a.shape[1:], a.dtype) == (b.ndim, a.ndim, b.shape[1:], b.dtype)
            and a.layout == b.layout == torch.strided
            and a.ndim > 0
            and (len(a), len(b)) == (batching.size(one), batching.size(other))
            for a, b in pairs
        )
    )


def _joined(batches: list[Any]) -> Any:
    if len(batches) == 1:
        return batches[0]
    parts = iter([torch.cat(tensors) for tensors in zip(*map(leaves, batches), strict=True)])
    return map_leaves(batches[0], lambda _: next(parts))
