"""What was measured of a symmetric operator: eigenpairs, trace, spectral density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from landscape.results.base import Columns, FloatArray, Result, Summary, no_values
from landscape.results.frames import labelled_arrays
from landscape.wording import Quantity, number, with_error

OPERATORS: Mapping[str, str] = {
    "hessian": "Hessian",
    "ggn": "generalised Gauss-Newton matrix",
    "fisher": "empirical Fisher matrix",
}
"""The curvature operators, and how a person calls them."""

_WIDEST = 0.5  # interval of a share that is still a number


@dataclass(frozen=True, kw_only=True, repr=False)
class Spectral(Result):
    """What results on an operator have in common.

    Attributes:
        matvecs: products with the operator that were spent.
        products: how they were made.
        noise: relative change when a product with a sixteenth of the examples is repeated, or its
            factors are swapped; NaN where it was not measured.
    """

    matvecs: int
    products: str = ""
    noise: float = math.nan

    @property
    def operator(self) -> str:
        """What the operator is, in words."""
        known = str(self.settings.get("operator", "hessian"))
        words = OPERATORS.get(known, known)
        scale = self.settings.get("scale", "none")
        if scale == "preconditioner":
            return f"preconditioned {words}"
        return words if scale == "none" else f"{words}, rescaled {scale}"

    def _products_rows(self) -> list[tuple[str, str]]:
        rows = [("products", self.products)] if self.products else []
        return rows if self.operator == OPERATORS["hessian"] else [("of the", self.operator), *rows]


@dataclass(frozen=True, kw_only=True, repr=False)
class Eigenpairs(Spectral):
    """Extreme (algebraic) eigenvalues of a symmetric operator, with verified residuals.

    Attributes:
        values: eigenvalues θ, descending: the largest ones, then ``n_lowest`` from the lower end.
        residuals: ‖Hv − θv‖ of each, verified with products; for a symmetric operator an
            eigenvalue lies within that distance of θ.
        vectors: orthonormal eigenvectors, one per row, shape (len(values), n).
        converged: whether every residual met the tolerance.
        method: ``lanczos`` or ``power``.
        errors: bound on the distance of θ to the eigenvalue of the same rank, but for the failure
            probability, with what the noise of the products adds; the residual where nothing is
            known of missed eigenvalues.
        n_lowest: how many of the values are from the lower end.
        upper_bound: no eigenvalue lies above it, but for the failure probability.
        lower_bound: no eigenvalue lies below it, but for the failure probability.
        failure_probability: chance, over the random vectors, that an eigenvalue was missed or a
            bound fails; 1 where no eigenvalues were searched for that may have been missed.
        asymmetry: largest |uᵀHv − vᵀHu| met on the way, relative to the largest |θ|.
        data_errors: standard error of each θ over the examples, by a jackknife over
            ``n_groups`` groups of them with the eigenvector held fixed: how far θ would move with
            another sample of the data. Empty where it was not measured.
        n_groups: number of groups of examples.
        gauss_newton: vᵀGv of each eigenvector, G the generalised Gauss-Newton matrix; the rest
            θ − vᵀGv comes from the curvature of the network. Empty where it was not measured.
        start: what the search started from.
        edge: curvature above which the optimizer of the training diverges; NaN where it is unknown.
    """

    kind, heading, role = "eigs", "Hessian eigenvalues", "eigenpairs"
    values: FloatArray
    residuals: FloatArray
    vectors: FloatArray
    converged: bool
    method: str
    errors: FloatArray = field(default_factory=no_values)
    n_lowest: int = 0
    upper_bound: float = math.inf
    lower_bound: float = -math.inf
    failure_probability: float = math.nan
    asymmetry: float = math.nan
    data_errors: FloatArray = field(default_factory=no_values)
    n_groups: int = 0
    gauss_newton: FloatArray = field(default_factory=no_values)
    start: str = "random"
    edge: float = math.nan

    @property
    def n_top(self) -> int:
        """How many of the values are from the upper end."""
        return len(self.values) - self.n_lowest

    def labels(self) -> list[str]:
        """Return a name for each value: λ1, λ2, … from the top, λn, λn−1, … from the bottom."""
        top = [f"λ{i + 1}" for i in range(self.n_top)]
        lowest = [f"λn−{i}" if i else "λn" for i in reversed(range(self.n_lowest))]
        return top + lowest

    def table(self) -> Columns:
        """Return a row for each eigenvalue; what was not measured is an empty cell."""
        blank = [""] * len(self.values)
        evidence = {"error": self.errors, "data_error": self.data_errors}
        evidence["gauss_newton"] = self.gauss_newton
        return {
            **{"label": self.labels(), "value": self.values, "residual": self.residuals},
            **{name: values if len(values) else blank for name, values in evidence.items()},
        }

    def summary(self) -> Summary:
        """Return the eigenvalues with their error over the data, and the largest residual."""
        return {
            **{label: self.quantity(i) for i, label in enumerate(self.labels())},
            "largest residual" if len(self.values) > 1 else "residual": float(max(self.residuals)),
            **({"none above": self.upper_bound} if math.isfinite(self.upper_bound) else {}),
            **({"λ1/edge": self.values[0] / self.edge} if math.isfinite(self.edge) else {}),
            "converged": self.converged,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return each eigenvalue with its residual, then the evidence and the cost, as rows."""
        rows = [(label, self._value(i)) for i, label in enumerate(self.labels())]
        if self.n_top >= 5 and self.values[4] > 0:
            rows.append(("λ1/λ5", number(float(self.values[0] / self.values[4]))))
        if math.isfinite(self.upper_bound):
            chance = f"{100 * self.failure_probability:g}% chance of failure"
            rows.append(("no eigenvalue above", f"{number(self.upper_bound)}  ({chance})"))
        if math.isfinite(self.edge):
            rows.append(("λ1/edge", f"{number(self.values[0] / self.edge)} of {number(self.edge)}"))
        verdict = "converged" if self.converged else "NOT converged"
        rows.append((self.method, f"{verdict} after {self.matvecs:,} products"))
        if math.isfinite(self.noise):
            rows.append(("noise of a product", f"{self.noise:.0e}"))
        return rows + self._products_rows()

    def quantity(self, i: int) -> Quantity:
        """Return an eigenvalue with its standard error over another sample of the data."""
        error = float(self.data_errors[i]) if len(self.data_errors) else math.nan
        return Quantity(float(self.values[i]), error)

    def _value(self, i: int) -> str:
        text = f"{self.quantity(i)}   residual {float(self.residuals[i]):.1e}"
        if len(self.gauss_newton):
            part = float(self.gauss_newton[i])
            rest = float(self.values[i]) - part
            text += f"   GGN {number(part)}, rest {number(rest)}"
        return text


