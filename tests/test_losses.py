from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CLASS_WEIGHTS, N_EXAMPLES, cut, equal_batches, partitions
from hypothesis import given, settings
from torch import Tensor, nn

from landscape.errors import (
    DataError,
    LandscapeError,
    LossError,
    LossNotAdditiveWarning,
    MisleadingWarning,
    ProblemError,
)
from landscape.evaluate import Evaluator, LossValue
from landscape.problem import Problem
from landscape.problem._batching import Batching
from landscape.problem.losses import make_loss, read_loss

N = N_EXAMPLES


class Passing(nn.Module):
    """Gives its input plus a parameter that is zero: the output is the data."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.zero


def measured(
    x: Tensor, y: Tensor, loss: Any, *, sizes: list[int] | None = None, **options: Any
) -> LossValue:
    problem = Problem(Passing(), loss, cut((x, y), sizes or equal_batches(4)), **options)
    with Evaluator(problem) as evaluator:
        return evaluator.loss()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, *shape, generator=generator, dtype=torch.float64)


def labels(*shape: int, n_classes: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(n_classes, (N, *shape), generator=generator)


def ignoring(target: Tensor, index: int) -> Tensor:
    kept = drawn(*target.shape[1:], seed=3) > -0.3
    kept[2] = False  # a whole example without a target
    return torch.where(kept, target, index)


def spread(target: Tensor) -> Tensor:
    """Class targets as probabilities."""
    return torch.softmax(3 * F.one_hot(target, 3).double() + drawn(3, seed=5), dim=1)


WEIGHTS = CLASS_WEIGHTS
PLUS_MINUS = drawn(2, seed=2).sign()
LABEL_SETS = drawn(3, seed=4).argsort(dim=1)
LABEL_SETS[:, 2] = -1  # ends the list of an example's classes
DATA: dict[str, tuple[Tensor, Tensor]] = {
    "classes": (drawn(3), labels()),
    "classes, some ignored": (drawn(3), ignoring(labels(), -100)),
    "classes, class 1 ignored": (drawn(3), labels()),
    "tokens, some ignored": (drawn(3, 4), ignoring(labels(4), -1)),
    "pixels": (drawn(3, 2, 2), labels(2, 2)),
    "probabilities": (drawn(3), spread(labels())),
    "log-probabilities": (torch.log_softmax(drawn(3), 1), ignoring(labels(), -100)),
    "numbers": (drawn(2), drawn(2, seed=1)),
    "images": (drawn(2, 3), drawn(2, 3, seed=1)),
    "one number": (drawn(), drawn(seed=1)),
    "logits": (drawn(2), (PLUS_MINUS + 1) / 2),
    "chances": (torch.sigmoid(drawn(2)), torch.sigmoid(drawn(2, seed=1))),
    "distributions": (torch.log_softmax(drawn(3), 1), spread(labels())),
    "log-distributions": (torch.log_softmax(drawn(3), 1), spread(labels()).log()),
    "counts": (drawn(2), labels(2, n_classes=6).double()),
    "signs": (drawn(2), PLUS_MINUS),
    "label sets": (drawn(3), LABEL_SETS),
    "labels or not": (drawn(3), F.one_hot(labels(), 3).double()),
}
STANDARD: list[tuple[str, Callable[..., nn.Module]]] = [
    ("classes", nn.CrossEntropyLoss),
    ("classes", partial(nn.CrossEntropyLoss, weight=WEIGHTS)),
    ("classes", partial(nn.CrossEntropyLoss, label_smoothing=0.3)),
    ("classes, some ignored", nn.CrossEntropyLoss),
    ("classes, class 1 ignored", partial(nn.CrossEntropyLoss, ignore_index=1, weight=WEIGHTS)),
    (
        "classes, class 1 ignored",
        partial(nn.CrossEntropyLoss, ignore_index=1, weight=WEIGHTS, label_smoothing=0.3),
    ),
    ("tokens, some ignored", partial(nn.CrossEntropyLoss, ignore_index=-1)),
    ("tokens, some ignored", partial(nn.CrossEntropyLoss, ignore_index=-1, weight=WEIGHTS)),
    ("tokens, some ignored", partial(nn.CrossEntropyLoss, ignore_index=-1, label_smoothing=0.1)),
    ("pixels", partial(nn.CrossEntropyLoss, weight=WEIGHTS)),
    ("probabilities", nn.CrossEntropyLoss),
    ("probabilities", partial(nn.CrossEntropyLoss, weight=WEIGHTS, label_smoothing=0.3)),
    ("log-probabilities", nn.NLLLoss),
    ("log-probabilities", partial(nn.NLLLoss, weight=WEIGHTS)),
    ("numbers", nn.MSELoss),
    ("images", nn.MSELoss),
    ("one number", nn.MSELoss),
    ("numbers", nn.L1Loss),
    ("numbers", partial(nn.SmoothL1Loss, beta=0.3)),
    ("images", partial(nn.HuberLoss, delta=0.7)),
    ("logits", nn.BCEWithLogitsLoss),
    ("logits", partial(nn.BCEWithLogitsLoss, weight=WEIGHTS[:2], pos_weight=WEIGHTS[1:])),
    ("chances", nn.BCELoss),
    ("chances", partial(nn.BCELoss, weight=WEIGHTS[1:])),
    ("distributions", nn.KLDivLoss),
    ("log-distributions", partial(nn.KLDivLoss, log_target=True)),
    ("counts", nn.PoissonNLLLoss),
    ("counts", partial(nn.PoissonNLLLoss, full=True)),
    ("signs", nn.SoftMarginLoss),
    ("signs", partial(nn.HingeEmbeddingLoss, margin=0.5)),
    ("classes", nn.MultiMarginLoss),
    ("classes", partial(nn.MultiMarginLoss, weight=WEIGHTS, margin=0.6)),
    ("label sets", nn.MultiLabelMarginLoss),
    ("labels or not", partial(nn.MultiLabelSoftMarginLoss, weight=WEIGHTS)),
]


def _reductions() -> list[tuple[str, Callable[..., nn.Module], str]]:
    found = []
    for kind, make in STANDARD:
        knows_batchmean = getattr(make, "func", make) is nn.KLDivLoss
        for reduction in ("mean", "sum", "none", *(["batchmean"] if knows_batchmean else [])):
            found.append((kind, make, reduction))
    return found


def _words(value: Any) -> str:
    if isinstance(value, partial):
        named = value.keywords.items()
        given = ",".join(k if isinstance(v, Tensor) else f"{k}={v}" for k, v in named)
        return f"{value.func.__name__}({given})"
    return getattr(value, "__name__", str(value))


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize(("kind", "make", "reduction"), _reductions(), ids=_words)
@settings(max_examples=4)
@given(sizes=partitions())
def test_standard_loss_of_any_batches_is_torchs_loss_of_all_data(
    kind: str, make: Callable[..., nn.Module], reduction: str, sizes: list[int]
) -> None:
    x, y = DATA[kind]
    # What has no reduction is measured as its mean.
    expected = make(reduction="mean" if reduction == "none" else reduction)(x, y)

    result = measured(x, y, make(reduction=reduction), sizes=sizes)

    assert result.value == pytest.approx(float(expected), rel=1e-12, abs=0)
    assert result.se > 0


def test_every_standard_loss_of_torch_is_in_the_table() -> None:
    from landscape.problem.losses import _STANDARD

    assert {getattr(make, "func", make) for _, make in STANDARD} == set(_STANDARD)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (F.cross_entropy, "classes, some ignored"),
        (F.nll_loss, "log-probabilities"),
        (F.mse_loss, "numbers"),
        (F.l1_loss, "numbers"),
        (F.smooth_l1_loss, "numbers"),
        (F.huber_loss, "numbers"),
        (F.binary_cross_entropy, "chances"),
        (F.binary_cross_entropy_with_logits, "logits"),
        (F.poisson_nll_loss, "counts"),
        (F.soft_margin_loss, "signs"),
        (F.hinge_embedding_loss, "signs"),
        (F.multi_margin_loss, "classes"),
        (F.multilabel_margin_loss, "label sets"),
        (F.multilabel_soft_margin_loss, "labels or not"),
    ],
    ids=_words,
)
def test_functional_form_is_understood(function: Callable[..., Tensor], kind: str) -> None:
    x, y = DATA[kind]
    result = measured(x, y, function, sizes=[1, 5, 3, 4])
    assert result.value == pytest.approx(float(function(x, y)), rel=1e-12)
    assert result.se > 0  # a plain function of this name would give one number per batch


# Standard errors


@given(sizes=partitions())
def test_standard_error_of_a_mean(sizes: list[int]) -> None:
    x, y = DATA["classes"]
    each = F.cross_entropy(x, y, reduction="none").numpy()
    result = measured(x, y, nn.CrossEntropyLoss(), sizes=sizes)
    assert result.se == pytest.approx(each.std(ddof=1) / np.sqrt(N), rel=1e-10)


@given(sizes=partitions())
def test_standard_error_of_a_sum(sizes: list[int]) -> None:
    x, y = DATA["classes"]
    each = F.cross_entropy(x, y, weight=WEIGHTS, reduction="none").numpy()
    result = measured(x, y, nn.CrossEntropyLoss(weight=WEIGHTS, reduction="sum"), sizes=sizes)
    assert result.se == pytest.approx(each.std(ddof=1) * np.sqrt(N), rel=1e-10)


@given(sizes=partitions())
def test_standard_error_of_a_weighted_mean_over_tokens(sizes: list[int]) -> None:
    x, y = DATA["tokens, some ignored"]
    terms, weights = np.zeros(N), np.zeros(N)
    for i in range(N):  # an example is a row of tokens
        for t in range(4):
            if y[i, t] >= 0:
                weight = float(WEIGHTS[y[i, t]])
                terms[i] += -weight * float(torch.log_softmax(x[i, :, t], 0)[y[i, t]])
                weights[i] += weight
    mean = terms.sum() / weights.sum()
    spread_of_sum = np.sqrt(N / (N - 1) * np.sum((terms - mean * weights) ** 2))

    result = measured(x, y, nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=-1), sizes=sizes)

    assert result.value == pytest.approx(mean, rel=1e-12)
    assert result.se == pytest.approx(spread_of_sum / weights.sum(), rel=1e-10)


def test_standard_error_covers_the_mean_of_the_distribution() -> None:
    # 300 data sets of 40 examples with a skewed loss: the interval of ±1.96 holds 90 to 98 %.
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(300):
        y = torch.empty(40, dtype=torch.float64).exponential_(generator=generator)
        problem = Problem(Passing(), lambda o, t: (t - o).abs(), (torch.zeros_like(y), y))
        with Evaluator(problem) as evaluator:
            result = evaluator.loss()
        inside += abs(result.value - 1.0) < 1.96 * result.se
    assert 270 <= inside <= 294


def test_standard_error_is_unknown_for_one_number_per_batch_and_for_one_example() -> None:
    x, y = DATA["numbers"]
    assert np.isnan(measured(x, y, lambda o, t: (o - t).square().mean()).se)
    problem = Problem(Passing(), nn.MSELoss(), (x[:1], y[:1]))
    with Evaluator(problem) as evaluator:
        assert np.isnan(evaluator.loss().se)


# Functions of the user


class Focal(nn.CrossEntropyLoss):
    """A subclass that computes something else from what it inherits."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        chance = torch.softmax(output, 1).gather(1, target[:, None])[:, 0]
        return (-((1 - chance) ** 2) * chance.log()).mean()


