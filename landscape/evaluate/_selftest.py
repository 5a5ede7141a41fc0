"""Tests of the derivatives of a user's loss on a few examples, before the first number.

The gradient against differences of the loss, the Hessian product against differences of the
gradient, in float64 where the model allows it; and of each layer alone, to name a culprit.
Differences are taken with shrinking steps, and the distance between two of them is their error: a
kink near the weights makes a test weak, but raises no alarm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from landscape.errors import LandscapeError, LossError, MisleadingWarning, first_line
from landscape.evaluate._accumulators import Displaced, blocks, inner_product
from landscape.evaluate._derivatives import DoubleBackward, graph_nodes, twice_differentiable
from landscape.evaluate._values import WIDE_EXAMPLES, WIDE_PARAMETERS, sample
from landscape.problem.data import leaves, map_leaves, move
from landscape.processes import norm_over_shards, over_shards, shards, sum_over_shards
from landscape.randomness import seeded

if TYPE_CHECKING:
    from landscape.evaluate._evaluator import Evaluator

# Gives differences at a step relative to ‖w‖, and the size of what they are taken of over the step.
Differences = Callable[[float], tuple[Tensor, float]]


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
# Of a layer: the step relative to its inputs, and the relative error from which on it is wrong.
_LAYER_STEP = {torch.float64: 1e-6, torch.float32: 5e-3}
_LAYER_WRONG = {torch.float64: 1e-4, torch.float32: 0.1}


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
        known["hessian"] = _tested(evaluator, _wrong_product, n_of_wide=1)
        known["rounding"] = _rounding(evaluator, *known.pop("wide", ()))
    return str(known["hessian"])


def rounding_of_products(evaluator: Evaluator) -> float:
    """Return the relative error of a product on the test's examples, of its type; 0 if unknown."""
    problem = evaluator.problem
    by_tensor = problem.derivatives.get("rounding", {})
    squares = [by_tensor[name] for name in problem.space.names if name in by_tensor]
    off, size = (sum(column) for column in zip(*squares, strict=True)) if squares else (0.0, 0.0)
    return math.sqrt(off / size) if size else 0.0


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
        self.norm = max(_length(self.origin), 1e-3)
        terms, gradient = evaluator.batch_gradient(self.origin, self.batch, 0)
        self.scale = 1.0 / max(float(terms.weight), 1.0)
        self.resolution = _resolution(terms.total, dtype)
        self.functions = [
            type(node).__name__.removesuffix("Backward")
            for node in graph_nodes(terms.total)
            if isinstance(node, BackwardCFunction) and shards() is None
        ]
        self.gradient = gradient.mul_(self.scale)
        self.size = _length(self.gradient)
        self.has_slope = math.isfinite(self.size) and self.size > 0.0

    def displaced(self, step: float, along: str = "mixed") -> Displaced:
        """Return weights along a direction: mixed, random, or random in the idle tensors alone."""
        return Displaced(partial(self._write, self.origin, step * self.norm, along))

    def _write(self, origin: Tensor, reach: float, along: str, slots: list[Tensor]) -> None:
        space = self.evaluator.problem.space
        torch._foreach_copy_(slots, space.views(origin))
        if along == "mixed" and self.has_slope:
            reach /= math.sqrt(2.0)
            torch._foreach_add_(slots, space.views(self.gradient), alpha=reach / self.size)
        for slot, part in self._random_parts(slots, idle=along == "idle"):
            slot.add_(part, alpha=reach)

    def claimed(self, along: str) -> Tensor:
        """Return the slope along a direction that the gradient says."""
        total, views = 0.0, self.evaluator.problem.space.views(self.gradient)
        for view, part in self._random_parts(views, idle=along == "idle"):
            total += float(inner_product(view, part))
        total = sum_over_shards(total)
        if along == "mixed" and self.has_slope:
            total = (self.size + total) / math.sqrt(2.0)
        return torch.tensor(total, dtype=torch.float64)

    def idle_tensors(self) -> list[int]:
        """Return which tensors have a gradient of exactly zero."""
        views = self.evaluator.problem.space.views(self.gradient)
        moved = over_shards(torch.tensor([int(view.count_nonzero()) for view in views]))
        return [i for i, view in enumerate(views) if not moved[i] and self._has_entries(view)]

    def _has_entries(self, tensor: Tensor) -> bool:
        return bool(sum_over_shards(tensor.numel()))

    def _random_parts(
        self, tensors: list[Tensor], *, idle: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Give rows of tensors with the random direction in them; drawn anew, to hold no copy."""
        generator = seeded(0)
        chosen = set(self.idle_tensors()) if idle else set(range(len(tensors)))
        for i, tensor in enumerate(tensors):
            if i in chosen and self._has_entries(tensor):
                # In long tensors the same numbers come again: drawing takes longer than a pass.
                rows = tensor if tensor.ndim else tensor[None]
                parts = torch.split(rows, max(1, _DRAWN * len(rows) // max(1, rows.numel())))
                drawn = torch.randn(parts[0].shape, generator=generator).to(rows)
                size = math.hypot(*(float(drawn[: len(part)].norm()) for part in parts))
                size = norm_over_shards(size)
                drawn.div_(math.sqrt(len(chosen)) * size or 1.0)
                yield from ((part, drawn[: len(part)]) for part in parts)

    def difference_of_losses(self, along: str, step: float) -> tuple[Tensor, float]:
        with torch.no_grad():
            ends = [self.displaced(s * step, along) for s in (1.0, -1.0)]
            totals = [float(self.evaluator.terms(end, self.batch, 0).total) for end in ends]
        up, down = (self.scale * total for total in totals)
        reach = 2 * step * self.norm
        unit = max(abs(up), abs(down)) / reach
        return torch.tensor((up - down) / reach, dtype=torch.float64), unit

    def difference_of_gradients(self, step: float) -> tuple[Tensor, float]:
        ends = [self.displaced(step), self.displaced(-step)]
        up, down = [self.evaluator.batch_gradient(end, self.batch, 0)[1] for end in ends]
        up.mul_(self.scale)
        down.mul_(self.scale)
        reach = 2 * step * self.norm
        unit = max(_length(up), _length(down)) / reach
        return up.sub_(down).div_(reach), unit

    def direction(self) -> Tensor:
        """Return the test direction, shape (n,); made anew, to hold no copy."""
        direction = torch.zeros_like(self.origin)
        views = self.evaluator.problem.space.views(direction)
        self._write(direction, 1.0, "mixed", views)
        return direction

    def product(self, direction: Tensor) -> Tensor:
        """Return the Hessian times a vector of shape (n,), by double backward."""
        product = DoubleBackward(self.evaluator, self.origin, self.batch, 0)
        total = self.evaluator.new_sum()
        with twice_differentiable(self.evaluator.model):
            total.add(product.times(direction, retain=False))
        return total.result().mul_(self.scale)


def _resolution(total: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the type that a loss is computed in: float32 if any operation rounds to that or less.

    Some models compute their normalisation or their loss in float32, whatever their weights are.
    """
    types = (
        metadata.dtype
        for node in graph_nodes(total)
        for metadata in getattr(node, "_input_metadata", ())
    )
    narrow = any(t.is_floating_point and torch.finfo(t).bits < 64 for t in types)
    return torch.float32 if narrow else dtype


def _tested(
    evaluator: Evaluator, test: Callable[[_Point], str], *, n_of_wide: int = WIDE_EXAMPLES
) -> str:
    """Run a test of derivatives in float64 if the model allows it, else in its own type."""
    problem, batch = evaluator.problem, sample(evaluator, n_of_wide=n_of_wide)
    if problem.dtype != torch.float64 and problem.space.n <= WIDE_PARAMETERS:
        try:
            with in_type(evaluator, torch.float64):
                return test(_Point(evaluator, batch, torch.float64))
        except LandscapeError:
            pass  # it holds constants of its own type; a failure of the loss itself comes again
    point = _Point(evaluator, batch, problem.dtype)
    if not point.has_slope:  # an example without weight tests nothing
        point = _Point(evaluator, sample(evaluator), problem.dtype)
    return test(point)


@contextmanager
def in_type(evaluator: Evaluator, dtype: torch.dtype) -> Iterator[None]:
    """Move the model of an evaluator to another type."""
    evaluator.move_to(dtype)
    try:
        yield
    finally:
        evaluator.move_to(evaluator.problem.dtype)


def _wrong_gradient(point: _Point) -> str:
    directions = ["random" if point.resolution == torch.float64 else "mixed"]
    if point.idle_tensors():  # what autograd passes over could be lost beside the rest
        directions.append("idle")
    for along in directions:
        claimed = point.claimed(along)
        differences = partial(point.difference_of_losses, along)
        true = _contradiction(claimed, differences, point.resolution)
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


def _wrong_product(point: _Point) -> str:
    try:
        product = point.product(point.direction())
    except LossError as error:
        return f"{_cause(point)}: {error}"
    if _contradiction(product, point.difference_of_gradients, point.resolution) is None:
        if point.resolution.itemsize > point.evaluator.problem.dtype.itemsize:
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
    sums = (
        (sum_over_shards(float(one.sum())), sum_over_shards(float(other.sum())))
        for one, other in pairs
    )
    return dict(zip(space.names, sums, strict=True))


def _contradiction(claimed: Tensor, differences: Differences, dtype: torch.dtype) -> Tensor | None:
    """Return what differences say if they contradict a derivative, and converge by themselves."""
    if not _is_finite(claimed):
        return None  # said where the loss or the product is taken
    last: Tensor | None = None
    n_measured, moved = 0, math.inf
    for step in _STEPS[dtype]:
        found, unit = differences(step)
        rounding = _MARGIN * torch.finfo(dtype).eps * unit
        if not _is_finite(found):
            return None
        allowed = _TOLERANCE[dtype] * max(_length(claimed), _length(found)) + rounding
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
    distance = float(torch.stack([(a - b).norm() for a, b in pairs]).norm())
    return norm_over_shards(distance) if one.ndim else distance


def _length(vector: Tensor) -> float:
    """Return ‖vector‖, of which a part may be held here; of a number its size."""
    length = float(vector.norm())
    return norm_over_shards(length) if vector.ndim else length


def _is_finite(vector: Tensor) -> bool:
    total = float(vector.sum())
    if math.isfinite(sum_over_shards(total) if vector.ndim else total):
        return True
    bad = (~torch.isfinite(vector)).sum()
    return not int(over_shards(bad) if vector.ndim else bad)


def _cause(point: _Point) -> str:
    layer = culprit(point.evaluator, point.batch, point.dtype)
    functions = ", ".join(dict.fromkeys(point.functions))
    return f"{layer}, with torch.autograd.Function {functions}" if functions else layer


# Layer by layer


@dataclass(frozen=True)
class LayerTrial:
    """Derivatives of one layer on a few examples."""

    name: str
    kind: str  # its class
    gradient: float  # relative error of the gradient; NaN: there is none
    second: float  # relative error of the second derivative; NaN: there is none
    failure: str = ""  # what torch said, where there is none


def culprit(evaluator: Evaluator, batch: Any, dtype: torch.dtype) -> str:
    """Name the innermost layer whose derivatives are wrong or missing."""
    if shards() is not None:
        return "an operation of the model (a layer has no whole parameters of its own here)"
    try:
        trials = layer_trials(evaluator, batch, dtype)
    except Exception:  # whatever a user's layer does by itself, it must not end the measurement
        return "an operation of the model"
    finally:
        evaluator.move_to(dtype)
    wrong = [t for t in trials if t.failure or max(t.gradient, t.second) > _LAYER_WRONG[dtype]]
    if not wrong:
        return "the loss, or an operation outside of the layers"
    first = max(wrong, key=lambda trial: len(trial.name.split(".")) if trial.name else 0)
    return f"{first.name} ({first.kind})" if first.name else f"the model ({first.kind})"


def layer_trials(evaluator: Evaluator, batch: Any, dtype: torch.dtype) -> list[LayerTrial]:
    """Compare first and second derivatives of each layer with differences."""
    batch = move(batch, evaluator.problem.device, dtype)
    calls: dict[str, tuple[nn.Module, Any]] = {}

    def run(model: nn.Module, batch: Any) -> None:
        def note(name: str) -> Any:
            def hook(part: nn.Module, args: Any, kwargs: Any) -> None:
                if name not in calls:  # copies: a later layer may write to these
                    calls[name] = part, map_leaves((args, kwargs), _copy)

            return hook

        hooks = [
            part.register_forward_pre_hook(note(name), with_kwargs=True)
            for name, part in model.named_modules()
            if not isinstance(part, torch.jit.ScriptModule)
        ]
        try:
            evaluator.problem.loss(model, batch)
        finally:
            for hook in hooks:
                hook.remove()

    with torch.no_grad():
        evaluator.on_batch(evaluator.origin.to(dtype), batch, 0, run)
    return [_trial(name, part, given, dtype) for name, (part, given) in calls.items()]


def _trial(name: str, part: nn.Module, given: Any, dtype: torch.dtype) -> LayerTrial:
    generator = seeded(1)

    def fresh(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        # Moved a little: what a ReLU has passed on is zero, and zero is a kink of the next one.
        noise = torch.randn(leaf.shape, generator=generator).to(leaf)
        moved = leaf.detach() + 1e-3 * leaf.detach().abs().mean() * noise
        return moved.requires_grad_(True)

    args, kwargs = map_leaves(given[0], fresh), map_leaves(given[1], fresh)
    inputs = [x for x in leaves([args, kwargs]) if isinstance(x, Tensor) and x.requires_grad]
    own = {id(x) for x in inputs}
    inputs += [p for p in part.parameters() if p.requires_grad]
    kind = type(part).__name__

    def value() -> Tensor | None:
        # Handed over as copies with a history: some layers write to their inputs.
        given = map_leaves((args, kwargs), lambda x: x * 1 if id(x) in own else x)
        outputs = [x for x in leaves(part(*given[0], **given[1])) if isinstance(x, Tensor)]
        used = [x for x in outputs if x.is_floating_point() and x.requires_grad]
        # Squares, so that the second derivative passes through the layer's own backward.
        return (
            torch.stack([x.square().mean() + x.sin().mean() for x in used]).sum() if used else None
        )

    def slopes(*, create_graph: bool) -> tuple[Tensor, list[Tensor]]:
        total = value()
        assert total is not None
        found = torch.autograd.grad(total, inputs, create_graph=create_graph, allow_unused=True)
        zero = torch.zeros_like
        pairs = zip(found, inputs, strict=True)
        return total, [zero(x) if g is None else g for g, x in pairs]

    with twice_differentiable(part):
        try:
            if not inputs or value() is None:
                return LayerTrial(name, kind, 0.0, 0.0)
            total, gradients = slopes(create_graph=True)
            resolution = _resolution(total, dtype)
            along = _along(inputs, gradients)
            usable = [
                (g * d).sum() for g, d in zip(gradients, along, strict=True) if g.requires_grad
            ]
            products: Any = [None] * len(inputs)
            if usable:
                products = torch.autograd.grad(torch.stack(usable).sum(), inputs, allow_unused=True)
            step = _LAYER_STEP[resolution] * max(_norm(inputs), 1e-3)
            (up, more), (down, less) = (_at(inputs, along, s, slopes) for s in (step, -step))
        except Exception as error:  # some cannot be called alone, or have no such derivative
            return LayerTrial(name, kind, float("nan"), float("nan"), first_line(error))
    claimed = [
        torch.zeros_like(x) if p is None else p for p, x in zip(products, inputs, strict=True)
    ]
    measured = [(a - b) / (2 * step) for a, b in zip(more, less, strict=True)]
    slope = sum(float((g.detach() * d).sum()) for g, d in zip(gradients, along, strict=True))
    truth = float((up - down).detach()) / (2 * step)
    floor = torch.finfo(resolution).eps * (abs(float(total.detach())) + _norm(more)) / step
    return LayerTrial(
        name,
        kind,
        abs(slope - truth) / max(abs(slope), abs(truth), 1e3 * floor),
        _norm([a - b for a, b in zip(claimed, measured, strict=True)])
        / max(_norm(claimed), _norm(measured), 1e3 * floor),
    )


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _at(inputs: list[Tensor], along: list[Tensor], step: float, slopes: Any) -> Any:
    """Take the slopes at displaced inputs and parameters, and put these back."""
    for x, d in zip(inputs, along, strict=True):
        x.data.add_(d, alpha=step)
    try:
        return slopes(create_graph=False)
    finally:
        for x, d in zip(inputs, along, strict=True):
            x.data.sub_(d, alpha=step)


def _along(inputs: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    generator = seeded(0)
    drawn = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in inputs]
    size, slope = _norm(drawn), _norm(gradients)
    mixed = [
        d / size + (g.detach() / slope if slope > 0 else 0.0)
        for d, g in zip(drawn, gradients, strict=True)
    ]
    return [d / _norm(mixed) for d in mixed]


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.detach().double().norm() for t in tensors]).norm())
