"""``landscape show``: measurements of a study in full."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from landscape.errors import StudyError, did_you_mean, one_of

from .chosen import in_full
from .delete import held
from .options import format_options, study_option
from .output import as_dict, print_rows, print_table, to_json

if TYPE_CHECKING:
    from landscape.results import Result
    from landscape.study import Entry, Study


@click.command("show")
@click.argument("which", nargs=-1, required=True, metavar="ID|NAME...")
@click.option("--kind", help="Only records of this kind: loss, sharpness, eigs, trace, …")
@study_option
@format_options
def command(which: tuple[str, ...], kind: str | None, study: str, output_format: str) -> None:
    """Show measurements by number or by checkpoint: values, evidence, settings, cost and origin.

    \b
    Examples:
      landscape show 3 --study landscape.db
      landscape show 'epoch-*' --kind eigs
    """
    from landscape.results import KINDS
    from landscape.study import Study

    if kind is not None:
        one_of(kind, KINDS, what="kind of record")
    with Study(study, readonly=True) as opened:
        entries = [entry for text in which for entry in _entries(opened, text)]
        results = [
            opened.load(entry.id, entry.name)
            for entry in entries
            if kind in (None, entry.kind) and entry.status == "complete"
        ]
        names = [one.name for one in opened.names()]
    if not results:
        near = did_you_mean(which[0], names) if len(which) == 1 and which[0] not in names else ""
        msg = f"{study} holds no finished {kind or 'measurement'} of {', '.join(which)}{near}"
        raise StudyError(msg)
    if output_format == "json":
        listed = [as_dict(result) for result in results]
        click.echo(to_json(listed[0] if len(which) == 1 and which[0].isdecimal() else listed))
        return
    for result in results:
        if output_format == "table":
            _print(result)
        else:
            print_table(
                [{"quantity": label, "value": text} for label, text in result.rows()], output_format
            )


def _entries(study: Study, text: str) -> list[Entry]:
    """Find measurements by a number, or by a checkpoint's name, in which * and ? are allowed."""
    if text.isdecimal():
        return held(study, [int(text)])
    (name,) = in_full(study, [text])
    return [entry for entry in study.entries() if fnmatchcase(entry.name, name)]


def _print(result: Result) -> None:
    click.echo(f"{result.name}: {result.kind}")
    print_rows(result.rows(), indent="  ")
    click.echo("settings")
    print_rows([(key, _short(value)) for key, value in result.settings.items()], indent="  ")
    click.echo("provenance")
    record = dataclasses.asdict(result.provenance)
    print_rows([(key, _short(value)) for key, value in record.items()], indent="  ")
    click.echo(f"cost\n  {result.cost}")


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    text = str(value)
    return text if len(text) <= 70 else f"{text[:67]}…"
