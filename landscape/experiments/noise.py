"""Clean test accuracy of SGD and SAM where a share of the training labels is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.experiments.outcome import Outcome
from landscape.experiments.runs import Bench, Found, Run, Trained
from landscape.intervals import difference_interval, mean_interval
from landscape.loss import evaluation
from landscape.plots import noise_figure
from landscape.results import Evaluation, FloatArray, Result

_FIRST_TUNING_SEED = 100  # no seed of the search for ρ is one of the comparison


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large the experiment is.

    Attributes:
        problem: what is trained; has the splits train, test, fit and validation.
        epochs: of each training.
        shares: of the labels that are wrong.
        rhos: radii to choose from.
        seeds: number of trainings of each kind.
        tuning_seeds: number of trainings for each radius.
    """

    problem: str = "digits"
    epochs: int = 30
    shares: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8)
    rhos: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    seeds: int = 5
    tuning_seeds: int = 2


FULL = Plan()
SMALL = Plan(
    problem="digits-mlp", epochs=2, shares=(0.0, 0.4), rhos=(0.05, 0.2), seeds=2, tuning_seeds=1
)


def perform(bench: Bench, plan: Plan = FULL) -> Outcome:
    """Choose ρ for each share of wrong labels, then train with SGD and SAM over several seeds.

    ρ is the one of highest mean accuracy on the validation split (clean labels), after training
    on the rest of the training data with wrong labels; the test data are not looked at. What
    SGD and SAM share (learning rate, epochs, weight decay) is not tuned for either.

    Args:
        bench: where to work.
        plan: how large.

    Returns:
        Accuracy by share, and the paired difference, with intervals over seeds.

    Raises:
        LandscapeError: what went wrong in a training or a measurement; what was done is kept.

    Cost: a training for each share, radius and seed of the choice, and two for each share and seed
    of the comparison; about a quarter of an hour on two cores.

    Reference: Foret et al. 2021, arXiv 2010.01412, section 3.3, tables 4 and 8.
    """
    chosen = _chosen(bench, plan)
    runs = [
        _run(plan, name, share=share, seed=seed, rho=rho)
        for share, best in zip(plan.shares, chosen, strict=True)
        for name, rho in (("SGD", None), ("SAM", best))
        for seed in range(plan.seeds)
    ]
    found = bench.do(runs, _measure_test, what="label noise")
    shape = (len(plan.shares), 2, plan.seeds)
    accuracy = _accuracies(found, split="test").reshape(shape)
    by_name = {"SGD": accuracy[:, 0], "SAM": accuracy[:, 1]}
    n_test = found[0].get(Evaluation, split="test").provenance.n_examples
    figure = noise_figure(plan.shares, by_name, chosen={"SAM": chosen}, n_test=n_test)
    return Outcome(figure, (_table(plan, by_name, chosen),))


def _chosen(bench: Bench, plan: Plan) -> list[float]:
    seeds = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + plan.tuning_seeds)
    runs = [
        _run(plan, "SAM", share=share, seed=seed, rho=rho, split="fit")
        for share in plan.shares
        for rho in plan.rhos
        for seed in seeds
    ]
    found = bench.do(runs, _measure_validation, what="choosing ρ")
    shape = (len(plan.shares), len(plan.rhos), plan.tuning_seeds)
    mean = _accuracies(found, split="validation").reshape(shape).mean(axis=-1)
    return [plan.rhos[int(best)] for best in mean.argmax(axis=1)]  # the smallest of equals


def _run(
    plan: Plan, name: str, *, share: float, seed: int, rho: float | None, split: str = "train"
) -> Run:
    settings: dict[str, Any] = {"optimizer": name.lower(), "epochs": plan.epochs, "seed": seed}
    settings |= {"label_noise": share, "split": split}
    at = "" if rho is None else f" ρ {rho:g}"
    if rho is not None:
        settings["rho"] = rho
    part = "" if split == "train" else f" on {split}"
    return Run(
        problem=plan.problem,
        settings=settings,
        name=f"{name}{at}{part}, {share:.0%} wrong labels, seed {seed}",
    )


def _measure_test(trained: Trained) -> list[Result]:
    return [evaluation(trained.problem(split="test"))]


def _measure_validation(trained: Trained) -> list[Result]:
    return [evaluation(trained.problem(split="validation"))]


def _accuracies(found: list[Found], *, split: str) -> FloatArray:
    return np.array([one.get(Evaluation, split=split).metrics["accuracy"] for one in found])


def _table(
    plan: Plan, accuracy: dict[str, FloatArray], chosen: list[float]
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("wrong labels", "ρ", "SGD, %", "SAM, %", "SAM − SGD, points")]
    for i, share in enumerate(plan.shares):
        sgd, sam = (100 * accuracy[name][i] for name in ("SGD", "SAM"))
        three = (mean_interval(sgd), mean_interval(sam), difference_interval(sam, sgd))
        rows.append((f"{share:.0%}", f"{chosen[i]:g}", *map(str, three)))
    return rows
