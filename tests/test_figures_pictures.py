"""Pictures of the figure scripts, tested on what is drawn."""

from __future__ import annotations

import dataclasses
import re

import noise
import numpy as np
import prediction
import pytest
import radius
import samples
import seeds
import spectra
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from runs import spans_decades
from scipy import stats

from landscape.intervals import Interval
from landscape.plots import save_figure
from landscape.plots.style import PALETTE, Picture

NAN = float("nan")


def said(figure):
    """All text of a figure outside its axes, as one string."""
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


def keyed(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def bars(axes):
    """Of each series with error bars its places, means, and the ends of its bars."""
    found = []
    for series in axes.containers:
        if isinstance(series, ErrorbarContainer):
            points, _, (lines,) = series
            ends = [s[:, 1] if len(s) else [NAN, NAN] for s in lines.get_segments()]
            drawn = (points.get_xdata(), points.get_ydata(), ends)
            found.append(tuple(np.asarray(part, dtype=float) for part in drawn))
    return found


def dots(axes):
    return [line.get_ydata() for line in axes.lines if line.get_marker() == "."]


def t_interval(values):
    spread = stats.sem(values)
    return stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=spread)


def check_layout(figure):
    """No text leaves the sheet, and no panel with its labels reaches into another."""
    figure.draw_without_rendering()
    sheet = figure.bbox
    written = [text.get_window_extent() for text in figure.texts if text.get_text()]
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    for box in (*written, *boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= sheet.width
        assert box.y1 <= sheet.height
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])
        assert not any(box.overlaps(text) for text in written)
    for k, box in enumerate(written):
        assert not any(box.overlaps(other) for other in written[k + 1 :])


# --- spectra over training ---------------------------------------------------------------------

TOP = {"SGD": [(7.9, 2.5), (42.1, 1.9), (118.3, 4.4)], "SAM": [(5.2, 2.2), (14.4, 1.8), (11.2, 2)]}
EPOCHS = [1, 50, 200]


def pairs(top, ratio, *, converged=True, k=5):
    record = samples.eigenpairs(k=k, converged=converged)
    return dataclasses.replace(record, values=np.geomspace(top, top / ratio, k))


def records():
    densities = {
        name: [samples.density(outliers=np.geomspace(a, a / b, 5), bandwidth=0.1) for a, b in row]
        for name, row in TOP.items()
    }
    return densities, {name: [pairs(*numbers) for numbers in row] for name, row in TOP.items()}


def test_spectra_stand_in_rows_and_columns_on_the_same_axes():
    densities, found = records()
    figure = spectra.draw(densities, found, EPOCHS)
    assert len(figure.axes) == 6
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    drawn = [record for row in densities.values() for record in row]
    for axes, record in zip(figure.axes, drawn, strict=True):
        curve = max(axes.lines, key=lambda line: len(line.get_xdata()))
        np.testing.assert_array_equal(curve.get_xdata(), record.grid)
        assert axes.get_yscale() == "log"
        assert axes.get_xlim()[1] > 118.3
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == [
        "SGD, epoch 1\nλmax 7.9, λmax/λ5 2.5",
        "SGD, epoch 50\nλmax 42.1, λmax/λ5 1.9",
    ]
    assert figure.axes[5].get_title(loc="left").startswith("SAM, epoch 200\n")
    shades = [axes._left_title.get_color() for axes in figure.axes]
    assert shades == [PALETTE[0]] * 3 + [PALETTE[1]] * 3
    assert "0 of 6 did not converge" in said(figure)
    check_layout(figure)


def test_eigenvalues_that_did_not_converge_or_are_few_are_marked():
    densities, found = records()
    found["SGD"][2] = pairs(118.3, 4.4, converged=False)
    found["SAM"][0] = pairs(*TOP["SAM"][0], k=3)
    figure = spectra.draw(densities, found, EPOCHS)
    assert figure.axes[2].get_title(loc="left").endswith("λmax 118, λmax/λ5 4.4, not converged")
    assert figure.axes[3].get_title(loc="left").endswith("λmax 5.2, λmax/λ5 unknown")
    assert "1 of 6 did not converge" in said(figure)
    check_layout(figure)


