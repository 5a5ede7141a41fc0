"""Training runs on planes: where each checkpoint lies, and what it and its projection lose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscape.errors import InvalidArgumentError
from landscape.evaluate import Evaluator
from landscape.measurement import Columns, Index, cached_measurement, missing, resumable
from landscape.problem import Problem
from landscape.results import Cost, Provenance, Trajectory
from landscape.study import Study
from landscape.surface._directions import Plane
from landscape.surface._planes import Checkpoint, Projection, project, reader
from landscape.surface._points import seed_of_masks


def trajectory(
    problem: Problem,
    plane: Plane,
    checkpoints: Sequence[Checkpoint],
    *,
    run: str = "",
    names: Sequence[str] | None = None,
    key: str | None = None,
    unsafe_pickle: bool = False,
    partial: bool = False,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> Trajectory:
    """Measure a run of checkpoints wᵢ beside the plane w + x d₁ + y d₂.

    The coordinates (xᵢ, yᵢ) minimise ‖wᵢ − w − x d₁ − y d₂‖₂, and the least value is the distance
    off the plane. The loss of wᵢ is its own, with its own buffers (BatchNorm statistics); the
    loss of its projection is that of the plane, with the buffers of w.

    Args:
        problem: at w, the origin of the plane.
        plane: any two directions that are not parallel, of any norm.
        checkpoints: one or more, in order, of the same architecture; one is in memory at a time.
        run: what to call the run.
        names: what to call the checkpoints; None: the names of their files.
        key: which entry of nested checkpoints to read, see `Problem.at`.
        unsafe_pickle: unpickle whatever the files hold, which runs any code in them.
        partial: keep the model's own weights where a checkpoint has none.
        seed: of the dropout masks in ``train`` mode.
        study: where points are kept as they are measured, and taken up again after a kill.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        Coordinates in units of the axes, distances, and both losses with their standard errors.
        Cost: 2 m + 1 forward passes for m checkpoints, each of which is read twice.

    Raises:
        InvalidArgumentError: if there is no checkpoint, not one name for each, or the axes of the
            plane are parallel.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), section 7, arXiv:1712.09913.
    """
    _check(checkpoints, names)
    reading = {"key": key, "unsafe_pickle": unsafe_pickle, "partial": partial}
    seen = project(problem, plane, checkpoints, **reading)  # type: ignore[arg-type]
    called = seen.names if names is None else tuple(names)
    settings = {
        "plane": plane.x.kind,
        "d1": plane.x.settings(),
        "d2": plane.y.settings(),
        "checkpoints": list(seen.hashes),
        **seed_of_masks(seed, problem),
    }

    def measure(provenance: Provenance) -> Trajectory:
        losses = _Losses(problem, plane, seen, seed, provenance, settings, study)
        columns = losses.measure(checkpoints, reading, progress)
        return Trajectory(
            run=run,
            names=called,
            x=seen.coordinates[:, 0],
            y=seen.coordinates[:, 1],
            distances=seen.distances,
            off_plane=seen.off_plane,
            **{name: np.array([c[name] for c in columns]) for name in columns[0]},
            plane=plane.description,
            direction_norms=(plane.x.norm, plane.y.norm),
            cosine=plane.cosine,
            origin_loss=losses.origin_loss,
            settings=settings,
            cost=losses.cost,
            provenance=provenance,
        )

    found = cached_measurement(Trajectory, problem, settings, study, measure)
    return _renamed(found, run, called, study)


class _Losses:
    """Losses of checkpoints and projections, each pair kept in the study as it is measured."""

    def __init__(
        self,
        problem: Problem,
        plane: Plane,
        seen: Projection,
        seed: int,
        provenance: Provenance,
        settings: Mapping[str, Any],
        study: Study | None,
    ) -> None:
        self._problem, self._plane, self._seen, self._seed = problem, plane, seen, seed
        m = len(seen.names)
        self._kept = (
            None
            if study is None
            else study.grid(Trajectory.kind, provenance, settings, shape=(m, 1))
        )
        self.origin_loss = np.nan
        self.cost = Cost()

    def measure(
        self,
        checkpoints: Sequence[Checkpoint],
        reading: Mapping[str, Any],
        progress: bool | None,
    ) -> list[Columns]:
        """Measure what is missing; return one set of columns for each checkpoint."""
        done = {} if self._kept is None else dict(self._kept.done)
        indices = [(i, 0) for i in range(len(checkpoints))]
        what = f"run beside {self._problem.name}"
        with Evaluator(self._problem, seed=self._seed) as evaluator:
            self.origin_loss = evaluator.loss().value

            def measured(some: Sequence[Index]) -> list[Columns]:
                return [
                    self._own(checkpoints[i], reading) | self._projected(evaluator, i)
                    for i, _ in some
                ]

            blocks = missing(indices, done, what=what, progress=progress)
            resumable(blocks, measured, done=done, kept=self._kept)
            self._add(evaluator.cost, forwards=evaluator.passes["forwards"])
        return [done[index] for index in indices]

    def _own(self, checkpoint: Checkpoint, reading: Mapping[str, Any]) -> Columns:
        own = reader(self._problem, **reading)(checkpoint)
        with Evaluator(own, seed=self._seed) as evaluator:
            loss = evaluator.loss()
            self._add(Cost(), forwards=evaluator.passes["forwards"])
        return {"loss": loss.value, "loss_se": loss.se}

    def _projected(self, evaluator: Evaluator, i: int) -> Columns:
        x, y = (float(value) for value in self._seen.coordinates[i])
        loss = evaluator.loss(self._plane.at(evaluator.origin, x, y))
        return {"projected_loss": loss.value, "projected_loss_se": loss.se}

    def _add(self, cost: Cost, *, forwards: int) -> None:
        self.cost = Cost(
            forwards=self.cost.forwards + forwards, seconds=self.cost.seconds + cost.seconds
        )


def _check(checkpoints: Sequence[Checkpoint], names: Sequence[str] | None) -> None:
    if isinstance(checkpoints, (str, bytes, Mapping)) or not len(checkpoints):
        got = repr(checkpoints) if len(checkpoints) and isinstance(checkpoints, str) else "none"
        msg = f"a trajectory takes a list of at least one checkpoint; got {got}"
        raise InvalidArgumentError(msg)
    if names is not None and len(names) != len(checkpoints):
        msg = f"names must hold one name per checkpoint; got {len(names)} for {len(checkpoints)}"
        raise InvalidArgumentError(msg)


def _renamed(
    found: Trajectory, run: str, names: tuple[str, ...], study: Study | None
) -> Trajectory:
    """Give a run that the study held the names that are in use now."""
    if (found.run, found.names) == (run, names):
        return found
    renamed = dataclasses.replace(found, run=run, names=names)
    if study is not None:
        study.save(renamed)
    return renamed
