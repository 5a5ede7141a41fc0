"""The Hessian of the data set's loss, its products made in the first way that gives right ones."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, get_args

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, nn

from landscape.choices import Products
from landscape.errors import LandscapeError, LossError, first_line, one_of
from landscape.evaluate import (
    DoubleBackward,
    Evaluator,
    NotTwiceDifferentiableError,
    check_gradient,
    check_hessian,
    differentiate,
    needing_derivatives,
    substituted,
    twice_differentiable,
)
from landscape.linalg.krylov import norm
from landscape.operators._checkpointing import CheckpointedBackward, Checkpoints
from landscape.operators._curvature import GRAPH_BYTES, BatchProduct, Curvature, Piece, pieces
from landscape.problem.losses import BatchTerms
from landscape.processes import shards
from landscape.randomness import random_unit_vector

PRODUCTS = get_args(Products)
# Forward mode is taken where it is clearly faster, so that noise does not decide.
_CLEARLY = 0.85
# Rounding of a gradient whose blocks are computed anew, by the same operations.
_ANEW = 1e3
# Two steps of finite differences that differ by more than this tell of a kink, not of a slope.
_LARGEST_DIFFERENCE = 0.1


class Hessian(Curvature):
    """The Hessian of the data set's loss at one weight vector.

    H = ∇² (Σ sum / Σ weight). At first double backward is compared with differences of gradients
    on a few examples. Products are made in the first of these ways that holds:

    1. double backward on the graph of the gradient, which is kept while memory lasts: about 2
       gradients for a product;
    2. where no graph can be kept, double backward on a graph built anew: about 3 gradients;
    3. where an operation has no second derivative, or a wrong one, central differences of
       gradients with a step relative to ‖w‖/‖v‖, with two steps, which give their error: 4
       gradients.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        at: Tensor | None = None,
        graph_bytes: int = GRAPH_BYTES,
        products: str = "auto",
    ) -> None:
        """Test double backward; graphs are built at the first product.

        ``products`` is ``auto``; one of the ways: ``double-backward``; ``checkpointed``, the same
        with the activations of each block computed anew, for graphs that do not fit;
        ``forward-over-reverse``; ``differences``; or ``fastest``: where no graph can be kept,
        double backward or forward over reverse, chosen by timing both on the first batch.
        """
        one_of(products, PRODUCTS, what="way of making products")
        if shards() is not None and products in {"fastest", "forward-over-reverse"}:
            msg = (
                f"products={products!r} substitutes whole parameters, and these are split over "
                "the processes: use 'auto', or sharing(shard='data')"
            )
            raise LossError(msg)
        is_open = products in {"auto", "fastest"}
        keeps = is_open or products in {"double-backward", "checkpointed"}
        super().__init__(evaluator, at=at, graph_bytes=graph_bytes if keeps else 0)
        usual = "double-backward" if shards() is None else "checkpointed"
        self._wanted, self._chosen = products, usual if is_open else products
        self._reason = "the option products"  # why differences are taken
        self._verified = False
        self.error, self._largest = 0.0, 0.0  # of the differences so far, and the largest product
        self._blocks = self._verified_blocks() if self._chosen == "checkpointed" else None
        while self._chosen != "differences" and (reason := self._wrong()):
            self._give_up(reason)

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with several vectors, one per row; LossError if no way of doing so is right."""
        try:
            return super().matmat(vectors)
        except NotTwiceDifferentiableError as error:
            self._give_up(str(error))
            return self.matmat(vectors)

    def _give_up(self, reason: str) -> None:
        """Go on with whole graphs, or differences, if the way of making products was left open."""
        if self._wanted not in {"auto", "fastest"}:
            raise LossError(reason)
        if self._blocks is not None:
            self._blocks, self._chosen = None, "double-backward"
        else:
            self._chosen, self._reason, self._limit = "differences", reason, 0
        self._size = None
        self._forget()

    def _build(self, piece: Piece, way: str | None = None) -> BatchProduct:
        way = way or self._chosen
        if way == "checkpointed" and self._blocks is not None:
            self._blocks.measures = self._size is None
            where = self._at, piece.batch, piece.number
            return CheckpointedBackward(self._evaluator, *where, self._blocks)
        if way in {"double-backward", "checkpointed"}:
            return DoubleBackward(self._evaluator, self._at, piece.batch, piece.number)
        if way == "differences":
            return Differences(self._evaluator, self._at, piece, self._check_difference)
        if not self._verified:
            self._verified = True
            self._verify_forward_mode(piece)
        return ForwardOverReverse(self._evaluator, self._at, piece)

    def _build_once(self, piece: Piece) -> BatchProduct:
        if self._wanted == "fastest" and self._chosen == "double-backward":
            self._wanted, self._chosen = "auto", self._faster(piece)
        return self._build(piece)

    def _verify_forward_mode(self, piece: Piece) -> None:
        """Refuse forward mode where it does not give what double backward gives on a piece."""
        expected, forward = (
            self._flat(self._build(piece, way).times(self._probe(), retain=False))
            for way in ("double-backward", "forward-over-reverse")
        )
        if norm(expected - forward) > torch.finfo(self.dtype).eps ** 0.5 * norm(expected):
            msg = (
                "forward over reverse gives another product than double backward: something "
                "reaches the parameters by another way than the module's attributes; use another "
                "way of making products"
            )
            raise LossError(msg)

    def _wrong(self) -> str:
        """Say what is wrong with double backward, with blocks computed anew as in the products."""
        evaluator = self._evaluator
        if self._blocks is None:
            return check_hessian(evaluator)
        check_gradient(evaluator)
        with self._blocks.applied():
            reason = check_hessian(evaluator)
        if reason:  # that of this way alone
            del evaluator.problem.derivatives["hessian"]
        return reason

    def _verified_blocks(self) -> Checkpoints | None:
        """Return the blocks, if they give the same gradient when they are computed anew.

        Where the way was left open, None if they do not. Tried on the first example that has one.
        """
        evaluator, why = self._evaluator, "they give another gradient"
        blocks = Checkpoints(evaluator.problem)
        with twice_differentiable(evaluator.model):
            for piece in pieces(evaluator.problem, 1 if evaluator.divisible else None):
                where = self._at, piece.batch, piece.number
                plain = evaluator.batch_gradient(*where)[1]
                if size := norm(plain):
                    break
            else:
                return blocks  # whatever is computed anew, the loss is constant
            try:
                with blocks.applied():
                    plain.sub_(evaluator.batch_gradient(*where)[1])
            except torch.OutOfMemoryError:
                raise
            except (LossError, RuntimeError) as error:
                why = first_line(error)
            else:
                if norm(plain) <= _ANEW * torch.finfo(self.dtype).eps * size:
                    return blocks
        if self._wanted == "auto":
            return None
        msg = (
            f"the blocks cannot be computed anew: {why}. Does one of them change what it is given, "
            "or itself, as a cache of keys and values does (use_cache=False), or is it "
            "checkpointed already? Use another way of making products"
        )
        raise LossError(msg)

    def _probe(self) -> Tensor:
        probe = random_unit_vector(self.n, seed=0, spread=self.spread)
        return probe.to(self.device, self.dtype)

    def _way(self) -> str:
        if self._chosen == "differences":
            return f"finite differences, relative error {self.error:.0e}, because of {self._reason}"
        if self._chosen == "checkpointed":
            n = 0 if self._blocks is None else len(self._blocks.names)
            return "double backward" + (f", {n} blocks checkpointed" if n else "")
        return self._chosen.replace("-", " ")

    def _check_difference(self, off: float, size: float) -> None:
        # Relative to the largest product so far: a vector in the null space has none of its own.
        self._largest = max(self._largest, size, 1e-300)
        error = off / self._largest
        self.error = max(self.error, error)
        if error > _LARGEST_DIFFERENCE:
            chosen = self._wanted == "differences"
            why = "" if chosen else f"{self._reason}; "
            remedy = "use another way of making products" if chosen else "replace the operation"
            msg = (
                f"{why}finite differences of the gradient cannot be trusted here, with two steps "
                f"they differ by {error:.0%}: {remedy}, or use float64"
            )
            raise LossError(msg)

    def _faster(self, piece: Piece) -> str:
        """Return the faster way on one piece; forward mode only where it gives the same."""
        double = self._seconds("double-backward", piece)
        try:
            forward = self._seconds("forward-over-reverse", piece)
        except LandscapeError:  # an operation that forward mode does not know, or another product
            return "double-backward"
        return "forward-over-reverse" if forward < _CLEARLY * double else "double-backward"

    def _seconds(self, way: str, piece: Piece) -> float:
        """Time a product with all that it needs."""
        seconds, vector = [], self._probe()
        with twice_differentiable(self._evaluator.model):
            for _ in range(2):
                started = time.perf_counter()
                norm(self._flat(self._build(piece, way).times(vector, retain=False)))
                seconds.append(time.perf_counter() - started)
        return min(seconds)


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
