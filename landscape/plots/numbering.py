"""Numbers in the names of checkpoints: which run one belongs to, and where it stands in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from landscape.results import FloatArray

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SUFFIX = re.compile(r"\.(pt|pth|bin|ckpt|safetensors)$", re.IGNORECASE)


def run_names_in(names: Sequence[str]) -> list[str]:
    """Return the run of each checkpoint: what its name is without the number that it counts by.

    >>> run_names_in(["adam-e1.pt", "adam-e2.pt", "sam-e1.pt"])
    ['adam-e', 'adam-e', 'sam-e']
    """
    stems = [_SUFFIX.sub("", name) for name in names]
    if len({_NUMBER.sub("#", stem) for stem in stems}) == 1 or not all(map(_NUMBER.search, stems)):
        return [""] * len(names)
    return [_NUMBER.sub("", stem).strip(" -_./") for stem in stems]


def numbers_in(names: Sequence[str]) -> FloatArray | None:
    """Return the number in each name, where the names differ in that number only.

    >>> numbers_in(["net2-step-100.pt", "net2-step-20.pt"])
    array([100.,  20.])
    >>> numbers_in(["start", "step-20"]) is None
    True
    """
    stems = [_SUFFIX.sub("", name) for name in names]
    if len({_NUMBER.sub("#", stem) for stem in stems}) != 1:
        return None
    columns = zip(*(map(float, _NUMBER.findall(stem)) for stem in stems), strict=True)
    varying = [column for column in columns if len(set(column)) == len(names)]
    found = varying if len(names) > 1 else varying[-1:]
    return np.array(found[0]) if len(found) == 1 else None


def counted_in(names: Sequence[str]) -> str:
    """Return the word before the number that the names differ in."""
    stems = [_SUFFIX.sub("", name) for name in names]
    columns = list(zip(*(_NUMBER.finditer(stem) for stem in stems), strict=True))
    best = [c for c in columns if len({match[0] for match in c}) == len(names)] or columns[-1:]
    before = stems[0][: best[-1][0].start()] if best else ""
    found = re.search(r"([A-Za-z]{2,})[^A-Za-z]*$", before)
    return found[1] if found else "number in the checkpoint's name"
