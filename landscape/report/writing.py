"""One self-contained HTML file with the numbers, the pictures and how they came about."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.offline

from landscape import plots
from landscape._version import __version__
from landscape.errors import InvalidArgumentError
from landscape.files import write_file
from landscape.plots import contrast, surface_interactive
from landscape.plots.interactive.surfaces import common_ranges
from landscape.plots.page import figure_json, named, page, picture, table, text
from landscape.plots.saving import picture_bytes
from landscape.plots.scales import common_scale
from landscape.plots.style import colour, shorten
from landscape.plots.words import NOT_THE_WORST, source
from landscape.report.verdict import verdict
from landscape.results import KINDS, Result
from landscape.results.comparison import Comparison, Measured
from landscape.wording import number

_HEADINGS = {
    "test": "Loss on held-out data",
    "worst_line": "Line along the worst case",
    "random_line": "Line along a random direction",
}
"""Headings of the parts of a checkpoint that differ from that of the kind of record."""

_FORET = '<a href="https://arxiv.org/abs/2010.01412">Foret et al. 2021, arXiv:2010.01412</a>'
_LI = '<a href="https://arxiv.org/abs/1712.09913">Li et al. 2018, arXiv:1712.09913</a>'
_DINH = '<a href="https://arxiv.org/abs/1703.04933">Dinh et al. 2017, arXiv:1703.04933</a>'

_DEFINITIONS = f"""
<dl>
<dt>Sharpness</dt>
<dd>max over ‖ε‖ₚ ≤ ρ of L(w + ε) − L(w): the largest rise of the loss within the radius ρ
(SAM, {_FORET}). It is sought from several starts, and what a search finds is a
<em>lower bound</em>, written ≥. The gap, (ρ‖G‖<sub>q</sub> − Gᵀε) / (ρ‖G‖<sub>q</sub>) with G =
∇L(w + ε), is 0 where ε meets the first-order conditions for a maximum; it does not rule out a
higher one elsewhere.</dd>
<dt>One-step SAM value</dt>
<dd>The rise after the single step that SAM itself takes, to the boundary of the ball where the
loss rises most to first order.</dd>
<dt>λmax</dt>
<dd>The largest eigenvalue found of the Hessian ∇²L(w). ± is the residual ‖Hv − λv‖: an
eigenvalue of the Hessian lies within that distance.</dd>
<dt>Loss surface</dt>
<dd>L(w + x d₁ + y d₂). Filter normalisation scales each filter of a random direction to the norm of
the same filter of the weights, so that networks of different weight scale can be compared ({_LI}).
{NOT_THE_WORST}</dd>
<dt>± behind a loss</dt>
<dd>Standard error over the examples of the data.</dd>
<dt>What sharpness does not say</dt>
<dd>λmax and sharpness in a plain ball change under rescalings of the weights that leave the
network's function as it is ({_DINH}); they compare checkpoints of one
architecture, trained alike, and do not by themselves tell which generalises better.</dd>
</dl>
"""


def write_report(
    comparison: Comparison, path: str | os.PathLike[str], *, title: str | None = None
) -> Path:
    """Write one HTML file that opens anywhere, without a network.

    Args:
        comparison: one checkpoint or several, any part of what was measured missing.
        path: where to write; written whole or not at all.
        title: heading of the page; None: made of the names.

    Returns:
        The path of the file. The same comparison gives the same bytes. A file that cannot be
        written raises LandscapeError.

    Raises:
        InvalidArgumentError: if the comparison holds no checkpoint.
    """
    if not comparison.models:
        msg = "nothing to report: the comparison holds no checkpoint"
        raise InvalidArgumentError(msg)
    heading = title or _heading(comparison)
    figures: dict[str, str] = {}
    sections = [
        f"<h1>{text(heading)}</h1>",
        _numbers(comparison),
        _contrast(comparison),
        _reliefs(comparison, figures),
        _lines(comparison),
        _spectra(comparison),
        _further(comparison),
        _details(comparison),
        f'<section id="definitions"><h2>How to read this</h2>{_DEFINITIONS}</section>',
        _reproduce(comparison),
    ]
    written = page(
        title=heading,
        body="\n".join(filter(None, sections)),
        figures=figures,
        plotly=plotly.offline.get_plotlyjs() if figures else "",
        generator=f"landscape-sharpness {__version__}",
    )
    return write_file(path, written.encode())


def _heading(comparison: Comparison) -> str:
    names = [shorten(name, 48) for name in comparison.names]
    if len(names) > 3:
        return f"How sharp are these {len(names)} minima?"
    return f"How sharp {'is' if len(names) == 1 else 'are'} {_and(names)}?"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _numbers(comparison: Comparison) -> str:
    sentences = verdict(comparison)
    parts = [f'<p class="finding">{text(finding)}</p>' for finding in sentences.findings]
    parts += [f'<p class="caution">{text(caution)}</p>' for caution in sentences.cautions]
    header, *rows = comparison.table()
    if rows:
        shades = [colour(index) for index in range(len(comparison.models))]
        parts.insert(0, table(header, rows, of="numbers", shades=shades))
    else:
        parts.append('<p class="soft">Nothing was measured that a table could hold.</p>')
    sources = dict.fromkeys(source(result) for result in _results(comparison))
    if sources:
        parts.append(f'<p class="soft">Measured on {text("; ".join(sources))}.</p>')
    return f'<section id="numbers"><h2>Numbers</h2>{"".join(parts)}</section>'


def _contrast(comparison: Comparison) -> str:
    if not any(m.surface or m.worst_line or m.random_line for m in comparison.models):
        return ""
    figure = contrast(comparison, table=False)
    names = _and([shorten(name) for name in comparison.names])
    image = picture(
        picture_bytes(figure, "png", dpi=170),
        alt=f"Loss surfaces and lines of {names}, drawn on one scale; the caption is in the image.",
    )
    return (
        '<section id="contrast"><h2>Side by side</h2>'
        f'<figure class="card scroll">{image}</figure></section>'
    )


def _reliefs(comparison: Comparison, figures: dict[str, str]) -> str:
    shown = [(i, m, m.surface) for i, m in enumerate(comparison.models) if m.surface is not None]
    if not shown:
        return ""
    surfaces = [surface for _, _, surface in shown]
    scale, ranges = common_scale(surfaces), common_ranges(surfaces)
    cards = []
    for index, model, surface in shown:
        figure = surface_interactive(surface, name=model.name, scale=scale, ranges=ranges)
        figure.update_layout(title=None, margin={"l": 0, "r": 0, "t": 0, "b": 0})
        figures[f"relief-{index}"] = figure_json(figure)
        cards.append(
            f'<div class="card"><h3>{named(model.name, colour(index))}</h3>'
            f'<div class="relief" id="relief-{index}"></div></div>'
        )
    return (
        '<section id="surfaces"><h2>Surfaces to turn</h2>'
        f'<p class="soft">All on one scale: {text(scale.note)}. Turning one turns all. '
        f"{text(NOT_THE_WORST)}</p>"
        f'<div class="grid">{"".join(cards)}</div></section>'
    )


def _lines(comparison: Comparison) -> str:
    charts = {
        "Each along its own worst-case direction": "worst_line",
        "Each along its own random direction": "random_line",
    }
    parts = [
        f"<h3>{heading}</h3>{_card('line', role, comparison, scale='excess')}"
        for heading, role in charts.items()
        if any(role in model.roles() for model in comparison.models)
    ]
    if not parts:
        return ""
    return f'<section id="lines"><h2>Rise of the loss along a line</h2>{"".join(parts)}</section>'


def _card(kind: str, role: str, comparison: Comparison, **options: Any) -> str:
    """Draw the records of one role together."""
    models = [(m.name, m.roles()[role]) for m in comparison.models if role in m.roles()]
    return f'<figure class="card scroll">{_picture(kind, models, **options)}</figure>'


def _spectra(comparison: Comparison) -> str:
    if not any(m.eigenpairs and len(m.eigenpairs.values) > 1 for m in comparison.models):
        return ""
    card = _card("eigs", "eigenpairs", comparison)
    return f'<section id="spectra"><h2>Largest eigenvalues of the Hessian</h2>{card}</section>'


def _further(comparison: Comparison) -> str:
    parts = [_pictures(kind, comparison) for kind in plots.PICTURES]
    if not any(parts):
        return ""
    return f'<section id="further"><h2>Further measurements</h2>{"".join(parts)}</section>'


def _pictures(kind: str, comparison: Comparison) -> str:
    """Draw what was measured of a kind, together where it can be and else one by one."""
    records = [(m.name, one) for m in comparison.models for one in m.others if one.kind == kind]
    if not records:
        return ""
    try:
        images = [_picture(kind, records)]
    except InvalidArgumentError:  # such as profiles of different norms
        images = [_picture(kind, [record]) for record in records]
    cards = "".join(f'<figure class="card scroll">{image}</figure>' for image in images)
    return f"<h3>{KINDS[kind].heading}</h3>{cards}"


def _picture(kind: str, records: Sequence[tuple[str, Result]], **options: Any) -> str:
    names = [name for name, _ in records]
    # Runs have names of their own.
    options |= {} if kind == "trajectory" else {"names": names}
    figure = getattr(plots, f"{kind}_figure")([record for _, record in records], **options)
    alt = f"{KINDS[kind].heading} of {_and([shorten(name) for name in names])}."
    return picture(picture_bytes(figure, "png", dpi=120), alt=alt)


def _details(comparison: Comparison) -> str:
    parts = [_model_details(i, model) for i, model in enumerate(comparison.models)]
    return f'<section id="details"><h2>Each checkpoint</h2>{"".join(parts)}</section>'


def _model_details(index: int, model: Measured) -> str:
    parts = []
    for role, result in _parts(model):
        heading = _HEADINGS.get(role, result.heading)
        rows = [
            *result.rows(),
            ("settings", _brief(result.settings) or "none"),
            ("cost", str(result.cost)),
            ("data", f"{source(result)}; fingerprint {result.provenance.data_fingerprint}"),
            ("measured", result.provenance.created),
        ]
        parts.append(f"<h3>{heading}</h3>{table((), rows, of='facts')}")
    if not parts:
        parts.append('<p class="soft">Nothing was measured on this checkpoint.</p>')
    else:
        at = _parts(model)[0][1].provenance
        rows = [
            ("file or name", at.checkpoint),
            ("hash of the weights", at.checkpoint_hash),
            ("parameters", f"{at.n_parameters:,}"),
            ("loss", at.loss or "not known"),
            ("fingerprint of the problem", at.problem_fingerprint),
            ("computed on", f"{at.device}, {at.dtype}, layers in {at.mode} mode"),
        ]
        parts.append(f"<h3>Provenance</h3>{table((), rows, of='facts')}")
    summary = f"<summary>{named(model.name, colour(index))}</summary>"
    return f"<details>{summary}{''.join(parts)}</details>"


def _reproduce(comparison: Comparison) -> str:
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in result.provenance.versions.items())
        for result in _results(comparison)
    )
    rows = [("versions", versions_text) for versions_text in versions]
    rows.append(("report written by", f"landscape-sharpness {__version__}"))
    return (
        '<section id="reproduce"><h2>Reproduce and cite</h2>'
        "<p>The settings of every measurement, its seed among them, stand under each checkpoint; "
        "with the same checkpoint, data and versions they give the same numbers.</p>"
        f"{table((), rows, of='facts')}"
        f"<p>Please cite the methods that you rely on: sharpness, {_FORET}; filter-normalised "
        f"surfaces, {_LI}; and this software by name and version.</p></section>"
    )


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key} = {_brief(item) if not isinstance(item, Mapping) else '{' + _brief(item) + '}'}"
            for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        if len(value) > 6 and all(isinstance(item, (int, float)) for item in value):
            return f"[{len(value)} values from {min(value):g} to {max(value):g}]"
        return f"[{', '.join(_brief(item) for item in value)}]"
    return number(value) if isinstance(value, float) else str(value)


def _parts(model: Measured) -> list[tuple[str, Result]]:
    """Return what was measured on a checkpoint with the part that it plays, empty for others."""
    return [*model.roles().items(), *(("", result) for result in model.others)]


def _results(comparison: Comparison) -> list[Result]:
    return [result for model in comparison.models for _, result in _parts(model)]
