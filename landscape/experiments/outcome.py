"""What an experiment comes to: a figure, and the numbers that it shows as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Outcome:
    """What an experiment comes to.

    Attributes:
        figure: the matplotlib figure.
        tables: the numbers in it as rows of text, the first row of each being its header.
        notes: what a person should know of them, a sentence each.
    """

    figure: Any
    tables: tuple[Rows, ...] = ()
    notes: tuple[str, ...] = ()
