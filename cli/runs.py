"""The option ``--run``: the checkpoints of a training run, in order."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from landscape.errors import InvalidArgumentError, LandscapeError

from .options import CheckpointFile, CommonOptions, expanded

F = TypeVar("F", bound=Callable[..., Any])

_STEPS = ("epoch", "global_step", "step", "iteration")


def run_option(function: F) -> F:
    """Add ``--run`` to a measurement command; its checkpoints join the others."""

    @functools.wraps(function)
    def wrapped(common: CommonOptions, runs: tuple[str, ...], **options: Any) -> Any:
        by_name: dict[str, tuple[str, ...]] = {}
        for text in runs:
            name, paths = run_of(text)
            if not name:
                msg = f"--run takes NAME=FILES, such as adam='runs/adam/*.pt'; got {text!r}"
                raise InvalidArgumentError(msg)
            by_name[name] = (*by_name.get(name, ()), *paths)
        files = [CheckpointFile(file) for paths in by_name.values() for file in paths]
        steps = {name: _steps(paths) for name, paths in by_name.items()}
        joined = replace(common, checkpoints=(*common.checkpoints, *files), runs=steps)
        return function(joined, **options)

    option = click.option(
        "--run",
        "runs",
        multiple=True,
        metavar="NAME=FILES",
        help="Checkpoints of a training run, * and ? allowed; may be repeated. landscape plot "
        "--what sweep draws a line for each run.",
    )
    return option(wrapped)  # type: ignore[return-value]


def run_of(text: str) -> tuple[str, tuple[str, ...]]:
    """Split ``[NAME=]FILE,FILE,…`` into the name and the files."""
    name, equals, rest = text.partition("=")
    if Path(text.split(",")[0].strip()).exists():  # file names may have an equals sign
        equals = ""
    files = tuple(part.strip() for part in (rest if equals else text).split(","))
    if not all(files):
        msg = f"--run takes file names separated by commas, got {text!r}"
        raise InvalidArgumentError(msg)
    return name.strip() if equals else "", expanded(files)


def _steps(files: tuple[str, ...]) -> dict[str, float | None]:
    """Return the epoch or step of each file: its own, else the last number in its name, if any."""
    saved = [_saved_steps(file) for file in files]
    common = [key for key in _STEPS if all(key in of_file for of_file in saved)]
    if common:
        return {file: of_file[common[0]] for file, of_file in zip(files, saved, strict=True)}
    return {file: _number_in_name(file) for file in files}


def _saved_steps(file: str) -> dict[str, float]:
    """Return the epoch and steps that a checkpoint holds beside its weights."""
    from landscape.problem._checkpoint import read_checkpoint

    try:
        contents = read_checkpoint(file)
    except LandscapeError:  # said when the checkpoint is loaded
        return {}
    found = {key: contents.get(key) for key in _STEPS} if isinstance(contents, Mapping) else {}
    return {
        key: float(value)
        for key, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _number_in_name(file: str) -> float | None:
    numbers = re.findall(r"\d+", Path(file).stem)
    return float(numbers[-1]) if numbers else None
