"""Logs of trainings made with plotly."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from landscape.plots.interactive.common import LEGEND, inert, layout
from landscape.plots.lines import called_by
from landscape.plots.style import colour, shorten
from landscape.results import TrainingLog


def training_interactive(
    logs: TrainingLog | Sequence[TrainingLog], *, names: Sequence[str] | None = None
) -> go.Figure:
    """Draw the training loss against the epoch; the learning rate is read off at each point.

    Args:
        logs: one record or several.
        names: a name for each; None: the checkpoints'.

    Returns:
        The plotly figure.
    """
    records = [logs] if isinstance(logs, TrainingLog) else list(logs)
    figure = go.Figure()
    for index, (log, name) in enumerate(zip(records, called_by(records, names), strict=True)):
        figure.add_scatter(
            x=log.epochs,
            y=log.train_loss,
            customdata=log.lr,
            mode="lines+markers",
            line={"color": colour(index), "width": 2},
            marker={"size": 4},
            name=inert(shorten(name)),
            hovertemplate="epoch %{x}: %{y:.5g}, learning rate %{customdata:.3g}"
            "<extra>%{fullData.name}</extra>",
        )
    figure.update_layout(
        xaxis={"title": {"text": "epoch"}},
        yaxis={
            "title": {"text": "mean training loss"},
            "type": "log",
            "exponentformat": "power",
        },
        legend=LEGEND,
        **layout(height=430),
    )
    return figure
