"""The options that choose a plane, and the plane that they come to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .library_options import library_options
from .measuring import SEARCH, Price, price_of_eigenpairs
from .options import CommonOptions, expanded
from .pointwise import Ends
from .sections import WHAT, refuse_given

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.study import Study
    from landscape.surface import Plane

F = TypeVar("F", bound=Callable[..., Any])

# The plane options that each kind reads, --via apart.
READ = {
    "random": ("normalisation", "biases", "orthogonal"),
    "eigenvectors": ("rho",),
    "worst-case": ("rho", "normalisation", "biases"),
    "through": (),
    "trajectory": (),
}
PLANES = tuple(READ)
_PRICES = {"eigenvectors": price_of_eigenpairs(2), "worst-case": SEARCH}


@dataclass(frozen=True)
class PlaneOptions:
    """Options that choose a plane; see `plane_options`."""

    common: CommonOptions
    plane: str
    via: tuple[str, ...]
    normalisation: str
    biases: bool
    orthogonal: Any
    rho: float

    def __post_init__(self) -> None:
        """Refuse options that do not fit the kind of plane."""
        is_via = self.plane in {"through", "trajectory"}
        fits = len(self.via) == 2 if self.plane == "through" else len(self.via) >= 2
        if not (fits if is_via else not self.via):
            needed = {"through": "two checkpoints", "trajectory": "at least two checkpoints"}
            got = f"{len(self.via)}: {', '.join(self.via)}".rstrip(": ")
            msg = f"--plane {self.plane} goes via {needed.get(self.plane, 'none')}; got {got}"
            raise InvalidArgumentError(msg)
        for name in dict.fromkeys(name for names in READ.values() for name in names):
            readers = [plane for plane in PLANES if name in READ[plane]]
            if self.plane not in readers:
                planes = " and ".join(readers)
                why = f"is read by --plane {planes}, not by {self.plane}: leave it out"
                refuse_given([name], why)

    @property
    def price(self) -> Price | Cost:
        """The passes of finding the plane."""
        return _PRICES.get(self.plane, Cost())

    @property
    def _random(self) -> dict[str, Any]:
        return {"normalisation": self.normalisation, "vectors": self.biases}

    def find(self, problem: Problem, study: Study) -> tuple[Plane, tuple[Ends, Ends]]:
        """Return the plane through a checkpoint, and the default range of its axes."""
        from landscape.curvature import top_eigenpairs
        from landscape.sharpness import sharpness
        from landscape.surface import (
            eigenvector_plane,
            plane_through,
            random_direction,
            random_plane,
            worst_case_plane,
        )

        options, seed = {**self.common.run, "study": study}, self.common.seed
        near = (-2.0 * self.rho, 2.0 * self.rho)
        if self.plane == "eigenvectors":
            return eigenvector_plane(problem, top_eigenpairs(problem, 2, **options)), (near, near)
        if self.plane == "worst-case":
            second = random_direction(problem, seed, **self._random)
            worst = sharpness(problem, self.rho, **options)
            return worst_case_plane(problem, worst, second), (near, near)
        if self.plane == "through":
            self._refuse_origin(problem)
            plane = plane_through(problem, *self.via, **self.common.reading)
            return plane, ((-0.5, 1.5), (-0.5, 1.5))
        if self.plane == "trajectory":
            return self._principal(problem)
        plane = random_plane(problem, seed, **self._random, orthogonal=self.orthogonal)
        return plane, ((-1.0, 1.0), (-1.0, 1.0))

    def _principal(self, problem: Problem) -> tuple[Plane, tuple[Ends, Ends]]:
        from landscape.surface import principal_plane

        principal = principal_plane(problem, self.via, **self.common.reading)
        shares = " and ".join(f"{share:.1%}" for share in principal.explained)
        click.echo(f"The plane holds {shares} of the run along its two axes.", err=True)
        x, y = (_around(axis) for axis in principal.trajectory.coordinates.T)
        return principal.plane, (x, y)

    def _refuse_origin(self, problem: Problem) -> None:
        for file in self.via:
            if bool((problem.at(file, **self.common.reading).weights == problem.weights).all()):
                msg = (
                    f"--via {file} has the weights of the checkpoint {problem.name} itself, "
                    "through which the plane goes anyway: name another"
                )
                raise InvalidArgumentError(msg)


def plane_options(function: F) -> F:
    """Add the options that choose a plane; they arrive as one `PlaneOptions` named ``plane``."""

    @functools.wraps(function)
    def wrapped(common: CommonOptions, **options: Any) -> Any:
        names = ("plane", "normalisation", "biases", "orthogonal", "rho")
        own = {name: options.pop(name) for name in names}
        plane = PlaneOptions(common, via=expanded(options.pop("via")), **own)
        return function(common, plane=plane, **options)

    decorators = [
        click.option(
            "--plane",
            type=click.Choice(PLANES),
            default="random",
            help="Two random directions; top eigenvectors; worst case and a random one; through "
            "the checkpoints of --via; principal plane of theirs.",
        ),
        click.option(
            "--via",
            multiple=True,
            metavar="CHECKPOINT",
            help="For through (2) and trajectory; * and ? allowed.",
        ),
        library_options("surface.random_plane", "normalisation", "orthogonal", section=WHAT),
        click.option("--biases", is_flag=True, help="Random directions move biases and gains too."),
        click.option("--rho", default=0.05, help="Radius for worst-case."),
    ]
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    return wrapped  # type: ignore[return-value]


def _around(coordinates: Any) -> Ends:
    """Return a range that holds the checkpoints and the origin, with a quarter to spare."""
    low, high = min(0.0, float(coordinates.min())), max(0.0, float(coordinates.max()))
    margin = 0.25 * (high - low)
    return low - margin, high + margin