# --- label noise -------------------------------------------------------------------------------

SHARES = [0.0, 0.2, 0.4]
SGD = np.array([[0.97, 0.98, 0.975], [0.9, 0.93, 0.92], [0.8, 0.84, 0.79]])
SAM = np.array([[0.98, 0.98, 0.985], [0.94, 0.95, 0.92], [0.88, 0.87, 0.9]])


def test_accuracy_is_drawn_with_t_intervals_and_every_seed():
    figure = noise.draw(SHARES, {"SGD": SGD, "SAM": SAM}, [0.05, 0.1, 0.2], n_test=360)
    left, right = figure.axes
    for (_, means, ends), values in zip(bars(left), (SGD, SAM), strict=True):
        np.testing.assert_allclose(means, 100 * values.mean(axis=1))
        np.testing.assert_allclose(ends, [t_interval(100 * row) for row in values])
    for drawn, values in zip(dots(left), (SGD, SAM), strict=True):
        np.testing.assert_allclose(drawn, 100 * values.ravel())
    ((x, means, ends),) = bars(right)
    np.testing.assert_allclose(x, [0, 20, 40])
    np.testing.assert_allclose(means, 100 * (SAM - SGD).mean(axis=1))
    np.testing.assert_allclose(ends, [t_interval(100 * row) for row in SAM - SGD])
    assert any(list(line.get_ydata()) == [0.0, 0.0] for line in right.lines)
    assert (keyed(left), keyed(right)) == (["SGD", "SAM"], ["SAM − SGD"])
    assert [label.get_text() for label in left.get_xticklabels()] == [
        "0\nρ 0.05",
        "20\nρ 0.1",
        "40\nρ 0.2",
    ]
    assert "one example is 0.28 points" in said(figure)
    check_layout(figure)


def test_one_seed_and_one_share_have_no_bars():
    one = {"SGD": np.array([[0.9]]), "SAM": np.array([[0.95]])}
    figure = noise.draw([0.2], one, [0.1], n_test=360)
    left, right = figure.axes
    assert [means.tolist() for _, means, _ in bars(left)] == [[90.0], [95.0]]
    assert np.isnan(bars(right)[0][2]).all()
    check_layout(figure)


# --- radius and inner steps --------------------------------------------------------------------

PLAN = radius.Plan(rhos=(0.01, 0.1, 1.0), sizes=(16, 64), steps=(1, 3, 10), climbed=0.1)
ERRORS = {
    16: np.array([[0.03, 0.028], [0.02, 0.021], [0.026, 0.03]]),
    64: np.array([[0.025, 0.03]] * 3),
}
RISES = {"SGD": np.array([[0.6, 0.5], [0.8, 0.7], [0.9, 0.8]])}
RISES["SAM"] = 0.05 * RISES["SGD"]
SEARCHED = {"SGD": np.array([1.0, 0.9]), "SAM": np.array([0.05, 0.05])}
BASELINE = np.array([0.03, 0.034])


def drawn(plan=PLAN, errors=ERRORS, rises=RISES, searched=SEARCHED):
    return radius.draw(plan, errors, BASELINE, rises, searched, n_test=360)


def test_errors_stand_against_the_radius_beside_those_without_sam():
    left = (figure := drawn()).axes[0]
    assert left.get_xscale() == "log"
    for (_, means, ends), values in zip(bars(left), ERRORS.values(), strict=True):
        np.testing.assert_allclose(means, 100 * values.mean(axis=1))
        np.testing.assert_allclose(ends, [t_interval(100 * row) for row in values])
    assert any(np.allclose(line.get_ydata(), 3.2) for line in left.lines)
    low, high = t_interval(np.array([3.0, 3.4]))
    (band,) = left.patches
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], [low, high])
    assert set(keyed(left)) == {"SAM, m = 16", "SAM, m = 64", "ρ = 0 (SGD)"}
    assert [label.get_text() for label in left.get_xticklabels()] == ["0.01", "0.1", "1"]
    check_layout(figure)