class Renamed(nn.CrossEntropyLoss):
    """A subclass that adds nothing."""


def test_subclass_with_a_forward_of_its_own_is_called() -> None:
    x, y = DATA["classes"]
    assert measured(x, y, Focal()).value == pytest.approx(float(Focal()(x, y)), rel=1e-12)


def test_subclass_without_one_is_understood() -> None:
    x, y = DATA["classes"]
    loss = Renamed(weight=WEIGHTS)
    assert measured(x, y, loss).value == pytest.approx(float(loss(x, y)), rel=1e-12)


@given(sizes=partitions())
def test_plain_function_is_a_mean_weighted_by_the_size_of_the_batch(sizes: list[int]) -> None:
    x, y = DATA["numbers"]
    result = measured(x, y, lambda o, t: (o - t).abs().mean(), sizes=sizes)
    assert result.value == pytest.approx(float((x - y).abs().mean()), rel=1e-12)


def test_short_last_batch_counts_for_what_it_holds() -> None:
    x, y = torch.zeros(N, 1, dtype=torch.float64), torch.zeros(N, 1, dtype=torch.float64)
    y[-1] = 13.0  # alone in the last batch: a mean of means would give 13/4
    result = measured(x, y, lambda o, t: (t - o).mean(), sizes=[4, 4, 4, 1])
    assert result.value == pytest.approx(1.0)


