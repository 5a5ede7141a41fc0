"""Trace estimates against dense matrices of known spectrum."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from landscape.errors import InvalidArgumentError, NonFiniteError
from landscape.linalg.krylov import Operator
from landscape.linalg.sampling import ProbeSource, StoppingRule
from landscape.linalg.trace import hutchinson_trace, hutchpp_trace, krylov_trace, xtrace
from landscape.stats import confidence_interval, student

SEEDS = 200
METHODS = [hutchinson_trace, hutchpp_trace, xtrace, krylov_trace]
COST = {hutchinson_trace: 1, hutchpp_trace: 3, xtrace: 2, krylov_trace: 2}
BLOCKWISE = [hutchinson_trace, krylov_trace]
N = 60
SPECTRA = {
    "decaying": 0.8 ** np.arange(N),
    "steep": 0.5 ** np.arange(N),
    "one stands out": np.r_[10.0, np.linspace(0.0, 0.01, N - 1)],
    "twenty stand out": np.r_[np.ones(20), np.full(N - 20, 1e-3)],
    "sixteen stand out": np.r_[np.linspace(1.0, 2.0, 16), np.linspace(0.0, 1e-3, N - 16)],
    "indefinite": np.linspace(-1.0, 1.0, N) + 0.02,
    "negative": -np.linspace(1.0, 2.0, N),
    "flat": 1e-6 * (1.0 + 0.5 * np.sin(np.arange(N))),
}
GROUPS = [slice(0, 1), slice(1, 6), slice(6, 30), slice(30, N)]


@functools.cache
def orthogonal(n):
    generator = torch.Generator().manual_seed(n)
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]


def symmetric(values):
    q = orthogonal(len(values))
    return (q * torch.as_tensor(np.asarray(values, dtype=np.float64))) @ q.T


def run(method, values, *, dtype=torch.float64, **options):
    matrix = symmetric(values).to(dtype)
    return method(lambda v: matrix @ v, len(matrix), dtype=dtype, device="cpu", **options)


def fixed(method, values, *, probes, **options):
    return run(method, values, rtol=0.0, max_matvecs=COST[method] * probes, **options)


@functools.cache
def repeated(method, name, **options):
    """Estimates of one spectrum from all the seeds: shared by the tests of bias and coverage."""
    matrix = symmetric(SPECTRA[name])
    settings = {"dtype": torch.float64, "device": "cpu", "max_matvecs": 54} | options
    return [method(lambda v: matrix @ v, N, seed=seed, **settings) for seed in range(SEEDS)]


def assert_coverage(covered):
    """Of 200 intervals of 95 %, 180 to 198 must cover; chance alone fails one test in 700."""
    assert len(covered) == SEEDS
    assert 0.90 <= np.mean(covered) <= 0.99


def assert_unbiased(values, truth):
    """The mean over seeds within 3.5 of its standard errors."""
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - truth) < 3.5 * error


def test_helpers_fail_when_they_should():
    draws = np.random.default_rng(0).normal(size=SEEDS)
    for quantile in (1.4, 4.0):
        with pytest.raises(AssertionError):
            assert_coverage(np.abs(draws) < quantile)
    assert_coverage(np.abs(draws) < 1.96)
    assert_unbiased(draws, 0.0)
    with pytest.raises(AssertionError):
        assert_unbiased(draws, 0.4)


COVERED = [
    *((hutchinson_trace, name) for name in ("one stands out", "indefinite")),
    (hutchpp_trace, "decaying"),
    *((xtrace, name) for name in ("decaying", "sixteen stand out", "indefinite")),
    *((krylov_trace, name) for name in ("sixteen stand out", "twenty stand out", "indefinite")),
]


@pytest.mark.parametrize(("method", "name"), COVERED)
def test_fixed_budget_is_unbiased_and_its_intervals_cover(method, name):
    budget = {hutchinson_trace: 16, hutchpp_trace: 36, xtrace: 32, krylov_trace: 24}[method]
    found = repeated(method, name, rtol=0.0, max_matvecs=budget)
    truth = SPECTRA[name].sum()
    assert {f.matvecs for f in found} == {budget}
    assert_unbiased([f.value for f in found], truth)
    assert_coverage([f.low <= truth <= f.high for f in found])


@pytest.mark.parametrize(
    ("method", "name", "rtol"),
    [
        (hutchinson_trace, "decaying", 0.38),
        (hutchinson_trace, "flat", 0.031),
        (hutchpp_trace, "decaying", 0.15),
        (xtrace, "decaying", 0.15),
        (krylov_trace, "sixteen stand out", 0.3),
        (krylov_trace, "flat", 0.02),
    ],
)
def test_intervals_cover_where_the_width_decides_when_to_stop(method, name, rtol):
    found = repeated(method, name, rtol=rtol)
    truth = SPECTRA[name].sum()
    assert_coverage([f.low <= truth <= f.high for f in found])
    for f in found:
        assert f.converged == (f.half_width <= rtol * abs(f.value)) or f.half_width > 0.7 * (
            rtol * abs(f.value)
        )
        assert f.low <= f.value <= f.high
    if method is not hutchpp_trace:
        assert len({f.n_probes for f in found}) > 1


def test_stopping_early_does_not_cost_coverage_of_skewed_samples():
    """χ²₁ samples, the hardest case: vᵀAv of a rank-one operator."""
    samples = np.random.default_rng(0).chisquare(1, size=(2000, 512))
    rule = StoppingRule(first=16, rtol=0.0, atol=0.5)
    covered = []
    for row in samples:
        before, last = math.inf, 1
        for p in rule.looks(512):
            found = confidence_interval(row[:p], 0.95)
            width = float(max(found.high - found.value, found.value - found.low))
            if rule.met(found.value, width=width, width_before=before * math.sqrt(last / p)):
                break
            before, last = width, p
        covered.append(found.low <= 1.0 <= found.high)
    assert 0.925 <= np.mean(covered) <= 0.965


@pytest.mark.parametrize("p", [8, 16, 64])
def test_interval_is_students_for_symmetric_samples_and_wider_upward_for_skewed_ones(p):
    rng = np.random.default_rng(p)
    half = rng.normal(size=p // 2)
    found = confidence_interval(np.r_[half, -half], 0.9)
    expected = student(0.9, p - 1) * np.r_[half, -half].std(ddof=1) / math.sqrt(p)
    np.testing.assert_allclose([found.low, found.high], [-expected, expected], rtol=1e-10)
    skewed = confidence_interval(rng.chisquare(1, p), 0.9)
    assert skewed.high - skewed.value > 1.1 * (skewed.value - skewed.low)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, shape: rng.normal(size=shape), 0.0),
        (lambda rng, shape: rng.chisquare(1, shape), 1.0),
        (lambda rng, shape: rng.normal(size=shape) * rng.normal(size=shape), 0.0),
        (lambda rng, shape: -rng.exponential(size=shape), -1.0),
    ],
)
def test_interval_covers_normal_skewed_and_heavy_tailed_samples(draw, truth):
    for p, least in ((8, 0.905), (16, 0.93), (32, 0.94)):
        found = confidence_interval(draw(np.random.default_rng(p), (p, 5000)), 0.95)
        covered = ((found.low <= truth) & (truth <= found.high)).mean()
        assert least <= covered <= 0.98


def test_xtrace_error_is_right_where_the_published_one_is_half_of_it():
    found = repeated(xtrace, "twenty stand out", rtol=0.0, max_matvecs=32)
    truth = SPECTRA["twenty stand out"].sum()
    actual = np.mean([(f.value - truth) ** 2 for f in found])
    stated = np.mean([f.standard_error**2 for f in found])
    published = np.mean([f.samples.var(ddof=1) / f.n_probes for f in found])
    assert 0.75 < stated / actual < 1.33
    assert published / actual < 0.5


def test_xtrace_from_its_definition():
    values = SPECTRA["decaying"]
    matrix = symmetric(values)
    p = 8
    for normalise in (True, False):
        found = fixed(xtrace, values, probes=p, seed=5, normalise=normalise)
        source = ProbeSource(operator_of(matrix), "sphere", 5)
        omega = torch.stack([source.draw() for _ in range(p)]).T
        samples = [leave_out(matrix, omega, i, {i}, normalise) for i in range(p)]
        np.testing.assert_allclose(found.samples, samples, rtol=1e-9)
        assert found.value == pytest.approx(np.mean(samples))
        pairs = [
            (samples[i] - leave_out(matrix, omega, i, {i, j}, normalise))
            * (samples[j] - leave_out(matrix, omega, j, {i, j}, normalise))
            for i in range(p)
            for j in range(i)
        ]
        variance = np.var(samples, ddof=1) / p + abs(np.mean(pairs))
        assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-7)


def leave_out(matrix, omega, i, left_out, normalise):
    kept = [j for j in range(omega.shape[1]) if j not in left_out]
    q = torch.linalg.qr(matrix @ omega[:, kept])[0]
    rest = omega[:, i] - q @ (q.T @ omega[:, i])
    if normalise:
        rest *= math.sqrt(len(matrix) - len(kept)) / rest.norm()
    return float(torch.trace(q.T @ matrix @ q) + rest @ matrix @ rest)


def operator_of(matrix, seed=0):
    return Operator(
        lambda v: matrix @ v,
        len(matrix),
        dtype=matrix.dtype,
        device="cpu",
        seed=seed,
        max_matvecs=10_000,
    )


def test_hutchpp_from_its_definition():
    values = SPECTRA["indefinite"]
    matrix = symmetric(values)
    found = fixed(hutchpp_trace, values, probes=7, seed=3)
    source = ProbeSource(operator_of(matrix), "rademacher", 3)
    drawn = torch.stack([source.draw() for _ in range(14)]).T
    q = torch.linalg.qr(matrix @ drawn[:, ::2])[0]
    rest = drawn[:, 1::2] - q @ (q.T @ drawn[:, 1::2])
    samples = torch.trace(q.T @ matrix @ q) + (rest * (matrix @ rest)).sum(0)
    np.testing.assert_allclose(found.samples, samples, rtol=1e-10)


def krylov_by_hand(matrix, p, seed):
    """Samples of the whole and of the blocks, from dense projections."""
    n = len(matrix)
    start = operator_of(matrix, seed).random_unit_vector()
    powers = [start]
    for _ in range(p - 1):
        powers.append(matrix @ powers[-1])
        powers[-1] /= powers[-1].norm()
    q = torch.linalg.qr(torch.stack(powers).T)[0]
    outside = torch.eye(n, dtype=matrix.dtype) - q @ q.T
    rest = outside @ matrix @ outside
    source = ProbeSource(operator_of(matrix), "sphere", seed + 1)
    samples = []
    for _ in range(p):
        g = outside @ source.draw()
        g *= math.sqrt(n - p) / g.norm()
        samples.append((matrix - rest).diagonal() + g * (rest @ g))
    return torch.stack(samples)


def test_krylov_trace_from_its_definition():
    matrix = symmetric(SPECTRA["indefinite"])
    found = fixed(krylov_trace, SPECTRA["indefinite"], probes=6, seed=3, groups=GROUPS[1:])
    expected = krylov_by_hand(matrix, 6, 3)
    np.testing.assert_allclose(found.samples, expected.sum(dim=1), rtol=1e-9)
    for i, group in enumerate(GROUPS[1:]):
        mean = float(expected[:, group].sum(dim=1).mean())
        assert found.groups.value[i] == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("method", BLOCKWISE)
def test_probes_in_blocks_give_the_same_numbers(method):
    matrix = symmetric(SPECTRA["indefinite"])
    sizes = []

    def matmat(vectors):
        sizes.append(len(vectors))
        return vectors @ matrix

    options = {"rtol": 0.0, "max_matvecs": 40, "groups": GROUPS, "seed": 4}
    plain = run(method, SPECTRA["indefinite"], **options)
    found = run(method, SPECTRA["indefinite"], matmat=matmat, **options)
    np.testing.assert_allclose(found.samples, plain.samples, rtol=1e-10)
    np.testing.assert_allclose(found.groups.value, plain.groups.value, rtol=1e-10)
    assert found.matvecs == plain.matvecs
    assert max(sizes) == 8
    assert sum(sizes) >= found.n_probes - 2


def test_products_of_a_block_are_counted_and_checked():
    matrix = symmetric(SPECTRA["flat"])
    settings = {"dtype": matrix.dtype, "device": "cpu", "seed": 0, "max_matvecs": 10}
    vectors = list(torch.eye(N, dtype=matrix.dtype)[:3])
    operator = Operator(lambda v: matrix @ v, N, matmat=lambda v: v @ matrix, **settings)
    for k, product in enumerate(operator.products(vectors)):
        torch.testing.assert_close(product, matrix[k])
        assert operator.matvecs == k + 1
    bad = Operator(lambda v: v, N, matmat=lambda v: v / 0.0, **settings)
    with pytest.raises(NonFiniteError, match="product 1 with the operator is not finite"):
        next(bad.products(vectors))
    short = Operator(lambda v: v, N, matmat=lambda v: v[1:], **settings)
    with pytest.raises(InvalidArgumentError, match="2 rows for 3 vectors"):
        next(short.products(vectors))


def test_hutchinson_is_the_mean_of_quadratic_forms():
    values = SPECTRA["indefinite"]
    matrix = symmetric(values)
    for kind in ("rademacher", "gaussian", "sphere"):
        found = run(hutchinson_trace, values, rtol=0.0, max_matvecs=5, seed=2, probes=kind)
        source = ProbeSource(operator_of(matrix), kind, 2)
        drawn = [source.draw() for _ in range(5)]
        np.testing.assert_allclose(found.samples, [float(v @ matrix @ v) for v in drawn])
        assert found.value == pytest.approx(found.samples.mean())
        assert found.standard_error == pytest.approx(found.samples.std(ddof=1) / math.sqrt(5))


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere"])
def test_probes_have_unit_covariance(kind):
    source = ProbeSource(operator_of(symmetric(np.ones(20))), kind, 0)
    drawn = np.stack([source.draw().numpy() for _ in range(4000)])
    np.testing.assert_allclose(drawn.T @ drawn / 4000, np.eye(20), atol=0.1)
    np.testing.assert_allclose(drawn.mean(0), 0.0, atol=0.07)
    lengths = np.linalg.norm(drawn, axis=1)
    if kind == "gaussian":
        assert lengths.std() > 0.5
    else:
        np.testing.assert_allclose(lengths, math.sqrt(20))
    if kind == "rademacher":
        np.testing.assert_array_equal(np.abs(drawn), 1.0)


def test_decay_makes_xtrace_and_hutchpp_far_better_than_hutchinson():
    """With 48 products each: 0.5²⁴ against 1/√48."""
    truth = SPECTRA["steep"].sum()

    def spread(method):
        found = [run(method, SPECTRA["steep"], rtol=0.0, max_matvecs=48, seed=s) for s in range(20)]
        return math.sqrt(np.mean([(f.value - truth) ** 2 for f in found]))

    hutchinson, hutchpp, sharp, krylov = (spread(method) for method in METHODS)
    assert hutchpp < 1e-3 * hutchinson
    assert sharp < 1e-5 * hutchinson
    assert krylov < 1e-5 * hutchinson


@pytest.mark.parametrize("method", [hutchpp_trace, xtrace, krylov_trace])
@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_low_rank_is_exact(method, rank):
    values = np.r_[np.linspace(2.0, -3.0, rank), np.zeros(N - rank)] if rank else np.zeros(N)
    for seed in range(5):
        found = run(method, values, seed=seed, max_matvecs=N - 1)
        assert found.value == pytest.approx(values.sum(), abs=1e-12)
        assert found.standard_error < 1e-12
        assert found.converged
        assert not found.exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [3, 7, 12])
@pytest.mark.parametrize("extra", [1, 2, 5])
def test_rank_just_below_the_number_of_probes(rank, extra, dtype):
    """The basis without one probe holds the range; without two it holds it, or just does not."""
    values = np.r_[np.linspace(1.0, 2.0, rank), np.zeros(N - rank)]
    rounding = 100 * torch.finfo(dtype).eps * values.sum()
    for seed in range(5):
        found = fixed(xtrace, values, probes=rank + extra, seed=seed, dtype=dtype)
        assert found.value == pytest.approx(values.sum(), abs=rounding)
        assert math.isfinite(found.standard_error)
        if extra > 1:
            assert found.standard_error < rounding


@pytest.mark.parametrize("method", METHODS)
def test_multiple_of_the_identity(method):
    found = method(lambda v: -2.5 * v, N, max_matvecs=N - 1, dtype=torch.float64, device="cpu")
    if method is hutchpp_trace:
        assert found.low <= -2.5 * N <= found.high
    else:
        assert found.value == pytest.approx(-2.5 * N, rel=1e-12)
        assert found.standard_error < 1e-12
        assert found.converged


def test_without_normalising_the_identity_is_no_longer_exact():
    settings = {"max_matvecs": N - 1, "dtype": torch.float64, "device": "cpu"}
    found = xtrace(lambda v: v, N, normalise=False, rtol=1.0, **settings)
    assert found.standard_error > 1e-3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [[3.0], [-1.0, 2.0], [-1.0, 2.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
def test_small_operators_are_exact(method, values):
    found = run(method, values)
    assert found.value == pytest.approx(sum(values), abs=1e-12)
    assert (found.exact, found.converged) == (True, True)
    assert (found.n_probes, found.matvecs, found.half_width) == (0, len(values), 0.0)
    exactly_enough = run(method, values, max_matvecs=len(values))
    assert exactly_enough.exact
    assert exactly_enough.matvecs == len(values)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [60, 159, 160, 239, 240, 470])
@pytest.mark.parametrize("spare", [0, 1, 3, 50, 10_000])
def test_a_budget_of_n_products_is_enough_for_the_exact_trace(method, n, spare):
    """Whatever the probes before them spent: never much more than n, never too few left."""
    values = torch.linspace(-1.0, 1.0, n, dtype=torch.float64) + 0.02
    found = run(method, values, atol=1e-9, rtol=0.0, max_matvecs=n + spare)
    assert found.exact
    assert (found.half_width, found.converged) == (0.0, True)
    assert found.value == pytest.approx(float(values.sum()), abs=1e-11)
    assert found.matvecs <= min(n + spare, 1.2 * n)
    short = run(method, values, atol=1e-9, rtol=0.0, max_matvecs=n - 1)
    assert not short.exact
    assert not short.converged
    assert short.matvecs <= n - 1


@pytest.mark.parametrize("method", METHODS)
def test_probes_that_meet_the_tolerance_are_not_followed_by_unit_vectors(method):
    found = run(method, 1.0 + 0.5 * np.sin(np.arange(480)), rtol=0.5)
    assert (found.exact, found.converged) == (False, True)
    assert found.matvecs <= 0.2 * 480


@pytest.mark.parametrize("method", METHODS)
def test_tolerances(method):
    values = SPECTRA["flat"]
    loose = run(method, values, rtol=0.5, max_matvecs=N - 1)
    assert loose.converged
    assert loose.n_probes == {hutchinson_trace: 32, krylov_trace: 12}.get(method, 16)
    assert loose.matvecs == COST[method] * loose.n_probes
    absolute = run(method, values, rtol=0.0, atol=0.5 * abs(values.sum()), max_matvecs=N - 1)
    assert absolute.matvecs == loose.matvecs
    near_zero = np.linspace(-1.0, 1.0, N)
    hopeless = run(method, near_zero, rtol=0.01, max_matvecs=50)
    assert not hopeless.converged
    assert 48 <= hopeless.matvecs <= 50


def test_one_look_is_never_enough():
    found = run(hutchinson_trace, SPECTRA["flat"], rtol=0.5, max_matvecs=16)
    assert found.half_width <= 0.5 * found.value
    assert not found.converged


def test_looks_are_doublings_unless_asked_for_more():
    finer = StoppingRule(first=8, rtol=0.0, atol=0.0, growth=1.5)
    assert list(finer.looks(50)) == [8, 12, 18, 27, 40, 50]
    rule = StoppingRule(first=8, rtol=0.0, atol=0.0)
    assert list(rule.looks(50)) == [8, 16, 32, 50]
    assert list(rule.looks(32)) == [8, 16, 32]
    assert list(rule.looks(5)) == [5]


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits_another_seed_another_estimate(method):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, again, other = (
        run(method, SPECTRA["indefinite"], seed=s, max_matvecs=50) for s in (1, 1, 2)
    )
    assert first.value == again.value
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.value != other.value
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_more_probes_go_on_from_the_first_ones(method):
    """What the first look drew is used again: its products are not paid for twice."""
    seen = []
    matrix = symmetric(SPECTRA["indefinite"])

    def matvec(v):
        seen.append(v.clone())
        return matrix @ v

    method(matvec, N, rtol=1e-6, max_matvecs=54, dtype=torch.float64, device="cpu")
    assert len(seen) <= 54
    distinct = {tuple(v.tolist()) for v in seen}
    assert len(distinct) == len(seen)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_operators(method, dtype):
    values = np.linspace(1.0, 3.0, N)
    found = run(method, values, dtype=dtype, rtol=0.2)
    truth = float(symmetric(values).to(dtype).double().trace())
    assert found.converged
    slack = 1e-5 if dtype is torch.float32 else 0.02
    assert found.low - slack * truth <= truth <= found.high + slack * truth


@pytest.mark.parametrize("method", METHODS)
def test_sums_are_kept_in_float64(method):
    """A float32 operator with a large opposite pair: the small rest survives in the sum."""
    diagonal = torch.cat([torch.tensor([1e6, -1e6]), torch.ones(N - 2)])
    found = method(
        lambda v: diagonal * v, N, dtype=torch.float32, device="cpu", rtol=0.0, atol=1e-9
    )
    assert found.value == N - 2


# Blocks.


@functools.cache
def with_groups(method):
    matrix = symmetric(SPECTRA["indefinite"])
    settings = {"groups": GROUPS, "dtype": torch.float64, "device": "cpu", "rtol": 0.0}
    return [
        method(lambda v: matrix @ v, N, max_matvecs=24 * COST[method], seed=seed, **settings)
        for seed in range(SEEDS)
    ]


@pytest.mark.parametrize("method", BLOCKWISE)
@pytest.mark.parametrize("i", range(len(GROUPS)))
def test_traces_of_blocks_are_unbiased_and_their_intervals_cover(method, i):
    block = symmetric(SPECTRA["indefinite"])[GROUPS[i], GROUPS[i]]
    truth = float(block.trace())
    groups = [found.groups for found in with_groups(method)]
    assert_unbiased([g.value[i] for g in groups], truth)
    assert_coverage([g.low[i] <= truth <= g.high[i] for g in groups])


@pytest.mark.parametrize("method", BLOCKWISE)
def test_traces_of_blocks_sum_to_the_total(method):
    for found in with_groups(method)[:10]:
        assert found.groups.value.sum() == pytest.approx(found.value, rel=1e-12)
        assert found.groups.value.shape == (len(GROUPS),)
    alone = run(method, SPECTRA["indefinite"], rtol=0.0, max_matvecs=24 * COST[method])
    assert alone.value == pytest.approx(with_groups(method)[0].value, rel=1e-12)
    assert alone.groups.value.shape == (0,)


@pytest.mark.parametrize("method", BLOCKWISE)
def test_traces_of_blocks_are_exact_where_the_total_is(method):
    matrix = symmetric(SPECTRA["indefinite"])
    found = run(method, SPECTRA["indefinite"], groups=GROUPS, rtol=0.0, atol=1e-9)
    assert found.exact
    blocks = [float(matrix[g, g].trace()) for g in GROUPS]
    np.testing.assert_allclose(found.groups.value, blocks, atol=1e-12)
    np.testing.assert_array_equal(found.groups.standard_error, 0.0)


@pytest.mark.parametrize("overlap", [False, True])
def test_small_blocks_are_exact_for_a_fifth_more_products(overlap):
    n = 600
    matrix = symmetric(1.0 + np.sin(np.arange(n)))
    groups = [slice(0, 580), slice(580, 597), slice(597, 600)]
    if overlap:
        groups.append(slice(590, 598))  # of the others it is smaller than one only
    settings = {"rtol": 0.05, "max_matvecs": n - 1, "dtype": torch.float64, "device": "cpu"}
    plain = hutchinson_trace(lambda v: matrix @ v, n, **settings)
    found = hutchinson_trace(lambda v: matrix @ v, n, groups=groups, **settings)
    few = found.matvecs - found.n_probes
    assert (found.n_probes, few) == (plain.n_probes, 3)
    assert 3 <= 0.2 * found.n_probes < 3 + 8
    blocks = [float(matrix[g, g].trace()) for g in groups]
    assert found.groups.value[2] == pytest.approx(blocks[2], rel=1e-12)
    assert found.groups.low[2] == found.groups.high[2]
    assert found.groups.standard_error[1] > 0.0
    if not overlap:
        assert found.groups.value.sum() == pytest.approx(found.value, rel=1e-12)
    assert found.low <= float(matrix.trace()) <= found.high


def test_the_noise_of_small_blocks_leaves_the_whole():
    """One large number in a block of one row, and its row's noise with it."""
    matrix = symmetric(SPECTRA["flat"])
    matrix[0] = matrix[:, 0] = 1.0
    settings = {"rtol": 1e3, "max_matvecs": N - 1, "dtype": torch.float64, "device": "cpu"}
    plain, settled = (
        hutchinson_trace(lambda v: matrix @ v, N, groups=groups, **settings)
        for groups in ([], [slice(0, 1), slice(1, N)])
    )
    assert settled.standard_error < 0.6 * plain.standard_error
    assert abs(settled.value - float(matrix.trace())) < 4 * settled.standard_error


