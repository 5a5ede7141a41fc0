"""Which layer a parameter belongs to, how it is laid out in filters, and the norms of these."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

from landscape.problem._parameters import whole_of
from landscape.problem.problem import Problem

GAIN = "gain"
# Layers whose weights have an output axis as they are; of other modules see `filters`.
_LAYERS = (
    _ConvNd,
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
)


class Owner(NamedTuple):
    """The layer that computes with a parameter, and the role of the parameter there."""

    layer: nn.Module  # the layer itself, also of a parameter in a parametrization or a list of it
    role: str  # attribute that the parameter makes; `GAIN`: the lengths of a weight normalisation


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


def normalise_filterwise(
    tensor: Tensor, reference: Tensor, module: nn.Module, role: str = "weight"
) -> Tensor:
    """Scale each filter of a tensor to the norm of the same filter in another."""
    if is_vector(reference, module, role):
        return torch.zeros_like(reference)
    ours, theirs = filters(tensor, module, role), filters(reference, module, role)
    # In float64: the squares of small weights are below what float32 can hold.
    scale = _row_norms(theirs) / _row_norms(ours).clamp_min(torch.finfo(torch.float64).tiny)
    return _from_filters((ours * scale).to(tensor.dtype), tensor, module, role)


def filter_norms(weight: Tensor, module: nn.Module, role: str = "weight") -> Tensor:
    """Give every entry of a weight the norm of its filter."""
    if is_vector(weight, module, role):
        return weight.abs()
    rows = filters(weight, module, role)
    norms = _row_norms(rows).to(weight.dtype).expand_as(rows)
    return _from_filters(norms, weight, module, role)


def is_vector(weight: Tensor, module: nn.Module, role: str = "weight") -> bool:
    """Tell whether a parameter has no filters: a bias, or a gain or shift of a normalisation."""
    if role == GAIN:
        return True
    if isinstance(module, nn.MultiheadAttention):
        return weight.ndim != 2  # bias_k and bias_v have three axes
    return weight.ndim < 2 or isinstance(module, (nn.LayerNorm, nn.RMSNorm))


def layout(weight: Tensor, module: nn.Module, role: str = "weight") -> str:
    """Say how a parameter is laid out in filters."""
    if is_vector(weight, module, role):
        return "no filters"
    rows, columns = filters(weight, module, role).shape
    return f"{rows:,} filter{'s' * (rows > 1)} of {columns:,}"


def _row_norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    return norms


def filters(tensor: Tensor, module: nn.Module, role: str = "weight") -> Tensor:
    """Lay out a weight with one output per row.

    The output axis is the first one for Linear, Conv1d/2d/3d and the joint projection of an
    attention layer; an embedding has one filter for each of its vectors; a ConvTranspose keeps the
    output second, within each group; GPT-2's Conv1D keeps it last. Outside of torch's layers,
    leading axes of length 1 are dropped: position embeddings (1, T, E) are T filters.
    """
    if _is_transposed(tensor, module, role):
        groups = int(getattr(module, "groups", 1))
        split = tensor.reshape(groups, tensor.shape[0] // groups, *tensor.shape[1:])
        moved = split.movedim(2, 1)
        return moved.reshape(groups * tensor.shape[1], -1)
    if role == "weight" and _is_gpt2_conv1d(module):
        return tensor.t()
    if not isinstance(module, _LAYERS):
        while tensor.ndim > 2 and len(tensor) == 1:
            tensor = tensor[0]
    return tensor.reshape(len(tensor), -1)


def _from_filters(rows: Tensor, like: Tensor, module: nn.Module, role: str) -> Tensor:
    if _is_transposed(like, module, role):
        groups = int(getattr(module, "groups", 1))
        inputs, outputs, *kernel = like.shape
        split = rows.reshape(groups, outputs, inputs // groups, *kernel)
        return split.movedim(1, 2).reshape(like.shape)
    if role == "weight" and _is_gpt2_conv1d(module):
        return rows.t()
    return rows.reshape(like.shape)


def _is_transposed(tensor: Tensor, module: nn.Module, role: str) -> bool:
    if not isinstance(module, _ConvTransposeNd) or role != "weight":
        return False
    return tensor.ndim == 2 + len(module.kernel_size)


def _is_gpt2_conv1d(module: nn.Module) -> bool:
    # By name: transformers need not be installed for its models to be measured. A parametrized
    # layer is of a class made from it.
    return any(cls.__name__ == "Conv1D" for cls in type(module).__mro__) and hasattr(module, "nf")


def filter_norms_of(problem: Problem) -> Tensor:
    """Give every parameter the norm of the filter that it belongs to, see `filter_norms`."""
    space, state = problem.space, problem.state()
    weights = ((name, whole_of(state[name])) for name in space.names)
    return space.flatten(
        {
            name: filter_norms(
                weight.to(problem.device, problem.dtype), *owner_of(problem.model, name)
            )
            for name, weight in weights
        }
    )
