"""The loss at many weight vectors, by a plan that has given the numbers of the plain way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.errors import LandscapeError, first_line
from landscape.evaluate._accumulators import Displaced, LossSums, LossValue, Weights
from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._folding import Fold, Folding, find_folds
from landscape.evaluate._plans import (
    PLAIN,
    Numbered,
    Plan,
    arranged,
    channels_last,
    check_precision,
    computing_in,
    pieces_of,
    sample_of,
)
from landscape.problem._live import tensors_by_name
from landscape.problem.losses import BatchTerms
from landscape.processes import n_own, shards
from landscape.randomness import seeded

# Examples that a plan is tried on, where batches can be cut: the first ones of several batches,
# in pieces that join some and cut others, whatever the size of the pieces will be.
_TRIED, _OF_A_BATCH, _PIECE = 64, 32, 24
# How far a plan may be off: times the change by rounding the weights, or relative to the norm.
_NOISE = 30.0
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-11}
# What of a plan is left out first, where it does not hold; the plain plan holds.
_LEAVING: tuple[dict[str, Any], ...] = (
    {"compiled": False},
    {"points": 1},
    {"piece": None, "channels_last": False},
    {"fold": False},
)

# Outputs that wait for the loss together: as many numbers as stay in the cache.
_WAITING, _MOST = 2**17, 32

T = TypeVar("T")
_Result = tuple[BatchTerms, dict[str, tuple[Tensor, int]]]


class Engine:
    """Evaluates the loss of the data set at many weight vectors.

    The numbers are those of `Evaluator.loss` to rounding: what of a plan does not give them on the
    first examples, at the origin and near it, is not done. Nothing is left in the model between
    two calls.
    """

    def __init__(
        self, evaluator: Evaluator, plan: Plan = PLAIN, *, precision: str = "exact"
    ) -> None:
        """Try the plan on the first examples: a few forward passes over 64 of them."""
        check_precision(precision, evaluator.problem)
        self.evaluator, self.precision = evaluator, precision
        self.plan, self.folds = plan_that_holds(evaluator, plan)
        self._runner = Runner(evaluator, self.plan, self.folds, precision=precision)
        self._pieces = pieces_of(evaluator.problem, self.plan)

    def loss(
        self,
        vector: Weights = None,
        buffers: Mapping[str, Tensor] | None = None,
        keep: bool = False,
    ) -> LossValue:
        """Evaluate the loss and the metrics at one weight vector; None: the origin."""
        return self.losses([self.evaluator.origin if vector is None else vector], buffers, keep)[0]

    def losses(
        self,
        vectors: Sequence[Tensor | Displaced],
        buffers: Mapping[str, Tensor] | None = None,
        keep: bool = False,
    ) -> list[LossValue]:
        """Evaluate the loss and the metrics at several weight vectors, one forward pass each.

        With ``keep``, also the loss and the weight of each example.
        """
        found: list[PointSums] = []
        if not n_own(self.evaluator.problem.batches.n_batches):
            found = [PointSums(self.evaluator.problem.loss.sums) for _ in vectors]
        size = self.plan.points if self.plan.points > 1 else max(1, len(vectors))
        for first in range(len(found), len(vectors), size):
            found += self._runner.sums(vectors[first : first + size], self._pieces, buffers)
        self.evaluator.passes["forwards"] += len(vectors)
        PointSums.add_up([sums for sums in found if sums._totals])
        LossSums.share(found, keep=keep)
        return [sums.result(keep=keep) for sums in found]


# Which plan holds


def plan_that_holds(evaluator: Evaluator, plan: Plan) -> tuple[Plan, tuple[Fold, ...]]:
    """Try a plan on the first examples, and leave out what does not give the plain numbers."""
    if plan == PLAIN or evaluator.problem.mode == "train" or shards() is not None:
        return PLAIN, ()
    folds = _folds(evaluator) if plan.fold else ()
    held = replace(plan, fold=bool(folds), piece=plan.piece if evaluator.divisible else None)
    tried = {held: _why_not(evaluator, held, folds)}
    for less in _LEAVING:
        if not tried[held]:
            break
        held = replace(held, **less)
        if held not in tried:
            tried[held] = _why_not(evaluator, held, folds)
    if plan.compiled and not held.compiled:
        msg = f"the model is evaluated without torch.compile: {next(iter(tried.values()))}"
        warnings.warn(msg, UserWarning, stacklevel=4)
    return held, folds if held.fold else ()


def _folds(evaluator: Evaluator) -> tuple[Fold, ...]:
    ((_, batch),) = sample_of(evaluator, 1, at_most=_OF_A_BATCH)
    try:
        return find_folds(evaluator, batch)
    except (LandscapeError, RuntimeError):
        return ()


def _why_not(evaluator: Evaluator, plan: Plan, folds: Sequence[Fold]) -> str:
    """Say why a plan does not give the plain numbers on the first examples; empty if it does."""
    if plan == PLAIN:
        return ""
    batches = sample_of(evaluator, _TRIED, at_most=_OF_A_BATCH)
    piece = None if plan.piece is None else min(plan.piece, _PIECE)
    pieces = list(arranged(evaluator.problem.batching, batches, replace(plan, piece=piece)))
    # At the origin and near it, each weight moved by about a tenth of their size.
    origin, generator = evaluator.origin, seeded(0)
    shift = torch.randn(len(origin), generator=generator, dtype=torch.float64)
    size = float(origin.double().square().mean().sqrt()) or 1.0
    vectors = [origin, origin + (0.1 * size * shift).to(origin)]
    plain, runner = Runner(evaluator, PLAIN), Runner(evaluator, plan, folds)
    expected = plain.sums(vectors, lambda: batches)
    noisy = plain.sums([_rounded(vector) for vector in vectors], lambda: batches)
    try:
        found = runner.sums(vectors, lambda: pieces)
    except Exception as error:
        # Whatever it is, the plain way does without it, and says what is wrong with the model.
        return f"{type(error).__name__}: {first_line(error)}"
    if plan.points > 1 and not runner.at_once:
        return "torch.vmap cannot run the model or the loss"
    rounding = _ROUNDING[evaluator.problem.dtype]
    same = all(_same(*sums, rounding) for sums in zip(expected, found, noisy, strict=True))
    return "" if same else "its numbers differ by more than rounding"


def _rounded(vector: Tensor) -> Tensor:
    """Move each weight up or down by its rounding error."""
    sign = torch.randint(2, (len(vector),), generator=seeded(0)) * 2 - 1
    return vector * (1 + torch.finfo(vector.dtype).eps * sign.to(vector))


def _same(one: LossSums, other: LossSums, noisy: LossSums, rounding: float) -> bool:
    """Tell whether sums, metrics and the losses of the examples are equal to rounding."""
    values = [_values(sums) for sums in (one, other, noisy)]
    return len(values[0]) == len(values[1]) and all(
        _close(a, b, c, rounding) for a, b, c in zip(*values, strict=True)
    )


def _values(sums: LossSums) -> list[Tensor]:
    metrics = [value for _, value in sorted(sums.metrics.items())]
    numbers = torch.tensor([*sums.totals[:2], *metrics], dtype=torch.float64)
    return [*torch.split(numbers, 1), *(sums.examples or ())]


def _close(one: Tensor, other: Tensor, noisy: Tensor, rounding: float) -> bool:
    """Compare in the Euclidean norm; what is not finite must be the same, NaN like NaN."""
    finite = torch.isfinite(one)
    if one.shape != other.shape or not torch.equal(finite, torch.isfinite(other)):
        return False
    rest = torch.equal(one[~finite].nan_to_num(0.5), other[~finite].nan_to_num(0.5))
    both = finite & torch.isfinite(noisy)
    noise = float((one[both] - noisy[both]).norm())
    allowed = max(rounding * float(one[finite].norm()), _NOISE * noise)
    return rest and float((one[finite] - other[finite]).norm()) <= allowed


# Running a plan


class Runner:
    """Evaluates as a plan says, without asking whether that gives the same numbers."""

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
        # Whether several vectors are evaluated at once; False as soon as that has failed.
        self.at_once = plan.points > 1 and evaluator.problem.mode == "eval"
        self._blocks = Blocks(evaluator)
        self._is_plain = replace(plan, points=1, piece=None) == PLAIN and precision == "exact"

    def sums(
        self,
        vectors: Sequence[Tensor | Displaced],
        pieces: Callable[[], Numbered],
        buffers: Mapping[str, Tensor] | None = None,
    ) -> list[PointSums]:
        """Evaluate the pieces at each vector, with values for some of the buffers."""
        with torch.no_grad():
            flat = [vector for vector in vectors if isinstance(vector, Tensor)]
            if self.at_once and len(flat) == len(vectors) > 1:
                try:
                    return self._together(torch.stack(flat), pieces, buffers)
                except Exception:
                    # What is wrong with the model or the loss themselves is said below.
                    self.at_once = False
            return self._in_turn(vectors, pieces, buffers)

    def _in_turn(
        self,
        vectors: Sequence[Tensor | Displaced],
        pieces: Callable[[], Numbered],
        buffers: Mapping[str, Tensor] | None,
    ) -> list[PointSums]:
        sums: list[PointSums] = []
        while left := vectors[len(sums) :]:
            block = left[: self._blocks.n] if self._is_plain else left[:1]
            joint = self._blocks.sums(block, pieces, buffers) if len(block) > 1 else None
            sums += joint or [self._alone(vector, pieces, buffers) for vector in block]
        return sums

    def _alone(
        self,
        vector: Tensor | Displaced,
        pieces: Callable[[], Numbered],
        buffers: Mapping[str, Tensor] | None,
    ) -> PointSums:
        evaluator, sums = self._evaluator, PointSums(self._evaluator.problem.loss.sums)
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
    ) -> list[PointSums]:
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
        found = [PointSums(evaluator.problem.loss.sums) for _ in vectors]
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


# Several outputs before one loss


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
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator, self._is_trial = evaluator, True
        problem = evaluator.problem
        # Vectors that are taken together; 1: this is not done.
        alone = problem.metrics or not problem.loss.splits or shards() is not None
        self.n = 1 if alone else 2

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


# Other tensors in the place of a model's own


@contextmanager
def stand_ins(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let other tensors take the places of parameters inside of the context."""
    places = []
    for name in tensors:
        owner, _, key = name.rpartition(".")
        places.append((model.get_submodule(owner)._parameters, key))
    before = [(holder, key, holder.get(key)) for holder, key in places]
    try:
        for (holder, key), tensor in zip(places, tensors.values(), strict=True):
            holder[key] = tensor  # type: ignore[assignment]
        yield
    finally:
        for holder, key, parameter in before:
            holder[key] = parameter


def substituted(
    evaluator: Evaluator,
    tensors: Mapping[str, Tensor],
    batch: Any,
    body: Callable[[nn.Module, Any], T],
) -> T:
    """Run a function of model and batch with tensors that torch.vmap or forward mode wraps."""
    # Whatever reaches a parameter by another way than the module's attribute sees the live one.
    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    result: T = functional_call(_Host(evaluator.model), named, (body, batch), tie_weights=True)
    return result


class _Host(nn.Module):
    """Carries the model, so that any function of it runs with substituted weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        return body(self.model, batch)
