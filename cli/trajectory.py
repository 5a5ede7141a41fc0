"""``landscape trajectory``: training runs beside a plane through a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .measuring import measure_each
from .options import CommonOptions, common_options
from .planes import PlaneOptions, plane_options
from .runs import run_of
from .sections import Command

if TYPE_CHECKING:
    from landscape.problem import Problem
    from landscape.results import Result
    from landscape.study import Study


@click.command("trajectory", cls=Command)
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="[NAME=]FILE,FILE,…",
    help="Checkpoints of a run, in order, * and ? allowed; may be repeated.  [default: those of "
    "--via, and the origin]",
)
@common_options
@plane_options
def command(common: CommonOptions, plane: PlaneOptions, runs: tuple[str, ...]) -> None:
    """Project training runs on a plane through the CHECKPOINT, and measure their losses.

    Each checkpoint has its own loss, and so has its projection on the plane. With the options of
    a surface, landscape plot draws the runs on that surface.

    \b
    Examples:
      landscape trajectory last.pt --problem task.py --plane trajectory --via 'run/*.pt'
      landscape trajectory sgd.pt --problem task.py --run A='a/*.pt' --run B=b1.pt,b2.pt
    """
    from landscape.surface import trajectory

    if len(common.checkpoints) != 1:
        msg = (
            "a plane has one checkpoint as its origin: give one, and the others by --run; got "
            f"{len(common.checkpoints)}: {' '.join(common.files)}"
        )
        raise InvalidArgumentError(msg)
    files_by_run = _files(common, plane, runs)

    def measure(problem: Problem, study: Study) -> list[Result]:
        spanned, _ = plane.find(problem, study)
        return [
            trajectory(
                problem,
                spanned,
                files,
                run=name,
                names=_names(files),
                study=study,
                **common.reading,
                **common.run,
            )
            for name, files in files_by_run
        ]

    price = plane.price + Cost(forwards=sum(2 * len(files) + 1 for _, files in files_by_run))
    measure_each(common, measure, price=lambda problem: price)


def _files(
    common: CommonOptions, plane: PlaneOptions, runs: tuple[str, ...]
) -> list[tuple[str, tuple[str, ...]]]:
    """Return the name and the files of each run."""
    if not runs and not plane.via:
        msg = "name the checkpoints of a run, in order: --run e1.pt,e2.pt,last.pt"
        raise InvalidArgumentError(msg)
    return [run_of(text) for text in runs] or [("", (*plane.via, *common.files))]


def _names(files: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stem of each file, or its path where stems collide."""
    stems = tuple(Path(file).stem for file in files)
    return stems if len(set(stems)) == len(stems) else files
