"""The one exception family, and the wording that its messages share.

Each message says what was got, what was expected and what to do next. The command line turns an
error of this family into one readable paragraph and its ``exit_code``; anything else is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LandscapeError(Exception):
    """Something that the user can put right; the root of every error raised on purpose."""

    exit_code = 1


class InvalidArgumentError(LandscapeError, ValueError):
    """An argument is outside its range, of the wrong shape, or names something unknown."""

    exit_code = 2


class CheckpointError(LandscapeError):
    """A checkpoint file cannot be read, or does not fit the model."""


class ProblemError(LandscapeError):
    """The model, loss or data that the user handed over cannot be used."""


class DataError(ProblemError):
    """The data set is empty, one-shot, or differs from one pass to the next."""


class LossError(ProblemError):
    """The loss returned something that is not a loss, or cannot be differentiated."""


class NonFiniteError(LandscapeError):
    """NaN or infinity where a finite number is needed to go on."""


class StudyError(LandscapeError):
    """The study file cannot be opened, written or understood."""


class MissingDependencyError(LandscapeError, ImportError):
    """An optional package is not installed; the message holds the install command."""


class CheckpointWarning(UserWarning):
    """A checkpoint holds several sets of weights, more than the model has, or less."""


class LossNotAdditiveWarning(UserWarning):
    """The loss of a batch is not the mean of the losses of its parts."""


class NonFiniteWarning(UserWarning):
    """A measurement contains NaN or infinity; the numbers are kept as they are."""


class MisleadingWarning(UserWarning):
    """A number is what was asked for, and easily taken for what it is not."""


class ToleranceWarning(UserWarning):
    """A tolerance was not reached; the error that was reached is in the result."""


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message that says something.

    >>> first_line(ValueError("\n\nno such label: 7\n  in row 3"))
    'no such label: 7'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.endswith("Traceback (most recent call last):") for line in lines):
        return lines[-1]  # what a worker process of a DataLoader hands on
    first = lines[0] if lines else ""
    return f"{first} {lines[1]}" if first.endswith(":") and len(lines) > 1 else first


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return a phrase with the known names closest to a name, to append to a message.

    >>> did_you_mean("conv1.wieght", ["conv1.weight", "fc.bias"])
    ' (nearest: conv1.weight)'
    """
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=0.6)
    return f" (nearest: {', '.join(near)})" if near else ""


def one_of(name: str, known: Iterable[str], *, what: str) -> str:
    """Return ``name`` if it is known."""
    names = list(known)
    if name in names:
        return name
    near = did_you_mean(name, names)
    msg = f"unknown {what} {name!r}{near}; known: {', '.join(names)}"
    raise InvalidArgumentError(msg)


def missing_dependency(package: str, *, extra: str, purpose: str) -> MissingDependencyError:
    """Build the error for an optional package that is not installed."""
    return MissingDependencyError(
        f"{purpose} needs the package {package}, which is not installed; "
        f"install it with: pip install 'landscape-sharpness[{extra}]'"
    )


class NetworkFolderWarning(UserWarning):
    """A study file lies where SQLite cannot keep processes that write to it apart."""
