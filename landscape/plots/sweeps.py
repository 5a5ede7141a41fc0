"""Numbers over training: of the checkpoints of each run, and the log of the training itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from landscape.errors import InvalidArgumentError, one_of
from landscape.plots import captions, style
from landscape.plots.lines import mark_bad
from landscape.plots.numbering import counted_in, numbers_in, run_names_in
from landscape.plots.spectra import space
from landscape.plots.trajectories import finite, spans_decades
from landscape.results import (
    Eigenpairs,
    Evaluation,
    FloatArray,
    Result,
    Sharpness,
    TraceEstimate,
    TrainingLog,
)
from landscape.results.sharpness import ball_of
from landscape.results.stability import BatchSharpness, UpdateSharpness

QUANTITIES = {
    "eigs": "eigenvalue λ",
    "sharpness": "rise of the loss, L(w + ε) − L(w)",
    "trace": "trace",
    "loss": "loss",
    "update-sharpness": "critical sharpness 2/η",
    "batch-sharpness": "batch sharpness",
}
"""The kinds of record that can be drawn over training, with the label of their axis."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The records of the checkpoints of one training run, in their order."""

    name: str  # of the run; empty if there is but one
    x: FloatArray  # place of each checkpoint, ascending, shape (c,)
    names: tuple[str, ...]  # of the checkpoints
    records: tuple[Result, ...]

    def tracks(self) -> dict[str, FloatArray]:
        """Return by label of the quantity rows of value, errors down and up, and wide error."""
        rows = [_values(record) for record in self.records]
        labels = dict.fromkeys(label for row in rows for label in row)
        top = sorted((k for k in labels if k.startswith("λ") and "n" not in k), key=_rank)
        lowest = sorted((k for k in labels if k not in top), key=_rank, reverse=True)
        blank = (np.nan,) * 4
        return {
            label: np.array([row.get(label, blank) for row in rows], dtype=np.float64).T
            for label in [*top, *lowest]
        }


def _rank(label: str) -> float:
    return float("".join(filter(str.isdigit, label)) or 0)


def _values(record: Result) -> dict[str, tuple[float, float, float, float]]:
    if isinstance(record, Eigenpairs):
        wide = record.data_errors if len(record.data_errors) else np.full(len(record.values), 0.0)
        columns = (record.values, record.residuals, record.residuals, wide)
        return dict(zip(record.labels(), zip(*columns, strict=True), strict=True))
    if isinstance(record, TraceEstimate):
        down, up = record.value - record.low, record.high - record.value
        return {"trace": (record.value, *((0.0, 0.0) if record.exact else (down, up)), 0.0)}
    if isinstance(record, Sharpness):
        return {"sharpness": (record.value, record.value_se, record.value_se, 0.0)}
    if isinstance(record, UpdateSharpness):
        error = record.critical_se
        return {"critical sharpness": (record.critical, error, error, 0.0)}
    if isinstance(record, BatchSharpness):
        down, up = record.value - record.low, record.high - record.value
        return {"batch sharpness": (record.value, down, up, 0.0)}
    if isinstance(record, Evaluation):
        return {"loss": (record.loss, record.loss_se, record.loss_se, 0.0)}
    one_of(record.kind, tuple(QUANTITIES), what="kind of record over training")
    raise AssertionError


def training_runs(
    records: Sequence[Result] | Mapping[str, Sequence[Result]],
    *,
    names: Sequence[str] | None = None,
    runs: Sequence[str] | None = None,
    x: Sequence[float] | None = None,
) -> tuple[list[TrainingRun], str]:
    """Sort records into runs, and return them with what their places count; empty: names."""
    if isinstance(records, Mapping):
        runs = [name for name, of in records.items() for _ in of]
        records = [record for of in records.values() for record in of]
    several, called = style.records_and_names(records, names)
    keys = list(runs) if runs is not None else run_names_in(called)
    if len(keys) != len(several):
        msg = f"runs must hold one name per record; got {len(keys)} for {len(several)} records"
        raise InvalidArgumentError(msg)
    places = None if x is None else np.asarray(list(x), dtype=np.float64)
    found, counted = [], "" if x is None else "x"
    for key in dict.fromkeys(keys):
        chosen = [i for i, other in enumerate(keys) if other == key]
        labels = [called[i] for i in chosen]
        if places is None:
            at = numbers_in(labels)
            counted = counted or ("" if at is None else counted_in(labels))
            at = np.arange(len(chosen), dtype=np.float64) if at is None else at
        else:
            at = places[chosen] if places.shape == (len(several),) else np.full(1, np.nan)
            if not np.isfinite(at).all() or len(set(at)) < len(at):
                msg = f"x must hold one finite number per record, all different; got {x!r}"
                raise InvalidArgumentError(msg)
        order = np.argsort(at, kind="stable")
        run = TrainingRun(
            name=key if len(set(keys)) > 1 else "",
            x=at[order],
            names=tuple(labels[i] for i in order),
            records=tuple(several[chosen[i]] for i in order),
        )
        found.append(run)
    return found, counted or ("position in the run" if len(found) > 1 else "")


