"""One scale for everything that is compared: what is shown, how it is spaced, and over what range.

A scale changes the picture, never the data, and says so itself (`Scale.note`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.ticker import LogLocator, MaxNLocator, SymmetricalLogLocator

from landscape.errors import InvalidArgumentError, one_of
from landscape.results import Line, Surface
from landscape.wording import number

Sampled: TypeAlias = "Line | Surface"
Floats: TypeAlias = "npt.NDArray[np.float64]"

SCALES = ("auto", "linear", "log", "excess", "log-excess")
FLAT_FROM = 0.4
"""Share of the points in the lowest tenth of the common range from which ``auto`` spaces by log.

A round quadratic bowl has 0.16 over a square and 0.32 along a line, an infinitely long one 0.32.
"""
FLAT_MAP_FROM = 0.25
"""The same share of surfaces whose losses span two decades: all but round bowls."""
LOG_FROM = 8.0
"""Ratio of the largest loss to the smallest below which a logarithm would show no more."""
TWO_DECADES = 100.0
DECADES = 1000.0
"""The same ratio from which ``auto`` always spaces by log."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a picture shows of a loss, and how it is spaced: ``linear``, ``log`` or ``symlog``."""

    rise: bool  # whether L(w′) − L(w) is shown instead of L(w′), each from its own L(w)
    spacing: str
    low: float  # smallest value shown
    high: float  # largest value shown
    threshold: float = 1.0  # ``symlog`` is linear within ± this, and logarithmic outside
    reason: str = "since it is not positive everywhere"  # why it is linear there

    @property
    def label(self) -> str:
        """What is shown, for an axis."""
        return "rise of the loss, L(w′) − L(w)" if self.rise else "loss L(w′)"

    @property
    def note(self) -> str:
        """What the scale does to the picture, as a phrase."""
        quantity = "rise above the checkpoint's own loss" if self.rise else "loss"
        spaced = "linear" if self.spacing == "linear" else "log"
        text = f"{quantity} on a {spaced} scale from {number(self.low)} to {number(self.high)}"
        if self.spacing == "symlog":
            text += f", linear within ±{self.threshold:g} {self.reason}"
        return text

    def values(self, sampled: Sampled) -> Floats:
        """Return the loss of a line or surface, or its rise; NaN and infinity stay."""
        loss = np.asarray(sampled.loss, dtype=np.float64)
        return loss - sampled.origin_loss if self.rise else loss

    def shown(self, sampled: Sampled) -> Floats:
        """Return the values as drawn: clipped to the range, and NaN where they are not finite."""
        values = self.values(sampled)
        return np.where(np.isfinite(values), np.clip(values, self.low, self.high), np.nan)

    def n_clipped(self, sampled: Sampled) -> int:
        """Return how many finite points lie outside the range."""
        values = self.values(sampled)
        outside = (values < self.low) | (values > self.high)
        return int(np.count_nonzero(outside & np.isfinite(values)))

    def forward(self, values: npt.ArrayLike) -> Floats:
        """Return where values stand along an axis of this scale, in relief and plotly pictures."""
        array = np.asarray(values, dtype=np.float64)
        if self.spacing == "log":
            return np.asarray(np.log10(array))
        if self.spacing == "symlog":
            # The formula of matplotlib's SymmetricalLogTransform with base 10 and linscale 1.
            size = np.maximum(np.abs(array), self.threshold)
            outside = np.sign(array) * self.threshold * (10 / 9 + np.log10(size / self.threshold))
            return np.where(np.abs(array) <= self.threshold, array * 10 / 9, outside)
        return array

    def norm(self) -> Normalize:
        """Return the matplotlib norm that colours follow."""
        if self.spacing == "log":
            return LogNorm(self.low, self.high)
        if self.spacing == "symlog":
            return SymLogNorm(self.threshold, vmin=self.low, vmax=self.high, base=10)
        return Normalize(self.low, self.high)

    def apply(self, axes: Axes) -> None:
        """Space the upright axis of a panel."""
        if self.spacing == "log":
            axes.set_yscale("log", nonpositive="clip")
        elif self.spacing == "symlog":
            axes.set_yscale("symlog", linthresh=self.threshold)

    def levels(self, most: int = 10) -> Floats:
        """Return round values strictly inside the range, about ``most`` of them at most."""
        ticks: Any = []
        if self.spacing == "symlog":
            ticks = SymmetricalLogLocator(base=10, linthresh=self.threshold)
            ticks.set_params(numticks=max(most, 3))
            ticks = self._inside(ticks.tick_values(self.low, self.high))
            # The locator may give more than it is asked for.
            ticks = ticks[:: max(1, -(-len(ticks) // (most + 2)))]
        elif self.spacing == "log" and self.high > 4 * self.low:
            for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                ticks = LogLocator(subs=steps, numticks=most).tick_values(self.low, self.high)
                if len(self._inside(ticks)) <= most:
                    break
        if len(self._inside(ticks)) < 2:
            locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])
            ticks = locator.tick_values(self.low, self.high)
        return self._inside(ticks)

    def _inside(self, ticks: npt.ArrayLike) -> Floats:
        values = np.unique(np.asarray(ticks, dtype=np.float64))
        return np.asarray(values[(values > self.low) & (values < self.high)])


def common_scale(
    samples: Iterable[Sampled],
    name: str | Scale = "auto",
    *,
    limits: tuple[float, float] | None = None,
) -> Scale:
    """Return the one scale on which all of some lines or surfaces are to be drawn.

    Args:
        samples: lines or surfaces.
        name: ``linear``, ``log``, ``excess`` (rise above each checkpoint's own loss),
            ``log-excess``, or ``auto``: ``log`` where every loss is positive and the largest of
            all panels is 1,000 times the smallest, or 40 % of the points lie in the lowest tenth
            of the common range (25 % of those of surfaces, where the ratio is 100), so that a
            linear picture would hide them in one colour; else ``linear``. A `Scale` is returned
            as it is.
        limits: smallest and largest value to show; None: those of the data. What lies outside is
            drawn at the limit, and the caption counts it.

    Returns:
        The scale. Where a logarithm is asked for and values are not positive, or are smaller than
        the error of an interpolation, it is linear near zero.
    """
    if isinstance(name, Scale):
        return name
    one_of(name, SCALES, what="scale")
    samples = list(samples)
    rise = name in {"excess", "log-excess"}
    loose = Scale(rise=rise, spacing="linear", low=0.0, high=1.0)
    panels = [values[np.isfinite(values)] for values in map(loose.values, samples)]
    values = np.concatenate([*panels, np.zeros(0)])
    low, high = _range(values, limits)
    error = max((_interpolation_error(s) for s in samples), default=0.0)
    are_maps = any(isinstance(sampled, Surface) for sampled in samples)
    positive = low > 0 if limits else all(_is_positive(s, loose) for s in samples)
    logarithmic = name in {"log", "log-excess"} or (
        name == "auto" and positive and _is_flat(panels, low, high, are_maps=are_maps)
    )
    plain: dict[str, Any] = {"rise": rise, "low": low, "high": high}
    if not logarithmic or (low > 0 and error <= low):
        return Scale(spacing="log" if logarithmic else "linear", **plain)
    largest = max(abs(low), abs(high))
    small = float(np.abs(values[values != 0]).min(initial=largest))
    threshold = float(f"{min(max(small, 1e-4 * largest), 0.1 * largest):.0e}")
    if error > threshold:
        plain["reason"] = "where the interpolation is no finer"
        threshold = min(float(f"{error:.0e}"), 0.1 * largest)
    return Scale(spacing="symlog", threshold=threshold, **plain)


def _range(finite: Floats, limits: tuple[float, float] | None) -> tuple[float, float]:
    if limits is not None:
        low, high = (float(v) for v in limits)
        if not (np.isfinite([low, high]).all() and low < high):
            msg = f"limits must be two finite rising numbers; got {limits!r}"
            raise InvalidArgumentError(msg)
        return low, high
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        pad = 0.05 * max(abs(low), abs(high)) or 1.0
        return low - pad, high + pad
    return low, high


def _is_positive(sampled: Sampled, scale: Scale) -> bool:
    """Return whether every value that was measured is positive; an interpolation may undershoot."""
    values = scale.values(sampled)
    if isinstance(sampled, Surface):
        values = values[sampled.is_measured]
    finite = values[np.isfinite(values)]
    return bool(finite.size and (finite > 0).all())


def _interpolation_error(sampled: Sampled) -> float:
    """Return below which loss an interpolated surface tells nothing; 0 where all is measured."""
    if not isinstance(sampled, Surface) or sampled.is_measured.all() or sampled.criterion == "log":
        return 0.0
    known = sampled.loss[sampled.is_measured & np.isfinite(sampled.loss)]
    return float(sampled.interpolation_error * np.ptp(known)) if known.size else 0.0


def _is_flat(panels: Sequence[Floats], low: float, high: float, *, are_maps: bool) -> bool:
    """Return whether a linear picture on the common range would show most as one colour."""
    smallest = min(float(panel.min()) for panel in panels)
    shares = [np.mean(panel <= low + 0.1 * (high - low)) for panel in panels]
    smallest = max(smallest, low)
    ratio = high / smallest if smallest > 0 else 0.0
    flat_from = FLAT_MAP_FROM if are_maps and ratio >= TWO_DECADES else FLAT_FROM
    return bool(ratio >= DECADES or (high > LOG_FROM * smallest and np.mean(shares) >= flat_from))
