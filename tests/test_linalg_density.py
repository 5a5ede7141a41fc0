"""Stochastic Lanczos quadrature against the exact densities of known spectra."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from test_linalg_trace import assert_coverage, assert_unbiased, orthogonal, symmetric

from landscape.errors import InvalidArgumentError, NonFiniteError
from landscape.linalg import density
from landscape.linalg.density import _bracket, gauss_rule, spectral_density

SEEDS = 200
N = 40
# A gap at zero, which a few steps resolve; and three outliers above a bulk that crosses zero.
GAPPED = np.r_[np.linspace(-1.0, -0.5, 8), np.linspace(0.3, 2.0, N - 8)]
OUTLIERS = np.r_[np.linspace(-0.3, 0.7, N - 3), 5.0, 8.0, 8.5]


def run(values, *, dtype=torch.float64, deflate=0, **options):
    matrix = symmetric(values).to(dtype)
    pairs = eigenpairs(values, deflate) if deflate else None
    return spectral_density(
        lambda v: matrix @ v, len(matrix), eigenpairs=pairs, dtype=dtype, device="cpu", **options
    )


def eigenpairs(values, k):
    """The last k eigenpairs of `symmetric`, exact."""
    columns = orthogonal(len(values))[:, len(values) - k :]
    return np.asarray(values, dtype=float)[len(values) - k :], columns.T.contiguous()


def exact_density(values, grid, bandwidth):
    kernel = np.exp(-0.5 * ((np.asarray(grid)[:, None] - values) / bandwidth) ** 2)
    return kernel.mean(axis=1) / (bandwidth * math.sqrt(2 * math.pi))


@functools.cache
def repeated(name):
    if name == "gapped":
        return [run(GAPPED, steps=12, bandwidth=0.25, seed=seed) for seed in range(SEEDS)]
    return [run(OUTLIERS, steps=10, bandwidth=0.12, deflate=3, seed=s) for s in range(SEEDS)]


CURVES = {
    "gapped": (GAPPED, np.linspace(-1.4, 2.4, 8), 0.25),
    "deflated": (OUTLIERS, np.linspace(-0.5, 0.9, 8), 0.12),
}


@functools.cache
def curves(name):
    _, grid, bandwidth = CURVES[name]
    return [found.quadrature.curve(grid, bandwidth=bandwidth) for found in repeated(name)]


@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("name", CURVES)
def test_density_is_unbiased_and_its_band_covers_at_each_point(name, at):
    values, grid, bandwidth = CURVES[name]
    truth = exact_density(values, grid, bandwidth)[at]
    assert_unbiased([c.density[at] for c in curves(name)], truth)
    assert_coverage([c.low[at] <= truth <= c.high[at] for c in curves(name)])


@pytest.mark.parametrize("name", CURVES)
def test_band_comes_from_the_probes_not_from_the_quadrature(name):
    for c in curves(name)[:10]:
        assert (c.quadrature_error < 0.05 * c.standard_error).all()
    spread = np.std([c.density for c in curves(name)], axis=0, ddof=1)
    stated = np.sqrt(np.mean([c.standard_error**2 for c in curves(name)], axis=0))
    np.testing.assert_allclose(stated, spread, rtol=0.25)


def test_negative_mass_is_unbiased_and_its_interval_covers():
    masses = [found.negative for found in repeated("gapped")]
    assert_unbiased([m.value for m in masses], 8 / N)
    assert_coverage([m.low <= 8 / N <= m.high for m in masses])
    assert np.mean([m.high - m.low for m in masses]) < 0.12


def test_negative_mass_covers_where_the_steps_leave_it_open():
    """A bulk that crosses zero: the bracket of the quadrature adds to the sampling error."""
    truth = (OUTLIERS < 0).mean()
    masses = [found.negative for found in repeated("deflated")]
    assert np.mean([m.low <= truth <= m.high for m in masses]) >= 0.95
    assert np.mean([m.value for m in masses]) == pytest.approx(truth, abs=0.02)
    assert np.mean([m.high - m.low for m in masses]) < 0.3


def test_moments_cover_those_of_the_spectrum():
    for j in (1, 2):
        truth = (GAPPED**j).mean()
        moments = [found.moments for found in repeated("gapped")]
        assert_unbiased([m.value[j] for m in moments], truth)
        assert_coverage([m.low[j] <= truth <= m.high[j] for m in moments])


@pytest.mark.parametrize("name", ["gapped", "deflated"])
def test_mass_is_one(name):
    for found in repeated(name)[:5]:
        k = len(found.quadrature.atoms)
        assert found.moments.value[0] == pytest.approx(1.0, abs=1e-12)
        assert found.moments.standard_error[0] < 1e-12
        np.testing.assert_allclose(found.quadrature.weights.sum(axis=1), (N - k) / N)
        assert trapezoid(found.curve.density, found.curve.grid) == pytest.approx(1.0, abs=1e-4)


class Recorder:
    """A matvec that keeps what it was given."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.seen = []

    def __call__(self, v):
        self.seen.append(v.clone())
        return self.matrix @ v


