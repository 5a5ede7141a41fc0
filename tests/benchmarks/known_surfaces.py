"""Surfaces known at every point of their grid, to test interpolated ones against.

79 surfaces of 51 × 51 points. The first 39 are of the kind that the settings of
`landscape.surface._interpolation` were first chosen on: digits networks, valleys and kinked sums,
the trained ResNet of `surfaces.py` among them. The other 40 are of other networks, planes and
seeds: sharp valleys, walls of cross-entropy, kinks of ReLU, regions that are not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.problem import Problem
from landscape.sharpness._worst_case import sharpness
from landscape.surface import (
    Plane,
    eigenvector_plane,
    plane_through,
    random_direction,
    random_plane,
    worst_case_plane,
)
from landscape.surface._surface import span, surface
from landscape.tasks import PROBLEMS, digits, mnist1d
from landscape.tasks.networks import ResNet, mlp

N = 51
Floats = npt.NDArray[np.float64]
Field = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True)
class Known:
    """A surface with all of its points.

    Attributes:
        name: what it is.
        is_new: whether it is one of the 40 others.
        make: returns the coordinates, the same along both axes, and the losses, shape (51, 51).
        tolerance: that is asked for.
        criterion: what it is relative to.
    """

    name: str
    is_new: bool
    make: Callable[[], tuple[Floats, Floats]]
    tolerance: float = 1e-3
    criterion: str = "range"

    def error_of(self, drawn: Floats, true: Floats) -> float:
        """Return the largest error, in units of the criterion; inf where finite and not differ."""
        finite = np.isfinite(true)
        if not np.array_equal(finite, np.isfinite(drawn)):
            return float("inf")
        if self.criterion == "log":
            return float(np.abs(np.log(drawn[finite] / true[finite])).max())
        return float(np.abs(drawn - true)[finite].max() / np.ptp(true[finite]))


def known_surfaces() -> Iterator[Known]:
    """List them, the fast ones first in each half."""
    for name, field, options in valleys():
        yield Known(name, False, of_field(field), **options)
    for seed in range(10):
        yield Known(f"kinked sum {seed}", False, of_field(kinked(seed, 4 + 3 * seed)), 2e-3)
    yield from of_digits()
    for name, field, options in sharper():
        yield Known(name, True, of_field(field), **options)
    yield from of_networks()


# -- closed forms ----------------------------------------------------------------------------------


def of_field(field: Field, half_width: float = 1.0) -> Callable[[], tuple[Floats, Floats]]:
    def make() -> tuple[Floats, Floats]:
        x = span(half_width, N)
        with np.errstate(all="ignore"):
            return x, np.asarray(field(*np.meshgrid(x, x, indexing="ij")), dtype=np.float64)

    return make


def valleys() -> list[tuple[str, Field, dict[str, object]]]:
    log: dict[str, object] = {"criterion": "log", "tolerance": 0.05}
    return [
        ("soft valley", lambda x, y: 0.02 + np.logaddexp(0, 6 * (x + y**2 - 1)) + 0.3 * x**2, {}),
        ("bent valley", lambda x, y: 0.01 + (1 - x) ** 2 + 10 * (y - x**2) ** 2, {}),
        ("cone", lambda x, y: 0.01 + np.hypot(x, y), {}),
        ("saturated", lambda x, y: 2.3 - 2.2 * np.exp(-4 * (x**2 + x * y + y**2)), {}),
        ("narrow valley", lambda x, y: 0.05 + 50 * (y - 0.3 * x) ** 2 + x**2, {}),
        ("edge valley", lambda x, y: np.abs(x + 0.4 * y) + 0.2 * y**2 + 0.01, {"tolerance": 2e-3}),
        ("soft valley, log", lambda x, y: 0.02 + np.logaddexp(0, 6 * (x + y**2 - 1)), log),
        ("bent valley, log", lambda x, y: 0.01 + (1 - x) ** 2 + 10 * (y - x**2) ** 2, log),
        ("narrow valley, log", lambda x, y: 0.05 + 50 * (y - 0.3 * x) ** 2 + x**2, log),
        ("cone, log", lambda x, y: 0.02 + np.hypot(x, y), log),
        ("two minima", lambda x, y: 1 - 0.8 * bump(x, y, -0.4, 0.2) - 0.6 * bump(x, y, 0.5, 0), {}),
        ("ripples", lambda x, y: x**2 + y**2 + 0.1 * np.sin(6 * x) * np.cos(5 * y), {}),
    ]


def bump(x: Floats, y: Floats, a: float, b: float, width: float = 0.3) -> Floats:
    return np.exp(-((x - a) ** 2 + (y - b) ** 2) / width**2)


def kinked(seed: int, n: int) -> Field:
    """Sum n rectified planes of random directions, squared by halves: a ReLU layer's mean."""
    generator = np.random.RandomState(seed)
    planes = generator.randn(n, 3) * [1.0, 1.0, 0.5]

    def field(x: Floats, y: Floats) -> Floats:
        terms = [np.maximum(a * x + b * y + c, 0.0) for a, b, c in planes]
        return 0.05 + sum(terms) / n + 0.2 * (x**2 + y**2)

    return field