@style.styled()
def plot_sweep(
    records: Sequence[Result] | Mapping[str, Sequence[Result]],
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    runs: Sequence[str] | None = None,
    x: Sequence[float] | None = None,
    x_label: str | None = None,
    colours: Mapping[str, str] | None = None,
    scale: str = "auto",
    title: str | None = None,
    caption: bool | None = None,
) -> Axes:
    """Draw eigenvalues, sharpness, traces or losses over training, with their errors as bars.

    Of a single run every eigenvalue is drawn, of several runs the largest, one line for each.

    Args:
        records: of one kind (eigenpairs, sharpness, trace, loss) of several checkpoints, or these
            by the name of their run.
        ax: axes to draw into; None: those of a new picture.
        names: a name for each; None: the checkpoints'.
        runs: the name of the run of each; None: the names without their numbers, so that
            ``adam-e3.pt`` and ``sam-e3.pt`` are of two runs.
        x: a number for each, such as the step; None: the number in each name, where those of a run
            differ in one number only, else the position, with the names under it.
        x_label: what x counts; None: the word before the number in the names.
        colours: a colour for each run; None: those of the property cycle.
        scale: ``linear``, ``log`` or ``auto``, as in `plot_eigs`.
        title: a line above the picture.
        caption: whether to write under the picture what it shows; None: if it is a new one.

    Returns:
        The axes.
    """
    found, counted = training_runs(records, names=names, runs=runs, x=x)
    kinds = list(dict.fromkeys(record.kind for run in found for record in run.records))
    if len(kinds) > 1:
        msg = f"one picture shows one kind of record over training; got {', '.join(kinds)}"
        raise InvalidArgumentError(msg)
    tracks = {run.name: run.tracks() for run in found}
    if len(found) > 1:
        tracks = {name: dict([next(iter(of.items()))]) for name, of in tracks.items()}
    over_edge = _is_over_edge(found)
    if over_edge:
        tracks = {run.name: {"λ1/edge": _over_edge(run, tracks[run.name])} for run in found}
    values = np.concatenate([track[0] for of in tracks.values() for track in of.values()])
    axes = style.new_axes(ax)
    space(axes, values[np.isfinite(values)], scale)
    tints = style.colours_by_name([run.name for run in found], colours, ax)
    for index, run in enumerate(found):
        for k, (label, track) in enumerate(tracks[run.name].items()):
            place = index if run.name else k
            tint = tints[run.name] if run.name else style.colour(k)
            text = f"{style.shorten(run.name)}, {label}" if run.name else label
            _draw_track(axes, run, track, tint=tint, place=place, label=text)
        edge = _edges(run)
        if np.isfinite(edge).any() and not over_edge:
            tint = tints[run.name] if run.name else style.FAINT
            axes.plot(run.x, edge, color=tint, linestyle=(0, (5, 2)), linewidth=1.0)
    _name_places(axes, found, x_label or counted)
    if over_edge:
        axes.axhline(1.0, color=style.FAINT, linestyle=(0, (5, 2)), linewidth=1.0)
    every = {getattr(record, "operator", "") for run in found for record in run.records}
    of = " of P⁻¹H" if every == {"preconditioned Hessian"} else ""
    axes.set_ylabel("λ1/edge" if over_edge else QUANTITIES[kinds[0]] + of)
    return style.finish(axes, ax, _parts(found, kinds[0]), title=title, caption=caption)


def _edges(run: TrainingRun) -> FloatArray:
    return np.array([getattr(record, "edge", np.nan) for record in run.records])


