"""Filters of parametrized weights: the layer's own output axis, and gains that stay zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from landscape.doctor.contents import weights as weights_check
from landscape.problem import Problem
from landscape.problem._filters import filter_norms_of, owner_of
from landscape.sharpness._relative_flatness import neuron_blocks
from landscape.surface import random_direction

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")

LAYERS = {
    "linear": lambda: nn.Linear(5, 3),
    "conv": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "embedding": lambda: nn.Embedding(7, 4),
    "one output": lambda: nn.Conv2d(3, 1, 2),
}


class Softplus(nn.Module):
    """A weight that stays positive."""

    def forward(self, x):
        return nn.functional.softplus(x)


class LengthAndDirection(nn.Module):
    """Weight normalisation written by a user."""

    def forward(self, length, direction):
        return length * nn.functional.normalize(direction, dim=1)

    def right_inverse(self, weight):
        return weight.norm(dim=1, keepdim=True), weight


class LowRank(nn.Module):
    """W + BA as a parametrization with parameters of its own, as LoRA is often written."""

    def __init__(self, weight):
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.randn(2, columns))
        self.b = nn.Parameter(torch.randn(rows, 2))

    def forward(self, x):
        return x + self.b @ self.a


def chained(layer):
    return parametrizations.spectral_norm(parametrizations.weight_norm(layer))


def custom(module):
    return lambda layer: parametrize.register_parametrization(
        layer, "weight", module(layer.weight) if module is LowRank else module()
    )


WRAPPERS = {
    "plain": lambda layer: layer,
    "old spectral norm": nn.utils.spectral_norm,
    "spectral norm": parametrizations.spectral_norm,
    **{f"old weight norm {dim}": lambda m, d=dim: nn.utils.weight_norm(m, dim=d) for dim in (0, 1)},
    **{
        f"weight norm {dim}": lambda layer, d=dim: parametrizations.weight_norm(layer, dim=d)
        for dim in (None, 0, 1, -1)
    },
    "orthogonal": parametrizations.orthogonal,
    "chained": chained,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "softplus": custom(Softplus),
    "length and direction": custom(LengthAndDirection),
    "low rank": custom(LowRank),
}
FOR_MATRICES = ("orthogonal", "length and direction", "low rank")
PAIRS = [
    (layer, wrapper)
    for layer in LAYERS
    for wrapper in WRAPPERS
    if layer in ("linear", "embedding") or wrapper not in FOR_MATRICES
]
GAINS = ("weight_g", "parametrizations.weight.original0")


def make(layer: str, wrapper: str) -> Problem:
    torch.manual_seed(0)
    wrapped = WRAPPERS[wrapper](LAYERS[layer]())
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": wrapped})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape, dtype=torch.float64) + 0.5)
    return Problem(model, nn.MSELoss(), (torch.zeros(2, 1), torch.zeros(2, 1)), dtype="float64")


def outputs(layer: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    """What makes each output, from the documentation of each layer."""
    if layer == "transposed":  # weight (4, 3, 3, 3): two groups of two inputs and three outputs
        return [tensor[2 * g : 2 * g + 2, o] for g in range(2) for o in range(3)]
    return list(tensor)


@pytest.mark.parametrize(("layer", "wrapper"), PAIRS)
def test_each_output_moves_by_its_own_norm_and_gains_stay(layer, wrapper):
    problem = make(layer, wrapper)
    weights = problem.space.unflatten(problem.weights)
    moved = problem.space.unflatten(random_direction(problem, seed=1).vector)
    norms = problem.space.unflatten(filter_norms_of(problem))
    n_gains = 0
    for name, weight in weights.items():
        if weight.ndim < 2 or name.endswith(GAINS):
            n_gains += name.endswith(GAINS)
            assert not moved[name].any()
            assert torch.equal(norms[name], weight.abs())
            continue
        tensors = (weight, moved[name], norms[name])
        for w, d, scale in zip(*(outputs(layer, t) for t in tensors), strict=True):
            assert d.norm() == pytest.approx(float(w.norm()), rel=1e-12)
            assert torch.allclose(scale, w.norm().expand_as(scale), rtol=1e-12)
    assert n_gains == (any(key in wrapper for key in ("weight norm", "chained", "length")))


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name not in FOR_MATRICES])
def test_the_layer_is_found_and_nothing_is_computed(wrapper):
    """Reading a weight under spectral norm in train mode would change its buffers."""
    problem = make("transposed", wrapper)
    inner = problem.model.get_submodule("1.inner").train()
    before = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    owners = {name: owner_of(problem.model, name) for name in problem.space.names}
    assert all(owner.layer is inner for owner in owners.values())
    roles = sorted(owner.role for owner in owners.values())
    assert roles in (["bias", "weight"], ["bias", "gain", "weight"])
    after = problem.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_attention_lists_and_users_own_classes():
    class Own(nn.Conv2d):
        pass

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
            self.attention = parametrizations.weight_norm(attention, "in_proj_weight")
            self.positions = nn.ParameterList([nn.Parameter(torch.rand(1, 5, 4))])
            self.tables = nn.ParameterDict({"class": nn.Parameter(torch.rand(1, 1, 4))})
            self.conv = Own(3, 1, 2)

    problem = Problem(Model(), nn.MSELoss(), (torch.zeros(2, 1), torch.zeros(2, 1)))
    said = random_direction(problem).treatment
    prefix = "attention.parametrizations.in_proj_weight"
    assert said[f"{prefix}.original1"] == "12 filters of 4"
    assert said["positions.0"] == "5 filters of 4"
    assert said["tables.class"] == "1 filter of 4"
    assert said["conv.weight"] == "1 filter of 12"
    for name in (f"{prefix}.original0", "attention.bias_k", "attention.in_proj_bias"):
        assert said[name] == "zero: a bias, gain or shift"


def test_relative_flatness_is_of_plain_weights_only():
    for wrapper in ("old spectral norm", "spectral norm", "weight norm 0"):
        assert neuron_blocks(make("linear", wrapper)) == []
    assert [block.name for block in neuron_blocks(make("linear", "plain"))] == ["1.inner.weight"]


def test_doctor_counts_filters_of_zeros_on_the_output_axis():
    problem = make("transposed", "spectral norm")
    original = problem.model.get_submodule("1.inner").parametrizations.weight.original
    with torch.no_grad():
        original[:2, 1] = 0.0  # the second output of the first group

    class DiagnosticContext:
        pass

    patient = DiagnosticContext()
    patient.problem = problem
    assert weights_check(patient).numbers["zero_filters"] == 1.0
