"""Tiny problems that between them hold every feature that could break a measurement.

`CASES` is what the operators and measures are tested on. Each case builds the problem for the
library in any batches, and gives the exact loss, gradient and Hessian by torch.func on the whole
data with torch's own mean loss: no code of the library is used to find them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.problem import Problem
from landscape.tasks import digits

N_EXAMPLES = 13  # prime: the last batch is short whatever the batch size
N_CLASSES = 3


@dataclass(frozen=True)
class Parts:
    """What a problem is made of, and the mean of its loss as torch alone computes it."""

    model: nn.Module
    data: tuple[Tensor, ...]
    reference: Callable[..., Tensor]
    loss: Callable[..., Any] | None = None
    batch_loss: Callable[..., Any] | None = None
    weights: Tensor | None = None  # of the examples in the mean, where they are not all 1

    def example(self, i: int) -> tuple[Tensor, ...]:
        return tuple(part[i : i + 1] for part in self.data)


@dataclass(frozen=True)
class Case:
    """A problem by name; `make` draws its weights and data from the global generator.

    `depends_on_batches` marks the losses that are another function for every batching,
    `by_double_backward` the models that torch.func cannot take: vmap has no rule for an LSTM, and
    that for the second derivative of a layer norm is wrong (torch 2.13: not symmetric).
    """

    name: str
    make: Callable[[], Parts]
    seed: int = 0
    mode: str = "eval"
    depends_on_batches: bool = False
    by_double_backward: bool = False

    def parts(self) -> Parts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            parts = self.make()
        parts.model.train(self.mode == "train").double()
        return parts

    def build(
        self,
        batch_size: int | None = None,
        dtype: str = "float64",
        *,
        partition: Sequence[int] | None = None,
        **options: Any,
    ) -> Problem:
        """Make the problem: by default one batch, else batches of one size, or of any sizes."""
        parts = self.parts()
        if partition is None:
            partition = equal_batches(batch_size or N_EXAMPLES)
        return Problem(
            parts.model,
            parts.loss,
            cut(parts.data, partition),
            batch_loss=parts.batch_loss,
            mode=self.mode,
            dtype=dtype,
            name=self.name,
            **options,
        )

    def dense_loss(self, at: Tensor | None = None) -> float:
        function, own = self._loss_of_vector()
        return float(function(own if at is None else at))

    def dense_gradient(self, at: Tensor | None = None) -> Tensor:
        function, own = self._loss_of_vector()
        return torch.func.grad(function)(own if at is None else at)

    def dense_hessian(self, at: Tensor | None = None) -> Tensor:
        function, own = self._loss_of_vector()
        at = own if at is None else at
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            # torch's forward mode starts its own torch.jit.script.
            warnings.simplefilter("ignore", DeprecationWarning)
            if self.by_double_backward:
                return torch.autograd.functional.hessian(function, at)
            return torch.func.hessian(function)(at)

    def dense_ggn(self) -> Tensor:
        """Return JᵀBJ, J the Jacobian of the outputs and B the Hessian of the mean loss in them."""
        parts = self.parts()
        net, own = self._net_of_vector(parts)

        def outputs(vector: Tensor) -> Tensor:
            out: Any = None

            def keep(*x: Tensor) -> Any:
                nonlocal out
                out = net(vector)(*x)
                return out

            parts.reference(keep, *parts.data)
            return out[0] if isinstance(out, tuple) else out

        def loss(z: Tensor) -> Tensor:
            tupled = isinstance(parts.model, TupleModel)
            return parts.reference(lambda *x: (z, None) if tupled else z, *parts.data)

        z = outputs(own).detach()
        jacobian = torch.autograd.functional.jacobian(outputs, own).reshape(z.numel(), len(own))
        inner = torch.autograd.functional.hessian(loss, z).reshape(z.numel(), z.numel())
        return jacobian.T @ inner @ jacobian

    def dense_fisher(self) -> Tensor:
        """Return Σ ωᵢ gᵢgᵢᵀ / Σ ωᵢ, gᵢ the gradient of torch's own mean loss of one example."""
        parts = self.parts()
        net, own = self._net_of_vector(parts)
        weights = torch.ones(N_EXAMPLES) if parts.weights is None else parts.weights
        total = torch.zeros(len(own), len(own), dtype=torch.float64)
        for i in weights.nonzero().flatten().tolist():
            leaf = own.clone().requires_grad_(True)
            loss = parts.reference(net(leaf), *parts.example(i))
            (g,) = torch.autograd.grad(loss, leaf)
            total += weights[i] * torch.outer(g, g)
        is_sum = getattr(parts.loss, "reduction", "mean") == "sum"
        return total if is_sum else total / weights.sum()

    def _loss_of_vector(self) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        parts = self.parts()
        net, own = self._net_of_vector(parts)
        return lambda vector: parts.reference(net(vector), *parts.data), own

    def _net_of_vector(self, parts: Parts) -> tuple[Callable[[Tensor], Any], Tensor]:
        model = parts.model
        if self.mode == "train":
            _use_batch_statistics(model)
        trainable = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
        sizes = [p.numel() for p in trainable.values()]

        def net(vector: Tensor) -> Any:
            pieces = vector.split(sizes)
            named = {
                k: piece.reshape(p.shape)
                for (k, p), piece in zip(trainable.items(), pieces, strict=True)
            }
            return lambda *x: functional_call(model, named, x)

        return net, torch.cat([p.reshape(-1) for p in trainable.values()])

    def __str__(self) -> str:
        return self.name


