"""Whether the loss of a batch is made of those of its parts, tried on batches of each structure."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError, LossNotAdditiveWarning
from landscape.problem.data import branches
from landscape.problem.losses import BatchTerms

if TYPE_CHECKING:
    from landscape.evaluate._evaluator import Evaluator

_CLOSE = 2e-3  # of the difference between the whole and its halves, which entries explain
_ADVICE = (
    "If it should be (it returns a sum, or divides by tokens or class weights), return per-example "
    "losses, or (sum, weight) from batch_loss. If examples interact on purpose (an in-batch "
    "contrastive loss), all is well: batches are used as they come, never merged or split"
)


def check_halves(evaluator: Evaluator, batch: Any, whole: BatchTerms, *, n: int) -> None:
    """Compare examples with their halves, for a mean in batches of other sizes and padding too."""
    problem = evaluator.problem
    others = problem.batches.kinds[1:] if whole.is_guess else []
    for number, other in [(0, batch), *others]:
        few = other
        if number and problem.batching.can_split(other):
            few = problem.batching.part(other, 0, n)
        finding = None
        if problem.batching.can_split(few):
            finding = _difference(evaluator, few, number, None if number else whole)
        if finding is not None:
            problem.trials.additive = False
            if whole.is_guess:
                problem.loss.doubts.append(finding)
                warnings.warn(finding, LossNotAdditiveWarning, stacklevel=6)
            return


def same_loss(first: float, second: float, dtype: torch.dtype) -> bool:
    """Tell whether two sums over a batch are equal to rounding; NaN is NaN."""
    relative, absolute = (1e-4, 1e-5) if dtype == torch.float32 else (1e-9, 1e-14)
    if first == second or (math.isnan(first) and math.isnan(second)):
        return True
    return abs(first - second) <= relative * max(abs(first), abs(second)) + absolute


def _difference(
    evaluator: Evaluator, batch: Any, number: int, whole: BatchTerms | None
) -> str | None:
    """Say how the loss of a batch differs from that of its halves; None: it does not."""
    problem = evaluator.problem
    size, at = problem.batching.size(batch), problem.batching.size(batch) // 2
    halves = problem.batching.split(batch, at)
    with torch.no_grad():
        try:
            whole = whole or evaluator.terms(None, batch, number)
            parts = [evaluator.terms(None, half, number) for half in halves]
        except LandscapeError as error:
            return f"the loss cannot be evaluated on half of batch {number} ({error}). {_ADVICE}"
    total, first, second = (float(terms.total) for terms in (whole, *parts))
    weights = float(whole.weight), sum(float(part.weight) for part in parts)
    # A weight that is no sum, such as a constant 1, would change what is measured.
    if all(same_loss(*pair, problem.dtype) for pair in ((total, first + second), weights)):
        return None
    finding = (
        f"the loss of batch {number}, {total / size:.6g}, is not the mean over its two halves, "
        f"{(first + second) / size:.6g}"
    )
    means = total / size, first / at, second / (size - at), (first + second) / size
    counted = _counted(means, halves, evaluator)
    if counted is None:
        return f"{finding}. {_ADVICE}"
    return (
        f"{finding}: it is a mean over entries whose number varies. Return a pair (sum, weight): "
        f"n = ({counted}).sum(); return mean * n, n, with mean the loss that is returned now. "
        "Until then batches count by their number of examples"
    )


def _counted(means: tuple[float, ...], halves: tuple[Any, Any], evaluator: Evaluator) -> str | None:
    """Find entries, in Python, whose number in the halves explains the means."""
    name, (whole, one_mean, other_mean, by_examples) = "batch", means
    close = _CLOSE * abs(whole - by_examples)  # the loss may be computed in less than its type
    if evaluator.problem.loss.splits:
        name, halves = "target", (halves[0][1], halves[1][1])
    places = zip(_entries(halves[0], name), _entries(halves[1], name), strict=False)
    found = []
    for (place, one), (_, other) in places:
        fillers = _fillers(torch.cat([one.reshape(-1), other.reshape(-1)]))
        for rank, filler in enumerate(fillers):
            n, m = int((one != filler).sum()), int((other != filler).sum())
            if n + m and abs(whole - (one_mean * n + other_mean * m) / (n + m)) <= close:
                found.append((rank, f"{place} != {filler}"))
    return min(found)[1] if found else None


def _fillers(values: Tensor) -> list[int]:
    """List the values that padding may have: of a mask zero, of integers the ends too."""
    if not values.numel() or values.is_complex():
        return []
    if values.is_floating_point():
        return [0] if bool(((values == 0) | (values == 1)).all()) else []
    low, high = (int(end) for end in values.int().aminmax())
    return list(dict.fromkeys([-100, -1, 0, low, high]))


def _entries(batch: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """List tensors with their names, also without their first column, as for the next token."""
    parts = branches(batch)
    if parts is not None:
        for place, part in parts:
            yield from _entries(part, f"{name}[{place!r}]")
    elif isinstance(batch, Tensor) and batch.layout == torch.strided and batch.dim():
        yield name, batch
        if batch.dim() > 1:
            yield f"{name}[:, 1:]", batch[:, 1:]