@pytest.mark.parametrize("deflate", [0, 3])
def test_each_probe_is_the_gauss_rule_of_its_spectral_measure(deflate):
    recorder, m = Recorder(symmetric(OUTLIERS)), 6
    pairs = eigenpairs(OUTLIERS, deflate)
    found = spectral_density(
        recorder, N, steps=m, n_probes=3, eigenpairs=pairs, dtype=torch.float64, device="cpu"
    )
    rest = (N - deflate) / N
    for i, v in enumerate(recorder.seen[::m]):
        assert float(v.norm()) == pytest.approx(1.0)
        c = (orthogonal(N).T @ v).numpy()
        nodes, weights = found.quadrature.nodes[i], found.quadrature.weights[i]
        for degree in range(2 * m):
            exact = rest * (c**2 * OUTLIERS**degree).sum()
            assert weights @ nodes**degree == pytest.approx(exact, rel=1e-9)
    assert found.matvecs == len(recorder.seen) == 3 * m


def test_lanczos_vectors_stay_orthogonal_to_each_other_and_to_what_is_deflated():
    recorder = Recorder(symmetric(OUTLIERS).float())
    values, vectors = eigenpairs(OUTLIERS, 3)
    spectral_density(
        recorder,
        N,
        steps=N,
        n_probes=2,
        eigenpairs=(values, vectors.float()),
        dtype=torch.float32,
        device="cpu",
    )
    first = torch.stack(recorder.seen[: N - 3]).double()
    torch.testing.assert_close(first @ first.T, torch.eye(N - 3).double(), atol=1e-5, rtol=0)
    assert float((first @ vectors.T).abs().max()) < 1e-5


def test_deflated_pairs_enter_exactly():
    for found in repeated("deflated")[:5]:
        np.testing.assert_array_equal(found.quadrature.atoms, [5.0, 8.0, 8.5])
        near = np.array([4.9, 5.0, 8.0, 8.45])
        c = found.quadrature.curve(near, bandwidth=0.1)
        np.testing.assert_allclose(c.density, exact_density(OUTLIERS, near, 0.1), rtol=1e-12)
        np.testing.assert_array_equal(c.standard_error, 0.0)
        assert np.nanmax(found.quadrature.nodes) < 0.71


def test_deflation_takes_the_noise_of_the_outliers_out_of_the_moments():
    plain, deflated = (run(OUTLIERS, steps=12, deflate=k) for k in (0, 3))
    assert deflated.moments.standard_error[2] < 0.02 * plain.moments.standard_error[2]
    truth = (OUTLIERS**2).mean()
    assert abs(deflated.moments.value[2] - truth) < 4 * deflated.moments.standard_error[2]


def test_everything_deflated_leaves_nothing_to_sample():
    values = np.array([-2.0, -1.0, 0.0, 3.0])
    found = run(values, deflate=4, bandwidth=0.3)
    assert found.matvecs == 0
    np.testing.assert_allclose(
        found.curve.density, exact_density(values, found.curve.grid, 0.3), rtol=1e-12
    )
    assert (found.negative.low, found.negative.value, found.negative.high) == (0.5, 0.5, 0.5)
    assert found.moments.value.tolist() == [1.0, 0.0, 3.5]


