"""Pictures of eigenvalues, traces and spectral densities, tested on what is drawn."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import samples
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from samples import figures as plots

import landscape.plots
from landscape.errors import InvalidArgumentError
from landscape.plots.numbering import numbers_in
from landscape.results import KINDS
from landscape.study import Study

LAYERS = tuple(f"features.block{i}.convolution.weight" for i in range(20))


def keyed(axes):
    """What the key above a panel names."""
    return samples.key(axes.figure)


said = samples.caption


def rods(axes):
    """Wide bars: for each collection its lower ends, upper ends and places."""
    found = [c for c in axes.collections if isinstance(c, LineCollection) and c.get_alpha()]
    return [np.array([s for s in c.get_segments()]) for c in found]


def sgd(**kwargs):
    return samples.density("SGD", **kwargs)


def sam(**kwargs):
    return samples.density("SAM", outliers=(0.12, 0.08, 0.05, 0.04, 0.03), bulk=6e-4, **kwargs)


# --- densities -------------------------------------------------------------------------------


def test_a_density_is_drawn_with_its_band_and_outliers():
    record = sgd()
    axes = plots.draw(record).axes[0]
    curve = max(axes.lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_allclose(curve.get_xdata(), record.grid)
    seen = record.density > 1e-6
    np.testing.assert_allclose(curve.get_ydata()[seen], record.density[seen])
    band = next(c for c in axes.collections if isinstance(c, PolyCollection))
    corners = band.get_paths()[0].vertices
    at = record.grid[np.argmax(record.density)]
    heights = corners[np.isclose(corners[:, 0], at)][:, 1]
    expected = record.density.max() * np.array([0.8, 1.2])
    np.testing.assert_allclose([heights.min(), heights.max()], expected)
    marks = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(marks.get_xdata(), record.atoms)
    assert any(list(line.get_xdata()) == [0.0, 0.0] for line in axes.lines)


def test_the_floor_of_a_density_shows_the_mass_of_a_single_eigenvalue():
    record = sgd()
    axes = plots.draw(record).axes[0]
    single = 1 / (77_754 * record.bandwidth * np.sqrt(2 * np.pi))
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert low < single / 2
    assert high > record.density.max()
    at_outlier = np.interp(0.48, record.grid, record.density)
    assert at_outlier == pytest.approx(single, rel=0.01)


def test_every_eigenvalue_that_was_found_is_inside_the_axes():
    for x_axis in ("symlog", "linear"):
        left, right = plots.plot_density([sgd(), sam()], x_axis=x_axis).axes[0].get_xlim()
        assert left < -0.002
        assert 0.48 < right < 1


def test_densities_are_smoothed_by_one_bandwidth():
    """Each Ritz value and eigenvalue as a Gaussian of the largest bandwidth, by a plain loop."""
    rng = np.random.default_rng(0)
    nodes, weights = rng.normal(0, 1e-3, (3, 4)), rng.dirichlet(np.ones(4), 3)
    narrow = sgd(bandwidth=1e-4, outliers=(0.3,))
    narrow = dataclasses.replace(narrow, nodes=nodes, weights=weights)
    figure = plots.plot_density([narrow, sam(bandwidth=4e-4)], names=["narrow", "wide"])
    curve = next(line for line in figure.axes[0].lines if line.get_label().startswith("narrow"))
    t, drawn = curve.get_data()
    for k in (np.argmax(drawn), np.searchsorted(t, 0.3), np.searchsorted(t, 2e-3)):
        terms = [(x, w / 3) for x, w in zip(nodes.flat, weights.flat, strict=True)]
        expected = sum(
            w * np.exp(-0.5 * ((t[k] - x) / 4e-4) ** 2) / (4e-4 * np.sqrt(2 * np.pi))
            for x, w in [*terms, (0.3, 1 / 77_754)]
        )
        assert drawn[k] == pytest.approx(expected, rel=1e-9)
    text = said(figure)
    assert "smoothed by a Gaussian of standard deviation σ = 0.0004" in text
    assert "narrow: σ = 0.0001; wide: σ = 0.0004; here all are smoothed by the largest" in text
    assert "The axis of λ is linear within ±0.0004" in text
    assert "here all are" not in said(plots.plot_density([sgd(), sam()]))


def test_a_share_below_zero_whose_interval_is_half_of_all_is_not_resolved():
    record = dataclasses.replace(sgd(), negative_low=0.05, negative_high=0.92)
    assert "share below zero not resolved (5 to 92 %)" in samples.key(plots.draw(record))[0]
    assert record.summary()["share below zero"] == "not resolved"
    assert dict(record.rows())["share below zero"].startswith("not resolved  (95%: 0.05 to 0.92)")
    assert sgd().summary()["share below zero"] == sgd().negative
    assert "not resolved" not in samples.key(plots.draw(sgd()))[0]


def test_a_density_says_what_is_below_zero_and_what_it_cost():
    figure = plots.plot_density([sgd(), sam()])
    assert keyed(figure.axes[0]) == [
        "SGD: 1.03 % below zero (0.89 to 1.17 %), λmax/λ5 = 6.86",
        "SAM: 1.03 % below zero (0.89 to 1.17 %), λmax/λ5 = 4",
    ]
    text = " ".join(said(figure).split())
    for phrase in ("of the Hessian (77,754 parameters)", "16 probes of 80 steps", "1,380 products"):
        assert phrase in text
    few = sgd(outliers=(0.3, 0.2))
    assert "λmax/λ5" not in samples.key(plots.draw(few))[0]
    assert "found by themselves" not in said(plots.draw(sgd(outliers=())))


def test_a_linear_density_starts_at_zero():
    axes = plots.draw(sgd(), x_axis="linear", y_axis="linear").axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > sgd().density.max()


def test_many_densities_stand_under_each_other_on_shared_axes():
    assert len(plots.plot_density([sgd()] * 3).axes) == 1
    records = [samples.density(f"step-{k}", bulk=1e-3 * (1 + k)) for k in range(5)]
    figure = plots.plot_density(records)
    assert len(figure.axes) == 5
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert all(f"step-{k}: 1.03 % below zero" in said(figure) for k in range(5))


def test_a_density_that_is_not_finite_somewhere_is_broken_there():
    record = sgd()
    density = record.density.copy()
    density[5:8] = np.nan
    bad = dataclasses.replace(record, density=density)
    curve = max(plots.draw(bad).axes[0].lines, key=lambda line: len(line.get_xdata()))
    assert np.isnan(curve.get_ydata()[5:8]).all()
    nothing = dataclasses.replace(record, density=np.full_like(density, np.nan))
    with pytest.raises(InvalidArgumentError, match="hold no finite density"):
        plots.draw(nothing)
    with pytest.raises(InvalidArgumentError, match="unknown axis of a spectral density 'log'"):
        plots.draw(record, x_axis="log")
    with pytest.raises(InvalidArgumentError, match="unknown scale of a spectral density 'up'"):
        plots.draw(record, y_axis="up")


# --- traces ----------------------------------------------------------------------------------


def ends(container):
    """Middles and ends of the bars of an error bar container that run across."""
    points, _, (bars,) = container.lines
    # a bar whose value is NaN has no segment to speak of
    return points, np.array([segment[:, 0] for segment in bars.get_segments() if len(segment)])


def test_a_trace_without_layers_is_one_point_with_its_interval():
    records = [samples.trace("SGD"), samples.trace("SAM", value=12, converged=False)]
    figure = plots.plot_trace(records)
    axes = figure.axes[0]
    for record, container in zip(records, axes.containers, strict=True):
        points, _, (bars,) = container.lines
        assert list(points.get_ydata()) == [record.value]
        np.testing.assert_allclose(bars.get_segments()[0][:, 1], [record.low, record.high])
    assert axes.containers[1].lines[0].get_markerfacecolor() == "white"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["SGD", "SAM"]
    assert "SAM: trace 12 (10.8 to 13.2, wider than asked)" in " ".join(said(figure).split())
    assert axes.get_ylabel() == "trace, Hessian"


def test_an_exact_trace_has_no_bar():
    record = samples.trace(exact=True)
    figure = plots.draw(record)
    assert not figure.axes[0].containers[0].lines[2]
    assert "Trace 40 (exact)" in said(figure)


def test_traces_of_layers_stand_in_rows_in_the_models_order():
    records = [
        samples.trace("SGD", layers=LAYERS),
        samples.trace("SAM", layers=LAYERS[:-1], value=9.0),
    ]
    axes = plots.plot_trace(records).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == list(LAYERS)
    bottom, top = axes.get_ylim()
    assert bottom > 19 > 0 > top  # the first layer is at the top
    for k, record in enumerate(records):
        points, bars = ends(axes.containers[k])
        n = len(record.layers)
        np.testing.assert_allclose(points.get_xdata()[:n], record.layer_values)
        np.testing.assert_allclose(points.get_ydata(), np.arange(20), atol=0.35)
        np.testing.assert_allclose(bars[:n, 0], record.layer_low)
        np.testing.assert_allclose(bars[:n, 1], record.layer_high)
    assert np.isnan(axes.containers[1].lines[0].get_xdata()[-1])
    assert keyed(axes) == ["SGD: trace 40 (36 to 44)", "SAM: trace 9 (8.1 to 9.9)"]


def test_a_trace_per_parameter_is_divided_by_the_size_of_the_layer():
    record = samples.trace(layers=LAYERS)
    axes = plots.draw(record, per_parameter=True).axes[0]
    points, bars = ends(axes.containers[0])
    np.testing.assert_allclose(points.get_xdata(), record.layer_values / record.layer_sizes)
    np.testing.assert_allclose(bars[:, 0], record.layer_low / record.layer_sizes)
    assert "per parameter" in axes.get_xlabel()


def test_the_scale_of_traces_follows_the_values():
    record = samples.trace(layers=LAYERS)
    assert plots.draw(record).axes[0].get_xscale() == "log"
    assert plots.draw(samples.trace(layers=LAYERS[:3])).axes[0].get_xscale() == "linear"
    values = record.layer_values.copy()
    values[-1] *= -1
    mixed = dataclasses.replace(record, layer_values=values, layer_low=values, layer_high=values)
    figure = plots.draw(mixed)
    assert figure.axes[0].get_xscale() == "symlog"
    assert "Linear within ±" in said(figure)
    with pytest.raises(InvalidArgumentError, match=r"needs positive values; .*scale='symlog'"):
        plots.draw(mixed, scale="log")
    with pytest.raises(InvalidArgumentError, match="unknown scale 'logg'"):
        plots.draw(mixed, scale="logg")


def test_an_interval_that_reaches_below_zero_is_drawn_on_a_log_scale_too():
    record = samples.trace(layers=LAYERS)
    wide = dataclasses.replace(record, layer_low=-np.ones(20))
    figure = plots.draw(wide, scale="log")
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    assert 0 < low < record.layer_values.min()
    assert high > record.layer_high.max()


def test_traces_that_do_not_go_together_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"each layer and SAM does not: measure it"):
        plots.plot_trace([samples.trace("SGD", layers=LAYERS), samples.trace("SAM")])
    with pytest.raises(InvalidArgumentError, match="hold no finite trace"):
        plots.draw(samples.trace(value=np.nan))


def test_sixty_layers_make_a_higher_picture():
    names = [f"model.layers.{k}.{'attention.' * 6}weight" for k in range(60)]
    many = plots.draw(samples.trace(layers=names))
    assert many.get_size_inches()[1] > 9
    labels = [t.get_text() for t in many.axes[0].get_yticklabels()]
    assert many.axes[0].get_ylabel() == "layer"
    assert len(set(labels)) == 60
    assert all("…" in label for label in labels)


# --- eigenvalues from both ends --------------------------------------------------------------


def test_the_lowest_eigenvalues_stand_at_the_right_end():
    wide, narrow = samples.both_ends("a", k=5, n_lowest=3), samples.both_ends("b", k=3, n_lowest=1)
    axes = plots.plot_eigs([wide, narrow]).axes[0]
    first, second = (np.asarray(c.lines[0].get_xdata()) for c in axes.containers)
    np.testing.assert_allclose(np.round(first), [1, 2, 3, 4, 5, 7, 8, 9])
    np.testing.assert_allclose(np.round(second), [1, 2, 3, 9])
    np.testing.assert_array_equal(axes.containers[0].lines[0].get_ydata(), wide.values)
    labels = dict(zip(axes.get_xticks(), axes.get_xticklabels(), strict=True))
    assert {int(at): t.get_text() for at, t in labels.items()} == {
        **{k: f"λ{k}" for k in range(1, 6)},
        **{7: "λn−2", 8: "λn−1", 9: "λn"},
    }
    assert "Largest and smallest eigenvalues of the Hessian" in said(axes.figure)


def test_eigenvalues_carry_errors_bounds_and_their_gauss_newton_part():
    record = samples.both_ends("SGD", n_lowest=0)
    figure = plots.draw(record)
    axes = figure.axes[0]
    (bars,) = rods(axes)
    np.testing.assert_allclose(bars[:, 0, 1], record.values - record.data_errors)
    np.testing.assert_allclose(bars[:, 1, 1], record.values + record.data_errors)
    drawn = {line.get_marker(): line for line in axes.lines if np.size(line.get_xdata())}
    np.testing.assert_allclose(drawn["x"].get_ydata(), record.gauss_newton)
    assert list(drawn[7].get_ydata()) == [record.upper_bound]
    assert keyed(axes) == [
        "SGD",
        "another sample of the data: ±1 standard error",
        "vᵀGv, the Gauss-Newton part",
        "no eigenvalue lies above, but for a small probability",
    ]
    assert "No eigenvalue above 21.6 (1% chance of failure)" in said(figure)
    markers = {line.get_marker() for line in plots.draw(record, gauss_newton=False).axes[0].lines}
    assert "x" not in markers


@pytest.mark.parametrize("bound", [20.01, 500.0, np.inf])
def test_a_bound_that_cannot_be_seen_or_would_squash_the_picture_is_only_told(bound):
    record = dataclasses.replace(samples.both_ends(), upper_bound=bound)
    figure = plots.draw(record)
    assert 7 not in {line.get_marker() for line in figure.axes[0].lines}
    assert ("No eigenvalue above" in said(figure)) == bool(np.isfinite(bound))


def test_the_operator_is_called_by_its_name():
    record = dataclasses.replace(samples.eigenpairs(), settings={"operator": "ggn"})
    assert "eigenvalues of the generalised Gauss-Newton matrix" in said(plots.draw(record))


# --- over training ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["step-100", "step-20"], [100, 20]),
        (["epoch_3", "epoch_12"], [3, 12]),
        (["ckpt-12.pt", "ckpt-7.pt"], [12, 7]),
        (["resnet18-e1-sgd", "resnet18-e25-sgd"], [1, 25]),
        (["net-0.5", "net-1.5"], [0.5, 1.5]),
        (["e1-loss0.5", "e2-loss0.3"], None),
        (["sgd", "sam"], None),
        (["start", "step-5"], None),
        (["step-5", "step-5"], None),
        (["step-5"], [5]),
    ],
)
def test_the_number_in_a_name_is_found(names, expected):
    found = numbers_in(names)
    assert found is None if expected is None else list(found) == expected


def test_eigenvalues_over_training_run_along_the_number_in_the_name():
    records = samples.sweep(6, k=3, unconverged=(2,))
    figure = plots.plot_sweep(records[::-1])
    axes = figure.axes[0]
    for k, container in enumerate(axes.containers):
        points, _, (bars,) = container.lines
        np.testing.assert_allclose(points.get_xdata(), np.arange(6) * 100)
        np.testing.assert_allclose(points.get_ydata(), [r.values[k] for r in records])
        spans = np.array([s[:, 1] for s in bars.get_segments()])
        reach = [r.residuals[k] for r in records]
        np.testing.assert_allclose(np.diff(spans, axis=1)[:, 0] / 2, reach)
    for k, wide in enumerate(rods(axes)):
        np.testing.assert_allclose(
            np.diff(wide[:, :, 1], axis=1)[:, 0] / 2, [r.data_errors[k] for r in records]
        )
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[200.0]] * 3
    assert axes.get_xlabel() == "step"
    assert keyed(axes) == ["λ1", "λ2", "λ3"]
    assert "Hollow, NOT converged: step-200" in said(figure)


def test_without_numbers_the_names_stand_under_the_axis():
    names = ["a", "b", "c"]
    axes = plots.plot_sweep(samples.sweep(3), names=names).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == names
    np.testing.assert_array_equal(axes.get_xticks(), [0, 1, 2])
    given = plots.plot_sweep(samples.sweep(3), names=names, x=[1, 10, 5], x_label="epoch").axes[0]
    points = given.containers[0].lines[0]
    assert list(points.get_xdata()) == [1, 5, 10]
    assert points.get_ydata()[1] == samples.sweep(3)[2].values[0]
    assert given.get_xlabel() == "epoch"


def test_checkpoints_with_fewer_eigenvalues_leave_gaps():
    records = [samples.both_ends("step-1", k=4, n_lowest=2), samples.eigenpairs("step-2", k=2)]
    for values in (
        [c.lines[0].get_ydata() for c in plots.plot_sweep(records).axes[0].containers],
        [t.y for t in plots.explore_sweep(records).data if t.mode == "lines+markers"],
    ):
        assert [list(np.isfinite(v)) for v in values] == [[True, True]] * 2 + [[True, False]] * 4


def sharpnesses(*names):
    return [dataclasses.replace(samples.sharpness(name), value_se=0.02) for name in names]


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        ([f"adam-e{k}" for k in range(1, 10)] + [f"sam-e{k}.pt" for k in range(10, 13)], None),
        ([f"epoch-{k}.pt" for k in range(1, 13)], ["adam"] * 9 + ["sam"] * 3),
    ],
)
@pytest.mark.parametrize("make", [samples.eigenpairs, samples.sharpness, samples.trace])
def test_two_runs_are_never_one_curve(names, runs, make):
    records = [make(name) for name in names]
    order = np.random.default_rng(0).permutation(12)
    shuffled = {"names": [names[i] for i in order], "runs": runs and [runs[i] for i in order]}
    figure = plots.plot_sweep([records[i] for i in order], **shuffled)
    drawn = {bars.get_label().split(",")[0]: bars.lines[0] for bars in figure.axes[0].containers}
    x = {name.removesuffix("-e"): list(line.get_xdata()) for name, line in drawn.items()}
    assert x == {"adam": list(range(1, 10)), "sam": [10, 11, 12]}
    assert len({line.get_color() for line in drawn.values()}) == 2
    assert "One line for each run" in said(figure)
    assert len({trace.legendgroup for trace in plots.explore_sweep(records, runs=runs).data}) >= 2


def test_sharpness_over_training_has_its_standard_error_as_bars():
    records = sharpnesses("e1", "e2", "e3")
    (bars,) = plots.plot_sweep(records).axes[0].containers
    _, _, (rods_,) = bars.lines
    ends = np.array([segment[:, 1] for segment in rods_.get_segments()])
    np.testing.assert_allclose(np.diff(ends, axis=1), 0.04)
    with pytest.raises(InvalidArgumentError, match="one kind of record over training; got"):
        plots.plot_sweep([*records, samples.trace("e4")])
    with pytest.raises(InvalidArgumentError, match="unknown kind of record over training 'surf"):
        plots.plot_sweep([samples.surface("e1"), samples.surface("e2")])


def test_runs_can_be_given_by_name():
    figure = plots.plot_sweep(
        {"Adam": samples.sweep(3), "SAM": samples.sweep(2)}, colours={"SAM": "#123456"}
    )
    labels = {bars.get_label(): bars.lines[0] for bars in figure.axes[0].containers}
    assert set(labels) == {"Adam, λ1", "SAM, λ1"}
    assert labels["SAM, λ1"].get_color() == "#123456"


@pytest.mark.parametrize("x", [[1], [1, 1, 2], [1, 2, np.nan]])
def test_the_numbers_over_training_are_checked(x):
    for draw in (plots.plot_sweep, plots.explore_sweep):
        with pytest.raises(InvalidArgumentError, match="one finite number per record, all differ"):
            draw(samples.sweep(3), x=x)


def test_interactive_eigenvalues_over_training():
    records = samples.sweep(4, k=2, unconverged=(1,))
    figure = plots.explore_sweep(records)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == ["λ1", "λ2"]
    np.testing.assert_allclose(lines[1].y, [r.values[1] for r in records])
    np.testing.assert_allclose(lines[1].error_y.array, [r.residuals[1] for r in records])
    assert [symbol.endswith("-open") for symbol in lines[0].marker.symbol] == [0, 1, 0, 0]
    assert lines[0].text[1].startswith("step-100<br>λ1 = ")
    assert lines[0].text[1].endswith("not converged")
    assert figure.layout.xaxis.title.text == "step"


# --- all of them -----------------------------------------------------------------------------

LONG = "runs/2026/" + "a_long_name_" * 8 + "{}"
FIGURES = {
    "density": lambda: plots.plot_density([sgd(), samples.density(LONG)], title="A title"),
    "densities": lambda: plots.plot_density([samples.density(LONG.format(k)) for k in range(6)]),
    "trace": lambda: plots.plot_trace([samples.trace(LONG.format(k)) for k in range(4)]),
    "layers": lambda: plots.plot_trace(
        [samples.trace(LONG.format(k), layers=[LONG.format(i) for i in range(9)]) for k in (0, 1)]
    ),
    "eigs": lambda: plots.plot_eigs([samples.both_ends("a"), samples.both_ends(LONG)]),
    "sweep": lambda: plots.plot_sweep(samples.sweep(8, k=9)),
    "named": lambda: plots.plot_sweep(
        samples.sweep(8), names=[f"{k}-{LONG}"[: 30 + k] + "xyzuvwab"[k] for k in range(8)]
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_leaves_the_sheet_or_runs_into_another(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    panels = [axes.get_tightbbox() for axes in figure.axes]
    boxes = [t.get_window_extent() for t in figure.texts if t.get_text()]
    for box in [*panels, *boxes]:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.padded(-0.5).overlaps(other)
    for box, axes in itertools.product(boxes, figure.axes):
        assert not box.padded(-0.5).overlaps(axes.get_window_extent())
    for axes in figure.axes:
        if axes.get_legend() is not None:
            assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1 - 0.5


def test_every_kind_with_a_picture_is_drawn():
    for record in (samples.density(), samples.trace(), samples.both_ends()):
        assert plots.draw(record) is not None
    assert {"density", "trace"} <= set(plots.PICTURES) < set(KINDS)


# --- the command line ------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study with a few records of each kind, in the working directory."""
    monkeypatch.chdir(tmp_path)
    with Study("landscape.db") as opened:
        records = [*samples.sweep(3), samples.density("SGD"), samples.density("SAM")]
        records += [samples.trace("SGD", layers=LAYERS), samples.surface("SGD")]
        return {n: opened.save(r) for n, r in enumerate(records)}