@given(sizes=partitions())
def test_one_loss_per_example(sizes: list[int]) -> None:
    x, y = DATA["numbers"]
    each = (x - y).abs().sum(dim=1)
    result = measured(x, y, lambda o, t: (o - t).abs().sum(dim=1), sizes=sizes)
    assert result.value == pytest.approx(float(each.mean()), rel=1e-12)
    assert result.se == pytest.approx(float(each.std() / np.sqrt(N)), rel=1e-10)


@given(sizes=partitions())
def test_sum_and_weight_of_a_batch(sizes: list[int]) -> None:
    x, y = DATA["numbers"]

    def tokens(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        inputs, target = batch
        kept = target > 0
        return (model(inputs)[kept] - target[kept]).square().sum(), int(kept.sum())

    problem = Problem(Passing(), data=cut((x, y), sizes), batch_loss=tokens)
    with Evaluator(problem) as evaluator:
        value = evaluator.loss().value
    assert value == pytest.approx(float((x - y)[y > 0].square().mean()), rel=1e-12)


@pytest.mark.parametrize("kind", [int, float, np.int64, np.float32, lambda n: torch.tensor([n])])
def test_a_weight_is_any_number(kind: Any) -> None:
    total = torch.tensor(6.0, dtype=torch.float64)
    terms = read_loss((total, kind(3)), (torch.zeros(3, 1), torch.zeros(3)), Batching())
    assert (float(terms.total), float(terms.weight)) == (6.0, 3.0)
    odd = 2**24 + 1  # more than a float32 holds
    assert float(read_loss((total, odd), (drawn(), drawn()), Batching()).weight) == odd


@given(sizes=partitions())
def test_sum_and_weight_of_each_example_have_a_standard_error(sizes: list[int]) -> None:
    x, y = DATA["tokens, some ignored"]
    criterion = nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=-1)

    def tokens(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, target = batch
        each = F.cross_entropy(
            model(inputs), target, weight=WEIGHTS, ignore_index=-1, reduction="none"
        )
        weights = torch.where(target >= 0, WEIGHTS[target.clamp(min=0)], 0.0)
        return each.sum(1), weights.sum(1)

    with Evaluator(Problem(Passing(), data=cut((x, y), sizes), batch_loss=tokens)) as evaluator:
        found = evaluator.loss()
    expected = measured(x, y, criterion, sizes=sizes)
    assert found.value == pytest.approx(expected.value, rel=1e-12)
    assert found.se == pytest.approx(expected.se, rel=1e-12)


def test_a_loss_with_derivatives_of_its_own_is_told_how() -> None:
    def residual(model: nn.Module, batch: Any) -> Tensor:
        inputs = batch[0].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        return (slope - 1).square().sum(1)

    def enabled(model: nn.Module, batch: Any) -> Tensor:
        with torch.enable_grad():
            return residual(model, batch)

    x = torch.randn(5, 2, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with (
        pytest.raises(ProblemError, match=r"by its inputs .* under torch\.enable_grad\(\)"),
        Evaluator(Problem(model, data=[(x, x)], batch_loss=residual)),
    ):
        pass
    with Evaluator(Problem(model, data=[(x, x)], batch_loss=enabled)) as evaluator:
        expected = enabled(model, (x,)).mean()
        assert evaluator.loss().value == pytest.approx(expected.item(), rel=1e-12)


def test_output_in_low_precision_is_compared_in_float32() -> None:
    class Casting(Passing):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).bfloat16()

    x, y = DATA["classes"]
    loss = nn.CrossEntropyLoss(weight=WEIGHTS.float())
    with pytest.warns(MisleadingWarning, match="computes in bfloat16"):
        with Evaluator(Problem(Casting(), loss, (x, y))) as evaluator:
            value = evaluator.loss().value
    assert value == pytest.approx(float(loss(x.bfloat16().float(), y)), rel=1e-6)


def test_mapping_and_tuple_inputs_and_outputs_with_logits() -> None:
    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Model(Passing):
        def forward(self, x: Tensor, y: Tensor) -> Output:
            return Output(super().forward(x) - 2 * y)

    x, y = DATA["numbers"]
    for inputs in ({"x": x, "y": y}, {"y": y, "x": x}, (x, y), [x, y]):
        with Evaluator(Problem(Model(), nn.MSELoss(), [(inputs, y)])) as evaluator:
            value = evaluator.loss().value
        assert value == pytest.approx(float((x - 3 * y).square().mean()), rel=1e-12)


# What is tried before anything is measured


def test_a_loss_that_sums_is_warned_of_and_measured_as_it_is() -> None:
    x, y = DATA["numbers"]
    with pytest.warns(LossNotAdditiveWarning, match=r"is not the mean over its two\s+halves"):
        result = measured(x, y, lambda o, t: (o - t).square().sum(), sizes=[13])
    assert result.value == pytest.approx(float((x - y).square().sum()), rel=1e-12)


def test_a_loss_that_divides_by_tokens_is_warned_of() -> None:
    x, y = DATA["classes, some ignored"]
    with pytest.warns(LossNotAdditiveWarning, match=r"return .*\(sum, weight\) from batch_loss"):
        measured(x, y, lambda o, t: F.cross_entropy(o, t))


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output @ target.T, torch.arange(len(output)))


