"""The search for the largest rise of a loss in a ball: a climb from several starts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.balls import Ball
from landscape.errors import InvalidArgumentError, LossError, NonFiniteError
from landscape.measure.ascent import Ascent, Point
from landscape.measure.auto_pgd import auto_pgd
from landscape.measure.origin import Origin
from landscape.measure.quadratic import QuadraticModel
from landscape.results import FloatArray

SCOUTING = 8  # gradient passes for each start before the best ones go on
MOMENTUM = 8  # gradient passes with momentum that lead to one of the starts
FINALISTS = 2
_LARGEST_COORDINATES = 4  # of the ball p = 1, tried for each direction to start in
_SAME = 0.99  # cosine above which two climbs are taken for one
_MODEL_TOL = 1e-2
_MOST_VERTICES = 256  # of a ball p = 1 or ∞, up to which all are tried
_POLISHING = (3, 10)  # second-order steps, and products for each


class Search:
    """A climb in one ball from several starts.

    Attributes:
        origin: what is known at the checkpoint.
        ball: where the search goes on, in the coordinates d.
        one_step: rise after SAM's one step.
        notes: what a person should know of the search.
        model: the quadratic model at the checkpoint, if there is one.
    """

    def __init__(self, origin: Origin, ball: Ball) -> None:
        """Begin without any start.

        Args:
            origin: what is known at the checkpoint.
            ball: where to search.
        """
        self.origin, self.ball = origin, ball
        origin.norm = ball.norm
        self.climbs: dict[str, Ascent] = {}
        self.one_step = 0.0  # where the gradient is zero, SAM takes no step
        self.notes: tuple[str, ...] = ()
        self.model: QuadraticModel | None = None
        self._slope = ball.dual_norm(origin.point.gradient)

    @property
    def highest(self) -> Ascent:
        """The climb that ended highest."""
        return max(self.climbs.values(), key=lambda climb: climb.height)

    @property
    def best(self) -> Point:
        """The highest point, the checkpoint itself among those that count."""
        return self.highest.best if self.highest.height > 0 else self.origin.point

    @property
    def gap(self) -> float:
        """Relative Frank-Wolfe gap at the highest point."""
        if self.highest.height > 0:
            return self.highest.gap
        rounding = torch.finfo(self.best.gradient.dtype).eps * abs(self.origin.loss)
        return self.best.gap(self.ball, slope=self._slope, noise=rounding)

    def start_from_gradient(self) -> None:
        """Begin at the dual maximiser of the gradient: SAM's own step."""
        if self._slope > 0:
            self.start("gradient", self.origin.point.gradient)
            self.one_step = self.climbs["gradient"].start_value

    def start_downhill(self) -> None:
        """Begin opposite to the gradient, where the loss falls before it may rise."""
        if self._slope > 0:
            self.start("-gradient", -self.origin.point.gradient)

    def start_from_momentum(self) -> None:
        """Begin at the highest point of some steps of Auto-PGD, for p = 2 and ∞.

        Its long steps with momentum pass over local maxima where a line search stays.
        """
        origin = self.origin
        rounding = torch.finfo(origin.point.gradient.dtype).eps * abs(origin.loss)
        if self.ball.p not in {2.0, math.inf} or self.ball.rho * self._slope <= rounding:
            return
        found = auto_pgd(origin.objective, self.ball, origin.point, n_steps=MOMENTUM)
        if found.best is not origin.point:
            self.start_at("momentum", found.best.epsilon)

    def start_from_model(self, model: QuadraticModel | None, *, seed: int) -> None:
        """Begin at the maximiser of the quadratic model, and at both ends of its top eigenvector.

        Args:
            model: of the loss at the checkpoint, from another radius; None: it is built here.
            seed: of the random vector in its subspace.
        """
        ball, origin = self.ball, self.origin
        # The Euclidean ball of about the size of this one, in all the directions that can move.
        radius = ball.rho * origin.n_free ** (0.5 - 1 / ball.p)
        try:
            if model is None:
                model = origin.model(seed=seed)
            model.grow(radius, tol=_MODEL_TOL)
        except (LossError, NonFiniteError) as error:
            # Sharpness itself needs no second derivative: search on without these starts.
            self.notes += (f"searching without the top eigenvector: {error}",)
            return
        self.model = model
        if not model.products:
            return
        step, _ = model.maximum(radius)
        if ball.p == 2:
            self.start_at("quadratic model", step)
        else:
            self.start("quadratic model", step)
        self.start_along(model.top()[2][None])

    def start_along(self, vectors: Tensor) -> None:
        """Begin at both ends of some directions.

        Args:
            vectors: one in each row, shape (k, n).
        """
        for i, vector in enumerate(vectors):
            self.start(f"+eigenvector {i + 1}", vector)
            self.start(f"-eigenvector {i + 1}", -vector)

    def start_at_vertices(self) -> None:
        """Begin at the best of all vertices, where the ball has few: exact for a convex loss.

        Cost: a gradient pass, and a forward pass for each vertex.
        """
        vertices = _vertices(self.ball, self.origin)
        if vertices is None:
            return
        evaluator, origin = self.origin.evaluator, self.origin
        losses = [evaluator.loss(evaluator.origin + origin.scaled(d)).value for d in vertices]
        finite = np.where(np.isfinite(losses), losses, -np.inf)
        if np.isfinite(finite).any():
            self.start_at("best vertex", vertices[int(np.argmax(finite))])

    def start(self, name: str, direction: Tensor) -> None:
        """Begin where a direction points; for p = 1 also at the vertices that come next.

        Args:
            name: of the start.
            direction: shape (n,).
        """
        self.start_at(name, self.ball.dual(direction))
        if self.ball.p == 1:
            largest = direction.abs().topk(min(_LARGEST_COORDINATES, len(direction))).indices
            for i, index in enumerate(largest):
                if i and direction[index] != 0:
                    vertex = torch.zeros_like(direction)
                    vertex[index] = direction[index]
                    self.start_at(f"{name}, entry {i + 1}", self.ball.dual(vertex))

    def start_at(self, name: str, d: Tensor) -> Ascent:
        """Begin at a point.

        Args:
            name: of the start.
            d: the point, shape (n,); projected on the ball.

        Returns:
            The climb. Cost: a gradient pass, more where the loss overflows there.
        """
        self.climbs[name] = Ascent(
            self.origin.objective,
            self.ball,
            self.ball.project(d),
            slope=self._slope,
            level=self.origin.loss,
        )
        return self.climbs[name]

    def scout(self, tol: float, *, scouting: int = SCOUTING) -> None:
        """Let every climb that has begun take its first passes.

        Args:
            tol: relative gap to reach.
            scouting: passes for each, those that it has taken counted in.
        """
        for climb in self.climbs.values():
            climb.climb(tol, scouting)

    def run(self, tol: float, max_gradients: int, *, scouting: int = SCOUTING) -> int:
        """Climb: a few passes for every start, then the highest ones until the gap is met.

        Args:
            tol: relative gap to reach.
            max_gradients: gradient passes to spend at most, after scouting.
            scouting: passes for each start.

        Returns:
            The passes that are left.
        """
        self.scout(tol, scouting=scouting)
        left = max_gradients
        for n_others, climb in zip(reversed(range(FINALISTS)), self._finalists(), strict=False):
            left -= _spent(climb, tol, left // (n_others + 1))
        return left

    def polish(self, tol: float, left: int) -> int:
        """Take second-order steps from the highest point, where the gap is not met (p = 2).

        The step is to the maximiser over the ball of the quadratic model of the loss at the point
        itself, in a subspace of ten products with the Hessian there; a climb goes on from there.

        Args:
            tol: relative gap to reach.
            left: gradient passes to spend at most.

        Returns:
            The passes that are left.
        """
        rounds, products = _POLISHING
        for i in range(rounds):
            here = self.best
            risen = self.highest.height > 0 and here.usable
            if self.ball.p != 2 or left < 2 or not risen or self.gap <= tol:
                return left
            try:
                there = self._second_order_step(here, products)
            except (LossError, NonFiniteError):
                return left
            climb = self.start_at(f"second-order step {i + 1}", there)
            left -= climb.gradients + _spent(climb, tol, left - climb.gradients)
        return left

    def _second_order_step(self, here: Point, products: int) -> Tensor:
        matvec = self.origin.curvature(here.epsilon)
        # Around d₀ the model is Gᵀ(d − d₀) + ½ (d − d₀)ᵀH(d − d₀): its slope at 0 is G − Hd₀.
        slope = here.gradient - matvec(here.epsilon)
        model = QuadraticModel(matvec, slope, here.epsilon, max_products=products)
        model.grow(self.ball.rho, tol=1e-6)
        return model.maximum(self.ball.rho)[0]

    def _finalists(self) -> list[Ascent]:
        """Order the climbs by height, those that point the same way as a higher one last."""
        ranked = sorted(self.climbs.values(), key=lambda climb: -climb.height)
        own: list[Ascent] = []
        for climb in ranked:
            if all(_cosine(climb.best.epsilon, higher.best.epsilon) < _SAME for higher in own):
                own.append(climb)
        return own + [climb for climb in ranked if climb not in own]


def _spent(climb: Ascent, tol: float, limit: int) -> int:
    """Let a climb go on for some passes, and return how many it took."""
    before = climb.gradients
    climb.climb(tol, before + limit)
    return climb.gradients - before


def _vertices(ball: Ball, origin: Origin) -> Tensor | None:
    """Return all vertices of a ball p = 1 or ∞ if they are few, one in each row."""
    n = len(origin.point.epsilon)
    free = torch.arange(n, device=origin.point.epsilon.device)
    if origin.scale is not None:
        free = free[origin.scale != 0]
    k = len(free)
    if ball.p == 1 and 2 * k <= _MOST_VERTICES:
        signs = torch.cat([torch.eye(k), -torch.eye(k)])
    elif math.isinf(ball.p) and 2**k <= _MOST_VERTICES:
        signs = 2.0 * torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * k).reshape(-1, k) - 1
    else:
        return None
    vertices = origin.point.epsilon.new_zeros((len(signs), n))
    vertices[:, free] = ball.rho * signs.to(vertices)
    return vertices


def checked_eigenvectors(values: Any, n: int) -> FloatArray:
    """Check directions that a person gives to start in.

    Args:
        values: one in each row, or a single one.
        n: number of parameters.

    Returns:
        Shape (k, n).

    Raises:
        InvalidArgumentError: if the shape is another, or a value is not finite.
    """
    vectors: FloatArray = np.atleast_2d(np.asarray(values))
    if vectors.ndim != 2 or vectors.shape[1] != n or not np.isfinite(vectors).all():
        msg = (
            f"expected finite eigenvectors of shape (k, {n}), one in each row and as long as the "
            f"model has parameters, got shape {vectors.shape}"
        )
        raise InvalidArgumentError(msg)
    return vectors


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
