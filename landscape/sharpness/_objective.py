"""What is known of a loss at a checkpoint, in the coordinates of an adaptive ball."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError, NonFiniteError
from landscape.evaluate import Evaluator, require_finite
from landscape.linalg.krylov import fill_with_normal
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.randomness import seeded
from landscape.sharpness._ascent import Objective, Point, all_finite
from landscape.sharpness._ball import Ball
from landscape.sharpness._quadratic import QuadraticModel


class BallObjective:
    """What is known of a loss at a checkpoint, whatever ball is searched around it.

    Everything is in the coordinates d of ε = Td, where the adaptive ball is a plain one.

    Attributes:
        evaluator: what runs the model.
        scale: the diagonal of T, shape (n,); None: the identity.
        loss: L(w).
        point: d = 0 with its gradient T∇L(w).
        objective: d ↦ (rise of the loss, T∇L(w+Td)).
        n_overflowed: points where the loss or its gradient was not finite.
        farthest: largest norm of d where both were finite.
        ball: the ball that is searched, once there is one.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        scale: Tensor | None = None,
        count: Callable[[Any], Any] = lambda function: function,
    ) -> None:
        """Evaluate the loss and its gradient."""
        self.evaluator, self.scale = evaluator, scale
        if scale is not None:
            _require_nonzero(scale, evaluator.problem)
        value, gradient = evaluator.gradient()
        require_finite(value.value, evaluator.problem)
        _require_finite_gradient(gradient, evaluator.problem)
        self.loss = value.value
        centre = gradient.new_zeros(1).expand_as(gradient)  # takes no memory
        self.point = Point(centre, 0.0, self._scaled_(gradient))
        self.objective: Objective = count(self._rise)
        self.n_overflowed, self.farthest = 0, 0.0
        self.ball: Ball | None = None

    @property
    def n_free(self) -> int:
        """Entries that can move: those where T is not zero."""
        n = len(self.point.epsilon)
        return n if self.scale is None else int(self.scale.count_nonzero())

    def scaled(self, vector: Tensor) -> Tensor:
        """Return T times a vector."""
        return vector if self.scale is None else self.scale * vector

    def at(self, d: Tensor) -> Tensor:
        """Return the weights w + Td, shape (n,)."""
        w = self.evaluator.origin
        return w + d if self.scale is None else torch.addcmul(w, self.scale, d)

    def drawn(self, seed: int) -> Tensor:
        """Draw a random vector that is zero where nothing can move."""
        vector = torch.empty_like(self.point.gradient)
        fill_with_normal(vector, seeded(seed))
        return vector if self.scale is None else vector.mul_(self.scale != 0)

    def curvature(self, at: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return the product with THT."""
        hessian = Hessian(self.evaluator, at=None if at is None else self.at(at))
        return lambda d: self._scaled_(hessian.matvec(self.scaled(d)))

    def model(self, *, seed: int, max_products: int) -> QuadraticModel:
        """Build the quadratic model of the loss at the checkpoint."""
        return QuadraticModel(
            self.curvature(), self.point.gradient, self.drawn(seed), max_products=max_products
        )

    def _scaled_(self, vector: Tensor) -> Tensor:
        return vector if self.scale is None else vector.mul_(self.scale)

    def _rise(self, d: Tensor) -> tuple[float, Tensor]:
        loss, gradient = self.evaluator.gradient(self.at(d))
        if math.isfinite(loss.value) and all_finite(gradient):
            self._note_distance(d)
        else:
            self.n_overflowed += 1
        return loss.value - self.loss, self._scaled_(gradient)

    def _note_distance(self, d: Tensor) -> None:
        ball = self.ball
        if ball is not None and self.farthest < ball.rho * (1 - 1e-6):
            self.farthest = max(self.farthest, ball.norm(d))


def _require_finite_gradient(gradient: Tensor, problem: Problem) -> None:
    bad = int((~torch.isfinite(gradient)).sum())
    if bad:
        msg = (
            f"the gradient of the loss of {problem.name} on the {problem.split} data is not "
            f"finite in {bad:,} of {gradient.numel():,} entries, so that no search can start; is "
            "there a square root or a norm at zero in the model?"
        )
        raise NonFiniteError(msg)


def _require_nonzero(scale: Tensor, problem: Problem) -> None:
    if not bool((scale != 0).any()):
        msg = (
            f"all {len(scale):,} weights of {problem.name} are zero, so that the adaptive ball is "
            "the point w alone: give eta > 0, or measure in the plain ball (adaptive='none')"
        )
        raise InvalidArgumentError(msg)
