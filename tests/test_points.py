"""What is measured at each point of a line or surface besides the loss."""

from __future__ import annotations

import copy
import json
import math
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, case_named
from torch import nn

from landscape import measurement
from landscape.errors import (
    DataError,
    InvalidArgumentError,
    LandscapeError,
    NonFiniteError,
    NonFiniteWarning,
    ToleranceWarning,
)
from landscape.evaluate import Evaluator, Plan, check_variances, recalibrated
from landscape.problem import Problem
from landscape.study import Study
from landscape.surface import (
    given_direction,
    plane_through,
    random_direction,
    random_plane,
)
from landscape.surface._automatic_range import automatic_range
from landscape.surface._surface import line, span, surface

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
X = [-1.0, -0.25, 0.0, 0.5]


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2)]
        model = nn.Sequential(*layers).double()
        for buffer in (model[1].running_mean, model[1].running_var):
            buffer.copy_(torch.rand(5, dtype=torch.float64) + 0.5)
    return model


def examples(seed: int = 0, n: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(n, 3, generator=generator, dtype=torch.float64) + 1
    return x, torch.randint(0, 2, (n,), generator=generator)


def accuracy(output, target):
    return (output.argmax(dim=1) == target).double()


def problem_of(model=None, *, seed: int = 0, batch_size: int = 11, **options) -> Problem:
    return Problem(
        network() if model is None else model,
        nn.CrossEntropyLoss(),
        examples(seed),
        metrics={"accuracy": accuracy},
        batch_size=batch_size,
        **options,
    )


def moved(model: nn.Module, problem: Problem, vector: torch.Tensor) -> nn.Module:
    """A copy of the model with the weights written into it, as nobody here does otherwise."""
    twin = copy.deepcopy(model)
    for name, values in problem.space.unflatten(vector).items():
        twin.get_parameter(name).data.copy_(values)
    return twin.eval()


def plain_losses(model: nn.Module, data) -> torch.Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(data[0]), data[1], reduction="none")


# -- BatchNorm -----------------------------------------------------------------------------------


def relearned(model: nn.Module, batches) -> nn.Module:
    """The statistics as torch gathers them, by one pass in train mode with a cumulative mean."""
    norm = model[1]
    norm.reset_running_stats()
    norm.momentum = None
    norm.train()
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    return model.eval()


def test_recalibrated_statistics_are_those_that_torch_gathers():
    problem = problem_of()
    direction = random_direction(problem, 1)
    found = line(problem, direction, x=X, statistics="recalibrated")
    for x, loss in zip(X, found.loss, strict=True):
        twin = moved(problem.model, problem, direction.at(problem.weights, x))
        expected = plain_losses(relearned(twin, [examples()]), examples()).mean()
        assert loss == pytest.approx(float(expected), rel=1e-12)
    assert found.statistics == "recalibrated"
    assert found.cost.forwards == 1 + 2 * len(X)


def test_recalibrated_statistics_are_pooled_over_uneven_batches():
    """The first layer's inputs do not depend on the batching, so nor do its statistics."""
    whole, cut = (problem_of(batch_size=size) for size in (11, 4))
    with Evaluator(whole) as one, Evaluator(cut) as other:
        vector = one.origin + 0.3
        first, second = recalibrated(one, vector), recalibrated(other, vector)
    assert set(first) == {"1.running_mean", "1.running_var"}
    for name, values in first.items():
        assert values.numpy() == pytest.approx(second[name].numpy(), rel=1e-13)


def test_recalibrating_leaves_the_model_as_it_was():
    problem = problem_of()
    before = copy.deepcopy(problem.model.state_dict())
    surface(problem, n=2, statistics="recalibrated")
    for name, values in problem.model.state_dict().items():
        assert torch.equal(values, before[name])
    assert not problem.model[1]._forward_pre_hooks
    assert problem.model.training


def test_a_model_without_batch_norm_has_nothing_to_recalibrate():
    problem = case_named("mlp").build(5)
    plain, again = (surface(problem, n=3, statistics=s) for s in ("frozen", "recalibrated"))
    assert plain.loss.tobytes() == again.loss.tobytes()


