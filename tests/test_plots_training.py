"""Pictures of training logs, tested on what is drawn."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import samples
from samples import caption as said
from samples import figures as plots
from samples import key
from test_figures_pictures import check_layout

from landscape.errors import InvalidArgumentError

NAN = float("nan")


def log(name="SGD", *, first=2.0, n=100):
    epochs = np.arange(1, n + 1)
    losses = first * np.exp(-epochs / 20)
    return SimpleNamespace(name=name, epochs=epochs, train_loss=losses, lr=np.full(n, 0.1))


def test_losses_are_drawn_against_epochs_above_the_learning_rate():
    logs = [log(), log("SAM", first=1.0)]
    figure = plots.plot_training(logs, title="a title")
    upper, lower = figure.axes
    for line, rate, record in zip(upper.lines, lower.lines, logs, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), record.epochs)
        np.testing.assert_array_equal(line.get_ydata(), record.train_loss)
        np.testing.assert_array_equal(rate.get_ydata(), record.lr)
    assert (upper.get_yscale(), lower.get_ylim()[0]) == ("log", 0.0)
    assert key(figure) == ["SGD", "SAM"]
    assert (upper.get_xlim(), lower.get_xlabel()) == (lower.get_xlim(), "epoch")
    check_layout(figure)


def test_a_loss_that_varies_little_has_a_linear_axis():
    figure = plots.plot_training(log(n=5))
    assert figure.axes[0].get_yscale() == "linear"
    assert "SGD" in said(figure)
    assert not figure.legends
    one = plots.plot_training(log(n=1), names=["one epoch"])
    assert one.axes[0].lines[0].get_marker() == "."
    check_layout(one)


def test_losses_that_are_not_finite_are_marked():
    record = log()
    record.train_loss[[10, 20]] = [NAN, np.inf]
    figure = plots.plot_training(record)
    (marks,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert list(marks.get_xdata()) == [11, 21]
    assert "2 of 100 losses not finite, marked ×" in said(figure)


def test_a_record_of_training_is_drawn():
    record = samples.training()
    axes = plots.plot_training(record).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), record.train_loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.plot_training([]), "nothing to draw: no record was given"),
        (lambda: plots.plot_training(log(), names=["a", "b"]), "got 2 for 1 records"),
        (
            lambda: plots.plot_training(
                SimpleNamespace(name="a", epochs=np.arange(3), train_loss=np.ones(2), lr=np.ones(3))
            ),
            "epochs, train_loss and lr of 'a' have the shapes [(3,), (2,), (3,)]",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        call()
