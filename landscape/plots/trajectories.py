"""Training runs: their paths on maps and reliefs, and the losses of checkpoints and projections.

A run does not lie in the plane that it is drawn on. What stands on the plane are its projections;
what that leaves out (the distance off the plane, the checkpoints' own losses) stands beside them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from scipy.interpolate import RegularGridInterpolator

from landscape.errors import InvalidArgumentError
from landscape.plots import captions, style
from landscape.plots.numbering import counted_in, numbers_in
from landscape.plots.scales import Floats, Scale
from landscape.results import FloatArray, Surface, Trajectory
from landscape.wording import number

_CASED = [withStroke(linewidth=3.2, foreground="white")]
_PER_SEGMENT = 16  # points of a path between two checkpoints that follow the relief


def run_names(runs: Sequence[Trajectory]) -> list[str]:
    """Return a name for each run, all different."""
    labels = [run.label for run in runs]
    shared = Counter(labels)
    return [
        label if shared[label] == 1 else f"{label} ({labels[: i + 1].count(label)})"
        for i, label in enumerate(labels)
    ]


def check_runs(surface: Surface, runs: Sequence[Trajectory]) -> None:
    """Refuse runs that were not measured in the plane of a surface."""
    for name, run in zip(run_names(runs), runs, strict=True):
        if not run.lies_in(surface):
            msg = (
                f"{name} was projected on another plane than the surface of {surface.name} shows "
                f"({run.plane} of {run.name}, and {surface.plane}): measure both with the same "
                "checkpoint and the same options of the plane"
            )
            raise InvalidArgumentError(msg)


def run_colours(
    runs: Sequence[Trajectory], colours: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return a colour for each run, beginning with one that stands out from the maps."""
    return style.colours_by_name(["", *run_names(runs)], colours)


def draw_runs(
    axes: Axes, runs: Sequence[Trajectory], colours: Mapping[str, str] | None = None
) -> None:
    """Draw runs onto a map; its range stays as it is."""
    limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
    tints = run_colours(runs, colours)
    for run, name in zip(runs, run_names(runs), strict=True):
        look: Any = {"color": tints[name], "label": style.plain(name), "path_effects": _CASED}
        axes.plot(run.x, run.y, zorder=7, **look)
        for places, mark in _dots(len(run.names), tints[name]):
            axes.plot(run.x[places], run.y[places], zorder=8, **mark)
    axes.set(**limits)


