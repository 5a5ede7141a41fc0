"""Curvature operators as sums over pieces of the data, with graphs that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landscape.checks import real
from landscape.errors import NonFiniteError, one_of
from landscape.evaluate import Evaluator, evenly_cut, final_divisor, twice_differentiable
from landscape.linalg.krylov import SymmetricOperator, inner, norm
from landscape.problem import Problem
from landscape.problem._filters import filter_norms_of
from landscape.problem._parameters import ParameterSpace
from landscape.processes import (
    all_of,
    largest_over_shards,
    over_shards,
    own,
    share,
    sum_over_shards,
)
from landscape.randomness import random_unit_vector

SCALES = ("none", "elementwise", "filterwise")
GRAPH_BYTES = 4 * 2**30
_MIB = 2**20
N_GROUPS = 16
_LEAST_GROUPS = 8
_LEAST_BYTES, _MOST_BYTES = 2**20, 256 * 2**20
_LONG = 2**19  # entries from which on the groups are summed in the type of the products
_BLOCK = 2**16  # columns that are multiplied at a time
# On a CPU, graphs beyond this leave the caches and make the allocator give memory back and fetch
# it again: on a ResNet-20 products took 20 % longer with whole batches of 190 MiB.
_CACHED = 48 * 2**20
# Examples in the two samples that the memory of a graph per example is measured on.
_SAMPLE = 8


@dataclass(frozen=True)
class Piece:
    """A batch, or a part of one, with the number of the batch."""

    batch: Any
    number: int


def pieces(problem: Problem, size: int | None, *, shared: bool = False) -> Iterator[Piece]:
    """Walk through the data, or this process's share, in pieces of at most a size; None: whole."""
    numbered = enumerate(problem.batches)
    for i, batch in own(numbered, problem.batches.n_batches) if shared else numbered:
        for part in evenly_cut(problem, batch, size):
            yield Piece(part, i)


class BatchProduct(Protocol):
    """The curvature of the summed loss of one batch; its weight is the divisor of the sum."""

    weight: float

    @property
    def n_bytes(self) -> int:
        """Memory of what is kept between products."""

    def times(self, vector: Tensor, *, retain: bool) -> list[Tensor | None]:
        """Return the product with a vector of shape (n,) as tensors, None for zero."""


class Parts:
    """H_g v of groups g of consecutive examples, undivided, for the last product."""

    def __init__(self, space: ParameterSpace, like: Tensor, *, n_groups: int, n_examples: int):
        wide = torch.float64 if space.n < _LONG and like.device.type != "mps" else like.dtype
        self.rows = torch.zeros((n_groups, space.length), dtype=wide, device=like.device)
        self.weights = np.zeros(n_groups)  # of each group; its examples, for a loss that is a sum
        self._space, self._n_examples = space, n_examples
        self._seen = 0

    def begin(self, n_before: int = 0) -> None:
        """Start the sums of another product, behind so many examples of other processes."""
        self.rows.zero_()
        self.weights[:] = 0.0
        self._seen = n_before

    def add(self, tensors: list[Tensor | None], weight: float, n_examples: int) -> None:
        """Add what one piece of the data contributes."""
        middle = self._seen + n_examples / 2
        group = min(int(middle * len(self.rows) / self._n_examples), len(self.rows) - 1)
        for view, tensor in zip(self._space.views(self.rows[group]), tensors, strict=True):
            if tensor is not None:
                view.add_(tensor.to_dense() if tensor.is_sparse else tensor)
        self.weights[group] += weight
        self._seen += n_examples

    def project(self, basis: Tensor, scale: Tensor | None) -> npt.NDArray[np.float64]:
        """Return (Tq)ᵀH_g v for the rows q of a basis, shape (groups, m)."""
        total = torch.zeros((len(self.rows), len(basis)), dtype=torch.float64)
        for low in range(0, self._space.length, _BLOCK):
            part = slice(low, low + _BLOCK)
            rows = self.rows[:, part] if scale is None else self.rows[:, part] * scale[part]
            total += (rows.to(basis.dtype) @ basis[:, part].T).double().cpu()
        return over_shards(total).numpy()


