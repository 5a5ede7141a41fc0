"""What a process needs where parameters are split, against the formula of docs/guides/large.md.

    python tests/benchmarks/shards.py [--processes 2 4] [--only product power]

Language models with tied embeddings in float32 of 38 million parameters (small tensors), 18 million
(a large one) and 98 million, as FSDP2 leaves them, on a few tokens, with gloo and one thread each,
on Linux. ``product`` is a product of the Hessian, ``power`` and ``lanczos`` the largest eigenvalue
by few products. Measured is the peak of the resident set above what the process held before, where
freed memory goes back to the system at once; S is a process's part of the parameters, M the largest
tensor. What is gathered, and added up, is in sizes of the model.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from large import ALLOCATOR, Block, resident
from torch import Tensor, nn

import landscape as ls
from landscape.evaluate import Evaluator
from landscape.operators import Hessian
from landscape.problem import _shards
from landscape.processes import sharing

# Width, blocks and words of each model.
MODELS = {"38 M": (512, 12, 1024), "18 M": (256, 12, 32_768), "98 M": (768, 12, 16_384)}
TOKENS = 8
# Sizes of S and of M that each takes at its peak; docs/guides/large.md says what they are.
FORMULA = {"product": (1, 6.5), "power": (7, 6.5), "lanczos": (15, 6.5)}


class Model(nn.Module):
    """Blocks between an embedding and its transpose."""

    def __init__(self, width: int, n_blocks: int, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(n_blocks)))

    def forward(self, words: Tensor) -> Tensor:
        return self.blocks(self.words(words))


def batch_loss(model: Any, words: Tensor) -> tuple[Tensor, Tensor]:
    losses = ls.chunked_cross_entropy(
        model(words[:, :-1]), model.words.weight, words[:, 1:], chunk=TOKENS
    )
    return losses.sum(1), torch.full((len(words),), float(words.shape[1] - 1))


def sharded(width: int, n_blocks: int, words: int) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        model = Model(width, n_blocks, words)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    return model


def run(what: str, problem: ls.Problem) -> None:
    ls.top_eigenpairs(problem, method=what, max_matvecs=10, evidence="residuals", memory=1e10)


def measure(rank: int, n: int, name: str, what: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=n)
    torch.manual_seed(0)
    model = sharded(*MODELS[name])
    words = torch.randint(MODELS[name][2], (n, TOKENS + 1))
    entries = counted()
    with sharing("parameters"):
        problem = ls.Problem(model, data=[words], batch_loss=batch_loss)
        spread = problem.space.spread
        part, largest = 4 * -(-spread.n // n), 4 * max(spread.sizes)
        if what == "product":
            with Evaluator(problem) as evaluator:
                operator = Hessian(evaluator, graph_bytes=0)
                v = torch.randn(spread.length) / spread.n**0.5
                operator.matvec(v)
                entries |= dict.fromkeys(entries, 0)
                peak, seconds = peak_of(lambda: operator.matvec(v))
        else:
            _ = problem.batches
            peak, seconds = peak_of(lambda: run(what, problem))
    if rank == 0:
        of_part, of_largest = FORMULA[what]
        predicted = of_part * part + of_largest * largest
        row = f"{name:5s} {n:3d} {what:8s} {part / 1e6:6.0f} {largest / 1e6:6.0f} {peak / 1e6:9.0f}"
        row += f" {predicted / 1e6:9.0f} {peak / predicted:6.2f} {seconds:8.1f}"
        print(row, *(f"{moved / spread.n:9.1f}" for moved in entries.values()), flush=True)
    dist.destroy_process_group()


def counted() -> dict[str, int]:
    """Count the entries of whole tensors that are gathered, and added up."""
    entries = {"_ALL_GATHER": 0, "_REDUCE_SCATTER": 0}

    def count(name: str, whole: int) -> None:
        call = getattr(_shards, name)

        def noted(*tensors: Tensor) -> Any:
            entries[name] += tensors[whole].numel()
            return call(*tensors)

        setattr(_shards, name, noted)

    count("_ALL_GATHER", 0)
    count("_REDUCE_SCATTER", 1)
    return entries


def peak_of(call: Any) -> tuple[int, float]:
    """Return the peak above what is resident before, and the seconds."""
    gc.collect()
    before, started = resident("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    call()
    return resident("VmHWM") - before, time.perf_counter() - started


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--only", nargs="+", choices=FORMULA, default=list(FORMULA))
    given = parser.parse_args()
    head = f"{'':5s} {'':3s} {'MB':8s} {'S':>6s} {'M':>6s} {'measured':>9s} {'formula':>9s} {'':6s}"
    print(head, f"{'seconds':>8s} {'gathered':>9s} {'added up':>9s}")
    for name in given.models:
        for n in given.processes:
            for what in given.only:
                with tempfile.TemporaryDirectory() as folder:
                    mp.spawn(measure, (n, name, what, folder), nprocs=n)