def test_interpolated_statistics_are_those_of_the_checkpoints_at_the_corners():
    problem = problem_of()
    others = [network(seed) for seed in (1, 2)]
    plane = plane_through(problem, *(model.state_dict() for model in others))
    found = surface(problem, plane, x=[0.0, 0.5, 1.0], y=[0.0, 1.0], statistics="interpolated")
    corners = {(0, 0): problem.model, (2, 0): others[0], (0, 1): others[1]}
    for index, model in corners.items():
        expected = plain_losses(model.eval(), examples()).mean()
        assert found.loss[index] == pytest.approx(float(expected), rel=1e-12)
    middle = moved(problem.model, problem, plane.at(problem.weights, 0.5, 1.0))
    own, first, second = (model[1] for model in (problem.model, *others))
    for name in ("running_mean", "running_var"):
        b, b1, b2 = (getattr(norm, name) for norm in (own, first, second))
        getattr(middle[1], name).copy_(b + 0.5 * (b1 - b) + (b2 - b))
    assert found.loss[1, 1] == pytest.approx(float(plain_losses(middle, examples()).mean()))


def test_a_variance_below_zero_is_nan_and_no_other_point():
    problem, other = problem_of(), network(1)
    other[1].running_var.fill_(1e-3)
    third = network(2)
    plane = plane_through(problem, other.state_dict(), third.state_dict())
    options = {"x": [0.0, 1.0, 3.0], "y": [0.0, 0.5], "statistics": "interpolated"}
    with pytest.warns(NonFiniteWarning, match="an interpolated variance falls below zero"):
        found = surface(problem, plane, against=(problem, plane), **options)
    v, v1, v2 = (m[1].running_var.numpy() for m in (problem.model, other, third))
    expected = np.array(
        [[(v + x * (v1 - v) + y * (v2 - v) >= 0).all() for y in found.y] for x in found.x]
    )
    assert expected.any()
    assert not expected.all()
    assert np.isfinite(found.loss).tolist() == expected.tolist()
    assert np.isfinite(found.metrics["accuracy"]).tolist() == expected.tolist()
    with pytest.raises(NonFiniteError, match=r"1\.running_var is -2 at here"):
        check_variances({"1.running_var": torch.tensor([1.0, -2.0])}, "here")


def test_refuses_statistics_that_cannot_be_had():
    problem = problem_of()
    with pytest.raises(InvalidArgumentError, match="lie between checkpoints"):
        surface(problem, n=2, statistics="interpolated")
    with pytest.raises(InvalidArgumentError, match="in train mode BatchNorm uses its batch"):
        surface(problem_of(mode="train"), n=2, statistics="recalibrated")
    with pytest.raises(InvalidArgumentError, match="unknown statistics of BatchNorm 'frosen'"):
        surface(problem, n=2, statistics="frosen")


# -- other data, the regulariser, another checkpoint ---------------------------------------------


@pytest.mark.parametrize("statistics", ["frozen", "recalibrated"])
def test_held_out_data_are_measured_at_the_same_points(statistics):
    problem = problem_of()
    held_out = problem_of(problem.model, seed=5, split="test", batch_size=4)
    direction = random_direction(problem, 1)
    found = line(problem, direction, x=X, held_out=held_out, statistics=statistics)
    assert list(found.metrics) == [
        *("accuracy", "rise_se", "test loss", "test loss_se", "test accuracy")
    ]
    for k, x in enumerate(X):
        twin = moved(problem.model, problem, direction.at(problem.weights, x))
        if statistics == "recalibrated":  # on the data that are measured, not on those held out
            relearned(twin, [examples()])
        losses = plain_losses(twin, examples(5))
        assert found.metrics["test loss"][k] == pytest.approx(float(losses.mean()), rel=1e-12)
        expected = float(losses.std() / math.sqrt(len(losses)))
        assert found.metrics["test loss_se"][k] == pytest.approx(expected, rel=1e-12)
    plain = line(problem, direction, x=X, statistics=statistics)
    assert plain.loss.tobytes() == found.loss.tobytes()


