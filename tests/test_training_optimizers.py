"""The other optimizers, and label noise, in a training."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from landscape.errors import CheckpointError, DataError, InvalidArgumentError
from landscape.problem import load_task
from landscape.training import TrainingSettings, noisy_labels, train, with_label_noise
from landscape.training.data import label_seed, labels_of

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
        ({"optimizer": "sam", "p": 0.5}, r"p, the norm .* at least 1 \(inf is allowed\), got 0.5"),
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
    fit = with_label_noise(task, 0.2, seed=3, split="fit")
    wrong = fit.data("fit")[1] != task.data("fit")[1]
    assert int(wrong.sum()) == round(0.2 * 1150)
    assert torch.equal(fit.data("train")[1], clean)


@pytest.mark.parametrize(
    "name", ["epochs", "seed", "lr", "rho", "batch_size", "label_noise", "p", "micro_batch"]
)
def test_true_is_no_number(name):
    with pytest.raises(InvalidArgumentError, match="got True"):
        train(line(), **{"optimizer": "sam", "epochs": 1, name: True})


class Examples(Dataset):
    """A data set that counts how often each example is looked at."""

    def __init__(self, examples, **attributes) -> None:
        self.examples = examples
        self.looks = [0] * len(examples)
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index):
        self.looks[index] += 1
        return self.examples[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*blobs(), strict=True))


def examples(kind=int):
    return [(a, kind(b)) for a, b in zip(*blobs(), strict=True)]


def as_datasets():
    x, y = blobs()
    labels = y.tolist()
    permuted = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    back = permuted.argsort().tolist()
    return {
        "tensors": TensorDataset(x, y),
        "targets": Examples(examples(), targets=labels),
        "labels": Examples(examples(), labels=np.array(labels)),
        "tensor labels": Examples(examples(torch.clone), targets=y),
        "none": Examples(examples()),
        "numpy": Examples(examples(np.int64)),
        "lists": Examples([list(pair) for pair in examples()]),
        "subset": Subset(TensorDataset(x[permuted], y[permuted]), back),
        "targets before a transform": Examples(examples(), targets=[1 - k for k in labels]),
        "targets that are names": Examples(examples(), targets=["a", "b"] * 20),
        "targets of another length": Examples(examples(), targets=labels[:-1]),
    }


@pytest.mark.parametrize("name", list(as_datasets()))
def test_a_data_set_gets_the_noise_of_its_tensors(name):
    def trained(data, **settings):
        task = SimpleNamespace(
            model=lambda: nn.Linear(2, 2), data=lambda split: data, loss=nn.CrossEntropyLoss()
        )
        return train(task, seed=3, epochs=2, batch_size=16, **settings).model.weight

    data = as_datasets()[name]
    assert torch.equal(trained(data, label_noise=0.25), trained(blobs(), label_noise=0.25))
    assert torch.equal(trained(data), trained(blobs()))
    assert not torch.equal(trained(data), trained(data, label_noise=0.25))


def test_labels_are_read_once_and_from_where_they_are_kept():
    looks = {}
    for name in ("targets", "labels", "none", "targets before a transform"):
        data = as_datasets()[name]
        assert torch.equal(labels_of(data), blobs()[1])
        looks[name] = sum(data.looks)
    # One look at each class where they are kept; where the first of them is wrong, that and all.
    assert looks == {"targets": 2, "labels": 2, "none": 40, "targets before a transform": 41}


def test_reading_labels_draws_no_random_numbers_of_the_training():
    class Augmented(Examples):
        def __getitem__(self, index):
            a, b = super().__getitem__(index)
            return a + 0.1 * torch.randn(2), b

    torch.manual_seed(0)
    before = torch.get_rng_state()
    labels_of(Augmented(examples()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_noisy_task_of_a_data_set_has_the_labels_of_the_training():
    x, y = blobs()
    task = dataclasses.replace(
        load_task("digits-mlp"), data=lambda split: Examples(examples(), targets=y.tolist())
    )
    noisy = with_label_noise(task, 0.25, seed=3).data("train")
    assert len(noisy) == 40
    assert torch.equal(torch.stack([a for a, _ in noisy]), x)
    expected = noisy_labels(y, 0.25, seed=label_seed(3))
    assert torch.equal(torch.stack([b for _, b in noisy]), expected)
    assert isinstance(with_label_noise(task, 0.25, seed=3).data("test"), Examples)


def test_a_state_knows_the_labels_of_a_data_set(tmp_path):
    def trained(data):
        task = SimpleNamespace(
            model=lambda: nn.Linear(2, 2), data=lambda split: data, loss=nn.CrossEntropyLoss()
        )
        return train(task, epochs=1, label_noise=0.25, state=tmp_path / "run.state")

    trained(Examples(examples()))
    trained(Examples(examples()))
    with pytest.raises(CheckpointError, match="not as before: the training data"):
        trained(Examples([(a, 1 - b) for a, b in examples()]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([blobs()], r"needs the training data as a pair \(inputs, labels\) .* got a list of"),
        (
            DataLoader(TensorDataset(*blobs())),
            r"a map-style Dataset of such pairs, got DataLoader; .*\(of a DataLoader its \.dataset",
        ),
        (Stream(), r"map-style Dataset of such pairs, got Stream; let data\(split\) return one"),
        (Examples([(1.0, 0, 0)]), r"examples are pairs \(input, label\), got a tuple of \(float"),
        (Examples([(1.0, 0), (1.0, "cat")]), r"got str as the label of example 1; .*number the cl"),
        (Examples([(1.0, 0.5)]), r"one whole number for each example, got float as the label of"),
        (Examples([(1.0, torch.zeros(2))]), r"got a float32 tensor of shape \(2,\) as the label"),
        (Examples([(1.0, 3), (2.0, 3)]), r"at least two classes to choose from, got one"),
        ((X, Y), r"one whole number for each example, got labels of shape \(3, 1\)"),
        ((X, torch.zeros(3).long()), r"at least two classes to choose from, got one"),
    ],
)
def test_data_that_have_no_classes_are_refused(data, message):
    task = SimpleNamespace(model=line().model, data=lambda split: data, loss=nn.MSELoss())
    with pytest.raises(DataError, match=message):
        train(task, label_noise=0.5)


def test_settings_are_given_as_one_object_or_as_keywords():
    settings = TrainingSettings(optimizer="sam", epochs=1, lr=0.1)
    one, other = (
        train(line(), settings=settings, rho=0.3),
        train(line(), rho=0.3, optimizer="sam", epochs=1, lr=0.1),
    )
    assert one.settings == other.settings
    assert torch.equal(one.model.weight, other.model.weight)
    with pytest.raises(TypeError, match="rhoo"):
        train(line(), rhoo=0.3)
