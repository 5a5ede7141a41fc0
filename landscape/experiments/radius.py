"""Test error against the radius of SAM for several m, and sharpness by number of inner steps."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.experiments.outcome import Outcome
from landscape.experiments.runs import Bench, Found, Run, Trained, evidence
from landscape.intervals import difference_interval, mean_interval, ratio_interval
from landscape.loss import evaluation
from landscape.plots import radius_figure
from landscape.problem import Problem, load_task
from landscape.results import Evaluation, FloatArray, Result, Sharpness, StepwiseSharpness
from landscape.sharpness import STEPS, sharpness, stepwise_sharpness
from landscape.training import with_label_noise


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large the experiment is.

    Attributes:
        problem: what is trained; without BatchNorm, whose statistics would depend on m.
        epochs: of each training.
        label_noise: share of the training labels that are wrong, so that there is much to gain.
        batch_size: of each step; the largest m.
        rhos: radii of SAM; 0 is the baseline.
        sizes: m, how many examples share a perturbation.
        seeds: number of trainings of each kind.
        climbed: radius at which sharpness is measured; one of the radii.
        steps: numbers of inner steps.
    """

    problem: str = "digits-mlp"
    epochs: int = 30
    label_noise: float = 0.4
    batch_size: int = 64
    rhos: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    sizes: tuple[int, ...] = (1, 4, 16, 64)
    seeds: int = 5
    climbed: float = 0.1
    steps: tuple[int, ...] = STEPS


FULL = Plan()
SMALL = Plan(problem="digits-mlp", epochs=1, rhos=(0.1,), sizes=(16, 64), seeds=2, steps=(1, 2, 5))


def perform(bench: Bench, plan: Plan = FULL) -> Outcome:
    """Train m-SAM at several radii and m; climb to the sharpness with several numbers of steps.

    Args:
        bench: where to work.
        plan: how large.

    Returns:
        Test error against ρ for each m, and the rise found by k inner steps beside the full search.

    Raises:
        LandscapeError: what went wrong in a training or a measurement; what was done is kept.

    Cost: a training for each m, radius and seed, the more expensive the smaller m is; about a
    quarter of an hour on two cores.

    Reference: Foret et al. 2021, arXiv 2010.01412, figure 3 (middle) and table 11.
    """
    runs = [_run(plan, seed=seed) for seed in range(plan.seeds)]
    runs += [
        _run(plan, seed=seed, rho=rho, m=m)
        for m in plan.sizes
        for rho in plan.rhos
        for seed in range(plan.seeds)
    ]
    found = bench.do(
        runs,
        functools.partial(_measure, climbed=plan.climbed, steps=plan.steps),
        what="radius and m",
    )
    wrong = np.array([1 - _test(one).metrics["accuracy"] for one in found])
    baseline = wrong[: plan.seeds]
    shape = (len(plan.sizes), len(plan.rhos), plan.seeds)
    by_m = dict(zip(plan.sizes, wrong[plan.seeds :].reshape(shape), strict=True))
    ones = [one for one in found if _is_climbed(one.run, plan.climbed)]
    climbed = {
        "SGD": [one for one in ones if one.run.settings["optimizer"] == "sgd"],
        "SAM": [one for one in ones if "rho" in one.run.settings],
    }
    rises = {
        name: np.array([one.get(StepwiseSharpness).rises for one in ones]).T
        for name, ones in climbed.items()
    }
    searched = {
        name: np.array([one.get(Sharpness).value for one in ones]) for name, ones in climbed.items()
    }
    figure = radius_figure(
        plan.rhos,
        by_m,
        baseline,
        steps=plan.steps,
        rises=rises,
        searched=searched,
        rho=plan.climbed,
        n_test=_test(found[0]).provenance.n_examples,
        note=f"{plan.label_noise:.0%} of the training labels are wrong on both sides; on the right "
        f"SAM was trained with ρ = {plan.climbed:g} and m = {plan.batch_size}",
    )
    return Outcome(
        figure, (_table(plan, by_m, baseline), _climbs(plan, rises, searched)), evidence(found)
    )


def _run(plan: Plan, *, seed: int, rho: float | None = None, m: int | None = None) -> Run:
    settings: dict[str, Any] = {"optimizer": "sgd", "epochs": plan.epochs, "seed": seed}
    settings |= {"batch_size": plan.batch_size, "label_noise": plan.label_noise}
    name = f"SGD, seed {seed}"
    if rho is not None:
        settings |= {"optimizer": "sam", "rho": rho}
        name = f"SAM ρ {rho:g}, m {m}, seed {seed}"
        if m is not None and m < plan.batch_size:
            settings["micro_batch"] = m
    return Run(problem=plan.problem, settings=settings, name=name)


def _is_climbed(run: Run, climbed: float) -> bool:
    given = run.settings
    return "micro_batch" not in given and given.get("rho") in {None, climbed}


def _measure(trained: Trained, *, climbed: float, steps: tuple[int, ...]) -> list[Result]:
    results: list[Result] = [evaluation(trained.problem(split="test"))]
    if _is_climbed(trained.run, climbed):
        problem = _as_trained(trained)
        results += [
            stepwise_sharpness(problem, climbed, steps=steps, progress=False),
            sharpness(problem, climbed, progress=False),
        ]
    return results


def _as_trained(trained: Trained) -> Problem:
    """Return the problem with the labels that were trained on: there the weights are a minimum."""
    given = trained.run.settings
    task = load_task(trained.run.problem)
    noisy = with_label_noise(task, given["label_noise"], seed=given["seed"])
    return noisy.problem().at(trained.problem(), name=trained.run.name)


def _test(found: Found) -> Evaluation:
    return found.get(Evaluation, split="test")


def _table(
    plan: Plan, errors: dict[int, FloatArray], baseline: FloatArray
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("", "ρ", "test error, %", "less than SGD, points")]
    rows.append(("SGD", "0", str(mean_interval(100 * baseline)), ""))
    for m, by_rho in errors.items():
        for rho, wrong in zip(plan.rhos, by_rho, strict=True):
            gain = difference_interval(100 * baseline, 100 * wrong)
            rows.append((f"m = {m}", f"{rho:g}", str(mean_interval(100 * wrong)), str(gain)))
    return rows


def _climbs(
    plan: Plan, rises: dict[str, FloatArray], searched: dict[str, FloatArray]
) -> list[tuple[str, ...]]:
    header = (f"rise at ρ = {plan.climbed:g}", "inner steps", "rise", "of the search, %")
    rows: list[tuple[str, ...]] = [header]
    for name, by_step in rises.items():
        for k, values in zip(plan.steps, by_step, strict=True):
            positive = (values > 0).all() and (searched[name] > 0).all()
            share = str(ratio_interval(100 * values, searched[name])) if positive else ""
            rows.append((name, str(k), str(mean_interval(values)), share))
        rows.append((name, "search", str(mean_interval(searched[name])), ""))
    return rows
