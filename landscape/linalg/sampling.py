"""Random probes, their products, and the rule by which sampling stops."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.checks import real
from landscape.errors import InvalidArgumentError, one_of
from landscape.linalg.krylov import Floats, Matvec, Operator
from landscape.randomness import seeded

Matmat = Callable[[Tensor], Tensor]
PROBES = ("rademacher", "gaussian", "sphere")
# Vectors multiplied at once, and the memory of them and their products.
_BLOCK = 8
_BLOCK_BYTES = 2**28


class BlockOperator(Operator):
    """An operator that multiplies several vectors at once where it can.

    Attributes:
        block: how many; 1 where there is no such product.
    """

    def __init__(self, matvec: Matvec, n: int, *, matmat: Matmat | None = None, **options: Any):
        super().__init__(self._next, n, **options)
        self._single, self._several = matvec, matmat
        self._held: deque[Tensor] = deque()
        fits = _BLOCK_BYTES // (2 * self.storage.itemsize * max(1, n))
        self.block = 1 if matmat is None else min(_BLOCK, max(1, fits))

    def products(self, vectors: Sequence[Tensor]) -> Iterator[Tensor]:
        """Multiply with vectors, each product checked and counted as it is taken."""
        for first in range(0, len(vectors), self.block):
            some = vectors[first : first + self.block]
            self._held = deque(self._ahead(some))
            for v in some:
                yield self(v)

    def _ahead(self, vectors: Sequence[Tensor]) -> Tensor | tuple[()]:
        if self._several is None or len(vectors) < 2:
            return ()
        products = self._several(torch.stack([v.to(self.dtype) for v in vectors]))
        if len(products) != len(vectors):
            msg = (
                f"matmat returned {len(products)} rows for {len(vectors)} vectors; expected one "
                "product in each row"
            )
            raise InvalidArgumentError(msg)
        return products

    def _next(self, v: Tensor) -> Tensor:
        return self._held.popleft() if self._held else self._single(v)


class ProbeSource:
    """A stream of random probes v with E[vvᵀ] = I.

    They are drawn on the CPU in float64 and then rounded to the operator's dtype, so that every
    device starts alike, and an estimate multiplies with the very vector that the operator saw.
    """

    def __init__(self, operator: Operator, kind: str, seed: int) -> None:
        self._operator = operator
        self._kind = one_of(kind, PROBES, what="kind of probe")
        self._generator = seeded(seed)

    def draw(self) -> Tensor:
        """Return the next probe, shape (n,), in the storage dtype.

        Its entries are ±1 (``rademacher``), standard normal (``gaussian``), or it is uniform on
        the sphere of radius √n (``sphere``).
        """
        n, operator = self._operator.n, self._operator
        if self._kind == "rademacher":
            bits = torch.randint(0, 2, (n,), generator=self._generator)
            v = 2.0 * bits.to(torch.float64) - 1.0
        else:
            v = torch.randn(n, dtype=torch.float64, generator=self._generator)
        if self._kind == "sphere":
            v *= math.sqrt(n) / v.norm()
        return v.to(operator.dtype).to(operator.device, operator.storage)


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """Draw until a confidence interval is narrow enough, looking at it only now and then.

    An interval that is looked at often, and kept once it is narrow, covers too little: it is
    narrow when the sample happens to look calm, which for a skewed one means too low. So there
    are few looks, and two in a row must agree: the half-width must be within the tolerance, and
    so must that of the look before, scaled by √(probes then / probes now). Of 95 % intervals of
    exponential or normal samples, 93 to 96 % cover then at any tolerance, from 8 probes up.

    Attributes:
        first: probes at the first look.
        rtol: tolerance on the half-width, relative to |value|.
        atol: tolerance on the half-width; the larger of the two counts.
        growth: probes at a look over those at the look before. Smaller steps than doublings are
            for samples that are not skewed.
    """

    first: int
    rtol: float
    atol: float
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
    unit = torch.zeros(operator.n, dtype=operator.storage, device=operator.device)
    for k, i in enumerate(rows):
        unit[i] = 1.0
        diagonal[k] = float(operator(unit)[i])
        unit[i] = 0.0
    return diagonal


def check_confidence(confidence: float) -> None:
    """Validate the probability that an interval is to cover its truth."""
    if not 0.0 < confidence < 1.0:
        msg = f"confidence = {confidence}; expected a probability between 0 and 1, such as 0.95"
        raise InvalidArgumentError(msg)
