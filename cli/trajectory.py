"""``landscape trajectory``: training runs beside a plane through a checkpoint."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from landscape.errors import InvalidArgumentError
from landscape.results import Cost

from .measuring import print_price
from .options import CommonOptions, measuring
from .output import print_results
from .planes import PlaneOptions, make_plane, plane_options

Run = tuple[str, tuple[str, ...]]


@click.command("trajectory")
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="[NAME=]FILE,FILE,…",
    help="Checkpoints of a run, in order; may be repeated.  [default: those of --via, and the "
    "origin]",
)
@measuring
@plane_options
def command(common: CommonOptions, plane: PlaneOptions, runs: tuple[str, ...]) -> None:
    """Project training runs on a plane through the CHECKPOINT, and measure their losses.

    Each checkpoint has its own loss, and so has its projection on the plane. With the options of
    a surface, landscape plot draws the runs on that surface.

    \b
    Examples:
      landscape trajectory last.pt --problem task.py --plane trajectory --via e1.pt --via e2.pt
      landscape trajectory sgd.pt --problem task.py --run A=a1.pt,a2.pt --run B=b1.pt,b2.pt
    """
    from landscape.study import Study
    from landscape.surface import trajectory

    if len(common.checkpoints) != 1:
        msg = (
            "a plane has one checkpoint as its origin: give one, and the others by --run; got "
            f"{len(common.checkpoints)}: {' '.join(common.files)}"
        )
        raise InvalidArgumentError(msg)
    wanted = _runs(common, plane, runs)
    problems = common.problems(common.base_problem(common.task()))
    if common.dry_run:
        forwards = plane.price.forwards + sum(2 * len(files) + 1 for _, files in wanted)
        price = Cost(forwards=forwards, gradients=plane.price.gradients, hvps=plane.price.hvps)
        print_price(problems, lambda problem: price, as_json=common.as_json)
        return
    (problem,) = problems.values()
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with Study(common.study) as study:
        found, _ = make_plane(problem, study, common, plane)
        results = [
            trajectory(
                problem,
                found,
                files,
                run=name,
                names=_names(files),
                **common.reading,
                seed=common.seed,
                study=study,
                progress=common.progress,
            )
            for name, files in wanted
        ]
    print_results(results, as_json=common.as_json, study=common.study, since=started)


def _runs(common: CommonOptions, plane: PlaneOptions, runs: tuple[str, ...]) -> list[Run]:
    """Return the name and the files of each run."""
    if not runs and not plane.via:
        msg = "name the checkpoints of a run, in order: --run e1.pt,e2.pt,last.pt"
        raise InvalidArgumentError(msg)
    if not runs:
        return [("", (*plane.via, *common.files))]
    found = []
    for text in runs:
        name, equals, rest = text.partition("=")
        if Path(text.split(",")[0].strip()).exists():  # file names may have an equals sign
            equals = ""
        files = tuple(part.strip() for part in (rest if equals else text).split(","))
        if not all(files):
            msg = f"--run takes file names with a comma between two, got {text!r}"
            raise InvalidArgumentError(msg)
        found.append((name.strip() if equals else "", files))
    return found


def _names(files: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stem of each file, or its path where stems collide."""
    stems = tuple(Path(file).stem for file in files)
    return stems if len(set(stems)) == len(stems) else files
