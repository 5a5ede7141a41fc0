"""What a measure is given: numbers that are numbers, and pairs that may be paired."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from landscape.errors import DataError, InvalidArgumentError
from landscape.optim.checks import is_real
from landscape.problem import Problem


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


def check_pair(
    problem: Problem, other: Problem, *, alike: Sequence[str] = ("mode", "dtype")
) -> None:
    """Refuse to pair problems that differ by more than their models.

    Args:
        problem: the one.
        other: the other; a model of other code may be meant.
        alike: what else than the loss and the data has to be the same.

    Raises:
        InvalidArgumentError: if that or the losses are not the same.
        DataError: if the data are not the same.
    """
    for what in alike:
        ours, theirs = (str(getattr(each, what)) for each in (problem, other))
        if ours != theirs:
            msg = (
                f"{problem.name} is measured with {what} {ours}, {other.name} with {theirs}: a "
                f"paired difference takes the same; give both the same {what}"
            )
            raise InvalidArgumentError(msg)
    if problem.loss.name != other.loss.name:
        msg = (
            f"{problem.name} and {other.name} have different losses ({problem.loss.name}, "
            f"{other.loss.name}): give both the same"
        )
        raise InvalidArgumentError(msg)
    if problem.batches.fingerprint != other.batches.fingerprint:
        msg = (
            f"{problem.name} and {other.name} are on different data: a paired difference takes "
            "the same examples"
        )
        raise DataError(msg)
