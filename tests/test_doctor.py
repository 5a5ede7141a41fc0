"""Each check fires where it should, does not where it should not, and its numbers are right."""

from __future__ import annotations

import copy
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from torch import nn

from landscape.cli.output import print_line
from landscape.doctor import PRICE, diagnose, setup
from landscape.doctor._rescaling import find_rescalings, rescaled
from landscape.doctor.context import DiagnosticContext
from landscape.doctor.invariance import Moved, _verdict
from landscape.errors import InvalidArgumentError
from landscape.evaluate import Evaluator
from landscape.problem import Problem
from landscape.results import Diagnosis
from landscape.study import Study

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

N = 120
NAMES = [
    "loss", "determinism", "batching", "mode", "BatchNorm", "derivatives",
    "gradient", "lowest curvature",
    "saturation", "invariance", "data", "held-out data", "weights", "regulariser",
]  # fmt: skip


def normal(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


def classifier(*, factor=1.0, activation=nn.ReLU, batch_norm=False, dropout=0.0, **options):
    def make():
        middle = [nn.BatchNorm1d(6)] if batch_norm else []
        middle += [activation(), *([nn.Dropout(dropout)] if dropout else [])]
        return nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 3))

    model = seeded(make)
    with torch.no_grad():
        model[-1].weight.mul_(factor)
        model[-1].bias.mul_(factor)
    x = normal(N, 4)
    y = model(x).argmax(dim=1) if factor > 1 else (x @ normal(4, 3, seed=2)).argmax(dim=1)
    return Problem(model, nn.CrossEntropyLoss(), (x, y), batch_size=50, **options)


def diagnosed(problem, **options) -> Diagnosis:
    return diagnose(problem, progress=False, **options)


class Bowl(nn.Module):
    """½ wᵀ diag(d) w + 1 at a point w, the same for every example."""

    def __init__(self, diagonal, at):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(at, dtype=torch.float64))
        self.register_buffer("d", torch.tensor(diagonal, dtype=torch.float64))

    def forward(self, x):
        return 1 + 0.5 * (self.d * self.w.square()).sum() + 0.0 * x[:, 0]


def bowl(diagonal, at=(0.0, 0.0, 0.0)):
    return Problem(
        Bowl(diagonal, at),
        lambda output, target: output,
        (normal(N, 1), torch.zeros(N)),
    )


def line(weight, *, n=16, noise=0.5):
    """Least squares of one weight, y = 2x + noise; returns the problem, x and y."""
    x = normal(n, 1)
    y = 2 * x + noise * normal(n, 1, seed=3)
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(weight if weight is not None else float((x * y).sum() / (x * x).sum()))
    return Problem(model, nn.MSELoss(), (x, y)), x, y


# The whole


