"""Ways to multiply the Hessian of one batch's summed loss with a vector."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, nn

from landscape.errors import LossError
from landscape.evaluate import (
    Evaluator,
    differentiate,
    graph_nodes,
    needing_derivatives,
    substituted,
    twice_differentiable,
)
from landscape.linalg.krylov import norm
from landscape.operators._pieces import Piece
from landscape.problem.losses import BatchTerms


class NotTwiceDifferentiableError(LossError):
    """An operation in the loss or the model has no second derivative."""


def graph_bytes(*tensors: Tensor) -> int:
    """Measure the memory of all tensors that the graphs of some outputs have saved."""
    sizes: dict[int, int] = {}
    for node in graph_nodes(*tensors):
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                saved = getattr(node, name)
                for item in saved if isinstance(saved, (tuple, list)) else (saved,):
                    if isinstance(item, Tensor) and item.layout == torch.strided:
                        storage = item.untyped_storage()
                        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


class DoubleBackward:
    """The gradient with its graph, to be differentiated once more along each vector.

    Attributes:
        weight: divisor of the summed loss.
        n_bytes: memory of the graph.
    """

    def __init__(self, evaluator: Evaluator, at: Tensor, piece: Piece) -> None:
        self._evaluator, self._inputs = evaluator, evaluator.parameters
        with twice_differentiable(evaluator.model):
            terms = evaluator.terms(at, piece.batch, piece.number)
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
            named = space.unflatten(dual)

            def body(model: nn.Module, batch: Any) -> BatchTerms:
                try:
                    return substituted(
                        evaluator, named, batch, lambda *args: evaluator.problem.loss(*args)[0]
                    )
                except (NotImplementedError, RuntimeError) as error:
                    msg = (
                        "an operation of the model has no forward mode, use double backward: "
                        f"{error}"
                    )
                    raise LossError(msg) from error

            # By way of the evaluator, which draws the same dropout masks for every product.
            terms = evaluator.on_batch(self._at, self._piece.batch, self._piece.number, body)
            self.weight = float(terms.weight)
            (gradient,) = differentiate(terms.total, [dual])
            tangent = (
                None if gradient is None else forward_mode.unpack_dual(gradient).tangent  # type: ignore[no-untyped-call]
            )
        if tangent is None:
            return [None] * len(space.names)
        return list(space.views(tangent.detach()))


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
