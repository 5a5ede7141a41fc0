"""The average rise of the loss against closed forms, and the noise that it is measured with."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import CASES, case_named
from oracles import Quadratic, quadratic_problem, spectrum
from torch import nn

from landscape import measurement
from landscape.compare._differences import paired_difference
from landscape.errors import InvalidArgumentError, NonFiniteError, NonFiniteWarning
from landscape.export.writing import table_bytes
from landscape.problem import Problem
from landscape.results.averages import DISTRIBUTIONS
from landscape.sharpness import _average
from landscape.sharpness._average import average_profile, average_sharpness
from landscape.sharpness._perturbations import Perturbations, adaptive_scale, losses_around
from landscape.study import Study
from landscape.study.grid import Grid

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)

HESSIAN = spectrum(np.array([7.0, 2.0, 1.0, 0.5, -0.5, 0.1]), 0)
GRADIENT = np.array([0.3, -1.0, 0.2, 0.0, 2.0, -0.4])
AT = np.array([1.0, -2.0, 0.5, 0.1, -0.3, 3.0])
N = len(AT)
FACTORS = {"gaussian": 1 / 2, "sphere": 1 / (2 * N), "ball": 1 / (2 * (N + 2)), "box": 1 / 6}
FIXED = {"relative_error": None}


def bowl(*, scale: float = 1.0, gradient=GRADIENT, at=AT, **options) -> Problem:
    return quadratic_problem(Quadratic(scale * HESSIAN, gradient, 0.7), at=at, **options)


def even_part(draws: Perturbations, rho: float, n: int, hessian=HESSIAN) -> np.ndarray:
    """½εᵀHε of each draw: what is left when both signs of ε are averaged."""
    steps = [rho * draws.draw(k).numpy() for k in range(n)]
    return np.array([0.5 * e @ hessian @ e for e in steps])


# The average itself


@every_distribution
@pytest.mark.parametrize("adaptive", ["none", "elementwise", "filterwise"])
def test_the_average_on_a_quadratic_is_that_in_closed_form(distribution, adaptive):
    rho, eta = 0.3, 0.0 if adaptive == "none" else 0.05
    options = {"distribution": distribution, "adaptive": adaptive, "eta": eta}
    found = average_sharpness(bowl(), rho, n_samples=600, **options, **FIXED)
    # One vector of weights has no filters: both adaptive scales are |w| + η.
    t = np.ones(N) if adaptive == "none" else np.abs(AT) + eta
    expected = FACTORS[distribution] * rho**2 * np.trace(t[:, None] * HESSIAN * t)
    assert abs(found.value - expected) < 4 * found.standard_error
    assert found.predicted == pytest.approx(expected, rel=1e-12)  # of so few weights it is exact
    assert found.predicted_error == 0.0
    assert found.low < found.value < found.high


@every_distribution
def test_what_is_odd_in_epsilon_cancels_exactly(distribution):
    rho = 0.2
    draws = Perturbations(torch.ones(N), distribution, seed=3)
    steep = average_sharpness(
        bowl(gradient=1e3 * GRADIENT), rho, distribution=distribution, seed=3, n_samples=20, **FIXED
    )
    assert steep.draws == pytest.approx(even_part(draws, rho, 20), abs=1e-12 * 1e3 * rho * 10)
    assert np.abs(steep.rises).max() > 100 * np.abs(steep.draws).max()
    flat = average_sharpness(
        bowl(gradient=0 * GRADIENT), rho, distribution=distribution, seed=3, n_samples=20, **FIXED
    )
    assert steep.value == pytest.approx(flat.value, rel=1e-9)
    assert flat.rises[:, 0] == pytest.approx(flat.rises[:, 1], rel=1e-12)


@pytest.mark.parametrize("name", ["mlp", "regression", "attention", "plain_sum"])
def test_small_noise_sees_half_the_trace(name):
    case = case_named(name)
    problem, rho = case.build(5), 1e-4
    found = average_sharpness(problem, rho, distribution="sphere", n_samples=30, **FIXED)
    hessian = case.dense_hessian().numpy()
    draws = Perturbations(torch.ones(problem.space.n), "sphere", seed=0)
    expected = even_part(draws, rho, 30, hessian)
    assert found.draws == pytest.approx(expected, rel=1e-5, abs=1e-5 * np.abs(expected).max())
    exact = rho**2 * np.trace(hessian) / (2 * problem.space.n)
    assert abs(found.predicted - exact) < 4 * found.predicted_error + 1e-12 * abs(exact)
    assert abs(found.value - exact) < 4 * found.standard_error


def test_kinks_add_to_the_average_what_no_hessian_sees():
    """The mean of |w − yᵢ| over a fine grid of y in [−1, 1] is ½(1 + w²), with Hessian 0."""
    n, rho = 2000, 0.1
    y = ((torch.arange(n, dtype=torch.float64) + 0.5) * 2 / n - 1)[:, None]
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    problem = Problem(model, nn.L1Loss(), (torch.ones_like(y), y), batch_size=n)
    found = average_sharpness(problem, rho, distribution="sphere", n_samples=2, **FIXED)
    assert found.value == pytest.approx(0.5 * rho**2, rel=1e-4)
    assert found.predicted == 0.0


@pytest.mark.parametrize("case", [c for c in CASES if not c.depends_on_batches], ids=str)
def test_the_average_does_not_depend_on_the_batching(case):
    one, other = (
        average_sharpness(case.build(size), 0.1, n_samples=2, prediction=False, **FIXED)
        for size in (None, 4)
    )
    assert one.rises == pytest.approx(other.rises, rel=1e-10, abs=1e-13)


def test_the_model_is_left_as_it_was():
    problem = case_named("conv_batch_norm_eval").build(5)
    before = copy.deepcopy(problem.model.state_dict())
    average_sharpness(problem, 0.1, n_samples=2, **FIXED)
    for name, values in problem.model.state_dict().items():
        assert torch.equal(values, before[name])


def relu_network(factor: float = 1.0) -> Problem:
    """A network whose first layer is rescaled against its second: the same function."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
        x, y = torch.randn(20, 3, dtype=torch.float64), torch.randint(2, (20,))
    with torch.no_grad():
        model[0].weight *= factor
        model[0].bias *= factor
        model[2].weight /= factor
    return Problem(model, nn.CrossEntropyLoss(), (x, y), batch_size=20)


