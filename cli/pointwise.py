"""The options of lines and surfaces: how far they go, and what is measured at each point."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .idle import refuse_given
from .options import CommonOptions

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.study import Study
    from landscape.surface import Direction, Plane

F = TypeVar("F", bound=Callable[..., Any])
W = TypeVar("W", bound="Direction | Plane")

AUTO = "auto"
_SEARCH = 40  # forward passes of one automatic range


def ends_of(option: str, text: str) -> tuple[float, float]:
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


def coordinates(low: float, high: float, n: int) -> Any:
    """Return n coordinates from one end to the other, with an exact 0 in the middle of odd ones."""
    import numpy as np

    from landscape.surface import span

    return span(high, n) if low == -high else np.linspace(low, high, n)


@dataclass
class Pointwise:
    """What the options of lines and surfaces say.

    Attributes:
        common: the options of every measuring verb.
        half_width: half of the range, both of its ends, ``auto``, or None for the usual.
        rise: multiple of the loss that an automatic range reaches.
        statistics: of BatchNorm.
        held_out: split that is measured at the same points.
        weight_decay: λ of a regulariser that is kept apart.
        paired: whether the difference to the first checkpoint is measured.
        precision: ``exact`` or a lower one.
        compile: whether to use torch.compile.
        tune: whether long runs choose how to evaluate by timing.
    """

    common: CommonOptions
    half_width: str | None
    rise: float
    statistics: str
    held_out: str | None
    weight_decay: float
    paired: bool
    precision: str
    compile: bool
    tune: bool
    _first: Problem | None = None
    _other: Problem | None = None
    _reach: dict[int, float] = field(default_factory=dict)

    def prepare(
        self,
        problems: Mapping[str, Problem],
        study: Study,
        directions: Callable[[Problem], tuple[Direction, ...]],
    ) -> None:
        """Note the first checkpoint, and find one automatic range that holds for all."""
        from landscape.surface import automatic_range

        if self.paired and len(problems) < 2:
            msg = "--paired measures differences to the first checkpoint: give at least two"
            raise InvalidArgumentError(msg)
        self._first = next(iter(problems.values()))
        if self.half_width != AUTO:
            return
        for problem in problems.values():
            for axis, direction in enumerate(directions(problem)):
                found = automatic_range(
                    problem, direction, multiple=self.rise, seed=self.common.seed, study=study
                )
                self._reach[axis] = max(found, self._reach.get(axis, 0.0))

    def ends(self, usual: tuple[float, float], axis: int = 0) -> tuple[float, float]:
        """Return the ends of an axis: those found, those told, or the usual."""
        if self.half_width == AUTO:
            return -self._reach[axis], self._reach[axis]
        return usual if self.half_width is None else ends_of("--range", self.half_width)

    def arguments(self, problem: Problem, where: Callable[[Problem], W]) -> dict[str, Any]:
        """Return the keywords of `landscape.line` and `landscape.surface`."""
        rival = self._first if self.paired and self._first is not problem else None
        return {
            "statistics": self.statistics,
            "held_out": self._on_held_out(problem),
            "weight_decay": self.weight_decay,
            "against": None if rival is None else (rival, where(rival)),
            "precision": self.precision,
            "compile": self.compile,
            "tune": self.tune,
        }

    def price(self, points: int, searching: Cost, *, axes: int = 1) -> Cost:
        """Return the passes that one checkpoint takes at most."""
        each = 1 + (self.statistics == "recalibrated") + (self.held_out is not None) + self.paired
        search = _SEARCH * axes if self.half_width == AUTO else 0
        forwards = points * each + 1 + search + searching.forwards
        return Cost(forwards=forwards, gradients=searching.gradients, hvps=searching.hvps)

    def _on_held_out(self, problem: Problem) -> Problem | None:
        if self.held_out is None:
            return None
        if self.held_out == self.common.split:
            msg = f"--held-out {self.held_out} is what is measured anyway (--split): name another"
            raise InvalidArgumentError(msg)
        if self._other is None:
            base = self.common.base_problem(self.common.task(), split=self.held_out)
            self._other = base.only(*self.common.params) if self.common.params else base
        return self._other.at(problem)


def pointwise(*, usual: str) -> Callable[[F], F]:
    """Add the options of lines and surfaces; they arrive as one argument ``each``."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def wrapped(common: CommonOptions, **options: Any) -> Any:
            names = [name for name in Pointwise.__dataclass_fields__ if name in options]
            each = Pointwise(common=common, **{name: options.pop(name) for name in names})
            if each.half_width != AUTO:
                refuse_given(["rise"], "is of an automatic range: give --range auto too")
            return function(common, each=each, **options)

        for decorator in reversed(_options(usual)):
            wrapped = decorator(wrapped)
        return wrapped  # type: ignore[return-value]

    return decorate


def _options(usual: str) -> list[Callable[[Any], Any]]:
    return [
        click.option(
            "--range",
            "half_width",
            default=None,
            metavar="R|LO,HI|auto",
            help="From −R to R, or from LO to HI; auto: until the loss of every checkpoint (along "
            f"its first direction) has risen to --rise times its own.  [default: {usual}]",
        ),
        click.option(
            "--rise", default=10.0, show_default=True, help="Multiple of the loss for --range auto."
        ),
        click.option(
            "--statistics",
            type=click.Choice(["frozen", "recalibrated", "interpolated"]),
            default="frozen",
            show_default=True,
            help="Of BatchNorm: the checkpoint's; gathered anew at each point; interpolated "
            "between checkpoints.",
        ),
        click.option(
            "--held-out",
            default=None,
            metavar="SPLIT",
            help="Measure this split beside, e.g. test.",
        ),
        click.option(
            "--weight-decay",
            default=0.0,
            show_default=True,
            help="λ of a regulariser ½ λ ‖w‖², kept apart from the loss.",
        ),
        click.option(
            "--paired",
            is_flag=True,
            help="Measure the difference to the first checkpoint, example by example.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["exact", "bfloat16", "float16", "tf32"]),
            default="exact",
            show_default=True,
            help="A lower one is compared with the exact loss at five points.",
        ),
        click.option("--compile", is_flag=True, help="Use torch.compile where it works."),
        click.option(
            "--tune",
            is_flag=True,
            help="Choose how to evaluate by a short timing, for long runs; can change roundings.",
        ),
    ]
