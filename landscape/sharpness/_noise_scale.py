"""How much noise the weights bear: the σ at which the average rise of the loss is as stated."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq

from landscape.errors import LandscapeError
from landscape.evaluate import Engine
from landscape.results import FloatArray
from landscape.sharpness._perturbations import Perturbations, rises_around

_CAP = 5.0  # of log(rise / target), so that an overflow or a rise of zero is a finite number
_JUMP = 0.05  # of log(rise / target) at the root: more than this is no root, but a jump
_FARTHEST = 8.0  # factor of one step towards a bracket
_BEYOND = 1.25
_STEPS = 20
MOST_SIGMAS = 2 * _STEPS
"""How many values of σ a search takes at most, as good as always; about 8 are usual."""
_TOLERANCE = 1e-4  # of log σ, far below the standard error of any affordable number of draws
_BESIDE = 0.02  # relative step that the slope at the end is measured with


class NotReachedError(LandscapeError):
    """No σ has the average rise that was asked for."""


class _Search:
    """log(average rise / target) as a function of log σ, always with the same draws."""

    def __init__(
        self, engine: Engine, draws: Perturbations, *, loss: float, target: float, n: int
    ) -> None:
        self._engine, self._draws, self._loss, self._n = engine, draws, loss, n
        self.target = target
        self._known: dict[float, FloatArray] = {}

    def rises(self, sigma: float) -> FloatArray:
        """Return the rise of each draw, the mean of its two signs, shape (n,)."""
        if sigma not in self._known:
            rises = rises_around(self._engine, self._draws, sigma, n=self._n, loss=self._loss)
            with np.errstate(over="ignore", invalid="ignore"):
                self._known[sigma] = np.asarray(rises.mean(axis=1))
        return self._known[sigma]

    def __call__(self, log_sigma: float) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(self.rises(math.exp(log_sigma)).mean())
        if not math.isfinite(mean):
            return _CAP  # the loss overflows: too much noise
        if mean <= 0:
            return -_CAP
        return min(_CAP, max(-_CAP, math.log(mean / self.target)))

    def bracket(self, start: float) -> tuple[float, float]:
        """Find two log σ with the target between them; the rise grows as σ² at first."""
        here, value = math.log(start), self(math.log(start))
        farthest = math.log(_FARTHEST)
        for i in range(_STEPS):
            # Each step goes farther beyond the parabola's root than the one before: where the rise
            # grows more slowly than σ², steps to that root would only creep up to the target.
            step = -0.5 * value * _BEYOND ** (i + 1)
            there = here + (max(-farthest, min(farthest, step)) or _TOLERANCE)
            beyond = self(there)
            if value * beyond <= 0:
                return here, there
            here, value = there, beyond
        side = "above" if value > 0 else "below"
        msg = f"the average rise stays {side} {self.target:g} as far as σ = {math.exp(here):.1e}"
        raise NotReachedError(msg)


def noise_scale(
    engine: Engine, draws: Perturbations, *, loss: float, rise: float, n: int, start: float
) -> tuple[float, float]:
    """Find the σ with E[L(w + σTz) − L(w)] equal to a stated rise, and its standard error.

    The same draws serve every σ, so that the average over them is a smooth function of σ; its root
    is found by a bracket and Brent's method, which falls back on bisection. The error is from the
    spread of the rises at σ and the slope there.

    References:
        Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and
        where to find them, arXiv:1912.02178; Brent (1973), Algorithms for minimization without
        derivatives.
    """
    search = _Search(engine, draws, loss=loss, target=rise, n=n)
    ends = search.bracket(start)
    sigma = math.exp(brentq(search, min(ends), max(ends), xtol=_TOLERANCE))
    if abs(search(math.log(sigma))) > _JUMP:
        msg = (
            f"the average rise jumps from below {rise:g} to far beyond it, or out of the finite "
            f"numbers, near σ = {sigma:.2e}"
        )
        raise NotReachedError(msg)
    rises, beside = search.rises(sigma), search.rises(sigma * (1 + _BESIDE))
    slope = float(beside.mean() - rises.mean()) / (_BESIDE * sigma)
    known = math.isfinite(slope) and slope > 0
    error = float(rises.std(ddof=1)) / math.sqrt(n) / slope if known else math.nan
    return sigma, error
