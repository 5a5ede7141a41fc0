"""Loss along paths between checkpoints, made with plotly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from landscape.errors import one_of
from landscape.plots.interactive.common import inert, layout
from landscape.plots.interactive.lines import band
from landscape.plots.paths import (
    LOSS_LABEL,
    PATH_SCALES,
    T_LABEL,
    DrawnPath,
    drawn_paths,
    path_records,
)
from landscape.results import LossPath


def path_interactive(
    paths: LossPath | Sequence[LossPath],
    *,
    names: Sequence[str] | None = None,
    scale: str = "linear",
) -> go.Figure:
    """Draw the loss along paths with plotly; hovering shows t and the loss.

    Args:
        paths: one record, or several to lay over each other.
        names: a name for each; None: its two checkpoints.
        scale: ``linear`` or ``log``.

    Returns:
        The plotly figure.
    """
    one_of(scale, PATH_SCALES, what="scale of a picture of paths")
    records, called = path_records(paths, names)
    figure = go.Figure()
    drawn = drawn_paths(records, called)
    for k, curve in enumerate(drawn):
        _add(figure, curve, group=str(k))
    figure.update_layout(
        xaxis={"title": {"text": T_LABEL}, "range": [0, 1]},
        yaxis={"title": {"text": LOSS_LABEL}, "type": scale, "exponentformat": "power"},
        legend={"orientation": "v", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        **layout(height=430 + 20 * len(drawn)),
    )
    return figure


def _add(figure: go.Figure, curve: DrawnPath, *, group: str) -> None:
    if curve.has_band:
        kept = np.isfinite(curve.values) & np.isfinite(curve.spread)
        t, middle, spread = curve.t[kept], curve.values[kept], curve.spread[kept]
        figure.add_trace(band(t, middle - spread, middle + spread, curve.tint, group=group))
    figure.add_scatter(
        x=curve.t,
        y=curve.values,
        mode="lines+markers",
        line={"color": curve.tint, "dash": "dash" if curve.dashed else "solid"},
        marker={"size": 4},
        name=inert(curve.label),
        legendgroup=group,
        hovertemplate="t = %{x:.4g}, loss %{y:.5g}<extra></extra>",
    )
    if curve.top is not None and not curve.dashed:
        t, height = curve.t[curve.top], curve.values[curve.top]
        figure.add_scatter(
            x=[t, t],
            y=[curve.chord[curve.top], height],
            mode="lines+markers",
            line={"color": curve.tint, "width": 1.2},
            marker={"size": [0, 8]},
            legendgroup=group,
            showlegend=False,
            hovertemplate="barrier<extra></extra>",
        )
