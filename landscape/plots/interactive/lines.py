"""Lines and sharpness made with plotly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go

from landscape.plots import words
from landscape.plots.interactive.common import LEGEND, LINE_DASHES, inert, layout
from landscape.plots.lines import called_by, use_distance
from landscape.plots.scales import Scale, common_scale
from landscape.plots.style import colour, shorten
from landscape.results import Line, Sharpness
from landscape.wording import number


def line_interactive(
    lines: Line | Sequence[Line],
    *,
    names: Sequence[str] | None = None,
    scale: str | Scale = "auto",
    axis: str = "auto",
    colours: Sequence[str] | None = None,
) -> go.Figure:
    """Draw the loss along a direction, one curve per record, with bands of ±2 standard errors.

    Args:
        lines: one record, or several to lay over each other.
        names: a name for each; None: the checkpoints'.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
            Where values are not positive, a log scale is drawn linear.
        axis: ``distance``, ``direction`` or ``auto``; see `line_figure`.
        colours: a colour for each; None: by name.

    Returns:
        The plotly figure.
    """
    lines = [lines] if isinstance(lines, Line) else list(lines)
    called = called_by(lines, names)
    drawn = common_scale(lines, scale)
    by_distance = use_distance(lines, axis)
    distinct = list(dict.fromkeys(called))
    directions = list(dict.fromkeys(line.direction for line in lines))
    figure = go.Figure()
    for k, (line, name) in enumerate(zip(lines, called, strict=True)):
        tint = colours[k] if colours else colour(distinct.index(name))
        label = shorten(name) if len(directions) == 1 else f"{shorten(name)}, {line.direction}"
        x = line.distance if by_distance else np.asarray(line.x)
        values = np.where(np.isfinite(drawn.values(line)), drawn.values(line), np.nan)
        if words.has_band(line):
            figure.add_trace(_band(x, values, line, tint, group=str(k)))
        figure.add_scatter(
            x=x,
            y=values,
            mode="lines+markers",
            line={"color": tint, "dash": LINE_DASHES[directions.index(line.direction) % 4]},
            marker={"size": 4},
            name=inert(label),
            legendgroup=str(k),
            hovertemplate="%{x:.4g}, %{y:.5g}<extra>%{fullData.name}</extra>",
        )
    axis_title = "distance from the checkpoint" if by_distance else "x, in units of d"
    height: dict[str, Any] = {"title": {"text": drawn.label}, "exponentformat": "power"}
    if drawn.spacing == "log":
        height |= {"type": "log", "dtick": 1 if drawn.high > 1e4 * drawn.low else "D2"}
    figure.update_layout(
        xaxis={"title": {"text": axis_title}},
        yaxis=height,
        legend=LEGEND,
        **layout(height=430),
    )
    return figure


def sharpness_interactive(
    sharpness: Sharpness | Sequence[Sharpness], *, names: Sequence[str] | None = None
) -> go.Figure:
    """Draw the largest rise found in a ball, and the rise that each start led to.

    Args:
        sharpness: one record or several.
        names: a name for each; None: the checkpoints'.

    Returns:
        The plotly figure.
    """
    records = [sharpness] if isinstance(sharpness, Sharpness) else list(sharpness)
    figure = go.Figure()
    for index, (record, name) in enumerate(zip(records, called_by(records, names), strict=True)):
        finite = np.isfinite(record.start_values)
        label = inert(shorten(name))
        figure.add_scatter(
            x=[label] * int(finite.sum()),
            y=record.start_values[finite],
            mode="markers",
            marker={"color": colour(index), "size": 10, "symbol": "circle-open"},
            text=[inert(s) for s, kept in zip(record.starts, finite, strict=True) if kept],
            name=label,
            hovertemplate="%{text}: %{y:.5g}<extra>%{fullData.name}</extra>",
        )
        figure.add_scatter(
            x=[label],
            y=[record.value],
            mode="markers",
            marker={"color": colour(index), "size": 26, "symbol": "line-ew-open"},
            name=f"{label}: largest rise found, ≥ {number(record.value)}",
            hovertemplate="≥ %{y:.5g}<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        yaxis={"title": {"text": "rise of the loss, L(w + ε) − L(w)"}, "rangemode": "tozero"},
        legend=LEGEND,
        **layout(height=400),
    )
    return figure


def _band(x: Any, values: Any, line: Line, tint: str, *, group: str) -> Any:
    spread = 2 * np.where(np.isfinite(line.loss_se), line.loss_se, 0.0)
    kept = np.isfinite(values)
    return band(x[kept], (values - spread)[kept], (values + spread)[kept], tint, group=group)


def band(x: Any, low: Any, high: Any, tint: str, *, group: str, **kwargs: Any) -> Any:
    """Build a shaded band."""
    red, green, blue = (round(255 * part) for part in mpl.colors.to_rgb(tint))
    return go.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=group,
        **kwargs,
    )
