"""Are the minima of SAM wider? λmax and sharpness of SGD and SAM over several seeds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from runs import (
    INDEX,
    Made,
    Run,
    Runner,
    RunRecords,
    Table,
    Trained,
    add_grid,
    draw_bars,
    evidence,
    main,
    spans_decades,
)

from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.intervals import mean_interval, ratio_interval
from landscape.loss import evaluation
from landscape.plots.style import FAINT, SMALL, colour, styled, write_caption
from landscape.results import Eigenpairs, Evaluation, FloatArray, Result, Sharpness
from landscape.sharpness._worst_case import sharpness

Quantities = Mapping[str, Mapping[str, FloatArray]]  # label → optimizer → a number for each seed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of the experiment; `rho` is SAM's, `radii` those of the balls of the sharpness."""

    problem: str = "digits"
    epochs: int = 40
    rho: float = 0.2
    radii: tuple[float, ...] = (0.05, 0.2)
    seeds: int = 5


FULL = Plan()
TINY = Plan(problem="digits-mlp", epochs=2, radii=(0.1,), seeds=2)


def figure(runner: Runner, plan: Plan) -> Made:
    """Train and measure each seed with both optimizers: about four minutes on two cores."""
    runs = [
        Run(
            problem=plan.problem,
            settings={"optimizer": name.lower(), "epochs": plan.epochs, "seed": seed, **radius},
            name=f"{name}, seed {seed}",
        )
        for name, radius in (("SGD", {}), ("SAM", {"rho": plan.rho}))
        for seed in range(plan.seeds)
    ]
    records = runner.run(runs, functools.partial(_measure, radii=plan.radii), what="seeds")
    numbers = _quantities(
        {"SGD": records[: plan.seeds], "SAM": records[plan.seeds :]}, radii=plan.radii
    )
    return draw(numbers), [_table(numbers)], evidence(records)


def _measure(trained: Trained, *, radii: tuple[float, ...]) -> list[Result]:
    problem = trained.problem()
    pairs = top_eigenpairs(problem, 1, progress=False)
    sharp = [
        sharpness(problem, rho, eigenvectors=pairs.vectors[:1], progress=False) for rho in radii
    ]
    return [evaluation(problem), evaluation(trained.problem(split="test")), pairs, *sharp]


def _quantities(records: Mapping[str, list[RunRecords]], *, radii: tuple[float, ...]) -> Quantities:
    def column(read: Callable[[RunRecords], float]) -> dict[str, FloatArray]:
        return {name: np.array([read(one) for one in ones]) for name, ones in records.items()}

    def rise(rho: float) -> Callable[[RunRecords], float]:
        return lambda one: one.get(Sharpness, rho=rho).value

    return {
        "λmax of the Hessian": column(lambda one: one.get(Eigenpairs).values[0]),
        **{f"sharpness ≥, ρ = {rho:g}": column(rise(rho)) for rho in radii},
        "training loss": column(lambda one: one.get(Evaluation).loss),
        "test error, %": column(
            lambda one: 100 * (1 - one.get(Evaluation, split="test").metrics["accuracy"])
        ),
    }


def _ratio(pair: Mapping[str, FloatArray]) -> str:
    positive = all((values > 0).all() for values in pair.values())
    return str(ratio_interval(pair["SAM"], pair["SGD"])) if positive else ""


def _table(quantities: Quantities) -> Table:
    header = ("mean (95 % interval)", "SGD", "SAM", "SAM/SGD")
    return [
        header,
        *(
            (label, *(str(mean_interval(v)) for v in pair.values()), _ratio(pair))
            for label, pair in quantities.items()
        ),
    ]


@styled()
def draw(quantities: Quantities) -> Figure:
    """Draw a panel for each quantity, with a line from SGD to SAM for each seed."""
    n_rows = -(-len(quantities) // 4)
    n_columns = -(-len(quantities) // n_rows)
    sheet = Figure(
        figsize=(0.6 + 2.4 * max(n_columns, 2), 0.4 + 2.6 * n_rows), layout="constrained"
    )
    panels = sheet.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes in panels[len(quantities) :]:
        axes.remove()
    for axes, (label, pair) in zip(panels, quantities.items(), strict=False):
        _draw_pair(axes, pair)
        axes.set_title(f"{label}\nSAM/SGD {_ratio(pair) or 'without ratio'}", fontsize=SMALL)
    write_caption(
        sheet,
        [
            "Lines: one seed each, from SGD to SAM; beside them the mean and its 95 % t interval. "
            "SAM/SGD: ratio of geometric means, paired by seed, with its 95 % interval, where all "
            "values are positive."
        ],
    )
    return sheet


def _draw_pair(axes, pair: Mapping[str, FloatArray]) -> None:
    ends = np.stack([pair["SGD"], pair["SAM"]])
    axes.plot([0.0, 1.0], ends, color=FAINT, lw=0.7, alpha=0.6, zorder=1.5)
    for k, values in enumerate(ends):
        axes.plot(np.full(values.size, float(k)), values, ".", color=colour(k), ms=4, zorder=2)
        draw_bars(axes, [(-0.2, 1.2)[k]], values[None], index=k)
    axes.set_xlim(-0.45, 1.45)
    axes.set_xticks(list(INDEX.values()), list(INDEX))
    if spans_decades(ends):
        axes.set_yscale("log")
    add_grid(axes, "y")


if __name__ == "__main__":
    main(figure, full=FULL, small=TINY)
