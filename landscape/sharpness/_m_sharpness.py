"""m-sharpness: the mean over disjoint subsets of the largest rise on each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.checks import check_real, whole
from landscape.errors import InvalidArgumentError, NonFiniteWarning, one_of
from landscape.evaluate import Evaluator
from landscape.measurement import cached_measurement, grid_of, missing, resumable
from landscape.problem import Problem
from landscape.results import Cost, Provenance, SubsetSharpness
from landscape.sharpness._auto_pgd import auto_pgd
from landscape.sharpness._ball import Ball
from landscape.sharpness._memory import Room
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._search import VERSION, Search
from landscape.sharpness._worst_case import check_search, room_for, scale_of, scale_settings
from landscape.study import Study

PROTOCOLS = ("search", "auto-pgd")
PUBLISHED: Mapping[str, Any] = {"m": 128, "n_examples": 1024, "protocol": "auto-pgd"}
"""The protocol of Andriushchenko et al. (2023): arguments of `m_sharpness`; mode ``eval``."""

_COUNTS = ("forwards", "gradients", "hvps", "seconds")


def m_sharpness(
    problem: Problem,
    rho: float = 0.05,
    *,
    m: int = 128,
    n_examples: int | None = None,
    p: float = 2.0,
    adaptive: str = "none",
    eta: float = 0.0,
    protocol: str = "search",
    tol: float = 1e-4,
    max_gradients: int = 200,
    seed: int = 0,
    memory: float | None = None,
    study: Study | None = None,
    progress: bool | None = None,
) -> SubsetSharpness:
    """Measure the mean over disjoint subsets B of max over ‖T⁻¹ε‖ₚ ≤ ρ of L_B(w+ε) − L_B(w).

    The subsets are m examples each, in the order of the data, and each has its own ε; what fills
    no subset at the end is left out. Each is searched as `sharpness` does it, without the check of
    the second-order condition.

    Args:
        problem: what to measure.
        rho: radius ρ.
        m: examples in a subset.
        n_examples: use only so many examples from the beginning; None: all.
        p: order of the norm.
        adaptive: T, as for `sharpness`.
        eta: η, as for `sharpness`.
        protocol: ``search``; or ``auto-pgd``: 20 steps of Auto-PGD from ε = 0, p = 2 or ∞, which
            papers report with m = 128, the first 1,024 training examples and ``eval`` mode.
        tol: relative gap to reach.
        max_gradients: gradient passes to spend at most on a subset, after scouting.
        seed: of the random start.
        memory: bytes to use beyond model, data and graph, as for `sharpness`; for ``search`` only.
        study: where the result is kept, and each subset as soon as it is measured.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The values of all subsets, with their one-step values and gaps. Cost: that of `sharpness`
        on each subset; 21 gradient passes for Auto-PGD.

    Raises:
        InvalidArgumentError: if there are fewer than m examples, or an argument is out of its
            range.

    References:
        Foret, Kleiner, Mobahi, Neyshabur (2021), arXiv:2010.01412; Andriushchenko, Croce, Müller,
        Hein, Flammarion (2023), arXiv:2302.07011.
    """
    check_real(tol=tol)
    m, max_gradients = whole("m", m), whole("max_gradients", max_gradients)
    n_examples = None if n_examples is None else whole("n_examples", n_examples)
    ball = Ball(float(rho), float(p))
    one_of(protocol, PROTOCOLS, what="protocol")
    check_search(tol, max_gradients)
    if protocol != "search" and memory is not None:
        msg = f"memory = {memory!r} bounds a search, and protocol is {protocol!r}: leave it out"
        raise InvalidArgumentError(msg)
    within = room_for(problem, memory, adaptive) if protocol == "search" else Room()
    n = _examples(problem, m, n_examples)
    settings = {
        "rho": ball.rho,
        "p": ball.p,
        "m": m,
        "n_examples": n_examples,
        **scale_settings(adaptive, eta),
        "protocol": protocol,
        "tol": tol,
        "max_gradients": max_gradients,
        "seed": seed,
        **({"search": VERSION} if protocol == "search" else {}),
        **({} if memory is None else {"memory": memory}),
    }

    def one_subset(i: int) -> dict[str, float]:
        part = problem.on_examples(i * m, (i + 1) * m)
        with Evaluator(part, seed=seed) as evaluator:
            origin = BallObjective(evaluator, scale=scale_of(part, adaptive, eta))
            if protocol == "auto-pgd":
                found = _by_auto_pgd(origin, ball)
            else:
                search = Search(origin, ball, tol=tol, max_gradients=max_gradients, room=within)
                found = _by_search(search, seed)
            cost = {name: float(getattr(evaluator.cost, name)) for name in _COUNTS}
            return found | cost | {"loss": origin.loss, "overflowed": float(origin.n_overflowed)}

    def measure(provenance: Provenance) -> SubsetSharpness:
        grid = grid_of(study, SubsetSharpness.kind, provenance, settings, (n // m, 1))
        done = {} if grid is None else dict(grid.done)
        subsets = [(i, 0) for i in range(n // m)]
        what = f"m-sharpness of {problem.name}"
        blocks = missing(subsets, done, what=what, progress=progress)
        resumable(blocks, lambda some: [one_subset(i) for i, _ in some], done=done, kept=grid)
        columns = _columns([done[subset] for subset in subsets])
        return SubsetSharpness(
            values=columns["value"],
            one_steps=columns["one_step"],
            gaps=columns["gap"],
            losses=columns["loss"],
            gradients=int(columns["gradients"].sum()),
            n_overflowed=int(columns["overflowed"].sum()),
            m=m,
            n_left_out=n % m,
            rho=ball.rho,
            p=ball.p,
            adaptive=adaptive,
            eta=eta,
            tol=tol,
            protocol=protocol,
            notes=(within.note,) if within.note else (),
            settings=settings,
            cost=_total_cost(columns),
            provenance=provenance,
        )

    result = cached_measurement(SubsetSharpness, problem, settings, study, measure)
    _warn(result)
    return result


def _examples(problem: Problem, m: int, n_examples: int | None) -> int:
    n = problem.batches.n_examples
    if n_examples is not None and not 1 <= n_examples <= n:
        msg = (
            f"{n_examples:,} examples were asked for, and the {problem.split} data of "
            f"{problem.name} have {n:,}: ask for fewer"
        )
        raise InvalidArgumentError(msg)
    used = n if n_examples is None else n_examples
    if not 1 <= m <= used:
        msg = f"m must be from 1 to the number of examples, {used:,}; got {m}"
        raise InvalidArgumentError(msg)
    return used


def _by_search(search: Search, seed: int) -> dict[str, float]:
    search.explore(seed=seed)
    search.polish()
    return {"value": search.best.value, "one_step": search.one_step, "gap": search.gap}


def _by_auto_pgd(origin: BallObjective, ball: Ball) -> dict[str, float]:
    found = auto_pgd(origin.objective, ball, origin.point)
    slope = ball.dual_norm(origin.point.gradient)
    rounding = np.finfo(origin.point.gradient.cpu().numpy().dtype).eps * abs(origin.loss)
    gap = found.best.gap(ball, slope=slope, noise=float(rounding))
    # Its first step, 2ρ long and projected, is SAM's own.
    return {"value": found.best.value, "one_step": found.values[0], "gap": gap}


def _columns(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _total_cost(columns: dict[str, Any]) -> Cost:
    """Return the cost in passes over the whole of the subsets, not over one of them."""
    k = len(columns["value"])
    passes = {name: round(float(columns[name].sum()) / k) for name in _COUNTS[:3]}
    return Cost(**passes, seconds=float(columns["seconds"].sum()))


def _warn(result: SubsetSharpness) -> None:
    if result.n_overflowed:
        msg = (
            f"the loss or its gradient overflowed at {result.n_overflowed} points of the balls of "
            f"radius {result.rho:g}; they were left out of the search"
        )
        warnings.warn(msg, NonFiniteWarning, stacklevel=3)
