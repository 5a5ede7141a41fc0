"""``landscape list``: the table of contents of a study."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from .chosen import in_full
from .options import json_option, study_option
from .output import print_rows, to_json

if TYPE_CHECKING:
    from landscape.study import Entry, Name


COLUMNS = ("id", "checkpoint", "kind", "asked for", "data", "status", "measured", "cost")


@click.command("list")
@click.argument("name", required=False)
@study_option
@click.option("--kind", default=None, help="Only loss, sharpness, eigs, trace, …")
@json_option
def command(name: str | None, study: str, kind: str | None, as_json: bool) -> None:
    """List what a study holds, of one checkpoint NAME or of all. Needs no torch.

    \b
    Example:
      landscape list sgd --study landscape.db
    """
    from landscape.errors import one_of
    from landscape.results import KINDS
    from landscape.study import Study

    if kind is not None:
        one_of(kind, KINDS, what="kind")
    with Study(study, readonly=True) as opened:
        name = None if name is None else in_full(opened, [name])[0]
        entries = opened.entries(kind, name)
        if name is not None and not opened.entries(checkpoint=name):
            names = dict.fromkeys(one.name for one in opened.names())
            one_of(name, names, what=f"checkpoint in {study}:")
        known = opened.names()
    if as_json:
        click.echo(to_json([dataclasses.asdict(entry) for entry in entries]))
    elif not entries:
        click.echo(f"Nothing of that in {study}.")
    else:
        print_rows([COLUMNS, *map(row, entries)])
        for same in _same_weights(known):
            click.echo(f"Same weights: {', '.join(same)}")


def _same_weights(known: list[Name]) -> list[list[str]]:
    """List the names of checkpoints that have several."""
    by_hash: dict[str, list[str]] = {}
    for one in known:
        if one.checkpoint_hash:
            by_hash.setdefault(one.checkpoint_hash, []).append(one.name)
    return [names for names in by_hash.values() if len(names) > 1]


def row(entry: Entry) -> tuple[str, ...]:
    """Return the line of one measurement."""
    from landscape.results import KINDS, Result

    status = entry.status
    if status == "partial":
        status += f" ({entry.points_done} of {entry.points_total} points)"
    when = entry.created.replace("T", " ").removesuffix("+00:00")
    keys = KINDS.get(entry.kind, Result).distinguishing
    common = [f"{key} {entry.settings[key]}" for key in keys if entry.settings.get(key)]
    seeds = {part.get("seed") for key in ("d", "d1") if (part := entry.settings.get(key))}
    common += [f"seed {seed}" for seed in sorted(seeds - {None})]
    common += [f"of {entry.parameters}"] if entry.parameters else []
    asked = ", ".join(common)
    return str(entry.id), entry.name, entry.kind, asked, entry.split, status, when, entry.cost
