"""Does sharpness predict generalisation? Each measure against test error over many models.

After Jiang et al. 2020, arXiv 1912.02178, and Andriushchenko et al. 2023, arXiv 2302.07011.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from runs import (
    Made,
    Run,
    Runner,
    RunRecords,
    Table,
    Trained,
    add_grid,
    draw_zero,
    evidence,
    legend_above,
    main,
    spans_decades,
)

from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.curvature._trace import trace
from landscape.intervals import Interval, rank_correlation
from landscape.loss import evaluation
from landscape.plots.style import COLOUR_MAP, MARKERS, SMALL, colour, styled, write_caption
from landscape.results import (
    AverageSharpness,
    Eigenpairs,
    Evaluation,
    Flatness,
    FloatArray,
    Result,
    Sharpness,
    TraceEstimate,
)
from landscape.sharpness._average import average_sharpness
from landscape.sharpness._flatness import flatness
from landscape.sharpness._worst_case import sharpness


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of the experiment: a grid of trainings, and the radii at which all are measured.

    ρ = 0 is SGD; `deviation` is the standard deviation of the noise on each weight, `like` the
    least number of models of like training loss that are compared with each other.
    """

    problem: str = "mnist1d-mlp"
    epochs: int = 40
    rhos: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    lrs: tuple[float, ...] = (0.02, 0.05, 0.1)
    batch_sizes: tuple[int, ...] = (32, 128)
    seeds: int = 3
    radius: float = 0.1
    relative_radius: float = 0.5
    deviation: float = 0.01
    like: int = 8


FULL = Plan()
TINY = Plan(
    problem="digits-mlp",
    epochs=2,
    rhos=(0.0, 0.1),
    lrs=(0.02, 0.1),
    batch_sizes=(64,),
    seeds=1,
    like=2,
)


def figure(runner: Runner, plan: Plan) -> Made:
    """Train a grid of models and measure all: about twelve minutes on two cores."""
    grid = itertools.product(plan.rhos, plan.lrs, plan.batch_sizes, range(plan.seeds))
    runs = [_run(plan, rho=rho, lr=lr, batch_size=b, seed=seed) for rho, lr, b, seed in grid]
    measure = functools.partial(
        _measure,
        radius=plan.radius,
        relative_radius=plan.relative_radius,
        deviation=plan.deviation,
    )
    records = runner.run(runs, measure, what="models")
    error = np.array([1 - _test(one).metrics["accuracy"] for one in records])
    measures = {
        label: np.array([read(one) for one in records]) for label, read in _readers(plan).items()
    }
    rhos = [f"ρ = {one.run.settings.get('rho', 0.0):g}" for one in records]
    settings = [one.run.name.rpartition(", seed")[0] for one in records]
    alike = like_models(measures["training loss"], size=plan.like)
    taus = {
        column: _correlations(measures, error, strata=strata, clusters=settings)
        for column, strata in (
            ("all models", None),
            ("of one ρ", rhos),
            ("of like training loss", alike),
        )
    }
    picture = draw(
        measures,
        error,
        {name: taus[name] for name in ("all models", "of like training loss")},
        groups=rhos,
        n_test=_test(records[0]).provenance.n_examples,
    )
    return picture, [_table(taus)], _notes(records, error, measures)


def _run(plan: Plan, *, rho: float, lr: float, batch_size: int, seed: int) -> Run:
    settings: dict[str, Any] = {"optimizer": "sgd", "epochs": plan.epochs, "seed": seed}
    settings |= {"lr": lr, "batch_size": batch_size}
    if rho:
        settings |= {"optimizer": "sam", "rho": rho}
    name = f"{'SAM' if rho else 'SGD'} ρ {rho:g}, lr {lr:g}, batch {batch_size}, seed {seed}"
    return Run(problem=plan.problem, settings=settings, name=name)


