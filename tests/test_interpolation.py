"""Surfaces from few points: the error that is stated is the error, and few points do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RBFInterpolator

from landscape.errors import InvalidArgumentError
from landscape.surface._interpolation import _missed, interpolated_surface

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import known_surfaces

X = np.linspace(-1.0, 1.0, 41)
Y = np.linspace(-0.5, 2.0, 31)


def grid(function, x=X, y=Y):
    return np.asarray(function(*np.meshgrid(x, y, indexing="ij")), dtype=np.float64)


def run(values, x=X, y=Y, **kwargs):
    """Interpolate known values, and note what was asked for."""
    asked = []

    def measure(points):
        asked.extend(points)
        return [float(values[i, j]) for i, j in points]

    return interpolated_surface(x, y, measure, **kwargs), asked


def soft_valley(x, y):
    return 0.02 + np.log1p(np.exp(6 * (x + y**2 - 1))) + 0.3 * x**2


def bent_valley(x, y):
    return 0.01 + (1 - x) ** 2 + 10 * (y - x**2) ** 2


def cone(x, y):
    return 0.01 + np.hypot(x, y)


def saturated(x, y):
    return 2.3 - 2.2 * np.exp(-4 * (x**2 + x * y + y**2))


SMOOTH = [soft_valley, bent_valley, cone, saturated, lambda x, y: np.exp(2 * x + y**2)]
NAMES = ["soft valley", "bent valley", "cone", "saturated", "exponential"]


@pytest.mark.parametrize("function", SMOOTH, ids=NAMES)
def test_the_true_error_is_within_the_tolerance_with_far_fewer_points(function):
    values = grid(function)
    found, asked = run(values, tolerance=2e-3)
    error = np.abs(found.loss - values).max() / np.ptp(values)
    assert error <= 2e-3
    assert found.error <= 2e-3
    assert len(asked) == found.measured.sum() <= values.size / 4


@pytest.mark.parametrize("function", SMOOTH, ids=NAMES)
def test_the_criterion_in_the_logarithm_holds_at_the_minimum_too(function):
    values = grid(function)
    found, asked = run(values, tolerance=0.1, criterion="log")
    assert np.abs(np.log(found.loss / values)).max() <= 0.1
    assert len(asked) <= values.size / 3


@pytest.mark.parametrize(
    ("name", "n"),
    [
        # Before points were left out to see what is missed, the errors of the first two were 3.8
        # and 1.4 times the tolerance.
        ("edge valley", 35),
        ("kinked sum 9", 31),
        ("narrow bump on a bowl", 51),
        ("NaN in a corner", 51),
        ("exponential wall", 51),
    ],
)
def test_the_tolerance_holds_on_sharp_valleys_walls_and_kinks(name, n, monkeypatch):
    monkeypatch.setattr(known_surfaces, "N", n)
    (known,) = [one for one in known_surfaces.known_surfaces() if one.name == name]
    x, values = known.make()
    found, asked = run(values, x, x, tolerance=known.tolerance, criterion=known.criterion)
    assert known.error_of(found.loss, values) <= known.tolerance
    assert found.error <= known.tolerance
    assert len(asked) < values.size


def test_what_is_missed_at_a_point_left_out_is_the_error_of_a_fit_without_it():
    rng = np.random.default_rng(0)
    points = rng.random((45, 2))
    values = np.sin(5 * points[:, 0]) * np.exp(points[:, 1])
    near = np.array(
        [
            [k for k in np.argsort(np.hypot(*(points - p).T)) if k != i][:40]
            for i, p in enumerate(points)
        ]
    )
    expected = [
        RBFInterpolator(points[own], values[own], kernel="quintic", degree=2)(points[i : i + 1])[0]
        - values[i]
        for i, own in enumerate(near)
    ]
    found = _missed(points, values, np.arange(45), near)
    assert found == pytest.approx(np.abs(expected), rel=1e-5, abs=1e-9)


def test_neighbours_on_a_line_say_what_a_line_can():
    points = np.stack([np.linspace(0, 1, 60), np.zeros(60)], axis=1)
    near = np.array([[k for k in range(60) if k != i][:40] for i in range(60)])
    found = _missed(points, 2 + 3 * points[:, 0], np.arange(10), near[:10])
    assert found.max() <= 1e-6


def test_measured_points_are_kept_as_they_are_and_asked_for_once():
    values = grid(soft_valley)
    found, asked = run(values, tolerance=1e-3)
    assert len(asked) == len(set(asked)) == found.measured.sum()
    assert {(int(i), int(j)) for i, j in np.argwhere(found.measured)} == set(asked)
    assert found.loss[found.measured].tobytes() == values[found.measured].tobytes()
    assert np.isfinite(found.loss).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_a_quadratic_is_exact_from_the_first_points(c):
    """Quintic radial functions with quadratic terms reproduce every quadratic."""
    values = grid(
        lambda x, y: c[0] + c[1] * x + c[2] * y + c[3] * x**2 + c[4] * x * y + c[5] * y**2
    )
    found, _ = run(values, tolerance=1e-2)
    assert np.abs(found.loss - values).max() <= 1e-9 * (1 + np.abs(values).max())


def test_the_same_losses_give_the_same_points_bit_for_bit():
    values = grid(bent_valley)
    (first, asked), (second, again) = (run(values, tolerance=1e-3) for _ in range(2))
    assert asked == again
    assert first.loss.tobytes() == second.loss.tobytes()


def test_x_and_y_are_not_confused():
    values = grid(lambda x, y: np.exp(3 * x) + 0.1 * y)
    found, _ = run(values, tolerance=1e-3)
    assert found.loss.shape == (41, 31)
    assert np.abs(found.loss - values).max() <= 1e-3 * np.ptp(values)
    turned, _ = run(values.T, x=Y, y=X, tolerance=1e-3)
    assert np.abs(turned.loss - values.T).max() <= 1e-3 * np.ptp(values)


def test_coordinates_need_not_be_equidistant():
    x = np.sign(X) * X**2
    values = grid(soft_valley, x=x)
    found, _ = run(values, x=x, tolerance=2e-3)
    assert np.abs(found.loss - values).max() <= 2e-3 * np.ptp(values)


def test_what_cannot_be_interpolated_is_measured_whole():
    values = np.random.default_rng(0).random((15, 13))
    found, asked = run(values, np.linspace(0, 1, 15), np.linspace(0, 1, 13), tolerance=1e-6)
    assert found.measured.all()
    assert found.error == 0.0
    assert found.loss.tobytes() == values.tobytes()
    assert len(asked) == values.size


@pytest.mark.parametrize("shape", [(2, 2), (2, 30), (5, 5), (9, 7)])
def test_small_grids_are_measured_whole(shape):
    x, y = (np.linspace(0, 1, n) for n in shape)
    values = grid(cone, x, y)
    found, _ = run(values, x, y, tolerance=1e-9)
    assert np.abs(found.loss - values).max() <= 1e-9
    assert found.measured.all()


def test_a_limit_is_kept_and_the_error_that_was_reached_is_said():
    values = grid(lambda x, y: np.sin(9 * x) * np.cos(7 * y))
    found, asked = run(values, tolerance=1e-6, max_points=120)
    assert len(asked) == 120
    assert found.error > 1e-6
    true = np.abs(found.loss - values).max() / np.ptp(values)
    assert true <= 2 * found.error


def test_a_constant_surface_has_no_error():
    found, _ = run(np.full((41, 31), 0.7), tolerance=1e-3)
    assert found.error == 0.0
    assert np.abs(found.loss - 0.7).max() <= 1e-12


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_where_the_loss_is_not_finite_nothing_is_made_up(bad):
    values = grid(soft_valley)
    outside = grid(lambda x, y: x + y > 1.3).astype(bool)
    values[outside] = bad
    found, asked = run(values, tolerance=5e-3)
    assert not np.isfinite(found.loss[outside]).any()
    true, drawn = values[~outside], found.loss[~outside]
    assert np.isfinite(drawn).all()
    assert np.abs(drawn - true).max() <= 5e-3 * np.ptp(true)
    assert len(asked) < values.size


def test_nothing_finite_at_all():
    found, _ = run(np.full((20, 20), np.nan), X[:20], X[:20], tolerance=1e-3)
    assert np.isnan(found.loss).all()


def test_tiny_and_huge_losses_scale():
    values = grid(soft_valley)
    plain, _ = run(values, tolerance=1e-3)
    for factor in (2.0**-300, 2.0**300):
        scaled, _ = run(values * factor, tolerance=1e-3)
        assert (scaled.measured == plain.measured).all()
        assert np.abs(scaled.loss / factor - plain.loss).max() <= 1e-12


@pytest.mark.parametrize("tolerance", [0.0, -1.0, np.nan, np.inf])
def test_refuses_a_tolerance_that_is_none(tolerance):
    with pytest.raises(InvalidArgumentError, match="tolerance must be a finite number above 0"):
        run(grid(cone), tolerance=tolerance)


def test_refuses_an_unknown_criterion():
    with pytest.raises(InvalidArgumentError, match="unknown criterion 'lgo'"):
        run(grid(cone), tolerance=1e-3, criterion="lgo")


def test_refuses_the_logarithm_of_a_loss_below_zero():
    with pytest.raises(InvalidArgumentError, match="takes losses above zero"):
        run(grid(lambda x, y: x + y), tolerance=1e-3, criterion="log")


@pytest.mark.parametrize("most", [-1, 0, 1, 7, 72])
def test_refuses_fewer_points_than_it_starts_from(most):
    with pytest.raises(InvalidArgumentError, match="starts from 73 points"):
        run(grid(cone), tolerance=1e-3, max_points=most)


def test_a_limit_beside_a_region_that_is_not_finite_is_not_called_exact():
    values = grid(soft_valley)
    values[grid(lambda x, y: x + y > 0.3).astype(bool)] = np.nan
    found, asked = run(values, tolerance=1e-3, max_points=80)
    assert len(asked) == 80
    assert found.error == np.inf


def test_hardly_anything_finite_in_the_logarithm():
    values = np.full((41, 31), np.nan)
    values[20, 15] = 1.0
    found, asked = run(values, tolerance=1e-3, criterion="log", max_points=74)
    assert len(asked) == len(set(asked)) <= 74
    assert not np.isfinite(found.loss[~found.measured]).any()
