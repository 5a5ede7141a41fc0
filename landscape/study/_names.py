"""What the checkpoints of a study are called: two files never share a name, none has two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from landscape.errors import InvalidArgumentError


@dataclass(frozen=True, kw_only=True)
class Name:
    """What a checkpoint is called in a study; what is not known of it is empty."""

    name: str
    path: str  # absolute, of the file
    checkpoint_hash: str  # of the weights that were last measured under the name


def choose_names(known: Sequence[Name], files: Sequence[Name]) -> list[str]:
    """Choose names for the files of one command.

    A file keeps the name that the study has for it. Another one gets the name that was given, or
    the shortest end of its path that is no name and no end of the path of another file.

    Args:
        known: the names of the study.
        files: name (empty: none was given), path and weights of each file.

    Returns:
        A name for each file.

    Raises:
        InvalidArgumentError: if a name that was given belongs to another file, or the file has
            another name already.
    """
    stored = [_stored(known, file) for file in files]
    taken = {one.name for one in known} | {file.name for file in files} | {*stored}
    paths = {one.path for one in (*known, *files)} - {""}
    chosen: list[str] = []
    for file, stored_name in zip(files, stored, strict=True):
        _check_given(known, file, stored_name)
        name = stored_name or file.name or _shortest_end(file.path, paths, taken)
        if name in chosen:
            msg = f"two checkpoints are called {name!r}: give each a name of its own, NAME=FILE"
            raise InvalidArgumentError(msg)
        chosen.append(name)
    return chosen


def _stored(known: Sequence[Name], file: Name) -> str:
    """Return the name that the study has for a file; empty: none."""
    path = Path(file.path)
    of_path = [one.name for one in known if one.path == file.path]
    # A file that was moved, or measured before paths were kept, is known by its weights.
    usual = {path.name, path.stem, file.path}
    same = [one for one in known if one.checkpoint_hash == file.checkpoint_hash != ""]
    pathless = [one.name for one in same if not one.path and one.name in usual | {file.name}]
    moved = [
        one.name
        for one in same
        if one.path and Path(one.path).name == path.name and not Path(one.path).exists()
    ]
    names = [*of_path, *pathless, *moved]
    return file.name if file.name in names else next(iter(names), "")


def _check_given(known: Sequence[Name], file: Name, stored: str) -> None:
    if not file.name or file.name == stored:
        return
    if stored:
        msg = (
            f"{file.path} is called {stored!r} in this study and cannot be called {file.name!r} "
            "too: leave the name out, or use another study (--study)"
        )
        raise InvalidArgumentError(msg)
    for one in known:
        if one.name == file.name and (one.path or one.checkpoint_hash):
            owner = one.path or f"other weights ({one.checkpoint_hash[:8]})"
            msg = (
                f"the name {file.name!r} belongs to {owner} in this study: choose another for "
                f"{file.path}"
            )
            raise InvalidArgumentError(msg)


def _shortest_end(path: str, paths: set[str], taken: set[str]) -> str:
    ends = [_end(path, n) for n in range(1, len(Path(path).parts) + 1)]
    for n, end in enumerate(ends, 1):
        others = {_end(other, n) for other in paths if other != path}
        if end not in taken | others:
            return end
    return path


def _end(path: str, n_parts: int) -> str:
    return str(Path(*Path(path).parts[-n_parts:]))
