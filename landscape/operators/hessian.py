"""The Hessian of the data set's loss, its products made in the fastest way that works."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from landscape.errors import LossError, ProblemError, one_of
from landscape.evaluate import Evaluator
from landscape.linalg.krylov import norm
from landscape.operators.curvature import GRAPH_BYTES, BatchProduct, Curvature
from landscape.operators.diagnosis import name_the_culprit
from landscape.operators.pieces import Piece
from landscape.operators.products import (
    Differences,
    DoubleBackward,
    ForwardOverReverse,
    NotTwiceDifferentiableError,
)
from landscape.randomness import seeded

PRODUCTS = ("auto", "double-backward", "forward-over-reverse", "differences")
# Forward mode is taken where it is clearly faster, so that noise does not decide.
_CLEARLY = 0.85
# Two steps of finite differences that differ by more than this tell of a kink, not of a slope.
_LARGEST_DIFFERENCE = 0.1


class Hessian(Curvature):
    """The Hessian of the data set's loss at one weight vector.

    H = ∇² (Σ sum / Σ weight). Products are exact and made in the first way of these that works:

    1. double backward on the graph of the gradient, which is kept while memory lasts: about 2
       gradients for a product;
    2. where no graph can be kept, double backward or forward over reverse: about 3 gradients,
       whichever is clearly faster on the first batch, provided that both agree there;
    3. where an operation has no second derivative, central differences of gradients with a step
       relative to ‖w‖/‖v‖, taken with two steps, which gives their error: 4 gradients.

    Attributes:
        n: number of rows and columns.
        dtype: of the vectors.
        device: of the vectors.
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
            products: ``auto``, or one of the ways: ``double-backward``, ``forward-over-reverse``,
                ``differences``.

        Raises:
            InvalidArgumentError: if there is no such way.
        """
        one_of(products, PRODUCTS, what="way of making products")
        keeps = products in {"auto", "double-backward"}
        super().__init__(evaluator, at=at, graph_bytes=graph_bytes if keeps else 0)
        self._wanted = products
        self._chosen: Callable[[Piece], BatchProduct] | None = None
        self._reason = ""
        self._verified = False
        self.error = 0.0
        if products == "forward-over-reverse":
            self._chosen = self._forward_over_reverse
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
        try:
            return super().matmat(vectors)
        except NotTwiceDifferentiableError as error:
            reason = f"{name_the_culprit(self._evaluator)}: {error}"
            if self._wanted != "auto":
                raise LossError(reason) from error
            self._use_differences(reason)
            return super().matmat(vectors)

    def _build(self, piece: Piece) -> BatchProduct:
        if self._chosen == self._differences:
            return self._differences(piece)
        if self._wanted == "forward-over-reverse":
            return self._forward_over_reverse(piece)
        return self._double_backward(piece)

    def _anew(self, piece: Piece) -> BatchProduct:
        if self._chosen is None:
            double = self._wanted == "double-backward"
            self._chosen = self._double_backward if double else self._faster(piece)
        return self._chosen(piece)

    def _way(self) -> str:
        if self._chosen == self._differences:
            return f"finite differences, relative error {self.error:.0e}, because of {self._reason}"
        if self._chosen == self._forward_over_reverse:
            return "forward over reverse"
        return "double backward"

    def _use_differences(self, reason: str) -> None:
        self._kept.clear()
        self._limit = self._room = 0
        self._full = True
        self._size = None
        self._chosen, self._reason = self._differences, reason

    def _double_backward(self, piece: Piece) -> BatchProduct:
        product = DoubleBackward(self._evaluator, self._at, piece)
        if product.is_custom and not self._verified:
            self._verify(product, piece)
        self._verified = True
        return product

    def _verify(self, product: DoubleBackward, piece: Piece) -> None:
        """Compare a product with differences of gradients, where a backward pass is handmade."""
        vector = self._random_unit_vector()
        errors: list[float] = []
        differences = Differences(self._evaluator, self._at, piece, errors.append)
        expected = differences.times(vector, retain=False)
        off = norm(product.times(vector, retain=True) - expected)
        if off > _LARGEST_DIFFERENCE * norm(expected) and errors[0] < _LARGEST_DIFFERENCE / 2:
            msg = (
                "the loss cannot be differentiated twice: its second derivative by autograd is "
                "not that of its gradient; a torch.autograd.Function hides how its backward pass "
                "depends on its inputs, such as by no_grad()"
            )
            raise NotTwiceDifferentiableError(msg)

    def _forward_over_reverse(self, piece: Piece) -> BatchProduct:
        return ForwardOverReverse(self._evaluator, self._at, piece)

    def _differences(self, piece: Piece) -> BatchProduct:
        return Differences(self._evaluator, self._at, piece, self._check_difference)

    def _check_difference(self, error: float) -> None:
        self.error = max(self.error, error)
        if error > _LARGEST_DIFFERENCE:
            why = f"{self._reason}; " if self._wanted == "auto" else ""
            remedy = "replace the operation" if why else "use another way of making products"
            msg = (
                f"{why}finite differences of the gradient cannot be trusted here, with two steps "
                f"they differ by {error:.0%}: {remedy}, or use float64"
            )
            raise LossError(msg)

    def _random_unit_vector(self) -> Tensor:
        generator = seeded(0)
        drawn = torch.randn(self.n, generator=generator, dtype=torch.float64)
        unit: Tensor = drawn / drawn.norm()
        return unit.to(self.device, self.dtype)

    def _faster(self, piece: Piece) -> Callable[[Piece], BatchProduct]:
        """Return the faster way on one piece; forward mode only where it gives the same."""
        vector = self._random_unit_vector()
        double, expected = _timed(self._double_backward, piece, vector)
        try:
            forward, found = _timed(self._forward_over_reverse, piece, vector)
        except ProblemError:  # an operation that forward mode does not know
            return self._double_backward
        tolerance = torch.finfo(self.dtype).eps ** 0.5 * float(expected.norm())
        agree = float((found - expected).norm()) <= tolerance
        return (
            self._forward_over_reverse
            if agree and forward < _CLEARLY * double
            else self._double_backward
        )


def _timed(
    way: Callable[[Piece], BatchProduct], piece: Piece, vector: Tensor
) -> tuple[float, Tensor]:
    """Return the seconds of a product with all that it needs, and the product."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        product = way(piece).times(vector, retain=False)
        float(product[0])  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds), product
