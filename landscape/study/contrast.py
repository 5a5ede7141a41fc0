"""Which finished measurements of a study stand side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, eq
from typing import Any

from landscape.errors import StudyError, one_of
from landscape.results import KINDS, Evaluation, Line

_WITH_LAYOUT = ("surface", "random_line", "sharpness")
_LINES = {"worst-case": "worst_line", "random": "random_line"}
_PARTS = {"eigenpairs", "sharpness", "surface", *_LINES.values()}
_OF_NONE = {"test", "training", "doctor"}  # roles whose numbers are of no choice of parameters
APART = tuple(kind for kind, cls in KINDS.items() if cls.heading and not cls.role)
"""Kinds that stand for themselves, in the order in which to show them."""

Source = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A finished measurement: its number in the file, and the fields of its record."""

    id: int
    kind: str
    name: str
    checkpoint_hash: str
    data_fingerprint: str
    split: str
    settings: Mapping[str, Any]
    parameters: str = ""
    problem_fingerprint: str = ""
    mode: str = ""
    dtype: str = ""
    loss: str = ""

    @property
    def source(self) -> Source:
        """What numbers that stand side by side should share, what matters most first.

        The last is never the same for two checkpoints.
        """
        where = (self.data_fingerprint, self.split, self.mode, self.dtype)
        return (*where, self.loss or self.problem_fingerprint, self.problem_fingerprint)

    @property
    def role(self) -> str | None:
        """Field of `Measured` that it can fill; None for what is another thing.

        Other lines and other operators than the Hessian are. A kind of `APART` is its own role.
        """
        if self.kind in APART:
            return self.kind
        plain = {"operator": "hessian", "scale": "none", "adaptive": "none"}
        if any(self.settings.get(key, v) != v for key, v in plain.items()):
            return None
        if self.kind == Line.kind:
            return _LINES.get(str(self.settings.get("direction")))
        if (self.kind, self.split) == (Evaluation.kind, "test"):
            return "test"
        return KINDS[self.kind].role or None if self.kind in KINDS else None


def usual_part(patterns: Sequence[str]) -> str:
    """Choose the pattern to show by default: all parameters (empty), else the last one's."""
    return "" if "" in patterns or not patterns else patterns[-1]


def choose(
    candidates: Iterable[Candidate],
    names: Iterable[str] | None = None,
    parameters: str | None = None,
    hashes: Mapping[str, str] | None = None,
) -> dict[str, dict[str, int]]:
    """Choose the newest measurement of each role, for each checkpoint.

    All are of one source (data, split, mode, dtype, loss and model) as far as they are measured
    there: that of the newest evaluation with more than evaluations there; else of the newest
    evaluation, leaving out the split ``test``; else of the newest measurement with a role. What a
    checkpoint has elsewhere only is taken from where most of that is the same.

    Of two checkpoints that share a name, the one that has it by ``hashes``, else the one measured
    last, is called so; the others get their hash behind it (``sgd.pt@1a2b3c4d``).
    """
    entries = list(candidates)
    labelled = _labelled(entries, hashes or {})
    if names is not None:
        by_hash = {pool[0].checkpoint_hash: pool for pool in labelled.values()}
        others = {k: by_hash[h] for k, h in (hashes or {}).items() if h and h in by_hash}
        labelled = others | labelled
        labelled = {k: labelled[one_of(k, labelled, what="checkpoint")] for k in names}
    named, labelled = labelled, _of_part(labelled, entries, parameters)
    missing = [k for k in named if _has_part(named[k]) and not _has_part(labelled.get(k, []))]
    if names is not None and missing:
        msg = (
            f"{', '.join(missing)} and the others were measured with other parameters: choose some "
            "that all have (--params), or show fewer"
        )
        raise StudyError(msg)
    of_one_loss = {label: _of_one_loss(measured) for label, measured in labelled.items()}
    ids = {entry.id for measured in of_one_loss.values() for entry in measured}
    shown = [entry for entry in entries if entry.id in ids]
    shared = _common_source(shown)
    of_tests = _nearest([entry for entry in shown if entry.role == "test"], shared)
    held_out = of_tests[-1].source if of_tests else ()
    pools = {label: _pools(pool, shared, held_out) for label, pool in of_one_loss.items()}
    alike = {role: _shared_layout(role, pools.values()) for role in _WITH_LAYOUT}
    return {label: _roles(pool, alike) for label, pool in pools.items()}


def same_part(pattern: str, other: str) -> bool:
    """Tell whether two comma-separated patterns name the same parameters, in whatever order."""
    return set(pattern.split(", ")) == set(other.split(", "))


def _of_part(
    labelled: Mapping[str, list[Candidate]], entries: Sequence[Candidate], parameters: str | None
) -> dict[str, list[Candidate]]:
    """Keep what explored the same parameters, and what is of none: training and held-out loss."""
    shown = {entry.id for measured in labelled.values() for entry in measured}
    parts = [
        entry for entry in entries if entry.id in shown and entry.role not in {None, *_OF_NONE}
    ]
    compared = [entry for entry in parts if entry.role in {"evaluation", *_PARTS}]
    if parameters is None:
        parameters = usual_part([entry.parameters for entry in compared or parts])
    elif not any(same_part(entry.parameters, parameters) for entry in parts):
        known = sorted({entry.parameters or "(all)" for entry in parts})
        msg = f"nothing was measured of the parameters {parameters}; it was of: {'; '.join(known)}"
        raise StudyError(msg)
    chosen = {
        label: [o for o in pool if same_part(o.parameters, parameters) or o.role in _OF_NONE]
        for label, pool in labelled.items()
    }
    return {label: pool for label, pool in chosen.items() if pool}


