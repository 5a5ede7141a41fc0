"""The plain loss with its standard error, metrics and gradient norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import CASES, N_EXAMPLES, case_named
from torch import nn

from landscape.evaluate import Evaluator
from landscape.loss import evaluation
from landscape.problem import Problem
from landscape.study import Study

# torch's own forward-mode derivatives, which cases.py may use, still compile with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_loss_and_gradient_norm_equal_those_of_torch_on_the_whole_data(case):
    found = evaluation(case.build(None if case.depends_on_batches else 5))
    assert found.loss == pytest.approx(case.dense_loss(), rel=1e-12)
    norm = float(torch.linalg.vector_norm(case.dense_gradient()))
    assert found.gradient_norm == pytest.approx(norm, rel=1e-10)
    assert (found.cost.forwards, found.cost.gradients, found.cost.hvps) == (1, 1, 0)
    assert found.name == case.name


@pytest.mark.parametrize("partition", [[13], [1] * 13, [6, 6, 1]])
def test_nothing_depends_on_the_batching(partition):
    whole = evaluation(case_named("class_weights").build())
    parts = evaluation(case_named("class_weights").build(partition=partition))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-14)
    assert parts.loss_se == pytest.approx(whole.loss_se, rel=1e-12)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-12)


def test_the_standard_error_is_that_of_the_mean_over_examples():
    problem = case_named("per_example").build(5)
    losses = np.concatenate(
        [
            torch.log(torch.cosh(problem.model(x) - y)).sum(dim=1).detach().numpy()
            for x, y in problem.batches
        ]
    )
    found = evaluation(problem)
    assert found.loss == pytest.approx(losses.mean(), rel=1e-12)
    assert found.loss_se == pytest.approx(losses.std(ddof=1) / math.sqrt(N_EXAMPLES), rel=1e-10)


def test_with_class_weights_the_standard_error_is_that_of_a_ratio():
    """Delta method: residuals s − L w over the examples, divided by the mean weight."""
    problem = case_named("class_weights").build(5)
    weight = torch.tensor([0.2, 1.0, 3.5], dtype=torch.float64)
    terms, weights = [], []
    for x, y in problem.batches:
        losses = nn.functional.cross_entropy(problem.model(x), y, reduction="none").detach()
        terms.append(losses * weight[y])
        weights.append(weight[y])
    s, w = torch.cat(terms).numpy(), torch.cat(weights).numpy()
    found = evaluation(problem)
    assert found.loss == pytest.approx(s.sum() / w.sum(), rel=1e-12)
    residuals = s - found.loss * w
    expected = residuals.std(ddof=1) / w.mean() / math.sqrt(N_EXAMPLES)
    assert found.loss_se == pytest.approx(expected, rel=1e-10)


def test_the_standard_error_covers_the_true_loss_as_often_as_it_says():
    """Over 200 samples of 40 examples each, |L − E L| ≤ 1.96 se about 95 times in 100."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    hits = 0
    for _ in range(200):
        x = torch.randn(40, 1, generator=generator, dtype=torch.float64)
        found = evaluation(Problem(model, nn.MSELoss(), (x, torch.zeros_like(x))))
        hits += abs(found.loss - 1.0) <= 1.96 * found.loss_se
    assert 0.87 * 200 <= hits <= 0.99 * 200  # a χ² of 40 examples is skewed: about 92 in 100


def test_without_terms_there_is_no_standard_error():
    assert math.isnan(evaluation(case_named("sum_and_weight").build(5)).loss_se)


def test_metrics_are_means_over_examples_whatever_the_batches():
    case = case_named("mlp")
    parts = case.parts()

    def correct(output, target):
        return (output.argmax(dim=1) == target).double()

    def mean_correct(output, target):
        return correct(output, target).mean()

    problem = Problem(
        parts.model,
        parts.loss,
        list(case.build(4).batches),
        metrics={"each": correct, "mean": mean_correct},
    )
    x, y = parts.data
    expected = float(correct(parts.model(x), y).mean())
    assert evaluation(problem).metrics == pytest.approx({"each": expected, "mean": expected})


def test_train_mode_uses_the_statistics_of_the_batch_and_leaves_the_running_ones():
    problem = case_named("batch_norm_train").build()
    norm = problem.model[1]
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    evaluation(problem)
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in before.items())


def test_dropout_masks_depend_on_the_seed_alone():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 20), nn.Dropout(0.5), nn.Linear(20, 1))
    data = torch.randn(12, 3, generator=generator), torch.zeros(12, 1)
    problem = Problem(model, nn.MSELoss(), data, mode="train", batch_size=5)
    losses = [evaluation(problem, seed=seed).loss for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    gradients = evaluation(problem, seed=1)
    with Evaluator(problem, seed=1) as evaluator:
        loss, gradient = evaluator.gradient()
    assert loss.value == gradients.loss
    assert float(gradient.double().norm()) == pytest.approx(gradients.gradient_norm)


def test_not_finite_losses_are_kept():
    data = torch.tensor([[1.0], [math.inf]]), torch.zeros(2, 1)
    found = evaluation(Problem(nn.Linear(1, 1), nn.MSELoss(), data))
    assert math.isinf(found.loss)
    assert math.isnan(found.loss_se)
    assert not math.isfinite(found.gradient_norm)


def test_a_study_answers_under_the_name_that_is_asked_for(tmp_path, no_passes):
    problem = case_named("mlp").build(5)
    with Study(tmp_path / "landscape.db") as study:
        first = evaluation(problem, study=study)
        no_passes()
        again = evaluation(problem.named("the same weights"), study=study)
        assert (again.loss, again.gradient_norm) == (first.loss, first.gradient_norm)
        assert (first.name, again.name) == ("mlp", "the same weights")
        with pytest.raises(TypeError):  # another seed is another measurement
            evaluation(problem, seed=1, study=study)
        with torch.no_grad():
            problem.model[0].weight += 1.0
        with pytest.raises(TypeError):  # and so are other weights
            evaluation(problem, study=study)
