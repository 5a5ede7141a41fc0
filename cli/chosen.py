"""Which records of a study a picture is to show."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import click

from landscape.errors import InvalidArgumentError, StudyError

if TYPE_CHECKING:
    from landscape.results import Line, LossPath, Result, Trajectory
    from landscape.study import Entry, Study

Named = list[tuple[str, "Result"]]

# What matters most of it first.
_SOURCE = ("data_fingerprint", "split", "mode", "dtype", "objective")


def in_full(study: Study, names: Sequence[str]) -> tuple[str, ...]:
    """Return names as the study has them: without a file's ending, or a run's for its members."""
    known = [one.name for one in study.names()]

    runs = study.runs()
    members = [[name] if name in known else list(runs.get(name, [name])) for name in names]

    def full(name: str) -> str:
        ends = [one for one in known if os.path.splitext(one)[0] == name]
        return ends[0] if name not in known and len(ends) == 1 else name

    return tuple(full(name) for of in members for name in of)


def colours_of(study: Study) -> dict[str, str]:
    """Return the colours of a study's runs, each that of its last checkpoint, and of the others."""
    from landscape.plots import colours_by_name

    colours, names = colours_by_name(study.runs()), study.names()
    last = {list(of)[-1]: colours[run] for run, of in study.runs().items()}
    by_weights = {one.checkpoint_hash: last[one.name] for one in names if one.name in last}
    same = (one for one in names if one.checkpoint_hash in by_weights)
    ends = {one.name: by_weights[one.checkpoint_hash] for one in same}
    return colours_by_name((entry.name for entry in study.entries()), colours | ends)


def ends_of_runs(study: Study, kind: str | None) -> tuple[str, ...]:
    """Return what to show of a study with runs: their last checkpoints, and those of no run.

    Of those with a finished record of the kind, or of any; nothing, which is all, without runs.
    """
    runs = study.runs().values()
    entries = [entry for entry in study.entries(kind) if entry.status == "complete"]
    measured = dict.fromkeys(entry.name for entry in entries)
    of_runs = [[name for name in of if name in measured] for of in runs]
    earlier = {name for of in of_runs for name in of[:-1]} - {of[-1] for of in of_runs if of}
    if not earlier:
        return ()
    say = "of each run the last checkpoint is shown: NAME others, or see --what sweep"
    click.echo(f"Note: {say}.", err=True)
    shown = {e.checkpoint_hash: e.name for e in reversed(entries) if e.name not in earlier}
    return tuple(name for name in measured if name in shown.values())


def _finished(study: Study, kind: str, names: Sequence[str]) -> list[Entry]:
    """List finished measurements, those of weights with several names under each that is asked."""
    entries = [entry for entry in study.entries(kind) if entry.status == "complete"]
    hashes = {one.name: one.checkpoint_hash for one in study.names() if one.checkpoint_hash}
    own = {entry.name for entry in entries}
    return entries + [
        dataclasses.replace(entry, name=name)
        for name in names
        for entry in entries
        if name not in own and entry.checkpoint_hash == hashes.get(name)
    ]


def newest_of_runs(
    study: Study, kind: str, names: Sequence[str] = (), *, parameters: str | None = None
) -> dict[str, list[tuple[float, str, Result]]]:
    """Return step, name and newest record of the checkpoints of each run that the study knows.

    Those that are among the names, if there are any, and of which the study holds such a record.
    """
    runs = {
        run: {name: step for name, step in of.items() if not names or name in names}
        for run, of in study.runs().items()
    }
    found = {}
    for run, of in runs.items():
        members = list(of)
        entries = [e for e in _finished(study, kind, members) if e.name in of]
        last = max(entries, key=_age, default=None)  # of P⁻¹H in one run, and of H in another
        measured = {e.name for e in entries if last is not None and _alike(e, last)}
        shown = [name for name in members if name in measured]
        records = dict(newest(study, kind, shown, parameters=parameters)) if shown else {}
        found[run] = [(of[name], name, record) for name, record in records.items()]
    return _of_one_problem({run: of for run, of in found.items() if of}, asked=bool(names))


