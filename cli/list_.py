"""``landscape list``: the table of contents of a study."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from landscape.wording import number

from .chosen import in_full
from .options import equal_weights, format_options, study_option
from .output import print_table, to_json

if TYPE_CHECKING:
    from landscape.study import Entry


@click.command("list")
@click.argument("name", required=False)
@study_option
@click.option("--kind", help="Only records of this kind: loss, sharpness, eigs, trace, …")
@format_options
def command(name: str | None, study: str, kind: str | None, output_format: str) -> None:
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
            names = dict.fromkeys(known.name for known in opened.names())
            one_of(name, names, what=f"checkpoint in {study}:")
        known = opened.names()
    if output_format == "json":
        click.echo(to_json([dataclasses.asdict(entry) for entry in entries]))
    elif not entries:
        click.echo(f"Nothing of that in {study}.")
    else:
        rows = [row(entry) for entry in entries]
        if output_format != "table":
            rows = [{**row, "cost": entry.cost} for row, entry in zip(rows, entries, strict=True)]
        print_table(rows, output_format)
        for equal in equal_weights((one.name, one.checkpoint_hash) for one in known):
            click.echo(f"Same weights: {', '.join(equal)}", err=output_format != "table")


def _brief(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def row(entry: Entry) -> dict[str, Any]:
    """Return the row of one measurement."""
    from landscape.results import KINDS, Result

    status = entry.status
    if status == "partial":
        status += f" ({entry.points_done} of {entry.points_total} points)"
    keys = KINDS.get(entry.kind, Result).distinguishing
    settings = [f"{key} {_brief(entry.settings[key])}" for key in keys if entry.settings.get(key)]
    seeds = {part.get("seed") for key in ("d", "d1") if (part := entry.settings.get(key))}
    settings += [f"seed {seed}" for seed in sorted(seeds - {None})]
    settings += [f"{entry.points_total} points"] if entry.points_total > 1 else []
    settings += ["normalised logits"] if "normalised logits" in entry.loss else []
    settings += [f"of {entry.parameters}"] if entry.parameters else []
    return {
        "id": str(entry.id),
        "checkpoint": entry.name,
        "kind": entry.kind,
        "settings": ", ".join(settings),
        "data": entry.split,
        "status": status,
        "measured": entry.created.replace("T", " ")[:16],
    }
