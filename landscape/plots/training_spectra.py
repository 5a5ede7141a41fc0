"""Spectral densities of two or more optimizers in the course of training, and λmax in a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError
from landscape.plots import words
from landscape.plots.densities import DensityView, density_view, draw_density, prepare_density
from landscape.plots.replicates import beside, places, same_keys, tick_at
from landscape.plots.scales import symlog_ticks
from landscape.plots.sheet import Box, draw_table, frame, place, table_height, write
from landscape.plots.style import SMALL, colour, fit, plain, styled
from landscape.results import Density, Eigenpairs
from landscape.wording import number

PUBLISHED: Mapping[int, Mapping[str, tuple[float, float]]] = {
    1: {"SGD": (62.9, 2.5), "SAM": (18.6, 3.6)},
    50: {"SGD": (12.5, 1.7), "SAM": (8.9, 1.9)},
    300: {"SGD": (24.2, 11.4), "SAM": (1.0, 2.6)},
}
"""λmax and λmax/λ5 of WRN-40-10 on CIFAR-10 without BatchNorm: Foret et al. (2021), Figure 3."""

_SOURCE = "Another network: WRN-40-10, CIFAR-10, no BatchNorm"
_NARROW, _HIGH = 2.05, 1.6
_LEAST = 3 * _NARROW + 0.28
"""Width of all panels of a row together, at least, so that two tables fit below."""

_GAP = 0.14
_TEXT = 0.47
"""Height in each panel that stays free of curves, for what is written there, in inches."""

_AXIS = 0.5
_TABLE_GAP = 0.35


@styled()
def spectra_over_training(
    densities: Mapping[str, Sequence[Density]],
    pairs: Mapping[str, Sequence[Eigenpairs]],
    epochs: Sequence[int],
    *,
    published: bool = True,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw spectral densities, a row for each optimizer and a column for each epoch.

    All panels share both axes, so that spectra can be compared along rows and columns. A table
    under them holds λmax and λmax/λ5 again, beside those published for another network.

    Args:
        densities: for each optimizer, a density at each epoch.
        pairs: for each optimizer, the eigenpairs at each epoch; the ratio needs five.
        epochs: ascending.
        published: whether to show the numbers of Foret et al. (2021), arXiv 2010.01412, Figure 3.
        title: a line above the picture, or None.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.

    Raises:
        InvalidArgumentError: if there is nothing to draw, or not one record of each kind for each
            optimizer and epoch.
    """
    _check(densities, pairs, epochs)
    order = places(densities)
    called = sorted(densities, key=lambda name: order[name])
    records = [record for name in called for record in densities[name]]
    found = [pair for name in called for pair in pairs[name]]
    view = _with_headroom(density_view(records, "symlog"))
    tables = _tables({name: pairs[name] for name in called}, epochs, published=published)
    n_rows, n_columns = len(densities), len(epochs)
    across = max(n_columns * (_NARROW + _GAP) - _GAP, _LEAST)
    panels = (across, n_rows * (_HIGH + _GAP) - _GAP)
    below = _tables_height(tables, width=panels[0])
    room = (panels[0], panels[1] + below)
    names = [f"{name}, epoch {epoch}" for name in called for epoch in epochs]
    parts = _caption(records, found, names, view)
    figure, box = frame(parts, title=title, caption=caption, room=room)
    field = (box[0], box[1] + below, *panels)
    boxes = [part for row in _rows(field, n_rows) for part in beside(row, n_columns, gap=_GAP)]
    for k, (part, record, pair) in enumerate(zip(boxes, records, found, strict=True)):
        row, column = divmod(k, n_columns)
        axes, index = place(figure, part), order[called[row]]
        _draw_panel(axes, record, view, index=index, room=part[2])
        _write_panel(axes, names[k], pair, index=index, room=part[2])
        _label(axes, left=column == 0, bottom=row == n_rows - 1)
    at: Any = {"left": box[0], "top": field[1] - _AXIS, "width": across}
    _draw_tables(figure, tables, **at, first=order[called[0]])
    return figure


def top_two(pairs: Eigenpairs) -> tuple[float, float]:
    """Return λmax and λmax/λ5.

    Args:
        pairs: eigenpairs of one checkpoint.

    Returns:
        Both; the ratio is NaN where there are not five from the top, or the fifth is not positive.
    """
    values = pairs.values[: pairs.n_top]
    top = float(values[0]) if len(values) else math.nan
    known = len(values) >= 5 and values[4] > 0
    return top, top / float(values[4]) if known else math.nan


def _with_headroom(view: DensityView) -> DensityView:
    """Raise the top of a log axis until the text in a panel stands above all curves."""
    share = _TEXT / (_HIGH - _TEXT)
    return dataclasses.replace(view, top=view.top * (view.top / view.floor) ** share)


def _draw_panel(axes: Axes, record: Density, view: DensityView, *, index: int, room: float) -> None:
    prepare_density(axes, view, "log")
    ticks = symlog_ticks(view.low, view.high, view.threshold)
    texts = [words.level_text(tick) for tick in ticks]
    tick_at(axes, ticks, texts, room=room, overhang=_GAP / 2 - 0.02)
    draw_density(axes, record, view, index=index, n=1)


