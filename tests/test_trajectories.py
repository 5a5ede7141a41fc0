"""Training runs on planes: places, distances and losses against dense algebra and plain losses."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from test_operators_pieces import wide
from test_planes import shifted
from torch import nn

from landscape.errors import CheckpointError, InvalidArgumentError
from landscape.evaluate import Evaluator
from landscape.loss import evaluation
from landscape.problem import Problem
from landscape.results import Trajectory, from_record, to_record
from landscape.study import Study
from landscape.surface import Plane, given_direction, plane_through, random_plane
from landscape.surface._surface import surface
from landscape.surface._trajectory import trajectory


def skewed(problem: Problem) -> Plane:
    """A plane whose axes are neither orthogonal nor of equal length."""
    plane = random_plane(problem, 0)
    y = given_direction(problem, 3 * plane.y.vector + 2 * plane.x.vector)
    return Plane(plane.x, y, "a skew plane")


def normalised() -> Problem:
    """A network whose loss hangs on its BatchNorm statistics."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    return Problem(model, nn.CrossEntropyLoss(), (x, torch.arange(40) % 2))


def test_places_and_distances_are_those_of_dense_least_squares() -> None:
    problem = wide()
    plane = skewed(problem)
    run = [shifted(problem, seed, 0.05 * (seed + 1)) for seed in range(4)]
    found = trajectory(problem, plane, run, progress=False)
    origin = problem.weights.numpy()
    matrix = np.array([problem.at(state).weights.numpy() - origin for state in run])
    axes = np.array([plane.x.vector.numpy(), plane.y.vector.numpy()]).T
    expected, *_ = np.linalg.lstsq(axes, matrix.T, rcond=None)
    np.testing.assert_allclose([found.x, found.y], expected, rtol=1e-9)
    rest = matrix.T - axes @ expected
    np.testing.assert_allclose(found.off_plane, np.linalg.norm(rest, axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.distances, np.linalg.norm(matrix, axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.off_share, found.off_plane / found.distances)


def test_losses_are_those_of_the_checkpoints_and_of_the_surface() -> None:
    problem = wide()
    plane = skewed(problem)
    run = [shifted(problem, seed) for seed in range(3)]
    found = trajectory(problem, plane, run, progress=False)
    for i, state in enumerate(run):
        own = evaluation(problem.at(state))
        assert (found.loss[i], found.loss_se[i]) == (own.loss, own.loss_se)
        at = surface(
            *(problem, plane),
            x=[found.x[i], found.x[i] + 1],
            y=[found.y[i], found.y[i] + 1],
            progress=False,
        )
        assert found.projected_loss[i] == pytest.approx(at.loss[0, 0], rel=1e-12)
        assert found.projected_loss_se[i] == pytest.approx(at.loss_se[0, 0], rel=1e-9)
    np.testing.assert_array_equal(found.difference, found.loss - found.projected_loss)
    assert found.origin_loss == evaluation(problem).loss
    assert found.cost.forwards == 2 * 3 + 1


def test_a_checkpoint_in_the_plane_has_one_loss_and_no_distance() -> None:
    problem = wide()
    second, third = shifted(problem, 1), shifted(problem, 2)
    plane = plane_through(problem, second, third)
    found = trajectory(problem, plane, [second, third], progress=False)
    np.testing.assert_allclose([found.x, found.y], np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.off_plane, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.difference, 0.0, atol=1e-12)


def test_a_checkpoint_keeps_its_buffers_and_its_projection_has_those_of_the_origin() -> None:
    problem = normalised()
    own = {k: v.clone() for k, v in problem.model.state_dict().items()}
    moved = own | {"1.running_mean": own["1.running_mean"] + 2.0}
    found = trajectory(problem, random_plane(problem, 0, vectors=True), [own, moved])
    assert found.loss[0] == found.projected_loss[0] == found.projected_loss[1]
    assert found.loss[1] == evaluation(problem.at(moved)).loss != found.loss[0]
    np.testing.assert_array_equal(found.distances, 0.0)
    np.testing.assert_array_equal(found.off_share, 0.0)
    assert len(set(found.settings["checkpoints"])) == 2


def test_a_record_goes_through_a_study_file_and_back(tmp_path: Path) -> None:
    problem = wide()
    found = trajectory(problem, skewed(problem), [shifted(problem, 1)], run="A", progress=False)
    scalars, arrays = to_record(found)
    again = from_record("trajectory", json.loads(json.dumps(scalars)), arrays)
    assert dataclasses.replace(again, cost=found.cost) == again
    with Study(tmp_path / "s.db") as study:
        loaded = study.load(study.save(found))
    assert isinstance(loaded, Trajectory)
    assert (loaded.names, loaded.run, loaded.settings) == (found.names, "A", found.settings)
    np.testing.assert_array_equal(loaded.off_plane, found.off_plane)


def test_what_was_measured_is_recalled_by_content_and_renamed(tmp_path: Path) -> None:
    problem = wide()
    plane, run = skewed(problem), [shifted(problem, 1), shifted(problem, 2)]
    with Study(tmp_path / "s.db") as study:
        options = {"study": study, "progress": False}
        first = trajectory(problem, plane, run, run="A", names=("one", "two"), **options)
        again = trajectory(problem, plane, run, run="B", names=("x", "y"), **options)
        assert (again.run, again.names) == ("B", ("x", "y"))
        assert again.provenance.created == first.provenance.created
        assert again.cost == first.cost
        (entry,) = study.entries("trajectory")
        assert study.load(entry.id).names == ("x", "y")  # type: ignore[attr-defined]


def test_a_run_that_is_killed_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = wide()
    plane, run = skewed(problem), [shifted(problem, seed) for seed in range(4)]
    loss, calls, last = Evaluator.loss, [0], [0]

    def dying(self: Evaluator, *args: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == last[0]:
            raise KeyboardInterrupt
        return loss(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluator, "loss", dying)
    whole = trajectory(problem, plane, run, progress=False)
    last[0], calls[0] = calls[0] - 3, 0  # the first loss of the third checkpoint
    with Study(tmp_path / "s.db") as study:
        with pytest.raises(KeyboardInterrupt):
            trajectory(problem, plane, run, study=study, progress=False)
        resumed = trajectory(problem, plane, run, study=study, progress=False)
    np.testing.assert_array_equal(resumed.loss, whole.loss)
    np.testing.assert_array_equal(resumed.projected_loss, whole.projected_loss)
    assert resumed.cost.forwards == 2 * 2 + 1  # two of four checkpoints had been kept


@pytest.mark.usefixtures("only_new_garbage")
def test_one_checkpoint_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = wide()
    plane, run = skewed(problem), [shifted(problem, seed) for seed in range(6)]
    at, models, most = Problem.at, [], [0]

    def counted(self: Problem, *args: object, **options: object) -> Problem:
        gc.collect()
        most[0] = max(most[0], sum(model() is not None for model in models))
        other = at(self, *args, **options)  # type: ignore[arg-type]
        models.append(weakref.ref(next(iter(other.state().values()))))
        return other

    monkeypatch.setattr(Problem, "at", counted)
    trajectory(problem, plane, run, progress=False)
    assert len(models) == 2 * 6
    assert most[0] <= 1


def test_the_model_is_left_as_it_was() -> None:
    problem = normalised()
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    trajectory(problem, random_plane(problem, 0), [shifted_floats(problem)], progress=False)
    after = problem.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert problem.model.training


def shifted_floats(problem: Problem) -> dict[str, torch.Tensor]:
    return {
        name: value + 0.1 if value.is_floating_point() else value
        for name, value in problem.model.state_dict().items()
    }


def test_a_loss_that_is_not_finite_is_kept_as_it_is() -> None:
    problem = wide()
    good = shifted(problem, 1)
    bad = good | {"2.weight": torch.full_like(good["2.weight"], 1e308)}  # overflows when used
    found = trajectory(problem, skewed(problem), [bad, good], progress=False)
    np.testing.assert_array_equal(np.isfinite(found.loss), [False, True])
    np.testing.assert_array_equal(np.isfinite(found.projected_loss), [False, True])
    assert np.isfinite([found.x[1], found.y[1], found.off_plane[1]]).all()
    assert dict(found.rows())["losses"] == f"nan to {found.loss[1]:.4g}"


def test_it_lies_in_the_surfaces_of_its_own_plane_only() -> None:
    problem = wide()
    plane, run = skewed(problem), [shifted(problem, 1)]
    found = trajectory(problem, plane, run, progress=False)
    grid = {"x": [0.0, 1.0], "y": [0.0, 1.0], "progress": False}
    assert found.lies_in(surface(problem, plane, **grid))
    assert not found.lies_in(surface(problem, random_plane(problem, 0), **grid))
    assert not found.lies_in(surface(problem.at(run[0]), plane, **grid))


def test_bad_input_is_named(tmp_path: Path) -> None:
    problem = wide()
    plane = skewed(problem)
    with pytest.raises(InvalidArgumentError, match="at least one checkpoint; got none"):
        trajectory(problem, plane, [])
    with pytest.raises(InvalidArgumentError, match=r"a list of .* got 'run\.pt'"):
        trajectory(problem, plane, "run.pt")
    with pytest.raises(InvalidArgumentError, match="one name per checkpoint; got 1 for 2"):
        trajectory(problem, plane, [shifted(problem, 1)] * 2, names=("a",))
    line = Plane(plane.x, plane.x, "a line")
    with pytest.raises(InvalidArgumentError, match="parallel"):
        trajectory(problem, line, [shifted(problem, 1)])
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt"):
        trajectory(problem, plane, [tmp_path / "other.pt"])
