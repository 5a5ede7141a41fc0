"""Killed at any instant a surface goes on where it stopped; after Ctrl-C the model is as it was.

The kills are real (SIGKILL), of processes that one warm process forks: importing torch takes
longer than the whole surface. Run as a program, this file is that process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.loss import evaluation
from landscape.problem import Problem
from landscape.sharpness._worst_case import sharpness
from landscape.study import Grid, Study
from landscape.study import grid as grid_module
from landscape.surface import Plane, random_plane
from landscape.surface import _points as points
from landscape.surface._surface import line, span, surface

# What is measured, by name: the coordinates, and the tolerance of an interpolation.
GRIDS = {
    "whole": (span(1.0, 9), span(0.5, 7), 0.0),
    "interpolated": (span(1.0, 15), span(0.5, 13), 0.02),
}
BLOCK = 4  # points that are measured together, at most
N_KILLS = {"whole": 40, "interpolated": 25}


# -- the process that forks ----------------------------------------------------------------------


def slow_problem() -> Problem:
    """A tiny model of which one pass takes some milliseconds."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn(30, 3, generator=generator)
    y = torch.randint(0, 2, (30,), generator=generator)

    def slow_accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        time.sleep(5e-4)
        return (output.argmax(dim=1) == target).double()

    return Problem(
        model, nn.CrossEntropyLoss(), (x, y), batch_size=8, metrics={"accuracy": slow_accuracy}
    )


def measure(folder: Path, grid: str) -> None:
    """Measure the surface into a study, and note every point that is begun and recorded."""
    xs, ys, tolerance = GRIDS[grid]
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    at, record_all = Plane.at, Grid.record_all

    def noted_at(self: Plane, origin: torch.Tensor, x: float, y: float) -> torch.Tensor:
        os.write(log, f"begun {list(xs).index(x)} {list(ys).index(y)}\n".encode())
        return at(self, origin, x, y)

    def noted_record(self: Grid, measured: Any) -> None:
        record_all(self, measured)
        os.write(log, "".join(f"recorded {i} {j}\n" for i, j in measured).encode())

    Plane.at, Grid.record_all = noted_at, noted_record
    # As where points take longer: each block is recorded as soon as it is measured.
    points._BLOCK, grid_module.RECORD_SECONDS = BLOCK, 0.0
    problem = slow_problem()
    with Study(folder / "landscape.db") as study:
        plane = random_plane(problem, 3)
        found = surface(problem, plane, x=xs, y=ys, tolerance=tolerance, study=study)
    save(folder / "result.npz", found)


def save(path: Path, found: Any) -> None:
    np.savez(
        path,
        loss=found.loss,
        se=found.loss_se,
        accuracy=found.metrics["accuracy"],
        measured=found.is_measured,
    )


def serve() -> None:
    """Fork a process for every request on stdin, and kill it after a delay if one is asked for."""
    torch.set_num_threads(1)
    for request in map(json.loads, sys.stdin):
        folder = Path(request["folder"])
        child = os.fork()
        if child == 0:
            try:
                measure(folder, request["grid"])
            except BaseException:
                (folder / "error").write_text(traceback.format_exc())
                os._exit(1)
            os._exit(0)
        if request["delay"] is not None:
            time.sleep(request["delay"])
            os.kill(child, signal.SIGKILL)  # a process that has ended waits here as a zombie
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


class Server:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )

    def run(self, folder: Path, grid: str = "whole", *, delay: float | None = None) -> bool:
        """Measure in a process of its own; return whether it was killed."""
        folder.mkdir(exist_ok=True)
        request = {"folder": str(folder), "grid": grid, "delay": delay}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        if code == 1:
            raise AssertionError((folder / "error").read_text())
        assert code in {0, -signal.SIGKILL}
        return code != 0

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


# -- kill -9 -------------------------------------------------------------------------------------


def noted(folder: Path) -> list[tuple[str, tuple[int, int]]]:
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(word, (int(i), int(j))) for word, i, j in map(str.split, lines)]


def points_in(folder: Path) -> int:
    """Open the study as the next process would, and count what it holds."""
    path = folder / "landscape.db"
    if not path.exists():
        return 0
    with Study(path) as study:
        entries = study.entries()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert len(entries) <= 1
    return entries[0].points_done if entries else 0


