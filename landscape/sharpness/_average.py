"""The average rise of the loss under random perturbations of the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from landscape.checks import positive
from landscape.choices import Distribution, Scale
from landscape.errors import (
    InvalidArgumentError,
    LossError,
    NonFiniteError,
    NonFiniteWarning,
    one_of,
)
from landscape.evaluate import Evaluator, require_finite
from landscape.linalg import SymmetricOperator, hutchinson_trace
from landscape.linalg.sampling import StoppingRule
from landscape.measurement import Run, Work
from landscape.operators import SCALES, Hessian
from landscape.problem import Problem
from landscape.results import AverageSharpness, FloatArray
from landscape.results.averages import DISTRIBUTIONS
from landscape.sharpness._perturbations import (
    CachedLosses,
    Perturbations,
    adaptive_scale,
    kept_engine,
)
from landscape.stats import interval_of_mean
from landscape.study import Study

CONFIDENCE = 0.95
N_PROBES = 16  # products for the prediction, which stands beside the value as a guide


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What an average is asked for, but for its radius; see `average_sharpness`."""

    distribution: str = "gaussian"
    adaptive: str = "none"
    eta: float = 0.0
    n_samples: int = 32
    relative_error: float | None = 0.1
    max_samples: int = 128
    prediction: bool = True
    tune: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        one_of(self.distribution, DISTRIBUTIONS, what="distribution")
        one_of(self.adaptive, SCALES, what="adaptive scale")
        for name in ("n_samples", "max_samples"):
            value: object = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 2:
                msg = (
                    f"{name} must be a whole number of at least 2, without which there is no "
                    f"standard error; got {value!r}"
                )
                raise InvalidArgumentError(msg)
        if self.relative_error is not None:
            positive("relative_error", self.relative_error)
        if self.most < self.n_samples:
            msg = (
                f"max_samples = {self.max_samples} is below n_samples = {self.n_samples}: raise it"
            )
            raise InvalidArgumentError(msg)

    @property
    def most(self) -> int:
        """How many draws there can be."""
        return int(self.n_samples if self.relative_error is None else self.max_samples)

    def looks(self) -> Iterable[int]:
        """Return at how many draws the interval is looked at."""
        return self.rule.looks(self.most)

    @property
    def rule(self) -> StoppingRule:
        """When enough has been drawn."""
        return StoppingRule(first=int(self.n_samples), rtol=self.relative_error or 0.0, atol=0.0)

    def settings(self, rho: float) -> dict[str, Any]:
        """Return what identifies the measurement."""
        how = {name: value for name, value in asdict(self).items() if name != "tune"}
        whole = {"n_samples": int(self.n_samples), "max_samples": self.most}
        wanted = None if self.relative_error is None else float(self.relative_error)
        real = {"rho": rho, "eta": float(self.eta), "relative_error": wanted}
        return {**how, **whole, **real}


