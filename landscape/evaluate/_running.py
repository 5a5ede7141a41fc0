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
from landscape.problem.data import rebuilt
from landscape.problem.losses import BatchTerms

# What a piece contributes, as tensors by name: torch.vmap can return nothing else.
_Row = dict[str, Tensor]


class Runner:
    """Goes the way of a plan, as it is told, without asking whether it gives the same numbers.

    Attributes:
        plan: the way.
        folds: the BatchNorm layers that are folded.
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
        """Prepare what does not depend on the weights."""
        self.plan = plan
        self.folds = tuple(folds) if plan.fold else ()
        self._evaluator = evaluator
        self._precision = precision
        self._folding = Folding(evaluator, self.folds) if self.folds else None
        model = evaluator.model
        self._compiled = torch.compile(model) if plan.compiled else None
        self.at_once = plan.points > 1 and evaluator.problem.mode == "eval"

    def sums(
        self,
        vectors: Sequence[Tensor],
        pieces: Callable[[], Numbered],
        buffers: Mapping[str, Tensor] | None = None,
    ) -> list[LossSums]:
        """Evaluate."""
        with torch.no_grad(), self._way():
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
        evaluator.write(vector, buffers)
        with stand_ins(evaluator.model, self._replaced(dict(tensors_by_name(evaluator.model)))):
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
        evaluator, sizes = self._evaluator, list[Mapping[str, int]]()
        evaluator.write(None, buffers)
        live = dict(tensors_by_name(evaluator.model))

        def rows(vector: Tensor) -> list[_Row]:
            named = evaluator.problem.space.unflatten(vector)
            named |= self._replaced(live | named)
            found = [
                substituted(evaluator, named, rebuilt(piece), self._result) for _, piece in pieces()
            ]
            sizes[:] = [{name: size for name, (_, size) in metrics.items()} for _, metrics in found]
            return [_row(terms, metrics) for terms, metrics in found]

        with warnings.catch_warnings():
            # torch says where vmap has no rule and loops: that is slower, and not wrong.
            warnings.filterwarnings("ignore", ".*performance drop", UserWarning)
            batched: list[_Row] = torch.vmap(rows)(vectors)
        found = [LossSums(evaluator.problem.loss.sums) for _ in vectors]
        for row, size in zip(batched, sizes, strict=True):
            for i, sums in enumerate(found):
                terms, metrics = _of_row({name: part[i] for name, part in row.items()}, size)
                sums.add(terms)
                sums.add_metrics(metrics)
        return found

    def _replaced(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what takes the places of parameters: folded, and with the channels last."""
        folded = self._folding(tensors) if self._folding is not None else {}
        if not self.plan.channels_last:
            return folded
        weights = {n: t for n, t in tensors.items() if t.ndim == 4 and t.is_floating_point()}
        return {name: channels_last(tensor) for name, tensor in (weights | folded).items()}

    def _result(
        self, model: nn.Module, batch: Any
    ) -> tuple[BatchTerms, dict[str, tuple[Tensor, int]]]:
        used: Any = model if self._compiled is None else self._compiled
        return self._evaluator.result(used, batch)

    @contextmanager
    def _way(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(computing_in(self._precision, self._evaluator.problem.device))
            if self._compiled is not None and hasattr(torch.compiler, "set_stance"):
                stack.enter_context(torch.compiler.set_stance("default"))
            if self._folding is not None:
                self._evaluator.write()  # in turn, before layers are replaced
                stack.enter_context(self._folding.applied())
            yield


def _row(terms: BatchTerms, metrics: Mapping[str, tuple[Tensor, int]]) -> _Row:
    weight = torch.as_tensor(terms.weight, dtype=torch.float64, device=terms.total.device)
    row = {"total": terms.total, "weight": weight}
    if terms.terms is not None and terms.weights is not None:
        row |= {"terms": terms.terms, "weights": terms.weights}
    return row | {f"metrics.{name}": total for name, (total, _) in metrics.items()}


def _of_row(
    row: _Row, sizes: Mapping[str, int]
) -> tuple[BatchTerms, dict[str, tuple[Tensor, int]]]:
    terms = BatchTerms(row["total"], row["weight"], row.get("terms"), row.get("weights"))
    return terms, {name: (row[f"metrics.{name}"], size) for name, size in sizes.items()}
