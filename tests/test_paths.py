"""Paths between checkpoints: closed forms, the barrier, trained curves, and how they are kept."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import samples
import torch
from cases import case_named
from oracles import Quadratic, model_at, quadratic_problem, spectrum
from torch import nn
from torch.func import functional_call

from landscape.errors import CheckpointError, InvalidArgumentError, NonFiniteError, NonFiniteWarning
from landscape.evaluate import Evaluator
from landscape.loss import evaluation
from landscape.problem import Problem
from landscape.results import LossPath
from landscape.study import Study
from landscape.surface import _mode_connectivity as connecting
from landscape.surface._curves import Curve
from landscape.surface._path import path

N = 6


# -- helpers -------------------------------------------------------------------------------------


def bowl(values=(-3.0, -1.0, 0.5, 1.0, 2.0, 4.0), seed: int = 0) -> Quadratic:
    gradient = np.random.default_rng(seed).standard_normal(N)
    return Quadratic(spectrum(np.array(values), seed), gradient, 1.5)


def ends_of(q: Quadratic, seed: int = 3, **options) -> tuple[Problem, Problem, np.ndarray]:
    """The quadratic at its origin and at another point, which is returned too."""
    problem = quadratic_problem(q, n_examples=5, batch_size=2, **options)
    w = np.random.default_rng(seed).standard_normal(N)
    state = problem.model.state_dict() | {"w": torch.from_numpy(w)}
    return problem, problem.at(state, name="end"), w


def moved(problem: Problem, seed: int = 0) -> Problem:
    """The same problem at other weights, and with other buffers if there are any."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: value * (1 + 0.5 * torch.rand(value.shape, generator=generator).to(value))
        if value.is_floating_point()
        else value
        for name, value in problem.model.state_dict().items()
    }
    return problem.at(state, name="moved")


def at_weights(problem: Problem, vector: torch.Tensor) -> Problem:
    named = problem.space.unflatten(vector)
    return problem.at(problem.model.state_dict() | {k: v.clone() for k, v in named.items()})


def permuted_pair() -> tuple[Problem, Problem]:
    """A trained two-layer ReLU network, and the same function with its hidden units permuted."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) * x[:, 1:2] + x[:, 2:3].abs()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    order = torch.roll(torch.arange(10), 3)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.copy_(model[0].weight[order])
        twin[0].bias.copy_(model[0].bias[order])
        twin[2].weight.copy_(model[2].weight[:, order])
    problem = Problem(model, nn.MSELoss(), (x, y), batch_size=15, name="one")
    return problem, problem.at(twin, name="two")


def normalised(batch_size: int = 24, mode: str = "eval") -> tuple[Problem, Problem]:
    """A network with BatchNorm at two sets of weights, with statistics of its own at each."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    y = torch.arange(24) % 3
    models = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(
                nn.Linear(3, 8),
                nn.BatchNorm1d(8, momentum=0.9),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(8, 3),
            ).double()
            model.train()(x + seed)
        models.append(model.eval())
    loss = nn.CrossEntropyLoss()
    problem = Problem(models[0], loss, (x, y), batch_size=batch_size, mode=mode, name="one")
    return problem, problem.at(models[1], name="two")


# -- known functions -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_quadratic_is_exact_along_a_line(seed):
    q = bowl(seed=seed)
    problem, end, w = ends_of(q, seed + 10)
    found = path(problem, end, n=11)
    exact = np.array([q.constant + q.rise(t * w) for t in np.linspace(0, 1, 11)])
    assert np.abs(found.loss - exact).max() <= 1e-12 * np.abs(exact).max()
    assert found.t == pytest.approx(np.linspace(0, 1, 11), rel=1e-15)
    assert found.distance == found.length == pytest.approx(np.linalg.norm(w), rel=1e-14)
    assert found.end_losses == pytest.approx((exact[0], exact[-1]), rel=1e-13)
    assert (found.cost.forwards, found.cost.gradients) == (11 + 2, 0)
    assert (found.name, found.end, found.bends.shape) == ("quadratic", "end", (0, N))