def test_the_penalty_is_kept_apart():
    problem = problem_of()
    plane = random_plane(problem, 3)
    found = surface(problem, plane, x=[0.0, 1.0], y=[-1.0, 0.0, 2.0], weight_decay=0.01)
    assert (
        found.loss.tobytes()
        == surface(problem, plane, x=[0.0, 1.0], y=[-1.0, 0.0, 2.0]).loss.tobytes()
    )
    w, d1, d2 = (v.numpy() for v in (problem.weights, plane.x.vector, plane.y.vector))
    for i, x in enumerate(found.x):
        for j, y in enumerate(found.y):
            expected = 0.005 * np.sum((w + x * d1 + y * d2) ** 2)
            assert found.metrics["penalty"][i, j] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_paired_difference_has_the_error_of_the_differences(reduction):
    models = [network(seed) for seed in (0, 1)]
    loss = nn.CrossEntropyLoss(reduction=reduction)
    ours, theirs = (
        Problem(m, loss, examples(), batch_size=4, name=f"m{k}") for k, m in enumerate(models)
    )
    directions = [random_direction(p, 1) for p in (ours, theirs)]
    found = line(ours, directions[0], x=X, against=(theirs, directions[1]))
    n = 11 if reduction == "sum" else 1
    for k, x in enumerate(X):
        a, b = (
            plain_losses(moved(p.model, p, d.at(p.weights, x)), examples())
            for p, d in zip((ours, theirs), directions, strict=True)
        )
        assert found.metrics["difference"][k] == pytest.approx(n * float((a - b).mean()), rel=1e-11)
        expected = n * float((a - b).std()) / math.sqrt(11)
        assert found.metrics["difference_se"][k] == pytest.approx(expected, rel=1e-11)


def test_a_checkpoint_against_itself_differs_by_nothing():
    problem = problem_of()
    plane = random_plane(problem, 1)
    found = surface(problem, plane, n=3, against=(problem, plane))
    # The engine folds BatchNorm on one side only: other roundings.
    assert np.abs(found.metrics["difference"]).max() <= 1e-13
    assert found.metrics["difference_se"].max() <= 1e-13


