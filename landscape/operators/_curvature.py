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
    """

    weight: float

    @property
    def n_bytes(self) -> int:
        """Memory of what is kept between products."""

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
        self._limit = self._room = graph_bytes
        self._kept: dict[int, BatchProduct] = {}
        self._size: tuple[int | None] | None = None  # of a piece, once it has been measured
        self._n_pieces, self._moves = 0, -1
        # No matvec is handed over: one that is bound to the operator would keep its graphs alive.
        self.n, self.dtype, self.device = len(self._at), self._at.dtype, self._at.device

    def matvec(self, vector: Tensor) -> Tensor:
        """Multiply with a vector of shape (n,), see `matmat`."""
        return self.matmat(vector[None])[0]

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
        divisor = final_divisor(weight, plain_sum=evaluator.problem.loss.sums)
        products = torch.stack([each.result(divisor) for each in sums])
        self._check_finite(products, vectors)
        return products

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
        weights: list[float] = []
        with twice_differentiable(problem.model):
            for piece in pieces(problem, self._group_size(n_groups)):
                product = self._build(piece)
                forms.append([])
                for i, vector in enumerate(vectors):
                    parts = self._times(product, vector, retain=i + 1 < len(vectors))
                    forms[-1].append(float(inner(vector[None], self._flat(parts))))
                sums = problem.loss.sums
                weights.append(problem.batching.size(piece.batch) if sums else product.weight)
        self._evaluator.passes["hvps"] += len(vectors)
        kept = np.array(weights, dtype=np.float64) > 0
        return np.array(forms)[kept], np.array(weights, dtype=np.float64)[kept]

    def describe(self) -> str:
        """Return how products are made, in words."""
        n_pieces, n_batches = self._n_pieces, self._evaluator.problem.batches.n_batches
        parts = [self._way(), f"{len(self._kept)} of {n_pieces} graphs kept"]
        if self._kept:
            used = sum(product.n_bytes for product in self._kept.values())
            parts[-1] += f" ({max(1, round(used / _MIB)):,} MiB)"
        if n_pieces > n_batches:
            parts.append(f"{n_batches} batch{'es' * (n_batches > 1)} cut into {n_pieces} parts")
        return ", ".join(parts)

    def _build(self, piece: Piece) -> BatchProduct:
        """Build the product of one piece of the data, with whatever it keeps."""
        raise NotImplementedError

    def _anew(self, piece: Piece) -> BatchProduct:
        """Build the product of a piece that is not to be kept."""
        return self._build(piece)

    def _way(self) -> str:
        raise NotImplementedError

    def _times(self, product: BatchProduct, vector: Tensor, *, retain: bool) -> list[Tensor | None]:
        # What is recomputed in a backward pass reads the live weights.
        self._evaluator.write(self._at)
        return product.times(vector, retain=retain)

    def _flat(self, parts: list[Tensor | None]) -> Tensor:
        total = self._evaluator.new_sum()
        total.add(parts)
        return total.result()

    def _piece_size(self) -> int | None:
        """Return how many examples a piece may have, measured at the first call."""
        if self._size is None:
            self._size = (
                size_that_fits(self._evaluator, self._limit, lambda p: self._build(p).n_bytes),
            )
        return self._size[0]

    def _group_size(self, n_groups: int) -> int | None:
        batches, size = self._evaluator.problem.batches, self._piece_size()
        wanted = -(-batches.n_examples // n_groups)
        if batches.n_batches >= n_groups or not self._evaluator.divisible:
            return size
        return wanted if size is None else min(size, wanted)

    def _forget(self) -> None:
        """Drop the graphs that are kept."""
        self._kept.clear()
        self._room = self._limit

    def _batches(self) -> Iterator[tuple[int, BatchProduct, bool]]:
        """Give the number of each batch, its product, and whether it is kept."""
        self._evaluator.write(self._at)
        if self._evaluator.moves != self._moves:
            self._forget()
            self._moves = self._evaluator.moves
        for i, piece in enumerate(pieces(self._evaluator.problem, self._piece_size())):
            self._n_pieces = max(self._n_pieces, i + 1)
            if i in self._kept:
                yield piece.number, self._kept[i], True
            elif self._room <= 0:
                yield piece.number, self._anew(piece), False
            else:
                product = self._build(piece)
                fits = product.n_bytes < self._room
                self._room = self._room - product.n_bytes if fits else 0
                if fits:
                    self._kept[i] = product
                yield piece.number, product, fits

    def _check_finite(self, products: Tensor, vectors: Tensor) -> None:
        if bool(torch.isfinite(products.sum())):
            return
        finite = torch.isfinite(products).all(dim=1)
        if bool(finite.all()):
            return
        vector, number = vectors[int(finite.int().argmin())], 0
        with twice_differentiable(self._evaluator.model):
            for number, product, _ in self._batches():  # noqa: B007
                parts = self._times(product, vector, retain=True)
                if not bool(torch.isfinite(self._flat(parts)).all()):
                    break
        msg = (
            f"the product with batch {number} of the {self._evaluator.problem.split} data is not "
            "finite, though the loss is: look for a square root, a norm or a logarithm at zero in "
            "that batch, or compute in float64"
        )
        raise NonFiniteError(msg)
