"""Sharpness at many radii, each search warmed by the one before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from landscape.errors import InvalidArgumentError
from landscape.measurement import Run, Work
from landscape.problem import Problem, check_problem
from landscape.results import FloatArray, Profile
from landscape.sharpness._ascent import Point
from landscape.sharpness._ball import Ball
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._search import (
    VERSION,
    Search,
    SearchOptions,
    model_fields,
    warn_of_search,
)
from landscape.study import Study

_RELATIVE = (1e-4, 1e-1)  # smallest and largest of the default radii, relative to the weights
_N_RADII = 7


def sharpness_profile(
    problem: Problem,
    rhos: Sequence[float] | FloatArray | None = None,
    *,
    p: float = 2.0,
    adaptive: str = "none",
    eta: float = 0.0,
    tol: float = 1e-4,
    max_gradients: int = 100,
    seed: int = 0,
    memory: float | None = None,
    study: Study | None = None,
    progress: bool | None = None,
) -> Profile:
    """Measure S(ρ) = max over ‖T⁻¹ε‖ₚ ≤ ρ of L(w+ε) − L(w) at several radii.

    Each radius is searched from the starts of `sharpness`, and from the maximiser of the next
    smaller one, as it is and stretched to the boundary. What was found at a smaller radius lies in
    every larger ball: the values never fall.

    Args:
        problem: what to measure.
        rhos: radii, ascending; None: seven from 1e-4 to 1e-1 of ‖T⁻¹w‖ₚ, evenly in log ρ.
        p: order of the norm.
        adaptive: T, as for `sharpness`.
        eta: η, as for `sharpness`.
        tol: relative gap to reach at each.
        max_gradients: gradient passes to spend at most on each, after scouting.
        seed: of the random start.
        memory: bytes to use beyond model, data and graph, as for `sharpness`.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The values, with one-step values, gaps and the quadratic model at each radius. Cost: that
        of `sharpness` for each radius, without the check of the second-order condition; one
        quadratic model at w serves all of them.

    Raises:
        InvalidArgumentError: if the radii are not positive, finite and ascending, or an argument
            is out of its range.
    """
    check_problem(problem)
    options = SearchOptions(tol=tol, max_gradients=max_gradients, seed=seed, memory=memory)
    unit = Ball(1.0, float(p), adaptive, eta)
    options.room(problem, unit)  # refuses too little memory before anything is run
    radii, size = None if rhos is None else _checked_radii(rhos), _weight_norm(problem, unit)
    if radii is None:
        if not size > 0:
            msg = "all weights are zero, so that no radius is relative to them: give rhos"
            raise InvalidArgumentError(msg)
        radii = np.asarray(size * np.geomspace(*_RELATIVE, _N_RADII))
    settings = {
        "rhos": radii.tolist(),
        "p": unit.p,
        **unit.scaling,
        **options.settings,
        "search": VERSION,
    }

    def measure(work: Work) -> dict[str, Any]:
        objective = BallObjective(work.evaluator, unit, count=work.count)
        notes: list[str] = []
        rows = list(
            _climb_radii(objective, [replace(unit, rho=r) for r in radii.tolist()], options, notes)
        )
        return {
            "rhos": radii,
            **{name: np.array([row[name] for row in rows]) for name in rows[0]},
            "loss": objective.loss,
            "weight_norm": size,
            "gradients": work.evaluator.passes["gradients"],
            "p": unit.p,
            "adaptive": adaptive,
            "eta": eta,
            "tol": tol,
            "n_overflowed": objective.n_overflowed,
            "finite_radius": objective.farthest if objective.n_overflowed else math.nan,
            "notes": tuple(dict.fromkeys(notes)),
        }

    run = Run(study=study, seed=seed, progress=progress)
    result = run.record(Profile, problem, settings, measure, unit="gradient")
    warn_of_search(result.n_overflowed, "points", radius=result.finite_radius, notes=result.notes)
    return result


def _climb_radii(
    origin: BallObjective, balls: Sequence[Ball], options: SearchOptions, notes: list[str]
) -> Iterator[dict[str, float]]:
    """Search each ball, from the maximiser of the one before, and add the notes of the searches."""
    below, model = origin.point, None
    for ball in balls:
        search = Search(origin, ball, options)
        search.model = model
        if below.norm > 0:
            search.start_at("smaller radius", below.epsilon.clone())
            search.start_at("smaller radius, stretched", below.epsilon * (ball.rho / below.norm))
        # One model serves all radii, so that it may be a good one.
        search.explore(few_products=search.room.products)
        search.polish()
        yield _row(search, below)
        notes += search.notes
        model = search.model
        below = search.best if search.best.value >= below.value else below


def _row(search: Search, below: Point) -> dict[str, float]:
    best, gap, rho, slope = search.best, search.gap, search.ball.rho, search.slope
    if best.value < below.value:  # a maximiser of a smaller radius lies in this ball too
        best, gap = below, below.gap(search.ball, slope=slope, noise=0.0)
    model = model_fields(search)
    prediction = rho * slope + 0.5 * rho**2 * max(model.get("top_eigenvalue", math.nan), 0.0)
    return {
        "values": best.value,
        "one_steps": search.one_step,
        "gaps": gap,
        "norms": best.norm,
        "predictions": prediction if search.ball.p == 2 else math.nan,
        "quadratic_maxima": model.get("quadratic_maximum", math.nan),
    }


def _checked_radii(rhos: Any) -> FloatArray:
    radii = np.asarray(rhos, dtype=np.float64)
    fits = radii.ndim == 1 and radii.size and np.isfinite(radii).all() and radii[0] > 0
    if not fits or (np.diff(radii) <= 0).any():
        msg = (
            "rhos must be finite radii above zero in ascending order without repeats, got "
            f"{radii.tolist()}"
        )
        raise InvalidArgumentError(msg)
    return radii


def _weight_norm(problem: Problem, ball: Ball) -> float:
    """Return ‖T⁻¹w‖ₚ over the entries where T is not zero."""
    weights, scale = problem.weights, ball.scale(problem)
    if scale is not None:
        weights = torch.where(scale != 0, weights / scale, 0.0)
    return ball.norm(weights)