def _is_over_edge(runs: Sequence[TrainingRun]) -> bool:
    """Tell whether runs of different operators, of H and of P⁻¹H, have their edge in common."""
    operators = {getattr(record, "operator", "") for run in runs for record in run.records}
    return len(operators) > 1 and all(bool(np.isfinite(_edges(run)).all()) for run in runs)


def _over_edge(run: TrainingRun, tracks: Mapping[str, FloatArray]) -> FloatArray:
    return np.asarray(next(iter(tracks.values())) / _edges(run))


def _draw_track(
    axes: Axes, run: TrainingRun, track: FloatArray, *, tint: str, place: int, label: str
) -> None:
    values, down, up, wide = track
    look: Any = {"fmt": style.marker(place), "color": tint, "capsize": 2, "elinewidth": 1.0}
    look |= {"linestyle": style.DASHES[place // 7 % len(style.DASHES)], "linewidth": 1.2}
    axes.errorbar(run.x, values, np.nan_to_num([down, up]), label=style.plain(label), **look)
    done = np.array([getattr(record, "converged", True) for record in run.records])
    hollow = ~done & np.isfinite(values)
    if hollow.any():
        white: Any = {"markerfacecolor": "white", "zorder": 4}
        axes.plot(run.x[hollow], values[hollow], style.marker(place), color=tint, **white)
    reach = np.nan_to_num(wide)
    if reach.any():
        bar: Any = {"linewidth": 5, "alpha": 0.25, "zorder": 1.5}
        axes.vlines(run.x, values - reach, values + reach, color=tint, **bar)


def _name_places(axes: Axes, runs: Sequence[TrainingRun], label: str) -> None:
    x = np.concatenate([run.x for run in runs])
    span = float(np.ptp(x)) or 1.0
    axes.set_xlim(float(x.min()) - 0.05 * span, float(x.max()) + 0.05 * span)
    if label:
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=not np.any(x % 1)))
        return
    names = [style.plain(style.shorten(name, 24)) for name in runs[0].names]
    stride = -(-len(names) // 24)
    slanted: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    look = slanted if max(map(len, names)) * len(names) > 70 else {}
    axes.set_xticks(x[::stride], names[::stride], **look)
    axes.set_xlabel("checkpoint")


def _several_balls(records: Sequence[Any]) -> str:
    return "; ".join(dict.fromkeys(ball_of(r) for r in records if isinstance(r, Sharpness)))


def _parts(runs: Sequence[TrainingRun], kind: str) -> list[str]:
    records: list[Any] = [record for run in runs for record in run.records]
    names = [name for run in runs for name in run.names]
    pairs = zip(records, names, strict=True)
    hollow = [style.shorten(name) for r, name in pairs if not getattr(r, "converged", True)]
    wide = method = ""
    lines = "one line for each run" if len(runs) > 1 else ""
    bars = {
        "sharpness": "largest rise found in the ball, a lower bound ("
        f"{_several_balls(records)}); bars: ±1 standard error over the examples",
        "trace": "bars: intervals of confidence over the probes",
        "loss": "bars: ±1 standard error over the examples",
        "update-sharpness": "2/η of the largest step along the update that does not raise the loss;"
        " bars: ±1 standard error over the examples",
        "batch-sharpness": "mean of gᵀHg/‖g‖² over batches; bars: 95 % intervals",
    }.get(kind, "")
    if kind == "eigs":
        subject = "largest eigenvalue" if lines else "eigenvalues"
        bars = (
            f"{subject} {captions.of_operator(records, names)} over training; an eigenvalue lies "
            "within each thin bar (‖Hv − λv‖)"
        )
        if any(len(record.data_errors) and record.data_errors.any() for record in records):
            wide = "wide bars: another sample of the data, ±1 standard error"
        lines = lines or (
            "lines join the eigenvalues of equal number, which need not be the same direction"
        )
        method = captions.per_name(records, names, lambda r: f"found by {r.method.capitalize()}")
    has_edge = any(np.isfinite(getattr(record, "edge", np.nan)) for record in records)
    edge = "dashed: edge of stability, above which the optimizer diverges" if has_edge else ""
    return [
        *(bars, wide, edge, lines),
        f"hollow, NOT converged: {', '.join(hollow)}" if hollow else "",
        method,
        captions.per_name(records, names, captions.source),
    ]


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
