"""Runs a plan: sums of the loss over pieces of the data at one or several weight vectors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._folding import Fold, Folding
from landscape.evaluate._pieces import Numbered, channels_last
from landscape.evaluate._plans import Plan, computing_in
from landscape.evaluate._stand_ins import stand_ins, substituted
from landscape.evaluate._sums import LossSums
from landscape.problem._live import tensors_by_name
from landscape.problem.losses import BatchTerms

_Result = tuple[BatchTerms, dict[str, tuple[Tensor, int]]]


class Runner:
    """Evaluates as a plan says, without asking whether that gives the same numbers.

    Attributes:
        plan: the plan.
        at_once: whether several vectors are evaluated at once; False as soon as that has failed.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        plan: Plan,
        folds: Sequence[Fold] = (),
        *,
        precision: str = "exact",
    ) -> None:
        self.plan, self._evaluator, self._precision = plan, evaluator, precision
        self._folding = Folding(evaluator, folds) if plan.fold and folds else None
        self._compiled: Any = torch.compile(evaluator.model) if plan.compiled else None
        self.at_once = plan.points > 1 and evaluator.problem.mode == "eval"

    def sums(
        self,
        vectors: Sequence[Tensor],
        pieces: Callable[[], Numbered],
        buffers: Mapping[str, Tensor] | None = None,
    ) -> list[LossSums]:
        """Evaluate the pieces at each vector, with values for some of the buffers."""
        with torch.no_grad():
            if self.at_once and len(vectors) > 1:
                try:
                    return self._together(torch.stack(list(vectors)), pieces, buffers)
                except Exception:
                    # What is wrong with the model or the loss themselves is said below.
                    self.at_once = False
            return [self._alone(vector, pieces, buffers) for vector in vectors]

    def _alone(
        self,
        vector: Tensor,
        pieces: Callable[[], Numbered],
        buffers: Mapping[str, Tensor] | None,
    ) -> LossSums:
        evaluator, sums = self._evaluator, LossSums(self._evaluator.problem.loss.sums)
        evaluator.write(vector, buffers)  # in turn, before layers are replaced
        with self._applied(), stand_ins(evaluator.model, self._replaced({})):
            for terms, metrics in evaluator.over(vector, pieces(), self._result, buffers=buffers):
                sums.add(terms)
                sums.add_metrics(metrics)
        return sums

    def _together(
        self,
        vectors: Tensor,
        pieces: Callable[[], Numbered],
        buffers: Mapping[str, Tensor] | None,
    ) -> list[LossSums]:
        evaluator, sizes = self._evaluator, list[int]()

        def rows(vector: Tensor) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
            named = evaluator.problem.space.unflatten(vector)
            named |= self._replaced(named)

            def body(model: nn.Module, batch: Any) -> _Result:
                return substituted(evaluator, named, batch, self._result)

            results = list(evaluator.over(None, pieces(), body, buffers=buffers))
            sizes[:] = [next((n for _, n in metrics.values()), 0) for _, metrics in results]
            return [
                (_tensors_of(terms), {name: total for name, (total, _) in metrics.items()})
                for terms, metrics in results
            ]

        evaluator.write(None, buffers)
        with self._applied(), warnings.catch_warnings():
            # torch says where vmap has no rule and loops: that is slower, and not wrong.
            warnings.filterwarnings("ignore", ".*performance drop", UserWarning)
            batched = torch.vmap(rows)(vectors)
        found = [LossSums(evaluator.problem.loss.sums) for _ in vectors]
        for (fields, totals), size in zip(batched, sizes, strict=True):
            for i, sums in enumerate(found):
                own = {name: part[i] for name, part in fields.items()}
                examples = own.get("terms"), own.get("weights")
                sums.add(BatchTerms(own["total"], own["weight"], *examples))
                sums.add_metrics({name: (part[i], size) for name, part in totals.items()})
        return found

    def _replaced(self, substitutes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what takes the places of parameters: folded, and with the channels last."""
        model, found = self._evaluator.model, dict[str, Tensor]()
        if self._folding is not None:
            found = self._folding(dict(tensors_by_name(model)) | dict(substitutes))
        if self.plan.channels_last:
            own = dict(model.named_parameters(remove_duplicate=False))
            kernels = {name: weight for name, weight in own.items() if weight.ndim == 4}
            found = {name: channels_last(tensor) for name, tensor in (kernels | found).items()}
        return found

    def _result(self, model: nn.Module, batch: Any) -> _Result:
        return self._evaluator.result(model if self._compiled is None else self._compiled, batch)

    @contextmanager
    def _applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(computing_in(self._precision, self._evaluator.problem.device))
            if self._compiled is not None and hasattr(torch.compiler, "set_stance"):
                stack.enter_context(torch.compiler.set_stance("default"))
            if self._folding is not None:
                stack.enter_context(self._folding.applied())
            yield


def _tensors_of(terms: BatchTerms) -> dict[str, Tensor]:
    """Return what a batch contributes as tensors by name: torch.vmap returns nothing else."""
    weight = torch.as_tensor(terms.weight, dtype=torch.float64, device=terms.total.device)
    parts = {"terms": terms.terms, "weights": terms.weights}
    given = {name: part for name, part in parts.items() if part is not None}
    return {"total": terms.total, "weight": weight, **given}
