"""Traces with their intervals: of whole checkpoints, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import captions, style
from landscape.plots.spectra import RATIO, name_columns
from landscape.results import FloatArray, TraceEstimate
from landscape.wording import number


@dataclass(frozen=True, kw_only=True)
class _Traces:
    """The numbers of a picture, shape (records, layers); of whole checkpoints (records, 1)."""

    layers: tuple[str, ...]  # in the order of the model; empty: whole checkpoints
    values: FloatArray  # NaN where a record does not hold a layer
    low: FloatArray  # lower ends of their intervals
    high: FloatArray  # upper ends


@style.styled()
def plot_trace(
    traces: TraceEstimate | Sequence[TraceEstimate],
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    scale: str = "auto",
    per_parameter: bool = False,
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw traces with their confidence intervals: one per checkpoint, or one per layer of each.

    Args:
        traces: one record or several, all with layers or all without.
        ax: axes to draw into; None: those of a new picture, which grows with the number of layers.
        names: a name for each; None: the checkpoints'.
        colours: a colour for each name; None: those of the property cycle.
        scale: ``linear``, ``log``, ``symlog``, or ``auto``: logarithmic where the largest is more
            than 50 times the smallest, or 50 times the median where some are not positive.
        per_parameter: whether to divide each trace by the number of its parameters, which makes
            it the mean eigenvalue.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.
    """
    records, called = style.records_and_names(traces, names)
    shown = _gather(records, per_parameter=per_parameter)
    n_layers = len(shown.layers)
    row = 0.12 + 0.08 * len(records)
    axes = style.new_axes(ax, size=(6.2, max(row * n_layers + 0.7, 2.2) if n_layers else 2.8))
    threshold = _space(axes, shown, scale)
    tints = style.colours_by_name(called, colours, ax if n_layers else None)
    for index, (record, name) in enumerate(zip(records, called, strict=True)):
        key = f"{style.shorten(name)}: {_interval(record)}"
        look = {"color": tints[name], "fmt": style.markers_by_name(tints)[name]}
        _draw(axes, shown, record, index, look, key)
    operators = {record.operator for record in records}
    label = "trace of the layer's block" if n_layers else "trace"
    label += ", per parameter" if per_parameter else ""
    label += f", {operators.pop()}" if len(operators) == 1 else ""
    if n_layers:
        layers = [style.plain(style.shorten(name, 44)) for name in shown.layers]
        axes.set_yticks(range(n_layers), layers)
        axes.set_ylim(n_layers - 0.4, -0.6)  # the model's first layer at the top
        axes.set(xlabel=label, ylabel="layer")
    else:
        name_columns(axes, called)
        axes.set_ylabel(label)
    parts = _parts(records, called, threshold, layers=bool(n_layers))
    return style.finish(axes, ax, parts, title=title, caption=caption, names=called)


def _gather(records: Sequence[TraceEstimate], *, per_parameter: bool) -> _Traces:
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
    return _Traces(layers=layers, values=values / shares, low=low / shares, high=high / shares)


def _whole(record: TraceEstimate) -> tuple[list[float], ...]:
    low, high = (record.value, record.value) if record.exact else (record.low, record.high)
    return [record.value], [low], [high], [float(record.provenance.n_parameters)]


def _by_layer(record: TraceEstimate, layers: Sequence[str]) -> tuple[list[float], ...]:
    ends = (record.layer_values,) * 2 if record.exact else (record.layer_low, record.layer_high)
    columns = (record.layer_values, *ends, record.layer_sizes)
    found = [dict(zip(record.layers, map(float, column), strict=True)) for column in columns]
    return tuple([column.get(name, np.nan) for name in layers] for column in found)


