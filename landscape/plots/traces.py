"""Traces with their intervals: of whole checkpoints, and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import words
from landscape.plots.lines import called_by
from landscape.plots.scales import Scale, symlog_ticks
from landscape.plots.sheet import draw_key, frame, place
from landscape.plots.spectra import RATIO
from landscape.plots.style import FAINT, SMALL, colour, fit, marker, plain, styled, text_width
from landscape.results import FloatArray, TraceEstimate
from landscape.wording import number

TRACE_SCALES = ("auto", "linear", "log", "symlog")
_NAMES = 3.2
"""Largest room for the names of layers, in inches."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """The numbers of a picture of traces.

    Attributes:
        layers: names of the layers, in the order of the model; empty: whole checkpoints.
        values: shape (records, layers), NaN where a record does not hold a layer; of whole
            checkpoints, shape (records, 1).
        low: lower ends of their intervals, the same shape.
        high: upper ends.
        label: what they are, for an axis.
    """

    layers: tuple[str, ...]
    values: FloatArray
    low: FloatArray
    high: FloatArray
    label: str


def gather(records: Sequence[TraceEstimate], *, per_parameter: bool) -> Traces:
    """Put the traces of several records side by side."""
    layers = tuple(dict.fromkeys(name for record in records for name in record.layers))
    bare = [record.name for record in records if not record.layers]
    if layers and bare:
        msg = (
            f"some records hold a trace for each layer and {', '.join(bare)} does not: measure it "
            "by layer too, or draw them apart"
        )
        raise InvalidArgumentError(msg)
    parts = [_by_layer(r, layers) if layers else _whole(r) for r in records]
    values, low, high, sizes = (np.array(part) for part in zip(*parts, strict=True))
    shares = sizes if per_parameter else np.ones_like(sizes)
    label = "trace of the layer's block" if layers else "trace"
    return Traces(
        layers=layers,
        values=values / shares,
        low=low / shares,
        high=high / shares,
        label=f"{label}, per parameter" if per_parameter else label,
    )


def trace_scale(traces: Traces, scale: str) -> Scale:
    """Return how to space traces along an axis."""
    one_of(scale, TRACE_SCALES, what="scale")
    values = traces.values[np.isfinite(traces.values)]
    if not values.size:
        msg = "nothing to draw: the records hold no finite trace"
        raise InvalidArgumentError(msg)
    ends = np.concatenate([part[np.isfinite(part)] for part in (traces.low, traces.high)])
    low, high = (
        float(min(ends.min(initial=np.inf), values.min())),
        float(max(ends.max(initial=-np.inf), values.max())),
    )
    sizes = np.abs(values[values != 0])
    largest = float(sizes.max()) if sizes.size else 1.0
    if scale == "log" and values.min() <= 0:
        msg = (
            f"a log scale needs positive values; the smallest is {number(float(values.min()))}: "
            "use scale='symlog'"
        )
        raise InvalidArgumentError(msg)
    if scale == "auto":
        positive = low > 0 and largest > RATIO * float(values.min())
        wide = low <= 0 and sizes.size > 0 and largest > RATIO * float(np.median(sizes))
        scale = "log" if positive else "symlog" if wide else "linear"
    if scale == "log" and low <= 0:
        low = 0.3 * float(values.min())
    small = float(sizes.min()) if sizes.size else largest
    threshold = float(f"{min(max(small, 1e-3 * largest), 0.1 * largest):.0e}")
    return Scale(rise=False, spacing=scale, low=low, high=high, threshold=threshold)


@styled()
def trace_figure(
    traces: TraceEstimate | Sequence[TraceEstimate],
    *,
    names: Sequence[str] | None = None,
    scale: str = "auto",
    per_parameter: bool = False,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw traces with their confidence intervals: one per checkpoint, or one per layer of each.

    Args:
        traces: one record or several, all with layers or all without.
        names: a name for each; None: the checkpoints'.
        scale: ``auto``, ``linear``, ``log`` or ``symlog``; see `trace_scale`.
        per_parameter: whether to divide each trace by the number of its parameters, which makes
            it the mean eigenvalue.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window; it grows with the number of layers.
    """
    records = [traces] if isinstance(traces, TraceEstimate) else list(traces)
    called = called_by(records, names)
    shown = gather(records, per_parameter=per_parameter)
    spaced = trace_scale(shown, scale)
    heading = called[0] if title is None and len(records) == 1 else title
    parts = trace_caption(records, called, spaced, layers=bool(shown.layers))
    if shown.layers:
        return _draw_layers(records, called, shown, spaced, heading, parts if caption else None)
    figure, box = frame(parts, title=heading, caption=caption, room=(5.4, 2.4))
    axes = place(figure, box)
    for index, record in enumerate(records):
        _draw_trace(axes, shown, record, index=index, at=np.array([float(index)]), upright=True)
    _space(axes, spaced, "y")
    room = 4.6 / len(records)
    axes.set_xticks(range(len(records)), [fit(name, room) for name in called])
    axes.set_xlim(-0.6, len(records) - 0.4)
    axes.set_ylabel(trace_axis(shown, records))
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    return figure


