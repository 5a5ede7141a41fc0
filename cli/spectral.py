"""Options that the verbs on a curvature operator share: eigs, trace and density."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {
    "": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tb": 1e12,
    "tib": 2**40,
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


def spectral(function: F) -> F:
    """Add the options that say which operator, and how its products are made."""
    decorators = [
        click.option(
            "--operator",
            type=click.Choice(["hessian", "ggn", "fisher"]),
            default="hessian",
            show_default=True,
            help="Hessian, generalised Gauss-Newton, or empirical Fisher matrix.",
        ),
        click.option(
            "--scale",
            type=click.Choice(["none", "elementwise", "filterwise"]),
            default="none",
            show_default=True,
            help="Of THT with T = |w| or filter norms: rescaling layers does not change it.",
        ),
        click.option(
            "--products",
            type=click.Choice(
                ["auto", "fastest", "double-backward", "forward-over-reverse", "differences"]
            ),
            default="auto",
            show_default=True,
            help="How Hessian-vector products are made; fastest: chosen by timing where no graph "
            "fits in memory. The result says what was used.",
        ),
        click.option(
            "--memory",
            type=Bytes(),
            default=None,
            metavar="SIZE",
            help="To use beyond model and data, e.g. 500MB.  [default: 6GiB, or what it takes]",
        ),
    ]
    for decorator in reversed(decorators):
        function = decorator(function)
    return function
