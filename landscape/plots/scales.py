"""One scale for everything that is compared: what is shown, how it is spaced, and over what range.

A scale changes the picture, never the data, and says so itself (`Scale.note`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.ticker import MaxNLocator

from landscape.errors import InvalidArgumentError, one_of
from landscape.results import Line, Surface
from landscape.wording import number

Sampled: TypeAlias = "Line | Surface"
Floats: TypeAlias = "npt.NDArray[np.float64]"

SCALES = ("auto", "linear", "log", "excess", "log-excess")
FLAT_FROM = 0.4
"""Share of a sample's points in the lowest tenth of its range from which ``auto`` spaces by log.

A round quadratic bowl has 0.16 over a square and 0.32 along a line, an infinitely long one 0.32.
"""
LOG_FROM = 8.0
"""Ratio of a sample's largest loss to its smallest below which a logarithm would show no more."""

_INTERPOLATED = "where the interpolation is no finer"

_STEPS = (
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 2.0, 5.0),
    (1.0, 3.0),
    (1.0,),
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a picture shows of a loss, and how.

    Attributes:
        rise: whether L(w′) − L(w) is shown instead of L(w′), each checkpoint from its own L(w).
        spacing: ``linear``, ``log`` or ``symlog`` (linear within ± threshold, log outside).
        low: smallest value shown.
        high: largest value shown.
        threshold: where ``symlog`` turns from linear to logarithmic.
        why: why it is linear there, for the caption.
    """

    rise: bool
    spacing: str
    low: float
    high: float
    threshold: float = 1.0
    why: str = "since it is not positive everywhere"

    @property
    def label(self) -> str:
        """What is shown, for an axis."""
        return "rise of the loss, L(w′) − L(w)" if self.rise else "loss L(w′)"

    @property
    def note(self) -> str:
        """What the scale does to the picture, as a phrase."""
        what = "rise above the checkpoint's own loss" if self.rise else "loss"
        spaced = {
            "linear": "linear scale",
            "log": "log scale",
            "symlog": "log scale",
        }[self.spacing]
        text = f"{what} on a {spaced} from {number(self.low)} to {number(self.high)}"
        if self.spacing == "symlog":
            text += f", linear within ±{self.threshold:g} {self.why}"
        return text

    def values(self, sampled: Sampled) -> Floats:
        """Return what is shown of a line or surface; NaN and infinity stay.

        Args:
            sampled: the record.

        Returns:
            The loss, or its rise above the loss at the checkpoint; same shape as the loss.
        """
        loss = np.asarray(sampled.loss, dtype=np.float64)
        return loss - sampled.origin_loss if self.rise else loss

    def forward(self, values: npt.ArrayLike) -> Floats:
        """Return where values stand along an axis of this scale.

        Args:
            values: finite values, positive where the scale is logarithmic; NaN stays.

        Returns:
            The values themselves, their log10, or their symmetric logarithm.
        """
        array = np.asarray(values, dtype=np.float64)
        if self.spacing == "log":
            return np.asarray(np.log10(array))
        if self.spacing == "symlog":
            # The formula of matplotlib's SymmetricalLogTransform with base 10 and linscale 1.
            size = np.maximum(np.abs(array), self.threshold)
            outside = np.sign(array) * self.threshold * (10 / 9 + np.log10(size / self.threshold))
            inside = array * 10 / 9
            return np.where(np.abs(array) <= self.threshold, inside, outside)
        return array

    def shown(self, sampled: Sampled) -> Floats:
        """Return the values as drawn: within the range, and NaN where they are not finite.

        Args:
            sampled: the record.

        Returns:
            The values, clipped to the range (`n_clipped` counts how many that touches).
        """
        values = self.values(sampled)
        return np.where(np.isfinite(values), np.clip(values, self.low, self.high), np.nan)

    def n_clipped(self, sampled: Sampled) -> int:
        """Return how many finite points lie outside the range.

        Args:
            sampled: the record.

        Returns:
            Their number.
        """
        values = self.values(sampled)
        outside = (values < self.low) | (values > self.high)
        return int(np.count_nonzero(outside & np.isfinite(values)))

    def norm(self) -> Normalize:
        """Return the matplotlib norm that colours follow."""
        if self.spacing == "log":
            return LogNorm(self.low, self.high)
        if self.spacing == "symlog":
            return SymLogNorm(self.threshold, vmin=self.low, vmax=self.high, base=10)
        return Normalize(self.low, self.high)

    def levels(self, most: int = 10) -> Floats:
        """Return round values inside the range, evenly spread along the scale.

        Args:
            most: about how many at most.

        Returns:
            Ascending values, each strictly inside the range where there are any.
        """
        if self.spacing == "symlog":
            found = self._symlog_levels(most)
        elif self.spacing == "log" and self.high / self.low > 4:
            found = _log_levels(self.low, self.high, most)
        else:
            locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])
            found = list(locator.tick_values(self.low, self.high))
        levels = np.unique(np.asarray(found, dtype=np.float64))
        return np.asarray(levels[(levels > self.low) & (levels < self.high)])

    def _symlog_levels(self, most: int) -> list[float]:
        edge, found = 0.999 * self.threshold, [0.0]
        lengths = {
            sign: float(np.log10(end / edge)) if end > edge else 0.0
            for sign, end in ((1, self.high), (-1, -self.low))
        }
        for sign, end in ((1, self.high), (-1, -self.low)):
            share = round((most - 1) * lengths[sign] / (sum(lengths.values()) or 1.0))
            if share:
                found += [sign * level for level in _log_levels(edge, end, share)]
        return found


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
            ``log-excess``, or ``auto``: ``log`` where every loss is positive and 40 % of one
            sample's points lie in the lowest tenth of its range, so that a linear picture would
            hide the minimum in a flat middle; else ``linear``, which shows rises as they are. A
            `Scale` is returned as it is.
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
    values = np.concatenate([np.ravel(loose.values(s)) for s in samples] or [np.zeros(0)])
    low, high = _range(values[np.isfinite(values)], limits)
    error = max((_interpolation_error(s) for s in samples), default=0.0)
    positive = low > 0 if limits else all(_is_positive(s, loose) for s in samples)
    logarithmic = name in {"log", "log-excess"} or (
        name == "auto" and positive and any(_is_flat(loose.values(s)) for s in samples)
    )
    plain: dict[str, Any] = {"rise": rise, "low": low, "high": high}
    if not logarithmic or (low > 0 and error <= low):
        return Scale(spacing="log" if logarithmic else "linear", **plain)
    largest = max(abs(low), abs(high))
    threshold = _threshold(values, largest)
    if error <= threshold:
        return Scale(spacing="symlog", threshold=threshold, **plain)
    threshold = min(float(f"{error:.0e}"), 0.1 * largest)
    return Scale(spacing="symlog", threshold=threshold, why=_INTERPOLATED, **plain)


def symlog_ticks(low: float, high: float, threshold: float) -> list[float]:
    """Return the values to label on an axis that is linear near zero: powers of ten, and zero.

    >>> symlog_ticks(-0.02, 0.5, 0.001)
    [-0.01, 0.0, 0.01, 0.1]
    """
    first = math.floor(math.log10(threshold) + 1e-9) + 1
    ticks = [0.0]
    for sign, end in ((1, high), (-1, -low)):
        last = math.floor(math.log10(end)) if end > 0 else first - 1
        stride = max(1, -(-(last - first + 1) // 6))
        # counted from the outer end, which matters more
        ticks += [sign * float(f"1e{k}") for k in range(last, first - 1, -stride)]
    if len(ticks) < 3:  # all but linear
        ticks = [float(tick) for tick in MaxNLocator(6).tick_values(low, high)]
    return sorted(tick for tick in ticks if low <= tick <= high)


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
    if not isinstance(sampled, Surface) or sampled.is_measured.all():
        return 0.0
    if sampled.criterion == "log":
        return 0.0
    known = sampled.loss[sampled.is_measured & np.isfinite(sampled.loss)]
    return float(sampled.interpolation_error * np.ptp(known)) if known.size else 0.0


def _is_flat(values: Floats) -> bool:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return False
    low, high = float(finite.min()), float(finite.max())
    share = np.mean(finite <= low + 0.1 * (high - low))
    return bool(share >= FLAT_FROM and high > LOG_FROM * low)


def _threshold(values: Floats, largest: float) -> float:
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    small = float(sizes.min()) if sizes.size else largest
    return float(f"{min(max(small, 1e-4 * largest), 0.1 * largest):.0e}")


def _log_levels(low: float, high: float, most: int) -> list[float]:
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    for steps in _STEPS:
        found = [step * 10.0**k for k in range(first, last + 1) for step in steps]
        inside = [v for v in found if low < v < high]
        if len(inside) <= most:
            return inside
    stride = -(-(last - first) // most)
    return [10.0**k for k in range(first, last + 1, stride)]
