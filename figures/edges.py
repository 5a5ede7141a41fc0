"""Training at the edge of stability: λmax, of P⁻¹H for Adam, over the edge of its optimizer.

After Cohen et al. 2021 and 2022, arXiv 2103.00065 and 2207.14484 (gradient descent, Adam); Long and
Bartlett 2024, arXiv 2309.12488 (SAM); Andreyev and Beneventano 2024, arXiv 2412.20553 (batches).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import Made, Runner, Table, UnfinishedError, add_grid, in_processes, main
from torch import Tensor, nn

from landscape.callbacks import Monitor
from landscape.intervals import mean_interval
from landscape.optim import SAM
from landscape.plots.style import FAINT, colour, styled, write_caption
from landscape.problem import Problem
from landscape.results import FloatArray
from landscape.results.stability import BatchSharpness
from landscape.study import Study
from landscape.tasks import digits

Curves = Mapping[str, tuple[FloatArray, FloatArray]]  # steps, and values of each seed, by name


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of the experiment: numbers of examples, steps, measurements and seeds."""

    examples: int = 500
    width: int = 32
    steps: int = 4000
    points: int = 32
    batches: int = 32
    seeds: int = 3


FULL = Plan()
TINY = Plan(examples=70, width=4, steps=12, points=3, batches=2, seeds=2)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, by the panel and the curve that it belongs to."""

    panel: str
    curve: str
    lr: float
    rho: float = 0.0
    batch: int = 0  # examples in a batch; 0: all
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.panel}, {self.curve}, seed {self.seed}"


PANELS: Mapping[str, tuple[Job, ...]] = {
    "GD": tuple(Job(panel="GD", curve=f"η = {lr:g}", lr=lr) for lr in (0.05, 0.1, 0.2)),
    "Adam": tuple(Job(panel="Adam", curve=f"η = {lr:g}", lr=lr) for lr in (1e-3, 3e-3)),
    "SAM": tuple(
        Job(panel="SAM", curve=f"ρ = {rho:g}", lr=0.1, rho=rho) for rho in (0.02, 0.05, 0.1)
    ),
    "SGD": tuple(Job(panel="SGD", curve=f"{n} examples", lr=0.2, batch=n) for n in (4, 16, 64)),
}


def figure(runner: Runner, plan: Plan) -> Made:
    """Train, measure λmax on the way, and draw it over the edge; some minutes on two cores."""
    jobs = [
        Job(**{**vars(job), "seed": seed})
        for of in PANELS.values()
        for job in of
        for seed in range(plan.seeds)
    ]
    missing = [job for job in jobs if job.name not in runner.study.runs()]
    if missing and runner.study.readonly:
        raise UnfinishedError
    if missing:
        runner.folder.mkdir(parents=True, exist_ok=True)
    work = partial(train, plan=plan, folder=str(runner.folder))
    for job, file in in_processes(work, missing, workers=runner.workers):
        _take_over(runner.study, file, job)
    panels = {panel: _curves(runner.study, of, plan.seeds) for panel, of in PANELS.items()}
    below = _curves(runner.study, PANELS["SGD"], plan.seeds, kind="eigs")
    return draw(panels, below, plan), [_table(panels, below)], []


def train(job: Job, *, plan: Plan, folder: str) -> tuple[Job, str]:
    """Train once, watched by a monitor, and return its study file."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    inputs, labels = (part[: plan.examples] for part in digits.data("train"))
    targets = nn.functional.one_hot(labels, 10).to(inputs)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, plan.width), nn.Tanh(),
        nn.Linear(plan.width, plan.width), nn.Tanh(), nn.Linear(plan.width, 10),
    )  # fmt: skip
    optimizer: Any = {
        "GD": lambda w: torch.optim.SGD(w, lr=job.lr),
        "Adam": lambda w: torch.optim.Adam(w, lr=job.lr),
        "SAM": lambda w: SAM(w, torch.optim.SGD, rho=job.rho, lr=job.lr),
        "SGD": lambda w: torch.optim.SGD(w, lr=job.lr),
    }[job.panel](model.parameters())
    file = f"{folder}/{job.panel}-{job.curve.replace(' ', '')}-{job.seed}.db"
    measures = ("eigs", "batch-sharpness") if job.batch else ("eigs",)
    monitor = Monitor(
        Problem(model, squared, (inputs, targets)),
        optimizer,
        study=_empty(file),
        run=job.name,
        every=max(plan.steps // plan.points, 1),
        measures=measures,
        batch_size=job.batch or 1,
        n_batches=plan.batches,
        seed=job.seed,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = squared(model(inputs[rows]), targets[rows]).mean()
        loss.backward()
        return loss

    rows: Any = slice(None)
    for _ in range(plan.steps):
        if job.batch:
            rows = torch.randint(len(inputs), (job.batch,))
        closure()  # the gradient at w, whose norm SAM's edge depends on
        monitor.step()
        optimizer.step(closure)
    return job, file


def squared(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error of each example."""
    return (output - target).square().sum(dim=1) / 2


def _empty(file: str) -> str:
    for end in ("", "-wal", "-shm"):  # of a training that was interrupted
        Path(file + end).unlink(missing_ok=True)
    return file


def _take_over(study: Study, file: str, job: Job) -> None:
    with Study(file, readonly=True) as own:
        for entry in own.entries():
            study.save(own.load(entry.id))
        study.set_run(job.name, own.runs()[job.name])


def _curves(study: Study, jobs: Sequence[Job], seeds: int, *, kind: str | None = None) -> Curves:
    """Return λ/edge over the steps, or the batch sharpness over 2/η, of every curve and seed."""
    found = {}
    for job in jobs:
        chosen = kind or ("batch-sharpness" if job.batch else "eigs")
        ids = {entry.name: entry.id for entry in study.entries(chosen)}
        runs = [study.runs()[Job(**{**vars(job), "seed": k}).name] for k in range(seeds)]
        steps = sorted({step for run in runs for step in run.values()})
        values = np.full((seeds, len(steps)), np.nan)  # of a training that diverged
        for row, run in zip(values, runs, strict=True):
            for name, step in run.items():
                if name in ids:
                    row[steps.index(step)] = _over_edge(study.load(ids[name]), job.lr)
        found[job.curve] = np.array(steps), values
    return found


def _over_edge(record: Any, lr: float) -> float:
    if isinstance(record, BatchSharpness):
        return record.value * lr / 2
    return float(record.values[0]) / record.edge


def _table(panels: Mapping[str, Curves], below: Curves) -> Table:
    rows: Table = [("optimizer", "curve", "value over the edge, last quarter", "λmax/(2/η)")]
    for panel, curves in panels.items():
        for curve, (_, values) in curves.items():
            ends = [_last(values), _last(below[curve][1]) if panel == "SGD" else ""]
            rows.append((panel, curve, *ends))
    return rows


def _last(values: FloatArray) -> str:
    """Return the median of the last quarter of each seed, with its interval over the seeds."""
    tail = values[:, -max(values.shape[1] // 4, 1) :]
    return str(mean_interval(np.nanmedian(tail, axis=1)))


@styled()
def draw(panels: Mapping[str, Curves], below: Curves, plan: Plan) -> Figure:
    """Draw a panel for each optimizer, every seed a line."""
    sheet = Figure(figsize=(8.4, 6.2), layout="constrained")
    places = sheet.subplots(2, 2, sharex=True)
    titles = {
        "GD": "gradient descent: λmax/(2/η)",
        "Adam": "Adam: λmax(P⁻¹H)/(38/η)",
        "SAM": "SAM, η = 0.1: λmax over SAM's edge",
        "SGD": "SGD, η = 0.2: batch sharpness/(2/η)",
    }
    for axes, (panel, curves) in zip(places.flat, panels.items(), strict=True):
        for index, (curve, (steps, values)) in enumerate(curves.items()):
            _lines(axes, steps, values, colour(index), label=curve)
            if panel == "SGD":
                _lines(axes, *below[curve], colour(index), linestyle=(0, (2, 1.5)))
        axes.axhline(1.0, color=FAINT, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1.2)
        axes.set_title(titles[panel])
        axes.set_ylim(0, min(2.2, axes.get_ylim()[1]))
        add_grid(axes)
        axes.legend(loc="lower right")
    for axes in places[1]:
        axes.set_xlabel("step")
    write_caption(
        sheet,
        [
            f"A network of two hidden layers of {plan.width} tanh units on {plan.examples} digits, "
            "squared error; every seed is a line. Dashed: the edge, above which the optimizer "
            "diverges on a quadratic; for SAM at the gradient's norm of the step. Lower right: "
            f"solid, the mean of gᵀHg/‖g‖² over {plan.batches} batches; dotted, λmax"
        ],
    )
    return sheet


def _lines(axes: Axes, steps: Any, values: Any, tint: str, **look: Any) -> None:
    for row in values:
        axes.plot(steps, row, color=tint, linewidth=1.0, **look)
        look.pop("label", None)


if __name__ == "__main__":
    main(figure, full=FULL, small=TINY)
