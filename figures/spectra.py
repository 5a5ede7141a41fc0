"""Spectra of the Hessian in the course of training, with SGD and with SAM, without BatchNorm.

After Foret et al. 2021, arXiv 2010.01412, figure 3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.figure import Figure
from runs import (
    INDEX,
    Made,
    Run,
    Runner,
    RunRecords,
    Table,
    Trained,
    evidence,
    main,
)

from landscape.curvature._density import spectral_density
from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.loss import evaluation
from landscape.plots.densities import density_view, draw_density, prepare_density
from landscape.plots.style import SMALL, colour, marker, styled, write_caption
from landscape.results import Density, Eigenpairs, Evaluation, Result
from landscape.wording import number

R = TypeVar("R", bound=Result)

PUBLISHED = {
    1: {"SGD": (62.9, 2.5), "SAM": (18.6, 3.6)},
    50: {"SGD": (12.5, 1.7), "SAM": (8.9, 1.9)},
    300: {"SGD": (24.2, 11.4), "SAM": (1.0, 2.6)},
}
"""λmax and λmax/λ5 of another network, WRN-40-10 on CIFAR-10 without BatchNorm, by epoch."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of the experiment; `probes` and `steps` (of Lanczos for each) are of the density."""

    problem: str = "digits-resnet-nobn"
    epochs: int = 40
    rho: float = 0.1
    probes: int = 4
    steps: int = 50
    seed: int = 0

    @property
    def shown(self) -> tuple[int, ...]:
        """The epochs whose spectra are drawn: the first, a middle one, the last."""
        return tuple(dict.fromkeys((1, max(1, self.epochs // 2), self.epochs)))


FULL = Plan()
TINY = Plan(problem="digits-mlp", epochs=3, probes=2, steps=10)


def figure(runner: Runner, plan: Plan) -> Made:
    """Train with SGD and with SAM and measure six spectra: about six minutes on two cores."""
    common = {"epochs": plan.epochs, "seed": plan.seed}
    settings = {
        "SGD": {"optimizer": "sgd", **common},
        "SAM": {"optimizer": "sam", "rho": plan.rho, **common},
    }
    runs = [
        Run(problem=plan.problem, settings=of, name=name, epochs_kept=plan.shown)
        for name, of in settings.items()
    ]
    measure = functools.partial(
        _measure, shown=plan.shown, probes=plan.probes, steps=plan.steps, seed=plan.seed
    )
    records = runner.run(runs, measure, what="training and spectra")
    densities = {one.run.name: _by_epoch(one, Density, plan) for one in records}
    pairs = {one.run.name: _by_epoch(one, Eigenpairs, plan) for one in records}
    picture = draw(densities, pairs, plan.shown)
    return picture, [_table(records, plan), _published_table()], evidence(records)


def _measure(
    trained: Trained, *, shown: tuple[int, ...], probes: int, steps: int, seed: int
) -> list[Result]:
    results: list[Result] = []
    for epoch in shown:
        problem = trained.problem(epoch=epoch)
        results += [
            evaluation(problem),
            evaluation(trained.problem(split="test", epoch=epoch)),
            top_eigenpairs(problem, 5, seed=seed, progress=False),
            spectral_density(problem, n_probes=probes, steps=steps, seed=seed, progress=False),
        ]
    return results


def _by_epoch(records: RunRecords, kind: type[R], plan: Plan, *, split: str = "train") -> list[R]:
    return [
        records.get(kind, split=split, epoch=None if epoch == plan.epochs else epoch)
        for epoch in plan.shown
    ]


def top_and_ratio(pairs: Eigenpairs) -> tuple[float, float]:
    """Return λmax and λmax/λ5; the ratio is NaN without five eigenvalues or a positive fifth."""
    values = pairs.values[: pairs.n_top]
    top = float(values[0]) if len(values) else math.nan
    return top, top / float(values[4]) if len(values) >= 5 and values[4] > 0 else math.nan


def _table(records: Sequence[RunRecords], plan: Plan) -> Table:
    rows: Table = [("", "epoch", "train loss", "test accuracy", "λmax", "λmax/λ5")]
    for one in records:
        for epoch, train, test, pairs in zip(
            plan.shown,
            _by_epoch(one, Evaluation, plan),
            _by_epoch(one, Evaluation, plan, split="test"),
            _by_epoch(one, Eigenpairs, plan),
            strict=True,
        ):
            numbers = (train.loss, test.metrics["accuracy"], *top_and_ratio(pairs))
            rows.append((one.run.name, str(epoch), *map(number, numbers)))
    return rows


def _published_table() -> Table:
    rows: Table = [("published, WRN-40-10 on CIFAR-10", "epoch", "λmax", "λmax/λ5")]
    for name in INDEX:
        rows += [(name, str(e), *map(str, of[name])) for e, of in PUBLISHED.items()]
    return rows


@styled()
def draw(
    densities: Mapping[str, Sequence[Density]],
    pairs: Mapping[str, Sequence[Eigenpairs]],
    epochs: Sequence[int],
) -> Figure:
    """Draw a row of densities for each optimizer and a column for each epoch, on the same axes."""
    records = [record for row in densities.values() for record in row]
    found = [pair for row in pairs.values() for pair in row]
    view = density_view(records, "symlog")
    size = (0.8 + 2.2 * max(len(epochs), 2), 1.0 + 1.9 * len(densities))
    sheet = Figure(figsize=size, layout="constrained")
    panels = sheet.subplots(len(densities), len(epochs), squeeze=False)
    titles = [(name, epoch) for name in densities for epoch in epochs]
    for axes, (name, epoch), record, pair in zip(panels.flat, titles, records, found, strict=True):
        prepare_density(axes, view)
        draw_density(axes, record, view, tint=colour(INDEX[name]), shape=marker(INDEX[name]))
        axes.set_title(_title(name, epoch, pair), fontsize=SMALL, color=colour(INDEX[name]))
        axes.set_xlabel("eigenvalue λ")
        axes.label_outer()
    write_caption(sheet, [_caption(records, found, view.threshold)])
    return sheet


def _title(name: str, epoch: int, pairs: Eigenpairs) -> str:
    top, ratio = (f"{v:.3g}" if math.isfinite(v) else "unknown" for v in top_and_ratio(pairs))
    open_ = "" if pairs.converged else ", not converged"
    return f"{name}, epoch {epoch}\nλmax {top}, λmax/λ5 {ratio}{open_}"


def _caption(records: Sequence[Density], pairs: Sequence[Eigenpairs], threshold: float) -> str:
    sigmas = [record.bandwidth for record in records]
    n = records[0].provenance.n_parameters
    return (
        f"Spectral density φ(λ) of the Hessian, {n:,} parameters, on a log axis, every eigenvalue "
        "smoothed by a Gaussian of standard deviation "
        f"{number(min(sigmas))} to {number(max(sigmas))}; bands: {records[0].confidence:.0%}, at "
        "each λ alone. Both axes are the same for all panels; λ is linear within "
        f"±{number(threshold)} and logarithmic outside, smoothly (asinh). Marks on the baseline: "
        "eigenvalues found by themselves. λmax and λ5: largest residual of λmax "
        f"{max(float(pair.residuals[0]) for pair in pairs):.1e}; "
        f"{sum(not pair.converged for pair in pairs)} of {len(pairs)} did not converge."
    )


if __name__ == "__main__":
    main(figure, full=FULL, small=TINY)
