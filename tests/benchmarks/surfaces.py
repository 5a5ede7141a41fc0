"""What a point of a loss surface costs, over the best bare loop and over other tools.

    python tests/benchmarks/surfaces.py [--repeats 9] [--threads 1] [--networks "mlp;resnet"]

In float32, data in memory. The first table compares the engine, with the plan that it has chosen,
with the fastest bare forward loop: the best over sizes of the pieces from 64 to all and over both
memory layouts, which does nothing but forward passes at fixed weights. The second compares whole
surfaces with those of other tools, where they are installed, and with the loop of 2018, which
reads a DataLoader and loads a state dict at every point. Rows of one table are measured in turn,
over and over; the ratio is the median over the turns, with the lower and upper quartile. The third
measures a surface of 51 × 51 points with a tolerance against all of its points, for its true error,
and against the loop of 2018 over all of them, whose time is that of 25 points times 104. The last
one interpolates the 79 surfaces of `known_surfaces.py`, whose making takes half an hour; with
``--known WORD`` that is done alone, for those that have the word in their names.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from common import table, timed
from known_surfaces import N, known_surfaces
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from landscape.evaluate import Engine, Evaluator, choose_plan
from landscape.problem import Problem
from landscape.surface import random_plane
from landscape.surface._interpolation import interpolated_surface
from landscape.surface._surface import span, surface
from landscape.tasks import digits
from landscape.tasks.networks import ResNet

GRID = 5  # points along each axis of a surface
N_POINTS = 625  # of the surface that a plan is chosen for: 25 along each axis
SIZES = (64, 128, 256, 512, 1437)
# What a point takes is averaged over so many, in each turn.
SECONDS = 0.2


def images(n: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, *shape, generator=generator)
    return x, torch.randint(10, (n,), generator=generator)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "resnet": (digits.model, lambda: digits.data("train")),
    "resnet without BatchNorm": (
        lambda: ResNet(batch_norm=False),
        lambda: digits.data("train"),
    ),
    "resnet-20, 3 × 32 × 32": (
        lambda: ResNet(widths=(16, 32, 64), blocks=3, in_channels=3),
        lambda: images(256, 3, 32, 32),
    ),
    "mlp": (mlp, lambda: digits.data("train")),
}


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Gather the statistics of BatchNorm, so that folding has something to do."""
    with torch.no_grad():
        for _ in range(20):
            model.train()(x[:256])
    return model.eval()


def bare_loop(model: nn.Module, x: Tensor, y: Tensor, size: int) -> float:
    total = torch.zeros(())
    with torch.no_grad():
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            total += F.cross_entropy(model(x[part]), y[part], reduction="sum")
    return float(total) / len(x)


def best_bare_loop(
    model: nn.Module, x: Tensor, y: Tensor
) -> tuple[str, Callable[[], float], float]:
    """Find the fastest bare loop; return what it is called, the loop, and its seconds."""
    loops: dict[str, Callable[[], float]] = {}
    for size, last in product([s for s in SIZES if s <= len(x)] or [len(x)], (False, True)):
        layout = torch.channels_last if last and x.ndim == 4 else torch.contiguous_format
        own, data = copy.deepcopy(model).to(memory_format=layout), x.to(memory_format=layout)
        name = f"pieces of {size}{', channels last' if last else ''}"
        loops[name] = lambda own=own, data=data, size=size: bare_loop(own, data, y, size)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(5):
        for name, loop in loops.items():
            seconds[name].append(timed(loop))
    best = min(loops, key=lambda name: sorted(seconds[name])[2])
    return best, loops[best], sorted(seconds[best])[2]


