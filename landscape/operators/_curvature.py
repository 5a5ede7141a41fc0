"""What the curvature operators have in common: sums over the batches, with graphs that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landscape.errors import NonFiniteError
from landscape.evaluate import Evaluator, final_divisor, twice_differentiable
from landscape.linalg.krylov import inner
from landscape.linalg.symmetric import SymmetricOperator
from landscape.operators._pieces import Piece, pieces, size_that_fits

GRAPH_BYTES = 2 * 2**30
_MIB = 2**20


class BatchProduct(Protocol):
    """The curvature of the summed loss of one batch.

    Attributes:
        weight: what the sum is to be divided by in the end.
        n_bytes: memory of what is kept between products.
    """

    weight: float
    n_bytes: int

    def times(self, vector: Tensor, *, retain: bool) -> list[Tensor | None]:
        """Return the product with a vector of shape (n,) as tensors, None for zero."""


class Curvature(SymmetricOperator):
    """A curvature operator of the data set's loss at one weight vector.

    Sums over the batches are divided once, so that the operator does not depend on the batching.
    The graph of each batch is kept between products as long as the graphs fit into
    ``graph_bytes``. A batch whose own graph does not fit, or is too large for a CPU to handle
    quickly, is cut into parts, where the loss allows it (``eval`` mode, a sum over examples).

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
    ) -> None:
        """Set up the operator; graphs are built at the first product.

        Args:
            evaluator: an entered evaluator.
            at: weights of shape (n,); None: the origin.
            graph_bytes: memory for graphs that are kept between products; 0: keep none.
        """
        self._evaluator = evaluator
        self._at = evaluator.origin if at is None else at
        self._limit = graph_bytes
        self._room = graph_bytes
        self._full = graph_bytes <= 0
        self._kept: dict[int, BatchProduct] = {}
        self._measured = False
        self._size: int | None = None
        self._n_pieces = 0
        self._moves = -1
        super().__init__(
            self._single, evaluator.problem.space.n, dtype=self._at.dtype, device=self._at.device
        )

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with several vectors; the graph of each batch serves all of them.

        Args:
            vectors: one per row, shape (b, n).

        Returns:
            The products, one per row, shape (b, n). Cost: b products, graphs built once.

        Raises:
            NonFiniteError: if a product is not finite; the message names the batch.
        """
        evaluator = self._evaluator
        sums, weight = [evaluator.new_sum() for _ in vectors], 0.0
        with twice_differentiable(evaluator.model):
            for _, product, kept in self._batches():
                for i, vector in enumerate(vectors):
                    retain = kept or i + 1 < len(vectors)
                    sums[i].add(self._times(product, vector, retain=retain))
                weight += product.weight
        evaluator.passes["hvps"] += len(vectors)
        if all(each.is_empty for each in sums):
            evaluator.require_dependence()
        divisor = self._divisor(weight)
        products = torch.stack([each.result(divisor) for each in sums])
        self._check_finite(products, vectors)
        return products

    def _times(self, product: BatchProduct, vector: Tensor, *, retain: bool) -> list[Tensor | None]:
        # What is recomputed in a backward pass reads the live weights.
        self._evaluator.write(self._at)
        return product.times(vector, retain=retain)

    def forms(
        self, vectors: Tensor, *, n_groups: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return vᵀA_g v of each vector for groups g of examples, whose weighted mean is vᵀAv.

        Args:
            vectors: one per row, shape (b, n).
            n_groups: cut batches until there are about so many groups, where the loss allows it.

        Returns:
            The sums over each group, shape (g, b), and the weight of each, shape (g,); for a loss
            that is a plain sum, the number of examples. Groups without weight are left out.
            Cost: b products, graphs built once.
        """
        problem = self._evaluator.problem
        forms: list[list[float]] = []
        weights = []
        with twice_differentiable(problem.model):
            for piece in pieces(problem, self._group_size(n_groups)):
                product = self._build(piece)
                forms.append([])
                for i, vector in enumerate(vectors):
                    total = self._evaluator.new_sum()
                    total.add(self._times(product, vector, retain=i + 1 < len(vectors)))
                    forms[-1].append(float(inner(vector[None], total.result())))
                size = problem.batching.size(piece.batch)
                weights.append(size if problem.loss.sums else product.weight)
        self._evaluator.passes["hvps"] += len(vectors)
        kept = np.array(weights, dtype=np.float64) > 0
        return np.array(forms)[kept], np.array(weights, dtype=np.float64)[kept]

    def describe(self) -> str:
        """Return how products are made, in words."""
        n_pieces, n_batches = self._n_pieces, self._evaluator.problem.batches.n_batches
        used = self._limit - self._room
        parts = [self._way(), f"{len(self._kept)} of {n_pieces} graphs kept"]
        if self._kept:
            parts[-1] += f" ({max(1, round(used / _MIB)):,} MiB)"
        if n_pieces > n_batches:
            parts.append(f"{n_batches} batch{'es' * (n_batches > 1)} cut into {n_pieces} parts")
        return ", ".join(parts)

    def _single(self, vector: Tensor) -> Tensor:
        return self.matmat(vector[None])[0]

    def _build(self, piece: Piece) -> BatchProduct:
        """Build the product of one piece of the data, with whatever it keeps."""
        raise NotImplementedError

    def _way(self) -> str:
        raise NotImplementedError

    def _anew(self, piece: Piece) -> BatchProduct:
        """Build the product of a piece that is not to be kept."""
        return self._build(piece)

    def _divisor(self, weight: float) -> float:
        return final_divisor(weight, plain_sum=self._evaluator.problem.loss.sums)

    def _piece_size(self) -> int | None:
        """Return how many examples a piece may have, measured at the first call."""
        if not self._measured:
            self._size = size_that_fits(
                self._evaluator, self._limit, lambda piece: self._build(piece).n_bytes
            )
            self._measured = True
        return self._size

    def _group_size(self, n_groups: int) -> int | None:
        batches, size = self._evaluator.problem.batches, self._piece_size()
        wanted = -(-batches.n_examples // n_groups)
        if batches.n_batches >= n_groups or not self._evaluator.divisible:
            return size
        return wanted if size is None else min(size, wanted)

    def _batches(self) -> Iterator[tuple[int, BatchProduct, bool]]:
        """Give the number of each batch, its product, and whether it is kept."""
        self._evaluator.write(self._at)
        if self._evaluator.moves != self._moves:
            self._kept.clear()
            self._moves, self._room = self._evaluator.moves, self._limit
            self._full = self._limit <= 0
        for i, piece in enumerate(pieces(self._evaluator.problem, self._piece_size())):
            self._n_pieces = max(self._n_pieces, i + 1)
            if i in self._kept:
                yield piece.number, self._kept[i], True
            elif self._full:
                yield piece.number, self._anew(piece), False
            else:
                product = self._build(piece)
                if product.n_bytes < self._room:
                    self._room -= product.n_bytes
                    self._kept[i] = product
                else:
                    self._full = True
                yield piece.number, product, i in self._kept

    def _check_finite(self, products: Tensor, vectors: Tensor) -> None:
        if bool(torch.isfinite(products.sum())) or bool(torch.isfinite(products).all()):
            return
        number = 0
        with twice_differentiable(self._evaluator.model):
            for batch, product, _ in self._batches():
                total = self._evaluator.new_sum()
                total.add(self._times(product, vectors[0], retain=True))
                number = batch
                if not bool(torch.isfinite(total.result()).all()):
                    break
        msg = (
            f"the product with batch {number} of the {self._evaluator.problem.split} data is not "
            "finite, though the loss is: look for a square root, a norm or a logarithm at zero in "
            "that batch, or compute in float64"
        )
        raise NonFiniteError(msg)
