"""The options that lines and surfaces share: how far they go, what is measured at each point."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .library_options import library_options
from .measuring import Price
from .options import CommonOptions
from .sections import WHAT, refuse_given

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.study import Study
    from landscape.surface import Direction, Plane

F = TypeVar("F", bound=Callable[..., Any])
Ends = tuple[float, float]

AUTO = "auto"
RANGE_FORWARDS = 40  # forward passes of one automatic range


def ends_of(option: str, text: str) -> Ends:
    """Read a range: one number R for −R to R, or two with a comma between."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers = [-numbers[0], numbers[0]]
    low, high = numbers if len(numbers) == 2 else (math.nan, math.nan)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        msg = (
            f"{option} takes a finite number above 0 (half of a width), or two that ascend, as in "
            f"0,1; got {text!r}"
        )
        raise InvalidArgumentError(msg)
    return low, high


def coordinates(ends: Ends, n: int) -> Any:
    """Return n coordinates from one end to the other, with an exact 0 in the middle of odd ones."""
    import numpy as np

    from landscape.surface import span

    low, high = ends
    return span(high, n) if low == -high else np.linspace(low, high, n)


def automatic_ranges(
    problems: Mapping[str, Problem],
    directions: Callable[[Problem], tuple[Direction, ...]],
    **options: Any,
) -> list[float]:
    """Return the automatic range along each direction, the widest of all checkpoints."""
    from landscape.surface import automatic_range

    by_checkpoint = [
        [automatic_range(problem, direction, **options) for direction in directions(problem)]
        for problem in problems.values()
    ]
    return [max(of_axis) for of_axis in zip(*by_checkpoint, strict=True)]


@dataclass
class PointOptions:
    """Options of lines and surfaces; see `point_options`."""

    common: CommonOptions
    half_width: str | None
    rise: float
    held_out: str | None
    paired: bool
    evaluation: Mapping[str, Any]
    _first: Problem | None = None
    _reach: list[float] = field(default_factory=list)

    @functools.cached_property
    def _other(self) -> Problem | None:
        return self.common.held_out(self.held_out)

    def prepare(
        self,
        problems: Mapping[str, Problem],
        study: Study,
        directions: Callable[[Problem], tuple[Direction, ...]],
    ) -> None:
        """Note the first checkpoint, and find one automatic range that holds for all."""
        if self.paired and len(problems) < 2:
            msg = "--paired measures differences to the first checkpoint: give at least two"
            raise InvalidArgumentError(msg)
        self._first = next(iter(problems.values()))
        if self.half_width == AUTO:
            self._reach = automatic_ranges(
                problems, directions, multiple=self.rise, seed=self.common.seed, study=study
            )

    def ends(self, default: Ends, axis: int = 0) -> Ends:
        """Return the ends of an axis."""
        if self.half_width == AUTO:
            return -self._reach[axis], self._reach[axis]
        return default if self.half_width is None else ends_of("--range", self.half_width)

    def keywords(
        self, problem: Problem, directions: Callable[[Problem], Direction | Plane]
    ) -> dict[str, Any]:
        """Return the keywords of `landscape.line` and `landscape.surface` for a checkpoint."""
        rival = self._first if self.paired and self._first is not problem else None
        return {
            "held_out": None if self._other is None else self._other.at(problem),
            "against": None if rival is None else (rival, directions(rival)),
            **self.evaluation,
            **self.common.run,
        }

    def price(self, points: int, searching: Price | Cost, *, axes: int = 1) -> Price | Cost:
        """Return the passes of one checkpoint, and those of a search before."""
        is_recalibrated = self.evaluation["statistics"] == "recalibrated"
        passes = 1 + is_recalibrated + (self.held_out is not None) + self.paired
        search = RANGE_FORWARDS * axes if self.half_width == AUTO else 0
        return searching + Cost(forwards=points * passes + 1 + search)


def point_options(*, default_range: str) -> Callable[[F], F]:
    """Add the options of lines and surfaces; they arrive as one argument ``at_points``."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapped(common: CommonOptions, **options: Any) -> Any:
            own = {name: options.pop(name) for name in ("half_width", "rise", "held_out", "paired")}
            names = ("statistics", "weight_decay", "precision", "compile", "tune")
            evaluation = {name: options.pop(name) for name in names}
            if own["half_width"] != AUTO:
                refuse_given(["rise"], "is of an automatic range: give --range auto too")
            at_points = PointOptions(common, **own, evaluation=evaluation)
            return function(common, at_points=at_points, **options)

        for decorator in reversed(_decorators(default_range)):
            wrapped = decorator(wrapped)
        return wrapped  # type: ignore[return-value]

    return decorate


def _decorators(default_range: str) -> list[Callable[[Any], Any]]:
    return [
        click.option(
            "--range",
            "half_width",
            metavar="R|LO,HI|auto",
            help="From −R to R, or from LO to HI; auto: until the loss of every checkpoint (along "
            f"its first direction) has risen to --rise times its own.  [default: {default_range}]",
        ),
        click.option("--rise", default=10.0, help="Multiple of the loss for --range auto."),
        click.option("--held-out", metavar="SPLIT", help="Measure this split too, e.g. test."),
        click.option(
            "--paired",
            is_flag=True,
            help="Measure the difference to the first checkpoint, example by example.",
        ),
        library_options("surface.PointOptions", "statistics", "weight_decay", section=WHAT),
        library_options("surface.PointOptions", "precision", "compile", "tune"),
    ]