def test_what_k_steps_find_stands_beside_what_the_search_finds():
    right = (figure := drawn()).axes[1]
    assert (right.get_xscale(), right.get_yscale()) == ("log", "log")
    for (x, means, _), name in zip(bars(right), RISES, strict=True):
        np.testing.assert_allclose(x, PLAN.steps)
        np.testing.assert_allclose(means, RISES[name].mean(axis=1))
    dashed = [line.get_ydata() for line in right.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose([y[0] for y in dashed if len(y)], [0.95, 0.05])
    # √(0.6/1 · 0.5/0.9) and √(0.6 · 0.5)
    labels = " ".join(keyed(right))
    assert re.search(r"SGD: one step / search = 0\.58 \(", labels)
    assert re.search(r"SAM: one step / search = 0\.55 \(", labels)
    assert "what the full search finds" in labels
    narrow = drawn(rises={"SGD": RISES["SGD"]}, searched={"SGD": SEARCHED["SGD"]}).axes[1]
    assert narrow.get_yscale() == "linear"
    check_layout(figure)


def test_a_search_that_found_no_rise_has_no_ratio():
    nothing = {"SGD": np.array([0.0, -0.1])}
    figure = drawn(rises={"SGD": RISES["SGD"]}, searched=nothing)
    assert "SGD" in keyed(figure.axes[1])
    plan = dataclasses.replace(PLAN, steps=(2, 3, 10))
    assert "SGD: 2 steps / search =" in " ".join(keyed(drawn(plan).axes[1]))


def test_errors_that_span_decades_stand_on_a_log_axis_and_others_do_not():
    plan = dataclasses.replace(PLAN, rhos=(0.1, 0.2))
    left = drawn(plan, {1: np.array([[0.02, 0.03], [0.9, 0.91]])}).axes[0]
    assert left.get_yscale() == "log"
    low, high = left.get_ylim()
    assert 0 < low < 2 < 91 < high <= 115
    assert drawn(plan, {1: np.array([[0.02, 0.03], [0.04, 0.05]])}).axes[0].get_yscale() == "linear"


# --- correlations ------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
ERROR = RANDOM.uniform(0.02, 0.05, size=12)
GROUPS = [f"ρ = {rho}" for rho in (0, 0.1, 0.5) for _ in range(4)]
NAMES = [f"measure {k} of a model" for k in range(12)]
MEASURES = {name: 10.0 ** RANDOM.normal(size=12) for name in NAMES}
AT = [0.1 * k - 0.5 for k in range(12)]
TAUS = {name: Interval(x, x - 0.2, x + 0.2, 12) for name, x in zip(NAMES, AT, strict=True)}


def correlation(n=12, *, measures=MEASURES, taus=TAUS):
    taus = {name: taus[name] for name in NAMES[:n]}
    columns = {"all models": taus, "of like training loss": taus}
    measures = {name: measures[name] for name in NAMES[:n]}
    return prediction.draw(measures, ERROR, columns, groups=GROUPS, n_test=360)


def test_correlations_stand_in_the_order_given_with_their_ends():
    figure = correlation(3)
    forest = figure.axes[0]
    assert len(forest.containers) == 2
    points, _, (lines,) = forest.containers[0]
    np.testing.assert_allclose(points.get_xdata(), [-0.5, -0.4, -0.3])
    np.testing.assert_allclose(points.get_ydata(), np.arange(3) - 0.14)
    ends = np.array([segment[:, 0] for segment in lines.get_segments()])
    np.testing.assert_allclose(ends, [[-0.7, -0.3], [-0.6, -0.2], [-0.5, -0.1]], atol=1e-12)
    bottom, top = forest.get_ylim()
    assert bottom > top  # the first one is at the top
    assert any(list(line.get_xdata()) == [0.0, 0.0] for line in forest.lines)
    assert keyed(forest) == ["all models", "of like training loss"]
    assert "over 12 models" in said(figure)
    check_layout(figure)


def test_every_model_is_a_mark_in_the_colour_of_its_group():
    measures = {**MEASURES, NAMES[3]: np.where(ERROR == ERROR.max(), np.inf, MEASURES[NAMES[3]])}
    figure = correlation(measures=measures)
    _, *panels = figure.axes
    assert len(panels) == 12
    for axes, name in zip(panels, NAMES, strict=True):
        assert axes.get_xscale() == "log"
        for k, line in enumerate(axes.lines):
            inside = slice(4 * k, 4 * k + 4)
            np.testing.assert_array_equal(line.get_xdata(), measures[name][inside])
            np.testing.assert_allclose(line.get_ydata(), 100 * ERROR[inside])
        assert len({to_rgba(line.get_color()) for line in axes.lines}) == 3
        assert axes.get_ylim() == panels[0].get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ρ = 0", "ρ = 0.1", "ρ = 0.5"]
    check_layout(figure)


def test_a_constant_measure_is_shown_without_a_correlation():
    constant = {**MEASURES, NAMES[0]: np.ones(12)}
    figure = correlation(measures=constant, taus={**TAUS, NAMES[0]: Interval(NAN, NAN, NAN, 12)})
    assert [text.get_text() for text in figure.axes[0].texts] == ["not defined"] * 2
    check_layout(figure)


# --- seeds -------------------------------------------------------------------------------------

SHARP = {"SGD": np.array([100.0, 120.0, 90.0]), "SAM": np.array([10.0, 8.0, 9.0])}
SIGNED = {"SGD": np.array([0.1, -0.2, 0.3]), "SAM": np.array([0.0, 0.1, 0.2])}


def test_each_seed_is_a_line_beside_mean_and_interval():
    figure = seeds.draw({"λmax": SHARP, "a gap": SIGNED})
    first, second = figure.axes
    lines = [list(line.get_ydata()) for line in first.lines if len(line.get_xdata()) == 2]
    assert [[100.0, 10.0], [120.0, 8.0], [90.0, 9.0]] == lines
    for (x, means, ends), values, side in zip(bars(first), SHARP.values(), (-1, 1), strict=True):
        np.testing.assert_allclose(means, [values.mean()])
        np.testing.assert_allclose(ends, [t_interval(values)])
        assert np.sign(x[0] - 0.5) == side
    assert (first.get_yscale(), second.get_yscale()) == ("log", "linear")
    logs = np.log(SHARP["SAM"] / SHARP["SGD"])
    low, high = np.exp(t_interval(logs))
    ratio = f"λmax\nSAM/SGD {np.exp(logs.mean()):.3f} ({low:.3f} to {high:.3f})"
    assert first.get_title(loc="left") == ratio
    assert second.get_title(loc="left") == "a gap\nSAM/SGD without ratio"
    check_layout(figure)


def test_many_quantities_take_several_rows():
    figure = seeds.draw({f"a quantity with a long name {k}": SHARP for k in range(5)})
    assert len(figure.axes) == 5
    check_layout(figure)
    assert len({round(axes.get_position().y0, 3) for axes in figure.axes}) == 2


# --- what they share -----------------------------------------------------------------------------


def test_what_spans_a_decade_stands_on_a_log_axis():
    assert spans_decades([1.0, 10.0])
    assert not spans_decades([1.0, 9.9])
    assert not spans_decades([0.0, 10.0])


def test_pictures_are_the_same_each_time(tmp_path):
    first, second = (save_figure(drawn(), tmp_path / f"{k}.svg")[0].read_bytes() for k in "ab")
    assert first == second


def test_the_layout_check_fails_where_text_overlaps():
    figure = Picture(figsize=(2, 2))
    figure.text(0.1, 0.5, "one")
    figure.text(0.1, 0.52, "two")
    with pytest.raises(AssertionError):
        check_layout(figure)
    outside = Figure(figsize=(2, 2))
    outside.text(0.9, 0.5, "too long to fit")
    with pytest.raises(AssertionError):
        check_layout(outside)
