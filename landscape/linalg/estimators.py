"""Samples of a trace from products: Hutchinson, Krylov-aware, Hutch++ and XTrace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import Floats, Operator, combine, dot, inner, norm, orthogonalise
from landscape.linalg.sampling import (
    ROUNDING,
    LanczosRun,
    ProbeSource,
    Rows,
    exact_diagonal,
)
from landscape.stats import Interval, confidence_interval, student

# Probes whose pairs are left out for XTrace's error; all pairs would take p⁴ operations.
_PAIRED = 64


_NO_BLOCKS = confidence_interval(np.empty((2, 0)), 0.95)


@dataclass(frozen=True)
class Estimate:
    """The trace, the traces of the diagonal blocks, and the samples that they are means of."""

    total: Interval
    samples: Floats
    groups: Interval = _NO_BLOCKS

    @property
    def width(self) -> float:
        """Distance from the estimate to the farther end of its interval."""
        value = self.total.value
        return float(max(self.total.high - value, value - self.total.low))


class Method:
    """An estimator that draws more probes on demand."""

    first = 8  # probes at the first look
    cost = 1  # products per probe, at most
    growth = 2.0  # probes at a look over those at the look before

    def __init__(
        self, operator: Operator, source: ProbeSource, groups: Sequence[slice] = ()
    ) -> None:
        self.operator, self.source = operator, source
        self.groups = groups  # diagonal blocks that are estimated too

    def multiplied(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw probes, and give each with its product."""
        while count > 0:
            size = min(count, self.operator.block)
            probes = [self.source.draw() for _ in range(size)]
            yield from zip(probes, self.operator.products(probes), strict=True)
            count -= size

    def draw(self, n_probes: int) -> None:
        """Multiply with further probes until there are so many."""
        raise NotImplementedError

    def estimate(self, confidence: float) -> Estimate:
        """Return the estimate from all probes so far."""
        raise NotImplementedError

    def width_before(self, before: Estimate, estimate: Estimate, confidence: float) -> float:
        """Return the half-width of the previous look, from today's values of its samples."""
        first = estimate.samples[: len(before.samples)]
        return Estimate(confidence_interval(first, confidence), first).width


class Blockwise(Method):
    """An estimator that samples the traces of diagonal blocks too."""

    def __init__(self, operator: Operator, source: ProbeSource, groups: Sequence[slice]) -> None:
        super().__init__(operator, source, groups)
        for group in groups:
            start, stop = group.start, group.stop
            whole = isinstance(start, int) and isinstance(stop, int) and group.step in (None, 1)
            if not (whole and 0 <= start < stop <= operator.n):
                msg = (
                    f"group {group}; expected slice(start, stop) with 0 <= start < stop <= n = "
                    f"{operator.n} and no step; give each layer's range of the flat vector"
                )
                raise InvalidArgumentError(msg)
        self._samples: list[float] = []
        self._blocks: list[list[float]] = []
        self._settled: dict[int, float] = {}

    def settle(self, left: int, confidence: float) -> Estimate:
        """Make the traces of the smallest blocks exact with unit vectors."""
        chosen: list[slice] = []  # must not overlap, or their rows would count twice
        sizes = [int(group.stop - group.start) for group in self.groups]
        for i in sorted(range(len(sizes)), key=sizes.__getitem__):
            group = self.groups[i]
            overlaps = any(g.start < group.stop and group.start < g.stop for g in chosen)
            if sizes[i] <= left and not overlaps:
                left -= sizes[i]
                chosen.append(group)
                trace = float(exact_diagonal(self.operator, group).sum())
                self._settled[i] = trace
                for k, block in enumerate(self._blocks):
                    self._samples[k] += trace - block[i]
        return self.estimate(confidence)

    def estimate(self, confidence: float) -> Estimate:
        """Return the estimate from all probes so far, settled blocks without error."""
        samples, n_probes = np.array(self._samples), len(self._samples)
        blocks = np.array(self._blocks).reshape(n_probes, len(self.groups))
        groups = confidence_interval(blocks, confidence)
        for i, trace in self._settled.items():
            groups.value[i] = groups.low[i] = groups.high[i] = trace
            groups.standard_error[i] = 0.0
        return Estimate(confidence_interval(samples, confidence), samples, groups)


class Hutchinson(Blockwise):
    """Samples vᵀAv, and v_g·(Av)_g for each group."""

    first = 16

    def draw(self, n_probes: int) -> None:
        """Multiply with further probes until there are so many."""
        for v, w in self.multiplied(n_probes - len(self._samples)):
            self._samples.append(dot(v, w))
            self._blocks.append([dot(v[g], w[g]) for g in self.groups])


