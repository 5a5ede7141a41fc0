"""How pictures look: defaults beneath the user's own style, colours by name, keys and captions.

Names of checkpoints come from outside: `plain` makes any text safe to draw.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from landscape.errors import InvalidArgumentError

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""The Okabe-Ito set, which any colour vision tells apart; grey in place of black."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("solid", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2)))
COLOUR_MAP = "viridis"
FAINT = "0.5"
BAD = "#D00000"
SMALL = 7.0
_DRAWN: WeakKeyDictionary[Axes, dict[str, str]] = WeakKeyDictionary()  # colours by name

STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.use_mathtext": True,
    "axes.labelsize": 8.0,
    "axes.linewidth": 0.7,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.titlelocation": "left",
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "contour.negative_linestyle": "solid",
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.dpi": 110.0,
    "font.size": 8.0,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.markersize": 4.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}
"""What is used wherever the user's own rcParams have matplotlib's default."""


class Picture(Figure):
    """A matplotlib figure that belongs to no window, and that a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        """Return the picture as PNG, which is what a notebook asks for."""
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=self.dpi)
        return stream.getvalue()


class Panel(Axes):
    """Axes of a `Picture`, which a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        return cast("Picture", self.figure)._repr_png_()


class ReliefPanel(Panel, Axes3D):  # type: ignore[misc]
    """The same in three dimensions."""


@contextmanager
def styled() -> Iterator[None]:
    """Apply `STYLE` under the user's own inside a block or a function."""
    current: Any = mpl.rcParams
    default: Any = mpl.rcParamsDefault
    look: Any = {key: STYLE[key] for key in STYLE if current[key] == default[key]}
    with mpl.rc_context({**look, "text.usetex": False}):  # names are no LaTeX
        yield


def new_axes(ax: Axes | None, *, size: tuple[float, float] = (6.2, 3.5)) -> Axes:
    """Return the user's axes, or those of a new picture."""
    if ax is not None:
        return ax
    return Picture(figsize=size, layout="constrained").add_subplot(axes_class=Panel)


@styled()
def colour(index: int) -> str:
    """Return a colour of the property cycle."""
    cycle = mpl.rcParams["axes.prop_cycle"].by_key().get("color", PALETTE)
    return str(to_hex(cycle[index % len(cycle)]))


def marker(index: int) -> str:
    """Return the marker of the checkpoint that stands at a place in the order."""
    return MARKERS[index % len(MARKERS)]


def markers_by_name(colours: Mapping[str, str]) -> dict[str, str]:
    """Return the marker of each name that has a colour, in the same order."""
    return {name: marker(index) for index, name in enumerate(colours)}


def colours_by_name(
    names: Iterable[str], known: Mapping[str, str] | None = None, ax: Axes | None = None
) -> dict[str, str]:
    """Return a colour for each name: those known, or drawn in the axes before, else new ones."""
    found, taken = dict(known or {}), set()
    if ax is not None:
        found = _DRAWN.get(ax, {}) | found
        taken = {to_hex(line.get_color()) for line in ax.lines} - set(found.values())
    for name in names:
        every = [colour(len(found) + further) for further in range(len(PALETTE))]
        free = [tint for tint in every if tint not in taken]
        found.setdefault(name, (free or every)[0])
    if ax is not None:
        _DRAWN[ax] = found
    return found


def records_and_names(records: object, names: Sequence[str] | None) -> tuple[list[Any], list[str]]:
    """Return a list of records with a name for each: those given, or the checkpoints'."""
    several: list[Any] = list(records) if isinstance(records, (list, tuple)) else [records]
    if not several:
        msg = "nothing to draw: no record was given"
        raise InvalidArgumentError(msg)
    called = [record.name for record in several] if names is None else list(names)
    if len(called) != len(several):
        msg = f"names must hold one name per record; got {len(called)} for {len(several)} records"
        raise InvalidArgumentError(msg)
    return several, called


