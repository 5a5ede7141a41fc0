"""Pieces of the data whose graphs fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from landscape.evaluate import Evaluator, graph_nodes
from landscape.problem import Problem

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
    """Walk through the data once, in even pieces of at most a size; None: whole batches."""
    batching = problem.batching
    for i, batch in enumerate(problem.batches):
        if size is None or not batching.can_split(batch):
            yield Piece(batch, i)
            continue
        n = batching.size(batch)
        n_parts = -(-n // size)
        for k in range(n_parts):
            first, last = n * k // n_parts, n * (k + 1) // n_parts
            yield Piece(batching.part(batch, first, last), i)


def size_that_fits(evaluator: Evaluator, limit: int, n_bytes: Callable[[Piece], int]) -> int | None:
    """Measure how many examples a piece may have so that its graph stays within a limit."""
    # The graph of a whole batch is never built to find out: its size is a constant and so much for
    # each example, measured on two small samples of the first batch.
    problem = evaluator.problem
    batch, batching = next(iter(problem.batches)), problem.batching
    if problem.device.type == "cpu":
        # Each piece reads and writes all weights: its graph should not be smaller than they are.
        cap = max(_CACHED, problem.space.n * problem.dtype.itemsize)
        limit = min(limit, cap) if limit > 0 else cap
    if limit <= 0 or not evaluator.divisible or batching.size(batch) < 2:
        return None
    few = max(1, min(_SAMPLE, batching.size(batch) // 4))
    small, large = (n_bytes(Piece(batching.part(batch, 0, k * few), 0)) for k in (1, 2))
    each = max(1.0, (large - small) / few)
    fits = int((limit - max(0.0, small - few * each)) / each)
    return None if fits >= batching.size(batch) else max(1 if few < _SAMPLE else few, fits)


def graph_bytes(*outputs: Tensor | GradientEdge) -> int:
    """Measure the memory of all tensors that the graphs of some outputs have saved."""
    saved = [item.untyped_storage() for node in graph_nodes(*outputs) for item in _saved_by(node)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in saved}.values())


def _saved_by(node: Any) -> Iterator[Tensor]:
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            # What has a hook is not here: activation checkpointing would compute it again.
            raw = _listed(getattr(node, f"_raw_{name.removeprefix('_')}", ()))
            if all(getattr(item, "unpack_hook", None) is None for item in raw):
                for item in _listed(getattr(node, name)):
                    if isinstance(item, Tensor) and item.layout == torch.strided:
                        yield item


def _listed(saved: Any) -> Sequence[Any]:
    return saved if isinstance(saved, (tuple, list)) else (saved,)
