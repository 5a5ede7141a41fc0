"""A sharp and a wide minimum of one network without skip connections, on one scale."""

from __future__ import annotations

from dataclasses import dataclass

from landscape.compare import compare
from landscape.errors import LandscapeError
from landscape.experiments.outcome import Outcome
from landscape.experiments.runs import Bench, Run, measure_nothing
from landscape.problem import load_task
from landscape.results.comparison import Comparison
from landscape.study import Study


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large the experiment is.

    Attributes:
        problem: what is trained.
        epochs: of each training.
        rho: of SAM, and radius of the ball of the sharpness.
        points: the surfaces have points × points points.
        seed: of every random choice.
    """

    problem: str = "digits-resnet-noshort"
    epochs: int = 40
    rho: float = 0.05
    points: int = 31
    seed: int = 0


FULL = Plan()
SMALL = Plan(problem="digits-mlp", epochs=2, points=5)


def perform(bench: Bench, plan: Plan = FULL) -> Outcome:
    """Train with SGD and with SAM from the same start; measure and draw both alike.

    Args:
        bench: where to work.
        plan: how large.

    Returns:
        Surfaces, lines and numbers of both on one scale.

    Raises:
        LandscapeError: what went wrong in a training or a measurement; what was done is kept.

    Cost: two trainings, and what `landscape.compare` spends on two checkpoints; about two
    minutes on two cores.

    References:
        Foret et al. 2021, arXiv 2010.01412, figure 1; Li et al. 2018, arXiv 1712.09913.
    """
    common = {"epochs": plan.epochs, "seed": plan.seed}
    runs = [
        Run(problem=plan.problem, settings={"optimizer": "sgd", **common}, name="SGD"),
        Run(
            problem=plan.problem,
            settings={"optimizer": "sam", "rho": plan.rho, **common},
            name="SAM",
        ),
    ]
    found = bench.do(runs, measure_nothing, what="training")
    hashes = [one.log.provenance.checkpoint_hash for one in found]
    comparison = _kept(bench.study, hashes, plan) or _measured(bench, runs, plan)
    return Outcome(comparison.plot(title=_title(plan)), (comparison.table(),))


def _title(plan: Plan) -> str:
    return f"{plan.problem}: SGD and SAM (ρ = {plan.rho:g})"


def _measured(bench: Bench, runs: list[Run], plan: Plan) -> Comparison:
    models = bench.trained(runs, what="training")
    bench.say("measuring both: loss, spectrum, sharpness, lines, surfaces …")
    return compare(
        {model.run.name: model.problem() for model in models},
        rho=plan.rho,
        k=5,
        n=plan.points,
        seed=plan.seed,
        test=load_task(plan.problem).problem(split="test"),
        study=bench.study,
        progress=bench.progress,
    )


def _kept(study: Study, hashes: list[str], plan: Plan) -> Comparison | None:
    """Return the comparison that the study holds of these weights, if it holds all of it."""
    try:
        comparison = study.comparison(("SGD", "SAM"))
    except LandscapeError:
        return None
    for model, digest in zip(comparison.models, hashes, strict=True):
        whole = model.surface and model.eigenpairs and model.sharpness and model.test
        if not whole or model.random_line is None or model.worst_line is None:
            return None
        of_it = {part.provenance.checkpoint_hash for part in model.roles().values()}
        if of_it != {digest} or model.surface is None or len(model.surface.x) != plan.points:
            return None
    return comparison
