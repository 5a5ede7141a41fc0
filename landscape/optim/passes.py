"""What the passes of a SAM step share: running statistics, random numbers, fresh gradients."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of a model as they are, however often it is called inside.

    For the second pass of a SAM loop whose optimizer was not given the model:

        with frozen_statistics(model):
            loss_function(model(input), target).backward()

    In train mode the statistics of the batch are still used for normalising. Inside, copies stand
    in for all buffers; afterwards the model has its own back, bit for bit (``num_batches_tracked``
    among them), exception or not.

    Args:
        model: the model; several go into one `torch.nn.ModuleList`.

    Yields:
        Nothing.

    Cost: one copy of the buffers.

    >>> import torch
    >>> model = nn.BatchNorm1d(2)
    >>> with frozen_statistics(model):
    ...     normalised = model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    >>> normalised.mean().abs().item() < 1e-6, model.running_mean
    (True, tensor([0., 0.]))
    """
    # Not a momentum of zero and back, the usual way: it counts batches all the same, misses
    # normalisers of other classes, and after an exception leaves the momentum at zero.
    # All buffers: hand-written normalisers and the power iteration of spectral norms use them too.
    # Copies, because autograd refuses buffers that change between forward and backward.
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    # By identity: a buffer that goes by several names is still one.
    copies = {id(buffer): buffer.detach().clone() for _, _, buffer in buffers}
    try:
        for module, name, buffer in buffers:
            setattr(module, name, copies[id(buffer)])
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)


def rng_states(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """Return the states of torch's generators: of the CPU, and of each CUDA device given."""
    states = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}
    return {torch.device("cpu"): torch.get_rng_state(), **states}


def set_rng_states(states: dict[torch.device, Tensor]) -> None:
    """Put the generators back into states that `rng_states` returned."""
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


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
