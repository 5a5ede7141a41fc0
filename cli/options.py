"""Options that several commands share, as decorators."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from landscape.errors import InvalidArgumentError

from .sections import OUTPUT, PROBLEM, WHAT, option
from .threads import compare_before_work, threads_option, use_threads

if TYPE_CHECKING:
    from landscape.problem import Problem, Task
    from landscape.study import Study

    ParamType = click.ParamType["CheckpointFile"]
else:
    ParamType = click.ParamType  # not generic before click 8.2

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_STUDY = "landscape.db"
FORMATS = ("table", "csv", "markdown", "latex", "json")


@dataclass(frozen=True)
class CheckpointFile:
    """Path of a checkpoint, and the name that was given with it (or an empty text)."""

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
        """Split the name from the path."""
        if isinstance(value, CheckpointFile):
            return value
        if "=" not in value or Path(value).exists():
            return CheckpointFile(value)
        ends = [i for i, letter in enumerate(value) if letter == "="]
        at = next((i for i in ends if Path(value[i + 1 :]).exists()), ends[0])
        name, file = value[:at].strip(), value[at + 1 :]
        if not (name and file):
            self.fail(f"expected FILE or NAME=FILE, got {value!r}", param, ctx)
        return CheckpointFile(file, name)


def expanded(patterns: Iterable[str]) -> tuple[str, ...]:
    """Expand ``*``, ``?`` and ``[…]`` in file names, in natural order: epoch-2 before epoch-10."""
    files: list[str] = []
    for pattern in patterns:
        matches = [] if Path(pattern).exists() else glob.glob(os.path.expanduser(pattern))
        files += sorted(matches, key=_natural) or [pattern]
    return tuple(files)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]


@dataclass(frozen=True)
class CommonOptions:
    """Options shared by all measurement commands; `common_options` says what each means."""

    checkpoints: tuple[CheckpointFile, ...]
    problem: str
    data: tuple[str, ...]
    head: str | None
    length: int | None
    examples: int | None
    split: str
    params: tuple[str, ...]
    mode: str
    dtype: str | None
    batch_size: int
    freeze_data: bool
    key: str | None
    partial: bool
    unsafe_pickle: bool
    device: str | None
    threads: str | None
    seed: int
    study: str
    output_format: str
    dry_run: bool
    quiet: bool
    runs: Mapping[str, Mapping[str, float | None]] = field(
        default_factory=dict
    )  # steps by file, by run

    @property
    def progress(self) -> bool | None:
        """Keyword ``progress`` of measurements: never, or where stderr is a terminal."""
        return False if self.quiet else None

    @property
    def run(self) -> dict[str, Any]:
        """Keywords of every measurement but the study."""
        return {"seed": self.seed, "progress": self.progress}

    @property
    def reading(self) -> dict[str, Any]:
        """Keywords of `Problem.at`."""
        return {"key": self.key, "unsafe_pickle": self.unsafe_pickle, "partial": self.partial}

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the checkpoints."""
        return tuple(checkpoint.file for checkpoint in self.checkpoints)

    @functools.cached_property
    def task(self) -> Task:
        """The problem file, read once."""
        from landscape.problem import load_task

        use_threads(self.threads)
        return load_task(self.problem)

    @property
    def _of_library(self) -> dict[str, Any]:
        """What the formats of libraries take, as far as it was given."""
        data = [CheckpointType().convert(text, None, None) for text in self.data]
        given: dict[str, Any] = {
            "data": {part.name or self.split: part.file for part in data},
            "task": self.head,
            "length": self.length,
            "examples": self.examples,
            "adapter": self._adapter_alone,
        }
        if self.problem.startswith("lightning:"):
            given["checkpoint"] = self.files[0] if self.files else ""
            given["unsafe_pickle"] = self.unsafe_pickle
        return {name: value for name, value in given.items() if value}

    @property
    def _adapter_alone(self) -> bool:
        return self.problem.startswith("hf:") and self.params == ("adapter",)

    def base_problem(self, split: str | None = None) -> Problem:
        """Build the problem at freshly initialised weights."""
        from landscape.problem import load_problem

        options: dict[str, Any] = {
            "split": split or self.split,
            "seed": self.seed,
            "device": self.device,
            "dtype": self.dtype,
            "mode": self.mode,
            "freeze_data": self.freeze_data,
            "batch_size": self.batch_size,
        }
        if self._of_library or self.problem.startswith(("hf:", "lightning:")):
            use_threads(self.threads)
            return load_problem(self.problem, **options, **self._of_library)
        return self.task.problem(**options)

    def held_out(self, split: str | None) -> Problem | None:
        """Build the problem on another split, for ``--held-out``."""
        if split == self.split:
            msg = f"--held-out {split} is the split that is measured (--split): name another"
            raise InvalidArgumentError(msg)
        return None if split is None else self._selected(self.base_problem(split))

    def problems(self) -> dict[str, Problem]:
        """Put the problem at every checkpoint; all are read before the first is measured."""
        checkpoints = self.checkpoints
        if not checkpoints and self.problem.startswith("hf:"):
            folder = self.problem.removeprefix("hf:")
            checkpoints = (CheckpointFile(folder if Path(folder).is_dir() else self.problem),)
        files = [checkpoint.file for checkpoint in checkpoints]
        if not files:
            msg = "Missing argument '[NAME=]CHECKPOINT...'."
            raise click.UsageError(msg)
        if len({*map(os.path.abspath, files)}) < len(files):
            msg = f"a checkpoint is named twice: {' '.join(files)}"
            raise InvalidArgumentError(msg)
        base = self._selected(self.base_problem())
        problems = [base.at(file, **self.reading) for file in files]
        names = names_in(self.study, problems, [file.name for file in checkpoints])
        hashes = [problem.checkpoint_hash for problem in problems]
        for equal in equal_weights(zip(names, hashes, strict=True)):
            same = f"{', '.join(equal[:-1])} and {equal[-1]} hold the same weights"
            msg = f"Warning: {same}; the study keeps one measurement of them"
            click.echo(msg, err=True)
        if not self.dry_run:
            compare_before_work(self.threads)
        return {name: problem.named(name) for name, problem in zip(names, problems, strict=True)}

    def save_runs(self, study: Study, problems: Iterable[Problem]) -> None:
        """Save which checkpoints belong to which training run, with the epoch or step of each.

        Where these are not known or not all different, it is the position in the run.
        """
        by_path = {problem.path: problem for problem in problems}
        for run, steps in self.runs.items():
            # Of files that hold the same weights, such as those of the last epoch and of the end,
            # the run has one: one that says its step.
            members: dict[str, tuple[Problem, float | None]] = {}
            for file, step in steps.items():
                problem = by_path[os.path.abspath(file)]
                if members.get(problem.checkpoint_hash, (problem, None))[1] is None:
                    members[problem.checkpoint_hash] = problem, step
            found = [step for _, step in members.values() if step is not None]
            places = found if len(set(found)) == len(members) else range(len(members))
            named = (problem.name for problem, _ in members.values())
            study.set_run(run, dict(zip(named, map(float, places), strict=True)))

    def _selected(self, problem: Problem) -> Problem:
        return problem.only(*self.params) if self.params and not self._adapter_alone else problem


