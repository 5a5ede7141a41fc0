"""Pages of HTML that run their own scripts only and fetch nothing, light or dark."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from landscape._version import __version__
from landscape.plots.saving import picture_bytes
from landscape.plots.style import clean

_HERE = Path(__file__).parent / "templates"
_INK = "#1b1f23"
_THEMED: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "legend.edgecolor"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}
"""Black and white of a picture in a page, which its style sheet chooses."""


def render_page(
    template: str,
    *,
    title: str,
    figures: Mapping[str, str],
    folder: Path | None = None,
    **texts: Any,
) -> str:
    """Fill in a template; every text is escaped.

    Scripts run only where their hash stands in the page's own security policy, and the policy
    forbids every connection: a name that slipped through unescaped could still do nothing.
    """
    environment = Environment(
        loader=FileSystemLoader([folder or _HERE, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [(_HERE / "page.js").read_text(encoding="utf-8")]
    if figures:
        from plotly.offline import get_plotlyjs

        scripts.insert(0, re.sub("\r\n?", "\n", get_plotlyjs()))  # as a browser hashes it
    hashes = " ".join(f"'sha256-{_digest(source)}'" for source in scripts)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    entries = ",".join(f"{json.dumps(key)}:{value}" for key, value in figures.items())
    return environment.get_template(template).render(
        title=title,
        policy=policy,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        figures=_inert_json("{" + entries + "}"),
        scripts=[Markup(source) for source in scripts],
        version=__version__,
        **texts,
    )


def figure_json(figure: Any) -> str:
    """Return a plotly figure as JSON that takes the size of its place in the page."""
    sized = type(figure)(figure).update_layout(height=None, autosize=True)
    return str(sized.to_json(validate=False))


def vector_picture(draw: Callable[[], Any], *, key: str, alt: str) -> Markup:
    """Draw with matplotlib and return SVG with its caption, whose ink follows the page's theme.

    ``key`` is a prefix of the ids in the picture, which are then unique within a page.
    """
    with mpl.rc_context(_THEMED):
        figure = draw()
        figure = getattr(figure, "figure", figure)
        caption = _take_caption(figure)
        source = picture_bytes(figure, "svg", dpi=150).decode()
    source = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", source, flags=re.DOTALL)
    source = source[source.index("<svg") :].replace(_INK, "currentColor")
    source = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{key}-", source)
    width = float(re.search(r'width="([\d.]+)pt"', source)[1])  # type: ignore[index]
    label = Markup('<svg role="img" aria-label="{}" style="max-width:{:.0f}pt"')
    picture = Markup(source.replace("<svg", label.format(clean(alt), 1.4 * width), 1))
    return picture + Markup("<figcaption>{}</figcaption>").format(caption)


def _take_caption(figure: Any) -> str:
    """Return the caption of a picture, which in a page wraps as its text does, and remove it."""
    caption = str(figure.get_supxlabel())
    labels = [label for label in figure.texts if label.get_text() == caption]
    if not caption or not labels:
        return ""
    height = labels[0].get_window_extent().height / figure.dpi
    figure.supxlabel("")
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() - height - 0.05)
    return caption.replace(r"\$", "$")


def _printable(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _inert_json(source: str) -> Markup:
    for sign in "<>&\u2028\u2029":
        source = source.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(source)


def _digest(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")
