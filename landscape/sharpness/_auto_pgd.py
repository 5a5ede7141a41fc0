"""Auto-PGD as published: the yardstick that sharpness in papers is measured with."""

from __future__ import annotations

import math
from collections.abc import Callable

from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import norm
from landscape.sharpness._ascent import Objective, Point
from landscape.sharpness._ball import Ball

_MOMENTUM = 0.75
_ENOUGH = 0.75  # share of the steps between two checkpoints that must rise


def checkpoints(n_steps: int) -> tuple[int, ...]:
    """Return the steps after which Auto-PGD considers halving its step.

    >>> checkpoints(20)
    (5, 9, 12, 15, 16, 18, 19, 20)
    """
    shares = [0.0, 0.22]
    while shares[-1] <= 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # Rounded up in floating point, as the published script does: 0.7 · 20 gives 15.
    return tuple(math.ceil(share * n_steps) for share in shares[1:] if share <= 1)


def auto_pgd(
    objective: Objective,
    ball: Ball,
    centre: Point,
    *,
    n_steps: int = 20,
    done: Callable[[Point], bool] = lambda point: False,
) -> tuple[Point, list[float]]:
    """Climb from the centre of a ball by projected gradient ascent with momentum.

    Returns the highest point, the centre among them, and the rise after each step.

    z = P(x + η s), x⁺ = P(x + α (z − x) + (1 − α) (x − x⁻)), α = 0.75 (1 at the first step), where
    s is the gradient over its norm for p = 2, its signs for p = ∞; η = 2ρ at first. At the
    checkpoints η is halved, and the climb goes back to its highest point, if less than 3/4 of the
    steps since the last one rose, or neither η nor the highest value changed between the last two.

    References:
        Croce, Hein (2020), arXiv:2003.01690, algorithm 1; Andriushchenko, Croce, Müller, Hein,
        Flammarion (2023), arXiv:2302.07011, who use it with 20 steps and no random start.
    """
    if ball.p not in {2.0, math.inf}:
        msg = f"Auto-PGD was published for p = 2 and p = inf, got p = {ball.p:g}: use the search"
        raise InvalidArgumentError(msg)
    marks = checkpoints(n_steps)
    step, here, best, last = 2 * ball.rho, centre, centre, centre.epsilon
    values: list[float] = [centre.value]
    then, since = (math.nan, math.nan), 0
    for k in range(n_steps):
        gradient = here.gradient
        ascent = gradient.sign() if math.isinf(ball.p) else gradient / (norm(gradient) or 1.0)
        moved = ball.project_(ascent.mul_(step).add_(here.epsilon))
        del ascent, gradient
        if k:  # x + α (z − x) + (1 − α) (x − x⁻), in the memory of z
            moved.mul_(_MOMENTUM).add_(here.epsilon, alpha=2 - 2 * _MOMENTUM)
            moved = ball.project_(moved.sub_(last, alpha=1 - _MOMENTUM))
        there = Point.of(ball, moved, *objective(moved))
        values.append(there.value)
        best = there if there.usable and there.value > best.value else best
        last, here = here.epsilon, there if there.usable else best
        if done(there):
            break
        if k + 1 in marks:
            span = k + 1 - since
            rises = sum(b > a for a, b in zip(values[since:-1], values[since + 1 :], strict=True))
            stalled = then == (step, best.value)
            then, since = (step, best.value), k + 1
            if rises < _ENOUGH * span or stalled:
                step, here = step / 2, best
    return best, values[1:]
