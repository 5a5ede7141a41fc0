"""BatchNorm with running statistics, folded into the convolution or linear layer before it.

In ``eval`` mode BatchNorm multiplies each channel with s = γ / √(variance + ε) and adds
β − mean·s. Behind a layer that is linear in its weights, the layer can do that itself, with the
weights W·s and the bias b·s + β − mean·s: one pass over the activations less for each BatchNorm.
Which layers are followed by one is seen from what the model does with its tensors in one forward
pass, so that a model need not be written in any special way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.overrides import TorchFunctionMode

from landscape.evaluate._evaluator import Evaluator
from landscape.problem._live import tensors_by_name
from landscape.problem.data import leaves

_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
_CALLS = frozenset(
    {
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "linear",
    }
)
# What asks a tensor about itself, and not for its values.
_QUESTIONS = frozenset(
    {
        "dim",
        "ndim",
        "shape",
        "size",
        "dtype",
        "device",
        "layout",
        "requires_grad",
        "is_cuda",
        "is_floating_point",
        "numel",
        "stride",
        "is_contiguous",
        "__len__",
    }
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Fold:
    """A layer, and the BatchNorm that alone uses its output.

    Attributes:
        layer: name of the convolution or linear layer.
        norm: name of the BatchNorm.
    """

    layer: str
    norm: str


def find_folds(evaluator: Evaluator, batch: Any) -> tuple[Fold, ...]:
    """Find the BatchNorm layers that can be folded, by watching one forward pass."""
    if evaluator.problem.mode != "eval":
        return ()
    watch, model = _Watch(), evaluator.model
    names = {id(tensor): name for name, tensor in tensors_by_name(model)}

    def body(model: nn.Module, batch: Any) -> None:
        with watch:
            evaluator.result(model, batch)

    with torch.no_grad():
        evaluator.on_batch(None, batch, 0, body)
    pairs = (_pair(watch, call, names, model) for call in watch.normalisations)
    return tuple(pair for pair in pairs if pair is not None)


class Folding:
    """Makes folded weights from those of a vector, and lets BatchNorm pass on what it is given."""

    def __init__(self, evaluator: Evaluator, folds: Sequence[Fold]) -> None:
        """Prepare what does not depend on the weights."""
        problem = evaluator.problem
        self.folds = tuple(folds)
        self._layers = [problem.model.get_submodule(fold.layer) for fold in folds]
        self._norms: list[Any] = [problem.model.get_submodule(fold.norm) for fold in folds]
        self._sizes = [norm.num_features for norm in self._norms]
        like = torch.zeros((), dtype=problem.dtype, device=problem.device)
        self._zeros = [like.new_zeros(size) for size in self._sizes]
        self._ones = [like.new_ones(size) for size in self._sizes]
        self._eps = torch.cat(
            [one.double() * norm.eps for one, norm in zip(self._ones, self._norms, strict=True)]
        )

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fold."""

        def joined(part: str, default: Sequence[Tensor], *, of_norm: bool = True) -> Tensor:
            owners = [fold.norm if of_norm else fold.layer for fold in self.folds]
            return torch.cat(
                [
                    tensors.get(f"{owner}.{part}", other)
                    for owner, other in zip(owners, default, strict=True)
                ]
            ).double()

        variance = joined("running_var", self._ones)
        scale = joined("weight", self._ones) * torch.rsqrt(variance + self._eps)
        bias = joined("bias", self._zeros, of_norm=False)
        shift = (bias - joined("running_mean", self._zeros)) * scale + joined("bias", self._zeros)
        folded: dict[str, Tensor] = {}
        dtype = self._ones[0].dtype
        scales, shifts = (torch.split(each.to(dtype), self._sizes) for each in (scale, shift))
        for fold, layer, s, b in zip(self.folds, self._layers, scales, shifts, strict=True):
            folded[f"{fold.layer}.weight"] = _scaled(layer, tensors[f"{fold.layer}.weight"], s)
            folded[f"{fold.layer}.bias"] = b
        return folded

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let every folded BatchNorm pass on what it is given."""
        try:
            for norm in self._norms:
                vars(norm)["forward"] = _passed_on
            yield
        finally:
            for norm in self._norms:
                vars(norm).pop("forward", None)


@dataclass(frozen=True)
class _Call:
    """A call of a layer: the arguments, by place or name, and what came out."""

    arguments: tuple[Any, ...]
    output: Tensor

    def argument(self, place: int) -> Any:
        return self.arguments[place] if len(self.arguments) > place else None


class _Watch(TorchFunctionMode):
    """Notes which tensors are used how often, and the calls of layers and of BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[int, int] = defaultdict(int)
        self.layers: dict[int, _Call] = {}
        self.normalisations: list[_Call] = []
        self._held: list[Any] = []  # so that no two tensors have one id

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = _name(func)
        if name in _QUESTIONS:
            return output
        self._held.append((args, kwargs, output))
        for leaf in leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.uses[id(leaf)] += 1
        if name in _CALLS and isinstance(output, Tensor):
            weight_and_bias = kwargs.get("weight"), kwargs.get("bias")
            arguments = tuple(args) if len(args) >= 2 else (*args, *weight_and_bias)
            self.layers[id(output)] = _Call(arguments, output)
        elif name == "batch_norm" and isinstance(output, Tensor):
            self.normalisations.append(_Call(tuple(args), output))
        return output


