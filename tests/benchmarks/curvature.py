"""Top eigenpairs and Hessian-vector products against other tools, in one process, in turn.

    python tests/benchmarks/curvature.py [--repeats 3] [--turns 9] [--threads 1]
        [--only hvp|eigs|layers] [--network 0 …]

The other tools are optional and stay out of the environment; torch is not touched:

    python -m pip install --no-deps --target peers pyhessian hessian-eigenthings \\
        curvlinops-for-pytorch einops einconv backpack-for-pytorch linear_operator
    PYTHONPATH=peers python tests/benchmarks/curvature.py

Eigenpairs: five small networks, trained a little with a fixed seed (`networks`), in float32 with
all their data in one batch. Each tool seeks the five largest eigenpairs by its public interface.
What it finds is judged by a double backward pass of its own, which no tool counts: done means
‖Hv − θv‖ ≤ 1e-4 λ₁ for all five pairs, with unit vectors, and values that are the true five. The
settings of a tool are tried from loose to tight until that holds, and only the run that succeeded
is timed, in turn with the others. The time is that of everything from the model and the data to
the pairs. The settings of the peers are thus chosen with hindsight.

Ours includes the test for noise and symmetry, verified residuals, the search for missed
eigenvalues and the error over the data; no other tool here has one of them. "Residuals only" is
ours without the rest, "bare" is Lanczos alone, which knows when to stop, on our products.
curvlinops is spared its own test of the data.

Layers: the largest eigenpair of each layer's block, by `eigenpairs_by_layer` and by
`top_eigenpairs` of one layer after the other; of at most ten layers, evenly spread, where a network
has more.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import bare_gradient, table, timed
from networks import NETWORKS, Network, trained
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from landscape.curvature._eigenpairs import eigenpairs_by_layer, top_eigenpairs
from landscape.evaluate import Evaluator
from landscape.linalg import lanczos
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.tasks import digits
from landscape.tasks.networks import ResNet

K, TOL = 5, 1e-4
SLOW = 60.0  # seconds; what takes longer is measured once
BLOCK = 8  # vectors at once
# What pip has to be given for each module; torch, NumPy, SciPy and tqdm are there.
PEERS = {
    "pyhessian": "pyhessian",
    "hessian_eigenthings": "hessian-eigenthings",
    "curvlinops": "curvlinops-for-pytorch einops einconv backpack-for-pytorch linear_operator",
}
EIGSH = {f"tol={tol:g}": {"tol": tol} for tol in (1e-2, 1e-3, 1e-4, 1e-5)}
STEPS = {f"max_iter={m}": {"max_iter": m} for m in (15, 17, 20, 25, 30, 40, 50)}
STEPS |= {
    f"max_iter={m}, reorthogonalize": {"max_iter": m, "reorthogonalize": True} for m in (80, 120)
}
# A tolerance of 0 is never met: so many products for each pair, as float32 ends the others early.
POWER = {
    f"maxIter={n}, tol={tol:g}": {"maxIter": n, "tol": tol}
    for n, tol in (
        (100, 1e-3),
        (300, 1e-5),
        (300, 1e-6),
        (300, 1e-7),
        (40, 0.0),
        (60, 0.0),
        (120, 0.0),
    )
}


@dataclass(frozen=True)
class Case:
    """A model, a loss and one batch; what is measured may leave traces, which `restore` removes."""

    model: nn.Module
    x: Tensor
    y: Tensor
    loss: nn.Module = field(default_factory=nn.CrossEntropyLoss)

    def __post_init__(self) -> None:
        self.model.eval()
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        object.__setattr__(self, "_state", state)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.x, self.y)]

    def problem(self) -> Problem:
        return Problem(self.model, self.loss, (self.x, self.y), batch_size=len(self.y))

    def restore(self) -> None:
        self.model.load_state_dict(self._state)
        self.model.eval().requires_grad_(True).zero_grad(set_to_none=True)
        torch.manual_seed(0)


@dataclass(frozen=True)
class Found:
    """What a tool returned: values in descending order, one vector in each row, products."""

    values: np.ndarray
    vectors: Tensor
    products: int


@dataclass(frozen=True)
class Tool:
    """Something that finds eigenpairs, and the settings to try, from loose to tight."""

    name: str
    solve: Callable[..., Found]
    settings: Mapping[str, Mapping[str, Any]]
    distribution: str = "landscape"
    remark: str = ""

    @property
    def version(self) -> str:
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return "here"


class Counted:
    """A function that knows how often it was called."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.calls = 0
        self._call = call

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return self._call(*arguments, **options)


