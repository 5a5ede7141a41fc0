"""Many lines through one checkpoint: their mean and spread over random directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError
from landscape.plots import words
from landscape.plots.scales import Floats, Scale, common_scale
from landscape.plots.sheet import draw_key, frame, place
from landscape.plots.style import colour, plain, shorten, styled
from landscape.results import Line


@dataclass(frozen=True, kw_only=True)
class Band:
    """What lines along several directions have in common.

    Attributes:
        name: of the checkpoint.
        x: coordinates in units of each direction, shape (nx,).
        values: what is shown of each line, shape (lines, nx).
        mean: over the directions, shape (nx,); NaN where a line is not finite. On a log scale it
            is the geometric mean.
        low: mean less one standard deviation over the directions, of the same shape. On a log
            scale the deviation is that of ln(loss).
        high: mean plus one standard deviation, of the same shape.
        lines: the records.
    """

    name: str
    x: Floats
    values: Floats
    mean: Floats
    low: Floats
    high: Floats
    lines: tuple[Line, ...]


def bands_of(lines: Mapping[str, Sequence[Line]], scale: Scale) -> list[Band]:
    """Put the lines of each checkpoint together."""
    bands = []
    for name, records in lines.items():
        values = np.stack([scale.values(line) for line in records])
        shown = np.where(np.isfinite(values).all(axis=0), values, np.nan)
        # a mean of losses less their deviation is often negative, which no log scale can show
        there, back = (np.log, np.exp) if scale.spacing == "log" else (np.asarray, np.asarray)
        mean, spread = there(shown).mean(axis=0), there(shown).std(axis=0, ddof=1)
        bands.append(
            Band(
                name=name,
                x=np.asarray(records[0].x, dtype=np.float64),
                values=np.where(np.isfinite(values), values, np.nan),
                mean=back(mean),
                low=back(mean - spread),
                high=back(mean + spread),
                lines=tuple(records),
            )
        )
    return bands


def check_bands(lines: Mapping[str, Sequence[Line]]) -> None:
    """Refuse lines that cannot be averaged."""
    if not lines:
        msg = "nothing to draw: no checkpoint was given"
        raise InvalidArgumentError(msg)
    few = {name: len(records) for name, records in lines.items() if len(records) < 2}
    if few:
        told = ", ".join(f"{shorten(name)} has {n}" for name, n in few.items())
        msg = (
            f"a band takes at least two lines of a checkpoint; {told}: measure more, "
            "e.g. landscape line --seeds 10"
        )
        raise InvalidArgumentError(msg)
    every = [(name, line) for name, records in lines.items() for line in records]
    first_name, first = every[0]
    for name, line in every:
        if not np.array_equal(line.x, first.x):
            msg = (
                f"a band takes lines at the same coordinates; one of {shorten(first_name)} has "
                f"{_points(first)}, one of {shorten(name)} has {_points(line)}: measure all with "
                "the same points and range"
            )
            raise InvalidArgumentError(msg)


def _points(line: Line) -> str:
    return f"{line.x.size} points on [{line.x.min():g}, {line.x.max():g}]"


@styled()
def band_figure(
    lines: Mapping[str, Sequence[Line]],
    *,
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw the mean and spread of the loss along several directions through each checkpoint.

    Args:
        lines: at least two for each checkpoint, by its name, all at the same coordinates.
        scale: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``; see `common_scale`.
        limits: smallest and largest value to show; None: those of the data.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.

    Raises:
        InvalidArgumentError: if a checkpoint has less than two lines, or their coordinates differ.
    """
    check_bands(lines)
    drawn = common_scale([line for every in lines.values() for line in every], scale, limits=limits)
    bands = bands_of(lines, drawn)
    heading = bands[0].name if title is None and len(bands) == 1 else title
    parts = band_caption(bands, drawn)
    key = -(-len(bands) // 2)
    figure, box = frame(parts, title=heading, caption=caption, key=key)
    axes = place(figure, box)
    if drawn.spacing == "log":
        axes.set_yscale("log", nonpositive="clip")
    elif drawn.spacing == "symlog":
        axes.set_yscale("symlog", linthresh=drawn.threshold)
    for index, band in enumerate(bands):
        _draw_band(axes, band, index)
    if limits is not None:
        axes.set_ylim(drawn.low, drawn.high)
    elif drawn.spacing == "log":
        axes.set_ylim(0.8 * drawn.low, 1.25 * drawn.high)
    axes.set_xlabel("x, in units of each direction")
    axes.set_ylabel(drawn.label)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    draw_key(axes, room=box[2], n_columns=2)
    return figure


def _draw_band(axes: Axes, band: Band, index: int) -> None:
    tint = colour(index)
    for values in band.values:
        axes.plot(band.x, values, color=tint, linewidth=0.5, alpha=0.45, zorder=1.8)
    axes.fill_between(band.x, band.low, band.high, color=tint, alpha=0.2, linewidth=0, zorder=1.5)
    label = f"{band.name}, mean of {len(band.lines)} directions"
    axes.plot(band.x, band.mean, color=tint, linewidth=1.8, label=plain(label), zorder=3)


def band_caption(bands: Sequence[Band], scale: Scale) -> list[str]:
    """Say what a picture of bands shows."""
    names = [band.name for band in bands]
    of = ", both of ln(loss)" if scale.spacing == "log" else ""
    return [
        "loss along directions through the checkpoint: "
        + words.each(bands, names, lambda band: _directions(band)),
        f"thick: the mean over the directions; band: ±1 standard deviation over them{of}, not an "
        "error of the mean; thin: each direction",
        scale.note,
        words.each(bands, names, _gaps),
        words.each(bands, names, lambda band: words.source(band.lines[0])),
        words.NOT_THE_WORST if any("random" in b.lines[0].direction.lower() for b in bands) else "",
    ]


def _directions(band: Band) -> str:
    kinds = list(dict.fromkeys(line.direction for line in band.lines))
    what = kinds[0] if len(kinds) == 1 else f"{len(kinds)} kinds, {kinds[0]} among them"
    return f"{len(band.lines)} × {what}, {band.x.size} points"


def _gaps(band: Band) -> str:
    n = int(np.count_nonzero(~np.isfinite(band.mean)))
    return f"a gap of the mean at {n} of {band.x.size} points, where a line is not finite" * (n > 0)
