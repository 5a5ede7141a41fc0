"""Differences between checkpoints: exact on quadratics, with errors over the same examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import CASES, case_named
from torch import nn

from landscape.compare._differences import differences
from landscape.errors import DataError, InvalidArgumentError, LossError
from landscape.loss import evaluation
from landscape.problem import Problem
from landscape.sharpness._worst_case import sharpness
from landscape.study import Study

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
N = 400


def bowl_loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return 0.5 * model.curvature * batch[0] * model.weight[0, 0] ** 2


def noisy_bowl(curvature: float, *, seed: int = 0, batch_size: int = 150) -> Problem:
    """Losses aᵢ w² / 2 at w = 0: the rise at ‖ε‖ = ρ is the mean of aᵢ ρ² / 2."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(N, generator=generator, dtype=torch.float64)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    model.register_buffer("curvature", torch.tensor(curvature, dtype=torch.float64))
    data = [(part,) for part in a.split(batch_size)]
    return Problem(model, None, data, batch_loss=bowl_loss, name=f"curvature {curvature:g}")


def test_the_rise_of_a_quadratic_and_its_error_are_those_of_the_examples():
    sharp, wide = noisy_bowl(8.0), noisy_bowl(2.0)
    a = next(iter(sharp.batches))[0].new_tensor(
        np.concatenate([batch[0].numpy() for batch in sharp.batches])
    )
    found = differences(wide, sharp, rho=0.3, full=False)
    assert found.names == ("loss", "sharpness, ρ = 0.3")  # no ‖w‖ to compare with
    rises = 0.5 * a * 0.3**2
    assert found.own[1] == pytest.approx(2.0 * float(rises.mean()), rel=1e-9)
    assert found.other[1] == pytest.approx(8.0 * float(rises.mean()), rel=1e-9)
    error = float((-6.0 * rises).std()) / math.sqrt(N)
    assert found.standard_error[1] == pytest.approx(error, rel=1e-9)
    assert (found.low[1] + found.high[1]) / 2 == pytest.approx(found.difference[1])
    assert found.high[1] - found.low[1] == pytest.approx(2 * 1.966 * error, rel=1e-3)
    assert found.high[1] < 0
    assert found.difference[0] == found.standard_error[0] == 0.0


def test_intervals_cover_the_true_difference():
    """The examples' curvatures are uniform on [0, 1]: the rise in truth is 6 · ρ² / 4."""
    truth, covered, n = -6.0 * 0.3**2 / 4, 0, 120
    for seed in range(n):
        found = differences(
            noisy_bowl(2.0, seed=seed), noisy_bowl(8.0, seed=seed), rho=0.3, full=False
        )
        covered += found.low[1] <= truth <= found.high[1]
    assert 0.89 <= covered / n <= 0.99


