"""The pieces that the data are walked through in: batches, or parts of them that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from landscape.evaluate import Evaluator
from landscape.problem import Problem
from landscape.problem._batching import Batching

# On a CPU, graphs beyond this leave the caches and make the allocator give memory back and fetch
# it again: on a ResNet-20 products took 20 % longer with whole batches of 190 MiB.
_CACHED = 48 * 2**20
# Examples in the two samples that the memory of a graph per example is measured on.
_SAMPLE = 8


@dataclass(frozen=True)
class Piece:
    """A batch, or a part of one, with the number of the batch."""

    batch: Any
    number: int


def pieces(problem: Problem, size: int | None) -> Iterator[Piece]:
    """Walk through the data once, in pieces of at most a size; None: whole batches."""
    for i, batch in enumerate(problem.batches):
        if size is None or not problem.batching.can_split(batch):
            yield Piece(batch, i)
        else:
            yield from _parts(problem.batching, Piece(batch, i), size)


def size_that_fits(evaluator: Evaluator, limit: int, n_bytes: Callable[[Piece], int]) -> int | None:
    """Measure how many examples a piece may have so that its graph stays within a limit."""
    # The graph of a whole batch is never built to find out: its size is a constant and so much for
    # each example, measured on two small samples of the first batch.
    batch, batching = next(iter(evaluator.problem.batches)), evaluator.problem.batching
    if evaluator.problem.device.type == "cpu":
        limit = min(limit, _CACHED) if limit > 0 else _CACHED
    if limit <= 0 or not evaluator.divisible or batching.size(batch) < 4 * _SAMPLE:
        return None
    size = batching.size(batch)
    heads = (batching.split(batch, n)[0] for n in (_SAMPLE, 2 * _SAMPLE))
    small, large = (n_bytes(Piece(head, 0)) for head in heads)
    each = max(1.0, (large - small) / _SAMPLE)
    constant = max(0.0, small - _SAMPLE * each)
    fits = int((limit - constant) / each)
    return None if fits >= size else max(_SAMPLE, fits)


def _parts(batching: Batching, piece: Piece, size: int) -> Iterator[Piece]:
    """Cut a piece into parts of at most a size, as evenly as it goes."""
    n = batching.size(piece.batch)
    each, longer = divmod(n, n_parts := -(-n // size))
    last = 0
    for i in range(n_parts):
        first, last = last, last + each + (i < longer)
        yield Piece(batching.part(piece.batch, first, last), piece.number)
