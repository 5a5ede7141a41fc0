"""Differences of surfaces, areas of level sets and bands of lines made with plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.plots import words
from landscape.plots.areas import area_parts, areas_of
from landscape.plots.bands import bands_of, check_bands
from landscape.plots.differences import (
    DIVERGING,
    difference_label,
    difference_of,
    difference_ticks,
    of_other_problems,
)
from landscape.plots.interactive.common import LEGEND, colour_scale, inert, layout
from landscape.plots.interactive.lines import band
from landscape.plots.lines import called_by
from landscape.plots.scales import Scale, common_scale
from landscape.plots.style import colour, shorten
from landscape.results import Line, Surface

_DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot"}


def difference_interactive(
    a: Surface,
    b: Surface,
    *,
    names: Sequence[str] | None = None,
    rise: bool = False,
    scale: str = "linear",
    limit: float | None = None,
    cmap: str = DIVERGING,
) -> go.Figure:
    """Draw L_a − L_b of two surfaces on the same coordinates; hovering shows both losses.

    Args:
        a: the one.
        b: the other, on the same coordinates.
        names: a name for each; None: the checkpoints'.
        rise: whether each loss counts from that of its own checkpoint.
        scale: ``linear``, or ``log``: logarithmic for both signs, and linear near zero.
        limit: largest difference of either sign to show; None: that of the data.
        cmap: a diverging matplotlib colour map, whose middle stands for 0.

    Returns:
        The plotly figure.
    """
    called = [shorten(name) for name in called_by((a, b), names)]
    found = difference_of(a, b, rise=rise)
    drawn = found.scale(scale, limit=limit)
    bottom, top = (float(v) for v in drawn.forward([drawn.low, drawn.high]))
    ticks = difference_ticks(drawn)
    figure = go.Figure(
        go.Heatmap(
            x=a.x,
            y=a.y,
            z=np.where(np.isfinite(found.values), drawn.forward(found.values), np.nan).T,
            zmin=bottom,
            zmax=top,
            colorscale=colour_scale(cmap),
            colorbar={
                "title": {"text": inert(difference_label(found, called)), "side": "right"},
                "tickvals": drawn.forward(ticks).tolist(),
                "ticktext": [words.level_text(tick) for tick in ticks],
                "thickness": 14,
            },
            text=_texts(a, b, found.values, found.errors, called),
            hoverinfo="text",
        )
    )
    i, j = np.nonzero(found.unsure)
    figure.add_scatter(
        x=a.x[i],
        y=a.y[j],
        mode="markers",
        marker={"color": "#1a1a1a", "size": 3},
        name="less than two standard errors",
        hoverinfo="skip",
    )
    heading = inert(f"{called[0]} − {called[1]}")
    if warning := words.capital(of_other_problems(a, b)):
        heading += f"<br><sub>{warning}.</sub>"
    figure.update_layout(
        title={"text": heading, "x": 0.02},
        xaxis={"title": {"text": "x, in units of d₁"}, "constrain": "domain"},
        yaxis={"title": {"text": "y, in units of d₂"}},
        **layout(height=520),
    )
    return figure


def _texts(a: Surface, b: Surface, values: Any, errors: Any, names: Sequence[str]) -> Any:
    one, other = (inert(name) for name in names)
    rows = [
        [
            f"x {x:.4g}, y {y:.4g}<br>difference {values[i, j]:.4g} ± {errors[i, j]:.2g}<br>"
            f"{one} {a.loss[i, j]:.5g}<br>{other} {b.loss[i, j]:.5g}"
            for i, x in enumerate(a.x)
        ]
        for j, y in enumerate(a.y)
    ]
    return np.array(rows)


def area_interactive(
    surfaces: Surface | Sequence[Surface],
    *,
    names: Sequence[str] | None = None,
    deltas: Sequence[float] | None = None,
    units: str = "auto",
) -> go.Figure:
    """Draw the area of {L ≤ L(w) + δ} in the plane against δ, one curve per checkpoint.

    Args:
        surfaces: one record or several.
        names: a name for each; None: the checkpoints'.
        deltas: rises of the loss; None: as far as the grids tell.
        units: ``distance``, ``axes`` or ``auto``; see `area_figure`.

    Returns:
        The plotly figure; dashed where the area is a lower bound, dotted where it is rough.
    """
    records = [surfaces] if isinstance(surfaces, Surface) else list(surfaces)
    areas = areas_of(records, deltas=deltas, units=units)
    figure = go.Figure()
    for index, name in enumerate(called_by(records, names)):
        for style, values in area_parts(areas, index):
            figure.add_scatter(
                x=areas.deltas,
                y=values,
                mode="lines",
                line={"color": colour(index), "dash": _DASHES[style]},
                name=inert(shorten(name)),
                legendgroup=str(index),
                showlegend=style == "solid",
                hovertemplate="δ %{x:.4g}, area %{y:.4g}<extra>%{fullData.name}</extra>",
            )
    power = {"type": "log", "exponentformat": "power", "dtick": 1}
    figure.update_layout(
        xaxis={"title": {"text": "rise of the loss, δ"}, **power},
        yaxis={"title": {"text": inert(areas.label)}, **power},
        legend=LEGEND,
        **layout(height=430),
    )
    return figure


def band_interactive(
    lines: Mapping[str, Sequence[Line]], *, scale: str | Scale = "auto"
) -> go.Figure:
    """Draw the mean and spread of the loss along several directions through each checkpoint.

    Args:
        lines: at least two for each checkpoint, by its name, all at the same coordinates.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
            Where values are not positive, a log scale is drawn linear.

    Returns:
        The plotly figure.
    """
    check_bands(lines)
    drawn = common_scale([line for every in lines.values() for line in every], scale)
    figure = go.Figure()
    for index, one in enumerate(bands_of(lines, drawn)):
        tint, group = colour(index), str(index)
        kept = np.isfinite(one.mean)
        edges = (one.x[kept], one.low[kept], one.high[kept])
        figure.add_trace(band(*edges, tint, group=group))
        for line, values in zip(one.lines, one.values, strict=True):
            figure.add_scatter(
                **{"x": one.x, "y": values, "mode": "lines", "opacity": 0.45},
                line={"color": tint, "width": 0.8},
                name=inert(f"{shorten(one.name)}, {line.direction}"),
                **{"legendgroup": group, "showlegend": False},
                hovertemplate="%{x:.4g}, %{y:.5g}<extra>%{fullData.name}</extra>",
            )
        figure.add_scatter(
            **{"x": one.x, "y": one.mean, "mode": "lines"},
            line={"color": tint, "width": 3},
            name=inert(f"{shorten(one.name)}, mean of {len(one.lines)} directions"),
            legendgroup=group,
            hovertemplate="%{x:.4g}, %{y:.5g}<extra>%{fullData.name}</extra>",
        )
    height: dict[str, Any] = {"title": {"text": drawn.label}, "exponentformat": "power"}
    figure.update_layout(
        xaxis={"title": {"text": "x, in units of each direction"}},
        yaxis=height | ({"type": "log", "dtick": 1} if drawn.spacing == "log" else {}),
        legend=LEGEND,
        **layout(height=430),
    )
    return figure
