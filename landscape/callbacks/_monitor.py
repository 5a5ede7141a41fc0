"""What a training is like at the weights it has: measured between two steps, then given back."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch
from torch.optim import Optimizer

from landscape.checks import positive, whole
from landscape.curvature import top_eigenpairs
from landscape.errors import InvalidArgumentError, LandscapeError, StudyError, one_of
from landscape.loss import evaluation
from landscape.optim import Edge, edge_of_stability, next_update, preconditioner
from landscape.optim.edge import largest_lr
from landscape.problem import Problem, check_problem
from landscape.results import Eigenpairs, Result
from landscape.stability import batch_sharpness, update_sharpness
from landscape.study import Study
from landscape.wording import Quantity

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
    a preconditioner P. A measurement that fails is a warning, and the training goes on.

    Args:
        probe: the model that is trained, with its loss, on a fixed batch or a few.
        optimizer: that of the training, for the edge and its own update; None: neither.
        study: file that keeps the records, by the name of the run and the step; None: none.
        run: name of the run; its records are ``run-step-N``.
        every: steps between two measurements, at least 1.
        budget: largest share of the time that measurements may take, such as 0.01; a measurement
            that would take more is put off. None: no limit.
        measures: some of ``loss``, ``eigs``, ``update-sharpness`` and ``batch-sharpness``; or
            functions (problem) → record by a name.
        batch_size: of the batch sharpness, at most the examples of the probe.
        n_batches: how many batches it is the mean over.
        log: called with the numbers by name after each measurement, such as ``wandb.log``.
        seed: of the random vectors.

    Raises:
        InvalidArgumentError: if an argument is out of its range.
        StudyError: if the study holds a run of that name already: two monitors would mix.

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
        measures: tuple[str, ...] | Mapping[str, Callable[[Problem], Result]] = MEASURES[:3],
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
        own = {"loss": self._loss, "eigs": self._eigs, "update-sharpness": self._update}
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
        self._n, self._began, self._spent, self._longest = 0, time.perf_counter(), 0.0, 0.0
        self._previous: Eigenpairs | None = None
        self._edge: Edge | None = None
        if self._study is not None:
            with Study(self._study) as opened:
                if run in opened.runs():
                    msg = (
                        f"{study} holds a run {run!r} already: name this one otherwise by run=, or "
                        "give another file"
                    )
                    raise StudyError(msg)

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
        began, name = time.perf_counter(), f"{self.run}-step-{step}"
        numbers: dict[str, float] = {}
        with _without_autocast():
            self._find_edge(loss_scale)
            records = self._measured(self._probe.named(name), numbers)
        if self._study is not None and records:
            self._steps[name] = step
            with Study(self._study) as study:
                for record in records:
                    study.save(record)
                study.set_run(self.run, self._steps)
        took = time.perf_counter() - began
        self._spent, self._longest = self._spent + took, max(self._longest, took)
        if numbers and self._log is not None:
            self._log({**numbers, "landscape/step": step})
        return numbers

    def _can_afford(self) -> bool:
        if self.budget is None:
            return True
        elapsed = time.perf_counter() - self._began - self._spent
        return self._spent == 0.0 or self._spent + self._longest <= self.budget * elapsed

    def _find_edge(self, loss_scale: float) -> None:
        self._loss_scale, self._edge = loss_scale, None
        if self.optimizer is None:
            return
        gradients = [p.grad for g in self.optimizer.param_groups for p in g["params"]]
        known = [g.detach() for g in gradients if g is not None]
        norms = [float(torch.linalg.vector_norm(g.double())) for g in known]
        try:
            norm = math.hypot(*norms) / loss_scale if norms else None
            self._edge = edge_of_stability(self.optimizer, gradient_norm=norm)
        except InvalidArgumentError:
            return  # of an optimizer without a known edge λ alone is measured

    def _measured(self, problem: Problem, numbers: dict[str, float]) -> list[Result]:
        records: list[Result] = []
        for name, measure in self._measures.items():
            try:
                record = measure(problem)
            except LandscapeError as error:
                warnings.warn(f"step {self._n - 1}: {name}: {error}", stacklevel=3)
                continue
            records.append(record)
            numbers |= self._numbers(name, record)
        return records

    @staticmethod
    def _numbers(name: str, record: Result) -> dict[str, float]:
        return {
            f"landscape/{name}/{label}": cell.value if isinstance(cell, Quantity) else float(cell)
            for label, cell in record.summary().items()
            if not isinstance(cell, (str, bool))
        }

    def _loss(self, problem: Problem) -> Result:
        return evaluation(problem, seed=self.seed)

    def _eigs(self, problem: Problem) -> Result:
        edge, scale = self._edge, None
        if edge is not None and edge.preconditioned and self.optimizer is not None:
            named = {id(p): name for name, p in problem.model.named_parameters()}
            try:
                by_parameter = preconditioner(self.optimizer)
            except InvalidArgumentError:  # before the first step
                edge = None
            else:
                of = {named[id(p)]: divisor for p, divisor in by_parameter.items()}
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
        with _unscaled(self.optimizer, self._loss_scale):
            update = next_update(self.optimizer)
        lr = largest_lr(self.optimizer)
        return update_sharpness(problem, update, lr=lr, seed=self.seed, progress=False)

    def _batches(self, problem: Problem) -> Result:
        size, n = self._size, self._n_batches
        return batch_sharpness(problem, size, n_batches=n, seed=self.seed, progress=False)


def _without_autocast() -> AbstractContextManager[object]:
    """Leave the autocast contexts of the training."""
    stack = ExitStack()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def _unscaled(optimizer: Optimizer, scale: float) -> AbstractContextManager[object]:
    """Take the factor of a gradient scaler off the gradients, and give them back as they were."""
    stack = ExitStack()
    if scale != 1.0:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stack.callback(setattr, parameter, "grad", parameter.grad)
                    parameter.grad = parameter.grad / scale
    return stack