def sharper() -> list[tuple[str, Field, dict[str, object]]]:
    log: dict[str, object] = {"criterion": "log", "tolerance": 0.05}

    def wall(x: Floats, y: Floats) -> Floats:
        return 0.02 + np.logaddexp(0, 30 * (x + 0.5 * y - 0.6)) / 10

    def spike(x: Floats, y: Floats) -> Floats:
        return x**2 + 0.5 * y**2 + 0.5 * bump(x, y, 0.43, -0.31, 0.12)

    def step(x: Floats, y: Floats) -> Floats:
        return np.tanh(12 * (x - 0.3 * np.sin(3 * y))) + 0.3 * y**2

    def crease(x: Floats, y: Floats) -> Floats:
        return np.maximum(x**2 + 0.1 * y, np.abs(y - 0.5 * x) - 0.1)

    def outside(field: Field, region: Field, bad: float) -> Field:
        return lambda x, y: np.where(region(x, y) > 0, bad, field(x, y))

    def soft(x: Floats, y: Floats) -> Floats:
        return 0.02 + np.logaddexp(0, 6 * (x + y**2 - 1)) + 0.3 * x**2

    return [
        ("cross-entropy wall", wall, {}),
        ("cross-entropy wall, log", wall, log),
        ("narrow bump on a bowl", spike, {}),
        ("curved step", step, {"tolerance": 5e-3}),
        ("crease", crease, {"tolerance": 2e-3}),
        ("sharp valley", lambda x, y: 0.01 + np.sqrt(1e-3 + (x - y**2) ** 2), {"tolerance": 2e-3}),
        ("sharp valley, log", lambda x, y: 0.02 + np.sqrt(1e-3 + (x - y**2) ** 2), log),
        ("exponential wall", lambda x, y: np.exp(8 * x + 2 * y**2) + 0.1, {}),
        ("exponential wall, log", lambda x, y: np.exp(5 * x + 2 * y**2) + 0.1 + y**2, log),
        ("NaN half", outside(soft, lambda x, y: x + y - 0.9, np.nan), {"tolerance": 5e-3}),
        ("infinite disc", outside(soft, lambda x, y: 0.2 - np.hypot(x - 0.5, y), np.inf), {}),
        ("NaN in a corner", outside(spike, lambda x, y: x * y - 0.6, np.nan), {"tolerance": 2e-3}),
        ("logarithm", lambda x, y: 0.3 - np.log(0.8 - x) + 0.5 * y**2, {"tolerance": 5e-3}),
        *((f"kinked sum {s}", kinked(s, n), {"tolerance": 2e-3}) for s, n in _SUMS),
    ]


