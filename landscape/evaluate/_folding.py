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
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from landscape.evaluate._evaluator import Evaluator
from landscape.problem._live import tensors_by_name
from landscape.problem.data import leaves

_CALLS = {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)} | {"linear"}
# What asks a tensor about itself, and not for its values.
_QUESTIONS = frozenset(
    "dim ndim shape size dtype device layout requires_grad is_cuda is_floating_point numel stride "
    "is_contiguous __len__".split()
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Fold:
    """The names of a convolution or linear layer and the BatchNorm that alone uses its output."""

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
    pairs = (_pair(watch, *call, names, model) for call in watch.normalisations)
    return tuple(pair for pair in pairs if pair is not None)


class Folding:
    """Makes folded weights, and lets the folded BatchNorm layers return their input."""

    def __init__(self, evaluator: Evaluator, folds: Sequence[Fold]) -> None:
        problem, model = evaluator.problem, evaluator.model
        self._folds, self._dtype = tuple(folds), problem.dtype
        self._layers = [model.get_submodule(fold.layer) for fold in folds]
        self._norms: list[Any] = [model.get_submodule(fold.norm) for fold in folds]
        self._sizes: list[int] = [norm.num_features for norm in self._norms]
        like = torch.zeros((), dtype=problem.dtype, device=problem.device)
        self._zeros = [like.new_zeros(size) for size in self._sizes]
        self._ones = [like.new_ones(size) for size in self._sizes]
        eps = [like.new_full((norm.num_features,), norm.eps).double() for norm in self._norms]
        self._eps = torch.cat(eps)

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the folded weights and biases by name, from tensors of the model by name."""
        norms, layers = [fold.norm for fold in self._folds], [fold.layer for fold in self._folds]

        def joined(owners: list[str], part: str, default: list[Tensor]) -> Tensor:
            pairs = zip(owners, default, strict=True)
            return torch.cat([tensors.get(f"{name}.{part}", none) for name, none in pairs]).double()

        variance = joined(norms, "running_var", self._ones)
        scale = joined(norms, "weight", self._ones) * torch.rsqrt(variance + self._eps)
        shift = joined(layers, "bias", self._zeros) - joined(norms, "running_mean", self._zeros)
        bias = shift * scale + joined(norms, "bias", self._zeros)
        scales, biases = (torch.split(v.to(self._dtype), self._sizes) for v in (scale, bias))
        found = {f"{name}.bias": b for name, b in zip(layers, biases, strict=True)}
        for name, layer, s in zip(layers, self._layers, scales, strict=True):
            found[f"{name}.weight"] = _scaled(layer, tensors[f"{name}.weight"], s)
        return found

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let every folded BatchNorm return its input."""
        try:
            for norm in self._norms:
                vars(norm)["forward"] = lambda given: given
            yield
        finally:
            for norm in self._norms:
                vars(norm).pop("forward", None)


class _Watch(TorchFunctionMode):
    """Notes how often each tensor is used, and the calls of layers and of BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[int, int] = defaultdict(int)
        self.layers: dict[int, tuple[Any, Any]] = {}  # weight and bias, by the id of the output
        self.normalisations: list[tuple[Any, Any]] = []  # input and running mean
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
        given = dict(enumerate(args)) | kwargs
        if name in _CALLS:
            parts = given.get(1, given.get("weight")), given.get(2, given.get("bias"))
            self.layers[id(output)] = parts
        elif name == "batch_norm":
            self.normalisations.append((given.get(0), given.get(1)))
        return output


def _pair(
    watch: _Watch, given: Any, mean: Any, names: Mapping[int, str], model: nn.Module
) -> Fold | None:
    """Return the pair that a call of batch_norm belongs to, if it can be folded."""
    weight, bias = watch.layers.get(id(given), (None, None))
    # Only weight and bias of the layer are replaced, so nothing else may read them; the running
    # mean tells how often the BatchNorm is called.
    if any(watch.uses[id(t)] != 1 for t in (given, weight, bias, mean) if t is not None):
        return None
    layer, norm = _owner(names, weight, "weight"), _owner(names, mean, "running_mean")
    if layer is None or norm is None:
        return None
    if not _is_plain(model, layer, (_ConvNd, nn.Linear)) or not _is_plain(model, norm, _BatchNorm):
        return None
    # Channels are the second axis for BatchNorm, and the last one for a linear layer.
    axes = 2 if isinstance(model.get_submodule(layer), nn.Linear) else weight.ndim
    return Fold(layer, norm) if given.ndim == axes else None


def _owner(names: Mapping[int, str], tensor: Any, role: str) -> str | None:
    """Return the name of the layer that holds a tensor in a role."""
    name = names.get(id(tensor), "")
    owner, _, last = name.rpartition(".")
    return owner if owner and last == role else None


def _is_plain(model: nn.Module, name: str, kinds: Any) -> bool:
    """Tell whether a layer is one of torch's own, unchanged, with weights of its own."""
    layer = model.get_submodule(name)
    own = {id(tensor) for tensor in layer.parameters(recurse=False)}
    named = model.named_parameters(remove_duplicate=False)
    return (
        isinstance(layer, kinds)
        and type(layer).forward.__module__.startswith("torch.nn.modules.")
        and "forward" not in vars(layer)
        and not any(getattr(layer, hooks, None) for hooks in _HOOKS)
        and sum(id(tensor) in own for _, tensor in named) == len(own)
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


def _name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "")
    # Attributes are read by the __get__ of their descriptor, which carries the name.
    return (
        getattr(getattr(function, "__self__", None), "__name__", "") if name == "__get__" else name
    )