def test_all_but_one_deflated():
    values = np.array([-2.0, 0.5, 1.0, 3.0])
    found = run(values, deflate=3, bandwidth=0.3)
    np.testing.assert_allclose(
        found.curve.density, exact_density(values, found.curve.grid, 0.3), rtol=1e-10, atol=1e-14
    )
    assert (found.negative.low, found.negative.high) == (0.25, 0.25)


# Brackets.


def lanczos_by_hand(values, c, m):
    """Tridiagonal matrix of m steps for the measure Σ cᵢ² δ(λᵢ), by orthogonal polynomials."""
    basis, alphas, betas = [c / np.linalg.norm(c)], [], []
    for _ in range(m):
        w = values * basis[-1]
        alphas.append(w @ basis[-1])
        for _ in range(2):
            for q in basis:
                w -= (w @ q) * q
        betas.append(np.linalg.norm(w))
        basis.append(w / betas[-1])
    return np.array(alphas), np.array(betas)


@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_bracket_holds_the_mass_of_the_measure_at_every_level(m):
    rng = np.random.default_rng(m)
    for _ in range(10):
        values = np.sort(rng.normal(size=50))
        c = rng.normal(size=50)
        c /= np.linalg.norm(c)
        alphas, betas = lanczos_by_hand(values, c, m)
        nodes = gauss_rule(alphas, betas[:-1])[0]
        for edge in (*np.linspace(-4, 4, 41), *nodes, *values[::7]):
            low, high = _bracket(alphas, betas, edge)
            mass = (c[values < edge] ** 2).sum()
            assert low - 1e-9 <= mass
            assert (c[values <= edge] ** 2).sum() - 1e-9 <= high or edge in nodes
            assert mass <= high + 1e-9


def test_bracket_is_the_radau_rule():
    """One step, α = 0 and β = 1: the largest mass a measure of that mean and variance can have."""
    low, high = _bracket(np.array([0.0]), np.array([1.0]), -2.0)
    assert low == pytest.approx(0.0, abs=1e-12)
    assert high == pytest.approx(1 / (1 + 2.0**2))
    low, high = _bracket(np.array([0.0]), np.array([1.0]), 2.0)
    assert (low, high) == (pytest.approx(1 - 1 / 5), pytest.approx(1.0))


def test_brackets_close_as_steps_are_added():
    widths = []
    for steps in (4, 8, 16, 32):
        quadrature = run(np.linspace(-1, 1, 60), steps=steps).quadrature
        rows = quadrature._rows()
        widths.append(np.mean([np.ptp(_bracket(*row, 0.003)) for row in rows]))
    assert (np.diff(widths) < 0).all()
    assert widths[-1] < 0.3 * widths[0]


def test_mass_below_any_level_is_monotone_and_within_bounds():
    quadrature = run(GAPPED, steps=10).quadrature
    masses = [quadrature.mass_below(level) for level in np.linspace(-3, 4, 60)]
    values = np.array([m.value for m in masses])
    assert (np.diff(values) >= -1e-9).all()
    assert values[0] == pytest.approx(0.0, abs=1e-6)
    assert values[-1] == pytest.approx(1.0, abs=1e-6)
    for mass, level in zip(masses, np.linspace(-3, 4, 60), strict=True):
        assert 0.0 <= mass.low <= mass.value <= mass.high <= 1.0
        assert mass.level == level


def test_flat_directions_are_not_counted_as_negative():
    """Zero eigenvalues come out as ±1e-17; once resolved they must not widen the interval."""
    values = np.r_[np.zeros(16), np.linspace(0.5, 2.0, 24)]
    found = run(values, steps=30)
    assert found.negative.value == pytest.approx(0.0, abs=1e-6)
    assert found.negative.high < 1e-6
    values[16:20] = [-1.0, -0.9, -0.8, -0.7]
    found = run(values, steps=30)
    assert 0.03 < found.negative.low < 0.1 < found.negative.high < 0.2


def test_probes_below_zero_that_a_level_away_from_it_leaves_out():
    quadrature = run(GAPPED, steps=14, seed=3).quadrature
    assert quadrature.mass_below(-2.0).high < 1e-3
    assert quadrature.mass_below(3.0).low > 0.999
    half = quadrature.mass_below(-0.75)
    assert half.low < 4 / N < half.high


# Special spectra.