_SUMS = ((100, 3), (101, 6), (102, 12), (103, 25), (104, 60))

# -- networks --------------------------------------------------------------------------------------


def trained(
    model: nn.Module, data: tuple[Tensor, Tensor], *, epochs: int, lr: float, seed: int = 0
) -> Problem:
    """Train a little by plain SGD: a surface shows a minimum."""
    x, y = data
    loss = F.cross_entropy if y.dtype == torch.int64 else F.mse_loss
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            loss(model(x[part]), y[part]).backward()
            optimizer.step()
    module = nn.CrossEntropyLoss() if y.dtype == torch.int64 else nn.MSELoss()
    return Problem(model.eval(), module, data)


def built(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def of_problem(
    problem: Callable[[], Problem],
    plane: Callable[[Problem], Plane],
    half_width: float = 1.0,
) -> Callable[[], tuple[Floats, Floats]]:
    def make() -> tuple[Floats, Floats]:
        x, own = span(half_width, N), problem()
        return x, surface(own, plane(own), x=x, y=x, progress=False).loss

    return make


def of_digits() -> Iterator[Known]:
    """Digits networks along filter-normalised random directions."""
    train, test = digits.data("train"), digits.data("test")
    networks: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, Tensor], float]] = {
        "digits MLP": (PROBLEMS["digits-mlp"][1], train, 0.05),
        "digits transformer": (PROBLEMS["digits-transformer"][1], test, 0.02),
        "digits ResNet, narrow": (lambda: ResNet(widths=(4, 8)), test, 0.1),
    }
    for name, (make, data, lr) in networks.items():
        for seed, epochs, reach, criterion in _RUNS[name]:
            yield Known(
                f"{name}, seed {seed}, ±{reach}, {criterion}",
                False,
                of_problem(
                    lambda make=make, data=data, lr=lr, seed=seed, epochs=epochs: trained(
                        built(make, seed), data, epochs=epochs, lr=lr, seed=seed
                    ),
                    lambda problem, seed=seed: random_plane(problem, seed),
                    reach,
                ),
                1e-3 if criterion == "range" else 0.05,
                criterion,
            )
    yield Known("digits ResNet", False, of_problem(trained_resnet, lambda p: random_plane(p, 0)))


_RUNS = {
    "digits MLP": (
        (0, 10, 1.0, "range"),
        (1, 20, 1.0, "range"),
        (2, 20, 0.5, "range"),
        (3, 5, 2.0, "range"),
        (4, 20, 1.0, "log"),
        (5, 40, 1.0, "log"),
    ),
    "digits transformer": (
        (0, 20, 1.0, "range"),
        (1, 20, 0.5, "range"),
        (2, 40, 1.0, "range"),
        (3, 40, 1.0, "log"),
    ),
    "digits ResNet, narrow": (
        (0, 20, 1.0, "range"),
        (1, 20, 0.5, "range"),
        (2, 40, 1.0, "range"),
        (3, 40, 2.0, "range"),
        (4, 20, 1.0, "log"),
        (5, 40, 0.5, "log"),
    ),
}


def trained_resnet() -> Problem:
    """Train the digits ResNet as the benchmark of an interpolated surface does."""
    torch.manual_seed(0)
    x, y = digits.data("train")
    model = digits.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(10):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return Problem(model.eval(), nn.CrossEntropyLoss(), (x, y))