def _write_panel(axes: Axes, name: str, pairs: Eigenpairs, *, index: int, room: float) -> None:
    top, ratio = top_two(pairs)
    said = f"λmax {_short(top)}, λmax/λ5 {_short(ratio)}"
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    at: Any = {"ha": "left", "va": "top", "transform": axes.transAxes, "bbox": white}
    heading = fit(name, room - 0.15, bold=True)
    left = 0.06 / room
    axes.text(left, 1 - 0.04 / _HIGH, heading, color=colour(index), weight="bold", **at)
    axes.text(left, 1 - 0.19 / _HIGH, plain(said), size=SMALL, **at)
    if not pairs.converged:
        axes.text(left, 1 - 0.33 / _HIGH, "not converged", size=SMALL, **at)


def _label(axes: Axes, *, left: bool, bottom: bool) -> None:
    if not left:
        axes.set_ylabel("")
        axes.tick_params(labelleft=False)
    if bottom:
        axes.set_xlabel("eigenvalue λ")
    else:
        axes.tick_params(labelbottom=False)


def _rows(field: Box, n: int) -> list[Box]:
    left, bottom, width, height = field
    tops = [bottom + height - row * (_HIGH + _GAP) for row in range(n)]
    return [(left, top - _HIGH, width, _HIGH) for top in tops]


Table = tuple[str, str, list[tuple[str, ...]]]


def _tables(
    pairs: Mapping[str, Sequence[Eigenpairs]], epochs: Sequence[int], *, published: bool
) -> list[Table]:
    """Return for each table what stands above it in bold and below that, and its rows."""
    ours = [("", *pairs)]
    for k, epoch in enumerate(epochs):
        cells = [
            _entry(*top_two(found[k]), converged=found[k].converged) for found in pairs.values()
        ]
        ours.append((f"epoch {epoch}", *cells))
    tables: list[Table] = [("Measured here: λmax (λmax/λ5)", "", ours)]
    if published:
        theirs: list[tuple[str, ...]] = [("", "SGD", "SAM")]
        theirs += [
            (f"epoch {epoch}", *(_entry(*values[name]) for name in ("SGD", "SAM")))
            for epoch, values in PUBLISHED.items()
        ]
        tables.append(("Published: λmax (λmax/λ5), Foret et al. 2021", _SOURCE, theirs))
    return tables


def _entry(top: float, ratio: float, *, converged: bool = True) -> str:
    return f"{_short(top)} ({_short(ratio)})" + ("" if converged else " not converged")


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "unknown"
    return f"{value:.1f}" if 1 <= value < 1000 else words.level_text(value)


def _widths(tables: Sequence[Table], width: float) -> float:
    return (width - _TABLE_GAP) / 2 if len(tables) > 1 else min(width, 4.0)


def _tables_height(tables: Sequence[Table], *, width: float) -> float:
    each = _widths(tables, width)
    heights = (table_height(t[2], width=each, n_columns=len(t[2][0]) - 1) for t in tables)
    return 0.42 + max(heights)


def _draw_tables(
    figure: Figure, tables: Sequence[Table], *, left: float, top: float, width: float, first: int
) -> None:
    each = _widths(tables, width)
    for k, (heading, source, rows) in enumerate(tables):
        at = left + k * (each + _TABLE_GAP)
        write(figure, fit(heading, each, bold=True), left=at, bottom=top - 0.14, weight="bold")
        write(figure, fit(source, each, size=SMALL), left=at, bottom=top - 0.29, size=SMALL)
        place_of: Any = {"left": at, "top": top - 0.36, "width": each}
        draw_table(figure, rows, **place_of, n_columns=len(rows[0]) - 1, first=0 if k else first)


def _caption(
    records: Sequence[Density],
    found: Sequence[Eigenpairs],
    names: Sequence[str],
    view: DensityView,
) -> list[str]:
    sigmas = [record.bandwidth for record in records]
    ends = list(dict.fromkeys([number(min(sigmas)), number(max(sigmas))]))
    levels = {f"{100 * record.confidence:g} %" for record in records}
    worst = max((float(p.residuals[0]) for p in found if len(p.residuals)), default=math.nan)
    n_bad = sum(not pair.converged for pair in found)
    t = number(view.threshold)
    return [
        "spectral density φ(λ) " + words.of_operator(records, names) + ", "
        f"{words.each(records, names, lambda r: f'{r.provenance.n_parameters:,} parameters')}, on "
        "a log axis, every eigenvalue smoothed by a Gaussian of standard deviation σ, "
        f"{' to '.join(ends)}; bands: {' and '.join(sorted(levels))}, at each λ alone",
        f"both axes are the same for all panels; λ is linear within ±{t} and logarithmic outside, "
        "smoothly (asinh)",
        "marks on the baseline: eigenvalues found by themselves"
        if any(len(record.atoms) for record in records)
        else "",
        f"eigenpairs by {words.each(found, names, lambda p: p.method)} for λmax and λ5, largest "
        f"residual of λmax {worst:.1e}",
        f"{n_bad} of {len(found)} did NOT converge" if n_bad else "",
    ]


def _check(
    densities: Mapping[str, Sequence[Density]],
    pairs: Mapping[str, Sequence[Eigenpairs]],
    epochs: Sequence[int],
) -> None:
    if not densities or not epochs:
        msg = "nothing to draw: give densities of an optimizer at one epoch or more"
        raise InvalidArgumentError(msg)
    same_keys(pairs, densities, what="pairs", as_in="densities")
    for what, found in (("densities", densities), ("pairs", pairs)):
        for name, row in found.items():
            if len(row) != len(epochs):
                msg = (
                    f"{what}[{name!r}] holds {len(row)} records; expected one for each of the "
                    f"epochs {list(epochs)}"
                )
                raise InvalidArgumentError(msg)
