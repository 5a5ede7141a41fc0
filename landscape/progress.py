"""Progress of long work: a bar with an estimate of the time left, on stderr or in a notebook."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # In a notebook without ipywidgets bars are text, which needs no warning.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def progress_bar(items: Iterable[T], *, what: str, total: int, show: bool | None) -> Iterable[T]:
    """Pass the items on and show how far the work has come."""
    bar: Iterable[T] = tqdm(
        items,
        desc=f"{_LABEL.get()}{what}",
        total=total,
        disable=not _is_visible(show),
        leave=False,
        file=sys.stderr,
    )
    return bar


_LABEL: ContextVar[str] = ContextVar("_LABEL", default="")


_BAR: ContextVar[Any] = ContextVar("_BAR", default=None)


def note_on_bar(text: str) -> None:
    """Write a text, such as how far a search is from its tolerance, behind the innermost bar."""
    bar = _BAR.get()
    if bar is not None and not bar.disable:
        bar.set_postfix_str(text, refresh=False)


@contextmanager
def labelled(text: str) -> Iterator[None]:
    """Put a text such as ``2 of 12: `` in front of the bars that are shown meanwhile."""
    token = _LABEL.set(text)
    try:
        yield
    finally:
        _LABEL.reset(token)


def _is_visible(show: bool | None) -> bool:
    """Return whether to show a bar; where not said, in a terminal and in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules if show is None else show


@contextmanager
def counting(
    what: str, *, show: bool | None, unit: str, total: int | None = None
) -> Iterator[Callable[[F], F]]:
    """Count the calls of a function, for work whose length is not known before."""
    with tqdm(
        desc=f"{_LABEL.get()}{what}",
        unit=unit,
        total=total,
        disable=not _is_visible(show),
        leave=False,
        file=sys.stderr,
    ) as bar:

        def count(function: F) -> F:
            @functools.wraps(function)
            def counted(*args: Any, **kwargs: Any) -> Any:
                result = function(*args, **kwargs)
                bar.update()
                return result

            return cast(F, counted)

        token = _BAR.set(bar)
        try:
            yield count
        finally:
            _BAR.reset(token)
