"""Random probes and what is made of them: products, Lanczos runs, and the rule to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.checks import real
from landscape.errors import InvalidArgumentError, one_of
from landscape.linalg.krylov import Floats, Operator, inner, norm, orthogonalise
from landscape.processes import sum_over_shards
from landscape.randomness import drawn, seeded

PROBES = ("rademacher", "gaussian", "sphere")
# Rounding of a Lanczos step, relative to ‖A‖, in units of the rounding of one number.
ROUNDING = 10.0


class ProbeSource:
    """A stream of random probes v with E[vvᵀ] = I, drawn on the CPU in float64."""

    def __init__(self, operator: Operator, kind: str, seed: int) -> None:
        self._operator = operator
        self._kind = one_of(kind, PROBES, what="kind of probe")
        self._generator = seeded(seed)

    def draw(self) -> Tensor:
        """Return the next probe, shape (n,), in the storage dtype."""
        n, operator = self._operator.n, self._operator
        v = drawn(n, self._draw, operator.spread)
        if self._kind == "sphere":
            v *= math.sqrt(n) / (v.norm() if operator.spread is None else norm(v))
        # Rounded, so that an estimate multiplies with the very vector that the operator saw.
        return v.to(operator.dtype).to(operator.device, operator.storage)

    def _draw(self, n: int) -> Tensor:
        if self._kind == "rademacher":
            bits = torch.randint(0, 2, (n,), generator=self._generator)
            return 2.0 * bits.to(torch.float64) - 1.0
        return torch.randn(n, dtype=torch.float64, generator=self._generator)


class Rows:
    """Vectors as the rows of a matrix that grows."""

    def __init__(self, operator: Operator, capacity: int = 8) -> None:
        shape = (capacity, operator.length)
        self._size = 0
        self._all = torch.empty(shape, dtype=operator.storage, device=operator.device)

    @property
    def rows(self) -> Tensor:
        """The vectors so far, shape (m, n)."""
        return self._all[: self._size]

    def append(self, v: Tensor) -> None:
        """Copy a vector into the next row."""
        if self._size == len(self._all):
            more = torch.empty_like(self._all) if self._size else self._all.new_empty(1, len(v))
            self._all = torch.cat([self._all, more])
        self._all[self._size] = v
        self._size += 1

    def products(self, vectors: Tensor) -> Floats:
        """Return the inner products with other vectors, one column for each."""
        columns = [inner(self.rows, v).cpu().numpy() for v in vectors]
        products = np.array(columns, dtype=np.float64).reshape(len(vectors), self._size)
        return np.asarray(products.T)


class LanczosRun:
    """A Lanczos basis V with full reorthogonalisation: A V = V T + β vₘ₊₁ eₘᵀ."""

    def __init__(
        self, operator: Operator, *, capacity: int, against: Sequence[Tensor] = ()
    ) -> None:
        """Start from a random vector; all vectors are orthogonal to the rows of ``against``."""
        self._operator = operator
        self.basis = Rows(operator, capacity + len(against))  # V, after what it is orthogonal to
        for row in against:
            self.basis.append(row)
        self.alphas: list[float] = []  # diagonal of T
        self.betas: list[float] = []  # its off-diagonal, and β, 0 where the space was exhausted
        full = len(against) == operator.n
        # vₘ₊₁, to be multiplied next; None where the space is exhausted.
        self.vector = None if full else operator.random_unit_vector(self.basis.rows)

    def advance(self, product: Tensor) -> None:
        """Take the product with `vector`, which is overwritten, into the basis."""
        operator = self._operator
        if self.vector is not None:
            self.basis.append(self.vector)
        rows = self.basis.rows
        self.alphas.append(float(orthogonalise(product, rows)[-1]))
        beta = norm(product)
        tiny = ROUNDING * operator.storage_eps * operator.norm
        exhausted = len(rows) == operator.n or beta <= tiny
        self.betas.append(0.0 if exhausted else beta)
        self.vector = None if exhausted else product.div_(beta)

    def next_vector(self) -> Tensor:
        """Return `vector`, or where the space is exhausted a random one of its complement."""
        if self.vector is None:
            self.vector = self._operator.random_unit_vector(self.basis.rows)
        return self.vector

    def projection(self) -> Floats:
        """Return T, shape (m, m)."""
        off = self.betas[:-1]
        return np.asarray(np.diag(self.alphas) + np.diag(off, 1) + np.diag(off, -1))

    def forget(self) -> None:
        """Drop the vectors; T remains."""
        self.vector, self.basis = None, Rows(self._operator, 0)


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Draw until a confidence interval is narrow enough, looking at it only now and then.

    An interval that is looked at often, and kept once it is narrow, covers too little: it is
    narrow when the sample happens to look calm, which for a skewed one means too low. So there
    are few looks, and two in a row must agree: the half-width must be within the tolerance, and
    so must that of the look before, scaled by √(probes then / probes now). Of 95 % intervals of
    exponential or normal samples, 93 to 96 % cover then at any tolerance, from 8 probes up.
    """

    first: int  # probes at the first look
    rtol: float  # tolerance on the half-width, relative to |value|
    atol: float  # tolerance on the half-width; the larger of the two counts
    # Probes at a look over those before; less than doublings is for samples that are not skewed.
    growth: float = 2.0

    def __post_init__(self) -> None:
        advice = "0 for both draws as many probes as max_matvecs allows"
        real("rtol", self.rtol, least=0.0, advice=advice)
        real("atol", self.atol, least=0.0, advice=advice)

    def looks(self, most: int) -> Iterator[int]:
        """Give the numbers of probes at which to look, the last of which is ``most``."""
        probes = min(self.first, most)
        yield probes
        while probes < most:
            probes = min(int(self.growth * probes), most)
            yield probes

    def met(self, value: float, *, width: float, width_before: float) -> bool:
        """Return whether this look and the one before agree that the interval is narrow enough."""
        return max(width, width_before) <= max(self.atol, self.rtol * abs(value))


def exact_diagonal(operator: Operator, part: slice = slice(None)) -> Floats:
    """Return the diagonal of an operator from its products with the unit vectors."""
    rows = range(operator.n)[part]
    diagonal = np.empty(len(rows))
    unit = torch.zeros(operator.length, dtype=operator.storage, device=operator.device)
    for k, i in enumerate(rows):
        place = i if operator.spread is None else operator.spread.place(i)
        if place is not None:
            unit[place] = 1.0
        product = operator(unit)
        diagonal[k] = sum_over_shards(0.0 if place is None else float(product[place]))
        unit.zero_()
    return diagonal


def check_confidence(confidence: float) -> None:
    """Validate the probability that an interval is to cover its truth."""
    if not 0.0 < confidence < 1.0:
        msg = f"confidence = {confidence}; expected a probability between 0 and 1, such as 0.95"
        raise InvalidArgumentError(msg)
