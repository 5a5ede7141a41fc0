"""Profiles of sharpness made with plotly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from landscape.plots.interactive.common import LEGEND, inert, layout
from landscape.plots.lines import called_by
from landscape.plots.profiles import check_profiles, positive, x_label
from landscape.plots.style import colour, shorten
from landscape.results import Profile


def profile_interactive(
    profiles: Profile | Sequence[Profile],
    *,
    names: Sequence[str] | None = None,
    relative: bool = False,
) -> go.Figure:
    """Draw the largest rise found against the radius, with the quadratic model and one step.

    Args:
        profiles: one record or several, of one norm and scale.
        names: a name for each; None: the checkpoints'.
        relative: whether to draw against ρ / ‖w‖.

    Returns:
        The plotly figure.
    """
    records = [profiles] if isinstance(profiles, Profile) else list(profiles)
    called = called_by(records, names)
    check_profiles(records)
    figure = go.Figure()
    for index, (record, name) in enumerate(zip(records, called, strict=True)):
        x = record.relative_rhos if relative else record.rhos
        label = inert(shorten(name))
        curves = {
            "largest rise found": (record.values, "solid", "lines+markers"),
            "quadratic model": (record.quadratic_maxima, "dash", "lines"),
            "one step of SAM": (record.one_steps, "dot", "lines"),
        }
        for what, (values, dash, mode) in curves.items():
            if not np.isfinite(positive(values)).any():
                continue
            figure.add_scatter(
                x=x,
                y=positive(values),
                mode=mode,
                line={"color": colour(index), "dash": dash, "width": 2 if dash == "solid" else 1},
                name=f"{label}: {what}",
                legendgroup=str(index),
                hovertemplate="ρ = %{x:.4g}: %{y:.5g}<extra>%{fullData.name}</extra>",
            )
    figure.update_layout(
        xaxis={
            "title": {"text": x_label(records[0], relative=relative)},
            "type": "log",
            "exponentformat": "power",
        },
        yaxis={
            "title": {"text": "rise of the loss, L(w + ε) − L(w)"},
            "type": "log",
            "exponentformat": "power",
        },
        legend=LEGEND,
        **layout(height=430),
    )
    return figure