@pytest.mark.parametrize("adaptive", ["elementwise", "filterwise"])
def test_adaptive_noise_does_not_see_how_layers_are_scaled(adaptive):
    one, other = (
        average_sharpness(relu_network(f), 0.1, adaptive=adaptive, n_samples=4, **FIXED)
        for f in (1.0, 8.0)
    )
    assert other.rises == pytest.approx(one.rises, rel=1e-9, abs=1e-12)
    assert other.predicted == pytest.approx(one.predicted, rel=1e-9)


def test_plain_noise_sees_how_layers_are_scaled():
    one, other = (average_sharpness(relu_network(f), 0.1, n_samples=4, **FIXED) for f in (1.0, 8.0))
    assert other.value > 2 * one.value


# The noise


def test_draws_lie_where_they_should():
    t = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0])
    moved = t > 0
    radii = {
        name: np.array(
            [float((d.draw(k)[moved] / t[moved]).norm()) for k in range(400)],
        )
        for name in DISTRIBUTIONS
        for d in [Perturbations(t, name, seed=1)]
    }
    assert Perturbations(t, "ball", seed=1).n_moved == 4
    assert radii["sphere"] == pytest.approx(np.ones(400), rel=1e-14)
    # r⁴ of a uniform point of the ball in four dimensions is uniform in [0, 1].
    inside = radii["ball"] ** 4
    assert inside.max() <= 1
    assert abs(inside.mean() - 0.5) < 4 / math.sqrt(12 * 400)
    assert abs((inside < 0.25).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)
    assert abs((radii["gaussian"] ** 2).mean() - 4) < 4 * math.sqrt(8 / 400)
    corners = torch.stack([Perturbations(t, "box", seed=1).draw(k) / t for k in range(400)])[
        :, moved
    ]
    assert corners.abs().max() <= 1
    assert abs(float((corners**2).mean()) - 1 / 3) < 4 * math.sqrt(4 / 45 / 1600)


@every_distribution
def test_weights_without_a_scale_stay(distribution):
    draws = Perturbations(torch.tensor([1.0, 0.0, 2.0]), distribution, seed=0)
    assert all(float(draws.draw(k)[1]) == 0.0 for k in range(5))


def test_a_draw_depends_on_its_number_and_the_seed_alone():
    one, other = (Perturbations(torch.ones(9), "ball", seed=5) for _ in range(2))
    _ = other.draw(0), other.draw(1)
    assert torch.equal(one.draw(2), other.draw(2))
    assert not torch.equal(one.draw(2), one.draw(3))
    assert not torch.equal(one.draw(2), Perturbations(torch.ones(9), "ball", seed=6).draw(2))


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    average_sharpness(bowl(), 0.1, n_samples=2, **FIXED)
    assert torch.equal(torch.get_rng_state(), before)


