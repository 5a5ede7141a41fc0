"""Options: in which section of the help they stand, and whether they were given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from landscape.errors import InvalidArgumentError

F = TypeVar("F", bound=Callable[..., Any])

WHAT = "What is measured"
PRECISION = "How precisely"
PROBLEM = "Model, data and device"
OUTPUT = "Where it goes"
_ORDER = ("Options", WHAT, PRECISION, PROBLEM, OUTPUT)


class Option(click.Option):
    """An option that stands in a section of the help."""

    def __init__(self, *args: Any, section: str = WHAT, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def option(*flags: str, section: str = WHAT, **kwargs: Any) -> Callable[[F], F]:
    """Add an option to a section of the help."""
    return click.option(*flags, cls=Option, section=section, **kwargs)


class Command(click.Command):
    """A command whose help groups its options by section, those of the command itself first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options section by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                default = OUTPUT if "--help" in parameter.opts else WHAT
                sections.setdefault(getattr(parameter, "section", default), []).append(record)
        for name in sorted(sections, key=_ORDER.index):
            with formatter.section(name):
                formatter.write_dl(sections[name])


def given(name: str) -> bool:
    """Return whether an option of the running command was given, at whatever value."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, click.core.ParameterSource.DEFAULT)


def refuse_given(names: Iterable[str], why: str) -> None:
    """Refuse options that were given though nothing reads them."""
    for name in filter(given, names):
        msg = f"--{name.replace('_', '-')} {why}"
        raise InvalidArgumentError(msg)