def test_an_in_batch_contrastive_loss_is_warned_of_and_its_batches_are_kept() -> None:
    x, y = drawn(3), drawn(3, seed=1)
    sizes = [4, 4, 5]
    with pytest.warns(LossNotAdditiveWarning, match="contrastive loss"):
        result = measured(x, y, contrastive, sizes=sizes)
    parts = [float(contrastive(a, b)) for a, b in cut((x, y), sizes)]
    assert result.value == pytest.approx(np.average(parts, weights=sizes), rel=1e-12)


def test_a_loss_that_needs_whole_batches_is_warned_of_and_goes_on() -> None:
    def pairs(output: Tensor, target: Tensor) -> Tensor:
        return (output.reshape(4, -1) - target.reshape(4, -1)).square().mean()

    x, y = drawn(2)[:12], drawn(2, seed=1)[:12]
    problem = Problem(Passing(), pairs, cut((x, y), [6, 6]))
    with pytest.warns(LossNotAdditiveWarning, match="cannot be evaluated on half"):
        with Evaluator(problem) as evaluator:
            value = evaluator.loss().value
    assert value == pytest.approx(float((x - y).square().mean()), rel=1e-12)


def test_the_warning_comes_once_for_all_checkpoints_of_a_problem() -> None:
    x, y = DATA["numbers"]
    problem = Problem(Passing(), lambda o, t: (o - t).square().sum(), (x, y))
    with pytest.warns(LossNotAdditiveWarning), Evaluator(problem):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Evaluator(problem.at({"zero": torch.ones(())})):
            pass
    assert problem.trials.additive is False


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mean_is_not_warned_of_however_small(dtype: str) -> None:
    # At an interpolated minimum rounding is all that is left of the loss.
    x = 30 * F.one_hot(labels(), 3).double() + 1e-3 * drawn(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(x, labels(), lambda o, t: F.cross_entropy(o, t), sizes=[13], dtype=dtype)


def test_rounding_at_the_end_of_float32_is_no_finding() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return 0 * output.sum() + (2e-7 if len(output) == N else 0.0)

    x, y = DATA["numbers"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(x, y, loss, sizes=[N], dtype="float32")
    with pytest.warns(LossNotAdditiveWarning):
        measured(x, y, loss, sizes=[N], dtype="float64")


def test_a_loss_of_nan_is_kept_and_not_warned_of() -> None:
    x, y = DATA["numbers"]
    assert np.isnan(measured(x * torch.nan, y, lambda o, t: (o - t).mean()).value)


# What is refused


def failure(x: Tensor, y: Tensor, loss: Any, error: type[LandscapeError], match: str) -> None:
    problem = Problem(Passing(), loss, [(x, y)])
    with pytest.raises(error, match=match), Evaluator(problem) as evaluator:
        evaluator.gradient()


@pytest.mark.parametrize(("label", "shown"), [(3, "3"), (-1, "-1"), (2**40, "1099511627776")])
def test_labels_out_of_range(label: int, shown: str) -> None:
    x, y = DATA["classes"]
    y = y.clone()
    y[4] = label
    match = rf"batch 0 of the train data: labels out of range: .* 3 outputs.*contain {shown};"
    failure(x, y, nn.CrossEntropyLoss(), LossError, match)


def test_an_ignored_label_is_not_out_of_range() -> None:
    x, y = DATA["classes"]
    y = torch.where(y == 1, 77, y)
    loss = nn.CrossEntropyLoss(ignore_index=77)
    assert measured(x, y, loss).value == pytest.approx(float(loss(x, y)), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda o, t: (o - t).square(), r"returned a float64 tensor of shape \(13, 2\)"),
        (lambda o, t: (o - t).square()[:5, 0], r"returned a float64 tensor of shape \(5,\)"),
        (lambda o, t: (o > t).sum(), r"returned a int64 tensor of shape \(\)"),
        (lambda o, t: float((o - t).square().mean()), "returned float .*expected a floating-point"),
        (lambda o, t: None, "returned NoneType for a batch of 13"),
        (lambda o, t: (o.sum(), -1.0), r"returned a tuple of \(a float64 tensor of shape \(\)"),
        (lambda o, t: (o.sum(), 1.0, 2.0), "returned a tuple"),
        (lambda o, t: (o.sum(1), 13.0), "a pair .*, both of them scalars or both of them vectors"),
        (lambda o, t: (o.sum(), torch.ones(13)), "a pair .*, both of them scalars or both of"),
        (lambda o, t: (o.sum(1), -torch.ones(13)), "a pair .*, both of them scalars or both of"),
        (lambda o, t: (o.sum(), float("inf")), "a pair .*, both of them scalars or both of them"),
        (lambda o, t: (o.sum(), "1"), "a pair .*, both of them scalars or both of them vectors"),
        (lambda o, t: (o.sum(), o.exp().sum()), "the weight of the pair .* depends on the"),
        (lambda o, t: (o - t).detach().mean(), "is not the slope of the loss"),
        (lambda o, t: t.clone().requires_grad_(True).mean(), "does the loss use another model"),
    ],
)
def test_what_is_no_loss(loss: Any, match: str) -> None:
    x, y = DATA["numbers"]
    failure(x, y, loss, LossError, match)


