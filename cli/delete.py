"""``landscape delete``: take measurements out of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .list_ import row
from .options import study_option
from .output import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from landscape.study import Entry, Study


@click.command("delete")
@click.argument("numbers", type=int, nargs=-1, required=True, metavar="ID...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@study_option
def command(numbers: tuple[int, ...], study: str, yes: bool) -> None:
    """Delete measurements from a study by their numbers, see landscape list. Needs no torch.

    A deleted measurement is made again when the same command is given.

    \b
    Example:
      landscape delete 3 7 --study landscape.db
    """
    from landscape.study import Study

    with Study(study, create=False) as opened:
        chosen = held(opened, numbers)  # all, before the first is deleted
        if not yes:
            print_table([row(entry) for entry in chosen])
            if not click.confirm(f"Delete from {study}?"):
                click.echo("Nothing was deleted.")
                return
        for entry in chosen:
            opened.delete(entry.id)
    click.echo(f"Deleted from {study}: {', '.join(str(entry.id) for entry in chosen)}.")


def held(study: Study, numbers: Sequence[int]) -> list[Entry]:
    """Find measurements by their numbers, each once."""
    from landscape.errors import StudyError

    entries = {entry.id: entry for entry in study.entries()}
    missing = [str(number) for number in numbers if number not in entries]
    if missing:
        known = ", ".join(map(str, entries)) or "nothing"
        msg = f"{study.path} holds no measurement {', '.join(missing)}; it holds {known}"
        raise StudyError(msg)
    return [entries[number] for number in dict.fromkeys(numbers)]