def _measure(
    trained: Trained, *, radius: float, relative_radius: float, deviation: float
) -> list[Result]:
    problem = trained.problem()
    pairs = top_eigenpairs(problem, 1, progress=False)
    return [
        evaluation(problem),
        evaluation(trained.problem(split="test")),
        pairs,
        trace(problem, progress=False),
        sharpness(problem, radius, eigenvectors=pairs.vectors[:1], progress=False),
        sharpness(problem, relative_radius, adaptive="elementwise", progress=False),
        average_sharpness(problem, deviation, prediction=False, progress=False),
        flatness(problem, progress=False),
    ]


def _readers(plan: Plan) -> Mapping[str, Callable[[RunRecords], float]]:
    """Return a function for each measure that reads it from the records of a model."""

    def flat(read: Callable[[Flatness], float]) -> Callable[[RunRecords], float]:
        return lambda one: float(read(one.get(Flatness)))

    def plain(one: RunRecords) -> Sharpness:
        return one.get(Sharpness, rho=plan.radius, adaptive=None)

    def adaptive(one: RunRecords) -> Sharpness:
        return one.get(Sharpness, rho=plan.relative_radius, adaptive="elementwise")

    return {
        "training loss": lambda one: one.get(Evaluation).loss,
        "gradient norm": lambda one: one.get(Evaluation).gradient_norm,
        "λmax": lambda one: float(one.get(Eigenpairs).values[0]),
        "trace": lambda one: one.get(TraceEstimate).value,
        f"sharpness ≥, ρ = {plan.radius:g}": lambda one: plain(one).value,
        f"one step, ρ = {plan.radius:g}": lambda one: plain(one).one_step,
        f"adaptive ≥, ρ = {plan.relative_radius:g}": lambda one: adaptive(one).value,
        f"average rise, σ = {plan.deviation:g}": lambda one: (
            one.get(AverageSharpness, rho=plan.deviation).value
        ),
        "1/σ²": flat(lambda f: float(np.float64(f.sigma) ** -2)),
        "1/σ², relative to |w|": flat(lambda f: float(np.float64(f.sigma_magnitude) ** -2)),
        "Fisher-Rao norm": flat(lambda f: f.fisher_rao),
        "relative flatness": flat(lambda f: float(np.sum(f.relative_flatness))),
    }


def _test(records: RunRecords) -> Evaluation:
    return records.get(Evaluation, split="test")


