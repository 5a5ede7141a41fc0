"""Ways to multiply the Hessian of one batch's summed loss with a vector."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from landscape.errors import LossError
from landscape.evaluate import (
    Evaluator,
    differentiate,
    needing_derivatives,
    noting_reentrant,
    substituted,
    twice_differentiable,
)
from landscape.linalg.krylov import norm
from landscape.operators._graphs import graph_bytes
from landscape.operators._pieces import Piece


class NotTwiceDifferentiableError(LossError):
    """An operation in the loss or the model has no second derivative."""


class DoubleBackward:
    """The gradient with its graph, to be differentiated once more along each vector.

    Attributes:
        weight: divisor of the summed loss.
        n_bytes: memory of the graph.
    """

    def __init__(self, evaluator: Evaluator, at: Tensor, piece: Piece) -> None:
        self._evaluator, self._inputs = evaluator, evaluator.parameters
        with twice_differentiable(evaluator.model):
            with noting_reentrant() as reentrant:
                terms = evaluator.terms(at, piece.batch, piece.number)
            if reentrant:
                msg = (
                    "reentrant activation checkpointing has no second derivative: call "
                    "torch.utils.checkpoint.checkpoint with use_reentrant=False"
                )
                raise NotTwiceDifferentiableError(msg)
            try:
                gradients = differentiate(terms.total, evaluator.parameters, create_graph=True)
            except LossError as error:
                raise NotTwiceDifferentiableError(str(error)) from error
        # A gradient that does not depend on the weights adds nothing.
        self._slots = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        self._outputs = [g for g in gradients if g is not None and g.requires_grad]
        self.weight = float(terms.weight)
        self.n_bytes = graph_bytes(*self._outputs)

    def times(self, vector: Tensor, *, retain: bool) -> list[Tensor | None]:
        """Return the product with a vector of shape (n,) as tensors, None for zero."""
        if not self._outputs:
            return [None] * len(self._inputs)
        views = self._evaluator.problem.space.views(vector)
        try:
            with needing_derivatives("twice"):
                return list(
                    torch.autograd.grad(
                        self._outputs,
                        self._inputs,
                        [views[i] for i in self._slots],
                        retain_graph=retain,
                        allow_unused=True,
                    )
                )
        except LossError as error:
            raise NotTwiceDifferentiableError(str(error)) from error


class ForwardOverReverse:
    """The gradient of a dual number: its tangent is the product. Nothing is kept."""

    n_bytes = 0

    def __init__(self, evaluator: Evaluator, at: Tensor, piece: Piece) -> None:
        self._evaluator, self._at, self._piece = evaluator, at, piece
        self.weight = 0.0

    def times(self, vector: Tensor, *, retain: bool) -> list[Tensor | None]:
        """Return the product with a vector of shape (n,) as tensors, None for zero."""
        evaluator, space = self._evaluator, self._evaluator.problem.space
        evaluator.prepare(self._at, self._piece.number)
        leaf = self._at.detach().clone().requires_grad_(True)
        with (
            warnings.catch_warnings(),
            twice_differentiable(evaluator.model),
            forward_mode.dual_level(),
            needing_derivatives("twice"),
        ):
            # torch's own rules for forward mode are still compiled by what it has deprecated.
            warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
            dual = forward_mode.make_dual(leaf, vector)  # type: ignore[no-untyped-call]
            try:
                terms = substituted(
                    evaluator,
                    space.unflatten(dual),
                    self._piece.batch,
                    lambda model, batch: evaluator.problem.loss(model, batch)[0],
                )
            except (NotImplementedError, RuntimeError) as error:
                msg = f"an operation of the model has no forward mode, use double backward: {error}"
                raise LossError(msg) from error
            (gradient,) = differentiate(terms.total, [dual])
            self.weight = float(terms.weight)
            if gradient is None:
                return [None] * len(space.names)
            tangent = forward_mode.unpack_dual(gradient).tangent  # type: ignore[no-untyped-call]
            empty = tangent is None
            return [None] * len(space.names) if empty else list(space.views(tangent.detach()))


class Differences:
    """Central differences of gradients, with two steps that tell of their error. Nothing is kept.

    With D(h) = (∇L(w + hv) − ∇L(w − hv)) / 2h = Hv + O(h²), the product is the extrapolation
    (4 D(h) − D(2h)) / 3 = Hv + O(h⁴); what is reported, ‖D(h) − D(2h)‖ / ‖v‖ and ‖Hv‖ / ‖v‖, gives
    a larger error than the extrapolation leaves. The step makes ‖hv‖ = ε^(1/3) ‖w‖.

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6.
    """

    n_bytes = 0

    def __init__(
        self, evaluator: Evaluator, at: Tensor, piece: Piece, report: Callable[[float, float], None]
    ) -> None:
        self._evaluator, self._at, self._piece, self._report = evaluator, at, piece, report
        self.weight = 0.0

    def times(self, vector: Tensor, *, retain: bool) -> list[Tensor | None]:
        """Return the product with a vector of shape (n,) as tensors."""
        cube_root = torch.finfo(self._at.dtype).eps ** (1.0 / 3.0)
        h = float(cube_root * max(norm(self._at), 1e-3) / max(norm(vector), 1e-300))
        (near, rounding), (far, _) = (self._slope(vector, step) for step in (h, 2.0 * h))
        product = (4.0 * near - far) / 3.0
        # Where Hv is zero but for the rounding of the gradients, there is nothing to be wrong by.
        size = max(norm(vector), 1e-300)
        self._report(norm(near - far) / size, max(norm(product), 10.0 * rounding) / size)
        return list(self._evaluator.problem.space.views(product.to(vector.dtype)))

    def _slope(self, vector: Tensor, h: float) -> tuple[Tensor, float]:
        """Return D(h), and the size of what rounding may do to it."""
        up, down = (self._gradient(self._at + s * h * vector) for s in (1.0, -1.0))
        rounding = torch.finfo(self._at.dtype).eps * max(norm(up), norm(down)) / h
        return (up - down) / (2.0 * h), rounding

    def _gradient(self, at: Tensor) -> Tensor:
        terms, gradient = self._evaluator.batch_gradient(at, self._piece.batch, self._piece.number)
        self.weight = float(terms.weight)
        return gradient.double()


Product = DoubleBackward | ForwardOverReverse | Differences


def agree(one: list[Tensor | None], other: list[Tensor | None], dtype: torch.dtype) -> bool:
    """Tell whether two products are equal to the square root of rounding."""
    pairs = [
        (torch.zeros_like(b) if a is None else a, torch.zeros_like(a) if b is None else b)  # type: ignore[arg-type]
        for a, b in zip(one, other, strict=True)
        if not (a is None and b is None)
    ]
    size = sum(float(a.double().square().sum()) for a, _ in pairs)
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return off <= torch.finfo(dtype).eps * size
