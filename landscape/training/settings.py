"""Settings of a training: defaults, ranges, and the optimizer that they name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from landscape.checks import real, whole
from landscape.choices import BaseName, OptimizerName, SamScale, Schedule
from landscape.errors import InvalidArgumentError, one_of
from landscape.optim import SAM
from landscape.optim.checks import norm_order
from landscape.training.data import label_share

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
# Settings that only some optimizers read, by themselves or as the base of SAM.
READERS: Mapping[str, tuple[str, ...]] = {
    "momentum": ("sgd",),
    **dict.fromkeys(("base", "rho", "p", "ascent_steps", "micro_batch"), SAM_FAMILY),
    **{"adaptive": ("asam",), "eta": ("asam",), "gsam_alpha": ("gsam",)},
}
# Recorded only where they differ from these, so that checkpoints of plain trainings keep their
# bytes.
_RECORDED_IF_CHANGED = {
    **{"base": "sgd", "p": 2.0, "ascent_steps": 1, "micro_batch": None},
    **{"label_noise": 0.0, "split": "train"},
}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of a training, the keywords of `train`.

    An optimizer neither checks nor records a setting that it does not read, but for
    ``ascent_steps`` and ``micro_batch``, which are refused outside of SAM's family.

    Attributes:
        optimizer: optimizer; ``sam`` and its variants ``asam`` (T = |w| + η, see
            `landscape.optim.Ascent`), ``gsam`` (without part of the gradient orthogonal to that at
            w + ε) and ``usam`` (ε = ρg, not normalised) work around ``base``.
        base: optimizer that descends inside SAM.
        epochs: passes over the training data; 0 gives the initial weights.
        lr: learning rate at the start. None: 0.05, or 0.002 with Adam and AdamW.
        momentum: momentum of SGD, in [0, 1).
        weight_decay: weight decay of the optimizer that descends (added to the gradient by SGD and
            Adam, apart from it by AdamW); not part of the loss that SAM perturbs.
        rho: radius of SAM's neighbourhood; 0 is the base optimizer; without a default for p other
            than 2. None: 0.2, or 0.5 with asam.
        p: norm of SAM's neighbourhood; 2 only for usam.
        adaptive: scale T of asam: |w| or the norm of the filter.
        eta: η that asam adds to that scale, at least 0.
        gsam_alpha: α of gsam, at least 0; 0 is sam.
        ascent_steps: gradients that SAM's family spends on finding ε.
        micro_batch: m of m-SAM: every m examples of a batch have a perturbation of their own; a
            last micro-batch of a single example joins the one before it. None: the whole batch.
        batch_size: examples in a batch, where `train` cuts the batches.
        schedule: learning rate: from lr to 0 in half a period of a cosine, one value per epoch, or
            constant.
        seed: random seed of the initial weights and the data order, at least 0.
        label_noise: share of the training labels to replace by wrong ones, see `noisy_labels`, in
            a pair of tensors or in a map-style data set of pairs; the task's own data stay as they
            are.
        split: split of the data to train on; built-in tasks have train, fit and validation.
        device: device to train on.
    """

    optimizer: OptimizerName = "sgd"
    base: BaseName = "sgd"
    epochs: int = 40
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    rho: float | None = None
    p: float = 2.0
    adaptive: SamScale = "elementwise"
    eta: float = 0.01
    gsam_alpha: float = 0.4
    ascent_steps: int = 1
    micro_batch: int | None = None
    batch_size: int = 64
    schedule: Schedule = "cosine"
    seed: int = 0
    label_noise: float = 0.0
    split: str = "train"
    device: str | torch.device = "cpu"

    def record(self) -> dict[str, Any]:
        """Return the settings that the optimizer reads as JSON values; refuse bad ones."""
        one_of(self.optimizer, OPTIMIZERS, what="optimizer")
        one_of(self.schedule, SCHEDULES, what="schedule")
        rare = self._of_sam()
        base = rare.get("base", self.optimizer)
        momentum = real("momentum", self.momentum, least=0.0, below=1.0)
        rare |= {"label_noise": label_share(self.label_noise), "split": self.split}
        lr = DEFAULT_LR[base] if self.lr is None else self.lr
        return {
            "optimizer": self.optimizer,
            "epochs": whole("epochs", self.epochs, least=0, advice="0 gives the initial weights"),
            "lr": real("lr", lr, least=0.0),
            "momentum": momentum if base == "sgd" else None,
            "weight_decay": real("weight_decay", self.weight_decay, least=0.0),
            "rho": rare.pop("rho", None),
            "batch_size": whole("batch_size", self.batch_size, least=1),
            "schedule": self.schedule,
            "seed": whole("seed", self.seed, least=0),
            "device": str(self.device),
            **{
                key: value
                for key, value in rare.items()
                if key not in _RECORDED_IF_CHANGED or value != _RECORDED_IF_CHANGED[key]
            },
        }

    def _of_sam(self) -> dict[str, Any]:
        name, size = self.optimizer, self.micro_batch
        advice = "None, the default, takes the whole batch"
        cost = {
            "ascent_steps": whole("ascent_steps", self.ascent_steps, least=1, advice="1 is usual"),
            "micro_batch": None
            if size is None
            else whole("micro_batch", size, least=1, advice=advice),
        }
        if name not in SAM_FAMILY:
            for key, value in cost.items():
                if value != _RECORDED_IF_CHANGED[key]:
                    msg = (
                        f"{key} is a setting of SAM, got {key}={value!r} with the optimizer "
                        f"{name}; leave it out, or take one of {', '.join(SAM_FAMILY)}"
                    )
                    raise InvalidArgumentError(msg)
            return {}
        p = norm_order(self.p)
        if name == "usam" and p != 2:
            msg = f"usam is defined for p = 2 only, got p = {p!r}; leave p out, or take sam"
            raise InvalidArgumentError(msg)
        of_sam = {
            "base": one_of(self.base, BASES, what="base optimizer"),
            "rho": self._radius(p),
            "p": p,
            **cost,
        }
        if name == "asam":
            of_sam["adaptive"] = one_of(self.adaptive, ADAPTIVE, what="adaptive neighbourhood")
            of_sam["eta"] = real("eta", self.eta, least=0.0, advice="0.01 is usual for asam")
        if name == "gsam":
            advice = "0.4 is usual for gsam, 0 is plain sam"
            of_sam["gsam_alpha"] = real("gsam_alpha", self.gsam_alpha, least=0.0, advice=advice)
        return of_sam

    def _radius(self, p: float) -> float:
        default = DEFAULT_RHO[self.optimizer]
        if self.rho is None and p != 2:
            msg = (
                f"rho has no default for p = {p:g}; give it: for n weights, {default:g} "
                "n^(1/p - 1/2) allows steps about as long as the default of p = 2 does"
            )
            raise InvalidArgumentError(msg)
        rho = default if self.rho is None else self.rho
        return real("rho", rho, least=0.0, advice="0 is the optimizer without SAM")


