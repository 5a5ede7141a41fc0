"""What the figure scripts share: many training runs with their measurements, and the command line.

Runs are trained and measured in several processes and kept in a study file. An interrupted script
resumes where it stopped; a finished one only draws.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import inspect
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from landscape.errors import CheckpointError, LandscapeError, StudyError
from landscape.evaluate import provenance_of
from landscape.intervals import mean_interval
from landscape.plots import save_figure
from landscape.plots.style import FAINT, colour, marker
from landscape.problem import Problem, load_task
from landscape.progress import progress_bar
from landscape.results import Eigenpairs, Provenance, Result, Sharpness, TrainingLog
from landscape.study import Entry, Study
from landscape.study.codec import dumps, loads
from landscape.threads import usable_cpus
from landscape.training import (
    TrainingSettings,
    checkpoint_of_epoch,
    save_checkpoint,
    train,
    training_log,
)

R = TypeVar("R", bound=Result)
T = TypeVar("T")
U = TypeVar("U")
Table = list[tuple[str, ...]]  # the first row is the header
Made = tuple[Figure, list[Table], list[str]]  # a figure, its numbers as text, and notes on them

# --- runs and their records ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: a built-in problem, arguments of `train`, and a name for people.

    Checkpoints after `epochs_kept` are measured too, beside the last one.
    """

    problem: str
    settings: Mapping[str, Any]
    name: str
    epochs_kept: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits, the same for the same training."""
        content = dumps([self.problem, self.settings], canonical=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def name_at(self, epoch: int | None) -> str:
        """Name of the checkpoint after an epoch (None: the last), unique to this training."""
        return self.name if epoch is None else f"{self.name}, epoch {epoch} [{self.digest}]"


@dataclass(frozen=True)
class Trained:
    """A trained model: its run, its log, and its weights by epoch, the last epoch last."""

    run: Run
    log: TrainingLog
    models: Mapping[int, nn.Module | Path]

    def problem(self, *, split: str = "train", epoch: int | None = None) -> Problem:
        """Problem at the trained weights, with the clean labels, under the name of the run."""
        last = list(self.models)[-1]
        name = self.run.name_at(None if epoch == last else epoch)
        base = load_task(self.run.problem).problem(split=split)
        return base.at(self.models[last if epoch is None else epoch], name=name)


@dataclass(frozen=True)
class RunRecords:
    """What a study holds of one run: its log, and every record measured on its checkpoints."""

    run: Run
    log: TrainingLog
    results: tuple[Result, ...]

    def get(
        self, kind: type[R], *, split: str = "train", epoch: int | None = None, **settings: Any
    ) -> R:
        """Return the record of a kind that has these settings; StudyError if there is none."""
        name = self.run.name_at(epoch)
        for record in self.results:
            alike = record.provenance.split == split and record.name == name
            alike &= all(record.settings.get(key) == value for key, value in settings.items())
            if alike and isinstance(record, kind):
                return record
        wanted = "".join(f" with {key} = {value}" for key, value in settings.items())
        msg = (
            f"the study holds no {kind.kind} of {name} on the {split} data{wanted}: it was made by "
            "another version of this script; delete the file, or give another folder with -o"
        )
        raise StudyError(msg)


Measure = Callable[[Trained], Sequence[Result]]


class UnfinishedError(Exception):
    """A study that is open for reading only lacks a run or a measurement."""


@dataclass(kw_only=True)
class Runner:
    """Trains and measures what its study lacks.

    `folder` keeps checkpoints and the state of unfinished trainings, `workers` is the number of
    processes, `progress` switches the bars (None: only where stderr is a terminal).
    """

    study: Study
    folder: Path
    workers: int = 1
    progress: bool | None = None

    def run(
        self, runs: Sequence[Run], measure: Measure | None = None, *, what: str = "training"
    ) -> list[RunRecords]:
        """Return the records of all runs, after training and measuring those that are missing.

        ``measure``, a module's function or a `functools.partial` of one, may run in another
        process. A record counts if it comes from the same training and the same ``measure`` with
        the same arguments. None only trains.
        """
        key, entries = _key(measure), self.study.entries()
        known = [_records(self.study, entries, run, key) for run in runs]
        missing = [run for run, records in zip(runs, known, strict=True) if records is None]
        if not missing:
            complete = [records for records in known if records is not None]
            if any("computation" not in records.log.settings for records in complete):
                say(f"{what}: study of schema version 1, recognised by settings and data alone")
            return complete
        self.require_writing()
        say(f"{what}: {len(missing)} of {len(runs)} runs to do")
        for results in progress_bar(
            self._measured(missing, measure), what=what, total=len(missing), show=self.progress
        ):
            for result in _with_computation(self.study, results):
                self.study.save(result)  # the log is the last: where it is, the run is complete
        entries = self.study.entries()
        return [
            records or _saved(_records(self.study, entries, run, key), run)
            for records, run in zip(known, runs, strict=True)
        ]

    def trained(self, runs: Sequence[Run]) -> list[Trained]:
        """Return the trained models, to be measured in this process."""
        self.run(runs)
        with _one_thread():
            return [_trained(run, self.folder) for run in runs]

    def require_writing(self) -> None:
        """Raise `UnfinishedError` if the study is open for reading only."""
        if self.study.readonly:
            raise UnfinishedError

    def _measured(self, runs: Sequence[Run], measure: Measure | None) -> Iterator[list[Result]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        work = functools.partial(_train_and_measure, measure=measure, folder=self.folder)
        if self.workers <= 1 or len(runs) <= 1:
            return map(work, runs)
        return in_processes(work, runs, workers=min(self.workers, len(runs)))


def evidence(records: Sequence[RunRecords]) -> list[str]:
    """State how many searches and eigenvalues did not converge, a sentence for each kind."""
    results = [result for one in records for result in one.results]
    searches = [result for result in results if isinstance(result, Sharpness)]
    pairs = [result for result in results if isinstance(result, Eigenpairs)]
    sentences = []
    if searches:
        n_open = sum(not result.converged for result in searches)
        gap = max(result.gap for result in searches)
        sentences.append(
            f"Sharpness is found by search, a lower bound: {n_open} of {len(searches)} searches "
            f"did not converge, largest gap {gap:.0e}."
        )
    if pairs:
        n_open = sum(not result.converged for result in pairs)
        residual = max(float(result.residuals[0]) for result in pairs)
        sentences.append(
            f"λmax: {n_open} of {len(pairs)} did not converge, largest residual {residual:.0e}."
        )
    return sentences


# --- training and measuring one run -------------------------------------------------------------


@contextmanager
def _one_thread() -> Iterator[None]:
    # Faster for small networks, and the same bits for any number of processes and cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _key(measure: Measure | None) -> str:
    """Return what identifies a way of measuring: script, function, arguments.

    The prefix is that of the study files beside this module.
    """
    if measure is None:
        return "landscape.experiments.runs.measure_nothing {}"
    keywords: Mapping[str, Any] = getattr(measure, "keywords", {})
    function = getattr(measure, "func", measure)
    script = Path(inspect.getfile(function)).stem
    return (
        f"landscape.experiments.{script}.{function.__qualname__} {dumps(keywords, canonical=True)}"
    )


def _train_and_measure(run: Run, *, measure: Measure | None, folder: Path) -> list[Result]:
    try:
        with _one_thread():
            trained = _trained(run, folder)
            results = list(map(_without_vectors, measure(trained) if measure else []))
    except LandscapeError as error:
        error.args = (f"{run.name}: {error}",)
        raise
    # The key sets these records apart: a record without vectors must not pass for a complete one.
    return [
        dataclasses.replace(one, settings={**one.settings, "experiment": _key(measure)})
        for one in (*results, trained.log)
    ]


def _trained(run: Run, folder: Path) -> Trained:
    """Train, resume an interrupted training, or read the finished one."""
    task, file = load_task(run.problem), folder / f"{run.problem}-{run.digest}.pt"
    epochs, state = int(run.settings["epochs"]), file.with_suffix(".state")
    every = 1 if run.epochs_kept else 0
    resume = functools.partial(
        train, task, **run.settings, progress=False, state=state, checkpoint=file, save_every=every
    )
    try:
        trained = resume()
    except CheckpointError:  # a state of other data or another torch is no more than a cache
        state.unlink(missing_ok=True)
        trained = resume()
    save_checkpoint(trained, file)
    kept: dict[int, Path] = {}
    for epoch in range(epochs + 1) if run.epochs_kept else ():
        path = checkpoint_of_epoch(file, epoch, epochs=epochs)
        if epoch in run.epochs_kept and epoch < epochs:
            kept[epoch] = path
        else:
            path.unlink(missing_ok=True)
    base = task.problem(split=trained.settings.get("split", "train"))
    log = training_log(trained, base.at(trained.model, name=run.name), task=run.problem)
    return Trained(run, log, {**kept, epochs: trained.model})


def _without_vectors(result: Result) -> Result:
    """Leave out vectors of the size of the model: a study of a hundred models would be huge."""
    n = result.provenance.n_parameters
    values = {item.name: getattr(result, item.name) for item in dataclasses.fields(result)}
    large = [k for k, v in values.items() if isinstance(v, np.ndarray) and n in v.shape]
    emptied: dict[str, Any] = {name: np.empty(0) for name in large}
    return dataclasses.replace(result, **emptied)


# --- recognising a run in a study ---------------------------------------------------------------


def _saved(records: RunRecords | None, run: Run) -> RunRecords:
    if records is None:
        msg = f"the log of {run.name} was saved and is not found in the study: report this"
        raise StudyError(msg)
    return records


def _records(study: Study, entries: Sequence[Entry], run: Run, key: str) -> RunRecords | None:
    """Return the records of a run, if the study holds its log."""
    start = _start_of(run.problem, str(run.settings.get("split", "train")))
    computation = study.identify(start).problem_fingerprint
    wanted = {**_expected(run), "experiment": key, "computation": computation}
    for entry in entries:
        # Version 1 of the study schema did not record what a problem computes: there the settings
        # and the data decide.
        settings = {"computation": computation, **entry.settings}
        if entry.kind != TrainingLog.kind or settings != wanted:
            continue
        log = study.load(entry.id)
        same_data = log.provenance.data_fingerprint == start.data_fingerprint
        if isinstance(log, TrainingLog) and same_data:
            return RunRecords(run, log, tuple(_measured_on(study, entries, entry, run)))
    return None


def _measured_on(study: Study, entries: Sequence[Entry], log: Entry, run: Run) -> Iterator[Result]:
    names = {run.name_at(epoch) for epoch in run.epochs_kept}
    for entry in entries:
        of_run = entry.checkpoint_hash == log.checkpoint_hash or entry.name in names
        same = (entry.settings.get(k) == log.settings.get(k) for k in ("experiment", "computation"))
        if of_run and all(same):
            result = study.load(entry.id)
            # Another run may have come to the same weights under another name.
            named = dataclasses.replace(result.provenance, checkpoint=run.name)
            yield result if entry.name in names else dataclasses.replace(result, provenance=named)


def _expected(run: Run) -> Mapping[str, Any]:
    """Return the settings that the log of a run has."""
    settings = TrainingSettings(**run.settings).record()
    plain: Mapping[str, Any] = loads(dumps({"problem": run.problem, **settings}))
    return plain


@functools.lru_cache
def _start_of(problem: str, split: str) -> Provenance:
    """Return what a problem computes at its initial weights, which stands for its code."""
    with _one_thread():
        return provenance_of(load_task(problem).problem(split=split))


def _with_computation(study: Study, results: Sequence[Result]) -> list[Result]:
    """Add what the problem of a run computes to the settings; the log is the last record."""
    settings = results[-1].settings
    start = _start_of(str(settings["problem"]), str(settings.get("split", "train")))
    computation = study.identify(start).problem_fingerprint
    return [
        dataclasses.replace(one, settings={**one.settings, "computation": computation})
        for one in results
    ]


# --- processes ----------------------------------------------------------------------------------

_POLL_SECONDS = 0.5  # how often a worker checks that its parent is alive


def in_processes(work: Callable[[T], U], items: Sequence[T], *, workers: int) -> Iterator[U]:
    """Apply a module's function to items in processes; yield results as they are done.

    The first exception ends the other processes at once, and they end with their parent.
    """
    # Spawned, not forked: a fork of a process in which torch has started threads can hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(stop,)) as pool:
        tasks = [pool.submit(work, item) for item in items]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool as error:
            msg = (
                "a process that trained or measured was ended from outside, perhaps because the "
                "memory was full: try --workers 1; finished runs are kept"
            )
            raise LandscapeError(msg) from error
        finally:
            if not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()
                stop.set()  # unfinished trainings resume from their state another time


def _start_worker(stop: Any) -> None:
    """Leave Ctrl-C to the parent process, and exit when it ends or asks for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        while not stop.wait(_POLL_SECONDS):
            if parent is None or not parent.is_alive():
                break
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- drawing ------------------------------------------------------------------------------------

