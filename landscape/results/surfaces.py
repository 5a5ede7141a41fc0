"""Losses along a line and over a plane."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from landscape.results.base import FloatArray, Result
from landscape.wording import number


@dataclass(frozen=True, kw_only=True)
class Line(Result):
    """Loss along one direction: L(w + x d).

    Attributes:
        x: coordinates, in units of the direction, shape (nx,).
        loss: raw losses, shape (nx,); NaN and infinity stay.
        loss_se: standard error of each over the examples.
        metrics: further means over the examples, each of shape (nx,).
        direction: what the direction is, in words (``filter-normalised random``, ``worst case``).
        direction_norm: ‖d‖, so that x · ‖d‖ is the distance in parameter space.
        origin_loss: the plain loss L(w), measured apart from the line.
    """

    kind: ClassVar[str] = "line"
    x: FloatArray
    loss: FloatArray
    loss_se: FloatArray
    metrics: Mapping[str, FloatArray] = field(default_factory=dict)
    direction: str
    direction_norm: float
    origin_loss: float

    @property
    def distance(self) -> FloatArray:
        """Signed Euclidean distance from the checkpoint, shape (nx,)."""
        return np.asarray(self.x * self.direction_norm)

    def rows(self) -> list[tuple[str, str]]:
        """Return what was measured and the range of the losses as rows."""
        return [
            ("direction", f"{self.direction}, ‖d‖ = {number(self.direction_norm)}"),
            ("points", f"{self.x.size} on [{self.x.min():g}, {self.x.max():g}]"),
            *_loss_rows(self.loss, self.loss_se, self.origin_loss),
        ]


@dataclass(frozen=True, kw_only=True)
class Surface(Result):
    """Loss over a plane: loss[i, j] = L(w + x[i] d₁ + y[j] d₂).

    Attributes:
        x: coordinates along the first direction, shape (nx,).
        y: coordinates along the second direction, shape (ny,).
        loss: raw losses, shape (nx, ny); NaN and infinity stay.
        loss_se: standard error of each over the examples, shape (nx, ny).
        metrics: further means over the examples, each of shape (nx, ny).
        plane: what the plane is, in words.
        direction_norms: ‖d₁‖ and ‖d₂‖.
        cosine: cosine of the angle between the directions.
        origin_loss: the plain loss L(w), measured apart from the grid.
        measured: where the loss was measured, and not interpolated, shape (nx, ny); empty: at
            every point. Where it was not, standard errors and metrics are NaN.
        interpolation_error: largest error of the interpolated surface at points that were
            measured and held out of it, in units of ``criterion``; 0 where every point is measured.
        tolerance: what it was to stay below; 0 where every point was to be measured.
        criterion: ``range``: errors are relative to the range of the finite losses; ``log``: they
            are those of ln(loss).
    """

    kind: ClassVar[str] = "surface"
    x: FloatArray
    y: FloatArray
    loss: FloatArray
    loss_se: FloatArray
    metrics: Mapping[str, FloatArray] = field(default_factory=dict)
    plane: str
    direction_norms: tuple[float, float]
    cosine: float
    origin_loss: float
    measured: npt.NDArray[np.bool_] = field(default_factory=lambda: np.ones((0, 0), dtype=bool))
    interpolation_error: float = 0.0
    tolerance: float = 0.0
    criterion: str = "range"

    @property
    def is_measured(self) -> npt.NDArray[np.bool_]:
        """Where the loss was measured, shape (nx, ny)."""
        return self.measured if self.measured.size else np.ones(self.loss.shape, dtype=bool)

    def rows(self) -> list[tuple[str, str]]:
        """Return what was measured and the range of the losses as rows."""
        norms = " and ".join(number(v) for v in self.direction_norms)
        known = math.isfinite(self.cosine)
        axes = f", norms {norms}, cosine {self.cosine:+.3f}" if known else ""
        return [
            ("plane", f"{self.plane}{axes}"),
            (
                "points",
                f"{self.x.size} × {self.y.size} on [{self.x.min():g}, {self.x.max():g}] × "
                f"[{self.y.min():g}, {self.y.max():g}]",
            ),
            *_loss_rows(self.loss, self.loss_se, self.origin_loss),
        ]


def _loss_rows(loss: FloatArray, se: FloatArray, origin: float) -> list[tuple[str, str]]:
    finite = loss[np.isfinite(loss)]
    span = f"{number(finite.min())} to {number(finite.max())}" if finite.size else "none finite"
    bad = loss.size - finite.size
    if bad:
        span += f"; {bad} of {loss.size} points not finite, kept as they are"
    known = se[np.isfinite(se)]
    errors = f"{number(known.min())} to {number(known.max())}" if known.size else "not known"
    return [
        ("loss at the checkpoint", number(origin)),
        ("losses", span),
        ("standard errors", errors),
    ]
