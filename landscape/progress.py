"""Progress of long work: a bar with an estimate of the time left, on stderr or in a notebook."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from tqdm.auto import tqdm

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def progress_bar(items: Iterable[T], *, what: str, total: int, show: bool | None) -> Iterable[T]:
    """Pass the items on and show how far the work has come."""
    visible = sys.stderr.isatty() if show is None else show
    bar: Iterable[T] = tqdm(
        items, desc=what, total=total, disable=not visible, leave=False, file=sys.stderr
    )
    return bar


@contextmanager
def counting(
    what: str, *, show: bool | None, unit: str, total: int | None = None
) -> Iterator[Callable[[F], F]]:
    """Count the calls of a function, for work whose length is not known before."""
    visible = sys.stderr.isatty() if show is None else show
    with tqdm(
        desc=what, unit=unit, total=total, disable=not visible, leave=False, file=sys.stderr
    ) as bar:

        def count(function: F) -> F:
            @functools.wraps(function)
            def counted(*args: Any, **kwargs: Any) -> Any:
                result = function(*args, **kwargs)
                bar.update()
                return result

            return cast(F, counted)

        yield count
