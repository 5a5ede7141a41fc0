"""The average rise of the loss under random perturbations of the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from landscape.checks import positive, whole
from landscape.choices import Distribution, Scale
from landscape.errors import (
    InvalidArgumentError,
    LossError,
    NonFiniteError,
    NonFiniteWarning,
    one_of,
)
from landscape.evaluate import Engine, require_finite
from landscape.linalg import SymmetricOperator, hutchinson_trace
from landscape.linalg.sampling import StoppingRule
from landscape.measurement import Columns, Index, Run, Work, missing, resumable, settled_plan
from landscape.operators import SCALES, Hessian
from landscape.problem import Problem, check_problem
from landscape.results import AverageSharpness, FloatArray
from landscape.results.averages import DISTRIBUTIONS
from landscape.sharpness._perturbations import Perturbations, adaptive_scale, losses_around
from landscape.stats import interval_of_mean
from landscape.study import Study

N_PROBES = 16  # products for the prediction, which stands beside the value as a guide


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How an average is sampled; see `average_sharpness`.

    Attributes:
        distribution: ``gaussian``: ε ~ N(0, σ²T²); ``ball`` or ``sphere``: uniform in the ball or
            on its surface; ``box``: uniform in [−σt, σt] for each weight.
        adaptive: scale T: ``none`` (T = 1), ``elementwise`` (t = |w| + η) or ``filterwise`` (t =
            the norm of the filter + η); weights with t = 0 stay where they are.
        eta: η that is added to the scale.
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
    """

    distribution: Distribution = "gaussian"
    adaptive: Scale = "none"
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
            advice = "without that there is no standard error"
            whole(name, getattr(self, name), least=2, advice=advice)
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

    @property
    def rule(self) -> StoppingRule:
        """When enough has been drawn."""
        return StoppingRule(first=int(self.n_samples), rtol=self.relative_error or 0.0, atol=0.0)

    def settings(self, sigma: float) -> dict[str, Any]:
        """Return what identifies the measurement."""
        how = {name: value for name, value in asdict(self).items() if name != "tune"}
        counts = {"n_samples": int(self.n_samples), "max_samples": self.most}
        wanted = None if self.relative_error is None else float(self.relative_error)
        return how | counts | {"rho": sigma, "eta": float(self.eta), "relative_error": wanted}


