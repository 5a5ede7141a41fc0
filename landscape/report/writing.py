"""One self-contained HTML file with the numbers, the pictures and how they came about."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from landscape import plots
from landscape._version import __version__
from landscape.errors import InvalidArgumentError
from landscape.files import write_file
from landscape.plots.captions import NOT_THE_WORST, source
from landscape.plots.interactive.surfaces import explore_surface, switched_scale
from landscape.plots.pages import figure_json, render_page, vector_picture
from landscape.plots.style import colours_by_name, shorten
from landscape.plots.sweeps import training_runs
from landscape.report.verdict import verdict
from landscape.results import KINDS, Result
from landscape.results.comparison import ABSENT, Comparison, Measured
from landscape.wording import number

_HEADINGS = {
    "test": "Loss on held-out data",
    "worst_line": "Line along the worst case",
    "random_line": "Line along a random direction",
}
"""Headings of the parts of a checkpoint that differ from that of the kind of record."""
_FOLDER = Path(__file__).parent / "templates"


class _Section(NamedTuple):
    """A part of the page: pictures, or else a table."""

    id: str
    heading: str
    images: list[Markup]
    table: Sequence[tuple[str, ...]] = ()


def write_report(
    comparison: Comparison,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    scale: str = "auto",
    colours: Mapping[str, str] | None = None,
    command: str = "",
) -> Path:
    """Write one HTML file that opens anywhere, without a network.

    Args:
        comparison: one checkpoint or several, any part of what was measured missing.
        path: where to write; written whole or not at all.
        title: heading of the page; None: made of the names.
        scale: of the surfaces at first: ``auto``, ``linear``, ``log``, ``excess`` or
            ``log-excess``; a switch in the page leads to the other spacing.
        colours: a colour for each name; None: those of the property cycle.
        command: what made the page, to be shown in it.

    Returns:
        The path of the file. The same comparison gives the same bytes. A file that cannot be
        written raises LandscapeError.

    Raises:
        InvalidArgumentError: if the comparison holds no checkpoint.
    """
    if not comparison.models:
        msg = "nothing to report: the comparison holds no checkpoint"
        raise InvalidArgumentError(msg)
    tints = colours_by_name(comparison.names, colours)
    figures: dict[str, str] = {}
    surfaces, spacing = _surfaces(comparison, scale, tints, figures)
    results = [result for model in comparison.models for _, result in _parts(model)]
    page = render_page(
        "report.html.jinja",
        folder=_FOLDER,
        title=title or _heading(comparison),
        figures=figures,
        summary=_summary(comparison, results),
        command=command,
        verdict=verdict(comparison),
        numbers=comparison.table(),
        sources=list(dict.fromkeys(source(result) for result in results)),
        colours={name: tints[name] for name in comparison.names},
        shown=comparison.names,
        scale=spacing,
        surfaces=surfaces,
        slice_warning=NOT_THE_WORST,
        pictures=_sections(comparison, tints),
        details=[(model.name, _details(model)) for model in comparison.models],
        versions=_versions(results),
    )
    return write_file(path, page.encode())


def _heading(comparison: Comparison) -> str:
    names = [shorten(name, 48) for name in comparison.names]
    if len(names) > 3:
        return f"How sharp are these {len(names)} minima?"
    return f"How sharp {'is' if len(names) == 1 else 'are'} {_and(names)}?"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _summary(comparison: Comparison, results: Sequence[Result]) -> str:
    """Say in one sentence what was measured, on which data, and when."""
    n = len(comparison.models)
    subject = "One checkpoint" if n == 1 else f"{n} checkpoints"
    if not results:
        return f"{subject}, with no measurement."
    at = [result.provenance for result in results]
    sizes = _and([f"{size:,}" for size in dict.fromkeys(p.n_parameters for p in at)])
    data = dict.fromkeys(f"{p.n_examples:,} {p.split} examples" for p in at if p.n_examples)
    losses = dict.fromkeys(p.loss for p in at if p.loss)
    days = sorted({p.created[:10] for p in at if p.created})
    parts = [f"{subject} of a model with {sizes} parameters"]
    parts += [f"loss {_and(list(losses))}"] if losses else []
    parts += [f"measured on {_and(list(data))}"] if data else []
    parts += [f"from {days[0]} to {days[-1]}" if len(days) > 1 else f"on {days[0]}"] if days else []
    return f"{', '.join(parts)}."


def _surfaces(
    comparison: Comparison, scale: str, tints: Mapping[str, str], figures: dict[str, str]
) -> tuple[dict[str, Any], str]:
    """Draw the reliefs to turn, the same to print, and the maps on both spacings."""
    models = [model for model in comparison.models if model.surface is not None]
    if not models:
        return {}, "linear"
    surfaces = [model.surface for model in models if model.surface is not None]
    first = plots.common_scale(surfaces, scale)
    reliefs = []
    for k, (model, surface) in enumerate(zip(models, surfaces, strict=True)):
        runs = model.trajectories
        figure = explore_surface(surface, trajectories=runs, name="", scale=first, colours=tints)
        menus = [{**menu.to_plotly_json(), "visible": False} for menu in figure.layout.updatemenus]
        figure.update_layout(margin={"l": 0, "r": 0, "t": 0, "b": 0}, updatemenus=menus)
        figures[f"relief-{k}"] = figure_json(figure)
        reliefs.append((f"relief-{k}", model.name))
    of = f"Loss surfaces of {_and([shorten(model.name) for model in models])}"
    draw = functools.partial(
        plots.plot_comparison, Comparison(models=tuple(models)), colours=tints, lines=False
    )
    maps = []
    for one in (first, switched_scale(surfaces, first)):
        spacing = "linear" if one.spacing == "linear" else "log"
        flat = functools.partial(draw, kind="contourf", scale=one)
        picture = vector_picture(flat, key=f"map-{spacing}", alt=f"{of} from above, {one.note}.")
        maps.append((spacing, picture))
    relief = functools.partial(draw, kind="3d", scale=first)
    still = vector_picture(relief, key="still", alt=f"{of} as reliefs.")
    return {"reliefs": reliefs, "maps": maps, "still": still}, maps[0][0]


def _sections(comparison: Comparison, tints: Mapping[str, str]) -> list[_Section]:
    """Return the parts of the page below the surfaces: one for each kind of record."""
    roles = {
        role: [(m.name, m.roles()[role]) for m in comparison.models if role in m.roles()]
        for role in ("worst_line", "random_line", "eigenpairs", "sharpness")
    }
    sections = []
    for role, kind in (("worst_line", "worst-case"), ("random_line", "random")):
        if roles[role]:
            image = _picture("line", roles[role], tints, key=role, scale="excess")
            heading = f"Rise of the loss, each along its own {kind} direction"
            sections.append(_Section(role, heading, [image]))
    spectra = [(name, record) for name, record in roles["eigenpairs"] if len(record.values) > 1]  # type: ignore[attr-defined]
    if spectra:
        image = _picture("eigs", spectra, tints, key="spectra")
        sections.append(_Section("spectra", "Largest eigenvalues of the Hessian", [image]))
    for role, kind in (("eigenpairs", "eigs"), ("sharpness", "sharpness")):
        numbered = [(name, record) for name, record in roles[role] if re.search(r"\d", name)]
        if _is_over_training(numbered):
            image = _picture("sweep", numbered, {}, key=f"sweep-{kind}")
            heading = f"{KINDS[kind].heading} over training"
            sections.append(_Section(f"sweep-{kind}", heading, [image]))
    for kind, cls in KINDS.items():
        records = [(m.name, one) for m in comparison.models for one in m.others if one.kind == kind]
        if records and cls.heading:
            images = _images(kind, records, tints) if kind in plots.PICTURES else []
            table = [] if images else _table(records)
            sections.append(_Section(f"kind-{kind}", cls.heading, images, table))
    return sections


def _is_over_training(records: Sequence[tuple[str, Any]]) -> bool:
    names = [name for name, _ in records]
    runs, counted = training_runs([r for _, r in records], names=names) if records else ([], "")
    return bool(counted) and max(len(run.names) for run in runs) > 2


def _images(
    kind: str, records: Sequence[tuple[str, Result]], tints: Mapping[str, str]
) -> list[Markup]:
    """Draw what was measured of a kind, together where it can be and else one by one."""
    try:
        return [_picture(kind, records, tints, key=kind)]
    except InvalidArgumentError:  # such as profiles of different norms
        return [_picture(kind, [one], tints, key=f"{kind}-{k}") for k, one in enumerate(records)]


def _picture(
    kind: str,
    records: Sequence[tuple[str, Result]],
    tints: Mapping[str, str],
    *,
    key: str,
    **options: Any,
) -> Markup:
    names = [name for name, _ in records]
    if kind != "path":  # whose curves have colours of their own
        options["colours"] = tints
    if kind not in {"trajectory", "path"}:  # which are named by their runs and ends
        options["names"] = names
    draw: Callable[..., Any] = getattr(plots, f"plot_{kind}")
    drawn = functools.partial(draw, [record for _, record in records], **options)
    heading = KINDS[records[0][1].kind].heading
    alt = f"{heading} of {_and([shorten(name) for name in names])}."
    return vector_picture(drawn, key=key, alt=alt)


def _table(records: Sequence[tuple[str, Result]]) -> list[tuple[str, ...]]:
    """Return the rows of records side by side, a column for each."""
    columns = [_joined(record.rows()) for _, record in records]
    labels = dict.fromkeys(label for column in columns for label in column)
    body = [(label, *(column.get(label, ABSENT) for column in columns)) for label in labels]
    return [("", *(name for name, _ in records)), *body]


def _joined(rows: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return texts by label; a row without one goes on with the row before."""
    found: dict[str, str] = {}
    last = ""
    for label, text in rows:
        last = label or last
        found[last] = f"{found[last]} {text.strip()}" if last in found else text
    return found