def test_the_barrier_of_a_quadratic_is_an_eighth_of_its_curvature_along_the_line():
    """L(t) − chord = −½ t (1 − t) dᵀHd, whatever the gradient."""
    q = bowl((-3.0, -2.0, -1.0, -1.0, -0.5, -0.2))
    problem, end, w = ends_of(q)
    found = path(problem, end, n=9)
    curvature = -float(w @ q.hessian @ w)
    assert found.barrier == pytest.approx(curvature / 8, rel=1e-12)
    assert found.barrier_t == 0.5
    losses = [q.constant + q.rise(t * w) for t in found.t]
    assert found.above_ends == pytest.approx(max(losses) - max(losses[0], losses[-1]), rel=1e-12)
    assert found.above_mean == pytest.approx(max(losses) - (losses[0] + losses[-1]) / 2, rel=1e-12)
    (told,) = [text for label, text in found.rows() if label == "barrier"]
    assert told.startswith(f"{curvature / 8:.4g} at t = 0.5 ")


def test_a_convex_loss_has_no_barrier():
    problem, end, _ = ends_of(bowl((0.1, 0.5, 1.0, 1.0, 2.0, 4.0)))
    found = path(problem, end, n=9)
    assert found.barrier == 0.0
    assert "0: no point lies above" in dict(found.rows())["barrier"]


@pytest.mark.parametrize(("curve", "bends"), [("bezier", 1), ("bezier", 3), ("polygon", 2)])
def test_a_curve_that_is_not_trained_is_the_line(curve, bends):
    problem, end, _ = ends_of(bowl())
    line = path(problem, end, n=7)
    found = path(problem, end, n=7, curve=curve, bends=bends, epochs=0)
    assert found.loss == pytest.approx(line.loss, rel=1e-12)
    assert found.bends.shape == (bends, N)
    assert found.length == pytest.approx(line.length, rel=1e-12)
    assert found.training_losses.size == 0


def test_the_bend_of_a_quadratic_bowl_comes_to_its_closed_form():
    """L = ½ wᵀHw: with c = 2t(1 − t), E[c (c θ + (1 − t)² w₀ + t² w₁)] = 0, θ = −¾ (w₀ + w₁)."""
    hessian = spectrum(np.array([0.7, 0.8, 0.9, 1.0, 1.1, 1.2]), 0)
    q = Quadratic(hessian, np.zeros(N))
    base = quadratic_problem(q)
    w = np.random.default_rng(0).standard_normal((2, N))
    state = base.model.state_dict()
    start, end = (base.at(state | {"w": torch.from_numpy(v)}) for v in w)
    found = path(start, end, curve="bezier", epochs=1500, lr=0.05, n=3)
    exact = -0.75 * w.sum(axis=0)
    assert np.linalg.norm(found.bends[0] - exact) <= 0.02 * np.linalg.norm(exact)
    expected = [0.25 * (w[0] + w[1]) + 0.5 * found.bends[0]]
    assert found.loss[1] == pytest.approx(0.5 * expected[0] @ hessian @ expected[0], rel=1e-11)
    assert found.cost.gradients == 1500


def test_the_steps_are_those_of_sgd_with_momentum_on_a_cosine_and_weight_decay_of_the_point():
    """Loss constant along the path: each step is that of ½ λ ‖w(t)‖², written out by hand."""
    base = quadratic_problem(Quadratic(np.zeros((N, N)), np.zeros(N), 2.0))
    w = np.random.default_rng(0).standard_normal((2, N))
    state = base.model.state_dict()
    start, end = (base.at(state | {"w": torch.from_numpy(v)}) for v in w)
    options = {"curve": "bezier", "epochs": 20, "lr": 0.2, "n": 3, "seed": 4}
    found = path(start, end, weight_decay=0.7, **options)
    bend, velocity = w.mean(axis=0), np.zeros(N)
    for epoch in range(20):
        key = np.random.SeedSequence((4, epoch + 1)).generate_state(1)
        t = float(
            torch.rand(1, dtype=torch.float64, generator=torch.Generator().manual_seed(int(key[0])))
        )
        point = (1 - t) ** 2 * w[0] + 2 * t * (1 - t) * bend + t**2 * w[1]
        velocity = 0.9 * velocity + 0.7 * 2 * t * (1 - t) * point
        bend = bend - 0.2 * (1 + math.cos(math.pi * epoch / 20)) / 2 * velocity
    assert found.bends[0] == pytest.approx(bend, rel=1e-12)
    assert found.training_losses == pytest.approx(np.full(20, 2.0))  # the loss alone
    assert path(start, end, **options).bends[0] == pytest.approx(w.mean(axis=0), rel=1e-13)


