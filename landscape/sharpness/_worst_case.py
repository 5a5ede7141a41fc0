"""The sharpness term max over ‖ε‖ₚ ≤ ρ of L(w+ε) − L(w), with how good the maximum found is."""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import Any

import numpy as np
import torch

from landscape.checks import check_real
from landscape.choices import Scale
from landscape.errors import (
    InvalidArgumentError,
    LossError,
    NonFiniteError,
    NonFiniteWarning,
    one_of,
)
from landscape.measurement import Run, Work
from landscape.operators import SCALES, parameter_scale
from landscape.problem import Problem
from landscape.randomness import next_seed
from landscape.results import FloatArray, Sharpness
from landscape.sharpness._ball import Ball
from landscape.sharpness._memory import Room, room
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._optimality import PRODUCTS, SecondOrder, error_of_rise, second_order
from landscape.sharpness._search import ROUTINE, VERSION, Search, checked_eigenvectors
from landscape.study import Study

_ESCAPES = 2  # from saddles that the second-order check finds
_ESCAPE = 0.3  # of the radius, along the tangent


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

    Climbs from several starts, one after another: from the dual of the gradient (SAM's one-step
    estimate; for p = ∞ by ten steps with momentum), and from the maximiser of the quadratic
    model of the loss at w. Where these two come to the same and the gap is met, that is all for
    p = 2 and ∞; else also from ten steps with momentum (p = 2), minus the gradient, ± the top
    eigenvector, and a random point; for p = 1 also from the vertices of the four largest entries
    of each, and for p = 1 and ∞ from the best of all vertices where there are at most 256. A climb
    ends where it meets a higher one, or is not the highest after eight passes; else it goes on
    until the relative Frank-Wolfe gap (ρ‖G‖_q − Gᵀε) / (ρ‖G‖_q), G = ∇L(w+ε), is at most ``tol``,
    with second-order steps for p = 2 where the passes were not enough. For p = 2 the second-order
    condition is checked at the end, and the search goes on where it fails. The value is a lower
    bound on the maximum, and never below the one-step value nor below 0 (ε = 0 is in the ball).
    Points where the loss overflows are left out of it, with a warning.

    The gap alone does not prove that the maximum is global: a loss that curves upwards has local
    ones. On quadratic losses with p = 2 the tests hold the value to the exact maximum, to 1e-6
    where ``tol`` is 1e-10 and to 2 % where it is 1e-3; for p = 1 and ∞ a higher vertex may exist.

    Args:
        problem: what to measure.
        rho: radius ρ, in the units of the weights; in an adaptive ball relative to T.
        p: order of the norm, at least 1; ``math.inf`` is allowed.
        adaptive: T: ``none`` (the identity), ``elementwise`` (|w| + η) or ``filterwise`` (the norm
            of the filter, + η). Where T is zero, nothing moves.
        eta: η, see `parameter_scale`.
        tol: relative gap to reach.
        max_gradients: gradient passes to spend at most, after scouting.
        eigenvectors: directions to start from, shape (k, n), in place of the quadratic model that
            is otherwise found with a few Hessian-vector products; in an adaptive ball those of
            THT.
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
    ball = Ball(float(rho), float(p))
    check_search(tol, max_gradients)
    within = room_for(problem, memory, adaptive)
    if eigenvectors is not None:
        eigenvectors = checked_eigenvectors(eigenvectors, problem.space.n)
    if start is not None:
        start = _checked_start(start, problem.space.n)
    settings = {
        "rho": ball.rho,
        "p": ball.p,
        **scale_settings(adaptive, eta),
        "tol": tol,
        "max_gradients": max_gradients,
        "eigenvectors": None if eigenvectors is None else _digest(eigenvectors),
        **({} if start is None else {"start": _digest(start)}),
        "seed": seed,
        "search": VERSION,
        **({} if memory is None else {"memory": memory}),
    }

    def measure(work: Work) -> dict[str, Any]:
        scale = scale_of(problem, adaptive, eta)
        objective = BallObjective(work.evaluator, scale=scale, count=work.count)
        search = Search(objective, ball, tol=tol, max_gradients=max_gradients, room=within)
        search.explore(eigenvectors=eigenvectors, start=start, seed=seed)
        search.polish()
        return _fields(search, _checked(search, seed), settings, tol)

    run = Run(study=study, seed=seed, progress=progress)
    result = run.record(Sharpness, problem, settings, measure, unit="gradient")
    _warn(result)
    return result


def check_search(tol: float, max_gradients: int) -> None:
    """Refuse a search that cannot end, or not begin."""
    if not 0 < tol < 1 or max_gradients < 1:
        msg = f"expected 0 < tol < 1 and max_gradients ≥ 1, got {tol!r} and {max_gradients!r}"
        raise InvalidArgumentError(msg)


