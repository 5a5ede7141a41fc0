"""The blocks of the contrast figure: reliefs and maps on one scale, and the lines below them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.plots import words
from landscape.plots.lines import draw_lines, mark, use_distance
from landscape.plots.reliefs import draw_relief
from landscape.plots.runs import draw_runs, draw_runs_on_relief, runs_caption
from landscape.plots.scales import Floats, Scale, common_scale
from landscape.plots.sheet import Box, place, rule, write
from landscape.plots.style import colour, fit, shorten
from landscape.plots.surfaces import add_colour_bar, draw_map
from landscape.results import Line, Sharpness, Surface
from landscape.results.comparison import Comparison, Measured

PER_ROW = 4
MARGIN = 0.25
BAR = 0.85
"""Room for the colour bar and its label, in inches."""

Panel = tuple[int, Measured, Line]


@dataclass(frozen=True)
class Block:
    """One part of the sheet.

    Attributes:
        height: in inches.
        draw: draws it, given the figure and the top of the block in inches from below.
        said: what the caption says of it.
    """

    height: float
    draw: Callable[[Figure, float], None]
    said: str


@dataclass(frozen=True, kw_only=True)
class SurfaceBlocks:
    """Reliefs and maps of several surfaces.

    Attributes:
        comparison: what was measured; checkpoints without a surface are left out.
        scale: the one scale of all.
        width: of the sheet, in inches.
        levels: about how many contour levels, or the levels themselves.
        cmap: a matplotlib colour map.
        kind: ``both`` (reliefs and filled contours), ``3d`` (reliefs), or the kind of the maps.
    """

    comparison: Comparison
    scale: Scale
    width: float
    levels: int | Sequence[float]
    cmap: str
    kind: str = "both"

    @property
    def panels(self) -> list[tuple[int, Measured, Surface]]:
        """The surfaces with the place and record of their checkpoints."""
        models = enumerate(self.comparison.models)
        return [(i, model, model.surface) for i, model in models if model.surface is not None]

    @property
    def cell(self) -> float:
        """Side of the square that each panel fills, in inches."""
        columns = min(max(len(self.panels), 2), PER_ROW)
        return min((self.width - 2 * MARGIN - BAR) / columns, 3.6)

    def build(self) -> list[Block]:
        """Return the blocks: reliefs, then maps; a single checkpoint has them side by side."""
        surfaces = [surface for _, _, surface in self.panels]
        names = [model.name for _, model, _ in self.panels]
        said = words.surfaces_caption(surfaces, names, self.scale, dotted=self.kind != "3d")
        said += "".join(
            f" {self._say_runs(*panel)}" for panel in self.panels if panel[1].trajectories
        )
        if len(surfaces) == 1 and self.kind == "both":
            return [Block(self.cell + 0.25, self._draw_pair, f"{said} {self._say_maps()}")]
        n_rows = -(-len(surfaces) // PER_ROW)
        reliefs, maps = (0.95 * self.cell + 0.1) * n_rows, (self.cell + 0.1) * n_rows + 0.1
        if self.kind == "3d":
            return [Block(reliefs + 0.1, self._draw_reliefs_and_bar, said)]
        if self.kind != "both":
            return [Block(maps, self._draw_maps, f"{said} {self._say_maps(alone=True)}".rstrip())]
        return [
            Block(reliefs, self._draw_reliefs, said),
            Block(maps, self._draw_maps, self._say_maps()),
        ]

    def _say_runs(self, index: int, model: Measured, surface: Surface) -> str:
        said = runs_caption(model.trajectories, surface)
        return said if len(self.panels) == 1 else f"On {shorten(model.name)}: {said}"

    def _draw_pair(self, figure: Figure, top: float) -> None:
        index, model, surface = self.panels[0]
        left = (self.width - 2 * self.cell - BAR) / 2 + 0.1
        side = self.cell - 0.2
        self._relief(figure, (left - 0.15, top - self.cell + 0.1, side, side), model)
        self._map(figure, left + self.cell, top, (index, model, surface))
        self._bar(figure, left + 2 * self.cell, top)

    def _draw_reliefs(self, figure: Figure, top: float) -> None:
        high = 0.95 * self.cell
        for k, (index, model, _) in enumerate(self.panels):
            x, y = self._left + self.cell * (k % PER_ROW), top - (high + 0.1) * (k // PER_ROW)
            self._relief(figure, (x, y - high - 0.1, self.cell, high), model)
            heading = fit(model.name, self.cell - 0.4, size=10, bold=True)
            at = {"left": x + self.cell / 2, "bottom": y - 0.2}
            look: dict[str, Any] = {
                "ha": "center",
                "size": 10,
                "weight": "bold",
                "color": colour(index),
            }
            write(figure, heading, **at, **look)

    def _draw_maps(self, figure: Figure, top: float) -> None:
        for k, panel in enumerate(self.panels):
            x = self._left + self.cell * (k % PER_ROW)
            self._map(figure, x, top - (self.cell + 0.1) * (k // PER_ROW), panel)
        columns = min(len(self.panels), PER_ROW)
        self._bar(figure, self._left + self.cell * columns, top)

    @property
    def _left(self) -> float:
        columns = min(len(self.panels), PER_ROW)
        return MARGIN + (self.width - 2 * MARGIN - BAR - self.cell * columns) / 2

    def _draw_reliefs_and_bar(self, figure: Figure, top: float) -> None:
        self._draw_reliefs(figure, top)
        columns = min(len(self.panels), PER_ROW)
        self._bar(figure, self._left + self.cell * columns, top)

    def _relief(self, figure: Figure, box: Box, model: Measured) -> None:
        axes = place(figure, box, projection="3d")
        surface = cast("Surface", model.surface)
        draw_relief(axes, surface, self.scale, cmap=self.cmap)
        draw_runs_on_relief(axes, model.trajectories, surface, self.scale)
        (left, right), (front, back) = self._ranges()
        x_pad, y_pad = 0.04 * (right - left), 0.04 * (back - front)
        axes.set(xlim=(left - x_pad, right + x_pad), ylim=(front - y_pad, back + y_pad))

    def _map(
        self, figure: Figure, x: float, top: float, panel: tuple[int, Measured, Surface]
    ) -> None:
        index, model, surface = panel
        side = self.cell - 0.72
        box = (x + 0.62, top - self.cell + 0.38, side, side)
        axes = place(figure, box)
        kind = "contourf" if self.kind == "both" else self.kind
        draw_map(axes, surface, self.scale, kind=kind, levels=self.levels, cmap=self.cmap)
        x_range, y_range = self._ranges()
        axes.set(xlim=x_range, ylim=y_range)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        draw_ball(axes, model)
        draw_runs(axes, model.trajectories)
        heading = fit(model.name, side, size=9, bold=True)
        at = {"left": box[0], "bottom": top - 0.27}
        write(figure, heading, **at, size=9, weight="bold", color=colour(index))

    def _bar(self, figure: Figure, left: float, top: float) -> None:
        side = self.cell - 0.72
        box = (left + 0.1, top - self.cell + 0.38, 0.14, side)
        add_colour_bar(figure, self.scale, self.levels, cmap=self.cmap, box=box)

    def _ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        x = np.concatenate([surface.x for _, _, surface in self.panels])
        y = np.concatenate([surface.y for _, _, surface in self.panels])
        return (float(x.min()), float(x.max())), (float(y.min()), float(y.max()))

    def _say_maps(self, *, alone: bool = False) -> str:
        said = "Right, the same seen from above" if len(self.panels) == 1 else "The same from above"
        ranges = {(s.x.min(), s.x.max(), s.y.min(), s.y.max()) for _, _, s in self.panels}
        parts = [] if alone else [said]
        parts += ["blank, not measured"] if len(ranges) > 1 else []
        parts += sorted({ball_size(model) for _, model, _ in self.panels} - {""})
        return words.sentences([words.capital("; ".join(parts))])


def ball_outline(model: Measured) -> tuple[Floats, Floats] | None:
    """Return where the plane of a surface cuts the sphere ‖ε‖₂ = ρ that sharpness was sought in."""
    surface, sharpness = model.surface, model.sharpness
    if surface is None or sharpness is None or not is_plain_euclidean(sharpness):
        return None
    first, second = surface.direction_norms
    mixed = first * second * surface.cosine
    gram = np.array([[first**2, mixed], [mixed, second**2]])
    if not np.isfinite(gram).all() or np.linalg.det(gram) <= 0:
        return None
    angle = np.linspace(0.0, 2 * np.pi, 181)
    circle = sharpness.rho * np.array([np.cos(angle), np.sin(angle)])
    x, y = np.linalg.solve(np.linalg.cholesky(gram).T, circle)
    return x, y


def ball_size(model: Measured) -> str:
    """Say how the ball that sharpness was sought in looks on the map."""
    outline = ball_outline(model)
    if outline is None or model.surface is None or model.sharpness is None:
        return ""
    ball = f"the ball ‖ε‖₂ ≤ {model.sharpness.rho:g} in which the sharpness was sought"
    part = np.ptp(outline[0]) / np.ptp(model.surface.x)
    if part < 0.03:
        return f"{ball} is smaller than the +"
    return f"dashed, {ball}" if part < 1 else ""


def is_plain_euclidean(sharpness: Sharpness) -> bool:
    """Return whether a sharpness was sought in a plain Euclidean ball."""
    return sharpness.p == 2 and not sharpness.settings.get("adaptive")


def draw_ball(axes: Axes, model: Measured) -> None:
    """Draw the outline of the ball onto a map, where it can be seen."""
    outline = ball_outline(model)
    if outline is not None and ball_size(model).startswith("dashed"):
        axes.plot(*outline, color="white", linewidth=2.0, zorder=3)
        axes.plot(*outline, color="black", linewidth=0.9, linestyle=(0, (4, 2)), zorder=3.1)


@dataclass(frozen=True, kw_only=True)
class LineBlock:
    """Rises along lines: each checkpoint's own worst case, and random directions.

    Attributes:
        comparison: what was measured; checkpoints without a line are left out.
        width: of the sheet, in inches.
    """

    comparison: Comparison
    width: float

    @property
    def worst(self) -> list[Panel]:
        """Worst-case lines with the place and record of their checkpoints."""
        models = enumerate(self.comparison.models)
        return [(i, model, model.worst_line) for i, model in models if model.worst_line is not None]

    @property
    def random(self) -> list[Panel]:
        """Random lines with the place and record of their checkpoints."""
        models = enumerate(self.comparison.models)
        return [(i, m, m.random_line) for i, m in models if m.random_line is not None]

    @property
    def resolved(self) -> list[Panel]:
        """Random lines with enough points to be drawn over the range of the worst-case lines."""
        reach = _reach(self.worst)
        return [p for p in self.random if np.count_nonzero(np.abs(p[2].distance) <= reach) >= 5]

    @property
    def beside(self) -> list[Panel]:
        """Random lines for a panel of their own: all of them, where any reaches further."""
        further = _reach(self.random) > 2 * _reach(self.worst)
        return self.random if further or len(self.resolved) < len(self.random) else []

    def build(self) -> list[Block]:
        """Return the block, or none where no line was measured."""
        if not self.worst and not self.random:
            return []
        return [Block(3.45, self._draw, self._say())]

    def _draw(self, figure: Figure, top: float) -> None:
        panels = [panel for panel in (self.worst, self.beside) if panel]
        room = (self.width - 2 * MARGIN) / len(panels)
        self._draw_key(figure, top - 0.2)
        for k, panel in enumerate(panels):
            is_worst = k == 0 and bool(self.worst)
            box = (MARGIN + room * k + 0.62, top - 2.93, room - 0.8, 2.3)
            axes = place(figure, box)
            draw_panel(axes, panel, under=self.resolved if is_worst else [])
            axes.xaxis.set_major_locator(
                MaxNLocator(max(3, int(1.8 * box[2])), steps=[1, 2, 2.5, 5, 10])
            )
            what = "worst-case" if is_worst else "random"
            heading = fit(f"Each along its own {what} direction", box[2], size=9)
            write(figure, heading, left=box[0], bottom=top - 0.55, size=9)

    def _draw_key(self, figure: Figure, bottom: float) -> None:
        named = {i: model.name for i, model, _ in (*self.worst, *self.random)}
        room = (self.width - 2 * MARGIN - 0.62) / max(2, len(named))
        for k, (index, name) in enumerate(sorted(named.items())):
            left = MARGIN + 0.62 + room * k
            tint = colour(index)
            rule(figure, left=left, bottom=bottom + 0.04, width=0.25, weight=1.8, color=tint)
            write(figure, fit(name, room - 0.45), left=left + 0.32, bottom=bottom)

    def _say(self) -> str:
        both = (*self.worst, *self.random)
        said = "Rise of the loss along a line through each checkpoint: "
        said += "; ".join(_say_directions(panel) for panel in (self.worst, self.random) if panel)
        if self.worst and self.resolved:
            said += "; thin and dashed, the random ones"
        if any(model.sharpness is not None for _, model, _ in self.worst):
            said += "; dots, the largest rise found in the ball (a lower bound)"
        if any(words.has_band(line) for _, _, line in both):
            said += "; bands, ±2 standard errors of the loss over the examples"
        lines, names = [line for _, _, line in both], [model.name for _, model, _ in both]
        missing = words.each(lines, names, words.bad_points)
        return f"{said}. {missing}, marked × at the top." if missing else f"{said}."


def draw_panel(axes: Axes, panel: Sequence[Panel], *, under: Sequence[Panel] = ()) -> None:
    """Draw the rise of the loss of several checkpoints into one panel."""
    lines = [line for _, _, line in panel]
    scale = common_scale(lines, "excess")
    names, colours = [m.name for _, m, _ in panel], [colour(i) for i, _, _ in panel]
    draw_lines(axes, lines, scale, names=names, colours=colours, linestyle="solid")
    reach = axes.get_xlim()
    if under:
        draw_lines(
            axes,
            [line for _, _, line in under],
            scale,
            names=[model.name for _, model, _ in under],
            colours=[colour(i) for i, _, _ in under],
            linewidth=0.9,
            linestyle=(0, (4, 2)),
        )
        axes.set_xlim(reach)
    for index, model, line in panel:
        found = model.sharpness
        if found is not None and line is model.worst_line and use_distance(lines, "auto"):
            mark(axes, float(np.linalg.norm(found.epsilon)), found.value, index=index)


def _say_directions(panel: Sequence[Panel]) -> str:
    lines, names = [line for _, _, line in panel], [model.name for _, model, _ in panel]
    return words.each(lines, names, words.direction)


def _reach(panel: Sequence[Panel]) -> float:
    return max((float(np.abs(line.distance).max()) for _, _, line in panel), default=0.0)
