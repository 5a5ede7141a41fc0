"""The engine: the loss at many weight vectors, the way of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from torch import Tensor

from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._holding import plan_that_holds
from landscape.evaluate._pieces import pieces_of
from landscape.evaluate._plans import PLAIN, Plan, check_precision
from landscape.evaluate._running import Runner
from landscape.evaluate._sums import LossSums, LossValue

__all__ = ["Engine"]


class Engine:
    """Evaluates the loss of the data set at many weight vectors.

    The numbers are those of `Evaluator.loss` to rounding: what of a plan does not give them on the
    first examples, at the origin and beside it, is not done. Nothing is left in the model between
    two calls.

    Attributes:
        evaluator: what runs the model.
        plan: what of the plan is done.
        folds: the BatchNorm layers that are folded, each with the layer that it is folded into.
        precision: what is computed in.
    """

    def __init__(
        self, evaluator: Evaluator, plan: Plan = PLAIN, *, precision: str = "exact"
    ) -> None:
        """Try the plan on the first examples.

        Args:
            evaluator: an entered evaluator.
            plan: the way, for example from `choose_plan`.
            precision: ``exact``: that of the problem's dtype; ``bfloat16`` or ``float16``: what
                torch.autocast computes in these; ``tf32``: products of float32 on a CUDA device.
                Sums over examples are in float64 whatever the precision.

        Raises:
            InvalidArgumentError: if the precision is unknown, or needs another device or dtype.

        Cost: a few forward passes over 64 examples, or over one batch where it cannot be cut;
        none for the plain plan.
        """
        check_precision(precision, evaluator.problem)
        self.precision = precision
        self.plan, self.folds = plan_that_holds(evaluator, plan)
        self.evaluator = evaluator
        self._runner = Runner(evaluator, self.plan, self.folds, precision=precision)
        self._pieces = pieces_of(evaluator.problem, self.plan)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Forget the pieces of the data that were kept."""
        self._pieces = pieces_of(self.evaluator.problem, PLAIN)

    def loss(
        self,
        vector: Tensor | None = None,
        buffers: Mapping[str, Tensor] | None = None,
        keep: bool = False,
    ) -> LossValue:
        """Evaluate the loss and the metrics.

        Args:
            vector: weights of shape (n,); None: the origin.
            buffers: values for some of the model's buffers, by name; None: its own.
            keep: also give the loss and the weight of each example.

        Returns:
            The loss of the data set. Cost: one forward pass.
        """
        vector = self.evaluator.origin if vector is None else vector
        return self.losses([vector], buffers, keep)[0]

    def losses(
        self,
        vectors: Sequence[Tensor],
        buffers: Mapping[str, Tensor] | None = None,
        keep: bool = False,
    ) -> list[LossValue]:
        """Evaluate the loss and the metrics at several weight vectors.

        Args:
            vectors: weights, each of shape (n,).
            buffers: values for some of the model's buffers, by name; None: its own.
            keep: also give the loss and the weight of each example.

        Returns:
            The loss of the data set at each. Cost: one forward pass each.
        """
        found: list[LossSums] = []
        for first in range(0, len(vectors), self.plan.points):
            chunk = vectors[first : first + self.plan.points]
            found += self._runner.sums(chunk, self._pieces, buffers)
        self.evaluator.passes["forwards"] += len(vectors)
        return [sums.result(keep=keep) for sums in found]
