"""Traces to 5 % and densities from 8 probes against other tools, at the same measured error.

    python tests/benchmarks/traces.py [--seeds 6] [--repeats 3] [--networks mlp conv ...]

The other tools are installed as for `curvature.py`. Each is timed from the model and the data to
its number, in one process, in turn, with one thread unless told otherwise.

Trace: ours is called with its defaults, and its error is the root mean square over seeds of the
relative difference to a much longer run. Hutchinson's method has an error of σ/√p, with σ from its
own samples; the settings of the other estimators are tried from loose to tight until their own
code, on our products, has no larger an error. Then each tool is timed with its own products.

Density: ours is called with its defaults, 8 probes. There are two errors against a much longer run
φ*, all smoothed by the same Gaussian: ∫|φ − φ*| dt, which sees the bulk, and the Wasserstein-1
distance relative to the mean eigenvalue, which sees the outliers too. The other tools run Lanczos
without known outliers. The steps after which their errors with 8 probes are at rest are found on
our products; each is timed with these, and what is left of its Wasserstein distance falls as the
square root of the number of probes, so that the time for ours is the ratio squared.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from curvature import Case, curvlinops_operator, eigenthings_operator, peer, pyhessian_operator
from torch import Tensor, nn

from landscape.curvature._density import spectral_density
from landscape.curvature._trace import trace
from landscape.evaluate import Evaluator
from landscape.linalg import krylov_trace
from landscape.linalg import spectral_density as quadrature
from landscape.operators import Hessian
from landscape.tasks import PROBLEMS, digits

PROBES = 8
SETTINGS = (18, 24, 36, 54, 78, 120, 180)  # in pairs for XTrace, in threes for Hutch++
STEPS = (12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96)


def convolutional() -> nn.Module:
    """Return a plain network of two convolutions for the digits, 9,930 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": PROBLEMS["digits-mlp"][1],
    "conv": convolutional,
    "resnet": digits.model,
    "transformer": PROBLEMS["digits-transformer"][1],
}


def trained(name: str, epochs: int = 8) -> Case:
    """Train a network on the digits with a fixed seed."""
    torch.manual_seed(0)
    model, (x, y) = NETWORKS[name](), digits.data("train")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return Case(model, x, y)


class Ours:
    """Our products, as curvlinops and hessian-eigenthings take an operator."""

    def __init__(self, hessian: Hessian) -> None:
        self.matvec, self.size = hessian.matvec, hessian.n
        self.shape, self.dtype, self.device = (hessian.n, hessian.n), hessian.dtype, hessian.device
        self.where = {"dtype": hessian.dtype, "device": hessian.device}

    def __matmul__(self, vectors: Tensor) -> Tensor:
        if vectors.ndim == 1:
            return self.matvec(vectors)
        return torch.stack([self.matvec(v) for v in vectors.T], dim=1)


@contextmanager
def products(case: Case) -> Iterator[Ours]:
    with Evaluator(case.problem()) as evaluator:
        yield Ours(Hessian(evaluator))


def clock(case: Case, call: Callable[[], Any]) -> tuple[float, Any]:
    case.restore()
    started = time.perf_counter()
    found = call()
    seconds = time.perf_counter() - started
    case.restore()
    return seconds, found


def compare(case: Case, rows: dict[str, Callable[[], Any]], repeats: int) -> None:
    """Time the rows in turn and print each with its ratio to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(repeats):
        for name, call in rows.items():
            if turn == 0 or seconds[name][0] < 60.0:
                seconds[name].append(clock(case, call)[0])
    first = statistics.median(seconds[next(iter(rows))])
    for name, own in seconds.items():
        spread = f"{min(own):.2f} to {max(own):.2f}"
        middle = statistics.median(own)
        print(
            f"    {name:52s} {middle:8.2f} s  ratio {middle / first:6.2f}  ({spread})", flush=True
        )


# The trace


def estimators() -> dict[str, Callable[[Any, int, int], float]]:
    """The estimators of the other tools that are not Hutchinson's, for any operator."""
    found: dict[str, Callable[[Any, int, int], float]] = {}
    if peer("curvlinops"):
        found["curvlinops xtrace"] = functools.partial(curvlinops_trace, "xtrace")
        found["curvlinops hutchpp_trace"] = functools.partial(curvlinops_trace, "hutchpp_trace")
    if module := peer("hessian_eigenthings"):
        found["hessian-eigenthings hutch++"] = lambda a, m, seed: (
            module.trace(a, num_matvecs=m, seed=seed).estimate
        )
    return found


