"""``landscape plot``: draw what a study holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from landscape.errors import InvalidArgumentError, StudyError, one_of
from landscape.plots import PICTURES
from landscape.results import KINDS
from landscape.results.comparison import Comparison, Measured

from .chosen import (
    colours_of,
    ends_of_runs,
    every_path,
    every_run,
    in_full,
    newest,
    newest_of_runs,
    numbered,
    random_lines,
)
from .options import params_option, part_of, scale_option, study_option

if TYPE_CHECKING:
    from landscape.results import Result, Surface, Trajectory
    from landscape.study import Study

    from .chosen import Named

# Pictures of several records of one kind, besides that of the kind itself.
SPECIAL = {"sweep": "eigs", "difference": "surface", "area": "surface", "band": "line"}
LINES = ("worst-line", "random-line")
SWEPT = ("eigs", "sharpness", "trace", "loss", "update-sharpness", "batch-sharpness")
WHAT = ("contrast", *LINES, *(kind for kind in PICTURES if kind != "line"), *SPECIAL)


@dataclass(frozen=True)
class Look:
    """How to draw: options of the command, and what the study knows of its checkpoints."""

    kind: str | None  # of a picture of surfaces; None: the usual one
    scale: str  # of the loss
    x_axis: str  # spacing of the eigenvalues of a density
    relative: bool  # profiles against ρ/‖w‖
    interactive: bool
    colours: Mapping[str, str]  # by checkpoint and run, the same in every picture
    folders: Mapping[str, str]  # where the study knows no runs, those of one folder are one

    def options(self, drawer: str, names: Sequence[str]) -> dict[str, Any]:
        """Return the keywords of one kind of picture."""
        plain = "log" if "log" in self.scale else "linear"
        if drawer == "trajectory":
            return {"colours": self.colours}  # its records have names of their own
        if drawer == "band":
            return {"scale": self.scale, "colours": self.colours}
        if drawer == "difference":
            return {"names": names, "scale": plain, "rise": "excess" in self.scale}
        if drawer == "path":
            return {"names": names, "scale": plain}
        if drawer == "sweep":
            return {"names": names, "colours": self.colours, **self._runs(names)}
        further: dict[str, dict[str, Any]] = {
            "density": {"x_axis": self.x_axis},
            "profile": {"relative": self.relative},
            "line": {"scale": self.scale},
        }
        return {"names": names, "colours": self.colours, **further.get(drawer, {})}

    def _runs(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the run of each checkpoint where the study knows none: one for each folder."""
        folders = [self.folders.get(name, "") for name in names]
        if not all(folders) or len(set(folders)) == 1 or min(map(folders.count, folders)) == 1:
            return {}
        shared = os.path.commonpath(folders)
        return {"runs": [os.path.relpath(folder, shared) for folder in folders]}


@click.command("plot")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@study_option
@click.option(
    "--what",
    type=click.Choice(WHAT),
    default="contrast",
    help="The newest of each checkpoint; contrast: everything on one sheet; sweep: eigenvalues "
    "over training; difference: of two surfaces; area: of the level sets of surfaces; band: mean "
    "and spread of random lines; trajectory: losses of training runs; profile: sharpness "
    "against ρ.",
)
@click.option(
    "--id",
    "numbers",
    type=int,
    multiple=True,
    help="A measurement, by its number in the list; several of one kind: on one sheet; a surface "
    "and runs: the runs on it.",
)
@click.option(
    "--output",
    "-o",
    default="landscape.png",
    type=click.Path(),
    help="Ends in .png, .pdf or .svg; .html is interactive.",
)
@click.option(
    "--kind",
    type=click.Choice(["contour", "contourf", "heatmap", "3d"]),
    default=None,
    help="How to draw surfaces.  [default: filled contours; several: and reliefs]",
)
@scale_option()
@click.option(
    "--of",
    "swept",
    type=click.Choice(SWEPT),
    default="eigs",
    help="Kind of record that a sweep draws over training.",
)
@click.option("--relative", is_flag=True, help="Profiles of sharpness against ρ/‖w‖ in place of ρ.")
@click.option(
    "--x-axis",
    type=click.Choice(["symlog", "linear"]),
    default="symlog",
    help="Spacing of the eigenvalues of a density.",
)
@params_option
def command(
    names: tuple[str, ...],
    study: str,
    what: str,
    numbers: tuple[int, ...],
    output: str,
    swept: str,
    params: tuple[str, ...],
    **look_options: Any,
) -> None:
    """Draw what a study holds; NAMEs are checkpoints, all of them by default. Needs no torch.

    \b
    Examples:
      landscape plot -o contrast.pdf
      landscape plot sgd sam --what worst-line -o lines.svg
      landscape plot sgd sam --what difference -o difference.png
      landscape plot --what density -o spectrum.png
      landscape plot --id 7 --kind 3d -o surface.png
      landscape plot --id 7 --id 9 -o runs_on_surface.html
    """
    from landscape.plots import save_figure
    from landscape.study import Study

    interactive = Path(output).suffix.lower() in {".html", ".htm"}
    kind = look_options["kind"]
    if interactive and kind not in {None, "3d"}:
        msg = f"an interactive picture of a surface is a relief; --kind {kind} takes .png or .pdf"
        raise InvalidArgumentError(msg)
    with Study(study, readonly=True) as opened:
        look = Look(
            interactive=interactive,
            colours=colours_of(opened),
            folders={one.name: os.path.dirname(one.path) for one in opened.names() if one.path},
            **look_options,
        )
        if numbers:
            figure = _by_number(opened, numbers, what, look)
        else:
            chosen = in_full(opened, names)
            figure = _newest(opened, chosen, what, look, part_of(params), swept=swept)
    saved = save_figure(figure, output)
    click.echo(f"Drawn in {', '.join(map(str, saved))}.")


