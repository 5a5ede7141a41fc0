"""How far to go along a direction: until the loss has risen to a stated multiple."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import numpy as np

from landscape.checks import check_real
from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.measurement import Run, Work
from landscape.problem import Problem
from landscape.results import Line
from landscape.study import Study
from landscape.surface._directions import Direction
from landscape.surface._points import seed_of_masks

MULTIPLE = 10.0
# Shares of ‖w‖ between which a range is looked for; a step of a thousand times ‖w‖ leaves
# nothing of any network.
_TINIEST, _SHORTEST, _LONGEST = 1e-12, 1e-4, 1e3
_GROWTH = 2.0
_HALVINGS = 3


def automatic_range(
    problem: Problem,
    direction: Direction,
    *,
    multiple: float = MULTIPLE,
    seed: int = 0,
    study: Study | None = None,
) -> float:
    """Find a range [−r, r] whose two ends both have a loss of at least a multiple of L(w).

    Doubles the step on each side until the loss reaches the multiple or is not finite, then halves
    the last doubling three times, in the logarithm: r is at most 9 % too long for a rising loss.

    Args:
        problem: what to measure.
        direction: along which.
        multiple: of the loss at the checkpoint; above 1.
        seed: of the dropout masks in ``train`` mode.
        study: where the search is kept, as a line of its own.

    Returns:
        r, in units of the direction.

    Raises:
        InvalidArgumentError: if the multiple is not above 1, or the loss at the checkpoint is not
            above zero.
        LandscapeError: if the loss does not get there within a thousand times ‖w‖.

    Cost: about 20 to 40 forward passes.
    """
    check_real(multiple=multiple)
    if not (math.isfinite(multiple) and multiple > 1):
        msg = f"the multiple must be a finite number above 1, got {multiple!r}"
        raise InvalidArgumentError(msg)
    settings = {
        **direction.identity(),
        "direction": "range",
        "along": direction.kind,
        "multiple": multiple,
        **seed_of_masks(seed, problem),
    }
    run = Run(study=study, seed=seed, progress=False)
    search = partial(_search, direction=direction, multiple=multiple)
    return float(run.record(Line, problem, settings, search).x.max())


def _search(work: Work, direction: Direction, multiple: float) -> dict[str, Any]:
    evaluator, name = work.evaluator, work.evaluator.problem.name
    tried = {0.0: evaluator.loss()}
    target = multiple * tried[0.0].value
    if not target > 0:
        msg = (
            f"the loss of {name} is {tried[0.0].value:g}, which has no multiple to reach: give the "
            "range itself"
        )
        raise InvalidArgumentError(msg)

    def reaches(x: float) -> bool:
        if x not in tried:
            tried[x] = evaluator.loss(direction.at(evaluator.origin, x))
        return not tried[x].value < target

    def refuse(where: str) -> NoReturn:
        msg = (
            f"the loss of {name} does not reach {target:g} ({multiple:g} times its own) {where} "
            f"within {_LONGEST:g} ‖w‖ along the {direction.description}: give the range itself, or "
            "a smaller multiple"
        )
        raise LandscapeError(msg)

    size = (float(np.linalg.norm(evaluator.origin.double().cpu())) or 1.0) / direction.norm
    ahead, behind = (_end(reaches, sign, size) for sign in (1.0, -1.0))
    if ahead is None or behind is None:
        refuse("ahead" if ahead is None else "behind")
    r = max(ahead, -behind)
    # A loss that falls again further out: go on until it is high at both ends.
    while not (reaches(-r) and reaches(r)):
        r *= _GROWTH
        if r > _LONGEST * size:
            refuse("at both ends")
    xs = np.array(sorted(x for x in tried if abs(x) <= r))
    return {
        "x": xs,
        "loss": np.array([tried[x].value for x in xs]),
        "loss_se": np.array([tried[x].se for x in xs]),
        "direction": direction.description,
        "direction_norm": direction.norm,
        "origin_loss": tried[0.0].value,
    }


def _end(reaches: Callable[[float], bool], sign: float, size: float) -> float | None:
    """Return the first step found at which the loss is high, in one direction."""
    step = _SHORTEST * size
    while step > _TINIEST * size and reaches(sign * step):
        step /= _GROWTH
    while not reaches(sign * step):
        step *= _GROWTH
        if step > _LONGEST * size:
            return None
    low, high = step / _GROWTH, step
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if reaches(sign * middle) else (middle, high)
    return sign * high
