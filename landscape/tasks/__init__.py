"""Built-in problems: each module is written exactly as a user's own problem file would be.

A problem file has a few names: `model()`, `data(split)`, `loss` (or `batch_loss(model, batch)`) and
`metrics`. Copy `digits.py`, change what differs, and hand the copy to ``--problem``.

There are two data sets, each with four networks: a ResNet with BatchNorm (the plain name), one
without (``-resnet-nobn``), a multilayer perceptron (``-mlp``) and a transformer (``-transformer``).
The digits have a fifth, 20 layers with BatchNorm but without shortcuts (``-resnet-noshort``): the
kind of network whose loss surface Li et al. 2018, arXiv 1712.09913, found to be chaotic.
"""

from __future__ import annotations

NAMES = (
    "digits",
    "digits-mlp",
    "digits-resnet-nobn",
    "digits-resnet-noshort",
    "digits-transformer",
    "mnist1d",
    "mnist1d-mlp",
    "mnist1d-resnet-nobn",
    "mnist1d-transformer",
)

__all__ = ["NAMES", "module_of"]


def module_of(name: str) -> str:
    """Return the module that a built-in problem is written in.

    Args:
        name: one of `NAMES`.

    Returns:
        Its dotted name.

    >>> module_of("digits-mlp")
    'landscape.tasks.digits_mlp'
    """
    return f"{__name__}.{name.replace('-', '_')}"
