"""Options that several verbs share, as decorators, and what they come to."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from landscape.errors import InvalidArgumentError

from .threads import compare_before_work, threads_option, use_threads

if TYPE_CHECKING:
    from landscape.problem import Problem, Task

    ParamType = click.ParamType["CheckpointFile"]
else:
    ParamType = click.ParamType  # not generic before click 8.2

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_STUDY = "landscape.db"


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint as it is given on the command line.

    Attributes:
        file: its path.
        name: what to call it; empty: not said.
    """

    file: str
    name: str = ""

    def __str__(self) -> str:
        return self.file


class CheckpointType(ParamType):
    """``FILE`` or ``NAME=FILE``; a path that exists is a path, with an equals sign too."""

    name = "checkpoint"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> CheckpointFile:
        """Take the text apart."""
        if isinstance(value, CheckpointFile) or "=" not in value or Path(value).exists():
            return value if isinstance(value, CheckpointFile) else CheckpointFile(value)
        ends = [i for i, letter in enumerate(value) if letter == "="]
        at = next((i for i in ends if Path(value[i + 1 :]).exists()), ends[0])
        name, file = value[:at].strip(), value[at + 1 :]
        if not (name and file):
            self.fail(f"expected FILE or NAME=FILE, got {value!r}", param, ctx)
        return CheckpointFile(file, name)


