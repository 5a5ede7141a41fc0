"""Spectra of the Hessian in the course of training, with SGD and with SAM, without BatchNorm."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from landscape.curvature import spectral_density, top_eigenpairs
from landscape.experiments.outcome import Outcome
from landscape.experiments.runs import Bench, Found, R, Run, Trained, evidence
from landscape.loss import evaluation
from landscape.plots import spectra_over_training
from landscape.plots.training_spectra import top_two
from landscape.results import Density, Eigenpairs, Evaluation, Result
from landscape.wording import number


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large the experiment is.

    Attributes:
        problem: what is trained; without BatchNorm.
        epochs: of each training; the spectra are taken after the first, the middle and the last.
        rho: of SAM.
        probes: random vectors for the density.
        steps: of Lanczos for each.
        seed: of every random choice.
    """

    problem: str = "digits-resnet-nobn"
    epochs: int = 40
    rho: float = 0.1
    probes: int = 4
    steps: int = 50
    seed: int = 0

    @property
    def shown(self) -> tuple[int, ...]:
        """The epochs whose spectra are drawn."""
        return tuple(dict.fromkeys((1, max(1, self.epochs // 2), self.epochs)))


FULL = Plan()
SMALL = Plan(problem="digits-mlp", epochs=3, probes=2, steps=10)


def perform(bench: Bench, plan: Plan = FULL) -> Outcome:
    """Train with SGD and with SAM; measure the spectrum at the first, a middle and the last epoch.

    Args:
        bench: where to work.
        plan: how large.

    Returns:
        The densities with λmax and λmax/λ5, beside what was published for another network.

    Raises:
        LandscapeError: what went wrong in a training or a measurement; what was done is kept.

    Cost: two trainings and six spectra, each of ``probes`` · ``steps`` products and those of five
    eigenpairs; about six minutes on two cores.

    Reference: Foret et al. 2021, arXiv 2010.01412, figure 3.
    """
    common = {"epochs": plan.epochs, "seed": plan.seed}
    settings = {
        "SGD": {"optimizer": "sgd", **common},
        "SAM": {"optimizer": "sam", "rho": plan.rho, **common},
    }
    runs = [
        Run(problem=plan.problem, settings=given, name=name, epochs_kept=plan.shown)
        for name, given in settings.items()
    ]
    found = bench.do(
        runs,
        functools.partial(
            _measure, shown=plan.shown, probes=plan.probes, steps=plan.steps, seed=plan.seed
        ),
        what="training and spectra",
    )
    densities = {one.run.name: _each(one, Density, plan) for one in found}
    pairs = {one.run.name: _each(one, Eigenpairs, plan) for one in found}
    figure = spectra_over_training(densities, pairs, plan.shown)
    return Outcome(figure, (_table(found, plan),), evidence(found))


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
            spectral_density(
                problem,
                n_probes=probes,
                steps=steps,
                seed=seed,
                progress=False,
            ),
        ]
    return results


def _each(found: Found, kind: type[R], plan: Plan) -> list[R]:
    return [found.get(kind, epoch=_named(epoch, plan)) for epoch in plan.shown]


def _named(epoch: int, plan: Plan) -> int | None:
    return None if epoch == plan.epochs else epoch


def _table(found: list[Found], plan: Plan) -> list[tuple[str, ...]]:
    header = ("", "epoch", "train loss", "test accuracy", "λmax", "λmax/λ5")
    rows: list[tuple[str, ...]] = [header]
    for one in found:
        for epoch in plan.shown:
            at = _named(epoch, plan)
            top, ratio = top_two(one.get(Eigenpairs, epoch=at))
            train = one.get(Evaluation, epoch=at)
            test = one.get(Evaluation, split="test", epoch=at)
            numbers = (train.loss, test.metrics["accuracy"], top, ratio)
            rows.append((one.run.name, str(epoch), *map(number, numbers)))
    return rows
