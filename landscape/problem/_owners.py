"""Which layer a parameter belongs to, and in which role."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

GAIN = "gain"


class Owner(NamedTuple):
    """The layer that computes with a parameter, and the role of the parameter there.

    Attributes:
        layer: the layer itself, where the parameter lies in a parametrization or a list below it.
        role: the layer's attribute that the parameter makes, such as ``weight``; ``gain`` for the
            lengths of a weight normalisation.
    """

    layer: nn.Module
    role: str


def owner_of(model: nn.Module, name: str) -> Owner:
    """Return the layer and the role of a parameter by its name in the model."""
    path = name.split(".")
    modules = [model]
    for part in path[:-1]:
        modules.append(modules[-1].get_submodule(part))
    last = modules[-1]
    if isinstance(last, ParametrizationList):
        # model.….layer.parametrizations.weight.original
        return Owner(modules[-3], GAIN if _is_gain(last, path[-1]) else path[-2])
    while isinstance(modules[-1], (nn.ParameterList, nn.ParameterDict)):
        modules.pop()
    return Owner(modules[-1], _role(modules[-1], path[-1]))


def _is_gain(parametrization: ParametrizationList, leaf: str) -> bool:
    """Tell whether a tensor scales the largest one that the weight is made of."""
    if type(parametrization[0]).__name__ == "_WeightNorm":
        return leaf == "original0"
    originals = list(parametrization.parameters(recurse=False))
    own, largest = getattr(parametrization, leaf), max(originals, key=Tensor.numel)
    if own.numel() == largest.numel() or own.ndim != largest.ndim:
        return False
    return all(size in {1, full} for size, full in zip(own.shape, largest.shape, strict=True))


def _role(layer: nn.Module, leaf: str) -> str:
    """Return the role of a parameter that torch's hooks or pruning may have renamed."""
    attribute, _, end = leaf.rpartition("_")
    if {f"{attribute}_g", f"{attribute}_v"} <= layer._parameters.keys():
        return {"g": GAIN, "v": attribute}.get(end, leaf)
    # Not getattr: a weight that is computed when it is read may change buffers.
    return attribute if end == "orig" and attribute in vars(layer) else leaf
