"""Pictures are tested on what is drawn: data, limits, norms, levels, labels and places of text."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
import subprocess
import sys

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pytest
import samples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib import style as style_sheet
from matplotlib.collections import PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.contour import QuadContourSet
from samples import figures as plots

from landscape import plots as real_plots
from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.files import write_file
from landscape.plots import draw
from landscape.plots.comparison import ball_outline
from landscape.plots.interactive.common import inert
from landscape.plots.scales import common_scale
from landscape.plots.style import Picture, colours_by_name, plain
from landscape.plots.surfaces import HEIGHT, LIGHT, light
from landscape.report.verdict import verdict
from landscape.results.comparison import Comparison, Measured

MAPS = ("contour", "contourf", "heatmap")


said = samples.caption


def maps(figure):
    """The axes of a figure that hold a map (not a relief, a line panel or the colour bar)."""
    return [a for a in figure.axes if any(isinstance(c, QuadContourSet) for c in a.collections)]


def reliefs(figure):
    return [axes for axes in figure.axes if axes.name == "3d"]


def relief_of(axes):
    return next(c for c in axes.collections if type(c).__name__ == "Poly3DCollection")


def slanted(nx=7, ny=4):
    """A surface on which no two axes can be exchanged unseen: loss = x + 10 y, on nx × ny."""
    record = samples.surface(nx=nx, ny=ny, y_reach=0.5)
    loss = record.x[:, None] + 10 * record.y[None, :]
    return dataclasses.replace(record, loss=loss, origin_loss=0.0)


# --- one surface -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (6, 6), (2, 2), (2, 9)])
def test_a_heat_map_shows_each_loss_at_its_own_x_and_y(shape):
    record = slanted(*shape)
    axes = plots.draw(record, kind="heatmap", scale="linear").axes[0]
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    nx, ny = shape
    drawn = mesh.get_array().reshape(ny, nx)
    corners = mesh.get_coordinates()
    middles = (corners[:-1, :-1] + corners[1:, 1:]) / 2
    for i, j in itertools.product(range(nx), range(ny)):
        assert drawn[j, i] == record.loss[i, j]
        np.testing.assert_allclose(middles[j, i], (record.x[i], record.y[j]), atol=1e-12)


@pytest.mark.parametrize("kind", ["contour", "contourf"])
def test_contours_run_where_the_loss_has_their_level(kind):
    axes = plots.draw(slanted(), kind=kind, scale="linear", levels=[-3.0, 0.0, 2.5]).axes[0]
    lines = [c for c in axes.collections if isinstance(c, QuadContourSet) and not c.filled]
    (contours,) = lines
    assert list(contours.levels) == [-3.0, 0.0, 2.5]
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        x, y = path.vertices.T
        np.testing.assert_allclose(x + 10 * y, level, atol=1e-9)


def test_a_relief_stands_at_its_own_x_and_y():
    record = slanted()
    axes = reliefs(plots.draw(record, kind="3d", scale="linear"))[0]
    relief = relief_of(axes)
    corners = relief._faces if hasattr(relief, "_faces") else relief._vec[:3].T
    x, y, z = np.asarray(corners).reshape(-1, 3).T
    np.testing.assert_allclose(z, x + 10 * y, atol=1e-12)
    assert x.size == 4 * 6 * 3  # every square of the grid, none thinned out


def test_axes_say_which_direction_they_run_along():
    axes = plots.draw(samples.surface()).axes[0]
    assert axes.get_xlabel() == "x, in units of d₁ (‖d₁‖ = 7.31)"
    assert axes.get_ylabel() == "y, in units of d₂ (‖d₂‖ = 7.02)"


def test_the_caption_says_what_is_drawn():
    text = said(plots.draw(samples.surface(nx=8, ny=5, seed=3)))
    assert "filter-normalised random direction (seed 3), 8 × 5 points" in text
    assert "Train data (1,437 examples), eval mode, float32" in text
    assert "not the worst case" in text


def test_a_plane_that_is_not_random_has_no_warning_about_random_slices():
    record = dataclasses.replace(samples.surface(), plane="top two eigenvectors")
    assert "not the worst case" not in said(plots.draw(record))


@pytest.mark.parametrize("kind", MAPS)
def test_points_that_are_not_finite_are_masked_marked_and_counted(kind):
    record = samples.with_bad_corner(samples.surface(nx=9, ny=6))
    figure = plots.draw(record, kind=kind)
    axes = figure.axes[0]
    crosses = next(line for line in axes.lines if line.get_marker() == "x")
    i, j = np.nonzero(~np.isfinite(record.loss))
    np.testing.assert_array_equal(crosses.get_xdata(), record.x[i])
    np.testing.assert_array_equal(crosses.get_ydata(), record.y[j])
    assert any(c.get_hatch() for c in axes.collections if isinstance(c, PolyCollection))
    assert "7 of 54 points not finite (6 NaN, 1 infinite), hatched and marked ×" in " ".join(
        said(figure).split()
    )
    if kind == "heatmap":
        mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
        np.testing.assert_array_equal(
            np.ma.getmaskarray(mesh.get_array()).reshape(6, 9), ~np.isfinite(record.loss.T)
        )


def test_a_clean_surface_has_no_hatching():
    axes = plots.draw(samples.surface()).axes[0]
    assert not any(c.get_hatch() for c in axes.collections)


@pytest.mark.parametrize("kind", plots_kinds := (*MAPS, "3d"))
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -2.5, 1e300])
def test_surfaces_without_any_relief_are_drawn(tmp_path, kind, value):
    record = samples.surface(nx=4, ny=3)
    record = dataclasses.replace(record, loss=np.full((4, 3), value))
    plots.save_figure(plots.draw(record, kind=kind), tmp_path / "flat.png", dpi=30)


@pytest.mark.parametrize("kind", ["contourf", "3d"])
@pytest.mark.parametrize("scale", ["linear", "log", "excess", "log-excess"])
@pytest.mark.parametrize("shift", [0.0, -0.05, -1.0, -100.0])
def test_every_scale_takes_any_sign(tmp_path, kind, scale, shift):
    record = samples.surface(nx=9, ny=7)
    record = dataclasses.replace(
        record, loss=record.loss + shift, origin_loss=record.origin_loss + shift
    )
    plots.save_figure(plots.draw(record, kind=kind, scale=scale), tmp_path / "s.png", dpi=30)


def test_what_lies_outside_the_limits_is_counted_in_the_caption():
    record = slanted()
    outside = int(np.count_nonzero(np.abs(record.loss) > 2))
    figure = plots.draw(record, limits=(-2, 2), kind="heatmap")
    assert f"{outside} of 28 points outside the range, drawn at its limit" in said(figure)
    mesh = next(c for c in figure.axes[0].collections if isinstance(c, QuadMesh))
    assert (mesh.get_array().min(), mesh.get_array().max()) == (-2, 2)
    assert "outside" not in said(plots.draw(record))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "contourff"}, "unknown kind of surface picture 'contourff' .nearest: contourf"),
        ({"scale": "logg"}, "unknown scale 'logg'.*known: auto, linear, log, excess"),
        ({"limits": (1, 1)}, "limits must be two finite rising numbers"),
        ({"limits": (0, np.nan)}, "limits must be two finite rising numbers"),
        ({"levels": 0}, "levels must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        plots.draw(samples.surface(), **kwargs)


@pytest.mark.parametrize("kind", plots_kinds)
def test_a_grid_without_area_is_refused(kind):
    with pytest.raises(InvalidArgumentError, match=r"at least 2 × 2 points.*got 1 × 5"):
        plots.draw(samples.surface(nx=1, ny=5), kind=kind)


def test_losses_of_another_shape_are_refused():
    record = dataclasses.replace(samples.surface(nx=4, ny=3), loss=np.zeros((3, 4)))
    with pytest.raises(InvalidArgumentError, match=r"4 × 3 points needs losses of that shape"):
        plots.draw(record)


def test_names_of_checkpoints_keep_their_case():
    near = samples.wide("sam", reach=0.5)
    bad = dataclasses.replace(near, surface=samples.with_bad_corner(near.surface))
    text = said(plots.plot_comparison(samples.comparison(samples.sharp("sgd"), bad)))
    assert "sam: 7 of 525 points not finite" in text
    assert "Sam" not in text
    assert "Sgd" not in text
    pair = [samples.eigenpairs("sgd"), samples.eigenpairs("sam", converged=False)]
    drawn = said(plots.plot_sweep(pair, names=["sgd", "sam"]))
    assert "Sgd" not in drawn
    assert "Hollow, NOT converged: sam" in drawn


def interpolated(criterion="range"):
    """A surface of which every other point was measured, and the loss elsewhere is 0."""
    record = samples.surface(nx=8, ny=5)
    measured = np.add.outer(np.arange(8), np.arange(5)) % 2 == 0
    return dataclasses.replace(
        record,
        loss=np.where(measured, record.loss, 0.4),
        measured=measured,
        interpolation_error=0.0008,
        tolerance=0.001,
        criterion=criterion,
    )


@pytest.mark.parametrize("kind", MAPS)
def test_measured_points_are_dotted_where_others_are_interpolated(kind):
    record = interpolated()
    figure = plots.draw(record, kind=kind)
    (dots,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    i, j = np.nonzero(record.measured)
    np.testing.assert_array_equal(dots.get_xdata(), record.x[i])
    np.testing.assert_array_equal(dots.get_ydata(), record.y[j])
    text = " ".join(said(figure).split())
    assert "20 of 40 points measured (dots), the others interpolated: largest error seen" in text
    assert "0.08 % of the range (tolerance 0.1 %)" in text
    assert "0.08 % of the loss" in " ".join(said(plots.draw(interpolated("log"))).split())
    assert "(dots)" not in said(plots.draw(record, kind="3d"))
    whole = plots.draw(samples.surface(nx=8, ny=5), kind=kind)
    assert "the others interpolated" not in said(whole)
    assert not [line for line in whole.axes[0].lines if line.get_marker() == "o"]


def test_interactive_surfaces_tell_what_was_interpolated():
    record = interpolated()
    relief, dots = plots.draw_interactive(record).data
    i, j = np.nonzero(record.measured)
    np.testing.assert_array_equal(dots.x, record.x[i])
    np.testing.assert_array_equal(dots.y, record.y[j])
    for (i, j), known in np.ndenumerate(record.measured):
        assert relief.hovertext[j][i].endswith("(interpolated)") != known


# --- the form of all of them -----------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in dir(real_plots) if name.startswith("plot_")])
def test_every_picture_takes_records_and_then_the_place_to_draw_into(name):
    parameters = inspect.signature(getattr(real_plots, name)).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    records = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert len(records) == (2 if name == "plot_difference" else 1)
    assert all(p.default is p.empty for p in records)
    assert keywords[0].name in {"ax", "axes", "figure"}
    assert keywords[0].default is None
    assert [p.name for p in keywords[-2:]] == ["title", "caption"]
    assert [p.default for p in keywords[-2:]] == [None, None]


@pytest.mark.parametrize("title", [None, "two minima"])
def test_a_comparison_can_be_a_part_of_a_larger_figure(title):
    whole = matplotlib.figure.Figure(figsize=(9, 12), layout="constrained")
    upper, lower = whole.subfigures(2, 1)
    drawn = plots.plot_comparison(samples.comparison(), figure=lower, title=title)
    whole.draw_without_rendering()
    assert drawn is lower
    assert not upper.axes
    assert len(maps(lower)) == len(reliefs(lower)) == 2
    assert tuple(whole.get_size_inches()) == (9, 12)
    assert "Loss over a plane" not in said(lower)


# --- light -----------------------------------------------------------------------------------


def test_the_light_is_that_of_the_slope():
    """On a plane every square is as bright as the cosine between its normal and the light."""
    record = samples.surface(nx=6, ny=4, y_reach=0.25)
    x, y = record.x[:, None], record.y[None, :]
    z = 0.3 * x - 1.2 * y
    shade = light(record, z, bottom=-1.0, top=3.0)
    # in the box x and y have length 1, and 4 in z has HEIGHT
    normal = np.array([-0.3 * 2 * HEIGHT / 4, 1.2 * 0.5 * HEIGHT / 4, 1.0])
    cosine = normal @ np.array(LIGHT) / np.linalg.norm(normal) / np.linalg.norm(LIGHT)
    np.testing.assert_allclose(shade, 1 - 0.4 * (1 - cosine))
    assert shade.shape == (5, 3)
    broken = z.copy()
    broken[2, 1] = np.nan
    dark = light(record, broken, bottom=-1.0, top=3.0)
    assert (dark[1:3, :2] == 1.0).all()
    assert np.count_nonzero(dark == 1.0) == 4


def test_a_relief_has_the_colours_of_its_heights_but_for_the_light():
    record = slanted()
    relief = relief_of(reliefs(plots.draw(record, kind="3d", scale="linear"))[0])
    z = record.loss
    middles = (z[1:, 1:] + z[:-1, 1:] + z[1:, :-1] + z[:-1, :-1]) / 4
    expected = mpl.colormaps["viridis"](Normalize(z.min(), z.max())(middles)).reshape(-1, 4)
    drawn = np.asarray(relief._facecolor3d).reshape(-1, 4)
    shade = light(record, z, bottom=z.min(), top=z.max()).reshape(-1, 1)
    np.testing.assert_allclose(drawn[:, :3], expected[:, :3] * shade, atol=1e-12)


# --- scales ----------------------------------------------------------------------------------


def test_auto_decides_on_the_common_range_of_all_panels():
    sharp, wide = samples.surface(curvature=60), samples.surface(curvature=0.6)
    assert common_scale([sharp]).spacing == common_scale([wide]).spacing == "linear"
    assert common_scale([sharp, wide]).spacing == "log"  # all of the one would be one colour
    negative = dataclasses.replace(wide, loss=wide.loss - 1)
    assert common_scale([sharp, negative]).spacing == "linear"


def test_losses_of_a_cnn_are_drawn_by_log():
    """From 0.022 to 55, as a filter-normalised surface of a CNN has them; and one less steep."""
    grid = samples.surface(nx=25, ny=25)
    radius = np.hypot(grid.x[:, None], grid.y[None, :]) / np.sqrt(2)
    steep, flat = (0.022 + (top - 0.022) * radius**power for top, power in ((55, 3), (9, 2)))
    records = [dataclasses.replace(grid, loss=loss) for loss in (steep, flat)]
    scale = common_scale(records)
    assert (scale.spacing, scale.low, scale.high) == ("log", 0.022, 55)
    for record in records:
        assert len([v for v in scale.levels() if record.loss.min() < v < record.loss.max()]) >= 5


@pytest.mark.parametrize(
    ("power", "spacing"), [(1, "linear"), (2, "linear"), (4, "log"), (6, "log")]
)
def test_auto_follows_the_share_of_points_in_the_lowest_tenth(power, spacing):
    """Of r^p over a square that is π (0.1 · 2^(p/2))^(2/p) / 4: 0.02, 0.16, 0.50, 0.73."""
    record = samples.surface(nx=81, ny=81)
    radius = np.hypot(record.x[:, None], record.y[None, :])
    loss = 0.01 + radius**power
    share = np.mean(loss <= loss.min() + 0.1 * np.ptp(loss))
    assert share == pytest.approx(np.pi / 4 * (0.1 * 2 ** (power / 2)) ** (2 / power), abs=0.03)
    record = dataclasses.replace(record, loss=loss)
    assert common_scale([record]).spacing == spacing
    # where the losses differ by a few percent only, a logarithm shows no more
    assert common_scale([dataclasses.replace(record, loss=loss + 50)]).spacing == "linear"


def test_auto_takes_a_quadratic_line_as_linear_and_a_spiked_one_as_log():
    x = np.linspace(-1, 1, 201)
    bowl = dataclasses.replace(samples.line(n=201), loss=0.01 + x**2)
    assert common_scale([bowl]).spacing == "linear"
    spiked = dataclasses.replace(bowl, loss=0.001 + x**2 + 30 * (np.abs(x) > 0.97))
    assert common_scale([spiked]).spacing == "log"
    with_nan = dataclasses.replace(spiked, loss=np.where(np.abs(x) > 0.99, np.nan, spiked.loss))
    assert common_scale([with_nan]).spacing == "log"


def test_a_log_scale_ends_where_an_interpolation_is_no_finer():
    x = np.linspace(-1, 1, 21)
    loss = 0.01 + 40 * (x[:, None] ** 6 + x[None, :] ** 6)
    measured = np.add.outer(np.arange(21), np.arange(21)) % 2 == 0
    record = dataclasses.replace(samples.surface(nx=21, ny=21), loss=loss)
    assert common_scale([record]).spacing == "log"
    some = dataclasses.replace(
        record, loss=np.where(measured, loss, loss - 0.02), measured=measured
    )
    assert some.loss.min() < 0 < some.loss[measured].min()
    rough = dataclasses.replace(some, interpolation_error=0.001)
    scale = common_scale([rough])
    assert (scale.spacing, scale.threshold) == ("symlog", pytest.approx(0.08))  # 0.001 of 80
    assert "linear within ±0.08 where the interpolation is no finer" in scale.note
    fine = dataclasses.replace(some, loss=loss, interpolation_error=0.0001)
    assert common_scale([fine]).spacing == "log"
    by_log = dataclasses.replace(rough, loss=loss, criterion="log")
    assert common_scale([by_log]).spacing == "log"


def test_log_turns_linear_near_zero_where_losses_are_not_positive_and_says_so():
    record = slanted()
    scale = common_scale([record], "log")
    assert scale.spacing == "symlog"
    assert isinstance(scale.norm(), SymLogNorm)
    figure = plots.draw(record, scale="log")
    assert f"linear within ±{scale.threshold:g} since it is not positive" in said(figure)


def test_excess_is_the_rise_above_each_checkpoints_own_loss():
    low, high = samples.surface(loss=0.1), samples.surface(loss=3.0)
    scale = common_scale([low, high], "excess")
    np.testing.assert_allclose(scale.values(low), low.loss - 0.1)
    np.testing.assert_allclose(scale.values(high), high.loss - 3.0)
    assert scale.low == pytest.approx(0.0, abs=1e-12)
    assert scale.label == "rise of the loss, L(w′) − L(w)"


@pytest.mark.parametrize("name", ["linear", "log", "log-excess"])
def test_heights_and_colours_tell_the_same(name):
    """The relief is drawn at forward(v) with linear colours, the map at v with the norm."""
    record = samples.surface()
    scale = common_scale([record], name)
    bottom, top = scale.forward([scale.low, scale.high])
    heights = (scale.forward(scale.values(record)) - bottom) / (top - bottom)
    np.testing.assert_allclose(heights, scale.norm()(scale.values(record)), atol=1e-12)


values = st.floats(-1e9, 1e9, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(values, min_size=2, max_size=30), st.sampled_from(["linear", "log"]))
@example([1001.0, -71.0], "log")
def test_levels_are_few_rising_and_inside_the_range(losses, name):
    line = dataclasses.replace(samples.line(n=len(losses)), loss=np.array(losses))
    scale = common_scale([line], name)
    for most in (1, 3, 10):
        levels = scale.levels(most)
        assert len(levels) <= most + 2
        assert (np.diff(levels) > 0).all()
        assert ((levels > scale.low) & (levels < scale.high)).all()
    assert (np.diff(scale.forward(np.linspace(scale.low, scale.high, 50))) > 0).all()


def test_a_scale_of_nothing_finite_is_still_a_scale():
    record = dataclasses.replace(samples.line(), loss=np.full(41, np.nan))
    assert (common_scale([record]).low, common_scale([record]).high) == (0.0, 1.0)


# --- the contrast ----------------------------------------------------------------------------


def test_reliefs_and_maps_share_range_colours_levels_and_view():
    figure = plots.plot_comparison(samples.comparison())
    two = samples.comparison()
    low = min(m.surface.loss.min() for m in two.models)
    high = max(m.surface.loss.max() for m in two.models)
    assert len(reliefs(figure)) == len(maps(figure)) == 2
    for axes in reliefs(figure):
        assert axes.get_zlim() == (low, high)
        norm = relief_of(axes).norm
        assert (norm.vmin, norm.vmax) == (low, high)
        assert (axes.elev, axes.azim) == (reliefs(figure)[0].elev, reliefs(figure)[0].azim)
    filled = [next(c for c in axes.collections if c.filled) for axes in maps(figure)]
    np.testing.assert_array_equal(filled[0].levels, filled[1].levels)
    for bands in filled:
        assert (bands.norm.vmin, bands.norm.vmax) == (low, high)
        assert bands.get_cmap().name == "viridis"
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert len(bars) == 1
    assert bars[0].get_ylim() == pytest.approx((low, high))
    assert bars[0].get_ylabel() == "loss L(w′)"


def test_the_log_scale_is_shared_too():
    figure = plots.plot_comparison(samples.comparison(), scale="log")
    norms = [next(c for c in axes.collections if c.filled).norm for axes in maps(figure)]
    assert all(isinstance(norm, LogNorm) for norm in norms)
    assert norms[0].vmin == norms[1].vmin
    limits = {axes.get_zlim() for axes in reliefs(figure)}
    assert limits == {tuple(np.log10([norms[0].vmin, norms[0].vmax]))}


def test_common_levels_that_one_surface_never_reaches_are_no_trouble():
    flat = samples.wide("flat", curvature=1e-9)
    figure = plots.plot_comparison(samples.comparison(samples.sharp(), flat))
    assert len(maps(figure)) == 2


def line_panels(figure):
    return [a for a in figure.axes if a.get_ylabel().startswith("rise") and len(a.lines) > 1]


def test_worst_case_lines_show_the_rise_against_the_distance():
    two = samples.comparison()
    panel = line_panels(plots.plot_comparison(two))[0]
    for model, colour in zip(two.models, ("#0072b2", "#d55e00"), strict=True):
        line = next(x for x in panel.lines if x.get_label() == model.name)
        assert line.get_color() == colour
        np.testing.assert_allclose(line.get_xdata(), model.worst_line.distance)
        np.testing.assert_allclose(
            line.get_ydata(), model.worst_line.loss - model.worst_line.origin_loss
        )
    assert "distance" in panel.get_xlabel()
    dots = [x for x in panel.lines if x.get_marker() == "o"]
    assert [float(dot.get_ydata()[0]) for dot in dots] == [m.sharpness.value for m in two.models]
    assert [float(dot.get_xdata()[0]) for dot in dots] == [m.sharpness.rho for m in two.models]


def test_the_ball_is_drawn_where_it_can_be_seen_and_mentioned_where_not():
    model = samples.sharp()
    assert "The ball ‖ε‖₂ ≤ 0.1 in which the sharpness was sought is smaller than the +" in said(
        plots.plot_comparison(samples.comparison(model))
    )
    large = dataclasses.replace(model, sharpness=samples.sharpness(rho=3.0))
    figure = plots.plot_comparison(samples.comparison(large))
    assert "Dashed, the ball ‖ε‖₂ ≤ 3" in said(figure)
    x, y = ball_outline(large)
    assert any(
        np.array_equal(line.get_xdata(), x) and np.array_equal(line.get_ydata(), y)
        for line in maps(figure)[0].lines
    )
    other = dataclasses.replace(model, sharpness=samples.sharpness(rho=3.0, p=np.inf))
    assert ball_outline(other) is None


@pytest.mark.parametrize("cosine", [0.0, 0.6, -0.9])
def test_the_outline_of_the_ball_lies_on_the_sphere(cosine):
    surface = dataclasses.replace(samples.surface(), direction_norms=(3.0, 0.5), cosine=cosine)
    model = Measured(name="m", surface=surface, sharpness=samples.sharpness(rho=0.7))
    x, y = ball_outline(model)
    first = np.array([3.0, 0.0])
    second = 0.5 * np.array([cosine, np.sqrt(1 - cosine**2)])
    steps = x[:, None] * first + y[:, None] * second
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.7)


def test_grids_of_different_reach_share_their_axes():
    figure = plots.plot_comparison(
        samples.comparison(samples.sharp(), samples.wide(reach=0.5, nx=8))
    )
    assert {axes.get_xlim() for axes in maps(figure)} == {(-1.0, 1.0)}
    assert len({axes.get_xlim() for axes in reliefs(figure)}) == 1
    assert "Blank: not measured" in said(figure)
    assert "SGD: filter-normalised random direction (seed 0), 25 × 21 points; SAM:" in said(figure)


def test_surfaces_through_other_planes_share_no_axes():
    model = samples.wide(reach=0.5)
    other = dataclasses.replace(model.surface, plane="top two eigenvectors")
    two = samples.comparison(samples.sharp(), dataclasses.replace(model, surface=other))
    figure = plots.plot_comparison(two)
    assert [axes.get_xlim() for axes in maps(figure)] == [(-1.0, 1.0), (-0.5, 0.5)]
    assert "The planes are not of one kind: each has axes of its own" in said(figure)
    first, second = (plots.explore_comparison(two).layout[key] for key in ("scene", "scene2"))
    assert (first.xaxis.range, second.xaxis.range) == ((-1.0, 1.0), (-0.5, 0.5))
    with pytest.raises(InvalidArgumentError, match=r"planes of other kinds .* do not compare"):
        plots.plot_area([m.surface for m in two.models])


def test_a_surface_that_is_not_finished_is_drawn_and_says_so():
    record = samples.surface(nx=8, ny=5)
    measured = np.arange(40).reshape(8, 5) < 17
    loss = np.where(measured, record.loss, np.nan)
    part = dataclasses.replace(record, loss=loss, measured=measured)
    for kind in plots_kinds:
        figure = plots.draw(part, kind=kind)
        assert "Not finished: 17 of 40 points measured, the others blank" in said(figure)
        assert "not finite" not in said(figure)


def test_contours_are_interpolated_and_the_caption_says_so():
    record = samples.surface(nx=9, ny=9)
    figure = plots.draw(record, kind="contour", scale="linear", levels=[2.0])
    (contours,) = [c for c in figure.axes[0].collections if isinstance(c, QuadContourSet)]
    x, y = contours.get_paths()[0].vertices.T
    exact = samples.bowl(x, y, curvature=20.0, loss=0.05)
    assert np.abs(exact - 2.0).max() < 0.05  # with the 9 × 9 points joined by lines it is 0.3
    assert x.size > 100
    assert "Contours are interpolated between the points" in said(figure)
    assert "interpolated" not in said(plots.draw(record, kind="heatmap"))


def test_bad_points_of_one_checkpoint_are_told_with_its_name():
    model = samples.wide()
    bad = dataclasses.replace(model, surface=samples.with_bad_corner(model.surface))
    text = said(plots.plot_comparison(samples.comparison(samples.sharp(), bad)))
    assert "SAM: 7 of 525 points not finite (6 NaN, 1 infinite), hatched and marked ×" in text


PARTS = {
    "everything": samples.comparison(),
    "one": samples.comparison(samples.sharp("a/very/long/name/of/a/checkpoint/" + "x" * 80)),
    "three": samples.comparison(
        samples.sharp(), samples.wide("b" * 200), samples.measured("c", reach=0.3, nx=5, ny=4)
    ),
    "four": samples.comparison(*(samples.measured(f"model {k}", nx=6, ny=5) for k in range(4))),
    "six": samples.comparison(*(samples.measured(f"model {k}", nx=6, ny=5) for k in range(6))),
    "surfaces": samples.comparison(
        Measured(name="a", surface=samples.surface()), Measured(name="b")
    ),
    "lines": samples.comparison(Measured(name="a", worst_line=samples.line()), Measured(name="b")),
    "random": samples.comparison(
        Measured(name="a", random_line=samples.line(direction="random direction"))
    ),
    "hostile": samples.comparison(
        samples.sharp(samples.HOSTILE), samples.wide("$\\frac{1$ a\nb\tc\x00 \\$ %{x} \udcff")
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_nothing_leaves_the_sheet_or_runs_into_another(name):
    figure = plots.plot_comparison(PARTS[name], title="A title")
    figure.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent()) for t in figure.texts if t.get_text()]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for (one, box), (other, next_box) in itertools.combinations(boxes, 2):
        apart = box.padded(-0.5)
        assert not apart.overlaps(next_box), (one, other)
    panels = [axes.get_tightbbox() for axes in figure.axes if axes.name != "3d"]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(panels, 2))
    assert all(0 <= panel.x0 and panel.x1 <= figure.bbox.x1 for panel in panels)


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(InvalidArgumentError, match="nothing to draw"):
        plots.plot_comparison(Comparison(models=(Measured(name="a"), Measured(name="b"))))
    numbers = Measured(name="a", evaluation=samples.evaluation())
    with pytest.raises(InvalidArgumentError, match="nothing to draw"):
        plots.plot_comparison(Comparison(models=(numbers,)))
    with pytest.raises(InvalidArgumentError, match="nothing to draw"):
        plots.explore_comparison(samples.comparison(Measured(name="a")))


# --- lines, eigenvalues, sharpness -----------------------------------------------------------


def test_lines_are_overlaid_with_bands_of_two_standard_errors():
    one, other = samples.line("a"), samples.line("b", curvature=2.0)
    axes = plots.plot_line([one, other], scale="linear").axes[0]
    assert [line.get_label() for line in axes.lines if len(line.get_xdata())] == ["a", "b"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), one.distance)
    band = axes.collections[0].get_paths()[0].vertices
    middle = len(one.x) // 2
    at = band[np.isclose(band[:, 0], one.distance[middle])][:, 1]
    expected = one.loss[middle] + 2 * one.loss_se[middle] * np.array([-1, 1])
    np.testing.assert_allclose([at.min(), at.max()], expected)
    assert "±2 standard errors" in said(axes.figure)


def test_the_band_of_a_rise_is_that_of_the_paired_difference():
    record = samples.line()
    figure = plots.draw(record, scale="excess")
    assert not figure.axes[0].collections  # the error of the loss is not that of the rise
    assert "standard errors" not in said(figure)
    errors = 0.1 * np.abs(record.x)
    figure = plots.draw(dataclasses.replace(record, metrics={"rise_se": errors}), scale="excess")
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    for k in (0, 20, 30):
        at = band[np.isclose(band[:, 0], record.distance[k])][:, 1]
        middle = record.loss[k] - record.origin_loss
        np.testing.assert_allclose([at.min(), at.max()], middle + 2 * errors[k] * np.array([-1, 1]))
    assert "Bands: ±2 standard errors of the rise, of the same examples at w and w′" in said(figure)


def test_lines_without_standard_errors_have_no_band():
    record = dataclasses.replace(samples.line(), loss_se=np.full(41, np.nan))
    figure = plots.draw(record)
    assert not figure.axes[0].collections
    assert "standard errors" not in said(figure)


def test_lines_run_along_the_distance_or_the_direction():
    record = samples.line(norm=0.25)
    along = plots.draw(record, axis="direction").axes[0]
    np.testing.assert_allclose(along.lines[0].get_xdata(), record.x)
    assert along.get_xlabel() == "x, in units of d (‖d‖ = 0.25)"
    unknown = dataclasses.replace(record, direction_norm=np.nan)
    np.testing.assert_allclose(plots.draw(unknown).axes[0].lines[0].get_xdata(), record.x)
    with pytest.raises(InvalidArgumentError, match="axis='direction'"):
        plots.draw(unknown, axis="distance")
    with pytest.raises(InvalidArgumentError, match="unknown axis"):
        plots.draw(record, axis="up")


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_line_breaks_at_points_that_are_not_finite(scale):
    record = samples.line()
    loss = record.loss.copy()
    loss[[3, 4, 20]] = np.nan, np.inf, -np.inf
    figure = plots.draw(dataclasses.replace(record, loss=loss), scale=scale)
    axes = figure.axes[0]
    np.testing.assert_array_equal(np.isnan(axes.lines[0].get_ydata()), ~np.isfinite(loss))
    crosses = next(line for line in axes.lines if line.get_marker() == "x")
    np.testing.assert_allclose(crosses.get_xdata(), record.distance[[3, 4, 20]])
    assert "3 of 41 points not finite (1 NaN, 2 infinite), marked × at the top" in said(figure)


def test_a_point_between_two_that_are_not_finite_is_still_drawn():
    record = samples.line(n=5)
    loss = np.array([np.nan, 2.0, np.nan, 3.0, 4.0])
    axes = plots.draw(dataclasses.replace(record, loss=loss)).axes[0]
    dots = next(line for line in axes.lines if line.get_marker() == ".")
    np.testing.assert_allclose(dots.get_ydata(), [2.0])


def test_names_must_match_the_lines():
    with pytest.raises(InvalidArgumentError, match="one name per record; got 1 for 2"):
        plots.plot_line([samples.line(), samples.line()], names=["a"])
    with pytest.raises(InvalidArgumentError, match="nothing to draw"):
        plots.plot_line([])


def test_eigenvalues_stand_with_their_residuals():
    sharp, wide = samples.eigenpairs("a", top=400.0), samples.eigenpairs("b", converged=False)
    figure = plots.plot_eigs([sharp, wide])
    axes = figure.axes[0]
    for record, bars in zip((sharp, wide), axes.containers, strict=True):
        points, _, (rods,) = bars.lines
        np.testing.assert_allclose(points.get_ydata(), record.values)
        spans = np.array([rod[:, 1] for rod in rods.get_segments()])
        np.testing.assert_allclose(spans[:, 1] - record.values, record.residuals)
    assert axes.containers[1].lines[0].get_markerfacecolor() == "white"
    assert axes.containers[1].get_label() == "b (not converged)"
    assert "NOT converged" in said(figure)
    assert axes.get_yscale() == "log"


def test_negative_eigenvalues_are_drawn_but_not_on_a_log_scale():
    record = dataclasses.replace(samples.eigenpairs(), values=np.array([5.0, 1, 0, -1, -2]))
    assert plots.draw(record).axes[0].get_yscale() == "linear"
    with pytest.raises(InvalidArgumentError, match=r"needs positive values; the smallest is -2"):
        plots.draw(record, scale="log")


def test_sharpness_shows_the_value_the_starts_and_the_single_step():
    record = samples.sharpness(value=0.5)
    figure = plots.draw(record)
    drawn = [np.ravel(line.get_ydata()) for line in figure.axes[0].lines]
    for expected in ([0.5, 0.5], record.start_values, [record.one_step]):
        assert any(len(d) == len(expected) and np.allclose(d, expected) for d in drawn)
    assert "a lower bound" in said(figure)


def test_a_start_that_overflowed_is_left_out():
    record = samples.sharpness()
    values = np.array([0.4, -np.inf, np.nan])
    plots.draw(dataclasses.replace(record, start_values=values)).draw_without_rendering()


@pytest.mark.parametrize("draw", [plots.draw, plots.draw_interactive])
def test_a_loss_alone_has_no_picture(draw):
    with pytest.raises(InvalidArgumentError, match=r"kind 'loss'.*no picture.*line, surface"):
        draw(samples.evaluation())


# --- the interactive figures -----------------------------------------------------------------


def test_interactive_reliefs_show_each_loss_at_its_own_x_and_y():
    record = slanted(5, 3)
    figure = plots.draw_interactive(record, scale="linear")
    (relief,) = figure.data
    np.testing.assert_array_equal(relief.x, record.x)
    np.testing.assert_array_equal(relief.y, record.y)
    np.testing.assert_allclose(relief.z, record.loss.T)
    assert np.shape(relief.hovertext) == (3, 5)
    assert relief.hovertext[2][0] == f"model.pt<br>x -1<br>y 0.5<br>loss {record.loss[0, 2]:.5g}"


@pytest.mark.parametrize("scale", ["linear", "log", "excess", "log-excess"])
def test_interactive_contrast_has_one_scale(scale):
    three = samples.comparison(samples.sharp(), samples.wide(reach=0.5), samples.measured("c"))
    figure = plots.explore_comparison(three, scale=scale)
    assert [trace.scene for trace in figure.data] == ["scene", "scene2", "scene3"]
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    scenes = [figure.layout[key] for key in ("scene", "scene2", "scene3")]
    bounds = (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax)
    assert {tuple(scene.zaxis.range) for scene in scenes} == {bounds}
    assert {tuple(scene.xaxis.range) for scene in scenes} == {(-1.0, 1.0)}
    heights = np.concatenate([np.ravel(trace.z) for trace in figure.data])
    assert (heights.min(), heights.max()) == pytest.approx(bounds)
    domains = [scene.domain.x for scene in scenes]
    assert domains[0][1] <= domains[1][0] < domains[1][1] <= domains[2][0]


def test_interactive_marks_points_that_are_not_finite():
    record = samples.with_bad_corner(samples.surface(nx=9, ny=6))
    relief, marks = plots.draw_interactive(record).data
    np.testing.assert_array_equal(np.isnan(relief.z), ~np.isfinite(record.loss.T))
    assert sorted(marks.text) == ["inf", *["nan"] * 6]
    assert marks.name == "7 of 54 points not finite (6 NaN, 1 infinite)"


def test_interactive_figures_offer_no_upload():
    figure = plots.draw_interactive(samples.surface())
    assert "sendChartToCloud" in figure.layout.modebar.remove


@pytest.mark.parametrize(
    "record", [samples.line(), samples.eigenpairs(), samples.density(), samples.training()]
)
def test_a_kind_without_a_twin_says_how_it_is_drawn(record):
    with pytest.raises(InvalidArgumentError, match=rf"kind '{record.kind}' has no inter.*plot\(\)"):
        record.explore()


def test_names_are_inert_in_interactive_figures():
    written = plots.explore_comparison(
        samples.comparison(samples.sharp(samples.HOSTILE), samples.wide("%{x}<b>"))
    ).to_json()
    assert "<script" not in written
    assert "<img" not in written
    assert inert("<a href='x'>%{y}</a>") == "&lt;a href='x'&gt;%&#123;y}&lt;/a&gt;"


def test_an_unknown_colour_map_is_named():
    with pytest.raises(InvalidArgumentError, match="unknown colour map 'rainbowish'"):
        plots.draw_interactive(samples.surface(), cmap="rainbowish")


# --- text and style --------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["dark_background", "ggplot", "bmh"])
def test_the_users_style_sheet_is_honoured(style):
    with style_sheet.context(style):
        before = dict(mpl.rcParams)
        axes = draw(samples.line())
        assert dict(mpl.rcParams) == before
        assert axes.get_facecolor() == mpl.colors.to_rgba(mpl.rcParams["axes.facecolor"])
        cycle = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
        assert axes.lines[0].get_color() == mpl.colors.to_hex(cycle[0])
    assert draw(samples.line()).lines[0].get_color() == "#0072b2"


def test_what_the_user_did_not_choose_has_the_style_of_the_toolkit():
    with mpl.rc_context({"axes.labelsize": 14.0, "text.usetex": True}):
        axes = draw(samples.line("a_b"))
    assert axes.title.get_usetex() is False  # names are no LaTeX
    assert axes.xaxis.label.get_size() == 14.0
    assert axes.lines[0].get_color() == "#0072b2"


def test_pictures_go_into_the_axes_of_the_user():
    figure = mpl.figure.Figure()
    left, right = figure.subplots(1, 2)
    assert samples.surface().plot(ax=left) is left
    assert left.get_title(loc="center") or left.get_title(loc="left")
    for name in ("a", "b"):
        assert samples.line(name).plot(ax=right) is right
    assert [line.get_color() for line in right.lines if line.get_label() in "ab"] == [
        "#0072b2",
        "#d55e00",
    ]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["a", "b"]
    assert not figure.texts  # a caption would lie on the user's own
    with pytest.raises(InvalidArgumentError, match=r"subplot_kw=\{'projection': '3d'\}"):
        samples.surface().plot(ax=right, kind="3d")
    relief = figure.add_subplot(projection="3d")
    assert samples.surface().plot(ax=relief) is relief


def test_colours_belong_to_the_name_of_a_checkpoint():
    known = colours_by_name(["SGD", "SAM"])
    for make in (samples.line, samples.eigenpairs, samples.profile, samples.density):
        axes = plots.draw(make("SAM"), colours=known).axes[0]
        assert known["SAM"] in {line.get_color() for line in axes.lines}
        assert known["SGD"] not in {line.get_color() for line in axes.lines}
    assert colours_by_name(["new"], known)["new"] == "#009e73"


def test_a_notebook_shows_axes_and_figures_by_themselves():
    for drawn in (draw(samples.line()), draw(samples.surface(), kind="3d")):
        assert drawn._repr_png_().startswith(b"\x89PNG")
    assert plots.plot_comparison(samples.comparison())._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["$a$", "a$", "\\$", "$$", "$\\frac{$"])
def test_names_are_never_read_as_formulas(name):
    figure = Picture()
    text = figure.text(0, 0, plain(name))
    assert text._preprocess_math(text.get_text()) == (name, False)


def test_pictures_load_neither_torch_nor_a_window_system():
    code = (
        "import sys, samples; from landscape import plots\n"
        "two = samples.comparison(); plots.plot_comparison(two); plots.explore_comparison(two)\n"
        "print([m for m in ('torch', 'matplotlib.pyplot') if m in sys.modules])"
    )
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- files -----------------------------------------------------------------------------------

MAGIC = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def test_figures_are_saved_in_every_format_and_always_with_the_same_bytes(tmp_path):
    first, second = (
        plots.save_figure(
            plots.plot_comparison(
                samples.comparison(samples.sharp(nx=6, ny=5), samples.wide(nx=6))
            ),
            tmp_path / folder / "v1.0.contrast.png",
            formats=("png", "pdf", "svg"),
            dpi=60,
        )
        for folder in ("a", "b")
        if (tmp_path / folder).mkdir() is None
    )
    assert [path.name for path in first] == [f"v1.0.contrast.{name}" for name in MAGIC]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes().startswith(MAGIC[one.suffix[1:]])
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", MAGIC)
def test_the_suffix_names_the_format(tmp_path, name):
    (path,) = plots.save_figure(plots.draw(samples.line()), str(tmp_path / f"x.{name.upper()}"))
    assert path == tmp_path / f"x.{name.upper()}"
    assert path.read_bytes().startswith(MAGIC[name])


@pytest.mark.parametrize("name", ["x.jpg", "x", "x.html", "v1.0"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(InvalidArgumentError, match=r"end it in .png, .pdf, .svg"):
        plots.save_figure(plots.draw(samples.line()), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"unknown picture format 'pngg'.*nearest: png"):
        plots.save_figure(plots.draw(samples.line()), tmp_path / "x", formats=("pngg",))


def test_files_that_cannot_be_written_say_why(tmp_path):
    with pytest.raises(LandscapeError, match=r"the folder .* does not exist"):
        write_file(tmp_path / "no" / "x.png", b"")
    with pytest.raises(LandscapeError, match=r"a folder of that name is in the way"):
        write_file(tmp_path, b"")
    with pytest.raises(LandscapeError, match="cannot write"):
        write_file(tmp_path / ("x" * 300), b"")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "x.png"
    target.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LandscapeError, match="No space left on device"):
        write_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


# --- what the numbers say --------------------------------------------------------------------


def test_the_verdict_follows_the_numbers_whoever_wins():
    told = verdict(samples.comparison())
    assert told.findings[0] == (
        "λmax of the Hessian: smallest for SAM (48), largest for SGD (480), 10 times as large."
    )
    assert "Both measures call SAM the flattest and SGD the sharpest." in told.findings
    swapped = verdict(samples.comparison(samples.wide("SGD"), samples.sharp("SAM")))
    assert "Both measures call SGD the flattest and SAM the sharpest." in swapped.findings


def test_the_verdict_says_when_the_measures_disagree():
    one = dataclasses.replace(samples.sharp("a"), sharpness=samples.sharpness("a", value=0.01))
    told = " ".join(verdict(samples.comparison(one, samples.wide("b"))).findings)
    assert "The measures do not agree: by λmax b is the flattest, by sharpness a." in told


def test_the_verdict_does_not_rank_what_cannot_be_told_apart():
    one, other = (
        Measured(name=name, eigenpairs=samples.eigenpairs(name, top=top))
        for name, top in (("a", 20.0), ("b", 20.1))
    )
    (finding,) = verdict(samples.comparison(one, other)).findings
    assert finding.startswith("λmax of the Hessian: about the same for a")


def change(model, part, **changes):
    return dataclasses.replace(
        model, **{part: dataclasses.replace(getattr(model, part), **changes)}
    )


@pytest.mark.parametrize(
    ("other", "caution"),
    [
        (samples.wide(loss=0.5), "losses at the checkpoints differ much: 0.04 for SGD, 0.5"),
        (change(samples.wide(), "eigenpairs", converged=False), "λmax has not converged for SAM"),
        (change(samples.wide(), "sharpness", converged=False), "the sharpness has not converged"),
        (change(samples.wide(), "sharpness", rho=0.2), "different balls"),
        (change(samples.wide(), "evaluation", gradient_norm=9.0), "SAM is not at a minimum"),
        (
            change(samples.wide(), "sharpness", provenance=samples.provenance(data="other")),
            "on different data",
        ),
    ],
)
def test_the_verdict_cautions(other, caution):
    told = verdict(samples.comparison(samples.sharp(), other))
    assert any(caution in sentence for sentence in told.cautions), told.cautions
    plain_case = verdict(samples.comparison(samples.sharp(), samples.wide()))
    assert len(plain_case.cautions) == 1  # that these are single checkpoints


def test_one_checkpoint_is_not_compared():
    assert verdict(samples.comparison(samples.sharp())).findings == ()


def test_negative_curvature_gets_no_ratio():
    one, other = (
        Measured(name=name, eigenpairs=samples.eigenpairs(name, top=top))
        for name, top in (("a", -1.0), ("b", 20.0))
    )
    (finding,) = verdict(samples.comparison(one, other)).findings
    assert "times as large" not in finding


def test_norms_are_normalised_alike_in_a_single_picture():
    axes = plots.draw(samples.surface(), kind="heatmap", scale="linear").axes[0]
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    assert type(mesh.norm) is Normalize
    assert not any(isinstance(c, PathCollection) for c in axes.collections)
