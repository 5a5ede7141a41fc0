"""Options that were given and that nothing would read."""

from __future__ import annotations

from collections.abc import Iterable

import click

from landscape.errors import InvalidArgumentError


def given(name: str) -> bool:
    """Return whether an option of the running command was given, at whatever value."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def refuse_given(names: Iterable[str], why: str) -> None:
    """Refuse options that were given though nothing reads them."""
    for name in filter(given, names):
        msg = f"--{name.replace('_', '-')} {why}"
        raise InvalidArgumentError(msg)
