"""What a training is like at the weights it has: measured between two steps, then given back."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.optim import Optimizer

from landscape.checks import positive, whole
from landscape.curvature import top_eigenpairs
from landscape.errors import InvalidArgumentError, LandscapeError, one_of
from landscape.loss import evaluation
from landscape.optim import (
    SAM,
    Edge,
    edge_of_stability,
    is_preconditioned,
    next_update,
    preconditioner,
)
from landscape.optim.edge import largest_lr
from landscape.problem import Problem, check_problem
from landscape.results import Eigenpairs, Result
from landscape.stability import batch_sharpness, update_sharpness
from landscape.study import Study
from landscape.wording import Quantity

Measure = Callable[[Problem], "Result | None"]
MEASURES = ("loss", "eigs", "update-sharpness", "batch-sharpness")


class Monitor:
    """Measure a model on a fixed probe batch every so many steps of its training.

    Call `step` after the backward pass, before the optimizer's step:

        probe = ls.Problem(model, loss, [probe_batch], dtype="float32")
        monitor = Monitor(probe, optimizer, study="run.db", every=100, log=wandb.log)
        for batch in loader:
            loss_of(model, batch).backward()
            monitor.step()
            optimizer.step()
            optimizer.zero_grad()

    The training goes on bit for bit as it would without: weights, gradients, buffers, modes, the
    optimizer and the random number generators are given back. λ/edge is λmax over the curvature at
    which the optimizer diverges on a quadratic (`edge_of_stability`), of P⁻¹H where it is one with
    a preconditioner P, which is not measured before the optimizer's first step. What fails is a
    warning, and the training goes on. Eigenvectors are not kept in the study.

    Args:
        probe: the model that is trained, with its loss, on a fixed batch or a few.
        optimizer: that of the training, for the edge and its own update; None: neither.
        study: file that keeps the records, by the name of the run and the step; None: none.
        run: name of the run; its records are ``run-step-N``. One that the study holds is gone on
            with, if its last step is before this one's first; else this one is ``run-2``.
        every: steps between two measurements, at least 1.
        budget: largest share of the time that measurements may take, such as 0.01: one that would
            exceed it, taking as long as the one before, is put off. The first is not. None: no
            limit.
        measures: some of ``loss``, ``eigs``, ``update-sharpness`` and ``batch-sharpness``; or
            functions (problem) → record by a name.
        batch_size: of the batch sharpness, at most the examples of the probe.
        n_batches: how many batches it is the mean over.
        log: called with the numbers by name after each measurement, such as ``wandb.log``.
        seed: of the random vectors.

    Raises:
        InvalidArgumentError: if an argument is out of its range.

    Cost: with the default measures about 20 gradient passes over the probe each time, less where
    the eigenvector of the time before is near.
    """

    def __init__(
        self,
        probe: Problem,
        optimizer: Optimizer | None = None,
        *,
        study: str | Path | None = None,
        run: str = "run",
        every: int = 100,
        budget: float | None = None,
        measures: tuple[str, ...] | Mapping[str, Measure] = MEASURES[:3],
        batch_size: int = 1,
        n_batches: int = 64,
        log: Callable[[dict[str, float]], object] | None = None,
        seed: int = 0,
    ) -> None:
        check_problem(probe)
        self._probe, self.optimizer, self.run = probe, optimizer, run
        self.every, self.seed = whole("every", every, least=1), seed
        self.budget = None if budget is None else positive("budget", budget)
        self._size = whole("batch_size", batch_size, least=1)
        self._n_batches = n_batches
        own: dict[str, Measure] = {
            "loss": self._loss,
            "eigs": self._eigs,
            "update-sharpness": self._update,
        }
        own["batch-sharpness"] = self._batches
        if isinstance(measures, Mapping):
            self._measures = dict(measures)
        else:
            self._measures = {one_of(name, own, what="measure"): own[name] for name in measures}
        if not self._measures:
            msg = f"measures is empty; known: {', '.join(MEASURES)}"
            raise InvalidArgumentError(msg)
        self._log = log
        self._study = None if study is None else Path(study)
        self._steps: dict[str, float] = {}
        self._n, self._began, self._spent, self._last = 0, time.perf_counter(), 0.0, 0.0
        self._previous: Eigenpairs | None = None
        self._loss_scale, self._is_named = 1.0, False

    def step(self, *, at: int | None = None, loss_scale: float = 1.0) -> dict[str, float]:
        """Measure, if it is time to.

        Args:
            at: number of the training step; None: one more than at the call before, from 0.
            loss_scale: factor of the gradients that the parameters hold, ``scaler.get_scale()``.

        Returns:
            The numbers by name; empty if nothing was measured.
        """
        step = self._n if at is None else at
        self._n = step + 1
        if step % self.every or not self._can_afford():
            return {}
        began = time.perf_counter()
        if not self._is_named:
            with _warning(step, "study"):
                self._name_run(step)
        name = f"{self.run}-step-{step}"
        self._loss_scale = loss_scale
        numbers: dict[str, float] = {}
        records: list[Result] = []
        problem = self._probe.named(name)
        with _without_autocast():
            for what, measure in self._measures.items():
                with _warning(step, what):
                    if (record := measure(problem)) is not None:
                        records.append(record)
                        numbers |= _numbers(what, record)
        with _warning(step, "study"):
            self._save(records, name, step)
        took = time.perf_counter() - began
        self._spent, self._last = self._spent + took, took
        if numbers and self._log is not None:
            with _warning(step, "log"):
                self._log({**numbers, "landscape/step": step})
        return numbers

    def _name_run(self, step: int) -> None:
        """Go on with the run of this name, if this step is behind it; else take a new name."""
        self._is_named, given, n = True, self.run, 1
        if self._study is None:
            return
        with Study(self._study) as study:
            runs = study.runs()
        while (known := runs.get(self.run)) and max(known.values()) >= step:
            n += 1
            self.run = f"{given}-{n}"
        self._steps = dict(known or {})
        if n > 1:
            msg = f"{self._study} holds a run {given!r} already: this one is {self.run!r}"
            warnings.warn(msg, stacklevel=5)

    def _save(self, records: list[Result], name: str, step: int) -> None:
        if self._study is None or not records:
            return
        self._steps[name] = step
        with Study(self._study) as study:
            for record in records:
                if isinstance(record, Eigenpairs):  # a vector as long as the model each time
                    none = np.empty((len(record.values), 0))
                    record = dataclasses.replace(record, vectors=none)
                study.save(record)
            study.set_run(self.run, self._steps)

    def _can_afford(self) -> bool:
        if self.budget is None:
            return True
        elapsed = time.perf_counter() - self._began - self._spent
        return self._spent == 0.0 or self._spent + self._last <= self.budget * elapsed

    def _edge(self) -> Edge | None:
        """Return the edge of the optimizer at its gradient, where it is known."""
        optimizer, norm = self.optimizer, None
        if optimizer is None:
            return None
        if isinstance(optimizer, SAM):  # whose edge depends on the norm
            gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
            norms = [
                float(torch.linalg.vector_norm(g.double())) for g in gradients if g is not None
            ]
            norm = math.hypot(*norms) / self._loss_scale
        try:
            return edge_of_stability(optimizer, gradient_norm=norm)
        except InvalidArgumentError:
            return None

    def _loss(self, problem: Problem) -> Result:
        return evaluation(problem, seed=self.seed)

    def _eigs(self, problem: Problem) -> Result | None:
        edge, scale = self._edge(), None
        if self.optimizer is not None and is_preconditioned(self.optimizer):
            try:
                by_parameter = preconditioner(self.optimizer)
            except InvalidArgumentError:  # before the first step; H alone would be another number
                return None
            names = {id(p): name for name, p in problem.model.named_parameters()}
            of = {names[id(p)]: d for p, d in by_parameter.items() if id(p) in names}
            lacking = [name for name in problem.space.names if name not in of]
            if lacking:
                msg = f"the optimizer holds no moments of {lacking[0]}: explore what it trains"
                raise InvalidArgumentError(msg)
            scale = problem.space.flatten({name: of[name] for name in problem.space.names})
        found = top_eigenpairs(
            problem,
            start=self._previous,
            evidence="residuals",
            preconditioner=scale,
            weight_decay=0.0 if scale is None or edge is None else edge.decay,
            seed=self.seed,
            progress=False,
        )
        self._previous = found
        return found if edge is None else dataclasses.replace(found, edge=edge.value)

    def _update(self, problem: Problem) -> Result:
        if self.optimizer is None:
            return update_sharpness(problem, seed=self.seed, progress=False)
        lr = largest_lr(self.optimizer)
        with _unscaled(self.optimizer, self._loss_scale):
            update = next_update(self.optimizer)
        return update_sharpness(problem, update, lr=lr, seed=self.seed, progress=False)

    def _batches(self, problem: Problem) -> Result:
        size, n = self._size, self._n_batches
        return batch_sharpness(problem, size, n_batches=n, seed=self.seed, progress=False)


def _numbers(name: str, record: Result) -> dict[str, float]:
    if record.settings.get("scale") == "preconditioner":
        name = f"preconditioned {name}"  # another number than that of the Hessian
    return {
        f"landscape/{name}/{label}": cell.value if isinstance(cell, Quantity) else float(cell)
        for label, cell in record.summary().items()
        if not isinstance(cell, (str, bool))
    }


@contextmanager
def _warning(step: int, what: str) -> Iterator[None]:
    """Turn whatever fails into a warning: a training is worth more than its measurements."""
    try:
        yield
    except Exception as error:
        name = "" if isinstance(error, LandscapeError) else f"{type(error).__name__}: "
        warnings.warn(f"step {step}: {what}: {name}{error}", stacklevel=4)


def _without_autocast() -> AbstractContextManager[object]:
    """Leave the autocast contexts of the training."""
    stack = ExitStack()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


@contextmanager
def _unscaled(optimizer: Optimizer, scale: float) -> Iterator[None]:
    """Divide the gradients by a factor, and give them back as they were."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = [p.grad for p in parameters]
    try:
        for parameter in parameters if scale != 1.0 else ():
            if parameter.grad is not None:
                parameter.grad = parameter.grad / scale
        yield
    finally:
        for parameter, gradient in zip(parameters, own, strict=True):
            parameter.grad = gradient
