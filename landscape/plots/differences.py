"""Where one surface lies above another: L_a − L_b on the same coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from landscape.errors import DataError, InvalidArgumentError, one_of
from landscape.plots import captions, style
from landscape.plots.scales import Floats, Scale
from landscape.plots.surfaces import check_grid, mark_checkpoint
from landscape.results import Surface
from landscape.wording import number

DIVERGING = "PuOr_r"
"""Purple below zero and orange above, which any colour vision tells apart."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The numbers of a picture of a difference, shape (nx, ny)."""

    values: Floats  # L_a − L_b, or the difference of the rises
    errors: Floats  # standard error of each; NaN where not known
    paired: bool  # whether the errors are those of a difference of the same examples
    rise: bool  # whether each loss counts from that of its own checkpoint

    @property
    def unsure(self) -> Any:
        """Where the difference is less than two standard errors, shape (nx, ny)."""
        with np.errstate(invalid="ignore"):
            return np.isfinite(self.values) & (np.abs(self.values) < 2 * self.errors)

    def scale(self, name: str = "linear", *, limit: float | None = None) -> Scale:
        """Return the scale, with 0 in its middle."""
        one_of(name, ("linear", "log"), what="scale of a difference")
        sizes = np.abs(self.values[np.isfinite(self.values)])
        reach = (float(sizes.max(initial=0.0)) or 1.0) if limit is None else float(limit)
        if not (np.isfinite(reach) and reach > 0):
            msg = f"limit must be a positive finite difference of losses; got {limit!r}"
            raise InvalidArgumentError(msg)
        small = float(sizes[sizes > 0].min(initial=reach))
        threshold = float(f"{min(max(small, 1e-3 * reach), 0.1 * reach):.0e}")
        spacing = "symlog" if name == "log" else "linear"
        return Scale(rise=self.rise, spacing=spacing, low=-reach, high=reach, threshold=threshold)


def difference_of(a: Surface, b: Surface, *, rise: bool = False) -> Difference:
    """Subtract one surface from another."""
    for surface in (a, b):
        check_grid(surface)
    _check_sources(a, b)
    if not (np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y)):
        grids = [
            f"{s.name} has {s.x.size} × {s.y.size} points on [{s.x.min():g}, {s.x.max():g}] × "
            f"[{s.y.min():g}, {s.y.max():g}]"
            for s in (a, b)
        ]
        msg = (
            f"a difference takes two surfaces on the same coordinates; {', '.join(grids)}: measure "
            "both with the same points and ranges"
        )
        raise InvalidArgumentError(msg)
    with np.errstate(invalid="ignore"):
        values = np.asarray(a.loss - b.loss, dtype=np.float64)
    paired = _paired_errors(a, b)
    unpaired = np.hypot(np.asarray(a.loss_se, float), np.asarray(b.loss_se, float))
    return Difference(
        values=values - (a.origin_loss - b.origin_loss if rise else 0.0),
        errors=np.full_like(values, np.nan) if rise else unpaired if paired is None else paired,
        paired=paired is not None and not rise,
        rise=rise,
    )


def _check_sources(a: Surface, b: Surface) -> None:
    """Refuse surfaces that differ in more than the checkpoint; what is not known passes."""
    ours, theirs = a.provenance, b.provenance
    for field in ("mode", "dtype"):
        one, other = getattr(ours, field), getattr(theirs, field)
        if one and other and one != other:
            msg = (
                f"{a.name} was measured with {field} {one}, {b.name} with {other}: a difference "
                f"takes the same {field}; measure one of them again"
            )
            raise InvalidArgumentError(msg)
    data = ours.data_fingerprint, theirs.data_fingerprint
    if ours.split != theirs.split or (all(data) and data[0] != data[1]):
        said = [
            f"{at.split} data ({at.data_fingerprint[:8] or 'which is not known'})"
            for at in (ours, theirs)
        ]
        msg = (
            f"{a.name} was measured on {said[0]}, {b.name} on {said[1]}: a difference takes the "
            "same data; measure one of them again, or choose others by their numbers (--id)"
        )
        raise DataError(msg)


def _paired_errors(a: Surface, b: Surface) -> Floats | None:
    """Return the errors of the paired difference, if a surface holds that to the other one."""
    fields = ("data_fingerprint", "objective", "mode", "dtype")
    if any(getattr(a.provenance, k) != getattr(b.provenance, k) for k in fields):
        return None
    if (a.statistics, a.precision) != (b.statistics, b.precision):
        return None
    for surface, other in ((b, a), (a, b)):
        against = surface.settings.get("against", {})
        # it may have been taken to another checkpoint than the one that is drawn beside it
        same = against.get("checkpoint") == other.provenance.checkpoint_hash and all(
            against.get(axis) == other.settings.get(axis) for axis in ("d1", "d2")
        )
        if "difference_se" in surface.metrics and same:
            return np.asarray(surface.metrics["difference_se"], float)
    return None


