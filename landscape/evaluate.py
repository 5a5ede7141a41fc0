"""The loss of the whole data set, and its gradient, at any flat weight vector.

`Evaluator` is the one place that runs a user's model. It substitutes weights without writing to
the model, accumulates (sum, weight) in float64 and divides once, so that any batching gives the
same numbers to rounding, and it counts the passes that it makes.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.errors import (
    DataError,
    LandscapeError,
    LossError,
    LossNotAdditiveWarning,
    NonFiniteError,
    ProblemError,
)
from landscape.params import preserved
from landscape.problem import Problem
from landscape.problem.data import describe, examples_in, split_batch
from landscape.problem.losses import BatchTerms
from landscape.results import Cost

T = TypeVar("T")


@dataclass(frozen=True)
class LossValue:
    """The loss of the whole data set at one weight vector.

    Attributes:
        value: Σ sum / Σ weight (the plain sum, for a loss with ``reduction="sum"``).
        se: standard error over the examples; NaN where the loss gives no per-example terms.
        metrics: means over the examples.
    """

    value: float
    se: float
    metrics: Mapping[str, float] = field(default_factory=dict)


class Evaluator:
    """Evaluates a problem over its whole data set; a context that leaves the model as it was.

    Attributes:
        origin: the weights when the context was entered, shape (n,).
        passes: forward, gradient and Hessian-vector passes made so far.
    """

    def __init__(self, problem: Problem, *, seed: int = 0) -> None:
        """Prepare; the context manager does the rest.

        Args:
            problem: what to evaluate.
            seed: of the dropout masks in ``train`` mode, which are the same on every pass.
        """
        self.problem = problem
        self.origin = problem.weights
        self.passes = {"forwards": 0, "gradients": 0, "hvps": 0}
        self._seed = seed
        self._host = _Host(problem.model)
        self._stack = ExitStack()
        self._started = time.perf_counter()

    def __enter__(self) -> Evaluator:
        batches = self.problem.batches
        with ExitStack() as stack:
            stack.enter_context(preserved(self.problem.model))
            self.problem.model.train(self.problem.mode == "train")
            self._constants = self._frozen_tensors()
            self._batches = batches
            if self.problem.additive is None:
                self._check_loss()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def cost(self) -> Cost:
        """What has been spent since the evaluator was made."""
        return Cost(**self.passes, seconds=time.perf_counter() - self._started)

    def loss(self, vector: Tensor | None = None) -> LossValue:
        """Evaluate the loss and the metrics.

        Args:
            vector: weights of shape (n,); None: the origin.

        Returns:
            The loss of the data set. Cost: one forward pass.
        """
        weights = self.origin if vector is None else vector

        def body(model: nn.Module) -> LossValue:
            sums = _Sums(self.problem.loss.sums)
            for i, batch in enumerate(self._batches):
                terms, arguments = self._terms(model, batch, i)
                sums.add(terms)
                for name, metric in self.problem.metrics.items():
                    sums.add_metric(name, self._metric(metric, arguments, i), examples_in(batch))
            return sums.result()

        self.passes["forwards"] += 1
        with torch.no_grad():
            return self._with_weights(weights, body)

    def gradient(self, vector: Tensor | None = None) -> tuple[LossValue, Tensor]:
        """Evaluate the loss and its gradient.

        Args:
            vector: weights of shape (n,); None: the origin.

        Returns:
            The loss of the data set (without metrics) and its gradient, shape (n,), accumulated
            over the batches in float64. Cost: one gradient pass.
        """
        leaf = (self.origin if vector is None else vector).detach().requires_grad_(True)
        sums = _Sums(self.problem.loss.sums)

        def body(model: nn.Module) -> Tensor:
            total = VectorSum(self._batches.n_batches)
            for i, batch in enumerate(self._batches):
                terms, _ = self._terms(model, batch, i)
                total.add(_differentiate(terms.total, leaf))
                sums.add(terms)
            return total.value

        self.passes["gradients"] += 1
        with torch.enable_grad():
            total = self._with_weights(leaf, body)
        return sums.result(), (total / sums.divisor).to(leaf.dtype)

    def batch_gradient_graph(self, vector: Tensor, batch: Any, index: int) -> BatchGradient:
        """Build the gradient of the summed loss of one batch, itself differentiable.

        Args:
            vector: weights of shape (n,).
            batch: one of the problem's batches.
            index: its number, for messages.

        Returns:
            The graph, from which products with the Hessian of the sum are taken.
        """
        leaf = vector.detach().clone().requires_grad_(True)

        def body(model: nn.Module) -> BatchTerms:
            return self._terms(model, batch, index)[0]

        # The fused attention kernels have no second derivative; the plain one has.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            terms = self._with_weights(leaf, body)
            gradient = _differentiate(terms.total, leaf, create_graph=True)
        return BatchGradient(leaf, gradient, float(terms.weight))

    def _with_weights(self, vector: Tensor, body: Callable[[nn.Module], T]) -> T:
        """Run a function of the model while the model's weights are the vector."""
        if self.problem.mode == "train":
            torch.manual_seed(self._seed)
        named = {f"model.{k}": v for k, v in self.problem.space.unflatten(vector).items()}
        # Copies of the buffers: layers in train mode write to what they are given.
        fixed = {name: tensor.clone() for name, tensor in self._constants.items()}
        result: T = functional_call(self._host, named | fixed, (body,), tie_weights=True)
        return result

    def _frozen_tensors(self) -> dict[str, Tensor]:
        model, chosen = self.problem.model, set(self.problem.space.names)
        frozen = {n: p.detach() for n, p in model.named_parameters() if n not in chosen}
        frozen |= dict(model.named_buffers())
        return {
            f"model.{name}": tensor.to(
                self.problem.device,
                self.problem.dtype if tensor.is_floating_point() else tensor.dtype,
            )
            for name, tensor in frozen.items()
        }

    def _terms(self, model: nn.Module, batch: Any, index: int) -> tuple[BatchTerms, Any]:
        return self._users_code(lambda: self.problem.loss(model, batch), batch, index)

    def _metric(self, metric: Callable[..., Any], arguments: Any, index: int) -> Any:
        return self._users_code(lambda: metric(*arguments), arguments, index)

    def _users_code(self, call: Callable[[], T], batch: Any, index: int) -> T:
        where = f"batch {index} of the {self.problem.split} data"
        try:
            return call()
        except LandscapeError as error:
            msg = f"{where}: {error}"
            raise type(error)(msg) from error
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            msg = (
                f"{where} ({describe(batch)}): the model or the loss failed with "
                f"{type(error).__name__}: {first}"
            )
            raise ProblemError(msg) from error

    def _check_loss(self) -> None:
        """Evaluate the first batch twice, and in two halves, before anything is measured."""
        with torch.no_grad():
            batch = next(iter(self._batches))
            once, again = (self._one_batch(batch) for _ in range(2))
            _check_repeatable(once, again, self.problem.mode)
            self.problem.additive = self.problem.mode == "eval"
            if once.is_guess and self.problem.mode == "eval" and examples_in(batch) > 1:
                self._check_additive(batch, float(once.total))

    def _one_batch(self, batch: Any) -> BatchTerms:
        return self._with_weights(self.origin, lambda model: self._terms(model, batch, 0)[0])

    def _check_additive(self, batch: Any, whole: float) -> None:
        halves = split_batch(batch, examples_in(batch) // 2)
        parts = sum(float(self._one_batch(half).total) for half in halves)
        rounding = 1e-4 if self.problem.dtype == torch.float32 else 1e-9
        if abs(whole - parts) <= rounding * max(abs(whole), abs(parts)):
            return
        self.problem.additive = False
        size = examples_in(batch)
        msg = (
            f"the loss of the first batch, {whole / size:.6g}, is not the mean over its two "
            f"halves, {parts / size:.6g}. If it should be (it returns a sum, or divides by tokens "
            "or class weights), return per-example losses, or (sum, weight) from batch_loss. If "
            "examples interact on purpose (an in-batch contrastive loss), all is well: batches "
            "are used as they come, never merged or split"
        )
        warnings.warn(msg, LossNotAdditiveWarning, stacklevel=5)


@dataclass(frozen=True)
class BatchGradient:
    """The gradient of the summed loss of one batch, with its graph.

    Attributes:
        leaf: the weights that it was taken at, shape (n,).
        gradient: shape (n,), differentiable once more.
        weight: what the sum is to be divided by in the end.
    """

    leaf: Tensor
    gradient: Tensor
    weight: float

    def hvp(self, vector: Tensor, *, retain: bool) -> Tensor:
        """Multiply the Hessian of the summed loss with a vector.

        Args:
            vector: shape (n,).
            retain: keep the graph for another product.

        Returns:
            The product, shape (n,); zero where the gradient is constant.
        """
        if not self.gradient.requires_grad:
            return torch.zeros_like(vector)
        (product,) = torch.autograd.grad(
            self.gradient, self.leaf, vector, retain_graph=retain, materialize_grads=True
        )
        return product.detach()


class VectorSum:
    """Sum of vectors over batches: in float64, unless there is only one to add."""

    def __init__(self, n_batches: int) -> None:
        self._single = n_batches == 1
        self.value = torch.zeros(())

    def add(self, vector: Tensor) -> None:
        """Add one vector.

        Args:
            vector: shape (n,).
        """
        if self._single:
            self.value = vector
        elif self.value.ndim == 0:
            self.value = vector.double()
        else:
            self.value += vector


class _Host(nn.Module):
    """Carries the model, so that any function of it runs with substituted weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Callable[[nn.Module], Any]) -> Any:
        return body(self.model)


class _Sums:
    """Accumulates what batches contribute; waits for the device once, at the end."""

    def __init__(self, sums: bool) -> None:
        self._plain_sum = sums
        self._rows: list[Tensor] = []
        self._metrics: dict[str, list[tuple[Tensor, int]]] = {}
        self._totals: Tensor | None = None

    def add(self, terms: BatchTerms) -> None:
        total = terms.total.detach()
        weight = torch.as_tensor(terms.weight, dtype=torch.float64, device=total.device)
        if terms.terms is None or terms.weights is None:
            squares = [torch.full_like(total, math.nan)] * 3 + [torch.zeros_like(total)]
        else:
            s, w = terms.terms.double(), terms.weights.double()
            squares = [s @ s, s @ w, w @ w, torch.full_like(total, len(s))]
        self._rows.append(torch.stack([total, weight, *squares]))

    def add_metric(self, name: str, value: Any, size: int) -> None:
        tensor = torch.as_tensor(value)
        if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != size):
            msg = (
                f"metric {name!r} returned {describe(tensor)} for a batch of {size}; expected one "
                "value per example, or their mean"
            )
            raise ProblemError(msg)
        total = tensor.double().sum() * (size if tensor.ndim == 0 else 1)
        self._metrics.setdefault(name, []).append((total, size))

    @property
    def totals(self) -> list[float]:
        values: list[float] = torch.stack(self._rows).sum(dim=0).tolist()
        return values

    @property
    def divisor(self) -> float:
        """Σ weight, or 1 for a plain sum."""
        weight = self.totals[1]
        if weight <= 0:
            msg = "the total weight of the data is zero: is every target ignored (ignore_index)?"
            raise DataError(msg)
        return 1.0 if self._plain_sum else weight

    def result(self) -> LossValue:
        total, weight, ss, sw, ww, n = self.totals
        value = total / self.divisor
        metrics = {
            name: float(torch.stack([t for t, _ in parts]).sum()) / sum(size for _, size in parts)
            for name, parts in self._metrics.items()
        }
        # Standard error of the ratio Σs/Σw over examples (delta method).
        ratio = total / weight
        residual = ss - 2 * ratio * sw + ratio**2 * ww
        se = math.nan
        if n > 1 and math.isfinite(residual):
            se = math.sqrt(max(residual, 0.0) * n / (n - 1)) / self.divisor
        return LossValue(value, se, metrics)


def _differentiate(total: Tensor, leaf: Tensor, *, create_graph: bool = False) -> Tensor:
    if not total.requires_grad:
        msg = (
            "the loss does not depend on the parameters in a differentiable way; is there a "
            "detach(), a no_grad() or an argmax between the parameters and the loss?"
        )
        raise LossError(msg)
    (gradient,) = torch.autograd.grad(
        total, leaf, create_graph=create_graph, materialize_grads=True
    )
    return gradient


def _check_repeatable(once: BatchTerms, again: BatchTerms, mode: str) -> None:
    first, second = float(once.total), float(again.total)
    same = first == second or (math.isnan(first) and math.isnan(second))
    if not same and abs(first - second) > 1e-4 * max(abs(first), abs(second)):
        msg = (
            f"the model gives another loss for the same batch and the same weights ({first:.6g}, "
            f"then {second:.6g}, in {mode} mode): is there randomness in its forward pass, like "
            "F.dropout without training=self.training?"
        )
        raise ProblemError(msg)


def require_finite(value: float, problem: Problem) -> None:
    """Refuse to go on from a loss that is not finite.

    Args:
        value: the loss at the checkpoint.
        problem: what was evaluated.

    Raises:
        NonFiniteError: if it is NaN or infinite.
    """
    if not math.isfinite(value):
        msg = (
            f"the loss of {problem.name} on the {problem.split} data is {value}: nothing can be "
            "measured from there; check the data for NaN, or choose another checkpoint"
        )
        raise NonFiniteError(msg)
