"""The loss of a checkpoint, and its largest rise in a ball."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from landscape.results.base import FloatArray, Result
from landscape.wording import number, with_error


@dataclass(frozen=True, kw_only=True)
class Evaluation(Result):
    """The loss of a checkpoint over the data set.

    Attributes:
        loss: Σ terms / Σ weights, accumulated in float64.
        loss_se: standard error of the loss over examples; NaN where the loss gives no terms.
        metrics: further means over the examples, accuracy among them.
        gradient_norm: Euclidean norm of the gradient of the loss.
    """

    kind: ClassVar[str] = "loss"
    loss: float
    loss_se: float
    gradient_norm: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Return the loss, its metrics and the norm of the gradient as rows."""
        rows = [("loss", with_error(self.loss, self.loss_se))]
        rows += [(name, number(value)) for name, value in self.metrics.items()]
        rows.append(("gradient norm", number(self.gradient_norm)))
        return rows


@dataclass(frozen=True, kw_only=True)
class Sharpness(Result):
    """The largest rise of the loss found inside a ball: max over ‖ε‖ₚ ≤ ρ of L(w+ε) − L(w).

    Attributes:
        value: the largest rise found; a lower bound on the maximum.
        one_step: the rise at ε = ρ · (dual of the gradient), SAM's one-step estimate; infinite or
            NaN where the loss overflows there.
        gap: relative Frank-Wolfe gap (ρ‖G‖_q − Gᵀε) / (ρ‖G‖_q) at the end, G = ∇L(w+ε);
            0 where ε meets the first-order conditions. Inside the ball, where G itself vanishes
            at a maximum, it is relative to ρ‖∇L(w)‖_q if that is larger. NaN where the gradient
            is not finite.
        gradients: gradient passes spent.
        rho: radius of the ball.
        p: its norm.
        loss: L(w).
        norm: ‖ε‖ₚ of the maximiser; on the boundary it equals ρ.
        converged: whether the gap met the tolerance.
        epsilon: the maximiser, shape (n,).
        starts: names of the starting points of the search.
        start_values: rise that each start ended at.
        start_gaps: relative gap that each start ended at.
    """

    kind: ClassVar[str] = "sharpness"
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

    @property
    def boundary(self) -> bool:
        """Whether the maximiser lies on the boundary of the ball (to 1e-5 of the radius)."""
        return bool(abs(self.norm - self.rho) <= 1e-5 * self.rho)

    @property
    def spread(self) -> float:
        """Largest minus smallest value over the starts that were searched to the end."""
        finite = self.start_values[np.isfinite(self.start_values)]
        return float(finite.max() - finite.min()) if finite.size else math.nan

    def rows(self) -> list[tuple[str, str]]:
        """Return the value, its evidence and its cost as rows."""
        verdict = "converged" if self.converged else "NOT converged"
        return [
            (f"sharpness (ρ = {self.rho:g}, p = {self.p:g})", f"≥ {number(self.value)}"),
            ("one-step SAM value", number(self.one_step)),
            ("optimality gap", f"{self.gap:.1e} of ρ‖G‖ ({verdict})"),
            ("‖ε‖", f"{number(self.norm)} ({'boundary' if self.boundary else 'inside'})"),
            ("best start", self.best_start),
            (
                "over the starts",
                f"{number(float(np.nanmin(self.start_values)))} to "
                f"{number(float(np.nanmax(self.start_values)))}"
                f" ({len(self.starts)})",
            ),
            ("gradient passes", f"{self.gradients:,}"),
        ]

    @property
    def best_start(self) -> str:
        """Name of the start that led to the value."""
        return self.starts[int(np.nanargmax(self.start_values))]