def test_all_checks_in_order_each_with_a_verdict_within_the_price():
    found = diagnosed(classifier())
    assert [check.name for check in found.checks] == NAMES
    assert sum(found.count.values()) == len(NAMES)
    assert found.count["not applicable"] == 2  # no BatchNorm, no held-out data
    for check in found.checks:
        assert bool(check.advice) == (check.verdict in {"note", "warning"}), check
    cost = found.cost
    assert cost.forwards <= PRICE.forwards
    assert cost.gradients <= PRICE.gradients
    assert 16 < cost.hvps <= PRICE.hvps


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_model_is_left_as_it_was(batch_norm):
    problem = classifier(batch_norm=batch_norm)
    problem.model.train()
    before = copy.deepcopy(problem.model.state_dict())
    state = torch.get_rng_state()
    diagnosed(problem)
    assert problem.model.training
    assert all(torch.equal(before[k], v) for k, v in problem.model.state_dict().items())
    assert all(p.grad is None for p in problem.model.parameters())
    assert not any(part._forward_hooks for part in problem.model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_twice_and_kept_in_the_study(tmp_path, no_passes):
    problem = classifier(batch_norm=True)
    first, second = diagnosed(problem), diagnosed(problem)
    assert first.checks == second.checks
    assert np.array_equal(first.after, second.after)
    with Study(tmp_path / "landscape.db") as study:
        kept = diagnosed(problem, study=study)
        no_passes()
        again = diagnosed(problem, study=study)
        assert again.checks == kept.checks == first.checks
        assert np.array_equal(again.before, first.before)
        with pytest.raises(TypeError):
            diagnosed(problem, study=study, seed=1)


def test_a_loss_without_a_finite_second_derivative_leaves_the_other_checks():
    """|w|^1.5 has the slope 0 at w = 0, and an infinite curvature."""
    model = Bowl([1.0, 1.0, 1.0], (0.0, 0.0, 0.0))
    data = normal(N, 1), torch.zeros(N)

    def batch_loss(model, batch):
        return (model.w.abs() ** 1.5).sum() + 1 + 0.0 * batch[0][:, 0]

    found = diagnosed(Problem(model, batch_loss=batch_loss, data=data))
    assert [check.name for check in found.checks] == NAMES
    assert found["lowest curvature"].verdict == "not applicable"
    assert "not finite" in found["lowest curvature"].finding
    assert found["gradient"].verdict == "note"
    assert "no second derivative" in found["gradient"].finding
    assert found["loss"].numbers["loss"] == 1.0
    assert found["regulariser"].verdict == "fine"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_sort_of_problem_can_be_examined(case):
    found = diagnosed(case.build(None if case.depends_on_batches else 5))
    assert [check.name for check in found.checks] == NAMES
    assert found["loss"].numbers["loss"] == pytest.approx(case.dense_loss(), rel=1e-12)
    norm = float(torch.linalg.vector_norm(case.dense_gradient()))
    assert found["gradient"].numbers["norm"] == pytest.approx(norm, rel=1e-10)
    values = torch.linalg.eigvalsh(case.dense_hessian())
    found = found["lowest curvature"].numbers
    scale = float(values.abs().max())
    # Ritz values are inside of the spectrum; the residual says how near to an eigenvalue.
    assert values[0] - 1e-9 * scale <= found["smallest"] <= found["largest"]
    assert found["largest"] <= values[-1] + 1e-9 * scale
    nearest = (values - found["smallest"]).abs().min()
    assert nearest <= found["residual"] + 1e-9 * scale


def test_rows_say_every_verdict_in_words():
    found = diagnosed(classifier())
    rows = found.rows()
    assert rows[0] == ("all checks", ", ".join(found.counted))
    n_each = [int(text.split()[0]) for text in found.counted]
    assert n_each == [n for n in found.count.values() if n]
    assert [label for label, _ in rows if label in NAMES] == NAMES
    text = "\n".join(line for _, line in rows)
    for check in found.checks:
        assert f"{check.verdict}: {check.finding[:20]}" in text
    assert max(len(line) for _, line in rows if not line.startswith("times ")) <= 78
    ratios = [line for _, line in rows if line.startswith("times ")]
    assert len(ratios) == len(found.measures) == 7
    with pytest.raises(KeyError, match="no check 'gradients'; known: loss, determinism"):
        found["gradients"]


# How the problem is evaluated


class Counting(nn.Module):
    """Multiplies its output by 1 + size from the sixth call on."""

    def __init__(self, size):
        super().__init__()
        self.linear, self.size, self.calls = nn.Linear(2, 1), size, 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * (1 + self.size * (self.calls >= 6))


@pytest.mark.parametrize(("size", "verdict"), [(0.0, "fine"), (1e-12, "note"), (0.5, "warning")])
def test_determinism(size, verdict):
    problem = Problem(seeded(lambda: Counting(size)), nn.MSELoss(), (normal(9, 2), normal(9, 1)))
    with Evaluator(problem) as evaluator:  # four calls to check the loss, one for the loss itself
        patient = DiagnosticContext(evaluator, None, 0)
        first = patient.loss.value
        found = setup.determinism(patient)
        second = evaluator.loss().value
    assert found.verdict == verdict
    assert found.numbers["loss_difference"] == abs(second - first)


def test_halves_of_batches_give_the_same_loss_unless_examples_interact():
    fine = diagnosed(classifier(batch_norm=True))["batching"]
    assert fine.verdict == "fine"
    assert fine.numbers["difference"] <= 1e-14
    problem = classifier(batch_norm=True, mode="train")
    found = diagnosed(problem)["batching"]
    assert found.verdict == "warning"
    x, y = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    model = copy.deepcopy(problem.model).train()
    parts = [25, 25, 25, 25, 10, 10]
    losses = [
        F.cross_entropy(model(a), b, reduction="sum")
        for a, b in zip(x.split(parts), y.split(parts), strict=True)
    ]
    assert found.numbers["in_halves"] == pytest.approx(sum(losses).item() / N, rel=1e-12)


def test_batches_of_one_example_cannot_be_cut():
    problem = Problem(nn.Linear(2, 1), nn.MSELoss(), (normal(5, 2), normal(5, 1)), batch_size=1)
    assert diagnosed(problem)["batching"].verdict == "not applicable"


@pytest.mark.parametrize(
    ("mode", "dropout", "verdict"),
    [
        ("eval", 0.5, "fine"),
        ("eval", 0.0, "fine"),
        ("train", 0.0, "note"),
        ("train", 0.5, "warning"),
    ],
)
def test_train_mode_and_active_dropout(mode, dropout, verdict):
    found = diagnosed(classifier(mode=mode, dropout=dropout, batch_norm=True))
    assert found["mode"].verdict == verdict
    assert found["mode"].numbers == {"dropout_layers": float(dropout > 0), "batchnorm_layers": 1.0}
    if mode == "train":
        assert found["BatchNorm"].verdict == found["invariance"].verdict == "not applicable"


def with_statistics(*, shift=0.0, stretch=1.0):
    """One batch, and running statistics that are exact up to a known error in one channel."""
    problem = classifier(batch_norm=True)
    (x, y) = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    model = problem.model
    with torch.no_grad():
        hidden = model[0](x)
        model[1].running_mean.copy_(hidden.mean(dim=0))
        model[1].running_var.copy_(hidden.var(dim=0))
        model[1].running_var[2] = stretch * (model[1].running_var[2] + 1e-5) - 1e-5
        model[1].running_mean[2] -= shift * (model[1].running_var[2] + 1e-5).sqrt()
    return Problem(model, nn.CrossEntropyLoss(), (x, y))


def test_batch_norm_statistics_that_fit_are_fine():
    found = diagnosed(with_statistics())["BatchNorm"]
    assert found.verdict == "fine"
    assert found.numbers["shift 1"] <= 1e-12
    assert found.numbers["stretch 1"] == pytest.approx(1.0, abs=1e-12)
    # The data's own statistics (n − 1) against the batch's (n): not the same loss, but nearly.
    assert found.numbers["loss_recalibrated"] == pytest.approx(found.numbers["loss"], rel=1e-12)


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [({"shift": 3.0}, "shift 1", 3.0), ({"stretch": 9.0}, "stretch 1", 9.0),
     ({"stretch": 1 / 9}, "stretch 1", 9.0)],
)  # fmt: skip
def test_batch_norm_drift_is_measured_in_standard_deviations(error, name, value):
    problem, right = with_statistics(**error), with_statistics()
    found = diagnosed(problem)["BatchNorm"]
    assert found.verdict in {"note", "warning"}
    assert found.numbers[name] == pytest.approx(value, rel=1e-9)
    exact = diagnosed(right)["loss"].numbers["loss"]
    assert found.numbers["loss_recalibrated"] == pytest.approx(exact, rel=1e-10)
    assert found.numbers["loss"] != found.numbers["loss_recalibrated"]