def _by_number(study: Study, numbers: tuple[int, ...], what: str, look: Look) -> Any:
    """Draw measurements by their numbers; runs beside surfaces are drawn on these."""
    kinds = {entry.id: entry.kind for entry in study.entries()}
    of_runs = [n for n in numbers if kinds.get(n) == "trajectory"]
    others = [n for n in numbers if n not in of_runs]
    found = numbered(study, others or of_runs)
    drawer = what if what in SPECIAL else found[0][1].kind
    if others and of_runs and drawer != "surface":
        msg = f"training runs are drawn on surfaces; {', '.join(map(str, others))} are none"
        raise InvalidArgumentError(msg)
    if drawer == "surface":
        runs = [cast("Trajectory", study.load(n)) for n in of_runs]
        return _surfaces(_fitting(found, runs, asked=True), look)
    return _drawn(drawer, found, look)


def _newest(
    study: Study, names: tuple[str, ...], what: str, look: Look, part: str | None, *, swept: str
) -> Any:
    """Draw the newest measurements of each checkpoint."""
    if what == "band":
        return _call("band", look, random_lines(study, names, parameters=part))
    if what == "trajectory":
        return _call("trajectory", look, every_run(study, names))
    if what == "path":
        return _drawn("path", every_path(study, names), look)
    if what in SPECIAL or (what in KINDS and not KINDS[what].role):
        kind = swept if what == "sweep" else SPECIAL.get(what, what)
        if what == "sweep" and (runs := newest_of_runs(study, kind, names, parameters=part)):
            return _sweep(runs, look)
        found = newest(study, kind, names or ends_of_runs(study, kind), parameters=part)
        return _drawn(what, found, look)
    names = names or ends_of_runs(study, None if what in {"contrast", *LINES} else what)
    comparison = study.comparison(names or None, parameters=part)
    if not comparison.models:
        msg = (
            f"{study.path} holds no finished measurement yet; measure first, e.g. landscape compare"
        )
        raise StudyError(msg)
    models: Named = [(m.name, m.surface) for m in comparison.models if m.surface is not None]
    if what not in {"contrast", "surface"} or not models:
        return _figure(comparison, what, look)
    on = {m.name: m.trajectories for m in _fitting(models, _runs_of(study, models))}
    with_runs = [replace(m, trajectories=on.get(m.name, ())) for m in comparison.models]
    return _figure(Comparison(models=tuple(with_runs)), what, look)


def _runs_of(study: Study, surfaces: Named) -> list[Trajectory]:
    """Load the runs that were projected on the planes of surfaces."""
    hashes = {surface.provenance.checkpoint_hash for _, surface in surfaces}
    entries = study.entries("trajectory")
    found = [e.id for e in entries if e.status == "complete" and e.checkpoint_hash in hashes]
    return [cast("Trajectory", study.load(id)) for id in found]


