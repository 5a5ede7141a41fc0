"""Which part of a model has no second derivative."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from landscape.evaluate import Evaluator
from landscape.operators.graphs import ONCE, nodes, twice_differentiable
from landscape.problem.data import leaves, map_leaves


def name_the_culprit(evaluator: Evaluator) -> str:
    """Say which layer has no second derivative, as far as it can be found out.

    Args:
        evaluator: an entered evaluator.

    Returns:
        The module's name and class, or words for what is not known.
    """
    try:
        return _search(evaluator)
    except Exception:  # whatever a user's layer does by itself, it must not end the measurement
        return "an operation of the model"


def _search(evaluator: Evaluator) -> str:
    """Return the layer that has no second derivative, by trying each on the inputs that it gets.

    Args:
        evaluator: an entered evaluator.

    Returns:
        The module's name and class, or ``the loss`` where every layer has one. Cost: one forward
        pass over the first batch, and two backward passes through each layer.
    """
    problem = evaluator.problem
    inputs: dict[str, tuple[Any, Any]] = {}

    def run(model: nn.Module, batch: Any) -> None:
        def note(name: str) -> Any:
            def hook(part: nn.Module, args: Any, kwargs: Any) -> None:
                inputs.setdefault(name, (args, kwargs))

            return hook

        hooks = [
            part.register_forward_pre_hook(note(name), with_kwargs=True)
            for name, part in model.named_modules()
            if name
        ]
        try:
            problem.loss(model, batch)
        finally:
            for hook in hooks:
                hook.remove()

    with torch.no_grad():
        evaluator.on_batch(evaluator.origin, next(iter(problem.batches)), 0, run)
    # The innermost first: what contains the culprit fails as well.
    innermost_first = sorted(inputs, key=lambda name: -name.count("."))
    for wrong in (_fails, _is_custom):
        for name in innermost_first:
            # A copy: a layer in train mode writes to its buffers.
            part = copy.deepcopy(problem.model.get_submodule(name))
            part.to(problem.device, problem.dtype)
            if wrong(part, *inputs[name]):
                return f"{name} ({type(part).__name__})"
    return "the loss, or an operation outside of the layers"


def _fails(part: nn.Module, args: Any, kwargs: Any) -> bool:
    """Return whether a module cannot be differentiated twice."""
    with twice_differentiable(part):
        total, wanted = _square(part, args, kwargs)
        if total is None or not wanted:
            return False
        slopes = torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True)
        kept = [slope for slope in slopes if slope is not None and slope.requires_grad]
        if any(node.name() == ONCE for node in nodes(*kept)):
            return True
        try:
            if kept:
                squares = torch.stack([slope.square().sum() for slope in kept]).sum()
                torch.autograd.grad(squares, wanted, allow_unused=True)
        except RuntimeError:
            return True
    return False


def _is_custom(part: nn.Module, args: Any, kwargs: Any) -> bool:
    """Return whether a module uses a backward pass that its author wrote."""
    with twice_differentiable(part):
        total, _ = _square(part, args, kwargs)
    return total is not None and any(isinstance(node, BackwardCFunction) for node in nodes(total))


def _square(part: nn.Module, args: Any, kwargs: Any) -> tuple[Tensor | None, list[Tensor]]:
    """Return the sum of squares of a module's outputs, and what it can be differentiated by.

    Squared, so that the second derivative passes through the module's own backward.
    """

    def fresh(leaf: Any) -> Any:
        usable = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.detach().clone().requires_grad_(True) if usable else leaf

    args, kwargs = map_leaves(args, fresh), map_leaves(kwargs, fresh)
    wanted = [
        x
        for x in [*leaves([args, kwargs]), *part.parameters()]
        if isinstance(x, Tensor) and x.requires_grad
    ]
    outputs = leaves(part(*args, **kwargs))
    usable = [x for x in outputs if isinstance(x, Tensor) and x.requires_grad]
    return (torch.stack([x.square().sum() for x in usable]).sum() if usable else None), wanted