def test_batch_norm_drift_that_changes_the_loss_is_a_warning():
    assert diagnosed(with_statistics(shift=30.0))["BatchNorm"].verdict == "warning"


# Is it a minimum?


def test_at_the_least_squares_solution_there_is_no_slope():
    problem, x, _ = line(None)
    found = diagnosed(problem)["gradient"]
    assert found.verdict == "fine"
    assert found.numbers["norm"] <= 1e-14
    assert found.numbers["fall"] <= 1e-15
    assert found.numbers["quadratic"] == pytest.approx(0.05**2 * float((x * x).mean()), rel=1e-9)


def test_away_from_it_norm_noise_and_fall_are_those_of_closed_form():
    problem, x, y = line(5.0)
    found = diagnosed(problem)["gradient"]
    each = 2 * (5 * x - y) * x  # the gradient of each example; 16 groups of one
    norm, noise = abs(float(each.mean())), float(each.std() / math.sqrt(len(x)))
    assert found.numbers["norm"] == pytest.approx(norm, rel=1e-12)
    assert found.numbers["noise"] == pytest.approx(noise, rel=1e-10)
    assert found.numbers["linear"] == pytest.approx(0.05 * norm, rel=1e-12)
    loss, best = (
        float((w * x - y).square().mean()) for w in (5.0, float((x * y).sum() / (x * x).sum()))
    )
    assert found.numbers["fall"] == pytest.approx(1 - best / loss, rel=1e-9)  # one Newton step
    assert found.verdict == "warning"
    assert "not a minimum" in found.finding