@pytest.mark.parametrize("values", [[2.0], [-1.0, 1.0], [-1.0, 2.0, 2.0]])
def test_tiny_operators(values):
    found = run(values, bandwidth=0.2)
    truth = exact_density(np.array(values), found.curve.grid, 0.2)
    if len(values) == 1:
        np.testing.assert_allclose(found.curve.density, truth, rtol=1e-12)
    inside = (found.curve.low <= truth + 1e-12) & (truth <= found.curve.high + 1e-12)
    assert inside.all()
    distinct = np.unique(values)
    np.testing.assert_allclose(found.quadrature.nodes, np.tile(distinct, (16, 1)), atol=1e-12)
    np.testing.assert_array_equal(found.curve.quadrature_error, 0.0)
    assert found.matvecs == 16 * len(distinct)


@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-6, 0.0])
def test_multiples_of_the_identity(scale):
    found = spectral_density(lambda v: scale * v, N, dtype=torch.float64, device="cpu")
    assert found.curve.bandwidth == pytest.approx((abs(scale) or 1.0) / 64)
    truth = exact_density(np.array([scale]), found.curve.grid, found.curve.bandwidth)
    np.testing.assert_allclose(found.curve.density, truth, rtol=1e-9)
    assert found.matvecs == 16
    assert found.negative.value == pytest.approx(float(scale < 0))
    assert found.negative.high - found.negative.low < 1e-12


def test_low_rank_is_exhausted_early():
    values = np.r_[np.zeros(N - 3), 1.0, 2.0, -1.0]
    found = run(values)
    assert 16 * 4 <= found.matvecs < 16 * 5
    for nodes, weights in zip(found.quadrature.nodes, found.quadrature.weights, strict=True):
        # Rounding may split the node at zero in two.
        assert set(nodes[weights > 1e-12].round(9)) == {-1.0, 0.0, 1.0, 2.0}
    assert found.negative.low < 1 / N < found.negative.high


def test_probes_of_unequal_length_are_padded():
    """An eigenvector is met by chance only; here one probe is exhausted by construction."""
    count = 0
    matrix = symmetric(GAPPED)

    def matvec(v):
        nonlocal count
        count += 1
        return v * 0.5 if count == 1 else matrix @ v

    found = spectral_density(matvec, N, steps=5, n_probes=3, dtype=torch.float64, device="cpu")
    assert np.isnan(found.quadrature.nodes[0, 1:]).all()
    np.testing.assert_array_equal(found.quadrature.weights[0, 1:], 0.0)
    assert np.isfinite(found.curve.density).all()
    assert np.isfinite(found.curve.high).all()
    assert found.moments.value[0] == pytest.approx(1.0)


