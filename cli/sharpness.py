"""``landscape sharpness``: the largest rise of the loss within a ball."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .idle import refuse_given
from .measuring import SCOUTING, SEARCH_HVPS, measure_each
from .options import CommonOptions, measuring
from .spectral import Bytes

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Result
    from landscape.study import Study

_FROM_BELOW = 16  # gradient passes, for two starts from the next smaller radius
_MODEL = 16  # products, with the Hessian at the checkpoint alone


@click.command("sharpness")
@click.option("--rho", default=0.05, show_default=True, help="Radius of the ball.")
@click.option("--p", "p", default=2.0, show_default=True, help="Norm of the ball, 1 to inf.")
@click.option(
    "--adaptive",
    type=click.Choice(["none", "elementwise", "filterwise"]),
    default="none",
    show_default=True,
    help="Measure ε relative to each weight, or to the norm of its filter.",
)
@click.option("--eta", default=0.0, show_default=True, help="Added to the scale of the weights.")
@click.option("--m", default=None, type=int, help="Also the mean over subsets of so many examples.")
@click.option("--profile", is_flag=True, help="Measure at many radii instead of one.")
@click.option(
    "--rhos",
    default=None,
    metavar="R,R,…",
    help="Radii of the profile.  [default: seven, 1e-4 to 1e-1 of the norm of the weights]",
)
@click.option(
    "--protocol",
    type=click.Choice(["search", "auto-pgd", "keskar"]),
    default="search",
    show_default=True,
    help="auto-pgd: the first 1,024 examples in subsets of 128, 20 steps of Auto-PGD; keskar: "
    "the box of rho times |w| + 1.",
)
@click.option(
    "--normalise-logits", is_flag=True, help="Centre the logits and scale them to length 1."
)
@click.option("--tol", default=1e-4, show_default=True, help="Relative optimality gap to reach.")
@click.option(
    "--max-gradients",
    default=200,
    show_default=True,
    help="Gradient passes to spend at most, after scouting the starts.",
)
@click.option(
    "--memory",
    type=Bytes(),
    default=None,
    metavar="SIZE",
    help="To use beyond model, data and graph, e.g. 500MB.  [default: 12 times the model, 64MiB "
    "at least]",
)
@measuring
def command(
    common: CommonOptions,
    rho: float,
    m: int | None,
    profile: bool,
    rhos: str | None,
    protocol: str,
    normalise_logits: bool,
    memory: float | None,
    **ball: Any,
) -> None:
    """Measure max over ‖ε‖ₚ ≤ ρ of L(w+ε) − L(w), with how good the maximum found is.

    The value is a lower bound, with its optimality gap; the one-step value that SAM uses stands
    beside it.

    \b
    Examples:
      landscape sharpness sgd.pt sam.pt --problem digits --rho 0.2
      landscape sharpness sgd.pt --problem digits --rho 0.5 --adaptive filterwise --m 128
      landscape sharpness sgd.pt sam.pt --problem digits --profile
    """
    from landscape.sharpness import Ball

    Ball(rho, ball["p"])  # a bad radius or norm is said before anything is loaded
    _check(profile, rhos, m, protocol, common.mode)
    if protocol == "keskar":
        ball |= {"p": math.inf, "adaptive": "elementwise", "eta": 1.0}

    def measure(problem: Problem, study: Study) -> list[Result]:
        if normalise_logits:
            problem = problem.with_normalised_logits()
        options = {**ball, "seed": common.seed, "study": study, "progress": common.progress}
        return _measured(problem, rho, m, profile, rhos, protocol, memory, options)

    measure_each(
        common, measure, price=lambda problem: _price(problem, ball, profile, rhos, m, protocol)
    )


def _check(profile: bool, rhos: str | None, m: int | None, protocol: str, mode: str) -> None:
    """Refuse options that contradict each other."""
    if rhos is not None and not profile:
        msg = "--rhos are the radii of a profile: add --profile, or give one --rho"
        raise InvalidArgumentError(msg)
    if profile and (m is not None or protocol == "auto-pgd"):
        msg = "--profile is of the whole data: leave out --m and --protocol auto-pgd"
        raise InvalidArgumentError(msg)
    if protocol == "auto-pgd" and (m is not None or mode != "eval"):
        msg = "--protocol auto-pgd has m = 128 and mode eval: leave out --m and --mode"
        raise InvalidArgumentError(msg)
    if profile:
        refuse_given(["rho"], "is one radius, and --profile has many: give them as --rhos")
    if protocol == "keskar":
        fixed = (
            "is fixed by --protocol keskar (p = inf, adaptive elementwise, eta = 1): leave it out"
        )
        refuse_given(["p", "adaptive", "eta"], fixed)
    if protocol == "auto-pgd":
        steps = "is of a search, and --protocol auto-pgd takes 20 steps: leave it out"
        refuse_given(["tol", "max_gradients", "memory"], steps)


def _measured(
    problem: Problem,
    rho: float,
    m: int | None,
    profile: bool,
    rhos: str | None,
    protocol: str,
    memory: float | None,
    options: dict[str, Any],
) -> list[Result]:
    from landscape.sharpness import PUBLISHED, m_sharpness, sharpness, sharpness_profile

    if profile:
        return [sharpness_profile(problem, _radii(rhos), memory=memory, **options)]
    if protocol == "auto-pgd":
        return [m_sharpness(problem, rho, **PUBLISHED, **options)]
    options["memory"] = memory
    found: list[Result] = [sharpness(problem, rho, **options)]
    return found if m is None else [*found, m_sharpness(problem, rho, m=m, **options)]


def _radii(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        msg = f"--rhos takes numbers with a comma between two, got {text!r}"
        raise InvalidArgumentError(msg) from None


def _price(
    problem: Problem,
    ball: dict[str, Any],
    profile: bool,
    rhos: str | None,
    m: int | None,
    protocol: str,
) -> Cost:
    from landscape.sharpness import Ball, n_vertices

    if protocol == "auto-pgd":
        return Cost(gradients=21)
    scale = Ball(1.0, ball["p"], ball["adaptive"], ball["eta"]).scale(problem)
    n_free = problem.space.n if scale is None else int(scale.count_nonzero())
    scouting = SCOUTING * (3 if ball["p"] == 1 else 1)  # vertices beside each start
    once = Cost(
        forwards=2 + n_vertices(ball["p"], n_free),
        gradients=scouting + _FROM_BELOW * profile + ball["max_gradients"],
        hvps=SEARCH_HVPS if ball["p"] == 2 else _MODEL,
    )
    times = (len(_radii(rhos) or range(7)) if profile else 1) + (m is not None)
    return Cost(
        forwards=times * once.forwards, gradients=times * once.gradients, hvps=times * once.hvps
    )
