"""Pictures of paths, tested on what is drawn: curves, bands, barriers, names, what is missing."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from samples import HOSTILE, caption, common, figures, key

from landscape.errors import InvalidArgumentError
from landscape.plots import save_figure
from landscape.plots.style import PALETTE
from landscape.results import LossPath

T = np.linspace(0.0, 1.0, 11)


def sample(name="sgd", *, height=2.0, ends=(0.1, 0.3), curve="linear", held_out="", **options):
    loss = (1 - T) * ends[0] + T * ends[1] + 4 * height * T * (1 - T)
    metrics = {}
    if held_out:
        metrics = {f"{held_out} loss": loss + 0.5, f"{held_out} loss_se": 0.1 * loss}
    record = LossPath(
        t=T,
        loss=loss,
        loss_se=0.05 * loss,
        metrics=metrics,
        end="sam",
        curve=curve,
        bends=np.zeros((0 if curve == "linear" else 2, 3)),
        distance=3.0,
        length=3.0 if curve == "linear" else 4.0,
        end_losses=ends,
        statistics="recalibrated",
        held_out=held_out,
        settings={},
        **common(name),
    )
    return dataclasses.replace(record, **options)


def curves(figure):
    """The curves that have a name in the legend, by it."""
    (axes,) = figure.axes
    return dict(zip(legend(figure), axes.get_legend_handles_labels()[0], strict=True))


def legend(figure):
    (axes,) = figure.axes
    own = axes.get_legend().get_texts() if axes.get_legend() else []
    return [text.get_text() for text in own] or key(figure)


texts = caption
plot_path = figures.plot_path


def test_the_curve_is_the_loss_and_its_name_says_the_barrier():
    record = sample()
    figure = plot_path(record)
    ((label, line),) = curves(figure).items()
    assert label == "straight line: barrier 2 at t = 0.5"
    assert line.get_xdata().tolist() == T.tolist()
    assert line.get_ydata().tolist() == record.loss.tolist()
    assert figure.axes[0].get_title(loc="left") == "sgd → sam"
    for words in (
        "11 points",
        "train data (1,437 examples)",
        "±2 standard errors",
        "gathered anew at each",
    ):
        assert words in texts(figure)
    (axes,) = figure.axes
    assert axes.get_xlim() == (0.0, 1.0)
    assert (axes.get_yscale(), axes.get_ylabel()) == ("linear", "loss L(w(t))")


def test_the_barrier_is_a_line_from_the_chord_to_the_top():
    record = sample(height=1.0, ends=(0.2, 0.6))
    (axes,) = plot_path(record).axes
    _, chord, barrier = axes.get_lines()
    assert chord.get_ydata() == pytest.approx(0.2 + 0.4 * T)
    assert list(barrier.get_xdata()) == [0.5, 0.5]
    assert list(barrier.get_ydata()) == pytest.approx([0.4, 1.4])


def test_the_band_is_two_standard_errors_wide():
    record = sample()
    (axes,) = plot_path(record).axes
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for t, loss, se in zip(T, record.loss, record.loss_se, strict=True):
        at = corners[np.isclose(corners[:, 0], t)][:, 1]
        assert (at.min(), at.max()) == pytest.approx((loss - 2 * se, loss + 2 * se))
    without = sample(loss_se=np.full(11, np.nan))
    assert not plot_path(without).axes[0].collections
    assert "±2" not in texts(plot_path(without))


def test_held_out_data_are_dashed_in_the_same_colour():
    record = sample(held_out="test")
    figure = plot_path(record)
    (own, there) = curves(figure).values()
    assert legend(figure)[1] == "straight line, test data: barrier 2 at t = 0.5"
    assert there.get_ydata().tolist() == (record.loss + 0.5).tolist()
    assert (own.get_linestyle(), there.get_linestyle()) == ("-", "--")
    assert own.get_color() == there.get_color()
    assert "Dashed: test data" in texts(figure)
    assert "ashed" not in texts(plot_path(sample()))


def test_several_paths_share_a_picture_each_with_its_colour():
    records = [sample(), sample(height=0.25, curve="bezier"), sample(curve="polygon", height=0.0)]
    figure = plot_path(records)
    assert legend(figure) == [
        "straight line: barrier 2 at t = 0.5",
        "Bezier curve with 2 bends: barrier 0.25 at t = 0.5",
        "polygonal chain with 2 bends: no barrier",
    ]
    assert [line.get_color() for line in curves(figure).values()] == list(PALETTE[:3])
    named = plot_path(records, names=["a", "b", "c"])
    assert legend(named)[1].startswith("Bezier curve with 2 bends, b: barrier")
    assert "sgd" not in texts(named)
    other = plot_path([sample(), sample("adam")])
    assert [label.split(":")[0] for label in legend(other)] == [
        "straight line, sgd → sam",
        "straight line, adam → sam",
    ]
    assert "line, sgd → sam" in legend(plot_path(sample(), title="mine"))[0]


def test_what_is_not_finite_is_left_out_marked_and_said():
    record = sample()
    loss = record.loss.copy()
    loss[4], loss[7] = np.nan, np.inf
    figure = plot_path(dataclasses.replace(record, loss=loss))
    ((label, line),) = curves(figure).items()
    assert label == "straight line: barrier not known"
    assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [4, 7]
    crosses = figure.axes[0].get_lines()[-1]
    assert crosses.get_marker() == "x"
    assert np.isfinite(figure.axes[0].get_lines()[1].get_ydata()).all()  # the chord stays whole
    assert crosses.get_xdata().tolist() == [T[4], T[7]]
    assert "2 of 11 points not finite, marked × at the top" in texts(figure)


def test_a_log_scale_keeps_the_values():
    record = sample()
    figure = plot_path(record, scale="log")
    assert figure.axes[0].get_yscale() == "log"
    assert next(iter(curves(figure).values())).get_ydata().tolist() == record.loss.tolist()
    assert "Loss on a log scale" in texts(figure)


def test_names_from_outside_stay_text(tmp_path):
    (saved,) = save_figure(plot_path(sample(HOSTILE)), tmp_path / "x.svg")
    assert "<script>" not in saved.read_text()
    (saved,) = save_figure(plot_path(sample("run $1$")), tmp_path / "x.svg")
    assert re.search("<svg", saved.read_text())


def test_the_record_draws_itself():
    record = sample()
    assert legend(record.plot().figure) == legend(plot_path(record))


def test_refuses_what_cannot_be_drawn():
    function = plot_path
    with pytest.raises(InvalidArgumentError, match="unknown scale of a picture of paths 'square'"):
        function(sample(), scale="square")
    with pytest.raises(InvalidArgumentError, match="nothing to draw: no record was given"):
        function([])
    with pytest.raises(InvalidArgumentError, match="one name per record; got 2 for 1 records"):
        function(sample(), names=["a", "b"])
