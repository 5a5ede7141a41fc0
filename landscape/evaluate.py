"""The loss of the whole data set, and its gradient, at any flat weight vector.

`Evaluator` is the one place that runs a user's model. It substitutes weights without writing to
the model, accumulates (sum, weight) in float64 and divides once, so that any batching gives the
same numbers to rounding, and it counts the passes that it makes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.derivatives import differentiate
from landscape.errors import LandscapeError, NonFiniteError, ProblemError
from landscape.loss_check import check_loss
from landscape.params import preserved, seed_all
from landscape.precision import float32_products
from landscape.problem import Problem
from landscape.problem.data import copied, describe, examples_in, rebuilt
from landscape.problem.losses import BatchTerms
from landscape.randomness import whole_seed
from landscape.results import Cost
from landscape.sums import LossSums, LossValue, VectorSum, metric_total

__all__ = ["Evaluator", "LossValue", "require_finite"]

T = TypeVar("T")


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

        Raises:
            ProblemError: inside `torch.inference_mode`, where nothing has a derivative.
        """
        if torch.is_inference_mode_enabled():
            msg = (
                "torch.inference_mode() is on, and a measurement needs derivatives: leave it first"
            )
            raise ProblemError(msg)
        self.problem = problem
        self.origin = problem.weights
        self.passes = {"forwards": 0, "gradients": 0, "hvps": 0}
        self._seed = whole_seed(seed)
        self._host = _Host(problem.model)
        self._stack = ExitStack()
        self._started = time.perf_counter()

    def __enter__(self) -> Evaluator:
        batches = self.problem.batches
        with ExitStack() as stack:
            stack.enter_context(preserved(self.problem.model))
            stack.enter_context(float32_products(tf32=False))
            self.problem.model.train(self.problem.mode == "train")
            self._constants = self._frozen_tensors()
            self._copies = {name: tensor.clone() for name, tensor in self._constants.items()}
            self._writes_buffers = self._compared = False
            self._batches = batches
            if self.problem.additive is None:
                with torch.no_grad():
                    check_loss(self.problem, lambda batch, i: self.terms(self.origin, batch, i))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def cost(self) -> Cost:
        """What has been spent since the evaluator was made."""
        return Cost(**self.passes, seconds=time.perf_counter() - self._started)

    def loss(
        self, vector: Tensor | None = None, *, buffers: Mapping[str, Tensor] | None = None
    ) -> LossValue:
        """Evaluate the loss and the metrics.

        Args:
            vector: weights of shape (n,); None: the origin.
            buffers: values for some of the model's buffers, by name; None: its own.

        Returns:
            The loss of the data set. Cost: one forward pass.
        """
        sums = LossSums(self.problem.loss.sums)
        tensors = self.substitutes(self.origin if vector is None else vector, buffers)
        self.passes["forwards"] += 1
        with torch.no_grad():
            for terms, metrics in self.over(tensors, lambda: enumerate(self._batches), self.result):
                sums.add(terms)
                sums.add_metrics(metrics)
        return sums.result()

    def result(
        self, model: nn.Module, batch: Any
    ) -> tuple[BatchTerms, dict[str, tuple[Tensor, int]]]:
        """Evaluate the loss and the metrics of one batch, inside of `over` or `on_batch`.

        Args:
            model: with the weights in place.
            batch: one of the problem's batches, or a part of one.

        Returns:
            What it contributes to the loss, and sum and number of examples of each metric.
        """
        terms, arguments = self.problem.loss(model, batch)
        return terms, {
            name: metric_total(name, metric(*rebuilt(arguments)), examples_in(batch))
            for name, metric in self.problem.metrics.items()
        }

    def gradient(self, vector: Tensor | None = None) -> tuple[LossValue, Tensor]:
        """Evaluate the loss and its gradient.

        Args:
            vector: weights of shape (n,); None: the origin.

        Returns:
            The loss of the data set (without metrics) and its gradient, shape (n,), accumulated
            over the batches in float64. Cost: one gradient pass.
        """
        leaf = (self.origin if vector is None else vector).detach().requires_grad_(True)
        sums = LossSums(self.problem.loss.sums)
        total = VectorSum(self._batches.n_batches)
        self.passes["gradients"] += 1
        with torch.enable_grad():
            for i, batch in enumerate(self._batches):
                terms = self.terms(leaf, batch, i)
                total.add(differentiate(terms.total, leaf))
                sums.add(terms)
        return sums.result(), (total.value / sums.divisor).to(leaf.dtype)

    def terms(self, vector: Tensor, batch: Any, index: int) -> BatchTerms:
        """Evaluate one batch, differentiably.

        Args:
            vector: weights of shape (n,).
            batch: one of the problem's batches, or a part of one.
            index: its number, for messages and for the dropout masks.

        Returns:
            What it contributes to the loss.
        """
        return self.on_batch(
            vector, batch, index, lambda model, batch: self.problem.loss(model, batch)[0]
        )

    def on_batch(
        self,
        vector: Tensor,
        batch: Any,
        index: int,
        body: Callable[[nn.Module, Any], T],
        *,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> T:
        """Run a function of the model and a batch with substituted weights.

        Args:
            vector: weights of shape (n,).
            batch: one of the problem's batches, or a part of one.
            index: its number, for messages and for the dropout masks.
            body: what to run.
            buffers: values for some of the model's buffers, by name; None: its own.

        Returns:
            What it returns.
        """
        return self._alone(self.substitutes(vector, buffers), batch, index, body)

    def substitutes(
        self, vector: Tensor, buffers: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return what stands in for the model's tensors at a weight vector.

        Args:
            vector: weights of shape (n,).
            buffers: values for some of the model's buffers, by name; None: its own.

        Returns:
            Views of the vector, frozen parameters and buffers, by name with ``model.`` before it.
        """
        named = {f"model.{k}": v for k, v in self.problem.space.unflatten(vector).items()}
        return self._constants | {f"model.{k}": v for k, v in (buffers or {}).items()} | named

    def over(
        self,
        tensors: Mapping[str, Tensor],
        batches: Callable[[], Iterable[tuple[int, Any]]],
        body: Callable[[nn.Module, Any], T],
    ) -> list[T]:
        """Run a function of the model and a batch on many batches with the same tensors.

        They are put in place once for all batches, but not in ``train`` mode, and where the model
        writes to its buffers: a batch would then see what another has left behind.

        Args:
            tensors: what stands in for the model's, as from `substitutes`.
            batches: gives the batches with their numbers, from the first one at each call.
            body: what to run.

        Returns:
            What it returns for each batch.
        """
        if self.problem.mode == "eval" and not self._writes_buffers:
            shielded = self._shielded(tensors)
            intact = False
            try:
                found: tuple[list[T], bool] = functional_call(
                    self._host, shielded, (self._walk(shielded, body), batches()), tie_weights=True
                )
                intact = found[1] and self._are_as_given(shielded, tensors)
            finally:
                self._writes_buffers = any(copy._version for copy in self._copies.values())
            if intact and not self._writes_buffers:
                return found[0]
            self._writes_buffers = True
        return [self._alone(tensors, batch, i, body) for i, batch in batches()]

    def _shielded(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # A layer may write to what it is given; what nobody has replaced is copied only once.
        return dict(tensors) | {
            name: self._copies[name] if tensors[name] is own else tensors[name].clone()
            for name, own in self._constants.items()
        }

    def _are_as_given(self, shielded: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
        """Compare values after the first pass: what is written through ``.data`` has no version."""
        if self._compared:
            return True
        self._compared = True
        return all(torch.equal(shielded[name], given[name]) for name in self._constants)

    def _walk(
        self, tensors: Mapping[str, Tensor], body: Callable[[nn.Module, Any], T]
    ) -> Callable[[nn.Module, Iterable[tuple[int, Any]]], tuple[list[T], bool]]:
        """Return a function that runs the body on every batch, and tells if buffers are intact."""

        def walk(model: nn.Module, batches: Iterable[tuple[int, Any]]) -> tuple[list[T], bool]:
            found = []
            for i, batch in batches:
                with self._users_code(batch, i):
                    found.append(body(model, self._handed_over(batch)))
            return found, all(
                buffer is tensors.get(f"model.{name}") and buffer._version == 0
                for name, buffer in model.named_buffers()
            )

        return walk

    def _alone(
        self,
        tensors: Mapping[str, Tensor],
        batch: Any,
        index: int,
        body: Callable[[nn.Module, Any], T],
    ) -> T:
        # Each batch starts from the same buffers and, in train mode, from masks of its own, so that
        # its loss is one function of the weights, whatever has been evaluated before.
        if self.problem.mode == "train":
            key = np.random.SeedSequence((self._seed % 2**64, index)).generate_state(1)
            seed_all(int(key[0]))
        batch = self._handed_over(batch)
        # Copies of the buffers: layers in train mode write to what they are given.
        fixed = {name: tensors[name].clone() for name in self._constants}
        with self._users_code(batch, index):
            result: T = functional_call(
                self._host, dict(tensors) | fixed, (body, batch), tie_weights=True
            )
        return result

    def _handed_over(self, batch: Any) -> Any:
        # The user's code may take a batch apart, and some of it writes to the tensors.
        return copied(batch) if self.problem.writes_inputs else rebuilt(batch)

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

    @contextmanager
    def _users_code(self, batch: Any, index: int) -> Iterator[None]:
        where = f"batch {index} of the {self.problem.split} data"
        try:
            yield
        except LandscapeError as error:
            msg = f"{where}: {error}"
            raise type(error)(msg) from error
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            msg = (
                f"{where} ({describe(batch)}): the model, the loss or a metric failed with "
                f"{type(error).__name__}: {first}{_hint(first)}"
            )
            raise ProblemError(msg) from error


def _hint(said: str) -> str:
    if "does not require grad" not in said:
        return ""
    return (
        "; values are computed without gradients: if the loss itself differentiates, by its inputs "
        "for example, let it do so under torch.enable_grad()"
    )


class _Host(nn.Module):
    """Carries the model, so that any function of it runs with substituted weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        return body(self.model, batch)


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
