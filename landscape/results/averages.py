"""The average rise of the loss around a checkpoint, and the other measures of flatness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from landscape.results.base import Columns, FloatArray, Result, Summary, no_values
from landscape.wording import Quantity, number, with_error

DISTRIBUTIONS: Mapping[str, str] = {
    "gaussian": "Gaussian",
    "ball": "uniform in the ball",
    "sphere": "uniform on the sphere",
    "box": "uniform in the box",
}
"""How ε may be distributed, and how a person calls it."""


@dataclass(frozen=True, kw_only=True, repr=False)
class AverageSharpness(Result):
    """The average rise of the loss, E[L(w+ε) − L(w)], from draws of ε tried with both signs.

    Attributes:
        value: mean rise over all samples; infinite or NaN where the loss is at one of them.
        standard_error: of the value, over the draws.
        low: lower end of the interval that covers the average with 95 % probability.
        high: its upper end; NaN or infinite, as the lower one, where the value is.
        rho: radius of the ball or sphere, half-width of the box, or standard deviation.
        loss: L(w).
        rises: L(w+ε) − L(w) and L(w−ε) − L(w) of each draw, shape (n, 2); the ε of draw k depends
            on the seed and on k alone.
        converged: whether the interval met the tolerance; True where none was asked for.
        predicted: what the quadratic model says, c ρ² tr(THT) with c = 1/2 (gaussian), 1/(2d)
            (sphere), 1/(2(d+2)) (ball) or 1/6 (box); NaN where it was not asked for.
        predicted_error: standard error of it, from the estimate of the trace.
        n_moved: d, how many parameters ε can move; those with T = 0 stay.
        engine: how the samples were evaluated, in words.
    """

    kind, heading = "average", "Average rise under noise"
    value: float
    standard_error: float
    low: float
    high: float
    rho: float
    loss: float
    rises: FloatArray
    converged: bool
    predicted: float = math.nan
    predicted_error: float = math.nan
    n_moved: int = 0
    engine: str = ""

    @property
    def draws(self) -> FloatArray:
        """Mean rise of the two signs of each draw, shape (n,): independent samples."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(self.rises.mean(axis=1))

    @property
    def n_not_finite(self) -> int:
        """How many samples of the loss are infinite or NaN."""
        return int((~np.isfinite(self.rises)).sum())

    @property
    def largest(self) -> float:
        """The largest finite rise among the samples; NaN where there is none."""
        finite = self.rises[np.isfinite(self.rises)]
        return float(finite.max()) if finite.size else math.nan

    @property
    def share_above(self) -> float:
        """Share of the samples whose loss lies above L(w); not finite ones count as above."""
        return float((~np.isfinite(self.rises) | (self.rises > 0)).mean())

    def table(self) -> Columns:
        """Return a row for each draw of ε, tried with both signs."""
        draws = range(1, len(self.rises) + 1)
        return {"draw": draws, "rise_plus": self.rises[:, 0], "rise_minus": self.rises[:, 1]}

    def summary(self) -> Summary:
        """Return the average rise, its interval, and the prediction of the quadratic model."""
        predicted = {"quadratic prediction": Quantity(self.predicted, self.predicted_error)}
        return {
            "σ": self.rho,
            "average rise": Quantity(self.value, self.standard_error),
            "95 % low": self.low,
            "95 % high": self.high,
            **(predicted if math.isfinite(self.predicted) else {}),
            "draws": len(self.rises),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the average, its evidence, and the prediction of the quadratic model as rows."""
        d, distribution = self.n_moved, str(self.settings.get("distribution"))
        adaptive = str(self.settings.get("adaptive", "none"))
        noise = DISTRIBUTIONS.get(distribution, "")
        noise += "" if adaptive == "none" else f", {adaptive}"
        # The length of ε, to set σ beside the radius of a ball; of a plain scale only.
        squares = {"gaussian": d, "sphere": 1.0, "ball": d / (d + 2), "box": d / 3}
        has_length = adaptive == "none" and d and distribution in squares
        length = self.rho * math.sqrt(squares.get(distribution, 0.0))
        n, bad = len(self.rises), self.n_not_finite
        wide = "" if self.converged or bad else "; WIDER than asked"
        value = with_error(self.value, self.standard_error)
        rows = [
            (f"average rise (σ = {self.rho:g}, {noise})", value),
            *([("‖ε‖, root mean square", number(length))] if has_length else []),
            ("95 % interval", f"{number(self.low)} to {number(self.high)} ({n} draws{wide})"),
            ("largest sample", number(self.largest)),
            ("samples above L(w)", f"{100 * self.share_above:.0f} % of {2 * n}"),
        ]
        if bad:
            rows.append(("loss NOT finite", f"at {bad} of {2 * n} samples: try a smaller σ"))
        if math.isfinite(self.predicted):
            predicted = with_error(self.predicted, self.predicted_error)
            ratio = self.value / self.predicted if self.predicted else math.nan
            rows.append(("quadratic prediction", f"{predicted} (measured / predicted {ratio:.2f})"))
        return rows


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How much more the loss rises around one checkpoint than around another, on average.

    Attributes:
        names: of the two checkpoints.
        value: mean over the draws of the first one's rise minus the second one's, with its
            ``standard_error`` and 95 % interval, ``low`` to ``high``.
        n_draws: draws that both have.
        rho: of both.
        correlation: between the rises of the two over the draws: what the common noise gains.
    """

    names: tuple[str, str]
    value: float
    standard_error: float
    low: float
    high: float
    n_draws: int
    rho: float
    correlation: float

    def rows(self) -> list[tuple[str, str]]:
        """Return the difference and its interval as rows."""
        verdict = "the sign is certain" if self.low > 0 or self.high < 0 else "NOT told from zero"
        label = f"average rise of {self.names[0]} minus {self.names[1]} (σ = {self.rho:g})"
        return [
            (label, with_error(self.value, self.standard_error)),
            ("95 % interval", f"{number(self.low)} to {number(self.high)} ({verdict})"),
            ("common draws", f"{self.n_draws} (correlation {self.correlation:.2f})"),
        ]


@dataclass(frozen=True, kw_only=True, repr=False)
class Flatness(Result):
    """The measures of flatness of the field, other than worst case, average and eigenvalues.

    A measure that could not be made is NaN, and `left_out` says why. `INVARIANT` names those that
    do not change when layers of a ReLU network are rescaled against each other (Dinh et al. 2017).

    Attributes:
        loss: L(w).
        gradient_norm: ‖∇L(w)‖.
        fisher_rao: ⟨w, Fw⟩ = E⟨w, ∇ℓ⟩² over the examples, the square of the Fisher-Rao norm, with
            its standard error ``fisher_rao_se`` from groups of them.
        gap: surrogate gap h = L(w + ρ∇L/‖∇L‖) − L(w), with ``gap_se`` over the examples.
        rho: of the gap.
        rise: average rise of the loss that σ was sought for.
        sigma: standard deviation of Gaussian noise on all weights that gives that rise, with
            ``sigma_se`` over the draws of the noise.
        sigma_magnitude: the same for noise of standard deviation σ (|w| + 0.001).
        layers: names of the linear and convolutional weights that have a relative flatness.
        relative_flatness: Σ ⟨wₛ, wₛ'⟩ tr(Hₛₛ') over the pairs of neurons of each, one per layer,
            with standard errors (``_se``, 0 where exact) and 95 % intervals (``_low``, ``_high``).
        products: how the Hessian's products were made.
        left_out: why a measure is missing, by its name.
    """

    kind, heading = "flatness", "Measures of flatness"
    INVARIANT: ClassVar[frozenset[str]] = frozenset({"fisher_rao", "relative_flatness"})
    loss: float
    gradient_norm: float
    fisher_rao: float = math.nan
    fisher_rao_se: float = math.nan
    gap: float = math.nan
    gap_se: float = math.nan
    rho: float = math.nan
    rise: float = math.nan
    sigma: float = math.nan
    sigma_se: float = math.nan
    sigma_magnitude: float = math.nan
    sigma_magnitude_se: float = math.nan
    layers: tuple[str, ...] = ()
    relative_flatness: FloatArray = field(default_factory=no_values)
    relative_flatness_se: FloatArray = field(default_factory=no_values)
    relative_flatness_low: FloatArray = field(default_factory=no_values)
    relative_flatness_high: FloatArray = field(default_factory=no_values)
    products: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def gap_eigenvalue(self) -> float:
        """2h/ρ², which is λ₁ at a minimum whose gradient points along the top eigenvector."""
        return 2.0 * self.gap / self.rho**2

    @property
    def gap_slope(self) -> float:
        """Share of the gap that is first order, ρ‖∇L‖/h: near 0 at a minimum, 1 on a slope."""
        return self.rho * self.gradient_norm / self.gap if self.gap else math.nan

    @property
    def pac_bayes(self) -> tuple[float, float]:
        """1/σ² with its standard error."""
        return _inverse_square(self.sigma, self.sigma_se)

    @property
    def pac_bayes_magnitude(self) -> tuple[float, float]:
        """1/σ² of the noise that is scaled by the weights, with its standard error."""
        return _inverse_square(self.sigma_magnitude, self.sigma_magnitude_se)

    def columns(self) -> dict[str, tuple[float, float]]:
        """Return each measure, ``relative_flatness.LAYER`` among them, with its standard error."""
        layers = zip(self.layers, self.relative_flatness, self.relative_flatness_se, strict=True)
        return {
            "gradient_norm": (self.gradient_norm, math.nan),
            "fisher_rao": (self.fisher_rao, self.fisher_rao_se),
            **{f"relative_flatness.{k}": (float(v), float(se)) for k, v, se in layers},
            "gap": (self.gap, self.gap_se),
            "gap_eigenvalue": (self.gap_eigenvalue, 2.0 * self.gap_se / self.rho**2),
            "pac_bayes": self.pac_bayes,
            "pac_bayes_magnitude": self.pac_bayes_magnitude,
        }

    def table(self) -> Columns:
        """Return a row for each measure."""
        values, errors = np.array(list(self.columns().values())).T
        return {"measure": list(self.columns()), "value": values, "standard_error": errors}

    def summary(self) -> Summary:
        """Return every measure."""
        return {self._label(name): Quantity(*pair) for name, pair in self.columns().items()}

    def rows(self) -> list[tuple[str, str]]:
        """Return every measure with its standard error, and whether rescaling changes it."""
        columns = self.columns()
        rows = [(self._label(name), self._text(name, *pair)) for name, pair in columns.items()]
        if "relative_flatness" in self.left_out:
            reason = self.left_out["relative_flatness"]
            rows.append((self._label("relative_flatness"), f"not measured: {reason}"))
        return [*rows, ("*", "does not change when layers of a ReLU network are rescaled")]

    def _label(self, name: str) -> str:
        measure, _, layer = name.partition(".")
        label = {
            "gradient_norm": "gradient norm",
            "fisher_rao": "Fisher-Rao norm, squared",
            "relative_flatness": f"relative flatness {layer}".rstrip(),
            "gap": f"surrogate gap h (ρ = {self.rho:g})",
            "gap_eigenvalue": "2h/ρ²",
            "pac_bayes": f"1/σ² (rise of {self.rise:g})",
            "pac_bayes_magnitude": "1/σ², noise as |w| + 0.001",
        }[measure]
        return f"{label} *" if measure in self.INVARIANT else label

    def _text(self, name: str, value: float, error: float) -> str:
        reason = self.left_out.get("gap" if name == "gap_eigenvalue" else name)
        if reason is not None:
            return f"not measured: {reason}"
        share = f"first-order share of h here: {100 * self.gap_slope:.0f} %"
        note = f" (λ₁ at a minimum; {share})" if name == "gap_eigenvalue" else ""
        return with_error(value, error) + note


def _inverse_square(sigma: float, error: float) -> tuple[float, float]:
    """Return 1/σ² with its standard error to first order."""
    return 1.0 / sigma**2, 2.0 * error / sigma**3
