"""The sharpness term max over ‖ε‖ₚ ≤ ρ of L(w+ε) − L(w), with how good the maximum found is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.choices import Scale
from landscape.errors import InvalidArgumentError, LossError, NonFiniteError
from landscape.evaluate import Engine, Evaluator
from landscape.linalg.krylov import dot
from landscape.measurement import Run, Work, error_of_difference
from landscape.problem import Problem, check_problem
from landscape.processes import shards, sum_over_shards
from landscape.randomness import next_seed
from landscape.results import FloatArray, Sharpness
from landscape.sharpness._ascent import Point
from landscape.sharpness._ball import Ball
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._quadratic import QuadraticModel
from landscape.sharpness._search import (
    VERSION,
    Search,
    SearchOptions,
    model_fields,
    warn_of_search,
)
from landscape.study import Study

_ESCAPES = 2  # from saddles that the second-order check finds
_ESCAPE = 0.3  # of the radius, along the tangent
_CONDITION_PRODUCTS = 12
_TOL = 1e-2
_CLEAR = 0.25  # residual over |μ − λ|, so that the sign is clear


def sharpness(
    problem: Problem,
    rho: float = 0.05,
    *,
    p: float = 2.0,
    adaptive: Scale = "none",
    eta: float = 0.0,
    tol: float = 1e-4,
    max_gradients: int = 200,
    eigenvectors: FloatArray | None = None,
    start: FloatArray | None = None,
    seed: int = 0,
    memory: float | None = None,
    study: Study | None = None,
    progress: bool | None = None,
) -> Sharpness:
    """Measure max over ‖T⁻¹ε‖ₚ ≤ ρ of L(w+ε) − L(w), over the whole data set.

    Climbs from the dual of the gradient (SAM's one-step estimate; for p = ∞ ten steps with
    momentum), and from the maximiser of the quadratic model of the loss at w. Unless these two
    agree (p = 2 and ∞), also from ten steps with momentum (p = 2), minus the gradient, ± the top
    eigenvector, a random point, and vertices (p = 1 and ∞). The highest climb goes on until the
    relative Frank-Wolfe gap (ρ‖G‖_q − Gᵀε) / (ρ‖G‖_q), G = ∇L(w+ε), is at most ``tol``; for p = 2
    the second-order condition is checked at its end.

    The value is a lower bound on the maximum, and never below the one-step value nor below 0. The
    gap does not prove that it is the global one: a loss that curves upwards has local maxima.
    Points where the loss overflows are left out, with a warning.

    Args:
        problem: what to measure.
        rho: radius ρ, in the units of the weights; in an adaptive ball relative to T.
        p: order of the norm, at least 1; ``math.inf`` is allowed.
        adaptive: scale T: ``none`` (the identity), ``elementwise`` (|w| + η) or ``filterwise`` (the
            norm of the filter, + η). Where T is zero, nothing moves.
        eta: η that is added to the scale, see `parameter_scale`.
        tol: relative gap to reach.
        max_gradients: gradient passes to spend at most, after scouting.
        eigenvectors: directions to start from, shape (k, n), in place of the quadratic model; in
            an adaptive ball those of THT.
        start: an ε to start from beside the others, shape (n,), such as that of another radius.
        seed: of the random start.
        memory: bytes to use beyond the model, its checkpoint and the graph: the quadratic model and
            the L-BFGS history are shortened to fit, and a note says so. None: twelve vectors of
            length n, or 64 MiB if that is more.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The largest rise found, ε, and the evidence. Cost: ``gradients`` gradient passes; three
        to eight Hessian-vector products for the quadratic model, 12 at most for each of up to
        three checks of the second-order condition and 11 for each of up to three second-order
        steps; two forward passes, and one for each vertex that is tried.

    Raises:
        InvalidArgumentError: if ρ is not above zero, p is below 1, T is zero throughout, a setting
            is out of range, or the memory holds no climb.

    References:
        Foret, Kleiner, Mobahi, Neyshabur (2021), arXiv:2010.01412; Kwon, Kim, Park, Choi (2021),
        arXiv:2102.11600.
    """
    check_problem(problem)
    ball = Ball(float(rho), float(p), adaptive, eta)
    options = SearchOptions(tol=tol, max_gradients=max_gradients, seed=seed, memory=memory)
    if shards() is not None and ball.p != 2:
        msg = f"p = {ball.p:g}: of parameters that are split over processes only p = 2 is measured"
        raise InvalidArgumentError(msg)
    options.room(problem, ball)  # refuses too little memory before anything is run
    n = problem.space.n
    if eigenvectors is not None:
        eigenvectors = np.atleast_2d(np.asarray(eigenvectors))
        if eigenvectors.shape[1:] != (n,) or not np.isfinite(eigenvectors).all():
            msg = (
                f"expected finite eigenvectors of shape (k, {n}), one in each row and as long as "
                f"the model has parameters, got shape {eigenvectors.shape}"
            )
            raise InvalidArgumentError(msg)
    if start is not None:
        start = np.asarray(start)
        if start.shape != (n,) or not np.isfinite(start).all():
            msg = f"expected a finite start ε of shape ({n},), got shape {start.shape}"
            raise InvalidArgumentError(msg)
    settings = {
        "rho": ball.rho,
        "p": ball.p,
        **ball.scaling,
        **options.settings,
        "eigenvectors": None if eigenvectors is None else _digest(eigenvectors),
        **({} if start is None else {"start": _digest(start)}),
        "search": VERSION,
    }

    def measure(work: Work) -> dict[str, Any]:
        objective = BallObjective(work.evaluator, ball, count=work.count)
        search = Search(objective, ball, options)
        search.explore(eigenvectors=eigenvectors, start=start)
        search.polish()
        return _fields(search, check_second_order(search))

    run = Run(study=study, seed=seed, progress=progress)
    result = run.record(Sharpness, problem, settings, measure, unit="gradient")
    warn_of_search(
        result.n_overflowed,
        f"points of the ball of radius {result.rho:g}",
        radius=result.finite_radius,
        notes=result.notes,
    )
    return result


def check_second_order(search: Search) -> SecondOrder | None:
    """Check the second-order condition on the sphere, and go on where it fails."""
    ball, origin, most = search.ball, search.origin, min(_CONDITION_PRODUCTS, search.room.products)
    for i in range(_ESCAPES + 1):
        best = search.best
        if ball.p != 2 or best.is_inside(ball) or not best.usable or origin.n_free < 2:
            return None
        try:
            matvec = origin.curvature(best.epsilon)
            start = origin.drawn(next_seed(search.options.seed))
            condition = second_order(matvec, best, ball.rho, start, max_products=most)
        except (LossError, NonFiniteError):
            return None
        del matvec, start  # not to be held while the search climbs
        if not condition.fails or search.left < 4 or i == _ESCAPES:
            break
        for sign, name, share in ((1, "+", 0.5), (-1, "-", 1.0)):
            there = [best.epsilon.add(condition.direction, alpha=sign * _ESCAPE * ball.rho)]
            search.go_on_at(f"{name}tangent {i + 1}", there, share=share)
        if search.best.value <= best.value:
            break
    return condition


@dataclass(frozen=True)
class SecondOrder:
    """The second-order condition at a point d of the sphere ‖d‖₂ = ρ."""

    multiplier: float  # μ = Gᵀd / ρ²
    smallest: float  # smallest eigenvalue of μI − H on the tangent space
    error: float  # residual of that eigenvalue
    direction: Tensor  # its unit eigenvector, shape (n,)

    @property
    def fails(self) -> bool:
        """Whether the loss rises along a tangent, by more than the errors."""
        return self.smallest < -max(self.error, 1e-3 * abs(self.multiplier))


def second_order(
    matvec: Callable[[Tensor], Tensor],
    point: Point,
    rho: float,
    start: Tensor,
    *,
    max_products: int = _CONDITION_PRODUCTS,
) -> SecondOrder:
    """Find the smallest eigenvalue of μI − H on the tangent space of the sphere.

    On the sphere a maximum needs (μI − H) ≥ 0 on the tangents; below zero, ε is a saddle.
    """
    epsilon = point.epsilon
    square = dot(epsilon, epsilon)

    def tangent_(v: Tensor) -> Tensor:
        return v.sub_(epsilon, alpha=dot(epsilon, v) / square)

    model = QuadraticModel(
        lambda v: tangent_(matvec(v)),  # the basis is of tangents
        None,
        tangent_(start),
        max_products=min(max_products, max(1, int(sum_over_shards(len(epsilon))) - 1)),
    )
    multiplier = point.along / rho**2
    model.grow(rho, tol=_TOL)
    if not model.products:  # the sphere has no tangent, or the start is not of it
        return SecondOrder(multiplier, math.inf, 0.0, torch.zeros_like(epsilon))
    while model.top_error > _CLEAR * abs(multiplier - model.top_value) and not model.is_full:
        before = model.products
        model.grow(rho, tol=0.0, max_products=before + 1)
        if model.products == before:
            break
    value, residual, direction = model.top()
    return SecondOrder(multiplier, multiplier - value, residual, direction)


def error_of_rise(evaluator: Evaluator, epsilon: Tensor) -> float:
    """Return the standard error of L(w+ε) − L(w) over the examples, ε being as it is."""
    vectors = [evaluator.origin + epsilon, evaluator.origin]
    after, before = Engine(evaluator).losses(vectors, keep=True)
    return error_of_difference(evaluator.problem, after, before)


def _fields(search: Search, condition: SecondOrder | None) -> dict[str, Any]:
    """Return the fields of the record."""
    origin, ball, best, gap = search.origin, search.ball, search.best, search.gap
    spread = origin.evaluator.problem.space.spread
    epsilon, climbs = origin.scaled(best.epsilon).contiguous(), list(search.climbs.values())
    fields = {
        "value": best.value,
        "value_se": error_of_rise(origin.evaluator, epsilon),
        "one_step": search.one_step,
        "gap": gap,
        "gradients": origin.evaluator.passes["gradients"],
        **vars(ball),
        "loss": origin.loss,
        "norm": best.norm,
        "converged": gap <= search.tol,
        "epsilon": (epsilon if spread is None else spread.whole(epsilon)).cpu().numpy(),
        "starts": tuple(search.climbs),
        "start_values": np.array([climb.height for climb in climbs]),
        "start_gaps": np.array([climb.gap for climb in climbs]),
        "slope": search.slope,
        **model_fields(search),
        "n_overflowed": origin.n_overflowed,
        "finite_radius": origin.farthest if origin.n_overflowed else math.nan,
        "notes": search.notes,
    }
    if condition is not None:
        fields |= {
            "multiplier": condition.multiplier,
            "second_order": condition.smallest,
            "second_order_error": condition.error,
        }
    return fields


def _digest(values: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
