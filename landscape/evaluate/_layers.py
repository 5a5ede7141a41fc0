"""Derivatives of each layer, tried alone on the inputs that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscape.errors import first_line
from landscape.evaluate._derivatives import twice_differentiable
from landscape.problem.data import leaves, map_leaves, move
from landscape.randomness import seeded

if TYPE_CHECKING:
    from landscape.evaluate._evaluator import Evaluator

_STEP = {torch.float64: 1e-6, torch.float32: 5e-3}
_WRONG = {torch.float64: 1e-4, torch.float32: 0.1}


@dataclass(frozen=True)
class LayerTrial:
    """Derivatives of one layer on a few examples.

    Attributes:
        name: of the layer.
        kind: its class.
        gradient: relative error of the gradient; NaN: there is none.
        second: relative error of the second derivative; NaN: there is none.
        failure: what torch said, where there is none.
    """

    name: str
    kind: str
    gradient: float
    second: float
    failure: str = ""


def culprit(evaluator: Evaluator, batch: Any, dtype: torch.dtype) -> str:
    """Name the innermost layer whose derivatives are wrong or missing."""
    try:
        trials = layer_trials(evaluator, batch, dtype)
    except Exception:  # whatever a user's layer does by itself, it must not end the measurement
        return "an operation of the model"
    finally:
        evaluator.move_to(dtype)
    wrong = [t for t in trials if t.failure or max(t.gradient, t.second) > _WRONG[dtype]]
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
        return total.detach(), [zero(x) if g is None else g for g, x in pairs]

    with twice_differentiable(part):
        try:
            if not inputs or value() is None:
                return LayerTrial(name, kind, 0.0, 0.0)
            total, gradients = slopes(create_graph=True)
            along = _along(inputs, gradients)
            usable = [
                (g * d).sum() for g, d in zip(gradients, along, strict=True) if g.requires_grad
            ]
            products: Any = [None] * len(inputs)
            if usable:
                products = torch.autograd.grad(torch.stack(usable).sum(), inputs, allow_unused=True)
            step = _STEP[dtype] * max(_norm(inputs), 1e-3)
            (up, more), (down, less) = (_at(inputs, along, s, slopes) for s in (step, -step))
        except Exception as error:  # some cannot be called alone, or have no such derivative
            return LayerTrial(name, kind, float("nan"), float("nan"), first_line(error))
    claimed = [
        torch.zeros_like(x) if p is None else p for p, x in zip(products, inputs, strict=True)
    ]
    measured = [(a - b) / (2 * step) for a, b in zip(more, less, strict=True)]
    slope = sum(float((g.detach() * d).sum()) for g, d in zip(gradients, along, strict=True))
    truth = float(up - down) / (2 * step)
    floor = torch.finfo(dtype).eps * (abs(float(total)) + _norm(more)) / step
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
