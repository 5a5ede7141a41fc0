"""Tests of a user's model and loss on a few examples, before the first number of a problem.

Values: the same twice, with gradients and without, and the sum over halves. Derivatives: the
gradient against differences of the loss, the Hessian product against differences of the gradient,
in float64 where the model allows it. Differences are taken with shrinking steps, and the distance
between two of them is their error: a kink near the weights makes a test weak, but raises no alarm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from landscape.errors import (
    LandscapeError,
    LossError,
    MisleadingWarning,
    ProblemError,
)
from landscape.evaluate._accumulators import blocks, inner_product
from landscape.evaluate._derivatives import (
    differentiate,
    graph_nodes,
    needing_derivatives,
    noting_reentrant,
    twice_differentiable,
)
from landscape.evaluate._displaced import Displaced
from landscape.evaluate._fitting import counting, measure_footprint
from landscape.evaluate._halves import check_halves, same_loss
from landscape.evaluate._layers import culprit
from landscape.problem._live import unwrapped
from landscape.problem.data import copied, leaves, move, written_to
from landscape.randomness import seeded

if TYPE_CHECKING:
    from landscape.evaluate._evaluator import Evaluator
    from landscape.problem import Problem
    from landscape.problem.losses import BatchTerms

# Gives differences at a step relative to ‖w‖, and the size of what they are taken of over the step.
Differences = Callable[[float], tuple[Tensor, float]]

EXAMPLES = 32
"""Examples of the first batch that the tests run on, where it can be cut."""
WIDE_PARAMETERS, WIDE_EXAMPLES = 2**24, 4
"""Above so many parameters, the tests are made in the problem's own type, on so many examples: a
copy in float64, and the activations of more, cost memory."""

_DRAWN = 2**20  # random numbers of one tensor, at most
_STEPS = {  # of ‖w‖
    torch.float64: (1e-6, 2.5e-7, 6e-8, 1.5e-8),
    torch.float32: (2e-2, 5e-3, 1.2e-3, 3e-4),
}
# Relative difference that is passed. Right derivatives in tests/cases.py stay below a tenth of it.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-2}
# Torch's own gradients of these layers are off by up to so much; they are used with a warning.
_INEXACT, _SLIGHT = (nn.CrossMapLRN2d,), 1e-3
_MARGIN = 20.0  # times the error of the differences, and times their rounding


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


def sample(evaluator: Evaluator) -> Any:
    """Return the first examples of the first batch, or all of it where it cannot be cut."""
    problem = evaluator.problem
    batch = next(iter(problem.batches))
    return _head(problem, batch) if problem.trials.additive and problem.trials.runs_parts else batch


def _head(problem: Problem, batch: Any) -> Any:
    batching = problem.batching
    n = _n_examples(problem)
    if not batching.can_split(batch) or batching.size(batch) <= n:
        return batch
    return batching.part(batch, 0, n)


def _n_examples(problem: Problem) -> int:
    return EXAMPLES if problem.space.n <= WIDE_PARAMETERS else WIDE_EXAMPLES


def _first_pass(evaluator: Evaluator) -> tuple[Any, BatchTerms]:
    """Evaluate the first examples, or the whole batch where the model needs that."""
    problem, trials = evaluator.problem, evaluator.problem.trials
    whole = next(iter(problem.batches))
    head = _head(problem, whole)
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


def check_gradient(evaluator: Evaluator) -> None:
    """Refuse a gradient that is not the slope of the loss; tested once for a checkpoint."""
    known = evaluator.problem.derivatives
    if "gradient" not in known:
        known["gradient"] = _tested(evaluator, _wrong_gradient)
    if known["gradient"]:
        raise LossError(known["gradient"])


def check_hessian(evaluator: Evaluator) -> str:
    """Test the product by double backward once for a checkpoint."""
    check_gradient(evaluator)
    known = evaluator.problem.derivatives
    if "hessian" not in known:
        known["hessian"] = _tested(evaluator, _wrong_product)
        known["rounding"] = _rounding(evaluator, *known.pop("wide", ()))
    return str(known["hessian"])


def rounding_of_products(evaluator: Evaluator) -> float:
    """Return the relative error of a product on the test's examples, of its type; 0 if unknown."""
    problem = evaluator.problem
    by_tensor = problem.derivatives.get("rounding", {})
    squares = [by_tensor[name] for name in problem.space.names if name in by_tensor]
    off, size = (sum(column) for column in zip(*squares, strict=True)) if squares else (0.0, 0.0)
    return math.sqrt(off / size) if size else 0.0