def test_refuses_to_pair_different_data_and_another_model():
    problem = problem_of()
    other = problem_of(seed=3)
    with pytest.raises(DataError, match="on different data"):
        surface(problem, n=2, against=(other, random_plane(other)))
    smooth = Problem(network(1), nn.CrossEntropyLoss(label_smoothing=0.3), examples())
    for rival, message in (
        (smooth, "have different losses.*give both the same"),
        (problem_of(network(1), mode="train"), "with mode eval, .* with train: .* same mode"),
        (problem_of(network(1), dtype="float32"), "dtype torch.float64, .* with torch.float32"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            line(problem, x=X, against=(rival, random_direction(rival)))
    with pytest.raises(LandscapeError, match="fit"):
        surface(problem, n=2, held_out=case_named("mlp").build(5))
    with pytest.raises(InvalidArgumentError, match="give both the same dtype"):
        surface(problem, n=2, held_out=problem_of(problem.model, dtype="float32"))
    with pytest.raises(InvalidArgumentError, match="explores"):
        surface(problem, n=2, held_out=problem_of(problem.model).only("4"))


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_refuses_a_weight_decay_that_is_none(value):
    with pytest.raises(InvalidArgumentError, match="weight_decay must be"):
        surface(problem_of(), n=2, weight_decay=value)


def test_each_option_is_a_measurement_of_its_own(tmp_path):
    problem, held_out = problem_of(), problem_of(seed=5, split="test")
    plane = random_plane(problem)
    options = [
        {},
        {"statistics": "recalibrated"},
        {"held_out": held_out},
        {"weight_decay": 0.1},
        {"against": (problem, plane)},
        {"tolerance": 0.1},
        {"tolerance": 0.1, "criterion": "log"},
        {"precision": "bfloat16"},
    ]
    single = Problem(network().float(), nn.CrossEntropyLoss(), examples())
    with Study(tmp_path / "landscape.db") as study:
        for option in options:
            subject = single if "precision" in option else problem
            chosen = random_plane(single) if subject is single else plane
            first = surface(subject, chosen, n=3, study=study, **option)
            again = surface(subject, chosen, n=3, study=study, **option)
            assert again.cost == first.cost
            assert again.loss.tobytes() == first.loss.tobytes()
            assert again.metrics.keys() == first.metrics.keys()
        assert len(study.entries()) == len(options)


def test_a_lower_precision_is_compared_with_the_exact_loss():
    problem = Problem(network().float(), nn.CrossEntropyLoss(), examples())
    plane = random_plane(problem)
    exact, rough = (surface(problem, plane, n=5, precision=p) for p in ("exact", "bfloat16"))
    largest = np.abs(exact.loss - rough.loss).max()
    assert 0 < rough.precision_error <= 1.001 * largest  # the engine has other roundings
    assert rough.precision_error >= largest / 50
    assert largest <= 0.05 * np.ptp(exact.loss)
    assert exact.precision_error == 0.0
    assert (
        "precision",
        f"bfloat16, up to {rough.precision_error:.1e} from the exact loss at the 5 points compared",
    ) in (rough.rows())


# -- few points ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "conv_batch_norm_eval", "lstm"])
def test_an_interpolated_surface_is_that_of_the_full_grid_within_the_tolerance(name):
    problem = case_named(name).build(5)
    plane, x = random_plane(problem, 1), span(1.0, 25)
    full = surface(problem, plane, x=x, y=x)
    few = surface(problem, plane, x=x, y=x, tolerance=5e-3)
    assert np.abs(few.loss - full.loss).max() <= 5e-3 * np.ptp(full.loss)
    mask = few.is_measured
    assert few.loss[mask].tobytes() == full.loss[mask].tobytes()
    assert few.loss_se[mask].tobytes() == full.loss_se[mask].tobytes()
    assert np.isnan(few.loss_se[~mask]).all()
    assert few.cost.forwards == mask.sum() + 1 < full.cost.forwards / 2
    assert few.interpolation_error <= 5e-3


def test_an_interpolated_surface_survives_the_study(tmp_path):
    problem = case_named("mlp").build(5)
    with Study(tmp_path / "landscape.db") as study:
        found = surface(problem, n=20, tolerance=0.01, study=study)
        (entry,) = study.entries()
        kept = study.load(entry.id)
    assert kept.measured.tobytes() == found.measured.tobytes()
    assert kept.measured.dtype == np.bool_
    assert (kept.tolerance, kept.criterion) == (0.01, "range")
    assert kept.interpolation_error == found.interpolation_error
    assert entry.points_done == found.measured.sum() < entry.points_total == 400


def test_a_tolerance_that_is_not_reached_is_said():
    problem = case_named("mlp").build(5)
    with pytest.warns(ToleranceWarning, match="was not reached with 90 points: the interpolation"):
        found = surface(problem, n=25, tolerance=1e-9, max_points=90)
    assert found.interpolation_error > 1e-9
    assert "NOT reached" in dict(found.rows())["interpolation error"]


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_refuses_a_tolerance_that_is_none(tolerance):
    with pytest.raises(InvalidArgumentError, match="tolerance must be"):
        surface(case_named("mlp").build(5), n=3, tolerance=tolerance)


def test_refuses_a_limit_without_a_tolerance():
    with pytest.raises(InvalidArgumentError, match="give a tolerance too"):
        surface(case_named("mlp").build(5), n=3, max_points=5)


# -- how far -------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [2.0, 10.0, 1000.0])
def test_an_automatic_range_reaches_the_multiple_on_both_sides(multiple):
    """L = 0.5 + (w₀ + 0.3)² along w₀: the far end is known."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.3)

    def batch_loss(model, batch):
        w = model.weight[0, 0]
        return torch.stack([0.41 + w**2] * len(batch))

    problem = Problem(model, None, [torch.zeros(3, 1)], batch_loss=batch_loss)
    direction = given_direction(problem, np.array([2.0]))
    found = automatic_range(problem, direction, multiple=multiple)
    # (0.3 ± 2r)² = multiple · 0.5 − 0.41; the side towards the minimum is the longer one.
    needed = (math.sqrt(multiple * 0.5 - 0.41) + 0.3) / 2
    assert needed <= found <= needed * 2 ** (1 / 8)


def test_a_range_is_kept_in_the_study(tmp_path):
    problem = case_named("mlp").build(5)
    direction = random_direction(problem, 1)
    with Study(tmp_path / "landscape.db") as study:
        first = automatic_range(problem, direction, study=study, multiple=1.2)
        again = automatic_range(problem, direction, study=study, multiple=1.2)
        (entry,) = study.entries()
        assert study.comparison().models[0].random_line is None
        kept = study.load(entry.id)
    assert first == again == kept.x.max()
    assert min(kept.loss[[0, -1]]) >= 1.2 * kept.origin_loss


@pytest.mark.parametrize("multiple", [1.0, -3.0, math.nan, math.inf])
def test_refuses_a_multiple_that_is_none(multiple):
    problem = case_named("mlp").build(5)
    with pytest.raises(InvalidArgumentError, match="multiple must be a finite number above 1"):
        automatic_range(problem, random_direction(problem), multiple=multiple)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_option_works_on_every_kind_of_problem(case):
    if case.mode == "train":
        pytest.skip("BatchNorm in train mode has no statistics to gather")
    problem = case.build(None if case.depends_on_batches else 5)
    plane = random_plane(problem)
    options = {"statistics": "recalibrated", "weight_decay": 0.1, "against": (problem, plane)}
    found = surface(problem, plane, n=2, held_out=problem, **options)
    recalibrated_loss = found.metrics["train loss"]
    assert recalibrated_loss == pytest.approx(found.loss, rel=1e-12)
    assert np.abs(found.metrics["difference"]).max() <= 1e-11 * np.abs(found.loss).max()


# -- what a careful reader found ------------------------------------------------------------------


def test_held_out_data_of_the_same_model_leave_its_mode_and_bring_no_buffers():
    model = network()
    problem = problem_of(model, mode="train")
    held_out = problem_of(model, seed=5, split="test")
    direction = random_direction(problem, 1)
    alone, beside = (line(problem, direction, x=X, held_out=other) for other in (None, held_out))
    assert beside.loss.tobytes() == alone.loss.tobytes()
    at_another = problem_of(network(3), seed=5, split="test")
    again = line(problem, direction, x=X, held_out=at_another)
    assert again.metrics["test loss"].tobytes() == beside.metrics["test loss"].tobytes()


def test_another_loss_or_buffer_beside_is_another_measurement(tmp_path):
    problem, smooth = problem_of(), nn.CrossEntropyLoss(label_smoothing=0.3)
    others = [problem_of(problem.model, seed=5, split="test")]
    others.append(Problem(problem.model, smooth, examples(5), split="test"))
    rivals = [problem_of(network(seed)) for seed in (1, 2)]
    direction = random_direction(problem, 1)
    ends = [network(seed) for seed in (1, 2)]
    planes = [plane_through(problem, *(end.state_dict() for end in ends))]
    ends[0][1].running_mean += 1.0
    planes.append(plane_through(problem, *(end.state_dict() for end in ends)))
    with Study(tmp_path / "landscape.db") as study:
        held = [
            line(problem, direction, x=X, held_out=other, study=study).metrics["test loss"][0]
            for other in others
        ]
        paired = [
            line(problem, direction, x=X, against=(rival, direction), study=study)
            for rival in rivals
        ]
        spanned = [
            surface(
                problem, plane, x=[0.0, 0.5], y=[0.0, 0.5], statistics="interpolated", study=study
            )
            for plane in planes
        ]
    assert held[0] != held[1]
    assert paired[0].metrics["difference"][0] != paired[1].metrics["difference"][0]
    assert spanned[0].loss[1, 1] != spanned[1].loss[1, 1]


class Remembering(nn.Module):
    """Writes to a buffer in a way that leaves no version."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))

    def forward(self, x):
        self.mean.data.mul_(0.9).add_(0.1 * x.mean(dim=0))
        return self.layer(x - self.mean)


def test_a_buffer_written_through_data_does_not_carry_over():
    problem = Problem(Remembering().double(), nn.CrossEntropyLoss(), examples(), batch_size=4)
    with Evaluator(problem) as evaluator:
        losses = {evaluator.loss().value for _ in range(3)}
        losses.add(evaluator.gradient()[0].value)
    assert len(losses) == 1


def test_points_at_once_have_one_set_of_bits_also_after_a_kill(tmp_path, monkeypatch):
    """The last point of a chunk that is missing is measured in the company that it had."""
    problem = Problem(network().float(), nn.CrossEntropyLoss(), examples())
    together = Plan(fold=True, points=8)
    monkeypatch.setattr(measurement, "choose_plan", lambda *_, **__: together)
    whole = surface(problem, n=5)
    assert "8 points at once" in whole.engine
    with Study(tmp_path / "landscape.db") as study:
        first = surface(problem, n=5, study=study)
        (entry,) = study.entries()
    monkeypatch.undo()  # what was noted holds, whatever would be chosen now
    for i, j in [(0, 0), (1, 3), (4, 4), (3, 1)]:
        with closing(sqlite3.connect(tmp_path / "landscape.db")) as connection, connection:
            how = '{"how": ' + json.dumps(together.settings()) + "}"
            connection.execute("UPDATE measurements SET status = 'partial', record = ?", (how,))
            connection.execute("DELETE FROM points WHERE i = ? AND j = ?", (i, j))
        with Study(tmp_path / "landscape.db") as study:
            again = surface(problem, n=5, study=study)
        assert again.loss.tobytes() == first.loss.tobytes() == whole.loss.tobytes()
    assert entry.points_done == 25


def test_recalibrating_takes_inputs_by_name_and_says_what_is_wrong_with_one_example():
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            h = self.norm(input=x)
            mean, variance = self.unused.running_mean, self.unused.running_var
            return self.layer(F.batch_norm(h, mean, variance))

    problem = Problem(ByName().double(), nn.CrossEntropyLoss(), examples(), batch_size=5)
    with Evaluator(problem) as evaluator:
        with pytest.raises(DataError, match="a batch of 1 example has no variance"):
            recalibrated(evaluator, evaluator.origin)
    problem = Problem(ByName().double(), nn.CrossEntropyLoss(), examples(), batch_size=6)
    with Evaluator(problem) as evaluator:
        found = recalibrated(evaluator, evaluator.origin)
    assert set(found) == {"norm.running_mean", "norm.running_var"}
    assert found["norm.running_mean"].numpy() == pytest.approx(examples()[0].mean(dim=0).numpy())
    assert found["norm.running_var"].numpy() == pytest.approx(examples()[0].var(dim=0).numpy())


def test_a_precision_that_overflows_is_not_called_exact():
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, 3e4)
    problem = Problem(model, nn.CrossEntropyLoss(), examples())
    with pytest.warns(NonFiniteWarning):
        found = surface(problem, n=3, precision="float16")
    assert found.precision_error == math.inf


def test_refuses_a_metric_that_would_be_overwritten():
    problem = problem_of()
    problem.metrics["penalty"] = accuracy
    with pytest.raises(InvalidArgumentError, match="a metric is called penalty"):
        surface(problem, n=2, weight_decay=0.1)


def test_a_range_is_found_at_weights_of_zero_and_for_tiny_losses():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)

    def batch_loss(model, batch):
        return torch.stack([1e-14 + model.weight[0, 0] ** 2] * len(batch))

    problem = Problem(model, None, [torch.zeros(3, 1)], batch_loss=batch_loss)
    found = automatic_range(problem, given_direction(problem, np.array([1.0])), multiple=10)
    assert 3e-7 <= found <= 3e-7 * 2 ** (1 / 8)