INDEX = {"SGD": 0, "SAM": 1}  # of colours and markers
MEANS = "means over seeds with 95 % t intervals, every seed a faint dot"


def spans_decades(values: Any) -> bool:
    """Whether values are positive and the largest is ten times the smallest or more."""
    return bool(np.min(values) > 0 and np.max(values) >= 10 * np.min(values))


def draw_bars(axes: Axes, x: Any, values: Any, *, index: int, **style: Any) -> None:
    """Draw the mean of each row of values, shape (n_x, n_seeds), with its t interval."""
    found = [mean_interval(row) for row in np.asarray(values)]
    mean, low, high = (
        np.array([getattr(f, end) for f in found]) for end in ("value", "low", "high")
    )
    look = {"fmt": marker(index), "markersize": 4.5, "elinewidth": 1.1, "capsize": 2.2, "zorder": 3}
    error = [mean - low, high - mean]
    axes.errorbar(x, mean, yerr=error, color=colour(index), **{**look, **style})


def draw_means(axes: Axes, x: Any, values: Any, *, index: int, label: str) -> None:
    """Draw means over seeds as a line with intervals, and every seed as a faint dot."""
    dots = np.repeat(np.asarray(x, dtype=float), np.shape(values)[1])
    tint = colour(index)
    axes.plot(dots, np.ravel(values), ".", color=tint, alpha=0.35, markersize=4, zorder=1.8)
    draw_bars(axes, x, values, index=index, fmt=marker(index) + "-", label=label, lw=1.3)


