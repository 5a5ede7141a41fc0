"""``landscape plot``: draw what a study holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from landscape.errors import InvalidArgumentError, StudyError, one_of

from .chosen import newest, numbered
from .options import study_option

if TYPE_CHECKING:
    from landscape.measured import Comparison
    from landscape.results import Result, Surface
    from landscape.study import Study

    from .chosen import Named

WHAT = (
    *("contrast", "surface", "worst-line", "random-line", "sharpness"),
    *("eigs", "sweep", "trace", "density"),
)
KINDS_DRAWN = {"sweep": "eigs", "trace": "trace", "density": "density"}


@click.command("plot")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@study_option
@click.option(
    "--what",
    type=click.Choice(WHAT),
    default="contrast",
    show_default=True,
    help="The newest of each checkpoint; contrast: everything on one sheet; sweep: eigenvalues "
    "over training.",
)
@click.option(
    "--id",
    "numbers",
    type=int,
    multiple=True,
    help="A measurement, by its number in the list; several of one kind: on one sheet.",
)
@click.option(
    "--output",
    "-o",
    default="landscape.png",
    show_default=True,
    type=click.Path(),
    help="Ends in .png, .pdf or .svg; .html is interactive.",
)
@click.option(
    "--scale",
    type=click.Choice(["auto", "linear", "log", "excess", "log-excess"]),
    default="auto",
    show_default=True,
    help="Scale of the loss.",
)
@click.option(
    "--x-axis",
    type=click.Choice(["symlog", "linear"]),
    default="symlog",
    show_default=True,
    help="Spacing of the eigenvalues of a density.",
)
def command(
    names: tuple[str, ...],
    study: str,
    what: str,
    numbers: tuple[int, ...],
    output: str,
    scale: str,
    x_axis: str,
) -> None:
    """Draw what a study holds; NAMEs are checkpoints, all of them by default. Needs no torch.

    \b
    Examples:
      landscape plot -o contrast.pdf
      landscape plot sgd sam --what worst-line -o lines.svg
      landscape plot --what density -o spectrum.png
      landscape plot --id 7 -o surface.html
    """
    from landscape.plots import save_figure
    from landscape.study import Study

    interactive = Path(output).suffix.lower() in {".html", ".htm"}
    with Study(study, readonly=True) as opened:
        if numbers:
            found = numbered(opened, numbers)
            drawer = "sweep" if what == "sweep" else found[0][1].kind
            figure = _drawn(drawer, found, scale, x_axis, interactive)
        elif what in KINDS_DRAWN:
            found = newest(opened, KINDS_DRAWN[what], names)
            figure = _drawn(what, found, scale, x_axis, interactive)
        else:
            comparison = _chosen(opened, names, study)
            figure = _figure(comparison, what, scale, interactive)
    saved = save_figure(figure, output)
    click.echo(f"Drawn in {', '.join(map(str, saved))}.")


def _chosen(study: Study, names: tuple[str, ...], path: str) -> Comparison:
    comparison = study.comparison(names or None)
    if not comparison.models:
        msg = f"{path} holds no finished measurement yet; measure first, e.g. landscape compare"
        raise StudyError(msg)
    return comparison


def _figure(comparison: Comparison, what: str, scale: str, interactive: bool) -> Any:
    if what == "contrast":
        return comparison.explore() if interactive else comparison.plot(scale=scale)
    parts: dict[str, list[tuple[str, Result | None]]] = {
        "surface": [(m.name, m.surface) for m in comparison.models],
        "worst-line": [(m.name, m.worst_line) for m in comparison.models],
        "random-line": [(m.name, m.random_line) for m in comparison.models],
        "eigs": [(m.name, m.eigenpairs) for m in comparison.models],
        "sharpness": [(m.name, m.sharpness) for m in comparison.models],
    }
    found = [(name, part) for name, part in parts[what] if part is not None]
    if not found:
        msg = f"the study holds no {what} of {', '.join(comparison.names)}; measure it first"
        raise InvalidArgumentError(msg)
    if what == "surface":
        return _surfaces(found, scale, interactive)
    return _drawn(what.rpartition("-")[2], found, scale, "symlog", interactive)


def _drawn(drawer: str, found: Named, scale: str, x_axis: str, interactive: bool) -> Any:
    from landscape import plots

    (_, first), *others = found
    options = _options(drawer, scale, x_axis, interactive)
    if drawer == "surface" and others:
        return _surfaces(found, scale, interactive)
    if drawer in {"surface", "loss"}:
        return first.explore() if interactive else first.plot(**options)
    if drawer == "sweep":
        one_of(first.kind, ("eigs",), what="kind of record over training")
    draw = getattr(plots, f"{drawer}_interactive" if interactive else f"{drawer}_figure")
    return draw([part for _, part in found], names=[name for name, _ in found], **options)


def _surfaces(found: Named, scale: str, interactive: bool) -> Any:
    from landscape.measured import Comparison, Measured

    models = (Measured(name=name, surface=cast("Surface", part)) for name, part in found)
    only = Comparison(models=tuple(models))
    return only.explore() if interactive else only.plot(scale=scale, table=False)


def _options(drawer: str, scale: str, x_axis: str, interactive: bool) -> dict[str, Any]:
    if drawer == "density":
        return {"x_axis": x_axis}
    scaled = drawer == "line" or (drawer == "surface" and not interactive)
    return {"scale": scale} if scaled else {}
