"""Several weight vectors together: the model runs at each, and what is no pass is done once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from landscape.evaluate._accumulators import LossSums
from landscape.evaluate._displaced import Displaced
from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._pieces import Numbered
from landscape.problem.losses import BatchTerms

# Outputs that wait for the loss together: as many numbers as stay in the cache.
_WAITING, _MOST = 2**17, 32


class PointSums(LossSums):
    """Sums over the batches at one of several weight vectors, which are added up together."""

    @staticmethod
    def add_up(block: Sequence[PointSums]) -> None:
        """Make the totals of all: the bits that each makes by itself, in far fewer operations."""
        if not block:
            return
        totals = torch.stack([part for sums in block for part in sums._totals])
        weights = torch.stack([part for sums in block for part in sums._weights])
        # Of examples that are weighted alike, w · w is one number.
        known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        squares = [part for sums in block for part in sums._squares(known)]
        shape = len(block), -1
        columns = [totals.view(shape).sum(1), weights.view(shape).sum(1)]
        numbers = torch.cat([*columns, torch.stack(squares)]).tolist()
        for i, sums in enumerate(block):
            n = sum(len(terms) for terms, _ in sums._examples or ())
            own = numbers[2 * len(block) + 3 * i :][:3]
            sums._known = [numbers[i], numbers[len(block) + i], *own, float(n)]

    def _squares(self, known: dict[tuple[int, ...], tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Return s · s, s · w and w · w, of the losses s and the weights w of the examples."""
        if self._examples is None:
            return [torch.full_like(self._totals[0], math.nan)] * 3
        terms = torch.cat([terms for terms, _ in self._examples]).double()
        key = tuple(id(weights) for _, weights in self._examples)
        if key not in known:
            weights = self.examples[1]  # type: ignore[index]
            known[key] = weights, weights @ weights
        weights, square = known[key]
        return [terms @ terms, terms @ weights, square]


@dataclass
class _Waiting:
    """What the model returned for a batch; the terms of the loss, where they are known."""

    output: Any
    target: Any
    version: int
    terms: BatchTerms | None


class Blocks:
    """Runs the model at several vectors, and the loss once for all outputs on a batch.

    That is done for losses of torch whose rows do not depend on each other, without metrics, and
    has to give the bits of one after the other at the first vectors.

    Attributes:
        n: vectors that are taken together; 1: this is not done.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator, self._is_trial = evaluator, True
        problem = evaluator.problem
        self.n = 2 if problem.loss.splits and not problem.metrics else 1

    def sums(
        self,
        vectors: Sequence[Tensor | Displaced],
        pieces: Callable[[], Numbered],
        buffers: Mapping[str, Tensor] | None,
    ) -> list[PointSums] | None:
        """Evaluate at n vectors or less; None: they have to be evaluated one after the other."""
        evaluator, loss = self._evaluator, self._evaluator.problem.loss
        rows = [
            list(evaluator.over(vector, pieces(), self._run, buffers=buffers)) for vector in vectors
        ]
        for column in zip(*rows, strict=True):
            if not self._finish(column):
                self.n = 1
                return None
        if self._is_trial:
            self._decide(rows)
        found = [PointSums(loss.sums) for _ in vectors]
        for sums, row in zip(found, rows, strict=True):
            for result in row:
                assert result.terms is not None
                sums.add(result.terms)
        return found

    def _run(self, model: nn.Module, batch: Any) -> _Waiting:
        loss = self._evaluator.problem.loss
        output, target = loss.forward(model, batch)
        waits = loss.can_wait(output, target)
        at_once = self._is_trial or not waits
        terms = loss.of_output(output, target, batch) if at_once else None
        return _Waiting(output if waits else None, target, output._version if waits else 0, terms)

    def _finish(self, column: Sequence[_Waiting]) -> bool:
        """Give their terms to the outputs on one batch; False: they are not what was returned."""
        waiting = [result for result in column if result.output is not None]
        outputs = [result.output for result in waiting]
        if len({output.data_ptr() for output in outputs}) < len(outputs) or any(
            result.output._version != result.version for result in waiting
        ):
            return False  # the model has written to it in a later pass
        if outputs:
            every = self._evaluator.problem.loss.of_outputs(outputs, waiting[0].target)
            for result, terms in zip(waiting, every, strict=True):
                if result.terms is not None and not _same_bits(result.terms, terms):
                    return False
                result.terms = terms
        return True

    def _decide(self, rows: Sequence[Sequence[_Waiting]]) -> None:
        """Choose how many vectors to take together, once all of their outputs have waited."""
        first, last = (
            [r.output for r in row if r.output is not None] for row in (rows[0], rows[-1])
        )
        if len(last) < len(rows[-1]):
            self.n = 1
        elif len(first) == len(rows[0]):  # else the weights of the targets have just been found
            self.n = max(1, min(_MOST, _WAITING // max(output.numel() for output in first)))
            self._is_trial = False


def _same_bits(one: BatchTerms, other: BatchTerms) -> bool:
    return all(
        a is not None and b is not None and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in ((one.total, other.total), (one.terms, other.terms))
    )
