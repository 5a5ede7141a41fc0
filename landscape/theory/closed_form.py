"""Bias, variance and risk of gradient descent and of SAM at every iteration, in closed form.

SAM here is the unnormalised one, w ← w − η ∇L(w + ρ ∇L(w)). On a quadratic that is gradient
descent on L + (ρ/2) ‖∇L‖², so that each mode of curvature d shrinks by 1 − η(d + ρd²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from landscape.checks import positive, real, whole
from landscape.results import FloatArray
from landscape.theory.modes import Modes, check_stable

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Stop:
    """Squared bias, variance and cost (gradient evaluations) after a number of steps."""

    iteration: int
    gradients: int
    bias2: float
    variance: float

    @property
    def risk(self) -> float:
        """bias² + variance."""
        return self.bias2 + self.variance


@dataclass(frozen=True, kw_only=True)
class Risks:
    """Squared bias and variance after 0, 1, …, K steps from zero."""

    bias2: FloatArray  # ‖E ŵₖ − w₀‖² in the norm of the risk, shape (K + 1,)
    variance: FloatArray  # E ‖ŵₖ − E ŵₖ‖² in the same norm, shape (K + 1,)
    eta: float
    rho: float  # 0: gradient descent
    risk_of: str  # ``in-sample`` or ``parameter``

    @property
    def risk(self) -> FloatArray:
        """bias² + variance, shape (K + 1,)."""
        return self.bias2 + self.variance

    @property
    def iterations(self) -> FloatArray:
        """0, 1, …, K."""
        return np.arange(self.bias2.size, dtype=np.float64)

    @property
    def gradients_per_step(self) -> int:
        """Gradient evaluations of one step: 1 of gradient descent, 2 of SAM."""
        return 2 if self.rho > 0 else 1

    @property
    def gradients(self) -> FloatArray:
        """Gradient evaluations after each iteration, shape (K + 1,)."""
        return self.gradients_per_step * self.iterations

    def at(self, iteration: int) -> Stop:
        """Return bias², variance and cost after a number of steps, 0 to K."""
        return Stop(
            iteration=iteration,
            gradients=self.gradients_per_step * iteration,
            bias2=float(self.bias2[iteration]),
            variance=float(self.variance[iteration]),
        )

    @property
    def best(self) -> Stop:
        """The first iteration of the smallest risk within 0 … K."""
        return self.at(int(np.argmin(self.risk)))

    @property
    def still_falling(self) -> bool:
        """Whether the smallest risk is the last one, so that a later one may be smaller."""
        return self.best.iteration == self.bias2.size - 1


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """Gradient descent and SAM on one model, with the same step size.

    ``gd`` and ``sam`` are the risks of gradient descent and unnormalised SAM on ``modes``.
    """

    gd: Risks
    sam: Risks
    modes: Modes

    @property
    def largest_step(self) -> float:
        """η (d₁ + ρd₁²): below 2 SAM converges; up to 1 the order of the two is a theorem."""
        return self.sam.eta * (self.modes.top + self.sam.rho * self.modes.top**2)

    @property
    def proved(self) -> bool:
        """Whether lower bias and higher variance of SAM at every iteration is a theorem here."""
        return self.largest_step <= 1.0

    @property
    def lower_bias(self) -> bool:
        """Whether SAM has no higher bias² than gradient descent at every iteration shown."""
        return bool(np.all(self.sam.bias2 <= self.gd.bias2 * (1.0 + _ROUNDING)))

    @property
    def higher_variance(self) -> bool:
        """Whether SAM has no lower variance than gradient descent at every iteration shown."""
        return bool(np.all(self.sam.variance * (1.0 + _ROUNDING) >= self.gd.variance))

    @cached_property
    def ahead_until(self) -> int:
        """The last iteration up to which SAM has the lower risk from the first on; 0: none."""
        behind = np.flatnonzero(~(self.sam.risk[1:] < self.gd.risk[1:]))
        return int(behind[0]) if behind.size else self.sam.bias2.size - 1

    @property
    def faster_from(self) -> float:
        """Curvature 1/(η + ρ): only above it SAM can shrink the bias more per gradient."""
        return 1.0 / (self.sam.eta + self.sam.rho)

    @property
    def n_faster(self) -> int:
        """Modes whose bias one step of SAM shrinks more than two steps of gradient descent do."""
        d, eta = self.modes.curvatures, self.sam.eta
        sam_factor = np.abs(1.0 - eta * (d + self.sam.rho * d**2))
        return int(np.sum(sam_factor < (1.0 - eta * d) ** 2))


def risks(modes: Modes, iterations: int, *, eta: float, rho: float = 0.0) -> Risks:
    """Return squared bias and variance at every iteration, in closed form.

    With rᵢ = 1 − η(dᵢ + ρdᵢ²): bias²ₖ = unreachable + Σ bᵢ rᵢ²ᵏ and varianceₖ = Σ vᵢ (1 − rᵢᵏ)²,
    bᵢ and vᵢ the weights of the `Modes`.

    Args:
        modes: the model.
        iterations: K, the last iteration, at least 1.
        eta: step size η.
        rho: SAM's ρ; 0: gradient descent.

    Returns:
        The risks after 0, 1, …, K steps.

    Raises:
        InvalidArgumentError: if η (d₁ + ρd₁²) is not below 2, or a number is out of range.

    Cost: O(rK) numbers for r modes.

    Reference: Behdin, Mazumder 2023, arXiv 2302.11836; derived here.

    One mode of curvature 1, half a step: bias² 1, 1/4, 1/16 and variance 0, 1/4, 9/16:

    >>> one = Modes(curvatures=np.ones(1), bias_weights=np.ones(1), variance_weights=np.ones(1))
    >>> curve = risks(one, 2, eta=0.5)
    >>> curve.bias2.tolist(), curve.variance.tolist()
    ([1.0, 0.25, 0.0625], [0.0, 0.25, 0.5625])
    """
    last = whole("iterations", iterations, least=1)
    check_stable(modes.top, eta=eta, rho=rho)
    steps = eta * (modes.curvatures + rho * modes.curvatures**2)
    k = np.arange(last + 1, dtype=np.float64)
    factors = (1.0 - steps)[:, None] ** k
    return Risks(
        bias2=modes.unreachable + modes.bias_weights @ factors**2,
        variance=modes.variance_weights @ _one_minus_powers(steps, k, factors) ** 2,
        eta=eta,
        rho=rho,
        risk_of=modes.risk,
    )


def trade_off(modes: Modes, iterations: int, *, eta: float, rho: float) -> TradeOff:
    """Compare gradient descent with unnormalised SAM at the same step size.

    If η(d₁ + ρd₁²) ≤ 1, SAM has lower bias and higher variance than gradient descent at every
    iteration, since 0 ≤ r_SAM < r_GD for each mode; both have one limit. With noise SAM can be
    ahead only when stopped early; its best risk is the lower one where the signal lies in the modes
    of high curvature. One step of SAM costs two gradients: at equal cost its bias factor is the
    smaller one only for modes with d > 1/(η + ρ).

    Args:
        modes: the model.
        iterations: K, the last iteration, at least 1.
        eta: step size η of both.
        rho: SAM's ρ, above zero.

    Returns:
        Both risks and their comparison.

    Raises:
        InvalidArgumentError: if SAM diverges at η, or a number is out of range.

    >>> both = Modes(curvatures=np.ones(1), bias_weights=np.ones(1), variance_weights=np.ones(1))
    >>> pair = trade_off(both, 9, eta=0.3, rho=1.0)
    >>> pair.proved, pair.lower_bias, pair.higher_variance, pair.ahead_until
    (True, True, True, 1)
    """
    positive("rho", rho)
    sam = risks(modes, iterations, eta=eta, rho=rho)
    return TradeOff(gd=risks(modes, iterations, eta=eta), sam=sam, modes=modes)


def stability_limit(top: float, *, rho: float = 0.0) -> float:
    """Return the step size below which the iteration converges, 2 / (d₁ + ρd₁²).

    Args:
        top: the largest curvature d₁, above zero.
        rho: SAM's ρ; 0: gradient descent.

    Returns:
        The limit of η.

    Reference: Agarwala, Dauphin 2023, arXiv 2302.08692.

    >>> stability_limit(4.0), stability_limit(4.0, rho=0.25)
    (0.5, 0.25)
    """
    positive("top", top)
    real("rho", rho, least=0.0)
    return 2.0 / (top + rho * top**2)


def edge_of_stability(eta: float, *, rho: float = 0.0) -> float:
    """Return the curvature below which the iteration converges, (√(1 + 8ρ/η) − 1) / 2ρ.

    Args:
        eta: step size, above zero.
        rho: SAM's ρ; 0: gradient descent, 2/η.

    Returns:
        The limit of d₁.

    Reference: Agarwala, Dauphin 2023, arXiv 2302.08692.

    >>> edge_of_stability(0.5), edge_of_stability(0.25, rho=0.25)
    (4.0, 4.0)
    """
    positive("eta", eta)
    real("rho", rho, least=0.0)
    # Without the difference of near numbers that the textbook form has at small ρ.
    return 4.0 / (eta * (1.0 + math.sqrt(1.0 + 8.0 * rho / eta)))


def _one_minus_powers(steps: FloatArray, k: FloatArray, powers: FloatArray) -> FloatArray:
    """Return 1 − (1 − step)ᵏ without loss of digits where the step is small."""
    small = steps < 0.5
    result = 1.0 - powers
    result[small] = -np.expm1(np.log1p(-steps[small])[:, None] * k)
    return np.asarray(result)