class KrylovAware(Blockwise):
    """Samples tr(VᵀAV) + gᵀPAPg, P = I − VVᵀ, with as many Lanczos vectors V as probes g.

    In the Krylov space A V = V T + β v eₘᵀ, where v is None if the space is exhausted.
    """

    cost = 2
    growth = 1.5

    def __init__(self, operator: Operator, source: ProbeSource, groups: Sequence[slice]) -> None:
        super().__init__(operator, source, groups)
        self._run = LanczosRun(operator, capacity=self.first)
        self._probes, self._products = Rows(operator), Rows(operator)
        self._forms: list[float] = []

    def draw(self, n_probes: int) -> None:
        """Take as many Lanczos steps as there are to be probes, and multiply with these."""
        while len(self._run.alphas) < min(n_probes, self.operator.n - 1):
            self._run.advance(self.operator(self._run.next_vector()))
        for g, product in self.multiplied(n_probes - len(self._forms)):
            self._probes.append(g)
            self._forms.append(dot(g, product))
            if self.groups:
                self._products.append(product)
        t, v, beta = self._run.projection(), self._run.vector, self._run.betas[-1]
        probes = self._probes.rows
        c = self._run.basis.products(probes)
        beyond = np.array([0.0 if v is None else beta * dot(v, g) for g in probes])  # β vᵀg
        squares = np.array([norm(g) ** 2 for g in probes])
        # Pg has a uniform direction; with its mean length, a multiple of I adds no variance.
        scales = (self.operator.n - len(t)) / (squares - (c**2).sum(axis=0))
        outside = np.array(self._forms) - (((t @ c) * c).sum(axis=0) + 2.0 * c[-1] * beyond)
        self._samples = list(np.trace(t) + scales * outside)
        if not self.groups:
            return
        known = [self._known_trace(t, group) for group in self.groups]
        self._blocks = []
        for i, (g, product) in enumerate(zip(probes, self._products.rows, strict=True)):
            d = t @ c[:, i]
            d[-1] += beyond[i]
            rest, image = self._project_out(g, product, np.stack([c[:, i], d], axis=1))
            self._blocks.append(
                [
                    trace + scales[i] * dot(rest[group], image[group])
                    for trace, group in zip(known, self.groups, strict=True)
                ]
            )

    def _project_out(self, g: Tensor, product: Tensor, inside: Floats) -> tuple[Tensor, Tensor]:
        """Return Pg and PAPg, given Vᵀg and VᵀAg in the columns of ``inside``."""
        run = self._run
        parts = combine(inside, run.basis.rows, out=g.new_empty(2, len(g)))
        rest, image = g - parts[0], product - parts[1]
        if run.vector is not None:
            image.sub_(run.vector, alpha=run.betas[-1] * float(inside[-1, 0]))
        return rest, image

    def _known_trace(self, t: Floats, group: slice) -> float:
        """Return the trace of the diagonal block of A − PAP."""
        part, run = self._run.basis.rows[:, group], self._run
        gram = np.array([inner(part, v).cpu().numpy() for v in part])
        trace = float((t * gram).sum())
        if run.vector is not None:
            trace += 2.0 * run.betas[-1] * dot(part[-1], run.vector[group])
        return trace


class _Range:
    """An orthonormal basis Q of the range of A times random probes, and QᵀAQ."""

    def __init__(self, operator: Operator) -> None:
        self.basis = Rows(operator)
        self.coordinates: list[Floats] = []  # QᵀAω for each probe, as long as Q was after it
        self._operator = operator
        self._columns: list[Floats] = []

    def add(self, probe: Tensor) -> None:
        """Extend the basis by A times a probe, for two products; one if it is in it already."""
        y = self._operator(probe)
        column = orthogonalise(y, self.basis.rows)
        left = norm(y)
        if left > ROUNDING * self._operator.storage_eps * math.hypot(left, *column):
            column = np.append(column, left)
            self.basis.append(y.div_(left))
            product = self._operator(y)
            self._columns.append(inner(self.basis.rows, product).cpu().numpy().astype(np.float64))
        self.coordinates.append(column)

    def projection(self) -> Floats:
        """Return QᵀAQ from its upper triangle, shape (r, r)."""
        upper = _padded(self._columns, len(self._columns))
        symmetric: Floats = upper + np.triu(upper, 1).T
        return symmetric


def _padded(columns: list[Floats], height: int) -> Floats:
    """Return columns as a matrix, with zeros below."""
    matrix = np.zeros((height, len(columns)))
    for j, column in enumerate(columns):
        matrix[: len(column), j] = column
    return matrix


class HutchPlusPlus(Method):
    """Samples tr(QᵀAQ) + gᵀPAPg, P = I − QQᵀ, expanded so that only Ag is needed."""

    cost = 3

    def __init__(self, operator: Operator, source: ProbeSource, groups: Sequence[slice]) -> None:
        super().__init__(operator, source, groups)
        self._range = _Range(operator)
        self._probes, self._products = Rows(operator), Rows(operator)
        self._forms: list[float] = []

    def draw(self, n_probes: int) -> None:
        """Multiply with pairs of probes, one for the basis and one for the rest."""
        while len(self._probes.rows) < n_probes:
            self._range.add(self.source.draw())
            g = self.source.draw()
            product = self.operator(g)
            self._probes.append(g)
            self._products.append(product)
            self._forms.append(dot(g, product))

    def estimate(self, confidence: float) -> Estimate:
        """Return the estimate from all probes so far."""
        h = self._range.projection()
        probes = self._range.basis.products(self._probes.rows)
        products = self._range.basis.products(self._products.rows)
        captured = 2.0 * _dots(probes, products) - _dots(probes, h @ probes)
        samples = np.asarray(np.trace(h) + np.array(self._forms) - captured)
        return Estimate(confidence_interval(samples, confidence), samples)


