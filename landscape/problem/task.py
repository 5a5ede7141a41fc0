"""Problem files: one Python file with a few names says what is measured.

    def model(): …             # the module, weights not loaded
    def data(split): …         # "train" / "test" → DataLoader, Dataset, tensors, list of batches
    loss = …                   # a loss module of torch, or a function (output, target)
    def batch_loss(model, batch): …   # instead of loss, for anything else
    metrics = {…}              # optional: {"accuracy": function}, with the arguments of the loss
    def examples(batch): …     # optional: how many examples a batch holds,
    batch_axis = 1             # or along which axis they run, where its tensors do not say so

The loss gets what ``model(inputs)`` returned; a loss module of torch takes a tensor, or the logits
of a Hugging Face output. A tuple, list or mapping of inputs is taken apart where ``forward`` takes
so many arguments, or names them. The data modules in `landscape.tasks` have exactly that form.
What the libraries in `LIBRARIES` write needs no file: ``hf:FOLDER``, ``lightning:package.Module``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from landscape.errors import InvalidArgumentError, LandscapeError, ProblemError, did_you_mean
from landscape.problem.problem import Problem
from landscape.randomness import forked_rng
from landscape.tasks import PROBLEMS

_OPTIONAL: dict[str, Any] = dict.fromkeys(("loss", "batch_loss", "examples"))
_OPTIONAL |= {"metrics": {}, "batch_axis": 0}
LIBRARIES = {
    "hf": ("_hugging_face", ("data", "task", "length", "examples", "adapter")),
    "lightning": ("_lightning", ("checkpoint", "unsafe_pickle")),
}
"""Beginnings of the names of problems that a library has written: module, and options of each."""


@dataclass(frozen=True)
class Task:
    """What a problem file says, and where it was read from; see this module and `Problem`."""

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[str], Any]
    loss: Callable[..., Any] | None
    batch_loss: Callable[[nn.Module, Any], Any] | None
    metrics: Mapping[str, Callable[[Any, Any], Any]]
    file: str
    examples: Callable[[Any], int] | None = None
    batch_axis: Any = 0

    def problem(self, *, split: str = "train", seed: int = 0, **options: Any) -> Problem:
        """Build the problem, its model with initial weights that the seed draws."""
        with users_code(self.file), forked_rng(seed):
            model = self.model()
            data = self.data(split)
        names = ("name", "batch_loss", "metrics", "examples", "batch_axis")
        stated = {name: getattr(self, name) for name in names}
        return Problem(model, self.loss, data, split=split, **stated | options)


def load_problem(path: str | Path, *, split: str = "train", **options: Any) -> Problem:
    """Read a problem file and build its problem.

    Args:
        path: a Python file, a module's dotted name, or the name of a built-in problem;
            ``hf:FOLDER`` for a folder of ``save_pretrained``, of the Trainer or of a PEFT adapter;
            ``lightning:package.Module`` or ``lightning:package.Module,package.DataModule``.
        split: which part of the data.
        **options: ``device``, ``dtype``, ``seed`` and the other options of `Problem`. With ``hf:``
            also ``data`` (a file, or one for each split by name), ``task`` (see
            `Problem.from_transformers`), ``length`` (tokens of a sequence at most), ``examples``
            (how many are read, spread evenly) and ``adapter`` (explore it alone; False: merged into
            its base). With ``lightning:`` also ``checkpoint`` (the file with the
            hyper-parameters) and ``unsafe_pickle``.

    Returns:
        The problem, its model with freshly initialised weights, or those that a library wrote.

    Raises:
        ProblemError: if the file is missing, fails, or lacks a name.
    """
    prefix, _, rest = str(path).partition(":")
    module_name, known = LIBRARIES.get(prefix, ("", ()))
    of_libraries = {name for _, names in LIBRARIES.values() for name in names} - {"examples"}
    if unknown := sorted(options.keys() & of_libraries - set(known)):
        goes = "; ".join(f"{p}: takes {', '.join(names)}" for p, (_, names) in LIBRARIES.items())
        msg = f"the problem {path} has no {', '.join(unknown)} to choose ({goes})"
        raise InvalidArgumentError(msg)
    if not module_name:
        return load_task(path).problem(split=split, **options)
    library = importlib.import_module(f"landscape.problem.{module_name}")
    with forked_rng(options.pop("seed", 0)):
        return library.library_problem(rest, split=split, **options)  # type: ignore[no-any-return]


def load_task(path: str | Path) -> Task:
    """Read a problem file, as `load_problem` does, and return what it says."""
    text, file = str(path), Path(path)
    if text.partition(":")[0] in LIBRARIES:
        msg = f"{text} is measured, and trained by its own library: give a problem file"
        raise ProblemError(msg)
    if text in PROBLEMS:
        module, network = PROBLEMS[text]
        return dataclasses.replace(_task(module, text), model=network)
    if file.suffix == ".py" or file.is_file():
        return _task(_run(file), file.stem)
    return _task(_import(text), text)


@contextmanager
def users_code(file: str) -> Iterator[None]:
    """Turn an exception in the user's file into a ProblemError that shows the user's own line."""
    try:
        yield
    except LandscapeError:
        raise  # worded already
    except (Exception, SystemExit) as error:
        reason = str(error.msg if isinstance(error, SyntaxError) else error)
        if isinstance(error, SystemExit):
            advice = "a problem file is imported, so it must not call sys.exit()"
            reason = f"exit code {error.code}; {advice}"
        msg = f"{_place(error, Path(file))}\n  {type(error).__name__}: {reason}"
        raise ProblemError(msg) from error


def _place(error: BaseException, file: Path) -> str:
    """Say where in the user's own code an exception comes from, or else where at all."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{error.filename}, line {error.lineno}: {(error.text or '').strip()}"
    near = [f for f in frames if Path(f.filename).is_relative_to(file.parent)]
    near = [f for f in near if "site-packages" not in f.filename]
    last = ([f for f in frames if Path(f.filename) == file] or near or frames)[-1]
    return f"{last.filename}, line {last.lineno}: {last.line}"