def equal_batches(size: int, n: int = N_EXAMPLES) -> list[int]:
    """Sizes of batches that hold n examples: all equal but the last."""
    return [size] * (n // size) + ([n % size] if n % size else [])


def cut(data: tuple[Tensor, ...], partition: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Cut tensors along their first axis into batches of the given sizes."""
    ends = list(accumulate(partition))
    if ends[-1] != len(data[0]):
        msg = f"the batches {list(partition)} do not hold {len(data[0])} examples"
        raise ValueError(msg)
    starts = [0, *ends[:-1]]
    return [tuple(t[a:b] for t in data) for a, b in zip(starts, ends, strict=True)]


def partitions(n: int = N_EXAMPLES) -> st.SearchStrategy[list[int]]:
    """All ways to cut n examples into batches, in order."""
    cuts = st.sets(st.integers(1, n - 1)).map(lambda found: [0, *sorted(found), n])
    return cuts.map(lambda ends: [b - a for a, b in pairwise(ends)])


def _use_batch_statistics(model: nn.Module) -> None:
    # By hand: torch.func cannot write running statistics, and its second derivative of
    # F.batch_norm with batch statistics is wrong (torch 2.13: not even symmetric).
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.forward = MethodType(_normalised_by_batch, part)


def _normalised_by_batch(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    scale = (centred.square().mean(dim=0) + norm.eps).rsqrt()
    return centred * scale * norm.weight + norm.bias


def _inputs(*shape: int) -> Tensor:
    return torch.randn(N_EXAMPLES, *shape, dtype=torch.float64)


def _labels(*shape: int) -> Tensor:
    return torch.randint(N_CLASSES, (N_EXAMPLES, *shape))


def _mlp(n_outputs: int = N_CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, n_outputs))


CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.5], dtype=torch.float64)


def _supervised(model: nn.Module, x: Tensor, y: Tensor, module: nn.Module) -> Parts:
    reference = module.double()
    return Parts(model, (x, y), lambda net, a, b: reference(net(a), b), loss=module)


def _mlp_cross_entropy() -> Parts:
    return _supervised(_mlp(), _inputs(3), _labels(), nn.CrossEntropyLoss())


def _conv_batch_norm() -> Parts:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, N_CLASSES)
    )
    norm = model[1]
    norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0]))
    norm.num_batches_tracked.fill_(7)
    nn.init.normal_(norm.weight, mean=1.0, std=0.3)
    nn.init.normal_(norm.bias)
    return _supervised(model, _inputs(1, 4, 4), _labels(), nn.CrossEntropyLoss())


def _regression() -> Parts:
    return _supervised(_mlp(2), _inputs(3), _inputs(2), nn.MSELoss())


def _class_weights() -> Parts:
    loss, labels = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS.clone()), _labels()
    parts = _supervised(_mlp(), _inputs(3), labels, loss)
    return replace(parts, weights=CLASS_WEIGHTS[labels])


class TokenModel(nn.Module):
    """An embedding and a linear layer for every position; the classes are the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, N_CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens))).movedim(-1, 1)


def _ignore_index() -> Parts:
    tokens = torch.randint(5, (N_EXAMPLES, 4))
    labels = _labels(4)
    # Every example keeps another number of tokens, and one of them none.
    kept = torch.arange(4) < torch.randint(5, (N_EXAMPLES, 1))
    kept[2] = False
    kept[0, 0] = True
    labels[~kept] = -1
    parts = _supervised(TokenModel(), tokens, labels, nn.CrossEntropyLoss(ignore_index=-1))
    return replace(parts, weights=kept.sum(dim=1).double())


def _label_smoothing() -> Parts:
    loss = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS.clone(), label_smoothing=0.2)
    labels = _labels()
    return replace(_supervised(_mlp(), _inputs(3), labels, loss), weights=CLASS_WEIGHTS[labels])


def _soft_labels() -> Parts:
    targets = torch.softmax(_inputs(N_CLASSES), dim=1)
    return _supervised(_mlp(), _inputs(3), targets, nn.CrossEntropyLoss())


class TiedModel(nn.Module):
    """One matrix under two names, as in a language model, and a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def _tied() -> Parts:
    return _supervised(TiedModel(), _inputs(3), _labels(), nn.CrossEntropyLoss())


def _frozen() -> Parts:
    model = _mlp()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return _supervised(model, _inputs(3), _labels(), nn.CrossEntropyLoss())


class UnusedModel(nn.Module):
    """A parameter in the middle that the loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.idle = nn.Linear(2, 2)
        self.last = nn.Linear(4, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def _unused() -> Parts:
    return _supervised(UnusedModel(), _inputs(3), _labels(), nn.CrossEntropyLoss())


def _batch_norm_train() -> Parts:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, N_CLASSES))
    return _supervised(model, _inputs(3), _labels(), nn.CrossEntropyLoss())


