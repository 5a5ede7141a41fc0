"""The Hessian of the data set's loss, its products made in the first way that gives right ones."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from landscape.errors import LandscapeError, LossError, one_of
from landscape.evaluate import Evaluator, check_hessian, twice_differentiable
from landscape.operators._curvature import GRAPH_BYTES, BatchProduct, Curvature
from landscape.operators._pieces import Piece
from landscape.operators._products import (
    Differences,
    DoubleBackward,
    ForwardOverReverse,
    NotTwiceDifferentiableError,
    agree,
)
from landscape.randomness import random_unit_vector

PRODUCTS = ("auto", "fastest", "double-backward", "forward-over-reverse", "differences")
# Forward mode is taken where it is clearly faster, so that noise does not decide.
_CLEARLY = 0.85
# Two steps of finite differences that differ by more than this tell of a kink, not of a slope.
_LARGEST_DIFFERENCE = 0.1


class Hessian(Curvature):
    """The Hessian of the data set's loss at one weight vector.

    H = ∇² (Σ sum / Σ weight). Before the first product, double backward is compared with
    differences of gradients on a few examples. Products are made in the first of these ways that
    holds:

    1. double backward on the graph of the gradient, which is kept while memory lasts: about 2
       gradients for a product;
    2. where no graph can be kept, double backward on a graph built anew: about 3 gradients;
    3. where an operation has no second derivative, or a wrong one, central differences of
       gradients with a step relative to ‖w‖/‖v‖, with two steps, which give their error: 4
       gradients.

    Attributes:
        n: number of rows and columns.
        dtype: of the vectors.
        device: of the vectors.
        error: largest error of the differences so far, relative to the largest product.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        at: Tensor | None = None,
        graph_bytes: int = GRAPH_BYTES,
        products: str = "auto",
    ) -> None:
        """Set up the operator; graphs are built at the first product.

        Args:
            evaluator: an entered evaluator.
            at: weights of shape (n,); None: the origin.
            graph_bytes: memory for graphs that are kept between products; 0: keep none.
            products: ``auto``; one of the ways: ``double-backward``, ``forward-over-reverse``,
                ``differences``; or ``fastest``: where no graph can be kept, double backward or
                forward over reverse, chosen by timing both on the first batch.

        Raises:
            InvalidArgumentError: if there is no such way.
        """
        one_of(products, PRODUCTS, what="way of making products")
        keeps = products in {"auto", "fastest", "double-backward"}
        super().__init__(evaluator, at=at, graph_bytes=graph_bytes if keeps else 0)
        self._wanted, self._reason, self.error, self._largest = products, "", 0.0, 0.0
        self._build_one: Callable[[Piece], BatchProduct] = self._double_backward
        self._tested = self._verified = False
        if products == "forward-over-reverse":
            self._build_one = self._forward_over_reverse
        elif products == "differences":
            self._use_differences("the option products")

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with several vectors; the graph of each batch serves all of them.

        Args:
            vectors: one per row, shape (b, n).

        Returns:
            The products, one per row, shape (b, n). Cost: b products, graphs built once.

        Raises:
            LossError: if the loss has no second derivative, and finite differences with two
                steps do not agree either.
        """
        self._test()
        try:
            return super().matmat(vectors)
        except NotTwiceDifferentiableError as error:
            self._give_up(str(error))
            return super().matmat(vectors)

    def _test(self) -> None:
        if self._tested or self._build_one == self._differences:
            return
        self._tested = True
        reason = check_hessian(self._evaluator)
        if reason:
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """Go on with differences, if the way of making products was left open."""
        if self._wanted not in {"auto", "fastest"}:
            raise LossError(reason)
        self._use_differences(reason)

    def _build(self, piece: Piece) -> BatchProduct:
        self._test()
        return self._build_one(piece)

    def _anew(self, piece: Piece) -> BatchProduct:
        if self._wanted == "fastest" and self._build_one == self._double_backward:
            self._wanted = "auto"
            self._build_one = self._faster(piece)
        return self._build_one(piece)

    def _way(self) -> str:
        if self._build_one == self._differences:
            return f"finite differences, relative error {self.error:.0e}, because of {self._reason}"
        if self._build_one == self._forward_over_reverse:
            return "forward over reverse"
        return "double backward"

    def _use_differences(self, reason: str) -> None:
        self._kept.clear()
        self._limit = self._room = 0
        self._full = True
        self._size = None
        self._build_one, self._reason = self._differences, reason

    def _double_backward(self, piece: Piece) -> BatchProduct:
        return DoubleBackward(self._evaluator, self._at, piece)

    def _forward_over_reverse(self, piece: Piece) -> BatchProduct:
        forward = ForwardOverReverse(self._evaluator, self._at, piece)
        if not self._verified:
            self._verified = True
            self._verify(forward, piece)
        return forward

    def _verify(self, forward: ForwardOverReverse, piece: Piece) -> None:
        """Refuse forward mode where it does not give what double backward gives on a piece."""
        vector = random_unit_vector(self.n, seed=0).to(self.device, self.dtype)
        product = forward.times(vector, retain=False)
        expected = self._double_backward(piece).times(vector, retain=False)
        if not agree(expected, product, self.dtype):
            msg = (
                "forward over reverse gives another product than double backward: something "
                "reaches the parameters by another way than the module's attributes; use another "
                "way of making products"
            )
            raise LossError(msg)

    def _differences(self, piece: Piece) -> BatchProduct:
        return Differences(self._evaluator, self._at, piece, self._check_difference)

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

    def _faster(self, piece: Piece) -> Callable[[Piece], BatchProduct]:
        """Return the faster way on one piece; forward mode only where it gives the same."""
        vector = random_unit_vector(self.n, seed=0).to(self.device, self.dtype)
        double, expected = self._timed(self._double_backward, piece, vector)
        try:
            forward, found = self._timed(self._forward_over_reverse, piece, vector)
        except LandscapeError:  # an operation that forward mode does not know
            return self._double_backward
        is_faster = agree(expected, found, self.dtype) and forward < _CLEARLY * double
        return self._forward_over_reverse if is_faster else self._double_backward

    def _timed(
        self, way: Callable[[Piece], BatchProduct], piece: Piece, vector: Tensor
    ) -> tuple[float, list[Tensor | None]]:
        """Return the seconds of a product with all that it needs, and the product."""
        seconds = []
        with twice_differentiable(self._evaluator.model):
            for _ in range(2):
                started = time.perf_counter()
                product = way(piece).times(vector, retain=False)
                float(next((p.sum() for p in product if p is not None), 0.0))  # waits for it
                seconds.append(time.perf_counter() - started)
        return min(seconds), product
