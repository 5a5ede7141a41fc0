"""Gradients around a perturbation: weight decay, GSAM, sums over micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.optim.checks import check_gradients


def decay_rate(group: Mapping[str, Any], decay: str) -> float:
    """Return λ of the decay inside the loss, negative where L is maximised."""
    if decay == "outside":
        return 0.0
    rate = float(group.get("weight_decay", 0.0))
    return -rate if group.get("maximize", False) else rate


def loss_gradients(
    params: Sequence[nn.Parameter], rates: Sequence[float], *, loss_scale: float
) -> list[Tensor]:
    """Return the gradients of the loss that SAM perturbs, g + λw."""
    gradients = [_gradient(p) for p in params]
    check_gradients(gradients)
    if loss_scale != 1:
        gradients = list(torch._foreach_div(gradients, loss_scale))
    return [
        g.add(p, alpha=rate) if rate else g
        for g, p, rate in zip(gradients, params, rates, strict=True)
    ]


def finish_gradients(
    groups: Sequence[Mapping[str, Any]],
    saved: Mapping[nn.Parameter, Tensor],
    at_w: Mapping[nn.Parameter, Tensor],
    *,
    alpha: float,
    decay: str,
) -> None:
    """Turn the gradients at w + ε into those of the base optimizer's step, in place."""
    rates = [(p, decay_rate(group, decay)) for group in groups for p in group["params"]]
    decayed = [(p, rate) for p, rate in rates if rate and p.grad is not None and p in saved]
    for p, rate in decayed:
        _gradient(p).add_(p.detach() - saved[p], alpha=rate)
    if alpha == 0:
        return
    # GSAM compares whole gradients: add the part that the base optimizer adds, and subtract it.
    for p, rate in decayed:
        _gradient(p).add_(saved[p], alpha=rate)
    subtract_orthogonal_part(at_w, alpha=alpha)
    for p, rate in decayed:
        _gradient(p).sub_(saved[p], alpha=rate)


def subtract_orthogonal_part(at_w: Mapping[nn.Parameter, Tensor], *, alpha: float) -> None:
    """Subtract α times the part of g orthogonal to the gradient in place, g₊ − α(g − c g₊).

    c = gᵀg₊ / ‖g₊‖² over all parameters; 0 where g₊ = 0. A parameter that lacks one of the two
    gradients keeps what it has, and counts as zero in gᵀg₊.
    """
    pairs = [(g, p.grad) for p, g in at_w.items() if p.grad is not None]
    if not pairs:
        return
    device = pairs[0][0].device
    inner = torch.stack([_inner(g, top).to(device) for g, top in pairs]).sum()
    square = torch.stack([_inner(top, top).to(device) for _, top in pairs]).sum()
    share = torch.where(square > 0, inner / square, torch.zeros_like(inner))
    for g, top in pairs:
        # In this order nothing is left, to the bit, where both are equal.
        top.sub_(g - top * share.to(top.device, top.real.dtype), alpha=alpha)


def add_gradients(
    total: dict[nn.Parameter, Tensor], params: Sequence[nn.Parameter], *, share: float
) -> None:
    """Add share · gradient of each parameter to a sum."""
    for p in params:
        if p.grad is not None and p in total:
            total[p].add_(p.grad, alpha=share)
        elif p.grad is not None:
            total[p] = p.grad.mul(share)


def move(params: Sequence[nn.Parameter], epsilons: Sequence[Tensor | None]) -> None:
    """Add ε to the parameters, all tensors of a device in one call; None adds nothing."""
    by_device: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
    for p, epsilon in zip(params, epsilons, strict=True):
        if epsilon is not None:
            weights, steps = by_device.setdefault(p.device, ([], []))
            weights.append(p)
            steps.append(epsilon)
    for weights, steps in by_device.values():
        torch._foreach_add_(weights, steps)
    forget_casts()


def forget_casts() -> None:
    """Make autocast cast the weights anew: within one context it keeps those it has cast."""
    torch.clear_autocast_cache()


def _gradient(p: nn.Parameter) -> Tensor:
    gradient: Tensor = p.grad  # type: ignore[assignment]
    return gradient


def _inner(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    product: Tensor = torch.vdot(a.reshape(-1).to(wide), b.reshape(-1).to(wide)).real.double()
    return product
