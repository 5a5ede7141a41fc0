"""A sharp and a wide minimum of one network without skip connections, on one scale.

After Foret et al. 2021, arXiv 2010.01412, figure 1, and Li et al. 2018, arXiv 1712.09913.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runs import Made, Run, Runner, main, say

from landscape.compare._compare import compare
from landscape.errors import LandscapeError
from landscape.problem import load_task
from landscape.results.comparison import Comparison
from landscape.study import Study


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of the experiment; `rho` is of SAM and of the sharpness, a surface has points²."""

    problem: str = "digits-resnet-noshort"
    epochs: int = 40
    rho: float = 0.05
    points: int = 31
    seed: int = 0


FULL = Plan()
TINY = Plan(problem="digits-mlp", epochs=2, points=5)


def figure(runner: Runner, plan: Plan) -> Made:
    """Train with SGD and SAM from the same start; measure both: two minutes on two cores."""
    common = {"epochs": plan.epochs, "seed": plan.seed}
    settings = {
        "SGD": {"optimizer": "sgd", **common},
        "SAM": {"optimizer": "sam", "rho": plan.rho, **common},
    }
    runs = [Run(problem=plan.problem, settings=of, name=name) for name, of in settings.items()]
    hashes = [one.log.provenance.checkpoint_hash for one in runner.run(runs)]
    comparison = _saved(runner.study, hashes, plan) or _compare(runner, runs, plan)
    title = f"{plan.problem}: SGD and SAM (ρ = {plan.rho:g})"
    return comparison.plot(title=title), [comparison.table()], []


def _compare(runner: Runner, runs: Sequence[Run], plan: Plan) -> Comparison:
    runner.require_writing()
    models = runner.trained(runs)
    say("measuring both: loss, spectrum, sharpness, lines, surfaces …")
    return compare(
        {model.run.name: model.problem() for model in models},
        rho=plan.rho,
        k=5,
        n=plan.points,
        seed=plan.seed,
        test=load_task(plan.problem).problem(split="test"),
        study=runner.study,
        progress=runner.progress,
    )


def _saved(study: Study, hashes: Sequence[str], plan: Plan) -> Comparison | None:
    """Return the comparison of these weights, if the study holds all of it."""
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


if __name__ == "__main__":
    main(figure, full=FULL, small=TINY)