class Curvature(SymmetricOperator):
    """A curvature operator of the data set's loss at one weight vector.

    Sums over the batches are divided once, so that the operator does not depend on the batching.
    The graph of each batch is kept between products as long as the graphs fit into half of
    ``graph_bytes``. A batch whose own graph takes more than a quarter, or is too large for a CPU
    to handle quickly, is cut into parts, where the loss allows it (``eval`` mode, a sum over
    examples).
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        at: Tensor | None = None,
        graph_bytes: int = GRAPH_BYTES,
    ) -> None:
        """Test what products need at the weights ``at``; graphs are built at the first product."""
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
        space = evaluator.problem.space
        self.n, self.spread = space.n, space.spread
        self.dtype, self.device = self._at.dtype, self._at.device

    def matvec(self, vector: Tensor) -> Tensor:
        """Multiply with a vector of shape (n,), see `matmat`."""
        return self.matmat(vector[None])[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply with several vectors in rows; the graph of each batch serves all of them."""
        parts = self._parts if len(vectors) == 1 else None
        evaluator, weight, is_empty = self._evaluator, 0.0, True
        sums = [evaluator.new_sum() for _ in vectors] if parts is None else []
        if parts is not None:
            parts.begin(self._n_before())
        with twice_differentiable(evaluator.model):
            for piece, product, kept in self._batches():
                for i, vector in enumerate(vectors):
                    tensors = self._times(product, vector, retain=kept or i + 1 < len(vectors))
                    is_empty = is_empty and all(tensor is None for tensor in tensors)
                    if parts is None:
                        sums[i].add(tensors)
                    else:
                        n_examples = evaluator.problem.batching.size(piece.batch)
                        parts.add(tensors, self._weight(piece, product), n_examples)
                weight += product.weight
        if all_of(is_empty):
            evaluator.require_dependence()
        here = share()
        if here is not None:
            weight = float(here.add_arrays(weight))
        divisor = final_divisor(weight, plain_sum=evaluator.problem.loss.sums)
        if parts is not None:
            total = parts.rows.sum(dim=0, dtype=parts.rows.dtype)
            total = total if here is None else here.add_up(total)
            products = total.div_(divisor).to(self.dtype)[None]
        else:
            results = [total.result(divisor, shared=True) for total in sums]
            products = results[0][None] if len(results) == 1 else torch.stack(results)
        evaluator.passes["hvps"] += len(vectors)
        if not math.isfinite(sum_over_shards(float(products.sum()))):
            self._check_finite(products, vectors)
        return products

    def _weight(self, piece: Piece, product: BatchProduct) -> float:
        """Return the weight of a piece; for a loss that is a plain sum, its examples."""
        problem = self._evaluator.problem
        return problem.batching.size(piece.batch) if problem.loss.sums else product.weight

    def record_parts(self, n_groups: int | None = None) -> bool:
        """Keep, from now on, what groups of examples contribute to a product, if that fits."""
        # 16 groups, or 8 where there are fewer than 16 batches, unless a number is given; batches
        # are cut where there are fewer than groups, if the loss allows it.
        problem, divisible = self._evaluator.problem, self._evaluator.divisible
        limit = min(_MOST_BYTES, max(self._limit // 4, _LEAST_BYTES))
        most = limit // (self.n * (8 if self.n < _LONG else problem.dtype.itemsize))
        if most < (_LEAST_GROUPS if n_groups is None else n_groups):
            return False
        batches = problem.batches
        size = self._piece_size()
        n_pieces = max(batches.n_batches, -(-batches.n_examples // (size or batches.n_examples)))
        wanted = n_groups or min(N_GROUPS, most, max(_LEAST_GROUPS, n_pieces))
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
        if self._parts is None:
            return np.zeros(0)
        here = share()
        return self._parts.weights if here is None else here.add_arrays(self._parts.weights)

    def project_parts(self, basis: Tensor, scale: Tensor | None = None) -> npt.NDArray[np.float64]:
        """Return (Tq)ᵀH_g v, not divided, of each group and basis row q, for the last vector v."""
        assert self._parts is not None
        here, found = share(), self._parts.project(basis, scale)
        return found if here is None else here.add_arrays(found)

    @contextmanager
    def on_sample(self) -> Iterator[SymmetricOperator]:
        """Yield the undivided operator of the first sixteenth with a product that is not zero."""
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
            probe = random_unit_vector(self.n, seed=0, spread=self.spread)
            probe = probe.to(self.device, self.dtype)
            samples = (s for s in pieces(problem, size) if norm(product(s, probe)) != 0.0)
            sample = next(samples, next(pieces(problem, size)))
            del samples, probe
            yield SymmetricOperator(
                lambda v: product(sample, v),
                self.n,
                dtype=self.dtype,
                device=self.device,
                spread=self.spread,
            )
        self._evaluator.passes["hvps"] += round(spent)

    def quadratic_forms(
        self, vectors: Tensor, *, n_groups: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return vᵀA_g v summed over groups g of examples, shape (g, b), and their weights."""
        problem = self._evaluator.problem
        quadratic_forms: list[list[float]] = []
        weights: list[float] = []
        with twice_differentiable(problem.model):
            for piece in pieces(problem, self._group_size(n_groups), shared=True):
                product = self._build(piece)
                quadratic_forms.append([])
                for i, vector in enumerate(vectors):
                    parts = self._times(product, vector, retain=i + 1 < len(vectors))
                    quadratic_forms[-1].append(float(inner(vector[None], self._flat(parts))))
                weights.append(self._weight(piece, product))
        self._evaluator.passes["hvps"] += len(vectors)
        here = share()
        if here is not None:
            quadratic_forms, weights = here.chain(quadratic_forms), here.chain(weights)
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

    def _build_once(self, piece: Piece) -> BatchProduct:
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
            self._size = (self.size_that_fits(limit),)
        return self._size[0]

    def size_that_fits(self, limit: int) -> int | None:
        """Measure how many examples a piece may have so that its graph stays within a limit."""
        # The graph of a whole batch is never built to find out: its size is a constant and so much
        # for each example, measured on two small samples of the first batch.
        problem, batching = self._evaluator.problem, self._evaluator.problem.batching
        batch = next(iter(problem.batches))
        if problem.device.type == "cpu":
            # Each piece reads and writes all weights: its graph should not be smaller than they.
            cap = max(_CACHED, problem.space.n * problem.dtype.itemsize)
            limit = min(limit, cap) if limit > 0 else cap
        if limit <= 0 or not self._evaluator.divisible or batching.size(batch) < 2:
            return None
        few = max(1, min(_SAMPLE, batching.size(batch) // 4))
        small = self._build(Piece(batching.part(batch, 0, few), 0)).n_bytes
        large = self._build(Piece(batching.part(batch, 0, 2 * few), 0)).n_bytes
        per_example = max(1.0, (large - small) / few)
        fits = int((limit - max(0.0, small - few * per_example)) / per_example)
        return None if fits >= batching.size(batch) else max(1 if few < _SAMPLE else few, fits)

    def _group_size(self, n_groups: int) -> int | None:
        batches, size = self._evaluator.problem.batches, self._piece_size()
        wanted = -(-batches.n_examples // n_groups)
        if batches.n_batches >= n_groups or not self._evaluator.divisible:
            return size
        return wanted if size is None else min(size, wanted)

    def _n_before(self) -> int:
        """Return how many examples come before those of this process."""
        here, problem = share(), self._evaluator.problem
        if here is None:
            return 0
        first = here.span(problem.batches.n_batches).start
        return sum(problem.batching.size(b) for b in islice(problem.batches, first))

    def _forget(self) -> None:
        """Drop the graphs that are kept."""
        self._kept.clear()
        own = 0 if self._parts is None else largest_over_shards(self._parts.rows.nbytes)
        self._room = max(0, self._limit // 2 - own)

    def _batches(self) -> Iterator[tuple[Piece, BatchProduct, bool]]:
        """Give each piece of the data, its product, and whether it is kept."""
        self._evaluator.write(self._at)
        if self._evaluator.moves != self._moves:
            self._forget()
            self._moves = self._evaluator.moves
        problem = self._evaluator.problem
        for i, piece in enumerate(pieces(problem, self._piece_size(), shared=True)):
            self._n_pieces = max(self._n_pieces, i + 1)
            if i in self._kept:
                yield piece, self._kept[i], True
            elif self._room <= 0:
                yield piece, self._build_once(piece), False
            else:
                product = self._build(piece)
                fits = product.n_bytes < self._room
                self._room = self._room - product.n_bytes if fits else 0
                if fits:
                    self._kept[i] = product
                yield piece, product, fits

    def _check_finite(self, products: Tensor, vectors: Tensor) -> None:
        """Name the first batch whose product is not finite."""
        finite = over_shards((~torch.isfinite(products)).sum(dim=1)) == 0
        if bool(finite.all()):
            return
        problem = self._evaluator.problem
        vector, number = vectors[int(finite.int().argmin())], 0
        with twice_differentiable(self._evaluator.model):
            for piece, product, _ in self._batches():
                parts, number = self._times(product, vector, retain=True), piece.number
                if int(over_shards((~torch.isfinite(self._flat(parts))).sum())):
                    break
            else:
                number = problem.batches.n_batches
        here = share()
        number = number if here is None else min(here.gather(number))
        msg = (
            f"the product with batch {number} of the {self._evaluator.problem.split} data is not "
            "finite, though the loss is: look for a square root, a norm or a logarithm at zero in "
            "that batch, or compute in float64"
        )
        raise NonFiniteError(msg)


def parameter_scale(problem: Problem, kind: str, *, eta: float = 0.0) -> Tensor:
    """Return the diagonal of T, as adaptive sharpness uses it.

    Args:
        problem: gives the weights.
        kind: ``elementwise`` (t = |w| + η) or ``filterwise`` (t = the norm of the filter that an
            entry belongs to, + η; |w| + η for biases and for the gains and shifts of
            normalisation layers).
        eta: η. With 0 a weight that is exactly zero never moves. Kwon et al. train with 0.01, and
            with t = 1 for biases and normalisation layers; Keskar et al. (2017) measure with 1.

    Returns:
        Shape (n,), in the problem's dtype and on its device.

    Raises:
        InvalidArgumentError: if there is no such scale, or η is negative or not finite.

    References:
        Kwon, Kim, Park, Choi (2021), ASAM, arXiv:2102.11600; Dinh, Pascanu, Bengio, Bengio
        (2017), Sharp minima can generalize, arXiv:1703.04933.
    """
    one_of(kind, SCALES[1:], what="scale")
    real("eta", eta, least=0.0)
    scale = torch.abs(problem.weights) if kind == "elementwise" else filter_norms_of(problem)
    return scale + eta if eta else scale
