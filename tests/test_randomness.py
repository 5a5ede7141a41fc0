"""Seeds: any integer type gives the same numbers, and what is no integer is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.errors import InvalidArgumentError
from landscape.problem import Problem
from landscape.randomness import next_seed, seeded, whole_seed
from landscape.study.codec import dumps


def small(seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Problem(model, nn.CrossEntropyLoss(), (x, (x[:, 0] > 0).long()), name=f"net {seed}")


SEEDED = {
    "average_sharpness": lambda seed: ls.average_sharpness(small(), 0.1, seed=seed),
    "compare": lambda seed: ls.compare({"a": small()}, n=3, seed=seed).models[0].surface,
    "diagnose": lambda seed: ls.diagnose(small(), seed=seed),
    "differences": lambda seed: ls.differences(small(), small(1), full=False, seed=seed),
    "evaluation": lambda seed: ls.evaluation(small(), seed=seed),
    "flatness": lambda seed: ls.flatness(small(), n_samples=4, seed=seed),
    "line": lambda seed: ls.line(small(), x=[0.0, 1.0], seed=seed),
    "m_sharpness": lambda seed: ls.m_sharpness(small(), 0.1, m=6, seed=seed),
    "path": lambda seed: ls.path(small(), small(1), curve="bezier", n=3, epochs=1, seed=seed),
    "sharpness": lambda seed: ls.sharpness(small(), 0.1, seed=seed),
    "sharpness_profile": lambda seed: ls.sharpness_profile(small(), [0.1], seed=seed),
    "spectral_density": lambda seed: ls.spectral_density(small(), n_probes=2, seed=seed),
    "stepwise_sharpness": lambda seed: ls.stepwise_sharpness(small(), 0.1, steps=[1], seed=seed),
    "surface": lambda seed: ls.surface(small(), n=3, seed=seed),
    "top_eigenpairs": lambda seed: ls.top_eigenpairs(small(), seed=seed),
    "trace": lambda seed: ls.trace(small(), seed=seed),
}


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_of_numpy_is_that_number(name):
    records = [
        {key: value for key, value in json.loads(text(SEEDED[name](seed))).items() if key != "cost"}
        for seed in (np.int64(3), np.uint8(3), 3)
    ]
    assert records[0] == records[1] == records[2]


def text(result) -> str:
    """What the study would hold of it, but for when and how long."""
    return dumps({key: np.asarray(v).tolist() for key, v in vars(result).items() if plain(v)})


def plain(value) -> bool:
    return isinstance(value, (int, float, str, np.ndarray, np.generic))


@pytest.mark.parametrize("seed", [1.5, "1", None, True, 2**64, -(2**63) - 1])
@pytest.mark.parametrize("name", ["evaluation", "sharpness", "surface", "trace"])
def test_what_is_no_seed_is_refused(name, seed):
    with pytest.raises(InvalidArgumentError, match=r"^seed must be a whole number .*, got "):
        SEEDED[name](seed)


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1, -(2**63)])
def test_seeds_are_those_of_torch(seed):
    expected = torch.rand(3, generator=torch.Generator().manual_seed(seed))
    state = torch.get_rng_state()
    assert torch.equal(torch.rand(3, generator=seeded(seed)), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(whole_seed(np.int32(7))) is int


def test_the_largest_seed_is_followed_by_the_smallest_of_a_density():
    """Its probes are drawn from the seed that follows, which is 0 after −1 and after 2⁶⁴ − 1."""
    assert [next_seed(seed) for seed in (0, -1, np.int64(4), 2**64 - 1)] == [1, 0, 5, 0]
    below, largest, other = (
        ls.spectral_density(small(), n_probes=2, outliers=0, seed=seed).nodes
        for seed in (-1, 2**64 - 1, 0)
    )
    assert np.array_equal(below, largest, equal_nan=True)
    assert not np.array_equal(below, other, equal_nan=True)