def draw_runs_on_relief(
    axes: Any,
    runs: Sequence[Trajectory],
    surface: Surface,
    scale: Scale,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Draw runs onto a relief, above everything; what lies outside of the surface is left out."""
    tints = run_colours(runs, colours)
    for run, name in zip(runs, run_names(runs), strict=True):
        axes.computed_zorder = False
        look: Any = {"color": tints[name], "label": style.plain(name), "path_effects": _CASED}
        axes.plot(*relief_path(run, surface, scale), zorder=7, **look)
        at = relief_dots(run, surface, scale)
        for places, mark in _dots(len(run.names), tints[name]):
            axes.plot(*(part[places] for part in at), zorder=8, **mark)


def relief_dots(run: Trajectory, surface: Surface, scale: Scale) -> tuple[Floats, Floats, Floats]:
    """Return where the projections of a run stand on a relief."""
    values = run.projected_loss - (surface.origin_loss if scale.rise else 0.0)
    shown = np.where(np.isfinite(values), np.clip(values, scale.low, scale.high), np.nan)
    inside = is_inside(run.x, run.y, surface)
    x, y = (np.where(inside, at, np.nan) for at in (run.x, run.y))
    return x, y, np.where(inside, scale.forward(shown), np.nan)


def relief_path(run: Trajectory, surface: Surface, scale: Scale) -> tuple[Floats, Floats, Floats]:
    """Return the path of a run over a relief: straight from above, and on the relief between."""
    steps = np.arange(len(run.names), dtype=np.float64)
    fine = np.linspace(0, steps[-1], _PER_SEGMENT * (len(steps) - 1) + 1)
    x, y = np.interp(fine, steps, run.x), np.interp(fine, steps, run.y)
    heights = scale.forward(scale.shown(surface))
    relief = RegularGridInterpolator((surface.x, surface.y), heights, bounds_error=False)
    z = relief(np.stack([x, y], axis=1))
    outside = ~is_inside(x, y, surface)
    return tuple(np.where(outside, np.nan, part) for part in (x, y, z))  # type: ignore[return-value]


def is_inside(x: Any, y: Any, surface: Surface) -> Any:
    """Return which points lie within the range of a surface."""
    inside_x = (surface.x.min() <= x) & (x <= surface.x.max())
    return inside_x & (surface.y.min() <= y) & (y <= surface.y.max())


def _dots(m: int, tint: str) -> list[tuple[list[int], dict[str, Any]]]:
    """Return which checkpoints have which mark: a ring first, a star last, dots between."""
    look: dict[str, Any] = {"linestyle": "none", "color": tint, "markeredgecolor": "white"}
    dot = {**look, "marker": "o", "markersize": 4.0}
    ring = {**look, "marker": "o", "markersize": 6.5, "markeredgewidth": 1.6}
    ring |= {"markerfacecolor": "white", "markeredgecolor": tint}
    star = {**look, "marker": "*", "markersize": 11.0}
    if m == 1:
        return [([0], star)]
    return [(list(range(1, m - 1)), dot), ([0], ring), ([m - 1], star)]


def runs_parts(runs: Sequence[Trajectory], surface: Surface) -> list[str]:
    """Say what the paths of runs show, and what they leave out."""
    if not runs:
        return []
    return [
        "Paths: training runs, from the ring to the star, projected on the plane; they lie off it "
        f"by up to {_off(runs)}, so heights are those of the projections",
        f"The checkpoints' own losses differ from these by up to {_apart(runs)}",
        captions.per_name(runs, run_names(runs), lambda run: _outside(run, surface)),
    ]


def _off(runs: Sequence[Trajectory]) -> str:
    off, share = (np.concatenate([getattr(r, n) for r in runs]) for n in ("off_plane", "off_share"))
    worst = int(np.argmax(np.where(np.isfinite(off), off, -1.0)))
    return f"{number(float(off[worst]))} ({share[worst]:.0%} of the distance from +)"


def _apart(runs: Sequence[Trajectory]) -> str:
    gap = np.abs(np.concatenate([run.difference for run in runs]))
    text = number(float(np.max(gap, where=np.isfinite(gap), initial=0.0)))
    n_bad = int(np.count_nonzero(~np.isfinite(gap)))
    return f"{text}, and {n_bad} of {gap.size} are not finite" if n_bad else text


def _outside(run: Trajectory, surface: Surface) -> str:
    n = int(np.count_nonzero(~is_inside(run.x, run.y, surface)))
    return f"{n} of {len(run.names)} checkpoints lie outside of the map" if n else ""


@style.styled()
def plot_trajectory(
    trajectories: Trajectory | Sequence[Trajectory],
    *,
    axes: Sequence[Axes] | None = None,
    names: Sequence[str] | None = None,
    colours: Mapping[str, str] | None = None,
    title: str | None = None,
    caption: bool | None = None,
) -> Figure | SubFigure:
    """Draw the losses of the checkpoints of runs and of their projections, and the distances.

    Args:
        trajectories: one record or several.
        axes: two axes, for the losses and the distances; None: those of a new picture.
        names: a name for each; None: those of the runs.
        colours: a colour for each name; None: those of the property cycle.
        title: a line above the picture; None: the checkpoint's name.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The figure of both panels.
    """
    runs = named_runs(trajectories, names)
    tints = run_colours(runs, colours)
    panels = axes
    if panels is None:
        panels = style.Picture(figsize=(7.2, 3.0), layout="constrained").subplots(1, 2)
    losses, distances = panels
    places, counted = _places(runs)
    for run, name, at in zip(runs, run_names(runs), places, strict=True):
        look: Any = {"color": tints[name], "linewidth": 1.2, "markersize": 3.5}
        losses.plot(at, finite(run.loss), "o-", label=style.plain(style.shorten(name)), **look)
        losses.plot(at, finite(run.projected_loss), "o--", mfc="none", **look)
        distances.plot(at, finite(run.off_plane), "o-", **look)
        distances.plot(at, finite(run.distances), ":", **look)
    if spans_decades(np.concatenate([[*run.loss, *run.projected_loss] for run in runs])):
        losses.set_yscale("log")
    losses.set_ylabel("loss")
    distances.set_ylabel("distance")
    distances.set_ylim(bottom=0)
    for panel in panels:
        _name_checkpoints(panel, runs, counted)
    figure = losses.figure
    heading = runs[0].name if title is None else title
    losses.set_title(style.plain(style.shorten(heading, 60)))
    if axes is not None:
        losses.legend()
    elif len(runs) > 1:
        style.draw_key(losses)
    if caption or (caption is None and axes is None):
        called = run_names(runs)
        parts = [
            "training runs beside a plane: "
            + captions.per_name(runs, called, lambda r: f"{r.plane} of {style.shorten(r.name)}"),
            "left: solid, the loss of each checkpoint; dashed, of its projection on the plane",
            "right: solid, its distance off the plane; dotted, from the origin of the plane",
            captions.per_name(runs, called, captions.source),
        ]
        style.write_caption(figure, parts)
    return figure


def named_runs(
    trajectories: Trajectory | Sequence[Trajectory], names: Sequence[str] | None
) -> list[Trajectory]:
    """Return a list of runs, under other names where these are given."""
    runs, called = style.records_and_names(trajectories, names)
    if names is None:
        return runs
    return [dataclasses.replace(run, run=name) for run, name in zip(runs, called, strict=True)]


def finite(values: Any) -> Any:
    """Return values with NaN in place of infinity."""
    return np.where(np.isfinite(values), values, np.nan)


def spans_decades(values: Floats) -> bool:
    """Return whether finite values are positive and the largest is ten times the smallest."""
    known = values[np.isfinite(values)]
    return bool(known.size and known.min() > 0 and known.max() >= 10 * known.min())


def _places(runs: Sequence[Trajectory]) -> tuple[list[FloatArray], str]:
    """Return where the checkpoints of each run stand, and what that counts; empty: positions."""
    numbers = [numbers_in(run.names) for run in runs]
    if all(at is not None and np.all(np.diff(at) > 0) for at in numbers):
        return [at for at in numbers if at is not None], counted_in(runs[0].names)
    return [np.arange(1, len(run.names) + 1, dtype=np.float64) for run in runs], ""


def _name_checkpoints(axes: Axes, runs: Sequence[Trajectory], counted: str) -> None:
    """Name the checkpoints under a panel where their names are short, else number them."""
    longest = max(runs, key=lambda run: len(run.names)).names
    if not counted and len({run.names for run in runs}) == 1 and _fit(longest):
        axes.set_xticks(range(1, len(longest) + 1), [style.plain(name) for name in longest])
        axes.set_xlabel("checkpoint")
        return
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel(counted or "number of the checkpoint")


def _fit(names: Sequence[str]) -> bool:
    return len("".join(names)) + 3 * len(names) < 45
