"""``landscape watch``: the measurements of a training, as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from landscape.wording import cell_text

from .options import study_option

if TYPE_CHECKING:
    from landscape.study import Study

_SECONDS = 1.0


@click.command("watch")
@click.argument("path", required=False, metavar="[STUDY]")
@study_option
@click.option("--once", is_flag=True, help="Print what is there, and end.")
def command(path: str | None, study: str, once: bool) -> None:
    """Print each measurement of a study on a line of its own, those to come too; Ctrl-C ends it.

    \b
    Example:
      landscape watch run.db
    """
    from landscape.study import Study

    seen: set[tuple[int, str]] = set()
    while True:
        with Study(path or study, readonly=True) as opened:
            for line in _new(opened, seen):
                click.echo(line)
        if once:
            return
        time.sleep(_SECONDS)


def _new(study: Study, seen: set[tuple[int, str]]) -> Iterator[str]:
    """Describe the finished measurements that were not seen before."""
    for entry in study.entries():
        if entry.status != "complete" or (entry.id, entry.created) in seen:
            continue
        seen.add((entry.id, entry.created))
        numbers = study.load(entry.id).summary()
        cells = "  ".join(f"{label} {cell_text(cell)}" for label, cell in numbers.items())
        yield f"{entry.created[11:19]}  {entry.name}  {entry.kind}  {cells}"
