"""How much of a batch goes through the model at once, so that what a pass keeps fits in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.problem import Problem
from landscape.problem.data import n_bytes, tensors_in
from landscape.problem.problem import Footprint

if TYPE_CHECKING:
    from landscape.evaluate._evaluator import Evaluator

# A pass may keep half as much as the weights take, and this at least. More does not fit into the
# caches of a CPU: a gradient of ResNet-20 takes 1.4 times as long in one piece of 770 MiB.
_LEAST = {"cpu": 2**27}
_LEAST_ELSEWHERE = 2**31


def usual_limit(problem: Problem) -> int:
    """Return the bytes that a pass may keep, where nothing else is said; sizes alone decide."""
    least = _LEAST.get(problem.device.type, _LEAST_ELSEWHERE)
    return max(least, problem.space.n * problem.dtype.itemsize // 2)


def fitting(
    problem: Problem, batches: Iterable[tuple[int, Any]], limit: int | None = None
) -> Iterator[tuple[int, Any]]:
    """Cut numbered batches into even pieces whose passes keep no more than a limit, if they can."""
    limit = usual_limit(problem) if limit is None else limit
    footprint = problem.trials.footprint
    if footprint is None or footprint.of(problem.batches.largest) <= limit:
        yield from batches
        return
    for i, batch in batches:
        size = problem.batching.known_size(batch) or 1
        most = max(1, int(size * min(1.0, footprint.share(n_bytes(batch), limit))))
        if most >= size or not problem.batching.can_split(batch):
            yield i, batch
            continue
        n = -(-size // most)
        for k in range(n):
            yield i, problem.batching.part(batch, size * k // n, size * (k + 1) // n)


def measure_footprint(evaluator: Evaluator, batch: Any, kept: int | None) -> None:
    """Note what a pass keeps, from what it has kept of some examples, and of half of them."""
    problem, batching = evaluator.problem, evaluator.problem.batching
    size = n_bytes(batch)
    if not kept or not size or not problem.trials.additive or not batching.can_split(batch):
        return
    found = Footprint(0.0, kept / size)
    if found.of(problem.batches.largest) > usual_limit(problem):
        part = batching.part(batch, 0, max(1, batching.size(batch) // 2))
        less, rest = kept_by(evaluator, part), size - n_bytes(part)
        if less is None or not 0 < less < kept or rest <= 0:
            return
        each = (kept - less) / rest
        found = Footprint(max(0.0, kept - each * size), each)
        if problem.metrics and not _metrics_add_up(evaluator, batch):
            return
    problem.trials.footprint = found


def kept_by(evaluator: Evaluator, batch: Any) -> int | None:
    """Return the bytes that the loss of some examples keeps for its gradient; None: unknown."""
    try:
        with torch.enable_grad(), counting(evaluator, batch) as kept:
            terms = evaluator.terms(None, batch, 0)
    except LandscapeError:
        return None
    return sum(kept.values()) if terms.total.requires_grad else None


@contextmanager
def counting(evaluator: Evaluator, batch: Any) -> Iterator[dict[int, int]]:
    """Note the bytes of each tensor that autograd keeps, but for weights and the batch itself."""
    own = [*evaluator.model.parameters(), *evaluator.model.buffers(), *tensors_in(batch)]
    known, kept = {_place(tensor) for tensor in own}, dict[int, int]()

    def note(tensor: Tensor) -> Tensor:
        place = _place(tensor)
        if place not in known:
            kept[place] = tensor.untyped_storage().nbytes() if place else tensor.numel()
        return tensor.detach()  # an output would keep its graph alive for ever

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def _place(tensor: Tensor) -> int:
    """Return where the values of a tensor lie; 0 where that is not one place."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()


def _metrics_add_up(evaluator: Evaluator, batch: Any) -> bool:
    """Tell whether the metrics of some examples are those of their halves."""
    batching = evaluator.problem.batching
    halves = batching.split(batch, batching.size(batch) // 2)
    try:
        with torch.no_grad():
            whole, *parts = (
                evaluator.on_batch(None, each, 0, evaluator.result)[1] for each in (batch, *halves)
            )
    except LandscapeError:
        return False
    sums = {name: sum(float(part[name][0]) for part in parts) for name in whole}
    return all(
        math.isclose(float(total), sums[name], rel_tol=1e-4, abs_tol=1e-5)
        for name, (total, _) in whole.items()
    )
