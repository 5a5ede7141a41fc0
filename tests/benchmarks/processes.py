"""What two processes of one thread each gain over one, on two cores.

    python tests/benchmarks/processes.py [--repeats 7] [--points 25] [--examples 128]

A ResNet-20 in float32 on random images: a surface, whose points the processes take in turn, and the
largest eigenvalue, whose products share the batches. One process and both are measured in turn; the
gain is the median of the ratios over the turns, with the lower and upper quartile. Setting up the
processes is not counted, but each of them chooses its plan for the surface. The gain in time says
little on cores that others use at the same time; that in processor time, twice what one process
takes over what both take together, leaves out what they wait for each other and for others.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import landscape as ls
from landscape.processes import sharing
from landscape.tasks.networks import ResNet


def jobs(n_points: int, n_examples: int) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = ResNet(widths=(16, 32, 64), blocks=3, in_channels=3)
    data = torch.randn(n_examples, 3, 32, 32), torch.randint(10, (n_examples,))
    problem = ls.Problem(model, nn.CrossEntropyLoss(), data, batch_size=n_examples // 2)
    plane = ls.random_plane(problem, seed=0)
    return {
        f"surface of {n_points} × {n_points}, by point": lambda: ls.surface(
            problem, plane=plane, n=n_points
        ),
        "largest eigenvalue, by data": lambda: ls.top_eigenpairs(
            problem, k=1, max_matvecs=12, evidence="residuals"
        ),
    }


def timed_together(call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds until both processes have made a call, and half of what they computed."""
    dist.barrier()
    started, worked = time.perf_counter(), time.process_time()
    call()
    computed = torch.tensor(time.process_time() - worked)
    dist.all_reduce(computed)
    return time.perf_counter() - started, float(computed) / 2


def measure(rank: int, folder: str, repeats: int, n_points: int, n_examples: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    for name, job in jobs(n_points, n_examples).items():
        ratios: tuple[list[float], list[float]] = [], []
        seconds = []
        for turn in range(repeats + 1):
            alone = timed_together(job if rank == 0 else lambda: None)
            with sharing():
                both = timed_together(job)
            if turn:  # the first one warms up
                seconds.append(alone[0])
                ratios[0].append(alone[0] / both[0])
                ratios[1].append(2 * alone[1] / both[1])
        if rank == 0:
            print(f"{name}: {statistics.median(seconds):.2f} s alone; the gain of both")
            for what, own in zip(("time", "processor time"), ratios, strict=True):
                low, middle, high = statistics.quantiles(own, n=4)
                print(f"  {what:16s} {middle:6.2f}  {low:.2f} to {high:.2f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--points", type=int, default=25)
    parser.add_argument("--examples", type=int, default=128)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (folder, given.repeats, given.points, given.examples), nprocs=2)