def test_the_noise_of_a_sum_grows_with_the_examples():
    problem, x, y = line(5.0)
    total = Problem(problem.model, nn.MSELoss(reduction="sum"), (x, y))
    mean, whole = (diagnosed(p)["gradient"].numbers["noise"] for p in (problem, total))
    assert whole == pytest.approx(len(x) * mean, rel=1e-10)


def test_a_slight_slope_is_a_note_with_the_radius_where_curvature_takes_over():
    # g = 0.2 along λ = 1: the loss falls from 1.02 to 1, 2 %; ρ g = 0.01 > ρ²/2 = 0.00125.
    found = diagnosed(bowl([1.0, 1.0, 1.0], (0.2, 0.0, 0.0)))["gradient"]
    assert found.verdict == "note"
    assert found.numbers["fall"] == pytest.approx(0.02 / 1.02, rel=1e-9)
    assert "above 0.4 the curvature takes over" in found.advice


@pytest.mark.parametrize(
    ("lowest", "verdict"), [(0.5, "fine"), (-0.02, "fine"), (-0.2, "note"), (-1.0, "warning")]
)
def test_a_saddle_is_found_by_its_lowest_eigenvalue(lowest, verdict):
    found = diagnosed(bowl([4.0, 1.0, lowest]))["lowest curvature"]
    assert found.verdict == verdict
    assert found.numbers["largest"] == pytest.approx(4.0, rel=1e-6)
    assert found.numbers["smallest"] == pytest.approx(lowest, rel=1e-6)
    assert ("saddle" in found.finding) == (verdict == "warning")


def test_a_lowest_eigenvalue_that_is_not_resolved_is_no_evidence():
    # Two hundred eigenvalues side by side: sixteen products cannot find the one below zero.
    diagonal = [*torch.linspace(0.01, 4.0, 200).tolist(), -0.02]
    found = diagnosed(bowl(diagonal, [0.0] * len(diagonal)))["lowest curvature"]
    assert found.verdict == "note"
    assert found.numbers["smallest"] > -0.02
    assert found.numbers["residual"] > 0.04
    assert "a lower one may have been missed" in found.finding
    assert "eigs --both-ends" in found.advice


def test_a_maximum_is_no_minimum():
    assert diagnosed(bowl([-4.0, -2.0, -1.0]))["lowest curvature"].verdict == "warning"