def test_a_loss_without_a_derivative() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.square()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            raise RuntimeError("no derivative here")

    x, y = DATA["numbers"]
    failure(x, y, lambda o, t: Once.apply(o).mean(), LossError, "cannot be differentiated once: no")


def test_all_targets_ignored() -> None:
    x, y = DATA["classes"]
    match = "is every target ignored"
    failure(x, torch.full_like(y, -100), nn.CrossEntropyLoss(), DataError, match)


def test_one_batch_without_a_target_is_no_matter() -> None:
    x, y = DATA["classes"]
    y = y.clone()
    y[4:8] = -100
    expected = float(F.cross_entropy(x, y))
    assert measured(x, y, nn.CrossEntropyLoss(), sizes=[4, 4, 5]).value == pytest.approx(expected)


def test_shapes_that_would_pair_every_example_with_every_target() -> None:
    x, y = drawn(1), drawn(seed=1)
    match = r"their shapes are \(13, 1\) and \(13,\); reshape"
    failure(x, y, nn.MSELoss(), LossError, match)


def test_one_target_for_several_outputs_is_paired_right() -> None:
    x, y = drawn(2), drawn(1, seed=1)
    with pytest.warns(UserWarning, match="different to the input size"):
        value = measured(x, y, nn.MSELoss()).value
    assert value == pytest.approx(float((x - y).square().mean()), rel=1e-12)


