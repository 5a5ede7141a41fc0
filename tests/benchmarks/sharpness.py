"""Our search for the largest rise in a ball, against 20 steps of Auto-PGD.

    python tests/benchmarks/sharpness.py [--threads 1] [--examples 64] [--seed 0] [--only ResNet]
    python tests/benchmarks/sharpness.py --examples 1200 --skip ResNet

Both: what holds on 64 examples need not hold on many, where basins lie differently.

Six models (a ResNet and an MLP on digits, a transformer on toy sequences; each as drawn and after
some training), each in four balls (p = 2 and ∞, plain and elementwise adaptive) of four radii.
Printed for each model and ball, over the radii:

- ours / Auto-PGD: smallest and median ratio of the values found; never below 0.999.
- to reach: gradient passes until our value was 0.999 of Auto-PGD's, over its 21; a Hessian-vector
  product counts as two.
- in all: gradient passes of our whole search, which goes on until its gap is met.
- checked: the same with the check of the second-order condition (p = 2).
- one step / ours: what SAM's estimate sees of the rise that there is.

Below that the share of the cases in which the first two starts agree, medians by model, and how
many cases lie below Auto-PGD: the exit status is 1 if any does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.evaluate import Evaluator
from landscape.problem import Problem
from landscape.sharpness._auto_pgd import auto_pgd
from landscape.sharpness._ball import Ball
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._search import Search
from landscape.sharpness._worst_case import check_second_order
from landscape.tasks import digits

RADII = (0.005, 0.02, 0.05, 0.1)  # relative to the weights
BALLS = ((2.0, "none"), (math.inf, "none"), (2.0, "elementwise"), (math.inf, "elementwise"))
ENOUGH = 0.999
HVP = 2  # gradient passes


class Transformer(nn.Module):
    """One layer of attention over sequences of ten tokens out of twelve."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.place = nn.Parameter(0.1 * torch.randn(10, 16))
        # Two heads written out: the fused kernels have no second derivative everywhere.
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, 8)).movedim(2, 0).transpose(2, 3)
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norms[1](x))
        return self.head(x.mean(1))


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def models(n: int, seed: int = 0) -> dict[str, Problem]:
    """Make each model as drawn and trained, on n examples from the ``seed``-th n on, cyclically."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 12, (n, 10), generator=generator)
    sequences = (tokens, (tokens[:, 0] + tokens[:, 5]) % 4)
    images, classes = (part.roll(-seed * n, 0)[:n] for part in digits.data("train"))
    made = {}
    for steps, state in ((0, "untrained"), (30, "trained")):
        torch.manual_seed(seed)
        mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
        for name, model, (x, y) in (
            ("ResNet", digits.model(), (images, classes)),
            ("MLP", mlp, (images, classes)),
            ("transformer", Transformer(), sequences),
        ):
            train(model, x, y, steps)
            made[f"{name}, {state}"] = Problem(model, nn.CrossEntropyLoss(), (x, y))
    return made


@dataclass(frozen=True)
class Case:
    """One ball: ratio of the values, and costs over that of Auto-PGD."""

    value: float
    to_reach: float
    in_all: float
    checked: float
    one_step: float
    n_starts: int


def measure(problem: Problem, relative: float, p: float, adaptive: str) -> Case:
    with Evaluator(problem) as evaluator:
        origin = BallObjective(evaluator, Ball(1.0, p, adaptive))
        weights = problem.weights if adaptive == "none" else torch.ones(origin.n_free)
        rho = relative * float(weights.norm()) * origin.n_free ** (1 / p - 0.5)
        ball = Ball(rho, p, adaptive)
        published, rises = auto_pgd(origin.objective, ball, origin.point)
        theirs, price = published.value, 1 + len(rises)
        evaluator.passes |= {"gradients": 1, "hvps": 0}
        spent: list[tuple[float, float]] = []
        rise = origin.objective

        def watched(d: Tensor) -> tuple[float, Tensor]:
            found = rise(d)
            passes = evaluator.passes["gradients"] + HVP * evaluator.passes["hvps"]
            spent.append((found[0], passes))
            return found

        origin.objective = watched
        search = Search(origin, ball)
        search.explore()
        search.polish()
        in_all = evaluator.passes["gradients"] + HVP * evaluator.passes["hvps"]
        value, n_starts = search.best.value, len(search.climbs)
        check_second_order(search)
        checked = evaluator.passes["gradients"] + HVP * evaluator.passes["hvps"]
        reached = [cost for value, cost in spent if value >= ENOUGH * theirs]
        return Case(
            value=value / theirs if theirs > 0 else math.inf,
            to_reach=(reached[0] if reached else math.inf) / price,
            in_all=in_all,
            checked=checked,
            one_step=search.one_step / value,
            n_starts=n_starts,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of models and data")
    parser.add_argument("--only", default="", help="models with this in their name")
    parser.add_argument("--skip", help="leave out models with this in their name")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    heads = ("least", "median", "to reach", "in all", "checked", "one step")
    print(f"{'':44s}" + "".join(f"{head:>10s}" for head in heads))
    cases: list[Case] = []
    by_model: dict[str, list[Case]] = {}
    for name, problem in models(arguments.examples, arguments.seed).items():
        if arguments.only not in name or (arguments.skip and arguments.skip in name):
            continue
        for p, adaptive in BALLS:
            row = [measure(problem, relative, p, adaptive) for relative in RADII]
            scale = "" if adaptive == "none" else ", adaptive"
            show(f"{name}, p = {p:g}{scale}", row)
            cases += row
            by_model.setdefault(name.split(",")[0], []).extend(row)
    for name, own in by_model.items():
        show(name, own)
    show(f"all {len(cases)} cases", cases)
    agreed = sum(case.n_starts == 2 for case in cases)
    print(f"\nthe first two starts agree in {agreed} of {len(cases)} cases")
    below = [case for case in cases if case.value < ENOUGH]
    print(f"below {ENOUGH} of Auto-PGD: {len(below)} of {len(cases)} cases")
    sys.exit(bool(below))


def show(label: str, row: list[Case]) -> None:
    middles = [
        statistics.median(getattr(case, name) for case in row)
        for name in ("value", "to_reach", "in_all", "checked", "one_step")
    ]
    numbers = (min(case.value for case in row), *middles)
    print(f"{label:44s}" + "".join(f"{number:10.3f}" for number in numbers), flush=True)


if __name__ == "__main__":
    main()
