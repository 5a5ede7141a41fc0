"""Progress of long work: a bar with an estimate of the time left, on stderr or in a notebook."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def progress_bar(items: Iterable[T], *, what: str, total: int, show: bool | None) -> Iterable[T]:
    """Pass the items on and show how far the work has come.

    Args:
        items: what is worked through.
        what: a few words that name the work.
        total: number of items.
        show: whether to draw the bar; None: only where stderr is a terminal.

    Returns:
        The same items, in order.
    """
    visible = sys.stderr.isatty() if show is None else show
    bar: Iterable[T] = tqdm(
        items, desc=what, total=total, disable=not visible, leave=False, file=sys.stderr
    )
    return bar