def finish(
    axes: Axes,
    ax: Axes | None,
    parts: Iterable[str],
    *,
    title: str | None = None,
    caption: bool | None = None,
    names: Sequence[str] = (),
) -> Axes:
    """Add title, key and caption; in the user's own axes, ``ax``, a caption only if asked for.

    A new picture of one name is titled with it, unless the title is given or empty.
    """
    if title is None and len(names) == 1 and ax is None:
        title = names[0]
    if title:
        axes.set_title(plain(shorten(title, 60)))
    labels = axes.get_legend_handles_labels()[1]
    if labels and ax is not None:
        _legend(axes)
    elif len(labels) > 1:
        draw_key(axes)
    if caption or (caption is None and ax is None):
        write_caption(axes.figure, parts)
    return axes


def _legend(axes: Axes) -> None:
    """Name what is drawn inside of a panel, once each, also after several calls."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(list(once.values()), list(once))


def draw_key(axes: Axes) -> None:
    """Name what is drawn above the panels, in as many columns as fit; the picture grows."""
    figure: Any = axes.figure
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: not isinstance(handles[i], ErrorbarContainer))
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    for n in range(min(len(labels), 6), 0, -1):
        key = figure.legend(handles, labels, loc="outside upper left", ncols=n, alignment="left")
        if n == 1 or key.get_window_extent().width < 0.97 * figure.bbox.width:
            break
        key.remove()
    _grow(figure, key)


def write_title(figure: Any, title: str) -> None:
    """Write a title above several panels, and above their key where there is one."""
    if figure.legends:
        figure.legends[0].set_title(plain(shorten(title, 90)), prop={"weight": "bold", "size": 10})
        _grow(figure, figure.legends[0].get_title(), pad=0.0)
    else:
        figure.suptitle(plain(shorten(title, 90)), x=0.01, ha="left", weight="bold")


def write_caption(figure: Any, parts: Iterable[str]) -> None:
    """Write phrases as sentences under the panels; the picture grows by them."""
    text = sentences(parts)
    if text:
        label = figure.supxlabel(plain(text), x=0.01, ha="left", size=SMALL, wrap=True)
        _grow(figure, label)


def sentences(parts: Iterable[str]) -> str:
    """Join phrases into sentences; only those of the toolkit's own words begin with a capital.

    >>> sentences(["loss on a log scale", "", "3 points"])
    'Loss on a log scale. 3 points.'
    """
    return " ".join(f"{capital(part).rstrip('.')}." for part in parts if part)


class NamePhrase(str):
    """A phrase that begins with a checkpoint's name, whose first letter stays as it is."""

    __slots__ = ()


def capital(text: str) -> str:
    """Begin a sentence with a phrase."""
    return text if isinstance(text, NamePhrase) else text[:1].upper() + text[1:]


def clean(text: str) -> str:
    r"""Return text that any file format can hold: no control characters, no lone surrogates.

    >>> clean("a\nb\x00c\udcff")
    'a b�c�'
    """
    flat = " ".join(text.split())
    return "".join(
        "\ufffd" if unicodedata.category(sign) in {"Cc", "Cs", "Cf"} else sign for sign in flat
    )


def shorten(text: str, n: int = 36) -> str:
    """Shorten a name in its middle, since names differ at both ends.

    >>> shorten("runs/2026/checkpoint.pt", 12)
    'runs/2…nt.pt'
    """
    text = clean(text)
    return text if len(text) <= n else f"{text[: n // 2]}…{text[len(text) - (n - 1) // 2 :]}"


def plain(text: str) -> str:
    r"""Return text that matplotlib draws as it stands, never as a formula.

    >>> plain("run $1$")
    'run \\$1\\$'
    """
    return clean(text).replace("$", r"\$")


def _grow(figure: Any, artist: Any, pad: float = 0.05) -> None:
    """Make a picture higher by what was added; a part of a larger figure keeps its place."""
    if isinstance(figure, Figure):
        width, height = figure.get_size_inches()
        added = artist.get_window_extent().height / figure.dpi
        figure.set_size_inches(width, height + added + pad)
