"""Calls of a user's model: how it takes inputs, and which output a loss module takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from landscape.errors import LossError, ProblemError
from landscape.problem._live import unwrapped
from landscape.problem.data import describe

_ANYTHING = inspect.signature(lambda *args, **kwargs: None)


class _Signature:
    """The arguments of a forward; what is no Python function takes anything."""

    def __init__(self, function: Callable[..., Any]) -> None:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            parameters = _ANYTHING.parameters.values()
        kinds = {p.kind for p in parameters}
        placed = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
        named = [p for p in parameters if p.kind in {p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD}]
        self.names = {p.name for p in named}
        self.required_names = {p.name for p in named if p.default is p.empty}
        self.n_required = sum(p.default is p.empty for p in placed)
        self.n_positional = float("inf") if Parameter.VAR_POSITIONAL in kinds else len(placed)
        self.any_name = Parameter.VAR_KEYWORD in kinds

    def takes_apart(self, inputs: Sequence[Any], target: Any) -> bool:
        """Tell whether each entry of a tuple or list is an argument."""
        n = len(inputs)
        if self.n_positional <= 1 or not max(self.n_required, 1) <= n <= self.n_positional:
            return self.n_required > 1  # the call then fails, and says what is missing
        if self.n_required != 1 or isinstance(inputs, tuple):
            return True
        # A list of one argument and optional others, or one list with an entry for each example.
        sizes = {len(x) if isinstance(x, Tensor) and x.ndim else None for x in inputs}
        if isinstance(target, Tensor):
            return not (target.ndim and len(target) == n and sizes != {n})
        return len(sizes) == 1 and not (isinstance(target, list) and isinstance(target[0], Mapping))

    def takes_by_name(self, inputs: Mapping[Any, Any]) -> bool:
        """Tell whether the entries of a mapping are arguments by name."""
        if self.any_name and self.required_names <= set(inputs):
            return True
        return (self.any_name or len(self.names) > 1) and bool(self.names & set(inputs))


_SIGNATURES: WeakKeyDictionary[Any, _Signature] = WeakKeyDictionary()


def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Run the model on the inputs of a batch (inputs, target); return its output and the target."""
    # Inputs go in as they are. A plain tuple or list is taken apart where forward takes so many
    # arguments, a mapping where its keys are names of arguments.
    if not isinstance(batch, Sequence) or len(batch) != 2:
        msg = (
            f"loss(output, target) needs batches (inputs, target), got {describe(batch)}; "
            "for any other batch give batch_loss(model, batch)"
        )
        raise ProblemError(msg)
    inputs, target = batch
    if type(inputs) in {tuple, list} and _signature(model).takes_apart(inputs, target):
        return model(*inputs), target
    if isinstance(inputs, Mapping) and _signature(model).takes_by_name(inputs):
        return model(**inputs), target
    return model(inputs), target


def main_output(output: Any, taker: str) -> Any:
    """Return the output that a loss module takes, or its logits; refuse several values."""
    main = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if isinstance(main, Tensor):
        return main
    key = repr(next(iter(output), "")) if isinstance(output, Mapping) else "0"
    msg = (
        f"{taker} needs tensors, got an output of {describe(output)}: the model returns several "
        "values. Write which of them the loss takes, for example def loss(output, target): return "
        f"criterion(output[{key}], target), or a function of them all"
    )
    raise LossError(msg)


def _signature(model: nn.Module) -> _Signature:
    forward = unwrapped(model).forward  # a wrapper's own takes anything
    key = getattr(forward, "__func__", forward)
    try:
        if key not in _SIGNATURES:
            _SIGNATURES[key] = _Signature(forward)
        return _SIGNATURES[key]
    except TypeError:  # no weak reference to it
        return _Signature(forward)
