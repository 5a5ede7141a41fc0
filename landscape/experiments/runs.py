"""Many trainings and what is measured on each: side by side, kept in a study, never done twice."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from landscape.errors import CheckpointError, LandscapeError, StudyError
from landscape.evaluate import provenance_of
from landscape.experiments.processes import side_by_side
from landscape.problem import Problem, load_task
from landscape.progress import progress_bar
from landscape.results import Eigenpairs, Provenance, Result, Sharpness, TrainingLog
from landscape.study import Entry, Study
from landscape.study.codec import dumps, loads
from landscape.training import Trained as Finished
from landscape.training import checkpoint_of_epoch, save_checkpoint, train, training_log
from landscape.training.settings import checked

R = TypeVar("R", bound=Result)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of an experiment.

    Attributes:
        problem: name of a built-in problem.
        settings: arguments of `landscape.training.train`; plain JSON values.
        name: what people read, unique in the experiment.
        epochs_kept: epochs after which a checkpoint is measured too, beside the last.
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

    @property
    def file(self) -> str:
        """Name of its checkpoint."""
        return f"{self.problem}-{self.digest}.pt"

    def name_at(self, epoch: int | None) -> str:
        """Return the name of the checkpoint after an epoch, which no other training has.

        Args:
            epoch: one of those that were kept; None: the last.

        Returns:
            The name.
        """
        return self.name if epoch is None else f"{self.name}, epoch {epoch} [{self.digest}]"


@dataclass(frozen=True)
class Trained:
    """A trained model, to be measured.

    Attributes:
        run: the training.
        log: its log.
        models: the weights by epoch; the last epoch comes last.
    """

    run: Run
    log: TrainingLog
    models: Mapping[int, nn.Module | Path]

    def problem(self, *, split: str = "train", epoch: int | None = None) -> Problem:
        """Return the problem at the trained weights, with the clean labels.

        Args:
            split: part of the data.
            epoch: one of the epochs that were kept; None: the last.

        Returns:
            The problem, under the name of the run.
        """
        last = list(self.models)[-1]
        name = self.run.name_at(None if epoch == last else epoch)
        base = load_task(self.run.problem).problem(split=split)
        return base.at(self.models[last if epoch is None else epoch], name=name)


Measure = Callable[[Trained], Sequence[Result]]


@dataclass(frozen=True)
class Found:
    """What a study holds of one training.

    Attributes:
        run: the training.
        log: its log.
        results: everything that was measured on its checkpoints.
    """

    run: Run
    log: TrainingLog
    results: tuple[Result, ...]

    def get(
        self, kind: type[R], *, split: str = "train", epoch: int | None = None, **settings: Any
    ) -> R:
        """Return the one result of a kind.

        Args:
            kind: class of the record.
            split: part of the data.
            epoch: one of the epochs that were kept; None: the last.
            **settings: settings that it was measured with, as far as they tell it from others.

        Returns:
            The record.

        Raises:
            StudyError: if there is none.
        """
        name = self.run.name_at(epoch)
        for one in self.results:
            alike = isinstance(one, kind) and one.provenance.split == split and one.name == name
            if alike and all(one.settings.get(key) == value for key, value in settings.items()):
                return one  # type: ignore[return-value]
        asked = ", ".join(f"{key} = {value}" for key, value in settings.items())
        msg = (
            f"the study holds no {kind.kind} of {name} on the {split} data"
            f"{f' with {asked}' if asked else ''}: it was made by another version of this "
            "experiment; delete the file, or name another with --study"
        )
        raise StudyError(msg)


def evidence(found: Sequence[Found]) -> tuple[str, ...]:
    """Say what the sharpness and the eigenvalues of an experiment rest on.

    Args:
        found: what was measured.

    Returns:
        A sentence for each of the two that was measured.
    """
    results = [result for one in found for result in one.results]
    searches = [result for result in results if isinstance(result, Sharpness)]
    pairs = [result for result in results if isinstance(result, Eigenpairs)]
    said = []
    if searches:
        n_open = sum(not result.converged for result in searches)
        gap = max(result.gap for result in searches)
        said.append(
            f"Sharpness is found by search, a lower bound: {n_open} of {len(searches)} searches "
            f"did not converge, largest gap {gap:.0e}."
        )
    if pairs:
        n_open = sum(not result.converged for result in pairs)
        residual = max(float(result.residuals[0]) for result in pairs)
        said.append(
            f"λmax: {n_open} of {len(pairs)} did not converge, largest residual {residual:.0e}."
        )
    return tuple(said)


@dataclass
class Bench:
    """Where an experiment works: its study, its folder of checkpoints, its processes.

    Attributes:
        study: where everything is kept, and looked up first.
        folder: for checkpoints, and for trainings that are not finished.
        workers: processes that train and measure; 1: this one.
        progress: whether to draw bars; None: only where stderr is a terminal.
        say: told what begins, in a few words.
    """

    study: Study
    folder: Path
    workers: int = 1
    progress: bool | None = None
    say: Callable[[str], None] = field(default=lambda text: None)

    def do(self, runs: Sequence[Run], measure: Measure, *, what: str) -> list[Found]:
        """Train and measure what the study does not hold yet.

        What the study holds counts if it came of the same training and of the same measuring, that
        is of ``measure`` with the same arguments.

        Args:
            runs: the trainings, each with a name of its own.
            measure: a function of a module, or a `functools.partial` of one, that is given each
                training and measures what the experiment needs; it may run in another process.
            what: a few words for the bar.

        Returns:
            What the study holds of each run, in their order.

        Raises:
            LandscapeError: what went wrong in a run; those that were done before are kept.
        """
        label = _label(measure)
        entries = self.study.entries()
        found = [_found(self.study, entries, run, label) for run in runs]
        missing = [run for run, one in zip(runs, found, strict=True) if one is None]
        if missing:
            self.say(f"{what}: {len(missing)} of {len(runs)} trainings to do")
        for results in progress_bar(
            self._work(missing, measure), what=what, total=len(missing), show=self.progress
        ):
            # The log last: where it is, everything of its run is.
            for result in _of_computation(self.study, results):
                self.study.save(result)
        entries = self.study.entries() if missing else entries
        return [
            one or _required(self.study, entries, run, label)
            for run, one in zip(runs, found, strict=True)
        ]

    def trained(self, runs: Sequence[Run], *, what: str) -> list[Trained]:
        """Return trained models, to measure in this process.

        Args:
            runs: the trainings.
            what: a few words for the bar.

        Returns:
            The trained models, in the order of the runs. Cost: that of a training where the folder
            has no checkpoint of it.

        Raises:
            LandscapeError: what went wrong in a training.
        """
        self.do(runs, measure_nothing, what=what)
        with _one_thread():
            return [_trained(run, self.folder) for run in runs]

    def _work(self, runs: Sequence[Run], measure: Measure) -> Iterator[list[Result]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.workers <= 1 or len(runs) <= 1:
            for run in runs:
                yield _work_on(run, measure=measure, folder=self.folder)
            return
        yield from side_by_side(
            functools.partial(_work_on, measure=measure, folder=self.folder),
            runs,
            workers=min(self.workers, len(runs)),
        )


def measure_nothing(trained: Trained) -> list[Result]:
    """Measure nothing, where only the training is wanted.

    Args:
        trained: the model.

    Returns:
        Nothing.
    """
    return []


@contextmanager
def _one_thread() -> Iterator[None]:
    # Faster for small networks, and the same bits for any number of processes and cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _work_on(run: Run, *, measure: Measure, folder: Path) -> list[Result]:
    label = _label(measure)
    try:
        with _one_thread():
            trained = _trained(run, folder)
            results = [*map(_without_vectors, measure(trained)), trained.log]
    except LandscapeError as error:
        error.args = (f"{run.name}: {error}",)
        raise
    # Known by what measured them: nobody shall take a record without its vectors for a whole one.
    return [
        dataclasses.replace(one, settings={**one.settings, "experiment": label}) for one in results
    ]


def _label(measure: Measure) -> str:
    """Say what measures, and with which arguments."""
    keywords: Mapping[str, Any] = getattr(measure, "keywords", {})
    function = getattr(measure, "func", measure)
    return f"{function.__module__}.{function.__qualname__} {dumps(keywords, canonical=True)}"


def _trained(run: Run, folder: Path) -> Trained:
    """Train, or go on with a training that was interrupted, or read the finished one."""
    task, file = load_task(run.problem), folder / run.file
    epochs = int(run.settings["epochs"])
    state = file.with_suffix(".state")

    def trained_now() -> Finished:
        every = 1 if run.epochs_kept else 0
        return train(
            task, **run.settings, progress=False, state=state, checkpoint=file, save_every=every
        )

    try:
        trained = trained_now()
    except CheckpointError:  # of other data or another torch: no more than a cache
        state.unlink(missing_ok=True)
        trained = trained_now()
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


def _required(study: Study, entries: Sequence[Entry], run: Run, label: str) -> Found:
    found = _found(study, entries, run, label)
    if found is None:
        msg = f"the log of {run.name} was saved and is not found in {study.path}: report this"
        raise StudyError(msg)
    return found


def _found(study: Study, entries: Sequence[Entry], run: Run, label: str) -> Found | None:
    """Return what a study holds of a training, if it holds its log."""
    start = _start_of(run.problem, str(run.settings.get("split", "train")))
    computation = study.identify(start).problem_fingerprint
    wanted = {**_expected(run), "experiment": label, "computation": computation}
    for entry in entries:
        if entry.kind != TrainingLog.kind or entry.settings != wanted:
            continue
        log = study.load(entry.id)
        same_data = log.provenance.data_fingerprint == start.data_fingerprint
        if isinstance(log, TrainingLog) and same_data:
            return Found(run, log, tuple(_measured_on(study, entries, entry, run)))
    return None


def _measured_on(study: Study, entries: Sequence[Entry], log: Entry, run: Run) -> Iterator[Result]:
    apart = ("experiment", "computation")
    names = {run.name_at(epoch) for epoch in run.epochs_kept}
    for entry in entries:
        of_run = entry.checkpoint_hash == log.checkpoint_hash or entry.name in names
        if of_run and all(entry.settings.get(key) == log.settings[key] for key in apart):
            result = study.load(entry.id)
            # Another run may have come to the same weights under another name.
            named = dataclasses.replace(result.provenance, checkpoint=run.name)
            yield result if entry.name in names else dataclasses.replace(result, provenance=named)


def _expected(run: Run) -> Mapping[str, Any]:
    """Return the settings that the log of a run has."""
    parameters = inspect.signature(train).parameters.values()
    usual = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    settings = {"problem": run.problem, **checked({**usual, **run.settings})}
    plain: Mapping[str, Any] = loads(dumps(settings))
    return plain


@functools.lru_cache
def _start_of(problem: str, split: str) -> Provenance:
    """Return what a problem computes at its initial weights, which stands for its code."""
    with _one_thread():
        return provenance_of(load_task(problem).problem(split=split))


def _of_computation(study: Study, results: Sequence[Result]) -> list[Result]:
    """Add to the settings what the problem of a training computes; its log is the last record."""
    asked = results[-1].settings
    start = _start_of(str(asked["problem"]), str(asked.get("split", "train")))
    computation = study.identify(start).problem_fingerprint
    return [
        dataclasses.replace(one, settings={**one.settings, "computation": computation})
        for one in results
    ]


def _without_vectors(result: Result) -> Result:
    """Leave out vectors of the size of the model: a study of a hundred models would be huge."""
    n = result.provenance.n_parameters
    values = {item.name: getattr(result, item.name) for item in dataclasses.fields(result)}
    large = [k for k, v in values.items() if isinstance(v, np.ndarray) and n in v.shape]
    emptied: dict[str, Any] = {name: np.empty(0) for name in large}
    return dataclasses.replace(result, **emptied)
