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
from landscape.evaluate._derivatives import (
    differentiate,
    graph_nodes,
    needing_derivatives,
    twice_differentiable,
)
from landscape.evaluate._halves import check_halves, same_loss
from landscape.evaluate._layers import culprit
from landscape.problem._live import unwrapped
from landscape.problem.data import copied, leaves, move, written_to
from landscape.randomness import random_unit_vector

if TYPE_CHECKING:
    from landscape.evaluate._evaluator import Evaluator

EXAMPLES = 32
"""Examples of the first batch that the tests run on, where it can be cut."""
WIDE_PARAMETERS = 2**25
"""Above so many, the tests are made in the problem's own type: a copy in float64 costs memory."""

_STEPS = {torch.float64: (1e-6, 1e-7, 1e-8), torch.float32: (2e-2, 5e-3, 1e-3)}  # of ‖w‖
# Relative difference that is passed. Right derivatives in tests/cases.py stay below a tenth of it.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 3e-2}
_MARGIN = 20.0  # times the error of the differences, and times their rounding


def check_values(evaluator: Evaluator) -> None:
    """Evaluate a few examples twice, with gradients and without, and in halves; once a problem."""
    problem, trials = evaluator.problem, evaluator.problem.trials
    if trials.additive is not None:
        return
    batch = sample(evaluator)
    spare = copied(batch)
    with torch.no_grad(), _low_precision(evaluator) as low:
        once = evaluator.terms(None, spare, 0)
    trials.writes_inputs = written_to(spare)
    trials.writes_unseen = evaluator.is_written()
    evaluator.restore_always |= trials.writes_unseen
    _require_same(evaluator, batch, float(once.total), _recorded(evaluator, batch))
    if low:
        msg = (
            f"{low[0]} computes in {low[1]} (autocast inside forward?): the loss carries relative "
            "errors of about 1e-3, and its derivatives larger ones; switch autocast off to measure"
        )
        warnings.warn(msg, MisleadingWarning, stacklevel=4)
    trials.additive = problem.mode == "eval"
    if trials.additive:
        check_halves(evaluator, batch, once, n=EXAMPLES)


def sample(evaluator: Evaluator) -> Any:
    """Return the first examples of the first batch, or all of it where it cannot be cut."""
    problem = evaluator.problem
    batch = next(iter(problem.batches))
    if problem.trials.additive is False or not problem.batching.can_split(batch):
        return batch
    if problem.batching.size(batch) <= EXAMPLES:
        return batch
    head = problem.batching.split(batch, EXAMPLES)[0]
    try:
        with torch.no_grad():
            evaluator.terms(None, head, 0)
    except LandscapeError:
        return batch  # what is wrong with the whole batch is said where that is evaluated
    return head


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
    return float(evaluator.problem.derivatives.get("rounding", 0.0))


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


