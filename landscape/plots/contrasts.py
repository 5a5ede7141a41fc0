"""The contrast figure: checkpoints side by side on one scale, and their numbers in one table.

The sheet is built of blocks (reliefs, maps, lines, table), each of a known height; a block whose
measurement is missing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots.contrast_blocks import (
    BAR,
    MARGIN,
    PER_ROW,
    Block,
    LineBlock,
    SurfaceBlocks,
)
from landscape.plots.runs import check_runs
from landscape.plots.scales import Scale, common_scale
from landscape.plots.sheet import LEADING, draw_table, table_height, write, write_lines
from landscape.plots.style import COLOUR_MAP, SMALL, Picture, fit, styled, wrap
from landscape.plots.surfaces import SURFACE_KINDS, check_grid
from landscape.results.comparison import Comparison

INSET = 0.37
"""Where the table begins, right of the letter of its block, in inches."""


@styled()
def contrast(
    comparison: Comparison,
    *,
    kind: str = "both",
    scale: str | Scale = "auto",
    limits: tuple[float, float] | None = None,
    levels: int | Sequence[float] = 10,
    cmap: str = COLOUR_MAP,
    title: str | None = None,
    table: bool = True,
    caption: bool = True,
) -> Figure:
    """Draw checkpoints side by side: reliefs and maps on one scale, lines overlaid, and numbers.

    Every relief has the same height range, colours and view; every map the same levels, and one
    colour bar serves all. The rise of the loss along each checkpoint's own worst-case direction
    stands below, since random slices do not show the worst case.

    Args:
        comparison: what was measured, any part of it missing; runs are drawn on the surfaces.
        kind: ``both`` (reliefs and filled contours); or only ``3d``, ``contour``, ``contourf`` or
            ``heatmap``.
        scale: scale of the surfaces: ``auto``, ``linear``, ``log``, ``excess`` or ``log-excess``;
            see `common_scale`. The lines always show the rise, on a linear scale.
        limits: smallest and largest value of the surfaces to show; None: those of the data.
        levels: about how many contour levels, or the levels themselves.
        cmap: a matplotlib colour map.
        title: a line above all; None: none.
        table: whether to typeset the numbers.
        caption: whether to write what is drawn.

    Returns:
        The figure, which belongs to no window.

    Raises:
        InvalidArgumentError: if an argument is unknown, or nothing was measured.
    """
    one_of(kind, ("both", *SURFACE_KINDS), what="kind of surface picture")
    width = sheet_width(len(comparison.models))
    blocks: list[Block] = []
    surfaces = [model.surface for model in comparison.models if model.surface is not None]
    if surfaces:
        for model in comparison.models:
            if model.surface is not None:
                check_grid(model.surface)
                check_runs(model.surface, model.trajectories)
        drawn = common_scale(surfaces, scale, limits=limits)
        parts = SurfaceBlocks(
            comparison=comparison,
            scale=drawn,
            width=width,
            levels=levels,
            cmap=cmap,
            kind=kind,
        )
        blocks += parts.build()
    blocks += LineBlock(comparison=comparison, width=width).build()
    if table and len(comparison.table()) > 1:
        blocks.append(table_block(comparison, width=width))
    if not blocks:
        msg = "nothing to draw: no checkpoint of this comparison has a measurement"
        raise InvalidArgumentError(msg)
    return _assemble(blocks, width=width, title=title, caption=caption)


def sheet_width(n_models: int) -> float:
    """Return the width of the sheet."""
    columns = min(max(n_models, 2), PER_ROW)
    return 2 * MARGIN + BAR + columns * (3.3 if columns == 2 else 3.0)


def table_block(comparison: Comparison, *, width: float) -> Block:
    """Build the block of numbers."""
    rows = comparison.table()
    room = width - 2 * MARGIN - INSET
    starts = range(0, len(rows[0]) - 1, PER_ROW)
    parts = [[(row[0], *row[1 + k : 1 + k + PER_ROW]) for row in rows] for k in starts]
    fewest = min(len(rows[0]) - 1, PER_ROW)
    heights = [table_height(part, width=room, n_columns=fewest) + 0.2 for part in parts]

    def draw(figure: Figure, top: float) -> None:
        for k, (part, height) in enumerate(zip(parts, heights, strict=True)):
            at = {"left": MARGIN + INSET, "top": top - 0.1, "width": room}
            draw_table(figure, part, **at, n_columns=fewest, first=k * PER_ROW)
            top -= height

    return Block(sum(heights), draw, "Numbers; ± is the standard error or the residual.")


def _assemble(blocks: Sequence[Block], *, width: float, title: str | None, caption: bool) -> Figure:
    letters = ["(a)", "(b)", "(c)", "(d)"][: len(blocks)] if len(blocks) > 1 else [""]
    said = [f"{letter} {block.said}" for letter, block in zip(letters, blocks, strict=True)]
    told = wrap(" ".join(said), width - 2 * MARGIN, size=SMALL) if caption else []
    head, foot = 0.5 if title else 0.12, LEADING * len(told) + 0.2
    height = head + sum(block.height for block in blocks) + foot
    figure = Picture(figsize=(width, height))
    if title:
        heading = fit(title, width - 2 * MARGIN, size=12, bold=True)
        write(figure, heading, left=MARGIN, bottom=height - 0.36, size=12, weight="bold")
    top = height - head
    for letter, block in zip(letters, blocks, strict=True):
        block.draw(figure, top)
        write(figure, letter, left=0.08, bottom=top - 0.2, size=10, weight="bold")
        top -= block.height
    write_lines(figure, told, left=MARGIN, top=foot - 0.1)
    return figure
