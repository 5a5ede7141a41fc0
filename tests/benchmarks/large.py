"""Memory and time of measurements of a large model: gradient, eigenvalue, sharpness, surface.

    python tests/benchmarks/large.py [--parameters 124e6] [--examples 8] [--only gradient surface]

``on-host`` is the eigenvalue with ``basis="host"``. Its memory is what a device other than the host
would need where no graph is kept: the peak before the first product, and beyond what was held then,
that of each product. There freed memory goes back to the system at once: the peak is what lives.

A language model in float32 with the geometry of GPT-2 (blocks before their norms, tied embeddings,
50,257 words, 12 layers of width 768 at 124 million parameters) at random weights, on 8 texts of 128
tokens, with one thread. Each measurement runs in a process of its own, on Linux. Its memory is the
peak of the resident set above what the process held with the model and the data, less the
activations of one example (the tensors that its loss has saved for the backward pass, weights not
counted), in sizes of the model (4 bytes for each parameter). Vector work is the time outside of the
model, the loss and autograd.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape as ls
from landscape.evaluate import Evaluator
from landscape.linalg import SymmetricOperator
from landscape.problem import Problem

WORDS, PLACES, TOKENS, HEAD = 50_257, 1024, 128, 64
# What is measured, and the largest memory that is aimed at, in sizes of the model.
AIMS = {"gradient": 6, "eigenvalue": 14, "on-host": 6, "sharpness": 16, "surface": 4}
# glibc: give back what is freed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
VECTOR_WORK = 0.3  # the largest share of the time that is aimed at


class Block(nn.Module):
    """Attention to what came before, and a perceptron, each added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_heads = width // HEAD
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attend(self.before(x)).chunk(3, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.n_heads, HEAD)).transpose(1, 2) for part in parts
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(self.between(x)), approximate="tanh"))


class LanguageModel(nn.Module):
    """A GPT-2 with one layer and one head for each 64 units of width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(PLACES, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(width // HEAD)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.words.weight
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=0.02)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        return self.head(self.norm(self.blocks(self.words(words) + self.places(places))))


def next_word(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy over the tokens, as most people write it."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def width_for(n_parameters: float) -> int:
    """Return the width whose model has about so many parameters."""
    widths = range(HEAD, 100 * HEAD, HEAD)
    return min(widths, key=lambda w: abs(w * (WORDS + PLACES) + 12 * w**3 // HEAD - n_parameters))


def make_problem(n_parameters: float, n_examples: int) -> Problem:
    torch.manual_seed(0)
    model = LanguageModel(width_for(n_parameters)).eval()
    texts = torch.randint(WORDS, (n_examples, TOKENS + 1))
    problem = Problem(model, next_word, [(texts[:, :-1], texts[:, 1:])])
    _ = problem.batches
    return problem


def gradient(problem: Problem) -> str:
    with Evaluator(problem) as evaluator:
        loss, slope = evaluator.gradient()
    return f"loss {loss.value:.5f}, norm of the gradient {float(slope.norm()):.5f}"


def eigenvalue(problem: Problem, **options: Any) -> str:
    found = ls.top_eigenpairs(problem, 1, tol=1e-2, progress=False, **options)
    return f"{found.values[0]:.5f} ± {found.residuals[0]:.1e}, {found.matvecs} products"


def sharpness(problem: Problem) -> str:
    found = ls.sharpness(problem, rho=0.05, progress=False)
    return f"{found.value:.5f}, {found.cost}"


def surface(problem: Problem) -> str:
    found = ls.surface(problem, n=5, progress=False)
    return f"losses from {found.loss.min():.3f} to {found.loss.max():.3f}"


MEASUREMENTS: dict[str, Callable[[Problem], str]] = {
    "gradient": gradient,
    "eigenvalue": eigenvalue,
    "on-host": lambda problem: eigenvalue(problem, basis="host", memory=1e6),
    "sharpness": sharpness,
    "surface": surface,
}


def activations(problem: Problem) -> int:
    """Measure the bytes that the loss of one example saves for its backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in problem.model.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output would keep its graph alive for ever

    words, target = next(iter(problem.batches))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        next_word(problem.model(words[:1]), target[:1])
    return sum(saved.values())


class Clock:
    """Adds up the time that the model, the loss and autograd take."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                self.seconds += 0.0 if self._depth else time.perf_counter() - started

        return timed


@contextmanager
def clocked(problem: Problem) -> Any:
    """Time what the problem and autograd do."""
    clock, gradients = Clock(), torch.autograd.grad
    torch.autograd.grad = clock.around(gradients)
    kind = type(problem.loss)
    call = kind.__call__
    kind.__call__ = clock.around(call)
    try:
        yield clock
    finally:
        torch.autograd.grad, kind.__call__ = gradients, call


def resident(field: str) -> int:
    """Return the resident bytes of this process, or their peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@contextmanager
def noting_products(peaks: list[tuple[int, int, int]]) -> Any:
    """Note the peak before a product, what is resident then, and the peak of the product."""
    product = SymmetricOperator.matvec

    def noted(self: SymmetricOperator, vector: Tensor) -> Tensor:
        before, held = resident("VmHWM"), resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        found = product(self, vector)
        peaks.append((before, held, resident("VmHWM")))
        return found

    SymmetricOperator.matvec = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        SymmetricOperator.matvec = product  # type: ignore[method-assign]


def measure(what: str, n_parameters: float, n_examples: int) -> dict[str, Any]:
    """Measure one thing in this process."""
    problem = make_problem(n_parameters, n_examples)
    of_example = activations(problem)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = resident("VmRSS"), time.perf_counter()
    peaks: list[tuple[int, int, int]] = []
    with clocked(problem) as clock, noting_products(peaks):
        found = MEASUREMENTS[what](problem)
    seconds = time.perf_counter() - started
    size, peak = 4 * problem.space.n, max([resident("VmHWM"), *(p for p, _, _ in peaks)])
    if what == "on-host":  # the first vector of the search stands for the one on the device
        first, held, _ = peaks[0]
        peak = max(first, held + max(own - resting for _, resting, own in peaks))
    return {
        "found": found,
        "parameters": problem.space.n,
        "activations": of_example / size,
        "peak": (peak - before - of_example) / size,
        "seconds": seconds,
        "vectors": 1.0 - clock.seconds / seconds,
    }


def in_own_process(what: str, arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = ["--parameters", str(arguments.parameters), "--examples", str(arguments.examples)]
    command = [sys.executable, __file__, "--measure", what, *sizes]
    env = os.environ | (ALLOCATOR if what == "on-host" else {})
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=124e6)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--measure", metavar="WHAT", help="in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.parameters, arguments.examples)))
        return
    print(f"{'':12s} {'memory':>7s} {'aim':>4s} {'example':>8s} {'seconds':>8s} {'vectors':>8s}")
    for what in arguments.only:
        row = in_own_process(what, arguments)
        print(
            f"{what:12s} {row['peak']:7.2f} {AIMS[what]:4d} {row['activations']:8.2f} "
            f"{row['seconds']:8.1f} {row['vectors']:8.0%}  {row['found']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
