"""The rise of a loss around a checkpoint, in the coordinates of an adaptive ball."""

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
from landscape.processes import over_shards
from landscape.randomness import seeded
from landscape.results import FloatArray
from landscape.sharpness._ascent import Objective, Point, all_finite
from landscape.sharpness._ball import Ball


class BallObjective:
    """The rise of a loss around a checkpoint, in the coordinates d of ε = Td.

    Attributes:
        evaluator: runs the model.
        ball: the ball that is searched; others of the same p and T may follow.
        scale: the diagonal of T, shape (n,); None: the identity.
        loss: L(w).
        point: d = 0 with its gradient T∇L(w).
        objective: d ↦ (rise of the loss, T∇L(w+Td)).
        n_overflowed: points where the loss or its gradient was not finite.
        farthest: largest norm of d where both were finite.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        ball: Ball,
        *,
        count: Callable[[Any], Any] = lambda function: function,
    ) -> None:
        """Evaluate the loss and its gradient."""
        problem = evaluator.problem
        self.evaluator, self.ball, self.scale = evaluator, ball, ball.scale(problem)
        self._space = problem.space
        if self.scale is not None and not self.n_free:
            msg = (
                f"all {self._space.n:,} weights of {problem.name} are zero, so that the adaptive "
                "ball is the point w alone: give eta > 0, or measure in the plain ball "
                "(adaptive='none')"
            )
            raise InvalidArgumentError(msg)
        value, gradient = evaluator.gradient()
        require_finite(value.value, problem)
        bad = int(over_shards((~torch.isfinite(gradient)).sum()))
        if bad:
            msg = (
                f"the gradient of the loss of {problem.name} on the {problem.split} data is not "
                f"finite in {bad:,} of {self._space.n:,} entries, so that no search can start; "
                "is there a square root or a norm at zero in the model?"
            )
            raise NonFiniteError(msg)
        self.loss = value.value
        centre = gradient.new_zeros(1).expand_as(gradient)  # takes no memory
        self.point = Point.of(ball, centre, 0.0, self._scaled_(gradient))
        self.objective: Objective = count(self._rise)
        self.n_overflowed, self.farthest = 0, 0.0

    @property
    def n_free(self) -> int:
        """Entries that can move: those where T is not zero."""
        n = self._space.n
        return n if self.scale is None else int(over_shards(self.scale.count_nonzero()))

    def held(self, vectors: FloatArray) -> Tensor:
        """Return what is held here of whole vectors."""
        whole, spread = torch.as_tensor(vectors), self._space.spread
        return whole if spread is None else spread.part(whole)

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
        fill_with_normal(vector, seeded(seed), self._space.spread)
        return vector if self.scale is None else vector.mul_(self.scale != 0)

    def curvature(self, at: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return the product with THT."""
        hessian = Hessian(self.evaluator, at=None if at is None else self.at(at))
        if self.scale is None:
            return hessian.matvec
        return lambda d: self._scaled_(hessian.matvec(self.scaled(d)))

    def _scaled_(self, vector: Tensor) -> Tensor:
        return vector if self.scale is None else vector.mul_(self.scale)

    def _rise(self, d: Tensor) -> tuple[float, Tensor]:
        loss, gradient = self.evaluator.gradient(self.at(d))
        if math.isfinite(loss.value) and all_finite(gradient):
            if self.farthest < self.ball.rho * (1 - 1e-6):
                self.farthest = max(self.farthest, self.ball.norm(d))
        else:
            self.n_overflowed += 1
        return loss.value - self.loss, self._scaled_(gradient)