def _recorded(evaluator: Evaluator, batch: Any) -> float:
    """Evaluate with gradients, or without where the user's code cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.enable_grad():
                return float(evaluator.terms(None, batch, 0).total.detach())
        except LandscapeError:  # said again where a gradient is asked for
            with torch.no_grad():
                return float(evaluator.terms(None, batch, 0).total)


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
        if unwrapped(part) is part
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


# Derivatives


class _Point:
    """A few examples at the weights: their mean loss and its derivatives in one type."""

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
        size = float(self.gradient.norm())
        has_slope = math.isfinite(size) and size > 0.0
        if has_slope and len(gradient) > WIDE_PARAMETERS:  # each copy costs memory
            self.direction = self.gradient.div_(size)
            self.claimed = torch.tensor(size, dtype=dtype)
            return
        self.direction = random_unit_vector(len(gradient), seed=0).to(gradient)
        if has_slope:
            self.direction.add_(self.gradient, alpha=1.0 / size)
            self.direction /= self.direction.norm()
        self.claimed = self.gradient @ self.direction

    def loss(self, step: float) -> float:
        with torch.no_grad():
            at = torch.add(self.origin, self.direction, alpha=step * self.norm)
            return self.scale * float(self.evaluator.terms(at, self.batch, 0).total)

    def slope(self, step: float) -> Tensor:
        at = torch.add(self.origin, self.direction, alpha=step * self.norm)
        return self.scale * self.evaluator.batch_gradient(at, self.batch, 0)[1]

    def product(self) -> Tensor:
        """Return the Hessian times the direction, by double backward."""
        evaluator, space = self.evaluator, self.evaluator.problem.space
        parameters = evaluator.parameters
        with twice_differentiable(evaluator.model):
            terms = evaluator.terms(self.origin, self.batch, 0)
            gradients = differentiate(terms.total, parameters, create_graph=True)
            along = [
                (g * d).sum()
                for g, d in zip(gradients, space.views(self.direction), strict=True)
                if g is not None and g.requires_grad
            ]
            if not along:
                return torch.zeros_like(self.direction)
            with needing_derivatives("twice"):
                total = torch.stack(along).sum()
                products = torch.autograd.grad(total, parameters, allow_unused=True)
        named = zip(space.names, space.shapes, products, strict=True)
        zero = self.direction.new_zeros
        return self.scale * space.flatten({n: zero(s) if p is None else p for n, s, p in named})


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
    evaluator.write()
    evaluator.install(dtype)
    try:
        yield
    finally:
        evaluator.install(evaluator.problem.dtype)


def _wrong_gradient(point: _Point) -> str:
    claimed = point.claimed

    def differences(step: float) -> tuple[Tensor, float]:
        up, down = point.loss(step), point.loss(-step)
        reach = 2 * step * point.norm
        return claimed.new_tensor((up - down) / reach), max(abs(up), abs(down)) / reach

    # Of a gradient of zero only what the loss shows beyond rounding can be held against it.
    true = _contradiction(claimed, differences, point.dtype)
    if true is None:
        return ""
    why = "a straight-through estimator, a detach() or a hook on gradients does that on purpose"
    if point.evaluator.problem.mode == "train":
        why += ", and spectral norm in train mode moves its vectors in every pass (measure in eval)"
    return (
        "the gradient by autograd is not the slope of the loss: along a test direction it is "
        f"{float(claimed):.4g}, and differences of the loss give {float(true):.4g}; the cause is "
        f"{_cause(point)}: {why}. Line, surface and average need no gradient"
    )


def _wrong_product(point: _Point) -> str:
    try:
        product = point.product()
    except LossError as error:
        return f"{_cause(point)}: {error}"

    def differences(step: float) -> tuple[Tensor, float]:
        up, down = point.slope(step), point.slope(-step)
        reach = 2 * step * point.norm
        return (up - down) / reach, max(float(up.norm()), float(down.norm())) / reach

    if _contradiction(product, differences, point.dtype) is None:
        if point.dtype != point.evaluator.problem.dtype:
            point.evaluator.problem.derivatives["wide"] = point.batch, point.direction, product
        return ""
    return (
        f"{_cause(point)}: the second derivative by autograd is not that of the gradient; an "
        "operation hides how its backward pass depends on its inputs, such as by no_grad(), or "
        "torch has it wrong"
    )


def _rounding(evaluator: Evaluator, *wide: Any) -> float:
    """Compare a product in float64 with one in the problem's own type."""
    if not wide:
        return 0.0
    batch, direction, product = wide
    point = _Point(evaluator, batch, evaluator.problem.dtype)
    point.direction = direction.to(evaluator.origin)
    size = float(product.norm())
    return float((point.product().double() - product).norm()) / size if size else 0.0


def _contradiction(
    claimed: Tensor, differences: Callable[[float], tuple[Tensor, float]], dtype: torch.dtype
) -> Tensor | None:
    """Return what differences say if they contradict a derivative, and agree among themselves."""
    if not bool(torch.isfinite(claimed).all()):
        return None  # said where the loss or the product is taken
    before: Tensor | None = None
    for step in _STEPS[dtype]:
        measured, unit = differences(step)
        rounding = _MARGIN * torch.finfo(dtype).eps * unit
        if not bool(torch.isfinite(measured).all()):
            return None
        allowed = _TOLERANCE[dtype] * max(float(claimed.norm()), float(measured.norm())) + rounding
        off = float((claimed - measured).norm())
        if off <= allowed:
            return None
        if before is not None and off > allowed + _MARGIN * float((measured - before).norm()):
            return measured
        before = measured
    return None


def _cause(point: _Point) -> str:
    layer = culprit(point.evaluator, point.batch, point.dtype)
    functions = ", ".join(dict.fromkeys(point.functions))
    return f"{layer}, with torch.autograd.Function {functions}" if functions else layer
