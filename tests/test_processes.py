"""Several processes that share the data give the numbers of one, and end together."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_resume
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import CASES
from torch import nn

import landscape as ls
from landscape.cli.options import is_study
from landscape.errors import InvalidArgumentError, ProblemError
from landscape.evaluate import Engine, Evaluator
from landscape.measurement import one_by_one
from landscape.operators import Hessian
from landscape.processes import Share, check_alike, launched, sharing
from landscape.results import to_record
from landscape.study import Study

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

# Of a whole measurement: searches and their evidence.
MEASURED = ("ignore_index", "sum_and_weight", "tuple_outputs", "per_example")
Numbers = dict[str, dict[str, np.ndarray]]


def numbers_of(case: Any, *, measure: bool) -> dict[str, np.ndarray]:
    problem = case.build(5)
    with Evaluator(problem) as evaluator:
        loss, gradient = evaluator.loss(keep=True), evaluator.gradient()[1]
        vector = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0)).double()
        operator = Hessian(evaluator)
        operator.record_parts()
        product = operator.matvec(vector)
        found: dict[str, Any] = {
            "loss": [loss.value, *loss.metrics.values()],
            "error": loss.se,
            "gradient": gradient,
            "product": product,
            "groups": operator.project_parts(vector[None]),
            "weights": operator.part_weights,
            "forms": operator.quadratic_forms(vector[None], n_groups=4)[0],
            "points": [v.value for v in Engine(evaluator).losses([evaluator.origin] * 2)],
        }
        if loss.examples is not None:
            found["examples"] = loss.examples[0]
    if measure:
        pairs = ls.top_eigenpairs(problem, k=2)
        sharp, trace = ls.sharpness(problem, rho=0.05), ls.trace(problem)
        surface = ls.surface(problem, plane=ls.random_plane(problem, seed=0), n=3)
        found |= {"eigenvalues": pairs.values, "data errors": pairs.data_errors}
        found |= {"sharpness": [sharp.value, sharp.value_se], "trace": [trace.value, trace.low]}
        found |= {"surface": surface.loss, "surface errors": surface.loss_se}
    return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}


def work(rank: int, n: int, folder: str) -> None:
    torch.set_num_threads(1)
    if n > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=n)
    with sharing() if n > 1 else nullcontext():
        found = {str(c): numbers_of(c, measure=str(c) in MEASURED) for c in CASES}
    torch.save(found, f"{folder}/{rank}")
    if n > 1:
        dist.destroy_process_group()


def on(n: int, folder: Path) -> list[Numbers]:
    folder.mkdir()
    if n == 1:
        work(0, 1, str(folder))
    else:
        mp.spawn(work, args=(n, str(folder)), nprocs=n)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(n)]


def assert_alike(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Standard errors of what is nearly alike are differences of nearly equal numbers.
        relative = 1e-10 if "error" in name else 1e-12
        scale = max((abs(v) for v in value.flat if math.isfinite(v)), default=0.0)
        np.testing.assert_allclose(
            found[name], value, rtol=0.0, atol=relative * scale + 1e-15, err_msg=name
        )


@pytest.mark.slow
def test_several_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    """Uneven parts, a process with one batch only, losses with weights, plain sums, masks."""
    (alone,) = on(1, tmp_path / "1")
    for n in (2, 3):
        first, *others = on(n, tmp_path / str(n))
        for case, expected in alone.items():
            assert_alike(first[case], expected)
            for other in others:  # the same bits: all take the same way through a search
                for name, value in first[case].items():
                    np.testing.assert_array_equal(other[case][name], value, err_msg=name)


def lonely(rank: int, n: int, folder: str) -> None:
    """More processes than batches."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=n)
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    problem = ls.Problem(nn.Linear(3, 2), nn.CrossEntropyLoss(), (x, y), dtype="float64")
    values = [ls.evaluation(problem).loss, *ls.top_eigenpairs(problem, k=1).values]
    values += list(ls.surface(problem, plane=ls.random_plane(problem, seed=0), n=3).loss.flat)
    with sharing():
        again = [ls.evaluation(problem).loss, *ls.top_eigenpairs(problem, k=1).values]
        again += list(ls.surface(problem, plane=ls.random_plane(problem, seed=0), n=3).loss.flat)
        np.testing.assert_allclose(again, values, rtol=1e-12)
        other = ls.Problem(nn.Linear(3, 2), nn.CrossEntropyLoss(), (x + rank, y))
        with pytest.raises(ProblemError, match=r"the data of process 1 is not that of process 0"):
            ls.evaluation(other)
        with pytest.raises(ProblemError, match="the data of process 1"):
            check_alike({"data": str(rank)})
    dist.destroy_process_group()


