"""The data as a plan wants them: batches joined and cut anew, images with the channels last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._fitting import fitting
from landscape.evaluate._plans import Plan
from landscape.problem import Problem
from landscape.problem._batching import Batching
from landscape.problem.data import leaves, map_leaves, n_bytes

Numbered = Iterable[tuple[int, Any]]
# Pieces that take no more are made once and kept, beside the batches that they are made of.
_KEPT_BYTES = 2**30


def pieces_of(problem: Problem, plan: Plan) -> Callable[[], Numbered]:
    """Return a function that goes through the whole data as a plan wants them."""
    batches = problem.batches

    def whole() -> Numbered:
        numbered = enumerate(batches)
        return fitting(problem, numbered) if plan.piece is None else numbered

    if plan.piece is None and not plan.channels_last:
        return whole
    if n_bytes(next(iter(batches))) * batches.n_batches > _KEPT_BYTES:
        return lambda: arranged(problem.batching, whole(), plan)
    kept = list(arranged(problem.batching, whole(), plan))
    return lambda: kept


def sample_of(evaluator: Evaluator, n: int, *, at_most: int | None) -> list[tuple[int, Any]]:
    """Return the first batches, with n examples or more, of each at most so many if it is cut."""
    problem, cuts = evaluator.problem, at_most is not None and evaluator.divisible
    found, missing = list[tuple[int, Any]](), n
    for i, batch in islice(enumerate(problem.batches), n):
        size, limit = problem.batching.known_size(batch) or 1, min(at_most or n, missing)
        if cuts and size > limit and problem.batching.can_split(batch):
            batch, size = problem.batching.part(batch, 0, limit), limit
        found.append((i, batch))
        missing -= size
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
        whole = bool(waiting) and batching.size(waiting[0]) >= size
        if waiting and (whole or not _joinable(batching, waiting[0], batch)):
            yield from ((first, piece) for piece in _cut(batching, waiting, size))
            waiting = []
        first = first if waiting else i
        waiting.append(batch)
        if sum(map(batching.size, waiting)) >= size:
            *before, rest = _cut(batching, waiting, size)
            yield from ((first, piece) for piece in before)
            waiting, first = [rest], i
    if waiting:
        yield from ((first, piece) for piece in _cut(batching, waiting, size))


def _cut(batching: Batching, batches: list[Any], size: int) -> Iterator[Any]:
    """Join batches, and cut them into pieces of a size; the last one may be smaller."""
    batch = batches[0]
    if len(batches) > 1:
        parts = iter([torch.cat(tensors) for tensors in zip(*map(leaves, batches), strict=True)])
        batch = map_leaves(batch, lambda _: next(parts))
    n = batching.size(batch)
    if n <= size or not batching.can_split(batch):
        yield batch
        return
    for at in range(0, n, size):
        yield batching.part(batch, at, min(at + size, n))


def _joinable(batching: Batching, one: Any, other: Any) -> bool:
    ours, theirs = leaves(one), leaves(other)
    sizes = batching.size(one), batching.size(other)
    return (
        batching.axis == 0
        and batching.can_split(one)
        and len(ours) == len(theirs)
        and all(
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and a.layout == b.layout == torch.strided
            and a.ndim == b.ndim > 0
            and (a.shape[1:], a.dtype) == (b.shape[1:], b.dtype)
            and (len(a), len(b)) == sizes
            for a, b in zip(ours, theirs, strict=True)
        )
    )
