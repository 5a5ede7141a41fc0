"""Means, differences, ratios and rank correlations over independent runs, with their intervals.

What is independent is the run, that is the seed or the model: never the examples of one test set,
which all runs share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from landscape.errors import InvalidArgumentError, one_of
from landscape.results import FloatArray
from landscape.stats import student
from landscape.wording import number

METHODS = ("kendall", "spearman")


@dataclass(frozen=True)
class Interval:
    """An estimate and an interval around it; NaN where there is none."""

    value: float
    low: float
    high: float
    n: int  # of the runs, pairs or models that it rests on

    def __str__(self) -> str:
        """Return the estimate and its ends, such as ``0.93 (0.91 to 0.95)``.

        >>> print(Interval(0.93, 0.91, 0.95, 5), Interval(0.93, math.nan, math.nan, 1), sep="; ")
        0.93 (0.91 to 0.95); 0.93 (no interval)
        """
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return f"{number(self.value)} (no interval)"
        half = (self.high - self.low) / 2
        # Two digits of half the width, as an error is written.
        places = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 9
        if places > 7 or abs(self.value) >= 1e6:
            return f"{number(self.value)} ({number(self.low)} to {number(self.high)})"
        # Adding zero turns a rounded −0 into 0.
        shown = [round(v, places) + 0.0 for v in (self.value, self.low, self.high)]
        while places and all(round(v, places - 1) == v for v in shown):
            places -= 1
        value, low, high = (f"{v:.{places}f}" for v in shown)
        return f"{value} ({low} to {high})"


def mean_interval(values: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the mean over independent runs with Student's t interval.

    Mean ± t(level, n − 1) s / √n, s² with n − 1 in its denominator.

    >>> print(mean_interval([10.0, 20.0, 30.0]))
    20 (-5 to 45)
    """
    _check_level(level)
    array = _finite(values, "values")
    n, mean = array.size, float(array.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, n)
    half = student(level, n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def difference_interval(a: npt.ArrayLike, b: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the mean of a − b over pairs of runs with Student's t interval.

    >>> difference_interval([3.0, 5.0], [1.0, 3.0])
    Interval(value=2.0, low=2.0, high=2.0, n=2)
    """
    first, second = _pairs(a, b, names=("a", "b"))
    return mean_interval(first - second, level=level)


def ratio_interval(a: npt.ArrayLike, b: npt.ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the ratio of geometric means of paired runs, with Student's t interval of its log.

    >>> round(ratio_interval([1.0, 2.0], [4.0, 8.0]).value, 12)
    0.25
    """
    first, second = _pairs(a, b, names=("a", "b"))
    n_bad = int(np.count_nonzero((first <= 0) | (second <= 0)))
    if n_bad:
        msg = (
            f"a ratio of geometric means needs positive values; {n_bad} of {first.size} pairs hold "
            "one that is not: take difference_interval"
        )
        raise InvalidArgumentError(msg)
    log = mean_interval(np.log(first) - np.log(second), level=level)
    return Interval(math.exp(log.value), math.exp(log.low), math.exp(log.high), log.n)


def rank_correlation(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    method: str = "kendall",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    strata: Sequence[object] | None = None,
    clusters: Sequence[object] | None = None,
) -> Interval:
    """Return a rank correlation over models, with a percentile bootstrap interval.

    Kendall's τ-b is (C − D) / √((P − Tx)(P − Ty)) with C concordant, D discordant, Tx and Ty tied
    of P pairs. Spearman's ρ is Pearson's correlation of the ranks, ties at their mean rank. With
    strata, τ-b counts the pairs inside strata, and ρ takes ranks inside each, centred there; models
    are then resampled inside strata. With clusters, such as the seeds of one setting, whole
    clusters are resampled. A resample with all x or all y equal has no correlation and is left out.
    A perfect order is perfect in every resample: its interval has no width.

    Cost:
        O(resamples n²) operations and 8 n (n + 4 resamples) bytes, without a pass over any data.

    References:
        Kendall (1945), The treatment of ties in ranking problems. Biometrika 33(3).
        Efron (1979), Bootstrap methods: another look at the jackknife. Annals of Statistics 7(1).

    >>> rank_correlation([1, 2, 3, 4], [10, 20, 40, 30]).value
    0.6666666666666666
    """
    one_of(method, METHODS, what="rank correlation")
    _check_level(level)
    first, second = _pairs(x, y, names=("x", "y"))
    groups = _groups(strata, first.size, what="strata")
    if first.size < 2 or resamples < 1:
        msg = (
            f"got {first.size} models and resamples = {resamples}; expected two models or more "
            "and resamples of 1 or more"
        )
        raise InvalidArgumentError(msg)
    counts = _draws(groups, resamples, seed)
    if clusters is not None:
        cluster = _groups(clusters, first.size, what="clusters")
        counts = _draws(np.zeros(cluster.max() + 1, dtype=np.int64), resamples, seed)[:, cluster]
    statistic = _taus if method == "kendall" else _spearmans
    value = float(statistic(first, second, groups, np.ones((1, first.size)))[0])
    resampled = statistic(first, second, groups, counts)
    resampled = resampled[np.isfinite(resampled)]
    if not (math.isfinite(value) and resampled.size):
        return Interval(value, math.nan, math.nan, first.size)
    low, high = np.quantile(resampled, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high), first.size)


def _draws(groups: npt.NDArray[np.int64], resamples: int, seed: int) -> FloatArray:
    """Return how often each model is in each resample, shape (resamples, n)."""
    random = np.random.default_rng(seed)
    counts = np.empty((resamples, groups.size))
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        equal = np.full(inside.size, 1 / inside.size)
        counts[:, inside] = random.multinomial(inside.size, equal, size=resamples)
    return counts


def _taus(
    x: FloatArray, y: FloatArray, groups: npt.NDArray[np.int64], counts: FloatArray
) -> FloatArray:
    """Return τ-b of each resample: sums over pairs are quadratic forms of the counts."""
    same = groups[:, None] == groups[None, :]
    across = np.sign(x[:, None] - x[None, :]) * same
    up = np.sign(y[:, None] - y[None, :]) * same
    order, in_x, in_y = (
        np.einsum("rn,rn->r", counts @ pairs, counts)
        for pairs in (across * up, np.abs(across), np.abs(up))
    )
    return _quotients(order, in_x, in_y)


def _spearmans(
    x: FloatArray, y: FloatArray, groups: npt.NDArray[np.int64], counts: FloatArray
) -> FloatArray:
    """Return Spearman's ρ of each resample, from ranks that are centred in their stratum."""
    same = groups[:, None] == groups[None, :]
    # A rank less the mean rank is half of (how many are below − how many are above).
    below = counts @ (np.sign(x[None, :] - x[:, None]) * same)
    under = counts @ (np.sign(y[None, :] - y[:, None]) * same)
    order, in_x, in_y = (
        np.einsum("rn,rn,rn->r", counts, a, b)
        for a, b in ((below, under), (below, below), (under, under))
    )
    return _quotients(order, in_x, in_y)


def _quotients(order: FloatArray, in_x: FloatArray, in_y: FloatArray) -> FloatArray:
    known = (in_x > 0) & (in_y > 0)
    scale = np.sqrt(np.where(known, in_x * in_y, 1.0))
    return np.where(known, np.clip(order / scale, -1.0, 1.0), np.nan)


def _groups(labels: Sequence[object] | None, n: int, *, what: str) -> npt.NDArray[np.int64]:
    if labels is None:
        return np.zeros(n, dtype=np.int64)
    if len(labels) != n:
        msg = f"{what} must hold one label for each of {n} models; got {len(labels)}"
        raise InvalidArgumentError(msg)
    numbers = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], dtype=np.int64)


def _pairs(
    a: npt.ArrayLike, b: npt.ArrayLike, *, names: tuple[str, str]
) -> tuple[FloatArray, FloatArray]:
    first, second = _finite(a, names[0]), _finite(b, names[1])
    if first.shape != second.shape:
        msg = (
            f"{names[0]} and {names[1]} must hold one number for each pair; got shapes "
            f"{first.shape} and {second.shape}: give the same seeds or models in the same order"
        )
        raise InvalidArgumentError(msg)
    return first, second


def _finite(values: npt.ArrayLike, name: str) -> FloatArray:
    array: FloatArray = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        msg = f"{name} must be a vector of one number or more; got shape {array.shape}"
        raise InvalidArgumentError(msg)
    n_bad = int(np.count_nonzero(~np.isfinite(array)))
    if n_bad:
        msg = (
            f"{n_bad} of {array.size} numbers in {name} are not finite: leave those runs out, and "
            "say how many they were"
        )
        raise InvalidArgumentError(msg)
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        msg = f"level = {level!r}; expected a probability between 0 and 1, such as 0.95"
        raise InvalidArgumentError(msg)