def test_both_precisions_see_the_same_noise():
    single, double = (
        average_sharpness(bowl(dtype=dtype), 0.5, n_samples=10, **FIXED)
        for dtype in ("float32", "float64")
    )
    assert single.rises == pytest.approx(double.rises, rel=1e-4, abs=1e-5)
    assert (single.rises != double.rises).any()


# Evidence


@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
def test_intervals_cover_the_average(distribution):
    hessian = spectrum(np.array([5.0, 3.0, 2.0, 1.0, 1.0, 0.5]), 1)
    problem = quadratic_problem(Quadratic(hessian, GRADIENT))
    expected = FACTORS[distribution] * 0.09 * np.trace(hessian)
    found = [
        average_sharpness(
            problem,
            0.3,
            distribution=distribution,
            n_samples=16,
            seed=seed,
            prediction=False,
            **FIXED,
        )
        for seed in range(200)
    ]
    covered = np.mean([f.low <= expected <= f.high for f in found])
    assert 0.90 <= covered <= 0.99
    z = np.array([(f.value - expected) / f.standard_error for f in found])
    assert abs(z.mean()) < 4 / math.sqrt(len(z)) * max(1.0, z.std())


def test_more_is_drawn_until_the_interval_is_narrow():
    rough = average_sharpness(bowl(), 0.3, n_samples=8, relative_error=0.5, max_samples=4096)
    fine = average_sharpness(bowl(), 0.3, n_samples=8, relative_error=0.1, max_samples=4096)
    assert rough.converged
    assert fine.converged
    assert len(fine.rises) > len(rough.rises)
    assert fine.high - fine.low <= 0.1 * 2 * 1.5 * abs(fine.value)
    assert np.array_equal(fine.rises[: len(rough.rises)], rough.rises)
    assert rough.cost.forwards == 1 + 2 * len(rough.rises)


def test_an_interval_that_did_not_get_narrow_says_so():
    found = average_sharpness(bowl(), 0.3, n_samples=4, relative_error=1e-6, max_samples=8)
    assert not found.converged
    assert len(found.rises) == 8
    assert "8 draws; WIDER than asked" in dict(found.rows())["95 % interval"]


def test_what_else_is_said_of_the_samples():
    found = average_sharpness(bowl(), 0.3, n_samples=10, **FIXED)
    assert found.largest == found.rises.max()
    assert found.share_above == (found.rises > 0).mean()
    assert 0 < found.share_above < 1
    rows = dict(found.rows())
    assert rows["samples above L(w)"] == f"{100 * found.share_above:.0f} % of 20"
    assert "quadratic prediction" in rows


