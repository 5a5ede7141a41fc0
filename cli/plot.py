"""``landscape plot``: draw what a study holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landscape.errors import InvalidArgumentError, StudyError

from .options import study_option

if TYPE_CHECKING:
    from landscape.measured import Comparison
    from landscape.results import Result
    from landscape.study import Study

WHAT = ("contrast", "surface", "worst-line", "random-line", "eigs", "sharpness")


@click.command("plot")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@study_option
@click.option(
    "--what",
    type=click.Choice(WHAT),
    default="contrast",
    show_default=True,
    help="The newest of each checkpoint; contrast: everything on one sheet.",
)
@click.option("--id", "number", type=int, help="One measurement, by its number in the list.")
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
def command(
    names: tuple[str, ...], study: str, what: str, number: int | None, output: str, scale: str
) -> None:
    """Draw what a study holds; NAMEs are checkpoints, all of them by default. Needs no torch.

    \b
    Examples:
      landscape plot -o contrast.pdf
      landscape plot sgd sam --what worst-line -o lines.svg
      landscape plot --id 7 -o surface.html
    """
    from landscape.plots import save_figure
    from landscape.study import Study

    interactive = Path(output).suffix.lower() in {".html", ".htm"}
    with Study(study, readonly=True) as opened:
        if number is not None:
            result = opened.load(number)
            figure = result.explore() if interactive else result.plot(**_scaled(result.kind, scale))
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
    from landscape import plots
    from landscape.measured import Comparison, Measured

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
        models = (Measured(name=m.name, surface=m.surface) for m in comparison.models if m.surface)
        only = Comparison(models=tuple(models))
        return only.explore() if interactive else only.plot(scale=scale, table=False)
    drawer = what.rpartition("-")[2]
    draw = getattr(plots, f"{drawer}_interactive" if interactive else f"{drawer}_figure")
    names = [name for name, _ in found]
    return draw([part for _, part in found], names=names, **_scaled(drawer, scale))


def _scaled(kind: str, scale: str) -> dict[str, Any]:
    return {"scale": scale} if kind in {"surface", "line"} else {}
