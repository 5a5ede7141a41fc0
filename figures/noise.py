"""Clean test accuracy of SGD and SAM where a share of the training labels is wrong.

After Foret et al. 2021, arXiv 2010.01412, section 3.3, tables 4 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from runs import (
    INDEX,
    MEANS,
    Made,
    Run,
    Runner,
    RunRecords,
    Table,
    Trained,
    add_grid,
    draw_means,
    draw_zero,
    legend_above,
    main,
)

from landscape.intervals import difference_interval, mean_interval
from landscape.loss import evaluation
from landscape.plots.style import styled, write_caption
from landscape.results import Evaluation, FloatArray, Result

FIRST_TUNING_SEED = 100  # no seed of the search for ρ is one of the comparison


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of the experiment; `tuning_seeds` is the number of trainings for each radius."""

    problem: str = "digits"
    epochs: int = 30
    shares: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8)
    rhos: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    seeds: int = 5
    tuning_seeds: int = 2


FULL = Plan()
TINY = Plan(
    problem="digits-mlp", epochs=2, shares=(0.0, 0.4), rhos=(0.05, 0.2), seeds=2, tuning_seeds=1
)


def figure(runner: Runner, plan: Plan) -> Made:
    """Choose ρ for each share of wrong labels, then train with SGD and SAM over several seeds.

    What SGD and SAM share (learning rate, epochs, weight decay) is not tuned for either. Takes
    about a quarter of an hour on two cores.
    """
    rhos = choose_rhos(runner, plan)
    runs = [
        _run(plan, name, share=share, seed=seed, rho=rho)
        for share, best in zip(plan.shares, rhos, strict=True)
        for name, rho in (("SGD", None), ("SAM", best))
        for seed in range(plan.seeds)
    ]
    records = runner.run(runs, _measure_test, what="label noise")
    accuracy = _accuracies(records, split="test").reshape(len(plan.shares), 2, plan.seeds)
    by_name = {"SGD": accuracy[:, 0], "SAM": accuracy[:, 1]}
    n_test = records[0].get(Evaluation, split="test").provenance.n_examples
    return draw(plan.shares, by_name, rhos, n_test=n_test), [_table(plan, by_name, rhos)], []


def choose_rhos(runner: Runner, plan: Plan) -> list[float]:
    """Return the radius of highest mean accuracy on the validation split for each share.

    The labels of the validation split are right; the test split is not used.
    """
    runs = [
        _run(plan, "SAM", share=share, seed=FIRST_TUNING_SEED + seed, rho=rho, split="fit")
        for share in plan.shares
        for rho in plan.rhos
        for seed in range(plan.tuning_seeds)
    ]
    records = runner.run(runs, _measure_validation, what="choosing ρ")
    shape = (len(plan.shares), len(plan.rhos), plan.tuning_seeds)
    mean = _accuracies(records, split="validation").reshape(shape).mean(axis=-1)
    return [plan.rhos[int(best)] for best in mean.argmax(axis=1)]  # the smallest of equals


def _run(
    plan: Plan, name: str, *, share: float, seed: int, rho: float | None, split: str = "train"
) -> Run:
    settings: dict[str, Any] = {"optimizer": name.lower(), "epochs": plan.epochs, "seed": seed}
    settings |= {"label_noise": share, "split": split}
    if rho is not None:
        settings["rho"] = rho
        name = f"{name} ρ {rho:g}"
    part = "" if split == "train" else f" on {split}"
    return Run(
        problem=plan.problem,
        settings=settings,
        name=f"{name}{part}, {share:.0%} wrong labels, seed {seed}",
    )


def _measure_test(trained: Trained) -> list[Result]:
    return [evaluation(trained.problem(split="test"))]


def _measure_validation(trained: Trained) -> list[Result]:
    return [evaluation(trained.problem(split="validation"))]


def _accuracies(records: Sequence[RunRecords], *, split: str) -> FloatArray:
    return np.array([one.get(Evaluation, split=split).metrics["accuracy"] for one in records])


def _table(plan: Plan, accuracy: Mapping[str, FloatArray], rhos: Sequence[float]) -> Table:
    rows: Table = [("wrong labels", "ρ", "SGD, %", "SAM, %", "SAM − SGD, points")]
    for i, share in enumerate(plan.shares):
        sgd, sam = (100 * accuracy[name][i] for name in ("SGD", "SAM"))
        three = (mean_interval(sgd), mean_interval(sam), difference_interval(sam, sgd))
        rows.append((f"{share:.0%}", f"{rhos[i]:g}", *map(str, three)))
    return rows


@styled()
def draw(
    shares: Sequence[float],
    accuracy: Mapping[str, FloatArray],
    rhos: Sequence[float],
    *,
    n_test: int,
) -> Figure:
    """Draw the accuracy against the share of wrong labels, and what SAM gains over SGD."""
    sheet = Figure(figsize=(8.2, 4.2), layout="constrained")
    left, right = sheet.subplots(1, 2)
    percent = [100 * share for share in shares]
    for name, shift in (("SGD", -0.6), ("SAM", 0.6)):  # so that bars stand side by side
        values = 100 * accuracy[name]
        draw_means(left, np.add(percent, shift), values, index=INDEX[name], label=name)
    gain = 100 * (accuracy["SAM"] - accuracy["SGD"])
    draw_means(right, percent, gain, index=INDEX["SAM"], label="SAM − SGD")
    draw_zero(right)
    left.set_ylabel("test accuracy (%)")
    right.set_ylabel("difference (percentage points)")
    for axes in (left, right):
        ticks = [f"{p:.3g}\nρ {rho:g}" for p, rho in zip(percent, rhos, strict=True)]
        axes.set_xticks(percent, ticks)
        axes.set_xlabel("wrong training labels (%); below: ρ chosen for SAM")
        add_grid(axes)
        legend_above(axes)
    write_caption(
        sheet,
        [
            f"Test accuracy on {n_test:,} examples with part of the training labels wrong; one "
            f"example is {100 / n_test:.2g} points; {MEANS}. Right: what is gained over SGD, "
            "paired by seed."
        ],
    )
    return sheet


if __name__ == "__main__":
    main(figure, full=FULL, small=TINY)