# Outputs


def test_outputs_that_are_sure_of_nothing_do_not_saturate():
    problem = classifier()
    found = diagnosed(problem)["saturation"]
    assert found.verdict == "fine"
    x, y = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    with torch.no_grad():
        logits = problem.model(x)
        p = logits.softmax(dim=1)
    expected = {
        "largest_probability": p.amax(dim=1).mean(),
        "softmax_curvature": (1 - p.square().sum(dim=1)).mean(),
        "learned": (F.cross_entropy(logits, y, reduction="none") < 1e-3).double().mean(),
        "accuracy": (p.argmax(dim=1) == y).double().mean(),
        "logit_norm": (logits - logits.mean(dim=1, keepdim=True)).norm(dim=1).mean(),
    }
    for name, value in expected.items():
        assert found.numbers[name] == pytest.approx(float(value), rel=1e-12), name


def memorising(steps, factor=1.0):
    """A network that has been trained on random labels, its last layer times a factor."""
    x, y = normal(60, 5), torch.randint(3, (60,), generator=torch.Generator().manual_seed(0))
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        model[-1].weight.mul_(factor)
        model[-1].bias.mul_(factor)
    return Problem(model, nn.CrossEntropyLoss(), (x, y))


def test_random_labels_learned_by_heart_saturate():
    early, late = (diagnosed(memorising(steps)) for steps in (30, 200))
    assert early["saturation"].verdict == "fine"
    assert late["saturation"].verdict == "warning"
    assert late["saturation"].numbers["accuracy"] == 1.0
    ours, theirs = (each["saturation"].numbers for each in (early, late))
    # The eigenvalue falls by far more than the rise at a distance: it understates sharpness.
    assert theirs["predicted 0.2"] < 0.1 * ours["predicted 0.2"]
    assert theirs["beyond 0.2"] > 5 * ours["beyond 0.2"]


def test_logits_times_twenty_saturate():
    plain, large = (diagnosed(memorising(40, factor))["saturation"] for factor in (1.0, 20.0))
    assert (plain.verdict, large.verdict) == ("fine", "warning")
    assert large.numbers["logit_norm"] == pytest.approx(20 * plain.numbers["logit_norm"], rel=1e-12)
    assert large.numbers["learned"] > 0.9


def test_the_predicted_rise_is_that_of_gradient_and_curvature():
    """On a quadratic the rise is what gradient and curvature say, to the tolerance of Lanczos."""
    model = seeded(lambda: nn.Linear(4, 2))
    with torch.no_grad():
        model.weight.mul_(1e-3)
        model.bias.zero_()
    problem = Problem(model, nn.CrossEntropyLoss(), (normal(N, 4), torch.arange(N) % 2))
    found = diagnosed(problem)["saturation"].numbers
    assert found["rise 0.05"] == pytest.approx(found["predicted 0.05"], rel=1e-2)


def test_ignored_labels_take_no_part():
    x, y = normal(N, 4), torch.randint(3, (N,), generator=torch.Generator().manual_seed(0))
    y[::2] = -100
    model = seeded(lambda: nn.Linear(4, 3))
    whole = Problem(model, nn.CrossEntropyLoss(), (x, y))
    part = Problem(model, nn.CrossEntropyLoss(), (x[1::2], y[1::2]))
    ours, theirs = (diagnosed(p)["saturation"].numbers for p in (whole, part))
    for name in ("largest_probability", "learned", "accuracy", "logit_norm"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-12)


def test_a_regression_has_no_classes():
    problem, *_ = line(5.0)
    assert diagnosed(problem)["saturation"].verdict == "not applicable"


# Invariance


def tiny(activation=nn.ReLU):
    """Four weights: Lanczos finds all eigenvalues in its few steps."""
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(1, 2, bias=False), activation(), nn.Linear(2, 1, bias=False)
        )
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-0.7]]))
        model[2].weight.copy_(torch.tensor([[0.8, 1.3]]))
    x = normal(N, 1)
    return Problem(model, nn.MSELoss(), (x, x.abs() + 0.3 * x))


