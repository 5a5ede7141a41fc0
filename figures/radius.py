"""Test error against the radius of SAM for several m, and sharpness by number of inner steps.

After Foret et al. 2021, arXiv 2010.01412, figure 3 (middle) and table 11.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
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
    draw_level,
    draw_means,
    evidence,
    legend_above,
    main,
    spans_decades,
)

from landscape.intervals import difference_interval, mean_interval, ratio_interval
from landscape.loss import evaluation
from landscape.plots.style import FAINT, colour, styled, write_caption
from landscape.problem import Problem, load_task
from landscape.results import Evaluation, FloatArray, Result, Sharpness, StepwiseSharpness
from landscape.sharpness._k_steps import STEPS, stepwise_sharpness
from landscape.sharpness._worst_case import sharpness
from landscape.training import with_label_noise


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of the experiment.

    The problem has no BatchNorm, whose statistics would depend on m (`sizes`, the number of
    examples that share a perturbation). Wrong labels leave much to gain. Sharpness is measured at
    the radius `climbed`, one of SAM's radii, also with the given numbers of inner steps.
    """

    problem: str = "digits-mlp"
    epochs: int = 30
    label_noise: float = 0.4
    batch_size: int = 64  # the largest m
    rhos: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    sizes: tuple[int, ...] = (1, 4, 16, 64)
    seeds: int = 5
    climbed: float = 0.1
    steps: tuple[int, ...] = STEPS


FULL = Plan()
TINY = Plan(problem="digits-mlp", epochs=1, rhos=(0.1,), sizes=(16, 64), seeds=2, steps=(1, 2, 5))


def figure(runner: Runner, plan: Plan) -> Made:
    """Train m-SAM at several radii and m: about a quarter of an hour on two cores."""
    runs = [_run(plan, seed=seed) for seed in range(plan.seeds)]
    runs += [
        _run(plan, seed=seed, rho=rho, m=m)
        for m in plan.sizes
        for rho in plan.rhos
        for seed in range(plan.seeds)
    ]
    measure = functools.partial(_measure, climbed=plan.climbed, steps=plan.steps)
    records = runner.run(runs, measure, what="radius and m")
    tests = [one.get(Evaluation, split="test") for one in records]
    error = np.array([1 - test.metrics["accuracy"] for test in tests])
    baseline, rest = error[: plan.seeds], error[plan.seeds :]
    shape = (len(plan.sizes), len(plan.rhos), plan.seeds)
    by_m = dict(zip(plan.sizes, rest.reshape(shape), strict=True))
    rises, searched = _rises(records, plan)
    picture = draw(plan, by_m, baseline, rises, searched, n_test=tests[0].provenance.n_examples)
    tables = [_error_table(plan, by_m, baseline), _rise_table(plan, rises, searched)]
    return picture, tables, evidence(records)


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


def _has_sharpness(run: Run, climbed: float) -> bool:
    return "micro_batch" not in run.settings and run.settings.get("rho") in {None, climbed}


def _measure(trained: Trained, *, climbed: float, steps: tuple[int, ...]) -> list[Result]:
    results: list[Result] = [evaluation(trained.problem(split="test"))]
    if _has_sharpness(trained.run, climbed):
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


Rises = dict[str, FloatArray]  # by optimizer


def _rises(records: Sequence[RunRecords], plan: Plan) -> tuple[Rises, Rises]:
    """Return what k steps find, shape (n_steps, n_seeds), and what the search finds, (n_seeds,)."""
    ones = [one for one in records if _has_sharpness(one.run, plan.climbed)]
    by_name = {
        name: [one for one in ones if one.run.settings["optimizer"] == name.lower()]
        for name in INDEX
    }
    return (
        {n: np.array([o.get(StepwiseSharpness).rises for o in of]).T for n, of in by_name.items()},
        {n: np.array([o.get(Sharpness).value for o in of]) for n, of in by_name.items()},
    )