@functools.cache
def peer(name: str) -> ModuleType | None:
    """Import another tool; where that fails, say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        command = f"python -m pip install --no-deps --target peers {PEERS[name]}"
        print(f"{name} is skipped ({error}): {command}")
        return None


def descending(values: Any, vectors: Tensor, products: int) -> Found:
    values = np.asarray(values, dtype=np.float64)
    order = np.argsort(-values)
    return Found(values[order], vectors.detach()[torch.from_numpy(order)], products)


# Eigenpairs, tool by tool


def ours(case: Case, **options: Any) -> Found:
    found = top_eigenpairs(case.problem(), K, tol=TOL, progress=False, **options)
    return Found(found.values, torch.as_tensor(found.vectors), found.cost.hvps)


def bare_lanczos(case: Case) -> Found:
    with Evaluator(case.problem()) as evaluator:
        operator = Hessian(evaluator)
        where = {"dtype": operator.dtype, "device": operator.device}
        found = lanczos(operator.matvec, operator.n, k=K, tol=TOL, failure_probability=1.0, **where)
    return Found(found.values, found.vectors, found.matvecs - 1)  # one product verifies


def scipy_on(operator: LinearOperator, tol: float) -> Found:
    product = Counted(operator.matvec)
    counted = LinearOperator(operator.shape, matvec=product, dtype=operator.dtype)
    start = np.random.default_rng(0).standard_normal(operator.shape[0])
    values, vectors = eigsh(counted, k=K, which="LA", tol=tol, v0=start.astype(operator.dtype))
    return descending(values, torch.from_numpy(vectors.T.copy()), product.calls)


def our_operator_with_scipy(case: Case, tol: float) -> Found:
    with Evaluator(case.problem()) as evaluator:
        return scipy_on(Hessian(evaluator).to_scipy(), tol)


def curvlinops_operator(case: Case) -> Any:
    return importlib.import_module("curvlinops").HessianLinearOperator(
        case.model, case.loss, case.parameters, case.batches, check_deterministic=False
    )


def curvlinops_with_scipy(case: Case, tol: float) -> Found:
    return scipy_on(curvlinops_operator(case).to_scipy(), tol)


def eigenthings_operator(case: Case) -> Any:
    return importlib.import_module("hessian_eigenthings").HessianOperator(
        case.model, case.batches, lambda model, batch: case.loss(model(batch[0]), batch[1])
    )


def eigenthings(case: Case, **settings: Any) -> Found:
    operator = eigenthings_operator(case)
    operator.matvec = product = Counted(operator.matvec)
    found = importlib.import_module("hessian_eigenthings").lanczos(
        operator, k=K, which="LA", tol=TOL, seed=0, **settings
    )
    return descending(found.eigenvalues, found.eigenvectors, product.calls)


def pyhessian_operator(case: Case) -> Any:
    module = importlib.import_module("pyhessian.hessian")
    return module.hessian(case.model, case.loss, data=(case.x, case.y), cuda=False)


def pyhessian(case: Case, **settings: Any) -> Found:
    module = importlib.import_module("pyhessian.hessian")
    product = Counted(module.hessian_vector_product)
    with mock.patch.object(module, "hessian_vector_product", product):
        values, vectors = pyhessian_operator(case).eigenvalues(top_n=K, **settings)
    rows = [torch.cat([part.reshape(-1) for part in vector]) for vector in vectors]
    return descending(values, torch.stack(rows), product.calls)


def tools(without: Sequence[str]) -> list[Tool]:
    listed = [
        Tool("landscape, full evidence", ours, {"": {}}),
        Tool("landscape, residuals only", ours, {"": {"evidence": "residuals"}}),
        Tool("landscape, bare Lanczos", bare_lanczos, {"": {}}),
        Tool("SciPy eigsh on our Hessian", our_operator_with_scipy, EIGSH, "scipy"),
    ]
    listed = [tool for tool in listed if not any(word in tool.name for word in without)]
    if "curvlinops" not in without and peer("curvlinops"):
        listed.append(
            Tool("curvlinops, SciPy eigsh", curvlinops_with_scipy, EIGSH, "curvlinops-for-pytorch")
        )
    if "eigenthings" not in without and peer("hessian_eigenthings"):
        name = "hessian-eigenthings"
        listed.append(Tool(f"{name}, fewest steps", eigenthings, STEPS, name))
    if "PyHessian" not in without and peer("pyhessian"):
        listed.append(Tool("PyHessian, power iteration", pyhessian, POWER, "PyHessian"))
    return listed


# Judging them


class Judge:
    """Residuals by a product that belongs to no tool, and the true values by that product."""

    def __init__(self, case: Case) -> None:
        # A copy, as restoring the weights would invalidate the graph that is kept here.
        model = copy.deepcopy(case.model)
        self._parameters = list(model.parameters())
        loss = case.loss(model(case.x), case.y)
        self._gradient = torch.autograd.grad(loss, self._parameters, create_graph=True)
        n = sum(p.numel() for p in self._parameters)
        operator = LinearOperator(
            (n, n), matvec=lambda v: self._product(torch.from_numpy(v)).numpy(), dtype=np.float64
        )
        start = np.random.default_rng(1).standard_normal(n)
        # The values are off by about the square of the residuals.
        values = eigsh(operator, k=K, ncv=30, tol=1e-3, v0=start, return_eigenvectors=False)
        self.values = np.sort(values)[::-1]

    def _product(self, vector: Tensor) -> Tensor:
        flat = vector.reshape(-1).to(torch.float32)
        parts = [
            part.reshape(p.shape)
            for part, p in zip(
                flat.split([p.numel() for p in self._parameters]), self._parameters, strict=True
            )
        ]
        product = torch.autograd.grad(self._gradient, self._parameters, parts, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in product])

    def residual(self, found: Found) -> float:
        """Return the largest ‖Hv − θv‖ over λ₁."""
        worst = 0.0
        for value, vector in zip(found.values, found.vectors, strict=True):
            unit = vector.double() / vector.double().norm()
            rest = self._product(unit).double() - float(value) * unit
            worst = max(worst, float(rest.norm()))
        return worst / float(self.values[0])

    def are_true(self, found: Found) -> bool:
        """Tell whether the values are the five largest, each as often as it occurs."""
        return bool(np.abs(found.values - self.values).max() <= 2 * TOL * self.values[0])


@dataclass
class Outcome:
    """The first setting of a tool that met the tolerance, or the best one."""

    tool: Tool
    setting: str
    found: Found
    residual: float
    met: bool
    seconds: list[float]

    def line(self, base: float) -> str:
        seconds = statistics.median(self.seconds)
        residual = f"{self.residual:.1e}" if self.met else f"not reached: {self.residual:.0e}"
        spread = f"{min(self.seconds) / base:.2f} to {max(self.seconds) / base:.2f}"
        remarks = [self.setting, f"ratios {spread}, runs: {len(self.seconds)}", self.tool.remark]
        return (
            f"  {self.tool.name:38s} {self.tool.version:>8s} {seconds:8.2f} {seconds / base:6.2f} "
            f"{self.found.products:5d}  {residual:20s} {'; '.join(r for r in remarks if r)}"
        )


def run(case: Case, tool: Tool, setting: str) -> tuple[float, Found]:
    case.restore()
    started = time.perf_counter()
    found = tool.solve(case, **tool.settings[setting])
    seconds = time.perf_counter() - started
    case.restore()
    return seconds, found


def tried(case: Case, judge: Judge, tool: Tool) -> Outcome | None:
    """Try the settings of a tool until one will do; None where it cannot take the network."""
    best: Outcome | None = None
    for setting in tool.settings:
        try:
            seconds, found = run(case, tool, setting)
        except (NotImplementedError, RuntimeError) as error:
            print(f"  {tool.name} cannot: {str(error).splitlines()[0]}")
            return None
        residual, true = judge.residual(found), judge.are_true(found)
        met = residual <= TOL and true
        says = "" if true else f"; not the five largest: {found.values.round(4).tolist()}"
        print(
            f"  {tool.name}, {setting}: {seconds:.1f} s, {found.products} products, "
            f"residual {residual:.1e}{says}",
            flush=True,
        )
        if best is None or met or residual < best.residual:
            best = Outcome(tool, setting, found, residual, met, [seconds])
        if met:
            break
    return best


def eigenpairs(network: Network, repeats: int, without: Sequence[str]) -> None:
    started = time.perf_counter()
    case = Case(*trained(network))
    judge = Judge(case)
    print(
        f"eigenpairs: {network.name}, {sum(p.numel() for p in case.parameters):,} parameters; "
        f"{time.perf_counter() - started:.0f} s to set up\n"
        f"true values {judge.values.round(4).tolist()}; settings tried:"
    )
    outcomes = [each for tool in tools(without) if (each := tried(case, judge, tool))]
    again = [each for each in outcomes if each.met and each.seconds[0] <= SLOW]
    for _ in range(repeats - 1):
        for each in again:
            each.seconds.append(run(case, each.tool, each.setting)[0])
    base = statistics.median(outcomes[0].seconds)
    columns = f"{'version':>8s} {'seconds':>8s} {'ratio':>6s} {'HVPs':>5s}  verified residual"
    print(f"\n  {'':38s} {columns}")
    for each in outcomes:
        print(each.line(base))
    spent = {each.tool.name: each.found.products for each in outcomes}
    if "landscape, bare Lanczos" in spent:
        ratio = spent["landscape, full evidence"] / spent["landscape, bare Lanczos"]
        print(f"  products with all evidence over bare Lanczos: {ratio:.2f}\n", flush=True)


# Eigenpairs of each layer


def layers(network: Network, repeats: int) -> None:
    case, pairs = Case(*trained(network)), list[tuple[float, float]]()
    chosen = list(case.problem().space.layers())
    chosen = chosen[:: -(-len(chosen) // 10)]

    def one_after_the_other() -> None:
        problem = case.problem()
        for layer in chosen:
            top_eigenpairs(problem.only(layer), 1, progress=False)

    def together() -> None:
        eigenpairs_by_layer(case.problem().only(*chosen), 1, progress=False)

    for _ in range(repeats):
        pairs.append((timed(one_after_the_other), timed(together)))
        case.restore()
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [one / other for one, other in pairs]
    print(
        f"layers: {network.name}, {len(chosen)} of them: {before:.2f} s one after the other, "
        f"{after:.2f} s together, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}, runs: {repeats})",
        flush=True,
    )


# Hessian-vector products


def cifar_case() -> Case:
    """Return ResNet-20 for 32 × 32 images, with random ones in a batch of 64."""
    torch.manual_seed(0)
    model = ResNet((16, 32, 64), 3, in_channels=3)
    return Case(model, torch.randn(64, 3, 32, 32), torch.randint(10, (64,)))


def peer_products(case: Case, vector: Tensor) -> dict[str, Callable[[], float]]:
    rows: dict[str, Callable[[], float]] = {}
    if peer("curvlinops"):
        theirs = curvlinops_operator(case)
        rows["curvlinops"] = lambda: timed(lambda: theirs @ vector)
    if peer("hessian_eigenthings"):
        thing = eigenthings_operator(case)
        rows["hessian-eigenthings"] = lambda: timed(lambda: thing.matvec(vector))
    if module := peer("pyhessian"):
        kept = pyhessian_operator(case)
        sizes = [p.numel() for p in kept.params]
        parts = [
            part.reshape(p.shape) for part, p in zip(vector.split(sizes), kept.params, strict=True)
        ]
        rows["PyHessian, graph kept"] = lambda: timed(
            lambda: module.hessian_vector_product(kept.gradsH, kept.params, parts)
        )
    return rows


def products(name: str, case: Case, turns: int) -> None:
    case.restore()
    problem = case.problem()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(BLOCK, problem.space.n, generator=generator)
    with Evaluator(problem) as evaluator:
        kept = Hessian(evaluator)
        double = Hessian(evaluator, graph_bytes=0, products="double-backward")
        auto = Hessian(evaluator, graph_bytes=0)
        rows = {
            "bare gradient": lambda: timed(lambda: bare_gradient(case.model, case.batches)),
            "gradient": lambda: timed(evaluator.gradient),
            "HVP, graph kept": lambda: timed(lambda: kept.matvec(vectors[0])),
            f"HVP, graph kept, {BLOCK} at once": lambda: timed(
                lambda: kept.matmat(vectors), units=BLOCK
            ),
            "HVP, double backward anew": lambda: timed(lambda: double.matvec(vectors[0])),
            "HVP, anew, the way that is faster": lambda: timed(lambda: auto.matvec(vectors[0])),
            **peer_products(case, vectors[0]),
        }
        table(f"products: {name}", rows, repeats=turns)
        print(f"  the way that is faster: {auto.describe()}\n")
    case.restore()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="of each search for eigenpairs")
    parser.add_argument("--turns", type=int, default=9, help="of each product, at least 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", type=int, nargs="*", default=range(len(NETWORKS)))
    parser.add_argument("--only", choices=("hvp", "eigs", "layers"))
    parser.add_argument("--without", nargs="*", default=(), help="eigenthings PyHessian …")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads\n")
    if arguments.only in {None, "hvp"}:
        torch.manual_seed(0)
        digits_case = Case(digits.model(), *digits.data("train"))
        products("digits ResNet, 1,437 images", digits_case, arguments.turns)
        products("ResNet-20, 64 images of 32 × 32", cifar_case(), arguments.turns)
    if arguments.only in {None, "eigs"}:
        for index in arguments.network:
            eigenpairs(NETWORKS[index], arguments.repeats, arguments.without)
    if arguments.only in {None, "layers"}:
        for index in arguments.network:
            layers(NETWORKS[index], arguments.repeats)


if __name__ == "__main__":
    main()
