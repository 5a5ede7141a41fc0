"""Surfaces of known networks, put together by hand, and what must hold for any."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, case_named
from torch import Tensor, nn

from landscape.evaluate import Evaluator
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.surface import _points as points
from landscape.surface import given_direction, random_direction, random_plane
from landscape.surface._surface import line, span, surface

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


# -- directions and losses by hand ---------------------------------------------------------------


class Conv1D(nn.Module):
    """The linear layer of GPT-2 as Hugging Face has it: its weight is (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GPT2Style(nn.Module):
    """Token and position embeddings, causal attention by Conv1D, and a head tied to the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.ln = nn.LayerNorm(4)
        self.c_attn, self.c_proj = Conv1D(12, 4), Conv1D(4, 4)
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        q, k, v = self.c_attn(self.ln(h)).split(4, dim=-1)
        h = h + self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.lm_head(h).transpose(1, 2)


class Upsampling(nn.Module):
    """Transposed convolutions, one in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.last = nn.ConvTranspose2d(6, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.up(x))).mean(dim=(2, 3))


class Attending(nn.Module):
    """torch's own attention layer, whose joint projection holds three matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0].mean(dim=1))


class Tokens(nn.Module):
    """A class token and position embeddings that the model holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.randn(1, 3, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.cls_token.expand(len(x), 1, 4), x], dim=1) + self.pos_embed
        return self.head(torch.tanh(h).mean(dim=1))


ROWS, COLUMNS, NOTHING = "rows", "columns", "nothing"
GROUPED = "second axis within groups"
LAYOUTS = {
    "gpt2": (
        GPT2Style,
        {
            "wte.weight": ROWS,
            "wpe.weight": ROWS,
            "ln.weight": NOTHING,
            "ln.bias": NOTHING,
            "c_attn.weight": COLUMNS,
            "c_attn.bias": NOTHING,
            "c_proj.weight": COLUMNS,
            "c_proj.bias": NOTHING,
        },
    ),
    "conv_transpose": (
        Upsampling,
        {
            "up.weight": GROUPED,
            "up.bias": NOTHING,
            "last.weight": GROUPED,
            "last.bias": NOTHING,
        },
    ),
    "attention": (
        Attending,
        {
            "attention.in_proj_weight": ROWS,
            "attention.in_proj_bias": NOTHING,
            "attention.bias_k": NOTHING,
            "attention.bias_v": NOTHING,
            "attention.out_proj.weight": ROWS,
            "attention.out_proj.bias": NOTHING,
            "head.weight": ROWS,
            "head.bias": NOTHING,
        },
    ),
    "tokens": (
        Tokens,
        {"cls_token": ROWS, "pos_embed": ROWS, "head.weight": ROWS, "head.bias": NOTHING},
    ),
}
GROUPS = {"up.weight": 2, "last.weight": 1}


def filters_of(tensor: Tensor, name: str, layout: str) -> list[Tensor]:
    """The views that are one filter each, picked one by one."""
    if layout == ROWS:
        flat = (
            tensor.reshape(-1, tensor.shape[-1]) if name in {"cls_token", "pos_embed"} else tensor
        )
        return [flat[i] for i in range(len(flat))]
    if layout == COLUMNS:
        return [tensor[:, i] for i in range(tensor.shape[1])]
    if layout == GROUPED:
        size = len(tensor) // GROUPS[name]
        parts = [tensor[k * size : (k + 1) * size] for k in range(GROUPS[name])]
        return [part[:, i] for part in parts for i in range(tensor.shape[1])]
    return []


def made(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LAYOUTS[name][0]().double()
        if name == "gpt2":
            return model, (torch.randint(0, 7, (6, 5)), torch.randint(0, 7, (6, 5)))
        x = {"conv_transpose": (6, 4, 3, 3), "attention": (6, 5, 4), "tokens": (6, 2, 4)}[name]
        return model, (torch.randn(x, dtype=torch.float64), torch.randint(0, 3, (6,)))


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_are_those_of_weights_written_by_hand(name):
    """The direction from the same Gaussian numbers, scaled filter by filter, added to a copy."""
    model, data = made(name)
    layouts = LAYOUTS[name][1]
    problem = Problem(model, nn.CrossEntropyLoss(), data, batch_size=4)
    assert list(problem.space.names) == list(dict(model.named_parameters()))
    assert set(problem.space.names) == set(layouts)
    generator = torch.Generator().manual_seed(3)
    direction = {}
    for key, weight in model.named_parameters():
        gaussian = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weights = filters_of(weight.detach(), key, layouts[key])
        for part, own in zip(filters_of(gaussian, key, layouts[key]), weights, strict=True):
            part *= own.norm() / part.norm()
        direction[key] = gaussian if weights else torch.zeros_like(gaussian)
    found = line(problem, random_direction(problem, 3), x=[-0.7, 0.0, 0.4])
    for x, loss in zip(found.x, found.loss, strict=True):
        twin = copy.deepcopy(model).eval()
        with torch.no_grad():
            for key, weight in twin.named_parameters():
                weight += x * direction[key]
            expected = F.cross_entropy(twin(data[0]), data[1])
        assert loss == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"statistics": "recalibrated"}, {"held_out": True}], ids=str
)
@pytest.mark.parametrize("what", [line, surface])
def test_points_that_are_no_vectors(monkeypatch, what, options):
    """Those of a large model are written straight into its parameters."""
    problem = case_named("conv_batch_norm_eval").build(5)
    options = options | ({"held_out": problem} if "held_out" in options else {})
    both = []
    for least in (2**24, 0):
        monkeypatch.setattr(points, "_LARGE", least)
        both.append(what(problem, x=[-0.5, 0.0, 1.0], progress=False, **options))
    one, other = both
    assert other.loss == pytest.approx(one.loss, rel=1e-12)
    assert other.loss_se == pytest.approx(one.loss_se, rel=1e-10)
    assert other.metrics.keys() == one.metrics.keys()
    for name, values in one.metrics.items():
        assert other.metrics[name] == pytest.approx(values, rel=1e-10)