@pytest.mark.parametrize("what", ["density", "trace", "sweep", "eigs"])
def test_the_command_line_draws_every_kind(study, run, tmp_path, what):
    ran = run("plot", "--what", what, "-o", f"{what}.png")
    assert ran.code == 0, ran.err
    assert (tmp_path / f"{what}.png").stat().st_size > 1000
    ran = run("plot", "--what", what, "-o", f"{what}.html")
    assert ran.code == (0 if what == "sweep" else 2)
    assert what == "sweep" or "has no interactive picture" in ran.err


def test_the_newest_record_of_each_checkpoint_is_drawn(study, run, monkeypatch):
    shown = {}

    def keep(records, *, names, **options):
        shown.update(zip(names, records, strict=True))
        return draw(records, names=names, **options)

    draw = landscape.plots.plot_density
    newer = samples.density("SGD", bandwidth=1e-3)
    newer = dataclasses.replace(newer, settings={"seed": 1})
    late = dataclasses.replace(newer.provenance, created="2026-02-02T03:04:05+00:00")
    with Study("landscape.db") as opened:
        opened.save(dataclasses.replace(newer, provenance=late))
    monkeypatch.setattr(landscape.plots, "plot_density", keep, raising=False)
    assert run("plot", "SAM", "SGD", "--what", "density", "-o", "d.png").code == 0
    assert list(shown) == ["SAM", "SGD"]
    assert shown["SGD"].bandwidth == 1e-3