def average_sharpness(
    problem: Problem,
    sigma: float | None = None,
    *,
    rho: float | None = None,
    distribution: Distribution = "gaussian",
    adaptive: Scale = "none",
    eta: float = 0.0,
    n_samples: int = 32,
    relative_error: float | None = 0.1,
    max_samples: int = 128,
    prediction: bool = True,
    tune: bool = False,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> AverageSharpness:
    """Measure the average rise of the loss, E[L(w + ε) − L(w)] for random ε = σTz.

    Each z is tried with both signs: what is odd in ε, the gradient first of all, cancels exactly,
    and the standard error is over the draws. The z of one seed are the same for every checkpoint,
    device and dtype, so that `paired_difference` compares two checkpoints far more closely than
    their intervals would.

    Args:
        problem: what to measure.
        sigma: size σ of the noise, not the radius ρ of `sharpness`: the standard deviation of each
            weight (``gaussian``, so that ‖ε‖ is about σ√n), the radius of the ball or sphere
            ‖T⁻¹ε‖₂ ≤ σ, or the half-width of the box; with an adaptive scale relative to the
            weights.
        rho: the former name of ``sigma``, taken with a warning.
        distribution: ``gaussian``: ε ~ N(0, σ²T²); ``ball`` or ``sphere``: uniform in the ball or
            on its surface; ``box``: uniform in [−σt, σt] for each weight.
        adaptive: ``none`` (T = 1), ``elementwise`` (t = |w| + η) or ``filterwise`` (t = the norm
            of the filter + η); weights with t = 0 stay where they are.
        eta: η.
        n_samples: draws of z to begin with, each tried with both signs.
        relative_error: half-width of the 95 % interval to reach, relative to the average; None:
            stop after ``n_samples``.
        max_samples: draws to spend at most.
        prediction: also estimate what the quadratic model predicts, c σ² tr(THT), from 16 random
            products with the Hessian. The kinks of ReLU networks add to the average at the same
            order in σ, and no Hessian sees them: there it can be several times as large as
            predicted at any σ that is not tiny.
        tune: choose how to evaluate by a short timing, see `landscape.surface`.
        seed: of the draws, the products and the dropout masks.
        study: where samples are kept as they are measured, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The average with its interval (Student's, widened where the draws are skewed), and all
        samples. Cost: two forward passes for each draw, one more, and 16 products.

    Raises:
        InvalidArgumentError: if an argument is out of its range, or all weights are zero and
            nothing can move.

    References:
        Andriushchenko, Croce, Müller, Hein, Flammarion (2023), A modern look at the relationship
        between sharpness and generalization, arXiv:2302.07011; Kwon, Kim, Park, Choi (2021),
        ASAM, arXiv:2102.11600.

    >>> from torch import nn, ones
    >>> model = nn.Linear(1, 1, bias=False)
    >>> at_minimum = Problem(model, nn.MSELoss(), (ones(5, 1), model.weight.detach() * ones(5, 1)))
    >>> found = average_sharpness(at_minimum, 0.1, distribution="sphere")
    >>> round(found.value, 5), round(found.predicted, 5)
    (0.01, 0.01)
    """
    asked = SamplingOptions(
        distribution=distribution,
        adaptive=adaptive,
        eta=eta,
        n_samples=n_samples,
        relative_error=relative_error,
        max_samples=max_samples,
        prediction=prediction,
        tune=tune,
        seed=seed,
    )
    size = positive("sigma", _of_two(sigma, rho))
    return _average(problem, size, asked, _Traces(), study=study, progress=progress)


def average_profile(
    problem: Problem,
    sigmas: Sequence[float] | FloatArray | None = None,
    *,
    rhos: Sequence[float] | FloatArray | None = None,
    study: Study | None = None,
    progress: bool | None = None,
    **options: Any,
) -> list[AverageSharpness]:
    """Measure the average rise of the loss for several sizes of the noise, the same noise scaled.

    Args:
        problem: what to measure.
        sigmas: the sizes σ, ascending.
        rhos: the former name of ``sigmas``, taken with a warning.
        study: where samples are kept as they are measured, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.
        **options: those of `average_sharpness`.

    Returns:
        One average for each size; each is what `average_sharpness` returns. Cost: that of each,
        but one estimate of the trace serves all.

    Raises:
        InvalidArgumentError: if the sizes are not above zero and ascending, or another argument is
            out of its range.
    """
    given: Any = _of_two(sigmas, rhos)
    sizes, asked = check_profile(() if given is None else given, **options)
    traces = _Traces()
    return [
        _average(problem, size, asked, traces, study=study, progress=progress) for size in sizes
    ]


def _of_two(sigma: Any, rho: Any) -> Any:
    """Return the size of the noise by its own name, or by the former one."""
    if rho is None:
        return sigma
    if sigma is not None:
        msg = "rho is the former name of sigma: give sigma alone"
        raise InvalidArgumentError(msg)
    warnings.warn("the size of the noise is called sigma, not rho", FutureWarning, stacklevel=3)
    return rho


def check_profile(sigmas: Iterable[float], **options: Any) -> tuple[list[float], SamplingOptions]:
    """Refuse what `average_profile` cannot measure, before anything is loaded.

    Args:
        sigmas: the sizes of the noise, ascending.
        **options: those of `average_sharpness`, without study and progress.

    Returns:
        The sizes as floats, and the options.

    Raises:
        InvalidArgumentError: if the sizes are not above zero and ascending, or another argument is
            out of its range.
    """
    sizes = [positive("each of sigmas", sigma) for sigma in sigmas]
    if not sizes or any(b <= a for a, b in pairwise(sizes)):
        msg = f"sigmas must be one size or more, in ascending order without repeats, got {sizes}"
        raise InvalidArgumentError(msg)
    return sizes, SamplingOptions(**options)


class _Traces:
    """The trace of THT, estimated once for all radii."""

    def __init__(self) -> None:
        self._known: tuple[float, float] | None = None

    def of(self, evaluator: Evaluator, draws: Perturbations, seed: int) -> tuple[float, float]:
        """Return the trace with its standard error; the first call makes the products."""
        if self._known is None:
            operator: SymmetricOperator = Hessian(evaluator).reparametrised(draws.scale)
            found = hutchinson_trace(
                operator.matvec,
                operator.n,
                rtol=0.0,
                max_matvecs=N_PROBES,
                seed=seed,
                dtype=operator.dtype,
                device=operator.device,
            )
            self._known = found.value, found.standard_error
        return self._known


def _average(
    problem: Problem,
    rho: float,
    asked: SamplingOptions,
    traces: _Traces,
    *,
    study: Study | None,
    progress: bool | None,
) -> AverageSharpness:
    scale = adaptive_scale(problem, asked.adaptive, asked.eta)
    draws = Perturbations(scale, asked.distribution, seed=asked.seed)
    settings = asked.settings(rho)

    def measure(work: Work) -> dict[str, Any]:
        evaluator, kept = work.evaluator, work.grid((asked.most, 2))
        loss = evaluator.loss().value
        require_finite(loss, problem)
        engine = kept_engine(evaluator, kept, n_points=2 * asked.most if asked.tune else 1)
        samples = CachedLosses(engine, draws, rho, most=asked.most, kept=kept, progress=progress)
        rises, converged = _drawn(samples, loss, asked)
        value, error, low, high = interval_of_mean(_halved(rises))
        predicted, predicted_error = _predicted(evaluator, draws, rho, traces, asked)
        return {
            "value": value,
            "standard_error": error,
            "low": low,
            "high": high,
            "rho": rho,
            "loss": loss,
            "rises": rises,
            "converged": converged,
            "predicted": predicted,
            "predicted_error": predicted_error,
            "n_moved": draws.n_moved,
            "engine": str(engine.plan),
        }

    # The samples have a bar of their own.
    run = Run(study=study, seed=asked.seed, progress=False)
    result = run.record(AverageSharpness, problem, settings, measure)
    _warn_not_finite(result)
    return result


def _predicted(
    evaluator: Evaluator, draws: Perturbations, rho: float, traces: _Traces, asked: SamplingOptions
) -> tuple[float, float]:
    """Return what the quadratic model says, NaN where it was not asked for or cannot be made."""
    if not asked.prediction:
        return math.nan, math.nan
    try:
        trace, error = traces.of(evaluator, draws, asked.seed)
    except (LossError, NonFiniteError) as reason:
        warnings.warn(f"no quadratic prediction: {reason}", stacklevel=8)
        return math.nan, math.nan
    factor = draws.second_moment * rho**2
    return factor * trace, factor * error


def _drawn(samples: CachedLosses, loss: float, asked: SamplingOptions) -> tuple[FloatArray, bool]:
    """Draw until the interval is narrow enough, the budget spent, or a loss is not finite."""
    width_before, before, met = math.inf, 1, asked.relative_error is None
    for n in asked.looks():
        rises = samples.losses(n) - loss
        value, _, low, high = interval_of_mean(_halved(rises))
        if not math.isfinite(value):
            return rises, False
        width = max(high - value, value - low)
        expected = width_before * math.sqrt(before / n)
        if asked.rule.met(value, width=width, width_before=expected):
            return rises, True
        width_before, before = width, n
    return rises, met


def _halved(rises: FloatArray) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(rises.mean(axis=1))


def _warn_not_finite(result: AverageSharpness) -> None:
    if result.n_not_finite:
        msg = (
            f"the loss of {result.name} is not finite at {result.n_not_finite} of "
            f"{result.rises.size} samples, so that its average is {result.value}; the largest "
            f"finite rise is {result.largest:.4g}: try a smaller sigma"
        )
        warnings.warn(msg, NonFiniteWarning, stacklevel=4)
