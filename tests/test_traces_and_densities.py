"""Traces and spectral densities of problems against dense float64 matrices."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from cases import CASES
from test_operators_pieces import wide

from landscape.curvature import _density as densities
from landscape.curvature._density import spectral_density
from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.curvature._trace import trace
from landscape.errors import InvalidArgumentError
from landscape.evaluate import Evaluator
from landscape.operators import Hessian, parameter_scale
from landscape.results import from_record, to_record
from landscape.study import Study

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=str)
WITH_OUTPUT = [c for c in CASES if not c.depends_on_batches and c.name != "sum_and_weight"]


def built(case):
    return case.build(None if case.depends_on_batches else 5)


@cache
def spectrum_of_wide(scale: str = "none") -> np.ndarray:
    problem = wide()
    with Evaluator(problem) as evaluator:
        operator = Hessian(evaluator)
        if scale != "none":
            operator = operator.reparametrised(parameter_scale(problem, scale))
        return np.linalg.eigvalsh(operator.dense().numpy())


# Traces


@every_case
@pytest.mark.parametrize("method", ["krylov", "hutch++", "xtrace", "hutchinson"])
def test_the_trace_of_a_small_operator_is_exact(case, method):
    found = trace(built(case), method=method, rtol=1e-3)
    expected = float(case.dense_hessian().trace())
    assert found.exact or found.standard_error < 1e-8
    assert found.value == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("case", WITH_OUTPUT, ids=str)
@pytest.mark.parametrize("kind", ["ggn", "fisher"])
def test_traces_of_the_other_operators(case, kind):
    dense = case.dense_ggn() if kind == "ggn" else case.dense_fisher()
    found = trace(case.build(5), operator=kind, rtol=1e-3)
    assert found.value == pytest.approx(float(dense.trace()), rel=1e-9)
    assert found.operator != "Hessian"


@pytest.mark.parametrize("method", ["krylov", "hutch++", "xtrace", "hutchinson"])
def test_intervals_of_the_trace_cover_it(method):
    expected = spectrum_of_wide().sum()
    problem = wide()
    found = [
        trace(problem, method=method, rtol=0.3, max_matvecs=96, seed=seed) for seed in range(200)
    ]
    assert not any(f.exact for f in found)
    covered = np.mean([f.low <= expected <= f.high for f in found])
    assert 0.90 <= covered <= 0.995
    z = np.array([(f.value - expected) / f.standard_error for f in found])
    assert abs(z.mean()) < 4 / np.sqrt(len(z)) * max(1.0, z.std())


@every_case
def test_traces_of_the_layers_sum_to_the_whole(case):
    problem = built(case)
    found = trace(problem, layers=True, rtol=1e-3)
    dense = case.dense_hessian()
    assert found.method == "krylov"
    for value, part in zip(found.layer_values, problem.space.layers().values(), strict=True):
        expected = float(dense[part, part].trace())
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert found.layer_values.sum() == pytest.approx(found.value, rel=1e-9, abs=1e-10)
    assert found.layer_sizes.sum() == problem.space.n
    assert set(found.layers) == set(problem.space.layers())


@pytest.mark.parametrize("method", ["krylov", "hutchinson"])
def test_intervals_of_the_layers_cover_them(method):
    problem = wide()
    with Evaluator(problem) as evaluator:
        diagonal = Hessian(evaluator).dense().diagonal()
    parts = problem.space.layers().values()
    expected = np.array([float(diagonal[part].sum()) for part in parts])
    found = [
        trace(problem, layers=True, method=method, rtol=0.5, max_matvecs=64, seed=s)
        for s in range(200)
    ]
    covered = np.mean([(f.layer_low <= expected) & (expected <= f.layer_high) for f in found])
    assert 0.90 <= covered <= 0.99


def test_the_scaled_trace():
    found = trace(wide(), scale="elementwise", rtol=1e-6)
    assert found.value == pytest.approx(spectrum_of_wide("elementwise").sum(), rel=1e-9)


def test_a_trace_that_did_not_get_narrow_says_so():
    found = trace(wide(), method="hutchinson", rtol=1e-6, max_matvecs=20)
    assert not found.converged
    assert dict(found.rows())["hutchinson"].startswith("WIDER than asked after 20 probes")


def test_traces_are_kept_in_the_study(tmp_path):
    with Study(tmp_path / "s.db") as study:
        first = trace(wide(), layers=True, study=study)
        again = trace(wide(), layers=True, study=study)
    assert again.layers == first.layers == ("0", "2")
    assert again.layer_values.tobytes() == first.layer_values.tobytes()
    assert again.provenance.created == first.provenance.created


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hutch"}, r"unknown method of the trace 'hutch' \(nearest: hutch"),
        (
            {"method": "xtrace", "layers": True},
            "from the methods krylov and hutchinson; got .*'xtrace'",
        ),
        ({"rtol": -1.0}, "rtol must be a finite number of at least 0, got -1.0"),
        ({"confidence": 1.0}, "confidence = 1.0"),
        ({"operator": "kfac"}, "unknown operator 'kfac'"),
    ],
)
def test_refused_traces(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        trace(wide(), **options)


# Densities


@every_case
def test_a_density_with_as_many_steps_as_rows_is_exact_in_its_moments(case):
    values = np.linalg.eigvalsh(case.dense_hessian().numpy())
    found = spectral_density(built(case), n_probes=30, steps=len(values), outliers=2)
    assert found.mean == pytest.approx(values.mean(), abs=4 * found.mean_se + 1e-10)
    assert found.mean_square == pytest.approx(
        (values**2).mean(), abs=4 * found.mean_square_se + 1e-10
    )
    mass = np.trapezoid(found.density, found.grid)
    assert mass == pytest.approx(1.0, abs=0.02)
    below = (values < -1e-9 * np.abs(values).max()).mean()
    slack = 0.02
    assert found.negative_low - slack <= below <= found.negative_high + slack
    assert found.atoms == pytest.approx(values[::-1][:2], abs=2e-3 * np.abs(values).max())


def test_the_mass_below_zero_is_covered():
    values = spectrum_of_wide()
    below = (values < 0).mean()
    problem = wide()
    found = [spectral_density(problem, steps=40, n_probes=6, outliers=4, seed=s) for s in range(60)]
    covered = np.mean([f.negative_low <= below <= f.negative_high for f in found])
    assert covered >= 0.90
    mean = np.mean([abs(f.mean - values.mean()) <= 2.571 * f.mean_se for f in found])
    assert 0.88 <= mean <= 1.0


def test_the_band_covers_the_smoothed_spectrum():
    values = spectrum_of_wide()
    problem = wide()
    covered = []
    for seed in range(30):
        found = spectral_density(problem, steps=40, n_probes=8, outliers=4, seed=seed)
        gaussians = np.exp(-0.5 * ((found.grid[:, None] - values) / found.bandwidth) ** 2)
        true = gaussians.mean(axis=1) / (found.bandwidth * np.sqrt(2 * np.pi))
        inside = (found.low <= true * 1.001) & (true <= found.high * 1.001)
        covered.append(inside[true > 1e-3 * true.max()].mean())
    assert np.mean(covered) >= 0.90


def test_the_ratio_of_the_first_to_the_fifth():
    values = spectrum_of_wide()[::-1]
    found = spectral_density(wide(), steps=20, n_probes=2)
    assert found.ratio == pytest.approx(values[0] / values[4], rel=1e-3)
    rows = dict(found.rows())
    assert rows["λmax/λ5"] == f"{found.ratio:.4g}"
    assert found.steps <= 20
    assert rows["quadrature"].startswith(f"2 probes of {found.steps} steps")
    none = spectral_density(wide(), steps=20, n_probes=2, outliers=0)
    assert np.isnan(none.ratio)
    assert none.atoms.size == 0


def test_outliers_that_did_not_converge_are_not_deflated(monkeypatch):
    solve = densities.lanczos

    def failing(**options):
        return dataclasses.replace(solve(**options), converged=False)

    assert spectral_density(wide(), outliers=5, steps=10, n_probes=2).atoms.size == 5
    monkeypatch.setattr(densities, "lanczos", failing)
    assert spectral_density(wide(), outliers=5, steps=10, n_probes=2).atoms.size == 0


def test_eigenpairs_that_are_known_are_not_searched_again():
    problem = wide()
    pairs = top_eigenpairs(problem, 3, both_ends=True, tol=1e-6)
    options = {"steps": 20, "n_probes": 3}
    searched = spectral_density(problem, outliers=3, **options)
    found = spectral_density(problem, eigenpairs=pairs, **options)
    np.testing.assert_array_equal(found.atoms, pairs.values[:3])
    np.testing.assert_array_equal(found.atom_residuals, pairs.residuals[:3])
    np.testing.assert_allclose(found.density, searched.density, rtol=1e-2)
    assert found.matvecs == 1 + found.n_probes * found.steps < searched.matvecs - 5


def test_eigenpairs_of_another_operator_are_refused():
    pairs = top_eigenpairs(wide(), 3)
    other = dataclasses.replace(pairs, values=pairs.values * 1.01)
    for options, given in (
        ({"operator": "ggn"}, pairs),
        ({"scale": "filterwise"}, pairs),
        ({}, other),
    ):
        with pytest.raises(InvalidArgumentError, match="are none of this operator: the residual"):
            spectral_density(wide(), eigenpairs=given, **options)
    short = dataclasses.replace(pairs, vectors=pairs.vectors[:, :-1])
    with pytest.raises(InvalidArgumentError, match=r"and the operator has .* rows"):
        spectral_density(wide(), eigenpairs=short)


@pytest.mark.parametrize("scale", ["none", "filterwise"])
def test_graphs_that_are_not_kept_are_built_once_for_a_block(scale, monkeypatch):
    built, build = [], Hessian._build
    monkeypatch.setattr(Hessian, "_build", lambda h, piece: (built.append(1), build(h, piece))[1])
    monkeypatch.setattr(Hessian, "_build_once", Hessian._build)
    options = {"max_matvecs": 40, "rtol": 1e-9, "scale": scale}
    found = trace(wide(), memory=1, **options)
    n_pieces = wide().batches.n_batches
    # One for each Lanczos vector and each of three blocks of probes, and tests on samples.
    assert found.matvecs == 40
    assert len(built) <= n_pieces * (20 + 3) + 8
    kept = trace(wide(), **options)
    assert found.value == pytest.approx(kept.value, rel=1e-9)


def test_a_density_through_a_record():
    found = spectral_density(wide(), steps=10, n_probes=3)
    scalars, arrays = to_record(found)
    again = from_record("density", scalars, arrays)
    assert to_record(again)[0] == scalars
    assert all(np.array_equal(to_record(again)[1][k], v, equal_nan=True) for k, v in arrays.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps must be a whole number of at least 2, got 1"),
        ({"n_probes": 1}, "n_probes must be a whole number of at least 2, got 1"),
        ({"bandwidth": -1.0}, "bandwidth must be a finite number above zero, got -1.0"),
        ({"operator": "hess"}, "unknown operator 'hess'"),
    ],
)
def test_refused_densities(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        spectral_density(wide(), **options)


def test_measuring_leaves_the_model_alone():
    problem = wide()
    before = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    state = torch.get_rng_state()
    trace(problem, layers=True, max_matvecs=20)
    spectral_density(problem, steps=5, n_probes=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(problem.model.state_dict()[k], v) for k, v in before.items())
    assert all(parameter.grad is None for parameter in problem.model.parameters())
