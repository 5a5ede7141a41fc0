"""The options that choose a plane, and the plane that they come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .idle import refuse_given
from .measuring import SEARCH, price_of_eigenpairs
from .options import CommonOptions

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.study import Study
    from landscape.surface import Direction, Plane, PrincipalPlane

F = TypeVar("F", bound=Callable[..., Any])

PLANES = ("random", "eigenvectors", "worst-case", "through", "trajectory")
# What each kind reads of the plane options, --via apart.
READ = {
    "random": ("normalisation", "biases", "orthogonal"),
    "eigenvectors": ("rho",),
    "worst-case": ("rho", "normalisation", "biases"),
    "through": (),
    "trajectory": (),
}
SEARCHING = {"eigenvectors": price_of_eigenpairs(2), "worst-case": SEARCH}

Ends = tuple[float, float]


@dataclass(frozen=True)
class PlaneOptions:
    """What the plane options say.

    Attributes:
        plane: kind of plane, one of `PLANES`.
        via: checkpoints that it goes through.
        normalisation: of random directions.
        biases: whether random directions move biases and gains.
        orthogonal: metric in which the axes are made orthogonal, or ``none``.
        rho: radius of the worst case.
    """

    plane: str
    via: tuple[str, ...]
    normalisation: str
    biases: bool
    orthogonal: str
    rho: float

    def check(self) -> None:
        """Refuse options that do not fit the kind."""
        needed = {"through": 2, "trajectory": 2}.get(self.plane, 0)
        exact = self.plane == "through"
        if len(self.via) < needed or (exact and len(self.via) > 2) or (self.via and not needed):
            number = f"{'two' if exact else 'at least two'} checkpoints" if needed else "none"
            got = f"{len(self.via)}: {', '.join(self.via)}".rstrip(": ")
            msg = f"--plane {self.plane} goes via {number}; got {got}"
            raise InvalidArgumentError(msg)
        for name in dict.fromkeys(name for names in READ.values() for name in names):
            readers = [plane for plane in PLANES if name in READ[plane]]
            if self.plane not in readers:
                planes = " and ".join(readers)
                why = f"is read by --plane {planes}, not by {self.plane}: leave it out"
                refuse_given([name], why)

    @property
    def price(self) -> Cost:
        """Passes that finding the plane takes at most."""
        return SEARCHING.get(self.plane, Cost())


def plane_options(function: F) -> F:
    """Add the options that choose a plane; they arrive as one `PlaneOptions` named ``plane``."""
    import functools

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        names = ("via", "normalisation", "biases", "orthogonal", "rho")
        asked = PlaneOptions(
            plane=kwargs.pop("plane"), **{name: kwargs.pop(name) for name in names}
        )
        asked.check()
        return function(*args, plane=asked, **kwargs)

    decorators = [
        click.option(
            "--plane",
            type=click.Choice(PLANES),
            default="random",
            show_default=True,
            help="Two random directions; top eigenvectors; worst case and a random one; through "
            "the checkpoints of --via; principal plane of theirs.",
        ),
        click.option(
            "--via", multiple=True, metavar="CHECKPOINT", help="For through (2) and trajectory."
        ),
        click.option(
            "--normalisation",
            type=click.Choice(["filter", "layer", "global", "none"]),
            default="filter",
            show_default=True,
            help="Of random directions, to the weights.",
        ),
        click.option("--biases", is_flag=True, help="Random directions move biases and gains too."),
        click.option(
            "--orthogonal",
            type=click.Choice(["none", "euclidean", "filter"]),
            default="none",
            show_default=True,
            help="Make random directions orthogonal, in this metric.",
        ),
        click.option("--rho", default=0.05, show_default=True, help="Radius for worst-case."),
    ]
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    return wrapped  # type: ignore[return-value]


def make_plane(
    problem: Problem, study: Study, common: CommonOptions, asked: PlaneOptions
) -> tuple[Plane, tuple[Ends, Ends]]:
    """Find the plane that was asked for."""
    from landscape.curvature import top_eigenpairs
    from landscape.sharpness import sharpness
    from landscape.surface import (
        eigenvector_plane,
        plane_through,
        principal_plane,
        random_plane,
        worst_case_plane,
    )

    shared: dict[str, Any] = {"seed": common.seed, "study": study, "progress": common.progress}
    read: dict[str, Any] = common.reading
    near, unit = _both(-2.0 * asked.rho, 2.0 * asked.rho), _both(-1.0, 1.0)
    if asked.plane == "eigenvectors":
        return eigenvector_plane(problem, top_eigenpairs(problem, 2, **shared)), near
    if asked.plane == "worst-case":
        found = sharpness(problem, asked.rho, **shared)
        second = _random_direction(problem, common, asked)
        return worst_case_plane(problem, found, second), near
    if asked.plane == "through":
        _refuse_itself(problem, asked.via, read)
        return plane_through(problem, *asked.via, **read), _both(-0.5, 1.5)
    if asked.plane == "trajectory":
        principal = principal_plane(problem, asked.via, **read)
        _say_explained(principal)
        x, y = (_around(axis) for axis in principal.trajectory.coordinates.T)
        return principal.plane, (x, y)
    plane = random_plane(
        problem,
        common.seed,
        normalisation=asked.normalisation,
        vectors=asked.biases,
        orthogonal=asked.orthogonal,
    )
    return plane, unit


def _refuse_itself(problem: Problem, via: tuple[str, ...], read: dict[str, Any]) -> None:
    for file in via:
        if bool((problem.at(file, **read).weights == problem.weights).all()):
            msg = (
                f"--via {file} has the weights of the checkpoint {problem.name} itself, through "
                "which the plane goes anyway: name another"
            )
            raise InvalidArgumentError(msg)


def _random_direction(problem: Problem, common: CommonOptions, asked: PlaneOptions) -> Direction:
    from landscape.surface import random_direction

    return random_direction(
        problem, common.seed, normalisation=asked.normalisation, vectors=asked.biases
    )


def _both(low: float, high: float) -> tuple[Ends, Ends]:
    return (low, high), (low, high)


def _around(coordinates: Any) -> Ends:
    """Return a range that holds the checkpoints and the origin, with a quarter to spare."""
    low, high = min(0.0, float(coordinates.min())), max(0.0, float(coordinates.max()))
    margin = 0.25 * (high - low)
    return low - margin, high + margin


def _say_explained(principal: PrincipalPlane) -> None:
    shares = " and ".join(f"{share:.1%}" for share in principal.explained)
    click.echo(f"The plane holds {shares} of the run along its two axes.", err=True)