def assert_nothing_lost(folder: Path, before: int) -> int:
    done, recorded = points_in(folder), [p for word, p in noted(folder) if word == "recorded"]
    assert len(recorded) == len(set(recorded))
    # A block more at most: written, and killed before it could be noted.
    assert max(before, len(recorded)) <= done
    return done


def assert_nothing_repeated(folder: Path, n_points: int, kills: int) -> None:
    seen: set[tuple[int, int]] = set()
    begun: Counter[tuple[int, int]] = Counter()
    for word, point in noted(folder):
        if word == "recorded":
            seen.add(point)
        else:
            assert point not in seen  # what is recorded is not measured again
            begun[point] += 1
    assert len(begun) == n_points
    # A kill costs the block in flight, and no other.
    assert begun.total() <= n_points + BLOCK * kills


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_a_surface_survives_being_killed_at_any_instant(server, tmp_path, grid):
    undisturbed = tmp_path / "undisturbed"
    assert not server.run(tmp_path / "warm", grid)
    started = time.perf_counter()
    assert not server.run(undisturbed, grid)
    whole = time.perf_counter() - started
    expected = np.load(undisturbed / "result.npz")
    n_points = int(expected["measured"].sum())
    assert (n_points < expected["measured"].size) == (grid == "interpolated")
    rng = random.Random(0)
    kills = studies = with_points = 0
    while kills < N_KILLS[grid]:
        folder, kills_here, done = tmp_path / f"study-{studies}", 0, 0
        studies += 1
        assert studies < 20
        # Some before the file is there, most in the middle, and at most ten for one surface.
        while server.run(folder, grid, delay=whole * rng.choice([0.1, 0.3, 0.6]) * rng.random()):
            kills_here += 1
            done = assert_nothing_lost(folder, done)
            with_points += 0 < done < n_points
            if kills_here >= 10:
                assert not server.run(folder, grid)
                break
        kills += kills_here
        assert assert_nothing_lost(folder, done) == n_points
        assert_nothing_repeated(folder, n_points, kills_here)
        found = np.load(folder / "result.npz")
        for name in ("loss", "se", "accuracy", "measured"):
            assert found[name].tobytes() == expected[name].tobytes()
    assert with_points >= N_KILLS[grid] // 3  # else the kills came too early to be a test


@pytest.mark.slow
def test_the_checks_of_this_file_fail_where_they_should(server, tmp_path):
    folder = tmp_path / "study"
    assert not server.run(folder)
    with sqlite3.connect(folder / "landscape.db") as connection:
        connection.execute("DELETE FROM points WHERE i = 2 AND j = 3")
    with pytest.raises(AssertionError):
        assert_nothing_lost(folder, 0)
    (folder / "log").write_text((folder / "log").read_text() + "begun 0 0\n")
    with pytest.raises(AssertionError):
        assert_nothing_repeated(folder, 63, 5)


# -- Ctrl-C --------------------------------------------------------------------------------------


