"""Hutchinson's method beside a Krylov space whose part of the trace is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from landscape.linalg.estimators import Blockwise, Estimate
from landscape.linalg.krylov import Floats, combine, dot, inner, norm
from landscape.linalg.recurrence import LanczosRun, Rows
from landscape.linalg.sampling import BlockOperator, ProbeSource


class KrylovAware(Blockwise):
    """Samples tr(VᵀAV) + gᵀPAPg, P = I − VVᵀ, with as many Lanczos vectors V as probes g."""

    cost = 2
    growth = 1.5

    def __init__(
        self, operator: BlockOperator, source: ProbeSource, groups: Sequence[slice]
    ) -> None:
        super().__init__(operator, source, groups)
        self._run = LanczosRun(operator, capacity=self.first)
        self._probes, self._products = Rows(operator), Rows(operator)
        self._forms: list[float] = []

    def estimate(self, n_probes: int, confidence: float) -> Estimate:
        """Go on to as many probes and Lanczos vectors, and return what all of them say."""
        while len(self._run.alphas) < min(n_probes, self.operator.n - 1):
            self._run.advance(self.operator(self._run.next_vector()))
        for g, product in self.multiplied(n_probes - len(self._forms)):
            self._probes.append(g)
            self._forms.append(dot(g, product))
            if self.groups:
                self._products.append(product)
        self._sample()
        return self._estimate(confidence)

    def _sample(self) -> None:
        space = _Space.of(self._run)
        coordinates = self._run.basis.products(self._probes.rows)
        beyond = space.beyond(self._probes.rows)
        squares = np.array([norm(g) ** 2 for g in self._probes.rows])
        rest = self.operator.n - len(space.t)
        # Pg has a uniform direction; with its mean length, a multiple of I adds no variance.
        scales = rest / (squares - (coordinates**2).sum(axis=0))
        forms = np.array(self._forms) - space.forms(coordinates, beyond)
        self._samples = list(np.trace(space.t) + scales * forms)
        if not self.groups:
            return
        known = [space.trace_of(group) for group in self.groups]
        columns = zip(self._probes.rows, self._products.rows, coordinates.T, beyond, strict=True)
        self._blocks = [
            [
                trace + scale * dot(g[group], product[group])
                for trace, group in zip(known, self.groups, strict=True)
            ]
            for (g, product), scale in zip(
                (space.outside(*column) for column in columns), scales, strict=True
            )
        ]


@dataclass(frozen=True)
class _Space:
    """A Krylov space, in which A V = V T + β v eₘᵀ.

    Attributes:
        basis: V, one vector per row, shape (m, n).
        t: T, shape (m, m).
        vector: v; None where the space is exhausted.
        beta: β.
    """

    basis: Tensor
    t: Floats
    vector: Tensor | None
    beta: float

    @classmethod
    def of(cls, run: LanczosRun) -> _Space:
        off = run.betas[:-1]
        t = np.diag(run.alphas) + np.diag(off, 1) + np.diag(off, -1)
        return cls(run.basis.rows, t, run.vector, run.betas[-1])

    def beyond(self, probes: Tensor) -> Floats:
        """Return β vᵀg of each probe."""
        if self.vector is None:
            return np.zeros(len(probes))
        return np.array([self.beta * dot(self.vector, g) for g in probes])

    def forms(self, c: Floats, beyond: Floats) -> Floats:
        """Return gᵀAg − gᵀPAPg, with c = Vᵀg in the columns."""
        return np.asarray(((self.t @ c) * c).sum(axis=0) + 2.0 * c[-1] * beyond)

    def outside(
        self, g: Tensor, product: Tensor, c: Floats, beyond: float
    ) -> tuple[Tensor, Tensor]:
        """Return Pg and PAPg."""
        d = self.t @ c
        d[-1] += beyond
        inside = combine(np.stack([c, d], axis=1), self.basis, out=g.new_empty(2, len(g)))
        rest, image = g - inside[0], product - inside[1]
        if self.vector is not None:
            image.sub_(self.vector, alpha=self.beta * float(c[-1]))
        return rest, image

    def trace_of(self, group: slice) -> float:
        """Return the trace of the diagonal block of A − PAP."""
        part = self.basis[:, group]
        gram = np.array([inner(part, v).cpu().numpy() for v in part])
        found = float((self.t * gram).sum())
        if self.vector is not None:
            found += 2.0 * self.beta * dot(part[-1], self.vector[group])
        return found
