"""What all interactive pictures share: how they look, and texts that plotly cannot misread.

Names of checkpoints come from outside and plotly reads a small markup language: every text from a
record goes through `inert` first.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go

from landscape.errors import InvalidArgumentError
from landscape.plots.style import clean

LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
LINE_DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


class Page(go.Figure):  # type: ignore[misc]
    """A plotly figure that is shown in notebooks, and in the HTML that is made of them."""

    _ipython_display_ = None  # which would show the first representation only

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(*args, **kwargs)
        page = partial(self.to_html, full_html=False, include_plotlyjs="cdn")
        return bundle if "text/html" in bundle else bundle | {"text/html": page()}


def inert(text: str) -> str:
    """Return text that plotly shows as it stands: no markup, no link, no template.

    >>> inert("<b>%{x}</b>")
    '&lt;b&gt;%&#123;x}&lt;/b&gt;'
    """
    safe = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return safe.replace("%{", "%&#123;")


def colour_scale(cmap: str) -> list[list[Any]]:
    """Return a matplotlib colour map as plotly reads it."""
    try:
        table = mpl.colormaps[cmap](np.linspace(0, 1, 17))
    except KeyError as error:
        msg = f"unknown colour map {cmap!r}: name one of matplotlib's, such as viridis or cividis"
        raise InvalidArgumentError(msg) from error
    shades = [mpl.colors.to_hex(shade) for shade in table]
    return [[k / 16, shade] for k, shade in enumerate(shades)]


def layout(*, height: int) -> dict[str, Any]:
    """Return what every interactive picture looks like."""
    return {
        "template": "simple_white",
        "font": {"family": _FONT, "size": 13, "color": "#1a1a1a"},
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 50, "b": 10},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {"namelength": -1},
        # plotly offers to upload the data to a server of its own
        "modebar": {"remove": ["sendChartToCloud", "sendDataToCloud", "lasso2d", "select2d"]},
    }