def network(scale: float = 1.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        model[0].weight *= scale
        model[0].bias *= scale
        model[2].weight /= scale
    return model


def classes(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (30,), generator=generator)


def test_a_rescaled_network_differs_in_the_plain_ball_and_not_in_the_adaptive_one():
    plain, scaled = (
        Problem(network(scale), nn.CrossEntropyLoss(), classes(), name=f"times {scale:g}")
        for scale in (1.0, 4.0)
    )
    found = differences(scaled, plain, rho=0.1)
    rows = dict(zip(found.names, found.difference / found.other, strict=True))
    adaptive = next(name for name in found.names if name.startswith("adaptive"))
    # Biases are moved relative to themselves, and rescaled with their layer.
    assert abs(rows[adaptive]) <= 1e-3
    assert abs(rows["sharpness, ρ = 0.1"]) > 0.5
    assert abs(found.difference[0]) <= 1e-14


def test_scaled_logits_do_not_change_the_sharpness_of_normalised_ones():
    model = network()
    with torch.no_grad():
        model[2].bias.zero_()
    problem = Problem(model, nn.CrossEntropyLoss(), classes(), name="own")
    found = differences(problem, problem.named("other"), rho=0.1)
    assert "sharpness of normalised logits, ρ = 0.1" in found.names
    assert np.abs(found.difference).max() <= 1e-12
    assert found.notes == ()


def test_a_checkpoint_that_fits_far_better_is_noted():
    model = network()
    other = network()
    with torch.no_grad():
        other[2].weight *= 0.01
        other[2].bias *= 0.01
    x, _ = classes()
    y = model(x).argmax(dim=1)
    with torch.no_grad():
        model[2].weight *= 20
        model[2].bias *= 20
    close, far = (
        Problem(m, nn.CrossEntropyLoss(), (x, y), name=name)
        for m, name in ((model, "close"), (other, "far"))
    )
    found = differences(far, close, rho=0.05, full=False)
    (note,) = found.notes
    assert "as close fits the data better than far" in note
    assert ("note", note) in found.rows()


def test_other_batches_and_the_study_give_the_same(tmp_path):
    pairs = [[noisy_bowl(c, batch_size=size) for c in (2.0, 8.0)] for size in (150, 37)]
    found = [differences(*pair, rho=0.3) for pair in pairs]
    for field in ("own", "other", "standard_error", "low", "high"):
        values = [getattr(each, field) for each in found]
        assert values[0] == pytest.approx(values[1], rel=1e-9, abs=1e-12)
    with Study(tmp_path / "landscape.db") as study:
        first = differences(*pairs[0], rho=0.3, study=study)
        again = differences(*pairs[0], rho=0.3, study=study)
    assert again.cost == first.cost
    assert again.rows() == first.rows()


# Their loss of a batch is one number.
WHOLE_BATCHES = {"sum_and_weight"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kind_of_problem_differs_from_itself_by_nothing(case):
    problem = case.build(None if case.depends_on_batches else 5)
    twin = problem.named("twin")
    if case.name in WHOLE_BATCHES:
        with pytest.raises(LossError, match="gives no losses of single examples"):
            differences(problem, twin, rho=0.01, full=False)
        return
    found = differences(problem, twin, rho=0.01, full=False)
    assert found.difference.tolist() == [0.0] * len(found.names)


def test_refuses_what_cannot_be_compared():
    problem = case_named("mlp").build(5)
    with pytest.raises(InvalidArgumentError, match="explore different parameters"):
        differences(problem, problem.only("0"))
    with pytest.raises(InvalidArgumentError, match="rho must be a finite number above zero"):
        differences(problem, problem, rho=-1.0)
    with pytest.raises(DataError, match="on different data"):
        differences(noisy_bowl(1.0), noisy_bowl(2.0, seed=3))


def test_dropout_masks_at_the_ends_are_those_of_the_search():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    problem = Problem(model, nn.CrossEntropyLoss(), classes(), mode="train", name="own")
    found = differences(problem, problem.named("twin"), rho=0.1, full=False, seed=1)
    assert found.own[1] == pytest.approx(sharpness(problem, 0.1, seed=1).value, rel=1e-9)
    assert found.own[0] == pytest.approx(evaluation(problem, seed=1).loss, rel=1e-12)


def test_what_differs_in_loss_or_mode_is_refused_before_anything_is_measured():
    data = classes()
    problem = Problem(network(), nn.CrossEntropyLoss(), data, name="own")
    for other, message in (
        (Problem(network(), nn.MultiMarginLoss(), data), "have different losses"),
        (Problem(network(), nn.CrossEntropyLoss(), data, mode="train"), "with mode eval"),
        (Problem(network(), nn.CrossEntropyLoss(), data, split="test"), "with split train"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            differences(problem, other)


def test_the_plain_sharpness_stays_the_one_that_is_shown(tmp_path):
    """Searches in other balls and of normalised logits are kept beside it, and not in its place."""
    problem = Problem(network(), nn.CrossEntropyLoss(), classes(), name="own")
    other = Problem(network(4.0), nn.CrossEntropyLoss(), classes(), name="other")
    with Study(tmp_path / "landscape.db") as study:
        evaluation(problem, study=study)
        plain = sharpness(problem, 0.1, study=study)
        differences(problem, other, rho=0.1, study=study)
        shown = study.comparison()["own"].sharpness
    assert shown.value == plain.value
    assert (shown.rho, shown.adaptive) == (0.1, "none")
