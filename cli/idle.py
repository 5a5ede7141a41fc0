"""Options that were given and that nothing would read."""

from __future__ import annotations

from collections.abc import Iterable

import click

from landscape.errors import InvalidArgumentError


def given(name: str) -> bool:
    """Return whether an option of the running command was given, at whatever value.

    Args:
        name: of its parameter, such as ``max_points``.
    """
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def refuse_given(names: Iterable[str], why: str) -> None:
    """Refuse options that were given though nothing reads them.

    Args:
        names: of their parameters.
        why: goes on after the option in the message: who reads it, and what to do.

    Raises:
        InvalidArgumentError: if one of them was given.
    """
    for name in filter(given, names):
        msg = f"--{name.replace('_', '-')} {why}"
        raise InvalidArgumentError(msg)
