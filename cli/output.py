"""Results on stdout: a table for people, JSON, CSV, Markdown or LaTeX for programs and papers."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from landscape.results.frames import flat_row
from landscape.wording import Quantity, cell_text

from .options import DEFAULT_STUDY

if TYPE_CHECKING:
    from rich.table import Table

    from landscape.results import Result
    from landscape.results.comparison import Comparison

_LARGEST_LISTED_ARRAY = 10_000
_NUMBER = r"(≥ )?[-+]?(\d|nan|inf|$)|yes$|NO$"
_USUAL_WIDTH = 120  # of what is not a terminal: wider tables are turned
_FEW = 3  # checkpoints that are named after a table
_LONGEST_WORD = 24  # longer cells are broken into lines where the terminal is narrow

Row = Mapping[str, Any]


def print_results(
    results: Sequence[Result], output_format: str, *, study: str, n_recalled: int
) -> None:
    """Print a table of each kind of result, and what a reader must know of them."""
    if output_format == "json":
        click.echo(to_json([as_dict(result) for result in results]))
        return
    for kind in dict.fromkeys(result.kind for result in results):
        rows = _rows([result for result in results if result.kind == kind])
        print_table(rows, output_format, turn=True)
    if output_format != "table":
        return
    for line in dict.fromkeys(map(_source, results)):
        click.echo(line)
    for result in results:
        for label, text in result.rows():
            if label == "note":
                click.echo(f"{result.name}: {text}")
    if n_recalled:
        click.echo(
            f"{n_recalled} of {len(results)} recalled from an earlier run, not measured again."
        )
    elsewhere = "" if study == DEFAULT_STUDY else f" --study {shlex.quote(study)}"
    names = _names(results)
    which = " ".join(map(shlex.quote, names)) if len(names) <= _FEW else "NAME"
    click.echo(f"Saved in {study}; details: landscape show {which}{elsewhere}")


def _rows(results: Sequence[Result]) -> list[Row]:
    """Return a row for each result; it names the parameters where they are not all the same."""
    parts = {result.provenance.parameters for result in results}
    return [
        {
            "checkpoint": result.name,
            **({"parameters": result.provenance.parameters} if len(parts) > 1 else {}),
            **result.summary(),
        }
        for result in results
    ]


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.name for result in results))


def _source(result: Result) -> str:
    source = result.provenance
    seed = f", seed {result.settings['seed']}" if "seed" in result.settings else ""
    part = f" matching {source.parameters}" if source.parameters else ""
    return (
        f"{source.n_parameters:,} parameters{part}, {source.n_examples:,} {source.split} examples, "
        f"{source.mode} mode, {source.dtype} on {source.device}{seed}"
    )


def print_table(rows: Sequence[Row], output_format: str = "table", *, turn: bool = False) -> None:
    """Print rows of named cells; a row may lack some of the columns.

    For people, and if asked to, a table that is too wide is turned where that helps.
    """
    if output_format == "json":
        click.echo(to_json(rows))
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in columns if any(row.get(name, "") != "" for row in rows)]
    if output_format == "csv":
        click.echo(_csv(rows), nl=False)
        return
    cells = [[cell_text(row.get(name, "")) for name in columns] for row in rows]
    if output_format == "table":
        _print_rich(columns, cells, turn=turn)
    elif output_format == "markdown":
        click.echo(_markdown(columns, cells))
    else:
        click.echo(_latex(columns, cells))


def _print_rich(columns: Sequence[str], cells: Sequence[Sequence[str]], *, turn: bool) -> None:
    """Print a table at most as wide as the terminal; where there is none, as wide as it is."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=sys.stdout, highlight=False)
    is_terminal = console.is_terminal
    limit = console.width if is_terminal or "COLUMNS" in os.environ else _USUAL_WIDTH
    if not is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=10_000)

    def width(table: Table) -> int:
        return Measurement.get(console, console.options.update(max_width=10_000), table).maximum

    table = _rich_table(columns, cells)
    if turn and width(table) > limit and len(cells) < len(columns):
        header, *rows = zip(columns, *cells, strict=True)
        turned = _rich_table(header, rows)
        table = turned if width(turned) <= limit else table
    if not is_terminal:
        console.width = width(table)
    console.print(table)


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, header_style="bold"
    )
    for k, name in enumerate(columns):
        is_number = all(re.match(_NUMBER, row[k]) for row in cells)
        is_short = max(len(row[k]) for row in cells) <= _LONGEST_WORD
        justify: Any = "right" if is_number and k else "left"
        table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=is_short)
    for row in cells:
        table.add_row(*(Text(cell, style="bold red" if cell == "NO" else "") for cell in row))
    return table


def _csv(rows: Sequence[Row]) -> str:
    """Write numbers in full; a quantity takes a column for its standard error too."""
    flat = [flat_row(row) for row in rows]
    columns = dict.fromkeys(name for row in flat for name in row)
    filled = [name for name in columns if any(row.get(name, "") != "" for row in flat)]
    file = io.StringIO()
    writer = csv.DictWriter(file, filled, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    def line(row: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, cells)])


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "≥": r"$\geq$", "ρ": r"$\rho$", "σ": r"$\sigma$", "λ": r"$\lambda$"},
    **{"‖": r"$\|$", "→": r"$\to$", "×": r"$\times$", "−": "$-$"},
}


def _latex(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Write a tabular with the rules of the package booktabs."""

    def line(row: Iterable[str]) -> str:
        escaped = ("".join(_LATEX.get(letter, letter) for letter in cell) for cell in row)
        return f"  {' & '.join(escaped)} \\\\"

    head = [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"  \toprule", line(columns)]
    body = [r"  \midrule", *map(line, cells), r"  \bottomrule", r"\end{tabular}"]
    return "\n".join(head + body)


def print_comparison(comparison: Comparison) -> None:
    """Print the table of a comparison."""
    header, *body = comparison.table()
    print_table([dict(zip(header, row, strict=True)) for row in body])


def print_line(text: str, style: str) -> None:
    """Print a line; coloured where stdout is a terminal and NO_COLOR is unset."""
    from rich.console import Console
    from rich.text import Text

    Console(file=sys.stdout, highlight=False).print(Text(text, style=style), soft_wrap=True)


def print_rows(rows: Iterable[tuple[str, ...]], *, indent: str = "") -> None:
    """Print rows as aligned columns without a header."""
    table = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo((indent + "  ".join(cells)).rstrip())


def command_line() -> str:
    """Return the command that is running, as it was typed."""
    return shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])


def as_dict(result: Result) -> dict[str, Any]:
    """Return a result as JSON values; large arrays by their shape only."""
    from landscape.results import to_record

    scalars, arrays = to_record(result)
    listed = {
        name: array.tolist()
        if array.size <= _LARGEST_LISTED_ARRAY
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
    if isinstance(value, Quantity):
        bound = {"bound": value.bound} if value.bound else {}
        return _plain({"value": value.value, "standard_error": value.error, **bound})
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
