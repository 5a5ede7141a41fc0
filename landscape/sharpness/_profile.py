"""Sharpness at many radii, each search warmed by the one before."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from landscape.errors import InvalidArgumentError, NonFiniteWarning
from landscape.measurement import Run, Work
from landscape.problem import Problem
from landscape.results import FloatArray, Profile
from landscape.sharpness._ascent import Place
from landscape.sharpness._ball import Ball
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._search import ROUTINE, VERSION, Search
from landscape.sharpness._worst_case import (
    check_search,
    model_fields,
    room_for,
    scale_of,
    scale_settings,
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
    check_search(tol, max_gradients)
    within = room_for(problem, memory, adaptive)
    asked = None if rhos is None else _checked_radii(rhos)
    scaled = scale_settings(adaptive, eta)
    norm = Ball(1.0, float(p)).norm
    scale = scale_of(problem, adaptive, eta)
    size = _weight_norm(problem, scale, norm)
    radii = _default_radii(size) if asked is None else asked
    settings = {
        "rhos": radii.tolist(),
        "p": float(p),
        **scaled,
        "tol": tol,
        "max_gradients": max_gradients,
        "seed": seed,
        "search": VERSION,
        **({} if memory is None else {"memory": memory}),
    }

    def measure(work: Work) -> dict[str, Any]:
        objective = BallObjective(work.evaluator, scale=scale, count=work.count)
        options = {"tol": tol, "max_gradients": max_gradients, "room": within}
        notes: list[str] = []
        rows = _climb_radii(objective, radii, float(p), options, seed, notes)
        return {
            "rhos": radii,
            **{name: np.array([row[name] for row in rows]) for name in rows[0]},
            "loss": objective.loss,
            "weight_norm": size,
            "gradients": work.evaluator.passes["gradients"],
            "p": float(p),
            "adaptive": adaptive,
            "eta": eta,
            "tol": tol,
            "n_overflowed": objective.n_overflowed,
            "finite_radius": objective.farthest if objective.n_overflowed else math.nan,
            "notes": tuple(dict.fromkeys(notes)),
        }

    run = Run(study=study, seed=seed, progress=progress)
    result = run.record(Profile, problem, settings, measure, unit="gradient")
    _warn(result)
    return result


def _climb_radii(
    origin: BallObjective,
    radii: FloatArray,
    p: float,
    options: dict[str, Any],
    seed: int,
    notes: list[str],
) -> list[dict[str, float]]:
    """Search at each radius, from the maximiser of the one before; what is to be said is added."""
    rows: list[dict[str, float]] = []
    below, model = origin.point.place(Ball(1.0, p)), None
    for rho in radii:
        search = Search(origin, Ball(float(rho), p), **options)
        search.model = model
        if below.norm > 0:
            search.start_at("smaller radius", below.epsilon.clone())
            search.start_at("smaller radius, stretched", below.epsilon * (rho / below.norm))
        # One model serves all radii, so that it may be a good one.
        search.explore(seed=seed, few_products=search.room.products)
        search.polish()
        rows.append(_row(search, below))
        notes += search.notes
        model = search.model
        below = search.best if search.best.value >= below.value else below
    return rows


def _row(search: Search, below: Place) -> dict[str, float]:
    best, gap = search.best, search.gap
    slope = search.ball.dual_norm(search.origin.point.gradient)
    if best.value < below.value:  # what was found at a smaller radius lies in this ball too
        best, gap = below, below.gap(search.ball, slope=slope, noise=0.0)
    model = model_fields(search)
    rho, top = search.ball.rho, model.get("top_eigenvalue", math.nan)
    return {
        "values": best.value,
        "one_steps": search.one_step,
        "gaps": gap,
        "norms": best.norm,
        "predictions": rho * slope + 0.5 * rho**2 * max(top, 0.0)
        if search.ball.p == 2
        else math.nan,
        "quadratic_maxima": model.get("quadratic_maximum", math.nan),
    }


def _default_radii(size: float) -> FloatArray:
    if not size > 0:
        msg = "all weights are zero, so that no radius is relative to them: give rhos"
        raise InvalidArgumentError(msg)
    low, high = _RELATIVE
    return np.asarray(size * np.geomspace(low, high, _N_RADII))


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


def _weight_norm(problem: Problem, scale: torch.Tensor | None, norm: Any) -> float:
    """Return ‖T⁻¹w‖ₚ over the entries where T is not zero."""
    weights = problem.weights
    if scale is not None:
        weights = torch.where(scale != 0, weights / scale, 0.0)
    return float(norm(weights))


def _warn(result: Profile) -> None:
    for note in result.notes:
        if not note.startswith(ROUTINE):
            warnings.warn(note, stacklevel=3)
    if result.n_overflowed:
        msg = (
            f"the loss or its gradient overflowed at {result.n_overflowed} points; they were left "
            f"out of the search; the largest radius with a finite loss was "
            f"{result.finite_radius:g}"
        )
        warnings.warn(msg, NonFiniteWarning, stacklevel=3)