def _run(file: Path) -> ModuleType:
    if not file.is_file():
        siblings = [p.name for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        near = did_you_mean(file.name, siblings)
        msg = f"no such problem file: {file}{near}; built-in problems: {', '.join(PROBLEMS)}"
        raise ProblemError(msg)
    file = file.resolve()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    name = f"landscape_problem_{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        msg = f"{file} is no Python file (expected the suffix .py)"
        raise ProblemError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that workers of a DataLoader can find its classes
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # as for a script: it may import its neighbours
    try:
        with users_code(str(file)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half a module
        raise
    return module


def _import(name: str) -> ModuleType:
    with users_code(name):
        spec = importable(name)
    if spec is None:
        near = did_you_mean(name, PROBLEMS, most=1)
        msg = (
            f"unknown problem {name!r}{near}: neither a file, nor a module that can be imported; "
            f"built-in problems: {', '.join(PROBLEMS)}"
        )
        raise ProblemError(msg)
    with users_code(spec.origin or name):
        return importlib.import_module(name)


def importable(name: str) -> ModuleSpec | None:
    """Find a module by its dotted name, also in the working directory; None: there is none."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)  # as `python -m` does
    if name.startswith("."):
        return None
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name and name.startswith(error.name):
            return None
        raise  # the package is there, and imports something else that is not
    except (ValueError, AttributeError, TypeError):  # no name of a module at all
        return None


def _task(module: ModuleType, name: str) -> Task:
    file = str(getattr(module, "__file__", module.__name__))
    lacking = [n for n in ("model", "data") if not callable(getattr(module, n, None))]
    if not (hasattr(module, "loss") or hasattr(module, "batch_loss")):
        lacking.append("loss")
    if lacking:
        public = [n for n in vars(module) if not n.startswith("_")]
        hints = [
            f"{n} (it is no function)" if n in public else n + did_you_mean(n, public, most=1)
            for n in lacking
        ]
        msg = (
            f"{file} lacks: {', '.join(hints)}. A problem file defines model(), data(split) and "
            "loss (or batch_loss(model, batch)), and may define metrics, examples and batch_axis"
        )
        raise ProblemError(msg)
    stated: dict[str, Any] = {n: getattr(module, n, None) for n in _OPTIONAL}
    parts = {n: _OPTIONAL[n] if value is None else value for n, value in stated.items()}
    if not isinstance(parts["metrics"], Mapping):
        kind = type(parts["metrics"]).__name__
        msg = f"{file}: metrics must be a dictionary from names to functions, not a {kind}"
        raise ProblemError(msg)
    return Task(name=name, model=module.model, data=module.data, file=file, **parts)