def test_a_loss_that_raises_names_the_batch() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        if len(output) == 3:
            msg = "cannot do three\nat all"
            raise ZeroDivisionError(msg)
        return (output - target).mean()

    x, y = DATA["numbers"]
    match = (
        r"batch 1 of the test data \(a tuple of \(a float64 tensor of shape \(3, 2\).*"
        "failed with ZeroDivisionError: cannot do three$"
    )
    with pytest.raises(ProblemError, match=match):
        measured(x, y, loss, sizes=[4, 3, 6], split="test")


@pytest.mark.parametrize(
    ("loss", "batch_loss", "match"),
    [
        (None, None, "got neither"),
        (F.mse_loss, F.mse_loss, "got both"),
        (3, None, "must be a function or a loss module, not int"),
        (None, [F.mse_loss], "must be a function or a loss module, not list"),
    ],
)
def test_a_problem_has_one_loss(loss: Any, batch_loss: Any, match: str) -> None:
    with pytest.raises(ProblemError, match=match):
        Problem(Passing(), loss, DATA["numbers"], batch_loss=batch_loss)


@pytest.mark.parametrize(
    "batch", [drawn(2), (drawn(2),), {"x": drawn(2)}], ids=["x", "(x,)", "{x}"]
)
def test_a_batch_that_is_no_pair(batch: Any) -> None:
    with pytest.raises(ProblemError, match=r"needs batches \(inputs, target\).*give batch_loss"):
        with Evaluator(Problem(Passing(), F.mse_loss, [batch])):
            pass