def _of_one_problem(
    runs: dict[str, list[tuple[float, str, Result]]], *, asked: bool
) -> dict[str, list[tuple[float, str, Result]]]:
    """Keep the runs on the model and data of the one measured last, and say which are left out."""

    def problem(run: str) -> tuple[str, int]:
        at = runs[run][-1][-1].provenance
        return at.data_fingerprint, at.n_parameters

    last = max(runs, key=lambda run: max(r.provenance.created for *_, r in runs[run]), default="")
    others = [run for run in runs if problem(run) != problem(last)]
    if asked or not others:
        return runs
    say = f"left out, since they are of another model or other data: {', '.join(others)}"
    click.echo(f"Note: {say}; NAME their checkpoints to see them.", err=True)
    return {run: of for run, of in runs.items() if run not in others}


def _load(study: Study, entry: Entry) -> Result:
    return study.load(entry.id, entry.name)


def newest(
    study: Study, kind: str, names: Sequence[str] = (), *, parameters: str | None = None
) -> Named:
    """Return the newest finished record of a kind for each checkpoint, all of one operator.

    That is the operator of the newest record, and one choice of the parameters. Where they can be
    had, all records are of the data, split, mode, dtype, loss and model of the newest one on a
    split that every checkpoint was measured on; else most of these are the same, the first of them
    first.
    """
    complete = _finished(study, kind, names)
    whole = _of_part(complete, names, parameters)
    asked = [entry for entry in whole if entry.name in names]
    last = max(asked or whole, key=_age, default=None)
    found = [entry for entry in whole if last is not None and _alike(entry, last)]
    entries: dict[str, list[Entry]] = {}
    for entry in sorted(found, key=_age, reverse=True):
        of_name = entries.setdefault(entry.name, [])
        if not of_name or entry.checkpoint_hash == of_name[0].checkpoint_hash:
            of_name.append(entry)  # and none of older weights
    order = dict.fromkeys(names or (entry.name for entry in found))
    missing = [name for name in order if name not in entries]
    if missing or not entries:
        whose = f" of {', '.join(missing)}" if missing else ""
        known = f"; it holds those of {', '.join(sorted(entries))}" if entries else ""
        parts = sorted({entry.parameters for entry in complete} - {""})
        if not whole and parts:
            known = f"; it holds those with --params {', '.join(parts)}"
        msg = f"{study.path} holds no finished {kind}{whose}{known}; measure it first"
        raise StudyError(msg)
    splits = set.intersection(*({entry.split for entry in entries[name]} for name in order))
    shown = [entry for name in order for entry in entries[name]]
    first = max([entry for entry in shown if entry.split in splits] or shown, key=_age)
    like = _load(study, first)
    return [(name, _most_like(like, study, entries[name])) for name in order]


def _of_part(entries: Sequence[Entry], names: Sequence[str], parameters: str | None) -> list[Entry]:
    """Keep what explored the same parameters: those asked for, or the usual ones."""
    from landscape.study import same_part, usual_part

    asked = sorted((entry for entry in entries if not names or entry.name in names), key=_age)
    if parameters is None:
        parameters = usual_part([entry.parameters for entry in asked])
    return [entry for entry in entries if same_part(entry.parameters, parameters)]


def _age(entry: Entry) -> tuple[str, int]:
    return entry.created, entry.id


def _most_like(one: Result, study: Study, entries: Sequence[Entry]) -> Result:
    """Return the newest record that has most in common with another one; newest first."""
    best = _load(study, entries[0])
    for entry in entries[1:]:
        if all(_shared(best, one)):
            break
        best = max(best, _load(study, entry), key=lambda result: _shared(result, one))
    return best


def _shared(one: Result, other: Result) -> tuple[bool, ...]:
    return tuple(getattr(one.provenance, k) == getattr(other.provenance, k) for k in _SOURCE)


def _alike(one: Entry, other: Entry) -> bool:
    """Tell whether two measurements are of the same operator and ball, or of none."""
    if one.kind == "training":
        return True  # whose settings tell the trainings apart
    usual = {"operator": "hessian", "scale": "none", "p": 2.0, "adaptive": "none", "eta": 0.0}
    return all(one.settings.get(k, v) == other.settings.get(k, v) for k, v in usual.items())