def is_study(path: str) -> bool:
    """Return whether there is a study file that is not empty."""
    file = Path(path).expanduser()
    return file.is_file() and file.stat().st_size > 0


def open_study(path: str) -> Study:
    """Open a study to measure into; of several processes the first holds it for all."""
    from landscape.processes import OfFirst, together
    from landscape.study import Grid, Study

    if together() is None:
        return Study(path)
    held = OfFirst(
        lambda: Study(path),
        Study,
        writing=("save", "set_name", "set_run", "close"),
        parts={"grid": (Grid, ("record", "record_all"))},
    )
    return cast("Study", held)


def names_in(study: str, problems: Sequence[Problem], given: Sequence[str]) -> list[str]:
    """Choose the names of checkpoints in a study, see `choose_names`."""
    from landscape.processes import together

    here = together()
    if here is None:
        return _names_in(study, problems, given)
    return here.of_first(_names_in(study, problems, given) if here.is_first else [])


def _names_in(study: str, problems: Sequence[Problem], given: Sequence[str]) -> list[str]:
    from landscape.study import Name, Study, choose_names

    known: list[Name] = []
    if is_study(study):
        with Study(study, readonly=True) as opened:
            known = opened.names()
    files = [
        Name(name=name, path=problem.path, checkpoint_hash=problem.checkpoint_hash)
        for name, problem in zip(given, problems, strict=True)
    ]
    return choose_names(known, files)


def equal_weights(hashes: Iterable[tuple[str, str]]) -> list[list[str]]:
    """List the names of checkpoints that share their weights, from pairs of name and hash."""
    by_hash: dict[str, list[str]] = {}
    for name, digest in hashes:
        by_hash.setdefault(digest, []).append(name)
    return [names for digest, names in by_hash.items() if digest and len(names) > 1]


def common_options(function: F) -> F:
    """Add the options of every measurement command; the function gets one `CommonOptions`."""

    @functools.wraps(function)
    def wrapped(**options: Any) -> Any:
        names = [name for name in CommonOptions.__dataclass_fields__ if name != "runs"]
        common = CommonOptions(**{name: options.pop(name) for name in names})
        with _splitting(options.pop("shard")):
            return function(common, **options)

    for decorator in reversed(_COMMON):
        wrapped = decorator(wrapped)
    return wrapped  # type: ignore[return-value]


def _splitting(shard: str) -> AbstractContextManager[Any]:
    """Split what is asked for over the processes of the launcher."""
    if shard == "data":  # as it is anyway
        return nullcontext()
    from landscape.processes import sharing, together

    if together() is None:
        msg = f"--shard {shard} splits a model over processes: start the command by torchrun"
        raise InvalidArgumentError(msg)
    return sharing(shard)


