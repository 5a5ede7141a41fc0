"""Profiles over radii: exact on quadratics, never falling, and drawn as they are."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import samples
import torch
from oracles import Quadratic, quadratic_problem, spectrum, trust_region
from samples import figures as plots
from torch import nn

from landscape.errors import InvalidArgumentError, NonFiniteWarning
from landscape.problem import Problem
from landscape.sharpness._profile import sharpness_profile
from landscape.sharpness._worst_case import sharpness
from landscape.study import Study

RHOS = np.geomspace(1e-3, 3.0, 5)


def quadratic(n: int = 12, seed: int = 0) -> Quadratic:
    rng = np.random.default_rng(seed)
    g = 0.05 * rng.standard_normal(n)
    return Quadratic(spectrum(rng.standard_normal(n), seed), g, constant=0.2)


def network(seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn(20, 3, generator=generator)
    y = torch.randint(0, 3, (20,), generator=generator)
    return Problem(model, nn.CrossEntropyLoss(), (x, y), dtype="float64")


@pytest.mark.parametrize("adaptive", ["none", "elementwise"])
def test_quadratics_are_exact_at_every_radius(adaptive):
    q, at = quadratic(), np.random.default_rng(9).standard_normal(12)
    t = np.ones(12) if adaptive == "none" else np.abs(at)
    inner = Quadratic(t[:, None] * q.hessian * t, t * q.gradient)
    found = sharpness_profile(
        quadratic_problem(q, at=at), RHOS, adaptive=adaptive, tol=1e-9, max_gradients=200
    )
    exact = np.array([trust_region(inner, rho).value for rho in RHOS])
    assert found.values == pytest.approx(exact, rel=1e-6)
    assert found.quadratic_maxima == pytest.approx(exact, rel=1e-3)
    assert (found.predictions >= found.quadratic_maxima * (1 - 1e-9)).all()
    assert found.weight_norm == pytest.approx(np.linalg.norm(at / t), rel=1e-12)
    assert found.relative_rhos == pytest.approx(RHOS / found.weight_norm)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
def test_values_never_fall_and_are_never_below_one_step(p):
    for seed in range(2):
        found = sharpness_profile(network(seed), RHOS, p=p, max_gradients=10)
        assert (np.diff(found.values) >= 0).all()
        assert (found.values >= found.one_steps).all()
        assert (found.norms <= RHOS * (1 + 1e-9)).all()
        assert np.isnan(found.predictions).all() == (p != 2)


def test_each_radius_is_not_below_a_search_of_its_own():
    problem = network(1)
    found = sharpness_profile(problem, RHOS, tol=1e-6)
    own = [sharpness(problem, rho, tol=1e-6).value for rho in RHOS]
    assert (found.values >= np.array(own) * (1 - 1e-3)).all()


def test_the_default_radii_are_relative_to_the_weights():
    problem = network()
    size = float(problem.weights.norm())
    found = sharpness_profile(problem, max_gradients=5)
    assert found.rhos[[0, -1]] == pytest.approx([1e-4 * size, 1e-1 * size])
    assert np.diff(np.log(found.rhos)) == pytest.approx(np.full(6, math.log(1e3) / 6))
    adaptive = sharpness_profile(problem, adaptive="elementwise", max_gradients=5)
    assert adaptive.weight_norm == pytest.approx(math.sqrt(38))


def test_a_plateau_is_no_fall():
    """A bump inside the smallest ball: no larger one holds anything higher."""

    class Bump(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.0, 0.0], dtype=torch.float64))

    def bump(model, batch):
        w = model.w - torch.tensor([0.05, 0.0], dtype=torch.float64)
        return torch.exp(-100 * w @ w), 1

    data = (torch.ones(1, 1, dtype=torch.float64),)
    found = sharpness_profile(Problem(Bump(), batch_loss=bump, data=data), [0.1, 1.0, 10.0])
    assert found.values == pytest.approx(np.full(3, 1 - math.exp(-0.25)), rel=1e-4)
    assert found.norms == pytest.approx(np.full(3, 0.05), rel=0.05)


def test_a_study_answers_the_second_time(tmp_path):
    with Study(tmp_path / "study.db") as study:
        first = sharpness_profile(network(), RHOS, max_gradients=5, study=study)
        again = sharpness_profile(network(), RHOS, max_gradients=5, study=study)
        assert again.values.tobytes() == first.values.tobytes()
        assert again.provenance.created == first.provenance.created
        assert again.cost == first.cost


def test_overflow_is_said_with_the_largest_finite_radius():
    class Pole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    data = (torch.ones(1, 1, dtype=torch.float64),)
    problem = Problem(
        Pole(), batch_loss=lambda m, b: (-torch.log(1 - m.w @ m.w) + m.w.sum(), 1), data=data
    )
    with pytest.warns(NonFiniteWarning, match="largest radius with a finite loss was"):
        found = sharpness_profile(problem, [0.5, 2.0])
    assert np.isfinite(found.values).all()
    assert 0.9 < found.finite_radius <= 1.0
    assert "not finite" in dict(found.rows())


@pytest.mark.parametrize(
    "rhos", [[], [0.0, 1.0], [-1.0], [1.0, 0.5], [0.1, 0.1], [math.nan], [1.0, math.inf], [[0.1]]]
)
def test_refuses_radii_that_are_none(rhos):
    with pytest.raises(InvalidArgumentError, match="rhos must be finite radii above zero in asc"):
        sharpness_profile(network(), rhos)


def test_refuses_default_radii_where_there_are_no_weights():
    problem = network()
    for parameter in problem.model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(InvalidArgumentError, match=r"all weights are zero.*give rhos"):
        sharpness_profile(problem)


# -- pictures ------------------------------------------------------------------------------------


def curves(figure):
    """The drawn lines of the panel by dash, those that only stand in the key left out."""
    found: dict[str, list] = {}
    for line in figure.axes[0].lines:
        if len(line.get_xdata()) and line.get_linestyle() != "None":
            found.setdefault(line.get_linestyle(), []).append(line)
    return found


@pytest.mark.parametrize("relative", [False, True])
def test_what_is_drawn_is_what_was_measured(relative):
    records = [samples.profile("a.pt"), samples.profile("b.pt", curvature=5.0, weight_norm=4.0)]
    figure = plots.plot_profile(records, relative=relative)
    found = curves(figure)
    for dash, name in (("-", "values"), ("--", "quadratic_maxima"), (":", "one_steps")):
        assert len(found[dash]) == 2
        for line, record in zip(found[dash], records, strict=True):
            x = record.relative_rhos if relative else record.rhos
            assert line.get_xdata() == pytest.approx(x)
            assert line.get_ydata() == pytest.approx(getattr(record, name))
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert ("relative to the weights" in axes.get_xlabel()) == relative
    labels = samples.key(figure)
    assert {"a.pt", "b.pt", "quadratic model", "one step of SAM"} <= set(labels)


def test_what_has_no_place_on_a_log_axis_is_left_out():
    whole = samples.profile()
    values = whole.values.copy()
    values[0], values[1] = 0.0, -1e-9
    record = dataclasses.replace(whole, values=values)
    drawn = curves(plots.plot_profile(record))["-"][0].get_ydata()
    assert np.isnan(drawn[:2]).all()
    assert drawn[2:] == pytest.approx(values[2:])


def test_what_did_not_converge_is_hollow_and_named():
    gaps = np.array([1e-5, 1e-5, 1e-5, 1e-5, 0.1, 0.1])
    record = dataclasses.replace(samples.profile(), gaps=gaps)
    axes = plots.plot_profile(record).axes[0]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert hollow[0].get_xdata() == pytest.approx(record.rhos[4:])
    assert "NOT converged" in samples.key(axes.figure)


def test_profiles_of_different_balls_are_not_drawn_together():
    records = [samples.profile(), samples.profile(p=math.inf)]
    with pytest.raises(InvalidArgumentError, match="different balls"):
        plots.plot_profile(records)
    with pytest.raises(InvalidArgumentError, match="no record was given"):
        plots.plot_profile([])
    flat = dataclasses.replace(samples.profile(), values=np.zeros(6))
    with pytest.raises(InvalidArgumentError, match="no value of the profiles is above zero"):
        plots.plot_profile(flat)
