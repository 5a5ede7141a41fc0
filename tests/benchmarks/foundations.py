"""What the library costs over bare torch: one surface point, and one Hessian-vector product.

    python tests/benchmarks/foundations.py [--repeats 9] [--threads 1]

The digits ResNet in float32 on the 1,437 training images, in memory, in batches of 512. Rows of
one table are measured in turn, over and over, so that a change of the machine's speed hits all
alike; the ratio is the median over the turns, with the lower and upper quartile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import bare_gradient, table, timed

from landscape.directions import random_plane
from landscape.evaluate import Evaluator
from landscape.measure.surfaces import span, surface
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.tasks import digits

BATCH = 512
GRID = 5  # points along each axis; one forward pass more is that of the origin


def bare_forward(model: torch.nn.Module, batches: list[tuple[torch.Tensor, ...]]) -> float:
    """Run the loop that everybody writes: the mean loss over the data, without gradients."""
    total, n = torch.zeros(()), 0
    with torch.no_grad():
        for x, y in batches:
            total += F.cross_entropy(model(x), y, reduction="sum")
            n += len(y)
    return float(total) / n


def surfaces(repeats: int) -> None:
    torch.manual_seed(0)
    model = digits.model().eval()
    data = digits.data("train")
    plain = Problem(model, digits.loss, data, batch_size=BATCH)
    with_accuracy = Problem(model, digits.loss, data, metrics=digits.metrics, batch_size=BATCH)
    batches = list(plain.batches)
    plane, x = random_plane(plain, 0), span(1.0, GRID)

    def points(problem: Problem) -> Callable[[], float]:
        return lambda: timed(
            lambda: surface(problem, plane, x=x, y=x, progress=False), units=GRID * GRID + 1
        )

    def loops() -> None:
        for _ in range(GRID * GRID + 1):
            bare_forward(model, batches)

    rows = {
        "bare forward loop": lambda: timed(loops, units=GRID * GRID + 1),
        "surface point": points(plain),
        "surface point with accuracy": points(with_accuracy),
    }
    table("surface", rows, repeats=repeats)


def products(repeats: int) -> None:
    torch.manual_seed(0)
    model = digits.model().eval()
    problem = Problem(model, digits.loss, digits.data("train"), batch_size=BATCH)
    batches = list(problem.batches)
    vector = torch.randn(problem.space.n)
    with Evaluator(problem) as evaluator:
        kept, rebuilt = Hessian(evaluator), Hessian(evaluator, graph_bytes=0)
        rows = {
            "bare gradient": lambda: timed(lambda: bare_gradient(model, batches)),
            "gradient": lambda: timed(evaluator.gradient),
            "HVP, graph kept": lambda: timed(lambda: kept.matvec(vector)),
            "HVP, graph rebuilt": lambda: timed(lambda: rebuilt.matvec(vector)),
        }
        table("gradients and Hessian-vector products", rows, repeats=repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.repeats} turns\n")
    surfaces(arguments.repeats)
    products(arguments.repeats)


if __name__ == "__main__":
    main()