@dataclass(frozen=True, kw_only=True, repr=False)
class TraceEstimate(Spectral):
    """The trace of a symmetric operator, and those of its diagonal blocks, from random probes.

    Attributes:
        value: estimate of tr(H) = Σ λᵢ, with its ``standard_error`` from probe to probe.
        low: lower end of the confidence interval, ``high`` its upper one.
        confidence: probability that such an interval covers the trace.
        n_probes: probes drawn; 0 where the trace is exact.
        converged: whether the interval is as narrow as was asked.
        exact: whether it comes from products with all unit vectors, without sampling error.
        method: ``krylov``, ``hutchinson``, ``hutch++`` or ``xtrace``.
        layers: names of the layers, in the model's order; empty where they were not asked for.
        layer_sizes: parameters of each layer.
        layer_values: trace of each layer's diagonal block, from the same probes, with
            ``layer_standard_errors`` and confidence intervals ``layer_low`` to ``layer_high``.
    """

    kind, heading = "trace", "Trace of the Hessian"
    value: float
    standard_error: float
    low: float
    high: float
    confidence: float
    n_probes: int
    converged: bool
    exact: bool
    method: str
    layers: tuple[str, ...] = ()
    layer_sizes: FloatArray = field(default_factory=no_values)
    layer_values: FloatArray = field(default_factory=no_values)
    layer_standard_errors: FloatArray = field(default_factory=no_values)
    layer_low: FloatArray = field(default_factory=no_values)
    layer_high: FloatArray = field(default_factory=no_values)

    @property
    def mean_eigenvalue(self) -> float:
        """The trace over the number of parameters."""
        return self.value / self.provenance.n_parameters

    def table(self) -> Columns:
        """Return a row for the whole, whose layer is empty, and one for each layer."""
        return {
            "layer": ["", *self.layers],
            "size": [self.provenance.n_parameters, *map(int, self.layer_sizes)],
            "value": np.array([self.value, *self.layer_values]),
            "standard_error": np.array([self.standard_error, *self.layer_standard_errors]),
            "low": np.array([self.low, *self.layer_low]),
            "high": np.array([self.high, *self.layer_high]),
        }

    def summary(self) -> Summary:
        """Return the trace with its interval, and those of the layers."""
        layers = zip(self.layers, self.layer_values, self.layer_standard_errors, strict=True)
        return {
            "trace": Quantity(self.value, self.standard_error),
            f"{self.confidence:.0%} low": self.low,
            f"{self.confidence:.0%} high": self.high,
            **{name: Quantity(float(value), float(error)) for name, value, error in layers},
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the trace with its interval, those of the layers, and the cost, as rows."""
        span = "exact" if self.exact else f"{number(self.low)} to {number(self.high)}"
        layers = zip(self.layers, self.layer_values, self.layer_standard_errors, strict=True)
        verdict = "as narrow as asked" if self.converged else "WIDER than asked"
        probes = "all unit vectors" if self.exact else f"{self.n_probes:,} probes"
        return [
            ("trace", with_error(self.value, self.standard_error)),
            (f"{self.confidence:.0%} interval", span),
            ("mean eigenvalue", number(self.mean_eigenvalue)),
            *((f"  {name}", with_error(float(v), float(se))) for name, v, se in layers),
            (self.method, f"{verdict} after {probes}, {self.matvecs:,} products"),
            *self._products_rows(),
        ]


@dataclass(frozen=True, kw_only=True, repr=False)
class Density(Spectral):
    """The spectral density of a symmetric operator by stochastic Lanczos quadrature.

    Attributes:
        grid: values t of λ, ascending, shape (g,).
        density: φ(t) = (1/n) Σ g(t − λᵢ), g a normal density of the bandwidth's width, shape (g,).
        low: lower end of the confidence band at each t alone, shape (g,); ``high``: upper end.
        bandwidth: standard deviation of the Gaussian that every eigenvalue is smoothed by.
        confidence: probability that an interval covers its truth.
        negative: part of the eigenvalues that lies below zero, from 0 to 1. A few steps cannot tell
            what is zero to rounding from it; its confidence interval, ``negative_low`` to
            ``negative_high``, allows for that.
        atoms: eigenvalues that were found by themselves and deflated exactly, descending.
        atom_residuals: their residuals.
        mean: mean of the eigenvalues, tr(H)/n, with its standard error ``mean_se``.
        mean_square: mean of their squares, tr(H²)/n, with ``mean_square_se``.
        nodes: Ritz values of each probe, shape (p, m); NaN beyond the end of a row.
        weights: their masses; with the atoms, each 1/n, they sum to 1 in every row.
        n_probes: random vectors.
        steps: Lanczos steps of each, as many as were taken.
    """

    kind, heading = "density", "Spectral density"
    csv_columns: ClassVar = {name: name for name in ("grid", "density", "low", "high")}
    grid: FloatArray
    density: FloatArray
    low: FloatArray
    high: FloatArray
    bandwidth: float
    confidence: float
    negative: float
    negative_low: float
    negative_high: float
    atoms: FloatArray
    atom_residuals: FloatArray
    mean: float
    mean_se: float
    mean_square: float
    mean_square_se: float
    nodes: FloatArray
    weights: FloatArray
    n_probes: int
    steps: int

    @property
    def is_negative_resolved(self) -> bool:
        """Whether the interval of the share below zero is narrow enough to call it a number."""
        return self.negative_high - self.negative_low <= _WIDEST

    @property
    def ratio(self) -> float:
        """λmax/λ5; NaN where five positive eigenvalues were not found by themselves."""
        known = len(self.atoms) >= 5 and self.atoms[4] > 0
        return float(self.atoms[0] / self.atoms[4]) if known else math.nan

    def to_xarray(self) -> Any:
        """Return the density and its band over ``eigenvalue`` as an xarray Dataset."""
        variables = {name: getattr(self, name) for name in ("density", "low", "high")}
        words = {"checkpoint": self.name, "split": self.provenance.split}
        return labelled_arrays(variables, {"eigenvalue": self.grid}, words)

    def summary(self) -> Summary:
        """Return the largest eigenvalue, the share below zero, the moments and the bandwidth."""
        largest = {"λmax": float(self.atoms[0])} if len(self.atoms) else {}
        return {
            **largest,
            "share below zero": self.negative if self.is_negative_resolved else "not resolved",
            f"{self.confidence:.0%} low": self.negative_low,
            f"{self.confidence:.0%} high": self.negative_high,
            "mean eigenvalue": Quantity(self.mean, self.mean_se),
            "bandwidth": self.bandwidth,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return masses, moments, outliers and the cost as rows."""
        share = number(self.negative) if self.is_negative_resolved else "not resolved"
        span = f"{number(self.negative_low)} to {number(self.negative_high)}"
        outliers = ", ".join(number(float(value)) for value in self.atoms)
        probes = f"{self.n_probes} probes of {self.steps} steps"
        return [
            *([("found by themselves", outliers)] if len(self.atoms) else []),
            *([("λmax/λ5", number(self.ratio))] if math.isfinite(self.ratio) else []),
            ("share below zero", f"{share}  ({self.confidence:.0%}: {span})"),
            ("mean eigenvalue", with_error(self.mean, self.mean_se)),
            ("mean square", with_error(self.mean_square, self.mean_square_se)),
            ("bandwidth", number(self.bandwidth)),
            ("quadrature", f"{probes}, {self.matvecs:,} products"),
            *self._products_rows(),
        ]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How far the top eigenspaces of two checkpoints agree.

    Attributes:
        names: of the two checkpoints.
        cosines: of the principal angles between the spaces, descending, shape (k,); all 1 for the
            same space, all near 0 (about √(k/n)) for unrelated ones.
        cross: vᵢ·uⱼ of the eigenvectors themselves, shape (k₁, k₂).
    """

    names: tuple[str, str]
    cosines: FloatArray
    cross: FloatArray

    @property
    def mean_square(self) -> float:
        """Mean of cos², the part of one space that lies in the other, from 0 to 1."""
        return float(np.mean(self.cosines**2))

    @property
    def angles(self) -> FloatArray:
        """The principal angles in degrees, ascending."""
        return np.degrees(np.arccos(np.clip(self.cosines, 0.0, 1.0)))

    def rows(self) -> list[tuple[str, str]]:
        """Return the mean overlap and the cosines as rows."""
        cosines = ", ".join(f"{value:.3f}" for value in self.cosines)
        return [
            (f"overlap of {self.names[0]} and {self.names[1]}", f"{self.mean_square:.3f}"),
            ("cosines", cosines),
        ]
