"""Parameters of which each process holds a part: the whole is gathered where it is used, and freed.

Reading an attribute of a module gathers the whole tensor, for that use alone: what autograd saves
of it is a note, and is gathered again in the backward pass. The gradient of the gathering adds up
what the processes have found, each on its own examples, and the gradient of that gathers again, so
that products of the Hessian need nothing else. No DTensor does this: FSDP2's hooks have no second
derivative, and a checkpoint around a redistribution frees nothing that the next operation saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from landscape.errors import ProblemError
from landscape.problem._parameters import is_dtensor, part_of
from landscape.processes import shards

# By the names that they have from torch 2.13 on, or by those of before.
_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or getattr(
    dist, "all_gather_into_tensor", None
)
_REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or getattr(
    dist, "reduce_scatter_tensor", None
)
# Where whole tensors lie that were gathered and still live, and of what parts.
_GATHERED: dict[int, tuple[Any, Tensor, torch.Size]] = {}


def _gathered(part: Tensor, shape: torch.Size) -> Tensor:
    """Return the whole tensor of which each process has a part."""
    here, n = shards(), shape.numel()
    assert here is not None
    chunk = -(-n // here.n)
    padded = part.detach().new_zeros(chunk)
    padded[: len(part)] = part.detach()
    whole = part.new_empty(chunk * here.n)
    _ALL_GATHER(whole, padded)
    for place in [p for p, (storage, _, _) in _GATHERED.items() if storage.expired()]:
        del _GATHERED[place]
    storage = whole.untyped_storage()
    _GATHERED[storage.data_ptr()] = StorageWeakRef(storage), part, shape  # type: ignore[no-untyped-call]
    return whole[:n].view(shape)


class _Gather(torch.autograd.Function):
    """The whole tensor from the parts; backward: the part of the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, shape: torch.Size) -> Tensor:
        ctx.shape = shape
        return _gathered(part, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Scatter.apply(gradient), None  # type: ignore[no-untyped-call]


class _Scatter(torch.autograd.Function):
    """The part of the sum of what the processes have; backward: the whole from the parts."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor) -> Tensor:
        here, n = shards(), whole.numel()
        assert here is not None
        ctx.shape, chunk = whole.shape, -(-n // here.n)
        padded = whole.new_zeros(chunk * here.n)
        padded[:n] = whole.reshape(-1)
        part = whole.new_empty(chunk)
        _REDUCE_SCATTER(part, padded)
        return part[: max(0, min(chunk, n - here.rank * chunk))]

    @staticmethod
    def backward(ctx: Any, part: Tensor) -> Any:
        return _Gather.apply(part.contiguous(), ctx.shape)  # type: ignore[no-untyped-call]


class Sum(torch.autograd.Function):
    """The sum over the processes of what each has; backward: what all have alike."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        here = shards()
        assert here is not None
        return here.add_up(own.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Alike.apply(gradient)  # type: ignore[no-untyped-call]


class _Alike(torch.autograd.Function):
    """What all processes have alike; backward: the sum of what each does with it."""

    @staticmethod
    def forward(ctx: Any, alike: Tensor) -> Tensor:
        return alike.view_as(alike)

    @staticmethod
    def backward(ctx: Any, own: Tensor) -> Any:
        return Sum.apply(own)  # type: ignore[no-untyped-call]


# What autograd saves


class _Note(NamedTuple):
    """How a view of a gathered tensor is had again."""

    part: Tensor
    shape: torch.Size
    view: tuple[tuple[int, ...], tuple[int, ...], int]

    def whole(self) -> Tensor:
        return _gathered(self.part, self.shape).as_strided(*self.view)


def noted(tensor: Tensor) -> Any:
    """Return what is kept of a tensor for a backward pass: a note in place of a gathered one."""
    if _GATHERED and tensor.layout == torch.strided and not is_dtensor(tensor):
        storage = tensor.untyped_storage()
        found = _GATHERED.get(storage.data_ptr()) if storage.nbytes() else None
        if found is not None and not found[0].expired():
            view = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
            return _Note(found[1].detach(), found[2], view)
    return tensor.detach()  # an output would keep its graph alive for ever


def fetched(kept: Any) -> Tensor:
    """Return what a backward pass needs of what was kept."""
    return kept.whole() if isinstance(kept, _Note) else kept


@contextmanager
def gathering() -> Iterator[None]:
    """Let autograd keep notes in place of gathered tensors, where the parameters are split."""
    if shards() is None:
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(noted, fetched):
        yield


# The model


def split_parameters(
    model: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Leave a part of each parameter in a model, and have modules gather what they read.

    Returns the values of all parameters and buffers by name, of parameters the parts. The hooks of
    FSDP2 are left out; all is undone with the model's snapshot, see `Session`.
    """
    here, parts = shards(), dict(state)
    done: dict[int, tuple[nn.Parameter, torch.Size]] = {}  # tied ones once, and their whole shapes
    for prefix, module in list(model.named_modules()):
        _leave_out_hooks(module)
        shapes: dict[str, torch.Size] = {}
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in done:
                name = f"{prefix}.{key}".lstrip(".")
                value = part_of(state.get(name, parameter.detach()), here)
                wanted = dtype if value.is_floating_point() else value.dtype
                part = value.detach().to(device, wanted, copy=True)
                held, shape = parameter, parameter.shape
                if is_dtensor(parameter):
                    held = nn.Parameter(part, parameter.requires_grad)
                held.data = part
                done[id(parameter)] = held, shape
                parts[name] = part.clone()
            module._parameters[key], shapes[key] = done[id(parameter)]
        if shapes:
            _read_by_gathering(module, shapes, prefix)
    return parts


def _read_by_gathering(module: nn.Module, shapes: Mapping[str, torch.Size], name: str) -> None:
    """Give a module a class of its own whose attributes gather its parameters."""

    def reader(key: str) -> property:
        return property(lambda self: _Gather.apply(self._parameters[key], shapes[key]))  # type: ignore[no-untyped-call]

    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule) or getattr(module, "max_norm", None) is not None:
        msg = (
            f"the parameters of {name or 'the model'} ({kind.__name__}) cannot be split over "
            "processes: a scripted module, and an embedding with max_norm, read theirs by "
            "themselves; use sharing(shard='data')"
        )
        raise ProblemError(msg)
    content: dict[str, Any] = {key: reader(key) for key in shapes}
    if isinstance(module, nn.RNNBase):
        names = module._flat_weights_names
        content["_flat_weights"] = property(lambda self: [getattr(self, key) for key in names])
        content["_update_flat_weights"] = lambda self: None
    content |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    module.__class__ = type(kind.__name__, (kind,), content)


def _leave_out_hooks(module: nn.Module) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            owner = type(getattr(hook, "__self__", None)).__module__
            if owner.startswith("torch.distributed.fsdp"):
                del hooks[key]