def test_a_tied_weight_moves_at_both_ends():
    model, data = made("gpt2")
    problem = Problem(model, nn.CrossEntropyLoss(), data)
    only = torch.zeros(problem.space.n, dtype=torch.float64)
    only[: 7 * 4] = 1.0
    found = line(problem, given_direction(problem, only), x=[0.0, 0.3])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.wte.weight += 0.3
        assert twin.lm_head.weight is twin.wte.weight
        expected = F.cross_entropy(twin(data[0]), data[1])
    assert found.loss[1] == pytest.approx(float(expected), rel=1e-12)


# -- what must hold for any network --------------------------------------------------------------

# Kinks have no curvature to speak of.
SMOOTH = [case for case in CASES if case.name != "prelu_and_max_pool"]


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_the_slice_is_curved_as_the_hessian_says(case):
    problem = case.build(None if case.depends_on_batches else 5)
    d = random_direction(problem, 2)
    unit = given_direction(problem, d.vector / d.norm)
    with Evaluator(problem) as evaluator:
        expected = float(unit.vector @ Hessian(evaluator).matvec(unit.vector))
    slopes = []
    for h in (4e-3, 2e-3, 1e-3):
        low, middle, high = line(problem, unit, x=[-h, 0.0, h]).loss
        slopes.append((low - 2 * middle + high) / h**2)
    # Richardson: the errors in h² and h⁴ cancel.
    first = [(4 * b - a) / 3 for a, b in pairwise(slopes)]
    curvature = (16 * first[1] - first[0]) / 15
    assert curvature == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("factor", [1e-3, 0.5, 40.0])
def test_rescaling_the_layers_of_a_relu_network_leaves_the_surface(factor):
    """W₁ and b₁ times a, W₂ over a: the same function, and the filter norms follow."""
    problem = relu_problem(lambda first, last: None)
    scaled = relu_problem(lambda first, last: rescale(first, last, factor))
    x = span(1.0, 5)
    plain, other = (surface(p, random_plane(p, 4), x=x, y=x) for p in (problem, scaled))
    assert other.loss == pytest.approx(plain.loss, rel=1e-12)
    raw = [
        surface(p, random_plane(p, 4, normalisation="none"), x=x, y=x) for p in (problem, scaled)
    ]
    assert np.abs(raw[0].loss / raw[1].loss - 1).max() > 0.1  # which is why directions are


def rescale(first: nn.Linear, last: nn.Linear, factor: float) -> None:
    first.weight *= factor
    first.bias *= factor
    last.weight /= factor


def relu_problem(change) -> Problem:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        data = torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,))
        change(model[0], model[2])
    return Problem(model, nn.CrossEntropyLoss(), data, batch_size=5)


def test_rescaling_single_filters_before_batch_norm_leaves_the_surface():
    """Each filter by a factor of its own, where the statistics follow."""
    factors = torch.tensor([1e-2, 0.3, 1.0, 7.0, 50.0], dtype=torch.float64)
    plain, scaled = (normalised_problem(f) for f in (torch.ones_like(factors), factors))
    x = span(1.0, 5)
    found = [
        surface(p, random_plane(p, 4), x=x, y=x, statistics="recalibrated") for p in (plain, scaled)
    ]
    assert found[1].loss == pytest.approx(found[0].loss, rel=1e-12)


def normalised_problem(factors: Tensor) -> Problem:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(5, eps=1e-30)
        layers = [nn.Conv2d(2, 5, 3, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)]
        model = nn.Sequential(*layers).double()
        data = torch.randn(12, 2, 4, 4, dtype=torch.float64), torch.randint(0, 3, (12,))
        model[0].weight *= factors[:, None, None, None]
    return Problem(model, nn.CrossEntropyLoss(), data, batch_size=12)


def test_an_interpolated_surface_of_a_quadratic_in_two_directions():
    problem = case_named("regression").build(5)
    d1, d2 = random_plane(problem, 1).x, random_plane(problem, 1).y
    w = problem.weights
    found = surface(problem, n=21, seed=1, tolerance=1e-3)
    with Evaluator(problem) as evaluator:
        for i, j in [(0, 0), (3, 17), (10, 10), (20, 5)]:
            vector = w + found.x[i] * d1.vector + found.y[j] * d2.vector
            expected = evaluator.loss(vector).value
            assert found.loss[i, j] == pytest.approx(expected, abs=1e-3 * np.ptp(found.loss))
