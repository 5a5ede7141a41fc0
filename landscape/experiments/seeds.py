"""Are the minima of SAM wider? The same measurements over several seeds, with intervals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from landscape.curvature import top_eigenpairs
from landscape.experiments.outcome import Outcome
from landscape.experiments.runs import Bench, Found, Run, Trained, evidence
from landscape.intervals import mean_interval, ratio_interval
from landscape.loss import evaluation
from landscape.plots import seeds_figure
from landscape.results import Eigenpairs, Evaluation, FloatArray, Result, Sharpness
from landscape.sharpness import sharpness


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large the experiment is.

    Attributes:
        problem: what is trained.
        epochs: of each training.
        rho: of SAM.
        radii: of the balls of the sharpness.
        seeds: number of trainings of each kind.
    """

    problem: str = "digits"
    epochs: int = 40
    rho: float = 0.2
    radii: tuple[float, ...] = (0.05, 0.2)
    seeds: int = 5


FULL = Plan()
SMALL = Plan(problem="digits-mlp", epochs=2, radii=(0.1,), seeds=2)


def perform(bench: Bench, plan: Plan = FULL) -> Outcome:
    """Train with SGD and with SAM over several seeds; measure λmax and worst-case sharpness.

    Args:
        bench: where to work.
        plan: how large.

    Returns:
        Each quantity by seed, its mean, and the ratio of SAM to SGD, with intervals.

    Raises:
        LandscapeError: what went wrong in a training or a measurement; what was done is kept.

    Cost: two trainings and two searches for each seed; about four minutes on two cores.
    """
    runs = [
        Run(
            problem=plan.problem,
            settings={"optimizer": name.lower(), "epochs": plan.epochs, "seed": seed, **radius},
            name=f"{name}, seed {seed}",
        )
        for name, radius in (("SGD", {}), ("SAM", {"rho": plan.rho}))
        for seed in range(plan.seeds)
    ]
    found = bench.do(runs, functools.partial(_measure, radii=plan.radii), what="seeds")
    by_name = {"SGD": found[: plan.seeds], "SAM": found[plan.seeds :]}
    quantities = _quantities(by_name, plan)
    return Outcome(seeds_figure(quantities), (_table(quantities),), evidence(found))


def _measure(trained: Trained, *, radii: tuple[float, ...]) -> list[Result]:
    problem = trained.problem()
    pairs = top_eigenpairs(problem, 1, progress=False)
    sharp = [
        sharpness(problem, rho, eigenvectors=pairs.vectors[:1], progress=False) for rho in radii
    ]
    return [evaluation(problem), evaluation(trained.problem(split="test")), pairs, *sharp]


def _quantities(by_name: dict[str, list[Found]], plan: Plan) -> dict[str, dict[str, FloatArray]]:
    def column(read: Callable[[Found], float]) -> dict[str, FloatArray]:
        return {name: np.array([read(one) for one in ones]) for name, ones in by_name.items()}

    def rise(rho: float) -> Callable[[Found], float]:
        return lambda one: one.get(Sharpness, rho=rho).value

    return {
        "λmax of the Hessian": column(lambda one: one.get(Eigenpairs).values[0]),
        **{f"sharpness ≥, ρ = {rho:g}": column(rise(rho)) for rho in plan.radii},
        "training loss": column(lambda one: one.get(Evaluation).loss),
        "test error, %": column(
            lambda one: 100 * (1 - one.get(Evaluation, split="test").metrics["accuracy"])
        ),
    }


def _table(quantities: dict[str, dict[str, FloatArray]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("mean (95 % interval)", "SGD", "SAM", "SAM/SGD")]
    for label, values in quantities.items():
        positive = all((v > 0).all() for v in values.values())
        ratio = str(ratio_interval(values["SAM"], values["SGD"])) if positive else ""
        rows.append((label, *(str(mean_interval(v)) for v in values.values()), ratio))
    return rows