def exploding(w: float = 1.0) -> Problem:
    """exp(w·x): far along one sign of ε it overflows."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, w)
    x = torch.tensor([[300.0]], dtype=torch.float64)
    return Problem(
        model, batch_loss=lambda model, batch: model(batch[0]).exp().mean(dim=1), data=(x, x)
    )


def test_losses_that_overflow_are_counted():
    with pytest.warns(NonFiniteWarning, match="not finite at .* try a smaller sigma"):
        found = average_sharpness(exploding(), 2.0, n_samples=10, prediction=False)
    bad = int((~np.isfinite(found.rises)).sum())
    assert 0 < bad < 20
    assert found.n_not_finite == bad
    assert found.value == math.inf
    assert math.isnan(found.standard_error)
    assert not found.converged
    assert len(found.rises) == 10  # more draws would not help
    assert found.largest == found.rises[np.isfinite(found.rises)].max()
    assert dict(found.rows())["loss NOT finite"].startswith(f"at {bad} of 20")


# Radii, and pairs of checkpoints


def test_a_profile_has_the_same_noise_at_every_radius():
    rhos = [0.1, 0.2, 0.4]
    problem = bowl()
    found = average_profile(problem, rhos, n_samples=10, **FIXED)
    assert [f.rho for f in found] == rhos
    for f in found:
        assert f.draws == pytest.approx((f.rho / 0.1) ** 2 * found[0].draws, rel=1e-11)
    assert [f.cost.hvps for f in found] == [N, 0, 0]  # one trace for all
    assert found[2].predicted == pytest.approx(16 * found[0].predicted, rel=1e-13)
    single = average_sharpness(problem, 0.2, n_samples=10, **FIXED)
    assert single.settings == found[1].settings
    assert np.array_equal(single.rises, found[1].rises)


def test_the_defaults_of_a_profile_are_those_of_one_radius():
    settings = [
        average_profile(bowl(), [5.0])[0].settings,
        average_sharpness(bowl(), 5.0).settings,
    ]
    assert settings[0] == settings[1]


def test_a_paired_difference_is_that_of_the_draws():
    one = average_sharpness(bowl(), 0.3, n_samples=40, **FIXED)
    other = average_sharpness(bowl(scale=0.9, name="other"), 0.3, n_samples=50, **FIXED)
    # The second problem has other data, which is refused; the noise is what is compared here.
    other = dataclasses.replace(
        other,
        provenance=dataclasses.replace(
            other.provenance, data_fingerprint=one.provenance.data_fingerprint
        ),
    )
    found = paired_difference(one, other)
    draws = Perturbations(torch.ones(N), "gaussian", seed=0)
    expected = 0.1 * even_part(draws, 0.3, 40)
    assert found.value == pytest.approx(expected.mean(), rel=1e-9)
    assert found.standard_error == pytest.approx(expected.std(ddof=1) / math.sqrt(40), rel=1e-9)
    assert found.names == ("quadratic", "other")
    assert found.n_draws == 40
    assert found.correlation == pytest.approx(1.0)
    assert found.low < 0.1 * 0.5 * 0.09 * np.trace(HESSIAN) < found.high
    unpaired = math.hypot(one.standard_error, other.standard_error)
    assert found.standard_error < 0.1 * unpaired
    assert "the sign is certain" in found.rows()[1][1]


def test_a_difference_to_itself_is_zero():
    one = average_sharpness(bowl(), 0.3, n_samples=5, **FIXED)
    found = paired_difference(one, one)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert "NOT told from zero" in found.rows()[1][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed = 0 and quadratic with 1"),
        ({"sigma": 0.2}, "rho = 0.3 and quadratic with 0.2"),
        ({"distribution": "box"}, "distribution = 'gaussian'"),
        ({"adaptive": "elementwise"}, "adaptive = 'none'"),
    ],
)
def test_other_noise_cannot_be_paired(change, message):
    asked = {"sigma": 0.3, "n_samples": 2, **FIXED}
    one, other = (average_sharpness(bowl(), **{**asked, **changed}) for changed in ({}, change))
    with pytest.raises(InvalidArgumentError, match=message):
        paired_difference(one, other)


def test_other_data_cannot_be_paired():
    one, other = (average_sharpness(bowl(n_examples=n), 0.3, n_samples=2, **FIXED) for n in (3, 4))
    with pytest.raises(InvalidArgumentError, match=r"data_fingerprint .* the same noise"):
        paired_difference(one, other)


def test_layers_of_equal_size_are_not_paired():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    data = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    problem = Problem(model, nn.MSELoss(), (data, data))
    asked = {"n_samples": 2, "prediction": False, **FIXED}
    one, other = (average_sharpness(problem.only(layer), 0.1, **asked) for layer in ("0", "2"))
    with pytest.raises(InvalidArgumentError, match=r"parameters = '0' and Sequential with '2'"):
        paired_difference(one, other)
    assert paired_difference(one, one).value == 0.0


# The study


def test_averages_are_kept_in_the_study(tmp_path):
    with Study(tmp_path / "s.db") as study:
        first = average_sharpness(bowl(), 0.3, n_samples=4, study=study, **FIXED)
        again = average_sharpness(bowl(), 0.3, n_samples=4, study=study, **FIXED)
        assert [entry.kind for entry in study.entries()] == ["average"]
    assert again.rises.tobytes() == first.rises.tobytes()
    assert again.cost == first.cost


def test_samples_are_recorded_together(tmp_path, monkeypatch):
    """Those of a tenth of a second in one transaction."""
    transactions, clock = [], [0.0]
    record_all = Grid.record_all

    def noting(self, points):
        transactions.append(len(points))
        record_all(self, points)

    def ticking():
        clock[0] += 0.03
        return clock[0]

    monkeypatch.setattr(Grid, "record_all", noting)
    monkeypatch.setattr("landscape.study.grid.time", SimpleNamespace(perf_counter=ticking))
    asked = {"n_samples": 8, "relative_error": None, "prediction": False}
    with Study(tmp_path / "s.db") as study:
        average_sharpness(bowl(), 0.3, study=study, **asked)
    assert transactions == [4, 4, 4, 4]


def test_what_waits_is_recorded_when_a_run_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("landscape.study.grid.RECORD_SECONDS", math.inf)
    left = [5]

    def stopping(*args):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return losses_around(*args)

    monkeypatch.setattr(_average, "losses_around", stopping)
    with Study(tmp_path / "s.db") as study:
        with pytest.raises(KeyboardInterrupt):
            average_sharpness(bowl(), 0.3, n_samples=8, prediction=False, study=study, **FIXED)
        (entry,) = study.entries()
        assert (entry.status, entry.points_done) == ("partial", 5)


def test_a_run_that_is_killed_loses_what_waited(tmp_path, monkeypatch):
    whole = average_sharpness(bowl(), 0.3, n_samples=8, prediction=False, **FIXED)
    monkeypatch.setattr("landscape.study.grid.RECORD_SECONDS", 0.0)
    record, left = Grid.record_all, [5]

    def stopping(self, points):
        record(self, points)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with Study(tmp_path / "s.db") as study:
        monkeypatch.setattr(Grid, "record_all", stopping)
        with pytest.raises(KeyboardInterrupt):
            average_sharpness(bowl(), 0.3, n_samples=8, prediction=False, study=study, **FIXED)
        monkeypatch.setattr(Grid, "record_all", record)
        (entry,) = study.entries()
        assert (entry.status, entry.points_done) == ("partial", 5)
        found = average_sharpness(bowl(), 0.3, n_samples=8, prediction=False, study=study, **FIXED)
    assert found.rises.tobytes() == whole.rises.tobytes()
    assert found.cost.forwards == 1 + 16 - 5


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be a finite number above zero, got 0.0"),
        ({"sigma": -1.0}, "sigma must be a finite number above zero"),
        ({"sigma": math.nan}, "sigma must be a finite number above zero, got nan"),
        ({"distribution": "uniform"}, "unknown distribution 'uniform'.*known: gaussian, ball"),
        ({"adaptive": "filter"}, "unknown adaptive scale 'filter'.*filterwise"),
        ({"n_samples": 1}, "n_samples must be a whole number of at least 2.*got 1"),
        ({"n_samples": 2.5}, "n_samples must be a whole number"),
        ({"max_samples": 3}, "max_samples = 3 is below n_samples = 32: raise it"),
        ({"relative_error": 0.0}, "relative_error must be a finite number above zero"),
        ({"eta": 0.1}, "adaptive is 'none'; choose 'elementwise'"),
        ({"eta": -1.0, "adaptive": "elementwise"}, "eta must be a finite number of at least 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        average_sharpness(bowl(), **{"sigma": 0.1, **options})


@pytest.mark.parametrize("rhos", [[], [0.2, 0.1], [0.1, 0.1], [0.1, math.nan], [-0.1, 0.1]])
def test_bad_radii_of_a_profile(rhos):
    with pytest.raises(InvalidArgumentError, match=r"sigmas must be|each of sigmas must be"):
        average_profile(bowl(), rhos)


def test_the_former_name_of_sigma_is_taken_with_a_warning(here, run):
    with pytest.warns(FutureWarning, match="called sigma, not rho"):
        old = average_sharpness(bowl(), rho=0.1, n_samples=2, **FIXED)
    assert old.settings == average_sharpness(bowl(), 0.1, n_samples=2, **FIXED).settings
    with pytest.warns(FutureWarning, match="called sigma, not rho"):
        average_profile(bowl(), rhos=[0.1], n_samples=2, **FIXED)
    with pytest.raises(InvalidArgumentError, match="give sigma alone"):
        average_sharpness(bowl(), 0.1, rho=0.1)
    with pytest.raises(InvalidArgumentError, match="sigma must be"):
        average_sharpness(bowl())
    ran = run("average", "a.pt", "--problem", "task.py", "--rho", "0.1", "--samples", "2")
    assert ran.code == 0
    assert "Notice: --rho of this command is called --sigma." in ran.err


def test_weights_that_are_all_zero_cannot_move():
    with pytest.raises(InvalidArgumentError, match=r"all 6 weights are zero.*give eta above 0"):
        average_sharpness(bowl(at=np.zeros(N)), 0.1, adaptive="elementwise")
    assert adaptive_scale(bowl(at=np.zeros(N)), "elementwise", 0.01).tolist() == [0.01] * N


def test_a_checkpoint_without_a_finite_loss_is_refused():
    with pytest.raises(NonFiniteError, match="nothing can be measured from there"):
        average_sharpness(exploding(10.0), 0.1)


@pytest.mark.parametrize("distribution", FACTORS)
def test_the_size_of_the_noise_is_said(distribution):
    found = average_sharpness(bowl(), 0.3, distribution=distribution, n_samples=2, **FIXED)
    draws = Perturbations(torch.ones(N, dtype=torch.float64), distribution, seed=5)
    squares = [float((0.3 * draws.draw(k)).square().sum()) for k in range(4000)]
    said = float(dict(found.rows())["‖ε‖, root mean square"])
    assert said == pytest.approx(math.sqrt(np.mean(squares)), rel=0.02)
    adaptive = average_sharpness(bowl(), 0.3, adaptive="elementwise", n_samples=2, **FIXED)
    assert "‖ε‖, root mean square" not in dict(adaptive.rows())


# The command


def test_the_verb_prints_a_profile_of_each_checkpoint(here, run):
    args = ("average", "a.pt", "b.pt", "--problem", "task.py", "--samples", "4", "--tol", "1")
    ran = run(*args, "--sigma", "0.05", "--sigma", "0.1")
    assert ran.code == 0
    assert ran.out.split("\n")[0].split() == [
        *("checkpoint", "σ", "average", "rise", "95", "%", "low", "95", "%", "high"),
        *("quadratic", "prediction", "draws"),
    ]
    assert ran.out.count(" 0.05 ") == ran.out.count(" 0.1 ") == 2
    shown = run("show", "a").out
    for words in ("average rise (σ = 0.05, Gaussian)", "average rise (σ = 0.1, Gaussian)"):
        assert words in shown
    records = json.loads(run(*args, "--sigma", "0.05", "--sigma", "0.1", "--json").out)
    assert [(r["kind"], r["rho"]) for r in records] == 2 * [("average", 0.05), ("average", 0.1)]
    assert f"{records[0]['low']:.4g}" in ran.out
    assert f"{records[0]['low']:.4g} to {records[0]['high']:.4g}" in shown


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--sigma", "0.2", "--sigma", "0.1"), 2, "ascending order"),
        (("--sigma", "nan"), 2, "above zero, got nan"),
        (("--samples", "1"), 2, "at least 2"),
        (("--distribution", "cube"), 2, "'cube'"),
        (("--dry-run",), 0, ""),
    ],
)
def test_the_verb_refuses_what_cannot_be_measured(here, run, args, code, message):
    ran = run("average", "a.pt", "--problem", "task.py", *args)
    assert ran.code == code
    assert message in ran.err


def test_a_table_of_an_average_has_every_sample():
    found = average_sharpness(bowl(), 0.3, n_samples=3, **FIXED)
    header, *rows = table_bytes(found).decode().splitlines()
    assert header == "draw,rise_plus,rise_minus"
    values = np.array([[float(cell) for cell in row.split(",")] for row in rows])
    assert values[:, 0].tolist() == [1, 2, 3]
    assert np.array_equal(values[:, 1:], found.rises)


def test_samples_at_once_have_one_set_of_bits_also_after_a_kill(tmp_path, monkeypatch):
    """A sample that is missing is measured in the company that it had."""
    import json
    import sqlite3
    from contextlib import closing

    from landscape.evaluate import Plan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        data = torch.randn(40, 5), torch.randint(0, 3, (40,))
    problem = Problem(model, torch.nn.CrossEntropyLoss(), data)
    plan = Plan(points=8)
    monkeypatch.setattr(measurement, "choose_plan", lambda *_, **__: plan)
    options = {"n_samples": 6, "relative_error": None, "prediction": False}
    with Study(tmp_path / "landscape.db") as study:
        first = average_sharpness(problem, 0.1, study=study, **options)
    for k, sign in ((0, 0), (3, 1), (5, 0), (5, 1)):
        with closing(sqlite3.connect(tmp_path / "landscape.db")) as connection, connection:
            how = json.dumps({"how": plan.settings()})
            connection.execute("UPDATE measurements SET status = 'partial', record = ?", (how,))
            connection.execute("DELETE FROM points WHERE i = ? AND j = ?", (k, sign))
        with Study(tmp_path / "landscape.db") as study:
            again = average_sharpness(problem, 0.1, study=study, **options)
        assert again.rises.tobytes() == first.rises.tobytes()