def test_an_output_that_is_no_tensor() -> None:
    class Model(Passing):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": super().forward(x)}

    with pytest.raises(LossError, match="MSELoss needs tensors, got an output of a dict"):
        with Evaluator(Problem(Model(), nn.MSELoss(), DATA["numbers"])):
            pass


# Metrics


def with_metric(metric: Any, sizes: list[int]) -> float:
    x, y = DATA["classes"]
    problem = Problem(Passing(), F.cross_entropy, cut((x, y), sizes), metrics={"right": metric})
    with Evaluator(problem) as evaluator:
        return evaluator.loss().metrics["right"]


@given(sizes=partitions())
def test_metric_of_each_example_and_mean_of_a_batch(sizes: list[int]) -> None:
    x, y = DATA["classes"]
    expected = float((x.argmax(1) == y).double().mean())
    assert 0 < expected < 1
    for metric in (
        lambda o, t: o.argmax(1) == t,
        lambda o, t: (o.argmax(1) == t).float().mean(),
        lambda o, t: float((o.argmax(1) == t).double().mean()),
        lambda o, t: (o.argmax(1) == t).numpy(),
    ):
        assert with_metric(metric, sizes) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "value", [drawn(3), drawn()[:2], {"a": 1}, None], ids=["2d", "2", "{}", "-"]
)
def test_a_metric_that_is_none(value: Any) -> None:
    with pytest.raises(ProblemError, match=r"metric 'right' returned .* expected one value per"):
        with_metric(lambda o, t: value, [13])


def test_labels_are_checked_again_when_they_change_in_place():
    """What is known of a target is remembered, so that a second pass does not ask again."""
    loss = make_loss(nn.CrossEntropyLoss(ignore_index=2), None)
    output, target = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1])
    assert float(loss.of_output(output, target, None).weight) == 3
    target[0] = 2
    assert float(loss.of_output(output, target, None).weight) == 2
    target[1] = 3
    with pytest.raises(LossError, match="3"):
        loss.of_output(output, target, None)


def test_a_target_that_fits_one_output_is_checked_against_another():
    loss = make_loss(nn.CrossEntropyLoss(), None)
    target = torch.tensor([0, 4])
    loss.of_output(torch.zeros(2, 5), target, None)
    with pytest.raises(LossError, match="4"):
        loss.of_output(torch.zeros(2, 3), target, None)


def test_a_loss_may_be_an_object_without_a_dictionary() -> None:
    class Slots:
        __slots__ = ()

        def __call__(self, output: Tensor, target: Tensor) -> Tensor:
            return (output - target).square().mean()

    x, y = DATA["numbers"]
    assert measured(x, y, Slots()).value == measured(x, y, nn.MSELoss()).value


def test_a_target_that_is_no_tensor() -> None:
    x, y = DATA["numbers"]
    match = r"MSELoss needs tensors, got an output of .* and a target of a dict .*batch_loss\("
    problem = Problem(Passing(), nn.MSELoss(), [(x, {"y": y})])
    with pytest.raises(LossError, match=match), Evaluator(problem):
        pass