def dense(model, problem):
    """Weights, loss as a function of them, gradient and Hessian by torch.func."""
    x, y = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
    names, shapes = zip(*((k, p.shape) for k, p in model.named_parameters()), strict=True)

    def loss(vector):
        parts = vector.split([s.numel() for s in shapes])
        named = {k: p.reshape(s) for k, p, s in zip(names, parts, shapes, strict=True)}
        return F.mse_loss(torch.func.functional_call(model, named, (x,)), y)

    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return w, loss, torch.func.grad(loss)(w), torch.func.hessian(loss)(w)


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_what_moves_and_what_stands_still_agrees_with_dense_hessians(seed):
    problem = tiny()
    found = diagnosed(problem, seed=seed)
    x = torch.cat([batch[0] for batch in problem.batches])[:32]

    def outputs(state):
        with torch.no_grad():
            return torch.func.functional_call(problem.model, dict(state), (x,))

    places = find_rescalings(problem.model, outputs, seed=seed)
    assert found.rescaled == tuple(map(str, places))
    assert len(places) == 1
    changed = copy.deepcopy(problem.model)
    changed.load_state_dict(rescaled(problem.model.state_dict(), places))
    generator = torch.Generator().manual_seed(seed)
    probes = 2.0 * torch.randint(2, (2, 4), generator=generator).double() - 1
    for model, values in ((problem.model, found.before), (changed, found.after)):
        w, loss, g, h = dense(model, problem)
        t = w.abs()
        expected = {
            "largest eigenvalue": torch.linalg.eigvalsh(h)[-1],
            "trace (2 probes)": torch.einsum("pi,ij,pj", probes, h, probes) / 2,
            "one-step sharpness, ρ = 0.05": loss(w + 0.05 * g / g.norm()) - loss(w),
            "largest eigenvalue, elementwise scale": torch.linalg.eigvalsh(t[:, None] * h * t)[-1],
            "one-step adaptive sharpness, ρ = 0.05": loss(w + 0.05 * t**2 * g / (t * g).norm())
            - loss(w),
        }
        measured = dict(zip(found.measures, values, strict=True))
        for name, value in expected.items():
            assert measured[name] == pytest.approx(float(value), rel=1e-3), name
    ratios = dict(zip(found.measures, found.ratios, strict=True))
    for name, ratio in ratios.items():
        if any(word in name for word in ("scale", "adaptive", "filter")):
            assert ratio == pytest.approx(1.0, abs=1e-9), name
    assert found["invariance"].numbers["loss"] == found["invariance"].numbers["loss_rescaled"]
    assert found["invariance"].verdict == "note"
    assert not 0.66 <= ratios["largest eigenvalue"] <= 1.5


def test_filters_before_batch_norm_are_rescaled_with_their_statistics():
    found = diagnosed(with_statistics())
    assert any("filters of 0" in each for each in found.rescaled)
    numbers = found["invariance"].numbers
    assert numbers["loss_rescaled"] == pytest.approx(numbers["loss"], rel=1e-12)
    assert numbers["ratio largest eigenvalue, elementwise scale"] == pytest.approx(1, abs=1e-8)
    assert numbers["ratio largest eigenvalue, filterwise scale"] == pytest.approx(1, abs=1e-8)


def test_nothing_to_rescale():
    found = diagnosed(tiny(nn.Tanh))
    assert found["invariance"].verdict == "not applicable"
    assert found.rescaled == found.measures == ()
    assert not any(text.startswith("times") for _, text in found.rows())


