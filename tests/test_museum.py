"""A museum of silently wrong derivatives: each measure is right, or refuses and names what it met.

The oracle never differentiates twice: central differences of gradients by one backward pass, or
of losses where the gradient itself is none, in float64, with the weights written in place into the
model in a plain loop.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, parametrizations
from torch.utils.checkpoint import checkpoint

import landscape as ls

# Deprecations of torch are part of the exhibits, and cautions of the library of their labels.
pytestmark = pytest.mark.filterwarnings("ignore")

STEP = 1e-5
Loss = Callable[[nn.Module, tuple[Tensor, ...]], Tensor]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@dataclass(frozen=True)
class Exhibit:
    """A model with a loss per example, and how it may be measured.

    Attributes:
        make: the model; weights come from the global generator.
        words: one of them is in the message of a refusal; empty: only the number will do.
        twin: the same function in operations that torch differentiates rightly twice.
        true: whether the gradient that backward gives is that of the loss.
        rtol: what counts as right, relative to the largest eigenvalue, where no error is stated.
    """

    make: Callable[[], nn.Module]
    words: tuple[str, ...] = ()
    twin: Callable[[], nn.Module] | None = None
    loss: Loss = cross_entropy
    data: Callable[[], tuple[Tensor, ...]] = lambda: (torch.randn(12, 3), torch.randint(3, (12,)))
    mode: str = "eval"
    true: bool = True
    dtype: torch.dtype = torch.float64
    rtol: float = 1e-4

    def build(self, make: Callable[[], nn.Module] | None = None) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        data = tuple(t.to(self.dtype) if t.is_floating_point() else t for t in self.data())
        return (make or self.make)().to(self.dtype).train(self.mode == "train"), data

    def problem(self) -> ls.Problem:
        model, data = self.build()
        return ls.Problem(model, batch_loss=self.loss, data=[data], mode=self.mode)


class Body(nn.Module):
    """Two linear layers with an exhibit between them."""

    def __init__(self, middle: Callable[..., Any], width: int = 5) -> None:
        super().__init__()
        self.one, self.two, self.middle = nn.Linear(3, width), nn.Linear(width, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.middle(torch.tanh(self.one(x))))


# -- functions -------------------------------------------------------------------------------------


class KeptIntermediate(torch.autograd.Function):
    """exp(x)², the exponential kept on ctx: a part of the second derivative is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.root = x.exp()
        return ctx.root * ctx.root

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.root * ctx.root


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3


class OnceDifferentiable(Cube):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad * ctx.saved_tensors[0] ** 2


class DetachingBackward(Cube):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad * ctx.saved_tensors[0].detach() ** 2


class UngradedBackward(Cube):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        with torch.no_grad():
            return 3 * grad * ctx.saved_tensors[0] ** 2


class StraightThroughSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (ctx.saved_tensors[0].abs() <= 1)


class RecomputedBlock(torch.autograd.Function):
    """Keeps no activations; its backward pass runs the layer again, with the weights of then."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, x: Tensor, *params: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.layer(x)
        return None, *torch.autograd.grad(y, [x, *ctx.layer.parameters()], grad)


class Recomputing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 5), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return RecomputedBlock.apply(self.inner, x, *self.inner.parameters())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.inner, self.reentrant = nn.Sequential(nn.Linear(5, 5), nn.Tanh()), reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.inner(x)
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


# -- layers ----------------------------------------------------------------------------------------


class DetachedScale(nn.Module):
    """Divides by a scale of the batch that is kept in a buffer, and that no gradient sees."""

    def __init__(self, momentum: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.momentum = momentum

    def forward(self, x: Tensor) -> Tensor:
        self.scale.lerp_(x.detach().square().mean().sqrt(), self.momentum)
        return x / self.scale


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).to(x.dtype)


class WeightNorm(nn.Module):
    def __init__(self, kind: Callable[[nn.Module], nn.Module] | None) -> None:
        super().__init__()
        inner = nn.Linear(5, 4)
        torch.manual_seed(1)
        self.inner = parametrizations.weight_norm(inner) if kind is None else kind(inner)
        self.written = kind is None

    def forward(self, x: Tensor) -> Tensor:
        if self.written:
            g, v = self.inner.parametrizations.weight.parameters()
            x = F.linear(x, g * v / v.square().sum(1, keepdim=True).sqrt(), self.inner.bias)
        else:
            x = self.inner(x)
        return F.pad(torch.tanh(x), (0, 1))


class Words(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 4, **settings), nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(words)))


class Padded(nn.Module):
    """Without gradients torch's fast path puts zeros at padded places, with them it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(4, 2), nn.Linear(2, 3)
        layer = nn.TransformerEncoderLayer(2, 1, 3, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1)

    def forward(self, words: Tensor) -> Tensor:
        body = self.body(self.words(words), src_key_padding_mask=words == 0)
        return self.head(body.mean(1))


