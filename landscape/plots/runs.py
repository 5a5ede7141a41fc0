"""Training runs: their paths on maps and reliefs, and the losses of checkpoints and projections.

A run does not lie in the plane that it is drawn on. What stands on the plane are its projections;
what that leaves out (the distance off the plane, the checkpoints' own losses) stands beside them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from landscape.errors import InvalidArgumentError
from landscape.plots import words
from landscape.plots.lines import called_by
from landscape.plots.scales import Floats, Scale
from landscape.plots.sheet import Box, draw_key, frame, place
from landscape.plots.style import SMALL, fit, plain, shorten, styled, text_width
from landscape.results import Surface, Trajectory
from landscape.wording import number

RUN_COLOURS = ("#D55E00", "#000000", "#CC79A7", "#56B4E9", "#F0E442", "#0072B2")
"""Of the Okabe-Ito set, those first that stand out from viridis between white edges."""

_COLOUR_NAMES = ("vermilion", "black", "pink", "sky blue", "yellow", "blue")

PANELS = 1.95
"""Room for the panels of losses and distances under a map, in inches."""

_CASED = [withStroke(linewidth=3.2, foreground="white")]
_PER_SEGMENT = 16  # points of a path between two checkpoints that follow the relief


def run_colour(index: int) -> str:
    """Return the colour of the run that stands at a place in the order."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


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


def draw_runs(axes: Axes, runs: Sequence[Trajectory]) -> None:
    """Draw runs onto a map; its range stays as it is."""
    limits = axes.get_xlim(), axes.get_ylim()
    for index, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        tint = run_colour(index)
        axes.plot(run.x, run.y, color=tint, label=plain(name), path_effects=_CASED, zorder=7)
        for places, look in _dots(len(run.names)):
            axes.plot(run.x[places], run.y[places], **_look(look, tint), zorder=8)
    axes.set(xlim=limits[0], ylim=limits[1])


def draw_runs_on_relief(
    axes: Any, runs: Sequence[Trajectory], surface: Surface, scale: Scale
) -> None:
    """Draw runs onto a relief, above everything; what lies outside of the surface is left out."""
    axes.computed_zorder = False
    for index, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        tint = run_colour(index)
        path = relief_path(run, surface, scale)
        axes.plot(*path, color=tint, label=plain(name), path_effects=_CASED, zorder=7)
        at = relief_dots(run, surface, scale)
        for places, look in _dots(len(run.names)):
            axes.plot(*(part[places] for part in at), **_look(look, tint), zorder=8)


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
    z = _between(surface, scale.forward(scale.shown(surface)), x, y)
    outside = ~is_inside(x, y, surface)
    return tuple(np.where(outside, np.nan, part) for part in (x, y, z))  # type: ignore[return-value]


def is_inside(x: Any, y: Any, surface: Surface) -> Any:
    """Return which points lie within the range of a surface."""
    inside_x = (surface.x.min() <= x) & (x <= surface.x.max())
    return inside_x & (surface.y.min() <= y) & (y <= surface.y.max())


def _between(surface: Surface, z: Floats, x: Floats, y: Floats) -> Floats:
    """Interpolate heights within the squares of the grid, linearly along both axes."""
    i, s = _square(surface.x, x)
    j, t = _square(surface.y, y)
    low = (1 - s) * z[i, j] + s * z[i + 1, j]
    high = (1 - s) * z[i, j + 1] + s * z[i + 1, j + 1]
    return np.asarray((1 - t) * low + t * high)


def _square(grid: Any, at: Floats) -> tuple[Any, Floats]:
    index = np.clip(np.searchsorted(grid, at, side="right") - 1, 0, grid.size - 2)
    return index, (at - grid[index]) / (grid[index + 1] - grid[index])