def make_optimizer(model: nn.Module, settings: Mapping[str, Any]) -> Optimizer:
    """Make the optimizer that recorded settings name."""
    name = settings["optimizer"]
    base = settings.get("base", "sgd") if name in SAM_FAMILY else name
    keys = ["lr", "weight_decay"] + (["momentum"] if base == "sgd" else [])
    if name not in SAM_FAMILY:
        return _BASES[base](model.parameters(), **{key: settings[key] for key in keys})
    keys += [key for key in ("p", "adaptive", "eta", "gsam_alpha") if key in settings]
    return SAM(
        model.parameters(),
        _BASES[base],
        settings["rho"],
        model=model,
        normalised=name != "usam",
        n_steps=settings.get("ascent_steps", 1),
        **{key: settings[key] for key in keys},
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the settings in which two trainings differ.

    >>> differences({"lr": 0.1}, {"lr": 0.1, "eta": 0.01, "p": 3.0})
    ['eta was not used and is 0.01', 'p was the default and is 3.0']
    """
    return [
        f"{key} was {_shown(before, key)} and is {_shown(now, key)}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]


def lr_factor(schedule: str, epochs: int) -> Callable[[int], float]:
    """Return the factor of the learning rate as a function of the epoch.

    >>> [round(lr_factor("cosine", 4)(epoch), 3) for epoch in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    # Not CosineAnnealingLR, whose recursion in the learning rate rounds differently.
    if schedule == "constant":
        return lambda epoch: 1.0
    return lambda epoch: 0.5 * (1.0 + math.cos(math.pi * epoch / max(epochs, 1)))


def _shown(settings: Mapping[str, Any], key: str) -> str:
    if key in _RECORDED_IF_CHANGED:
        return str(settings.get(key, "the default"))
    value = settings.get(key)
    return "not used" if value is None else str(value)
