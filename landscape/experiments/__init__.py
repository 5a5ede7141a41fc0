"""Published figures in kind, on the embedded data: trained, measured and drawn by one command.

Each module has a `Plan` of its size, ``FULL`` and ``SMALL``, and a function ``perform(bench,
plan)``. Everything is kept in a study: what is interrupted goes on, what is done is only drawn.
With other settings:

    from dataclasses import replace
    from landscape.experiments import Bench, seeds

    with Study("mine.db") as study:
        plan = replace(seeds.FULL, problem="mnist1d", seeds=3)
        outcome = seeds.perform(Bench(study=study, folder=Path("build"), workers=2), plan)
    outcome.figure.savefig("mine.png")
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from landscape.errors import one_of
from landscape.experiments.outcome import Outcome
from landscape.experiments.runs import Bench, Found, Run, Trained

EXPERIMENTS: Mapping[str, str] = {
    "minima": "The sharp minimum of SGD and the wide one of SAM, without skip connections.",
    "spectra": "Spectra of the Hessian in the course of training, SGD and SAM.",
    "noise": "Accuracy of SGD and SAM where a share of the training labels is wrong.",
    "radius": "Test error against ρ for several m; sharpness by number of inner steps.",
    "prediction": "Does sharpness predict generalisation? Rank correlations over many models.",
    "seeds": "λmax and sharpness of SGD and SAM over several seeds.",
}

__all__ = ["EXPERIMENTS", "Bench", "Found", "Outcome", "Run", "Trained", "perform"]


def perform(name: str, bench: Bench, *, small: bool = False) -> Outcome:
    """Do an experiment, or what is left of it, and draw it.

    Args:
        name: a key of `EXPERIMENTS`.
        bench: where to work.
        small: a version of seconds, to see that it works; its numbers mean nothing.

    Returns:
        The figure and its numbers.

    Raises:
        InvalidArgumentError: if there is no such experiment.
        LandscapeError: what went wrong; what was done is kept.

    Cost: on two cores some minutes each, at most a quarter of an hour.
    """
    one_of(name, EXPERIMENTS, what="figure")
    module = importlib.import_module(f"landscape.experiments.{name}")
    outcome: Outcome = module.perform(bench, module.SMALL if small else module.FULL)
    if small:
        said = "small version: the numbers mean nothing"
        outcome.figure.text(0.995, 0.995, said, ha="right", va="top", color="0.45", fontsize=8)
    return outcome