@style.styled()
def plot_difference(
    a: Surface,
    b: Surface,
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    rise: bool = False,
    scale: str = "linear",
    limit: float | None = None,
    cmap: str = DIVERGING,
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw L_a − L_b of two surfaces on the same coordinates, each point one cell.

    Args:
        a: the one.
        b: the other, on the same coordinates.
        ax: axes to draw into; None: those of a new picture.
        names: a name for each; None: the checkpoints'.
        rise: whether each loss counts from that of its own checkpoint.
        scale: ``linear``, or ``log``: logarithmic for both signs, and linear near zero.
        limit: largest difference of either sign to show; None: that of the data.
        cmap: a diverging matplotlib colour map, whose middle stands for 0.
        title: a line above the picture; None: both names.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: if the coordinates, modes or dtypes are not the same, or the limit is
            not positive.
        DataError: if the data are not the same.
    """
    _, called = style.records_and_names((a, b), names)
    found = difference_of(a, b, rise=rise)
    drawn = found.scale(scale, limit=limit)
    axes: Any = style.new_axes(ax, size=(5.2, 4.2))
    axes.set_box_aspect(1)
    axes.grid(visible=False)
    look: Any = {"norm": drawn.norm(), "cmap": cmap, "shading": "nearest", "rasterized": True}
    cells = axes.pcolormesh(a.x, a.y, np.ma.masked_invalid(found.values.T), **look)
    for where, mark, tint, size in (
        (found.unsure, ".", "black", 2.2),
        (~np.isfinite(found.values), "x", style.BAD, 4.0),
    ):
        i, j = np.nonzero(where)
        if i.size:
            axes.plot(a.x[i], a.y[j], mark, color=tint, markersize=size)
    mark_checkpoint(axes, a)
    axes.set(xlabel=_axis((a, b), 0), ylabel=_axis((a, b), 1))
    short, quantity = [style.shorten(name, 20) for name in called], "rise" if rise else "loss"
    label = f"{quantity} of {short[0]} − {quantity} of {short[1]}"
    axes.figure.colorbar(cells, ax=axes, aspect=25, pad=0.02, label=style.plain(label))
    heading = f"{style.shorten(called[0])} − {style.shorten(called[1])}" if title is None else title
    parts = [_objectives(a, b), *_parts(found, (a, b), called, drawn, label)]
    return style.finish(axes, ax, parts, title=heading, caption=caption)


def _axis(surfaces: Sequence[Surface], index: int) -> str:
    letter, vector = (("x", "d₁"), ("y", "d₂"))[index]
    norms = {number(surface.direction_norms[index]) for surface in surfaces}
    if len(norms) == 1:
        return captions.axis_label(letter, vector, surfaces[0].direction_norms[index])
    return f"{letter}, in units of each {vector}"


def _objectives(a: Surface, b: Surface) -> str:
    """Say that two surfaces have different losses or models."""
    one, other = a.provenance.objective, b.provenance.objective
    if not (one and other) or one == other:
        return ""
    return (
        "the losses or models of the two are not the same, so that part of the difference may be "
        "that of two losses and not of two checkpoints"
    )


def _parts(
    found: Difference, surfaces: Sequence[Surface], names: Sequence[str], scale: Scale, label: str
) -> list[str]:
    finite, size = np.isfinite(found.values), found.values.size
    n_unsure = int(np.count_nonzero(found.unsure))
    n_known = int(np.count_nonzero(np.isfinite(found.errors) & finite))
    n_bad = int(np.count_nonzero(~finite))
    n_out = int(np.count_nonzero(np.abs(found.values[finite]) > scale.high))
    how = "paired, of the same examples" if found.paired else "unpaired, √(se² + se²)"
    errors = ""
    if n_unsure:
        errors = f"dots: {n_unsure} of {n_known} points differ by less than two standard errors"
    elif n_known:
        points = "all" if n_known == size else f"all {n_known} measured"
        errors = f"{points} points differ by two standard errors or more"
    log = f"log scale for both signs, linear within ±{scale.threshold:g}"
    return [
        f"{label}: orange, {style.shorten(names[0])} lies higher; purple, "
        f"{style.shorten(names[1])} does; each on the plane of its own checkpoint (+): "
        + captions.per_name(surfaces, names, captions.plane_and_grid),
        captions.with_ending(errors, f" ({how})"),
        f"{n_bad} of {size} points not finite in one of the two, marked ×" if n_bad else "",
        log if scale.spacing == "symlog" else "",
        f"{n_out} of {size} points outside the range, drawn at its limit" if n_out else "",
        captions.per_name(surfaces, names, captions.unmeasured_points),
        captions.per_name(surfaces, names, captions.source),
    ]
