"""Tests of the values of a user's model and loss on a few examples, before the first number.

The same twice, with gradients and without; the sum over halves; and what a pass keeps in memory.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscape.errors import (
    LandscapeError,
    LossNotAdditiveWarning,
    MisleadingWarning,
    ProblemError,
)
from landscape.problem._live import unwrapped
from landscape.problem._shards import fetched, noted
from landscape.problem.data import branches, copied, leaves, n_bytes, tensors_in, written_to
from landscape.problem.losses import BatchTerms
from landscape.problem.problem import Footprint

if TYPE_CHECKING:
    from landscape.evaluate._evaluator import Evaluator
    from landscape.problem import Problem

EXAMPLES = 32
"""Examples of the first batch that the tests run on, where it can be cut."""
WIDE_PARAMETERS, WIDE_EXAMPLES = 2**24, 4
"""Above so many parameters, the tests are made in the problem's own type, on so many examples: a
copy in float64, and the activations of more, cost memory."""

# A pass may keep half as much as the weights take, and this at least. More does not fit into the
# caches of a CPU: a gradient of ResNet-20 takes 1.4 times as long in one piece of 770 MiB.
_LEAST = {"cpu": 2**27}
_LEAST_ELSEWHERE = 2**31
_CLOSE = 2e-3  # of the difference between the whole and its halves, which entries explain
_ADVICE = (
    "If it should be (it returns a sum, or divides by tokens or class weights), return per-example "
    "losses, or (sum, weight) from batch_loss. If examples interact on purpose (an in-batch "
    "contrastive loss), all is well: batches are used as they come, never merged or split"
)


def check_values(evaluator: Evaluator) -> None:
    """Evaluate a few examples twice, with gradients and without, and in halves; once a problem."""
    problem, trials = evaluator.problem, evaluator.problem.trials
    if trials.additive is not None:
        return
    with torch.no_grad(), _low_precision(evaluator) as low:
        batch, once = _first_pass(evaluator)
    trials.writes_unseen = evaluator.is_written()
    evaluator.restore_always |= trials.writes_unseen
    again, kept = _recorded(evaluator, batch)
    _require_same(evaluator, batch, float(once.total), again)
    if low:
        msg = (
            f"{low[0]} computes in {low[1]} (autocast inside forward?): the loss carries relative "
            "errors of about 1e-3, and its derivatives larger ones; switch autocast off to measure"
        )
        warnings.warn(msg, MisleadingWarning, stacklevel=4)
    trials.additive = problem.mode == "eval"
    if trials.additive:
        check_halves(evaluator, batch, once, n=_n_examples(problem))
    measure_footprint(evaluator, batch, kept)


def sample(evaluator: Evaluator, *, n_of_wide: int = WIDE_EXAMPLES) -> Any:
    """Return the first examples of the first batch, or all of it where it cannot be cut.

    Of a wide model they are fewer, since each takes memory for a graph.
    """
    problem = evaluator.problem
    batch, n = next(iter(problem.batches)), _n_examples(problem, n_of_wide)
    cuts = problem.trials.additive and problem.trials.runs_parts
    return _head(problem, batch, n) if cuts else batch


def _head(problem: Problem, batch: Any, n: int) -> Any:
    batching = problem.batching
    if not batching.can_split(batch) or batching.size(batch) <= n:
        return batch
    return batching.part(batch, 0, n)


def _n_examples(problem: Problem, n_of_wide: int = WIDE_EXAMPLES) -> int:
    return EXAMPLES if problem.space.n <= WIDE_PARAMETERS else n_of_wide


def _first_pass(evaluator: Evaluator) -> tuple[Any, BatchTerms]:
    """Evaluate the first examples, or the whole batch where the model needs that."""
    problem, trials = evaluator.problem, evaluator.problem.trials
    whole = next(iter(problem.batches))
    head = _head(problem, whole, _n_examples(problem))
    for batch in (head, whole):
        spare = copied(batch)
        try:
            terms = evaluator.terms(None, spare, 0)
        except LandscapeError:
            if batch is whole:
                raise
            continue
        break
    trials.runs_parts, trials.writes_inputs = batch is head, written_to(spare)
    return batch, terms


def _require_same(evaluator: Evaluator, batch: Any, first: float, second: float) -> None:
    problem = evaluator.problem
    if same_loss(first, second, problem.dtype):
        return
    before = {id(part): dict(vars(part)) for part in evaluator.model.modules()}
    with torch.no_grad():
        again = float(evaluator.terms(None, batch, 0).total)
    kept = [
        f"{name}.{key}".lstrip(".")
        for name, part in evaluator.model.named_modules()
        for key, value in vars(part).items()
        if value is not before[id(part)].get(key, value)
    ]
    if same_loss(first, again, problem.dtype) and not kept:
        msg = (
            f"the loss of the same batch at the same weights is {first:.6g} without gradients and "
            f"{second:.6g} with them, so that the gradient would be that of another function: does "
            "the model look at torch.is_grad_enabled() or requires_grad, or use a fast path for "
            "inference? Switch it off"
        )
        raise ProblemError(msg)
    state = f"; the model keeps state from pass to pass in {', '.join(kept[:4])}" if kept else ""
    msg = (
        "the model gives another loss for the same batch and the same weights (its sum is "
        f"{first:.6g}, then {second:.6g}, in {problem.mode} mode): is there randomness in its "
        f"forward pass, like F.dropout without training=self.training{state}? If it is meant, as "
        "in a variational autoencoder, let data() return the noise of each example with it"
    )
    raise ProblemError(msg)


def _recorded(evaluator: Evaluator, batch: Any) -> tuple[float, int]:
    """Evaluate with gradients, or without where the user's code cannot; and count what is kept."""
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            with counting(evaluator, batch) as kept:
                return float(evaluator.terms(None, batch, 0).total.detach()), sum(kept.values())
        except LandscapeError:  # torch.func goes with no counting
            pass
        try:
            return float(evaluator.terms(None, batch, 0).total.detach()), 0
        except LandscapeError:  # said again where a gradient is asked for
            with torch.no_grad():
                return float(evaluator.terms(None, batch, 0).total), 0


