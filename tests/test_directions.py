"""Directions: filter normalisation by its definition, one filter at a time."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import InvalidArgumentError
from landscape.evaluate import Evaluator
from landscape.problem import Problem
from landscape.problem._filters import filters, normalise_filterwise
from landscape.surface import Direction, Plane, given_direction, random_direction, random_plane


class Conv1D(nn.Module):
    """The linear layer of GPT-2, which keeps its outputs last; known by its name and ``nf``."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.nf = n_out
        self.weight = nn.Parameter(torch.randn(n_in, n_out))
        self.bias = nn.Parameter(torch.randn(n_out))

    def forward(self, x):
        return x @ self.weight + self.bias


class Everything(nn.Module):
    """One layer of each kind that orders its weights in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.line = nn.Conv1d(3, 5, 2)
        self.norm = nn.BatchNorm2d(6)
        self.transposed = nn.ConvTranspose2d(6, 8, 2, groups=2)
        self.plain_transposed = nn.ConvTranspose1d(3, 4, 2)
        self.linear = nn.Linear(5, 3)
        self.gpt2 = Conv1D(4, 3)
        self.embedding = nn.Embedding(7, 2)
        self.layer_norm = nn.LayerNorm([2, 3])  # a gain of two axes belongs to no filter


def make_problem(model: nn.Module, *, seed: int = 0, dtype: str = "float32") -> Problem:
    """Make a problem around a model; its loss is never run by these tests."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    model.float()
    return Problem(model, nn.MSELoss(), (torch.zeros(2, 1), torch.zeros(2, 1)), dtype=dtype)


def outputs_of(layer: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    """List what makes each output, written out by hand for each layer of `Everything`."""
    if layer == "transposed":  # in 6, out 8, 2 groups: weight (6, 4, 2, 2)
        return [tensor[3 * group : 3 * group + 3, o] for group in range(2) for o in range(4)]
    if layer == "plain_transposed":
        return [tensor[:, o] for o in range(4)]
    if layer == "gpt2":
        return [tensor[:, o] for o in range(4)]
    return list(tensor)


LAYERS = ("conv", "line", "transposed", "plain_transposed", "linear", "gpt2", "embedding")


def tensors(problem: Problem, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    return problem.space.unflatten(vector)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_filter_has_the_norm_of_its_weights_and_the_direction_of_its_gaussian(layer, dtype):
    problem = make_problem(Everything(), dtype=dtype)
    weights = tensors(problem, problem.weights)[f"{layer}.weight"].double()
    ours = tensors(problem, random_direction(problem, 3).vector)[f"{layer}.weight"].double()
    raw = tensors(problem, random_direction(problem, 3, normalisation="none").vector)
    gaussian = raw[f"{layer}.weight"].double()
    rounding = 1e-6 if dtype == "float32" else 1e-13
    triples = [outputs_of(layer, tensor) for tensor in (ours, gaussian, weights)]
    n_entries = 0
    for d, g, w in zip(*triples, strict=True):
        expected = g / g.norm() * w.norm()
        assert float((d - expected).abs().max()) <= rounding * float(w.norm())
        n_entries += d.numel()
    assert n_entries == weights.numel()


def test_tensors_that_make_no_output_of_their_own_get_zero():
    problem = make_problem(Everything())
    direction = tensors(problem, random_direction(problem).vector)
    zero = [name for name, tensor in direction.items() if not tensor.any()]
    biases = [name for name in problem.space.names if name.endswith(".bias")]
    assert sorted(zero) == sorted([*biases, "norm.weight", "layer_norm.weight"])


def test_without_normalisation_every_tensor_gets_the_gaussian_numbers():
    problem = make_problem(nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100)))
    direction = random_direction(problem, normalisation="none")
    vector = direction.vector
    assert direction.description == "Gaussian direction"
    assert (vector != 0).all()
    # 10,300 numbers: the mean is within 4 standard errors of 0, the variance of 1.
    assert abs(float(vector.mean())) <= 4 / math.sqrt(len(vector))
    assert abs(float(vector.var()) - 1) <= 4 * math.sqrt(2 / len(vector))


