"""Checks of SAM's arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.checks import is_real, real
from landscape.errors import InvalidArgumentError, LandscapeError, one_of

DECAYS = ("outside", "inside")


def radius(rho: Any) -> float:
    """Return ρ, at least 0 and finite."""
    return real(
        "rho, the radius of SAM's neighbourhood,",
        rho,
        least=0.0,
        advice="0.05 is usual, 0 leaves the base optimizer alone",
    )


def norm_order(p: Any) -> float:
    """Return p, at least 1; infinity is allowed."""
    if not is_real(p) or not p >= 1:
        msg = (
            "p, the norm of SAM's neighbourhood, must be at least 1 (inf is allowed), "
            f"got {p!r}; 2 is the Euclidean norm"
        )
        raise InvalidArgumentError(msg)
    return float(p)


def parameter_list(params: Iterable[Any]) -> list[Any]:
    """Return parameters or groups as a list that holds at least one parameter."""
    if isinstance(params, Tensor):
        msg = "params must be an iterable of parameters, got one tensor; put it into a list"
        raise InvalidArgumentError(msg)
    if isinstance(params, nn.Module) or not isinstance(params, Iterable):
        msg = (
            f"params must be an iterable of parameters, got {type(params).__name__}; "
            "give model.parameters()"
        )
        raise InvalidArgumentError(msg)
    # The parameters of a group may come from a generator: read once, here.
    entries = [_listed(entry) if isinstance(entry, dict) else entry for entry in params]
    if all(isinstance(entry, dict) and entry.get("params") == [] for entry in entries):
        msg = (
            "SAM got an empty parameter list, expected at least one parameter; "
            "is model.parameters() used up, or is there no layer?"
        )
        raise InvalidArgumentError(msg)
    return entries


def _listed(group: dict[str, Any]) -> dict[str, Any]:
    params = group.get("params")
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        return group
    return {**group, "params": list(params)}


def check_base(base_optimizer: Any) -> None:
    """Refuse what is no class of optimizer, or one that SAM cannot be built around."""
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
    if issubclass(base_optimizer, torch.optim.SparseAdam):
        msg = (
            f"{base_optimizer.__name__} takes sparse gradients only, and SAM dense ones only; "
            "use Adam, and build the embedding with sparse=False"
        )
        raise InvalidArgumentError(msg)
    closure = inspect.signature(base_optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        msg = (
            f"{base_optimizer.__name__} evaluates the loss by itself (its step needs a closure), "
            "so SAM cannot be built around it; use SGD, Adam or the like"
        )
        raise InvalidArgumentError(msg)


def check_model(model: Any, *, sync_perturbation: bool) -> None:
    """Refuse a model that is no module, or that lacks no_sync where it is needed."""
    if model is not None and not isinstance(model, nn.Module):
        msg = (
            f"model must be a torch.nn.Module, got {type(model).__name__}; "
            "put several into one torch.nn.ModuleList"
        )
        raise InvalidArgumentError(msg)
    if not sync_perturbation and not hasattr(model, "no_sync"):
        msg = (
            "sync_perturbation=False needs the module wrapped in DistributedDataParallel, "
            f"got model of type {type(model).__name__}; give it as model="
        )
        raise InvalidArgumentError(msg)


def check_decay(decay: str, base: Optimizer) -> None:
    """Refuse an unknown place of the decay, and a decoupled decay inside the loss."""
    one_of(str(decay), DECAYS, what="place of the weight decay")
    decoupled = isinstance(base, torch.optim.AdamW) or any(
        group.get("decoupled_weight_decay", False) for group in base.param_groups
    )
    if decay == "inside" and decoupled:
        msg = (
            f"{type(base).__name__} decays the weights apart from the gradient, so the decay "
            "cannot be part of SAM's loss; use decay='outside', or a base optimizer that adds it "
            "to the gradient, such as SGD or Adam"
        )
        raise InvalidArgumentError(msg)


def check_loss_scale(loss_scale: Any) -> None:
    """Refuse a scale of the loss that gradients cannot be divided by."""
    if not is_real(loss_scale) or not 0 < float(loss_scale) < math.inf:
        msg = f"loss_scale must be a finite number > 0, got {loss_scale!r}; give scaler.get_scale()"
        raise InvalidArgumentError(msg)


def check_gradients(gradients: Sequence[Tensor]) -> None:
    """Refuse no gradient at all, and sparse ones."""
    if not gradients:
        msg = "no parameter has a gradient: call backward() on the loss before first_step()"
        raise LandscapeError(msg)
    if any(g.layout != torch.strided for g in gradients):
        msg = (
            "SAM needs dense gradients, got a sparse one; "
            "build the embedding with sparse=False, or leave it out of SAM's parameters"
        )
        raise LandscapeError(msg)


def check_closure(closure: Any) -> Callable[[], Any]:
    """Return the closure if it is one."""
    if not callable(closure):
        got = "" if closure is None else f" (got {type(closure).__name__})"
        msg = (
            f"SAM needs the gradient at two points, so step() needs a closure{got} that clears the "
            "gradients, computes the loss, calls backward() and returns the loss; or call "
            "first_step() and second_step() by hand"
        )
        raise InvalidArgumentError(msg)
    return cast("Callable[[], Any]", closure)


def micro_batch_shares(closures: Sequence[Any], weights: Sequence[float] | None) -> list[float]:
    """Return wᵢ / Σ w for each micro-batch."""
    if not closures:
        msg = "step_micro_batches() got no closure; give one per micro-batch"
        raise InvalidArgumentError(msg)
    for closure in closures:
        check_closure(closure)
    values = [1.0] * len(closures) if weights is None else [float(w) for w in weights]
    total = sum(values)
    if len(values) != len(closures) or min(values) < 0 or not 0 < total < math.inf:
        msg = (
            f"weights must be {len(closures)} numbers ≥ 0, one per micro-batch and not all 0, "
            f"got {values}"
        )
        raise InvalidArgumentError(msg)
    return [w / total for w in values]