def curvlinops_trace(name: str, a: Any, m: int, seed: int) -> float:
    torch.manual_seed(seed)
    return float(getattr(importlib.import_module("curvlinops"), name)(a, m))


def rms(values: Any, truth: float) -> float:
    return float(np.sqrt(np.mean((np.asarray(values) / truth - 1.0) ** 2)))


def traces(name: str, case: Case, seeds: int, repeats: int) -> None:
    problem = case.problem()
    own = [trace(problem, seed=seed, progress=False) for seed in range(seeds)]
    with products(case) as a:
        long = krylov_trace(a.matvec, a.size, rtol=0.004, seed=1000, **a.where)
        truth = long.value
        error = rms([found.value for found in own], truth)
        spent = sorted(found.matvecs for found in own)
        covered = sum(found.low <= truth <= found.high for found in own)
        print(
            f"trace, {name}: {a.size:,} parameters; {truth:.4f}, to {long.half_width / truth:.1%}\n"
            f"  ours: {spent} products, error {error:.2%}, {covered} of {seeds} intervals cover"
        )
        chosen = {}
        for tool, estimate in estimators().items():
            for m in SETTINGS:
                theirs = rms([estimate(a, m, seed) for seed in range(seeds)], truth)
                print(f"  {tool}, {m} products: error {theirs:.2%}", flush=True)
                if theirs <= error:
                    chosen[tool] = m
                    break
    rows: dict[str, Callable[[], Any]] = {"landscape": lambda: trace(problem, progress=False)}
    operators = {"curvlinops": curvlinops_operator, "hessian-eigenthings": eigenthings_operator}
    for tool, m in chosen.items():
        make, estimate = operators[tool.split()[0]], estimators()[tool]
        rows[f"{tool}, {m} products"] = lambda e=estimate, o=make, m=m: e(o(case), m, 0)
    if peer("pyhessian"):
        samples = pyhessian_operator(case).trace(maxIter=200, tol=0.0)
        probes = math.ceil((np.std(samples, ddof=1) / truth / error) ** 2)
        rows[f"PyHessian Hutchinson, {probes} products"] = lambda: pyhessian_operator(case).trace(
            maxIter=probes, tol=0.0
        )
    compare(case, rows, repeats)


# The density


def smoothed(nodes: Any, weights: Any, grid: Any, width: float) -> Any:
    """Return Σ weight · Gaussian(t − node), nodes and weights of one run in each row."""
    kept = np.asarray(weights) > 0
    t, w = np.asarray(nodes)[kept], np.asarray(weights)[kept] / len(nodes)
    return np.exp(-0.5 * ((grid[:, None] - t) / width) ** 2) @ w / (width * math.sqrt(2 * math.pi))


@dataclasses.dataclass(frozen=True)
class Reference:
    """A density that all others are compared with, on an even grid."""

    grid: Any
    width: float
    density: Any
    mean: float

    def errors(self, density: Any) -> tuple[float, float]:
        """Return ∫|φ − φ*|, and the Wasserstein-1 distance over the mean eigenvalue."""
        step = self.grid[1] - self.grid[0]
        off = density - self.density
        moved = np.abs(np.cumsum(off)).sum() * step * step
        return float(np.abs(off).sum() * step), float(moved / abs(self.mean))


