"""Training loss against the epoch, several runs in one panel, with the learning rate below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.errors import InvalidArgumentError
from landscape.plots.lines import called_by
from landscape.plots.sheet import draw_key, frame, place
from landscape.plots.style import DASHES, PALETTE, colour, plain, styled
from landscape.results import FloatArray

_LOW = 0.7
_GAP = 0.16


class TrainingRecord(Protocol):
    """What is drawn of a training run.

    Attributes:
        name: what it is called.
        epochs: ascending, shape (n,).
        train_loss: the loss at each, shape (n,).
        lr: the learning rate at each, shape (n,).
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def epochs(self) -> npt.NDArray[Any]: ...  # noqa: D102

    @property
    def train_loss(self) -> FloatArray: ...  # noqa: D102

    @property
    def lr(self) -> FloatArray: ...  # noqa: D102


@styled()
def training_figure(
    logs: TrainingRecord | Sequence[TrainingRecord],
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw the training loss against the epoch, and the learning rate in a low panel under it.

    Args:
        logs: one record or several.
        names: a name for each; None: the records'.
        title: a line above the picture; None: the name of a single record.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.

    Raises:
        InvalidArgumentError: if no record was given, or one holds arrays of different lengths.
    """
    records = list(logs) if isinstance(logs, Sequence) else [logs]
    called = called_by(records, names)
    _check(records, called)
    empty = [name for record, name in zip(records, called, strict=True) if not record.epochs.size]
    called = [name for name in called if name not in empty]
    records = [record for record in records if record.epochs.size]
    if not records:
        msg = f"no epoch was trained in {', '.join(empty)}: there is nothing to draw"
        raise InvalidArgumentError(msg)
    spans = _spans_decades(np.concatenate([record.train_loss for record in records]))
    bad = sum(int(np.count_nonzero(~np.isfinite(record.train_loss))) for record in records)
    n = sum(record.train_loss.size for record in records)
    parts = [
        f"training loss of each epoch, on a {'log' if spans else 'linear'} axis; below: learning "
        "rate",
        f"{bad} of {n} losses not finite, marked × at the top" if bad else "",
        f"no epoch was trained: {', '.join(empty)}" if empty else "",
    ]
    heading = called[0] if title is None and len(records) == 1 else title
    several = len(records) > 1
    room = (5.4, 2.6 + _GAP + _LOW)
    key = -(-len(records) // 2) if several else 0
    figure, box = frame(parts, title=heading, caption=caption, key=key, room=room)
    upper = place(figure, (box[0], box[1] + _LOW + _GAP, box[2], box[3] - _LOW - _GAP))
    lower = place(figure, (*box[:3], _LOW), sharex=upper)
    for k, (record, name) in enumerate(zip(records, called, strict=True)):
        _draw_log(upper, lower, record, plain(name), index=k)
    if spans:
        upper.set_yscale("log", nonpositive="clip")
    upper.set_ylabel("training loss")
    lower.set(xlabel="epoch", ylabel="learning rate")
    for axes in (upper, lower):
        axes.grid(visible=True)
        axes.set_axisbelow(True)
    lower.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    upper.tick_params(labelbottom=False)
    lower.set_ylim(bottom=0.0)
    if several:
        draw_key(upper, room=box[2], n_columns=2)
    return figure


def _spans_decades(losses: FloatArray) -> bool:
    """Return whether losses are positive and the largest is ten times the smallest or more."""
    finite = losses[np.isfinite(losses)]
    return bool(finite.size and finite.min() > 0 and finite.max() >= 10 * finite.min())


def _draw_log(upper: Axes, lower: Axes, record: TrainingRecord, name: str, *, index: int) -> None:
    look: Any = {"color": colour(index), "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}
    x, y = record.epochs, np.asarray(record.train_loss, dtype=np.float64)
    finite = np.isfinite(y)
    single: Any = {"marker": "."} if x.size == 1 else {}
    upper.plot(x, np.where(finite, y, np.nan), **look, **single, label=name, linewidth=1.4)
    # Rates are often the same: dashes let those below show through.
    dash: Any = DASHES[index % len(DASHES)]
    lower.plot(x, record.lr, **{**look, "linestyle": dash}, **single, linewidth=0.9)
    if not finite.all():
        upper.plot(
            x[~finite],
            np.full(np.count_nonzero(~finite), 0.97),
            "x",
            color=look["color"],
            markersize=5,
            transform=upper.get_xaxis_transform(),
        )


def _check(records: Sequence[TrainingRecord], called: Sequence[str]) -> None:
    for record, name in zip(records, called, strict=True):
        shapes = [np.shape(values) for values in (record.epochs, record.train_loss, record.lr)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1:
            msg = (
                f"epochs, train_loss and lr of {name!r} have the shapes {shapes}; expected one "
                "number for each epoch in all three"
            )
            raise InvalidArgumentError(msg)
