"""Areas of level sets against closed forms; differences and bands by what is drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import samples
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import SymLogNorm
from samples import figures as plots

from landscape.errors import DataError, InvalidArgumentError
from landscape.plots.areas import FEW, area_parts, areas_of
from landscape.plots.differences import difference_of
from landscape.results.surfaces import area_below, level_set_area

HESSIAN = np.array([[4.0, 1.0], [1.0, 2.0]])


def quadratic(nx, ny=None, *, name="m", hessian=HESSIAN, reach=1.0, norms=(3.0, 2.0), cosine=0.6):
    """The loss 0.3 + ½ vᵀHv on a grid."""
    record = samples.surface(name, nx=nx, ny=ny or nx, reach=reach)
    x, y = record.x[:, None], record.y[None, :]
    (a, b), (_, c) = hessian
    loss = 0.3 + 0.5 * (a * x**2 + 2 * b * x * y + c * y**2)
    return dataclasses.replace(
        record, loss=loss, origin_loss=0.3, direction_norms=norms, cosine=cosine
    )


said = samples.caption


# --- the area ----------------------------------------------------------------------------------


@given(
    st.tuples(*[st.floats(-3, 3)] * 2).filter(lambda g: abs(g[0]) + abs(g[1]) > 0.1),
    st.floats(-2, 2),
)
@example((1.0, 2.2250738585e-313), 1.0)
def test_the_area_below_a_plane_is_exact(gradient, level):
    """{a x + b y ≤ c} in the unit square, by clipping the square with the half-plane."""
    a, b = gradient
    x, y = np.sort(np.r_[0, np.random.default_rng(0).random(4), 1]), np.linspace(0, 1, 4)
    found = area_below(x, y, a * x[:, None] + b * y[None, :], level)
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    kept = []
    for p, q in zip(corners, corners[1:] + corners[:1], strict=True):
        fp, fq = (a * s + b * t - level for s, t in (p, q))
        if fp <= 0:
            kept.append(p)
        if fp * fq < 0:
            share = fp / (fp - fq)
            kept.append((p[0] + share * (q[0] - p[0]), p[1] + share * (q[1] - p[1])))
    area = 0.0
    if len(kept) > 2:
        s, t = np.array(kept).T
        area = 0.5 * abs(s @ np.roll(t, 1) - t @ np.roll(s, 1))
    assert found == pytest.approx(area, abs=1e-9)


def test_the_area_of_an_ellipse_converges_with_the_square_of_the_spacing():
    exact = 2 * np.pi * 0.3 / np.sqrt(np.linalg.det(HESSIAN))
    errors = [1 - level_set_area(quadratic(n), 0.3).in_axes / exact for n in (11, 21, 41, 81, 161)]
    assert all(error > 0 for error in errors)  # linear pieces of a convex loss lie above it
    ratios = np.array(errors[:-1]) / errors[1:]
    np.testing.assert_allclose(ratios, 4.0, rtol=0.1)
    assert errors[-1] < 3e-4


def test_the_euclidean_area_has_the_parallelogram_of_the_directions():
    found = level_set_area(quadratic(21, 31), 0.3)
    assert found.area == pytest.approx(found.in_axes * 3.0 * 2.0 * 0.8)
    unknown = dataclasses.replace(quadratic(21), cosine=np.nan)
    assert np.isnan(level_set_area(unknown, 0.3).area)
    assert level_set_area(unknown, 0.3).in_axes == level_set_area(quadratic(21), 0.3).in_axes


def test_the_area_does_not_depend_on_which_axis_is_which():
    record = quadratic(21, 31)
    turned = dataclasses.replace(record, x=record.y, y=record.x, loss=record.loss.T)
    assert level_set_area(turned, 0.4).in_axes == pytest.approx(
        level_set_area(record, 0.4).in_axes, rel=1e-12
    )


def test_a_set_that_reaches_the_border_is_called_a_lower_bound():
    record = quadratic(21)
    inside = 0.5 * (2 - 1 / 4)  # least rise on the border: the Schur complement of the other axis
    assert not level_set_area(record, 0.9 * inside).is_cut
    assert level_set_area(record, 1.1 * inside).is_cut
    everything = level_set_area(record, 100.0)
    assert (everything.in_axes, everything.n_points) == (pytest.approx(4.0), 441)


def test_squares_with_a_point_that_is_not_finite_are_left_out():
    record = quadratic(21)
    loss = record.loss.copy()
    loss[10, 11] = np.inf
    broken = dataclasses.replace(record, loss=loss)
    whole, left = level_set_area(record, 0.3), level_set_area(broken, 0.3)
    assert left.is_cut
    assert whole.in_axes - left.in_axes == pytest.approx(4 * 0.1**2)
    far = record.loss.copy()
    far[0, 0] = np.nan
    assert level_set_area(dataclasses.replace(record, loss=far), 0.3) == whole


@pytest.mark.parametrize("delta", [0.0, -1.0, np.nan, np.inf, "x", None])
def test_a_rise_that_is_none_is_refused(delta):
    with pytest.raises(InvalidArgumentError, match="delta must be a positive finite rise"):
        level_set_area(quadratic(5), delta)


def test_surfaces_without_a_level_or_an_area_are_refused():
    record = quadratic(5)
    with pytest.raises(InvalidArgumentError, match="loss of m at the checkpoint is nan"):
        level_set_area(dataclasses.replace(record, origin_loss=np.nan), 0.1)
    flat = dataclasses.replace(record, x=record.x[:1], loss=record.loss[:1])
    with pytest.raises(InvalidArgumentError, match="at least 2 × 2"):
        level_set_area(flat, 0.1)
    with pytest.raises(InvalidArgumentError, match="rises nowhere on the surface of m"):
        areas_of([dataclasses.replace(record, loss=np.zeros((5, 5)))])


# --- the picture of areas ----------------------------------------------------------------------


def test_areas_are_drawn_against_delta_on_logarithmic_axes():
    one, two = quadratic(41, name="one"), quadratic(41, name="$2$", hessian=9 * HESSIAN)
    figure = plots.plot_area([one, two], deltas=[0.1, 0.2, 0.4])
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    for record, line in zip((one, two), solid, strict=True):
        expected = [level_set_area(record, d).area for d in (0.1, 0.2, 0.4)]
        np.testing.assert_allclose(line.get_ydata(), expected)
        np.testing.assert_array_equal(line.get_xdata(), [0.1, 0.2, 0.4])
    # nine times the curvature is a ninth of the area
    assert solid[0].get_ydata()[2] / solid[1].get_ydata()[2] == pytest.approx(9, rel=0.05)
    assert axes.get_ylabel() == "area of {L ≤ L(w) + δ}, in parameter space"
    assert [line.get_label() for line in solid] == ["one", r"\$2\$"]
    assert "dashed" not in said(figure).lower()


def test_units_of_areas():
    record = quadratic(21)
    found = areas_of([record], deltas=[0.3], units="axes")
    assert found.values[0, 0] == level_set_area(record, 0.3).in_axes
    unknown = dataclasses.replace(record, direction_norms=(np.nan, np.nan))
    axes = plots.plot_area([record, unknown], deltas=[0.3]).axes[0]
    assert axes.get_ylabel().endswith("in units of d₁ · d₂")
    with pytest.raises(InvalidArgumentError, match="draw with units='axes'"):
        areas_of([unknown], units="distance")
    with pytest.raises(InvalidArgumentError, match="unknown unit of areas 'metres'"):
        areas_of([record], units="metres")
    with pytest.raises(InvalidArgumentError, match="deltas must be positive rises"):
        areas_of([record], deltas=[0.2, 0.1])


def test_parts_of_a_curve_are_dotted_where_rough_and_dashed_where_cut():
    record = quadratic(21)
    areas = areas_of([record])
    parts = dict(area_parts(areas, 0))
    for k, delta in enumerate(areas.deltas):
        found = level_set_area(record, float(delta))
        style = "dashed" if found.is_cut else "dotted" if found.n_points < FEW else "solid"
        assert parts[style][k] == found.area
    # parts meet, so that no gap is drawn
    drawn = np.sum([np.isfinite(values) for values in parts.values()], axis=0)
    assert list(np.unique(drawn)) == [1, 2]
    assert (drawn == 2).sum() == 2
    text = said(plots.plot_area(record))
    assert "Dashed: the set reaches the border" in text
    assert f"Dotted, rough: less than {FEW} points of the grid lie in the set. " in text


@pytest.mark.parametrize(("criterion", "span"), [("range", 4.0), ("log", 0.3 + 0.05)])
def test_an_area_within_the_error_of_an_interpolation_is_rough(criterion, span):
    """Of the range of 4, or of the loss, 0.3 + 0.05, that a rise of 0.05 leads to."""
    measured = np.add.outer(np.arange(81), np.arange(81)) % 2 == 0
    record = dataclasses.replace(quadratic(81), measured=measured, criterion=criterion)
    assert np.ptp(record.loss[measured]) == pytest.approx(4.0)  # at (1, 1)
    for size, rough in ((0.9, False), (1.1, True)):
        some = dataclasses.replace(record, interpolation_error=size * 0.005 / span)
        assert areas_of([some], deltas=[0.05]).is_rough[0, 0] == rough
    assert "ten times the error of the interpolation" in said(plots.plot_area(some))


# --- differences -------------------------------------------------------------------------------


def pair(nx=7, ny=4):
    """Two surfaces whose difference is x + 10 y, on nx × ny, with errors 0.3 and 0.4."""
    a, b = (samples.surface(name, nx=nx, ny=ny, y_reach=0.5) for name in ("a", "b"))
    a = dataclasses.replace(a, loss=b.loss + a.x[:, None] + 10 * a.y[None, :], origin_loss=2.0)
    return tuple(
        dataclasses.replace(record, loss_se=np.full((nx, ny), se))
        for record, se in ((a, 0.3), (b, 0.4))
    )


def mesh_of(axes):
    return next(c for c in axes.collections if isinstance(c, QuadMesh))


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (2, 2)])
def test_each_difference_is_drawn_at_its_own_x_and_y(shape):
    a, b = pair(*shape)
    axes = plots.plot_difference(a, b).axes[0]
    mesh = mesh_of(axes)
    expected = a.x[None, :] + 10 * a.y[:, None]
    np.testing.assert_allclose(mesh.get_array().reshape(expected.shape), expected, atol=1e-12)
    corners = mesh.get_coordinates()
    middles = (corners[:-1, :-1] + corners[1:, 1:]) / 2
    np.testing.assert_allclose(middles[..., 0], np.broadcast_to(a.x, expected.shape), atol=1e-12)


def test_zero_is_in_the_middle_of_the_colours():
    a, b = pair()
    for kwargs in ({}, {"limit": 2.0}, {"scale": "log"}):
        norm = mesh_of(plots.plot_difference(a, b, **kwargs).axes[0]).norm
        assert norm(0.0) == pytest.approx(0.5)
        assert norm.vmax == -norm.vmin == kwargs.get("limit", pytest.approx(6.0))
    assert isinstance(norm, SymLogNorm)
    assert "log scale for both signs" in said(plots.plot_difference(a, b, scale="log")).lower()


def test_swapping_the_surfaces_changes_the_sign_and_nothing_else():
    a, b = pair()
    one, other = difference_of(a, b), difference_of(b, a)
    np.testing.assert_array_equal(one.values, -other.values)
    np.testing.assert_array_equal(one.unsure, other.unsure)


def test_dots_mark_what_is_within_two_unpaired_standard_errors():
    a, b = pair()
    figure = plots.plot_difference(a, b, names=["one", "two"])
    dots = next(line for line in figure.axes[0].lines if line.get_marker() == ".")
    i, j = np.nonzero(np.abs(a.x[:, None] + 10 * a.y[None, :]) < 2 * 0.5)
    np.testing.assert_array_equal(dots.get_xdata(), a.x[i])
    np.testing.assert_array_equal(dots.get_ydata(), a.y[j])
    assert 0 < i.size < 28
    assert f"{i.size} of 28 points differ by less than two standard errors (unpaired" in said(
        figure
    )
    assert "orange, one lies higher; purple, two does" in said(figure)


@pytest.mark.parametrize("holder", ["a", "b"])
def test_paired_errors_are_used_where_they_are_of_this_pair(holder):
    a, b = pair()
    errors = np.full(a.loss.shape, 0.01)
    records = {"a": a, "b": b}
    rival = records["b" if holder == "a" else "a"]
    against = {
        "checkpoint": rival.provenance.checkpoint_hash,
        "d1": rival.settings.get("d1"),
        "d2": rival.settings.get("d2"),
    }

    def paired(**changes):
        record = records[holder]
        held = dataclasses.replace(
            record,
            metrics={"difference": record.loss - rival.loss, "difference_se": errors},
            settings={**record.settings, "against": {**against, **changes}},
        )
        return [held if name == holder else records[name] for name in ("a", "b")]

    found = difference_of(*paired())
    assert found.paired
    np.testing.assert_array_equal(found.errors, errors)
    assert "paired, of the same examples" in said(plots.plot_difference(*paired()))
    assert not difference_of(*paired(checkpoint="another")).paired
    assert not difference_of(*paired(d1={"digest": "another"})).paired


def test_rises_count_from_the_loss_of_each_checkpoint():
    a, b = pair()
    found = difference_of(a, b, rise=True)
    np.testing.assert_allclose(
        found.values, (a.loss - a.origin_loss) - (b.loss - b.origin_loss), atol=1e-12
    )
    label = plots.plot_difference(a, b, rise=True).axes[1].get_ylabel()
    assert label == "rise of a − rise of b"


def test_points_that_are_not_finite_are_blank_marked_and_counted():
    a, b = pair()
    loss, other = a.loss.copy(), b.loss.copy()
    loss[0, 1] = other[2, 3] = np.inf
    loss[2, 3], other[5, 0] = np.inf, np.nan
    a, b = dataclasses.replace(a, loss=loss), dataclasses.replace(b, loss=other)
    figure = plots.plot_difference(a, b)
    crosses = next(line for line in figure.axes[0].lines if line.get_marker() == "x")
    assert set(zip(crosses.get_xdata(), crosses.get_ydata(), strict=True)) == {
        (a.x[i], a.y[j]) for i, j in ((0, 1), (2, 3), (5, 0))
    }
    assert "3 of 28 points not finite in one of the two" in said(figure)


def test_grids_that_differ_are_refused():
    a, _ = pair()
    for b in (samples.surface("b", nx=7, ny=4), samples.surface("b", nx=7, ny=5, y_reach=0.5)):
        with pytest.raises(InvalidArgumentError, match=r"same coordinates; a has 7 × 4.*, b"):
            plots.plot_difference(a, b)


@pytest.mark.parametrize(
    ("origin", "error", "message"),
    [
        (
            *({"data_fingerprint": "z-data"}, DataError),
            r"a was measured on train data \(data-1-t\), b on train data \(z-data\): .* the same",
        ),
        ({"split": "test", "data_fingerprint": ""}, DataError, r"b on test data \(which is not"),
        ({"mode": "train"}, InvalidArgumentError, "with mode eval, b with train: .* the same mode"),
        ({"dtype": "float64"}, InvalidArgumentError, "with dtype float32, b with float64"),
    ],
)
def test_surfaces_of_other_data_or_modes_are_not_subtracted(origin, error, message):
    a, b = pair()
    b = dataclasses.replace(b, provenance=dataclasses.replace(b.provenance, **origin))
    with pytest.raises(error, match=message):
        plots.plot_difference(a, b)


def test_a_difference_of_other_losses_or_models_says_so():
    a, b = pair()
    warning = "The losses or models of the two are not the same"
    assert warning not in said(plots.plot_difference(a, b))
    for fingerprint, told in (("problem-2", True), ("", False)):
        at = dataclasses.replace(b.provenance, problem_fingerprint=fingerprint)
        other = dataclasses.replace(b, provenance=at)
        assert (warning in said(plots.plot_difference(a, other))) == told


def test_what_is_not_known_of_an_imported_surface_is_not_refused():
    a, b = pair()
    unknown = dict.fromkeys(("data_fingerprint", "problem_fingerprint", "mode", "dtype"), "")
    b = dataclasses.replace(b, provenance=dataclasses.replace(b.provenance, **unknown))
    expected = a.x[:, None] + 10 * a.y[None, :]
    np.testing.assert_allclose(difference_of(a, b).values, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"limit": 0.0}, "limit must be a positive finite difference"),
        ({"limit": np.nan}, "limit must be a positive finite difference"),
        ({"scale": "logg"}, "unknown scale of a difference 'logg'"),
        ({"names": ["one"]}, "one name per record"),
    ],
)
def test_wrong_arguments_of_a_difference_are_named(kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        plots.plot_difference(*pair(), **kwargs)


# --- bands -------------------------------------------------------------------------------------


def bundle(name="SGD", curvatures=(5.0, 20.0, 40.0), **kwargs):
    options = {"direction": "filter-normalised random direction", "norm": 7.31, "n": 9, **kwargs}
    return [samples.line(name, curvature=c, **options) for c in curvatures]


def test_a_band_is_the_mean_and_one_standard_deviation_over_the_directions():
    lines = {"SGD": bundle(), "SAM": bundle("SAM", (1.0, 2.0))}
    figure = plots.plot_band(lines, scale="linear")
    axes = figure.axes[0]
    bands = [c for c in axes.collections if isinstance(c, PolyCollection)]
    thick = [line for line in axes.lines if line.get_linewidth() > 1]
    for records, tint, band, mean in zip(
        lines.values(), ("#0072b2", "#d55e00"), bands, thick, strict=True
    ):
        losses = np.array([line.loss for line in records])
        np.testing.assert_allclose(mean.get_ydata(), losses.mean(axis=0))
        assert mean.get_color() == tint
        corners = band.get_paths()[0].vertices
        for x, middle, spread in zip(
            records[0].x, losses.mean(axis=0), losses.std(axis=0, ddof=1), strict=True
        ):
            heights = corners[np.isclose(corners[:, 0], x), 1]
            assert (heights.min(), heights.max()) == pytest.approx(
                (middle - spread, middle + spread)
            )
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert len(thin) == 5
    assert "SGD: 3 × filter-normalised random direction, 9 points; SAM: 2 ×" in said(figure)
    assert "not an error of the mean" in said(figure)


def test_on_a_log_scale_mean_and_deviation_are_those_of_the_logarithm():
    records = bundle()
    figure = plots.plot_band({"SGD": records}, scale="log")
    (mean,) = [line for line in figure.axes[0].lines if line.get_linewidth() > 1]
    logs = np.log([line.loss for line in records])
    np.testing.assert_allclose(mean.get_ydata(), np.exp(logs.mean(axis=0)))
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].vertices[:, 1].min() > 0
    assert "both of ln(loss)" in said(figure)
    assert figure.axes[0].get_yscale() == "log"


def test_one_scale_serves_all_checkpoints():
    lines = {"a": bundle("a", loss=0.1), "b": bundle("b", loss=3.0)}
    figure = plots.plot_band(lines, scale="excess")
    thick = [line for line in figure.axes[0].lines if line.get_linewidth() > 1]
    assert [line.get_ydata()[4] for line in thick] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_gap_is_left_where_a_line_is_not_finite():
    records = bundle()
    loss = records[1].loss.copy()
    loss[:2] = np.inf
    records[1] = dataclasses.replace(records[1], loss=loss)
    figure = plots.plot_band({"SGD": records}, scale="linear")
    (mean,) = [line for line in figure.axes[0].lines if line.get_linewidth() > 1]
    np.testing.assert_array_equal(np.isnan(mean.get_ydata()), np.arange(9) < 2)
    assert "a gap of the mean at 2 of 9 points" in said(figure).lower()


def test_lines_that_cannot_be_averaged_are_refused():
    draw = plots.plot_band
    with pytest.raises(InvalidArgumentError, match="nothing to draw"):
        draw({})
    with pytest.raises(InvalidArgumentError, match="at least two lines of a checkpoint; SAM has 1"):
        draw({"SGD": bundle(), "SAM": bundle()[:1]})
    with pytest.raises(InvalidArgumentError, match=r"SGD has 9 points on \[-1, 1\], one of SAM"):
        draw({"SGD": bundle(), "SAM": bundle("SAM", n=11)})
    with pytest.raises(InvalidArgumentError, match=r"SGD has 9 points on \[-0.5, 0.5\]"):
        draw({"SGD": [*bundle(), *bundle(reach=0.5)]})
