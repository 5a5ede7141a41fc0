"""Checks of arguments: what is refused is named, with what was expected in its place."""

from __future__ import annotations

import math
import numbers
from typing import Any

from landscape.errors import InvalidArgumentError


def is_real(value: Any) -> bool:
    """Say whether a value is a real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def whole(name: str, value: Any, *, least: int | None = None, advice: str = "") -> int:
    """Return a whole number of any integer type as an int.

    >>> import numpy as np
    >>> whole("m", np.int64(5), least=1)
    5
    """
    is_whole = is_real(value) and isinstance(value, numbers.Integral)
    if not is_whole or (least is not None and int(value) < least):
        bound = "" if least is None else f" of at least {least}"
        msg = f"{name} must be a whole number{bound}, got {value!r}{_end(advice)}"
        raise InvalidArgumentError(msg)
    return int(value)


def real(
    name: str, value: Any, *, least: float, below: float = math.inf, advice: str = ""
) -> float:
    """Return a finite number of at least ``least`` and below ``below`` as a float."""
    if not is_real(value) or not least <= float(value) < below:
        upper = f" and below {below:g}" if math.isfinite(below) else ""
        msg = (
            f"{name} must be a finite number of at least {least:g}{upper}, "
            f"got {value!r}{_end(advice)}"
        )
        raise InvalidArgumentError(msg)
    return float(value)


def positive(name: str, value: Any) -> float:
    """Return a finite number above zero as a float."""
    if not (is_real(value) and math.isfinite(value) and value > 0):
        msg = f"{name} must be a finite number above zero, got {value!r}"
        raise InvalidArgumentError(msg)
    return float(value)


def check_real(*, or_none: bool = False, **given: Any) -> None:
    """Refuse arguments, given by their names, that are no numbers."""
    for name, value in given.items():
        if not is_real(value) and not (or_none and value is None):
            msg = f"{name} must be a number, got {value!r}"
            raise InvalidArgumentError(msg)


def _end(advice: str) -> str:
    return f"; {advice}" if advice else ""
