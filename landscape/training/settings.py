"""The settings of a training: their defaults, their ranges, and the optimizer that they name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from landscape.checks import is_real, real, whole
from landscape.errors import InvalidArgumentError, one_of
from landscape.optim import SAM
from landscape.training.labels import label_share

_BASES: Mapping[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
BASES = tuple(_BASES)
DEFAULT_LR = {"sgd": 0.05, "adam": 0.002, "adamw": 0.002}
# SAM and its variants; ASAM's radius is in units of the weights' own sizes.
DEFAULT_RHO = {"sam": 0.2, "asam": 0.5, "gsam": 0.2, "usam": 0.2}
SAM_FAMILY = tuple(DEFAULT_RHO)
OPTIMIZERS = (*BASES, *SAM_FAMILY)
SCHEDULES = ("cosine", "constant")
ADAPTIVE = ("elementwise", "filterwise")
# What a variant reads that the others do not: always recorded with it, and never without.
_OWN: Mapping[str, tuple[str, ...]] = {"asam": ("adaptive", "eta"), "gsam": ("gsam_alpha",)}
# Who reads what not all do: optimizers by themselves, or as the base of one.
READERS: Mapping[str, tuple[str, ...]] = {
    "momentum": ("sgd",),
    **dict.fromkeys(("base", "rho", "p", "ascent_steps", "micro_batch"), SAM_FAMILY),
    **{setting: (name,) for name, own in _OWN.items() for setting in own},
}
# Recorded only where they differ, so that the checkpoints of those who never heard of them stay
# the same bytes.
_USUAL = {
    **{"base": "sgd", "p": 2.0, "ascent_steps": 1, "micro_batch": None},
    **{"label_noise": 0.0, "split": "train"},
}
# The names of settings that SAM is given, and what it calls them.
_OF_SAM = {
    **{"p": "p", "adaptive": "adaptive", "eta": "eta", "gsam_alpha": "gsam_alpha"},
    "ascent_steps": "n_steps",
}
_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "adaptive": lambda value: one_of(value, ADAPTIVE, what="adaptive neighbourhood"),
    "eta": lambda value: real("eta", value, least=0.0, advice="0.01 is usual for asam"),
    "gsam_alpha": lambda value: real(
        "gsam_alpha", value, least=0.0, advice="0.4 is usual for gsam, 0 is plain sam"
    ),
}


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of a training, and fill in what depends on the optimizer."""
    name = one_of(given["optimizer"], OPTIMIZERS, what="optimizer")
    one_of(given["schedule"], SCHEDULES, what="schedule")
    of_sam = _of_sam(name, given)
    base = of_sam.get("base", name)
    lr = DEFAULT_LR[base] if given["lr"] is None else given["lr"]
    momentum = real("momentum", given["momentum"], least=0.0, below=1.0)
    rare = {**of_sam, "label_noise": label_share(given["label_noise"]), "split": given["split"]}
    return {
        "optimizer": name,
        "epochs": whole("epochs", given["epochs"], least=0, advice="0 gives the initial weights"),
        "lr": real("lr", lr, least=0.0),
        "momentum": momentum if base == "sgd" else None,
        "weight_decay": real("weight_decay", given["weight_decay"], least=0.0),
        "rho": rare.pop("rho", None),
        "batch_size": whole("batch_size", given["batch_size"], least=1),
        "schedule": given["schedule"],
        "seed": whole("seed", given["seed"], least=0),
        "device": str(given["device"]),
        **{key: value for key, value in rare.items() if key not in _USUAL or value != _USUAL[key]},
    }


def make_optimizer(model: nn.Module, settings: Mapping[str, Any]) -> Optimizer:
    """Make the optimizer that the settings name."""
    name, rho = settings["optimizer"], settings["rho"]
    base = settings.get("base", "sgd") if name in SAM_FAMILY else name
    keys = ("lr", "momentum", "weight_decay") if base == "sgd" else ("lr", "weight_decay")
    options = {key: settings[key] for key in keys}
    if name not in SAM_FAMILY:
        return _BASES[base](model.parameters(), **options)
    options |= {theirs: settings[ours] for ours, theirs in _OF_SAM.items() if ours in settings}
    return SAM(
        model.parameters(), _BASES[base], rho, model=model, normalised=name != "usam", **options
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which settings of two trainings differ.

    >>> differences({"lr": 0.1}, {"lr": 0.1, "eta": 0.01, "p": 3.0})
    ['eta was not used and is 0.01', 'p was the default and is 3.0']
    """
    return [
        f"{key} was {_shown(before, key)} and is {_shown(now, key)}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def lr_factor(name: str, epochs: int) -> Callable[[int], float]:
    """Return what the learning rate is multiplied with in each epoch.

    >>> [round(lr_factor("cosine", 4)(epoch), 3) for epoch in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    if name == "constant":
        return lambda epoch: 1.0
    return lambda epoch: 0.5 * (1.0 + math.cos(math.pi * epoch / max(epochs, 1)))


def _of_sam(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    # What SAM and its variants read; of the others, nothing.
    cost = _steps_and_micro_batch(given)
    if name not in SAM_FAMILY:
        _refuse_without_sam(name, cost)
        return {}
    order = _norm(name, given["p"])
    return {
        "base": one_of(given["base"], BASES, what="base optimizer"),
        "rho": _radius(name, given["rho"], order),
        "p": order,
        **cost,
        **{key: _CHECKS[key](given[key]) for key in _OWN.get(name, ())},
    }


def _steps_and_micro_batch(given: Mapping[str, Any]) -> dict[str, Any]:
    steps, size = given["ascent_steps"], given["micro_batch"]
    advice = "None, the default, takes the whole batch"
    return {
        "ascent_steps": whole("ascent_steps", steps, least=1, advice="1 is usual"),
        "micro_batch": None if size is None else whole("micro_batch", size, least=1, advice=advice),
    }


def _refuse_without_sam(name: str, cost: Mapping[str, Any]) -> None:
    for key, value in cost.items():
        if value != _USUAL[key]:
            msg = (
                f"{key} is a setting of SAM, got {key}={value!r} with the optimizer {name}; "
                f"leave it out, or take one of {', '.join(SAM_FAMILY)}"
            )
            raise InvalidArgumentError(msg)


def _norm(name: str, p: Any) -> float:
    order = exponent(p)
    if name == "usam" and order != 2:
        msg = f"usam is defined for p = 2 only, got p = {p!r}; leave p out, or take sam"
        raise InvalidArgumentError(msg)
    return order


def _radius(name: str, rho: Any, order: float) -> float:
    if rho is None and order != 2:
        msg = (
            f"rho has no default for p = {order:g}; give it: for n weights, {DEFAULT_RHO[name]:g} "
            "n^(1/p - 1/2) allows steps about as long as the default of p = 2 does"
        )
        raise InvalidArgumentError(msg)
    value = DEFAULT_RHO[name] if rho is None else rho
    return real("rho", value, least=0.0, advice="0 is the optimizer without SAM")


def _shown(settings: Mapping[str, Any], key: str) -> str:
    if key in _USUAL:
        return str(settings.get(key, "the default"))
    value = settings.get(key)
    return "not used" if value is None else str(value)


def exponent(p: Any) -> float:
    """Return the order of a norm, if it is one."""
    if not is_real(p) or not float(p) >= 1:
        msg = (
            f"p, the norm of SAM's neighbourhood, must be a number of at least 1, got {p!r}; "
            "2 is the Euclidean norm, inf the largest entry"
        )
        raise InvalidArgumentError(msg)
    return float(p)
