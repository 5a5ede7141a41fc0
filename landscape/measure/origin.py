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
from landscape.measure.ascent import Objective, Point
from landscape.measure.quadratic import QuadraticModel
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.randomness import seeded

PRODUCTS = 16  # with the Hessian at w, at most


class Origin:
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
        norm: that norm, of the ball that is searched.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        scale: Tensor | None = None,
        count: Callable[[Any], Any] = lambda function: function,
    ) -> None:
        """Evaluate the loss and its gradient.

        Args:
            evaluator: an entered evaluator.
            scale: the diagonal of T, shape (n,).
            count: wraps what makes a gradient pass, for a progress bar.

        Raises:
            InvalidArgumentError: if T is zero throughout.
            NonFiniteError: if the loss or its gradient is not finite.
        """
        self.evaluator, self.scale = evaluator, scale
        if scale is not None:
            _require_nonzero(scale, evaluator.problem)
        value, gradient = evaluator.gradient()
        require_finite(value.value, evaluator.problem)
        _require_finite_gradient(gradient, evaluator.problem)
        self.loss = value.value
        self.point = Point(torch.zeros_like(gradient), 0.0, self.scaled(gradient))
        self.objective: Objective = count(self._rise)
        self.n_overflowed, self.farthest = 0, 0.0
        self.norm: Callable[[Tensor], float] = lambda d: math.nan

    @property
    def n_free(self) -> int:
        """Entries that can move: those where T is not zero."""
        n = len(self.point.epsilon)
        return n if self.scale is None else int(self.scale.count_nonzero())

    def scaled(self, vector: Tensor) -> Tensor:
        """Return T times a vector.

        Args:
            vector: shape (n,).

        Returns:
            The product, shape (n,).
        """
        return vector if self.scale is None else self.scale * vector

    def drawn(self, seed: int) -> Tensor:
        """Draw a random vector that is zero where nothing can move.

        Args:
            seed: of the numbers, standard normal in float64 before they are rounded.

        Returns:
            Shape (n,).
        """
        vector = torch.empty_like(self.point.epsilon)
        fill_with_normal(vector, seeded(seed))
        return vector if self.scale is None else vector * (self.scale != 0)

    def curvature(self, at: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Return the product with THT.

        Args:
            at: d where H is taken, shape (n,); None: at the checkpoint.

        Returns:
            d ↦ THTd.
        """
        where = None if at is None else self.evaluator.origin + self.scaled(at)
        hessian = Hessian(self.evaluator, at=where)
        return lambda d: self.scaled(hessian.matvec(self.scaled(d)))

    def model(self, *, seed: int) -> QuadraticModel:
        """Build the quadratic model of the loss at the checkpoint.

        Args:
            seed: of the random vector in the subspace.

        Returns:
            The model, before its first product.
        """
        start = self.drawn(seed)
        return QuadraticModel(self.curvature(), self.point.gradient, start, max_products=PRODUCTS)

    def _rise(self, d: Tensor) -> tuple[float, Tensor]:
        loss, gradient = self.evaluator.gradient(self.evaluator.origin + self.scaled(d))
        if math.isfinite(loss.value) and bool(torch.isfinite(gradient).all()):
            self.farthest = max(self.farthest, self.norm(d))
        else:
            self.n_overflowed += 1
        return loss.value - self.loss, self.scaled(gradient)


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