def of_networks() -> Iterator[Known]:
    """Other networks and planes."""
    signals = tuple(part[:500] for part in mnist1d.data("train"))
    images = digits.data("test")
    plain = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}

    def deep(activation: str, widths: tuple[int, ...] = (40, 32, 32, 32, 10)) -> nn.Module:
        parts: list[nn.Module] = [nn.Flatten()]
        for n_in, n_out in pairwise(widths):
            parts += [nn.Linear(n_in, n_out), plain[activation]()]
        return nn.Sequential(*parts[:-1])

    def signal(activation: str, seed: int, epochs: int = 30) -> Callable[[], Problem]:
        return lambda: trained(
            built(lambda: deep(activation), seed), signals, epochs=epochs, lr=0.02, seed=seed
        )

    def regression(seed: int) -> Callable[[], Problem]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, 40, generator=generator)
        data = x, x[:, :3].sin().sum(1, keepdim=True).repeat(1, 10)
        return lambda: trained(built(lambda: deep("relu"), seed), data, epochs=30, lr=0.01)

    def drawn(seed: int) -> Callable[[Problem], Plane]:
        return lambda problem: random_plane(problem, seed)

    def curved(problem: Problem) -> Plane:
        return eigenvector_plane(problem, top_eigenpairs(problem, k=2, tol=1e-2))

    def worst(problem: Problem) -> Plane:
        found = sharpness(problem, rho=0.1, tol=1e-2, max_gradients=30)
        return worst_case_plane(problem, found, random_direction(problem, 1))

    def between(make: Callable[[int], Callable[[], Problem]]) -> Callable[[Problem], Plane]:
        return lambda problem: plane_through(problem, *(make(s)() for s in (21, 22)))

    log = {"criterion": "log", "tolerance": 0.05}
    rows: list[tuple[str, Callable[[], Problem], Callable[[Problem], Plane], float, dict]] = [
        ("deep ReLU", signal("relu", 11), drawn(11), 1.0, {}),
        ("deep ReLU, walls", signal("relu", 12), drawn(12), 4.0, {}),
        ("deep ReLU, log", signal("relu", 13), drawn(13), 1.0, log),
        ("deep ReLU, eigenvectors", signal("relu", 14), curved, 2.0, {}),
        ("deep ReLU, eigenvectors, log", signal("relu", 14), curved, 1.0, log),
        ("deep ReLU, worst case", signal("relu", 15), worst, 3.0, {}),
        (
            "deep ReLU, between checkpoints",
            signal("relu", 20),
            between(lambda s: signal("relu", s)),
            1.5,
            {},
        ),
        ("deep tanh", signal("tanh", 16), drawn(16), 1.0, {}),
        ("deep tanh, far", signal("tanh", 17), drawn(17), 3.0, {}),
        ("deep tanh, log", signal("tanh", 18, 60), drawn(18), 1.0, log),
        ("deep GELU", signal("gelu", 19), drawn(19), 1.0, {}),
        ("deep GELU, eigenvectors", signal("gelu", 23), curved, 3.0, {}),
        ("untrained ReLU", signal("relu", 24, 0), drawn(24), 2.0, {}),
        ("overtrained ReLU, log", signal("relu", 25, 200), drawn(25), 0.5, log),
        ("regression", regression(26), drawn(26), 1.0, {}),
        ("regression, log", regression(27), drawn(27), 1.0, log),
        ("regression, eigenvectors", regression(28), curved, 1.0, {}),
    ]
    for name, problem, plane, reach, options in rows:
        yield Known(name, True, of_problem(problem, plane, reach), **options)
    narrow = {"widths": (4, 8), "batch_norm": False}
    for seed, reach, options in ((30, 1.0, {}), (31, 2.0, {}), (32, 1.0, log)):
        yield Known(
            f"ResNet without BatchNorm, seed {seed}, ±{reach}",
            True,
            of_problem(
                lambda seed=seed: trained(
                    built(lambda: ResNet(**narrow), seed), images, epochs=40, lr=0.02, seed=seed
                ),
                drawn(seed),
                reach,
            ),
            **options,
        )
    for seed, reach, options in ((33, 1.0, {}), (34, 3.0, {})):
        yield Known(
            f"small MLP, seed {seed}, ±{reach}",
            True,
            of_problem(
                lambda seed=seed: trained(
                    built(lambda: mlp((64, 16, 10)), seed), images, epochs=100, lr=0.1, seed=seed
                ),
                drawn(seed),
                reach,
            ),
            **options,
        )
