"""Eigenvalues over training: one line per eigenvalue through several checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.errors import InvalidArgumentError
from landscape.plots import words
from landscape.plots.lines import called_by
from landscape.plots.sheet import draw_key, frame, place
from landscape.plots.spectra import is_logarithmic, space
from landscape.plots.style import DASHES, PALETTE, SMALL, colour, fit, marker, styled, text_width
from landscape.results import Eigenpairs, FloatArray

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SUFFIX = re.compile(r"\.(pt|pth|bin|ckpt|safetensors)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The numbers of a picture over training.

    Attributes:
        x: place of each checkpoint, ascending, shape (c,).
        x_label: what it counts; empty: the checkpoints themselves, by name.
        names: of the checkpoints, in that order.
        records: the eigenpairs, in that order.
        labels: of the eigenvalues, λ1 first.
        values: shape (labels, c), NaN where a checkpoint does not hold that eigenvalue.
        residuals: of each, the same shape.
        data_errors: of each, the same shape; NaN where not measured.
    """

    x: FloatArray
    x_label: str
    names: tuple[str, ...]
    records: tuple[Eigenpairs, ...]
    labels: tuple[str, ...]
    values: FloatArray
    residuals: FloatArray
    data_errors: FloatArray


def sweep_of(
    records: Sequence[Eigenpairs], names: Sequence[str] | None, x: Sequence[float] | None
) -> Sweep:
    """Put the eigenvalues of several checkpoints in a row."""
    called = called_by(records, names)
    at = numbers_in(called) if x is None else np.asarray(list(x), dtype=np.float64)
    label = "" if at is None else _counted(called) if x is None else "x"
    if at is None:
        at = np.arange(len(records), dtype=np.float64)
    if at.shape != (len(records),) or not np.isfinite(at).all() or len(set(at)) < len(at):
        msg = f"x must hold one finite number per record, all different; got {x!r}"
        raise InvalidArgumentError(msg)
    order = np.argsort(at, kind="stable")
    ordered = tuple(records[i] for i in order)
    labels = _labels(ordered)
    return Sweep(
        x=at[order],
        x_label=label,
        names=tuple(called[i] for i in order),
        records=ordered,
        labels=labels,
        values=_table(ordered, labels, "values"),
        residuals=_table(ordered, labels, "residuals"),
        data_errors=_table(ordered, labels, "data_errors"),
    )


def numbers_in(names: Sequence[str]) -> FloatArray | None:
    """Return the number in each name, where the names differ in that number only.

    >>> numbers_in(["net2-step-100.pt", "net2-step-20.pt"])
    array([100.,  20.])
    >>> numbers_in(["start", "step-20"]) is None
    True
    """
    stems = [_SUFFIX.sub("", name) for name in names]
    if len({_NUMBER.sub("#", stem) for stem in stems}) != 1:
        return None
    columns = zip(*(map(float, _NUMBER.findall(stem)) for stem in stems), strict=True)
    varying = [column for column in columns if len(set(column)) == len(names)]
    found = varying if len(names) > 1 else varying[-1:]
    return np.array(found[0]) if len(found) == 1 else None


