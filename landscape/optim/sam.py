"""Sharpness-aware minimization around any optimizer of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.checks import real, whole
from landscape.errors import LandscapeError
from landscape.optim.ascent import Ascent
from landscape.optim.checks import (
    check_base,
    check_closure,
    check_decay,
    check_loss_scale,
    check_model,
    micro_batch_shares,
    parameter_list,
    radius,
)
from landscape.optim.gradients import (
    add_gradients,
    decay_rate,
    finish_gradients,
    forget_casts,
    loss_gradients,
    move,
)
from landscape.optim.passes import (
    frozen_statistics,
    refuse_accumulation,
    rng_states,
    set_rng_states,
)

# Attributes that a pickle holds beside the groups and the state.
_PICKLED = (
    *("base_optimizer", "model", "ascent", "n_steps", "gsam_alpha", "decay"),
    *("replay_rng", "sync_perturbation"),
)


@dataclass
class _Climb:
    """State of a step in progress, with which it returns to w.

    Outside of the optimizer's ``state``, which goes into state dicts, and one object, which
    Lightning's wrapper shares with the optimizer.
    """

    saved: dict[nn.Parameter, Tensor] | None = None
    at_w: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    n: int = 0
    buffers: ExitStack = field(default_factory=ExitStack)  # gives the model its buffers back


class SAM(Optimizer):
    """Sharpness-aware minimization: descend with the gradient found at the worst nearby point.

    One step at weights w, with g = ∇L(w) over all parameters of all groups as one vector:

        ε = argmax of gᵀε over ‖T⁻¹ε‖ₚ ≤ ρ,      w ← base step at w with the gradient ∇L(w + ε);

    for p = 2 and T = 1, the defaults, ε = ρ g / ‖g‖₂; all others are in
    `landscape.optim.Ascent`. A group's own ``rho`` scales its part of ε. With ρ = 0 everywhere
    the step is that of the base optimizer, bit for bit; where g = 0, so is ε.

    Either with a closure, which is called once per gradient:

        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, model=model, lr=0.1)
        def closure():
            optimizer.zero_grad()
            loss = loss_function(model(input), target)
            loss.backward()
            return loss
        loss = optimizer.step(closure)     # the loss at w, not at w + ε

    or by hand, with `first_step` after the first backward pass (after each of the first
    ``n_steps``) and `second_step` after the last. `step` draws the same random numbers in all
    passes (dropout masks; torch's generators of the CPU and of the parameters' CUDA devices)
    unless ``replay_rng`` is False; the loop by hand draws new ones.

    Given the ``model``, only the pass at w counts in its running statistics (BatchNorm); without
    it use `landscape.optim.frozen_statistics`. Clip the gradients of the last pass. To accumulate
    micro-batches, accumulate all at w, then all at w + ε, by hand or in the closure; m-SAM, the
    mean of the SAM gradients of micro-batches, is `step_micro_batches`.

    Mixed precision: one autocast context may hold all passes. With a `torch.amp.GradScaler`:

        scaler.scale(loss).backward()
        optimizer.first_step(zero_grad=True, loss_scale=scaler.get_scale())
        scaler.scale(loss_function(model(input), target)).backward()
        scaler.step(optimizer)             # second_step, left out where a gradient overflowed
        optimizer.restore()                # back to w where it was left out
        scaler.update()

    Under DistributedDataParallel all processes climb to the same point. With
    ``sync_perturbation=False`` each climbs with the gradient of its own batch, as in the paper
    (m-SAM), which saves communication; `step` then needs the wrapped module as ``model``, a loop by
    hand ``model.no_sync()`` around the pass at w.

    The attribute ``base_optimizer`` shares ``param_groups`` and ``state``: a scheduler works on
    either, and the state dict of either, taken between steps, holds all but the arguments that are
    no settings of a group.

    Args:
        params: parameters, named parameters or parameter groups, as for any optimizer of torch;
            a group may have a ``rho`` of its own.
        base_optimizer: the class of the optimizer that descends, not an instance.
        rho: radius of the neighbourhood, ‖T⁻¹ε‖ₚ; at least 0.
        model: the model whose buffers the passes at w + ε shall not change; several go into one
            `torch.nn.ModuleList`.
        p: order of the norm, at least 1; infinity is allowed.
        adaptive: T: ``none``, ``elementwise`` (ASAM: |w| + η) or ``filterwise``.
        eta: η, at least 0.
        normalised: False for unnormalised SAM, ε = ρ T²g.
        n_steps: gradients spent on finding ε: each adds the perturbation of radius ρ/n_steps at
            the point reached, with T that of w, so that ε stays in the ball.
        gsam_alpha: α of GSAM: the gradient at w + ε, g₊, loses α times the part of g that is
            orthogonal to it, g₊ − α (g − g₊ gᵀg₊/‖g₊‖²); 0 for SAM.
        decay: ``outside``: L is the loss alone, weight decay is left to the base optimizer at w.
            ``inside``: L is the loss and λ/2 ‖w‖², λ being a group's ``weight_decay``, in every
            pass, as in the paper's code; not for decoupled decay.
        replay_rng: whether `step` draws the same random numbers in all passes.
        sync_perturbation: False for a perturbation of its own in each process.
        **kwargs: passed on to the base optimizer (``lr``, ``momentum``, …).

    Raises:
        InvalidArgumentError: if an argument is out of range or of the wrong kind.

    Cost: ``n_steps`` + 1 gradients per step, and one copy of the parameters (and buffers) inside a
    step; with GSAM one of the gradients too.

    References: Foret, Kleiner, Mobahi, Neyshabur 2021, arXiv 2010.01412; ASAM: Kwon et al. 2021,
    arXiv 2102.11600; GSAM: Zhuang et al. 2022, arXiv 2203.08065; unnormalised SAM: Andriushchenko
    and Flammarion 2022, arXiv 2206.06232.

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
        p: float = 2.0,
        adaptive: str = "none",
        eta: float = 0.01,
        normalised: bool = True,
        n_steps: int = 1,
        gsam_alpha: float = 0.0,
        decay: str = "outside",
        replay_rng: bool = True,
        sync_perturbation: bool = True,
        **kwargs: Any,
    ) -> None:
        check_base(base_optimizer)
        check_model(model, sync_perturbation=sync_perturbation)
        self.ascent = Ascent(p=p, adaptive=adaptive, eta=eta, normalised=normalised)
        self.n_steps = whole("n_steps, the gradients spent on finding ε,", n_steps, least=1)
        self.gsam_alpha = real("gsam_alpha", gsam_alpha, least=0.0, advice="0 is SAM")
        super().__init__(parameter_list(params), {"rho": radius(rho), **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        check_decay(decay, self.base_optimizer)
        self.defaults = {**self.base_optimizer.defaults, "rho": radius(rho)}
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state
        self.model, self.decay = model, decay
        self.replay_rng, self.sync_perturbation = replay_rng, sync_perturbation
        self._climb = _Climb()

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False, *, loss_scale: float = 1.0) -> None:
        """Climb: save w and go to w + ε, with the gradients of w.

        Args:
            zero_grad: clear the gradients afterwards.
            loss_scale: factor of the loss, ``scaler.get_scale()``.

        Raises:
            LandscapeError: if the step before is not finished, or there is no usable gradient.
        """
        check_loss_scale(loss_scale)
        climb = self._climb
        if climb.n >= self.n_steps:
            often = "twice" if self.n_steps == 1 else f"{self.n_steps + 1} times"
            msg = (
                f"first_step() was called {often} without second_step(): the weights are at w + ε. "
                "Call second_step() after the last backward pass, or restore() to go back to w "
                "and drop the step"
            )
            raise LandscapeError(msg)
        params: list[nn.Parameter] = []
        rhos: list[float] = []
        rates: list[float] = []
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            params += with_gradient
            rhos += [self._scale(group)] * len(with_gradient)
            rates += [decay_rate(group, self.decay)] * len(with_gradient)
        gradients = loss_gradients(params, rates, loss_scale=loss_scale)
        saved = climb.saved if climb.saved is not None else {}
        saved.update({p: p.detach().clone() for p in params if p not in saved})
        epsilons = self.ascent.epsilons(gradients, [saved[p] for p in params], rhos)
        if self.model is not None and climb.saved is None:
            climb.buffers.enter_context(frozen_statistics(self.model))
        if self.gsam_alpha and climb.saved is None:
            climb.at_w = {p: g.clone() for p, g in zip(params, gradients, strict=True)}
        climb.saved = saved
        try:
            move(params, epsilons)
        except BaseException:
            self.restore()
            raise
        climb.n += 1
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Descend: go back to w exactly, then let the base optimizer step there.

        Args:
            zero_grad: clear the gradients afterwards.

        Raises:
            LandscapeError: if there was no `first_step`, or not all of ``n_steps``.
        """
        if "_climb" not in vars(self):  # Lightning's wrapper, which counts the calls of its step
            self.step()
        else:
            self._come_back()
            self._descend()
        if zero_grad:
            self.zero_grad()

    def _descend(self) -> None:
        self.base_optimizer.step()
        # A learning-rate scheduler on this optimizer looks here for a step before its own.
        self._opt_called = True

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to w without a step, bit for bit and in place, as when a pass at w + ε failed."""
        climb = self._climb
        if climb.saved:
            torch._foreach_copy_(list[Tensor](climb.saved), list(climb.saved.values()))
            forget_casts()
        climb.buffers.close()
        vars(climb).update(vars(_Climb()))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one whole step.

        If the closure fails at w + ε, the weights are put back before the exception goes on.

        Args:
            closure: clears the gradients, computes the loss and the gradients, returns the loss;
                called ``n_steps`` + 1 times. After `first_step` it is called once, at w + ε, or
                left out where the gradients are already there, as by `torch.amp.GradScaler`,
                accelerate and Lightning's manual optimization.

        Returns:
            The value of the closure at w; after `first_step` at w + ε.

        Raises:
            InvalidArgumentError: if there is no closure, and no `first_step` either.
            LandscapeError: if the closure adds its gradients to those accumulated before.
        """
        loss = None
        if self._climb.saved is None:
            loss = self._sam_gradient(check_closure(closure))
        else:
            if closure is not None:
                check_closure(closure)
                try:
                    with torch.enable_grad(), refuse_accumulation(self._parameters()):
                        loss = closure()
                except BaseException:
                    self.restore()
                    raise
            self._come_back()
        self._descend()
        return loss

    def step_micro_batches(
        self, closures: Sequence[Callable[[], Any]], *, weights: Sequence[float] | None = None
    ) -> list[Any]:
        """Do one step of m-SAM: every micro-batch has a perturbation of its own.

        The base optimizer steps with Σ wᵢ ∇Lᵢ(w + εᵢ) / Σ wᵢ; εᵢ depends on ∇Lᵢ(w) alone.

        Args:
            closures: one per micro-batch, each as for `step`.
            weights: wᵢ, the numbers of examples where they differ; None: all equal.

        Returns:
            The values of the closures at w.

        Raises:
            InvalidArgumentError: if there is no closure, or the weights do not fit.

        Cost: as `step` for each micro-batch, and one sum of the gradients.

        Reference: Foret et al. 2021, arXiv 2010.01412, section 4.1.
        """
        shares = micro_batch_shares(closures, weights)
        losses, total = [], dict[nn.Parameter, Tensor]()
        for closure, share in zip(closures, shares, strict=True):
            self.zero_grad()
            losses.append(self._sam_gradient(closure))
            add_gradients(total, self._parameters(), share=share)
        for p in self._parameters():
            p.grad = total.get(p)
        self._descend()
        return losses

    def _sam_gradient(self, closure: Callable[[], Any]) -> Any:
        # Computes the gradients of the base optimizer's step; the weights are w again afterwards.
        devices = {p.device for p in self._parameters()}
        states = rng_states(devices) if self.replay_rng else {}
        with self._unsynced(), torch.enable_grad(), refuse_accumulation(self._parameters()):
            loss = closure()
        try:
            for _ in range(self.n_steps - 1):
                self.first_step(zero_grad=True)
                set_rng_states(states)
                with self._unsynced(), torch.enable_grad():
                    closure()
            self.first_step(zero_grad=True)
            set_rng_states(states)
            with torch.enable_grad():
                closure()
            self._come_back()
        finally:
            self.restore()
        return loss

    @torch.no_grad()
    def _come_back(self) -> None:
        climb = self._climb
        if climb.saved is None or climb.n < self.n_steps:
            often = "" if self.n_steps == 1 else f" had been called {self.n_steps} times"
            msg = (
                f"second_step() was called before first_step(){often}: compute the loss, call "
                "backward(), then first_step(); compute the loss again, call backward(), then "
                "second_step()"
            )
            raise LandscapeError(msg)
        finish_gradients(
            self.param_groups, climb.saved, climb.at_w, alpha=self.gsam_alpha, decay=self.decay
        )
        self.restore()

    def _scale(self, group: dict[str, Any]) -> float:
        rho = radius(group["rho"]) / self.n_steps
        # Maximising L is minimising −L, whose gradient points the other way.
        return -rho if group.get("maximize", False) else rho

    def _unsynced(self) -> AbstractContextManager[Any]:
        if self.sync_perturbation or self.model is None:
            return nullcontext()
        context: AbstractContextManager[Any] = self.model.no_sync()  # type: ignore[operator]
        return context

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with settings of their own.

        Args:
            param_group: as for any optimizer of torch, with ``rho`` if it differs.

        Raises:
            InvalidArgumentError: if its ``rho`` is out of range.
        """
        rho = radius(param_group.get("rho", self.defaults["rho"]))
        super().add_param_group({**param_group, "rho": rho})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _PICKLED}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called by load_state_dict too, which makes a new state and new groups: share them again.
        super().__setstate__(state)
        self._climb = _Climb()
        for group in self.param_groups:
            group.setdefault("rho", self.defaults["rho"])
        shared = {"state": self.state, "param_groups": self.param_groups}
        self.base_optimizer.__setstate__(shared)
