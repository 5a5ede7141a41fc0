"""What the curvature operators have in common: sums over the batches, with graphs that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landscape.errors import NonFiniteError
from landscape.evaluate import Evaluator, final_divisor, twice_differentiable
from landscape.linalg.krylov import inner
from landscape.linalg.symmetric import SymmetricOperator
from landscape.operators._parts import LEAST_GROUPS, N_GROUPS, Parts, fitting_groups
from landscape.operators._pieces import Piece, pieces, size_that_fits
from landscape.randomness import random_unit_vector

GRAPH_BYTES = 4 * 2**30
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
    The graph of each batch is kept between products as long as the graphs fit into half of
    ``graph_bytes``. A batch whose own graph takes more than a quarter, or is too large for a CPU
    to handle quickly, is cut into parts, where the loss allows it (``eval`` mode, a sum over
    examples).

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
            graph_bytes: memory for graphs, half of it for those that are kept between products;
                0: keep none.
        """
        self._evaluator = evaluator
        self._at = evaluator.origin if at is None else at
        # Half is for graphs that are kept; one that is made anew, and what its backward pass holds
        # beside it, take a quarter each.
        self._limit, self._room = graph_bytes, graph_bytes // 2
        self._kept: dict[int, BatchProduct] = {}
        self._size: tuple[int | None] | None = None  # of a piece, once it has been measured
        self._n_pieces, self._moves = 0, -1
        self._parts: Parts | None = None
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
        parts = self._parts if len(vectors) == 1 else None
        products = self._sums(vectors) if parts is None else self._sum_of_parts(vectors[0], parts)
        self._evaluator.passes["hvps"] += len(vectors)
        self._check_finite(products, vectors)
        return products

    def _sums(self, vectors: Tensor) -> Tensor:
        evaluator = self._evaluator
        sums, weight = [evaluator.new_sum() for _ in vectors], 0.0
        with twice_differentiable(evaluator.model):
            for _, product, kept in self._batches():
                for i, vector in enumerate(vectors):
                    retain = kept or i + 1 < len(vectors)
                    sums[i].add(self._times(product, vector, retain=retain))
                weight += product.weight
        if all(each.is_empty for each in sums):
            evaluator.require_dependence()
        divisor = final_divisor(weight, plain_sum=evaluator.problem.loss.sums)
        results = [each.result(divisor) for each in sums]
        return results[0][None] if len(results) == 1 else torch.stack(results)

    def _sum_of_parts(self, vector: Tensor, parts: Parts) -> Tensor:
        evaluator, weight, is_empty = self._evaluator, 0.0, True
        problem = evaluator.problem
        parts.begin()
        with twice_differentiable(evaluator.model):
            for piece, product, kept in self._batches():
                tensors = self._times(product, vector, retain=kept)
                n_examples = problem.batching.size(piece.batch)
                own = n_examples if problem.loss.sums else product.weight
                parts.add(tensors, own, n_examples)
                is_empty = is_empty and all(tensor is None for tensor in tensors)
                weight += product.weight
        if is_empty:
            evaluator.require_dependence()
        divisor = final_divisor(weight, plain_sum=problem.loss.sums)
        return parts.total(divisor, self.dtype)[None]

    def record_parts(self, n_groups: int | None = None) -> bool:
        """Keep, from now on, what groups of examples contribute to each product of one vector.

        Batches are cut where there are fewer than groups, if the loss allows it.

        Args:
            n_groups: how many groups; None: 16, or 8 where there are fewer than 16 batches.

        Returns:
            Whether the parts fit into memory; if not, nothing is kept.
        """
        problem, divisible = self._evaluator.problem, self._evaluator.divisible
        most = fitting_groups(self.n, problem.dtype.itemsize, self._limit // 4)
        if most < (LEAST_GROUPS if n_groups is None else n_groups):
            return False
        batches = problem.batches
        size = self._piece_size()
        n_pieces = max(batches.n_batches, -(-batches.n_examples // (size or batches.n_examples)))
        wanted = n_groups or min(N_GROUPS, most, max(LEAST_GROUPS, n_pieces))
        if n_pieces < wanted and divisible:
            self._size = (-(-batches.n_examples // wanted),)
        elif n_pieces < wanted:
            wanted = n_pieces
        self._parts = Parts(problem.space, self._at, n_groups=wanted, n_examples=batches.n_examples)
        self._forget()
        return True

    @property
    def part_weights(self) -> npt.NDArray[np.float64]:
        """The weight of each group, shape (groups,)."""
        return np.zeros(0) if self._parts is None else self._parts.weights

    def project_parts(self, basis: Tensor, scale: Tensor | None = None) -> npt.NDArray[np.float64]:
        """Return (Tq)ᵀH_g v for each group and each row q of a basis, v being the last vector.

        Args:
            basis: shape (m, n).
            scale: diagonal of T, shape (n,); None: the identity.

        Returns:
            Shape (groups, m), not divided by any weight.
        """
        assert self._parts is not None
        return self._parts.project(basis, scale)

    @contextmanager
    def on_sample(self) -> Iterator[SymmetricOperator]:
        """Give the undivided operator of a few examples, a sixteenth of them, for tests.

        The first ones are taken whose product is not zero.

        Yields:
            The operator, whose products are each made from the start.
        """
        problem, spent = self._evaluator.problem, 0.0
        n_examples, size = problem.batches.n_examples, self._piece_size()
        few = -(-n_examples // N_GROUPS)
        size = (few if size is None else min(size, few)) if self._evaluator.divisible else None

        def product(sample: Piece, vector: Tensor) -> Tensor:
            nonlocal spent
            spent += problem.batching.size(sample.batch) / n_examples
            self._evaluator.write(self._at)
            return self._flat(self._times(self._build(sample), vector, retain=False))

        with twice_differentiable(self._evaluator.model):
            probe = random_unit_vector(self.n, seed=0).to(self.device, self.dtype)
            samples = (s for s in pieces(problem, size) if bool((product(s, probe) != 0).any()))
            sample = next(samples, next(pieces(problem, size)))
            yield SymmetricOperator(
                lambda v: product(sample, v), self.n, dtype=self.dtype, device=self.device
            )
        self._evaluator.passes["hvps"] += round(spent)

    def quadratic_forms(
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
        quadratic_forms: list[list[float]] = []
        weights: list[float] = []
        with twice_differentiable(problem.model):
            for piece in pieces(problem, self._group_size(n_groups)):
                product = self._build(piece)
                quadratic_forms.append([])
                for i, vector in enumerate(vectors):
                    parts = self._times(product, vector, retain=i + 1 < len(vectors))
                    quadratic_forms[-1].append(float(inner(vector[None], self._flat(parts))))
                sums = problem.loss.sums
                weights.append(problem.batching.size(piece.batch) if sums else product.weight)
        self._evaluator.passes["hvps"] += len(vectors)
        kept = np.array(weights, dtype=np.float64) > 0
        return np.array(quadratic_forms)[kept], np.array(weights, dtype=np.float64)[kept]

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
            # A smaller part would spend more on the weights than on its examples.
            limit = max((self._limit or GRAPH_BYTES) // 4, 4 * self.n * self.dtype.itemsize)
            self._size = (size_that_fits(self._evaluator, limit, lambda p: self._build(p).n_bytes),)
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
        own = 0 if self._parts is None else self._parts.n_bytes
        self._room = max(0, self._limit // 2 - own)

    def _batches(self) -> Iterator[tuple[Piece, BatchProduct, bool]]:
        """Give each piece of the data, its product, and whether it is kept."""
        self._evaluator.write(self._at)
        if self._evaluator.moves != self._moves:
            self._forget()
            self._moves = self._evaluator.moves
        for i, piece in enumerate(pieces(self._evaluator.problem, self._piece_size())):
            self._n_pieces = max(self._n_pieces, i + 1)
            if i in self._kept:
                yield piece, self._kept[i], True
            elif self._room <= 0:
                yield piece, self._anew(piece), False
            else:
                product = self._build(piece)
                fits = product.n_bytes < self._room
                self._room = self._room - product.n_bytes if fits else 0
                if fits:
                    self._kept[i] = product
                yield piece, product, fits

    def _check_finite(self, products: Tensor, vectors: Tensor) -> None:
        if bool(torch.isfinite(products.sum())):
            return
        finite = torch.isfinite(products).all(dim=1)
        if bool(finite.all()):
            return
        vector, number = vectors[int(finite.int().argmin())], 0
        with twice_differentiable(self._evaluator.model):
            for piece, product, _ in self._batches():
                parts, number = self._times(product, vector, retain=True), piece.number
                if not bool(torch.isfinite(self._flat(parts)).all()):
                    break
        msg = (
            f"the product with batch {number} of the {self._evaluator.problem.split} data is not "
            "finite, though the loss is: look for a square root, a norm or a logarithm at zero in "
            "that batch, or compute in float64"
        )
        raise NonFiniteError(msg)