def test_a_range_goes_on_where_the_loss_falls_again():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)

    def batch_loss(model, batch):
        w = model.weight[0, 0] - 1
        bump = 50 * torch.exp(-((w - 0.3) ** 2) / 0.01)
        return torch.stack([1 + bump + w**4] * len(batch))

    problem = Problem(model, None, [torch.zeros(3, 1)], batch_loss=batch_loss)
    direction = given_direction(problem, np.array([1.0]))
    found = automatic_range(problem, direction, multiple=30)
    ends = line(problem, direction, x=[-found, found]).loss
    assert ends.min() >= 30


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_rise_along_a_line_has_the_error_of_the_differences(reduction):
    problem = Problem(network(), nn.CrossEntropyLoss(reduction=reduction), examples(), batch_size=4)
    direction = random_direction(problem, 1)
    found = line(problem, direction, x=X)
    losses = [
        plain_losses(moved(problem.model, problem, direction.at(problem.weights, x)), examples())
        for x in X
    ]
    n = 11 if reduction == "sum" else 1
    for k, values in enumerate(losses):
        expected = n * float((values - losses[2]).std()) / math.sqrt(11)
        assert found.metrics["rise_se"][k] == pytest.approx(expected, rel=1e-11, abs=1e-15)
    assert found.metrics["rise_se"][2] == 0.0