def _bce_with_logits() -> Parts:
    loss = nn.BCEWithLogitsLoss(
        weight=torch.tensor([1.0, 0.5], dtype=torch.float64),
        pos_weight=torch.tensor([2.0, 0.3], dtype=torch.float64),
    )
    targets = torch.randint(2, (N_EXAMPLES, 2)).double()
    return _supervised(_mlp(2), _inputs(3), targets, loss)


class TupleModel(nn.Module):
    """Returns its hidden layer beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, N_CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.first(x))
        return self.last(hidden), hidden


def _tuple_outputs() -> Parts:
    def reference(net: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x)[0], y)

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(output[0], target, reduction="none")

    return Parts(TupleModel(), (_inputs(3), _labels()), reference, loss=loss)


def log_cosh(output: Tensor, target: Tensor) -> Tensor:
    """One loss per example, which is no module of torch."""
    return torch.log(torch.cosh(output - target)).sum(dim=1)


def _per_example() -> Parts:
    def reference(net: Any, x: Tensor, y: Tensor) -> Tensor:
        return log_cosh(net(x), y).mean()

    return Parts(_mlp(2), (_inputs(3), _inputs(2)), reference, loss=log_cosh)


def _sum_and_weight() -> Parts:
    def batch_loss(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        x, y, importance = batch
        return (importance * log_cosh(model(x), y)).sum(), importance.sum()

    def reference(net: Any, x: Tensor, y: Tensor, importance: Tensor) -> Tensor:
        return (importance * log_cosh(net(x), y)).sum() / importance.sum()

    data = _inputs(3), _inputs(2), 3 * torch.rand(N_EXAMPLES, dtype=torch.float64)
    return Parts(_mlp(2), data, reference, batch_loss=batch_loss)


def _plain_sum() -> Parts:
    return _supervised(_mlp(2), _inputs(3), _inputs(2), nn.MSELoss(reduction="sum"))


class Attention(nn.Module):
    """A transformer block on sequences of four, with torch's fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.mix = nn.Linear(2, 6), nn.Linear(2, 2)
        self.norm, self.head = nn.LayerNorm(2), nn.Linear(2, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.norm(x + self.mix(mixed.transpose(1, 2).flatten(2)))
        return self.head(F.gelu(x)).mean(dim=1)


def _attention() -> Parts:
    return _supervised(Attention(), _inputs(4, 2), _labels(), nn.CrossEntropyLoss())


class Recurrent(nn.Module):
    """An LSTM over sequences of three, and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 2, batch_first=True), nn.Linear(2, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def _recurrent() -> Parts:
    return _supervised(Recurrent(), _inputs(3, 2), _labels(), nn.CrossEntropyLoss())


def _kinks() -> Parts:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.PReLU(2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, N_CLASSES),
    )
    return _supervised(model, _inputs(1, 4, 4), _labels(), nn.CrossEntropyLoss())


CASES = (
    Case("mlp", _mlp_cross_entropy),
    Case("conv_batch_norm_eval", _conv_batch_norm),
    Case("regression", _regression),
    Case("class_weights", _class_weights),
    Case("ignore_index", _ignore_index),
    Case("label_smoothing_class_weights", _label_smoothing),
    Case("soft_labels", _soft_labels),
    Case("tied", _tied),
    Case("frozen", _frozen),
    Case("unused", _unused),
    Case("batch_norm_train", _batch_norm_train, mode="train", depends_on_batches=True),
    Case("bce_with_logits", _bce_with_logits),
    Case("tuple_outputs", _tuple_outputs),
    Case("per_example", _per_example),
    Case("sum_and_weight", _sum_and_weight),
    Case("plain_sum", _plain_sum),
    Case("attention", _attention, by_double_backward=True),
    Case("lstm", _recurrent, by_double_backward=True),
    Case("prelu_and_max_pool", _kinks),
)


def case_named(name: str) -> Case:
    """Return the case of that name."""
    return {case.name: case for case in CASES}[name]


def in_batches(*sizes: int | None) -> list[Any]:
    """Pair every case with every size of batches, as parameters of a test; None is one batch."""
    reason = "with batch statistics each batching has a loss of its own"
    skip = pytest.mark.skip(reason=reason)
    return [
        pytest.param(
            case,
            size,
            marks=[skip] if size and case.depends_on_batches else [],
            id=f"{case}-{size or 'all'}",
        )
        for case in CASES
        for size in sizes
    ]


def trained_on_digits(order: Tensor) -> Problem:
    """A perceptron after 30 steps on the first digits, with these in any order as its data."""
    x, y = (part[: len(order)] for part in digits.data("train"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return Problem(model, nn.CrossEntropyLoss(), (x[order], y[order]))