# -- a barrier that a curve goes around ----------------------------------------------------------


def test_a_curve_goes_around_the_barrier_between_two_permutations_of_one_network():
    problem, end = permuted_pair()
    line = path(problem, end, n=21)
    assert line.loss[0] == pytest.approx(line.loss[-1], rel=1e-12)
    assert line.barrier > 20 * line.loss[0]
    options = {"bends": 1, "epochs": 150, "lr": 0.02, "n": 21}
    for curve, degree_two in (("bezier", True), ("polygon", False)):
        found = path(problem, end, curve=curve, **options)
        assert found.barrier < 0.2 * line.barrier
        assert found.length > found.distance == pytest.approx(line.distance)
        assert found.training_losses[-1] < 0.2 * found.training_losses[0]
        recomputed = losses_of_record(problem, end, found, degree_two)
        assert found.loss == pytest.approx(recomputed, rel=1e-11)
        chord = (1 - found.t) * recomputed[0] + found.t * recomputed[-1]
        assert found.barrier == pytest.approx((recomputed - chord).max(), rel=1e-10)
        assert found.barrier_t == found.t[int((recomputed - chord).argmax())]


def losses_of_record(problem: Problem, end: Problem, found: LossPath, bezier: bool) -> np.ndarray:
    """The losses by torch alone, from the bends that are in the record."""
    x, y = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    w0, w1 = (m.weights for m in (problem, end))
    bend = torch.from_numpy(found.bends[0])
    losses = []
    for t in found.t.tolist():
        if bezier:
            w = (1 - t) ** 2 * w0 + 2 * t * (1 - t) * bend + t**2 * w1
        else:
            w = (1 - 2 * t) * w0 + 2 * t * bend if t <= 0.5 else bend + (2 * t - 1) * (w1 - bend)
        named, at = {}, 0
        for name, p in problem.model.named_parameters():
            named[name] = w[at : at + p.numel()].view(p.shape)
            at += p.numel()
        losses.append(float(nn.functional.mse_loss(functional_call(problem.model, named, (x,)), y)))
    return np.array(losses)


