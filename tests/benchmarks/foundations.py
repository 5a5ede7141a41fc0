"""What the library costs over bare torch: a surface point, a gradient, a Hessian-vector product.

    python tests/benchmarks/foundations.py [--repeats 9] [--threads 1]

The digits ResNet in float32 on the 1,437 training images, in memory, in batches of 512; an encoder
of 22.7 million parameters on three batches of four short texts; and the memory of a measurement of
120 million parameters, in copies of these beyond model and data. Rows of one table are measured in
turn, over and over, so that a change of the machine's speed hits all alike; the ratio is the median
over the turns, with the lower and upper quartile.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import bare_gradient, table, timed
from torch import nn

from landscape.evaluate import Engine, Evaluator
from landscape.loss import evaluation
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.study import Study
from landscape.surface import random_plane
from landscape.surface._surface import span, surface
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


def small_surfaces(repeats: int, n: int = 21) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    problem = Problem(model, digits.loss, digits.data("train"), batch_size=BATCH)
    batches, parameters = list(problem.batches), list(model.parameters())
    plane, x = random_plane(problem, 0), span(1.0, n)
    origin, sizes = problem.weights.clone(), [p.numel() for p in parameters]

    def write(vector: torch.Tensor) -> None:
        with torch.no_grad():
            for p, part in zip(parameters, vector.split(sizes), strict=True):
                p.copy_(part.view_as(p))

    def loops() -> None:
        for a in x:
            for b in x:
                write(plane.at(origin, float(a), float(b)))
                bare_forward(model, batches)
        write(origin)

    def kept() -> None:
        with tempfile.TemporaryDirectory() as folder, Study(Path(folder) / "study.db") as study:
            surface(problem, plane, x=x, y=x, study=study, progress=False)

    units = n * n + 1
    with Evaluator(problem) as evaluator:
        engine = Engine(evaluator)
        vectors = [plane.at(origin, float(a), float(b)) for a in x for b in x]
        rows = {
            "bare loop, weights copied in": lambda: timed(loops, units=units),
            "engine": lambda: timed(lambda: engine.losses(vectors), units=units),
        }
        table(f"small MLP, {n} × {n} points", rows, repeats=repeats)
    rows = {
        "bare loop, weights copied in": lambda: timed(loops, units=units),
        "surface": lambda: timed(
            lambda: surface(problem, plane, x=x, y=x, progress=False), units=units
        ),
        "surface into a study": lambda: timed(kept, units=units),
    }
    table(f"small MLP, surface of {n} × {n} points", rows, repeats=repeats)


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


class Encoder(nn.Module):
    """A small BERT: 30,522 words, 6 layers of width 384."""

    def __init__(self, width: int = 384, words: int = 30_522) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(512, width)
        layer = nn.TransformerEncoderLayer(
            width, 12, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.body = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        return self.head(self.body(self.words(words) + self.places(places)).mean(dim=1))


def encoder(repeats: int) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    batches = [(torch.randint(30_522, (4, 24)), torch.randint(3, (4,))) for _ in range(3)]
    problem = Problem(model, nn.CrossEntropyLoss(), batches)
    vector = torch.randn(problem.space.n)
    with Evaluator(problem) as evaluator:
        kept = Hessian(evaluator)
        rows = {
            "bare gradient": lambda: timed(lambda: bare_gradient(model, batches)),
            "gradient": lambda: timed(evaluator.gradient),
            "HVP, graph kept": lambda: timed(lambda: kept.matvec(vector)),
        }
        millions = problem.space.n / 1e6
        table(f"encoder, {millions:.1f} million parameters", rows, repeats=repeats)


def memory() -> None:
    print("copies of 120 million parameters beyond model and data, at the peak")
    for what in ("gradient", "evaluation", "evaluation of a checkpoint"):
        command = [sys.executable, __file__, "--measure-memory", what]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"  {what:42s} {float(found.stdout):9.2f}")


def measure_memory(what: str, width: int = 2000) -> None:
    torch.set_num_threads(1)
    layers = [part for _ in range(30) for part in (nn.Linear(width, width), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(width, 3))
    problem = Problem(model, nn.CrossEntropyLoss(), (torch.randn(8, width), torch.arange(8) % 3))
    _ = problem.batches
    before = resident()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    if what == "gradient":
        with Evaluator(problem) as evaluator:
            evaluator.gradient()
    else:
        at_checkpoint = what != "evaluation"
        evaluation(problem.at(model.state_dict()) if at_checkpoint else problem)
    done.set()
    thread.join()
    print((peak[0] - before) / (4 * problem.space.n))


def resident() -> int:
    """Bytes of memory in use by this process (Linux)."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure-memory", metavar="WHAT", help="in a process of its own")
    arguments = parser.parse_args()
    if arguments.measure_memory:
        measure_memory(arguments.measure_memory)
        return
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.repeats} turns\n")
    surfaces(arguments.repeats)
    small_surfaces(arguments.repeats)
    products(arguments.repeats)
    encoder(arguments.repeats)
    memory()


if __name__ == "__main__":
    main()