def test_several_measurements_are_drawn_on_one_sheet(study, run, tmp_path):
    ids = [part for k in (3, 4) for part in ("--id", str(study[k]))]
    assert run("plot", *ids, "-o", "two.png").code == 0
    ids = [part for k in (0, 1, 2) for part in ("--id", str(study[k]))]
    assert run("plot", *ids, "--what", "sweep", "-o", "s.html").code == 0
    twice = ("--id", str(study[6])) * 2
    assert run("plot", *twice, "-o", "surfaces.png").code == 0
    ran = run("plot", "--id", str(study[0]), "--id", str(study[3]))
    assert ran.code == 2
    assert "one kind of record" in ran.err
    assert "of the kinds eigs, density" in ran.err
    ran = run("plot", "--id", str(study[3]), "--what", "sweep")
    assert ran.code == 2
    assert "unknown kind of record over training 'density'" in ran.err


def test_what_a_study_does_not_hold_cannot_be_drawn(study, run):
    ran = run("plot", "nobody", "--what", "density")
    assert ran.code == 1
    assert "holds no finished density of nobody; it holds those of SAM, SGD" in ran.err
    with Study("empty.db") as opened:
        opened.save(samples.surface("SGD"))
    ran = run("plot", "--what", "trace", "--study", "empty.db")
    assert ran.code == 1
    assert "empty.db holds no finished trace; measure it first" in ran.err


