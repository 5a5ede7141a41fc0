"""``landscape show``: one measurement of a study in full."""

from __future__ import annotations

import dataclasses

import click

from .delete import held
from .options import json_option, study_option
from .output import as_dict, print_rows, to_json


@click.command("show")
@click.argument("number", type=int, metavar="ID")
@study_option
@json_option
def command(number: int, study: str, as_json: bool) -> None:
    """Show one measurement: values, evidence, settings, cost and where it came from.

    \b
    Example:
      landscape show 3 --study landscape.db
    """
    from landscape.study import Study

    with Study(study, readonly=True) as opened:
        (entry,) = held(opened, [number])
        result = opened.load(entry.id)
    if as_json:
        click.echo(to_json(as_dict(result)))
        return
    click.echo(f"{result.name}: {result.kind}")
    print_rows(result.rows(), indent="  ")
    click.echo("settings")
    print_rows([(k, _short(v)) for k, v in result.settings.items()], indent="  ")
    click.echo("provenance")
    record = dataclasses.asdict(result.provenance)
    print_rows([(k, _short(v)) for k, v in record.items()], indent="  ")
    click.echo(f"cost\n  {result.cost}")


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    text = str(value)
    return text if len(text) <= 70 else f"{text[:67]}…"
