"""Spectra of blocks against dense diagonal blocks and known distances."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import case_named
from torch import nn

import landscape as ls
from landscape.errors import InvalidArgumentError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


class Bowls(nn.Module):
    """L = ½ Σ cᵢwᵢ², with parameters of given curvatures."""

    def __init__(self, **curvatures: torch.Tensor) -> None:
        super().__init__()
        self.curvatures = curvatures
        for name, c in curvatures.items():
            self.register_parameter(name, nn.Parameter(torch.ones_like(c)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        terms = [(c * getattr(self, name) ** 2).sum() / 2 for name, c in self.curvatures.items()]
        return sum(terms) + 0.0 * x[:, 0]


def bowls(**curvatures: torch.Tensor) -> ls.Problem:
    data = [torch.ones(3, 1, dtype=torch.float64)]
    return ls.Problem(Bowls(**curvatures), data=data, batch_loss=lambda model, x: model(x))


def spectrum(low: float, high: float, n: int = 60) -> torch.Tensor:
    return torch.logspace(low, high, n, dtype=torch.float64)


def test_numbers_of_blocks_are_those_of_the_dense_hessian() -> None:
    case = case_named("attention")
    problem = case.build(5)
    found = ls.block_spectra(problem, n_probes=24, steps=64)
    hessian = case.dense_hessian().numpy()
    ends = np.cumsum([0, *problem.space.sizes])
    places = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(problem.space.names)}
    for i, block in enumerate(found.blocks):
        at = np.concatenate([places[name] for name in found.settings["blocks"][block]])
        part = hessian[np.ix_(at, at)]
        assert found.sizes[i] == len(at)
        assert found.largest[i] == pytest.approx(np.linalg.eigvalsh(part)[-1], rel=1e-3)
        assert abs(found.traces[i] - part.trace()) <= 5 * found.trace_errors[i] + 1e-9
    assert found.sizes.sum() == problem.space.n
    assert found.shares.sum() == pytest.approx(1.0)


def test_equal_spectra_have_no_distance_and_spectra_apart_all_of_it() -> None:
    alike = ls.block_spectra(
        bowls(a=spectrum(0, 1), b=spectrum(0, 1), c=spectrum(-3, -2)), {k: [k] for k in "abc"}
    )
    assert alike.distances[0, 1] < 0.15
    assert alike.distances[0, 2] > 0.99
    assert alike.distances.diagonal().max() < 0.25
    np.testing.assert_array_equal(alike.distances, alike.distances.T)
    assert alike.mean_distance == pytest.approx(alike.distances[[0, 0, 1], [1, 2, 2]].mean())
    assert alike.largest == pytest.approx([10.0, 10.0, 1e-2], rel=1e-3)


def test_a_scale_of_all_moves_no_distance() -> None:
    def distances(scale: float) -> np.ndarray:
        problem = bowls(a=scale * spectrum(0, 1), b=scale * spectrum(-1, 0.5))
        return ls.block_spectra(problem, {"a": ["a"], "b": ["b"]}).distances

    np.testing.assert_allclose(distances(1.0), distances(1e6), rtol=1e-6)


def test_kinds_of_a_transformer(here: Path, run) -> None:
    (here / "lm.py").write_text(
        """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)
    def forward(self, x):
        x = self.norm(x)
        return x + self.attn(x, x, x, need_weights=False)[0] + self.mlp(x)
def model():
    return nn.Sequential(nn.Embedding(7, 8), Block(), nn.Linear(8, 7))
def data(split):
    tokens = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(0))
    return tokens, tokens.roll(1, 1)
def loss(output, target):
    return nn.functional.cross_entropy(output.movedim(-1, 1), target)
"""
    )
    torch.manual_seed(0)
    problem = ls.load_problem("lm.py")
    torch.save(problem.model.state_dict(), "lm.pt")
    args = ("blocks", "lm.pt", "--problem", "lm.py", "--probes", "4", "--steps", "8")
    (record,) = json.loads(run(*args, "--json").out)
    assert record["blocks"] == ["embedding", "attention", "norm", "other"]
    assert record["sizes"] == [56, 4 * 64 + 32, 16, 72 + 63]
    assert "trace share of attention" in run(*args).out


def test_bad_blocks_are_named() -> None:
    problem = bowls(a=spectrum(0, 1), b=spectrum(0, 1))
    with pytest.raises(InvalidArgumentError, match="a is in two blocks"):
        ls.block_spectra(problem, {"one": ["a"], "two": ["*"]})
    with pytest.raises(InvalidArgumentError, match="there is no block"):
        ls.block_spectra(problem, {})
    with pytest.raises(InvalidArgumentError, match="n_probes"):
        ls.block_spectra(problem, n_probes=2)
