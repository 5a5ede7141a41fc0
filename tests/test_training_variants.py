"""SAM's variants and m-SAM in a training, against the same loops written out with torch alone."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from landscape.errors import DataError, InvalidArgumentError
from landscape.training import SAM_FAMILY, train
from landscape.training.data import cut_batch

LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
CLASS_WEIGHTS = torch.tensor([0.3, 1.7], dtype=torch.float64)


def make_data(n: int = 25):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return x, (x.sum(1) > 0.3).long()


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def make_task(**changes):
    names = {"model": make_model, "data": lambda split: make_data(), "loss": nn.CrossEntropyLoss()}
    return SimpleNamespace(**{**names, **changes})


def quick(task=None, **settings):
    usual = {"epochs": 2, "batch_size": 8, "lr": LR, "schedule": "constant"}
    return train(task or make_task(), **{**usual, **settings})


def bits(trained) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in trained.model.state_dict().items()}


# -- by hand -------------------------------------------------------------------------------------


def gradient(model, weights, x, y, loss):
    """The gradient at given weights, as one vector."""
    leaves = [w.clone().requires_grad_() for w in weights]
    named = dict(zip(dict(model.named_parameters()), leaves, strict=True))
    value = loss(torch.func.functional_call(model, named, x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves)])


def split_up(vector, like):
    sizes = [w.numel() for w in like]
    return [v.reshape(w.shape) for v, w in zip(vector.split(sizes), like, strict=True)]


def scale(weights, adaptive, eta):
    """T of ASAM as one vector: |w|, or the norm of a row of a matrix."""
    parts = []
    for w in weights:
        by_row = adaptive == "filterwise" and w.ndim == 2
        size = (w**2).sum(1, keepdim=True).sqrt().expand(w.shape) if by_row else w.abs()
        parts.append((size + eta).flatten())
    return torch.cat(parts)


def perturbed_gradient(model, weights, x, y, loss, how):
    name, steps = how["optimizer"], how.get("ascent_steps", 1)
    rho = how.get("rho", {"asam": 0.5}.get(name, 0.2)) / steps
    t = scale(weights, how.get("adaptive", "elementwise"), how.get("eta", 0.01))
    there, at_w = list(weights), None
    for _ in range(steps):
        g = gradient(model, there, x, y, loss)
        at_w = g if at_w is None else at_w
        if name == "asam":
            epsilon = rho * t**2 * g / (t * g).norm()
        else:
            epsilon = rho * g if name == "usam" else rho * g / g.norm()
        there = [w + e for w, e in zip(there, split_up(epsilon, weights), strict=True)]
    top = gradient(model, there, x, y, loss)
    if name == "gsam":
        along = (at_w @ top) / (top @ top) * top
        top = top - how.get("gsam_alpha", 0.4) * (at_w - along)
    return top


def cut(rows, size):
    if size is None:
        return [rows]
    pieces = list(torch.split(rows, size))
    # A micro-batch of one example joins the one before it, unless one is what was asked for.
    if size > 1 and len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


def by_hand(how, *, loss=nn.functional.cross_entropy, weigh=len, seed=4):
    """Two epochs, with the order of the data and the descent as `train` documents them."""
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(3)]
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        model = make_model()
    x, y = make_data()
    order = torch.Generator().manual_seed(seeds[1])
    weights = [p.detach().clone() for p in model.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    for _ in range(2):
        shuffled = torch.randperm(25, generator=order)
        for rows in (shuffled[:8], shuffled[8:16], shuffled[16:]):
            total, weight = 0.0, 0.0
            for part in cut(rows, how.get("micro_batch")):
                w = float(weigh(y[part]))
                total += w * perturbed_gradient(model, weights, x[part], y[part], loss, how)
                weight += w
            for i, g in enumerate(split_up(total / weight, weights)):
                velocity[i] = MOMENTUM * velocity[i] + g + DECAY * weights[i]
                weights[i] = weights[i] - LR * velocity[i]
    return torch.cat([w.flatten() for w in weights])


def flat(trained):
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


HOW = [
    {"optimizer": "sam"},
    {"optimizer": "asam"},
    {"optimizer": "asam", "adaptive": "filterwise", "eta": 0.2, "rho": 0.1},
    {"optimizer": "gsam"},
    {"optimizer": "gsam", "gsam_alpha": 0.1, "rho": 0.5},
    {"optimizer": "usam"},
    {"optimizer": "sam", "micro_batch": 1},
    {"optimizer": "sam", "micro_batch": 4},
    {"optimizer": "sam", "ascent_steps": 2},
    {"optimizer": "asam", "ascent_steps": 2, "micro_batch": 3},
    {"optimizer": "gsam", "ascent_steps": 3, "micro_batch": 5},
    {"optimizer": "usam", "micro_batch": 1, "ascent_steps": 2},
]


@pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(map(str, how.values())))
def test_each_variant_is_its_loop_written_out(how):
    got, expected = flat(quick(seed=4, **how)), by_hand(how)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    # The variants are far enough apart for this to tell one from another.
    plain = by_hand({"optimizer": "sam", "rho": 0.0})
    assert (expected - plain).norm() > 1e-3


@pytest.mark.parametrize("optimizer", ["sam", "usam"])
def test_micro_batches_weigh_what_the_loss_divides_by(optimizer):
    how = {"optimizer": optimizer, "micro_batch": 3}
    loss = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)
    got = flat(quick(make_task(loss=loss), seed=4, **how))
    expected = by_hand(how, loss=loss, weigh=lambda y: CLASS_WEIGHTS[y].sum())
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    assert (expected - by_hand(how, loss=loss)).norm() > 1e-3


def ignoring():
    x, y = make_data()
    return x, torch.where(torch.arange(25) % 3 == 0, -100, y)


def pair(model, batch):
    terms = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    weight = 1.0 + batch[0][:, 0] ** 2
    return (weight * terms).sum(), weight.sum()


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)},
        {"loss": nn.CrossEntropyLoss(reduction="sum")},
        {"data": lambda split: ignoring()},
        {"loss": None, "batch_loss": pair},
    ],
    ids=["mean", "class weights", "sum", "ignored", "pair"],
)
def test_without_perturbation_micro_batches_do_not_matter(changes, size):
    settings = {"lr": 0.01, "seed": 1}
    whole = quick(make_task(**changes), **settings)
    cut_up = quick(make_task(**changes), optimizer="sam", rho=0.0, micro_batch=size, **settings)
    torch.testing.assert_close(flat(cut_up), flat(whole), rtol=1e-10, atol=1e-12)
    losses = [[epoch.train_loss for epoch in t.log] for t in (cut_up, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@pytest.mark.parametrize("optimizer", SAM_FAMILY)
def test_one_micro_batch_is_the_batch_bit_for_bit(optimizer):
    def model():
        return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, 2))

    task = make_task(model=model, data=lambda split: make_data(24))
    whole = quick(task, optimizer=optimizer)
    for size in (8, 100):
        assert bits(quick(task, optimizer=optimizer, micro_batch=size)) == bits(whole)
    assert bits(quick(task, optimizer=optimizer, micro_batch=4)) != bits(whole)


@pytest.mark.parametrize("base", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("optimizer", SAM_FAMILY)
def test_with_rho_zero_each_is_the_base_optimizer_bit_for_bit(optimizer, base):
    def model():
        body = (nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, 2))
        return nn.Sequential(*body)

    plain = quick(make_task(model=model), optimizer=base)
    got = quick(make_task(model=model), optimizer=optimizer, base=base, rho=0.0, ascent_steps=2)
    assert bits(got) == bits(plain)
    assert [epoch.train_loss for epoch in got.log] == [epoch.train_loss for epoch in plain.log]


def test_weighing_the_micro_batches_leaves_statistics_and_random_numbers_alone():
    # A summed loss is not weighed by a pass of its own; ε does not see the factor of 8, and a
    # learning rate 8 times smaller makes up for it in the step.
    def model():
        body = (nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, 2))
        return nn.Sequential(*body).double()

    settings = {"optimizer": "sam", "micro_batch": 4, "momentum": 0.0, "weight_decay": 0.0}
    names = {"model": model, "data": lambda split: make_data(24)}
    mean = quick(make_task(**names), lr=0.08, **settings)
    summed = make_task(**names, loss=nn.CrossEntropyLoss(reduction="sum"))
    states = [t.model.state_dict() for t in (mean, quick(summed, lr=0.01, **settings))]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert mean.model[1].num_batches_tracked == 2 * 3 * 2


def test_a_batch_whose_targets_are_all_ignored_is_no_harm():
    x, y = make_data(24)
    batches = [(x[:8], y[:8]), (x[8:16], torch.full((8,), -100)), (x[16:], y[16:])]
    task = make_task(data=lambda split: batches)
    cut_up = quick(task, optimizer="sam", rho=0.0, micro_batch=3)
    torch.testing.assert_close(flat(cut_up), flat(quick(task)), rtol=1e-10, atol=1e-12)
    assert quick(task, optimizer="usam", micro_batch=3).log[-1].train_loss > 0


def test_the_train_loss_is_that_at_w_and_micro_batches_are_one_gradient_together():
    x, y = make_data(10)
    task = make_task(data=lambda split: [(x[:6], y[:6]), (x[6:], y[6:])])
    loss = nn.CrossEntropyLoss()(quick(task, epochs=0).model(x), y).item()
    for how in HOW:
        trained = quick(task, lr=0.0, epochs=1, **how)
        assert trained.log[0].train_loss == pytest.approx(loss, rel=1e-12)
        assert trained.gradients == 2 * (1 + how.get("ascent_steps", 1))


def test_batches_of_any_nesting_are_cut():
    x, y = make_data(24)

    def nested():
        rows = torch.arange(24).split(8)
        return [{"inputs": [x[r], (None, x[r])], "labels": y[r]} for r in rows]

    def batch_loss(model, batch):
        first, (nothing, second) = batch["inputs"]
        assert nothing is None
        return nn.functional.cross_entropy(model((first + second) / 2), batch["labels"])

    settings = {"optimizer": "gsam", "micro_batch": 3}
    got = quick(
        make_task(loss=None, batch_loss=batch_loss, data=lambda split: nested()), **settings
    )
    pairs = [(x[r], y[r]) for r in torch.arange(24).split(8)]
    plain = quick(make_task(data=lambda split: pairs), **settings)
    torch.testing.assert_close(flat(got), flat(plain), rtol=1e-9, atol=1e-11)


# -- cutting -------------------------------------------------------------------------------------

Named = namedtuple("Named", "x y")


@given(n=st.integers(1, 30), size=st.integers(1, 35))
def test_a_batch_is_the_sum_of_its_micro_batches(n, size):
    x = torch.arange(2.0 * n).reshape(n, 2)
    batch = {"a": (x, [None, x[:, 0]]), "b": Named(x + 1, torch.arange(n))}
    parts = cut_batch(batch, size)
    assert torch.equal(torch.cat([part["a"][0] for part in parts]), x)
    assert torch.equal(torch.cat([part["a"][1][1] for part in parts]), x[:, 0])
    assert torch.equal(torch.cat([part["b"].y for part in parts]), torch.arange(n))
    assert {type(part["b"]) for part in parts} == {Named}
    assert {part["a"][1][0] for part in parts} == {None}
    lengths = [len(part["b"].x) for part in parts]
    assert lengths[:-1] == [size] * (len(lengths) - 1)
    assert 0 < lengths[-1] <= size + (size > 1 and n > 1)
    if size > 1 and n > 1:
        assert lengths[-1] > 1


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(4, 2), torch.zeros(3)), r"got a tuple of \(a float32 tensor"),
        ((torch.zeros(4, 2), torch.tensor(1)), r"got a tuple of .*batch_axis"),
        ((torch.zeros(0, 2), torch.zeros(0)), r"got a tuple of \(a float32 tensor of shape \(0, 2"),
        (SimpleNamespace(x=1), r"got SimpleNamespace; leave what belongs .* leave micro_batch out"),
        (torch.zeros(4, 4).to_sparse(), r"parts all have one row for each example"),
    ],
)
def test_what_cannot_be_cut_is_refused(batch, message):
    with pytest.raises(DataError, match=message):
        cut_batch(batch, 2)


def test_a_training_on_batches_that_cannot_be_cut_says_so():
    x, y = make_data(6)
    task = make_task(
        data=lambda split: [(x, y, x[:2])],
        examples=lambda batch: len(batch[0]),
        loss=None,
        batch_loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    )
    with pytest.raises(DataError, match=r"got a tuple of .*or leave micro_batch out"):
        quick(task, optimizer="sam", micro_batch=2)
    quick(task, optimizer="sam")


def with_batch_norm():
    return nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.BatchNorm1d(5)), nn.Linear(5, 2))


class Frozen(nn.Sequential):
    """Keeps its BatchNorm in eval mode, as fine-tuning does."""

    def train(self, mode: bool = True):
        super().train(mode)
        self[1].eval()
        return self


def test_batch_norm_with_single_examples_is_refused_before_training():
    def batch_loss(model, batch):
        raise AssertionError

    task = make_task(model=with_batch_norm, loss=None, batch_loss=batch_loss)
    with pytest.raises(InvalidArgumentError, match=r"layer '1\.0'\).*micro_batch of at least 2"):
        quick(task, optimizer="sam", micro_batch=1)
    # 25 = 8 + 8 + 9, and 9 = 2 + 2 + 2 + 3: no example is ever alone.
    quick(make_task(model=with_batch_norm), optimizer="sam", micro_batch=2, epochs=1)
    frozen = make_task(model=lambda: Frozen(*with_batch_norm()))
    quick(frozen, optimizer="sam", micro_batch=1, epochs=1)


# -- settings ------------------------------------------------------------------------------------

ALWAYS = ["optimizer", "epochs", "lr", "momentum", "weight_decay", "rho"]
ALWAYS = [*ALWAYS, "batch_size", "schedule", "seed", "device"]


@pytest.mark.parametrize(
    ("how", "more"),
    [
        ({"optimizer": "sgd"}, {"rho": None}),
        ({"optimizer": "sam"}, {"rho": 0.2}),
        ({"optimizer": "sam", "eta": -1.0, "gsam_alpha": -1.0, "adaptive": "?"}, {"rho": 0.2}),
        ({"optimizer": "adam", "rho": -1.0, "p": 0.0, "base": "?"}, {"rho": None}),
        ({"optimizer": "usam"}, {"rho": 0.2}),
        ({"optimizer": "asam"}, {"rho": 0.5, "adaptive": "elementwise", "eta": 0.01}),
        ({"optimizer": "asam", "rho": 0.1, "base": "adam"}, {"rho": 0.1, "base": "adam"}),
        ({"optimizer": "gsam"}, {"rho": 0.2, "gsam_alpha": 0.4}),
        ({"optimizer": "sam", "ascent_steps": 2}, {"ascent_steps": 2}),
        ({"optimizer": "sam", "micro_batch": 4}, {"rho": 0.2, "micro_batch": 4}),
        ({"optimizer": "sam", "rho": 0.1, "p": 3.0}, {"rho": 0.1, "p": 3.0}),
    ],
)
def test_what_applies_is_recorded(how, more):
    got = quick(epochs=0, **how).settings
    assert {key: got[key] for key in more} == more
    own = {"asam": {"adaptive", "eta"}, "gsam": {"gsam_alpha"}}.get(how["optimizer"], set())
    assert list(got)[:10] == ALWAYS
    assert set(got) == {*ALWAYS, *more, *own}
    assert json.loads(json.dumps(got)) == got


@pytest.mark.parametrize("optimizer", SAM_FAMILY)
def test_the_norm_is_that_of_the_family(optimizer):
    if optimizer == "usam":
        with pytest.raises(InvalidArgumentError, match=r"usam is defined for p = 2 only, got p = "):
            quick(optimizer=optimizer, p=math.inf)
        return
    # The maximiser of gᵀε over |ε| ≤ ρT in every coordinate is ρT sign(g).
    settings = {"optimizer": optimizer, "gsam_alpha": 0.0, "rho": 0.25, "p": math.inf}
    once = {"epochs": 1, "batch_size": 25, "momentum": 0.0, "weight_decay": 0.0}
    model = quick(epochs=0).model
    x, y = make_data()
    loss = nn.functional.cross_entropy
    weights = [p.detach() for p in model.parameters()]
    g = gradient(model, weights, x, y, loss)
    t = scale(weights, "elementwise", 0.01) if optimizer == "asam" else torch.ones_like(g)
    moved = split_up(flat(quick(epochs=0)) + 0.25 * t * g.sign(), weights)
    expected = flat(quick(epochs=0)) - LR * gradient(model, moved, x, y, loss)
    torch.testing.assert_close(flat(quick(**settings, **once)), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "saam"}, r"unknown optimizer 'saam' \(nearest: .*sam.*; known: sgd, adam"),
        ({"optimizer": "usam", "rho": -0.1}, r"rho must .* at least 0, got -0.1; 0 is the optim"),
        ({"optimizer": "gsam", "rho": math.nan}, r"rho must be a finite number .* got nan"),
        ({"optimizer": "asam", "rho": math.inf}, r"rho must be a finite number .* got inf"),
        ({"optimizer": "asam", "eta": -0.1}, r"eta must .* at least 0, got -0.1; 0.01 is usual"),
        ({"optimizer": "asam", "eta": math.nan}, r"eta must be a finite number"),
        ({"optimizer": "asam", "adaptive": "filter"}, r"'filter' \(nearest: filterwise\); known"),
        ({"optimizer": "asam", "adaptive": "none"}, r"unknown adaptive.* known: elementwise, filt"),
        (
            {"optimizer": "gsam", "gsam_alpha": -1},
            r"gsam_alpha must .*got -1; 0.4 is usual .* 0 is",
        ),
        ({"optimizer": "gsam", "gsam_alpha": math.inf}, r"gsam_alpha must be a finite number"),
        ({"optimizer": "sam", "p": 1.0}, r"rho has no default for p = 1; give it: for n weights"),
        ({"optimizer": "asam", "p": math.inf}, r"rho has no default for p = inf; .* 0.5 n\^\(1/p"),
        ({"optimizer": "sam", "ascent_steps": 0}, r"ascent_steps must .* at least 1, got 0; 1 is"),
        ({"optimizer": "sam", "ascent_steps": 1.5}, r"ascent_steps must be a whole number"),
        (
            {"optimizer": "sam", "micro_batch": 0},
            r"micro_batch must .*at least 1, got 0; None, the",
        ),
        ({"optimizer": "sgd", "micro_batch": 0}, r"micro_batch must .*at least 1, got 0"),
        (
            {"optimizer": "sgd", "micro_batch": 4},
            r"micro_batch is a setting of SAM, got micro_batch=4 with the optimizer sgd; leave it "
            r"out, or take one of sam, asam, gsam, usam",
        ),
        ({"optimizer": "adamw", "ascent_steps": 2}, r"got ascent_steps=2 with the optimizer adamw"),
        ({"optimizer": "gsam", "base": "gsam"}, r"unknown base optimizer 'gsam'.*known: sgd, adam"),
        ({"epochs": -1}, r"epochs must .* at least 0, got -1; 0 gives the initial weights"),
        ({"label_noise": 1.01}, r"from 0 to 1, got 1.01; 0.2 replaces every fifth label"),
        (
            {"epochs": 0, "save_every": 2, "checkpoint": "net.pt"},
            r"save_every=2 needs epochs after which to save, got epochs=0; leave save_every out",
        ),
    ],
)
def test_settings_out_of_range_are_refused(setting, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match=message):
        quick(**setting)
    assert not list(tmp_path.iterdir())


# -- the command ---------------------------------------------------------------------------------

USE = ("train", "--problem", "task.py", "--epochs", "2", "--quiet")


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("--optimizer asam", {"optimizer": "asam"}),
        (
            "--optimizer asam --adaptive filterwise --eta 0.1 --rho 0.3 --base adam",
            {"optimizer": "asam", "adaptive": "filterwise", "eta": 0.1, "rho": 0.3, "base": "adam"},
        ),
        ("--optimizer gsam --gsam-alpha 0.2", {"optimizer": "gsam", "gsam_alpha": 0.2}),
        (
            "--optimizer usam --ascent-steps 2 --micro-batch 16",
            {"optimizer": "usam", "ascent_steps": 2, "micro_batch": 16},
        ),
    ],
)
def test_the_options_are_the_arguments(words, settings, here, run):
    from landscape.problem import load_task

    ran = run(*USE, *words.split(), "-o", "net.pt", "--json")
    assert ran.code == 0, ran.err
    expected = train(load_task("task.py"), epochs=2, **settings)
    assert json.loads(ran.out)["settings"] == expected.settings
    state = torch.load(here / "net.pt")["state_dict"]
    assert all(torch.equal(state[k], v) for k, v in expected.model.state_dict().items())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--optimizer saam", 2, "'--optimizer': unknown optimizer 'saam' (nearest: "),
        ("--optimizer gsam --gsam-alpha -1", 2, "gsam_alpha must be a finite number"),
        ("--optimizer asam --eta nan", 2, "eta must be a finite number of at least 0, got nan"),
        ("--optimizer sam --rho nan", 2, "rho must be a finite number of at least 0, got nan"),
        ("--optimizer sam --ascent-steps 0", 2, "ascent_steps must be a whole number"),
        ("--optimizer sam --micro-batch 0", 2, "micro_batch must be a whole number"),
        ("--micro-batch 4", 2, "--micro-batch is read by sam, asam, gsam, usam, not by sgd: leave"),
        ("--optimizer adam --rho 0.2", 2, "--rho is read by sam, asam, gsam, usam, not by adam"),
        ("--optimizer adam --momentum 0.9", 2, "--momentum is read by sgd, not by adam: leave it"),
        ("--optimizer sam --eta 0.1", 2, "--eta is read by asam, not by sam around sgd"),
        ("--optimizer asam --gsam-alpha 1", 2, "--gsam-alpha is read by gsam, not by asam around"),
        (
            "--optimizer sam --base adamw --momentum 0.5",
            *(2, "--momentum is read by sgd, not by sam around adamw: leave it out"),
        ),
        ("--optimizer sam --p inf", 2, "rho has no default for p = inf; give it"),
        ("--epochs -1", 2, "epochs must be a whole number of at least 0, got -1; 0 gives"),
        ("--epochs 0 --save-every 3", 2, "save_every=3 needs epochs after which to save"),
        ("--label-noise 2", 2, "a number from 0 to 1, got 2.0"),
        ("--problem digitz", 1, "unknown problem 'digitz' (nearest: digits)"),
    ],
)
def test_bad_options_are_refused_in_words(words, code, message, here, run):
    ran = run(*USE, *words.split(), "-o", "net.pt")
    assert ran.code == code
    assert message in ran.err
    assert not list(here.glob("net*"))


def test_other_settings_than_those_of_the_state_are_named(here, run):
    from landscape.problem import load_task

    train(load_task("task.py"), epochs=2, optimizer="asam", state="net.pt.state")
    words = ("--optimizer", "asam", "--eta", "0.1", "--micro-batch", "8", "-o", "net.pt")
    ran = run(*USE, *words)
    assert ran.code == 1
    assert "eta was 0.01 and is 0.1" in ran.err
    assert "micro_batch was the default and is 8" in ran.err
    assert "--restart" in ran.err
    assert not (here / "net.pt").exists()
    assert run(*USE, *words, "--restart").code == 0
