"""What was found out about a checkpoint and a problem before its sharpness is trusted."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscape.results.base import Columns, FloatArray, Result, Summary, no_values
from landscape.wording import number

VERDICTS = ("fine", "note", "warning", "not applicable")
"""What a check can say, in the order of `Diagnosis.count`."""

_WIDTH = 78


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question, and what was measured to answer it.

    Attributes:
        name: what was looked at, in a word or two.
        verdict: one of `VERDICTS`.
        finding: what was measured, in a sentence with the numbers that matter.
        advice: what to do; empty where nothing is to be done.
        numbers: everything that was measured, by name.
    """

    name: str
    verdict: str
    finding: str
    advice: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class Diagnosis(Result):
    """Whether a checkpoint and a problem are set up so that sharpness can be trusted.

    Attributes:
        checks: in the order in which they were made.
        rescaled: pairs of layers, and filters before BatchNorm, that were rescaled without
            changing what the network computes.
        measures: what was measured before and after that rescaling.
        before: each measure at the checkpoint, shape (m,).
        after: each measure at the rescaled weights, shape (m,).
    """

    kind, heading = "doctor", "Diagnosis"
    checks: tuple[Check, ...]
    rescaled: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    before: FloatArray = field(default_factory=no_values)
    after: FloatArray = field(default_factory=no_values)

    def __getitem__(self, name: str) -> Check:
        """Return the check of a name."""
        checks = {check.name: check for check in self.checks}
        if name not in checks:
            msg = f"no check {name!r}; known: {', '.join(checks)}"
            raise KeyError(msg)
        return checks[name]

    @property
    def count(self) -> dict[str, int]:
        """How many checks gave each verdict."""
        verdicts = [check.verdict for check in self.checks]
        return {verdict: verdicts.count(verdict) for verdict in VERDICTS}

    @property
    def counted(self) -> list[str]:
        """How many checks gave each verdict that was given, in words."""
        plural = {"note": "notes", "warning": "warnings"}
        found = [(n, verdict) for verdict, n in self.count.items() if n]
        return [f"{n} {plural.get(verdict, verdict) if n > 1 else verdict}" for n, verdict in found]

    @property
    def ratios(self) -> FloatArray:
        """What the rescaling multiplied each measure by, shape (m,); 1: it did not move."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.after / self.before)

    def table(self) -> Columns:
        """Return a row for each number of a check, and one for a check without numbers."""
        rows: list[tuple[Any, ...]] = []
        for check in self.checks:
            texts = (check.name, check.verdict, check.finding, check.advice)
            rows += [(*texts, k, float(v)) for k, v in check.numbers.items()] or [(*texts, "", "")]
        names = ("check", "verdict", "finding", "advice", "number", "value")
        return {name: [row[k] for row in rows] for k, name in enumerate(names)}

    def summary(self) -> Summary:
        """Return how many checks came to each verdict, and which were not fine."""
        warned = [check.name for check in self.checks if check.verdict == "warning"]
        return {**{v: n for v, n in self.count.items() if n}, "warnings": ", ".join(warned)}

    def rows(self) -> list[tuple[str, str]]:
        """Return the verdicts, findings and advice, and the table of the rescaling, as rows."""
        rows = [("all checks", ", ".join(self.counted))]
        for check in self.checks:
            rows += _wrapped(check.name, f"{check.verdict}: {check.finding}")
            if check.advice:
                rows += _wrapped("", f"what to do: {check.advice}")
        if self.measures:
            places = f"{len(self.rescaled)} places; the function is as it was"
            rows.append(("after rescaling", places))
        for name, before, after, ratio in zip(
            self.measures, self.before, self.after, self.ratios, strict=True
        ):
            text = f"times {number(ratio):9} {name}: {number(before)}, then {number(after)}"
            rows.append(("", text))
        return rows


def _wrapped(label: str, text: str) -> list[tuple[str, str]]:
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return [("" if i else label, line) for i, line in enumerate(lines)]