def _dots(a: Floats, b: Floats) -> Floats:
    """Return the inner product of each column of one matrix with that of another."""
    return np.asarray(np.sum(a * b, axis=0))


class XTrace(Method):
    """Samples tᵢ, with the error of their mean from leaving two probes out."""

    cost = 2

    def __init__(
        self,
        operator: Operator,
        source: ProbeSource,
        groups: Sequence[slice],
        *,
        normalise: bool,
    ) -> None:
        super().__init__(operator, source, groups)
        self._normalise = normalise
        self._range = _Range(operator)
        self._probes = Rows(operator)
        self._squares: list[float] = []

    def draw(self, n_probes: int) -> None:
        """Multiply with further probes until there are so many."""
        while len(self._probes.rows) < n_probes:
            omega = self.source.draw()
            self._probes.append(omega)
            self._squares.append(norm(omega) ** 2)
            self._range.add(omega)

    def estimate(self, confidence: float) -> Estimate:
        """Return the estimate from all probes so far."""
        h = self._range.projection()
        samples, error = _Reduced(
            n=self.operator.n,
            h=h,
            r=_padded(self._range.coordinates, len(h)),
            w=self._range.basis.products(self._probes.rows),
            squares=np.array(self._squares),
            normalise=self._normalise,
        ).estimate()
        value = samples.mean()
        half = student(confidence, len(samples) - 1) * error
        total = Interval(
            value=value, standard_error=np.asarray(error), low=value - half, high=value + half
        )
        return Estimate(total, samples)

    def width_before(self, before: Estimate, estimate: Estimate, confidence: float) -> float:
        """Return the half-width of the previous look: the samples depend on each other."""
        return before.width


@dataclass(frozen=True, kw_only=True)
class _Reduced:
    """XTrace in the coordinates of Q, where Qᵢ is Q without one direction sᵢ."""

    n: int  # size of A
    h: Floats  # QᵀAQ, shape (r, r)
    r: Floats  # QᵀAω, one column per probe, shape (r, p)
    w: Floats  # Qᵀω, shape (r, p)
    squares: Floats  # ‖ω‖², shape (p,)
    normalise: bool  # whether to rescale the projected probes

    def estimate(self) -> tuple[Floats, float]:
        """Return the samples, and the standard error of their mean."""
        p = len(self.squares)
        s = self._directions()
        samples = self._terms(
            self.w - s * _dots(s, self.w), slice(None), np.trace(self.h) - _dots(s, self.h @ s), 1
        )
        variance = samples.var(ddof=1) / p
        # With fewer directions than probes the range of A is exhausted: no probe is missed.
        if len(self.h) == p:
            m = min(p, _PAIRED)
            changes = np.array([samples[i] - self._without_pair(s[:, :m], i) for i in range(m)])
            np.fill_diagonal(changes, 0.0)
            # Below zero by chance only, and then the chance error is at least as large.
            variance += abs(float((changes * changes.T).sum())) / (m * (m - 1))
        return samples, math.sqrt(variance)

    def _directions(self) -> Floats:
        """Return the unit vectors sᵢ orthogonal to all columns of R but the i-th; else zeros."""
        rank, p = self.r.shape
        if rank < p:
            return np.zeros((rank, p))
        u, sigma, v = np.linalg.svd(self.r)
        s = (u / np.maximum(sigma, np.finfo(float).eps * sigma[0])) @ v
        return np.asarray(s / np.linalg.norm(s, axis=0))

    def _without_pair(self, s: Floats, i: int) -> Floats:
        """Return tᵢ as it would be if probe j too were left out of its basis, for each j."""
        first = s[:, i : i + 1]
        second = s - first * (first.T @ s)
        second[:, i] = 0.0
        second -= first * (first.T @ second)
        second /= np.maximum(np.linalg.norm(second, axis=0), np.finfo(float).tiny)
        w = self.w[:, i : i + 1]
        x = w - first * (first.T @ w) - second * (second.T @ w).T
        captured = np.trace(self.h) - first.T @ self.h @ first - _dots(second, self.h @ second)
        return self._terms(x, slice(i, i + 1), captured[0], 2)

    def _terms(self, x: Floats, probes: slice, captured: Floats, removed: int) -> Floats:
        """Return tr(QᵢᵀAQᵢ) + ωᵀPAPω, with Qx the part of ω in the range of Qᵢ."""
        w, r = self.w[:, probes], self.r[:, probes]
        rest = _dots(w, r) - 2.0 * _dots(x, r) + _dots(x, self.h @ x)
        if self.normalise:
            rank = len(self.h) - removed if len(self.h) == len(self.squares) else len(self.h)
            rest *= (self.n - rank) / (self.squares[probes] - _dots(x, x))
        return captured + rest