@pytest.mark.slow
def test_more_processes_than_batches_and_processes_with_other_data(tmp_path: Path) -> None:
    mp.spawn(lonely, args=(2, str(tmp_path)), nprocs=2)


# -- points that processes take in turn ----------------------------------------------------------


def points_of(problem: ls.Problem) -> dict[str, Any]:
    """What is measured point by point: records by name."""
    end = [w + 0.1 * k for k, w in enumerate(problem.model.state_dict().values())]
    other = dict(zip(problem.model.state_dict(), end, strict=True))
    plane = ls.random_plane(problem, seed=0)
    sampling: dict[str, Any] = {"n_samples": 4, "relative_error": None, "prediction": False}
    return {
        "surface": ls.surface(problem, plane=plane, n=5),
        "interpolated": ls.surface(problem, plane=plane, n=15, tolerance=0.05),
        "line": ls.line(problem, x=[-1.0, -0.5, 0.0, 0.5, 1.0]),
        "average": ls.average_sharpness(problem, 0.1, **sampling),
        "path": ls.path(problem, other, n=4),
        "trajectory": ls.trajectory(problem, plane, [other] * 3),
        "m-sharpness": ls.m_sharpness(problem, m=8),
        "m-sharpness, one subset": ls.m_sharpness(problem, m=30),
    }


def small_problem() -> ls.Problem:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x, y = torch.randn(30, 3, generator=generator), torch.randint(2, (30,), generator=generator)
    return ls.Problem(model, nn.CrossEntropyLoss(), (x, y), batch_size=8)


def failing_in(rank: int, error: Exception, done: list[int]) -> Any:
    """Measure ten points, of which a process fails at the first one it gets."""

    def point(i: int) -> dict[str, float]:
        if rank == 1:
            raise error
        done.append(i)
        time.sleep(0.05)
        return {"loss": float(i)}

    return one_by_one(10, point, grid=None, what="", progress=False)


def in_turn(rank: int, n: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=n)
    with sharing():
        torch.save(points_of(small_problem()), f"{folder}/{rank}")
        # All end with the words of the one that fails, and none begins another point.
        for error, message in (
            (InvalidArgumentError("no such thing"), "^no such thing$"),
            (
                ValueError("odd"),
                "^odd$" if rank == 1 else f"^process 1 of {n} failed: ValueError: ",
            ),
        ):
            done: list[int] = []
            with pytest.raises((type(error), ProblemError), match=message):
                failing_in(rank, error, done)
            assert len(done) < 9
        assert one_by_one(4, lambda i: {"i": i}, grid=None, what="", progress=False)["i"].sum() == 6
    dist.destroy_process_group()


@pytest.mark.slow
def test_points_taken_in_turn_have_the_bits_of_one_process(tmp_path: Path) -> None:
    alone = points_of(small_problem())
    for n in (2, 3):
        (tmp_path / str(n)).mkdir()
        mp.spawn(in_turn, args=(n, str(tmp_path / str(n))), nprocs=n)
        for rank in range(n):
            found = torch.load(tmp_path / str(n) / str(rank), weights_only=False)
            for name, expected in alone.items():
                record = found[name]
                if name == "m-sharpness, one subset":  # fewer points than processes
                    assert record.provenance.processes == f"data over {n} processes"
                    np.testing.assert_allclose(record.values, expected.values, rtol=1e-4)
                    continue
                assert record.provenance.processes == f"points over {n} processes"
                ours, theirs = (to_record(each) for each in (record, expected))
                assert ours[1].keys() == theirs[1].keys()
                for field, array in theirs[1].items():
                    np.testing.assert_array_equal(ours[1][field], array, err_msg=f"{name} {field}")
                passes = sum(vars(record.cost).values()) - record.cost.seconds
                least = sum(vars(expected.cost).values()) - expected.cost.seconds
                assert least <= passes <= least + 3 * n  # each has its own origin


def test_parts_are_consecutive_and_even() -> None:
    for n_items in (0, 1, 2, 7, 12):
        for n in (1, 2, 3, 5):
            spans = [Share(rank, n).span(n_items) for rank in range(n)]
            assert [i for span in spans for i in span] == list(range(n_items))
            assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_bad_set_ups_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProblemError, match="no process group: call"), sharing():
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ProblemError, match="WORLD_SIZE is 2, but RANK, MASTER_ADDR"), launched():
        pass