def _draw_layers(
    records: Sequence[TraceEstimate],
    called: Sequence[str],
    shown: Traces,
    spaced: Scale,
    title: str | None,
    parts: list[str] | None,
) -> Figure:
    row = max(0.155, 0.075 * len(records) + 0.06)
    names_room = min(_NAMES, max(text_width(name, SMALL) for name in shown.layers))
    room = (4.0 + names_room, row * len(shown.layers) + 0.1)
    figure, (left, bottom, width, height) = frame(
        parts or [], title=title, caption=parts is not None, key=len(records), room=room
    )
    shift = names_room + 0.35 - left
    axes = place(figure, (left + shift, bottom, width - shift, height))
    rows = np.arange(len(shown.layers), dtype=float)
    for index, (record, name) in enumerate(zip(records, called, strict=True)):
        offset = 0.7 * ((index + 0.5) / len(records) - 0.5)
        text = f"{name}: {trace_label(record)}"
        _draw_trace(axes, shown, record, index=index, at=rows + offset, upright=False, label=text)
    _space(axes, spaced, "x")
    axes.set_yticks(rows, [fit(name, _NAMES, size=SMALL) for name in shown.layers])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the model's first layer at the top
    axes.set_xlabel(trace_axis(shown, records))
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    draw_key(axes, room=width)
    _hang(axes, left / figure.get_size_inches()[0] - axes.get_position().x0)
    return figure


def _hang(axes: Axes, offset: float) -> None:
    """Let the key begin at the left of the sheet, above the names of the layers."""
    legend = axes.get_legend()
    if legend is not None:
        legend.set_bbox_to_anchor((offset / axes.get_position().width, 1.0), axes.transAxes)


def _draw_trace(
    axes: Axes,
    shown: Traces,
    record: TraceEstimate,
    *,
    index: int,
    at: Any,
    upright: bool,
    label: str = "",
) -> None:
    tint = colour(index)
    values, bars = shown.values[index], reaches(shown, index)
    axes.errorbar(
        at if upright else values,
        values if upright else at,
        xerr=None if upright or record.exact else bars,
        yerr=bars if upright and not record.exact else None,
        fmt=marker(index),
        color=tint,
        markersize=5 if upright else 4,
        markerfacecolor=tint if record.converged else "white",
        capsize=3 if upright else 1.5,
        elinewidth=1.1,
        label=plain(label),
    )


def reaches(shown: Traces, index: int) -> FloatArray:
    """Return how far the interval of each value reaches down and up; 0 where it is not known."""
    value = shown.values[index]
    both = np.stack([value - shown.low[index], shown.high[index] - value])
    return np.asarray(np.where(np.isfinite(both), np.maximum(both, 0.0), 0.0))


def _space(axes: Axes, scale: Scale, which: str) -> None:
    if scale.spacing == "log":
        axes.set(**{f"{which}scale": "log", f"{which}lim": (0.7 * scale.low, 1.4 * scale.high)})
        return
    if scale.spacing == "symlog":
        axis = axes.xaxis if which == "x" else axes.yaxis
        (axes.set_xscale if which == "x" else axes.set_yscale)("symlog", linthresh=scale.threshold)
        ticks = symlog_ticks(scale.low, scale.high, scale.threshold)
        axis.set_ticks(ticks, [words.level_text(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    line = axes.axvline if which == "x" else axes.axhline
    line(0.0, color=FAINT, linewidth=0.8, zorder=0.8)


def trace_axis(shown: Traces, records: Sequence[TraceEstimate]) -> str:
    """Say what the values are."""
    operators = {record.operator for record in records}
    return f"{shown.label}, {operators.pop()}" if len(operators) == 1 else shown.label


def trace_label(record: TraceEstimate) -> str:
    """Say the whole trace with its interval."""
    if record.exact:
        return f"trace {number(record.value)} (exact)"
    wide = "" if record.converged else ", wider than asked"
    return f"trace {number(record.value)} ({number(record.low)} to {number(record.high)}{wide})"


def trace_caption(
    records: Sequence[TraceEstimate], called: Sequence[str], scale: Scale, *, layers: bool
) -> list[str]:
    """Say what a picture of traces shows."""
    confidence = words.each(records, called, lambda r: f"{r.confidence:.0%}")
    what = "trace, layer by layer," if layers else "trace"
    hollow = any(not record.converged for record in records)
    t = number(scale.threshold)
    return [
        f"{what} {words.of_operator(records, called)}; bars: intervals of confidence {confidence}",
        "" if layers else words.each(records, called, trace_label),
        words.each(records, called, _effort),
        "hollow: the interval of the whole trace is wider than was asked" if hollow else "",
        f"linear within ±{t}, logarithmic outside" if scale.spacing == "symlog" else "",
        words.each(records, called, words.source),
    ]


def _effort(record: TraceEstimate) -> str:
    probes = "all unit vectors" if record.exact else f"{record.n_probes:,} probes"
    return f"{record.method.capitalize()}, {probes}, {record.matvecs:,} products"


def _whole(record: TraceEstimate) -> tuple[list[float], list[float], list[float], list[float]]:
    n = float(record.provenance.n_parameters)
    low, high = (record.value, record.value) if record.exact else (record.low, record.high)
    return [record.value], [low], [high], [n]


def _by_layer(record: TraceEstimate, layers: Sequence[str]) -> tuple[list[float], ...]:
    ends = (record.layer_values,) * 2 if record.exact else (record.layer_low, record.layer_high)
    columns = (record.layer_values, *ends, record.layer_sizes)
    found = [dict(zip(record.layers, map(float, column), strict=True)) for column in columns]
    return tuple([column.get(name, np.nan) for name in layers] for column in found)