def test_filters_and_back_is_the_identity():
    for layer in LAYERS:
        module = getattr(Everything(), layer)
        tensor = torch.randn(module.weight.shape)
        rows = filters(tensor, module)
        expected = torch.stack([part.flatten() for part in outputs_of(layer, tensor)])
        assert torch.equal(rows, expected)
        same = normalise_filterwise(tensor, tensor, module)
        assert torch.allclose(same, tensor, rtol=1e-6)


def test_a_filter_of_zeros_stays_and_does_not_disturb_the_others():
    model = nn.Linear(4, 3, bias=False)
    problem = make_problem(model)
    whole = tensors(problem, random_direction(problem).vector)["weight"]
    model.weight.data[1] = 0.0
    direction = tensors(problem, random_direction(problem).vector)["weight"]
    assert not direction[1].any()
    assert torch.equal(direction[[0, 2]], whole[[0, 2]])


def test_tiny_weights_keep_their_norm():
    """Their squares are below what float32 can hold."""
    model = nn.Linear(4, 3, bias=False)
    problem = make_problem(model)
    model.weight.data *= 1e-30
    direction = tensors(problem, random_direction(problem).vector)["weight"].double()
    assert torch.allclose(direction.norm(dim=1), model.weight.double().norm(dim=1), rtol=1e-6)


def test_rescaling_a_filter_rescales_its_direction():
    """Li et al. (2018): the picture does not change when BatchNorm undoes a rescaling."""
    model = nn.Linear(4, 3, bias=False)
    problem = make_problem(model, dtype="float64")
    before = tensors(problem, random_direction(problem).vector)["weight"].clone()
    factors = torch.tensor([[0.25], [1.0], [8.0]])  # exact in binary
    model.weight.data *= factors
    after = tensors(problem, random_direction(problem).vector)["weight"]
    assert torch.allclose(after, before * factors, rtol=1e-14)


# -- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalisation", ["filter", "none"])
def test_the_same_gaussian_in_float32_and_float64(normalisation):
    single, double = (
        random_direction(
            make_problem(Everything(), dtype=dtype), 5, normalisation=normalisation
        ).vector
        for dtype in ("float32", "float64")
    )
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    if normalisation == "none":
        assert torch.equal(single, double.float())
    assert torch.allclose(single.double(), double, rtol=1e-5, atol=1e-7)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_direction():
    problem = make_problem(Everything())
    first, again, other = (random_direction(problem, seed) for seed in (1, 1, 2))
    assert torch.equal(first.vector, again.vector)
    assert first.settings() == again.settings()
    assert first.seed == 1
    assert first.settings()["digest"] != other.settings()["digest"]
    cosine = float(first.vector @ other.vector) / (first.norm * other.norm)
    assert abs(cosine) < 0.5


def test_a_plane_has_two_directions_the_first_of_which_is_that_of_the_line():
    problem = make_problem(Everything())
    plane = random_plane(problem, 4)
    assert torch.equal(plane.x.vector, random_direction(problem, 4).vector)
    assert not torch.equal(plane.x.vector, plane.y.vector)
    assert abs(plane.cosine) < 0.5
    assert plane.cosine == pytest.approx(
        float(plane.x.vector.double() @ plane.y.vector.double()) / (plane.x.norm * plane.y.norm)
    )
    assert plane.description == "filter-normalised random direction (seed 4)"
    again = random_plane(problem, 4)
    assert torch.equal(plane.y.vector, again.y.vector)
    other = random_plane(problem, 4, normalisation="none")
    assert (other.y.vector != 0).all()


