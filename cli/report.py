"""``landscape report``: one self-contained HTML page from a study."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from landscape.errors import StudyError

from .chosen import colours_of, in_full
from .options import params_option, part_of, scale_option, study_option
from .output import command_line

if TYPE_CHECKING:
    from landscape.results.comparison import Comparison


def _measured(comparison: Comparison) -> Comparison:
    """Leave out checkpoints that were trained only, unless that is true of all."""
    more = [m for m in comparison.models if m.roles() or {o.kind for o in m.others} - {"training"}]
    return replace(comparison, models=tuple(more)) if more else comparison


@click.command("report")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@study_option
@click.option("--output", "-o", default="landscape.html", type=click.Path(), help="Page.")
@click.option("--title", default=None, help="Title of the page.")
@scale_option()
@params_option
def command(
    names: tuple[str, ...],
    study: str,
    output: str,
    title: str | None,
    scale: str,
    params: tuple[str, ...],
) -> None:
    """Write one HTML page with the figure, interactive views and all numbers with their evidence.

    It opens without a network. NAMEs are checkpoints, all of them by default. Needs no torch.

    \b
    Example:
      landscape report sgd sam --study landscape.db -o contrast.html
    """
    from landscape.study import Study

    with Study(study, readonly=True) as opened:
        colours = colours_of(opened)
        comparison = opened.comparison(in_full(opened, names) or None, parameters=part_of(params))
    if not names:
        comparison = _measured(comparison)
    if not comparison.models:
        msg = f"{study} holds no finished measurement yet; measure first, e.g. landscape compare"
        raise StudyError(msg)
    path = comparison.report(
        output, title=title, scale=scale, colours=colours, command=command_line()
    )
    click.echo(f"Report in {path}.")
