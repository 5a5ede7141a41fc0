"""What a loss must keep to be measured, tried on the first batch before anything is measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from landscape.errors import LandscapeError, LossNotAdditiveWarning, ProblemError
from landscape.problem import Problem
from landscape.problem.data import copied, examples_in, split_batch, written_to
from landscape.problem.losses import BatchTerms

Terms = Callable[[Any], BatchTerms]


def check_loss(problem: Problem, batch: Any, terms: Terms) -> None:
    """Evaluate a batch twice, and in two halves; note in the problem what was found.

    Args:
        problem: where ``additive`` and ``writes_inputs`` are noted.
        batch: the first one.
        terms: evaluates a batch at the problem's weights.

    Raises:
        ProblemError: if the loss is another one the second time.
    """
    spare = copied(batch)
    once = terms(spare)
    problem.writes_inputs = written_to(spare)
    again = terms(batch)
    first, second = float(once.total), float(again.total)
    if not same_loss(first, second, problem.dtype):
        msg = (
            "the model gives another loss for the same batch and the same weights (its sum is "
            f"{first:.6g}, then {second:.6g}, in {problem.mode} mode): is there randomness in its "
            "forward pass, like F.dropout without training=self.training? If it is meant, as in a "
            "variational autoencoder, let data() return the noise of each example with it"
        )
        raise ProblemError(msg)
    problem.additive = problem.mode == "eval"
    if once.is_guess and problem.mode == "eval":
        _check_additive(problem, batch, first, terms)


def _check_additive(problem: Problem, batch: Any, whole: float, terms: Terms) -> None:
    size = examples_in(batch)
    halves = split_batch(batch, size // 2)
    if size < 2 or [examples_in(half) for half in halves] != [size // 2, size - size // 2]:
        return  # nothing to compare with: one example, or a batch that only its owner can cut
    try:
        parts = sum(float(terms(half).total) for half in halves)
    except LandscapeError as error:
        problem.additive = False
        _warn(f"the loss cannot be evaluated on half of the first batch ({error})")
        return
    if not same_loss(whole, parts, problem.dtype):
        problem.additive = False
        _warn(
            f"the loss of the first batch, {whole / size:.6g}, is not the mean over its two "
            f"halves, {parts / size:.6g}"
        )


def _warn(finding: str) -> None:
    msg = (
        f"{finding}. If it should be (it returns a sum, or divides by tokens or class weights), "
        "return per-example losses, or (sum, weight) from batch_loss. If examples interact on "
        "purpose (an in-batch contrastive loss), all is well: batches are used as they come, "
        "never merged or split"
    )
    warnings.warn(msg, LossNotAdditiveWarning, stacklevel=6)


def same_loss(first: float, second: float, dtype: torch.dtype) -> bool:
    """Tell whether two sums over a batch are equal to rounding; NaN is NaN.

    Args:
        first: one sum.
        second: the other.
        dtype: floating-point type that they were computed in.

    Returns:
        Whether they are.
    """
    relative, absolute = (1e-4, 1e-5) if dtype == torch.float32 else (1e-9, 1e-14)
    if first == second or (math.isnan(first) and math.isnan(second)):
        return True
    return abs(first - second) <= relative * max(abs(first), abs(second)) + absolute
