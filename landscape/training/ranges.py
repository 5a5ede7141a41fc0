"""What a single setting of a training may be, whoever reads it."""

from __future__ import annotations

import math
import numbers
from typing import Any

from landscape.errors import InvalidArgumentError
from landscape.optim.checks import is_real


def whole(name: str, value: Any, *, least: int, advice: str = "") -> int:
    """Return a whole number, if it is one.

    Args:
        name: of the setting, for the message.
        value: what was given.
        least: the smallest that is allowed.
        advice: what to do instead, the end of the message.

    Returns:
        The number.

    Raises:
        InvalidArgumentError: if it is something else, or less.
    """
    if not (is_real(value) and isinstance(value, numbers.Integral)) or int(value) < least:
        msg = f"{name} must be a whole number of at least {least}, got {value!r}{_end(advice)}"
        raise InvalidArgumentError(msg)
    return int(value)


def real(
    name: str, value: Any, *, least: float, below: float = math.inf, advice: str = ""
) -> float:
    """Return a finite number, if it is one.

    Args:
        name: of the setting, for the message.
        value: what was given.
        least: the smallest that is allowed.
        below: the smallest that is too large.
        advice: what to do instead, the end of the message.

    Returns:
        The number.

    Raises:
        InvalidArgumentError: if it is something else, or out of range.
    """
    if not is_real(value) or not least <= float(value) < below:
        upper = f" and below {below:g}" if math.isfinite(below) else ""
        msg = (
            f"{name} must be a finite number of at least {least:g}{upper}, "
            f"got {value!r}{_end(advice)}"
        )
        raise InvalidArgumentError(msg)
    return float(value)


def label_share(share: Any) -> float:
    """Return a share of labels, if it is one.

    Args:
        share: what was given.

    Returns:
        The share.

    Raises:
        InvalidArgumentError: if it is not in [0, 1].
    """
    if not is_real(share) or not 0 <= float(share) <= 1:
        msg = (
            f"label_noise is a share of the labels, a number from 0 to 1, got {share!r}; "
            "0.2 replaces every fifth label, 0 none"
        )
        raise InvalidArgumentError(msg)
    return float(share)


def exponent(p: Any) -> float:
    """Return the order of a norm, if it is one.

    Args:
        p: what was given.

    Returns:
        The order.

    Raises:
        InvalidArgumentError: if it is no number of at least 1; infinity is allowed.
    """
    if not is_real(p) or not float(p) >= 1:
        msg = (
            f"p, the norm of SAM's neighbourhood, must be a number of at least 1, got {p!r}; "
            "2 is the Euclidean norm, inf the largest entry"
        )
        raise InvalidArgumentError(msg)
    return float(p)


def _end(advice: str) -> str:
    return f"; {advice}" if advice else ""
