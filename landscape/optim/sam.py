"""Sharpness-aware minimization around any optimizer of torch."""

from __future__ import annotations

import inspect
import itertools
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.optim.statistics import BufferStandIns


class SAM(Optimizer):
    """Sharpness-aware minimization: descend with the gradient found at the worst nearby point.

    One step at weights w, with g = ∇L(w) over all parameters of all groups as one vector:

        ε = ρ g / ‖g‖₂,      w ← base step at w with the gradient ∇L(w + ε).

    The base optimizer does the descent, with its own momentum and weight decay; the decay is not
    part of L, so it enters neither ε nor g. A group's own ``rho`` scales its part of ε. With
    ρ = 0 everywhere the step is that of the base optimizer, bit for bit; where g = 0, so is ε.

    There are two ways to use it. With a closure, which is called twice:

        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, model=model, lr=0.1)
        def closure():
            optimizer.zero_grad()
            loss = loss_function(model(input), target)
            loss.backward()
            return loss
        loss = optimizer.step(closure)     # the loss at w, not at w + ε

    or by hand, with `first_step` after the first backward pass and `second_step` after the
    second. `step` draws the same random numbers in both passes (dropout masks; torch's generators
    of the CPU and of the parameters' CUDA devices), the loop by hand draws new ones.

    Given the ``model``, the second pass leaves its running statistics (BatchNorm) alone; without
    it use `landscape.optim.frozen_statistics`, or they count every batch twice. When gradients
    are clipped, clip those of the second pass; when they are accumulated, accumulate all
    micro-batches at w, then all at w + ε. Mixed precision: bfloat16 needs no loss scaling; a
    `GradScaler` is not supported.

    The base optimizer is ``base_optimizer``. It has the same ``param_groups`` and the same
    ``state``, so a learning-rate scheduler works on either, and the state dict of either holds
    everything that is needed to resume (take it between steps, not inside one).

    Args:
        params: parameters, named parameters or parameter groups, as for any optimizer of torch;
            a group may have a ``rho`` of its own.
        base_optimizer: the class of the optimizer that descends, not an instance.
        rho: radius of the neighbourhood, ‖ε‖₂; at least 0.
        model: the model whose buffers the second pass shall not change; several go into one
            `torch.nn.ModuleList`.
        **kwargs: passed on to the base optimizer (``lr``, ``momentum``, …).

    Raises:
        InvalidArgumentError: if an argument is out of range or of the wrong kind.

    Cost: two gradients per step, and one copy of the parameters (and buffers) inside a step.

    Reference: Foret, Kleiner, Mobahi, Neyshabur 2021, arXiv 2010.01412.

    L(w) = w² from w = 1: ε = 0.5, ∇L(1.5) = 3, and 1 − 0.1 · 3 = 0.7:

    >>> w = nn.Parameter(torch.tensor(1.0))
    >>> optimizer = SAM([w], torch.optim.SGD, rho=0.5, lr=0.1)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = w**2
    ...     loss.backward()
    ...     return loss
    >>> optimizer.step(closure).item(), round(w.item(), 6)
    (1.0, 0.7)
    """

    def __init__(
        self,
        params: Iterable[Any],
        base_optimizer: type[Optimizer],
        rho: float = 0.05,
        *,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        _check_base(base_optimizer)
        _check_model(model)
        super().__init__(_some(params), {"rho": _radius(rho), **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.defaults = {**self.base_optimizer.defaults, "rho": _radius(rho)}
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state
        self.model = model
        # Outside `state`, so that a state dict never holds them.
        self._saved: list[tuple[Tensor, Tensor]] | None = None
        self._stand_ins: BufferStandIns | None = None

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Climb: save w and go to w + ε, with the gradients of w.

        Args:
            zero_grad: forget the gradients afterwards, ready for the second backward pass.

        Raises:
            LandscapeError: if the step before is not finished, or there is no usable gradient.
        """
        if self._saved is not None:
            msg = (
                "first_step() was called twice without second_step(): the weights are at w + ε. "
                "Call second_step() after the second backward pass, or restore() to go back to w "
                "and drop the step"
            )
            raise LandscapeError(msg)
        scales = [_scale(group) for group in self.param_groups]
        groups = [_with_gradient(group["params"]) for group in self.param_groups]
        norm = _global_norm(_gradients(itertools.chain(*groups)))
        saved: list[tuple[Tensor, Tensor]] = [
            (p, p.detach().clone()) for p in itertools.chain(*groups)
        ]
        self._stand_ins = BufferStandIns(self.model) if self.model is not None else None
        self._saved = saved
        try:
            for scale, params in zip(scales, groups, strict=True):
                # Not even 0 · g is added: it would turn −0 into 0, and infinity into NaN.
                if scale != 0:
                    _add(params, scale=scale / norm.masked_fill(norm == 0, math.inf))
        except BaseException:
            self.restore()
            raise
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Descend: go back to w exactly, then let the base optimizer step there.

        Args:
            zero_grad: forget the gradients afterwards, ready for the next step.

        Raises:
            LandscapeError: if there was no `first_step`.
        """
        if self._saved is None:
            msg = (
                "second_step() was called before first_step(): compute the loss, call backward(), "
                "then first_step(); compute the loss again, call backward(), then second_step()"
            )
            raise LandscapeError(msg)
        self.restore()
        self.base_optimizer.step()
        # A learning-rate scheduler on this optimizer looks here for a step before its own.
        self._opt_called = True
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to w without a step; the way out when the second pass failed.

        The weights become what they were at `first_step`, bit for bit, in place, and the model has
        its buffers back. Between steps there is nothing to do.
        """
        if self._saved:
            params, copies = zip(*self._saved, strict=True)
            torch._foreach_copy_(params, copies)
        if self._stand_ins is not None:
            self._stand_ins.leave()
        self._saved = self._stand_ins = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one whole step.

        If the closure fails in the second pass, the weights are put back before the exception
        goes on.

        Args:
            closure: clears the gradients, computes the loss and the gradients, returns the loss;
                called twice.

        Returns:
            What the closure returned at w.

        Raises:
            InvalidArgumentError: if there is no closure.
        """
        if closure is None:
            msg = (
                "SAM needs the gradient at two points, so step() needs a closure that clears the "
                "gradients, computes the loss, calls backward() and returns the loss; or call "
                "first_step() and second_step() by hand"
            )
            raise InvalidArgumentError(msg)
        random_numbers = _rng_states(self._devices())
        with torch.enable_grad():
            loss = closure()
        self.first_step(zero_grad=True)
        try:
            _set_rng_states(random_numbers)
            with torch.enable_grad():
                closure()
            self.second_step()
        finally:
            self.restore()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with settings of their own.

        Args:
            param_group: as for any optimizer of torch, with ``rho`` if it differs.

        Raises:
            InvalidArgumentError: if its ``rho`` is out of range.
        """
        rho = _radius(param_group.get("rho", self.defaults["rho"]))
        super().add_param_group({**param_group, "rho": rho})

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "base_optimizer": self.base_optimizer,
            "model": self.model,
            "_saved": None,
            "_stand_ins": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called by load_state_dict too, which makes a new state and new groups: share them again.
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("rho", self.defaults["rho"])
        shared = {"state": self.state, "param_groups": self.param_groups}
        self.base_optimizer.__setstate__(shared)

    def _devices(self) -> set[torch.device]:
        return {p.device for group in self.param_groups for p in group["params"]}


def _scale(group: dict[str, Any]) -> float:
    rho = _radius(group["rho"])
    # Who maximises L minimises −L, whose gradient points the other way.
    return -rho if group.get("maximize", False) else rho


def _with_gradient(params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in params if p.grad is not None]


def _add(params: list[nn.Parameter], *, scale: Tensor) -> None:
    """Add scale · gradient to each parameter, all tensors of a device in one call."""
    by_device: dict[torch.device, list[nn.Parameter]] = {}
    for p in params:
        by_device.setdefault(p.device, []).append(p)
    for device, there in by_device.items():
        epsilon = torch._foreach_mul(_gradients(there), scale.to(device))
        torch._foreach_add_(list[Tensor](there), list(epsilon))


def _gradients(params: Iterable[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _global_norm(gradients: list[Tensor]) -> Tensor:
    # ‖g‖₂ over all tensors, on the device of the first, at least in float32.
    if not gradients:
        msg = "no parameter has a gradient: call backward() on the loss before first_step()"
        raise LandscapeError(msg)
    if any(g.layout != torch.strided for g in gradients):
        msg = (
            "SAM needs dense gradients, got a sparse one; "
            "build the embedding with sparse=False, or leave it out of SAM's parameters"
        )
        raise LandscapeError(msg)
    real = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in real) else torch.float32
    there = real[0].device
    parts = [part.to(there) for part in torch._foreach_norm(real, 2, dtype)]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(parts))
    return norm


def _rng_states(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    states = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}
    return {torch.device("cpu"): torch.get_rng_state(), **states}


def _set_rng_states(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


def _radius(rho: Any) -> float:
    if not isinstance(rho, numbers.Real) or not 0 <= float(rho) < math.inf:
        msg = f"rho, the radius of SAM's neighbourhood, must be a finite number ≥ 0, got {rho!r}"
        raise InvalidArgumentError(msg)
    return float(rho)


def _some(params: Iterable[Any]) -> list[Any]:
    if isinstance(params, Tensor):
        msg = "params must be an iterable of parameters, got one tensor; put it into a list"
        raise InvalidArgumentError(msg)
    listed = list(params)
    if not listed:
        msg = (
            "SAM got an empty parameter list; is model.parameters() used up, or is there no layer?"
        )
        raise InvalidArgumentError(msg)
    return listed


def _check_base(base_optimizer: Any) -> None:
    if not isinstance(base_optimizer, type) or not issubclass(base_optimizer, Optimizer):
        got = type(base_optimizer).__name__
        msg = (
            "base_optimizer must be a class of optimizer, such as torch.optim.SGD, got an object "
            f"of type {got}; give the class, and its settings as keywords: "
            "SAM(params, torch.optim.SGD, lr=0.1)"
        )
        raise InvalidArgumentError(msg)
    if "rho" in inspect.signature(base_optimizer).parameters:
        msg = (
            f"{base_optimizer.__name__} has a setting rho of its own, which SAM's rho would "
            "overwrite in the parameter groups; use another base optimizer"
        )
        raise InvalidArgumentError(msg)
    closure = inspect.signature(base_optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        msg = (
            f"{base_optimizer.__name__} evaluates the loss by itself (its step needs a closure), "
            "so SAM cannot be built around it; use SGD, Adam or the like"
        )
        raise InvalidArgumentError(msg)


def _check_model(model: Any) -> None:
    if model is not None and not isinstance(model, nn.Module):
        msg = (
            f"model must be a torch.nn.Module, got {type(model).__name__}; "
            "put several into one torch.nn.ModuleList"
        )
        raise InvalidArgumentError(msg)
