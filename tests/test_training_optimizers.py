"""The other optimizers, and label noise, in a training."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from landscape.errors import DataError, InvalidArgumentError
from landscape.optim import SAM
from landscape.problem import load_task
from landscape.training import noisy_labels, train, with_label_noise
from landscape.training.labels import label_seed

X = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25]]).double()
Y = torch.tensor([[1.0], [-2.0], [0.5]]).double()


def line():
    return SimpleNamespace(
        model=lambda: nn.Linear(2, 1, bias=False).double(),
        data=lambda split: (X, Y),
        loss=nn.MSELoss(),
    )


def start(seed: int = 0) -> np.ndarray:
    return weights(train(line(), epochs=0, seed=seed))


def weights(trained) -> np.ndarray:
    return trained.model.weight.detach().numpy()[0].copy()


def gradient(w: np.ndarray) -> np.ndarray:
    x, y = X.numpy(), Y.numpy()[:, 0]
    return 2 * x.T @ (x @ w - y) / len(y)


def by_hand(w, name: str, *, steps: int, lr: float, decay: float, rho: float = 0.0):
    """Adam as its authors write it; the gradient is taken at w + ρ g / ‖g‖."""
    m = v = np.zeros_like(w)
    for t in range(1, steps + 1):
        g = gradient(w)
        g = gradient(w + rho * g / np.linalg.norm(g))
        if name == "adam":
            g = g + decay * w
        else:
            w = w * (1 - lr * decay)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_its_formula(name, steps):
    trained = train(
        line(), optimizer=name, epochs=steps, lr=0.01, weight_decay=0.1, schedule="constant"
    )
    expected = by_hand(start(), name, steps=steps, lr=0.01, decay=0.1)
    np.testing.assert_allclose(weights(trained), expected, rtol=1e-10)
    assert trained.settings["momentum"] is None
    assert trained.settings["rho"] is None


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_sam_works_around_adam(name):
    trained = train(
        *[line()],
        **{"optimizer": "sam", "base": name, "rho": 0.3, "epochs": 4, "lr": 0.01},
        **{"weight_decay": 0.1, "schedule": "constant"},
    )
    expected = by_hand(start(), name, steps=4, lr=0.01, decay=0.1, rho=0.3)
    np.testing.assert_allclose(weights(trained), expected, rtol=1e-10)
    assert trained.settings["base"] == name
    assert trained.gradients == 8


def test_the_usual_settings_are_recorded_as_ever():
    assert set(train(line(), epochs=1, optimizer="sam").settings) == {
        *("optimizer", "epochs", "lr", "momentum", "weight_decay", "rho"),
        *("batch_size", "schedule", "seed", "device"),
    }


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.05), ("sam", 0.05), ("adam", 0.002)])
def test_the_learning_rate_is_by_default_that_of_the_optimizer(name, lr):
    assert train(line(), epochs=0, optimizer=name).settings["lr"] == lr


def test_another_norm_reaches_the_optimizer():
    known = "p" in SAM.__init__.__annotations__
    if not known:
        with pytest.raises(InvalidArgumentError, match=r"Euclidean norm only, p = 2, got 3.0"):
            train(line(), optimizer="sam", p=3.0)
        return
    # The maximiser of gᵀε over ‖ε‖_∞ ≤ ρ is ρ sign(g).
    trained = train(
        *[line()],
        **{"optimizer": "sam", "p": math.inf, "rho": 0.25, "epochs": 1, "lr": 0.1},
        **{"weight_decay": 0.0, "momentum": 0.0},
    )
    w = start()
    expected = w - 0.1 * gradient(w + 0.25 * np.sign(gradient(w)))
    np.testing.assert_allclose(weights(trained), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "adamm"}, r"unknown optimizer 'adamm' \(nearest: adam"),
        ({"optimizer": "sam", "base": "sam"}, r"unknown base optimizer 'sam'.*sgd, adam, adamw"),
        ({"optimizer": "sam", "p": 0.5}, r"p, the norm .* at least 1, got 0.5"),
        ({"label_noise": 1.5}, r"share of the labels, a number from 0 to 1, got 1.5"),
        ({"label_noise": -0.1}, r"share of the labels.* got -0.1"),
        ({"label_noise": math.nan}, r"share of the labels.* got nan"),
        ({"save_every": -1}, r"save_every must be a whole number of at least 0"),
        ({"save_every": 2}, r"save_every needs a name for the files: give checkpoint"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(InvalidArgumentError, match=message):
        train(line(), **setting)


@pytest.mark.parametrize(
    ("name", "optimizer", "epochs", "floor"),
    [
        ("digits-mlp", "adamw", 4, 0.9),
        ("digits-transformer", "adam", 8, 0.75),
        ("mnist1d-resnet-nobn", "adam", 4, 0.45),
        ("mnist1d-mlp", "sam", 4, 0.25),
    ],
)
def test_a_short_training_learns(name, optimizer, epochs, floor):
    task = load_task(name)
    trained = train(task, optimizer=optimizer, epochs=epochs, rho=0.05, batch_size=50)
    x, y = task.data("test")
    with torch.no_grad():
        accuracy = task.metrics["accuracy"](trained.model(x), y).mean().item()
    assert accuracy > floor


# -- label noise ---------------------------------------------------------------------------------


@given(
    n=st.integers(2, 200),
    share=st.floats(0, 1),
    classes=st.integers(2, 7),
    seed=st.integers(0, 2**40),
)
def test_exactly_the_share_is_replaced_and_by_classes_that_occur(n, share, classes, seed):
    clean = 3 + torch.arange(n) % classes
    before = clean.clone()
    noisy = noisy_labels(clean, share, seed=seed)
    assert int((noisy != clean).sum()) == round(share * n)
    assert set(noisy.tolist()) <= set(clean.tolist())
    assert torch.equal(clean, before)
    assert torch.equal(noisy, noisy_labels(clean, share, seed=seed))


def test_less_noise_is_a_part_of_more_and_each_seed_has_its_own():
    clean = torch.arange(1000) % 10
    some, more = (noisy_labels(clean, share, seed=1) for share in (0.2, 0.6))
    replaced = some != clean
    assert torch.equal(some[replaced], more[replaced])
    assert not torch.equal(some, noisy_labels(clean, 0.2, seed=2))


def test_every_other_class_is_equally_likely():
    clean = torch.full((9000,), 4)
    clean[:10] = torch.arange(10)
    counts = torch.bincount(noisy_labels(clean, 1.0, seed=0)[10:], minlength=10)
    assert counts[4] == 0
    others = counts[counts > 0].double()
    assert len(others) == 9
    # χ² with 8 degrees of freedom: 26.1 is exceeded once in a thousand times.
    expected = others.sum() / 9
    assert ((others - expected) ** 2 / expected).sum() < 26.1


def blobs(n: int = 40):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=g)
    return x, (x[:, 0] > 0).long()


def test_a_training_with_noise_is_that_on_the_noisy_labels():
    x, y = blobs()
    task = SimpleNamespace(
        model=lambda: nn.Linear(2, 2), data=lambda split: blobs(), loss=nn.CrossEntropyLoss()
    )
    noisy = SimpleNamespace(
        model=task.model,
        data=lambda split: (x, noisy_labels(y, 0.25, seed=label_seed(3))),
        loss=task.loss,
    )
    got, expected = train(task, seed=3, epochs=3, label_noise=0.25), train(noisy, seed=3, epochs=3)
    assert torch.equal(got.model.weight, expected.model.weight)
    assert got.settings["label_noise"] == 0.25
    assert "label_noise" not in expected.settings
    assert torch.equal(task.data("train")[1], y)


def test_a_noisy_task_has_the_labels_of_the_training():
    task = load_task("digits-mlp")
    noisy = with_label_noise(task, 0.2, seed=3)
    clean = task.data("train")[1]
    expected = noisy_labels(clean, 0.2, seed=label_seed(3))
    assert torch.equal(noisy.data("train")[1], expected)
    assert int((expected != clean).sum()) == round(0.2 * 1437)
    assert torch.equal(noisy.data("test")[1], task.data("test")[1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([blobs()], r"needs the training data as a pair \(inputs, labels\) .* got a list of"),
        ((X, Y), r"one whole number for each example, got labels of shape \(3, 1\)"),
        ((X, torch.zeros(3).long()), r"at least two classes to choose from, got one"),
    ],
)
def test_data_that_have_no_classes_are_refused(data, message):
    task = SimpleNamespace(model=line().model, data=lambda split: data, loss=nn.MSELoss())
    with pytest.raises(DataError, match=message):
        train(task, label_noise=0.5)
