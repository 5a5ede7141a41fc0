"""Spectral densities of checkpoints, smoothed alike, on one pair of axes or under each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, SymmetricalLogLocator

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import captions, style
from landscape.results import Density
from landscape.stats import confidence_interval
from landscape.wording import number

STACKED_FROM = 4
"""Number of densities from which they stand under each other."""

_BELOW = 12.0  # the axis begins this far below the peak of a single eigenvalue


@dataclass(frozen=True, kw_only=True)
class DensityView:
    """What of some densities is shown, the same for all of them.

    The axis of λ is ``linear``, or ``symlog``: along asinh(λ / threshold), which is linear near
    zero, logarithmic far from it, and smooth between, so that it bends no curve.
    """

    spacing: str
    threshold: float  # where symlog turns from linear to logarithmic
    low: float  # smallest λ shown
    high: float  # largest λ shown
    single: float  # smallest peak of a single eigenvalue's Gaussian, 1/(n σ √(2π))
    top: float  # where the axis of φ ends

    @property
    def floor(self) -> float:
        """Where the axis of φ begins."""
        return self.single / _BELOW


def density_view(densities: Sequence[Density], x_axis: str = "symlog") -> DensityView:
    """Return what to show of some densities."""
    one_of(x_axis, ("symlog", "linear"), what="axis of a spectral density")
    finite = [d.density[np.isfinite(d.density)] for d in densities]
    top = max(float(values.max(initial=0.0)) for values in finite)
    if top <= 0:
        msg = "nothing to draw: the records hold no finite density"
        raise InvalidArgumentError(msg)
    width = max(d.bandwidth for d in densities)
    single = min(
        1.0 / (d.provenance.n_parameters * d.bandwidth * math.sqrt(2.0 * math.pi))
        for d in densities
    )
    seen = [d.grid[d.density >= single / _BELOW] for d in densities]
    known: Any = np.concatenate([*seen, *(d.atoms for d in densities), [-width, width]])
    threshold = float(f"{width:.1g}") if x_axis == "symlog" else math.inf
    low, high = float(known.min()), float(known.max())
    if x_axis == "symlog":
        first, last = np.arcsinh([low / threshold, high / threshold])
        pad = 0.03 * (last - first)
        low, high = (threshold * np.sinh([first - pad, last + pad])).tolist()
    else:
        low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    ends = {"low": low, "high": high, "single": single, "top": 2.0 * max(top, single)}
    return DensityView(spacing=x_axis, threshold=threshold, **ends)


def with_one_bandwidth(densities: Sequence[Density]) -> list[Density]:
    """Return densities all smoothed by the largest bandwidth, from their Ritz values and weights.

    The height of a peak is that of the kernel where the spectrum is narrower: densities of other
    bandwidths cannot be compared. Bands of what is smoothed anew are confidence intervals of the
    mean over the probes.
    """
    width = max(record.bandwidth for record in densities)
    return [r if r.bandwidth == width else _smoothed(r, width) for r in densities]


def _smoothed(record: Density, width: float) -> Density:
    peaks = np.array([record.grid[0], record.grid[-1], *record.atoms])
    around = peaks[:, None] + width * np.linspace(-6, 6, 49)
    grid = np.unique(np.concatenate([record.grid, around.ravel()]))

    def smooth(nodes: Any, weights: Any) -> Any:
        known = np.isfinite(nodes)
        kernel = np.exp(-0.5 * ((grid - nodes[known][:, None]) / width) ** 2)
        return weights[known] @ kernel / (width * math.sqrt(2 * math.pi))

    n = record.provenance.n_parameters
    atoms = smooth(record.atoms, np.full(len(record.atoms), 1 / n))
    probes = np.array([smooth(*rule) for rule in zip(record.nodes, record.weights, strict=True)])
    found = confidence_interval(probes, record.confidence)
    band = {"low": atoms + np.maximum(0.0, found.low), "high": atoms + found.high}
    curve = {"grid": grid, "density": atoms + found.value, "bandwidth": width}
    return dataclasses.replace(record, **curve, **band)


@style.styled()
def plot_density(
    densities: Density | Sequence[Density],
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    x_axis: str = "symlog",
    y_axis: str = "log",
    title: str | None = None,
    caption: bool | None = None,
) -> Axes | Figure:
    """Draw spectral densities with their confidence bands, all smoothed by one bandwidth.

    Args:
        densities: one record or several.
        ax: axes to draw into; None: those of a new picture, under each other from four records on.
        names: a name for each; None: the checkpoints'.
        colours: a colour for each name; None: those of the property cycle.
        x_axis: ``symlog`` (linear within about ± the bandwidth, logarithmic outside) or ``linear``.
        y_axis: ``log``, from below the peak that a single eigenvalue has, or ``linear``.
        title: a line above the picture.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes; the figure where they stand under each other.
    """
    given, called = style.records_and_names(densities, names)
    one_of(y_axis, ("log", "linear"), what="scale of a spectral density")
    records = with_one_bandwidth(given)
    view = density_view(records, x_axis)
    tints = style.colours_by_name(called, colours, ax)
    n, is_stacked = len(records), ax is None and len(records) >= STACKED_FROM
    panels: list[Axes]
    if is_stacked:
        figure = style.Picture(figsize=(6.2, 1.35 * n + 0.6), layout="constrained")
        panels = list(figure.subplots(n, 1, sharex=True, sharey=True))
    else:
        panels = [style.new_axes(ax)]
    for panel in panels:
        prepare_density(panel, view, y_axis)
        panel.set_xlabel("eigenvalue λ" if panel is panels[-1] else "")
    for index, (record, name) in enumerate(zip(records, called, strict=True)):
        look: Any = {"tint": tints[name], "shape": style.markers_by_name(tints)[name]}
        label = f"{style.shorten(name, 24)}: {_share_below_zero(record)}"
        if is_stacked:
            draw_density(panels[index], record, view, **look)
            heading: Any = {"weight": "normal", "color": tints[name], "size": 8}
            panels[index].set_title(style.plain(label), **heading)
        else:
            draw_density(panels[0], record, view, rank=index, n=n, label=label, **look)
    parts = _parts(given, records, called, view, y_axis)
    if is_stacked:
        if title:
            style.write_title(figure, title)
        if caption is not False:
            style.write_caption(figure, parts)
        return figure
    style.finish(panels[0], ax, parts, title=title, caption=caption)
    if ax is None and n == 1:
        style.draw_key(panels[0])  # which says the share
    return panels[0]


def prepare_density(axes: Axes, view: DensityView, y_axis: str = "log") -> None:
    """Give a panel the axes of a density."""
    if view.spacing == "symlog":
        axes.set_xscale("asinh", linear_width=view.threshold)
        locator = SymmetricalLogLocator(base=10, linthresh=view.threshold)
        ticks = np.asarray(locator.tick_values(view.low, view.high))
        axes.set_xticks(ticks[(ticks == 0) | (np.abs(ticks) >= view.threshold)])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(view.low, view.high)
    if y_axis == "log":
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(view.floor, view.top)
    else:
        axes.set_ylim(0.0, 0.53 * view.top)
    axes.axvline(0.0, color=style.FAINT, linewidth=0.8, linestyle=(0, (4, 2)), zorder=0.8)
    axes.set_xlabel("eigenvalue λ")
    axes.set_ylabel("density φ(λ)")


def draw_density(
    axes: Axes,
    record: Density,
    view: DensityView,
    *,
    tint: str,
    shape: str = "o",
    label: str = "",
    rank: int = 0,
    n: int = 1,
) -> None:
    """Draw a density with its band, and its outliers at the foot of the panel, in row rank of n."""
    least = view.floor * 1e-3 if axes.get_yscale() == "log" else -np.inf
    low, high = (np.maximum(edge, least) for edge in (record.low, record.high))
    axes.fill_between(record.grid, low, high, color=tint, alpha=0.22, linewidth=0, zorder=1.5)
    curve = np.maximum(record.density, least)  # NaN stays and breaks the curve
    axes.plot(
        record.grid, curve, color=tint, linewidth=1.3, zorder=2.5, label=style.plain(label) or None
    )
    if len(record.atoms):
        height = np.full(len(record.atoms), 0.05 + 0.15 * rank / max(n, 3))
        look: dict[str, Any] = {"color": tint, "markeredgecolor": "white", "markeredgewidth": 0.5}
        at_foot = axes.get_xaxis_transform()
        axes.plot(record.atoms, height, shape, ms=5, transform=at_foot, zorder=4, **look)


def _share_below_zero(record: Density) -> str:
    ends = f"{100 * record.negative_low:.3g} to {100 * record.negative_high:.3g} %"
    text = f"{100 * record.negative:.3g} % below zero ({ends})"
    if not record.is_negative_resolved:
        text = f"share below zero not resolved ({ends})"
    return f"{text}, λmax/λ5 = {record.ratio:.3g}" if math.isfinite(record.ratio) else text


def _parts(
    given: Sequence[Density],
    records: Sequence[Density],
    called: Sequence[str],
    view: DensityView,
    y_axis: str,
) -> list[str]:
    confidence = captions.per_name(records, called, lambda r: f"{r.confidence:.0%}")
    measured = captions.per_name(given, called, lambda r: f"σ = {number(r.bandwidth)}")
    anew = len({record.bandwidth for record in given}) > 1
    t, has_atoms = number(view.threshold), any(len(record.atoms) for record in records)
    asinh = f"the axis of λ is linear within ±{t} and logarithmic outside, smoothly (asinh)"
    single = f"the Gaussian of one eigenvalue alone peaks at φ = {view.single:.2g}"
    return [
        f"spectral density φ(λ) {captions.per_name(records, called, _operator)}, per unit of λ: "
        "every eigenvalue smoothed by a Gaussian of standard deviation σ = "
        f"{number(records[0].bandwidth)}",
        f"measured with {measured}; here all are smoothed by the largest" if anew else "",
        f"bands and intervals: {confidence}, at each λ alone",
        "marks on the baseline: eigenvalues found by themselves" if has_atoms else "",
        captions.per_name(records, called, lambda r: f"{r.n_probes} probes of {r.steps} steps"),
        captions.per_name(records, called, lambda r: f"{r.matvecs:,} products"),
        asinh if view.spacing == "symlog" else "",
        single if y_axis == "log" else "",
        captions.per_name(records, called, captions.source),
    ]


def _operator(record: Density) -> str:
    return f"of the {record.operator} ({record.provenance.n_parameters:,} parameters)"
