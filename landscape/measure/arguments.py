"""What is no number is refused in words; its range is for the measure to say."""

from __future__ import annotations

import numbers
from typing import Any

from landscape.errors import InvalidArgumentError
from landscape.optim.checks import is_real


def whole(name: str, value: Any) -> int:
    """Return a count as a plain number, if it is one.

    Args:
        name: of the argument, for the message.
        value: of any integer type, NumPy's among them.

    Returns:
        The number.

    Raises:
        InvalidArgumentError: if it is something else; True and False are no counts.

    >>> import numpy as np
    >>> whole("m", np.int64(5))
    5
    """
    if not (is_real(value) and isinstance(value, numbers.Integral)):
        msg = f"{name} must be a whole number, got {value!r}"
        raise InvalidArgumentError(msg)
    return int(value)


def check_real(*, or_none: bool = False, **given: Any) -> None:
    """Refuse arguments that are no numbers.

    Args:
        or_none: whether None will do too.
        **given: the arguments by their names.

    Raises:
        InvalidArgumentError: if one of them is something else; True and False are no numbers.
    """
    for name, value in given.items():
        if not is_real(value) and not (or_none and value is None):
            msg = f"{name} must be a number, got {value!r}"
            raise InvalidArgumentError(msg)