@pytest.mark.parametrize(
    ("loss", "after", "verdict"), [(1.0, 2.0, "fine"), (1.0, 8.0, "note"), (1.1, 2.0, "warning")]
)
def test_the_verdict_on_invariance(loss, after, verdict):
    moved = Moved(rescaled=("a",), measures=("m",), before=np.array([2.0]), after=np.array([after]))
    assert _verdict(1.0, loss, moved).verdict == verdict


# Data and weights


def test_enough_data_are_fine_and_few_are_a_note():
    assert diagnosed(classifier())["data"].verdict == "fine"
    problem, *_ = line(5.0)
    found = diagnosed(problem)["data"]
    assert found.verdict == "note"
    assert (found.numbers["examples"], found.numbers["parameters"]) == (16, 1)


def test_nan_inputs_are_counted_and_the_rest_is_not_applicable():
    x = normal(N, 2)
    x[3, 1], x[7, 0] = math.nan, math.inf
    found = diagnosed(Problem(nn.Linear(2, 1).double(), nn.MSELoss(), (x, normal(N, 1))))
    assert found["data"].verdict == found["loss"].verdict == "warning"
    assert found["data"].numbers["not_finite"] == 2
    assert found["weights"].verdict == "fine"
    for name in ("determinism", "gradient", "lowest curvature", "invariance", "regulariser"):
        assert found[name].verdict == "not applicable"
        assert "nothing can be measured from there" in found[name].finding


def test_constant_inputs():
    problem = Problem(
        nn.Linear(2, 1).double(), nn.MSELoss(), (0.5 * normal(N, 2).sign().square(), normal(N, 1))
    )
    found = diagnosed(problem)["data"]
    assert found.verdict == "warning"
    assert "all inputs are the same number" in found.finding


def test_held_out_data():
    problem, x, _ = line(None, n=200)
    assert diagnosed(problem)["held-out data"].verdict == "not applicable"
    same = Problem(problem.model, nn.MSELoss(), (x, 2 * x + 0.5 * normal(200, 1, seed=9)))
    assert diagnosed(problem, held_out=same)["held-out data"].verdict == "fine"
    y = 2 * x + 3 * normal(200, 1, seed=9)
    worse = Problem(problem.model, nn.MSELoss(), (x, y), split="test")
    found = diagnosed(problem, held_out=worse)["held-out data"]
    assert found.verdict == "note"
    with torch.no_grad():
        expected = float(F.mse_loss(problem.model(x), y))
    assert found.numbers["held_out_loss"] == pytest.approx(expected, rel=1e-12)
    assert "test loss" in found.finding
    with pytest.raises(InvalidArgumentError, match="the held-out problem has other parameters"):
        diagnosed(problem, held_out=classifier())


def test_held_out_data_are_measured_with_the_statistics_of_the_checkpoint():
    problem = with_statistics(stretch=9.0)
    data = list(problem.batches)
    fresh = Problem(copy.deepcopy(problem.model), nn.CrossEntropyLoss(), data, split="test")
    fresh.model[1].reset_running_stats()
    found = diagnosed(problem, held_out=fresh)["held-out data"]
    assert found.numbers["held_out_loss"] == found.numbers["loss"]


def spoiled(change):
    problem = classifier()
    with torch.no_grad():
        change(problem.model)
    return diagnosed(problem)["weights"]


def test_weights_as_they_are_drawn_are_fine():
    found = spoiled(lambda model: None)
    assert found.verdict == "fine"
    model = classifier().model
    gains = [m.weight.square().mean().sqrt().item() for m in (model[0], model[2])]
    expected = [
        gain * math.sqrt(m.in_features) for gain, m in zip(gains, (model[0], model[2]), strict=True)
    ]
    assert found.numbers["gain 0.weight"] == pytest.approx(expected[0], rel=1e-12)
    assert found.numbers["scale_ratio"] == pytest.approx(max(expected) / min(expected), rel=1e-12)


