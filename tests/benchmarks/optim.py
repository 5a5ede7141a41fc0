"""What SAM costs beyond its two gradients, on a ResNet-20 of the size used for CIFAR.

    python tests/benchmarks/optim.py [--repeats 9] [--threads 1] [--batch 32]

The first row is two forward and backward passes and one step of SGD with momentum: what SAM cannot
do without. The others do the same work as SAM: ours by hand, ours with a closure, the widely
copied loop over the parameters, and `pytorch_optimizer` where it is installed, called as its
documentation says, once as it comes and once with its joint loops over the tensors switched on.
Only the rows "statistics kept", ASAM and GSAM keep the second pass out of the running statistics.

Before anything is timed, the rows that are SAM take three steps in float64: all must reach the
same weights.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import table, timed
from torch import nn

from landscape.optim import SAM

SETTINGS = {"lr": 0.01, "momentum": 0.9}
Batch = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm and a skip connection without parameters."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.stride, self.extra = n_out // n_in, n_out - n_in
        self.first = nn.Conv2d(n_in, n_out, 3, self.stride, 1, bias=False)
        self.second = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n_out) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        skipped = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.relu(inside + skipped)


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(*pair) for pair in itertools.pairwise(widths)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class CopiedSAM(torch.optim.Optimizer):
    """The widely copied implementation: tensor by tensor, w restored by subtracting ε."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs) -> None:
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in params]), p=2)
        scale = self.param_groups[0]["rho"] / (norm + 1e-12)
        for p in params:
            epsilon = p.grad * scale.to(p)
            p.add_(epsilon)
            self.state[p]["e_w"] = epsilon
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for p in (p for g in self.param_groups for p in g["params"] if p.grad is not None):
            p.sub_(self.state[p]["e_w"])
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()


def two_gradients(model: nn.Module, batch: Batch) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), **SETTINGS)

    def step() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def by_hand(model: nn.Module, batch: Batch, *, make: Callable) -> Callable[[], None]:
    optimizer = make(model.parameters(), torch.optim.SGD, **SETTINGS)

    def step() -> None:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.second_step(zero_grad=True)

    return step


def with_closure(model: nn.Module, batch: Batch, **kwargs) -> Callable[[], None]:
    optimizer = SAM(model.parameters(), torch.optim.SGD, model=model, **SETTINGS, **kwargs)
    closure = closure_of(optimizer, model, batch)
    return lambda: optimizer.step(closure)


def peer(model: nn.Module, batch: Batch, **kwargs) -> Callable[[], None]:
    """Step `pytorch_optimizer`'s SAM, whose step() expects the gradients at w to be there."""
    make = importlib.import_module("pytorch_optimizer").SAM
    optimizer = make(model.parameters(), torch.optim.SGD, **SETTINGS, **kwargs)
    closure = closure_of(optimizer, model, batch)

    def step() -> None:
        closure()
        optimizer.step(closure)

    return step


def closure_of(optimizer: torch.optim.Optimizer, model: nn.Module, batch: Batch) -> Callable:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


SAMS: dict[str, Callable] = {
    "SAM, by hand": functools.partial(by_hand, make=SAM),
    "SAM, closure, statistics kept": with_closure,
    "the widely copied loop": functools.partial(by_hand, make=CopiedSAM),
}
PEERS: dict[str, Callable] = {
    "pytorch_optimizer": peer,
    "pytorch_optimizer, foreach=True": functools.partial(peer, foreach=True),
}
VARIANTS: dict[str, Callable] = {
    "ASAM, closure": functools.partial(with_closure, adaptive="elementwise"),
    "GSAM, closure": functools.partial(with_closure, gsam_alpha=0.4),
}


def check_that_all_do_the_same(sams: dict[str, Callable], batch: Batch) -> None:
    # In float64: in float32 a rounding error is a thousand times larger after three steps.
    reached, batch = {}, (batch[0].double(), batch[1])
    for name, prepare in sams.items():
        model = resnet20().double()
        step = prepare(model, batch)
        for _ in range(3):
            step()
        reached[name] = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    first = next(iter(reached.values()))
    start = torch.cat([p.detach().reshape(-1) for p in resnet20().double().parameters()])
    for name, weights in reached.items():
        off = ((weights - first).norm() / (first - start).norm()).item()
        if not off < 1e-6:
            raise SystemExit(f"{name!r} is {off:.1e} of the way off: it does not do the same work")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.batch, 3, 32, 32, generator=generator)
    batch = (x, torch.randint(10, (arguments.batch,), generator=generator))
    sams = dict(SAMS)
    if importlib.util.find_spec("pytorch_optimizer") is None:
        print("pytorch_optimizer is not installed: its rows are left out\n")
    else:
        sams.update(PEERS)
    check_that_all_do_the_same(sams, batch)
    prepared = {"two gradients and a step of SGD": two_gradients, **sams, **VARIANTS}
    steps = {name: prepare(resnet20(), batch) for name, prepare in prepared.items()}
    rows = {name: lambda step=step: timed(step) for name, step in steps.items()}
    table("one step on ResNet-20, 32 × 32 images", rows, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
