"""Curves between two weight vectors: straight lines, Bezier curves and polygonal chains.

Every point of a curve is a weighted sum of its control vectors, w(t) = Σ bₖ(t) θₖ with t in
[0, 1], bₖ(t) ≥ 0 and Σ bₖ(t) = 1; the first and the last control vector are its ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import quad
from torch import Tensor

from landscape.errors import InvalidArgumentError, one_of

CURVES = ("linear", "bezier", "polygon")


def bernstein(degree: int, t: float) -> list[float]:
    """Return the Bernstein polynomials of a degree at one coordinate.

    They are built up degree by degree, bₖ ← (1 − t) bₖ + t bₖ₋₁, which adds only numbers that
    are not negative and is exact at both ends.

    References:
        Farouki, Rajan (1987), Computer Aided Geometric Design 4, on the stability of this form.

    >>> bernstein(2, 0.5)
    [0.25, 0.5, 0.25]
    """
    row = [1.0]
    for _ in range(degree):
        row = [(1 - t) * a + t * b for a, b in zip([*row, 0.0], [0.0, *row], strict=True)]
    return row


def hats(n_segments: int, t: float) -> list[float]:
    """Return the weights of the vertices of a polygonal chain at one coordinate.

    >>> hats(2, 0.75)
    [0.0, 0.5, 0.5]
    """
    place = t * n_segments
    left = min(math.floor(place), n_segments - 1)
    weights = [0.0] * (n_segments + 1)
    weights[left], weights[left + 1] = 1.0 - (place - left), place - left
    return weights


@dataclass(frozen=True)
class Curve:
    """A curve between two weight vectors."""

    kind: str  # ``linear``, ``bezier`` (of degree k + 1) or ``polygon`` (of k + 1 segments)
    start: Tensor  # w(0), shape (n,)
    end: Tensor  # w(1), shape (n,)
    bends: Tensor  # the k inner control vectors, shape (k, n); (0, n) for a straight line

    @classmethod
    def straight(cls, kind: str, start: Tensor, end: Tensor, n_bends: int) -> Curve:
        """Lay a curve along the straight line, its control vectors at equal distances."""
        one_of(kind, CURVES, what="curve")
        if kind == "linear" and n_bends:
            msg = f"a linear path has no bends, got {n_bends}; use curve='bezier' or 'polygon'"
            raise InvalidArgumentError(msg)
        if kind != "linear" and n_bends < 1:
            msg = (
                f"a {kind} curve needs at least 1 bend, got {n_bends}; use curve='linear' for none"
            )
            raise InvalidArgumentError(msg)
        places = [k / (n_bends + 1) for k in range(1, n_bends + 1)]
        inner = [_sum((1 - t, t), (start, end)) for t in places]
        return cls(
            kind, start, end, torch.stack(inner) if inner else start.new_empty(0, len(start))
        )

    def weights(self, t: float) -> list[float]:
        """Return the weights of the control vectors at one coordinate."""
        degree = len(self.bends) + 1
        return bernstein(degree, t) if self.kind == "bezier" else hats(degree, t)

    def at(self, t: float) -> Tensor:
        """Return a point of the curve, differentiable by the bends."""
        first, *inner, last = self.weights(t)
        point = _sum((first, last), (self.start, self.end))
        if any(inner):
            point = point + torch.tensor(inner, dtype=torch.float64).to(point) @ self.bends
        return point

    @property
    def distance(self) -> float:
        """Euclidean distance between the ends."""
        return float(torch.linalg.vector_norm((self.end - self.start).double()))

    @property
    def length(self) -> float:
        """Euclidean length of the curve, in float64: exact for segments, else by quadrature."""
        controls = torch.cat([self.start[None], self.bends.detach(), self.end[None]]).double()
        steps = controls.diff(dim=0)
        if self.kind != "bezier":
            return float(torch.linalg.vector_norm(steps, dim=1).sum())
        # ‖w′(t)‖² = degree² bᵀGb with the Gram matrix G of the steps: a product of small numbers.
        gram, degree = (steps @ steps.T).cpu().numpy(), len(steps)

        def speed(t: float) -> float:
            b = np.array(bernstein(degree - 1, t))
            return degree * math.sqrt(max(float(b @ gram @ b), 0.0))

        length, _ = quad(speed, 0.0, 1.0, epsabs=0.0, epsrel=1e-9, limit=200)
        return float(length)


def _sum(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    # A weight of 0 leaves its vector out, so that an end is itself, also beside NaN or infinity.
    used = [(w, v) for w, v in zip(weights, vectors, strict=True) if w]
    if not used:
        return torch.zeros_like(vectors[0])
    (weight, vector), *others = used
    point = vector if weight == 1.0 else weight * vector
    for weight, vector in others:
        point = point + weight * vector
    return point
