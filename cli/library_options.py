"""Options written once: read from the signature and the docstring of a library function.

The source is parsed and not imported, so that ``--help`` needs no torch.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

import landscape
from landscape import choices
from landscape.errors import did_you_mean

from .sections import PRECISION, option

F = TypeVar("F", bound=Callable[..., Any])
Definition = ast.FunctionDef | ast.ClassDef

_TYPES = {"int": int, "float": float, "str": str, "bool": bool}

_UNITS = {
    "": 1.0,
    **{"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40},
}


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes, such as 500MB or 4GiB."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read the number and its unit.

        >>> Bytes().convert("1.5GB", None, None)
        1500000000.0
        """
        if isinstance(value, (int, float)):
            return float(value)
        text = value.strip().lower()
        digits = text.rstrip("bgikmt ")
        unit = text[len(digits) :].strip()
        try:
            size = float(digits) * _UNITS[unit]
        except (KeyError, ValueError):
            self.fail(f"{value!r} is no size; expected bytes, as in 500MB or 4GiB", param, ctx)
        if not 0 < size < math.inf:
            self.fail(f"{value!r} is no size; expected a finite number above zero", param, ctx)
        return size


if TYPE_CHECKING:
    Choice = click.Choice[str]
else:
    Choice = click.Choice  # not generic before click 8.2


class NameChoice(Choice):
    """The names that an argument takes; of another one, the nearest are offered."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, if it is one."""
        if value not in self.choices:
            near = did_you_mean(str(value), self.choices)
            what = param.name if param is not None else "name"
            self.fail(
                f"unknown {what} {value!r}{near}; known: {', '.join(self.choices)}", param, ctx
            )
        return str(value)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a library function: default, type and description."""

    default: Any
    type: Any
    text: str

    @property
    def help(self) -> str:
        """The first sentence of the description, and what a default of None means."""
        text = re.sub(r",? see `[^`]*`(?: for [^,.;]*)?", "", self.text)
        sentence = re.split(r"\.(?:\s|$)|;? None: ", text)[0].strip(" ;")
        if re.match(r"[a-z]{2}", sentence):  # not a symbol, nor a name in backquotes
            sentence = f"{sentence[0].upper()}{sentence[1:]}"
        meaning = re.search(r"None: (.*?)(?:;|\.\s|\.?$)", text)
        default = f"  [default: {meaning[1]}]" if meaning and self.default is None else ""
        return f"{sentence}.{default}".replace("`", "")


def library_options(
    function: str, *names: str, section: str = PRECISION, **flags: str
) -> Callable[[F], F]:
    """Add an option for each named parameter of a library function.

    Args:
        function: folder and name of a function or settings class, such as ``curvature.trace``.
        *names: parameters whose option has their own name.
        section: heading of the options in the help.
        **flags: parameters whose option has another name, and that name (``rtol="--tol"``); the
            argument of the command may follow it (``split="--ggn-split ggn_split"``).
    """

    def decorate(command: F) -> F:
        parameters = parameters_of(function)
        declared = {name: f"--{name.replace('_', '-')}" for name in names} | flags
        for name, flag in reversed(declared.items()):
            command = _option(name, flag, parameters[name], section)(command)
        return command

    return decorate


def _option(name: str, flag: str, parameter: Parameter, section: str) -> Callable[[F], F]:
    if parameter.type is bool and parameter.default:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    declared = flag.split()
    return option(
        *declared,
        *([name] if declared[-1].startswith("-") else []),
        section=section,
        type=Bytes() if name == "memory" else parameter.type,
        is_flag=parameter.type is bool,
        default=parameter.default,
        help=parameter.help,
    )


@functools.cache
def parameters_of(function: str) -> dict[str, Parameter]:
    """Read the parameters of a function, or the fields of a settings class, by name."""
    definition = _definition(*function.split("."))
    texts = _descriptions(ast.get_docstring(definition) or "")
    return {
        name: Parameter(default=default, type=_type(annotation), text=texts[name])
        for name, annotation, default in _declared(definition)
        if name in texts
    }


def _definition(folder: str, name: str) -> Definition:
    for file in sorted(Path(landscape.__file__).with_name(folder).glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if re.search(rf"^(?:def|class) {name}\b", text, re.MULTILINE):
            for node in ast.parse(text).body:
                if isinstance(node, Definition) and node.name == name:
                    return node
    raise KeyError(name)


def _declared(definition: Definition) -> Iterator[tuple[str, ast.expr, Any]]:
    """Yield name, annotation and default of what has a default."""
    if isinstance(definition, ast.ClassDef):
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and node.value is not None:
                yield ast.unparse(node.target), node.annotation, ast.literal_eval(node.value)
        return
    given = definition.args
    positional = given.args[len(given.args) - len(given.defaults) :]
    for argument, default in (
        *zip(positional, given.defaults, strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ):
        if default is not None and argument.annotation is not None:
            try:
                yield argument.arg, argument.annotation, ast.literal_eval(default)
            except ValueError:  # a constant, which an option spells out
                continue


def _type(annotation: ast.expr) -> Any:
    name = ast.unparse(annotation).removesuffix(" | None")
    if hasattr(choices, name):
        return NameChoice(get_args(getattr(choices, name)))
    return _TYPES.get(name)


def _descriptions(docstring: str) -> dict[str, str]:
    """Split the section of arguments into one text for each."""
    section = re.search(
        r"^(?:Args|Attributes):\n((?:    .*\n|\n)+)", f"{docstring}\n", re.MULTILINE
    )
    found = re.findall(
        r"^    \*{0,2}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE
    )
    return {name: re.sub(r"\s*\n\s*", " ", text) for name, text in found}