def test_several_calls_into_one_panel_tell_checkpoints_apart() -> None:
    axes = Figure().subplots()
    for name in ("one.pt", "two.pt", "one.pt"):
        plots.draw(samples.eigenpairs(name), ax=axes)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == sorted(set(labels))
    drawn = {bar.get_label(): bar[0] for bar in axes.containers}
    one, two = drawn["one.pt"], drawn["two.pt"]
    assert one.get_color() != two.get_color()
    assert one.get_marker() != two.get_marker()
    assert {bar[0].get_color() for bar in axes.containers if bar.get_label() == "one.pt"} == {
        one.get_color()
    }


def test_a_caption_says_something_of_a_few_checkpoints_and_what_did_not_converge_first() -> None:
    made = [samples.eigenpairs(f"{i}.pt", top=20.0 + i) for i in range(8)]
    records = [dataclasses.replace(r, upper_bound=1.1 * r.values[0]) for r in made]
    records.append(samples.eigenpairs("bad.pt", top=50.0, converged=False))
    text = samples.caption(plots.plot_eigs(records).figure)
    assert "bad.pt: Lanczos" in text
    assert text.index("bad.pt") < text.index("0.pt")
    assert "and so on for" in text
    assert len(text) < 1_000
    few = samples.caption(plots.plot_eigs(records[:3]).figure)
    assert all(f"{i}.pt: no eigenvalue above" in few for i in range(3))


def test_the_rise_over_training_says_the_ball() -> None:
    records = [samples.sharpness(f"e-{i}.pt", rho=0.3) for i in range(3)]
    assert "ρ = 0.3" in samples.caption(plots.plot_sweep(records).figure)


def test_steps_that_the_loss_bears_are_drawn_over_training() -> None:
    records = [samples.batch_sharpness(f"e-{i}.pt", value=30.0 + i) for i in range(3)]
    axes = plots.plot_sweep(records).axes[0]
    bars = axes.containers[0]
    np.testing.assert_allclose(bars[0].get_ydata(), [r.value for r in records])
    np.testing.assert_allclose(bars[2][0].get_segments()[1][:, 1], [30.0, 32.0])
    records = [samples.update_sharpness(f"e-{i}.pt", critical=10.0 + i) for i in range(3)]
    axes = plots.plot_sweep(records).axes[0]
    np.testing.assert_allclose(axes.containers[0][0].get_ydata(), [10.0, 11.0, 12.0])
    assert axes.get_ylabel() == "critical sharpness 2/η"