def test_more_processes_than_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landscape.processes.dist.get_backend", lambda: "gloo")

    class OnDevice:
        is_cuda = True

    with pytest.raises(ProblemError, match=r"3 processes and \d+ CUDA devices: start at most"):
        Share(0, 3).add_up(OnDevice())  # type: ignore[arg-type]


def test_a_command_says_what_its_launcher_has_not_set(
    here: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    ran = run("eigs", "a.pt", "--problem", "task.py")
    assert ran.code == 1
    assert ran.err.startswith("Error: WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT is not")


def torchrun(*args: str, n: int = 2, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n)]
    return subprocess.run(
        [*launch, "--standalone", "-m", "--", "landscape", *args],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def values_in(text: str) -> list[float]:
    """Return the measured numbers of records in JSON."""
    found: list[float] = []

    def walk(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                if name not in {"provenance", "cost", "products", "epsilon", "vectors"}:
                    walk(part, name)
        elif isinstance(value, list):
            for part in value:
                walk(part)
        elif isinstance(value, float) and math.isfinite(value):
            found.append(value)

    walk(json.loads(text))
    return found


@pytest.mark.slow
def test_commands_under_torchrun_print_and_keep_what_one_process_does(here: Path, run) -> None:
    problem = ("--problem", "task.py", "--batch-size", "3", "--dtype", "float64", "-q", "--json")
    by_run = ("eigs", "--run", "both=[ab].pt", "-k", "2")
    for verb in (by_run, ("surface", "a.pt", "--points", "3")):
        together = torchrun(*verb, *problem, "--study", "together.db")
        assert together.returncode == 0, together.stderr
        alone = run(*verb, *problem, "--study", "alone.db")
        found, expected = values_in(together.stdout), values_in(alone.out)
        assert len(found) == len(expected) > 5
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        again = torchrun(*verb, *problem, "--study", "together.db")
        assert again.stdout == together.stdout  # recalled
        assert run(*verb, *problem, "--study", "together.db").out == together.stdout
    with Study("together.db", readonly=True) as study:
        assert [entry.status for entry in study.entries()] == ["complete"] * 3
    listed = torchrun("list", "--study", "together.db")
    assert listed.stdout.count("surface") == 1  # by the first process alone


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_processes_end_with_a_launcher_that_is_killed(here: Path) -> None:
    task = Path("task.py").read_text()
    Path("waiting.py").write_text(
        task + "\nimport os, pathlib, time\n\ndef data(split):\n"
        "    pathlib.Path('pid' + os.environ['RANK']).write_text(str(os.getpid()))\n"
        "    time.sleep(300)\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launch, "--standalone", "-m", "--", "landscape"]
    with subprocess.Popen(
        [*command, "loss", "a.pt", "--problem", "waiting.py", "-q"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launcher:
        files, until = [Path("pid0"), Path("pid1")], time.monotonic() + 120.0
        while not all(f.exists() and f.read_text() for f in files) and time.monotonic() < until:
            time.sleep(0.1)
        pids = [int(file.read_text()) for file in files]
        assert all(map(is_running, pids))
        launcher.kill()
        until = time.monotonic() + 30.0
        while any(map(is_running, pids)) and time.monotonic() < until:
            time.sleep(0.1)
        left = [pid for pid in pids if is_running(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        said = launcher.stdout.read() if launcher.stdout else ""
    assert not left
    assert said.count("Error: the launcher has ended") == 1


@pytest.mark.slow
def test_processes_end_together_where_one_of_them_fails(here: Path) -> None:
    task = Path("task.py").read_text()
    Path("failing.py").write_text(
        task + "\nimport os\n_data = data\n\ndef data(split):\n"
        "    if os.environ.get('RANK') == '1':\n"
        "        raise RuntimeError('no disk here')\n    return _data(split)\n"
    )
    for problem, message in (("failing.py", "no disk here"), ("none.py", "none.py")):
        ran = torchrun("eigs", "a.pt", "--problem", problem, "-q")
        assert ran.returncode != 0
        assert message in ran.stderr
    ran = torchrun("train", "--problem", "task.py", "-o", "x.pt")
    assert "landscape train runs in one process" in ran.stderr


# -- kills ---------------------------------------------------------------------------------------

# A task of which a pass takes some time and is noted in a file; a process may kill itself.
NOTED = """
import os, signal, time

def slow(output, target):
    with open("passes", "a") as file:
        file.write("x")
    time.sleep(0.02)
    n = os.path.getsize("passes")
    if n > int(os.environ.get("DIES_AT", "999999")) and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return (output.argmax(1) == target).float()

metrics = {"accuracy": slow}
"""
SURFACE = ("surface", "a.pt", "--points", "6", "--problem", "noted.py", "-q")


def n_recorded(study: str) -> int:
    if not is_study(study):
        return 0
    with Study(study, readonly=True) as opened:
        return sum(entry.points_done for entry in opened.entries())


def n_passes() -> int:
    return Path("passes").stat().st_size


def arrays_in(study: str) -> Mapping[str, Any]:
    with Study(study, readonly=True) as opened:
        (entry,) = opened.entries()
        return to_record(opened.load(entry.id))[1]


def assert_same_arrays(study: str, other: str) -> None:
    found, expected = arrays_in(study), arrays_in(other)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def started(study: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "landscape", *SURFACE, "--study", study]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def wait_until_recorded(study: str, n: int) -> None:
    deadline = time.monotonic() + 120
    while n_recorded(study) < n:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_two_commands_share_the_points_of_a_study(here: Path, run) -> None:
    """No point twice; and where one of them is killed, the other one measures its points."""
    Path("noted.py").write_text(Path("task.py").read_text() + NOTED)
    assert run(*SURFACE, "--study", "alone.db").code == 0
    others = n_passes() - 36  # besides the points
    for killed in (False, True):
        Path("passes").unlink()
        study = f"{killed}.db"
        both = [started(study), started(study)]
        if killed:
            wait_until_recorded(study, 5)
            both[0].kill()
        codes = [process.wait(120) for process in both]
        assert codes == [-9 if killed else 0, 0]
        assert_same_arrays(study, "alone.db")
        # Each command has the passes besides the points; what was in flight is measured again.
        # The killed one loses its block of four points, and those of the last tenth of a second.
        assert 36 + others <= n_passes() <= 36 + 2 * others + 9 * killed


@pytest.mark.slow
def test_killed_processes_go_on_in_another_number(
    here: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("noted.py").write_text(Path("task.py").read_text() + NOTED)
    assert run(*SURFACE, "--study", "alone.db").code == 0
    others = n_passes() - 36
    Path("passes").unlink()
    monkeypatch.setenv("DIES_AT", str(3 * others + 15))
    ran = torchrun(*SURFACE, "--study", "together.db", n=3)
    assert ran.returncode != 0
    # In flight were a block of each, and what others had measured during the first one's.
    assert 36 > n_recorded("together.db") >= 15 - 2 * 3
    monkeypatch.delenv("DIES_AT")
    ran = torchrun(*SURFACE, "--study", "together.db", n=2)
    assert ran.returncode == 0, ran.stderr
    assert_same_arrays("together.db", "alone.db")


@pytest.mark.slow
def test_kills_of_two_commands_lose_and_repeat_next_to_nothing(tmp_path: Path) -> None:
    """Two chains of processes on one study, each killed at random; ``KILLS`` says how many."""
    wanted, n_killed, rng = int(os.environ.get("KILLS", "8")), 0, random.Random(0)
    servers = [test_resume.Server(), test_resume.Server()]
    n_points = len(test_resume.GRIDS["whole"][0]) * len(test_resume.GRIDS["whole"][1])

    def chain(server: test_resume.Server, folder: Path, delays: list[float]) -> int:
        for n, delay in enumerate(delays):
            if not server.run(folder, delay=delay):
                return n
        assert not server.run(folder)
        return len(delays)

    try:
        assert not servers[0].run(tmp_path / "alone")
        expected = np.load(tmp_path / "alone" / "result.npz")
        for k in range(10 * wanted):
            folder = tmp_path / str(k)
            delays = [[rng.uniform(0.01, 0.15) for _ in range(6)] for _ in servers]
            with ThreadPoolExecutor(2) as threads:
                kills = sum(threads.map(chain, servers, [folder] * 2, delays))
            n_killed += kills
            assert test_resume.points_in(folder) == n_points
            assert not servers[0].run(folder)  # recalled, and saved by it alone
            found = np.load(folder / "result.npz")
            for name in expected.files:
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
            begun = [point for word, point in test_resume.noted(folder) if word == "begun"]
            assert len(set(begun)) == n_points
            assert len(begun) <= n_points + test_resume.BLOCK * kills
            if n_killed >= wanted:
                break
        assert n_killed >= wanted
        print(f"{n_killed} kills in {k + 1} surfaces")
    finally:
        for server in servers:
            server.close()