def _has_part(measured: Iterable[Candidate]) -> bool:
    return any(entry.role not in {None, *_OF_NONE} for entry in measured)


def _labelled(
    candidates: Sequence[Candidate], hashes: Mapping[str, str]
) -> dict[str, list[Candidate]]:
    """Sort by checkpoint, under labels that tell apart those of one name."""
    checkpoints: dict[tuple[str, str], list[Candidate]] = {}
    newest_hash: dict[str, str] = {}
    first_name: dict[str, str] = {}
    for candidate in sorted(candidates, key=attrgetter("id")):
        first_name.setdefault(candidate.checkpoint_hash, candidate.name)
    for candidate in candidates:
        digest = candidate.checkpoint_hash
        name = first_name[digest] if digest else candidate.name
        checkpoints.setdefault((name, digest), []).append(candidate)
        newest_hash[name] = digest
    newest_hash |= {name: h for name, h in hashes.items() if (name, h) in checkpoints}
    ordered = sorted(checkpoints.items(), key=lambda item: min(entry.id for entry in item[1]))
    labelled: dict[str, list[Candidate]] = {}
    for (name, digest), measured in ordered:
        short = f"{name}@{digest[:8]}"
        older = f"{name}@{digest}" if short in labelled else short
        labelled[name if newest_hash[name] == digest else older] = measured
    return labelled


def _common_source(candidates: Sequence[Candidate]) -> Source:
    """Return where everything is to come from; empty if nothing plays a part."""
    parts = [entry for entry in candidates if entry.role in _PARTS]
    losses = [entry for entry in candidates if entry.role == "evaluation"]
    # A loss that stands alone on its data says nothing of where the rest was measured.
    sources, data = ({getattr(entry, k) for entry in parts} for k in ("source", "data_fingerprint"))
    with_more = [entry for entry in losses if entry.source in sources]
    same_data = [entry for entry in losses if entry.data_fingerprint in data]
    newest = with_more or same_data or losses or parts
    return newest[-1].source if newest else ()


def _nearest(candidates: Sequence[Candidate], source: Source) -> list[Candidate]:
    """Return those that have most in common with a source, in their order."""
    shares = [tuple(map(eq, entry.source, source)) for entry in candidates]
    most = max(shares, default=())
    return [entry for entry, share in zip(candidates, shares, strict=True) if share == most]


def _pools(
    measured: Sequence[Candidate], shared: Source, held_out: Source
) -> dict[str, list[Candidate]]:
    """Return what each role of a checkpoint may be filled with, oldest first."""
    # Each checkpoint has an identity, and one source, of its own.
    compared = [entry for entry in measured if entry.role in {"evaluation", *_PARTS}]
    source = _common_source(_nearest(compared, shared)) or shared
    by_role: dict[str, list[Candidate]] = {}
    for entry in measured:
        if entry.role is not None:
            by_role.setdefault(entry.role, []).append(entry)
    sources = {"test": held_out[:-2] + source[-2:]}
    return {role: _nearest(pool, sources.get(role, source)) for role, pool in by_role.items()}


def _shared_layout(role: str, checkpoints: Iterable[Mapping[str, list[Candidate]]]) -> str | None:
    """Find the newest layout of surfaces or lines that every checkpoint with any of them has."""
    # Pictures side by side mean something on planes of one kind and over one range only.
    entries = [pools[role] for pools in checkpoints if role in pools]
    if len(entries) < 2:
        return None
    common = set.intersection(*({_layout(entry) for entry in pool} for pool in entries))
    return next(
        (_layout(entry) for entry in reversed(entries[0]) if _layout(entry) in common), None
    )


def _layout(entry: Candidate) -> str:
    keys = ("plane", "direction", "x", "y", "statistics", "rho", "p")
    axes = [entry.settings.get(key) for key in keys]
    seeds = [(entry.settings.get(key) or {}).get("seed") for key in ("d", "d1", "d2")]
    return repr([*axes, *seeds, *entry.source[:-2]])  # other losses and models may look alike


def _roles(pools: Mapping[str, list[Candidate]], alike: Mapping[str, str | None]) -> dict[str, int]:
    chosen = {}
    for role, pool in pools.items():
        fitting = [entry for entry in pool if alike.get(role) == _layout(entry)] or pool
        chosen[role] = fitting[-1].id
        if role == "eigenpairs":
            # Five eigenvalues are not hidden by one that was asked for later.
            chosen[role] = max(reversed(pool), key=lambda entry: int(entry.settings.get("k", 0))).id
    return chosen


def _of_one_loss(measured: list[Candidate]) -> list[Candidate]:
    """Leave out the sharpness of another loss than the plain one, such as normalised logits."""
    plain = [entry for entry in measured if entry.role in {"evaluation", "eigenpairs"}]
    losses = {entry.source[-2] for entry in plain}
    # Records with a loss in words and those of older versions cannot be told apart by it.
    known = {bool(entry.loss) for entry in plain}
    return [
        entry
        for entry in measured
        if entry.role != "sharpness" or bool(entry.loss) not in known or entry.source[-2] in losses
    ]
