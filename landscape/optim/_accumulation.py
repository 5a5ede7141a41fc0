"""Refuse gradients that were accumulated before SAM's closure: they would not count at w + ε."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError

_ADVICE = (
    "let the closure clear the gradients and go over all micro-batches of the step itself:\n"
    "    def closure():\n"
    "        optimizer.zero_grad()\n"
    "        total = 0.0\n"
    "        for batch in micro_batches:\n"
    "            loss = loss_of(batch) / len(micro_batches)\n"
    "            loss.backward()\n"
    "            total += loss.detach()\n"
    "        return total\n"
    "or accumulate all of them before first_step(zero_grad=True) and all again before "
    "second_step(). In Lightning both need manual optimization in place of "
    "accumulate_grad_batches; with accelerate, gradient_accumulation_steps=1"
)
# A hook makes autograd copy the gradient: a few small ones suffice, as all are cleared together.
_MAX_WATCHED = 8
_MAX_FRAMES = 16  # up to accelerate's step: torch's profiler and schedulers lie between


@contextmanager
def refuse_accumulation(params: Sequence[nn.Parameter]) -> Iterator[None]:
    """Watch a closure, and refuse gradients that it adds to others or makes of too few batches."""
    steps = _accelerate_steps()
    # Not the gradients themselves: those that the closure clears make room for its own.
    before = {p: (ref(p.grad), p.grad._version) for p in params if p.grad is not None}
    passes: Counter[nn.Parameter] = Counter()
    left: list[Tensor] = []
    handles: list[Any] = []

    def watch(p: nn.Parameter) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            passes[p] += 1
            if passes[p] == 1 and p.grad is not None:
                nonzero = _any(p.grad)
                # Only accumulated gradients are added; torch.autograd.grad runs this hook too.
                register: Any = p.register_post_accumulate_grad_hook
                handles.append(register(lambda _: left.append(nonzero)))

        return hook

    trained = [p for p in params if p.requires_grad and (p in before or steps > 1)]
    for p in sorted(trained, key=nn.Parameter.numel)[:_MAX_WATCHED]:
        register: Any = p.register_hook
        handles.append(register(watch(p)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    # A parameter that the closure neither clears nor uses keeps the gradient of another loss.
    now = {p: p.grad for p in params if p.grad is not None}
    same = [g for p, g in now.items() if p in before and _is_unchanged(before[p], g)]
    if len(same) < len(now):
        left += [_any(g) for g in same]
    if left and bool(torch.stack([flag.cpu() for flag in left]).any()):
        msg = (
            "the closure added its gradients to those that were there before step(): micro-batches "
            "accumulated outside of it would count at w and not at w + ε. Call zero_grad() in the "
            f"closure, or, to accumulate micro-batches, {_ADVICE}"
        )
        raise LandscapeError(msg)
    n_passes = max(passes.values(), default=steps)
    if n_passes < steps:
        msg = (
            f"accelerate accumulates {steps} micro-batches, and the closure went over {n_passes}: "
            f"the others would not count in the step. Instead {_ADVICE}"
        )
        raise LandscapeError(msg)


def _is_unchanged(before: tuple[ref[Tensor], int], gradient: Tensor) -> bool:
    return before[0]() is gradient and before[1] == gradient._version


def _any(gradient: Tensor) -> Tensor:
    values = gradient.detach()
    return (values._values() if values.is_sparse else values).any()


def _accelerate_steps() -> int:
    """Return over how many micro-batches the step of accelerate that called ours accumulates."""
    accelerate = sys.modules.get("accelerate.optimizer")
    if accelerate is None:
        return 1
    frame = sys._getframe(1)
    for _ in range(_MAX_FRAMES):
        host = frame.f_locals.get("self")
        if isinstance(host, accelerate.AcceleratedOptimizer):
            return int(host.gradient_state.num_steps)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return 1