def _details(model: Measured) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return everything that is known of a checkpoint, part by part."""
    found = []
    for role, result in _parts(model):
        at = result.provenance
        rows = [
            *result.rows(),
            ("settings", _brief(result.settings) or "none"),
            ("cost", str(result.cost)),
            ("data", f"{source(result)}; fingerprint {at.data_fingerprint}"),
            ("measured", at.created),
        ]
        found.append((_HEADINGS.get(role, result.heading), rows))
    if found:
        at = _parts(model)[0][1].provenance
        rows = [
            ("file or name", at.checkpoint),
            ("hash of the weights", at.checkpoint_hash),
            ("parameters", f"{at.n_parameters:,}"),
            ("loss", at.loss or "not known"),
            ("fingerprint of the problem", at.problem_fingerprint),
            ("computed on", f"{at.device}, {at.dtype}, layers in {at.mode} mode"),
        ]
        found.append(("Provenance", rows))
    return found


def _versions(results: Sequence[Result]) -> list[tuple[str, str]]:
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in result.provenance.versions.items())
        for result in results
    )
    written = ("report written by", f"landscape-sharpness {__version__}")
    return [*(("versions", text) for text in versions), written]


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        items = [(key, item, _brief(item)) for key, item in value.items()]
        return ", ".join(
            f"{key} = {{{text}}}" if isinstance(item, Mapping) else f"{key} = {text}"
            for key, item, text in items
        )
    if isinstance(value, (list, tuple)):
        if len(value) > 6 and all(isinstance(item, (int, float)) for item in value):
            return f"[{len(value)} values from {min(value):g} to {max(value):g}]"
        return f"[{', '.join(_brief(item) for item in value)}]"
    return number(value) if isinstance(value, float) else str(value)


def _parts(model: Measured) -> list[tuple[str, Result]]:
    """Return what was measured on a checkpoint with the part that it plays, empty for others."""
    return [*model.roles().items(), *(("", result) for result in model.others)]
