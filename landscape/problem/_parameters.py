"""Which parameters are explored, as one flat vector of shape (n,)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from landscape.errors import InvalidArgumentError, ProblemError, did_you_mean
from landscape.processes import Share, Spread, shards


@dataclass(frozen=True)
class ParameterSpace:
    """The trainable parameters of a module, tied ones once, laid end to end."""

    names: tuple[str, ...]  # of the tensors, in the module's order
    shapes: tuple[torch.Size, ...]  # of what is held here, see `split`
    n: int  # number of parameters
    spread: Spread | None = None  # which of them are held here; None: all

    def split(self) -> ParameterSpace:
        """Return the space of this process's parts of the tensors, where they are split."""
        here = shards()
        return self if here is None else _split_over(self, here.rank, here.n)

    @property
    def length(self) -> int:
        """Length of the flat vectors that are held here."""
        return self.n if self.spread is None else self.spread.length

    @classmethod
    def of(cls, module: nn.Module) -> ParameterSpace:
        """Describe the parameters of a module that require a gradient.

        >>> ParameterSpace.of(nn.Linear(3, 2)).n
        8
        """
        parameters = dict(module.named_parameters())
        for name, tensor in parameters.items():
            _require_explorable(name, tensor)
        chosen = {
            name: tensor
            for name, tensor in parameters.items()
            if tensor.requires_grad and tensor.is_floating_point()
        }
        if not chosen:
            msg = (
                "the model has no trainable parameter, so its loss has no landscape; "
                "set requires_grad_(True) on the parameters to explore"
            )
            raise ProblemError(msg)
        others = {**parameters, **dict(module.named_buffers())}
        _require_memory_of_their_own(chosen, {n: t for n, t in others.items() if n not in chosen})
        shapes = tuple(tensor.shape for tensor in chosen.values())
        return cls(tuple(chosen), shapes, sum(shape.numel() for shape in shapes))

    def only(self, patterns: Sequence[str]) -> ParameterSpace:
        """Return the space of some of the parameters, in the order of this space.

        >>> ParameterSpace.of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))).only(["1"]).names
        ('1.weight', '1.bias')
        """
        chosen = set()
        for pattern in patterns:
            inside = {n for n in self.names if n == pattern or n.startswith(f"{pattern}.")}
            alike = (n for p in (pattern, f"{pattern}.*") for n in self.names if fnmatchcase(n, p))
            matches = inside or set(alike)
            if not matches:
                near = did_you_mean(pattern, [*self.names, *self.layers()])
                shown = ", ".join(self.names[:20]) + (", …" if len(self.names) > 20 else "")
                msg = f"no parameter matches {pattern!r}{near}; the parameters are: {shown}"
                raise InvalidArgumentError(msg)
            chosen |= matches
        pairs = [pair for pair in zip(self.names, self.shapes, strict=True) if pair[0] in chosen]
        names, shapes = zip(*pairs, strict=True)
        return ParameterSpace(names, shapes, sum(shape.numel() for shape in shapes))

    def layers(self) -> dict[str, slice]:
        """Return the part of the flat vector that each module with parameters of its own holds.

        >>> ParameterSpace.of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))).layers()
        {'0': slice(0, 8, None), '1': slice(8, 14, None)}
        """
        layers: dict[str, slice] = {}
        stop = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            owner = name.rpartition(".")[0] or name
            start, stop = stop, stop + size
            layers[owner] = slice(layers[owner].start if owner in layers else start, stop)
        return layers

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(shape.numel() for shape in self.shapes)

    def groups(self, size: int) -> list[int]:
        """Cut the tensors into groups of neighbours of about a size; return the end of each."""
        ends, room = list[int](), 0
        for i, n in enumerate(self.sizes if self.spread is None else self.spread.sizes):
            if room < n:
                ends.append(i)
                room = size
            room -= n
        return [*ends[1:], len(self.sizes)]

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Copy named tensors, at least the names of this space, into a new vector of shape (n,).

        Of whole tensors what is held here.
        """
        here = shards() if self.spread is not None else None
        return torch.cat([part_of(tensors[name], here).reshape(-1) for name in self.names])

    def views(self, vector: Tensor) -> list[Tensor]:
        """View a vector of shape (n,) as the tensors of this space, differentiably, in order."""
        pieces = torch.split(vector, list(self.sizes))
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """View a vector of shape (n,) as named tensors, differentiably."""
        return dict(zip(self.names, self.views(vector), strict=True))


@lru_cache(maxsize=64)
def _split_over(space: ParameterSpace, rank: int, n: int) -> ParameterSpace:
    spread = Spread(rank, n, space.sizes)
    shapes = tuple(torch.Size([last - first]) for first, last in spread.spans)
    return ParameterSpace(space.names, shapes, space.n, spread)


def part_of(tensor: Tensor, here: Share | None) -> Tensor:
    """Return what a process holds of a whole tensor or a DTensor, flat, see `Spread`."""
    if here is None:
        return tensor
    flat = whole_of(tensor).reshape(-1)
    chunk = -(-flat.numel() // here.n)
    return flat[here.rank * chunk : (here.rank + 1) * chunk]


def whole_of(tensor: Tensor) -> Tensor:
    """Return a tensor itself, and of a DTensor what all processes hold together."""
    whole: Tensor = tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def is_dtensor(tensor: Tensor) -> bool:
    """Tell whether a tensor is spread over a device mesh, as fully_shard leaves parameters."""
    return hasattr(tensor, "device_mesh")


def _require_explorable(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor) or tensor.is_meta:
        msg = (
            f"the parameter {name} has no values yet (a lazy layer, or the device meta): "
            "run the model once on a batch before it is measured, or build it on the CPU"
        )
        raise ProblemError(msg)
    if is_dtensor(tensor) and shards() is None:
        msg = (
            f"the parameter {name} is a shard (a DTensor, as fully_shard of FSDP2 makes them): "
            'make the problem and measure it inside of sharing(shard="parameters"), or measure '
            "the plain model at the whole checkpoint, which can be a folder of "
            "torch.distributed.checkpoint"
        )
        raise ProblemError(msg)
    if tensor.is_inference():
        msg = (
            f"the parameter {name} was made under torch.inference_mode() and has no derivative: "
            "build the model outside of it"
        )
        raise ProblemError(msg)
    if tensor.is_complex() and tensor.requires_grad:
        msg = (
            f"the parameter {name} is complex, and a landscape is explored over real "
            "numbers: hold its real and imaginary parts apart, or freeze it"
        )
        raise ProblemError(msg)


def _require_memory_of_their_own(
    parameters: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> None:
    """Refuse a parameter in the memory of another tensor: writing one moves the other unseen."""
    spans = []
    for name, tensor in (*parameters.items(), *others.items()):
        strided = tensor.layout == torch.strided and not is_dtensor(tensor)
        if strided and not tensor.is_meta and tensor.numel():
            reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            first = tensor.data_ptr()
            spans.append((first, first + (reach + 1) * tensor.element_size(), name))
    spans.sort()
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end and not (name in others and other in others):
            msg = (
                f"{name} and {other} share memory but are two tensors of the model: register one "
                "Parameter under both names to tie them, or clone one to part them"
            )
            raise ProblemError(msg)
