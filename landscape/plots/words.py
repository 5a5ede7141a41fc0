"""What a picture says in words under itself: what is drawn, on which scale, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from landscape.plots.scales import Sampled, Scale
from landscape.plots.style import shorten
from landscape.results import Line, Result, Surface
from landscape.results.spectra import Spectral
from landscape.wording import number

T = TypeVar("T")


class Named(str):
    """A phrase that begins with a checkpoint's name, whose first letter stays as it is."""

    __slots__ = ()


NOT_THE_WORST = "A random slice is not the worst case: it can look flat where the minimum is sharp."


def bad_points(sampled: Sampled) -> str:
    """Say how many points are not finite, or nothing where all are."""
    n_nan = int(np.count_nonzero(np.isnan(sampled.loss)))
    n_inf = int(np.count_nonzero(np.isinf(sampled.loss)))
    kinds = [f"{n} {what}" for n, what in ((n_nan, "NaN"), (n_inf, "infinite")) if n]
    if not kinds:
        return ""
    return f"{n_nan + n_inf} of {sampled.loss.size} points not finite ({', '.join(kinds)})"


def clipped_points(sampled: Sampled, scale: Scale) -> str:
    """Say how many points lie outside the range drawn, or nothing where none do."""
    n = scale.n_clipped(sampled)
    if not n:
        return ""
    return f"{n} of {sampled.loss.size} points outside the range, drawn at its limit"


def interpolated_points(surface: Surface, *, dotted: bool = False) -> str:
    """Say how many points were measured where the others are interpolated, and how well."""
    measured = surface.is_measured
    if measured.all():
        return ""
    error, tolerance = surface.interpolation_error, surface.tolerance
    of = "of the range" if surface.criterion == "range" else "of the loss"
    return (
        f"{np.count_nonzero(measured)} of {measured.size} points measured"
        f"{' (dots)' if dotted else ''}, the others interpolated: largest error seen "
        f"{100 * error:.2g} % {of} (tolerance {100 * tolerance:.2g} %)"
    )


def each(samples: Sequence[T], names: Sequence[str], say: Callable[[T], str]) -> str:
    """Say something of several checkpoints: once where it is the same for all."""
    phrases = [say(sample) for sample in samples]
    if len(set(phrases)) == 1:
        return phrases[0]
    told = [f"{shorten(name)}: {text}" for name, text in zip(names, phrases, strict=True) if text]
    return Named("; ".join(told))


def capital(text: str) -> str:
    """Begin a sentence with a phrase.

    >>> capital("loss on a log scale"), capital(Named("sgd: 3 points"))
    ('Loss on a log scale', 'sgd: 3 points')
    """
    return text if isinstance(text, Named) else text[:1].upper() + text[1:]


def grid(surface: Surface) -> str:
    """Say which plane was measured at how many points."""
    plane = _with_seed(surface.plane, surface)
    return f"{plane}, {surface.x.size} × {surface.y.size} points"


def direction(line: Line) -> str:
    """Say which direction was measured at how many points."""
    return f"{_with_seed(line.direction, line)}, {line.x.size} points"


def source(result: Result) -> str:
    """Say which data, mode and precision a number comes from."""
    at = result.provenance
    part = f"parameters matching {at.parameters}" if at.parameters else ""
    mode = f"{at.mode} mode" if at.mode else ""
    examples = f" ({at.n_examples:,} examples)" if at.n_examples else ""
    return ", ".join(
        filter(None, [f"{at.split} data{examples}", mode, at.dtype, part, _manner(result)])
    )


def _manner(result: Result) -> str:
    """Say what was done to BatchNorm and to the precision at the points of a line or surface."""
    if not isinstance(result, (Line, Surface)):
        return ""
    moved = f"BatchNorm statistics {result.statistics} at each point"
    parts = [moved if result.statistics != "frozen" else ""]
    parts.append(f"computed in {result.precision}" if result.precision != "exact" else "")
    return ", ".join(filter(None, parts))


def of_operator(records: Sequence[Spectral], names: Sequence[str]) -> str:
    """Say whose spectrum was measured."""
    return each(records, names, lambda record: f"of the {record.operator}")


def surfaces_caption(
    surfaces: Sequence[Surface], names: Sequence[str], scale: Scale, *, dotted: bool = True
) -> str:
    """Write the caption of one or several surfaces."""
    parts = [
        "Loss over a plane through the checkpoint (+); its directions: "
        + each(surfaces, names, grid),
        capital(each(surfaces, names, source)),
        capital(scale.note),
        capital(_with(each(surfaces, names, bad_points), ", hatched and marked ×")),
        capital(each(surfaces, names, lambda s: clipped_points(s, scale))),
        capital(each(surfaces, names, lambda s: interpolated_points(s, dotted=dotted))),
    ]
    text = sentences(parts)
    if any("random" in surface.plane.lower() for surface in surfaces):
        text += f" {NOT_THE_WORST}"
    return text


def lines_caption(lines: Sequence[Line], names: Sequence[str], scale: Scale) -> str:
    """Write the caption of one or several lines."""
    banded = any(has_band(line) for line in lines)
    parts = [
        "Loss along a direction through the checkpoint: " + each(lines, names, direction),
        "Bands: ±2 standard errors of the loss over the examples" if banded else "",
        capital(each(lines, names, source)),
        capital(scale.note),
        capital(_with(each(lines, names, bad_points), ", marked × at the top")),
    ]
    text = sentences(parts)
    if any("random" in line.direction.lower() for line in lines):
        text += f" {NOT_THE_WORST}"
    return text


def has_band(line: Line) -> bool:
    """Return whether a line holds standard errors to draw."""
    return bool(np.any(np.isfinite(line.loss_se) & (np.asarray(line.loss_se) > 0)))


def sentences(parts: Iterable[str]) -> str:
    """Join phrases into sentences."""
    return " ".join(f"{part.rstrip('.')}." for part in parts if part)


def level_text(value: float) -> str:
    """Write a level or tick: as few digits as tell it from its neighbours."""
    return number(float(f"{value:.3g}")).replace("-", "\N{MINUS SIGN}").replace("e+0", "e")


def _with_seed(words: str, result: Result) -> str:
    nested = result.settings.get("d")
    seed = nested.get("seed") if isinstance(nested, Mapping) else result.settings.get("seed")
    return words if seed is None or "seed" in words else f"{words} (seed {seed})"


def _with(text: str, ending: str) -> str:
    """Add an ending to a phrase that is not empty, which stays of its kind."""
    return type(text)(f"{text}{ending}") if text else text