def _fitting(surfaces: Named, runs: list[Trajectory], *, asked: bool = False) -> list[Measured]:
    """Put each run on the surfaces of its plane; one that was asked for has to fit one."""
    models = []
    for name, part in surfaces:
        surface = cast("Surface", part)
        here = tuple(run for run in runs if run.lies_in(surface))
        models.append(Measured(name=name, surface=surface, trajectories=here))
    lost = [run for run in runs if not any(run.lies_in(cast("Surface", s)) for _, s in surfaces)]
    if asked and lost:
        from landscape.plots.trajectories import check_runs

        check_runs(cast("Surface", surfaces[0][1]), lost)
    return models


def _figure(comparison: Comparison, what: str, look: Look) -> Any:
    if what == "contrast":
        return _sheet(comparison, look)
    role = what.replace("-", "_") if what in LINES else KINDS[what].role
    found = [(m.name, m.roles()[role]) for m in comparison.models if role in m.roles()]
    if not found:
        msg = f"the study holds no {what} of {', '.join(comparison.names)}; measure it first"
        raise InvalidArgumentError(msg)
    if what == "surface":
        return _surfaces([model for model in comparison.models if model.surface], look)
    return _drawn(what.rpartition("-")[2], found, look)


def _sheet(comparison: Comparison, look: Look, **options: Any) -> Any:
    """Draw a comparison on one sheet, or as one page to turn and read off."""
    if look.interactive:
        return comparison.explore(scale=look.scale, colours=look.colours)
    kind = look.kind or "both"
    return comparison.plot(scale=look.scale, kind=kind, colours=look.colours, **options)


def _surfaces(models: list[Measured], look: Look) -> Any:
    if len(models) == 1 and (look.kind or models[0].trajectories) and not look.interactive:
        surface = cast("Surface", models[0].surface)
        runs = models[0].trajectories
        further: Any = {"trajectories": runs, "colours": look.colours}
        return surface.plot(kind=look.kind, scale=look.scale, **further)
    return _sheet(Comparison(models=tuple(models)), look, lines=False)


def _drawn(drawer: str, found: Named, look: Look) -> Any:
    """Draw records of one kind, each under its name."""
    names, records = [name for name, _ in found], [part for _, part in found]
    if drawer in SPECIAL and drawer != "sweep":
        one_of(records[0].kind, (SPECIAL[drawer],), what=f"kind of record for --what {drawer}")
    if drawer not in {*WHAT, "line"}:  # a few numbers, which say themselves that they are
        return records[0].explore() if look.interactive else records[0].plot()
    if drawer == "band":
        by_name: dict[str, list[Result]] = {}
        for record in records:
            by_name.setdefault(record.name, []).append(record)
        return _call("band", look, by_name)
    if drawer == "difference":
        if len(records) != 2:
            msg = f"a difference takes two surfaces; got {len(records)}: {', '.join(names)}"
            raise InvalidArgumentError(msg)
        return _call("difference", look, *records, names=names)
    return _call(drawer, look, records, names=names)


def _sweep(runs: Mapping[str, list[tuple[float, str, Result]]], look: Look) -> Any:
    """Draw the runs that the study knows, by their epochs or steps."""
    places = [(run, *checkpoint) for run, of in runs.items() for checkpoint in of]
    of_each, x, names, records = map(list, zip(*places, strict=True))
    further = {"runs": of_each, "x": x, "x_label": _counted(runs)}
    return _call("sweep", look, records, names=names, **further)


def _counted(runs: Mapping[str, list[tuple[float, str, Result]]]) -> str:
    """Return what the steps of runs count: the word before them in the checkpoints' names, if any.

    A study knows the numbers alone, which may be those of the files, of epochs or of steps.
    """
    from landscape.plots.numbering import counted_in, numbers_in

    words = set()
    for of in runs.values():
        names, numbers = [name for _, name, _ in of], numbers_in([name for _, name, _ in of])
        named = numbers is not None and [step for step, *_ in of] == numbers.tolist()
        words.add(counted_in(names) if named else "")
    return words.pop() if len(words) == 1 and words != {""} else "epoch or step"


def _call(drawer: str, look: Look, *records: Any, names: Sequence[str] = (), **further: Any) -> Any:
    from landscape import plots

    function = f"explore_{drawer}" if look.interactive else f"plot_{drawer}"
    if function not in plots.__all__:
        msg = f"{drawer} has no interactive picture; write it as .png, .pdf or .svg"
        raise InvalidArgumentError(msg)
    return getattr(plots, function)(*records, **look.options(drawer, names) | further)
