"""Lines and surfaces: the right loss at the right place, raw, and independent of the others."""

from __future__ import annotations

import math
import random
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch
from cases import CASES, case_named
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Quadratic, quadratic_problem, spectrum
from torch import nn

from landscape.errors import InvalidArgumentError, NonFiniteWarning
from landscape.evaluate import PLAIN, Engine
from landscape.loss import evaluation
from landscape.problem import Problem
from landscape.sharpness._average import average_sharpness
from landscape.study import Study
from landscape.surface import (
    Direction,
    Plane,
    _points,
    given_direction,
    random_direction,
    random_plane,
)
from landscape.surface._surface import line, span, surface

# torch's own forward-mode derivatives, which cases.py may use, still compile with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
N = 6


# -- helpers -------------------------------------------------------------------------------------


def bowl(constant: float = 0.0, seed: int = 0) -> Quadratic:
    rng = np.random.default_rng(seed)
    return Quadratic(spectrum(rng.standard_normal(N), seed), rng.standard_normal(N), constant)


def plane_of(problem: Problem, seed: int = 1) -> Plane:
    d1, d2 = np.random.default_rng(seed).standard_normal((2, N))
    return Plane(given_direction(problem, d1), given_direction(problem, d2), "a given plane")


def exact(q: Quadratic, plane: Plane, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    d1, d2 = (d.vector.double().numpy() for d in (plane.x, plane.y))
    return np.array([[q.constant + q.rise(a * d1 + b * d2) for b in y] for a in x])


class Weights(nn.Module):
    """A vector of weights, for losses that are written down directly."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


ONE = (torch.ones(1, 1, dtype=torch.float64),)


def direct(function, values: list[float], **options) -> Problem:
    """Make a problem of a function of the weights alone."""
    return Problem(
        Weights(values),
        batch_loss=lambda model, batch: (function(model.w), 1),
        data=ONE,
        **options,
    )


def axes(problem: Problem) -> Plane:
    """The plane of the first two weights."""
    units = torch.eye(problem.space.n, dtype=torch.float64)
    return Plane(Direction(units[0], "given", "w1"), Direction(units[1], "given", "w2"), "w1, w2")


# -- known functions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.linspace(-1, 1, 7), np.linspace(-2, 0.5, 4)),
        (np.linspace(-1, 1, 4), np.linspace(-1, 1, 7)),
        (np.linspace(0, 3, 5), np.linspace(-1, 0, 2)),
        (np.array([-0.3, 0.1, 5.0]), np.array([1e-9, 1e6])),
    ],
)
@pytest.mark.parametrize("constant", [0.0, 2.0, -50.0])
def test_a_quadratic_is_exact_on_any_grid(x, y, constant):
    q = bowl(constant)
    problem = quadratic_problem(q, n_examples=5, batch_size=2)
    plane = plane_of(problem)
    found = surface(problem, plane, x=x, y=y)
    assert found.loss.shape == (len(x), len(y))
    assert found.loss.dtype == np.float64
    expected = exact(q, plane, x, y)
    scale = np.abs(expected).max() + abs(constant)
    assert np.abs(found.loss - expected).max() <= 1e-12 * scale
    assert found.x.tolist() == x.tolist()
    assert found.y.tolist() == y.tolist()
    assert found.origin_loss == pytest.approx(constant, abs=1e-13)
    assert found.cost.forwards == len(x) * len(y) + 1


@pytest.mark.parametrize("x", [np.linspace(-1, 1, 9), np.linspace(0, 2, 4), np.array([-7.0, 3.0])])
def test_a_quadratic_is_exact_on_any_line(x):
    q = bowl(-3.0)
    problem = quadratic_problem(q, n_examples=5, batch_size=2)
    d = np.random.default_rng(0).standard_normal(N)
    found = line(problem, d, x=x)
    expected = np.array([q.constant + q.rise(a * d) for a in x])
    assert np.abs(found.loss - expected).max() <= 1e-12 * np.abs(expected).max()
    assert found.direction_norm == pytest.approx(np.linalg.norm(d))
    assert found.distance == pytest.approx(x * np.linalg.norm(d))
    assert found.origin_loss == pytest.approx(-3.0)
    assert found.cost.forwards == len(x) + 1


def test_the_first_index_is_that_of_the_first_direction():
    """L = 10 w₁ + w₂ tells the axes apart: no transposed grid and no swapped directions pass."""
    problem = direct(lambda w: 10 * w[0] + w[1], [0.0, 0.0])
    found = surface(problem, axes(problem), x=[1.0, 2.0, 3.0], y=[0.1, 0.2])
    assert found.loss == pytest.approx(np.array([[10.1, 10.2], [20.1, 20.2], [30.1, 30.2]]))
    assert found.direction_norms == (1.0, 1.0)
    square = surface(problem, axes(problem), x=[1.0, 2.0], y=[3.0, 4.0])
    assert square.loss == pytest.approx(np.array([[13.0, 14.0], [23.0, 24.0]]))


def test_coordinates_are_steps_along_the_direction_as_it_is():
    """No direction is rescaled on the way: twice the vector is half the coordinate."""
    problem = direct(lambda w: w[0] ** 2, [0.0])
    twice = given_direction(problem, np.array([2.0]))
    assert line(problem, twice, x=[0.5, 1.0]).loss == pytest.approx([1.0, 4.0])


def test_losses_in_float32_are_those_of_float64_to_rounding():
    single, double = (case_named("mlp").build(5, dtype=dtype) for dtype in ("float32", "float64"))
    grids = [surface(p, n=3, seed=2) for p in (single, double)]
    assert grids[0].loss == pytest.approx(grids[1].loss, rel=2e-6)
    assert (grids[0].loss != grids[1].loss).any()


# -- the centre, and one point apart from the others ---------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_point_zero_zero_is_the_plain_loss(case, dtype):
    problem = case.build(None if case.depends_on_batches else 5, dtype=dtype)
    plain = evaluation(problem)
    found = surface(problem, n=3, seed=1)
    along = line(problem, random_direction(problem, 1), x=[-1.0, 0.0, 1.0])
    assert found.origin_loss == along.origin_loss == plain.loss
    centre = [found.loss[1, 1], found.loss_se[1, 1], along.loss[1]]
    expected = [plain.loss, plain.loss_se, plain.loss]
    if found.engine != str(PLAIN):  # BatchNorm folded: other roundings
        rel = 1e-12 if dtype == "float64" else 1e-6
        assert centre == pytest.approx(expected, rel=rel, nan_ok=True)
    else:
        assert np.array_equal(centre, expected, equal_nan=True)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_point_does_not_depend_on_the_others_of_its_grid(data):
    """No drift: a grid of some of the coordinates has the same bits there."""
    problem = case_named("mlp").build(5, dtype="float32")
    plane = random_plane(problem, 3)
    x, y = span(1.0, 5), span(0.7, 4)
    whole = surface(problem, plane, x=x, y=y)
    rows = sorted(data.draw(st.sets(st.integers(0, 4), min_size=2, max_size=3)))
    columns = sorted(data.draw(st.sets(st.integers(0, 3), min_size=2, max_size=3)))
    part = surface(problem, plane, x=x[rows], y=y[columns])
    assert part.loss.tobytes() == whole.loss[np.ix_(rows, columns)].tobytes()
    assert part.loss_se.tobytes() == whole.loss_se[np.ix_(rows, columns)].tobytes()


def test_a_line_through_a_surface_has_its_bits():
    problem = case_named("conv_batch_norm_eval").build(5, dtype="float32")
    plane = random_plane(problem, 3)
    grid = surface(problem, plane, n=5)
    assert line(problem, plane.x, n=5).x.tolist() == grid.x.tolist()
    with pytest.raises(TypeError, match=r"surface\(\) has no argument 'points'"):
        surface(problem, plane, points=5)
    with pytest.raises(TypeError, match=r"line\(\) has no argument 'precison' \(nearest: prec"):
        line(problem, precison="exact")
    assert line(problem, plane.x, x=grid.x).loss.tobytes() == grid.loss[:, 2].tobytes()
    assert line(problem, plane.y, x=grid.y).loss.tobytes() == grid.loss[2].tobytes()


def test_the_loss_far_away_leaves_nothing_behind():
    """After a point where weights of size 1e30 have swallowed all digits, the origin is intact."""
    problem = case_named("regression").build(5)
    plane = random_plane(problem, 0)
    found = surface(problem, plane, x=[-1e30, 0.0], y=[0.0, 1.0])
    assert found.loss[1, 0] == evaluation(problem).loss


# -- what is measured at a point -----------------------------------------------------------------


def test_standard_errors_and_metrics_are_those_of_a_plain_evaluation_there():
    case = case_named("per_example")
    parts = case.parts()
    metrics = {"loss": lambda output, target: (output - target).abs().sum(dim=1)}
    problem = Problem(parts.model, parts.loss, list(case.build(4).batches), metrics=metrics)
    plane = random_plane(problem, 2)
    found = surface(problem, plane, x=[-0.5, 0.25], y=[0.0, 1.0, 2.0])
    for i, x in enumerate(found.x):
        for j, y in enumerate(found.y):
            point = plane.at(problem.weights, x, y)
            moved = problem.at({k: v.clone() for k, v in problem.space.unflatten(point).items()})
            there = evaluation(moved)
            assert found.loss[i, j] == there.loss
            assert found.loss_se[i, j] == there.loss_se > 0
            # A metric may well be called "loss"; it is not taken for the loss itself.
            assert found.metrics["loss"][i, j] == there.metrics["loss"] != there.loss
    assert list(found.metrics) == ["loss"]
    along = line(problem, plane.y, x=found.y)
    assert along.metrics["loss"].shape == along.loss_se.shape == (3,)


def test_train_mode_has_the_same_dropout_masks_at_every_point():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 20), nn.Dropout(0.5), nn.Linear(20, 1))
    data = torch.randn(12, 3, generator=generator), torch.zeros(12, 1)
    problem = Problem(model, nn.MSELoss(), data, mode="train", batch_size=5)
    flat = Direction(torch.full((problem.space.n,), 1e-30), "given", "nowhere")
    found = line(problem, flat, x=[-1.0, 0.0, 1.0])
    assert found.loss[0] == found.loss[1] == found.loss[2] == found.origin_loss


# -- not finite ----------------------------------------------------------------------------------


def test_nan_and_infinity_are_kept_and_warned_of():
    problem = direct(lambda w: torch.log(w[0]) + w[1], [1.0, 0.0])
    with pytest.warns(
        NonFiniteWarning, match="not finite at 4 of 6 points; they are kept as they are"
    ) as caught:
        found = surface(problem, axes(problem), x=[-2.0, -1.0, 0.0], y=[0.0, 1.0])
    assert caught[0].filename == __file__
    assert np.isnan(found.loss[0]).all()
    assert (found.loss[1] == -math.inf).all()
    assert found.loss[2].tolist() == [0.0, 1.0]
    with pytest.warns(NonFiniteWarning, match="not finite at 1 of 2 points") as caught:
        along = line(problem, axes(problem).x, x=[-1.0, 0.0])
    assert caught[0].filename == __file__
    assert along.loss.tolist() == [-math.inf, 0.0]


def test_not_finite_points_survive_the_study(tmp_path):
    problem = direct(lambda w: torch.log(w[0]) + w[1], [1.0, 0.0])
    with Study(tmp_path / "landscape.db") as study:
        for _ in range(2):  # measured, then recalled: the warning comes both times
            with pytest.warns(NonFiniteWarning):
                found = surface(problem, axes(problem), x=[-2.0, 0.0], y=[0.0, 1.0], study=study)
            assert np.isnan(found.loss[0]).all()
            assert found.loss[1].tolist() == [0.0, 1.0]


# -- defaults, study, state ----------------------------------------------------------------------


def test_defaults_are_a_filter_normalised_plane_on_the_unit_square():
    problem = case_named("mlp").build()
    found = surface(problem, n=4, seed=7)
    plane = random_plane(problem, 7)
    assert found.x.tolist() == found.y.tolist() == span(1.0, 4).tolist()
    given_plane = surface(problem, plane, x=span(1.0, 4), y=span(1.0, 4))
    assert found.loss.tobytes() == given_plane.loss.tobytes()
    assert found.plane == "filter-normalised random direction (seed 7)"
    assert found.cosine == pytest.approx(plane.cosine)
    assert found.direction_norms == (plane.x.norm, plane.y.norm)
    along = line(problem, seed=7)
    assert (along.x.size, along.x[0], along.x[25], along.x[-1]) == (51, -1.0, 0.0, 1.0)
    assert along.direction == "filter-normalised random direction"


@given(half_width=st.floats(1e-6, 1e6), n=st.integers(2, 200))
def test_coordinates_are_symmetric_ascend_and_hit_zero_if_odd(half_width, n):
    x = span(half_width, n)
    assert x.shape == (n,)
    assert (np.diff(x) > 0).all()
    assert (x == -x[::-1]).all()
    assert (x[0], x[-1]) == (-half_width, half_width)
    assert (x == 0).any() == (n % 2 == 1)


def test_a_study_answers_the_second_time_and_tells_planes_apart(tmp_path, no_passes):
    problem = case_named("mlp").build(5)
    with Study(tmp_path / "landscape.db") as study:
        first = surface(problem, n=3, study=study)
        along = line(problem, x=[0.0, 1.0], study=study)
        no_passes()
        again = surface(problem, n=3, study=study)
        assert again.loss.tobytes() == first.loss.tobytes()
        assert line(problem, x=[0.0, 1.0], study=study).loss.tobytes() == along.loss.tobytes()
        for other in ({"n": 4}, {"n": 3, "seed": 1}, {"x": [0.0, 1.0], "n": 3}):
            with pytest.raises(TypeError):
                surface(problem, study=study, **other)


def test_a_surface_that_was_begun_goes_on_where_it_stopped(tmp_path, monkeypatch):
    problem = case_named("mlp").build(5)
    whole = surface(problem, n=4)
    measured = []
    losses = Engine.losses

    def stops(self, vectors, *args, **kwargs):
        if len(measured) >= 7:
            raise KeyboardInterrupt
        measured.extend(vectors)
        return losses(self, vectors, *args, **kwargs)

    monkeypatch.setattr(_points, "_BLOCK", 3)
    with Study(tmp_path / "landscape.db") as study:
        monkeypatch.setattr(Engine, "losses", stops)
        with pytest.raises(KeyboardInterrupt):
            surface(problem, n=4, study=study)
        (entry,) = study.entries()
        n_done = len(measured)  # all but the block in flight, which has three points at most
        assert 7 <= n_done <= 9
        assert (entry.status, entry.points_done, entry.points_total) == ("partial", n_done, 16)
        monkeypatch.setattr(Engine, "losses", losses)
        found = surface(problem, n=4, study=study)
        assert found.loss.tobytes() == whole.loss.tobytes()
        assert found.loss_se.tobytes() == whole.loss_se.tobytes()
        assert found.cost.forwards == 16 - n_done + 1


def test_points_that_other_processes_left_out_are_filled_in_at_their_place(tmp_path):
    """What is recorded need not be the first points of the grid."""
    problem = case_named("mlp").build(5)
    whole = surface(problem, n=3)
    path = tmp_path / "landscape.db"
    with Study(path) as study:
        surface(problem, n=3, study=study)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM points WHERE i = j")
        connection.execute("UPDATE measurements SET status = 'partial'")
    with Study(path) as study:
        found = surface(problem, n=3, study=study)
        assert found.cost.forwards == 3 + 1
        assert found.loss.tobytes() == whole.loss.tobytes()
        assert found.loss_se.tobytes() == whole.loss_se.tobytes()


def test_model_and_generators_stay_as_they_were():
    problem = case_named("conv_batch_norm_eval").build(5)
    digest = problem.checkpoint_hash
    modes = [part.training for part in problem.model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    surface(problem, n=3)
    line(problem, x=[0.0, 1.0])
    assert problem.checkpoint_hash == digest
    assert [part.training for part in problem.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_the_coordinates_of_the_record_are_a_copy():
    problem = case_named("mlp").build()
    x = np.array([0.0, 1.0])
    found = line(problem, x=x)
    x[:] = 9.0
    assert found.x.tolist() == [0.0, 1.0]


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([0.0], r"x must be a list of at least 2 finite coordinates, got \(1,\)"),
        ([], "x must be a list of at least 2 finite"),
        (1.0, r"x must be a list of at least 2 finite coordinates, got \(\)"),
        ([[0.0, 1.0]], r"got \(1, 2\)"),
        ([0.0, math.nan], "got NaN or infinity in it"),
        ([0.0, math.inf], "got NaN or infinity in it"),
        ([0.0, 0.0], "x must ascend from one coordinate to the next"),
        ([1.0, 0.0], "x must ascend from one coordinate to the next"),
        (["a", "b"], "x must be a list of at least 2 finite"),
    ],
)
def test_refuses_coordinates_that_are_none(x, message):
    problem = case_named("mlp").build()
    with pytest.raises(InvalidArgumentError, match=message):
        line(problem, x=x)
    with pytest.raises(InvalidArgumentError, match=message):
        surface(problem, x=x)
    with pytest.raises(InvalidArgumentError, match=message.replace("x must", "y must")):
        surface(problem, y=x)


def test_refuses_a_grid_of_one_point():
    problem = case_named("mlp").build()
    with pytest.raises(InvalidArgumentError, match="at least 2 points along each axis, got n = 1"):
        surface(problem, n=1)


@pytest.mark.parametrize(("half_width", "n"), [(0.0, 3), (-1.0, 3), (math.nan, 3), (1.0, 1)])
def test_refuses_a_span_that_is_none(half_width, n):
    with pytest.raises(
        InvalidArgumentError, match="expected a finite half-width above 0 and n ≥ 2"
    ):
        span(half_width, n)


def test_refuses_a_direction_of_another_model():
    problem = case_named("mlp").build()
    with pytest.raises(InvalidArgumentError, match="is it of another architecture"):
        line(problem, np.ones(5))


# -- how points are evaluated ----------------------------------------------------------------------


@pytest.mark.parametrize("measure", [line, surface, average_sharpness])
def test_nothing_is_timed_unless_asked_for(measure, monkeypatch):
    def timed(*args):
        msg = "timed"
        raise NotImplementedError(msg)

    monkeypatch.setattr("landscape.evaluate._choosing._fastest", timed)
    size = {line: {}, surface: {"n": 6}, average_sharpness: {"sigma": 0.1, "prediction": False}}
    problem = case_named("conv_batch_norm_eval").build(5)
    assert measure(problem, **size[measure]).engine == "BatchNorm folded"
    with pytest.raises(NotImplementedError, match="timed"):
        measure(problem, **size[measure], tune=True)
