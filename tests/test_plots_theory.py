"""Pictures of the linear model, tested on what is drawn: curves, rings, points, the slider."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from samples import caption, key

from landscape.errors import InvalidArgumentError
from landscape.plots import explore_theory, plot_theory, save_figure
from landscape.plots.pages import figure_json
from landscape.theory import Modes, TradeOff, least_squares, random_design, simulate, trade_off

AT = [1, 5, 25]


def sample(rho=2.0, *, eta=0.1, iterations=100) -> TradeOff:
    design, truth = random_design("gaussian", seed=0)
    return trade_off(least_squares(design, truth, noise=1.0), iterations, eta=eta, rho=rho)


def estimates(rho=2.0):
    design, truth = random_design("gaussian", seed=0)
    options = {"noise": 1.0, "eta": 0.1, "at": AT, "runs": 100}
    return [simulate(design, truth, rho=r, **options) for r in (0.0, rho)]


def texts(figure):
    return caption(figure)


def legend(figure):
    return key(figure)


def test_each_panel_holds_its_numbers():
    pair = sample()
    figure = plot_theory(pair, title="a title")
    wanted = {
        "bias²": ("iterations", pair.gd.bias2, pair.sam.bias2),
        "variance": ("iterations", pair.gd.variance, pair.sam.variance),
        "risk = bias² + variance": ("iterations", pair.gd.risk, pair.sam.risk),
        "risk, at equal cost": ("gradient evaluations", pair.gd.risk, pair.sam.risk),
    }
    assert [axes.get_ylabel() for axes in figure.axes] == list(wanted)
    for axes in figure.axes:
        across, *values = wanted[axes.get_ylabel()]
        assert (axes.get_xlabel(), axes.get_xscale(), axes.get_ylim()[0]) == (across, "log", 0.0)
        curves = [line for line in axes.lines if len(line.get_xdata()) == 100]
        for line, expected in zip(curves, values, strict=True):
            assert line.get_ydata().tolist() == expected[1:].tolist()
        steps = [list(line.get_xdata()[:3]) for line in curves]
        assert steps == [[1, 2, 3], [2, 4, 6] if across != "iterations" else [1, 2, 3]]
    assert "a title" in texts(figure)


def test_rings_stand_at_the_smallest_risk():
    pair = sample()
    figure = plot_theory(pair)
    for axes, cost in ((figure.axes[2], 1), (figure.axes[3], 2)):
        rings = [line for line in axes.lines if len(line.get_xdata()) == 1]
        drawn = [(ring.get_xdata()[0], ring.get_ydata()[0]) for ring in rings]
        gd, sam = pair.gd.best, pair.sam.best
        assert drawn == [(gd.iteration, gd.risk), (cost * sam.iteration, sam.risk)]
    ending = f"best at iteration {gd.iteration}, gradient {gd.gradients}, risk {gd.risk:.4g}"
    assert legend(figure)[0].endswith(ending)


def test_monte_carlo_points_have_bars_of_two_standard_errors():
    found = estimates()
    figure = plot_theory(sample(), simulated=found)
    names = ("bias2", "variance", "risk", "risk")
    for axes, name in zip(figure.axes, names, strict=True):
        assert len(axes.containers) == 2
        for bars, estimate in zip(axes.containers, found, strict=True):
            cost = 2 if axes is figure.axes[3] and estimate.rho > 0 else 1
            points, _, (segments,) = bars
            values, errors = getattr(estimate, name), getattr(estimate, f"{name}_se")
            assert points.get_xdata().tolist() == [cost * time for time in AT]
            assert points.get_ydata().tolist() == values.tolist()
            ends = np.array(segments.get_segments())[:, :, 1]
            np.testing.assert_allclose(ends.T, [values - 2 * errors, values + 2 * errors])
    assert "100 Monte Carlo runs" in texts(figure)
    assert legend(figure)[2] == "Monte Carlo, ±2 standard errors"


def test_the_caption_says_whether_the_order_is_a_theorem():
    words = texts(plot_theory(sample()))
    assert "SAM has lower bias² and higher variance at every iteration" in words
    assert "1/(η + ρ) = 0.4762" in words
    modes = Modes(curvatures=[1.0], bias_weights=[1.0], variance_weights=[1.0])
    lost = texts(plot_theory(trade_off(modes, 5, eta=0.9, rho=1.1)))
    assert "does NOT hold at every" in lost
    kept = texts(plot_theory(trade_off(modes, 5, eta=0.3, rho=2.5)))
    assert "holds at every iteration shown" in kept
    assert not plot_theory(sample(), caption=False).texts


def test_a_risk_that_still_falls_is_not_called_the_best():
    figure = plot_theory(sample(iterations=10))
    label, other = legend(figure)
    assert label.startswith("gradient descent: risk still falling at iteration 10")
    assert "best at iteration 6" in other
    rings = [line for line in figure.axes[2].lines if len(line.get_xdata()) == 1]
    assert [ring.get_xdata()[0] for ring in rings] == [6]
    moving = explore_theory(sample(iterations=10))
    rings = [list(trace.x) for trace in moving.data if trace.mode == "markers"]
    assert rings == [[], [], [6], [12]]


def test_best_at_the_start_has_no_ring():
    modes = Modes(curvatures=[1.0], bias_weights=[0.0], variance_weights=[1.0])
    figure = plot_theory(trade_off(modes, 5, eta=0.1, rho=1.0))
    assert all(len(line.get_xdata()) == 5 for axes in figure.axes for line in axes.lines)
    assert "best at iteration 0" in legend(figure)[0]


def test_nothing_written_overlaps_or_leaves_the_sheet():
    figure = plot_theory(sample(), simulated=estimates(), title="Least squares")
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    width, height = figure.bbox.width, figure.bbox.height
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        for other in boxes[i + 1 :]:
            assert not box.overlaps(other)


def test_the_picture_is_the_same_each_time(tmp_path):
    first, second = (
        save_figure(plot_theory(sample()), tmp_path / f"{k}.png")[0].read_bytes() for k in "ab"
    )
    assert first == second


# --- interactive -------------------------------------------------------------------------------


def seen(figure, k):
    """The traces that a step of the slider shows."""
    shown = figure.layout.sliders[0].steps[k].args[0]["visible"]
    return [trace for trace, visible in zip(figure.data, shown, strict=True) if visible]


def test_the_slider_shows_one_rho_at_a_time_beside_gradient_descent():
    pairs = [sample(rho) for rho in (0.5, 1.0, 2.0)]
    figure = explore_theory(pairs, shown=2)
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0.5", "1", "2"]
    assert slider.active == 2
    for k, pair in enumerate(pairs):
        lines = [trace for trace in seen(figure, k) if trace.mode == "lines"]
        drawn = [list(line.y) for line in lines]
        gd, sam = ([c.bias2, c.variance, c.risk, c.risk] for c in (pair.gd, pair.sam))
        assert drawn == [list(values[1:]) for values in gd + sam]
        assert list(lines[-1].x[:3]) == [2, 4, 6]
        rings = [(t.x[0], t.y[0]) for t in seen(figure, k) if t.mode == "markers"]
        assert rings[-2] == (pair.sam.best.iteration, pair.sam.best.risk)
        assert rings[-1] == (pair.sam.best.gradients, pair.sam.best.risk)
    at_first = [trace for trace in figure.data if trace.visible]
    assert at_first == seen(figure, 2)


def test_points_go_with_their_own_rho():
    figure = explore_theory([sample(1.0), sample(2.0)], simulated=estimates(2.0))

    def n_points(k):
        return sum(trace.error_y.array is not None for trace in seen(figure, k))

    assert (n_points(0), n_points(1)) == (4, 8)


def test_one_pair_needs_no_slider():
    figure = explore_theory(sample())
    assert figure.layout.sliders == ()
    assert all(trace.visible for trace in figure.data)
    assert json.loads(figure_json(figure))["layout"]["xaxis4"]["title"]["text"].startswith("grad")


@pytest.mark.parametrize(
    ("pairs", "shown", "message"),
    [
        ([], 0, "nothing to draw: no pair was given"),
        ([0.1, 0.2], 0, "several step sizes [0.1, 0.2]; expected one"),
        ([0.1], 1, "shown = 1; expected 0 to 0"),
    ],
)
def test_pairs_that_make_no_slider_are_refused(pairs, shown, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        explore_theory([sample(eta=eta) for eta in pairs], shown=shown)


def test_the_command_draws_both(run, tmp_path):
    still, moving = tmp_path / "a.png", tmp_path / "a.html"
    assert run("theory", "--runs", "50", "-o", str(still)).code == 0
    assert still.read_bytes().startswith(b"\x89PNG")
    assert run("theory", "--runs", "50", "--rho", "3", "-o", str(moving)).code == 0
    page = moving.read_text()
    labels = [float(label) for label in re.findall(r'"method":"restyle","label":"([^"]+)"', page)]
    labels = labels or [float(x) for x in re.findall(r'"label":"([\d.]+)","method"', page)]
    assert 3.0 in labels
    assert len(labels) >= 20
    assert labels == sorted(labels)
    done = run("theory", "--runs", "0", "-o", str(tmp_path / "a.txt"))
    assert done.code == 2
    assert "cannot tell the picture format" in done.err
