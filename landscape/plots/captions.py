"""What a picture says in words under itself: what is drawn, on which scale, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from landscape.plots.scales import Sampled, Scale
from landscape.plots.style import NamePhrase, shorten
from landscape.results import Line, Result, Surface
from landscape.results.spectra import Spectral
from landscape.wording import number

T = TypeVar("T")

N_SAID = 3  # of how many checkpoints a caption says something before it cuts short
NOT_THE_WORST = "A random slice is not the worst case: it can look flat where the minimum is sharp."


def per_name(samples: Sequence[T], names: Sequence[str], phrase: Callable[[T], str]) -> str:
    """Say something of several checkpoints: once where it is the same, and of a few at most."""
    by_phrase: dict[str, list[str]] = {}
    for name, sample in zip(names, samples, strict=True):
        by_phrase.setdefault(phrase(sample), []).append(shorten(name))
    if len(by_phrase) == 1:
        return next(iter(by_phrase))
    by_phrase.pop("", None)
    of_each = [f"{_several(called)}: {text}" for text, called in by_phrase.items()]
    of_each.sort(key=lambda text: "NOT" not in text)
    more = f"; and so on for {len(of_each) - N_SAID} more" if len(of_each) > N_SAID + 1 else ""
    return NamePhrase("; ".join(of_each[: N_SAID if more else None]) + more)


def _several(names: Sequence[str]) -> str:
    more = len(names) - N_SAID
    return ", ".join(names[:N_SAID]) + (f" and {more} more" if more > 0 else "")


def with_ending(text: str, ending: str) -> str:
    """Add an ending to a phrase that is not empty, which stays of its kind."""
    return type(text)(f"{text}{ending}") if text else text


def bad_points(sampled: Sampled) -> str:
    """Say how many measured points are not finite, or nothing where all are."""
    loss = sampled.loss[sampled.is_measured]
    n_nan, n_inf = int(np.count_nonzero(np.isnan(loss))), int(np.count_nonzero(np.isinf(loss)))
    counts = [f"{n} {word}" for n, word in ((n_nan, "NaN"), (n_inf, "infinite")) if n]
    if not counts:
        return ""
    return f"{n_nan + n_inf} of {sampled.loss.size} points not finite ({', '.join(counts)})"


def bad_points_at_top(samples: Sequence[Sampled], names: Sequence[str]) -> str:
    """Say the same of several lines, which mark these points."""
    return with_ending(per_name(samples, names, bad_points), ", marked × at the top")


def clipped_points(sampled: Sampled, scale: Scale) -> str:
    """Say how many points lie outside the range drawn, or nothing where none do."""
    n = scale.n_clipped(sampled)
    text = f"{n} of {sampled.loss.size} points outside the range, drawn at its limit"
    return text if n else ""


def unmeasured_points(sampled: Sampled, *, dotted: bool = False) -> str:
    """Say how many points were measured, and that the others are interpolated or still missing."""
    measured = sampled.is_measured
    if measured.all():
        return ""
    n = f"{np.count_nonzero(measured)} of {measured.size} points measured"
    if isinstance(sampled, Line) or not np.isfinite(sampled.loss[~measured]).any():
        return f"not finished: {n}, the others blank"
    unit = "of the range" if sampled.criterion == "range" else "of the loss"
    return (
        f"{n}{' (dots)' if dotted else ''}, the others interpolated: largest error seen "
        f"{100 * sampled.interpolation_error:.2g} % {unit} "
        f"(tolerance {100 * sampled.tolerance:.2g} %)"
    )


def plane_and_grid(surface: Surface) -> str:
    """Say which plane was measured at how many points."""
    return f"{plane_of(surface)}, {surface.x.size} × {surface.y.size} points"


def plane_of(surface: Surface) -> str:
    """Say which plane was measured."""
    return _with_seed(surface.plane, surface)


def direction(line: Line) -> str:
    """Say which direction was measured at how many points."""
    return f"{_with_seed(line.direction, line)}, {line.x.size} points"


def source(result: Result) -> str:
    """Say which data, mode and precision a number comes from."""
    at = result.provenance
    examples = f" ({at.n_examples:,} examples)" if at.n_examples else ""
    parts = [f"{at.split} data{examples}", at.mode and f"{at.mode} mode", at.dtype]
    parts.append(at.parameters and f"parameters matching {at.parameters}")
    if isinstance(result, (Line, Surface)):
        moved = result.statistics != "frozen"
        parts.append(f"BatchNorm statistics {result.statistics} at each point" if moved else "")
        parts.append(f"computed in {result.precision}" if result.precision != "exact" else "")
    return ", ".join(filter(None, parts))


def of_operator(records: Sequence[Spectral], names: Sequence[str]) -> str:
    """Say whose spectrum was measured."""
    return per_name(records, names, lambda record: f"of the {record.operator}")


def surface_parts(
    surfaces: Sequence[Surface],
    names: Sequence[str],
    scale: Scale,
    *,
    dotted: bool = True,
    smooth: bool = False,
) -> list[str]:
    """Return the caption of one or several surfaces."""
    parts = [
        "Loss over a plane through the checkpoint (+); its directions: "
        + per_name(surfaces, names, plane_and_grid),
        "contours are interpolated between the points (Akima)" if smooth else "",
        per_name(surfaces, names, source),
        scale.note,
        with_ending(per_name(surfaces, names, bad_points), ", hatched and marked ×"),
        per_name(surfaces, names, lambda s: clipped_points(s, scale)),
        per_name(surfaces, names, lambda s: unmeasured_points(s, dotted=dotted)),
    ]
    return [*parts, _slice_warning([surface.plane for surface in surfaces])]


def line_parts(lines: Sequence[Line], names: Sequence[str], scale: Scale) -> list[str]:
    """Return the caption of one or several lines."""
    return [
        "Loss along a direction through the checkpoint: " + per_name(lines, names, direction),
        band_note(lines, scale),
        per_name(lines, names, source),
        scale.note,
        bad_points_at_top(lines, names),
        per_name(lines, names, unmeasured_points),
        _slice_warning([line.direction for line in lines]),
    ]


def band_note(lines: Sequence[Line], scale: Scale) -> str:
    """Say what the bands around lines are, or nothing where there are none."""
    if not any(np.any(standard_errors(line, rise=scale.rise) > 0) for line in lines):
        return ""
    paired = "bands: ±2 standard errors of the rise, of the same examples at w and w′"
    return paired if scale.rise else "bands: ±2 standard errors of the loss over the examples"


def standard_errors(line: Line, *, rise: bool) -> Any:
    """Return the standard error of each loss, or of each rise: that of the paired difference.

    A line holds the latter as the metric ``rise_se``. Where it does not it is not known, NaN: the
    error of the loss is another thing, since the losses at w and w′ are of the same examples.
    """
    errors = line.metrics.get("rise_se") if rise else line.loss_se
    return np.full(line.x.shape, np.nan) if errors is None else np.asarray(errors, dtype=float)


def _slice_warning(planes: Sequence[str]) -> str:
    return NOT_THE_WORST if any("random" in plane.lower() for plane in planes) else ""


def axis_label(letter: str, vector: str, norm: float) -> str:
    """Label an axis that counts in units of a direction."""
    size = f" (‖{vector}‖ = {number(norm)})" if np.isfinite(norm) else ""
    return f"{letter}, in units of {vector}{size}"


def level_text(value: float) -> str:
    """Write a level or tick: as few digits as tell it from its neighbours."""
    return number(float(f"{value:.3g}")).replace("-", "\N{MINUS SIGN}").replace("e+0", "e")


def _with_seed(words: str, result: Result) -> str:
    nested = result.settings.get("d")
    seed = nested.get("seed") if isinstance(nested, Mapping) else result.settings.get("seed")
    return words if seed is None or "seed" in words else f"{words} (seed {seed})"
