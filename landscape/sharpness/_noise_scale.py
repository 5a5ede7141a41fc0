"""How much noise the weights bear: the σ at which the average rise of the loss is as stated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

from landscape.errors import LandscapeError
from landscape.evaluate import Engine
from landscape.results import FloatArray
from landscape.sharpness._perturbations import Perturbations, losses_around

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

    @functools.cache
    def rises(sigma: float) -> FloatArray:
        """Return the rise of each draw, the mean of its two signs, shape (n,)."""
        samples = [(k, sign) for k in range(n) for sign in (0, 1)]
        losses = np.array(losses_around(engine, draws, sigma, samples))
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray((losses.reshape(n, 2) - loss).mean(axis=1))

    def height(log_sigma: float) -> float:
        """Return log(average rise / target), within bounds."""
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(rises(math.exp(log_sigma)).mean())
        if not math.isfinite(mean):
            return _CAP  # the loss overflows: too much noise
        return -_CAP if mean <= 0 else min(_CAP, max(-_CAP, math.log(mean / rise)))

    ends = _bracket(height, start, rise)
    sigma = math.exp(brentq(height, min(ends), max(ends), xtol=_TOLERANCE))
    if abs(height(math.log(sigma))) > _JUMP:
        msg = (
            f"the average rise jumps from below {rise:g} to far beyond it, or out of the finite "
            f"numbers, near σ = {sigma:.2e}"
        )
        raise NotReachedError(msg)
    here, farther = rises(sigma), rises(sigma * (1 + _BESIDE))
    slope = float(farther.mean() - here.mean()) / (_BESIDE * sigma)
    known = math.isfinite(slope) and slope > 0
    error = float(here.std(ddof=1)) / math.sqrt(n) / slope if known else math.nan
    return sigma, error


def _bracket(height: Callable[[float], float], start: float, rise: float) -> tuple[float, float]:
    """Find two log σ with the target between them; the rise grows as σ² at first."""
    here, value = math.log(start), height(math.log(start))
    farthest = math.log(_FARTHEST)
    for i in range(_STEPS):
        # Each step goes farther beyond the parabola's root than the one before: where the rise
        # grows more slowly than σ², steps to that root would only creep up to the target.
        step = -0.5 * value * _BEYOND ** (i + 1)
        there = here + (max(-farthest, min(farthest, step)) or _TOLERANCE)
        beyond = height(there)
        if value * beyond <= 0:
            return here, there
        here, value = there, beyond
    side = "above" if value > 0 else "below"
    msg = f"the average rise stays {side} {rise:g} as far as σ = {math.exp(here):.1e}"
    raise NotReachedError(msg)