_problem_option = functools.partial(option, section=PROBLEM)
_output_option = functools.partial(option, section=OUTPUT)
study_option = _output_option(
    "--study",
    default=DEFAULT_STUDY,
    metavar="FILE",
    help="Study file. Results are saved there and not measured again.",
)
params_option = _problem_option(
    "--params",
    multiple=True,
    metavar="PATTERN",
    help="Show measurements made with the same --params.  [default: those of all parameters; if "
    "there are none, the newest]",
)


def format_options(function: F) -> F:
    """Add ``--format`` and its short form ``--json``."""

    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, **options: Any) -> Any:
        if as_json:
            options["output_format"] = "json"
        return function(*args, **options)

    as_json = _output_option("--json", "as_json", is_flag=True, help="Same as --format json.")
    output_format = _output_option(
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        default="table",
        help="Format of what is printed.",
    )
    return output_format(as_json(wrapped))  # type: ignore[return-value]


class _ProblemType(click.ParamType):  # type: ignore[type-arg]
    name = "problem"

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        return (
            "It names a Python file with model(), data(split) and loss; landscape init writes one."
        )


def scale_option(section: str = WHAT) -> Callable[[F], F]:
    """Add ``--scale`` to what draws losses."""
    return option(
        "--scale",
        type=click.Choice(["auto", "linear", "log", "excess", "log-excess"]),
        default="auto",
        section=section,
        help="Scale of the loss; excess: the rise above each checkpoint's own. A report can be "
        "switched between linear and log.",
    )


problem_option = _problem_option(
    "--problem",
    metavar="FILE|NAME",
    type=_ProblemType(),
    required=True,
    help="Python file with model(), data(split) and loss (landscape init writes one); a built-in "
    "name (digits, mnist1d-mlp, …); hf:FOLDER of a model of Hugging Face, with --data; or "
    "lightning:package.Module[,package.DataModule] of a .ckpt file.",
)
_COMMON = (
    click.argument("checkpoints", nargs=-1, type=CheckpointType(), metavar="[NAME=]CHECKPOINT..."),
    problem_option,
    _problem_option(
        "--data",
        multiple=True,
        metavar="[SPLIT=]FILE",
        help="Data of hf:FOLDER: token ids (.bin of 16 or 32 bits, .npy), text and label (.csv, "
        ".jsonl), or a folder of datasets. A FILE without a name is that of --split.",
    ),
    _problem_option(
        "--task",
        "head",
        metavar="TASK",
        help="Task of hf:FOLDER: causal-lm, masked-lm, sequence-classification or "
        "token-classification.  [default: that of the model's head]",
    ),
    _problem_option(
        "--length",
        type=click.IntRange(min=2),
        help="Tokens of a sequence of --data, at most.  [default: what the model takes, 1024 at "
        "most]",
    ),
    _problem_option(
        "--examples",
        type=click.IntRange(min=1),
        help="Rows or sequences of --data that are read, spread evenly.  [default: all rows, 256 "
        "sequences of token ids]",
    ),
    _problem_option("--split", default="train", help="Split of the data."),
    _problem_option(
        "--params",
        multiple=True,
        metavar="PATTERN",
        help="Explore only parameters or modules with matching names (* and ? allowed); may be "
        "repeated. adapter: that of hf:FOLDER, which is merged into its base otherwise.",
    ),
    _problem_option(
        "--mode",
        type=click.Choice(["eval", "train"]),
        default="eval",
        help="BatchNorm with running statistics (eval) or with those of the batch (train).",
    ),
    _problem_option(
        "--dtype",
        type=click.Choice(["float32", "float64"]),
        default=None,
        help="Floating-point type of the computation.  [default: the model's own]",
    ),
    _problem_option(
        "--batch-size",
        default=512,
        type=click.IntRange(min=1),
        help="Batch size for data that are not batched.",
    ),
    _problem_option(
        "--freeze-data", is_flag=True, help="Keep one pass over data that change from pass to pass."
    ),
    _problem_option(
        "--key",
        default=None,
        metavar="NAME",
        help="Entry of a nested checkpoint (ema), or prefix of the network's names in it "
        "(teacher, module.encoder_q).",
    ),
    _problem_option(
        "--partial",
        is_flag=True,
        help="Keep the weights of the freshly built model where a checkpoint has none.",
    ),
    _problem_option(
        "--unsafe-pickle",
        is_flag=True,
        help="Unpickle anything: RUNS ANY CODE that the checkpoint file contains.",
    ),
    _problem_option(
        "--shard",
        type=click.Choice(["data", "parameters"]),
        default="data",
        help="What the processes of torchrun split: batches, or every parameter and every batch.",
    ),
    _problem_option("--device", default=None, help="cpu, cuda, cuda:1, …  [default: cpu]"),
    threads_option,
    _problem_option("--seed", default=0, help="Random seed."),
    study_option,
    format_options,
    _output_option("--dry-run", is_flag=True, help="Print the cost; measure nothing."),
    _output_option("--quiet", "-q", is_flag=True, help="Show no progress bars."),
)


def part_of(params: Sequence[str]) -> str | None:
    """Return how records made with these ``--params`` name their parameters; None: any."""
    return ", ".join(params) if params else None