def test_zeros_and_scales_in_the_weights():
    zero = spoiled(lambda model: model[0].weight.zero_())
    assert (zero.verdict, zero.numbers["zero_tensors"]) == ("warning", 1)
    assert "all zero: 0.weight" in zero.finding
    dead = spoiled(lambda model: model[0].weight[1:3].zero_())
    assert (dead.verdict, dead.numbers["zero_filters"]) == ("note", 2)
    assert dead.numbers["zero_weights"] == pytest.approx(8 / 51)
    apart = spoiled(lambda model: model[2].weight.mul_(1000))
    assert apart.verdict == "note"
    plain = spoiled(lambda model: None).numbers["gain 2.weight"]
    gains = [apart.numbers[f"gain {layer}.weight"] for layer in (2, 0)]
    assert apart.numbers["scale_ratio"] == gains[0] / gains[1]
    assert gains[0] == pytest.approx(1000 * plain, rel=1e-12)
    assert "largest: 2.weight" in apart.finding


def test_nan_in_the_weights():
    found = spoiled(lambda model: model[0].weight[0, 0].fill_(math.nan))
    assert found.verdict == "warning"
    assert "NaN or infinity in 0.weight" in found.finding


def test_a_regulariser_that_outweighs_the_loss():
    near, far = bowl([1e-9] * 3, (1.0, 0.0, 0.0)), bowl([1e-9] * 3, (100.0, 0.0, 0.0))
    found = diagnosed(near)["regulariser"]
    assert found.verdict == "fine"
    assert found.numbers["penalty"] == pytest.approx(0.5 * 5e-4, rel=1e-12)
    found = diagnosed(far)["regulariser"]  # ½ · 5e-4 · 10⁴ = 2.5 > 1
    assert found.verdict == "note"
    assert found.numbers["penalty"] == pytest.approx(2.5, rel=1e-12)


# The command line


def test_doctor_prints_a_table_and_keeps_it(here, run, no_passes):
    ran = run("doctor", "a.pt", "b.pt", "--problem", "task.py", "--held-out", "test", "-q")
    assert (ran.code, ran.err) == (0, "")
    for words in ("all checks", "gradient", "what to do: ", "test loss", "Saved in landscape.db"):
        assert words in ran.out
    assert ran.out.count("all checks") == 2
    first, second, *_ = ran.out.splitlines()
    assert re.match(r"a\.pt: \d+ fine, .*warnings?: \w", first)
    assert second.startswith("b.pt: ")
    assert "\x1b[" not in ran.out
    no_passes()
    again = run("doctor", "a.pt", "--problem", "task.py", "--held-out", "test", "-q")
    assert again.code == 0
    assert "1 of 1 recalled" in again.out
    of_a = ran.out[ran.out.index("\na.pt\n") : ran.out.index("\nb.pt\n")]
    assert of_a.rstrip() in again.out


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_verdict_is_coloured_on_a_terminal(monkeypatch, capsys, no_color, coloured):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_line("a.pt: 14 fine", "green")
    out = capsys.readouterr().out
    assert "a.pt: 14 fine" in out
    assert ("\x1b[32m" in out) is coloured


def test_doctor_json_and_dry_run(here, run):
    ran = run("doctor", "a.pt", "--problem", "task.py", "--dry-run")
    assert (ran.code, "nothing measured" in ran.out) == (0, True)
    ran = run("doctor", "a.pt", "--problem", "task.py", "--json", "-q")
    (found,) = json.loads(ran.out)
    assert found["kind"] == "doctor"
    assert [check["name"] for check in found["checks"]] == NAMES
    assert {check["verdict"] for check in found["checks"]} <= {
        "fine", "note", "warning", "not applicable",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("a.pt", "--problem", "task.py", "--held-out", "train"), 2, "name another"),
        (("none.pt", "--problem", "task.py"), 1, "none.pt"),
        (("a.pt",), 2, "Missing option '--problem'"),
    ],
)
def test_doctor_refuses(here, run, args, code, words):
    ran = run("doctor", *args)
    assert ran.code == code
    assert words in ran.err
