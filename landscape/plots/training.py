"""Training loss against the epoch, several runs in one panel, with the learning rate below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from landscape.errors import InvalidArgumentError
from landscape.plots import style
from landscape.plots.lines import mark_bad
from landscape.plots.trajectories import finite, spans_decades
from landscape.results import TrainingLog


@style.styled()
def plot_training(
    logs: TrainingLog | Sequence[TrainingLog],
    *,
    axes: Sequence[Axes] | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    title: str | None = None,
    caption: bool | None = None,
) -> Figure | SubFigure:
    """Draw the training loss against the epoch, and the learning rate in a low panel under it.

    Args:
        logs: one record or several.
        axes: two axes, for the loss and the learning rate; None: those of a new picture.
        names: a name for each; None: the records'.
        colours: a colour for each name; None: those of the property cycle.
        title: a line above the picture; None: the name of a single record.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The figure of both panels.

    Raises:
        InvalidArgumentError: if no record was given, or one holds arrays of different lengths.
    """
    records, called = style.records_and_names(logs, names)
    for record, name in zip(records, called, strict=True):
        shapes = [np.shape(values) for values in (record.epochs, record.train_loss, record.lr)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1:
            msg = (
                f"epochs, train_loss and lr of {name!r} have the shapes {shapes}; expected one "
                "number for each epoch in all three"
            )
            raise InvalidArgumentError(msg)
    pairs = list(zip(called, records, strict=True))
    empty = [name for name, record in pairs if not record.epochs.size]
    trained = [(name, record) for name, record in pairs if record.epochs.size]
    if not trained:
        msg = f"no epoch was trained in {', '.join(empty)}: there is nothing to draw"
        raise InvalidArgumentError(msg)
    panels = axes
    if panels is None:
        sheet = style.Picture(figsize=(6.2, 4.0), layout="constrained")
        panels = sheet.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper, lower = panels
    tints = style.colours_by_name(called, colours)
    for index, (name, record) in enumerate(trained):
        # Rates are often the same: dashes let those below show through.
        dash: Any = style.DASHES[index % len(style.DASHES)]
        look: Any = {"color": tints[name], "marker": "." if record.epochs.size == 1 else ""}
        label = style.plain(style.shorten(name))
        upper.plot(record.epochs, finite(record.train_loss), label=label, **look)
        lower.plot(record.epochs, record.lr, linestyle=dash, linewidth=0.9, **look)
        mark_bad(upper, record.epochs[~np.isfinite(record.train_loss)], tints[name])
    losses = np.concatenate([record.train_loss for _, record in trained])
    spans = spans_decades(losses)
    if spans:
        upper.set_yscale("log", nonpositive="clip")
    upper.set_ylabel("training loss")
    lower.set(xlabel="epoch", ylabel="learning rate")
    lower.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    lower.set_ylim(bottom=0.0)
    bad = int(np.count_nonzero(~np.isfinite(losses)))
    parts = [
        f"training loss of each epoch, on a {'log' if spans else 'linear'} axis; below: learning "
        "rate",
        f"{bad} of {losses.size} losses not finite, marked × at the top" if bad else "",
        f"no epoch was trained: {', '.join(empty)}" if empty else "",
    ]
    heading = called[0] if title is None and len(records) == 1 else title
    ax = None if axes is None else upper
    style.finish(upper, ax, parts, title=heading, caption=caption)
    return upper.figure
