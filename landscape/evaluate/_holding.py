"""Whether a plan gives the numbers of the plain evaluation, to rounding."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError, first_line
from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._folding import Fold, find_folds
from landscape.evaluate._pieces import arranged, sample_of
from landscape.evaluate._plans import PLAIN, Plan
from landscape.evaluate._running import Runner
from landscape.evaluate._sums import LossSums
from landscape.randomness import seeded

# Examples that a plan is tried on, where batches can be cut: the first ones of several batches,
# in pieces that join some and cut others, whatever the size of the pieces will be.
_TRIED, _OF_A_BATCH, _PIECE = 64, 32, 24
# How far a plan may be off: times the change by rounding the weights, or relative to the norm.
_NOISE = 30.0
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-11}


def plan_that_holds(evaluator: Evaluator, plan: Plan) -> tuple[Plan, tuple[Fold, ...]]:
    """Try a plan on the first examples, and drop what does not give the same numbers."""
    # At the origin and beside it: sums of loss and metrics, and the loss of each example.
    if plan == PLAIN or evaluator.problem.mode == "train":
        return PLAIN, ()
    can_be_cut = evaluator.divisible
    folds = _folds(evaluator, can_be_cut=can_be_cut) if plan.fold else ()
    reasons = []
    for wanted in _less_and_less(plan, fold=bool(folds), piece=can_be_cut):
        if wanted == PLAIN:
            break
        runner = Runner(evaluator, wanted, folds)
        reasons.append(why_not(evaluator, runner, can_be_cut=can_be_cut))
        if not reasons[-1]:
            break
    if plan.compiled and not wanted.compiled:
        msg = f"the model is evaluated without torch.compile: {reasons[0]}"
        warnings.warn(msg, UserWarning, stacklevel=4)
    return wanted, folds if wanted.fold else ()


def _less_and_less(plan: Plan, *, fold: bool, piece: bool) -> Iterator[Plan]:
    """Give a plan, and then without one thing after the other, down to the plain one."""
    plan = replace(plan, fold=plan.fold and fold, piece=plan.piece if piece else None)
    yield plan
    leaving: list[dict[str, Any]] = [
        {"compiled": False},
        {"points": 1},
        {"piece": None, "channels_last": False},
        {"fold": False},
    ]
    for less in leaving:
        before, plan = plan, replace(plan, **less)
        if plan != before:
            yield plan


def why_not(evaluator: Evaluator, runner: Runner, *, can_be_cut: bool) -> str:
    """Compare a way with the plain one on the first examples."""
    problem, plan = evaluator.problem, runner.plan
    batches = sample_of(problem, _TRIED, at_most=_OF_A_BATCH if can_be_cut else None)
    piece = None if plan.piece is None else min(plan.piece, _PIECE)
    pieces = list(arranged(problem.batching, batches, replace(plan, piece=piece)))
    vectors = [evaluator.origin, displaced(evaluator.origin)]
    plain = Runner(evaluator, PLAIN)
    expected = plain.sums(vectors, lambda: batches)
    noisy = plain.sums([_rounded(vector) for vector in vectors], lambda: batches)
    try:
        found = runner.sums(vectors, lambda: pieces)
    except Exception as error:
        # Whatever it is, the plain way does without it, and says what is wrong with the model.
        return f"{type(error).__name__}: {first_line(error)}"
    if runner.plan.points > 1 and not runner.at_once:
        return "torch.vmap cannot run the model or the loss"
    same = all(
        same_sums(*each, _ROUNDING[problem.dtype])
        for each in zip(expected, found, noisy, strict=True)
    )
    return "" if same else "its numbers differ by more than rounding"


def displaced(vector: Tensor, seed: int = 0) -> Tensor:
    """Return a weight vector near another one: each weight moved by about a tenth of their size."""
    generator = seeded(seed)
    shift = torch.randn(len(vector), generator=generator, dtype=torch.float64)
    size = float(vector.double().square().mean().sqrt()) or 1.0
    return vector + (0.1 * size * shift).to(vector)


def same_sums(one: LossSums, other: LossSums, noisy: LossSums, rounding: float) -> bool:
    """Tell whether two evaluations are equal to rounding; NaN is NaN."""
    triples = list(zip(_values(one), _values(other), _values(noisy), strict=False))
    return len(_values(one)) == len(_values(other)) and all(
        _close(*triple, rounding) for triple in triples
    )


def _values(sums: LossSums) -> list[Tensor]:
    metrics = [value for _, value in sorted(sums.metrics.items())]
    numbers = [torch.tensor([value], dtype=torch.float64) for value in [*sums.totals[:2], *metrics]]
    return numbers + list(sums.examples or ())


def _close(one: Tensor, other: Tensor, noisy: Tensor, rounding: float) -> bool:
    """Compare in the Euclidean norm; what is not finite must be the same."""
    finite = torch.isfinite(one)
    if one.shape != other.shape or not torch.equal(finite, torch.isfinite(other)):
        return False
    rest = torch.equal(one[~finite].nan_to_num(0.5), other[~finite].nan_to_num(0.5))
    both = finite & torch.isfinite(noisy)
    noise = float((one[both] - noisy[both]).norm())
    allowed = max(rounding * float(one[finite].norm()), _NOISE * noise)
    return rest and float((one[finite] - other[finite]).norm()) <= allowed


def _rounded(vector: Tensor) -> Tensor:
    """Move each weight up or down by its rounding error."""
    generator = seeded(0)
    sign = torch.randint(2, (len(vector),), generator=generator) * 2 - 1
    return vector * (1 + torch.finfo(vector.dtype).eps * sign.to(vector))


def _folds(evaluator: Evaluator, *, can_be_cut: bool) -> tuple[Fold, ...]:
    ((_, batch),) = sample_of(evaluator.problem, 1, at_most=_OF_A_BATCH if can_be_cut else None)
    try:
        return find_folds(evaluator, batch)
    except (LandscapeError, RuntimeError):
        return ()