# Refusals.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("at", "bad"), [(1, math.nan), (7, math.inf)])
def test_nan_in_a_product_is_named(method, at, bad):
    count = 0

    def matvec(v):
        nonlocal count
        count += 1
        return torch.full_like(v, bad) if count == at else v.flip(0)

    with pytest.raises(NonFiniteError, match=rf"product {at} with the operator is not finite"):
        method(matvec, N, dtype=torch.float64, device="cpu")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -0.1}, r"rtol must be a finite number of at least 0, got -0.1; 0 for both"),
        ({"atol": math.nan}, r"atol must be a finite number of at least 0, got nan; 0 for both"),
        ({"confidence": 1.0}, r"confidence = 1.0; expected a probability between 0 and 1"),
        ({"max_matvecs": 1}, r"max_matvecs must be a whole number of at least \d, got 1"),
        ({"dtype": torch.int64}, r"dtype = torch.int64; expected a real floating-point type"),
    ],
)
def test_arguments_out_of_range(method, options, message):
    settings = {"dtype": torch.float64, "device": "cpu"} | options
    with pytest.raises(InvalidArgumentError, match=message):
        method(lambda v: v, N, **settings)


def test_size_zero_is_refused():
    for call in METHODS:
        with pytest.raises(InvalidArgumentError, match="n = 0; expected an operator of size 1"):
            call(lambda v: v, 0, dtype=torch.float64, device="cpu")


def test_unknown_probes_are_refused_with_the_nearest_name():
    with pytest.raises(InvalidArgumentError, match=r"kind of probe 'gausian' \(nearest: gaussian"):
        run(hutchinson_trace, [1.0, 2.0], probes="gausian")


@pytest.mark.parametrize(
    "group", [slice(0, N + 1), slice(4, 4), slice(-3, 5), slice(0, 8, 2), slice(None, 5)]
)
def test_groups_that_are_no_range_are_refused(group):
    with pytest.raises(InvalidArgumentError, match=r"group slice.* 0 <= start < stop <= n = 60"):
        run(hutchinson_trace, SPECTRA["flat"], groups=[group])


def test_product_of_another_shape_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"product 1 .* shape \(30,\), expected \(60,\)"):
        xtrace(lambda v: v[:30], N, dtype=torch.float64, device="cpu")
