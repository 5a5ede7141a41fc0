"""Models of which each process holds a part of every parameter give the numbers of one process."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from cases import CASES, case_named
from torch import Tensor, nn

import landscape as ls
from landscape.evaluate import Engine, Evaluator
from landscape.operators import Hessian
from landscape.processes import sharing
from test_processes import assert_alike

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

MEASURED = ("attention", "conv_batch_norm_eval", "frozen", "unused", "tied", "batch_norm_train")
EXACT = torch.float64


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.project, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.norms[0](x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.mix(F.scaled_dot_product_attention(q, k, v, is_causal=True).movedim(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """A language model whose output weight is that of the embedding."""

    def __init__(self, width: int = 4, vocabulary: int = 7, n_blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(n_blocks)))
        self.scale = nn.Parameter(torch.tensor(1.3))  # no process but the first has a part of it

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.scale * self.blocks(self.embedding(tokens))
        return F.linear(hidden, self.embedding.weight).movedim(-1, 1)


def transformer() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = Transformer().double()
    tokens = torch.randint(7, (11, 6))
    return model, (tokens[:, :-1], tokens[:, 1:])


def numbers_of(problem: ls.Problem, *, measure: bool = True) -> dict[str, np.ndarray]:
    n = problem.space.n
    v = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=EXACT)
    spread = problem.space.spread

    def whole(part: Tensor) -> Tensor:
        return part if spread is None else spread.whole(part)

    with Evaluator(problem) as evaluator:
        loss, gradient = evaluator.loss(keep=True), evaluator.gradient()[1]
        operator = Hessian(evaluator)
        operator.record_parts()
        part = v if spread is None else spread.part(v)
        found: dict[str, Any] = {
            "loss": [loss.value, *loss.metrics.values()],
            "gradient": whole(gradient),
            "product": whole(operator.matvec(part)),
            "again": whole(operator.matvec(part)),
            "groups": operator.project_parts(part[None]),
            "forms": operator.quadratic_forms(part[None], n_groups=4)[0],
            "points": [p.value for p in Engine(evaluator).losses([evaluator.origin] * 2)],
        }
        if loss.examples is not None:
            found["examples"] = loss.examples[0]
    if measure:
        pairs = ls.top_eigenpairs(problem, k=2)
        power = ls.top_eigenpairs(problem, k=1, method="power", tol=1e-3)
        trace = ls.trace(problem)
        sharp = ls.sharpness(problem, rho=0.05)
        found |= {"eigenvalues": pairs.values, "bound": pairs.upper_bound, "power": power.values}
        found |= {"data errors": pairs.data_errors, "trace": [trace.value, trace.low]}
        found |= {"sharpness": [sharp.value, sharp.one_step], "rise error": sharp.value_se}
        found["norm of epsilon"] = np.linalg.norm(sharp.epsilon)
        assert pairs.provenance.processes == (
            "" if spread is None else f"parameters over {spread.n_processes} processes"
        )
    return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}


def work(rank: int, n: int, folder: str) -> None:
    torch.set_num_threads(1)
    if n > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=n)
    found = {}
    with sharing("parameters") if n > 1 else nullcontext():
        for case in CASES:
            print(case)
            found[str(case)] = numbers_of(case.build(5), measure=str(case) in MEASURED)
        model, data = transformer()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        problem = ls.Problem(model, nn.CrossEntropyLoss(), data, batch_size=4)
        found["transformer"] = numbers_of(problem)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert type(model.embedding) is nn.Embedding
    torch.save(found, f"{folder}/{rank}")
    if n > 1:
        dist.destroy_process_group()


def on(n: int, folder: Path) -> list[dict[str, dict[str, np.ndarray]]]:
    folder.mkdir()
    if n == 1:
        work(0, 1, str(folder))
    else:
        mp.spawn(work, args=(n, str(folder)), nprocs=n)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(n)]


@pytest.mark.slow
def test_split_parameters_give_the_numbers_of_one_process(tmp_path: Path) -> None:
    (alone,) = on(1, tmp_path / "1")
    for n in (2, 3):
        first, *others = on(n, tmp_path / str(n))
        for case, expected in alone.items():
            assert_alike(first[case], expected)
            for other in others:
                for name, value in first[case].items():
                    np.testing.assert_array_equal(other[case][name], value, err_msg=name)
