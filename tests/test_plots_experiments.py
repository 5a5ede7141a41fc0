"""Pictures of experiments over several runs, tested on what is drawn."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import samples
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer
from scipy import stats

from landscape import plots
from landscape.errors import InvalidArgumentError
from landscape.intervals import Interval
from landscape.plots.replicates import places, summary, tick_at, wide
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


def spectra(n=3, **kwargs):
    densities = {
        name: [samples.density(outliers=np.geomspace(a, a / b, 5), bandwidth=0.1) for a, b in row]
        for name, row in TOP.items()
    }
    found = {name: [pairs(*numbers) for numbers in row] for name, row in TOP.items()}
    return (
        {name: row[:n] for name, row in densities.items()},
        {name: row[:n] for name, row in found.items()},
        EPOCHS[:n],
    )


def inside(axes):
    return [text.get_text() for text in axes.texts]


def test_spectra_stand_in_rows_and_columns_on_the_same_axes():
    densities, found, epochs = spectra()
    figure = plots.spectra_over_training(densities, found, epochs, title="a title")
    assert len(figure.axes) == 6
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    records = [record for row in densities.values() for record in row]
    for axes, record in zip(figure.axes, records, strict=True):
        curve = max(axes.lines, key=lambda line: len(line.get_xdata()))
        np.testing.assert_array_equal(curve.get_xdata(), record.grid)
        assert axes.get_yscale() == "log"
        assert axes.get_xlim()[1] > 118.3
    assert [inside(axes) for axes in figure.axes[:2]] == [
        ["SGD, epoch 1", "λmax 7.9, λmax/λ5 2.5"],
        ["SGD, epoch 50", "λmax 42.1, λmax/λ5 1.9"],
    ]
    assert inside(figure.axes[5])[0] == "SAM, epoch 200"
    colours = [axes.texts[0].get_color() for axes in figure.axes]
    assert colours == [PALETTE[0]] * 3 + [PALETTE[1]] * 3
    check_layout(figure)


def test_text_in_a_spectrum_stands_above_its_curve():
    densities, found, epochs = spectra()
    found["SGD"][2] = pairs(118.3, 4.4, converged=False)
    figure = plots.spectra_over_training(densities, found, epochs)
    figure.draw_without_rendering()
    assert inside(figure.axes[2])[-1] == "not converged"
    for axes in figure.axes:
        curve = max(axes.lines, key=lambda line: len(line.get_xdata()))
        top = axes.transData.transform((0.0, np.nanmax(curve.get_ydata())))[1]
        for text in axes.texts:
            box = text.get_window_extent()
            assert box.y0 > top
            assert axes.bbox.x0 < box.x0
            assert box.x1 < axes.bbox.x1
    assert "1 of 6 did NOT converge" in said(figure)
    assert "118.3 (4.4) not" in said(figure)
    check_layout(figure)


def test_published_numbers_are_of_another_network():
    text = said(plots.spectra_over_training(*spectra()))
    assert "Another network: WRN-40-10" in text
    entries = "62.9 (2.5)|12.5 (1.7)|24.2 (11.4)|18.6 (3.6)|8.9 (1.9)|1.0 (2.6)"
    assert [entry for entry in entries.split("|") if entry not in text] == []
    assert "7.9 (2.5)" in text
    alone = said(plots.spectra_over_training(*spectra(), published=False, caption=False))
    assert "Foret" not in alone
    assert "Spectral density" not in alone


def test_a_spectrum_of_few_eigenpairs_has_no_ratio():
    densities, _, epochs = spectra(1)
    few = {name: [pairs(*TOP[name][0], k=3)] for name in densities}
    figure = plots.spectra_over_training(densities, few, epochs)
    assert inside(figure.axes[0])[1] == "λmax 7.9, λmax/λ5 unknown"
    check_layout(figure)


def test_the_order_of_optimizers_does_not_change_a_picture():
    densities, found, epochs = spectra(2)
    turned = plots.spectra_over_training(dict(reversed(densities.items())), found, epochs)
    straight = plots.spectra_over_training(densities, found, epochs)
    assert said(turned) == said(straight)
    assert [inside(axes) for axes in turned.axes] == [inside(axes) for axes in straight.axes]


# --- label noise -------------------------------------------------------------------------------

SHARES = [0.0, 0.2, 0.4]
SGD = np.array([[0.97, 0.98, 0.975], [0.9, 0.93, 0.92], [0.8, 0.84, 0.79]])
SAM = np.array([[0.98, 0.98, 0.985], [0.94, 0.95, 0.92], [0.88, 0.87, 0.9]])


def noise(**kwargs):
    given = {"chosen": {"SAM": [0.05, 0.1, 0.2]}, "n_test": 360, **kwargs}
    return plots.noise_figure(SHARES, {"SGD": SGD, "SAM": SAM}, **given)


def test_accuracy_is_drawn_with_t_intervals_and_every_seed():
    figure = noise(title="a title")
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


def test_a_run_that_failed_is_left_out_and_counted():
    broken = SAM.copy()
    broken[1, 0] = NAN
    figure = plots.noise_figure(SHARES, {"SGD": SGD, "SAM": broken}, n_test=360)
    left, right = figure.axes
    np.testing.assert_allclose(bars(left)[1][1][1], 100 * broken[1, 1:].mean())
    np.testing.assert_allclose(bars(right)[0][2][1], t_interval(100 * (SAM - SGD)[1, 1:]))
    assert "1 of 18 values not finite, left out" in said(figure)


def test_one_seed_and_one_share_have_no_bars():
    figure = plots.noise_figure([0.2], {"SGD": [[0.9]], "SAM": [[0.95]]}, n_test=360)
    left, right = figure.axes
    assert [means.tolist() for _, means, _ in bars(left)] == [[90.0], [95.0]]
    assert np.isnan(bars(right)[0][2]).all()
    check_layout(figure)


def test_radii_of_several_optimizers_are_told_in_the_caption():
    chosen = {"SAM": [0.05, 0.1, 0.2], "ASAM": [0.5, 1.0, 2.0]}
    runs = {"SGD": SGD, "SAM": SAM, "ASAM": SAM}
    figure = plots.noise_figure(SHARES, runs, chosen=chosen, n_test=360)
    assert "Radii ρ chosen for ASAM: 0.5 at 0 %, 1 at 20 %, 2 at 40 %" in said(figure)
    assert keyed(figure.axes[1]) == ["SAM − SGD", "ASAM − SGD"]
    check_layout(figure)


# --- radius and inner steps --------------------------------------------------------------------

RHOS = [0.01, 0.1, 1.0]
STEPS = [1, 3, 10]
ERRORS = {
    16: np.array([[0.03, 0.028], [0.02, 0.021], [0.026, 0.03]]),
    64: np.array([[0.025, 0.03]] * 3),
}
RISES = {"SGD": np.array([[0.6, 0.5], [0.8, 0.7], [0.9, 0.8]])}
RISES["SAM"] = 0.05 * RISES["SGD"]
SEARCHED = {"SGD": np.array([1.0, 0.9]), "SAM": np.array([0.05, 0.05])}


def radius(**kwargs):
    given = {"steps": STEPS, "rises": RISES, "searched": SEARCHED, "rho": 0.05, "n_test": 360}
    return plots.radius_figure(RHOS, ERRORS, [0.03, 0.034], **{**given, **kwargs})


def test_errors_stand_against_the_radius_beside_those_without_sam():
    left = (figure := radius(title="a title")).axes[0]
    assert left.get_xscale() == "log"
    for (_, means, ends), values in zip(bars(left), ERRORS.values(), strict=True):
        np.testing.assert_allclose(means, 100 * values.mean(axis=1))
        np.testing.assert_allclose(ends, [t_interval(100 * row) for row in values])
    assert any(np.allclose(line.get_ydata(), 3.2) for line in left.lines)
    low, high = t_interval(np.array([3.0, 3.4]))
    (band,) = left.patches
    np.testing.assert_allclose([band.get_y(), band.get_y() + band.get_height()], [low, high])
    assert keyed(left) == ["SAM, m = 16", "SAM, m = 64", "ρ = 0 (SGD)"]
    check_layout(figure)


def test_what_k_steps_find_stands_beside_what_the_search_finds():
    right = radius().axes[1]
    assert (right.get_xscale(), right.get_yscale()) == ("log", "log")
    for (x, means, _), name in zip(bars(right), RISES, strict=True):
        np.testing.assert_allclose(x, STEPS)
        np.testing.assert_allclose(means, RISES[name].mean(axis=1))
    dashed = [line.get_ydata() for line in right.lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose([y[0] for y in dashed if len(y)], [0.95, 0.05])
    # √(0.6/1 · 0.5/0.9) and √(0.6 · 0.5)
    labels = keyed(right)
    assert re.match(r"SGD: one step / search = 0\.58 \(", labels[0])
    assert re.match(r"SAM: one step / search = 0\.55 \(", labels[1])
    assert labels[2] == "what the full search finds"
    narrow = radius(rises={"SGD": RISES["SGD"]}, searched={"SGD": SEARCHED["SGD"]}).axes[1]
    assert narrow.get_yscale() == "linear"


def test_a_search_that_found_no_rise_has_no_ratio():
    nothing = {"SGD": np.array([0.0, -0.1])}
    figure = radius(rises={"SGD": RISES["SGD"]}, searched=nothing, steps=[2, 3, 10])
    assert keyed(figure.axes[1])[0] == "SGD"
    one = radius(rises={"SGD": RISES["SGD"]}, searched={"SGD": [1.0, NAN]}, steps=[2, 3, 10])
    assert keyed(one.axes[1])[0] == "SGD: 2 steps / search = 0.6 (no interval)"
    assert "1 of 22 values not finite" in said(one)
    check_layout(one)


# --- correlations ------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
ERROR = RANDOM.uniform(0.02, 0.05, size=12)
GROUPS = [f"ρ = {rho}" for rho in (0, 0.1, 0.5) for _ in range(4)]
NAMES = [f"measure {k} with a rather long name" for k in range(12)]
MEASURES = {name: 10.0 ** RANDOM.normal(size=12) for name in NAMES}
AT = [0.1 * k - 0.5 for k in range(12)]
TAUS = {name: Interval(x, x - 0.2, x + 0.2, 12) for name, x in zip(NAMES, AT, strict=True)}


def correlation(n=12, **kwargs):
    measures = {name: MEASURES[name] for name in NAMES[:n]}
    taus = {name: TAUS[name] for name in NAMES[:n]}
    given = {"groups": GROUPS, "n_test": 360, **kwargs}
    return plots.correlation_figure(measures, ERROR, taus, **given)


def test_correlations_stand_in_the_order_given_with_their_ends():
    figure = correlation(3, title="a title")
    forest = figure.axes[0]
    (series,) = forest.containers
    points, _, (lines,) = series
    np.testing.assert_allclose(points.get_xdata(), [-0.5, -0.4, -0.3])
    np.testing.assert_allclose(points.get_ydata(), [0, 1, 2])
    ends = np.array([segment[:, 0] for segment in lines.get_segments()])
    np.testing.assert_allclose(ends, [[-0.7, -0.3], [-0.6, -0.2], [-0.5, -0.1]], atol=1e-12)
    bottom, top = forest.get_ylim()
    assert bottom > top  # the first one is at the top
    assert any(list(line.get_xdata()) == [0.0, 0.0] for line in forest.lines)
    assert keyed(forest) == ["all models"]
    assert "over 12 models" in said(figure)
    check_layout(figure)


def test_every_model_is_a_mark_in_the_colour_of_its_group():
    figure = correlation(12, within=TAUS)
    forest, *panels = figure.axes
    assert len(forest.containers) == 2
    assert len(panels) == 12
    for axes, name in zip(panels, NAMES, strict=True):
        assert axes.get_xscale() == "log"
        for k, line in enumerate(axes.lines):
            inside = slice(4 * k, 4 * k + 4)
            np.testing.assert_array_equal(line.get_xdata(), MEASURES[name][inside])
            np.testing.assert_allclose(line.get_ydata(), 100 * ERROR[inside])
        assert len({to_rgba(line.get_color()) for line in axes.lines}) == 3
        assert axes.get_ylim() == panels[0].get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ρ = 0", "ρ = 0.1", "ρ = 0.5"]
    check_layout(figure)


def test_a_constant_measure_is_shown_without_a_correlation():
    none = {NAMES[0]: Interval(NAN, NAN, NAN, 12)}
    figure = plots.correlation_figure(
        {NAMES[0]: np.ones(12)}, ERROR, none, groups=GROUPS, n_test=360
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["not defined"]
    check_layout(figure)


def test_measures_beyond_twelve_are_in_the_forest_alone():
    more = {f"m{k}": ERROR for k in range(14)}
    taus = {name: TAUS[NAMES[0]] for name in more}
    more["m3"] = np.where(np.arange(12) == 5, NAN, ERROR)
    figure = plots.correlation_figure(more, ERROR, taus, groups=GROUPS, n_test=360)
    assert len(figure.axes) == 13
    assert "12 of 14 measures are shown on the right" in said(figure)
    assert "1 of 180 values not finite" in said(figure)
    check_layout(figure)


# --- seeds -------------------------------------------------------------------------------------

SHARP = {"SGD": np.array([100.0, 120.0, 90.0]), "SAM": np.array([10.0, 8.0, 9.0])}
SIGNED = {"SGD": np.array([0.1, -0.2, 0.3]), "SAM": np.array([0.0, 0.1, 0.2])}


def test_each_seed_is_a_line_beside_mean_and_interval():
    figure = plots.seeds_figure({"λmax": SHARP, "a gap": SIGNED}, title="a title")
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
    assert f"SAM / SGD = {np.exp(logs.mean()):.3f} ({low:.3f} to {high:.3f})" in said(figure)
    assert "SAM / SGD: no ratio" in said(figure)
    check_layout(figure)


def test_a_ratio_of_many_digits_is_written_in_full():
    small = {"SGD": np.array([100.0, 120.0, 90.0]), "SAM": np.array([0.92, 1.1, 0.84])}
    text = said(plots.seeds_figure({"λmax": small}))
    assert "SAM / SGD = 0.0092 (0.009 to 0.0095)" in text
    assert "…" not in text
    assert "…" not in said(plots.seeds_figure({"λmax": {"SGD": [100.0], "SAM": [0.123456]}}))


def test_many_quantities_take_several_rows():
    given = {f"a quantity with a long name {k}": SHARP for k in range(6)}
    figure = plots.seeds_figure(given)
    assert len(figure.axes) == 6
    assert len({round(axes.get_position().y0, 6) for axes in figure.axes}) == 2
    check_layout(figure)


def test_one_seed_has_a_ratio_without_an_interval():
    broken = {"SGD": [100.0, 90.0], "SAM": [10.0, NAN]}
    figure = plots.seeds_figure({"λmax": broken})
    assert "SAM / SGD = 0.1 (no interval)" in said(figure)
    assert "1 of 4 values not finite" in said(figure)
    check_layout(figure)


# --- training ----------------------------------------------------------------------------------


def log(name="SGD", *, first=2.0, n=100):
    epochs = np.arange(1, n + 1)
    losses = first * np.exp(-epochs / 20)
    return SimpleNamespace(name=name, epochs=epochs, train_loss=losses, lr=np.full(n, 0.1))


def test_losses_are_drawn_against_epochs_above_the_learning_rate():
    logs = [log(), log("SAM", first=1.0)]
    figure = plots.training_figure(logs, title="a title")
    upper, lower = figure.axes
    for line, rate, record in zip(upper.lines, lower.lines, logs, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), record.epochs)
        np.testing.assert_array_equal(line.get_ydata(), record.train_loss)
        np.testing.assert_array_equal(rate.get_ydata(), record.lr)
    assert (upper.get_yscale(), lower.get_ylim()[0]) == ("log", 0.0)
    assert keyed(upper) == ["SGD", "SAM"]
    assert (upper.get_xlim(), lower.get_xlabel()) == (lower.get_xlim(), "epoch")
    check_layout(figure)


def test_a_loss_that_varies_little_has_a_linear_axis():
    figure = plots.training_figure(log(n=5))
    assert figure.axes[0].get_yscale() == "linear"
    assert "SGD" in said(figure)
    assert figure.axes[0].get_legend() is None
    one = plots.training_figure(log(n=1), names=["one epoch"])
    assert one.axes[0].lines[0].get_marker() == "."
    check_layout(one)


def test_losses_that_are_not_finite_are_marked():
    record = log()
    record.train_loss[[10, 20]] = [NAN, np.inf]
    figure = plots.training_figure(record)
    (marks,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert list(marks.get_xdata()) == [11, 21]
    assert "2 of 100 losses not finite, marked ×" in said(figure)


def test_a_record_of_training_is_drawn():
    record = samples.training()
    axes = plots.training_figure(record).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), record.train_loss)


# --- what they share -----------------------------------------------------------------------------


def test_optimizers_keep_their_colours():
    assert places(["SAM", "SGD"]) == {"SAM": 1, "SGD": 0}
    assert places(["SAM"]) == {"SAM": 1}
    assert places(["A", "B"]) == {"A": 0, "B": 1}


def test_what_spans_a_decade_is_wide():
    assert wide([1.0, 10.0, NAN])
    assert not wide([1.0, 9.9])
    assert not wide([0.0, 10.0])
    assert not wide([NAN])


def test_a_summary_of_nothing_is_nothing():
    found = summary(np.array([NAN, np.inf]))
    assert found.n == 0
    assert np.isnan([found.value, found.low, found.high]).all()


def test_labels_that_do_not_fit_are_left_out():
    axes = Picture(figsize=(2, 2)).add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 1)
    assert tick_at(axes, [0.1, 0.5, 0.9], ["one", "two", "three"], room=2.0)
    assert not tick_at(axes, [0.1, 0.15, 0.9], ["one", "two", "three"], room=2.0)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "", "three"]
    assert not tick_at(axes, [0.0, 0.5], ["one", "two"], room=2.0, overhang=0.0)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["", "two"]


def test_pictures_are_the_same_each_time(tmp_path):
    first, second = (
        plots.save_figure(radius(), tmp_path / f"{k}.svg")[0].read_bytes() for k in "ab"
    )
    assert first == second


# --- what is refused -----------------------------------------------------------------------------

DENSITIES, PAIRS, _ = spectra(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.spectra_over_training({}, {}, [1]), "nothing to draw"),
        (
            lambda: plots.spectra_over_training(DENSITIES, {"SGD": PAIRS["SGD"]}, [1]),
            "pairs must have the names of densities, ['SAM', 'SGD']; got ['SGD']",
        ),
        (
            lambda: plots.spectra_over_training(DENSITIES, PAIRS, [1, 2]),
            "densities['SGD'] holds 1 records; expected one for each of the epochs [1, 2]",
        ),
        (lambda: plots.noise_figure(SHARES, {"SAM": SAM}, n_test=9), "must hold SGD and an opt"),
        (
            lambda: plots.noise_figure([0, 20, 40], {"SGD": SGD, "SAM": SAM}, n_test=9),
            "shares must ascend within [0, 1]; got [0, 20, 40]: 0.2 stands for 20 %",
        ),
        (
            lambda: plots.noise_figure(SHARES, {"SGD": SGD, "SAM": SAM[:2]}, n_test=9),
            "accuracy['SAM'] must have the shape (n_shares, n_seeds) = (3, n_seeds); got (2, 3)",
        ),
        (
            lambda: plots.noise_figure(SHARES, {"SGD": SGD, "SAM": SAM[:, :2]}, n_test=9),
            "accuracy['SAM'] has 2 seeds and accuracy['SGD'] 3",
        ),
        (
            lambda: plots.noise_figure(SHARES, {"SGD": SGD, "SAM": 100 * SAM}, n_test=9),
            "accuracy['SAM'] reaches outside [0, 1]: give shares, not per cent",
        ),
        (lambda: noise(chosen={"SAM": [0.1]}), "chosen['SAM'] has shape (1,); expected one radius"),
        (lambda: noise(chosen={"GD": [0.1] * 3}), "of one of ['SAM', 'SGD']"),
        (lambda: radius(steps=[0, 1, 2]), "steps must ascend from above zero; got [0, 1, 2]"),
        (lambda: radius(searched={"SGD": [1.0, 1.0]}), "searched must have the names of rises"),
        (
            lambda: radius(rises={"SGD": np.ones((3, 3))}, searched={"SGD": [1.0]}),
            "rises['SGD'] has 3 seeds and searched['SGD'] 1",
        ),
        (
            lambda: plots.radius_figure(
                RHOS,
                {1: [[0.1]]},
                [0.1],
                steps=[1],
                rises={},
                searched={},
                rho=1,
                n_test=9,
            ),
            "errors[1] must have the shape (n_rhos, n_seeds) = (3, n_seeds); got (1, 1)",
        ),
        (lambda: correlation(0), "nothing to draw: no measure was given"),
        (lambda: correlation(2, groups=["a"]), "one entry for each of 12 models; got 1 groups"),
        (lambda: correlation(2, within=TAUS), "within must have the names of correlations"),
        (
            lambda: plots.correlation_figure(
                {"a": [1.0]}, [0.1, 0.2], {"a": TAUS[NAMES[0]]}, groups=["", ""], n_test=9
            ),
            "measures of other shapes: {'a': (1,)}",
        ),
        (lambda: plots.seeds_figure({}), "nothing to draw: no quantity was given"),
        (lambda: plots.seeds_figure({"a": {"SGD": [1.0]}}), "'a' is of ['SGD']; expected two opt"),
        (
            lambda: plots.seeds_figure({"a": {"SGD": [1.0], "SAM": [1.0, 2.0]}}),
            "'a' has 1 values of SGD and 2 of SAM",
        ),
        (
            lambda: plots.seeds_figure({"a": {"SGD": [[1.0]], "SAM": [1.0]}}),
            "'a' of SGD must have the shape (n,); got (1, 1)",
        ),
        (lambda: plots.training_figure([]), "nothing to draw: no record was given"),
        (lambda: plots.training_figure(log(), names=["a", "b"]), "got 2 for 1 records"),
        (
            lambda: plots.training_figure(
                SimpleNamespace(name="a", epochs=np.arange(3), train_loss=np.ones(2), lr=np.ones(3))
            ),
            "epochs, train_loss and lr of 'a' have the shapes [(3,), (2,), (3,)]",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        call()


def test_the_layout_check_fails_where_text_overlaps():
    figure = Picture(figsize=(2, 2))
    figure.text(0.1, 0.5, "one")
    figure.text(0.1, 0.52, "two")
    with pytest.raises(AssertionError):
        check_layout(figure)
    outside = Picture(figsize=(2, 2))
    outside.text(0.9, 0.5, "too long to fit")
    with pytest.raises(AssertionError):
        check_layout(outside)


def test_errors_that_span_decades_stand_on_a_log_axis_and_others_do_not():
    given = {"steps": STEPS, "rises": RISES, "searched": SEARCHED, "rho": 0.05, "n_test": 360}
    far = {1: np.array([[0.02, 0.03], [0.9, 0.91]])}
    left = plots.radius_figure([0.1, 0.2], far, [0.05, 0.06], **given).axes[0]
    assert left.get_yscale() == "log"
    low, high = left.get_ylim()
    assert 0 < low < 2 < 91 < high <= 115
    near = {1: np.array([[0.02, 0.03], [0.04, 0.05]])}
    left = plots.radius_figure([0.1, 0.2], near, [0.05, 0.06], **given).axes[0]
    assert left.get_yscale() == "linear"