def test_scale_of_the_operator_changes_nothing():
    plain, small = run(GAPPED, steps=8), run(1e-6 * GAPPED, steps=8)
    assert small.curve.bandwidth == pytest.approx(1e-6 * plain.curve.bandwidth)
    np.testing.assert_allclose(small.curve.grid, 1e-6 * plain.curve.grid, rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(
        1e-6 * small.curve.density, plain.curve.density, rtol=1e-6, atol=1e-9
    )
    assert small.negative.value == pytest.approx(plain.negative.value, rel=1e-6)


def test_float32_agrees_with_float64():
    exact, single = (run(GAPPED, steps=20, dtype=d) for d in (torch.float64, torch.float32))
    again = single.quadrature.curve(exact.curve.grid, bandwidth=exact.curve.bandwidth)
    np.testing.assert_allclose(again.density, exact.curve.density, atol=1e-4)
    assert single.negative.value == pytest.approx(exact.negative.value, abs=1e-4)


# Runs in step, and when they end.

BULK = np.random.default_rng(0).normal(size=600) ** 3 * 0.05
SPECTRA = {
    "heavy-tailed": np.sort(BULK),
    "uniform": np.linspace(-1.0, 1.0, 600),
    "two clusters": np.r_[np.linspace(-1.0, -0.99, 300), np.linspace(0.99, 1.0, 300)],
    "a single one far off": np.r_[np.linspace(0.0, 0.01, 599), 1.0],
    "decaying": 0.9 ** np.arange(600.0),
}


@functools.cache
def ended_early(name, **options):
    matrix = symmetric(SPECTRA[name])
    settings = {"steps": 64, "n_probes": 8, "dtype": torch.float64, "device": "cpu"} | options
    return spectral_density(lambda v: matrix @ v, 600, **settings)


@pytest.mark.parametrize("name", SPECTRA)
def test_runs_end_where_the_sampling_error_hides_the_rest(name):
    early, full = ended_early(name, bias=0.1), ended_early(name)
    grid, bandwidth = full.curve.grid, full.curve.bandwidth
    assert early.curve.bandwidth == pytest.approx(bandwidth, rel=1e-2)
    found, best = (d.quadrature.curve(grid, bandwidth=bandwidth) for d in (early, full))
    moved = trapezoid(np.abs(found.density - best.density), grid)
    error = math.sqrt(2 / math.pi) * trapezoid(best.standard_error, grid)
    assert moved <= 0.1 * error + 1e-12
    assert early.matvecs <= full.matvecs
    if name in {"heavy-tailed", "decaying"}:
        assert early.matvecs <= 0.7 * full.matvecs
    assert (found.low <= exact_density(SPECTRA[name], grid, bandwidth) + 1e-9).mean() > 0.9


def test_a_finer_bandwidth_takes_more_steps():
    coarse, fine = (
        ended_early("heavy-tailed", bias=0.1, bandwidth=width) for width in (0.02, 0.004)
    )
    assert coarse.matvecs < fine.matvecs


def test_runs_in_step_are_the_runs_one_by_one():
    matrix, sizes = symmetric(OUTLIERS), []

    def matmat(vectors):
        sizes.append(len(vectors))
        return vectors @ matrix

    options = {"deflate": 2, "n_probes": 11, "steps": 9}
    plain, found = run(OUTLIERS, **options), run(OUTLIERS, matmat=matmat, **options)
    np.testing.assert_allclose(found.quadrature.nodes, plain.quadrature.nodes, rtol=1e-8)
    np.testing.assert_allclose(found.curve.density, plain.curve.density, rtol=1e-8)
    assert sizes == [8, 3] * 9
    assert found.matvecs == plain.matvecs == 99


def test_bases_that_do_not_fit_at_once_take_turns(monkeypatch):
    whole = run(GAPPED, n_probes=5, steps=16, bias=0.1)
    monkeypatch.setattr(density, "_BASES_BYTES", 2 * 18 * N * 8)
    seen = []
    kept = density.LanczosRun.forget
    monkeypatch.setattr(density.LanczosRun, "forget", lambda r: (seen.append(r), kept(r)))
    some = run(GAPPED, n_probes=5, steps=16, bias=0.1)
    assert len(seen) == 5
    assert all(not len(r.basis.rows) for r in seen)
    lengths = (~np.isnan(some.quadrature.nodes)).sum(axis=1)
    assert len(set(lengths.tolist())) == 1
    m = min(some.quadrature.alphas.shape[1], whole.quadrature.alphas.shape[1])
    np.testing.assert_allclose(
        some.quadrature.alphas[:, :m], whole.quadrature.alphas[:, :m], rtol=1e-9
    )


# The grid and the bandwidth.


def test_default_bandwidth_is_what_the_steps_resolve():
    for steps, deflate in ((8, 0), (16, 0), (16, 3)):
        found = run(OUTLIERS, steps=steps, deflate=deflate)
        width = np.nanmax(found.quadrature.nodes) - np.nanmin(found.quadrature.nodes)
        assert found.curve.bandwidth == pytest.approx(width / steps)
        assert found.curve.quadrature_error.max() < 0.1 * found.curve.standard_error.max()


def test_quadrature_error_shows_a_bandwidth_that_is_too_small():
    """Eight steps over a width of 2 resolve 0.25. Half of that the band still allows for."""
    values, grid = np.linspace(-1, 1, 120), np.linspace(-1, 1, 100)
    quadrature = run(values, steps=8, n_probes=40).quadrature
    half, sixth = (quadrature.curve(grid, bandwidth=h) for h in (0.125, 0.04))
    truth = exact_density(values, grid, 0.125)
    assert (np.abs(half.density - truth) <= 2 * half.standard_error).mean() < 0.8
    assert ((half.low <= truth) & (truth <= half.high)).mean() > 0.9
    bias = np.abs(sixth.density - exact_density(values, grid, 0.04)).mean()
    assert bias < sixth.quadrature_error.mean() < 4 * bias
    assert bias > 5 * sixth.standard_error.mean()


def test_grid_covers_nodes_and_atoms_and_resolves_the_bandwidth():
    found = run(OUTLIERS, steps=12, deflate=3)
    grid, h = found.curve.grid, found.curve.bandwidth
    bulk = grid[grid < 1.0]
    np.testing.assert_allclose(np.diff(bulk)[: len(bulk) // 2], np.diff(bulk)[0])
    assert np.diff(bulk)[0] <= h / 4 * 1.001
    for point in (*np.nan_to_num(found.quadrature.nodes).ravel(), 5.0, 8.0, 8.5):
        near = grid[np.abs(grid - point) <= 5.9 * h]
        assert near.min() < point - 5.5 * h
        assert near.max() > point + 5.5 * h
    assert (np.diff(grid) > 0).all()
    assert len(grid) < 500
    even = run(OUTLIERS, steps=12).curve.grid
    np.testing.assert_allclose(np.diff(even), np.diff(even)[0])


def test_another_grid_and_bandwidth_cost_no_product():
    recorder = Recorder(symmetric(GAPPED))
    found = spectral_density(recorder, N, steps=14, dtype=torch.float64, device="cpu")
    spent = len(recorder.seen)
    logarithmic = np.geomspace(1e-2, 3, 50)
    c = found.quadrature.curve(logarithmic, bandwidth=0.3)
    assert len(recorder.seen) == spent
    np.testing.assert_array_equal(c.grid, logarithmic)
    truth = exact_density(GAPPED, logarithmic, 0.3)
    assert (np.abs(c.density - truth) < 5 * c.standard_error + 1e-6).all()
    same = found.quadrature.curve(found.curve.grid, bandwidth=found.curve.bandwidth)
    np.testing.assert_array_equal(same.density, found.curve.density)


def test_same_seed_same_bits_and_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first, again, other = (run(GAPPED, steps=6, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.quadrature.nodes, again.quadrature.nodes)
    assert not np.array_equal(first.quadrature.nodes, other.quadrature.nodes)
    assert torch.equal(torch.random.get_rng_state(), state)


# Refusals.


def test_nan_in_a_product_is_named():
    count = 0

    def matvec(v):
        nonlocal count
        count += 1
        return v * math.nan if count == 5 else v.flip(0) + v

    with pytest.raises(NonFiniteError, match="product 5 with the operator is not finite"):
        spectral_density(matvec, N, n_probes=4, dtype=torch.float64, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps must be a whole number of at least 2, got 1"),
        ({"n_probes": 1}, "n_probes must be a whole number of at least 2, got 1"),
        ({"confidence": 0.0}, "confidence = 0.0; expected a probability between 0 and 1"),
        ({"dtype": torch.int32}, "dtype = torch.int32; expected a real floating-point type"),
        ({"bandwidth": 0.0}, "bandwidth must be a finite number above zero, got 0.0"),
        (
            {"eigenpairs": (np.ones(2), torch.eye(3, N))},
            r"eigenpairs of shapes \(2,\) and \(3, 40\); expected \(k,\) and \(k, 40\)",
        ),
        (
            {"eigenpairs": (np.ones(2), torch.ones(2, N))},
            "inner products differ from those of an orthonormal set by 40; expected less",
        ),
        (
            {"eigenpairs": (np.array([1.0, math.nan]), torch.eye(2, N))},
            "eigenvalues .* expected finite ones, of eigenpairs that converged",
        ),
    ],
)
def test_arguments_out_of_range(options, message):
    settings = {"dtype": torch.float64, "device": "cpu"} | options
    with pytest.raises(InvalidArgumentError, match=message):
        spectral_density(lambda v: v, N, **settings)


@pytest.mark.parametrize("grid", [[], [1.0, 1.0], [2.0, 1.0], [0.0, math.nan], [[0.0, 1.0]], 3.0])
def test_grids_that_are_none_are_refused(grid):
    quadrature = run([1.0, 2.0]).quadrature
    with pytest.raises(InvalidArgumentError, match=r"grid of shape .* each above the one before"):
        quadrature.curve(grid, bandwidth=0.1)