def like_models(loss: FloatArray, *, size: int) -> list[int]:
    """Return the number of its group for each model: models of like training loss share one.

    A measure can rank models by how far they were trained and say nothing beyond that; among models
    of like training loss it has to tell more. Groups ascend in loss, hold ``size`` models or more,
    and differ in size by one at most.
    """
    ranks = np.argsort(np.argsort(loss, kind="stable"), kind="stable")
    groups: list[int] = (ranks * max(1, len(loss) // size) // len(loss)).tolist()
    return groups


def _correlations(
    measures: Mapping[str, FloatArray],
    error: FloatArray,
    *,
    strata: Sequence[object] | None,
    clusters: Sequence[object],
) -> dict[str, Interval]:
    """Return Kendall's τ of each measure with the error, over the models where it is finite."""

    def correlation(values: FloatArray) -> Interval:
        known = np.flatnonzero(np.isfinite(values))
        return rank_correlation(
            values[known],
            error[known],
            strata=None if strata is None else [strata[k] for k in known],
            clusters=[clusters[k] for k in known],
        )

    return {label: correlation(values) for label, values in measures.items()}


def _table(taus: Mapping[str, Mapping[str, Interval]]) -> Table:
    labels = next(iter(taus.values()))
    rows = [(label, *(str(column[label]) for column in taus.values())) for label in labels]
    return [("Kendall's τ with test error", *taus), *rows]


def _notes(
    records: Sequence[RunRecords], error: FloatArray, measures: Mapping[str, FloatArray]
) -> list[str]:
    n = _test(records[0]).provenance.n_examples
    spread = 100 * float(np.sqrt(error.mean() * (1 - error.mean()) / n))
    n_bad = sum(int((~np.isfinite(values)).sum()) for values in measures.values())
    notes = [
        f"{len(records)} models, test error {100 * error.min():.1f} to {100 * error.max():.1f} %; "
        f"one model's error on {n:,} examples is known to ± {spread:.1f} points (one standard "
        "error), and all share these examples.",
        "Intervals: settings are resampled, the seeds of one setting together.",
        *evidence(records),
    ]
    return [*notes, f"{n_bad} numbers that are not finite were left out."] if n_bad else notes


@styled()
def draw(
    measures: Mapping[str, FloatArray],
    error: FloatArray,
    taus: Mapping[str, Mapping[str, Interval]],
    *,
    groups: Sequence[str],
    n_test: int,
) -> Figure:
    """Draw τ of each measure with the test error, and each measure against the error.

    ``taus`` holds two columns of intervals: over all models, and inside groups of like models.
    """
    n_columns = 4
    n_rows = -(-len(measures) // n_columns)
    sheet = Figure(figsize=(10.3, 1.4 + 1.4 * n_rows), layout="constrained")
    grid = sheet.add_gridspec(n_rows, 1 + n_columns, width_ratios=[1.8, *[1] * n_columns])
    _draw_forest(sheet.add_subplot(grid[:, 0]), taus)
    first = None
    for k, (name, values) in enumerate(measures.items()):
        axes = first = sheet.add_subplot(grid[k // n_columns, 1 + k % n_columns], sharey=first)
        _draw_scatter(axes, values, 100 * error, groups)
        axes.set_title(name, fontsize=SMALL, pad=3)
        axes.tick_params(labelleft=k % n_columns == 0)
        axes.set_ylabel("test error (%)" if k % n_columns == 0 else "", fontsize=SMALL)
    handles, labels = axes.get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    write_caption(
        sheet,
        [
            f"Left: Kendall's τ of each measure with the test error over {error.size} models, "
            "with bootstrap intervals; τ > 0: the larger the measure, the more errors. "
            "Squares: only models of like training loss are compared with each other. Right: "
            f"each measure against the test error on {n_test:,} examples, one mark per model."
        ],
    )
    return sheet


def _draw_forest(axes: Axes, taus: Mapping[str, Mapping[str, Interval]]) -> None:
    looks = (("o", "black", -0.14), ("s", colour(4), 0.14))
    for (label, column), (sign, tint, shift) in zip(taus.items(), looks, strict=True):
        value, low, high = np.array([(i.value, i.low, i.high) for i in column.values()]).T
        axes.errorbar(
            value,
            np.arange(len(column)) + shift,
            xerr=[value - low, high - value],
            fmt=sign,
            color=tint,
            markersize=4,
            elinewidth=1.1,
            capsize=2.2,
            label=label,
        )
        for k in np.flatnonzero(~np.isfinite(value)):
            axes.text(0.04, k + shift, "not defined", size=SMALL, va="center")
    draw_zero(axes, vertical=True)
    axes.set_xlim(-1.05, 1.05)
    axes.set_yticks(range(len(column)), list(column))
    axes.invert_yaxis()
    axes.set_xlabel("Kendall's τ with test error")
    add_grid(axes, "x")
    legend_above(axes)


def _draw_scatter(
    axes: Axes, measure: FloatArray, error: FloatArray, groups: Sequence[str]
) -> None:
    names = list(dict.fromkeys(groups))
    tints = mpl.colormaps[COLOUR_MAP](np.linspace(0.0, 0.88, len(names)))
    for name, tint, sign in zip(names, tints, MARKERS, strict=False):
        inside = np.array(groups) == name
        look: dict[str, Any] = {"color": tint, "markersize": 3.2, "markeredgewidth": 0}
        axes.plot(measure[inside], error[inside], sign, label=name, **look)
    if spans_decades(measure[np.isfinite(measure)]):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    add_grid(axes)


if __name__ == "__main__":
    main(figure, full=FULL, small=TINY)