def points(repeats: int, networks: Sequence[str]) -> None:
    for name in networks:
        torch.manual_seed(0)
        make, data = NETWORKS[name]
        x, y = data()
        model = settled(make(), x)
        best, loop, seconds = best_bare_loop(model, x, y)
        n = max(1, round(SECONDS / seconds))
        with Evaluator(Problem(model, nn.CrossEntropyLoss(), (x, y))) as evaluator:
            started = time.perf_counter()
            plan = choose_plan(evaluator, n_points=N_POINTS)
            chosen = time.perf_counter() - started
            engine, plain = Engine(evaluator, plan), Engine(evaluator)
            plane = random_plane(evaluator.problem, 0)
            vectors = [plane.at(evaluator.origin, 0.5 * i / n, 0.5 - 0.5 * i / n) for i in range(n)]

            def bare(n: int = n, loop: Callable[[], float] = loop) -> None:
                for _ in range(n):
                    loop()

            def way(engine: Engine, vectors: list[Tensor] = vectors) -> Callable[[], float]:
                return lambda: timed(lambda: engine.losses(vectors), units=len(vectors))

            rows = {
                f"best bare loop: {best}"[:42]: lambda bare=bare, n=n: timed(bare, units=n),
                "engine, plain": way(plain),
                f"engine: {plan}"[:42]: way(engine),
            }
            table(name, rows, repeats=repeats)
            pairs = zip(engine.losses(vectors), plain.losses(vectors), strict=True)
            apart = max(abs(a.value - b.value) / abs(b.value) for a, b in pairs)
        print(f"  plan: {plan}; {len(engine.folds)} BatchNorm folded")
        print(f"  largest relative difference from the plain evaluation: {apart:.1e}")
        share = chosen / (N_POINTS * seconds)
        print(f"  choosing took {chosen:.2f} s, {share:.1%} of {N_POINTS} points\n")


def classic_loop(model: nn.Module, loader: Any, plane: Any, x: Any) -> None:
    """Evaluate a surface as the code of 2018 does: load weights, read the loader, at each point."""
    origin = copy.deepcopy(model.state_dict())
    names = [name for name, _ in model.named_parameters()]
    sizes = [origin[name].numel() for name in names]
    axes = [dict(zip(names, axis.vector.split(sizes), strict=True)) for axis in (plane.x, plane.y)]
    for a, b in product(x, x):
        state = dict(origin)
        for name in names:
            shift = a * axes[0][name] + b * axes[1][name]
            state[name] = origin[name] + shift.reshape(origin[name].shape)
        model.load_state_dict(state)
        model.eval()
        total = n = 0
        with torch.no_grad():
            for inputs, targets in loader:
                total += F.cross_entropy(model(inputs), targets).item() * len(targets)
                n += len(targets)
    model.load_state_dict(origin)