class Radial(nn.Module):
    """Radial basis functions whose centres are data points: norms of zero."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.centres, self.how = nn.Parameter(torch.arange(9.0).reshape(3, 3).sin()), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "cdist":
            squares = torch.cdist(x, self.centres) ** 2
        else:
            apart = x[:, None] - self.centres
            squares = apart.norm(dim=-1) ** 2 if self.how == "norm" else apart.square().sum(-1)
        return (-squares).exp()


def centred() -> tuple[Tensor, ...]:
    return torch.arange(12.0).reshape(4, 3).sin(), torch.tensor([0, 1, 2, 0])


class Response(nn.Module):
    """Torch's own first derivative of CrossMapLRN2d is wrong, and it has no second (2.13)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 2), nn.Linear(12, 3)
        self.norm = nn.CrossMapLRN2d(3, alpha=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).flatten(1))


class Energy(nn.Module):
    """A scalar whose slope enters the loss, so that a product takes its third derivative."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(3, 4), norm, nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.norm(self.one(x))))[:, 0]


class WrittenNorm(nn.Module):
    """Layer norm (over the last axis) and batch norm in train mode (over the first)."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        apart = x - x.mean(self.axis, keepdim=True)
        return apart / (apart.square().mean(self.axis, keepdim=True) + 1e-5).sqrt()


def layer_norm() -> nn.Module:
    return nn.LayerNorm(4, elementwise_affine=False)


def batch_norm() -> nn.Module:
    return nn.BatchNorm1d(4, affine=False, track_running_stats=False)