def draw_level(axes: Axes, values: Any, *, tint: str, **style: Any) -> None:
    """Draw the mean over seeds as a horizontal line, with its t interval as a band."""
    level = mean_interval(values)
    axes.axhline(level.value, color=tint, lw=1.2, zorder=1.5, **style)
    axes.axhspan(level.low, level.high, color=tint, alpha=0.15, lw=0, zorder=1.1)


def draw_zero(axes: Axes, *, vertical: bool = False) -> None:
    """Draw a dashed line at zero."""
    line = axes.axvline if vertical else axes.axhline
    line(0.0, color=FAINT, lw=0.9, linestyle=(0, (4, 2)), zorder=1.2)


def add_grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    """Lay a grid under everything that is drawn."""
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis=axis)


def legend_above(axes: Axes) -> None:
    """Place the legend above the panel, where no data can be."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0))


# --- the command line ---------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell a person what goes on."""
    print(text, file=sys.stderr)


def main(
    figure: Callable[[Runner, Any], Made],
    *,
    full: Any,
    small: Any,
    arguments: Sequence[str] | None = None,
) -> None:
    """Run the command line of a script: measure what its study lacks, draw, print the tables."""
    script = Path(inspect.getfile(figure))
    parser = argparse.ArgumentParser(
        description=sys.modules[figure.__module__].__doc__,
        epilog="Writes NAME.png, NAME.pdf and the study NAME.db. An interrupted script resumes; "
        "with its study complete it only draws. Needs landscape-sharpness[demo].",
    )
    parser.add_argument("-o", "--output", type=Path, default=script.parent, metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="takes seconds; numbers mean nothing")
    parser.add_argument("--workers", type=int, default=min(8, usable_cpus()), help="processes")
    options = parser.parse_args(arguments)
    name, folder = script.stem, options.output
    stem = f"{name}-small" if options.small else name
    try:
        picture, tables, notes = _figure(
            functools.partial(figure, plan=small if options.small else full),
            folder / f"{stem}.db",
            {"folder": folder / ".build" / name, "workers": options.workers},
        )
        if options.small:
            text = "small version: the numbers mean nothing"
            picture.text(0.995, 0.995, text, ha="right", va="top", color="0.45", fontsize=8)
        written = save_figure(picture, folder / f"{stem}.png", formats=("png", "pdf"))
    except LandscapeError as error:
        sys.exit(f"Error: {error}")
    for table in tables:
        print_table(table)
    print(*notes, f"Written: {', '.join(map(str, written))}", sep="\n")


def _figure(figure: Callable[..., Made], file: Path, options: Mapping[str, Any]) -> Made:
    if file.is_file():
        # A complete study stays as it is, byte for byte.
        with suppress(UnfinishedError), Study(file, readonly=True) as study:
            return figure(Runner(study=study, **options))
    file.parent.mkdir(parents=True, exist_ok=True)
    with Study(file) as study:
        return figure(Runner(study=study, **options))


def print_table(table: Table) -> None:
    """Print rows of text in columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip())
    print()