class Interruptible(nn.Module):
    """Every layer whose state a measurement could leave behind, and a bell that rings Ctrl-C."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Linear(4, 2)
        self.tied = nn.Linear(4, 2, bias=False)
        self.tied.weight = self.last.weight
        self.last.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bell.counts["forward"] += 1
        self._bell("forward")
        hidden = torch.tanh(self.norm(self.first(x)))
        if hidden.requires_grad:
            hidden.register_hook(self._on_backward)
        hidden = self.dropout(hidden)
        return self.last(hidden) + self.tied(hidden)

    def _on_backward(self, gradient: torch.Tensor) -> None:
        bell.counts["backward"] += 1
        self._bell("backward")

    def _bell(self, where: str) -> None:
        if bell.ring_at == (where, bell.counts[where]):
            signal.raise_signal(signal.SIGINT)


bell = threading.local()
bell.counts, bell.ring_at = Counter(), None


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a measurement could change."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return {
        "bits": {name: t.detach().clone().numpy().tobytes() for name, t in tensors.items()},
        "objects": {name: id(t) for name, t in tensors.items()},
        "gradients": {n: None if t.grad is None else t.grad.tolist() for n, t in tensors.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "modes": [part.training for part in model.modules()],
        "attributes": [sorted(vars(part)) for part in model.modules()],
        "hooks": [len(part._forward_hooks) for part in model.modules()],
        "generators": (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            random.getstate(),
        ),
    }


def interruptible_problem(mode: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    model = Interruptible()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    model.norm.running_mean += 0.3
    model.train()
    model.first.eval()
    x = torch.randn(20, 3, generator=generator)
    y = torch.randint(0, 2, (20,), generator=generator)
    problem = Problem(model, nn.CrossEntropyLoss(), (x, y), batch_size=8, mode=mode)
    # The data are read, loss and derivatives are checked, before the counting begins.
    top_eigenpairs(problem, 1, max_matvecs=20)
    return problem


MEASUREMENTS = {
    "evaluation": evaluation,
    "line": lambda problem: line(problem, x=[-1.0, 0.0, 1.0]),
    "surface": lambda problem: surface(problem, n=3),
    "sharpness": lambda problem: sharpness(problem, 0.1, max_gradients=5),
    "eigenpairs": lambda problem: top_eigenpairs(problem, 2, max_matvecs=20),
}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_after_ctrl_c_the_model_is_as_it_was(name, mode):
    problem, rng = interruptible_problem(mode), random.Random(0)
    before = state_of(problem.model)
    bell.counts.clear()
    MEASUREMENTS[name](problem)
    assert state_of(problem.model) == before
    total = Counter(bell.counts)
    assert total["forward"] > 0
    for where, calls in total.items():
        for call in sorted({1, min(2, calls), calls, rng.randint(1, calls), rng.randint(1, calls)}):
            bell.counts.clear()
            bell.ring_at = (where, call)
            with pytest.raises(KeyboardInterrupt):
                MEASUREMENTS[name](problem)
            bell.ring_at = None
            assert bell.counts[where] == call
            assert state_of(problem.model) == before


def test_the_comparison_of_states_sees_each_change():
    for change in (
        lambda m: m.first.weight.data.add_(1e-7),
        lambda m: m.norm.running_var.mul_(1.0001),
        lambda m: m.first.train(),
        lambda m: m.last.bias.requires_grad_(True),
        lambda m: m.last.weight.grad.add_(1e-7),
        lambda m: setattr(m.last, "weight", nn.Parameter(m.last.weight.detach().clone())),
        lambda m: setattr(m, "left_behind", 1),
    ):
        model = interruptible_problem("eval").model
        before = state_of(model)
        change(model)
        assert state_of(model) != before


def test_a_surface_goes_on_after_ctrl_c(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "_BLOCK", 3)
    problem = interruptible_problem("eval")
    expected = surface(problem, n=4)

    def rung(study: Study, at: int | None) -> int:
        """Measure with Ctrl-C at a pass; return the points that are kept then."""
        bell.counts.clear()
        bell.ring_at = None if at is None else ("forward", at)
        if at is None:
            surface(problem, n=4, study=study)
        else:
            with pytest.raises(KeyboardInterrupt):
                surface(problem, n=4, study=study)
        entries = study.entries()  # none before the signature is measured
        assert len(entries) <= 1
        return sum(entry.points_done for entry in entries)

    with Study(tmp_path / "trial.db") as study:
        rung(study, None)
        first = bell.counts["forward"] - 16 * 3  # passes before the first point, of 3 batches
        study.delete(study.entries()[0].id)
        assert rung(study, first + 2) == 0
        rung(study, None)
        again = bell.counts["forward"] - 16 * 3  # how to evaluate is settled by now
    with Study(tmp_path / "landscape.db") as study:
        assert rung(study, 1) == 0
        assert rung(study, first + 3) == 0
        kept = rung(study, again + 6 * 3 + 2)
        assert 6 - 3 < kept <= 6  # a block has three points at most
        bell.ring_at = None
        found = surface(problem, n=4, study=study)
    assert found.cost.forwards == 16 - kept + 1
    assert found.loss.tobytes() == expected.loss.tobytes()


if __name__ == "__main__":
    serve()