def scale_settings(adaptive: str, eta: float) -> dict[str, Any]:
    """Return what identifies the scale T; nothing for the plain ball."""
    one_of(adaptive, SCALES, what="scale of an adaptive ball")
    if adaptive != "none":
        return {"adaptive": adaptive, "eta": eta}
    if eta != 0:
        msg = f"eta = {eta!r} belongs to an adaptive ball: give adaptive='elementwise' too"
        raise InvalidArgumentError(msg)
    return {}


def room_for(problem: Problem, memory: float | None, adaptive: str) -> Room:
    """Return what a search has memory for."""
    check_real(or_none=True, memory=memory)
    size = problem.space.n * problem.dtype.itemsize
    return room(size, memory, scaled=adaptive != "none")


def scale_of(problem: Problem, adaptive: str, eta: float) -> torch.Tensor | None:
    """Return the diagonal of T.

    Args:
        problem: gives the weights.
        adaptive: ``none``, ``elementwise`` or ``filterwise``.
        eta: what is added to the diagonal.

    Returns:
        Shape (n,); None for the plain ball.
    """
    return None if adaptive == "none" else parameter_scale(problem, adaptive, eta=eta)


def _checked(search: Search, seed: int) -> SecondOrder | None:
    """Check the second-order condition on the sphere, and go on where it fails."""
    condition = _condition(search, seed)
    for i in range(_ESCAPES):
        if condition is None or not condition.fails or search.left < 4:
            return condition
        before, best = search.best.value, search.best.epsilon
        for sign, name, share in ((1, "+", 0.5), (-1, "-", 1.0)):
            there = [best.add(condition.direction, alpha=sign * _ESCAPE * search.ball.rho)]
            search.go_on_at(f"{name}tangent {i + 1}", there, share=share)
        if search.best.value <= before:
            return condition
        condition = _condition(search, seed)
    return condition


def _condition(search: Search, seed: int) -> SecondOrder | None:
    best, ball, origin = search.best, search.ball, search.origin
    if ball.p != 2 or best.is_inside(ball) or not best.usable or origin.n_free < 2:
        return None
    try:
        matvec, start = origin.curvature(best.epsilon), origin.drawn(next_seed(seed))
        most = min(PRODUCTS, search.room.products)
        return second_order(matvec, best, ball.rho, start, max_products=most)
    except (LossError, NonFiniteError):
        return None


def _fields(
    search: Search,
    condition: SecondOrder | None,
    settings: dict[str, Any],
    tol: float,
) -> dict[str, Any]:
    """Return the fields of the record."""
    origin, ball, best, gap = search.origin, search.ball, search.best, search.gap
    epsilon, climbs = origin.scaled(best.epsilon).contiguous(), list(search.climbs.values())
    return dict(
        value=best.value,
        value_se=error_of_rise(origin.evaluator, epsilon),
        one_step=search.one_step,
        gap=gap,
        gradients=origin.evaluator.passes["gradients"],
        rho=ball.rho,
        p=ball.p,
        adaptive=settings.get("adaptive", "none"),
        eta=settings.get("eta", 0.0),
        loss=origin.loss,
        norm=best.norm,
        converged=gap <= tol,
        epsilon=epsilon.cpu().numpy(),
        starts=tuple(search.climbs),
        start_values=np.array([climb.height for climb in climbs]),
        start_gaps=np.array([climb.gap for climb in climbs]),
        slope=ball.dual_norm(origin.point.gradient),
        **model_fields(search),
        **({} if condition is None else _condition_fields(condition)),
        n_overflowed=origin.n_overflowed,
        finite_radius=origin.farthest if origin.n_overflowed else math.nan,
        notes=search.notes,
    )


def model_fields(search: Search) -> dict[str, float]:
    """Return what the quadratic model at the checkpoint says, where there is one."""
    model = search.model
    if model is None or not model.products:
        return {}
    found = {"top_eigenvalue": model.top_value}
    return found | (
        {"quadratic_maximum": model.rise(search.ball.rho)} if search.ball.p == 2 else {}
    )


def _condition_fields(condition: SecondOrder) -> dict[str, float]:
    return {
        "multiplier": condition.multiplier,
        "second_order": condition.smallest,
        "second_order_error": condition.error,
    }


def _warn(result: Sharpness) -> None:
    if result.n_overflowed:
        msg = (
            f"the loss or its gradient overflowed at {result.n_overflowed} points of the ball of "
            f"radius {result.rho:g}; they were left out of the search; the largest radius with a "
            f"finite loss was {result.finite_radius:g}"
        )
        warnings.warn(msg, NonFiniteWarning, stacklevel=3)
    for note in result.notes:
        if not note.startswith(ROUTINE):
            warnings.warn(note, stacklevel=3)


def _checked_start(values: Any, n: int) -> FloatArray:
    epsilon: FloatArray = np.asarray(values)
    if epsilon.shape != (n,) or not np.isfinite(epsilon).all():
        msg = f"expected a finite start ε of shape ({n},), got shape {epsilon.shape}"
        raise InvalidArgumentError(msg)
    return epsilon


def _digest(values: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
