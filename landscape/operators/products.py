"""Ways to multiply the Hessian of one batch's summed loss with a vector."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from landscape.derivatives import differentiate, needing_derivatives
from landscape.errors import LossError, ProblemError
from landscape.evaluate import Evaluator
from landscape.linalg.krylov import norm
from landscape.operators.graphs import ONCE, graph_bytes, nodes, twice_differentiable
from landscape.operators.pieces import Piece
from landscape.problem.losses import BatchTerms


class NotTwiceDifferentiableError(LossError):
    """An operation in the loss or the model has no second derivative."""


class DoubleBackward:
    """The gradient with its graph, to be differentiated once more along each vector.

    Attributes:
        gradient: of the summed loss of the batch, shape (n,), differentiable.
        is_custom: whether a `torch.autograd.Function` is in the loss; its author wrote its
            backward pass, and may have hidden from autograd what it depends on.
        weight: what the sum is to be divided by in the end.
        n_bytes: memory of the graph.
    """

    def __init__(self, evaluator: Evaluator, at: Tensor, piece: Piece) -> None:
        self._evaluator, self._piece = evaluator, piece
        self._leaf = at.detach().clone().requires_grad_(True)
        with twice_differentiable(evaluator.problem.model):
            terms = evaluator.terms(self._leaf, piece.batch, piece.number)
            self.is_custom = any(isinstance(node, BackwardCFunction) for node in nodes(terms.total))
            self.gradient = differentiate(terms.total, self._leaf, create_graph=True)
        if any(node.name() == ONCE for node in nodes(self.gradient)):
            # torch only says so where its dead end is walked into, and gives zeros elsewhere.
            msg = (
                "the loss cannot be differentiated twice: it uses a torch.autograd.Function that "
                "is marked once_differentiable"
            )
            raise NotTwiceDifferentiableError(msg)
        self.weight = float(terms.weight)
        self.n_bytes = graph_bytes(self.gradient)

    def times(self, vector: Tensor, *, retain: bool) -> Tensor:
        """Return the product with a vector of shape (n,), keeping the graph for another or not."""
        if not self.gradient.requires_grad:
            return self._constant(vector)
        try:
            with needing_derivatives("twice"):
                (product,) = torch.autograd.grad(
                    *(self.gradient, self._leaf, vector),
                    retain_graph=retain,
                    materialize_grads=True,
                )
        except LossError as error:
            raise NotTwiceDifferentiableError(str(error)) from error
        return product.detach()

    def _constant(self, vector: Tensor) -> Tensor:
        """Return zero, once it is certain that the gradient does not change along the vector.

        An operation whose author marked its backward pass as differentiable once only looks the
        same to autograd as one that is linear.

        Raises:
            NotTwiceDifferentiableError: if the gradient changes, and in proportion to the step:
                the kinks of a loss that is linear in pieces change it by leaps.
        """
        step = _step(self._leaf, vector)
        near, far = (self._change(h * vector) for h in (0.5 * step, step))
        moved = norm(far) > 1e-5 * norm(self.gradient)
        if moved and norm(far - 2.0 * near) < 0.2 * norm(far):
            msg = (
                "the loss cannot be differentiated twice: its gradient changes with the weights, "
                "but an operation hides how, such as a torch.autograd.Function with "
                "once_differentiable, or no_grad() inside its backward"
            )
            raise NotTwiceDifferentiableError(msg)
        return torch.zeros_like(vector)

    def _change(self, by: Tensor) -> Tensor:
        return _gradient(self._evaluator, self._leaf.detach() + by, self._piece) - self.gradient


class ForwardOverReverse:
    """The gradient of a dual number: its tangent is the product. Nothing is kept.

    Attributes:
        weight: what the sum is to be divided by in the end; known after a product.
        n_bytes: 0.
    """

    def __init__(self, evaluator: Evaluator, at: Tensor, piece: Piece) -> None:
        self._evaluator, self._at, self._piece = evaluator, at, piece
        self.weight, self.n_bytes = 0.0, 0

    def times(self, vector: Tensor, *, retain: bool) -> Tensor:
        """Return the product with a vector of shape (n,)."""
        model = self._evaluator.problem.model
        leaf = self._at.detach().clone().requires_grad_(True)
        with (
            warnings.catch_warnings(),
            twice_differentiable(model),
            forward_mode.dual_level(),
            needing_derivatives("twice"),
        ):
            # torch's own rules for forward mode are still compiled by what it has deprecated.
            warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)
            dual = forward_mode.make_dual(leaf, vector)  # type: ignore[no-untyped-call]
            terms = self._terms(dual)
            gradient = differentiate(terms.total, dual)
            tangent = forward_mode.unpack_dual(gradient).tangent  # type: ignore[no-untyped-call]
            self.weight = float(terms.weight)
            return torch.zeros_like(vector) if tangent is None else tangent.detach().clone()

    def _terms(self, dual: Tensor) -> BatchTerms:
        try:
            return self._evaluator.terms(dual, self._piece.batch, self._piece.number)
        except ProblemError as error:
            if not isinstance(error.__cause__, (NotImplementedError, RuntimeError)):
                raise
            msg = f"an operation of the model has no forward mode, use double backward: {error}"
            raise LossError(msg) from error


class Differences:
    """Central differences of gradients, with two steps that tell of their error. Nothing is kept.

    With D(h) = (∇L(w + hv) − ∇L(w − hv)) / 2h = Hv + O(h²), the product is the extrapolation
    (4 D(h) − D(2h)) / 3 = Hv + O(h⁴), and the relative error is taken to be ‖D(h) − D(2h)‖ / ‖Hv‖,
    which is larger than what the extrapolation leaves. The step makes ‖hv‖ = ε^(1/3) ‖w‖.

    Attributes:
        weight: what the sum is to be divided by in the end; known after a product.
        n_bytes: 0.

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6.
    """

    def __init__(
        self, evaluator: Evaluator, at: Tensor, piece: Piece, report: Callable[[float], None]
    ) -> None:
        self._evaluator, self._at, self._piece, self._report = evaluator, at, piece, report
        self.weight, self.n_bytes = 0.0, 0

    def times(self, vector: Tensor, *, retain: bool) -> Tensor:
        """Return the product with a vector of shape (n,)."""
        h = _step(self._at, vector)
        with torch.no_grad():
            self.weight = float(
                self._evaluator.terms(self._at, self._piece.batch, self._piece.number).weight
            )
        (near, rounding), (far, _) = (self._slope(vector, step) for step in (h, 2.0 * h))
        product = (4.0 * near - far) / 3.0
        # Where Hv is zero but for the rounding of the gradients, there is nothing to be wrong by.
        self._report(norm(near - far) / max(norm(product), 10.0 * rounding, 1e-300))
        return product.to(vector.dtype)

    def _slope(self, vector: Tensor, h: float) -> tuple[Tensor, float]:
        """Return D(h), and the size of what rounding may do to it."""
        up, down = (
            _gradient(self._evaluator, self._at + s * h * vector, self._piece).double()
            for s in (1.0, -1.0)
        )
        rounding = torch.finfo(self._at.dtype).eps * max(norm(up), norm(down)) / h
        return (up - down) / (2.0 * h), rounding


def _gradient(evaluator: Evaluator, at: Tensor, piece: Piece) -> Tensor:
    leaf = at.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        return differentiate(evaluator.terms(leaf, piece.batch, piece.number).total, leaf)


def _step(at: Tensor, vector: Tensor) -> float:
    cube_root = torch.finfo(at.dtype).eps ** (1.0 / 3.0)
    return float(cube_root * max(norm(at.detach()), 1e-3) / max(norm(vector), 1e-300))