def numbered(study: Study, ids: Sequence[int]) -> Named:
    """Return measurements by their numbers, all of one kind."""
    begun = (*study.entries("line"), *study.entries("surface"))
    unfinished = {entry.id for entry in begun if entry.status != "complete"}
    results = [study.load_unfinished(id) if id in unfinished else study.load(id) for id in ids]
    kinds = dict.fromkeys(result.kind for result in results)
    if len(kinds) > 1:
        msg = (
            f"one picture shows one kind of record; the measurements {', '.join(map(str, ids))} "
            f"are of the kinds {', '.join(kinds)}"
        )
        raise InvalidArgumentError(msg)
    if "path" in kinds:  # its picture tells them apart by their shapes
        return [(cast("LossPath", result).route, result) for result in results]
    shared = Counter(result.name for result in results)
    return [
        (result.name if shared[result.name] == 1 else f"{result.name} (number {id})", result)
        for id, result in zip(ids, results, strict=True)
    ]


def every_path(study: Study, names: Sequence[str] = ()) -> Named:
    """Return the newest finished path of each shape from a checkpoint to another."""
    ids: dict[tuple[str, ...], int] = {}
    for entry in sorted(_finished(study, "path", names), key=_age):
        if not names or entry.name in names:
            shape = (str(entry.settings.get(key)) for key in ("end", "curve", "bends"))
            key = (entry.name, entry.split, *shape)
            ids[key] = entry.id
    if not ids:
        whose = f" from {', '.join(names)}" if names else ""
        msg = f"{study.path} holds no finished path{whose}; measure it first: landscape path"
        raise StudyError(msg)
    return numbered(study, list(ids.values()))


def random_lines(
    study: Study, names: Sequence[str] = (), *, parameters: str | None = None
) -> dict[str, list[Line]]:
    """Return the lines along random directions of each checkpoint, one for each direction.

    Those that share the coordinates, the data, the BatchNorm statistics and the normalisation of
    the newest one; of two checkpoints of one name the one that was measured last.
    """
    along_random = [
        entry
        for entry in sorted(_finished(study, "line", names), key=_age)
        if entry.settings.get("direction") == "random" and (not names or entry.name in names)
    ]
    found = _of_part(along_random, names, parameters)
    if not found:
        whose = f" of {', '.join(names)}" if names else ""
        msg = (
            f"{study.path} holds no finished line along a random direction{whose}; measure some "
            "first, e.g. landscape line --seeds 10"
        )
        raise StudyError(msg)
    shared = ("x", "statistics", "weight_decay")
    like = [found[-1].split, *(found[-1].settings.get(key) for key in shared)]
    hashes = {entry.name: entry.checkpoint_hash for entry in found}
    chosen: dict[str, dict[str, Entry]] = {name: {} for name in names}
    for entry in found:
        same = [entry.split, *(entry.settings.get(key) for key in shared)] == like
        if same and entry.checkpoint_hash == hashes[entry.name]:
            digest = str(entry.settings["d"].get("digest"))
            chosen.setdefault(entry.name, {})[digest] = entry
    newest_line = cast("Line", study.load(found[-1].id))
    lines = {
        name: [cast("Line", _load(study, entry)) for entry in by_digest.values()]
        for name, by_digest in chosen.items()
    }
    return {
        name: [line for line in every if _same_source(line, newest_line)]
        for name, every in lines.items()
    }


def _same_source(one: Line, other: Line) -> bool:
    same = all(_shared(one, other))
    return same and (one.direction, one.precision) == (other.direction, other.precision)


def every_run(study: Study, names: Sequence[str] = ()) -> list[Trajectory]:
    """Return the finished training runs beside planes through checkpoints."""
    entries = _finished(study, "trajectory", names)
    found = [entry for entry in entries if not names or entry.name in names]
    if not found:
        whose = f" beside a plane through {', '.join(names)}" if names else ""
        msg = f"{study.path} holds no training run{whose}; measure it first: landscape trajectory"
        raise StudyError(msg)
    return [cast("Trajectory", _load(study, entry)) for entry in found]