def _pair(watch: _Watch, call: _Call, names: Mapping[int, str], model: nn.Module) -> Fold | None:
    """Return the pair that a call of batch_norm belongs to, if it can be folded."""
    given = call.argument(0)
    before = watch.layers.get(id(given))
    if before is None:
        return None
    weight, bias = before.argument(1), before.argument(2)
    # Only weight and bias of the layer are replaced, so nothing else may read them; the running
    # mean tells how often the BatchNorm is called.
    alone = [given, weight, bias, call.argument(1)]
    if any(watch.uses[id(tensor)] != 1 for tensor in alone if tensor is not None):
        return None
    layer, norm = _owner(names, weight, "weight"), _owner(names, call.argument(1), "running_mean")
    if layer is None or norm is None:
        return None
    if not _is_plain(model, layer, _LAYERS) or not _is_plain(model, norm, (_BatchNorm,)):
        return None
    # Channels are the second axis for BatchNorm, and the last one for a linear layer.
    axes = 2 if isinstance(model.get_submodule(layer), nn.Linear) else weight.ndim
    return Fold(layer, norm) if given.ndim == axes else None


def _owner(names: Mapping[int, str], tensor: Any, role: str) -> str | None:
    """Return the name of the layer that holds a tensor in a role."""
    name = names.get(id(tensor), "")
    owner, _, last = name.rpartition(".")
    return owner if owner and last == role else None


def _is_plain(model: nn.Module, name: str, classes: tuple[type[nn.Module], ...]) -> bool:
    """Tell whether a layer is one of torch's own, unchanged, with weights of its own."""
    layer = model.get_submodule(name)
    own = [cls for cls in (*classes, SyncBatchNorm) if isinstance(layer, cls)]
    tensors = {id(t) for t in layer.parameters(recurse=False)}
    holders = [
        key
        for key, tensor in model.named_parameters(remove_duplicate=False)
        if id(tensor) in tensors
    ]
    return (
        bool(own)
        and any(getattr(type(layer), "forward", None) is vars(cls).get("forward") for cls in own)
        and "forward" not in vars(layer)
        and not any(getattr(layer, hooks, None) for hooks in _HOOKS)
        and len(holders) == len(tensors)
        and not layer._modules
    )


def _scaled(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply the weights of each output channel with its scale."""
    rest = [1] * (weight.ndim - 2)
    if not getattr(layer, "transposed", False):
        return weight * scale.view(-1, 1, *rest)
    # Of a transposed convolution the outputs are the second axis, within each group of inputs.
    groups: int = layer.groups  # type: ignore[assignment]
    grouped = weight.view(groups, -1, *weight.shape[1:])
    return (grouped * scale.view(groups, 1, -1, *rest)).view(weight.shape)


def _passed_on(given: Tensor) -> Tensor:
    return given


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "")
    # Attributes are read by the __get__ of their descriptor, which carries the name.
    return (
        getattr(getattr(function, "__self__", None), "__name__", "") if name == "__get__" else name
    )