def _dots(m: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Return which checkpoints have which mark: first, last, and those between."""
    between = list(range(1, m - 1))
    marks = [
        (between, {"marker": "o", "markersize": 4.0}),
        ([0], {"marker": "o", "markersize": 6.5, "markeredgewidth": 1.6, "hollow": True}),
        ([m - 1], {"marker": "*", "markersize": 11.0}),
    ]
    return [(places, look) for places, look in marks if places and (m > 1 or places == [0])]


def _look(look: dict[str, Any], tint: str) -> dict[str, Any]:
    rest = {key: value for key, value in look.items() if key != "hollow"}
    hollow = bool(look.get("hollow"))
    edge = {"color": tint, "linestyle": "none", "clip_on": True}
    face = "white" if hollow else tint
    return {**edge, **rest, "markerfacecolor": face, "markeredgecolor": tint if hollow else "white"}


def draw_run_panels(figure: Figure, boxes: tuple[Box, Box], runs: Sequence[Trajectory]) -> None:
    """Draw the losses of checkpoints and projections, and the distances off the plane."""
    losses, distances = (place(figure, box) for box in boxes)
    for index, (run, name) in enumerate(zip(runs, run_names(runs), strict=True)):
        at = np.arange(1, len(run.names) + 1)
        look: dict[str, Any] = {"color": run_colour(index), "linewidth": 1.2, "markersize": 3.5}
        thin = {**look, "markerfacecolor": "white"}
        losses.plot(at, _finite(run.loss), "o-", label=plain(name), **look)
        losses.plot(at, _finite(run.projected_loss), "o--", **thin)
        distances.plot(at, _finite(run.off_plane), "o-", **look)
        distances.plot(at, _finite(run.distances), ":", **look)
    both = np.concatenate([np.concatenate([r.loss, r.projected_loss]) for r in runs])
    finite = both[np.isfinite(both)]
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        losses.set_yscale("log")
    losses.set_ylabel("loss")
    distances.set_ylabel("distance")
    distances.set_ylim(bottom=0)
    for axes, box in zip((losses, distances), boxes, strict=True):
        _number(axes, runs, room=box[2])
        axes.grid(visible=True)
        axes.set_axisbelow(True)


def _finite(values: Any) -> Any:
    return np.where(np.isfinite(values), values, np.nan)


def _number(axes: Axes, runs: Sequence[Trajectory], *, room: float) -> None:
    """Name the checkpoints under a panel where their names fit, else number them."""
    named = list(dict.fromkeys(run.names for run in runs))
    longest = max(len(names) for names in named)
    axes.set_xlim(0.6, longest + 0.4)
    wide = max(text_width(name, SMALL) for names in named for name in names)
    if len(named) == 1 and wide + 0.08 < room / longest:
        axes.set_xticks(range(1, longest + 1), [fit(name, room, size=SMALL) for name in named[0]])
        axes.set_xlabel("checkpoint")
        return
    axes.xaxis.set_major_locator(MaxNLocator(max(2, int(3 * room)), integer=True, min_n_ticks=1))
    axes.set_xlabel("number of the checkpoint")


def runs_caption(runs: Sequence[Trajectory], surface: Surface | None = None) -> str:
    """Say what the paths of runs show, and what they leave out."""
    if not runs:
        return ""
    names = run_names(runs)
    outside = "" if surface is None else words.each(runs, names, lambda r: _outside(r, surface))
    parts = [
        f"Paths: training runs ({_named(names)}), from the ring to the star, projected on the "
        f"plane; they lie off it by up to {_off(runs)}, so heights are those of the projections",
        f"The checkpoints' own losses differ from these by up to {_apart(runs)}",
        words.capital(outside),
    ]
    return words.sentences(parts)


PANELS_SAID = (
    "Below, left: solid, the loss of each checkpoint; dashed, of its projection. Right: solid, "
    "its distance off the plane; dotted, from the checkpoint +."
)


def _named(names: Sequence[str]) -> str:
    told = [
        f"{shorten(name)} {_COLOUR_NAMES[i % len(_COLOUR_NAMES)]}" for i, name in enumerate(names)
    ]
    return ", ".join(told)


def _off(runs: Sequence[Trajectory]) -> str:
    off, share = (np.concatenate([getattr(r, n) for r in runs]) for n in ("off_plane", "off_share"))
    worst = int(np.argmax(np.where(np.isfinite(off), off, -1.0)))
    return f"{number(float(off[worst]))} ({share[worst]:.0%} of the distance from +)"


def _apart(runs: Sequence[Trajectory]) -> str:
    gap = np.abs(np.concatenate([run.difference for run in runs]))
    known = gap[np.isfinite(gap)]
    text = number(float(known.max(initial=0.0)))
    n_bad = gap.size - known.size
    return f"{text}, and {n_bad} of {gap.size} are not finite" if n_bad else text


def _outside(run: Trajectory, surface: Surface) -> str:
    n = int(np.count_nonzero(~is_inside(run.x, run.y, surface)))
    return f"{n} of {len(run.names)} checkpoints lie outside of the map" if n else ""


@styled()
def trajectory_figure(
    trajectories: Trajectory | Sequence[Trajectory],
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    caption: bool = True,
) -> Figure:
    """Draw the losses of the checkpoints of runs and of their projections, and the distances.

    Args:
        trajectories: one record or several.
        names: a name for each; None: those of the runs.
        title: a line above the picture; None: the checkpoint's name.
        caption: whether to write under the picture what it shows.

    Returns:
        The figure, which belongs to no window.
    """
    runs = [trajectories] if isinstance(trajectories, Trajectory) else list(trajectories)
    called_by(runs, names)
    runs = runs if names is None else named_runs(runs, names)
    parts = [
        "training runs beside a plane: "
        + words.each(runs, run_names(runs), lambda run: f"{run.plane} of {shorten(run.name)}"),
        "left: solid, the loss of each checkpoint; dashed, of its projection on the plane",
        "right: solid, its distance off the plane; dotted, from the origin of the plane",
        words.capital(words.each(runs, run_names(runs), words.source)),
    ]
    heading = runs[0].name if title is None else title
    figure, box = frame(
        parts, title=heading, caption=caption, key=-(-len(runs) // 2), room=(6.6, 2.4)
    )
    left, bottom, _, high = box
    boxes = ((left, bottom, 2.75, high), (left + 3.6, bottom, 2.75, high))
    draw_run_panels(figure, boxes, runs)
    draw_key(figure.axes[0], room=6.6, n_columns=2)
    return figure


def named_runs(runs: Sequence[Trajectory], names: Sequence[str]) -> list[Trajectory]:
    """Return runs under other names."""
    return [dataclasses.replace(run, run=name) for run, name in zip(runs, names, strict=True)]
