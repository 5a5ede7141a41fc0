"""Critical and directional sharpness: how far along an update the loss falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checks import positive
from landscape.errors import InvalidArgumentError
from landscape.evaluate import require_finite
from landscape.linalg.krylov import dot
from landscape.measurement import Run, Work, error_of_difference
from landscape.operators import Hessian
from landscape.problem import Problem, check_problem
from landscape.problem.digest import digest_of
from landscape.results.stability import UpdateSharpness
from landscape.study import Study

Rise = Callable[[float], float]
Update = Tensor | Mapping[str, Tensor] | Mapping[nn.Parameter, Tensor]

_FARTHEST = 2.0**60  # times the update: a loss that has not risen there never does
_MOST = 60  # probes of the search between the ends


def update_sharpness(
    problem: Problem,
    update: Update | None = None,
    *,
    lr: float = 1.0,
    tol: float = 1 / 16,
    directional: bool = True,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> UpdateSharpness:
    """Measure the learning rate at which an update no longer lowers the loss, and 2 over it.

    With the displacement d = −η u that an optimizer's step makes,

        L(w − η_c u) = L(w), below L(w) before and above it behind,   critical sharpness 2/η_c,
        directional sharpness uᵀHu/(uᵀg),

    which agree on a quadratic. The crossing is found by doubling or halving from η; where the loss
    crosses L(w) more than once, there may be one before. The loss of one data set along the update
    of another, the relative critical sharpness, is the same with that update.

    Args:
        problem: at w, on the data whose loss is measured.
        update: d, the displacement w after less w before, as `landscape.optim.next_update` gives
            it: a vector of shape (n,), or tensors by name or by parameter, 0 for those that are not
            named. None: −η g, the step of gradient descent.
        lr: η, the learning rate that the update was made with.
        tol: the crossing is enclosed to this relative width; it is interpolated in between.
        directional: whether to measure uᵀHu, which takes a product with the Hessian.
        seed: of dropout masks, in train mode.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        Both sharpnesses; the crossing with its standard error, that of the paired losses at w and
        there; 0 for an update that does not descend. Cost: one gradient, one product if
        ``directional``, and forward passes: about 6, and one for each doubling or halving.

    Raises:
        InvalidArgumentError: if the update is zero, does not fit or is not finite, or an argument
            is out of its range.

    Reference: arXiv 2601.16979.
    """
    check_problem(problem)
    lr, tol = positive("lr", lr), positive("tol", tol)
    given = None if update is None else _flat(problem, update)
    settings = {
        "update": "gradient" if given is None else digest_of(given),
        **{"lr": lr, "tol": tol, "directional": directional, "seed": seed},
    }

    def measure(work: Work) -> dict[str, Any]:
        evaluator, origin = work.evaluator, work.evaluator.origin
        start, gradient = evaluator.loss(keep=True), evaluator.gradient()[1]
        require_finite(start.value, problem)
        step = gradient.mul(-lr) if given is None else given.to(gradient)
        curvature = math.nan
        if directional:
            curvature = dot(step, Hessian(evaluator).matvec(step)) / lr**2
        errors: dict[float, float] = {}

        @work.count
        def rise(s: float) -> float:
            there = evaluator.loss(origin.add(step, alpha=s), keep=True)
            errors[s] = error_of_difference(problem, there, start)
            return there.value - start.value

        slope = -dot(step, gradient) / lr
        found = _crossing(rise, tol) if slope > 0 else (0.0, 0.0, 0.0, math.nan)
        low, high, crossing, slope_there = found
        se = errors.get(high, math.nan) / slope_there if slope_there > 0 else math.nan
        return {
            "lr": lr,
            "critical_lr": lr * crossing,
            "critical_lr_se": lr * se,
            "low": lr * low,
            "high": lr * high,
            "slope": slope,
            "curvature": curvature,
            "loss": start.value,
        }

    run = Run(study=study, seed=seed, progress=progress)
    return run.record(UpdateSharpness, problem, settings, measure, what="update of", unit="forward")


def _flat(problem: Problem, update: Update) -> Tensor:
    """Return an update as one vector, shape (n,)."""
    if isinstance(update, Mapping):
        # A tensor with several names has the first of them.
        first = {id(p): name for name, p in problem.model.named_parameters()}
        every = problem.model.named_parameters(remove_duplicate=False)
        known: dict[Any, str] = {name: first[id(p)] for name, p in every} | first
        keys = {key: key if isinstance(key, str) else id(key) for key in update}
        unknown = [key for key, place in keys.items() if place not in known]
        if unknown:
            what = repr(unknown[0]) if isinstance(unknown[0], str) else "a tensor"
            msg = f"the update names {what}, which is no parameter of {problem.name}"
            raise InvalidArgumentError(msg)
        by_name = {known[keys[key]]: value for key, value in update.items()}
        state = problem.state()
        parts = {n: by_name.get(n, torch.zeros_like(state[n])) for n in problem.space.names}
        shapes = [n for n, part in parts.items() if part.shape != state[n].shape]
        if shapes:
            msg = f"the update of {shapes[0]} has another shape than the parameter"
            raise InvalidArgumentError(msg)
        update = problem.space.flatten(parts)
    if update.shape != (problem.space.n,):
        msg = f"the update must have shape ({problem.space.n},), got {tuple(update.shape)}"
        raise InvalidArgumentError(msg)
    if not bool(torch.isfinite(update).all()) or not bool(update.any()):
        msg = "the update must be finite, and not zero everywhere"
        raise InvalidArgumentError(msg)
    return update.detach()


def _crossing(rise: Rise, tol: float) -> tuple[float, float, float, float]:
    """Find where the rise becomes positive: ends around it, the place, and the slope there.

    Doubling or halving from 1, then secants of rise/s, which is a straight line on a quadratic.
    """
    rises: dict[float, float] = {}
    low, high = 0.0, math.inf

    def probe(s: float) -> None:
        nonlocal low, high
        rises[s] = rise(s)
        low, high = (s, high) if rises[s] <= 0.0 else (low, s)  # NaN has risen

    probe(1.0)
    while low == 0.0 or math.isinf(high):
        s = 2 * low if low else high / 2
        if not 1 / _FARTHEST <= s <= _FARTHEST:
            return low, high, math.inf if low else 0.0, math.nan
        probe(s)
    for _ in range(_MOST):
        if high <= low * (1 + tol):
            break
        width, middle = high / low, _secant(rises, low, high)
        for s in (middle * (1 + tol / 3), middle * (1 - tol / 3)):
            if low < s < high:
                probe(s)
        if high / low > width**0.5:  # no quadratic at all
            probe(math.sqrt(low * high))
    at = _secant(rises, low, high)
    return low, high, at, at * (rises[high] / high - rises[low] / low) / (high - low)


def _secant(rises: Mapping[float, float], low: float, high: float) -> float:
    """Return where the line through rise/s at both ends is zero, or their geometric mean."""
    below, above = rises[low] / low, rises[high] / high
    at = low - below * (high - low) / (above - below)
    return at if low <= at <= high else math.sqrt(low * high)