# Values


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


# Derivatives


class _Point:
    """A few examples at the weights: their mean loss and its derivatives in one type.

    Test directions are r, which is random, its part in each tensor of the same norm, so that what
    is missing from one layer shows beside the others; and (g/‖g‖ + r)/√2 with the gradient g,
    along which the loss changes by more than the rounding of float32.
    """

    def __init__(self, evaluator: Evaluator, batch: Any, dtype: torch.dtype) -> None:
        self.evaluator, self.dtype = evaluator, dtype
        self.batch = move(batch, evaluator.problem.device, dtype)
        self.origin = evaluator.origin.to(dtype)
        self.norm = max(float(self.origin.norm()), 1e-3)
        terms, gradient = evaluator.batch_gradient(self.origin, self.batch, 0)
        self.scale = 1.0 / max(float(terms.weight), 1.0)
        self.functions = [
            type(node).__name__.removesuffix("Backward")
            for node in graph_nodes(terms.total)
            if isinstance(node, BackwardCFunction)
        ]
        self.gradient = gradient.mul_(self.scale)
        self.size = float(self.gradient.norm())
        self.has_slope = math.isfinite(self.size) and self.size > 0.0

    def displaced(self, step: float, *, along: str = "mixed") -> Displaced:
        """Return weights along a direction: mixed, random, or random in the idle tensors alone."""
        views = self.evaluator.problem.space.views

        def write(slots: list[Tensor]) -> None:
            torch._foreach_copy_(slots, views(self.origin))
            self._add_direction(slots, step * self.norm, along)

        return Displaced(write)

    def _add_direction(self, slots: list[Tensor], reach: float, along: str) -> None:
        if along == "mixed" and self.has_slope:
            reach /= math.sqrt(2.0)
            slopes = self.evaluator.problem.space.views(self.gradient)
            torch._foreach_add_(slots, slopes, alpha=reach / self.size)
        for slot, part in self._random_parts(slots, idle=along == "idle"):
            slot.add_(part, alpha=reach)

    def claimed(self, along: str) -> Tensor:
        """Return the slope along a direction that the gradient says."""
        total, views = 0.0, self.evaluator.problem.space.views(self.gradient)
        for view, part in self._random_parts(views, idle=along == "idle"):
            total += float(inner_product(view, part))
        if along == "mixed" and self.has_slope:
            total = (self.size + total) / math.sqrt(2.0)
        return torch.tensor(total, dtype=torch.float64)

    def idle_tensors(self) -> list[int]:
        """Return which tensors have a gradient of exactly zero."""
        views = self.evaluator.problem.space.views(self.gradient)
        return [i for i, view in enumerate(views) if view.numel() and not bool(view.any())]

    def _random_parts(
        self, tensors: list[Tensor], *, idle: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give rows of tensors with the random direction in them; drawn anew, to hold no copy."""
        generator = seeded(0)
        chosen = set(self.idle_tensors()) if idle else set(range(len(tensors)))
        for i, tensor in enumerate(tensors):
            if i in chosen and tensor.numel():
                # In long tensors the same numbers come again: drawing takes longer than a pass.
                rows = tensor if tensor.ndim else tensor[None]
                parts = torch.split(rows, max(1, _DRAWN * len(rows) // rows.numel()))
                drawn = torch.randn(parts[0].shape, generator=generator).to(rows)
                size = math.hypot(*(float(drawn[: len(part)].norm()) for part in parts))
                drawn.div_(math.sqrt(len(chosen)) * size or 1.0)
                yield from ((part, drawn[: len(part)]) for part in parts)

    def loss(self, step: float, *, along: str) -> float:
        with torch.no_grad():
            at = self.displaced(step, along=along)
            return self.scale * float(self.evaluator.terms(at, self.batch, 0).total)

    def slope(self, step: float) -> Tensor:
        at = self.displaced(step)
        return self.evaluator.batch_gradient(at, self.batch, 0)[1].mul_(self.scale)

    def direction(self) -> Tensor:
        """Return the test direction, shape (n,); made anew, to hold no copy."""
        direction = torch.zeros_like(self.origin)
        self._add_direction(self.evaluator.problem.space.views(direction), 1.0, "mixed")
        return direction

    def product(self, direction: Tensor) -> Tensor:
        """Return the Hessian times a vector of shape (n,), by double backward."""
        evaluator, space = self.evaluator, self.evaluator.problem.space
        parameters = evaluator.parameters
        with twice_differentiable(evaluator.model):
            with noting_reentrant() as reentrant:
                terms = evaluator.terms(self.origin, self.batch, 0)
            if reentrant:
                msg = "reentrant activation checkpointing has no second derivative"
                raise LossError(msg)
            gradients = differentiate(terms.total, parameters, create_graph=True)
            pairs = zip(gradients, space.views(direction), strict=True)
            along = [(g, d) for g, d in pairs if g is not None and g.requires_grad]
            if not along:
                return torch.zeros_like(direction)
            with needing_derivatives("twice"):
                slopes, views = zip(*along, strict=True)
                products = torch.autograd.grad(slopes, parameters, views, allow_unused=True)
            del gradients, along, slopes, terms
        total = evaluator.new_sum()
        total.add(list(products))
        return total.result().mul_(self.scale)


def _tested(evaluator: Evaluator, test: Callable[[_Point], str]) -> str:
    """Run a test of derivatives in float64 if the model allows it, else in its own type."""
    problem, batch = evaluator.problem, sample(evaluator)
    if problem.dtype != torch.float64 and problem.space.n <= WIDE_PARAMETERS:
        try:
            with in_type(evaluator, torch.float64):
                return test(_Point(evaluator, batch, torch.float64))
        except LandscapeError:
            pass  # it holds constants of its own type; a failure of the loss itself comes again
    return test(_Point(evaluator, batch, problem.dtype))


@contextmanager
def in_type(evaluator: Evaluator, dtype: torch.dtype) -> Iterator[None]:
    """Move the model of an evaluator to another type."""
    evaluator.move_to(dtype)
    try:
        yield
    finally:
        evaluator.move_to(evaluator.problem.dtype)


def _wrong_gradient(point: _Point) -> str:
    directions = ["random" if point.dtype == torch.float64 else "mixed"]
    if point.idle_tensors():  # what autograd passes over could be lost beside the rest
        directions.append("idle")
    for along in directions:
        claimed = point.claimed(along)
        true = _contradiction(claimed, _differences_of_losses(point, along), point.dtype)
        if true is not None:
            break
    else:
        return ""
    off, size = abs(float(claimed - true)), max(abs(float(claimed)), abs(float(true)))
    inexact = any(isinstance(part, _INEXACT) for part in point.evaluator.problem.model.modules())
    if inexact and off <= _SLIGHT * size:
        warnings.warn(
            f"the gradient by autograd is off by {off / size:.1g} of its size along a test "
            f"direction; the cause is {_cause(point)}. Expect no smaller error of what is found",
            MisleadingWarning,
            stacklevel=2,
        )
        return ""
    why = "a straight-through estimator, a detach() or a hook on gradients does that on purpose"
    if point.evaluator.problem.mode == "train":
        why += ", and spectral norm in train mode moves its vectors in every pass (measure in eval)"
    return (
        "the gradient by autograd is not the slope of the loss: along a test direction it is "
        f"{float(claimed):.5g}, and differences of the loss give {float(true):.5g}; the cause is "
        f"{_cause(point)}: {why}. Line, surface and average need no gradient"
    )


def _differences_of_losses(point: _Point, along: str) -> Differences:
    def differences(step: float) -> tuple[Tensor, float]:
        up, down = (point.loss(sign * step, along=along) for sign in (1.0, -1.0))
        reach = 2 * step * point.norm
        unit = max(abs(up), abs(down)) / reach
        return torch.tensor((up - down) / reach, dtype=torch.float64), unit

    return differences


def _wrong_product(point: _Point) -> str:
    try:
        product = point.product(point.direction())
    except LossError as error:
        return f"{_cause(point)}: {error}"

    def differences(step: float) -> tuple[Tensor, float]:
        up, down = point.slope(step), point.slope(-step)
        reach = 2 * step * point.norm
        unit = max(float(up.norm()), float(down.norm())) / reach
        return up.sub_(down).div_(reach), unit

    if _contradiction(product, differences, point.dtype) is None:
        if point.dtype != point.evaluator.problem.dtype:
            point.evaluator.problem.derivatives["wide"] = point.batch, point.direction(), product
        return ""
    return (
        f"{_cause(point)}: the second derivative by autograd is not that of the gradient; an "
        "operation hides how its backward pass depends on its inputs, such as by no_grad(), or "
        "torch has it wrong"
    )


def _rounding(evaluator: Evaluator, *wide: Any) -> dict[str, tuple[float, float]]:
    """Compare products in float64 and the own type: ‖difference‖², ‖product‖² of each tensor."""
    if not wide:
        return {}
    batch, direction, product = wide
    point, space = _Point(evaluator, batch, evaluator.problem.dtype), evaluator.problem.space
    off = point.product(direction.to(evaluator.origin)).double().sub_(product)
    pairs = zip(*(space.views(vector.square_()) for vector in (off, product)), strict=True)
    sums = ((float(one.sum()), float(other.sum())) for one, other in pairs)
    return dict(zip(space.names, sums, strict=True))


def _contradiction(claimed: Tensor, differences: Differences, dtype: torch.dtype) -> Tensor | None:
    """Return what differences say if they contradict a derivative, and converge by themselves."""
    if not math.isfinite(float(claimed.sum())) and not bool(torch.isfinite(claimed).all()):
        return None  # said where the loss or the product is taken
    last: Tensor | None = None
    n_measured, moved = 0, math.inf
    for step in _STEPS[dtype]:
        found, unit = differences(step)
        rounding = _MARGIN * torch.finfo(dtype).eps * unit
        if not math.isfinite(float(found.sum())) and not bool(torch.isfinite(found).all()):
            return None
        allowed = _TOLERANCE[dtype] * max(float(claimed.norm()), float(found.norm())) + rounding
        off = _distance(claimed, found)
        if off <= allowed:
            return None
        if last is not None:
            before, moved = moved, _distance(found, last)
            # Of a smooth function the second distance is a sixteenth of the first.
            converges = moved <= max(0.25 * before, rounding)
            if n_measured > 1 and converges and off > allowed + _MARGIN * moved:
                return found
        last, n_measured = found, n_measured + 1
        del found  # beside the vectors that make the next one
    return None


def _distance(one: Tensor, other: Tensor) -> float:
    """Return ‖one − other‖, without a difference of their length."""
    pairs = zip(blocks(one), blocks(other), strict=True)
    return float(torch.stack([(a - b).norm() for a, b in pairs]).norm())


def _cause(point: _Point) -> str:
    layer = culprit(point.evaluator, point.batch, point.dtype)
    functions = ", ".join(dict.fromkeys(point.functions))
    return f"{layer}, with torch.autograd.Function {functions}" if functions else layer