def _space(axes: Axes, traces: _Traces, scale: str) -> float | None:
    """Space the axis of the values, and return within what it is linear where it is symlog."""
    one_of(scale, ("auto", "linear", "log", "symlog"), what="scale")
    values = traces.values[np.isfinite(traces.values)]
    if not values.size:
        msg = "nothing to draw: the records hold no finite trace"
        raise InvalidArgumentError(msg)
    low, high = float(values.min()), float(np.nanmax([*values, *traces.high.flat]))
    lowest = float(traces.low[np.isfinite(traces.low)].min(initial=low))
    sizes = np.abs(values[values != 0])
    largest = float(sizes.max(initial=0.0)) or 1.0
    if scale == "log" and low <= 0:
        msg = (
            f"a log scale needs positive values; the smallest is {number(low)}: use scale='symlog'"
        )
        raise InvalidArgumentError(msg)
    if scale == "auto":
        wide = sizes.size > 0 and largest > RATIO * float(np.median(sizes))
        scale = "log" if lowest > 0 and largest > RATIO * low else "linear"
        scale = "symlog" if lowest <= 0 and wide else scale
    across, threshold = bool(traces.layers), None
    set_scale = axes.set_xscale if across else axes.set_yscale
    if scale == "log":
        set_scale("log", nonpositive="clip")
        reach = (0.7 * (lowest if lowest > 0 else 0.3 * low), 1.4 * high)
        axes.set(**{"xlim" if across else "ylim": reach})
        return None
    if scale == "symlog":
        smallest = float(sizes.min(initial=largest))
        threshold = float(f"{min(max(smallest, 1e-3 * largest), 0.1 * largest):.0e}")
        set_scale("symlog", linthresh=threshold)
    line = axes.axvline if across else axes.axhline
    line(0.0, color=style.FAINT, linewidth=0.8, zorder=0.8)
    return threshold


def _draw(
    axes: Axes,
    shown: _Traces,
    record: TraceEstimate,
    index: int,
    look: dict[str, Any],
    label: str,
) -> None:
    value, n = shown.values[index], len(shown.values)
    bars: Any = np.stack([value - shown.low[index], shown.high[index] - value])
    bars = None if record.exact else np.nan_to_num(np.maximum(bars, 0.0), posinf=0.0)
    look |= {"elinewidth": 1.1}
    look["markerfacecolor"] = look["color"] if record.converged else "white"
    if shown.layers:
        at = np.arange(value.size) + 0.7 * ((index + 0.5) / n - 0.5)
        look |= {"markersize": 4, "capsize": 1.5, "label": style.plain(label)}
        axes.errorbar(value, at, xerr=bars, **look)
    else:  # the column is named under the axis
        axes.errorbar([index], value, yerr=bars, markersize=5, capsize=3, **look)


def _interval(record: TraceEstimate) -> str:
    if record.exact:
        return f"trace {number(record.value)} (exact)"
    wide = "" if record.converged else ", wider than asked"
    return f"trace {number(record.value)} ({number(record.low)} to {number(record.high)}{wide})"


def _parts(
    records: Sequence[TraceEstimate],
    called: Sequence[str],
    threshold: float | None,
    *,
    layers: bool,
) -> list[str]:
    confidence = captions.per_name(records, called, lambda r: f"{r.confidence:.0%}")
    subject = "trace, layer by layer," if layers else "trace"
    hollow = any(not record.converged for record in records)
    operator = captions.of_operator(records, called)
    return [
        f"{subject} {operator}; bars: intervals of confidence {confidence}",
        "" if layers else captions.per_name(records, called, _interval),
        captions.per_name(records, called, _effort),
        "hollow: the interval of the whole trace is wider than was asked" if hollow else "",
        f"linear within ±{number(threshold)}, logarithmic outside" if threshold else "",
        captions.per_name(records, called, captions.source),
    ]


def _effort(record: TraceEstimate) -> str:
    probes = "all unit vectors" if record.exact else f"{record.n_probes:,} probes"
    return f"{record.method.capitalize()}, {probes}, {record.matvecs:,} products"