def _error_table(plan: Plan, errors: Mapping[int, FloatArray], baseline: FloatArray) -> Table:
    rows: Table = [("", "ρ", "test error, %", "less than SGD, points")]
    rows.append(("SGD", "0", str(mean_interval(100 * baseline)), ""))
    for m, by_rho in errors.items():
        for rho, error in zip(plan.rhos, by_rho, strict=True):
            gain = difference_interval(100 * baseline, 100 * error)
            rows.append((f"m = {m}", f"{rho:g}", str(mean_interval(100 * error)), str(gain)))
    return rows


def _share(rises: FloatArray, searched: FloatArray, *, scale: float = 1.0) -> str:
    positive = (rises > 0).all() and (searched > 0).all()
    return str(ratio_interval(scale * rises, searched)) if positive else ""


def _rise_table(plan: Plan, rises: Rises, searched: Rises) -> Table:
    rows: Table = [(f"rise at ρ = {plan.climbed:g}", "inner steps", "rise", "of the search, %")]
    for name, by_step in rises.items():
        for k, values in zip(plan.steps, by_step, strict=True):
            share = _share(values, searched[name], scale=100)
            rows.append((name, str(k), str(mean_interval(values)), share))
        rows.append((name, "search", str(mean_interval(searched[name])), ""))
    return rows


@styled()
def draw(
    plan: Plan,
    errors: Mapping[int, FloatArray],
    baseline: FloatArray,
    rises: Rises,
    searched: Rises,
    *,
    n_test: int,
) -> Figure:
    """Draw the test error against ρ for each m, and the rise of the loss that k steps find."""
    sheet = Figure(figsize=(8.6, 5.0), layout="constrained")
    left, right = sheet.subplots(1, 2)
    for axes, values, label in (
        (left, plan.rhos, "radius ρ of SAM"),
        (right, plan.steps, "steps of ascent k"),
    ):
        axes.set(xscale="log", xlabel=label, xlim=(values[0] / 1.2, values[-1] * 1.2))
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xticks([], minor=True)
        add_grid(axes)
    _draw_errors(left, plan.rhos, errors, baseline)
    for name in rises:
        share = _share(rises[name][0], searched[name])
        first = "one step" if plan.steps[0] == 1 else f"{plan.steps[0]} steps"
        label = f"{name}: {first} / search = {share}" if share else name
        draw_means(right, plan.steps, rises[name], index=INDEX[name], label=label)
        draw_level(right, searched[name], tint=colour(INDEX[name]), linestyle="--")
    right.plot([], [], "--", color=FAINT, label="what the full search finds")
    if spans_decades(np.concatenate([v.ravel() for v in (*rises.values(), *searched.values())])):
        right.set_yscale("log")
    right.set_ylabel("rise of the loss found")
    for axes in (left, right):
        legend_above(axes)
    write_caption(
        sheet,
        [
            f"Left: test error on {n_test:,} examples after training with SAM, against its "
            f"radius ρ; m: examples that share one ascent; {MEANS}; grey: ρ = 0, plain SGD, and "
            f"its interval. Right: rise of the loss at distance ρ = {plan.climbed:g} that k "
            "steps of ascent find, a lower bound on the maximum; dashed: what the full search "
            f"finds, ratios are of geometric means. {plan.label_noise:.0%} of the training "
            "labels are wrong on both sides; on the right SAM was trained with ρ = "
            f"{plan.climbed:g} and m = {plan.batch_size}."
        ],
    )
    return sheet


def _draw_errors(
    axes: Axes, rhos: Sequence[float], errors: Mapping[int, FloatArray], baseline: FloatArray
) -> None:
    for k, (m, values) in enumerate(errors.items()):
        shift = 1.05 ** (k - (len(errors) - 1) / 2)  # so that bars stand side by side
        x = np.multiply(rhos, shift)
        draw_means(axes, x, 100 * values, index=1 + k, label=f"SAM, m = {m}")
    draw_level(axes, 100 * baseline, tint=FAINT, label="ρ = 0 (SGD)")
    shown = 100 * np.concatenate([baseline, *(values.ravel() for values in errors.values())])
    if spans_decades(shown):  # where a large radius learns nothing, the others would be a flat line
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(0.7 * shown.min(), min(1.3 * shown.max(), 115.0))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("test error (%)")


if __name__ == "__main__":
    main(figure, full=FULL, small=TINY)