def optional(name: str, module: str) -> Any:
    """Import a module of a package that may not be there, without running the package itself."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            print(f"  {name}: not installed")
            return None
        package = ModuleType(name)  # its own __init__ may need more than the module does
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = package
    try:
        return importlib.import_module(f"{name}.{module}")
    except ImportError as error:
        print(f"  {name}: not installed ({error})")
        return None


def quiet(call: Callable[[], object]) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        call()


def peers(repeats: int) -> None:
    torch.manual_seed(0)
    x, y = digits.data("train")
    model = settled(digits.model(), x)
    problem = Problem(model, nn.CrossEntropyLoss(), (x, y))
    plane, grid = random_plane(problem, 0), span(1.0, GRID)
    loader = DataLoader(TensorDataset(x, y), batch_size=128)
    n = GRID * GRID
    stack = contextlib.ExitStack()
    evaluator = stack.enter_context(Evaluator(problem))
    engine = Engine(evaluator, choose_plan(evaluator, n_points=N_POINTS))
    vectors = [plane.at(evaluator.origin, float(a), float(b)) for a, b in product(grid, grid)]

    def engine_points() -> None:
        engine.losses(vectors)

    rows: dict[str, Callable[[], float]] = {
        f"surface, {n} points": lambda: timed(
            lambda: surface(problem, plane, x=grid, y=grid, tune=True, progress=False), units=n
        ),
        f"engine, plan for {N_POINTS} points": lambda: timed(engine_points, units=n),
        "loop of 2018, batches of 128": lambda: timed(
            lambda: classic_loop(copy.deepcopy(model), loader, plane, grid), units=n
        ),
    }
    main = optional("loss_landscapes", "main")
    if main is not None:
        metric = optional("loss_landscapes", "metrics.sl_metrics").Loss(F.cross_entropy, x, y)

        def theirs() -> None:
            with torch.no_grad():
                main.random_plane(copy.deepcopy(model), metric, steps=GRID, normalization="model")

        rows["loss-landscapes, all at once"] = lambda: timed(theirs, units=n)
    compute = optional("landscaper", "compute")
    if compute is not None:
        directions = [[torch.randn_like(p) for p in model.parameters()] for _ in range(2)]

        def others() -> None:
            compute.compute_loss_landscape(
                *(copy.deepcopy(model), (x, y), directions),
                lambda net, data: float(F.cross_entropy(net(data[0]), data[1])),
                steps=GRID,
                dim=2,
                device="cpu",
            )

        rows["landscaper, all at once"] = lambda: timed(lambda: quiet(others), units=n)
    with stack:
        table("a surface of the digits ResNet, per point", rows, repeats=repeats)


def trained(epochs: int = 10) -> nn.Module:
    """Train the digits ResNet a little by plain SGD: a surface shows a minimum."""
    torch.manual_seed(0)
    x, y = digits.data("train")
    model = digits.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval()


def adaptive(tolerance: float = 1e-3, n: int = 51) -> None:
    x, y = digits.data("train")
    model = trained()
    problem = Problem(model, nn.CrossEntropyLoss(), (x, y))
    plane, grid = random_plane(problem, 0), span(1.0, n)
    loader = DataLoader(TensorDataset(x, y), batch_size=128)

    def classic() -> float:
        few = span(1.0, GRID)
        return timed(lambda: classic_loop(copy.deepcopy(model), loader, plane, few), units=GRID**2)

    before = classic()
    started = time.perf_counter()
    few = surface(problem, plane, x=grid, y=grid, tolerance=tolerance, tune=True, progress=False)
    between = time.perf_counter()
    full = surface(problem, plane, x=grid, y=grid, tune=True, progress=False)
    ended = time.perf_counter()
    per_point = (before + classic()) / 2
    measured = int(few.is_measured.sum())
    error = abs(few.loss - full.loss).max() / (full.loss.max() - full.loss.min())
    seconds = {
        f"{measured} points, tolerance {tolerance:g}": between - started,
        f"all {n * n} points": ended - between,
        f"loop of 2018, all {n * n} points": per_point * n * n,
    }
    print(f"{'a surface of 51 × 51 points':44s} {'s':>9s} {'ratio':>7s}")
    for name, spent in seconds.items():
        print(f"  {name:42s} {spent:9.1f} {spent / (between - started):7.1f}")
    print(f"  {n * n / measured:.1f} times fewer points; evaluated: {few.engine}")
    print(f"  error that is stated: {few.interpolation_error:.2e} of the range, true: {error:.2e}")


def within_tolerance(only: str) -> None:
    """Interpolate known surfaces: the true error, and the points that it takes."""
    print(f"{'interpolated surfaces, errors over the tolerance':54s} points   true  stated")
    counts: dict[bool, list[int]] = {False: [], True: []}
    exceeded = 0
    for known in known_surfaces():
        if only not in known.name:
            continue
        x, true = known.make()
        found = interpolated_surface(
            x,
            x,
            lambda points, true=true: [float(true[point]) for point in points],
            tolerance=known.tolerance,
            criterion=known.criterion,
        )
        error, n = known.error_of(found.loss, true) / known.tolerance, int(found.measured.sum())
        counts[known.is_new].append(n)
        exceeded += error > 1
        name = f"{known.name}{', new' if known.is_new else ''}"
        print(f"  {name:52s} {n:6d} {error:6.2f} {found.error / known.tolerance:7.2f}", flush=True)
    for is_new, numbers in counts.items():
        if numbers:
            which = "new" if is_new else "old"
            print(f"  {len(numbers)} {which} surfaces: {sum(numbers) / len(numbers):.0f} of {N**2}")
    print(f"  true error above the tolerance: {exceeded}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", default="all")
    parser.add_argument("--known", default=None, metavar="WORD", help="only these known surfaces")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.repeats} turns\n")
    if arguments.known is not None:
        within_tolerance(arguments.known)
        return
    asked = arguments.networks.split(";")
    points(arguments.repeats, [n for n in NETWORKS if asked == ["all"] or n in asked])
    peers(arguments.repeats)
    adaptive()
    within_tolerance("")


if __name__ == "__main__":
    main()
