"""Operators of the form JᵀMJ: the generalised Gauss-Newton matrix and the empirical Fisher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LossError
from landscape.evaluate import (
    Evaluator,
    check_hessian,
    differentiate,
    graph_bytes,
    needing_derivatives,
    twice_differentiable,
)
from landscape.operators._curvature import GRAPH_BYTES, Curvature, Piece
from landscape.problem.data import describe, leaves, map_leaves
from landscape.problem.losses import BatchTerms
from landscape.processes import shards

# Multiplies with M; the flag keeps a graph for another product.
Middle = Callable[[Tensor, bool], Tensor]


class JacobianProduct:
    """v ↦ JᵀMJv for the Jacobian J of a tensor z in the weights.

    Jv is the derivative of u ↦ Jᵀu, which is linear in u: two backward passes, no forward mode, so
    that whatever has a gradient of a gradient has a product.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        z: Tensor,
        middle: Middle,
        weight: float,
        also: Sequence[Tensor] = (),
    ) -> None:
        self.weight = weight
        self._space, self._inputs = evaluator.problem.space, evaluator.parameters
        self._z, self._middle = z, middle
        self._u = torch.zeros_like(z, requires_grad=True)
        transposed = differentiate(z, self._inputs, create_graph=True, along=self._u)
        self._slots = [i for i, t in enumerate(transposed) if t is not None]
        self._transposed = [t for t in transposed if t is not None]
        self._also = also

    @cached_property
    def n_bytes(self) -> int:
        """Memory of the graphs."""
        return graph_bytes(self._z, *self._transposed, *self._also)

    def times(self, vector: Tensor, *, retain: bool) -> list[Tensor | None]:
        """Return the product with a vector of shape (n,) as tensors, None for zero."""
        if not self._slots:
            return [None] * len(self._inputs)
        views = self._space.views(vector)
        with needing_derivatives("twice"):
            (along,) = torch.autograd.grad(
                self._transposed,
                self._u,
                [views[i] for i in self._slots],
                retain_graph=True,
                materialize_grads=True,
            )
            return list(
                torch.autograd.grad(
                    self._z,
                    self._inputs,
                    self._middle(along, retain),
                    retain_graph=retain,
                    allow_unused=True,
                )
            )


class _JacobianOperator(Curvature):
    """A curvature operator whose products are made by double backward alone."""

    def __init__(
        self, evaluator: Evaluator, *, at: Tensor | None = None, graph_bytes: int = GRAPH_BYTES
    ) -> None:
        super().__init__(evaluator, at=at, graph_bytes=graph_bytes)
        if reason := check_hessian(evaluator):
            msg = f"{reason}; the operator hessian goes on with differences of gradients"
            raise LossError(msg)


class GaussNewton(_JacobianOperator):
    """The generalised Gauss-Newton matrix of the data set's loss at one weight vector.

    G = Σ JᵀBJ / Σ weight, with J the Jacobian of the model's output in the weights and B the
    Hessian of the loss in the output, taken from the loss itself: exact for every loss that is
    twice differentiable. It is the part of the Hessian that is left when the network is replaced
    by its linearisation; for softmax with cross entropy it is the Fisher matrix.

    References:
        Schraudolph (2002), Neural Computation 14; Martens (2020), JMLR 21, arXiv:1412.1193.
    """

    def __init__(
        self, evaluator: Evaluator, *, at: Tensor | None = None, graph_bytes: int = GRAPH_BYTES
    ) -> None:
        if not evaluator.problem.loss.splits:
            msg = (
                "the Gauss-Newton matrix splits the loss at the model's output, and "
                "batch_loss(model, batch) does not say where that is: give loss(output, target), "
                "or use the operator hessian or fisher"
            )
            raise LossError(msg)
        if shards() is not None:
            msg = (
                "the Gauss-Newton matrix is not made of parameters that are split over the "
                "processes: use the operator hessian or fisher, or sharing(shard='data')"
            )
            raise LossError(msg)
        super().__init__(evaluator, at=at, graph_bytes=graph_bytes)

    def _build(self, piece: Piece) -> JacobianProduct:
        evaluator, loss = self._evaluator, self._evaluator.problem.loss

        def body(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, BatchTerms]:
            output, target = loss.forward(model, batch)
            joined, restored = _as_one_tensor(output)
            z = joined.detach().requires_grad_(True)
            return joined, z, loss.of_output(restored(z), target, batch)

        with twice_differentiable(evaluator.model):
            output, z, terms = evaluator.on_batch(self._at, piece.batch, piece.number, body)
            (slope,) = differentiate(terms.total, [z], create_graph=True)
            if slope is None:
                slope = torch.zeros_like(z)

            def hessian_of_loss(along: Tensor, retain: bool) -> Tensor:
                if not slope.requires_grad:
                    return torch.zeros_like(along)  # the loss is linear in the output
                return torch.autograd.grad(
                    slope, z, along, retain_graph=retain, materialize_grads=True
                )[0]

            weight = float(terms.weight)
            return JacobianProduct(evaluator, output, hessian_of_loss, weight, [slope])

    def _way(self) -> str:
        return "two backward passes and the loss's own Hessian"


class EmpiricalFisher(_JacobianOperator):
    """The empirical Fisher matrix: the second moment of the gradients of the examples.

    F = Σᵢ ωᵢ gᵢgᵢᵀ / Σᵢ ωᵢ, with gᵢ the gradient of the loss of example i and ωᵢ its weight: the
    gradient of the data set's loss is the mean Σ ωᵢgᵢ / Σ ωᵢ of the same gradients. For a loss
    that is a plain sum, F = Σᵢ gᵢgᵢᵀ. It is no approximation of the Hessian in general.

    References:
        Kunstner, Balles, Hennig (2019), Limitations of the empirical Fisher approximation,
        arXiv:1905.12558.
    """

    def _build(self, piece: Piece) -> JacobianProduct:
        evaluator = self._evaluator
        with twice_differentiable(evaluator.model):
            terms = evaluator.terms(self._at, piece.batch, piece.number)
            if terms.terms is None or terms.weights is None:
                msg = (
                    "the empirical Fisher matrix needs the loss of each example, and the loss "
                    "returned one number for the batch: return per-example losses, or use the "
                    "operator hessian"
                )
                raise LossError(msg)
            weights = terms.weights.detach()
            if evaluator.problem.loss.sums:
                weights = torch.ones_like(weights)
            # Examples without weight have a loss of zero, and no gradient.
            inverse = torch.where(weights > 0, 1.0 / weights, 0.0)
            return JacobianProduct(
                evaluator, terms.terms, lambda along, retain: along * inverse, float(terms.weight)
            )

    def _way(self) -> str:
        return "two backward passes through the examples' losses"


def _as_one_tensor(output: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Join the outputs of a model that gives several, and say how they are taken apart again."""
    if isinstance(output, Tensor):
        return output, lambda z: z
    parts = [t for t in leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    if not parts:
        msg = (
            f"the Gauss-Newton matrix needs a model that returns tensors, got {describe(output)}: "
            "use the operator hessian or fisher"
        )
        raise LossError(msg)

    def restored(z: Tensor) -> Any:
        pieces = {
            id(t): p for t, p in zip(parts, torch.split(z, [t.numel() for t in parts]), strict=True)
        }
        return map_leaves(
            output, lambda leaf: pieces[id(leaf)].view_as(leaf) if id(leaf) in pieces else leaf
        )

    return torch.cat([t.reshape(-1) for t in parts]), restored
