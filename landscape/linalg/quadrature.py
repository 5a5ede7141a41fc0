"""Spectral measures as Gauss rules: smoothed densities, masses and moments with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from landscape.checks import positive
from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import Floats
from landscape.stats import Interval, confidence_interval


@dataclass(frozen=True, kw_only=True)
class DensityCurve:
    """A smoothed spectral density on a grid, with its band. All arrays are of shape (g,).

    Attributes:
        grid: values t of λ, ascending.
        density: estimate of φ(t), mean over the probes; ∫φ = 1.
        standard_error: of the density, from probe to probe.
        quadrature_error: change of the density with the last Lanczos step, mostly more than the
            bias of the quadrature. Far above the standard error the band is no guarantee.
        low: lower end of the confidence interval at each t alone, quadrature error included.
        high: upper end.
        bandwidth: standard deviation of the Gaussian that every eigenvalue is smoothed by.
    """

    grid: Floats
    density: Floats
    standard_error: Floats
    quadrature_error: Floats
    low: Floats
    high: Floats
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Mass:
    """The part of the eigenvalues that lies below a level, between 0 and 1.

    Attributes:
        level: eigenvalues below it are counted; those within rounding of it are not.
        value: estimate of (number of λᵢ < level) / n.
        standard_error: of the estimate, from probe to probe.
        low: lower end of the confidence interval, which allows for what the quadrature leaves open.
        high: upper end.
    """

    level: float
    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Quadrature:
    """Spectral measures of random vectors, each known by m Lanczos steps, and exact atoms.

    Attributes:
        nodes: Ritz values θ, ascending, one row per probe, shape (p, m); NaN beyond the end of an
            exhausted Krylov space.
        weights: their masses, which sum to (n − k)/n in each row; 0 where the node is NaN.
        alphas: diagonals of the tridiagonal matrices, shape (p, m); NaN as above.
        betas: their off-diagonals, and last the norm of what the last product added; (p, m).
        atoms: eigenvalues deflated exactly, each of mass 1/n, shape (k,).
        n: size of the operator.
        rounding: eigenvalues closer than this are not told apart.
        confidence: probability that an interval is to cover its truth.
    """

    nodes: Floats
    weights: Floats
    alphas: Floats
    betas: Floats
    atoms: Floats
    n: int
    rounding: float
    confidence: float

    def curve(self, grid: npt.ArrayLike, *, bandwidth: float) -> DensityCurve:
        """Evaluate the density smoothed by a Gaussian."""
        t = _checked_grid(grid)
        positive("bandwidth", bandwidth)
        samples = np.array([_smooth(t, *rule, bandwidth) for rule in self._rules(shorter=0)])
        shorter = np.array([_smooth(t, *rule, bandwidth) for rule in self._rules(shorter=1)])
        atoms = _smooth(t, self.atoms, np.full(len(self.atoms), 1.0 / self.n), bandwidth)
        found = confidence_interval(samples, self.confidence)
        bias = np.abs((samples - shorter).mean(axis=0))
        return DensityCurve(
            grid=t,
            density=atoms + found.value,
            standard_error=found.standard_error,
            quadrature_error=bias,
            low=atoms + np.maximum(0.0, found.low - bias),
            high=atoms + found.high + bias,
            bandwidth=bandwidth,
        )

    def mass_below(self, level: float) -> Mass:
        """Estimate the part of the eigenvalues that lies below a level.

        The steps of a probe leave open how its measure continues. Over all measures that agree
        with them, the mass below ℓ lies between L and L + w, with w the weight of ℓ in the
        Gauss-Radau rule that has a node there, and L that of the nodes below: the bounds of
        Chebyshev, Markov and Stieltjes, which no other can better. The value is their midpoint;
        the interval takes in both ends, each with its sampling error.

        References:
            Golub and Meurant (2010), Matrices, Moments and Quadrature; Chen, Trogdon and Ubaru
            (2021), Analysis of stochastic Lanczos quadrature, ICML; arXiv:2105.06595.
        """
        edge = level - self.rounding
        rest = 1.0 - len(self.atoms) / self.n
        brackets = np.array([_bracket(alphas, betas, edge) for alphas, betas in self._rows()])
        atoms = float((self.atoms < edge).sum()) / self.n
        lower = confidence_interval(rest * brackets[:, 0], self.confidence)
        upper = confidence_interval(rest * brackets[:, 1], self.confidence)
        middle = confidence_interval(rest * brackets.mean(axis=1), self.confidence)
        return Mass(
            level=level,
            value=atoms + float(middle.value),
            standard_error=float(middle.standard_error),
            low=atoms + max(0.0, float(lower.low)),
            high=atoms + min(rest, float(upper.high)),
        )

    def moments(self) -> Interval:
        """Return (1/n) Σ λᵢʲ for j = 0, 1, 2: mass, which is 1 to rounding, tr(A)/n, tr(A²)/n."""
        rows = self._rules(shorter=0)
        samples = [[weights @ nodes**j for j in range(3)] for nodes, weights in rows]
        found = confidence_interval(np.array(samples), self.confidence)
        atoms = np.array([(self.atoms**j).sum() / self.n for j in range(3)])
        return Interval(
            value=atoms + found.value,
            standard_error=found.standard_error,
            low=atoms + found.low,
            high=atoms + found.high,
        )

    def _rows(self) -> list[tuple[Floats, Floats]]:
        """Return the tridiagonal matrix of each probe, without the padding."""
        lengths = (~np.isnan(self.alphas)).sum(axis=1)
        rows = zip(self.alphas, self.betas, lengths, strict=True)
        return [(alphas[:m], betas[:m]) for alphas, betas, m in rows]

    def _rules(self, *, shorter: int) -> list[tuple[Floats, Floats]]:
        """Return nodes and weights of each probe, of so many steps fewer than were taken."""
        rest = 1.0 - len(self.atoms) / self.n
        rules = []
        for alphas, betas in self._rows():
            # An exhausted space is known exactly; a step fewer would tell of no error.
            size = len(alphas) if _exhausted(betas) else len(alphas) - shorter
            nodes, weights, _ = gauss_rule(alphas[:size], betas[: size - 1])
            rules.append((nodes, rest * weights))
        return rules


def gauss_rule(alphas: Floats, betas: Floats) -> tuple[Floats, Floats, Floats]:
    """Diagonalise a tridiagonal matrix.

    >>> [x.round(6).tolist() for x in gauss_rule(np.array([1.0, 1.0]), np.array([2.0]))]
    [[-1.0, 3.0], [0.5, 0.5], [0.5, 0.5]]
    """
    if not len(alphas):
        return alphas, alphas, alphas
    matrix = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
    nodes, vectors = np.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2, vectors[-1] ** 2


def _exhausted(betas: Floats) -> bool:
    return not len(betas) or betas[-1] == 0.0


def _bracket(alphas: Floats, betas: Floats, edge: float) -> tuple[float, float]:
    """Return the least and the largest mass below an edge that agree with a Lanczos run."""
    nodes, weights, last = gauss_rule(alphas, betas[:-1])
    if _exhausted(betas):
        mass = float(weights[nodes < edge].sum())
        return mass, mass
    distances = nodes - edge
    scale = float(np.abs(distances).max()) + float(betas[-1])
    # Where the edge is a node already the entry would be infinite; a large one does as well.
    distances = np.where(np.abs(distances) < 1e-12 * scale, 1e-12 * scale, distances)
    entry = edge + float(
        np.clip(betas[-1] ** 2 * (last / distances).sum(), -1e6 * scale, 1e6 * scale)
    )
    radau, weights, _ = gauss_rule(np.append(alphas, entry), betas)
    here = int(np.abs(radau - edge).argmin())
    return float(weights[:here].sum()), float(weights[: here + 1].sum())


def _smooth(t: Floats, nodes: Floats, weights: Floats, bandwidth: float) -> Floats:
    """Return Σ weight · Gaussian(t − node)."""
    kernel = np.exp(-0.5 * ((t - nodes[:, None]) / bandwidth) ** 2)
    return np.asarray(weights @ kernel / (bandwidth * math.sqrt(2.0 * math.pi)))


def _checked_grid(grid: npt.ArrayLike) -> Floats:
    t = np.array(grid, dtype=np.float64)
    if t.ndim != 1 or not len(t) or not np.isfinite(t).all() or (np.diff(t) <= 0.0).any():
        msg = f"grid of shape {t.shape}; expected finite values of λ, each above the one before"
        raise InvalidArgumentError(msg)
    return t
