"""Records as pandas and xarray objects, and as HTML for notebooks."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from landscape.errors import missing_dependency
from landscape.wording import Quantity, cell_text

_STYLE = "text-align: left; font-variant-numeric: tabular-nums; white-space: pre-wrap"


def data_frame(rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
    """Return a pandas DataFrame of columns, or of rows as `flat_row` makes them."""
    pandas = _optional("pandas", "to_pandas")
    if isinstance(rows, Mapping):
        # The values of a surface have the shape of its grid.
        return pandas.DataFrame({name: np.asarray(column).ravel() for name, column in rows.items()})
    return pandas.DataFrame([flat_row(row) for row in rows])


def flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Spread each quantity over columns: value, standard error, and the sign of a bound."""
    cells: dict[str, Any] = {}
    for name, cell in row.items():
        if isinstance(cell, Quantity):
            cells |= {name: cell.value, f"{name} se": cell.error}
            if cell.bound:
                cells[f"{name} bound"] = cell.bound
        else:
            cells[name] = cell
    return cells


def labelled_arrays(
    variables: Mapping[str, Any], coordinates: Mapping[str, Any], attributes: Mapping[str, str]
) -> Any:
    """Return an xarray Dataset of variables over all of the coordinates."""
    xarray = _optional("xarray", "to_xarray")
    dimensions = tuple(coordinates)
    return xarray.Dataset(
        {name: (dimensions, values) for name, values in variables.items()},
        coords=dict(coordinates),
        attrs=dict(attributes),
    )


def html_table(rows: Sequence[Mapping[str, Any]], *, caption: str = "") -> str:
    """Write rows of named cells as an HTML table, every text escaped."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(f'<{tag} style="{_STYLE}">{escape(text)}</{tag}>' for text in texts)

    body = "".join(
        f"<tr>{cells('td', [cell_text(row.get(name, '')) for name in columns])}</tr>"
        for row in rows
    )
    head = f"<thead><tr>{cells('th', columns)}</tr></thead>" if any(map(str.strip, columns)) else ""
    title = f'<caption style="{_STYLE}">{escape(caption)}</caption>' if caption else ""
    return f"<table>{title}{head}<tbody>{body}</tbody></table>"


def inline_svg(figure: Any) -> str:
    """Return a matplotlib figure as SVG, to stand in a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return f"<svg{file.getvalue().partition('<svg')[2]}"


def _optional(package: str, method: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise missing_dependency(package, extra="tables", purpose=f"{method}()") from error
