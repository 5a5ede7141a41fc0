"""Training runs on planes: where each checkpoint lies, and what it and its projection lose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from landscape.errors import InvalidArgumentError
from landscape.evaluate import Evaluator
from landscape.measurement import Columns, Run, Work, one_by_one
from landscape.problem import Problem, check_problem
from landscape.results import Trajectory
from landscape.study import Study
from landscape.surface._directions import Plane
from landscape.surface._planes import Checkpoint, Reading, project, reader
from landscape.surface._points import seed_of_masks

if TYPE_CHECKING:
    from typing_extensions import Unpack


def trajectory(
    problem: Problem,
    plane: Plane,
    checkpoints: Sequence[Checkpoint],
    *,
    run: str = "",
    names: Sequence[str] | None = None,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
    **reading: Unpack[Reading],
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
        seed: of the dropout masks in ``train`` mode.
        study: where points are kept as they are measured, and taken up again after a kill.
        progress: show a bar on stderr; None: where stderr is a terminal.
        **reading: key, unsafe_pickle and partial, as for `Problem.at`.

    Returns:
        Coordinates in units of the axes, distances, and both losses with their standard errors.
        Cost: 2 m + 1 forward passes for m checkpoints, each of which is read twice.

    Raises:
        InvalidArgumentError: if there is no checkpoint, not one name for each, or the axes of the
            plane are parallel.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), section 7, arXiv:1712.09913.
    """
    check_problem(problem)
    if isinstance(checkpoints, (str, bytes, Mapping)) or not len(checkpoints):
        got = repr(checkpoints) if len(checkpoints) and isinstance(checkpoints, str) else "none"
        msg = f"a trajectory takes a list of at least one checkpoint; got {got}"
        raise InvalidArgumentError(msg)
    if names is not None and len(names) != len(checkpoints):
        msg = f"names must hold one name per checkpoint; got {len(names)} for {len(checkpoints)}"
        raise InvalidArgumentError(msg)
    projection = project(problem, plane, checkpoints, **reading)
    labels = projection.names if names is None else tuple(names)
    settings = {
        **plane.identity(),
        "checkpoints": list(projection.hashes),
        **seed_of_masks(seed, problem),
    }

    def measure(work: Work) -> dict[str, Any]:
        evaluator, read = work.evaluator, reader(problem, **reading)

        def losses(i: int) -> Columns:
            with Evaluator(read(checkpoints[i]), seed=seed) as at_checkpoint:
                loss = at_checkpoint.loss()
                evaluator.passes["forwards"] += at_checkpoint.passes["forwards"]
            x, y = projection.coordinates[i].tolist()
            projected = evaluator.loss(plane.at(evaluator.origin, x, y))
            return {
                "loss": loss.value,
                "loss_se": loss.se,
                "projected_loss": projected.value,
                "projected_loss_se": projected.se,
            }

        m = len(checkpoints)
        what = f"run beside {problem.name}"
        grid = work.grid((m, 1))
        with work.by_point(m, grid):
            origin_loss = evaluator.loss().value
            columns = one_by_one(m, losses, grid=grid, what=what, progress=progress)
        return {
            "run": run,
            "names": labels,
            "x": projection.coordinates[:, 0],
            "y": projection.coordinates[:, 1],
            "distances": projection.distances,
            "off_plane": projection.off_plane,
            **columns,
            "plane": plane.description,
            "direction_norms": (plane.x.norm, plane.y.norm),
            "cosine": plane.cosine,
            "origin_loss": origin_loss,
        }

    frame = Run(study=study, seed=seed, progress=False)  # the checkpoints have a bar of their own
    result = frame.record(Trajectory, problem, settings, measure)
    if (result.run, result.names) != (run, labels):  # names are no part of what was measured
        result = dataclasses.replace(result, run=run, names=labels)
        if study is not None:
            study.save(result)
    return result