@styled()
def sweep_figure(
    records: Sequence[Eigenpairs],
    *,
    names: Sequence[str] | None = None,
    x: Sequence[float] | None = None,
    x_label: str | None = None,
    scale: str = "auto",
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw eigenvalues over training, one line for each, with residuals and errors as bars.

    Args:
        records: the eigenpairs of several checkpoints.
        names: a name for each; None: the checkpoints'.
        x: a number for each, such as the step; None: the number in each name, where the names
            differ in one number only, else the position, with the names under it.
        x_label: what x counts; None: the word before the number in the names.
        scale: ``linear``, ``log`` or ``auto``, as in `eigs_figure`.
        title: a line above the picture.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    sweep = sweep_of([records] if isinstance(records, Eigenpairs) else list(records), names, x)
    finite = sweep.values[np.isfinite(sweep.values)]
    logarithmic = is_logarithmic(finite, scale)
    n_columns = min(7, len(sweep.labels))
    by_name = not sweep.x_label
    lift = _name_room(sweep) if by_name else 0.0
    figure, box = frame(
        _caption(sweep),
        title=title,
        caption=caption,
        key=-(-len(sweep.labels) // n_columns),
        room=(5.4, 2.9 + lift),
    )
    axes = place(figure, (box[0], box[1] + lift, box[2], box[3] - lift))
    space(axes, logarithmic=logarithmic)
    for k in range(len(sweep.labels)):
        _draw_track(axes, sweep, k)
    _name_places(axes, sweep, x_label, by_name=by_name)
    axes.set_ylabel("eigenvalue θ")
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    draw_key(axes, room=box[2] + 1.0, n_columns=n_columns)
    return figure


def _draw_track(axes: Axes, sweep: Sweep, k: int) -> None:
    tint, values = colour(k), sweep.values[k]
    converged = np.array([record.converged for record in sweep.records])
    axes.errorbar(
        sweep.x,
        values,
        yerr=np.nan_to_num(sweep.residuals[k]),
        fmt=marker(k),
        linestyle=DASHES[k // len(PALETTE) % len(DASHES)],
        linewidth=1.2,
        color=tint,
        markersize=4.5,
        capsize=2,
        elinewidth=1.0,
        label=sweep.labels[k],
    )
    hollow = ~converged & np.isfinite(values)
    axes.plot(
        *(sweep.x[hollow], values[hollow], marker(k)),
        color=tint,
        markerfacecolor="white",
        markersize=4.5,
        zorder=4,
    )
    reach = np.nan_to_num(sweep.data_errors[k])
    if reach.any():
        axes.vlines(
            sweep.x, values - reach, values + reach, color=tint, linewidth=5, alpha=0.25, zorder=1.5
        )


def _name_places(axes: Axes, sweep: Sweep, x_label: str | None, *, by_name: bool) -> None:
    span = float(sweep.x[-1] - sweep.x[0]) or 1.0
    axes.set_xlim(float(sweep.x[0]) - 0.05 * span, float(sweep.x[-1]) + 0.05 * span)
    if not by_name:
        axes.set_xlabel(x_label or sweep.x_label)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=not np.any(sweep.x % 1)))
        return
    stride = -(-len(sweep.names) // 24)
    turned = _name_room(sweep) > 0
    axes.set_xticks(
        sweep.x[::stride],
        [fit(name, 1.2, size=SMALL) for name in sweep.names[::stride]],
        rotation=35 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor",
    )
    axes.set_xlabel(x_label or "checkpoint")


def _name_room(sweep: Sweep) -> float:
    """Return how far to lift the axes so that slanted names fit; 0 where they can stand level."""
    longest = min(1.2, max(text_width(name, SMALL) for name in sweep.names))
    return 0.0 if longest < 4.6 / len(sweep.names) else 0.58 * longest


def _caption(sweep: Sweep) -> list[str]:
    records, names = sweep.records, sweep.names
    hollow = [name for record, name in zip(records, names, strict=True) if not record.converged]
    moved = bool(np.isfinite(sweep.data_errors).any())
    return [
        f"eigenvalues {words.of_operator(records, names)} over training; an "
        "eigenvalue lies within each thin bar (‖Hv − θv‖)",
        "wide bars: another sample of the data, ±1 standard error" if moved else "",
        "lines join the eigenvalues of equal number, which need not be the same direction",
        f"hollow, NOT converged: {', '.join(hollow)}" if hollow else "",
        words.each(records, names, lambda r: f"found by {r.method.capitalize()}"),
        words.each(records, names, words.source),
    ]


def _counted(names: Sequence[str]) -> str:
    """Return the word before the number that the names differ in."""
    stems = [_SUFFIX.sub("", name) for name in names]
    columns = list(zip(*(_NUMBER.finditer(stem) for stem in stems), strict=True))
    best = [c for c in columns if len({match[0] for match in c}) == len(names)] or columns[-1:]
    before = stems[0][: best[-1][0].start()] if best else ""
    found = re.search(r"([A-Za-z]+)[^A-Za-z]*$", before)
    return found[1] if found else "number in the checkpoint's name"


def _labels(records: Sequence[Eigenpairs]) -> tuple[str, ...]:
    n_top = max(record.n_top for record in records)
    widest = max(records, key=lambda record: record.n_lowest)
    return (*(f"λ{i + 1}" for i in range(n_top)), *widest.labels()[widest.n_top :])


def _table(records: Sequence[Eigenpairs], labels: Sequence[str], what: str) -> FloatArray:
    columns: list[dict[str, Any]] = [
        dict(zip(record.labels(), getattr(record, what), strict=False)) for record in records
    ]
    return np.array([[column.get(label, np.nan) for column in columns] for label in labels], float)
