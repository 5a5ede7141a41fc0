"""Spectral densities of checkpoints, on one pair of axes or under each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import words
from landscape.plots.lines import called_by
from landscape.plots.scales import symlog_ticks
from landscape.plots.sheet import KEY, Box, frame, place, write
from landscape.plots.style import FAINT, colour, fit, marker, shorten, styled
from landscape.results import Density
from landscape.wording import number

X_AXES = ("symlog", "linear")
Y_AXES = ("log", "linear")
STACKED_FROM = 4
"""Number of densities from which they stand under each other."""

_BELOW = 12.0
"""The axis begins this far below the peak of a single eigenvalue."""


@dataclass(frozen=True, kw_only=True)
class DensityView:
    """What of some densities is shown, the same for all of them.

    Attributes:
        spacing: of λ: ``linear``, or ``symlog``: along asinh(λ / threshold), which is linear near
            zero, logarithmic far from it, and smooth between, so that it bends no curve.
        threshold: where symlog turns from the one into the other.
        low: smallest λ shown.
        high: largest λ shown.
        single: peak of a single eigenvalue's Gaussian, 1/(n σ √(2π)), the smallest of all records.
        floor: where the axis of φ begins.
        top: where it ends.
    """

    spacing: str
    threshold: float
    low: float
    high: float
    single: float
    floor: float
    top: float

    def forward(self, values: npt.ArrayLike) -> Any:
        """Return where values of λ stand along the axis."""
        array = np.asarray(values, dtype=np.float64)
        return array if self.spacing == "linear" else np.arcsinh(array / self.threshold)

    def back(self, places: npt.ArrayLike) -> Any:
        """Return which λ stands at places along the axis."""
        array = np.asarray(places, dtype=np.float64)
        return array if self.spacing == "linear" else self.threshold * np.sinh(array)

    def baseline(self, index: int, n: int) -> float:
        """Return where the eigenvalues that were found by themselves are marked."""
        return float(self.floor * _BELOW ** (0.6 * (index + 0.6) / max(n, 2)))


def density_view(densities: Sequence[Density], x_axis: str) -> DensityView:
    """Return what to show of some densities."""
    one_of(x_axis, X_AXES, what="axis of a spectral density")
    top = max(
        float(np.max(d.density, initial=0.0, where=np.isfinite(d.density))) for d in densities
    )
    if top <= 0:
        msg = "nothing to draw: the records hold no finite density"
        raise InvalidArgumentError(msg)
    single = min(_single(record) for record in densities)
    low, high = _reach(densities, single / _BELOW)
    view = DensityView(
        spacing=x_axis,
        threshold=float(f"{max(record.bandwidth for record in densities):.1g}"),
        low=low,
        high=high,
        single=single,
        floor=single / _BELOW,
        top=2.0 * max(top, single),
    )
    first, last = view.forward([low, high])
    pad = 0.03 * (last - first)
    ends = view.back([first - pad, last + pad])
    return dataclasses.replace(view, low=float(ends[0]), high=float(ends[1]))


@styled()
def density_figure(
    densities: Density | Sequence[Density],
    *,
    names: Sequence[str] | None = None,
    x_axis: str = "symlog",
    y_axis: str = "log",
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw spectral densities with their confidence bands; more than three under each other.

    Args:
        densities: one record or several.
        names: a name for each; None: the checkpoints'.
        x_axis: ``symlog`` (linear within about ± the largest bandwidth, logarithmic outside) or
            ``linear``.
        y_axis: ``log``, from below the peak that a single eigenvalue has, or ``linear``.
        title: a line above the picture; None: the name of a single checkpoint.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    records = [densities] if isinstance(densities, Density) else list(densities)
    called = called_by(records, names)
    one_of(y_axis, Y_AXES, what="scale of a spectral density")
    view = density_view(records, x_axis)
    stacked = len(records) >= STACKED_FROM
    each = 1.15 + KEY + 0.03
    height = each * len(records) - KEY if stacked else 2.9
    heading = called[0] if title is None and len(records) == 1 else title
    figure, box = frame(
        density_caption(records, called, view, y_axis=y_axis),
        title=heading,
        caption=caption,
        key=1 if stacked else len(records),
        room=(5.4, height),
    )
    panels = _panels(figure, box, len(records), each) if stacked else [place(figure, box)]
    for axes in panels:
        prepare_density(axes, view, y_axis)
    for index, record in enumerate(records):
        axes = panels[index if stacked else 0]
        draw_density(axes, record, view, index=index, n=1 if stacked else len(records))
    texts = [density_label(r, name, room=5.0) for r, name in zip(records, called, strict=True)]
    _write_keys(figure, box, panels, texts)
    panels[-1].set_xlabel("eigenvalue λ")
    return figure


def _panels(figure: Figure, box: Box, n: int, each: float) -> list[Axes]:
    left, bottom, width, height = box
    high = each - KEY - 0.03
    tops = [bottom + height - each * k for k in range(n)]
    panels = [place(figure, (left, top - high, width, high)) for top in tops]
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    return panels


def prepare_density(axes: Axes, view: DensityView, y_axis: str) -> None:
    """Give a panel the axes of a density."""
    if view.spacing == "symlog":
        axes.set_xscale("function", functions=(view.forward, view.back))
        ticks = symlog_ticks(view.low, view.high, view.threshold)
        axes.set_xticks(ticks, [words.level_text(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
    axes.set_xlim(view.low, view.high)
    if y_axis == "log":
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(view.floor, view.top)
    else:
        axes.set_ylim(0.0, 0.53 * view.top)
    axes.axvline(0.0, color=FAINT, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.8)
    axes.set_ylabel("density φ(λ)")
    axes.grid(visible=True)
    axes.set_axisbelow(True)


def draw_density(axes: Axes, record: Density, view: DensityView, *, index: int, n: int) -> None:
    """Draw a density with its band, and its outliers at the foot of the panel."""
    tint = colour(index)
    logarithmic = axes.get_yscale() == "log"
    least = view.floor * 1e-3 if logarithmic else -np.inf
    low, high = (np.maximum(edge, least) for edge in (record.low, record.high))
    axes.fill_between(record.grid, low, high, color=tint, alpha=0.22, linewidth=0, zorder=1.5)
    curve = np.maximum(record.density, least)  # NaN stays and breaks the curve
    axes.plot(record.grid, curve, color=tint, linewidth=1.3, zorder=2.5)
    if len(record.atoms):
        rank = index if n > 1 else 0
        share = 0.04 + 0.05 * rank
        if logarithmic:
            share = math.log(view.baseline(rank, n) / view.floor) / math.log(view.top / view.floor)
            share = max(share, 0.07 if n == 1 else 0.0)  # clear of the edge of a low panel
        axes.plot(
            record.atoms,
            np.full(len(record.atoms), share),
            marker(index),
            color=tint,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            transform=axes.get_xaxis_transform(),
            zorder=4,
        )


def _write_keys(figure: Figure, box: Box, panels: Sequence[Axes], texts: Sequence[str]) -> None:
    left, _, width, _ = box
    if len(panels) > 1:
        high = figure.get_size_inches()[1]
        for index, (axes, text) in enumerate(zip(panels, texts, strict=True)):
            at = {"left": left, "bottom": axes.get_position().y1 * high + 0.055}
            write(figure, fit(text, width), **at, size=8.0, color=colour(index))
        return
    handles = [
        (Patch(color=colour(k), alpha=0.22), Line2D([], [], color=colour(k), linewidth=1.3))
        for k in range(len(texts))
    ]
    panels[0].legend(
        handles,
        [fit(text, width - 0.4) for text in texts],
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderpad=0.1,
        borderaxespad=0.3,
        labelspacing=0.45,
    )


def density_label(record: Density, name: str, *, room: float) -> str:
    """Say of one density what its key says."""
    ends = f"{_percent(record.negative_low)} to {_percent(record.negative_high)} %"
    text = f"{_percent(record.negative)} % below zero ({ends})"
    if math.isfinite(record.ratio):
        text += f", λmax/λ5 = {record.ratio:.3g}"
    letters = max(12, int(16 * room) - len(text))
    return f"{shorten(name, letters)}: {text}"


def density_caption(
    records: Sequence[Density], called: Sequence[str], view: DensityView, *, y_axis: str = "log"
) -> list[str]:
    """Say what a picture of densities shows."""
    confidence = words.each(records, called, lambda r: f"{r.confidence:.0%}")
    atoms = any(len(record.atoms) for record in records)
    t = number(view.threshold)
    single = f"the Gaussian of one eigenvalue alone peaks at φ = {view.single:.2g}"
    return [
        f"spectral density φ(λ) {words.each(records, called, _operator)}, per unit of λ: every "
        "eigenvalue smoothed by a Gaussian of standard deviation σ; "
        + words.each(records, called, lambda r: f"σ = {number(r.bandwidth)}"),
        f"bands and intervals: {confidence}, at each λ alone",
        "marks on the baseline: eigenvalues found by themselves" if atoms else "",
        words.each(records, called, lambda r: f"{r.n_probes} probes of {r.steps} steps"),
        words.each(records, called, lambda r: f"{r.matvecs:,} products"),
        f"the axis of λ is linear within ±{t} and logarithmic outside, smoothly (asinh)"
        if view.spacing == "symlog"
        else "",
        single if y_axis == "log" else "",
        words.each(records, called, words.source),
    ]


def _operator(record: Density) -> str:
    return f"of the {record.operator} ({record.provenance.n_parameters:,} parameters)"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"


def _single(record: Density) -> float:
    n = record.provenance.n_parameters
    return 1.0 / (n * record.bandwidth * math.sqrt(2.0 * math.pi))


def _reach(records: Sequence[Density], least: float) -> tuple[float, float]:
    """Return the ends of what can be seen, with zero inside."""
    seen = [record.grid[record.density >= least] for record in records]
    values: Any = np.concatenate([*seen, *(record.atoms for record in records), [0.0]])
    widest = max(record.bandwidth for record in records)
    return min(float(values.min()), -widest), max(float(values.max()), widest)
