"""What becomes of the gradients around a perturbation: weight decay, GSAM, sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.optim.checks import check_gradients


def decay_rate(group: Mapping[str, Any]) -> float:
    """Return λ of a group; below zero where L is maximised, since the decay never is."""
    rate = float(group.get("weight_decay", 0.0))
    return -rate if group.get("maximize", False) else rate


def with_gradient(params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that have a gradient."""
    return [p for p in params if p.grad is not None]


def loss_gradients(
    groups: Sequence[Mapping[str, Any]],
    params: Sequence[Sequence[nn.Parameter]],
    *,
    loss_scale: float,
    decay: str,
) -> list[Tensor]:
    """Return the gradients of the loss that SAM perturbs, g or g + λw."""
    found = [p.grad for ps in params for p in ps if p.grad is not None]
    check_gradients(found)
    if loss_scale != 1 and found:
        found = list(torch._foreach_div(found, loss_scale))
    if decay == "outside":
        return found
    rates = [(p, decay_rate(g)) for g, ps in zip(groups, params, strict=True) for p in ps]
    return [g.add(p, alpha=rate) if rate else g for g, (p, rate) in zip(found, rates, strict=True)]


def finish_gradients(
    groups: Sequence[Mapping[str, Any]],
    saved: Mapping[nn.Parameter, Tensor],
    at_w: Mapping[nn.Parameter, Tensor],
    *,
    alpha: float,
    decay: str,
) -> None:
    """Make the gradients at w + ε those that the base optimizer is to step with, in place."""
    decayed = _decayed(groups, saved) if decay == "inside" else []
    for p, rate in decayed:
        _gradient(p).add_(p.detach() - saved[p], alpha=rate)
    if alpha == 0:
        return
    # GSAM compares whole gradients; what the base optimizer adds is taken away again.
    for p, rate in decayed:
        _gradient(p).add_(saved[p], alpha=rate)
    take_away_orthogonal_part(at_w, alpha=alpha)
    for p, rate in decayed:
        _gradient(p).sub_(saved[p], alpha=rate)


def _decayed(
    groups: Sequence[Mapping[str, Any]], saved: Mapping[nn.Parameter, Tensor]
) -> list[tuple[nn.Parameter, float]]:
    rates = [(p, decay_rate(group)) for group in groups for p in group["params"]]
    return [(p, rate) for p, rate in rates if rate and p.grad is not None and p in saved]


def _gradient(p: nn.Parameter) -> Tensor:
    gradient: Tensor = p.grad  # type: ignore[assignment]
    return gradient


def take_away_orthogonal_part(at_w: Mapping[nn.Parameter, Tensor], *, alpha: float) -> None:
    """Subtract α times the part of g orthogonal to the gradient in place, g₊ − α(g − c g₊).

    c = gᵀg₊ / ‖g₊‖² over all parameters; 0 where g₊ = 0. A parameter that lacks one of the two
    gradients keeps what it has, and counts as zero in gᵀg₊.
    """
    pairs = [(g, p.grad) for p, g in at_w.items() if p.grad is not None]
    if not pairs:
        return
    there = pairs[0][0].device
    inner = torch.stack([_inner(g, top).to(there) for g, top in pairs]).sum()
    square = torch.stack([_inner(top, top).to(there) for _, top in pairs]).sum()
    share = torch.where(square > 0, inner / square, torch.zeros_like(inner))
    for g, top in pairs:
        # In this order nothing is left, to the bit, where both are equal.
        across = g - top * share.to(top.device, top.real.dtype)
        top.sub_(across, alpha=alpha)


def add_gradients(
    total: dict[nn.Parameter, Tensor], params: Sequence[nn.Parameter], *, share: float
) -> None:
    """Add share · gradient of each parameter to a sum."""
    for p in params:
        if p.grad is not None and p in total:
            total[p].add_(p.grad, alpha=share)
        elif p.grad is not None:
            total[p] = p.grad.mul(share)


def move(params: list[nn.Parameter], epsilons: list[Tensor | None]) -> None:
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


def _inner(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    product: Tensor = torch.vdot(a.reshape(-1).to(wide), b.reshape(-1).to(wide)).real.double()
    return product
