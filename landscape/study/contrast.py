"""Which finished measurements of a study stand side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FIELDS = {"eigs": "eigenpairs", "sharpness": "sharpness", "surface": "surface"}
_LOSSES = ("evaluation", "test")
_LAID_OUT = ("surface", "random_line", "sharpness")
_LINES = {"worst-case": "worst_line", "random": "random_line"}
APART = (
    *("training", "density", "trace", "profile", "m-sharpness", "steps", "average", "flatness"),
    *("path", "trajectory", "differences", "doctor"),
)
"""Kinds that stand for themselves, in the order in which to show them."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What the choice needs to know of one finished measurement.

    Attributes:
        id: number of the measurement in the file.
        kind: kind of its result.
        name: the checkpoint's name.
        checkpoint_hash: digest of its weights.
        data_fingerprint: digest of its data.
        split: part of the data.
        settings: what was asked for.
        parameters: pattern of the parameters that were explored; empty: all of them.
        problem_fingerprint: digest of the loss, its metrics and the model's code.
    """

    id: int
    kind: str
    name: str
    checkpoint_hash: str
    data_fingerprint: str
    split: str
    settings: Mapping[str, Any]
    parameters: str = ""
    problem_fingerprint: str = ""

    @property
    def role(self) -> str | None:
        """Field of `landscape.measured.Measured` that it can fill; None for what is another thing.

        Other lines and other operators than the Hessian are. A kind of `APART` is its own role.
        """
        if self.kind in APART:
            return self.kind
        plain = {"operator": "hessian", "scale": "none", "adaptive": "none"}
        if any(self.settings.get(key, v) != v for key, v in plain.items()):
            return None
        if self.kind == "loss":
            return "test" if self.split == "test" else "evaluation"
        if self.kind == "line":
            return _LINES.get(str(self.settings.get("direction")))
        return _FIELDS.get(self.kind)


def choose(candidates: Iterable[Candidate]) -> dict[str, dict[str, int]]:
    """Choose the newest measurement of each role, for each checkpoint.

    Two checkpoints that share a name are kept apart: the one that was measured last has the name,
    the others get the first eight digits of their hash behind it (``sgd.pt@1a2b3c4d``).

    Args:
        candidates: the finished measurements, oldest first.

    Returns:
        Numbers of the measurements by role, by label of the checkpoint, in the order in which the
        checkpoints were first measured.
    """
    checkpoints: dict[tuple[str, str], list[Candidate]] = {}
    newest_hash: dict[str, str] = {}
    for candidate in candidates:
        if candidate.parameters:
            continue  # of a part of the checkpoint
        checkpoints.setdefault((candidate.name, candidate.checkpoint_hash), []).append(candidate)
        newest_hash[candidate.name] = candidate.checkpoint_hash
    checkpoints = {key: _of_one_loss(measured) for key, measured in checkpoints.items()}
    ordered = sorted(checkpoints.items(), key=lambda item: min(one.id for one in item[1]))
    alike = {role: _shared_look(role, checkpoints.values()) for role in _LAID_OUT}
    chosen: dict[str, dict[str, int]] = {}
    for (name, digest), measured in ordered:
        short = f"{name}@{digest[:8]}"
        older = f"{name}@{digest}" if short in chosen else short
        chosen[name if newest_hash[name] == digest else older] = _roles(measured, alike)
    return chosen


def _shared_look(role: str, checkpoints: Iterable[Sequence[Candidate]]) -> str | None:
    """Find the newest layout of surfaces or lines that every checkpoint with any of them has."""
    # Pictures side by side mean something on planes of one kind and over one range only.
    every = [[one for one in measured if one.role == role] for measured in checkpoints]
    every = [measured for measured in every if measured]
    if len(every) < 2:
        return None
    common = set.intersection(*({_look(one) for one in measured} for measured in every))
    newest = max((one for one in every[0] if _look(one) in common), default=None, key=_number)
    return None if newest is None else _look(newest)


def _look(one: Candidate) -> str:
    what = ("plane", "direction", "x", "y", "statistics", "rho", "p")
    axes = [one.settings.get(key) for key in what]
    seeds = [(one.settings.get(key) or {}).get("seed") for key in ("d", "d1", "d2")]
    return repr([*axes, *seeds, one.split, one.problem_fingerprint])


def _number(one: Candidate) -> int:
    return one.id


def _roles(measured: Sequence[Candidate], alike: Mapping[str, str | None]) -> dict[str, int]:
    newest = {one.role: one for one in measured if one.role is not None}
    for one in measured:
        if one.role is not None and alike.get(one.role) == _look(one):
            newest[one.role] = one
    for one in measured:
        # Five eigenvalues are not hidden by one that was asked for later.
        if one.role == "eigenpairs" and _n_pairs(one) > _n_pairs(newest[one.role]):
            newest[one.role] = one
    apart = {*_LOSSES, *APART}
    others = {one.data_fingerprint for role, one in newest.items() if role not in apart}
    for one in measured:
        # The loss beside a sharpness is the loss on the same data, even if another is newer.
        if one.role == "evaluation" and one.data_fingerprint in others:
            newest["evaluation"] = one
    return {role: one.id for role, one in newest.items()}


def _of_one_loss(measured: list[Candidate]) -> list[Candidate]:
    """Leave out the sharpness of another loss than the plain one, such as normalised logits."""
    plain = [one for one in measured if one.role in {"evaluation", "eigenpairs"}]
    if not plain:
        return measured
    loss = plain[-1].problem_fingerprint
    return [one for one in measured if one.role != "sharpness" or one.problem_fingerprint == loss]


def _n_pairs(one: Candidate) -> int:
    return int(one.settings.get("k", 0))