def forces(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    with torch.enable_grad():
        x = batch[0].detach().clone().requires_grad_()
        slope = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
    return (batch[1] + slope).square().sum(1)


def penalty(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """A gradient penalty by torch.func: nested levels of functorch around the layer norm."""
    slope = torch.func.vmap(torch.func.grad(lambda x: model(x[None])[0]))(batch[0])
    return model(batch[0]) + (slope.square().sum(1) + 1e-3).sqrt().sub(1).square()


def slopes() -> tuple[Tensor, ...]:
    return torch.randn(8, 3), torch.randn(8, 3)


# -- hooks -----------------------------------------------------------------------------------------


def hooked(kind: str) -> nn.Module:
    model = Body(nn.Identity())
    if kind == "parameter":
        model.one.weight.register_hook(lambda g: 2 * g)
    else:
        factor = 3 if kind == "changing" else 1
        model.one.register_full_backward_hook(lambda module, inputs, outputs: None)
        model.two.register_full_backward_hook(lambda module, inputs, _: (factor * inputs[0],))
    return model


def compiled() -> nn.Module:
    model = Body(nn.Sequential(nn.Linear(5, 5), nn.Tanh()))
    model.middle = torch.compile(model.middle, backend="aot_eager")
    return model


def quantised(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)


def embedded() -> tuple[Tensor, ...]:
    return torch.randint(5, (12,)), torch.randint(3, (12,))


def padded() -> tuple[Tensor, ...]:
    return torch.tensor([[1, 2, 0], [3, 1, 2], [2, 0, 0], [1, 3, 0]]), torch.tensor([0, 1, 2, 1])


NOT_A_GRADIENT = ("gradient", "derivative", "straight-through")
MUSEUM = {
    "intermediate on ctx": Exhibit(
        lambda: Body(lambda x: x + 0.1 * KeptIntermediate.apply(x)),
        ("KeptIntermediate",),
        lambda: Body(lambda x: x + 0.1 * (2 * x).exp()),
    ),
    **{
        function.__name__: Exhibit(
            lambda function=function: Body(function.apply),
            (function.__name__,),
            lambda: Body(lambda x: x**3),
        )
        for function in (OnceDifferentiable, DetachingBackward, UngradedBackward)
    },
    "straight-through sign": Exhibit(
        lambda: Body(StraightThroughSign.apply), ("StraightThroughSign",), true=False
    ),
    "fake quantisation": Exhibit(
        lambda: Body(quantised), ("fake_quantize", "FakeQuantize", "straight-through"), true=False
    ),
    "round": Exhibit(lambda: Body(lambda x: x + (4 * x).round() / 4)),
    "recomputed block": Exhibit(
        lambda: Body(Recomputing()), ("RecomputedBlock",), lambda: Body(Checkpointed(None))
    ),
    "checkpoint": Exhibit(lambda: Body(Checkpointed(False)), (), lambda: Body(Checkpointed(None))),
    "reentrant checkpoint": Exhibit(
        lambda: Body(Checkpointed(True)), ("checkpoint",), lambda: Body(Checkpointed(None))
    ),
    "detached buffer": Exhibit(lambda: Body(DetachedScale()), ("middle", "scale"), true=False),
    "moving buffer": Exhibit(lambda: Body(DetachedScale(0.5)), ("middle", "scale"), true=False),
    "old weight norm": Exhibit(
        lambda: Body(WeightNorm(nn.utils.weight_norm)), ("weight_norm", "WeightNorm")
    ),
    "weight norm": Exhibit(
        lambda: Body(WeightNorm(parametrizations.weight_norm)),
        ("weight_norm", "WeightNorm"),
        lambda: Body(WeightNorm(None)),
    ),
    "layer norm": Exhibit(lambda: Body(nn.LayerNorm(5))),
    "batch norm in train mode": Exhibit(lambda: Body(nn.BatchNorm1d(5)), mode="train"),
    "forces": Exhibit(lambda: Energy(nn.Identity()), (), None, forces, slopes),
    "forces through a layer norm": Exhibit(
        lambda: Energy(layer_norm()),
        ("layer_norm", "LayerNorm"),
        lambda: Energy(WrittenNorm(-1)),
        forces,
        slopes,
    ),
    "forces through a batch norm": Exhibit(
        lambda: Energy(batch_norm()),
        ("batch_norm", "BatchNorm"),
        lambda: Energy(WrittenNorm(0)),
        forces,
        slopes,
        mode="train",
    ),
    "gradient penalty by functorch": Exhibit(
        lambda: Energy(layer_norm()),
        ("layer_norm", "LayerNorm", "functorch"),
        lambda: Energy(WrittenNorm(-1)),
        penalty,
        slopes,
    ),
    "response across maps": Exhibit(
        Response,
        ("CrossMapLRN2d",),
        data=lambda: (torch.randn(8, 1, 3, 3), torch.randint(3, (8,))),
        true=False,
    ),
    "hardswish": Exhibit(lambda: Body(lambda x: F.hardswish(2 * x)), ("hardswish",)),
    "hardsigmoid": Exhibit(lambda: Body(F.hardsigmoid), ("hardsigmoid",)),
    "norm at zero": Exhibit(
        lambda: Radial("norm"), ("norm",), lambda: Radial("square"), data=centred
    ),
    "cdist at zero": Exhibit(
        lambda: Radial("cdist"), ("cdist",), lambda: Radial("square"), data=centred
    ),
    "max_norm not reached": Exhibit(
        lambda: Words(max_norm=100.0), ("max_norm",), Words, data=embedded
    ),
    "max_norm": Exhibit(lambda: Words(max_norm=0.5), ("max_norm",), data=embedded, true=False),
    "sparse embedding": Exhibit(lambda: Words(sparse=True), (), Words, data=embedded),
    "autocast": Exhibit(
        lambda: Body(Autocast()),
        ("autocast",),
        lambda: Body(nn.Linear(5, 5)),
        dtype=torch.float32,
        rtol=0.02,
    ),
    "observing backward hooks": Exhibit(
        lambda: hooked("observing"), (), lambda: Body(nn.Identity())
    ),
    "changing backward hook": Exhibit(
        lambda: hooked("changing"), ("hook", "two", *NOT_A_GRADIENT), true=False
    ),
    "hook on a parameter": Exhibit(
        lambda: hooked("parameter"), ("hook", "one.weight", *NOT_A_GRADIENT), true=False
    ),
    "compiled part": Exhibit(
        compiled, ("torch.compile",), lambda: Body(nn.Sequential(nn.Linear(5, 5), nn.Tanh()))
    ),
    "padding mask": Exhibit(Padded, (), data=padded),
}
every_exhibit = pytest.mark.parametrize("name", MUSEUM)


# -- the oracle ------------------------------------------------------------------------------------


class Written:
    """A model whose weights are written in place: its loss and gradient at any of them."""

    def __init__(self, exhibit: Exhibit, make: Callable[[], nn.Module] | None = None) -> None:
        # In float64 no tensor is cast by autocast: the limit of exact arithmetic.
        self.exhibit = exhibit
        self.model, data = exhibit.build(make)
        self.model.double()
        self.data = tuple(t.double() if t.is_floating_point() else t for t in data)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.buffers = [b.clone() for b in self.model.buffers()]
        self.origin = parameters_to_vector(self.params).detach()

    def mean(self, w: Tensor) -> Tensor:
        with torch.no_grad():
            for p, part in zip(self.params, w.split([p.numel() for p in self.params]), strict=True):
                p.copy_(part.view_as(p))
            for buffer, value in zip(self.model.buffers(), self.buffers, strict=True):
                buffer.copy_(value)
        return self.exhibit.loss(self.model, self.data).mean()

    def gradient(self, w: Tensor) -> Tensor:
        self.model.zero_grad()
        self.mean(w).backward()
        return parameters_to_vector(
            [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in self.params]
        )

    def differences(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        steps = STEP * torch.eye(len(self.origin), dtype=torch.float64)
        rows = [of(self.origin + e) - of(self.origin - e) for e in steps]
        return torch.stack(rows).detach() / (2 * STEP)

    def slope(self) -> Tensor:
        """The gradient from differences of losses."""
        return self.differences(self.mean)

    def hessian(self) -> Tensor:
        matrix = self.differences(self.gradient)
        return (matrix + matrix.T) / 2

    def second_differences(self) -> Tensor:
        """The Hessian from differences of losses alone."""
        n, steps = len(self.origin), 10 * STEP * torch.eye(len(self.origin), dtype=torch.float64)
        matrix = torch.zeros(n, n, dtype=torch.float64)
        with torch.no_grad():
            for i, j in itertools.combinations_with_replacement(range(n), 2):
                a, b, w = steps[i], steps[j], self.origin
                square = (w + a + b, 1.0), (w + a - b, -1.0), (w - a + b, -1.0), (w - a - b, 1.0)
                matrix[i, j] = sum(sign * self.mean(corner) for corner, sign in square)
        return (matrix + matrix.triu(1).T) / (20 * STEP) ** 2

    def twice_differentiated(self) -> Tensor:
        settings: Any = {"create_graph": True, "materialize_grads": True}
        flat = parameters_to_vector(
            torch.autograd.grad(self.mean(self.origin), self.params, **settings)
        )
        rows = [torch.autograd.grad(g, self.params, **settings) for g in flat]
        return torch.stack([parameters_to_vector(row).detach() for row in rows])


@cache
def truth(name: str) -> tuple[float, float, np.ndarray]:
    """The loss, the norm of its gradient, and the eigenvalues of its Hessian, descending."""
    written = Written(MUSEUM[name])
    loss = float(written.mean(written.origin).detach())
    if MUSEUM[name].true:
        norm, hessian = written.gradient(written.origin).norm(), written.hessian()
    else:
        norm, hessian = written.slope().norm(), written.second_differences()
    return loss, float(norm), torch.linalg.eigvalsh(hessian).flip(0).numpy()


@pytest.mark.parametrize("name", [name for name, e in MUSEUM.items() if e.twin])
def test_the_oracle_is_the_hessian_of_the_same_function_in_plain_operations(name):
    exhibit = MUSEUM[name]
    written, twin = Written(exhibit), Written(exhibit, exhibit.twin)
    expected = twin.twice_differentiated()
    assert torch.equal(written.origin, twin.origin)
    torch.testing.assert_close(
        written.gradient(written.origin), twin.gradient(twin.origin), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(written.hessian(), expected, rtol=1e-6, atol=1e-7)


def test_the_oracle_without_gradients_is_that_with_them():
    written = Written(MUSEUM["layer norm"])
    exact, rough = written.hessian(), written.second_differences()
    torch.testing.assert_close(rough, exact, rtol=1e-4, atol=1e-6)


@every_exhibit
def test_the_gradient_is_that_of_the_loss_where_it_is_said_to_be(name):
    written = Written(MUSEUM[name])
    gradient, slope = written.gradient(written.origin), written.slope()
    off = float((gradient - slope).norm() / gradient.norm())
    assert off < 1e-6 if MUSEUM[name].true else off > 1e-3


# -- the measures ----------------------------------------------------------------------------------


def evaluation(problem: ls.Problem, name: str) -> None:
    loss, norm, _ = truth(name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found, rtol = ls.evaluation(problem), MUSEUM[name].rtol
    assert found.loss == pytest.approx(loss, rel=rtol)
    if np.isnan(found.gradient_norm):
        raise ls.LandscapeError(str(said[-1].message))
    assert found.gradient_norm == pytest.approx(norm, rel=rtol, abs=1e-9)


def top_eigenpairs(problem: ls.Problem, name: str) -> None:
    eigenvalues = truth(name)[2]
    found = ls.top_eigenpairs(problem, k=2)
    error = np.maximum(10 * found.residuals, MUSEUM[name].rtol * abs(eigenvalues[0]))
    assert (abs(found.values - eigenvalues[:2]) <= error).all()


def trace(problem: ls.Problem, name: str) -> None:
    eigenvalues = truth(name)[2]
    found = ls.trace(problem, rtol=1e-6)
    error = MUSEUM[name].rtol * abs(eigenvalues).sum()
    assert found.low - error <= eigenvalues.sum() <= found.high + error


def spectral_density(problem: ls.Problem, name: str) -> None:
    """With as many steps as rows every Ritz value of any mass is an eigenvalue."""
    eigenvalues, n = truth(name)[2], problem.space.n
    with mock.patch("landscape.curvature._density._BIAS", 0.0):  # all steps
        found = ls.spectral_density(problem, outliers=0, steps=n, n_probes=2)
    nodes = found.nodes[(found.weights > 1e-6) & np.isfinite(found.nodes)]
    distance = abs(nodes[:, None] - eigenvalues).min(axis=1)
    assert distance.max() <= 10 * MUSEUM[name].rtol * abs(eigenvalues).max()


MEASURES = (evaluation, top_eigenpairs, trace, spectral_density)


@every_exhibit
@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.__name__)
def test_a_measure_is_right_or_names_what_it_met(name, measure):
    problem, exhibit = MUSEUM[name].problem(), MUSEUM[name]
    tensors = [*problem.model.parameters(), *problem.model.buffers()]
    before = [t.detach().clone() for t in tensors]
    refusal = None
    try:
        measure(problem, name)
    except ls.LandscapeError as error:
        refusal = str(error)
    if refusal:
        assert exhibit.words, f"refused, and there is a right answer: {refusal}"
        assert any(word in refusal for word in exhibit.words), refusal
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))
    assert all(p.grad is None for p in problem.model.parameters())
