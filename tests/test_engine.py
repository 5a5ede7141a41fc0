from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case, case_named, cut, equal_batches
from torch import Tensor, nn

from landscape.errors import InvalidArgumentError, ProblemError
from landscape.evaluate import PLAIN, Engine, Evaluator, LossValue, Plan, choose_plan
from landscape.evaluate._engine import Runner
from landscape.evaluate._folding import Fold
from landscape.problem import Problem

N = 13
# Everything but torch.compile, which takes a minute: that has a test of its own.
PLANS = [
    Plan(fold=fold, piece=piece, channels_last=last)
    for fold, piece, last in product((False, True), (None, 3, 50), (False, True))
] + [Plan(fold=fold, piece=piece, points=2) for fold, piece in product((False, True), (None, 6))]


def several(evaluator: Evaluator, n: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (n, len(evaluator.origin))
    shifts = torch.randn(shape, generator=generator, dtype=torch.float64).to(evaluator.origin)
    return list(evaluator.origin + 0.3 * shifts)


def assert_same(found: LossValue, expected: LossValue, rel: float = 1e-12) -> None:
    assert found.value == pytest.approx(expected.value, rel=rel)
    assert found.se == pytest.approx(expected.se, rel=10 * rel, nan_ok=True)
    assert found.metrics == pytest.approx(expected.metrics, rel=rel)
    assert (found.examples is None) == (expected.examples is None)
    if found.examples is not None and expected.examples is not None:
        for ours, theirs in zip(found.examples, expected.examples, strict=True):
            assert torch.allclose(ours, theirs, rtol=10 * rel, atol=10 * rel)


def with_metrics(case: Case) -> dict[str, Callable[[Any, Any], Any]]:
    if case.name == "sum_and_weight":  # a batch_loss: metrics are given the model and the batch
        return {"size": lambda model, batch: model(batch[0]).square().sum(dim=1)}

    def size(output: Any, target: Any) -> Tensor:
        output = output[0] if isinstance(output, tuple) else output
        return output.reshape(len(output), -1).square().sum(dim=1)

    return {"size": size, "mean size": lambda output, target: size(output, target).mean()}


# The numbers are those of the evaluator


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_plan_gives_the_same(case: Case) -> None:
    batch = None if case.depends_on_batches else 5
    problem = case.build(batch, metrics=with_metrics(case))
    with Evaluator(problem) as evaluator:
        points = several(evaluator)
        expected = [evaluator.loss(point) for point in points]
        plain = Engine(evaluator).losses(points, keep=True)
        for one, other in zip(plain, expected, strict=True):
            assert (one.value, one.metrics) == (other.value, other.metrics)
        for plan in PLANS:
            for found, same in zip(
                Engine(evaluator, plan).losses(points, keep=True), plain, strict=True
            ):
                assert_same(found, same)


@pytest.mark.parametrize("name", ["mlp", "conv_batch_norm_eval", "regression", "ignore_index"])
def test_what_can_be_done_is_done(name: str) -> None:
    # Or the comparison above would compare the plain way with itself.
    with Evaluator(case_named(name).build(5)) as evaluator:
        for plan in PLANS:
            folds = plan.fold and name == "conv_batch_norm_eval"
            expected = Plan(folds, plan.piece, plan.channels_last, points=plan.points)
            assert Engine(evaluator, plan).plan == expected


def test_the_loss_of_each_example_is_that_of_torch() -> None:
    case = case_named("label_smoothing_class_weights")
    parts = case.parts()
    with Evaluator(case.build(5)) as evaluator:
        found = Engine(evaluator, Plan(piece=4)).loss(keep=True)
    each = torch.stack([parts.reference(parts.model, *parts.example(i)) for i in range(N)]).detach()
    assert parts.weights is not None
    assert found.examples is not None
    terms, weights = found.examples
    assert torch.allclose(terms, each * parts.weights, rtol=1e-12)
    assert torch.allclose(weights, parts.weights, rtol=1e-15)
    assert (terms.dtype, terms.device.type) == (torch.float64, "cpu")
    assert float(terms.sum() / weights.sum()) == pytest.approx(found.value, rel=1e-14)


def test_a_sum_has_weights_of_one() -> None:
    with Evaluator(case_named("plain_sum").build(5)) as evaluator:
        found = Engine(evaluator).loss(keep=True)
        assert Engine(evaluator).loss().examples is None
    assert found.examples is not None
    assert float(found.examples[0].sum()) == pytest.approx(found.value, rel=1e-14)
    assert torch.equal(found.examples[1], torch.ones(N, dtype=torch.float64))


def test_passes_are_counted() -> None:
    with Evaluator(case_named("conv_batch_norm_eval").build(5)) as evaluator:
        engine = Engine(evaluator, Plan(fold=True, piece=4, points=2))
        assert evaluator.passes["forwards"] == 0  # trying a plan is no pass
        engine.loss()
        engine.losses(several(evaluator))
        assert evaluator.passes["forwards"] == 4


# Folding


class Net(nn.Module):
    """A body of the user's own, and a linear layer on the mean over all positions."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], features: int, **layers: Any) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(self, x)
        return self.head(features.reshape(*features.shape[:2], -1).mean(dim=2))


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight and every statistic a value that it does not start with."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for tensor in model.double().parameters():
            tensor.copy_(0.5 * draw(tensor))
        for name, tensor in model.named_buffers():
            if name.endswith("running_mean"):
                tensor.copy_(draw(tensor))
            elif name.endswith("running_var"):
                tensor.copy_(0.2 + draw(tensor).square())
    return model


def problem_of(model: nn.Module, *shape: int, **options: Any) -> Problem:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, *shape, generator=generator, dtype=torch.float64)
    data = cut((x, torch.arange(N) % 3), equal_batches(5))
    return Problem(drawn(model), nn.CrossEntropyLoss(), data, **options)


def chain(net: Any, x: Tensor) -> Tensor:
    return torch.relu(net.norm(net.layer(x)))


def state_of(model: nn.Module) -> list[Any]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return [tensors, [dict(vars(part)) for part in model.modules()]]


def assert_untouched(model: nn.Module, before: list[Any]) -> None:
    tensors, attributes = before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name])
    for part, own in zip(model.modules(), attributes, strict=True):
        assert vars(part) == own


LAYERS = {
    "convolution": (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), (2, 5, 5)),
    "no bias": (nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), (2, 5, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 5, 5)),
    "reflected": (
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4),
        (2, 5, 5),
    ),
    "one axis": (nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), (2, 6)),
    "three axes": (nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), (1, 3, 3, 3)),
    "linear": (nn.Linear(3, 4), nn.BatchNorm1d(4), (3,)),
    "transposed": (nn.ConvTranspose2d(2, 3, 2, stride=2), nn.BatchNorm2d(3), (2, 3, 3)),
    "transposed groups": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1, bias=False),
        nn.BatchNorm2d(6),
        (4, 3, 3),
    ),
    "not affine": (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False, eps=0.1), (2, 5, 5)),
    "synchronised": (nn.Conv2d(2, 4, 3), nn.SyncBatchNorm(4), (2, 5, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_that_are_folded(kind: str) -> None:
    layer, norm, shape = LAYERS[kind]
    problem = problem_of(Net(chain, norm.num_features, layer=layer, norm=norm), *shape)
    before = state_of(problem.model)
    with Evaluator(problem) as evaluator:
        engine = Engine(evaluator, Plan(fold=True))
        assert engine.folds == (Fold("layer", "norm"),)
        for point in several(evaluator):
            assert_same(engine.loss(point), evaluator.loss(point))
    assert_untouched(problem.model, before)


def two_uses(net: Any, x: Tensor) -> Tensor:
    inner = net.layer(x)
    return net.norm(inner) + inner


def norm_first(net: Any, x: Tensor) -> Tensor:
    return net.layer(net.norm(x))


def layer_twice(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.layer(net.layer(x)))


def norm_twice(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.norm(net.layer(x)))


def weight_read(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.layer(x)) + net.layer.weight.square().sum()


def in_place(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.layer(x).relu_())


def with_a_view(net: Any, x: Tensor) -> Tensor:
    inner = net.layer(x)
    view = inner.detach()
    return net.norm(inner) + view


@pytest.mark.parametrize(
    "body",
    [two_uses, norm_first, layer_twice, norm_twice, weight_read, in_place, with_a_view],
)
def test_what_is_not_folded(body: Callable[[Any, Tensor], Tensor]) -> None:
    layer, norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
    problem = problem_of(Net(body, 2, layer=layer, norm=norm), 2, 4, 4)
    with Evaluator(problem) as evaluator:
        engine = Engine(evaluator, Plan(fold=True))
        assert (engine.plan, engine.folds) == (PLAIN, ())
        assert choose_plan(evaluator, n_points=5) == PLAIN
        assert engine.loss().value == evaluator.loss().value


class Squaring(torch.autograd.Function):
    """An operation that a mode of torch functions does not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.square()


def hidden_use(net: Any, x: Tensor) -> Tensor:
    inner = net.layer(x)
    return net.norm(inner) + Squaring.apply(inner)


def test_a_use_that_is_not_seen_shows_in_the_numbers() -> None:
    layer, norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
    problem = problem_of(Net(hidden_use, 2, layer=layer, norm=norm), 2, 4, 4)
    with Evaluator(problem) as evaluator:
        assert Engine(evaluator, Plan(fold=True)).folds == ()


class Doubled(nn.Conv2d):
    """A layer that computes something of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def hooked() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.register_forward_hook(lambda module, inputs, output: 2 * output)
    return norm


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (Doubled(2, 4, 3), nn.BatchNorm2d(4)),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3)), nn.BatchNorm2d(4)),
        (nn.Conv2d(2, 4, 3), hooked()),
        (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        (nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    ],
    ids=["subclass", "parametrised", "hooked", "no statistics", "instance norm"],
)
def test_layers_that_are_something_else(layer: nn.Module, norm: nn.Module) -> None:
    problem = problem_of(Net(chain, 4, layer=layer, norm=norm), 2, 5, 5)
    with Evaluator(problem) as evaluator:
        engine = Engine(evaluator, Plan(fold=True))
        assert engine.folds == ()
        assert engine.loss().value == evaluator.loss().value


def test_features_that_are_not_the_channels() -> None:
    # On sequences a linear layer counts its features last, and BatchNorm takes the second axis.
    def body(net: Any, x: Tensor) -> Tensor:
        return net.norm(net.layer(x))

    problem = problem_of(Net(body, 4, layer=nn.Linear(3, 4), norm=nn.BatchNorm1d(4)), 4, 3)
    with Evaluator(problem) as evaluator:
        assert Engine(evaluator, Plan(fold=True)).folds == ()


def test_shared_weights_are_not_folded() -> None:
    first, second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    second.weight = first.weight
    net = Net(chain, 2, layer=first, norm=nn.BatchNorm2d(2), second=second)
    with Evaluator(problem_of(net, 2, 4, 4)) as evaluator:
        assert Engine(evaluator, Plan(fold=True)).folds == ()


def test_train_mode_is_evaluated_plainly() -> None:
    net = Net(chain, 4, layer=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4))
    with Evaluator(problem_of(net, 2, 5, 5, mode="train")) as evaluator:
        engine = Engine(evaluator, Plan(fold=True, piece=2, channels_last=True))
        assert engine.plan == PLAIN
        assert choose_plan(evaluator, n_points=100) == PLAIN
        assert engine.loss().value == evaluator.loss().value


def test_buffers_that_are_given() -> None:
    problem = case_named("conv_batch_norm_eval").build(5)
    mean = torch.tensor([1.3, -0.7], dtype=torch.float64)
    variance = torch.tensor([0.1, 3.0], dtype=torch.float64)
    buffers = {"1.running_mean": mean, "1.running_var": variance}
    with Evaluator(problem) as evaluator:
        for plan in (PLAIN, Plan(fold=True), Plan(fold=True, points=2)):
            engine = Engine(evaluator, plan)
            for found, point in zip(
                engine.losses(several(evaluator), buffers), several(evaluator), strict=True
            ):
                expected = evaluator.loss(point, buffers=buffers).value
                assert found.value == pytest.approx(expected, rel=1e-12)
                assert found.value != pytest.approx(engine.loss(point).value, rel=1e-3)


def test_a_negative_variance_is_not_a_number_either_way() -> None:
    problem = case_named("conv_batch_norm_eval").build(5)
    buffers = {"1.running_var": torch.tensor([0.1, -3.0], dtype=torch.float64)}
    with Evaluator(problem) as evaluator:
        assert Engine(evaluator, Plan(fold=True)).plan.fold
        for plan in (PLAIN, Plan(fold=True)):
            value = Engine(evaluator, plan).loss(buffers=buffers)
            assert value.value != value.value
            assert value.se != value.se


@pytest.mark.parametrize("pattern", ["norm", "layer.bias", "head", "layer"])
def test_a_part_of_the_parameters(pattern: str) -> None:
    net = Net(chain, 4, layer=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4))
    problem = problem_of(net, 2, 5, 5).only(pattern)
    with Evaluator(problem) as evaluator:
        engine = Engine(evaluator, Plan(fold=True))
        assert engine.folds == (Fold("layer", "norm"),)
        for point in several(evaluator):
            assert_same(engine.loss(point), evaluator.loss(point))


def test_frozen_scales_are_folded() -> None:
    net = Net(chain, 4, layer=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4))
    net.norm.requires_grad_(False)
    with Evaluator(problem_of(net, 2, 5, 5)) as evaluator:
        engine = Engine(evaluator, Plan(fold=True))
        assert engine.folds == (Fold("layer", "norm"),)
        for point in several(evaluator):
            assert_same(engine.loss(point), evaluator.loss(point))


def test_scales_may_be_read_elsewhere() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        return net.norm(net.layer(x)) * net.norm.weight.sum()

    net = Net(body, 4, layer=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4))
    with Evaluator(problem_of(net, 2, 5, 5)) as evaluator:
        engine = Engine(evaluator, Plan(fold=True))
        assert engine.folds == (Fold("layer", "norm"),)
        for point in several(evaluator):
            assert_same(engine.loss(point), evaluator.loss(point))


def test_float32_is_folded_too() -> None:
    case = case_named("conv_batch_norm_eval")
    with Evaluator(case.build(5, "float32")) as evaluator, Evaluator(case.build()) as exact:
        engine = Engine(evaluator, Plan(fold=True, channels_last=True))
        assert engine.plan == Plan(fold=True, channels_last=True)
        for point in several(evaluator):
            expected = exact.loss(point.double()).value
            assert engine.loss(point).value == pytest.approx(expected, rel=1e-5)


# What is left behind


def test_the_model_is_as_it_was_after_an_exception() -> None:
    seen: list[bool] = []

    def body(net: Any, x: Tensor) -> Tensor:
        if not bool(torch.isfinite(net.head.weight).all()):
            seen.append("forward" in vars(net.norm))
            msg = "no further"
            raise ValueError(msg)
        return chain(net, x)

    problem = problem_of(Net(body, 4, layer=nn.Conv2d(2, 4, 3), norm=nn.BatchNorm2d(4)), 2, 5, 5)
    before = state_of(problem.model)
    with Evaluator(problem) as evaluator:
        engine = Engine(evaluator, Plan(fold=True))
        with pytest.raises(ProblemError, match="no further"):
            engine.loss(evaluator.origin * torch.inf)
        assert seen == [True]  # it was folded when it failed
        assert "forward" not in vars(problem.model.norm)
        assert engine.loss().value == pytest.approx(evaluator.loss().value, rel=1e-12)
    assert_untouched(problem.model, before)


def test_a_model_that_writes_to_its_buffers() -> None:
    class Counting(nn.Module):
        def __init__(self, *, anew: bool) -> None:
            super().__init__()
            self.layer, self.anew = nn.Linear(2, 3), anew
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if self.anew:
                self.seen = self.seen + len(x)
            else:
                self.seen += len(x)
            return self.layer(x) * self.seen

    for anew in (False, True):
        problem = problem_of(Counting(anew=anew), 2)
        with Evaluator(problem) as evaluator:
            first = evaluator.loss().value
            assert evaluator.loss().value == first
            assert Engine(evaluator).loss().value == first
        x, y = (torch.cat(parts) for parts in zip(*problem.batches, strict=True))
        sizes = torch.tensor([5] * 10 + [3] * 3)[:, None]
        expected = F.cross_entropy(problem.model.layer(x) * sizes, y)
        assert first == pytest.approx(float(expected.detach()), rel=1e-12)
        assert float(problem.model.seen) == 0.0


# What is refused, and what is left out


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"piece": 0}, "at least 1 example and at least 1 point at once, got piece = 0"),
        ({"points": 0}, "got piece = None and points = 0"),
        ({"points": 2, "compiled": True}, "2 points at once go neither with compiled"),
        ({"points": 2, "channels_last": True}, "nor with channels_last; use points = 1"),
        ({"folded": True}, r"unknown setting of a plan 'folded' \(nearest: fold\); known: fold"),
    ],
)
def test_plans_that_are_none(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        Plan.of(settings)


@pytest.mark.parametrize("plan", [*PLANS, Plan(compiled=True)], ids=str)
def test_plans_come_back_from_their_settings(plan: Plan) -> None:
    assert Plan.of(plan.settings()) == plan


def test_plans_in_words() -> None:
    assert str(PLAIN) == "plain"
    assert str(Plan(compiled=True)) == "compiled"
    assert str(Plan(fold=True, piece=64, points=8)) == (
        "BatchNorm folded, pieces of 64, 8 points at once"
    )


def test_a_metric_that_is_no_sum_over_examples_keeps_the_batches() -> None:
    def largest(output: Tensor, target: Tensor) -> Tensor:
        return output.max()

    with Evaluator(case_named("mlp").build(5, metrics={"largest": largest})) as evaluator:
        engine = Engine(evaluator, Plan(piece=2))
        assert engine.plan == PLAIN
        assert engine.loss().metrics == evaluator.loss().metrics


def test_a_loss_that_is_no_sum_over_examples_keeps_the_batches() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - output.mean(dim=0)).square().mean()

    x = torch.linspace(-1, 1, 26, dtype=torch.float64).reshape(13, 2)
    model = drawn(nn.Linear(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Evaluator(Problem(model, loss, cut((x, x), equal_batches(5)))) as evaluator:
            engine = Engine(evaluator, Plan(piece=3))
            assert engine.plan == PLAIN
            assert engine.loss().value == evaluator.loss().value


def test_batches_of_several_lengths_are_not_joined() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mean(dim=1, keepdim=True))

    generator = torch.Generator().manual_seed(0)
    lengths = (4, 4, 6, 6, 6, 5)
    data = [
        (torch.randn(2, n, generator=generator, dtype=torch.float64), torch.tensor([0, 2]))
        for n in lengths
    ]
    seen: list[tuple[int, ...]] = []
    model = drawn(Mean())
    model.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    with Evaluator(Problem(model, nn.CrossEntropyLoss(), data)) as evaluator:
        engine = Engine(evaluator, Plan(piece=4))
        seen.clear()
        found = engine.loss(keep=True)
        assert seen == [(4, 4), (4, 6), (2, 6), (2, 5)]
        assert_same(found, Engine(evaluator).loss(keep=True))


def test_what_vmap_cannot_run_is_run_in_turn() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        return torch.relu(net.layer(x)) if float(net.head.bias[0]) > 0 else net.layer(x)

    with Evaluator(problem_of(Net(body, 4, layer=nn.Linear(3, 4)), 3)) as evaluator:
        engine = Engine(evaluator, Plan(points=2))
        assert engine.plan == PLAIN
        points = several(evaluator)
        for found, point in zip(engine.losses(points), points, strict=True):
            assert found.value == evaluator.loss(point).value


# Precision


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision(precision: str) -> None:
    case = case_named("mlp")
    with Evaluator(case.build(5, "float32")) as evaluator:
        rough, exact = Engine(evaluator, precision=precision), Engine(evaluator)
        found, expected = rough.loss(keep=True), exact.loss(keep=True)
    # Eight or eleven bits of the logits, which are about one; but not 24.
    bits = {"bfloat16": 8, "float16": 11}[precision]
    assert found.value == pytest.approx(expected.value, abs=4 * 2.0**-bits)
    assert found.value != pytest.approx(expected.value, rel=1e-7)
    assert found.examples is not None
    assert found.examples[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("precision", "dtype", "match"),
    [
        (
            "float8",
            "float32",
            r"unknown precision 'float8' .*known: exact, bfloat16, float16, tf32",
        ),
        ("tf32", "float32", "'tf32' needs a CUDA device, and the problem is on cpu; use 'exact'"),
        ("bfloat16", "float64", "the problem computes in float64; use dtype='float32', or 'exact'"),
    ],
)
def test_precisions_that_are_refused(precision: str, dtype: str, match: str) -> None:
    with Evaluator(case_named("mlp").build(5, dtype)) as evaluator:
        with pytest.raises(InvalidArgumentError, match=match):
            Engine(evaluator, precision=precision)


def test_points_of_lower_precision_have_weights_of_their_own() -> None:
    """Autocast keeps what it has cast of a parameter, whatever is written into that later."""
    with Evaluator(case_named("mlp").build(5, "float32")) as evaluator:
        runner = Runner(evaluator, Plan(points=3), precision="bfloat16")
        runner.at_once = False  # as if torch.vmap had failed under way
        points, batches = several(evaluator), list(enumerate(evaluator.problem.batches))
        found = [sums.totals[0] for sums in runner.sums(points, lambda: batches)]
        single = Engine(evaluator, precision="bfloat16")
        expected = [single.loss(point).value * N for point in points]
    assert len(set(found)) == 3
    assert found == pytest.approx(expected, rel=1e-12)


# What models and data may be


def test_a_kernel_that_is_a_buffer_stays_one() -> None:
    def blurred(net: Any, x: Tensor) -> Tensor:
        return F.conv2d(net.layer(x), net.kernel, groups=4)

    net = Net(blurred, 4, layer=nn.Conv2d(2, 4, 3))
    net.register_buffer("kernel", torch.rand(4, 1, 2, 2))
    with Evaluator(problem_of(net, 2, 6, 6)) as evaluator:
        engine = Engine(evaluator, Plan(channels_last=True))
        assert engine.plan.channels_last
        for point in several(evaluator):
            assert_same(engine.loss(point), evaluator.loss(point))


@pytest.mark.parametrize("points", [1, 2])
def test_a_model_may_write_to_its_inputs(points: int) -> None:
    def shifted(net: Any, x: Tensor) -> Tensor:
        return net.layer(x.sub_(0.1))

    with Evaluator(problem_of(Net(shifted, 4, layer=nn.Conv2d(2, 4, 3)), 2, 6, 6)) as evaluator:
        expected = evaluator.loss().value
        found = Engine(evaluator, Plan(points=points)).losses([evaluator.origin] * 2)
        assert evaluator.loss().value == expected
    assert [one.value for one in found] == pytest.approx([expected] * 2, rel=1e-12)


def test_sparse_batches_are_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 7, generator=generator).relu().to_sparse()
    y = torch.randint(0, 3, (N,), generator=generator)
    problem = Problem(nn.Linear(7, 3), nn.CrossEntropyLoss(), [(x, y)], dtype="float32")
    with Evaluator(problem) as evaluator:
        engine = Engine(evaluator, Plan(piece=4))
        assert engine.plan.piece == 4
        assert_same(engine.loss(), evaluator.loss(), rel=1e-6)


def test_batches_whose_size_is_unknown_are_evaluated() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

    def batch_loss(model: Any, batch: Any) -> tuple[Tensor, float]:
        return model.layer(batch["x"]).square().sum() * batch["scale"].sum(), 2.0

    batch = {"x": torch.ones(4, 3), "scale": torch.ones(3)}
    problem = Problem(Scaled(), data=[batch], batch_loss=batch_loss)
    with Evaluator(problem) as evaluator:
        engine = Engine(evaluator, choose_plan(evaluator))
        assert engine.loss().value == evaluator.loss().value


# The choice


@pytest.mark.parametrize("n_points", [1, 31, 32, 10_000])
def test_the_chosen_plan_holds(n_points: int) -> None:
    with Evaluator(case_named("conv_batch_norm_eval").build(5)) as evaluator:
        plan = choose_plan(evaluator, n_points=n_points)
        assert plan.fold
        if n_points < 32:
            assert plan == Plan(fold=True)
        engine = Engine(evaluator, plan)
        assert engine.plan == plan
        for point in several(evaluator):
            assert_same(engine.loss(point), evaluator.loss(point))
        assert evaluator.passes["forwards"] == 6  # choosing is no pass


def test_a_choice_for_no_point() -> None:
    with Evaluator(case_named("mlp").build(5)) as evaluator:
        with pytest.raises(InvalidArgumentError, match="at least 1 point, got n_points = 0"):
            choose_plan(evaluator, n_points=0)


def test_a_model_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(model: nn.Module) -> Any:
        def fail(x: Tensor) -> Tensor:
            msg = "no C++ compiler"
            raise RuntimeError(msg)

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    with Evaluator(case_named("mlp").build(5)) as evaluator:
        with pytest.warns(UserWarning, match=r"without torch\.compile: .*no C\+\+ compiler"):
            plan = choose_plan(evaluator, n_points=5, compile=True)
        assert plan == PLAIN


@pytest.mark.slow
def test_a_compiled_model_gives_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch's own compiler
        with Evaluator(case_named("conv_batch_norm_eval").build(5)) as evaluator:
            plan = choose_plan(evaluator, n_points=5, compile=True)
            assert plan == Plan(fold=True, compiled=True)
            engine = Engine(evaluator, plan)
            for point in several(evaluator):
                assert_same(engine.loss(point), evaluator.loss(point), rel=1e-11)
