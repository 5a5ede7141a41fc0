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

NOT_THE_WORST = "A random slice is not the worst case: it can look flat where the minimum is sharp."


def bad_points(sampled: Sampled) -> str:
    """Say how many points are not finite, or nothing where all are.

    Args:
        sampled: a line or surface.

    Returns:
        A phrase such as ``3 of 25 points not finite (2 NaN, 1 infinite)``.
    """
    n_nan = int(np.count_nonzero(np.isnan(sampled.loss)))
    n_inf = int(np.count_nonzero(np.isinf(sampled.loss)))
    kinds = [f"{n} {what}" for n, what in ((n_nan, "NaN"), (n_inf, "infinite")) if n]
    if not kinds:
        return ""
    return f"{n_nan + n_inf} of {sampled.loss.size} points not finite ({', '.join(kinds)})"


def clipped_points(sampled: Sampled, scale: Scale) -> str:
    """Say how many points lie outside the range drawn, or nothing where none do.

    Args:
        sampled: a line or surface.
        scale: what it is drawn on.

    Returns:
        A phrase such as ``4 of 25 points outside the range, drawn at its limit``.
    """
    n = scale.n_clipped(sampled)
    if not n:
        return ""
    return f"{n} of {sampled.loss.size} points outside the range, drawn at its limit"


def each(samples: Sequence[T], names: Sequence[str], say: Callable[[T], str]) -> str:
    """Say something of several checkpoints: once where it is the same for all.

    Args:
        samples: the records.
        names: a name for each.
        say: what to say of one; an empty text is left out.

    Returns:
        One phrase, or one per checkpoint with its name.
    """
    phrases = [say(sample) for sample in samples]
    if len(set(phrases)) == 1:
        return phrases[0]
    told = [f"{shorten(name)}: {text}" for name, text in zip(names, phrases, strict=True) if text]
    return "; ".join(told)


def grid(surface: Surface) -> str:
    """Say which plane was measured at how many points.

    Args:
        surface: the record.

    Returns:
        A phrase such as ``filter-normalised random direction (seed 0), 25 × 21 points``.
    """
    plane = _with_seed(surface.plane, surface)
    return f"{plane}, {surface.x.size} × {surface.y.size} points"


def direction(line: Line) -> str:
    """Say which direction was measured at how many points.

    Args:
        line: the record.

    Returns:
        A phrase such as ``worst case, 41 points``.
    """
    return f"{_with_seed(line.direction, line)}, {line.x.size} points"


def source(result: Result) -> str:
    """Say which data, mode and precision a number comes from.

    Args:
        result: any record.

    Returns:
        A phrase such as ``train data (1,000 examples), eval mode, float32``.
    """
    at = result.provenance
    part = f"parameters matching {at.parameters}" if at.parameters else ""
    mode = f"{at.mode} mode" if at.mode else ""
    examples = f" ({at.n_examples:,} examples)" if at.n_examples else ""
    return ", ".join(filter(None, [f"{at.split} data{examples}", mode, at.dtype, part]))


def of_operator(records: Sequence[Spectral], names: Sequence[str]) -> str:
    """Say whose spectrum was measured.

    Args:
        records: results on operators.
        names: a name for each.

    Returns:
        A phrase such as ``of the Hessian``.
    """
    return each(records, names, lambda record: f"of the {record.operator}")


def surfaces_caption(surfaces: Sequence[Surface], names: Sequence[str], scale: Scale) -> str:
    """Write the caption of one or several surfaces.

    Args:
        surfaces: the records.
        names: a name for each.
        scale: what they are drawn on.

    Returns:
        Full sentences.
    """
    parts = [
        "Loss over a plane through the checkpoint (+); its directions: "
        + each(surfaces, names, grid),
        _capital(each(surfaces, names, source)),
        _capital(scale.note),
        _capital(_hatched(each(surfaces, names, bad_points))),
        _capital(each(surfaces, names, lambda s: clipped_points(s, scale))),
    ]
    text = sentences(parts)
    if any("random" in surface.plane.lower() for surface in surfaces):
        text += f" {NOT_THE_WORST}"
    return text


def lines_caption(lines: Sequence[Line], names: Sequence[str], scale: Scale) -> str:
    """Write the caption of one or several lines.

    Args:
        lines: the records.
        names: a name for each.
        scale: what they are drawn on.

    Returns:
        Full sentences.
    """
    banded = any(has_band(line) for line in lines)
    parts = [
        "Loss along a direction through the checkpoint: " + each(lines, names, direction),
        "Bands: ±2 standard errors of the loss over the examples" if banded else "",
        _capital(each(lines, names, source)),
        _capital(scale.note),
        _crossed(each(lines, names, bad_points)),
    ]
    text = sentences(parts)
    if any("random" in line.direction.lower() for line in lines):
        text += f" {NOT_THE_WORST}"
    return text


def has_band(line: Line) -> bool:
    """Return whether a line holds standard errors to draw.

    Args:
        line: the record.

    Returns:
        True where any is finite and positive.
    """
    return bool(np.any(np.isfinite(line.loss_se) & (np.asarray(line.loss_se) > 0)))


def sentences(parts: Iterable[str]) -> str:
    """Join phrases into sentences.

    Args:
        parts: phrases; empty ones are left out.

    Returns:
        The text.
    """
    return " ".join(f"{part.rstrip('.')}." for part in parts if part)


def level_text(value: float) -> str:
    """Write a level or tick: as few digits as tell it from its neighbours.

    Args:
        value: the level.

    Returns:
        The text, with a true minus sign.
    """
    return number(float(f"{value:.3g}")).replace("-", "\N{MINUS SIGN}").replace("e+0", "e")


def _with_seed(words: str, result: Result) -> str:
    nested = result.settings.get("d")
    seed = nested.get("seed") if isinstance(nested, Mapping) else result.settings.get("seed")
    return words if seed is None or "seed" in words else f"{words} (seed {seed})"


def _hatched(text: str) -> str:
    return f"{text}, hatched and marked ×" if text else ""


def _crossed(text: str) -> str:
    return f"{_capital(text)}, marked × at the top" if text else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
