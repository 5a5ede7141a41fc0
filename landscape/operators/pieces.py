"""The pieces that the data are walked through in: batches, or parts of them that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from landscape.errors import LandscapeError
from landscape.evaluate import Evaluator
from landscape.loss_check import same_loss
from landscape.problem import Problem
from landscape.problem.data import examples_in, split_batch

# On a CPU, graphs beyond this leave the caches and make the allocator give memory back and fetch
# it again: on a ResNet-20 products took 20 % longer with whole batches of 190 MiB.
_CACHED = 48 * 2**20
# Examples in the two samples that the memory of a graph per example is measured on.
_SAMPLE = 8


@dataclass(frozen=True)
class Piece:
    """A batch, or a part of one.

    Attributes:
        batch: tensors in any nesting.
        number: of the batch that it comes from.
    """

    batch: Any
    number: int


def pieces(problem: Problem, size: int | None) -> Iterator[Piece]:
    """Walk through the data once.

    Args:
        problem: gives the data.
        size: examples in a piece at most; None: whole batches.

    Yields:
        The pieces, in the order of the data.
    """
    for i, batch in enumerate(problem.batches):
        if size is None:
            yield Piece(batch, i)
        else:
            yield from _parts(Piece(batch, i), size)


def size_that_fits(evaluator: Evaluator, limit: int, n_bytes: Callable[[Piece], int]) -> int | None:
    """Measure how many examples a piece may have so that its graph stays within a limit.

    The graph of a whole batch is never built to find out: its size is a constant and so much for
    each example, measured on two small samples of the first batch.

    Args:
        evaluator: gives the data, and tells whether they can be cut.
        limit: bytes; 0: none. On a CPU, graphs of more than 48 MiB are cut in any case.
        n_bytes: builds the graph of a piece and measures it.

    Returns:
        The number of examples, at least 8; None where whole batches fit, or cannot be cut.
    """
    batch = next(iter(evaluator.problem.batches))
    size = examples_in(batch)
    if evaluator.problem.device.type == "cpu":
        limit = min(limit, _CACHED) if limit > 0 else _CACHED
    if limit <= 0 or size < 4 * _SAMPLE or evaluator.problem.mode != "eval":
        return None
    heads = (split_batch(batch, n)[0] for n in (_SAMPLE, 2 * _SAMPLE))
    try:
        small, large = (n_bytes(Piece(head, 0)) for head in heads)
    except LandscapeError:
        return None  # what is wrong shows, and is said, on the batch itself
    each = max(1.0, (large - small) / _SAMPLE)
    constant = max(0.0, small - _SAMPLE * each)
    fits = int((limit - constant) / each)
    return None if fits >= size or not divisible(evaluator) else max(_SAMPLE, fits)


def divisible(evaluator: Evaluator) -> bool:
    """Tell whether batches can be cut: loss and weight of the first are sums over its two halves.

    Args:
        evaluator: an entered evaluator.

    Returns:
        Whether it is. Never in ``train`` mode, where the statistics are those of the batch.
    """
    problem = evaluator.problem
    if problem.mode != "eval" or problem.additive is False:
        return False
    batch = next(iter(problem.batches))
    size = examples_in(batch)
    halves = split_batch(batch, size // 2)
    if size < 2 or [examples_in(half) for half in halves] != [size // 2, size - size // 2]:
        return False
    try:
        with torch.no_grad():
            whole, *parts = (
                evaluator.terms(evaluator.origin, part, 0) for part in (batch, *halves)
            )
    except LandscapeError:
        return False
    totals, weights = (
        (float(getattr(whole, name)), sum(float(getattr(part, name)) for part in parts))
        for name in ("total", "weight")
    )
    # A weight that is no sum either, such as a constant 1, would change what is measured.
    return same_loss(*totals, problem.dtype) and same_loss(*weights, problem.dtype)


def _parts(piece: Piece, size: int) -> Iterator[Piece]:
    """Cut a piece into parts of at most a size, as evenly as it goes."""
    rest, n_parts = piece.batch, -(-examples_in(piece.batch) // size)
    for i in range(n_parts - 1):
        head, rest = split_batch(rest, -(-examples_in(rest) // (n_parts - i)))
        yield Piece(head, piece.number)
    yield Piece(rest, piece.number)
