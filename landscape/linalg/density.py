"""The spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landscape.checks import positive, whole
from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import Floats, Matmat, Matvec, Operator, inner
from landscape.linalg.sampling import ROUNDING, LanczosRun, check_confidence
from landscape.processes import Spread
from landscape.stats import Interval, confidence_interval

# The grid resolves a bandwidth by so many steps, and goes on for so many beyond the last node.
_PER_BANDWIDTH = 4
_BEYOND = 6
_LARGEST_GRID = 20_001
# Runs are advanced in step as far as their bases fit, and looked at after so many steps.
_BASES_BYTES = 2**30
_LOOK = 4
# E|x| of a standard normal x.
_MEAN_OF_MODULUS = math.sqrt(2.0 / math.pi)


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
    """The part of the eigenvalues that lies below a level, with its confidence interval.

    The standard error is that from probe to probe, and the interval also allows for what the
    quadrature leaves open. Eigenvalues within rounding of the level are not counted.
    """

    level: float
    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Quadrature:
    """Spectral measures of random vectors, each known by m Lanczos steps, and exact atoms.

    Rows are those of the p probes, with NaN (weight 0) beyond the end of an exhausted Krylov space.
    """

    nodes: Floats  # Ritz values θ, ascending, shape (p, m)
    weights: Floats  # their masses, which sum to (n − k)/n in each row
    alphas: Floats  # diagonals of the tridiagonal matrices
    betas: Floats  # their off-diagonals, and last the norm of what the last product added
    atoms: Floats  # eigenvalues deflated exactly, each of mass 1/n, shape (k,)
    n: int  # size of the operator
    rounding: float  # eigenvalues closer than this are not told apart
    confidence: float  # probability that an interval is to cover its truth

    def curve(self, grid: npt.ArrayLike, *, bandwidth: float) -> DensityCurve:
        """Evaluate the density smoothed by a Gaussian."""
        t = np.array(grid, dtype=np.float64)
        if t.ndim != 1 or not len(t) or not np.isfinite(t).all() or (np.diff(t) <= 0.0).any():
            msg = f"grid of shape {t.shape}; expected finite values of λ, each above the one before"
            raise InvalidArgumentError(msg)
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
    """Diagonalise a tridiagonal matrix: nodes, weights, squares of the last entries."""
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


@dataclass(frozen=True, kw_only=True)
class SpectralDensity:
    """The spectrum of a symmetric operator, with its evidence.

    Attributes:
        curve: the smoothed density on a grid over the whole spectrum, with its band.
        negative: the mass below zero.
        moments: mass, mean and mean square of the spectrum, each field of shape (3,).
        quadrature: nodes, weights and atoms, to smooth anew or to ask for other masses.
        matvecs: products spent.
    """

    curve: DensityCurve
    negative: Mass
    moments: Interval
    quadrature: Quadrature
    matvecs: int


def spectral_density(
    matvec: Matvec,
    n: int,
    *,
    steps: int = 64,
    n_probes: int = 16,
    bandwidth: float | None = None,
    eigenpairs: tuple[Floats, Tensor] | None = None,
    bias: float = 0.0,
    matmat: Matmat | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    dtype: torch.dtype,
    device: torch.device | str,
    spread: Spread | None = None,
) -> SpectralDensity:
    """Estimate the spectral density of a symmetric operator by stochastic Lanczos quadrature.

        φ(t) = (1/n) Σ g(t − λᵢ),   g the density of a normal distribution of stated width

    For a vector v uniform on the unit sphere, E[vᵀ g(t − A) v] = φ(t). Each probe takes m Lanczos
    steps from v, with full reorthogonalisation; the eigenvalues θⱼ of its tridiagonal matrix, and
    the squares τⱼ² of the first entries of its eigenvectors, give vᵀ g(t − A) v ≈ Σ τⱼ² g(t − θⱼ),
    exact for polynomials of degree 2m − 1. The band is the spread from probe to probe. Known
    eigenpairs are deflated: probes are kept orthogonal to them, and each enters as an atom of
    mass 1/n without sampling error.

    Args:
        matvec: v ↦ Av for a flat vector of ``n`` entries of ``dtype`` on ``device``.
        n: size of A.
        steps: Lanczos steps m per probe, at least 2; no more than n − k are taken, and fewer
            where ``bias`` allows it.
        n_probes: random vectors p, at least 2.
        bandwidth: standard deviation of the Gaussian, in the unit of λ; None: the width of the
            spectrum that is left by deflation over ``steps``, about the finest that they resolve.
        eigenpairs: converged eigenvalues, shape (k,), and orthonormal eigenvectors, shape (k, n),
            such as `EigenSolution.values` and `EigenSolution.vectors`.
        bias: end the runs once the last step has changed the smoothed density by no more than this
            share of its sampling error, both integrated over t; 0: take all steps.
        matmat: product with several vectors, one in each row, for a step of several runs; None:
            one by one.
        confidence: probability that the band is to cover φ(t), at each t alone.
        seed: seed of the probes.
        dtype: floating-point type that ``matvec`` takes.
        device: device that ``matvec`` takes.
        spread: which entries of a vector this process holds, see `sharing`; None: all.

    Returns:
        The density, on a grid of a quarter of the bandwidth that covers all nodes and atoms and
        six bandwidths around them (evenly spaced, but where single atoms lie outside).

    Raises:
        InvalidArgumentError: if an argument is out of its range, or a product is of another shape.
        NonFiniteError: if a product holds NaN or infinity.

    Cost: p·m products, fewer where a Krylov space is exhausted. Memory: k + m + 2 vectors; with
    ``bias`` or ``matmat`` those of several runs, up to 1 GiB.

    References:
        Golub and Welsch (1969), Math. Comput. 23; Lin, Saad and Yang (2016), Approximating
        spectral densities of large matrices, SIAM Rev. 58; Ubaru, Chen and Saad (2017), SIAM J.
        Matrix Anal. Appl. 38; Ghorbani, Krishnan and Xiao (2019), ICML, arXiv:1901.10159.

    >>> d = torch.tensor([-1.0, 1.0, 1.0, 1.0])
    >>> found = spectral_density(lambda v: d * v, 4, dtype=torch.float32, device="cpu")
    >>> found.quadrature.nodes[0].round(5).tolist(), found.matvecs
    ([-1.0, 1.0], 32)
    """
    check_confidence(confidence)
    whole("steps", steps, least=2)
    whole("n_probes", n_probes, least=2)
    if bandwidth is not None:
        positive("bandwidth", bandwidth)
    operator = Operator(
        matvec,
        n,
        matmat=matmat,
        dtype=dtype,
        device=device,
        seed=seed,
        max_matvecs=n_probes * steps,
        spread=spread,
    )
    atoms, known = _deflation(operator, eigenpairs)

    def resolved(runs: list[LanczosRun]) -> bool:
        return _is_resolved(_quadrature(operator, runs, atoms, confidence), steps, bandwidth, bias)

    runs = _runs(operator, known, steps, n_probes, resolved if bias > 0.0 else None)
    quadrature = _quadrature(operator, runs, atoms, confidence)
    width = _resolved(quadrature, steps) if bandwidth is None else bandwidth
    return SpectralDensity(
        curve=quadrature.curve(_grid(quadrature, width), bandwidth=width),
        negative=quadrature.mass_below(0.0),
        moments=quadrature.moments(),
        quadrature=quadrature,
        matvecs=operator.matvecs,
    )


def _deflation(
    operator: Operator, eigenpairs: tuple[Floats, Tensor] | None
) -> tuple[Floats, Tensor]:
    """Return the atoms and their vectors."""
    n = operator.length
    values, vectors = (np.empty(0), torch.empty((0, n))) if eigenpairs is None else eigenpairs
    atoms = np.array(values, dtype=np.float64)
    k = len(vectors)
    if atoms.shape != (k,) or vectors.shape != (k, n) or k > n:
        msg = (
            f"eigenpairs of shapes {atoms.shape} and {tuple(vectors.shape)}; expected (k,) and "
            f"(k, {n}) with k <= n; give the values and the vectors of an EigenSolution"
        )
        raise InvalidArgumentError(msg)
    if not np.isfinite(atoms).all():
        msg = f"eigenvalues {atoms}; expected finite ones, of eigenpairs that converged"
        raise InvalidArgumentError(msg)
    known = vectors.to(operator.device, operator.storage)
    gram = [inner(known, v).cpu().numpy() for v in known]
    worst = float(np.abs(np.array(gram) - np.eye(k)).max(initial=0.0))
    if not worst < 1e-3:
        msg = (
            f"eigenvectors whose inner products differ from those of an orthonormal set by "
            f"{worst:.2g}; expected less than 1e-3; give converged, normalised eigenvectors"
        )
        raise InvalidArgumentError(msg)
    return atoms, known


def _runs(
    operator: Operator,
    known: Tensor,
    steps: int,
    n_probes: int,
    resolved: Callable[[list[LanczosRun]], bool] | None,
) -> list[LanczosRun]:
    """Run Lanczos from random vectors, several in step, until that is enough for the first ones."""
    room = min(steps, operator.n - len(known))
    in_step, runs = 1, list[LanczosRun]()
    if resolved is not None or operator.block > 1:
        rows = len(known) + room + 2  # of each run, which has the known vectors in its basis
        in_step = _BASES_BYTES // (rows * operator.n * operator.storage.itemsize)
        in_step = min(n_probes, max(1, in_step))
    while len(runs) < n_probes:
        count = min(in_step, n_probes - len(runs))
        fresh = [LanczosRun(operator, capacity=room, against=list(known)) for _ in range(count)]
        look = resolved if count > 1 and not runs else None
        room = min(room, _advance(operator, fresh, room, look))
        for run in fresh:
            run.forget()
        runs += fresh
    return runs


def _advance(
    operator: Operator,
    runs: list[LanczosRun],
    steps: int,
    resolved: Callable[[list[LanczosRun]], bool] | None,
) -> int:
    """Take up to so many steps with each run, and return how many they were."""
    for step in range(1, steps + 1):
        going = [run for run in runs if run.vector is not None]
        vectors = [run.vector for run in going if run.vector is not None]
        for run, product in zip(going, operator.products(vectors), strict=True):
            run.advance(product)
        if resolved is not None and step % _LOOK == 0 and resolved(runs):
            return step
    return steps


def _is_resolved(quadrature: Quadrature, steps: int, bandwidth: float | None, share: float) -> bool:
    """Return whether the sampling error of the smoothed density hides that of the quadrature."""
    width = _resolved(quadrature, steps) if bandwidth is None else bandwidth
    curve = quadrature.curve(_grid(quadrature, width), bandwidth=width)
    bias, error = (
        float(np.trapezoid(part, curve.grid))
        for part in (curve.quadrature_error, curve.standard_error)
    )
    return bias <= share * _MEAN_OF_MODULUS * error


def _quadrature(
    operator: Operator,
    runs: list[LanczosRun],
    atoms: Floats,
    confidence: float,
) -> Quadrature:
    longest = max(len(run.alphas) for run in runs)
    nodes, alphas, betas = (np.full((len(runs), longest), np.nan) for _ in range(3))
    weights = np.zeros((len(runs), longest))
    rest = 1.0 - len(atoms) / operator.n
    for i, run in enumerate(runs):
        m = len(run.alphas)
        alphas[i, :m], betas[i, :m] = run.alphas, run.betas
        nodes[i, :m], weights[i, :m], _ = gauss_rule(alphas[i, :m], betas[i, : m - 1])
    largest = max(operator.norm, float(np.abs(atoms).max(initial=0.0)))
    return Quadrature(
        nodes=nodes,
        weights=rest * weights,
        alphas=alphas,
        betas=betas,
        atoms=atoms,
        n=operator.n,
        rounding=ROUNDING * operator.eps * largest,
        confidence=confidence,
    )


def _span(quadrature: Quadrature) -> tuple[float, float]:
    """Return the ends of the spectrum that deflation left; of the atoms, if it left nothing."""
    seen = quadrature.nodes if quadrature.nodes.size else quadrature.atoms
    return float(np.nanmin(seen)), float(np.nanmax(seen))


def _resolved(quadrature: Quadrature, steps: int) -> float:
    """Return the bandwidth that so many steps resolve: the width of the spectrum over steps."""
    low, high = _span(quadrature)
    if high - low <= quadrature.rounding:
        return (max(abs(low), abs(high)) or 1.0) / steps
    return (high - low) / steps


def _grid(quadrature: Quadrature, bandwidth: float) -> Floats:
    low, high = _span(quadrature)
    reach = _BEYOND * bandwidth
    # Where the width is a whole number of bandwidths, rounding must not add a point.
    count = math.ceil((high - low + 2.0 * reach) / bandwidth * _PER_BANDWIDTH - 1e-6) + 1
    even = np.linspace(low - reach, high + reach, min(count, _LARGEST_GRID))
    window = np.arange(-_BEYOND * _PER_BANDWIDTH, _BEYOND * _PER_BANDWIDTH + 1) / _PER_BANDWIDTH
    outside = quadrature.atoms[(quadrature.atoms < low) | (quadrature.atoms > high)]
    return np.unique(np.concatenate([even, *(atom + bandwidth * window for atom in outside)]))
