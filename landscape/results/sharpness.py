"""The largest rise of the loss in a ball: of all data, of subsets, at many radii, by few steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from landscape.results.base import Columns, FloatArray, Result, Summary
from landscape.wording import Quantity, number, with_error


@dataclass(frozen=True, kw_only=True, repr=False)
class Sharpness(Result):
    """The largest rise found inside a ball: max over ‖T⁻¹ε‖ₚ ≤ ρ of L(w+ε) − L(w).

    T is the identity in the plain ball. Fields that were not measured are NaN.

    Attributes:
        value: the largest rise found; a lower bound on the maximum.
        one_step: the rise at ε = ρ · (dual of the gradient), SAM's one-step estimate; infinite or
            NaN where the loss overflows there.
        gap: relative Frank-Wolfe gap (ρ‖TG‖_q − Gᵀε) / (ρ‖TG‖_q) at the end, G = ∇L(w+ε);
            0 where ε meets the first-order conditions. Inside the ball, where G vanishes at a
            maximum, it is relative to ρ‖T∇L(w)‖_q if that is larger. NaN: G is not finite.
        gradients: gradient passes spent.
        rho: radius of the ball.
        p: its norm.
        loss: L(w).
        norm: ‖T⁻¹ε‖ₚ of the maximiser; on the boundary it equals ρ.
        converged: whether the gap met the tolerance.
        epsilon: the maximiser, shape (n,).
        starts: names of the starting points of the search, each of which ended at a rise in
            ``start_values`` and a relative gap in ``start_gaps``.
        adaptive: T: ``none``, ``elementwise`` or ``filterwise``.
        eta: what was added to the diagonal of T.
        value_se: standard error of the rise over the examples, with ε as it is: example by
            example, the loss at w + ε less the loss at w.
        multiplier: μ = Gᵀε / ρ² for p = 2 on the boundary, where (TG) = μ T⁻¹ε at a maximum.
        second_order: smallest eigenvalue of μI − TH(w+ε)T on the tangent space, for p = 2 on the
            boundary; below zero by more than its error: ε is not even a local maximum.
        second_order_error: residual of that eigenvalue.
        top_eigenvalue: largest eigenvalue λ of TH(w)T, as far as it was sought.
        slope: dual norm ‖T∇L(w)‖_q of the gradient at w.
        quadratic_maximum: for p = 2 the largest rise of the quadratic model of the loss at w in
            the ball, as far as the subspace shows that was searched.
        n_overflowed: points of the ball where the loss or its gradient was not finite.
        finite_radius: where there were any, the largest ‖T⁻¹ε‖ₚ at which both were finite.
        notes: what a person should know of the search.
    """

    kind, heading, role = "sharpness", "Sharpness", "sharpness"
    csv_columns: ClassVar = {"start": "starts", "value": "start_values", "gap": "start_gaps"}
    value: float
    one_step: float
    gap: float
    gradients: int
    rho: float
    p: float
    loss: float
    norm: float
    converged: bool
    epsilon: FloatArray
    starts: tuple[str, ...]
    start_values: FloatArray
    start_gaps: FloatArray
    adaptive: str = "none"
    eta: float = 0.0
    value_se: float = math.nan
    multiplier: float = math.nan
    second_order: float = math.nan
    second_order_error: float = math.nan
    top_eigenvalue: float = math.nan
    slope: float = math.nan
    quadratic_maximum: float = math.nan
    n_overflowed: int = 0
    finite_radius: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def boundary(self) -> bool:
        """Whether the maximiser lies on the boundary of the ball (to 1e-5 of the radius)."""
        return bool(abs(self.norm - self.rho) <= 1e-5 * self.rho)

    @property
    def spread(self) -> float:
        """Largest minus smallest value over the starts that were searched to the end."""
        finite = self.start_values[np.isfinite(self.start_values)]
        return float(finite.max() - finite.min()) if finite.size else math.nan

    @property
    def prediction(self) -> float:
        """The bound ρ‖Tg‖₂ + ½ρ² max(λ, 0) on the quadratic model at w, for p = 2; else NaN."""
        return self.rho * self.slope + 0.5 * self.rho**2 * max(self.top_eigenvalue, 0.0)

    @property
    def keskar(self) -> float:
        """Keskar's φ = 100 · value / (1 + L(w)); theirs where p = ∞, T = |w| + 1."""
        return 100 * self.value / (1 + self.loss)

    @property
    def _is_keskars(self) -> bool:
        return math.isinf(self.p) and self.adaptive == "elementwise" and self.eta == 1.0

    @property
    def is_local_maximum(self) -> bool | None:
        """Whether the second-order condition holds to its error; None: not known."""
        if not math.isfinite(self.second_order):
            return None
        return bool(self.second_order >= -max(self.second_order_error, 1e-3 * abs(self.multiplier)))

    @property
    def best_start(self) -> str:
        """Name of the start that led to the value; none where nothing found rises above ε = 0."""
        if self.epsilon.size and not self.epsilon.any():
            return "none: nothing found rises above ε = 0"
        return self.starts[int(np.nanargmax(self.start_values))]

    def summary(self) -> Summary:
        """Return the value, SAM's one-step value and the optimality gap."""
        return {
            f"sharpness, {ball_of(self)}": Quantity(self.value, self.value_se, bound="≥"),
            "one-step value": self.one_step,
            **({"Keskar's φ": Quantity(self.keskar, bound="≥")} if self._is_keskars else {}),
            "gap": self.gap,
            "converged": self.converged and self.is_local_maximum is not False,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the value, its evidence and its cost as rows."""
        verdict = "converged" if self.converged else "NOT converged"
        size = "‖ε‖" if self.adaptive == "none" else "‖T⁻¹ε‖"
        low, high = (float(f(self.start_values)) for f in (np.nanmin, np.nanmax))
        keskar = [("Keskar's φ = 100 · rise / (1 + L)", f"≥ {number(self.keskar)}")]
        bound = f"ρ‖g‖ + ½ρ²λ = {number(self.prediction)}"
        model = [("quadratic model", f"maximum {number(self.quadratic_maximum)}, {bound}")]
        return [
            (f"sharpness ({ball_of(self)})", f"≥ {with_error(self.value, self.value_se)}"),
            *(keskar if self._is_keskars else []),
            ("one-step SAM value", number(self.one_step)),
            *(model if math.isfinite(self.quadratic_maximum) else []),
            ("optimality gap", f"{self.gap:.1e} of ρ‖G‖ ({verdict})"),
            *self._second_order_rows(),
            (size, f"{number(self.norm)} ({'boundary' if self.boundary else 'inside'})"),
            ("best start", self.best_start),
            ("over the starts", f"{number(low)} to {number(high)} ({len(self.starts)})"),
            *_overflow_rows(self),
            *(("note", note) for note in self.notes),
            ("gradient passes", f"{self.gradients:,}"),
        ]

    def _second_order_rows(self) -> list[tuple[str, str]]:
        if self.is_local_maximum is None:
            return []
        verdict = "a local maximum" if self.is_local_maximum else "NOT even a local maximum"
        tangents = [name for name in self.starts if "tangent" in name]
        if not self.is_local_maximum and tangents and self.best_start not in tangents[-2:]:
            verdict = "below 0 a tangent rises, but climbs along it found nothing higher: kinks?"
        values = f"{number(self.second_order)} ± {self.second_order_error:.0e}"
        return [("μI − H on the tangents", f"{values}, μ = {number(self.multiplier)} ({verdict})")]


@dataclass(frozen=True, kw_only=True, repr=False)
class SubsetSharpness(Result):
    """m-sharpness: the mean over disjoint subsets B of max over ε of L_B(w+ε) − L_B(w).

    Each subset of m examples has its own ε. The interval is about the examples, from the spread
    between subsets; the values of the search are lower bounds.

    Attributes:
        values: largest rise found on each subset, shape (k,), as the next ones.
        one_steps: rise of each after SAM's one step.
        gaps: relative Frank-Wolfe gap at the end of each.
        losses: L_B(w) of each subset.
        gradients: gradient passes over one subset, all together.
        m: examples in a subset.
        n_left_out: examples at the end of the data that fill no subset.
        rho: radius of the ball.
        p: its norm.
        adaptive: T: ``none``, ``elementwise`` or ``filterwise``.
        eta: what was added to the diagonal of T.
        tol: relative gap that was sought.
        protocol: ``search``, or ``auto-pgd`` for the published one.
        n_overflowed: points where the loss or its gradient was not finite.
        notes: what a person should know of the searches.
    """

    kind, heading = "m-sharpness", "Sharpness on subsets of the data"
    values: FloatArray
    one_steps: FloatArray
    gaps: FloatArray
    losses: FloatArray
    gradients: int
    m: int
    n_left_out: int
    rho: float
    p: float
    adaptive: str = "none"
    eta: float = 0.0
    tol: float = math.nan
    protocol: str = "search"
    n_overflowed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """Mean over the subsets."""
        return float(self.values.mean())

    @property
    def value_se(self) -> float:
        """Standard error of the mean over the subsets; NaN for one subset."""
        k = self.values.size
        return float(self.values.std(ddof=1) / math.sqrt(k)) if k > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean, by Student's t over the subsets."""
        from landscape.stats import student  # SciPy is not loaded to read records

        k = self.values.size
        half = student(0.95, k - 1) * self.value_se if k > 1 else math.nan
        return self.value - half, self.value + half

    @property
    def n_converged(self) -> int:
        """Subsets whose gap met the tolerance."""
        return int((self.gaps <= self.tol).sum())

    def table(self) -> Columns:
        """Return a row for each subset of the data."""
        columns = {"value": self.values, "one_step": self.one_steps, "gap": self.gaps}
        return {"subset": range(1, self.values.size + 1), **columns, "loss": self.losses}

    def summary(self) -> Summary:
        """Return the mean over the subsets, its interval and the one-step value."""
        low, high = self.interval
        label = f"m-sharpness, m = {self.m}, {ball_of(self)}"
        return {
            label: Quantity(self.value, self.value_se, bound="≥"),
            "95 % low": low,
            "95 % high": high,
            "one-step value": float(np.mean(self.one_steps)),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the mean with its interval, the spread, and the evidence as rows."""
        k, (low, high) = self.values.size, self.interval
        used = k * self.m + self.n_left_out
        part = f", the first {used:,} examples" if used < self.provenance.n_examples else ""
        interval = f" (95 %: {number(low)} to {number(high)})" if k > 1 else ""
        label = f"m-sharpness (m = {self.m}, {ball_of(self)})"
        rest = f"; {self.n_left_out:,} at the end left out" if self.n_left_out else ""
        gaps = f"median {np.nanmedian(self.gaps):.1e}, largest {np.nanmax(self.gaps):.1e}"
        searches = {
            "search": "search from several starts",
            "auto-pgd": "Auto-PGD, 20 steps, one start",
        }
        if self.protocol == "search":
            gaps += f" ({self.n_converged} of {k} converged)"
        return [
            (label, f"≥ {number(self.value)}{interval}"),
            ("one-step SAM value", number(float(np.mean(self.one_steps)))),
            ("subsets", f"{k} of {self.m}{part}{rest}"),
            ("over the subsets", f"{number(self.values.min())} to {number(self.values.max())}"),
            ("optimality gaps", gaps),
            ("found by", searches[self.protocol]),
            ("gradient passes", f"{self.gradients:,} over a subset"),
            *(("note", note) for note in self.notes),
        ]


@dataclass(frozen=True, kw_only=True, repr=False)
class Profile(Result):
    """Sharpness at many radii: S(ρ) = max over ‖T⁻¹ε‖ₚ ≤ ρ of L(w+ε) − L(w).

    Each radius starts from the maximiser of the one before. All values are lower bounds.

    Attributes:
        rhos: radii, ascending, shape (k,).
        values: largest rise found at each, shape (k,).
        one_steps: rise after SAM's one step at each, shape (k,).
        gaps: relative Frank-Wolfe gap at each, shape (k,).
        norms: ‖T⁻¹ε‖ₚ of each maximiser, shape (k,).
        predictions: for p = 2 the bound ρ‖Tg‖₂ + ½ρ²λ on the quadratic model at w, shape (k,);
            else NaN.
        quadratic_maxima: for p = 2 the maximum of that model in the ball, shape (k,); else NaN.
        loss: L(w).
        weight_norm: ‖T⁻¹w‖ₚ, over the entries where T is not zero: ρ relative to it compares
            checkpoints of different scale.
        gradients: gradient passes, all together.
        p: norm of the balls.
        adaptive: T: ``none``, ``elementwise`` or ``filterwise``.
        eta: what was added to the diagonal of T.
        tol: relative gap that was sought.
        n_overflowed: points where the loss or its gradient was not finite.
        finite_radius: where there were any, the largest ‖T⁻¹ε‖ₚ at which both were finite.
        notes: what a person should know of the searches.
    """

    kind, heading = "profile", "Sharpness by radius"
    csv_columns: ClassVar[Mapping[str, str]] = {
        **{"rho": "rhos", "relative_rho": "relative_rhos", "value": "values"},
        **{"one_step": "one_steps", "gap": "gaps", "norm": "norms"},
        **{"prediction": "predictions", "quadratic_maximum": "quadratic_maxima"},
    }
    rhos: FloatArray
    values: FloatArray
    one_steps: FloatArray
    gaps: FloatArray
    norms: FloatArray
    predictions: FloatArray
    quadratic_maxima: FloatArray
    loss: float
    weight_norm: float
    gradients: int
    p: float
    adaptive: str = "none"
    eta: float = 0.0
    tol: float = math.nan
    n_overflowed: int = 0
    finite_radius: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def relative_rhos(self) -> FloatArray:
        """Radii over ‖T⁻¹w‖ₚ, shape (k,); infinite where that is zero."""
        if not self.weight_norm > 0:
            return np.full(self.rhos.shape, np.inf)
        return np.asarray(self.rhos / self.weight_norm)

    @property
    def reached(self) -> npt.NDArray[np.bool_]:
        """Where the gap met the tolerance, shape (k,)."""
        return np.asarray(self.gaps <= self.tol)

    def summary(self) -> Summary:
        """Return the value at each radius."""
        return {
            f"ρ = {number(float(rho))}": Quantity(float(value), bound="≥")
            for rho, value in zip(self.rhos, self.values, strict=True)
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return value, one-step value and prediction at each radius as rows."""
        k = self.rhos.size
        converged = f"{int(self.reached.sum())} of {k} converged"
        return [
            ("balls", f"{_norm_of(self)}, ‖T⁻¹w‖ = {number(self.weight_norm)}"),
            *(self._radius_row(i) for i in range(k)),
            ("optimality gaps", f"largest {np.nanmax(self.gaps):.1e} ({converged})"),
            *_overflow_rows(self),
            *(("note", note) for note in self.notes),
            ("gradient passes", f"{self.gradients:,}"),
        ]

    def _radius_row(self, i: int) -> tuple[str, str]:
        maximum = float(self.quadratic_maxima[i])
        model = f", quadratic model {number(maximum)}" if math.isfinite(maximum) else ""
        return (
            f"ρ = {number(self.rhos[i])} ({number(self.relative_rhos[i])} of ‖w‖)",
            f"≥ {number(self.values[i])}, one step {number(self.one_steps[i])}{model}",
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class StepwiseSharpness(Result):
    """The rise of the loss at the end of a climb of k steps, for several k.

    Each is a climb of its own, of k equal steps of ρ/k along the dual of the gradient, as SAM with
    k inner steps makes it; not the maximum over the ball, which `Sharpness` seeks.

    Attributes:
        rho: radius of the ball.
        p: its norm.
        loss: L(w).
        steps: numbers of steps k, ascending, shape (m,).
        rises: L(w + ε) − L(w) at the end of each climb, shape (m,).
        norms: ‖ε‖ₚ at the end of each climb, at most ρ, shape (m,).
    """

    kind, heading = "steps", "Sharpness by number of steps"
    rho: float
    p: float
    loss: float
    steps: FloatArray
    rises: FloatArray
    norms: FloatArray

    def table(self) -> Columns:
        """Return a row for each climb."""
        return {"steps": list(map(int, self.steps)), "rise": self.rises, "norm": self.norms}

    def summary(self) -> Summary:
        """Return the rise after each number of steps."""
        pairs = zip(self.steps, self.rises, strict=True)
        return {f"rise, k = {int(k)}": float(rise) for k, rise in pairs}

    def rows(self) -> list[tuple[str, str]]:
        """Return the radius, and the rise after each number of steps, as rows."""
        rows = [("radius ρ", f"{self.rho:g} (p = {self.p:g})")]
        for k, rise, norm in zip(self.steps, self.rises, self.norms, strict=True):
            label = f"rise after {int(k)} step{'' if k == 1 else 's'}"
            rows.append((label, f"{number(float(rise))}, ε of {norm:.3g}"))
        return rows


def ball_of(record: Sharpness | SubsetSharpness) -> str:
    """Return the ball of a record in words, such as ``ρ = 0.05, p = 2``."""
    return f"ρ = {record.rho:g}, {_norm_of(record)}"


def _overflow_rows(record: Sharpness | Profile) -> list[tuple[str, str]]:
    if not record.n_overflowed:
        return []
    radius = f"largest finite radius {number(record.finite_radius)}"
    return [("not finite", f"at {record.n_overflowed} points, left out; {radius}")]


def _norm_of(record: Sharpness | SubsetSharpness | Profile) -> str:
    eta = f", η = {record.eta:g}" if record.eta else ""
    scale = "" if record.adaptive == "none" else f", adaptive {record.adaptive}{eta}"
    return f"p = {record.p:g}{scale}"
