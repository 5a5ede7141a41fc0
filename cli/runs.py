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
        parsed = [run_of(text) for text in runs]
        unnamed = [text for (name, _), text in zip(parsed, runs, strict=True) if not name]
        if unnamed:
            msg = f"--run takes NAME=FILES, such as adam='runs/adam/*.pt'; got {unnamed[0]!r}"
            raise InvalidArgumentError(msg)
        files = [CheckpointFile(file) for _, paths in parsed for file in paths]
        steps = {name: _steps(paths) for name, paths in parsed}
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
        msg = f"--run takes file names with a comma between two, got {text!r}"
        raise InvalidArgumentError(msg)
    return name.strip() if equals else "", expanded(files)


def _steps(files: tuple[str, ...]) -> dict[str, float]:
    """Return the epoch or step of each file: its own, else the last number in its name.

    Where these are not all different, it is the position in the run.
    """
    steps = [_saved_step(file) for file in files]
    if None in steps:
        steps = [_number_in_name(file) for file in files]
    if None in steps or len(set(steps)) < len(steps):
        steps = [float(position) for position in range(len(files))]
    return {file: float(step) for file, step in zip(files, steps, strict=True) if step is not None}


def _saved_step(file: str) -> float | None:
    from landscape.problem._checkpoint import read_checkpoint

    try:
        contents = read_checkpoint(file)
    except LandscapeError:  # said when the checkpoint is loaded
        return None
    values = [contents.get(key) for key in _STEPS] if isinstance(contents, Mapping) else []
    numbers = [value for value in values if isinstance(value, (int, float))]
    return float(numbers[0]) if numbers else None


def _number_in_name(file: str) -> float | None:
    numbers = re.findall(r"\d+", Path(file).stem)
    return float(numbers[-1]) if numbers else None
