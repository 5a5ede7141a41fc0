"""The settings of a training: their defaults, their ranges, and the optimizer that they name."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from landscape.errors import InvalidArgumentError, one_of
from landscape.optim import SAM

_BASES: Mapping[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
BASES = tuple(_BASES)
OPTIMIZERS = (*BASES, "sam")
SCHEDULES = ("cosine", "constant")
DEFAULT_LR = {"sgd": 0.05, "adam": 0.002, "adamw": 0.002}
# Recorded only where they differ, so that the checkpoints of those who never heard of them stay
# the same bytes.
_USUAL = {"base": "sgd", "p": 2.0, "label_noise": 0.0, "split": "train"}


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of a training, and fill in what depends on the optimizer.

    Args:
        given: the arguments of `landscape.training.train` by name.

    Returns:
        Plain JSON values: what does not apply is None, or left out where it is as usual.

    Raises:
        InvalidArgumentError: if a setting is out of range or names something unknown.
    """
    name = one_of(given["optimizer"], OPTIMIZERS, what="optimizer")
    one_of(given["schedule"], SCHEDULES, what="schedule")
    base = one_of(given["base"], BASES, what="base optimizer") if name == "sam" else name
    lr = DEFAULT_LR[base] if given["lr"] is None else given["lr"]
    momentum = real("momentum", given["momentum"], least=0.0, below=1.0)
    usual = {
        "base": base if name == "sam" else "sgd",
        "p": _exponent(given["p"]) if name == "sam" else 2.0,
        "label_noise": label_share(given["label_noise"]),
        "split": given["split"],
    }
    return {
        "optimizer": name,
        "epochs": whole("epochs", given["epochs"], least=0),
        "lr": real("lr", lr, least=0.0),
        "momentum": momentum if base == "sgd" else None,
        "weight_decay": real("weight_decay", given["weight_decay"], least=0.0),
        "rho": real("rho", given["rho"], least=0.0) if name == "sam" else None,
        "batch_size": whole("batch_size", given["batch_size"], least=1),
        "schedule": given["schedule"],
        "seed": whole("seed", given["seed"], least=0),
        "device": str(given["device"]),
        **{key: value for key, value in usual.items() if value != _USUAL[key]},
    }


def make_optimizer(model: nn.Module, settings: Mapping[str, Any]) -> Optimizer:
    """Make the optimizer that the settings name.

    Args:
        model: whose parameters it moves.
        settings: as `checked` returned them.

    Returns:
        The optimizer.
    """
    name = settings["optimizer"]
    base = settings.get("base", "sgd") if name == "sam" else name
    keys = ("lr", "momentum", "weight_decay") if base == "sgd" else ("lr", "weight_decay")
    options = {key: settings[key] for key in keys}
    if name != "sam":
        return _BASES[base](model.parameters(), **options)
    if "p" in settings:
        options["p"] = settings["p"]
    return SAM(model.parameters(), _BASES[base], settings["rho"], model=model, **options)


def lr_factor(name: str, epochs: int) -> Callable[[int], float]:
    """Return what the learning rate is multiplied with in each epoch.

    Args:
        name: ``cosine`` or ``constant``.
        epochs: of the whole training.

    Returns:
        A function of the epoch, from 0.

    >>> [round(lr_factor("cosine", 4)(epoch), 3) for epoch in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    if name == "constant":
        return lambda epoch: 1.0
    return lambda epoch: 0.5 * (1.0 + math.cos(math.pi * epoch / max(epochs, 1)))


def whole(name: str, value: Any, *, least: int) -> int:
    """Return a whole number, if it is one.

    Args:
        name: of the setting, for the message.
        value: what was given.
        least: the smallest that is allowed.

    Returns:
        The number.

    Raises:
        InvalidArgumentError: if it is something else, or less.
    """
    if not isinstance(value, numbers.Integral) or int(value) < least:
        msg = f"{name} must be a whole number of at least {least}, got {value!r}"
        raise InvalidArgumentError(msg)
    return int(value)


def real(name: str, value: Any, *, least: float, below: float = math.inf) -> float:
    """Return a finite number, if it is one.

    Args:
        name: of the setting, for the message.
        value: what was given.
        least: the smallest that is allowed.
        below: the smallest that is too large.

    Returns:
        The number.

    Raises:
        InvalidArgumentError: if it is something else, or out of range.
    """
    if not isinstance(value, numbers.Real) or not least <= float(value) < below:
        upper = f" and below {below:g}" if math.isfinite(below) else ""
        msg = f"{name} must be a finite number of at least {least:g}{upper}, got {value!r}"
        raise InvalidArgumentError(msg)
    return float(value)


def label_share(share: Any) -> float:
    """Return a share of labels, if it is one.

    Args:
        share: what was given.

    Returns:
        The share.

    Raises:
        InvalidArgumentError: if it is not in [0, 1].
    """
    if not isinstance(share, numbers.Real) or not 0 <= float(share) <= 1:
        msg = f"label_noise is a share of the labels, a number from 0 to 1, got {share!r}"
        raise InvalidArgumentError(msg)
    return float(share)


def _exponent(p: Any) -> float:
    if not isinstance(p, numbers.Real) or not float(p) >= 1:
        msg = f"p, the norm of SAM's neighbourhood, must be a number of at least 1, got {p!r}"
        raise InvalidArgumentError(msg)
    if float(p) != 2 and "p" not in inspect.signature(SAM).parameters:
        msg = f"SAM takes the Euclidean norm only, p = 2, got {p!r}; leave p out"
        raise InvalidArgumentError(msg)
    return float(p)
