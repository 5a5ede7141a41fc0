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


def choose_names(entries: Sequence[Name], files: Sequence[Name]) -> list[str]:
    """Choose names for the files of one command.

    A file gets the name that was given, or keeps the one that the study has for it. Another one
    gets the shortest end of its path that is no name and no end of the path of another file.

    Args:
        entries: the names of the study.
        files: name (empty: none was given), path and weights of each file.

    Returns:
        A name for each file.

    Raises:
        InvalidArgumentError: if a name that was given belongs to another file.
    """
    stored = [_stored(entries, file) for file in files]
    taken = {entry.name for entry in entries} | {file.name for file in files} | {*stored}
    paths = {entry.path for entry in (*entries, *files)} - {""}
    chosen: list[str] = []
    for file, stored_name in zip(files, stored, strict=True):
        _check_given(entries, file, stored_name)
        name = file.name or stored_name or _shortest_end(file.path, paths, taken)
        if name in chosen:
            msg = f"two checkpoints are called {name!r}: give each a name of its own, NAME=FILE"
            raise InvalidArgumentError(msg)
        chosen.append(name)
    return chosen


def _stored(entries: Sequence[Name], file: Name) -> str:
    """Return the name that the study has for a file; empty: none."""
    path = Path(file.path)
    of_path = [entry.name for entry in entries if entry.path == file.path]
    # A file that was moved, or measured before paths were kept, is known by its weights.
    usual = {path.name, path.stem, file.path, file.name}
    same = [entry for entry in entries if entry.checkpoint_hash == file.checkpoint_hash != ""]
    pathless = [entry.name for entry in same if not entry.path and entry.name in usual]
    moved = [
        entry.name
        for entry in same
        if entry.path and Path(entry.path).name == path.name and not Path(entry.path).exists()
    ]
    names = [*of_path, *pathless, *moved]
    return file.name if file.name in names else next(iter(names), "")


def _check_given(entries: Sequence[Name], file: Name, stored: str) -> None:
    if not file.name or file.name == stored:
        return
    for entry in entries:
        if entry.name == file.name and (entry.path or entry.checkpoint_hash):
            owner = entry.path or f"other weights ({entry.checkpoint_hash[:8]})"
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