def test_the_global_generators_are_not_touched():
    problem = make_problem(Everything())
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    random_plane(problem, 4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


# -- which parameters ----------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def test_tied_weights_count_once_and_move_together():
    model = Tied()
    problem = make_problem(model)
    direction = random_direction(problem)
    assert problem.space.names == ("embedding.weight",)
    assert direction.vector.shape == (15,)
    rows = direction.vector.reshape(5, 3)
    assert torch.allclose(rows.norm(dim=1), model.embedding.weight.norm(dim=1), rtol=1e-6)
    tokens = torch.arange(5)
    data = [(tokens, tokens)]
    problem = Problem(model, nn.CrossEntropyLoss(), data)
    with Evaluator(problem) as evaluator:
        moved = evaluator.loss(evaluator.origin + direction.vector).value
    with torch.no_grad():
        model.embedding.weight += rows  # and with it the head, which is the same tensor
        expected = float(nn.functional.cross_entropy(model(tokens), tokens))
    assert moved == pytest.approx(expected, rel=1e-6)


def test_frozen_parameters_have_no_direction():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    problem = make_problem(model)
    assert "0.weight" not in problem.space.names
    assert random_direction(problem).vector.shape == (4 + 8 + 2,)


def test_the_weights_are_read_when_the_direction_is_drawn():
    model = nn.Linear(4, 3, bias=False)
    problem = make_problem(model)
    before = random_direction(problem)
    model.weight.data *= 2.0
    assert random_direction(problem).norm == pytest.approx(2 * before.norm, rel=1e-6)


# -- given directions, and points of a plane -----------------------------------------------------


def test_a_given_direction_keeps_its_values_and_is_a_copy():
    problem = make_problem(nn.Linear(3, 2), dtype="float64")
    values = np.arange(8.0)
    direction = given_direction(problem, values, kind="worst-case", description="worst case")
    assert (direction.kind, direction.description, direction.seed) == (
        "worst-case",
        "worst case",
        None,
    )
    digest = direction.settings()["digest"]
    values[:] = -1.0
    assert direction.vector.tolist() == list(range(8))
    assert direction.settings()["digest"] == digest
    assert direction.norm == pytest.approx(math.sqrt(140))
    same = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([6.0, 7.0])}
    assert given_direction(problem, same).vector.tolist() == list(range(8))
    trainable = torch.arange(8.0, requires_grad=True)
    assert not given_direction(problem, trainable).vector.requires_grad


def test_a_point_of_a_plane_is_computed_from_the_origin():
    x = Direction(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64), "given", "x")
    y = Direction(torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64), "given", "y")
    plane = Plane(x, y, "a plane")
    origin = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    before = origin.clone()
    assert torch.equal(plane.at(origin, 0.0, 0.0), origin)
    point = plane.at(origin, 2.0, 3.0)
    assert point.tolist() == pytest.approx([2.1, 3.2, 1.3], rel=1e-15)
    assert torch.equal(origin, before)
    assert point.data_ptr() != origin.data_ptr()


# -- errors --------------------------------------------------------------------------------------


def test_refuses_an_unknown_normalisation():
    problem = make_problem(nn.Linear(3, 2))
    with pytest.raises(
        InvalidArgumentError, match=r"unknown normalisation 'filters' \(nearest: filter\)"
    ):
        random_direction(problem, normalisation="filters")


def test_refuses_a_direction_that_is_zero():
    model = nn.Linear(3, 2)
    problem = make_problem(model)
    model.weight.data.zero_()
    with pytest.raises(InvalidArgumentError, match=r"direction is zero.*normalisation='none'"):
        random_direction(problem)
    assert random_direction(problem, normalisation="none").norm > 0


@pytest.mark.parametrize("size", [7, 9, (2, 4)])
def test_refuses_a_direction_of_another_size(size):
    problem = make_problem(nn.Linear(3, 2))
    with pytest.raises(InvalidArgumentError, match="the model has 8 parameters; is it of another"):
        given_direction(problem, np.ones(size))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_refuses_a_direction_without_a_norm(value):
    problem = make_problem(nn.Linear(3, 2))
    with pytest.raises(InvalidArgumentError, match=r"the direction has norm .* expected a finite"):
        given_direction(problem, np.full(8, value))


def test_refuses_named_tensors_that_are_missing_or_of_another_shape():
    problem = make_problem(nn.Linear(3, 2))
    with pytest.raises(InvalidArgumentError, match="the direction lacks the parameters bias"):
        given_direction(problem, {"weight": torch.ones(2, 3)})
    with pytest.raises(InvalidArgumentError, match=r"has shape \(3, 2\) for weight, the model has"):
        given_direction(problem, {"weight": torch.ones(3, 2), "bias": torch.ones(2)})