@contextmanager
def _low_precision(evaluator: Evaluator) -> Iterator[list[str]]:
    """Note the first layer whose output has fewer digits than the problem."""
    seen: list[str] = []

    def note(name: str) -> Any:
        def hook(part: nn.Module, args: Any, output: Any) -> None:
            for leaf in leaves(output) if not seen else ():
                if isinstance(leaf, Tensor) and leaf.dtype in {torch.float16, torch.bfloat16}:
                    kind = type(part).__name__
                    seen[:] = [f"{name or 'the model'} ({kind})", str(leaf.dtype)[6:]]
                    return

        return hook

    handles = [
        part.register_forward_hook(note(name))
        for name, part in evaluator.model.named_modules()
        if unwrapped(part) is part and not isinstance(part, torch.jit.ScriptModule)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# Halves


def check_halves(evaluator: Evaluator, batch: Any, whole: BatchTerms, *, n: int) -> None:
    """Compare examples with their halves, for a mean in batches of other sizes and padding too."""
    problem = evaluator.problem
    others = problem.batches.kinds[1:] if whole.is_guess else []
    for number, other in [(0, batch), *others]:
        few = other
        if number and problem.batching.can_split(other):
            few = problem.batching.part(other, 0, n)
        finding = None
        if problem.batching.can_split(few):
            finding = _difference(evaluator, few, number, None if number else whole)
        if finding is not None:
            problem.trials.additive = False
            if whole.is_guess:
                problem.loss.doubts.append(finding)
                warnings.warn(finding, LossNotAdditiveWarning, stacklevel=6)
            return


def same_loss(first: float, second: float, dtype: torch.dtype) -> bool:
    """Tell whether two sums over a batch are equal to rounding; NaN is NaN."""
    relative, absolute = (1e-4, 1e-5) if dtype == torch.float32 else (1e-9, 1e-14)
    if first == second or (math.isnan(first) and math.isnan(second)):
        return True
    return abs(first - second) <= relative * max(abs(first), abs(second)) + absolute


def _difference(
    evaluator: Evaluator, batch: Any, number: int, whole: BatchTerms | None
) -> str | None:
    """Say how the loss of a batch differs from that of its halves; None: it does not."""
    problem = evaluator.problem
    size, at = problem.batching.size(batch), problem.batching.size(batch) // 2
    halves = problem.batching.split(batch, at)
    with torch.no_grad():
        try:
            whole = whole or evaluator.terms(None, batch, number)
            parts = [evaluator.terms(None, half, number) for half in halves]
        except LandscapeError as error:
            return f"the loss cannot be evaluated on half of batch {number} ({error}). {_ADVICE}"
    total, first, second = (float(terms.total) for terms in (whole, *parts))
    weights = float(whole.weight), sum(float(part.weight) for part in parts)
    # A weight that is no sum, such as a constant 1, would change what is measured.
    if all(same_loss(*pair, problem.dtype) for pair in ((total, first + second), weights)):
        return None
    finding = (
        f"the loss of batch {number}, {total / size:.6g}, is not the mean over its two halves, "
        f"{(first + second) / size:.6g}"
    )
    means = total / size, first / at, second / (size - at), (first + second) / size
    counted = _counted(means, halves, evaluator)
    if counted is None:
        return f"{finding}. {_ADVICE}"
    return (
        f"{finding}: it is a mean over entries whose number varies. Return a pair (sum, weight): "
        f"n = ({counted}).sum(); return mean * n, n, with mean the loss that is returned now. "
        "Until then batches count by their number of examples"
    )


def _counted(means: tuple[float, ...], halves: tuple[Any, Any], evaluator: Evaluator) -> str | None:
    """Find entries, in Python, whose number in the halves explains the means."""
    name, (whole, one_mean, other_mean, by_examples) = "batch", means
    close = _CLOSE * abs(whole - by_examples)  # the loss may be computed in less than its type
    if evaluator.problem.loss.splits:
        name, halves = "target", (halves[0][1], halves[1][1])
    places = zip(_entries(halves[0], name), _entries(halves[1], name), strict=False)
    found = []
    for (place, one), (_, other) in places:
        fillers = _fillers(torch.cat([one.reshape(-1), other.reshape(-1)]))
        for rank, filler in enumerate(fillers):
            n, m = int((one != filler).sum()), int((other != filler).sum())
            if n + m and abs(whole - (one_mean * n + other_mean * m) / (n + m)) <= close:
                found.append((rank, f"{place} != {filler}"))
    return min(found)[1] if found else None


def _fillers(values: Tensor) -> list[int]:
    """List the values that padding may have: of a mask zero, of integers the ends too."""
    if not values.numel() or values.is_complex():
        return []
    if values.is_floating_point():
        return [0] if bool(((values == 0) | (values == 1)).all()) else []
    low, high = (int(end) for end in values.int().aminmax())
    return list(dict.fromkeys([-100, -1, 0, low, high]))


def _entries(batch: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """List tensors with their names, also without their first column, as for the next token."""
    parts = branches(batch)
    if parts is not None:
        for place, part in parts:
            yield from _entries(part, f"{name}[{place!r}]")
    elif isinstance(batch, Tensor) and batch.layout == torch.strided and batch.dim():
        yield name, batch
        if batch.dim() > 1:
            yield f"{name}[:, 1:]", batch[:, 1:]


# What a pass keeps for its gradient, so that batches are cut to fit in memory


def usual_limit(problem: Problem) -> int:
    """Return the bytes that a pass may keep, where nothing else is said; sizes alone decide."""
    least = _LEAST.get(problem.device.type, _LEAST_ELSEWHERE)
    return max(least, problem.space.n * problem.dtype.itemsize // 2)


def fitting(
    problem: Problem, batches: Iterable[tuple[int, Any]], limit: int | None = None
) -> Iterator[tuple[int, Any]]:
    """Cut numbered batches into even pieces whose passes keep no more than a limit, if they can."""
    limit = usual_limit(problem) if limit is None else limit
    footprint = problem.trials.footprint
    if footprint is None or footprint.of(problem.batches.largest) <= limit:
        yield from batches
        return
    for i, batch in batches:
        size = problem.batching.known_size(batch) or 1
        most = max(1, int(size * min(1.0, footprint.share(n_bytes(batch), limit))))
        for part in evenly_cut(problem, batch, most if most < size else None):
            yield i, part


def evenly_cut(problem: Problem, batch: Any, size: int | None) -> Iterator[Any]:
    """Cut a batch into even parts of at most a size, if it can be cut; None: leave it whole."""
    batching = problem.batching
    if size is None or not batching.can_split(batch):
        yield batch
        return
    n = batching.size(batch)
    n_parts = -(-n // size)
    for k in range(n_parts):
        yield batching.part(batch, n * k // n_parts, n * (k + 1) // n_parts)


def measure_footprint(evaluator: Evaluator, batch: Any, kept: int | None) -> None:
    """Note what a pass keeps, from what it has kept of some examples, and of half of them."""
    problem, batching = evaluator.problem, evaluator.problem.batching
    size = n_bytes(batch)
    if not kept or not size or not problem.trials.additive or not batching.can_split(batch):
        return
    found = Footprint(0.0, kept / size)
    if found.of(problem.batches.largest) > usual_limit(problem):
        part = batching.part(batch, 0, max(1, batching.size(batch) // 2))
        less, rest = kept_by(evaluator, part), size - n_bytes(part)
        if less is None or not 0 < less < kept or rest <= 0:
            return
        rate = (kept - less) / rest
        found = Footprint(max(0.0, kept - rate * size), rate)
        if problem.metrics and not _metrics_add_up(evaluator, batch):
            return
    problem.trials.footprint = found


def kept_by(evaluator: Evaluator, batch: Any) -> int | None:
    """Return the bytes that the loss of some examples keeps for its gradient; None: unknown."""
    try:
        with torch.enable_grad(), counting(evaluator, batch) as kept:
            terms = evaluator.terms(None, batch, 0)
    except LandscapeError:
        return None
    return sum(kept.values()) if terms.total.requires_grad else None


@contextmanager
def counting(evaluator: Evaluator, batch: Any) -> Iterator[dict[int, int]]:
    """Note the bytes of each tensor that autograd keeps, but for weights and the batch itself."""
    own = [*evaluator.model.parameters(), *evaluator.model.buffers(), *tensors_in(batch)]
    known, kept = {_place(tensor) for tensor in own}, dict[int, int]()

    def note(tensor: Tensor) -> Any:
        place, held = _place(tensor), noted(tensor)
        if place not in known and isinstance(held, Tensor):
            kept[place] = tensor.untyped_storage().nbytes() if place else tensor.numel()
        return held

    with torch.autograd.graph.saved_tensors_hooks(note, fetched):
        yield kept


def _place(tensor: Tensor) -> int:
    """Return where the values of a tensor lie; 0 where that is not one place."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()


def _metrics_add_up(evaluator: Evaluator, batch: Any) -> bool:
    """Tell whether the metrics of some examples are those of their halves."""
    batching = evaluator.problem.batching
    halves = batching.split(batch, batching.size(batch) // 2)
    try:
        with torch.no_grad():
            whole, *parts = (
                evaluator.on_batch(None, each, 0, evaluator.result)[1] for each in (batch, *halves)
            )
    except LandscapeError:
        return False
    sums = {name: sum(float(part[name][0]) for part in parts) for name in whole}
    return all(
        math.isclose(float(total), sums[name], rel_tol=1e-4, abs_tol=1e-5)
        for name, (total, _) in whole.items()
    )
