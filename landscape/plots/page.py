"""The shell of the report: one HTML page that runs its own scripts only and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from landscape._version import __version__
from landscape.plots.style import clean

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #ffffff; --ink: #1b1f24;
  --soft: #57606a; --rule: #d0d7de; --tint: #f3f5f7; --warn: #9a5b00; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ec; --soft: #a2abb5;
  --rule: #363c44; --tint: #1d2127; --warn: #f0b35a; --link: #7cb7ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.6rem; padding-top: 0.4rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.2rem 0 0.3rem; overflow-wrap: anywhere; }
p, li, dd { max-width: 46rem; }
a { color: var(--link); }
.soft, figcaption { color: var(--soft); font-size: 0.92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.95rem; font-variant-numeric: tabular-nums; }
table.numbers { width: 100%; border-block: 2px solid var(--ink); }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.9rem 0.35rem 0; }
table.numbers th, table.numbers td { min-width: 8.5rem; }
thead th { border-bottom: 1px solid var(--ink); overflow-wrap: anywhere; }
tbody th { font-weight: normal; color: var(--soft); }
table.facts td { overflow-wrap: anywhere; }
.chip { flex: none; width: 0.7em; height: 0.7em; border-radius: 50%; outline: 1px solid #d0d7de; }
.name { display: inline-flex; gap: 0.45em; align-items: baseline; overflow-wrap: anywhere; }
.name > span { min-width: 0; }
.key { display: flex; flex-wrap: wrap; gap: 0.2rem 1.4rem; margin: 0.5rem 0; }
.finding { margin: 0.5rem 0; }
.scroll + .finding { margin-top: 1.1rem; }
.caution { border-left: 4px solid var(--warn); padding: 0.1rem 0 0.1rem 0.8rem; margin: 0.6rem 0; }
.card { background: #ffffff; color: #1b1f24; border: 1px solid var(--rule); border-radius: 8px;
  padding: 0.5rem; margin: 0.6rem 0; }
.card h3 { margin: 0.1rem 0.4rem; }
.card img { display: block; width: 100%; min-width: 44rem; height: auto; }
.grid { display: grid; gap: 0.8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.grid .card { min-width: 0; margin: 0; }
.relief { height: 25rem; } .chart { height: 26rem; }
figure { margin: 0; }
details { border: 1px solid var(--rule); border-radius: 8px; padding: 0.5rem 0.9rem;
  margin: 0.6rem 0; background: var(--tint); }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
dt { font-weight: 600; margin-top: 0.8rem; } dd { margin: 0.1rem 0 0 0; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.88rem; }
@media (max-width: 40rem) { .relief { height: 20rem; } .chart { height: 22rem; }
  h1 { font-size: 1.35rem; } .card { padding: 0.2rem; } }
@media print { .card { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const config = {responsive: true, displaylogo: false, showSendToCloud: false,
  plotlyServerURL: ""};
const drawn = [];
for (const [id, figure] of Object.entries(figures)) {
  const place = document.getElementById(id);
  drawn.push(Plotly.newPlot(place, figure.data, figure.layout, config));
}
const places = Object.keys(figures).map((id) => document.getElementById(id));
let turning = false;
function turn(camera) {
  return places.map((place) => {
    const change = {};
    for (const key of Object.keys(place.layout)) {
      const path = key + ".camera";
      if (/^scene[0-9]*$/.test(key)) { change[path] = camera; }
    }
    return Object.keys(change).length ? Plotly.relayout(place, change) : null;
  });
}
Promise.all(drawn).then(() => {
  for (const place of places) {
    place.on("plotly_relayout", (change) => {
      const source = Object.keys(change).find((key) => /^scene[0-9]*[.]camera$/.test(key));
      if (!source || turning) { return; }
      turning = true;
      Promise.all(turn(change[source])).finally(() => { turning = false; });
    });
  }
  document.documentElement.setAttribute("data-drawn", drawn.length);
});
"""


def text(value: object) -> str:
    """Return a value as inert HTML text, for an element or a quoted attribute.

    >>> text("<b title='x'>")
    '&lt;b title=&#x27;x&#x27;&gt;'
    """
    return html.escape(clean(str(value)), quote=True)


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, of: str, shades: Sequence[str] = ()
) -> str:
    """Write a table whose first column labels its rows."""
    labels = [text(label) for label in header]
    labels[1:] = [named(label, shade) for label, shade in zip(header[1:], shades, strict=False)]
    head = "".join(f'<th scope="col">{label}</th>' for label in labels)
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f'<div class="scroll"><table class="{of}">{top}<tbody>{body}</tbody></table></div>'


def named(label: str, shade: str) -> str:
    """Write a name with its colour before it."""
    chip = f'<span class="chip" style="background:{shade}"></span>'
    return f'<span class="name">{chip}<span>{text(label)}</span></span>'


def picture(png: bytes, *, alt: str) -> str:
    """Write a picture into the page itself."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{text(alt)}">'


def page(*, title: str, body: str, figures: Mapping[str, str], plotly: str, generator: str) -> str:
    """Put the page together.

    Scripts run only where their hash stands in the page's own security policy, and the policy
    forbids every connection: a name that slipped through unescaped could still do nothing.
    """
    sources = [_one_newline(plotly), SCRIPT] if figures else []
    hashes = " ".join(f"'sha256-{_digest(source)}'" for source in sources) or "'none'"
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    entries = ",".join(f"{json.dumps(key)}:{value}" for key, value in figures.items())
    data = _inert_json("{" + entries + "}")
    scripts = "".join(f"<script>{source}</script>\n" for source in sources)
    block = f'<script type="application/json" id="figures">{data}</script>\n' if figures else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{text(generator)}">\n'
        f"<title>{text(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<main>\n{body}\n</main>\n{block}{scripts}</body>\n</html>\n"
    )


def figure_page(figure: Any) -> str:
    """Write one plotly figure as a page of its own."""
    height = int(figure.layout.height or 480)
    body = f'<div class="card"><div id="figure" style="height:{height}px"></div></div>'
    return page(
        title="landscape",
        body=body,
        figures={"figure": figure_json(figure)},
        plotly=get_plotlyjs(),
        generator=f"landscape-sharpness {__version__}",
    )


def figure_json(figure: Any) -> str:
    """Return a plotly figure as JSON that takes the size of its place in the page."""
    sized = type(figure)(figure).update_layout(height=None, autosize=True)
    return str(sized.to_json(validate=False))


def _inert_json(source: str) -> str:
    for sign in "<>&\u2028\u2029":
        source = source.replace(sign, f"\\u{ord(sign):04x}")
    return source


def _one_newline(source: str) -> str:
    # A browser turns \r\n into \n before it hashes a script.
    return source.replace("\r\n", "\n").replace("\r", "\n")


def _digest(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")
