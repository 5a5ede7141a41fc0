"""Random ε around a checkpoint: the same for every checkpoint, device and dtype at one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError, one_of
from landscape.evaluate import Engine
from landscape.operators import SCALES, parameter_scale
from landscape.problem import Problem
from landscape.randomness import seeded, whole_seed
from landscape.results.averages import DISTRIBUTIONS

_STREAM = 0xD2A  # tells these numbers from others that are drawn with the same seed
_SIGNS = (1.0, -1.0)


class Perturbations:
    """A sequence of random vectors Tz; ε = ρTz.

    z has standard normal entries (``gaussian``), is uniform in the unit ball (``ball``) or on its
    surface (``sphere``), or in the cube [−1, 1]ⁿ (``box``). Entries with t = 0 do not move, and do
    not count in the dimension of the ball. Draw k depends on the seed and on k alone: it is drawn
    on the CPU in float64, whatever has been drawn before.

    Attributes:
        scale: the diagonal of T, float64 on the CPU, shape (n,).
        n_moved: how many of its entries are above zero, the dimension d.
    """

    def __init__(self, scale: Tensor, distribution: str, *, seed: int) -> None:
        """Take the scale."""
        self.scale = scale.detach().to("cpu", torch.float64)
        self._moved = self.scale > 0
        self.n_moved = int(self._moved.sum())
        self._distribution = one_of(distribution, DISTRIBUTIONS, what="distribution")
        self._seed = whole_seed(seed)
        self._last: tuple[int, Tensor] | None = None

    def draw(self, k: int) -> Tensor:
        """Return Tz of draw k, float64 on the CPU, shape (n,); the last one is kept."""
        if self._last is None or self._last[0] != k:
            self._last = k, self._drawn(k)  # asked for again with the other sign
        return self._last[1]

    def _drawn(self, k: int) -> Tensor:
        state = np.random.SeedSequence((self._seed % 2**64, _STREAM, k)).generate_state(
            1, np.uint64
        )
        generator = seeded(int(state[0]))
        n = len(self.scale)
        if self._distribution == "box":
            return self.scale * (2.0 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        if self._distribution != "gaussian":
            z = z / torch.linalg.vector_norm(z[self._moved])
        if self._distribution == "ball":
            u = float(torch.rand((), generator=generator, dtype=torch.float64))
            z = z * u ** (1.0 / self.n_moved)
        return self.scale * z

    @property
    def second_moment(self) -> float:
        """E[z zᵀ] / 2 in multiples of the identity: E½εᵀHε is this times ρ² tr(THT)."""
        d = self.n_moved
        known = {"gaussian": 0.5, "sphere": 0.5 / d, "ball": 0.5 / (d + 2), "box": 1.0 / 6.0}
        return known[self._distribution]


def adaptive_scale(problem: Problem, adaptive: str, eta: float) -> Tensor:
    """Return the diagonal of T that perturbations are scaled with."""
    one_of(adaptive, SCALES, what="adaptive scale")
    if not (math.isfinite(eta) and eta >= 0):
        msg = f"eta must be a finite number of at least 0, got {eta!r}"
        raise InvalidArgumentError(msg)
    if adaptive == "none":
        if eta:
            msg = (
                f"eta = {eta:g} is added to an adaptive scale, and adaptive is 'none'; choose "
                "'elementwise' or 'filterwise', or leave eta out"
            )
            raise InvalidArgumentError(msg)
        return torch.ones(problem.space.n, dtype=torch.float64)
    scale = parameter_scale(problem, adaptive).double() + eta
    if not bool((scale > 0).any()):
        msg = (
            f"all {problem.space.n:,} weights are zero, so that with adaptive={adaptive!r} none of "
            "them can move; give eta above 0, such as 0.01, or adaptive='none'"
        )
        raise InvalidArgumentError(msg)
    return scale


def losses_around(
    engine: Engine, draws: Perturbations, rho: float, samples: Sequence[tuple[int, int]]
) -> list[float]:
    """Evaluate the loss at w ± ρTz."""
    origin = engine.evaluator.origin
    found: list[float] = []
    for first in range(0, len(samples), engine.plan.points):
        chunk = samples[first : first + engine.plan.points]
        steps = {k: (rho * draws.draw(k)).to(origin.device, origin.dtype) for k, _ in chunk}
        vectors = [origin + _SIGNS[sign] * steps[k] for k, sign in chunk]
        found += [loss.value for loss in engine.losses(vectors)]
    return found
