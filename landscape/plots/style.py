"""How every picture looks: colours, type, and text that is measured before it is placed.

Colours are the Okabe-Ito set for lines and perceptually uniform maps for surfaces; both can be
told apart with any colour vision. Names of checkpoints come from outside: `plain` makes any text
safe to place, and `fit` and `wrap` make it fit.
"""

from __future__ import annotations

import functools
import io
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("solid", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
COLOUR_MAP = "viridis"
FAINT = "0.45"
TEXT_SIZE = 8.0
_SLACK = 1.06
"""Room for the rounding of a renderer that fits letters to pixels."""
SMALL = 7.0

STYLE: Mapping[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT_SIZE,
    "mathtext.fontset": "dejavusans",
    "text.usetex": False,
    "text.hinting": "none",
    "text.color": "black",
    "axes.facecolor": "white",
    "axes.edgecolor": "0.25",
    "axes.labelcolor": "black",
    "axes.linewidth": 0.7,
    "axes.titlesize": 9.0,
    "axes.labelsize": TEXT_SIZE,
    "axes.spines.top": True,
    "axes.spines.right": True,
    "axes.grid": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": True,
    "figure.facecolor": "white",
    "figure.dpi": 110.0,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.color": "0.25",
    "ytick.color": "0.25",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "legend.fontsize": TEXT_SIZE,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.6,
    "contour.negative_linestyle": "solid",
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "image.cmap": COLOUR_MAP,
    "savefig.facecolor": "white",
    "savefig.bbox": None,
}


class Picture(Figure):
    """A matplotlib figure that belongs to no window, and that a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        """Return the picture as PNG, which is what a notebook asks for."""
        with styled():
            stream = io.BytesIO()
            self.savefig(stream, format="png", dpi=self.dpi)
            return stream.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Apply this style inside a block or a function; the user's own comes back."""
    look: Any = dict(STYLE)
    with mpl.rc_context(look):
        yield


def colour(index: int) -> str:
    """Return the colour of the checkpoint that stands at a place in the order."""
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    """Return the marker of the checkpoint that stands at a place in the order."""
    return MARKERS[index % len(MARKERS)]


def clean(text: str) -> str:
    r"""Return text that any file format can hold: no control characters, no lone surrogates.

    >>> clean("a\nb\x00c\udcff")
    'a b�c�'
    """
    flat = " ".join(text.split())
    return "".join(
        "\ufffd" if unicodedata.category(sign) in {"Cc", "Cs", "Cf"} else sign for sign in flat
    )


def plain(text: str) -> str:
    r"""Return text that matplotlib draws as it stands, never as a formula.

    >>> plain("run $1$")
    'run \\$1\\$'
    """
    return clean(text).replace("$", r"\$")


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Return how wide a line of text is when drawn."""
    font = FontProperties(family=["DejaVu Sans"], size=size, weight="bold" if bold else "normal")
    width, _, _ = TextToPath().get_text_width_height_descent(text, font, False)
    return _SLACK * float(width) / 72.0


def fit(text: str, width: float, *, size: float = TEXT_SIZE, bold: bool = False) -> str:
    """Shorten text in its middle until it fits, since names differ at both ends."""
    text = clean(text)
    if text_width(text, size, bold) <= width:
        return plain(text)
    low, high = 0, len(text)  # numbers of letters to keep; the largest that fits is sought
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(_elide(text, middle), size, bold) <= width:
            low = middle
        else:
            high = middle - 1
    return plain(_elide(text, low))


def shorten(text: str, n: int = 36) -> str:
    """Shorten a name in its middle, for running text.

    >>> shorten("runs/2026/checkpoint.pt", 12)
    'runs/2…nt.pt'
    """
    text = clean(text)
    return text if len(text) <= n else _elide(text, n - 1)


def _elide(text: str, n_kept: int) -> str:
    head = (n_kept + 1) // 2
    tail = n_kept - head
    return f"{text[:head]}…{text[len(text) - tail :]}"


def wrap(text: str, width: float, *, size: float = TEXT_SIZE) -> list[str]:
    """Break text into lines that fit."""
    lines: list[str] = []
    for word in clean(text).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(joined, size) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return [fit(line, width, size=size) for line in lines]
