"""``landscape sharpness``: the largest rise of the loss within a ball."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .library_options import library_options
from .measuring import SCOUTING, SEARCH_HVPS, SEARCH_USUALLY, Price, measure_each
from .options import CommonOptions, common_options
from .runs import run_option
from .sections import WHAT, Command, refuse_given

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Result
    from landscape.study import Study

_FROM_BELOW = 16  # gradient passes, for two starts from the next smaller radius
_MODEL = 16  # products, with the Hessian at the checkpoint alone


@click.command("sharpness", cls=Command)
@library_options("sharpness.sharpness", "rho", "p", "adaptive", "eta", section=WHAT)
@click.option(
    "--m", type=int, help="Also measure m-sharpness: the mean over subsets of m examples."
)
@click.option("--profile", is_flag=True, help="Measure at many radii instead of one.")
@click.option(
    "--rhos",
    metavar="R,R,…",
    help="Radii of the profile.  [default: seven, 1e-4 to 1e-1 of the norm of the weights]",
)
@click.option(
    "--protocol",
    type=click.Choice(["search", "auto-pgd", "keskar"]),
    default="search",
    help="auto-pgd: the first 1,024 examples in subsets of 128, 20 steps of Auto-PGD; keskar: "
    "the box of rho times |w| + 1.",
)
@click.option(
    "--normalise-logits", is_flag=True, help="Centre the logits and scale them to length 1."
)
@library_options("sharpness.sharpness", "tol", "max_gradients", "memory")
@common_options
@run_option
def command(
    common: CommonOptions,
    m: int | None,
    profile: bool,
    rhos: str | None,
    protocol: str,
    normalise_logits: bool,
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
    from landscape.sharpness import PUBLISHED, Ball, m_sharpness, sharpness, sharpness_profile

    rho = ball.pop("rho")
    Ball(rho, ball["p"])  # refuses a bad radius or norm before anything is loaded
    radii = _radii(rhos)
    _refuse_contradictions(profile, rhos, m, protocol, common.mode)
    if protocol == "keskar":
        ball |= {"p": math.inf, "adaptive": "elementwise", "eta": 1.0}

    def measure(problem: Problem, study: Study) -> list[Result]:
        at = problem.with_normalised_logits() if normalise_logits else problem
        options = {**ball, **common.run, "study": study}
        if profile:
            return [sharpness_profile(at, radii, **options)]
        if protocol == "auto-pgd":
            searching = ("tol", "max_gradients", "memory")
            options = {name: value for name, value in options.items() if name not in searching}
            return [m_sharpness(at, rho, **PUBLISHED, **options)]
        results: list[Result] = [sharpness(at, rho, **options)]
        return results if m is None else [*results, m_sharpness(at, rho, m=m, **options)]

    def price(problem: Problem) -> Price | Cost:
        if protocol == "auto-pgd":
            return Cost(gradients=21)
        n_radii = len(radii or range(7)) if profile else 1
        return _price_of_search(problem, ball, from_below=profile) * (n_radii + (m is not None))

    measure_each(common, measure, price=price)


def _refuse_contradictions(
    profile: bool, rhos: str | None, m: int | None, protocol: str, mode: str
) -> None:
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
        fixed = "is fixed by --protocol keskar (p = inf, adaptive elementwise, eta = 1)"
        refuse_given(["p", "adaptive", "eta"], f"{fixed}: leave it out")
    if protocol == "auto-pgd":
        steps = "is of a search, and --protocol auto-pgd takes 20 steps: leave it out"
        refuse_given(["tol", "max_gradients", "memory"], steps)


def _radii(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        msg = f"--rhos takes numbers with a comma between two, got {text!r}"
        raise InvalidArgumentError(msg) from None


def _price_of_search(problem: Problem, ball: dict[str, Any], *, from_below: bool) -> Price:
    """Return the passes of the search at one radius."""
    from landscape.sharpness import Ball, n_vertices

    scale = Ball(1.0, ball["p"], ball["adaptive"], ball["eta"]).scale(problem)
    n_free = problem.space.n if scale is None else int(scale.count_nonzero())
    scouting = SCOUTING * (3 if ball["p"] == 1 else 1)  # vertices beside each start
    most = Cost(
        forwards=2 + n_vertices(ball["p"], n_free),
        gradients=scouting + _FROM_BELOW * from_below + ball["max_gradients"],
        hvps=SEARCH_HVPS if ball["p"] == 2 else _MODEL,
    )
    return Price(most, SEARCH_USUALLY if ball["p"] == 2 else most)
