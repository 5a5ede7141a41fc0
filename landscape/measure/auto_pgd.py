"""Auto-PGD as published: the yardstick that sharpness in papers is measured with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.balls import Ball
from landscape.errors import InvalidArgumentError
from landscape.measure.ascent import Objective, Point

_MOMENTUM = 0.75
_ENOUGH = 0.75  # share of the steps between two checkpoints that must rise


@dataclass(frozen=True)
class Ascended:
    """Where Auto-PGD ended.

    Attributes:
        best: the highest point, the centre of the ball among them.
        values: rise at each point in turn, the centre not among them.
        gradients: gradient passes spent, that at the centre not among them.
    """

    best: Point
    values: tuple[float, ...]
    gradients: int


def checkpoints(n_steps: int) -> tuple[int, ...]:
    """Return the steps after which Auto-PGD considers halving its step.

    Args:
        n_steps: steps in all.

    Returns:
        ⌈pⱼ n⌉ with p₁ = 0.22 and pⱼ₊₁ = pⱼ + max(pⱼ − pⱼ₋₁ − 0.03, 0.06), p₀ = 0, up to n.

    >>> checkpoints(20)
    (5, 9, 12, 15, 16, 18, 19, 20)
    """
    shares = [0.0, 0.22]
    while shares[-1] <= 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Rounded up in floating point, as the published script does: 0.7 · 20 gives 15.
    return tuple(math.ceil(share * n_steps) for share in shares[1:] if share <= 1)


def auto_pgd(objective: Objective, ball: Ball, centre: Point, *, n_steps: int = 20) -> Ascended:
    """Climb from the centre of a ball by projected gradient ascent with momentum.

    z = P(x + η s), x⁺ = P(x + α (z − x) + (1 − α) (x − x⁻)), α = 0.75 (1 at the first step), where
    s is the gradient over its norm for p = 2, its signs for p = ∞; η = 2ρ at first. At the
    checkpoints η is halved, and the climb goes back to its highest point, if less than 3/4 of the
    steps since the last one rose, or neither η nor the highest value changed between the last two.

    Args:
        objective: ε ↦ (rise, gradient).
        ball: where to climb, p = 2 or ∞.
        centre: ε = 0 with its gradient.
        n_steps: how many steps.

    Returns:
        The highest point. Cost: ``n_steps`` gradient passes, that at the centre apart.

    Raises:
        InvalidArgumentError: if p is neither 2 nor ∞.

    References:
        Croce, Hein (2020), arXiv:2003.01690, algorithm 1; Andriushchenko, Croce, Müller, Hein,
        Flammarion (2023), arXiv:2302.07011, who use it with 20 steps and no random start.
    """
    if ball.p not in {2.0, math.inf}:
        msg = f"Auto-PGD was published for p = 2 and p = inf, got p = {ball.p:g}: use the search"
        raise InvalidArgumentError(msg)
    marks = checkpoints(n_steps)
    step, here, last, best = 2 * ball.rho, centre, centre, centre
    values: list[float] = [centre.value]
    then, since = (math.nan, math.nan), 0
    for k in range(n_steps):
        target = ball.project(here.epsilon + step * _ascent(here.gradient, ball))
        moved = target
        if k:
            ahead = _MOMENTUM * (target - here.epsilon)
            moved = here.epsilon + ahead + (1 - _MOMENTUM) * (here.epsilon - last.epsilon)
        there = _at(objective, ball.project(moved))
        values.append(there.value)
        best = there if there.usable and there.value > best.value else best
        here, last = (there if there.usable else best), here
        if k + 1 in marks:
            span = k + 1 - since
            rises = sum(b > a for a, b in zip(values[since:-1], values[since + 1 :], strict=True))
            stalled = then == (step, best.value)
            then, since = (step, best.value), k + 1
            if rises < _ENOUGH * span or stalled:
                step, here = step / 2, best
    return Ascended(best, tuple(values[1:]), n_steps)


def _at(objective: Objective, epsilon: Tensor) -> Point:
    value, gradient = objective(epsilon)
    return Point(epsilon, value, gradient)


def _ascent(gradient: Tensor, ball: Ball) -> Tensor:
    if math.isinf(ball.p):
        return gradient.sign()
    size = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    return gradient / size if size else gradient