@pytest.mark.parametrize(("kind", "n_bends"), [("bezier", 1), ("bezier", 3), ("polygon", 2)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_gradient_by_the_bends_is_that_of_finite_differences(kind, n_bends, weight_decay):
    problem = case_named("mlp").build()
    start, end = problem.weights, moved(problem).weights
    rng = torch.Generator().manual_seed(0)
    bends = torch.randn(n_bends, len(start), generator=rng, dtype=torch.float64)
    (batch,) = problem.batches
    with Evaluator(problem) as evaluator:

        def objective(inner: torch.Tensor) -> tuple[float, torch.Tensor]:
            curve = Curve(kind, start, end, inner.clone().requires_grad_(True))
            options = {"index": 0, "t": 0.4, "weight_decay": weight_decay}
            value, gradient = connecting.objective(evaluator, curve, batch, **options)
            square = float(curve.at(0.4).detach().square().sum())
            return value + 0.5 * weight_decay * square, gradient

        gradient = objective(bends)[1]
        for seed in range(5):
            step = torch.randn(bends.shape, generator=rng.manual_seed(seed), dtype=torch.float64)
            h = 1e-5
            slope = (objective(bends + h * step)[0] - objective(bends - h * step)[0]) / (2 * h)
            assert float((gradient * step).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-9)


# -- the ends, batchings, points apart from the others -------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "per_example", "regression"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("curve", ["linear", "bezier", "polygon"])
def test_the_ends_are_the_checkpoints_bit_for_bit(name, dtype, curve):
    problem = case_named(name).build(5, dtype=dtype)
    end = moved(problem)
    found = path(problem, end, curve=curve, epochs=1, lr=1e-3, n=3)
    assert found.loss[0] == evaluation(problem).loss == found.end_losses[0]
    assert found.loss[-1] == evaluation(end).loss == found.end_losses[1]


def test_any_batching_gives_the_same_losses():
    whole = case_named("mlp").build()
    reference = path(whole, moved(whole), n=7)
    for size in (1, 4, 6):
        problem = case_named("mlp").build(size)
        found = path(problem, moved(problem), n=7)
        assert found.loss == pytest.approx(reference.loss, rel=1e-12)
        assert found.loss_se == pytest.approx(reference.loss_se, rel=1e-10)


def test_points_are_those_asked_for_and_the_ends():
    problem = case_named("mlp").build()
    end = moved(problem)
    found = path(problem, end, t=[0.25, 0.5])
    assert found.t.tolist() == [0.0, 0.25, 0.5, 1.0]
    assert found.loss.tobytes() == path(problem, end, t=[0, 0.25, 0.5, 1]).loss.tobytes()
    assert found.loss[1:3].tolist() == path(problem, end, n=5).loss[1:3].tolist()
    assert path(problem, end).t.size == 51


def test_an_end_may_be_a_problem_a_module_a_state_or_a_file(tmp_path):
    problem = case_named("mlp").build()
    end = moved(problem)
    torch.save(model_at(end).state_dict(), tmp_path / "end.pt")
    expected = path(problem, end, n=3).loss.tobytes()
    for other in (model_at(end), model_at(end).state_dict(), tmp_path / "end.pt"):
        assert path(problem, other, n=3).loss.tobytes() == expected


# -- statistics of BatchNorm ---------------------------------------------------------------------


def test_recalibrated_statistics_are_those_of_a_plain_pass_in_train_mode():
    problem, end = normalised()
    found = path(problem, end, t=[0.3, 0.5])
    assert found.statistics == "recalibrated"
    (batch,) = problem.batches
    x, y = batch
    for i, t in enumerate(found.t.tolist()):
        model = copy.deepcopy(problem.model)
        with torch.no_grad():
            for p, q in zip(model.parameters(), model_at(end).parameters(), strict=True):
                p.copy_((1 - t) * p + t * q)
            norm = model[1]
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
            model(x)  # dropout is in eval mode
            expected = nn.functional.cross_entropy(model.eval()(x), y)
        assert found.loss[i] == pytest.approx(float(expected), rel=1e-12)
    assert found.cost.forwards == 2 * 4 + 2


def test_frozen_and_interpolated_statistics_at_the_ends():
    problem, end = normalised(batch_size=7)
    plain = evaluation(problem).loss, evaluation(end).loss
    frozen = path(problem, end, n=3, statistics="frozen")
    assert frozen.loss[0] == plain[0]
    assert frozen.loss[-1] != pytest.approx(plain[1], rel=1e-3)
    state = model_at(end).state_dict() | {
        k: v for k, v in problem.model.state_dict().items() if "running" in k
    }
    assert frozen.loss[-1] == evaluation(problem.at(state)).loss
    interpolated = path(problem, end, n=3, statistics="interpolated")
    assert interpolated.loss[0] == plain[0]
    assert interpolated.loss[-1] == pytest.approx(plain[1], rel=1e-13)
    halfway = {
        k: (v + model_at(end).state_dict()[k]) / 2 if v.is_floating_point() else v
        for k, v in problem.model.state_dict().items()
    }
    expected = evaluation(problem.at(halfway)).loss
    assert interpolated.loss[1] == pytest.approx(expected, rel=1e-13)
    for found in (frozen, interpolated):
        assert found.end_losses == plain
        assert dict(found.rows())["BatchNorm statistics"]


def test_a_curve_is_trained_with_the_statistics_of_the_batch_and_without_dropout():
    """One step from the line, against the same step by torch alone."""
    problem, end = normalised()
    found = path(problem, end, curve="bezier", epochs=1, lr=0.1, seed=5, n=3)
    key = np.random.SeedSequence((5, 1)).generate_state(1)
    generator = torch.Generator().manual_seed(int(key[0]))
    t = float(torch.rand(1, dtype=torch.float64, generator=generator))
    model = copy.deepcopy(problem.model)
    model[1].train()
    w0, w1 = (
        torch.cat([p.detach().reshape(-1) for p in m.parameters()]) for m in (model, model_at(end))
    )
    bend = ((w0 + w1) / 2).requires_grad_(True)
    w = (1 - t) ** 2 * w0 + 2 * t * (1 - t) * bend + t**2 * w1
    pieces = torch.split(w, [p.numel() for p in model.parameters()])
    named = {k: v.view(p.shape) for v, (k, p) in zip(pieces, model.named_parameters(), strict=True)}
    (x, y), *_ = problem.batches
    loss = nn.functional.cross_entropy(functional_call(model, named, (x,)), y)
    (gradient,) = torch.autograd.grad(loss, bend)
    assert found.bends[0] == pytest.approx((bend - 0.1 * gradient).detach().numpy(), rel=1e-11)
    assert found.training_losses == pytest.approx([loss.item()], rel=1e-12)


def test_train_mode_uses_the_statistics_of_the_batch_and_gathers_none():
    problem, end = normalised(mode="train")
    found = path(problem, end, n=3)
    assert found.statistics == "batch"
    assert found.loss[0] == evaluation(problem).loss
    for statistics in ("recalibrated", "frozen", "interpolated"):
        message = f"statistics='{statistics}' cannot be combined with train mode"
        with pytest.raises(InvalidArgumentError, match=message):
            path(problem, end, statistics=statistics)


# -- held-out data -------------------------------------------------------------------------------


def test_held_out_data_are_measured_at_the_same_points_with_the_statistics_of_the_training_data():
    problem, end = normalised()
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    metrics = {
        "top": lambda output, target: (output.argmax(1) == target).double(),
        "loss": lambda output, target: output.sum(1),  # not taken for the loss itself
    }
    data = (x, torch.arange(10) % 3)
    test = Problem(
        copy.deepcopy(model_at(end)), nn.CrossEntropyLoss(), data, metrics=metrics, split="test"
    )
    found = path(problem, end, n=3, held_out=test)
    assert found.loss.tobytes() == path(problem, end, n=3).loss.tobytes()
    assert sorted(found.metrics) == ["test loss", "test loss_se", "test metric loss", "test top"]
    w = Curve("linear", problem.weights, end.weights, torch.empty(0, problem.space.n)).at(0.5)
    model = model_at(at_weights(problem, w))
    with torch.no_grad():
        norm = model[1]
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
        (batch,) = problem.batches
        model(batch[0])
    there = evaluation(test.at(model.eval()))
    assert found.held_out_loss[1] == pytest.approx(there.loss, rel=1e-12)
    assert found.held_out_se[1] == pytest.approx(there.loss_se, rel=1e-10)
    assert found.metrics["test top"][1] == there.metrics["top"]
    assert found.metrics["test metric loss"][1] == pytest.approx(there.metrics["loss"], rel=1e-11)
    values = found.held_out_loss
    assert found.held_out_barrier == max(0.0, values[1] - (values[0] + values[2]) / 2)
    assert "barrier, test data" in dict(found.rows())
    assert found.cost.forwards == 3 * 3 + 2
    assert math.isnan(path(problem, end, n=3).held_out_barrier)


def test_held_out_data_need_the_same_parameters():
    problem, another = normalised()
    state = dict(problem.model.state_dict())
    state |= {k: v for k, v in model_at(another).state_dict().items() if k.startswith("0.")}
    end, some = problem.at(state, name="end"), problem.only("0")
    with pytest.raises(InvalidArgumentError, match="differ in parameters that are not explored"):
        path(some, another)
    with pytest.raises(InvalidArgumentError, match=r"choose the same ones for both with \.only"):
        path(some, end, held_out=problem)
    found = path(some, end, n=3, held_out=problem.only("0"))
    assert found.held_out_loss == pytest.approx(found.loss, rel=1e-13)


# -- what is kept, and what stays as it was -------------------------------------------------------


def test_the_model_and_the_generators_stay_as_they_were():
    problem, end = normalised(batch_size=7)
    digests = problem.checkpoint_hash, end.checkpoint_hash
    modes = [part.training for part in problem.model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for curve in ("linear", "bezier", "polygon"):
        path(problem, end, curve=curve, epochs=2, n=3)
    assert (problem.checkpoint_hash, end.checkpoint_hash) == digests
    assert [part.training for part in problem.model.modules()] == modes
    assert all(p.grad is None for p in problem.model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_the_same_call_gives_the_same_bits_and_another_seed_another_curve():
    problem, end = normalised(batch_size=7)
    options = {"curve": "bezier", "bends": 2, "epochs": 3, "n": 4}
    first, again = (path(problem, end, **options) for _ in range(2))
    assert first.bends.tobytes() == again.bends.tobytes()
    assert first.loss.tobytes() == again.loss.tobytes()
    assert path(problem, end, seed=1, **options).bends.tobytes() != first.bends.tobytes()


def test_data_that_are_read_anew_on_every_pass_come_in_their_own_order(monkeypatch):
    seen = []
    terms = Evaluator.terms

    def watched(self, vector, batch, index):
        seen.append(index)
        return terms(self, vector, batch, index)

    monkeypatch.setattr(Evaluator, "terms", watched)
    options = {"curve": "bezier", "epochs": 3, "n": 3}
    found = []
    for kept in (True, False):
        problem, end = normalised(batch_size=24)
        if not kept:
            problem.batches._kept = None
        found.append(path(problem, end, **options))
    assert found[0].bends.tobytes() == found[1].bends.tobytes()
    problem, end = normalised(batch_size=5)
    evaluation(problem)  # the first batch is looked at once, before anything is measured
    seen.clear()
    path(problem, end, **options)
    epochs = [seen[i : i + 5] for i in (1, 6, 11)]  # after the signature
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert epochs[0] != epochs[1]
    problem.batches._kept = None
    seen.clear()
    path(problem, end, **options)
    assert seen == [0, *[0, 1, 2, 3, 4] * 3]


@pytest.mark.parametrize("curve", ["linear", "bezier"])
def test_a_study_answers_the_second_time(tmp_path, no_passes, curve):
    problem, end = normalised(batch_size=7)
    with Study(tmp_path / "landscape.db") as study:
        first = path(problem, end, curve=curve, epochs=2, n=4, study=study)
        no_passes()
        renamed = end.named("another name")
        again = path(problem, renamed, curve=curve, epochs=2, n=4, study=study)
        assert (first.end, again.end) == ("two", "another name")
        for name in ("t", "loss", "loss_se", "bends", "training_losses"):
            assert getattr(again, name).tobytes() == getattr(first, name).tobytes()
            assert getattr(again, name).shape == getattr(first, name).shape
        assert again.rows()[1:] == first.rows()[1:]
        for other in ({"n": 5}, {"statistics": "frozen"}, {"seed": 1}):
            with pytest.raises(TypeError):
                path(problem, end, study=study, **({"curve": curve, "epochs": 2, "n": 4} | other))


def test_a_path_that_was_begun_goes_on_where_it_stopped(tmp_path, monkeypatch):
    problem, end = normalised(batch_size=7)
    options = {"curve": "polygon", "epochs": 2, "n": 6}
    whole = path(problem, end, **options)
    loss, calls = Evaluator.loss, []

    def stops(self, vector=None, *, batches=None, **options):
        calls.extend([vector] if batches is None else [])
        if len(calls) == 2 + 4:
            raise KeyboardInterrupt
        return loss(self, vector, batches=batches, **options)

    with Study(tmp_path / "landscape.db") as study:
        monkeypatch.setattr(Evaluator, "loss", stops)
        with pytest.raises(KeyboardInterrupt):
            path(problem, end, study=study, **options)
        (entry,) = study.entries("path")
        assert (entry.status, entry.points_done, entry.points_total) == ("partial", 3, 6)
        monkeypatch.setattr(Evaluator, "loss", loss)
        found = path(problem, end, study=study, **options)
        assert found.loss.tobytes() == whole.loss.tobytes()
        assert found.bends.tobytes() == whole.bends.tobytes()
        assert (found.cost.forwards, found.cost.gradients) == (2 * 3 + 2, 0)
        finer = path(problem, end, study=study, **(options | {"n": 11}))
        assert finer.cost.gradients == 0  # the curve is trained already
        assert finer.bends.tobytes() == whole.bends.tobytes()


@pytest.mark.parametrize("stopped_in", [1, 3])
def test_a_training_that_was_killed_loses_one_epoch_and_gives_the_same_bits(
    tmp_path, monkeypatch, stopped_in
):
    problem, end = normalised(batch_size=7)
    options = {"curve": "bezier", "bends": 2, "epochs": 5, "n": 3}
    whole = path(problem, end, **options)
    epoch, begun = connecting._one_epoch, []

    def stops(*args):
        number = args[-2]
        begun.append(number)
        if number == stopped_in:
            epoch(*args)  # its work is lost
            raise KeyboardInterrupt
        return epoch(*args)

    with Study(tmp_path / "landscape.db") as study:
        monkeypatch.setattr(connecting, "_one_epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            path(problem, end, study=study, **options)
        kept = study.entries("curve")
        assert len(kept) == (stopped_in > 1)
        if kept:
            assert f"{stopped_in - 1} of 5" in dict(study.load(kept[0].id).rows())["epochs"]
        monkeypatch.setattr(connecting, "_one_epoch", epoch)
        found = path(problem, end, study=study, **options)
    assert found.bends.tobytes() == whole.bends.tobytes()
    assert found.training_losses.tobytes() == whole.training_losses.tobytes()
    assert found.cost.gradients == 5 - (stopped_in - 1)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curve": "spline"}, "unknown curve 'spline'"),
        ({"curve": "bezier", "bends": 0}, "a bezier curve needs at least 1 bend, got 0"),
        ({"curve": "polygon", "bends": 1.5}, "bends must be a whole number .*, got 1.5"),
        ({"n": 2}, "a path needs at least 3 points, its ends and one between, got n = 2"),
        ({"n": 2.5}, "n must be a whole number of at least 0, got 2.5"),
        ({"t": [0.5, 0.2]}, "t must ascend from one coordinate to the next"),
        ({"t": [0.5, 0.5]}, "t must ascend from one coordinate to the next"),
        ({"t": [-0.1, 0.5]}, "t must be a list of coordinates from 0 to 1, got .*-0.1"),
        ({"t": [0.5, 1.1]}, "t must be a list of coordinates from 0 to 1, got .*1.1"),
        ({"t": [0.5, math.nan]}, "t must be a list of coordinates from 0 to 1, got .*nan"),
        ({"t": []}, "t must be a list of coordinates from 0 to 1"),
        ({"t": [[0.0, 1.0]]}, r"got an array of shape \(1, 2\)"),
        ({"t": ["a"]}, "t must be a list of coordinates from 0 to 1"),
        ({"epochs": -1}, "epochs must be a whole number of at least 0, got -1"),
        ({"lr": -0.1}, "lr must be a finite number of at least 0, got -0.1"),
        ({"weight_decay": math.nan}, "weight_decay must be a finite number"),
        ({"statistics": "none"}, "unknown statistics 'none'"),
        (
            {"statistics": "interpolated", "curve": "bezier"},
            "fits a linear path only: the bends of a bezier curve have none",
        ),
    ],
)
def test_refuses_arguments_that_are_none(options, message):
    problem, end = normalised()
    with pytest.raises(InvalidArgumentError, match=message):
        path(problem, end, **({"curve": "bezier"} | options if "epochs" in options else options))


def test_refuses_identical_ends_and_other_architectures():
    problem, _ = normalised()
    with pytest.raises(InvalidArgumentError, match="one and copy, have the same weights"):
        path(problem, problem.named("copy"))
    with pytest.raises(CheckpointError):
        path(problem, nn.Linear(3, 3))


def test_a_loss_that_is_not_finite_at_an_end_or_in_the_training_is_an_error():
    problem, end = normalised()
    huge = {k: 1e300 * v for k, v in problem.model.state_dict().items() if v.ndim == 2}
    far = problem.at(problem.model.state_dict() | huge)
    with pytest.raises(NonFiniteError, match="nothing can be measured from there"):
        path(problem, far)
    message = r"in epoch \d+ is .*; try a smaller learning rate than 1e\+200"
    with pytest.raises(NonFiniteError, match=message):
        path(problem, end, curve="bezier", lr=1e200, epochs=5)


def test_losses_that_are_not_finite_are_kept_and_the_barrier_is_not_known():
    data = (torch.ones(1, 1, dtype=torch.float64),)
    model = nn.Linear(1, 1, bias=False).double()

    def loss(model, batch):
        w = model.weight[0, 0]
        return torch.log(w.abs() - 0.5), 1

    problem = Problem(model, batch_loss=loss, data=data)
    start, end = (problem.at({"weight": torch.full((1, 1), w)}) for w in (-1.0, 1.0))
    with pytest.warns(NonFiniteWarning, match="not finite at 3 of 5 points") as caught:
        found = path(start, end, n=5)
    assert caught[0].filename == __file__
    assert np.isnan(found.loss[2])
    assert found.loss[1] == -math.inf
    assert math.isnan(found.barrier)
    assert math.isnan(found.barrier_t)
    assert "not known: the loss is not finite at 3 of 5" in dict(found.rows())["barrier"]


# -- the command ---------------------------------------------------------------------------------


def test_the_command_measures_stores_and_says_the_barrier(here: Path, run) -> None:
    args = ("path", "a.pt", "b.pt", "--problem", "task.py", "--points", "5")
    ran = run(*args, "--held-out", "test")
    assert ran.code == 0, ran.err
    assert "→ b.pt, straight line" in ran.out
    assert "barrier, test" in ran.out
    shown = run("show", "1").out
    for words in (
        "a.pt → b.pt, straight line, 5 points",
        "barrier, test data",
        "12 forward passes",
    ):
        assert words in shown
    (record,) = json.loads(run(*args, "--json").out)
    assert record["t"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert record["loss"][0] == pytest.approx(record["end_losses"][0])
    curve = ("--curve", "bezier", "--bends", "2", "--epochs", "2", "--lr", "0.1")
    (trained,) = json.loads(run(*args, *curve, "--json").out)
    assert np.shape(trained["bends"])[0] == 2
    assert trained["cost"]["gradients"] == 2
    with Study("landscape.db", readonly=True) as study:
        assert sorted(e.kind for e in study.entries()) == ["curve", "path", "path", "path"]


def test_the_command_prices_and_stores_nothing(here: Path, run) -> None:
    args = ("path", "a.pt", "b.pt", "--problem", "task.py", "--points", "5", "--dry-run")
    assert "7 forward passes" in run(*args).out
    told = run(*args, "--held-out", "test", "--curve", "polygon", "--epochs", "9").out
    assert "12 forward passes, 9 gradients" in told
    assert not Path("landscape.db").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("a.pt",), "give two, got 1: a.pt"),
        (("a.pt", "b.pt", "c.pt"), "give two, got 3"),
        (("a.pt", "a.pt"), "a checkpoint is named twice"),
        (("a.pt", "b.pt", "--points", "2"), "2 is not in the range x>=3"),
        (("a.pt", "b.pt", "--epochs", "2"), "--epochs is of a trained curve"),
        (("a.pt", "b.pt", "--curve", "arc"), "unknown curve 'arc'; known: linear, bezier, polygon"),
        (("a.pt", "b.pt", "--curve", "bezier", "--bends", "0"), "needs at least 1 bend"),
    ],
)
def test_the_command_refuses(here: Path, run, args: tuple[str, ...], words: str) -> None:
    ran = run("path", *args, "--problem", "task.py")
    assert ran.code == 2
    assert words in ran.err


def test_paths_of_a_study_are_drawn_by_their_numbers(here: Path, run) -> None:
    args = ("path", "a.pt", "b.pt", "--problem", "task.py", "--points", "5")
    run(*args)
    run(*args, "--curve", "polygon", "--epochs", "1")
    entries = json.loads(run("list", "--kind", "path", "--json").out)
    numbers = [word for entry in entries for word in ("--id", str(entry["id"]))]
    assert run("plot", *numbers, "-o", "paths.png").code == 0
    assert Path("paths.png").stat().st_size > 1000
    refused = run("plot", *numbers, "-o", "paths.html")
    assert refused.code == 2
    assert "path has no interactive picture; write it as .png, .pdf or .svg" in refused.err


def test_plot_takes_the_newest_of_each_shape(tmp_path):
    """A curve does not hide the straight line between the same checkpoints."""
    from landscape.cli.chosen import every_path

    with Study(tmp_path / "landscape.db") as study:
        kept = [samples.path(curve=curve) for curve in ("linear", "bezier")]
        for record in (kept[0], *kept):
            study.save(record)
        found = every_path(study)
    assert [record.curve for _, record in found] == ["linear", "bezier"]
    assert {name for name, _ in found} == {"model.pt → end.pt"}
