"""What a loss must keep to be measured, tried on a few batches before anything is measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError, LossNotAdditiveWarning, ProblemError
from landscape.problem import Problem
from landscape.problem.data import branches, copied, written_to
from landscape.problem.losses import BatchTerms

Terms = Callable[[Any, int], BatchTerms]


def check_loss(problem: Problem, terms: Terms) -> None:
    """Evaluate the first batch twice, and batches of each structure in two halves.

    Args:
        problem: where ``additive`` and ``writes_inputs`` are noted.
        terms: evaluates a batch, with its number, at the problem's weights.

    Raises:
        ProblemError: if the loss is another one the second time.
    """
    once = check_repeated(problem, terms)
    problem.additive = problem.mode == "eval"
    if once.is_guess and problem.mode == "eval":
        finding = next(filter(None, _findings(problem, terms)), None)
        if finding is not None:
            problem.additive = False
            problem.loss.doubts.append(finding)
            warnings.warn(finding, LossNotAdditiveWarning, stacklevel=5)


def check_repeated(problem: Problem, terms: Terms) -> BatchTerms:
    """Evaluate the first batch twice; note whether it is written to, refuse another loss."""
    number, batch = problem.batches.kinds[0]
    spare = copied(batch)
    once = terms(spare, number)
    problem.writes_inputs = written_to(spare)
    again = terms(batch, number)
    first, second = float(once.total), float(again.total)
    if not same_loss(first, second, problem.dtype):
        msg = (
            "the model gives another loss for the same batch and the same weights (its sum is "
            f"{first:.6g}, then {second:.6g}, in {problem.mode} mode): is there randomness in its "
            "forward pass, like F.dropout without training=self.training? If it is meant, as in a "
            "variational autoencoder, let data() return the noise of each example with it"
        )
        raise ProblemError(msg)
    return once


def _findings(problem: Problem, terms: Terms) -> Iterator[str | None]:
    for number, batch in problem.batches.kinds:
        if problem.batching.can_split(batch):
            yield halves_differ(problem, batch, number, terms)


def halves_differ(problem: Problem, batch: Any, number: int, terms: Terms) -> str | None:
    """Say how the mean loss of a batch differs from that of its halves; None: it does not."""
    size, at = problem.batching.size(batch), problem.batching.size(batch) // 2
    halves = problem.batching.split(batch, at)
    whole = float(terms(batch, number).total)
    try:
        parts = [float(terms(half, number).total) for half in halves]
    except LandscapeError as error:
        return f"the loss cannot be evaluated on half of batch {number} ({error}). {_ADVICE}"
    if same_loss(whole, sum(parts), problem.dtype):
        return None
    finding = (
        f"the loss of batch {number}, {whole / size:.6g}, is not the mean over its two halves, "
        f"{sum(parts) / size:.6g}"
    )
    means = whole / size, parts[0] / at, parts[1] / (size - at)
    counted = _mean_over(means, halves, problem)
    if counted is None:
        return f"{finding}. {_ADVICE}"
    return (
        f"{finding}: it is a mean over {counted}, whose number varies. Return it as a pair (sum, "
        f"weight): n = ({counted}).sum(); return mean * n, n, with mean the loss that you "
        "return now. Until then batches count by their number of examples"
    )


_ADVICE = (
    "If it should be (it returns a sum, or divides by tokens or class weights), "
    "return per-example losses, or (sum, weight) from batch_loss. If examples interact on "
    "purpose (an in-batch contrastive loss), all is well: batches are used as they come, "
    "never merged or split"
)


def _mean_over(
    means: tuple[float, float, float], halves: tuple[Any, Any], problem: Problem
) -> str | None:
    """Find entries of the batch, in words, whose number in the halves explains the three means."""
    name = "batch"
    if problem.loss.splits:
        name, halves = "target", (halves[0][1], halves[1][1])
    places = zip(_entries(halves[0], name), _entries(halves[1], name), strict=False)
    for (place, one), (_, other) in places:
        for filler in _fillers(torch.cat([one.reshape(-1), other.reshape(-1)])):
            n, m = int((one != filler).sum()), int((other != filler).sum())
            mean = (means[1] * n + means[2] * m) / (n + m) if n + m else math.nan
            if same_loss(means[0] * (n + m), mean * (n + m), problem.dtype):
                return f"{place} != {filler}"
    return None


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
    elif isinstance(batch, Tensor) and batch.ndim and batch.layout == torch.strided:
        yield name, batch
        if batch.ndim > 1:
            yield f"{name}[:, 1:]", batch[:, 1:]


def same_loss(first: float, second: float, dtype: torch.dtype) -> bool:
    """Tell whether two sums over a batch are equal to rounding; NaN is NaN."""
    relative, absolute = (1e-4, 1e-5) if dtype == torch.float32 else (1e-9, 1e-14)
    if first == second or (math.isnan(first) and math.isnan(second)):
        return True
    return abs(first - second) <= relative * max(abs(first), abs(second)) + absolute