@dataclass(frozen=True)
class CommonOptions:
    """What every measuring verb is common.

    Attributes:
        checkpoints: files to measure, with the names that were given.
        problem: problem file, module or built-in name.
        study: file that results are stored in.
        device: where to compute, or None for the default.
        dtype: floating-point type, or None for the model's own.
        seed: of every random choice.
        params: patterns of the parameters to explore; empty: all that are trainable.
        split: part of the data.
        mode: ``eval`` or ``train``.
        key: entry of a nested checkpoint, or prefix of names in it.
        partial: whether the model keeps its own weights where a file has none.
        unsafe_pickle: whether files may run code.
        freeze_data: whether one pass of a changing loader is kept as the data.
        batch_size: for data that come without batches.
        threads: to compute with: a number, ``auto``, or None for the default.
        as_json: whether to print JSON.
        dry_run: whether to say the price and measure nothing.
        quiet: whether to show no progress.
    """

    checkpoints: tuple[CheckpointFile, ...]
    problem: str
    study: str
    device: str | None
    dtype: str | None
    seed: int
    params: tuple[str, ...]
    split: str
    mode: str
    key: str | None
    partial: bool
    unsafe_pickle: bool
    freeze_data: bool
    batch_size: int
    threads: str | None
    as_json: bool
    dry_run: bool
    quiet: bool

    @property
    def progress(self) -> bool | None:
        """What to pass as ``progress``: never, or where stderr is a terminal."""
        return False if self.quiet else None

    @property
    def reading(self) -> dict[str, Any]:
        """Options of `Problem.at`."""
        return {"key": self.key, "unsafe_pickle": self.unsafe_pickle, "partial": self.partial}

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the checkpoints."""
        return tuple(one.file for one in self.checkpoints)

    def task(self) -> Task:
        """Read the problem file."""
        from landscape.problem import load_task

        use_threads(self.threads)
        return load_task(self.problem)

    def base_problem(self, task: Task, *, split: str | None = None) -> Problem:
        """Build the problem, at freshly initialised weights."""
        return task.problem(
            split=split or self.split,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
            mode=self.mode,
            freeze_data=self.freeze_data,
            batch_size=self.batch_size,
        )

    def problems(self, base: Problem) -> dict[str, Problem]:
        """Put the problem at every checkpoint; all are read before anything is measured."""
        if self.params:
            base = base.only(*self.params)
        if len({*map(os.path.abspath, self.files)}) < len(self.files):
            msg = f"a checkpoint is named twice: {' '.join(self.files)}"
            raise InvalidArgumentError(msg)
        each = [base.at(file, **self.reading) for file in self.files]
        given = [one.name for one in self.checkpoints]
        names = names_in(self.study, each, given)
        problems = {name: one.named(name) for name, one in zip(names, each, strict=True)}
        _say_what_is_equal(problems)
        if not self.dry_run:
            compare_before_work(self.threads)
        return problems


def names_in(study: str, problems: Sequence[Problem], given: Sequence[str]) -> list[str]:
    """Choose the names under which a study holds checkpoints, see `choose_names`."""
    from landscape.study import Name, Study, choose_names

    known: list[Name] = []
    file = Path(study).expanduser()
    if file.is_file() and file.stat().st_size:
        with Study(study, readonly=True) as opened:
            known = opened.names()
    files = [
        Name(name=name, path=problem.path, checkpoint_hash=problem.checkpoint_hash)
        for name, problem in zip(given, problems, strict=True)
    ]
    return choose_names(known, files)


def _say_what_is_equal(problems: Mapping[str, Problem]) -> None:
    """Say which checkpoints hold the same weights: a study knows them by these."""
    by_hash: dict[str, list[str]] = {}
    for name, problem in problems.items():
        by_hash.setdefault(problem.checkpoint_hash, []).append(name)
    for names in by_hash.values():
        if len(names) > 1:
            common = f"{', '.join(names[:-1])} and {names[-1]} hold the same weights"
            msg = f"Warning: {common}: the study lists them once, and knows them by each name"
            click.echo(msg, err=True)


def measuring(function: F) -> F:
    """Add the options of every measuring verb; the function gets one `CommonOptions`."""

    @functools.wraps(function)
    def wrapped(**options: Any) -> Any:
        fields = CommonOptions.__dataclass_fields__
        common = CommonOptions(**{name: options.pop(name) for name in fields})
        return function(common, **options)

    decorators = [
        click.argument(
            "checkpoints",
            nargs=-1,
            required=True,
            type=CheckpointType(),
            metavar="[NAME=]CHECKPOINT...",
        ),
        click.option(
            "--problem",
            required=True,
            metavar="FILE|NAME",
            help="Python file with model(), data(split) and loss; or a built-in name (digits, "
            "mnist1d-mlp, …).",
        ),
        study_option,
        click.option("--split", default="train", show_default=True, help="Part of the data."),
        click.option("--device", default=None, help="cpu, cuda, cuda:1, …  [default: cpu]"),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "float64"]),
            default=None,
            help="Precision of everything that is computed.  [default: the model's own]",
        ),
        click.option("--seed", default=0, show_default=True, help="Of every random choice."),
        click.option(
            "--params",
            multiple=True,
            metavar="PATTERN",
            help="Only parameters or modules of such names (* and ? allowed); may be repeated.",
        ),
        click.option(
            "--mode",
            type=click.Choice(["eval", "train"]),
            default="eval",
            show_default=True,
            help="BatchNorm with running statistics (eval) or those of the batch (train).",
        ),
        click.option(
            "--batch-size",
            default=512,
            show_default=True,
            type=click.IntRange(min=1),
            help="For data that come without batches.",
        ),
        click.option(
            "--key",
            default=None,
            metavar="NAME",
            help="Entry of a nested checkpoint (ema), or the network whose names have this prefix "
            "(teacher, module.encoder_q).",
        ),
        click.option(
            "--partial",
            is_flag=True,
            help="Where a checkpoint has no weights, keep those of the freshly built model.",
        ),
        click.option(
            "--freeze-data",
            is_flag=True,
            help="Keep one pass over data that change from pass to pass.",
        ),
        click.option(
            "--unsafe-pickle",
            is_flag=True,
            help="Unpickle anything: RUNS ANY CODE that the checkpoint file contains.",
        ),
        threads_option,
        json_option,
        click.option("--dry-run", is_flag=True, help="Say what it would cost; measure nothing."),
        click.option("--quiet", "-q", is_flag=True, help="No progress bars."),
    ]
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    return wrapped  # type: ignore[return-value]


def study_option(function: F) -> F:
    """Add ``--study``."""
    return click.option(
        "--study",
        default=DEFAULT_STUDY,
        show_default=True,
        metavar="FILE",
        help="File that results are kept in; what it holds already is not measured again.",
    )(function)


def part_of(params: Sequence[str]) -> str | None:
    """Return what measurements with these ``--params`` say that they explored; None: not asked."""
    return ", ".join(params) if params else None


def part_option(function: F) -> F:
    """Add ``--params`` to what shows measurements: the patterns that they were made with."""
    return click.option(
        "--params",
        multiple=True,
        metavar="PATTERN",
        help="Measurements made with the same --params.  [default: of all parameters; if there "
        "are none, the newest]",
    )(function)


def json_option(function: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(
        function
    )
