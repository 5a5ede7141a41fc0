"""m-sharpness: the mean over disjoint subsets of the largest rise on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from landscape.checks import whole
from landscape.errors import InvalidArgumentError, one_of
from landscape.evaluate import Evaluator
from landscape.measurement import Columns, cached_measurement, grid_of, one_by_one
from landscape.problem import Problem, check_problem
from landscape.results import Cost, Provenance, SubsetSharpness
from landscape.sharpness._auto_pgd import auto_pgd
from landscape.sharpness._ball import Ball
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._search import VERSION, Search, SearchOptions, warn_of_search
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
    check_problem(problem)
    m, max_gradients = whole("m", m), whole("max_gradients", max_gradients)
    n_examples = None if n_examples is None else whole("n_examples", n_examples)
    ball = Ball(float(rho), float(p), adaptive, eta)
    one_of(protocol, PROTOCOLS, what="protocol")
    options = SearchOptions(tol=tol, max_gradients=max_gradients, seed=seed, memory=memory)
    note, search = "", {}
    if protocol == "search":
        note, search = options.room(problem, ball).note, {"search": VERSION}
    elif memory is not None:
        msg = f"memory = {memory!r} bounds a search, and protocol is {protocol!r}: leave it out"
        raise InvalidArgumentError(msg)
    n = n_all = problem.batches.n_examples
    if n_examples is not None:
        n = n_examples
        if not 1 <= n <= n_all:
            msg = (
                f"{n:,} examples were asked for, and the {problem.split} data of {problem.name} "
                f"have {n_all:,}: ask for fewer"
            )
            raise InvalidArgumentError(msg)
    if not 1 <= m <= n:
        msg = f"m must be from 1 to the number of examples, {n:,}; got {m}"
        raise InvalidArgumentError(msg)
    settings = {
        "rho": ball.rho,
        "p": ball.p,
        "m": m,
        "n_examples": n_examples,
        **ball.scaling,
        "protocol": protocol,
        **options.settings,
        **search,
    }

    def one_subset(i: int) -> Columns:
        part = problem.on_examples(i * m, (i + 1) * m)
        with Evaluator(part, seed=seed) as evaluator:
            origin = BallObjective(evaluator, ball)
            by = _by_search if protocol == "search" else _by_auto_pgd
            found = by(origin, options)
            cost = {name: float(getattr(evaluator.cost, name)) for name in _COUNTS}
            return found | cost | {"loss": origin.loss, "overflowed": float(origin.n_overflowed)}

    def measure(provenance: Provenance) -> SubsetSharpness:
        columns = one_by_one(
            n // m,
            one_subset,
            grid=grid_of(study, SubsetSharpness.kind, provenance, settings, (n // m, 1)),
            what=f"m-sharpness of {problem.name}",
            progress=progress,
        )
        passes = {name: round(float(columns[name].sum()) / (n // m)) for name in _COUNTS[:3]}
        return SubsetSharpness(
            values=columns["value"],
            one_steps=columns["one_step"],
            gaps=columns["gap"],
            losses=columns["loss"],
            gradients=int(columns["gradients"].sum()),
            n_overflowed=int(columns["overflowed"].sum()),
            m=m,
            n_left_out=n % m,
            **vars(ball),
            tol=tol,
            protocol=protocol,
            notes=(note,) if note else (),
            settings=settings,
            # In passes over the whole of the subsets, not over one of them.
            cost=Cost(**passes, seconds=float(columns["seconds"].sum())),
            provenance=provenance,
        )

    result = cached_measurement(SubsetSharpness, problem, settings, study, measure)
    warn_of_search(result.n_overflowed, f"points of the balls of radius {result.rho:g}")
    return result


def _by_search(origin: BallObjective, options: SearchOptions) -> Columns:
    search = Search(origin, origin.ball, options)
    search.explore()
    search.polish()
    return {"value": search.best.value, "one_step": search.one_step, "gap": search.gap}


def _by_auto_pgd(origin: BallObjective, options: SearchOptions) -> Columns:
    best, values = auto_pgd(origin.objective, origin.ball, origin.point)
    rounding = torch.finfo(origin.point.gradient.dtype).eps * abs(origin.loss)
    gap = best.gap(origin.ball, slope=origin.point.steepness, noise=rounding)
    # Its first step, 2ρ long and projected, is SAM's own.
    return {"value": best.value, "one_step": values[0], "gap": gap}
