"""The edge of stability of an optimizer: the curvature above which it diverges on a quadratic.

Each rule follows from the characteristic polynomial of the steps on L = λw²/2, whose root leaves
the unit circle at z = −1. With a learning rate η, momentum β, and a = λ + γ for coupled weight
decay γ:

    gradient descent                          a = 2/η
    momentum (dampening τ)                    a = (2 + 2β)/((1 − τ) η)
    Nesterov's momentum                       a = (2 + 2β)/((1 + 2β) η)
    Adam, its second moments held fixed       a = (2 + 2β₁)/((1 − β₁) η),  of P⁻¹(H + γ)
    AdamW, whose decay γ is decoupled         λ = (2 + 2β₁)/((1 − β₁) η) − γ (1 + β₁)/(1 − β₁)
    SAM, ε = ρ'g (normalised: ρ' = ρ/‖g‖)     λ (1 + ρ'λ) = the edge of the optimizer that descends
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from landscape.errors import InvalidArgumentError
from landscape.optim.sam import SAM
from landscape.randomness import forked_rng

Group = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The curvature above which an optimizer diverges on a quadratic.

    Attributes:
        value: λ at the edge.
        preconditioned: whether λ is an eigenvalue of P⁻¹(H + decay), P being `preconditioner`, and
            not of the Hessian H.
        decay: weight decay γ that is added to H before P⁻¹; 0 where it is in the value.
    """

    value: float
    preconditioned: bool = False
    decay: float = 0.0


def edge_of_stability(optimizer: Optimizer, *, gradient_norm: float | None = None) -> Edge:
    """Return the curvature above which an optimizer of torch diverges on a quadratic.

    Args:
        optimizer: SGD, Adam, AdamW, RMSprop, Adagrad, or `landscape.optim.SAM` around SGD.
            Parameter groups may differ in the learning rate, see `preconditioner`, and in weight
            decay, of which the one with the lowest edge counts.
        gradient_norm: ‖g‖, for normalised SAM, whose edge depends on it.

    Returns:
        The edge. No passes over the data.

    Raises:
        InvalidArgumentError: for another optimizer, or settings for which no edge is known.

    References: Cohen et al. 2021, arXiv 2103.00065; Cohen et al. 2022, arXiv 2207.14484 (Adam);
    Long and Bartlett 2024, arXiv 2309.12488 (SAM); Agarwala and Dauphin 2023, arXiv 2302.08692.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> edge_of_stability(SGD([w], lr=0.1)).value
    20.0
    >>> round(edge_of_stability(AdamW([w], lr=0.1, weight_decay=0.05)).value, 6)
    379.05
    """
    base = _base(optimizer)
    rule, top = _rule(base), largest_lr(base)
    groups = [{**g, "lr": top, "share": float(g["lr"]) / top} for g in base.param_groups]
    _check_alike(groups)
    edge = min((rule(group) for group in groups), key=lambda one: one.value - one.decay)
    edge = replace(edge, preconditioned=is_preconditioned(base))
    if not edge.preconditioned:  # a decay that is in the gradient moves every eigenvalue
        edge = Edge(value=edge.value - edge.decay)
    return _of_sam(optimizer, edge, gradient_norm) if isinstance(optimizer, SAM) else edge


