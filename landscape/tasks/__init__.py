"""Built-in problems: two data sets, in modules as a user's own problem file would be, and networks.

A problem file has a few names: `model()`, `data(split)`, `loss` (or `batch_loss(model, batch)`) and
`metrics`. Copy `digits.py`, change what differs, and hand the copy to ``--problem``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType

from torch import nn

from landscape.tasks import digits, mnist1d
from landscape.tasks.networks import ResNet, Transformer, mlp

__all__ = ["PROBLEMS"]

PROBLEMS: Mapping[str, tuple[ModuleType, Callable[[], nn.Module]]] = {
    "digits": (digits, digits.model),
    "digits-mlp": (digits, partial(mlp, (64, 64, 64, 10))),
    "digits-resnet-nobn": (digits, partial(ResNet, batch_norm=False)),
    # 20 layers with BatchNorm but without shortcuts: the kind of network whose loss surface
    # Li et al. 2018, arXiv 1712.09913, section 5, found to be chaotic.
    "digits-resnet-noshort": (digits, partial(ResNet, (8, 16, 32), blocks=3, shortcuts=False)),
    "digits-transformer": (digits, partial(Transformer, (8, 8), patch=(2, 2))),
    "mnist1d": (mnist1d, mnist1d.model),
    "mnist1d-mlp": (mnist1d, partial(mlp, (40, 100, 100, 10))),
    "mnist1d-resnet-nobn": (mnist1d, partial(mnist1d.model, batch_norm=False)),
    "mnist1d-transformer": (mnist1d, partial(Transformer, (1, 40), patch=(1, 4))),
}
"""Data module and network of each problem; the plain name is a ResNet with BatchNorm."""
