"""Does sharpness predict generalisation? Each measure against test error over many models."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from landscape.curvature import top_eigenpairs, trace
from landscape.experiments.outcome import Outcome
from landscape.experiments.runs import Bench, Found, Run, Trained, evidence
from landscape.intervals import Interval, rank_correlation
from landscape.loss import evaluation
from landscape.plots import correlation_figure
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
from landscape.sharpness import average_sharpness, flatness, sharpness


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large the experiment is.

    Attributes:
        problem: what is trained.
        epochs: of each training.
        rhos: radii of SAM; 0 is SGD.
        lrs: learning rates.
        batch_sizes: examples in a batch.
        seeds: number of trainings of each kind.
        radius: of the plain ball.
        relative_radius: of the ball that is scaled by the weights.
        deviation: standard deviation of the noise on each weight.
        like: how many models of like training loss are compared with each other.
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
SMALL = Plan(
    problem="digits-mlp",
    epochs=2,
    rhos=(0.0, 0.1),
    lrs=(0.02, 0.1),
    batch_sizes=(64,),
    seeds=1,
    like=2,
)


def perform(bench: Bench, plan: Plan = FULL) -> Outcome:
    """Train a grid of models, measure all, and correlate each measure with the test error.

    Args:
        bench: where to work.
        plan: how large.

    Returns:
        Kendall's τ of each measure with the test error over all models, among models of one
        radius, and among models of like training loss, with bootstrap intervals.

    Raises:
        LandscapeError: what went wrong in a training or a measurement; what was done is kept.

    Cost: a training for each setting and seed, and about 17 s of measuring on each model; about
    twelve minutes on two cores.

    References:
        Jiang et al. 2020, arXiv 1912.02178; Andriushchenko et al. 2023, arXiv 2302.07011.
    """
    grid = itertools.product(plan.rhos, plan.lrs, plan.batch_sizes, range(plan.seeds))
    runs = [_run(plan, rho=rho, lr=lr, batch_size=b, seed=seed) for rho, lr, b, seed in grid]
    found = bench.do(
        runs,
        functools.partial(
            _measure,
            radius=plan.radius,
            relative_radius=plan.relative_radius,
            deviation=plan.deviation,
        ),
        what="models",
    )
    error = np.array([1 - _test(one).metrics["accuracy"] for one in found])
    measures = {
        label: np.array([read(one) for one in found]) for label, read in _measures(plan).items()
    }
    groups = [f"ρ = {one.run.settings.get('rho', 0.0):g}" for one in found]
    settings = [one.run.name.rpartition(", seed")[0] for one in found]
    known = {label: np.isfinite(values) for label, values in measures.items()}
    alike = like_models(measures["training loss"], size=plan.like)

    def taus(strata: Sequence[object] | None) -> dict[str, Interval]:
        return {
            label: rank_correlation(
                values[known[label]],
                error[known[label]],
                strata=None if strata is None else _at(strata, known[label]),
                clusters=_at(settings, known[label]),
            )
            for label, values in measures.items()
        }

    whole, by_rho, by_loss = taus(None), taus(groups), taus(alike)
    figure = correlation_figure(
        measures,
        error,
        whole,
        groups=groups,
        within=by_loss,
        within_what="models of like training loss",
        n_test=_test(found[0]).provenance.n_examples,
    )
    return Outcome(figure, (_table(whole, by_rho, by_loss),), _notes(found, error, known))


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


def _measures(plan: Plan) -> Mapping[str, Callable[[Found], float]]:
    def flat(read: Callable[[Flatness], float]) -> Callable[[Found], float]:
        return lambda one: float(read(one.get(Flatness)))

    def plain(one: Found) -> Sharpness:
        return one.get(Sharpness, rho=plan.radius, adaptive=None)

    def adaptive(one: Found) -> Sharpness:
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


def _test(found: Found) -> Evaluation:
    return found.get(Evaluation, split="test")


def _at(labels: Sequence[object], chosen: npt.NDArray[np.bool_]) -> list[object]:
    return [label for label, one in zip(labels, chosen, strict=True) if one]


def like_models(loss: FloatArray, *, size: int) -> list[int]:
    """Put models of like training loss together.

    A measure can rank models by how far they were trained and say nothing beyond that; among models
    of like training loss it has to tell more.

    Args:
        loss: training loss of each model, shape (n,).
        size: least number of models in a group.

    Returns:
        The number of its group for each model, groups ascending in loss and of equal sizes, or
        sizes that differ by one.

    >>> like_models(np.array([0.3, 0.1, 0.2, 0.4]), size=2)
    [1, 0, 0, 1]
    """
    ranks = np.argsort(np.argsort(loss, kind="stable"), kind="stable")
    groups: list[int] = (ranks * max(1, len(loss) // size) // len(loss)).tolist()
    return groups


def _table(
    whole: dict[str, Interval], by_rho: dict[str, Interval], by_loss: dict[str, Interval]
) -> list[tuple[str, ...]]:
    header = ("Kendall's τ with test error", "all models", "of one ρ", "of like training loss")
    columns = (whole, by_rho, by_loss)
    return [header, *((label, *(str(taus[label]) for taus in columns)) for label in whole)]


def _notes(
    found: list[Found], error: FloatArray, known: Mapping[str, npt.NDArray[np.bool_]]
) -> tuple[str, ...]:
    n = _test(found[0]).provenance.n_examples
    spread = 100 * float(np.sqrt(error.mean() * (1 - error.mean()) / n))
    lost = sum(int((~finite).sum()) for finite in known.values())
    notes = [
        f"{len(found)} models, test error {100 * error.min():.1f} to {100 * error.max():.1f} %; "
        f"one model's error on {n:,} examples is known to ± {spread:.1f} points (one standard "
        "error), and all share these examples.",
        "Intervals: settings are resampled, the seeds of one setting together.",
        *evidence(found),
    ]
    if lost:
        notes.append(f"{lost} numbers that are not finite were left out.")
    return tuple(notes)
