"""Rescalings of a ReLU network that leave what it computes as it is.

A layer's output may be multiplied and the next layer's weights divided by the same number where
only homogeneous functions (ReLU, pooling, flattening) lie between; and the filters before a
BatchNorm by any numbers, if its running statistics go with them. Weights far apart then stand for
one function, which no measure of flatness should tell apart (Dinh et al., 2017).

Nothing is read from the model's code: pairs are proposed by the order in which layers run, and
kept where the outputs stay the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from landscape.randomness import seeded

State = Mapping[str, Tensor]
Outputs = Callable[[State], Tensor]

_FILTERED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Powers of two: multiplying by them rounds nothing.
_FACTORS = (0.25, 0.5, 2.0, 4.0)
_LAYERS_AHEAD = 2  # that may take the output of a layer; an identity shortcut has one in between
_ROUNDING = 256  # units of the last place, relative to the largest output


@dataclass(frozen=True)
class Pair:
    """A layer's weight and bias times a factor, and the weight of a later one divided by it."""

    first: str  # name of the layer whose output is multiplied
    second: str  # name of the layer that takes it
    factor: float  # positive

    def __str__(self) -> str:
        return f"{self.first} times {self.factor:g}, {self.second} divided by it"

    def apply(self, state: State) -> dict[str, Tensor]:
        """Return what changes."""
        weight = _entry(self.second, "weight")
        return _scaled(state, self.first, self.factor) | {weight: state[weight] / self.factor}


@dataclass(frozen=True)
class Filters:
    """The filters before a BatchNorm times factors, and its running statistics with them.

    σ'² = a² (σ² + e) − e, e the layer's own epsilon, so that the normalised values stay the same;
    a filter whose new variance would be negative is left as it is.
    """

    layer: str  # name of the layer that holds the filters
    norm: str  # name of the BatchNorm
    factors: tuple[float, ...]  # one for each filter, positive
    epsilon: float  # what the BatchNorm adds to the variance

    def __str__(self) -> str:
        low, high = min(self.factors), max(self.factors)
        return f"filters of {self.layer} times {low:g} to {high:g}, statistics of {self.norm} too"

    def apply(self, state: State) -> dict[str, Tensor]:
        """Return what changes."""
        mean, variance = (_entry(self.norm, f"running_{part}") for part in ("mean", "var"))
        shown = state[variance] + self.epsilon
        factors = torch.tensor(self.factors).to(shown)
        factors = factors.where(factors.square() * shown >= self.epsilon, 1.0)
        changed = _scaled(state, self.layer, factors)
        moved = factors.square() * shown - self.epsilon
        changed[variance] = moved.where(factors != 1.0, state[variance])
        changed[mean] = state[mean] * factors
        return changed


Rescaling = Pair | Filters


def rescaled(state: State, rescalings: Iterable[Rescaling]) -> dict[str, Tensor]:
    """Apply rescalings one after the other.

    >>> state = {"0.weight": torch.ones(2, 1), "2.weight": torch.ones(1, 2)}
    >>> rescaled(state, [Pair("0", "2", 4.0)])["2.weight"]
    tensor([[0.2500, 0.2500]])
    """
    found = dict(state)
    for rescaling in rescalings:
        found |= rescaling.apply(found)
    return found


def find_rescalings(
    model: nn.Module, outputs: Outputs, *, state: State | None = None, seed: int = 0
) -> list[Rescaling]:
    """Find rescalings that a model's outputs do not see, each by a random power of two.

    References:
        Dinh, Pascanu, Bengio, Bengio (2017), Sharp minima can generalize for deep nets,
        arXiv:1703.04933.
    """
    if state is None:
        named = [*model.named_parameters(), *model.named_buffers()]
        state = {name: tensor.detach() for name, tensor in named}
    order, expected = _order(model, outputs)
    generator = seeded(seed)
    found: list[Rescaling] = []
    for i, first in enumerate(order):
        for candidate in _candidates(model, first, order[i + 1 :], generator):
            changed = rescaled(state, [*found, candidate])
            if _agree(outputs(changed), expected) and _matters(state, candidate, outputs, expected):
                found.append(candidate)
                break
    return found


def _candidates(
    model: nn.Module, first: str, later: Sequence[str], generator: torch.Generator
) -> Iterator[Rescaling]:
    """Propose what the outputs of a layer may be traded against."""
    layer = model.get_submodule(first)
    behind = model.get_submodule(later[0]) if later else None
    if (
        isinstance(layer, _FILTERED)
        and isinstance(behind, _BatchNorm)
        and behind.running_var is not None
    ):
        factors = _draw(generator, len(behind.running_var))
        if len(behind.running_var) == len(layer.weight):
            yield Filters(first, later[0], factors, behind.eps)
    linear = [n for n in later if isinstance(model.get_submodule(n), (nn.Linear, _ConvNd))]
    for second in linear[:_LAYERS_AHEAD]:
        yield Pair(first, second, *_draw(generator, 1))


def _order(model: nn.Module, outputs: Outputs) -> tuple[list[str], Tensor]:
    """Return the names of layers with a weight of their own in the order in which they run."""
    seen: list[str] = []

    def hook(name: str) -> Any:
        return lambda *_: seen.append(name)

    layers = {name: part for name, part in model.named_modules() if _is_layer(part)}
    places = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    handles = [
        part.register_forward_hook(hook(name))
        for name, part in layers.items()
        if places[id(part.weight)] == 1  # a tied weight has another place that would change
    ]
    try:
        expected = outputs({})
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in dict.fromkeys(seen) if seen.count(name) == 1], expected


def _matters(state: State, candidate: Rescaling, outputs: Outputs, expected: Tensor) -> bool:
    """Tell whether the outputs see the layer at all: one half alone must change them."""
    first = candidate.first if isinstance(candidate, Pair) else candidate.layer
    return not _agree(outputs(_scaled(state, first, 2.0)), expected)


def _agree(found: Tensor, expected: Tensor) -> bool:
    bound = _ROUNDING * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    difference = float((found - expected).abs().max())
    return math.isfinite(difference) and difference <= bound


def _scaled(state: State, layer: str, factors: float | Tensor) -> dict[str, Tensor]:
    """Multiply weight and bias of a layer, by one number or by one for each output."""

    def times(tensor: Tensor) -> Tensor:
        if isinstance(factors, Tensor):
            return tensor * factors.to(tensor).reshape(-1, *[1] * (tensor.ndim - 1))
        return tensor * factors

    names = (_entry(layer, part) for part in ("weight", "bias"))
    return {name: times(state[name]) for name in names if name in state}


def _draw(generator: torch.Generator, n: int) -> tuple[float, ...]:
    drawn = torch.randint(len(_FACTORS), (n,), generator=generator)
    return tuple(_FACTORS[int(i)] for i in drawn)


def _entry(layer: str, part: str) -> str:
    return f"{layer}.{part}" if layer else part


def _is_layer(part: nn.Module) -> bool:
    kinds = (nn.Linear, _ConvNd, _BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return isinstance(part, kinds) and part._parameters.get("weight") is not None
