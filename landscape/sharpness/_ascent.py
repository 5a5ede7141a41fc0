"""Climbing a loss inside a ball until the first-order conditions hold."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from landscape.linalg.krylov import dot, norm
from landscape.processes import over_shards, sum_over_shards
from landscape.sharpness._ball import Ball

Objective = Callable[[Tensor], tuple[float, Tensor]]

_ARMIJO = 1e-4
HISTORY = 10  # pairs of vectors that the quasi-Newton step remembers, where memory allows
_IDLE = 10  # moves without progress after which rounding is taken to have ended the climb
_RETREATS = 6  # how often a start where the loss overflows is moved inwards
_ON_BOUNDARY = 1e-6  # relative distance from the boundary that counts as on it
_SHORTEST = 1e-10  # step, relative to the radius, below which a line search is given up


@dataclass(frozen=True)
class Point:
    """A point of the ball with what its gradient G says."""

    epsilon: Tensor  # shape (n,)
    value: float  # rise of the loss, NaN and infinity among it
    norm: float  # ‖ε‖ₚ
    steepness: float  # ‖G‖_q; NaN where the loss or G is not finite
    along: float  # Gᵀε
    gradient: Tensor  # G, shape (n,); empty: no longer held

    @classmethod
    def of(cls, ball: Ball, epsilon: Tensor, value: float, gradient: Tensor) -> Point:
        """Make a point of the loss and its gradient there."""
        finite = math.isfinite(value) and all_finite(gradient)
        steepness = ball.dual_norm(gradient) if finite else math.nan
        along = dot(gradient, epsilon)
        return cls(epsilon, value, ball.norm(epsilon), steepness, along, gradient)

    @property
    def bare(self) -> Point:
        """The point without its gradient, which takes as much memory as the model."""
        return replace(self, gradient=self.gradient.new_empty(0))

    @property
    def usable(self) -> bool:
        """Whether the loss and its gradient are finite, so that the climb can go on from here."""
        return math.isfinite(self.value) and not math.isnan(self.steepness)

    def is_inside(self, ball: Ball) -> bool:
        """Tell whether the point is off the boundary of a ball that holds it, beyond rounding."""
        return self.norm < ball.rho * (1 - _ON_BOUNDARY)

    def gap(self, ball: Ball, *, slope: float, noise: float) -> float:
        """Return the relative Frank-Wolfe gap (ρ‖G‖_q − Gᵀε) / (ρ‖G‖_q).

        At a maximiser inside the ball G vanishes, and the denominator with it: inside, the gap is
        relative to ρ‖∇L(w)‖_q where that is larger.
        """
        size = self.steepness
        if not self.usable:
            return math.nan
        if ball.rho * size <= noise:
            return 0.0
        missing = ball.rho * size - self.along
        return max(0.0, missing / (ball.rho * (max(size, slope) if self.is_inside(ball) else size)))


class Ascent:
    """One climb from one start, which can be taken up again.

    For p = 2: limited-memory BFGS on the sphere, or freely inside it (Huang, Gallivan, Absil
    2015). For other p: Frank-Wolfe steps towards the dual maximiser, which never descend where
    the loss is convex; where it is concave, spectral projected gradients (Birgin, Martínez,
    Raydan 2000) for p = 1 and ∞, and for any p as long as they stay inside. All with a line
    search.

    Attributes:
        start_value: rise at the start, NaN and infinity among it.
        best: the highest point so far; of those that are equal to rounding, the one with the
            smallest gap.
        gradients: gradient passes spent.
        stalled: whether no step is left that ascends beyond rounding.
    """

    def __init__(
        self,
        objective: Objective,
        ball: Ball,
        start: Tensor | Point,
        *,
        slope: float,
        level: float,
        history: int = HISTORY,
    ) -> None:
        """Evaluate the start, if it is no point yet; where the loss overflows, move it inwards."""
        self._objective, self._ball = objective, ball
        self._slope, self._level = slope, abs(level)
        self._secants = LBFGSHistory(history if ball.p == 2 else 0)
        self.gradients = self._idle = 0
        self.best = self._here = start if isinstance(start, Point) else self._evaluate(start)
        self._eps = torch.finfo(self._here.gradient.dtype).eps
        self.start_value = self._here.value
        while not self._here.usable and self.gradients <= _RETREATS:
            self._here = self._evaluate(0.25 * self._here.epsilon)
        self.stalled = not self._here.usable
        self._keep(self._here)

    @property
    def height(self) -> float:
        """Rise at the highest point; −∞ where the loss was finite at none."""
        return self.best.value if math.isfinite(self.best.value) else -math.inf

    @property
    def gap(self) -> float:
        """Relative Frank-Wolfe gap at the highest point: see `landscape.results.Sharpness`."""
        return self._gap(self.best)

    def climb(
        self, tol: float, max_gradients: int, *, done: Callable[[Point], bool] = lambda point: False
    ) -> None:
        """Go on until the gap is met, or the passes are spent, or rounding ends it."""
        while self.gradients < max_gradients and not self.stalled and not self.gap <= tol:
            best = self.best
            there = self._line_search(self._direction(), max_gradients)
            if there is not None:
                self._move(there)
            self._idle = 0 if self.best is not best else self._idle + 1
            self.stalled = self.stalled or self._idle >= _IDLE
            if done(self.best):
                return

    def _gap(self, point: Point) -> float:
        return point.gap(self._ball, slope=self._slope, noise=self._rounding(point))

    def _rounding(self, point: Point) -> float:
        return self._eps * (self._level + abs(point.value))

    def _evaluate(self, epsilon: Tensor) -> Point:
        value, gradient = self._objective(epsilon)
        self.gradients += 1
        return Point.of(self._ball, epsilon, value, gradient)

    def _direction(self) -> Tensor:
        """Return where to go: along a tangent of the sphere (p = 2), or a chord of the ball."""
        here, ball, step = self._here, self._ball, self._secants.step
        if ball.p == 2:
            return self._quasi_newton(self._rising(here))
        if math.isfinite(step):
            free = torch.add(here.epsilon, here.gradient, alpha=step)
            if ball.p in {1, math.inf} or ball.norm(free) <= ball.rho:
                return ball.project_(free).sub_(here.epsilon)
        return ball.dual(here.gradient).sub_(here.epsilon)

    def _quasi_newton(self, rising: Tensor) -> Tensor:
        secants = self._secants
        direction = self._tangent_(secants.apply_(rising.clone()), self._here)
        size = norm(direction)
        if dot(direction, rising) <= 1e-8 * size * self._here.steepness:
            secants.forget()
            direction, size = rising, norm(rising)
        # A tangent longer than the diameter only closes in on the end of the same arc.
        longest = self._ball.rho * (2 if secants.pairs else 1)
        if size > longest or not (secants.pairs or math.isfinite(secants.step)):
            return direction.mul_(longest / size) if size else direction
        return direction

    def _line_search(self, direction: Tensor, max_gradients: int) -> Point | None:
        """Return a point along the direction that is higher by enough, or None."""
        here, share = self._here, 1.0
        slope, size = dot(here.gradient, direction), norm(direction)
        while self.gradients < max_gradients:
            if not (slope > 0 and share * size > _SHORTEST * self._ball.rho):
                self.stalled = True
                return None
            there = self._evaluate(
                self._ball.project_(torch.add(here.epsilon, direction, alpha=share))
            )
            self._keep(there)
            rise = there.value - here.value
            if there.usable and rise >= _ARMIJO * share * slope - self._rounding(here):
                return there
            share *= _shrink(share * slope, rise)
            del there  # not to be held during the next pass
        return None

    def _move(self, there: Point) -> None:
        here, self._here = self._here, there
        self._secants.make_room()
        moved = there.epsilon - here.epsilon
        if self._ball.p != 2:
            self._secants.add(moved, here.gradient - there.gradient)
            return
        bent = self._rising(here).sub_(self._rising(there))
        self._secants.add(moved, self._tangent_(bent, there))

    def _keep(self, point: Point) -> None:
        """Remember the point if it is the best so far."""
        if not math.isfinite(point.value):
            return
        if not math.isfinite(self.best.value):
            self.best = point
            return
        higher, rounding = point.value - self.best.value, self._rounding(self.best)
        # Among equals to rounding the gap decides, but never so as to fall below the start.
        equal = higher >= -rounding and not point.value < self.start_value
        if higher > rounding or (equal and self._gap(point) < self.gap):
            self.best = point

    def _slides(self, point: Point) -> bool:
        """Whether the gradient presses the point against the boundary."""
        return point.along > 0 and not point.is_inside(self._ball)

    def _rising(self, point: Point) -> Tensor:
        """Gradient, without its part along ε where that part points out of the ball."""
        return self._tangent_(point.gradient.clone(), point, along=point.along)

    def _tangent_(self, vector: Tensor, point: Point, *, along: float | None = None) -> Tensor:
        if not self._slides(point):
            return vector
        part = dot(vector, point.epsilon) if along is None else along
        return vector.sub_(point.epsilon, alpha=part / point.norm**2)


@dataclass(frozen=True)
class Secant:
    """A move Δε and how the gradient fell along it, −ΔG, with the inner products that recur."""

    moved: Tensor
    bent: Tensor
    curvature: float
    bend: float


class LBFGSHistory:
    """What past moves tell of the curvature: pairs (Δε, −ΔG) for limited-memory BFGS.

    Attributes:
        pairs: the latest moves along which the loss was concave.
        step: length of a gradient step by the last move (Barzilai, Borwein 1988); infinite where
            the loss was convex along it, or nothing is known.
    """

    def __init__(self, memory: int) -> None:
        """Begin without any."""
        self.pairs: deque[Secant] = deque(maxlen=memory)
        self.step = math.inf

    def forget(self) -> None:
        """Drop the pairs."""
        self.pairs.clear()

    def make_room(self) -> None:
        """Drop the oldest pair if the next would take its place."""
        if self.pairs and len(self.pairs) == self.pairs.maxlen:
            self.pairs.popleft()

    def add(self, moved: Tensor, bent: Tensor) -> None:
        """Learn from a move."""
        curvature, square, bend = dot(moved, bent), dot(moved, moved), dot(bent, bent)
        if curvature <= 1e-10 * math.sqrt(square) * math.sqrt(bend):
            self.step = math.inf
            self.forget()
            return
        self.step = square / curvature
        self.pairs.append(Secant(moved, bent, curvature, bend))

    def apply_(self, vector: Tensor) -> Tensor:
        """Multiply in place with the inverse of the curvature (the two loops of Nocedal, 1980)."""
        if not self.pairs:
            return vector.mul_(self.step) if math.isfinite(self.step) else vector
        shares: list[float] = []
        for pair in reversed(self.pairs):
            shares.append(dot(pair.moved, vector) / pair.curvature)
            vector.sub_(pair.bent, alpha=shares[-1])
        vector.mul_(self.pairs[-1].curvature / self.pairs[-1].bend)
        for pair, share in zip(self.pairs, reversed(shares), strict=True):
            again = dot(pair.bent, vector) / pair.curvature
            vector.add_(pair.moved, alpha=share - again)
        return vector


def _shrink(promised: float, gained: float) -> float:
    """Return the share of a failed step that a parabola through what is known proposes."""
    # A step that gained what it promised fails only where the gradient overflows behind it.
    if not math.isfinite(gained) or gained >= promised:
        return 0.25
    return min(0.5, max(0.1, 0.5 * promised / (promised - gained)))


def all_finite(vector: Tensor) -> bool:
    """Tell whether all entries are finite; a sum that is finite shows it in one pass."""
    if math.isfinite(sum_over_shards(float(vector.sum()))):
        return True
    return not int(over_shards((~torch.isfinite(vector)).sum()))