def average_sharpness(
    problem: Problem,
    sigma: float | None = None,
    *,
    rho: float | None = None,
    study: Study | None = None,
    progress: bool | None = None,
    **options: Any,
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
        study: where samples are kept as they are measured, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.
        **options: distribution, adaptive, eta, n_samples, relative_error, max_samples, prediction,
            tune and seed: see `landscape.sharpness.SamplingOptions`.

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
    size = positive("sigma", _of_two(sigma, rho))
    sampling = SamplingOptions(**options)
    run = Run(study=study, seed=sampling.seed, progress=progress)
    return _averages(problem, [size], sampling, run)[0]


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
    sizes, sampling = check_profile(() if given is None else given, **options)
    run = Run(study=study, seed=sampling.seed, progress=progress)
    return _averages(problem, sizes, sampling, run)


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
    """Refuse what `average_profile` cannot measure, before anything is loaded."""
    sizes = [positive("each of sigmas", sigma) for sigma in sigmas]
    if not sizes or any(b <= a for a, b in pairwise(sizes)):
        msg = f"sigmas must be one size or more, in ascending order without repeats, got {sizes}"
        raise InvalidArgumentError(msg)
    return sizes, SamplingOptions(**options)


def _averages(
    problem: Problem, sigmas: Sequence[float], options: SamplingOptions, run: Run
) -> list[AverageSharpness]:
    check_problem(problem)
    scale = adaptive_scale(problem, options.adaptive, options.eta)
    draws = Perturbations(scale, options.distribution, seed=options.seed)
    frame = replace(run, progress=False)  # the samples have a bar of their own
    traces: list[tuple[float, float]] = []  # one serves all sizes

    def measure(work: Work, sigma: float) -> dict[str, Any]:
        evaluator, what = work.evaluator, f"average around {problem.name}"
        grid = work.grid((options.most, 2))
        with work.by_point(2 * options.most, grid):
            loss = evaluator.loss().value
            require_finite(loss, problem)
            n_points = 2 * options.most if options.tune else 1
            engine = Engine(evaluator, settled_plan(evaluator, grid, n_points=n_points))
            done: dict[Index, Columns] = {} if grid is None else dict(grid.done)

            def samples(indices: Sequence[Index]) -> list[Columns]:
                return [{"loss": loss} for loss in losses_around(engine, draws, sigma, indices)]

            def losses(n: int) -> FloatArray:
                # Cut alike whatever is kept already and however many are asked for: a sample has
                # other roundings in other company.
                size = engine.plan.points
                n_cut = min(-(-2 * n // size) * size, 2 * options.most)
                indices = [(k // 2, k % 2) for k in range(n_cut)]
                shown: dict[str, Any] = {"what": what, "progress": run.progress}
                blocks = missing(indices, done, grid=grid, size=size, **shown)
                resumable(blocks, samples, done=done, grid=grid)
                return np.array([done[index]["loss"] for index in indices[: 2 * n]]).reshape(n, 2)

            rises, converged = _draw(losses, loss, options)
        value, error, low, high = interval_of_mean(_of_pairs(rises))
        predicted, predicted_error = math.nan, math.nan
        if options.prediction:
            try:
                if not traces:
                    traces.append(_trace(Hessian(evaluator).reparametrised(draws.scale), options))
            except (LossError, NonFiniteError) as reason:
                warnings.warn(f"no quadratic prediction: {reason}", stacklevel=5)
            else:
                factor = draws.second_moment * sigma**2
                predicted, predicted_error = factor * traces[0][0], factor * traces[0][1]
        return {
            "value": value,
            "standard_error": error,
            "low": low,
            "high": high,
            "rho": sigma,
            "loss": loss,
            "rises": rises,
            "converged": converged,
            "predicted": predicted,
            "predicted_error": predicted_error,
            "n_moved": draws.n_moved,
            "engine": str(engine.plan),
        }

    results = []
    for sigma in sigmas:
        settings, fields = options.settings(sigma), partial(measure, sigma=sigma)
        result = frame.record(AverageSharpness, problem, settings, fields)
        if result.n_not_finite:
            msg = (
                f"the loss of {result.name} is not finite at {result.n_not_finite} of "
                f"{result.rises.size} samples, so that its average is {result.value}; the largest "
                f"finite rise is {result.largest:.4g}: try a smaller sigma"
            )
            warnings.warn(msg, NonFiniteWarning, stacklevel=3)
        results.append(result)
    return results


def _draw(
    losses: Callable[[int], FloatArray], loss: float, options: SamplingOptions
) -> tuple[FloatArray, bool]:
    """Draw until the interval is narrow enough, the budget spent, or a loss is not finite."""
    width_before, before, met = math.inf, 1, options.relative_error is None
    for n in options.rule.looks(options.most):
        rises = losses(n) - loss
        value, _, low, high = interval_of_mean(_of_pairs(rises))
        if not math.isfinite(value):
            return rises, False
        width = max(high - value, value - low)
        expected = width_before * math.sqrt(before / n)
        if options.rule.met(value, width=width, width_before=expected):
            return rises, True
        width_before, before = width, n
    return rises, met


def _of_pairs(rises: FloatArray) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(rises.mean(axis=1))


def _trace(operator: SymmetricOperator, options: SamplingOptions) -> tuple[float, float]:
    """Estimate the trace of THT, with its standard error."""
    found = hutchinson_trace(
        operator.matvec,
        operator.n,
        rtol=0.0,
        max_matvecs=N_PROBES,
        seed=options.seed,
        dtype=operator.dtype,
        device=operator.device,
    )
    return found.value, found.standard_error
