"""Results on stdout: a table for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

if TYPE_CHECKING:
    from landscape.results import Result

LARGEST_LISTED_ARRAY = 10_000


def print_results(results: Sequence[Result], *, as_json: bool, study: str, since: str) -> None:
    """Print what was measured, one small table per checkpoint, or one JSON list."""
    if as_json:
        click.echo(to_json([as_dict(result) for result in results]))
        return
    for result in results:
        where = result.provenance
        examples = f"{where.n_examples:,} {where.split} examples"
        seed = f", seed {result.settings['seed']}" if "seed" in result.settings else ""
        which = f" matching {where.parameters}" if where.parameters else ""
        click.echo(
            f"{result.name}  ({where.n_parameters:,} parameters{which}, {examples}, "
            f"{where.mode} mode, {where.dtype} on {where.device}{seed})"
        )
        print_rows(result.rows(), indent="  ")
        kept = f"  (kept from {where.created}, not measured again)" if where.created < since else ""
        click.echo(f"  cost: {result.cost}{kept}")
    click.echo(f"Stored in {study}.")


def print_rows(rows: Iterable[tuple[str, ...]], *, indent: str = "") -> None:
    """Print rows as columns, the first one to the left and the others aligned."""
    table = [tuple(row) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))] if table else []
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo((indent + "  ".join(cells)).rstrip())


def as_dict(result: Result) -> dict[str, Any]:
    """Return a result as JSON values; large arrays by their shape only."""
    from landscape.results import to_record

    scalars, arrays = to_record(result)
    listed = {
        name: array.tolist()
        if array.size <= LARGEST_LISTED_ARRAY
        else {"shape": list(array.shape), "dtype": str(array.dtype)}
        for name, array in arrays.items()
    }
    return {"kind": result.kind, **scalars, **listed}


def to_json(value: Any) -> str:
    r"""Write valid JSON; a float that is not finite becomes the text "nan", "inf" or "-inf".

    >>> to_json({"loss": float("nan")})
    '{\n  "loss": "nan"\n}'
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
