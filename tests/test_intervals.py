"""Intervals over runs: closed forms, SciPy, and how often the truth is covered."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy import stats

from landscape.errors import InvalidArgumentError
from landscape.intervals import (
    Interval,
    difference_interval,
    mean_interval,
    rank_correlation,
    ratio_interval,
)


def ends(found):
    return [found.low, found.high]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("n", [2, 5, 30])
def test_a_mean_has_the_t_interval_of_scipy(n, level):
    values = np.random.default_rng(n).normal(3.0, 2.0, size=n)
    found = mean_interval(values, level=level)
    wanted = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(ends(found), wanted, rtol=1e-12)
    assert (found.value, found.n) == (values.mean(), n)


def test_a_mean_of_two_in_closed_form():
    # One degree of freedom is Cauchy: its 95 % quantile is tan(0.475 π).
    found = mean_interval([0.0, 2.0])
    half = math.tan(0.475 * math.pi)
    np.testing.assert_allclose([found.value, *ends(found)], [1.0, 1.0 - half, 1.0 + half])


def test_one_run_has_no_interval():
    found = mean_interval([0.25])
    assert (found.value, found.n) == (0.25, 1)
    assert np.isnan(ends(found)).all()


def test_a_difference_is_paired():
    common = np.array([0.0, 10.0, 20.0, 30.0])
    moved = common + np.array([1.0, 2.0, 1.0, 2.0])
    found = difference_interval(moved, common)
    wanted = stats.ttest_rel(moved, common).confidence_interval(0.95)
    np.testing.assert_allclose(ends(found), [wanted.low, wanted.high], rtol=1e-12)
    assert (found.value, found.n) == (1.5, 4)


def test_a_ratio_is_that_of_geometric_means():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([2.0, 2.0, 27.0])
    found = ratio_interval(a, b)
    assert found.value == pytest.approx(stats.gmean(a) / stats.gmean(b), rel=1e-12)
    np.testing.assert_allclose(np.log(ends(found)), ends(mean_interval(np.log(a / b))))
    turned = ratio_interval(b, a)
    np.testing.assert_allclose([turned.low, turned.high], [1 / found.high, 1 / found.low])


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Interval(0.93, 0.91, 0.95, 5), "0.93 (0.91 to 0.95)"),
        (Interval(12.3456, 11.0, 13.7, 5), "12.3 (11.0 to 13.7)"),
        (Interval(-0.5, -0.6, -0.4, 5), "-0.5 (-0.6 to -0.4)"),
        (Interval(1234.0, 1000.0, 1468.0, 5), "1234 (1000 to 1468)"),
        (Interval(2.0, -0.4, 4.4, 5), "2.0 (-0.4 to 4.4)"),
        (Interval(20.0, -0.4, 40.4, 5), "20 (0 to 40)"),
        (Interval(0.0871, 0.0487, 0.1559, 3), "0.087 (0.049 to 0.156)"),
        (Interval(2.0, 2.0, 2.0, 5), "2 (2 to 2)"),
        (Interval(3e-9, 2e-9, 4e-9, 5), "3e-09 (2e-09 to 4e-09)"),
        (Interval(0.5, math.nan, math.nan, 1), "0.5 (no interval)"),
        (Interval(math.nan, math.nan, math.nan, 4), "nan (no interval)"),
    ],
)
def test_an_interval_is_written_to_the_place_that_counts(found, text):
    assert str(found) == text


# --- rank correlations -------------------------------------------------------------------------

SCIPY = {"kendall": stats.kendalltau, "spearman": stats.spearmanr}


@pytest.mark.parametrize("method", SCIPY)
def test_closed_forms(method):
    x = [1.0, 2.0, 3.0, 4.0]
    assert rank_correlation(x, [2.0, 4.0, 6.0, 8.0], method=method).value == 1.0
    assert rank_correlation(x, [8.0, 6.0, 4.0, 2.0], method=method).value == -1.0
    one_swap = {"kendall": 4 / 6, "spearman": 1 - 6 * 2 / (4 * 15)}[method]
    assert rank_correlation(x, [1, 2, 4, 3], method=method).value == pytest.approx(one_swap)


@pytest.mark.parametrize("method", SCIPY)
@pytest.mark.parametrize("levels", [4, 1000])
def test_values_and_every_resample_are_those_of_scipy(method, levels):
    random = np.random.default_rng(levels)
    x, y = random.integers(levels, size=(2, 30)).astype(float)
    found = rank_correlation(x, y, method=method, resamples=50, seed=3)
    assert found.value == pytest.approx(SCIPY[method](x, y).statistic, abs=1e-12)
    counts = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), size=50)
    drawn = [SCIPY[method](np.repeat(x, c), np.repeat(y, c)).statistic for c in counts]
    np.testing.assert_allclose(ends(found), np.quantile(drawn, [0.025, 0.975]), atol=1e-12)


@pytest.mark.parametrize("method", SCIPY)
def test_only_the_order_counts(method):
    x, y = np.random.default_rng(0).normal(size=(2, 25))
    found = rank_correlation(x, y, method=method, resamples=100)
    assert found == rank_correlation(np.exp(x), y**3, method=method, resamples=100)
    turned = rank_correlation(x, -y, method=method, resamples=100)
    np.testing.assert_allclose([turned.value, turned.low], [-found.value, -found.high])


def test_a_constant_has_no_correlation():
    for x, y in (([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5])):
        found = rank_correlation(x, y, resamples=10)
        assert found.n == 3
        assert np.isnan([found.value, *ends(found)]).all()


@pytest.mark.parametrize("method", SCIPY)
def test_strata_are_compared_inside_alone(method):
    # Rises inside each stratum, falls from one to the next: the sign turns.
    x, y = np.array([1.0, 2, 3, 11, 12, 13]), np.array([11.0, 12, 13, 1, 2, 3])
    names = list("aaabbb")
    assert rank_correlation(x, y, method=method).value < 0
    inside = rank_correlation(x, y, method=method, strata=names)
    assert (inside.value, inside.low, inside.high) == (1.0, 1.0, 1.0)
    assert np.isnan(rank_correlation(x, y, method=method, strata=range(6)).value)


def test_one_stratum_is_all_and_equal_strata_are_averaged():
    x, y = np.random.default_rng(1).normal(size=(2, 20))
    free = rank_correlation(x, y, resamples=50)
    assert rank_correlation(x, y, resamples=50, strata=["a"] * 20) == free
    halves = [stats.kendalltau(x[part], y[part]).statistic for part in (slice(10), slice(10, 20))]
    found = rank_correlation(x, y, strata=[0] * 10 + [1] * 10, resamples=5)
    assert found.value == pytest.approx(np.mean(halves), abs=1e-12)


def test_the_seed_fixes_the_interval():
    x, y = np.random.default_rng(2).normal(size=(2, 20))
    first, again, other = (rank_correlation(x, y, resamples=100, seed=s) for s in (5, 5, 6))
    assert first == again
    assert first.low != other.low
    assert first.value == other.value


@pytest.mark.parametrize("method", SCIPY)
def test_the_truth_of_a_gaussian_is_covered(method):
    # Spearman's ρ is 6/π asin(r/2), Kendall's τ 2/π asin(r).
    r, trials = 0.6, 300
    truth = {"spearman": 6 * math.asin(r / 2), "kendall": 2 * math.asin(r)}[method] / math.pi
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(trials):
        x, e = random.normal(size=(2, 80))
        y = r * x + math.sqrt(1 - r * r) * e
        found = rank_correlation(x, y, method=method, resamples=300, seed=trial)
        covered += found.low <= truth <= found.high
    # Three standard errors of a count, and the 2 % that a percentile interval lacks at this size.
    slack = 3 * math.sqrt(0.95 * 0.05 / trials)
    assert 0.93 - slack <= covered / trials <= 0.95 + slack


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0, math.nan, math.inf]), "2 of 3 numbers in values are not fin"),
        (lambda: mean_interval([]), "values must be a vector of one number or more; got shape (0,"),
        (lambda: mean_interval([[1.0]]), "got shape (1, 1)"),
        (lambda: mean_interval([1.0], level=95), "level = 95; expected a probability between 0"),
        (lambda: difference_interval([1.0], [1.0, 2.0]), "got shapes (1,) and (2,)"),
        (lambda: ratio_interval([1.0, 0.0], [1.0, 1.0]), "1 of 2 pairs hold one that is not"),
        (lambda: rank_correlation([1.0], [1.0]), "got 1 models and resamples = 2000"),
        (lambda: rank_correlation([1, 2], [1, 2], resamples=0), "resamples = 0"),
        (lambda: rank_correlation([1, 2], [1, 2], method="pearson"), "known: kendall, spearman"),
        (lambda: rank_correlation([1, 2], [1, 2], strata=["a"]), "each of 2 models; got 1"),
        (lambda: rank_correlation([1, math.nan], [1, 2]), "1 of 2 numbers in x"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        call()


def test_models_of_one_cluster_are_drawn_together():
    """Copies of a model are no evidence: the interval is that of one of each."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=20)
    y = x + generator.normal(size=20)
    clusters = np.repeat(np.arange(20), 3).tolist()
    alone = rank_correlation(x, y)
    copies = rank_correlation(np.repeat(x, 3), np.repeat(y, 3), clusters=clusters)
    naive = rank_correlation(np.repeat(x, 3), np.repeat(y, 3))
    assert copies.value == pytest.approx(alone.value)
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high))
    assert naive.high - naive.low < 0.75 * (alone.high - alone.low)


def test_each_model_by_itself_is_no_cluster():
    x, y = np.random.default_rng(1).normal(size=(2, 15))
    by_itself = rank_correlation(x, y, clusters=list(range(15)))
    assert by_itself == rank_correlation(x, y)
    with pytest.raises(InvalidArgumentError, match="clusters must hold one label for each of 15"):
        rank_correlation(x, y, clusters=[1, 2])