def steps_needed(a: Ours, reference: Reference) -> tuple[int, tuple[float, float]]:
    """Find after how many steps 8 runs without deflation are as good as after many."""
    options: dict[str, Any] = {"steps": STEPS[-1], "n_probes": PROBES, "seed": 77}
    rules = quadrature(a.matvec, a.size, **options, **a.where).quadrature
    found = {}
    for m in STEPS:
        parts = {k: getattr(rules, k)[:, :m] for k in ("nodes", "weights", "alphas", "betas")}
        curve = dataclasses.replace(rules, **parts).curve(reference.grid, bandwidth=reference.width)
        found[m] = reference.errors(curve.density)
    best = found[STEPS[-1]]
    m = next(m for m in STEPS if all(x <= 1.1 * y for x, y in zip(found[m], best, strict=True)))
    return m, found[m]


def densities(name: str, case: Case, seeds: int, repeats: int) -> None:
    problem = case.problem()
    own = [spectral_density(problem, seed=10 + seed, progress=False) for seed in range(seeds)]
    long = spectral_density(
        problem, n_probes=4 * PROBES, steps=80, outliers=10, seed=99, progress=False
    )
    width = own[0].bandwidth
    grid = np.arange(own[0].grid[0] - 6 * width, long.grid[-1] + 6 * width, width / 4)
    truth = smoothed_record(long, grid, width)
    reference = Reference(grid, width, truth, long.mean)
    errors = [reference.errors(smoothed_record(found, grid, width)) for found in own]
    l1, w1 = (float(np.mean(part)) for part in zip(*errors, strict=True))
    print(
        f"density, {name}: bandwidth {width:.3g}, outliers {own[0].atoms.round(3).tolist()}\n"
        f"  ours: {[f.matvecs for f in own]} products ({own[0].steps} steps), L1 {l1:.2e}, "
        f"Wasserstein {w1:.3f}"
    )
    with products(case) as a:
        m, (their_l1, their_w1) = steps_needed(a, reference)
    times = (their_w1 / w1) ** 2
    print(
        f"  theirs: {PROBES} x {m} products, L1 {their_l1:.2e}, Wasserstein {their_w1:.3f}; "
        f"times {times:.1f} for as small a Wasserstein distance"
    )
    rows: dict[str, Callable[[], Any]] = {
        "landscape": lambda: spectral_density(problem, seed=10, progress=False)
    }
    if peer("curvlinops"):
        spectrum = importlib.import_module("curvlinops.papyan2020traces.spectrum")
        rows[f"curvlinops, {PROBES} x {m} steps"] = lambda: (
            spectrum.LanczosApproximateSpectrumCached(
                curvlinops_operator(case), m
            ).approximate_spectrum(num_repeats=PROBES)
        )
    if module := peer("hessian_eigenthings"):
        rows[f"hessian-eigenthings, {PROBES} x {m} steps"] = lambda: module.spectral_density(
            eigenthings_operator(case), num_runs=PROBES, lanczos_steps=m, seed=0
        )
    if peer("pyhessian"):
        rows[f"PyHessian, {PROBES} x {m} steps"] = lambda: pyhessian_density(case, m)
    compare(case, rows, repeats)


def smoothed_record(found: Any, grid: Any, width: float) -> Any:
    """Smooth a record anew; the atoms have what the nodes leave of the mass."""
    rest, n = smoothed(found.nodes, found.weights, grid, width), len(found.atoms)
    if not n:
        return rest
    mass = 1.0 - float(np.nansum(found.weights[0]))
    return rest + smoothed(found.atoms[None], np.full((1, n), mass / n), grid, width)


def pyhessian_density(case: Case, steps: int) -> Any:
    """Run PyHessian's quadrature, with the function that torch has removed since."""

    def eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    with mock.patch.object(torch, "eig", eig, create=True):
        return pyhessian_operator(case).density(iter=steps, n_v=PROBES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6, help="of each estimate of an error")
    parser.add_argument("--repeats", type=int, default=3, help="of each timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="*", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--only", choices=("trace", "density"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads\n")
    for name in arguments.networks:
        case = trained(name)
        if arguments.only != "density":
            traces(name, case, arguments.seeds, arguments.repeats)
        if arguments.only != "trace":
            densities(name, case, min(3, arguments.seeds), arguments.repeats)
        print()


if __name__ == "__main__":
    main()
