"""Standard errors and confidence intervals of means over independent samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Estimates with standard errors and confidence intervals; float64 arrays of one shape."""

    value: FloatArray
    standard_error: FloatArray
    low: FloatArray
    high: FloatArray

    @classmethod
    def exact(cls, value: FloatArray) -> Interval:
        """Return estimates without error."""
        return cls(value=value, standard_error=np.zeros_like(value), low=value, high=value)


def confidence_interval(samples: FloatArray, confidence: float) -> Interval:
    """Estimate the mean of independent samples, allowing for skewness.

    The interval is the union of two: Student's, and the one from Hall's (1992) monotone cubic
    transformation of Student's T, which corrects it for the sample's skewness. Of a χ²₁ sample of
    16, Student's 95 % interval covers 88 %, the union 94 %, and 96 % of a normal sample.

    References:
        Hall (1992), On the removal of skewness by transformation, J. R. Stat. Soc. B 54.

    >>> found = confidence_interval(np.array([1.0, 2.0, 3.0]), 0.95)
    >>> float(found.value), float(found.standard_error.round(4)), float(found.low.round(3))
    (2.0, 0.5774, -0.484)
    """
    p = len(samples)
    mean = samples.mean(axis=0)
    spread = samples.std(axis=0, ddof=1)
    quantile = student(confidence, p - 1) / math.sqrt(p)
    scale = np.where(spread > 0.0, spread, 1.0)
    skewness = (((samples - mean) / scale) ** 3).mean(axis=0)
    upward = np.maximum(quantile, -_hall(-quantile, skewness, p))
    downward = np.maximum(quantile, _hall(quantile, skewness, p))
    return Interval(
        value=mean,
        standard_error=spread / math.sqrt(p),
        low=mean - downward * spread,
        high=mean + upward * spread,
    )


def student(confidence: float, degrees: int) -> float:
    """Return the two-sided quantile of Student's t distribution.

    >>> round(student(0.95, 9), 3)
    2.262
    """
    return float(stdtrit(degrees, (1.0 + confidence) / 2.0))


def _hall(y: float, skewness: FloatArray, p: int) -> FloatArray:
    """Solve T + γT²/3 + γ²T³/27 + γ/(6p) = y for T, with the skewness γ."""
    straight = np.abs(skewness) < 1e-6
    gamma = np.where(straight, 1.0, skewness)
    bent = 3.0 / gamma * (np.cbrt(1.0 + gamma * (y - gamma / (6 * p))) - 1.0)
    return np.where(straight, y, bent)


def jackknife(sums: FloatArray, weights: FloatArray) -> FloatArray:
    """Estimate the standard error of Σ sums / Σ weights by leaving each group out in turn.

    √((g − 1)/g Σ (θ₍₋ᵢ₎ − mean)²) for each column of ``sums``, shape (g, k), over the g groups.

    References:
        Efron, Stein (1981), The jackknife estimate of variance, Annals of Statistics 9.

    >>> jackknife(np.array([[1.0], [2.0], [3.0]]), np.ones(3)).round(4).tolist()
    [0.5774]
    """
    g = len(sums)
    left_out = (sums.sum(axis=0) - sums) / (weights.sum() - weights)[:, None]
    return np.asarray(np.sqrt((g - 1) / g * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0)))


def interval_of_mean(draws: npt.NDArray[np.floating]) -> tuple[float, float, float, float]:
    """Return the mean of independent samples, its standard error and 95 % interval."""
    # What is finite may still be too large for its mean, or for its squares.
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(draws).all():
            return float(draws.mean()), math.nan, math.nan, math.nan
        mean = confidence_interval(draws.astype(np.float64), CONFIDENCE)
    return float(mean.value), float(mean.standard_error), float(mean.low), float(mean.high)