def is_preconditioned(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer's edge is one of P⁻¹H, and not of the Hessian itself.

    Args:
        optimizer: any.

    Returns:
        True for those that divide by second moments, and where groups differ in learning rate.
        False also for one whose edge is not known.
    """
    base = _base(optimizer)
    rates = {float(group["lr"]) for group in base.param_groups}
    return type(base) in _RULES and (type(base) is not SGD or len(rates) > 1)


def largest_lr(optimizer: Optimizer) -> float:
    """Return the largest learning rate of an optimizer's parameter groups, above 0."""
    top = max(float(group["lr"]) for group in optimizer.param_groups)
    if not top > 0:
        msg = f"the learning rate is {top:g}: an optimizer that does not move has no edge"
        raise InvalidArgumentError(msg)
    return top


def preconditioner(optimizer: Optimizer) -> dict[nn.Parameter, Tensor]:
    """Return the diagonal P of the steps w ← w − η P⁻¹ m that an optimizer takes.

    For Adam √v̂ + ε with its bias corrections, v̂ being the second moments that it holds now; 1 for
    SGD. Where groups differ in their learning rate, P is as many times larger as η, the largest
    one, is above the group's own.

    Args:
        optimizer: as for `edge_of_stability`, after its first step.

    Returns:
        P by parameter, of its shape; those that were never stepped, or have learning rate 0, are
        left out.

    Raises:
        InvalidArgumentError: for an optimizer whose P is not known, or before its first step.
    """
    base = _base(optimizer)
    _rule(base)
    found, lr = {}, largest_lr(base)
    for group in base.param_groups:
        for parameter in group["params"]:
            state = base.state.get(parameter, {})
            moves = type(base) is SGD or float(state.get("step", 0)) > 0
            if moves and float(group["lr"]) > 0:
                divisor = _divisor(base, group, state, parameter)
                found[parameter] = divisor * (lr / float(group["lr"]))
    if not found:
        msg = f"{type(base).__name__} holds no second moments yet: let it take a step first"
        raise InvalidArgumentError(msg)
    return found


@torch.no_grad()
def next_update(optimizer: Optimizer) -> dict[nn.Parameter, Tensor]:
    """Return the displacement of the weights that an optimizer's next step would make.

    A copy of the optimizer and its parameters is stepped with the gradients that they hold now, so
    that neither weights nor moments move. Of SAM it is the step of the optimizer that descends.

    Args:
        optimizer: any optimizer of torch whose step needs no closure.

    Returns:
        w after less w before, by parameter; those without a gradient are left out. Cost: a copy of
        the parameters, their gradients and the optimizer's state.

    Raises:
        InvalidArgumentError: if no parameter has a gradient, or the step needs a closure.
    """
    base = _base(optimizer)
    twin = copy.deepcopy(base)
    pairs = [
        (own, other)
        for group, copied in zip(base.param_groups, twin.param_groups, strict=True)
        for own, other in zip(group["params"], copied["params"], strict=True)
        if own.grad is not None
    ]
    if not pairs:
        msg = "no parameter has a gradient: call loss.backward() before asking for the update"
        raise InvalidArgumentError(msg)
    for own, other in pairs:
        other.grad = own.grad.clone()
    try:
        with forked_rng():
            twin.step()
    except TypeError as error:
        msg = f"{type(base).__name__} takes a closure, so its step cannot be tried on a copy"
        raise InvalidArgumentError(msg) from error
    return {own: other - own for own, other in pairs}


def _base(optimizer: Optimizer) -> Optimizer:
    return optimizer.base_optimizer if isinstance(optimizer, SAM) else optimizer


def _rule(base: Optimizer) -> Callable[[Group], Edge]:
    if type(base) not in _RULES:
        known = ", ".join(kind.__name__ for kind in _RULES)
        msg = f"no edge of stability is known of {type(base).__name__}; known: {known}, and SAM"
        raise InvalidArgumentError(msg)
    if any(group.get("maximize") for group in base.param_groups):
        msg = "an optimizer that maximises has no edge of stability at a minimum"
        raise InvalidArgumentError(msg)
    return _RULES[type(base)]


def _check_alike(groups: list[dict[str, Any]]) -> None:
    names = ("momentum", "dampening", "nesterov", "betas", "alpha")
    if any(group.get(name) != groups[0].get(name) for group in groups for name in names):
        msg = "parameter groups with different momentum have no edge in common: give one group"
        raise InvalidArgumentError(msg)


def _sgd(group: Group) -> Edge:
    lr, beta = group["lr"], group["momentum"]
    scale = 1 + 2 * beta if group["nesterov"] else 1 - group["dampening"] * bool(beta)
    return Edge(value=(2 + 2 * beta) / (scale * lr), decay=group["weight_decay"])


def _adam(group: Group, *, decoupled: bool = False) -> Edge:
    lr, beta, decay = group["lr"], float(group["betas"][0]), group["weight_decay"]
    value = (2 + 2 * beta) / ((1 - beta) * lr)
    if decoupled or group.get("decoupled_weight_decay"):
        return Edge(value=value - decay * group["share"] * (1 + beta) / (1 - beta))
    return Edge(value=value, decay=decay)


def _rmsprop(group: Group) -> Edge:
    value = (2 + 2 * group["momentum"]) / group["lr"]
    return Edge(value=value, decay=group["weight_decay"])


def _adagrad(group: Group) -> Edge:
    return Edge(value=2 / group["lr"], decay=group["weight_decay"])


_RULES: Mapping[type[Optimizer], Callable[[Group], Edge]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: functools.partial(_adam, decoupled=True),
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}


def _divisor(base: Optimizer, group: Group, state: Mapping[str, Any], w: Tensor) -> Tensor:
    """Return what a step divides the momentum by, beside 1/η."""
    if isinstance(base, SGD):
        return torch.ones_like(w)
    step = float(state["step"])
    moments: Tensor
    if isinstance(base, Adagrad):
        moments = state["sum"]
        slower = 1 + (step - 1) * float(group["lr_decay"])
        return (moments.sqrt() + float(group["eps"])) * slower
    if isinstance(base, RMSprop):
        moments = state["square_avg"]
        if group["centered"]:
            moments = moments - state["grad_avg"] ** 2
        return moments.sqrt() + float(group["eps"])
    first, second = (1.0 - float(beta) ** step for beta in group["betas"])
    moments = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"] / second
    divisor: Tensor = (moments.sqrt() + float(group["eps"])) * first
    return divisor


def _of_sam(optimizer: SAM, edge: Edge, gradient_norm: float | None) -> Edge:
    """Solve λ (1 + ρ'λ) = edge, both sides of coupled weight decay taken off."""
    ascent, rhos = optimizer.ascent, {group["rho"] for group in optimizer.param_groups}
    plain = (ascent.p, ascent.adaptive, optimizer.n_steps, optimizer.gsam_alpha) == (
        2,
        "none",
        1,
        0,
    )
    if not plain or len(rhos) > 1 or edge.preconditioned or optimizer.decay == "inside":
        msg = (
            "the edge of SAM is known for p = 2 without adaptive neighbourhood, one radius, one "
            "step, no GSAM, decay outside, around SGD"
        )
        raise InvalidArgumentError(msg)
    rho = float(rhos.pop())
    if ascent.normalised:
        if gradient_norm is None or not gradient_norm > 0:
            msg = f"normalised SAM needs gradient_norm > 0 for its edge, got {gradient_norm!r}"
            raise InvalidArgumentError(msg)
        rho /= gradient_norm
    value = (math.sqrt(1 + 4 * rho * edge.value) - 1) / (2 * rho) if rho else edge.value
    return Edge(value=value)
