"""Threads: what a control group allows, and what a comparison with one thread says and does."""

from __future__ import annotations

import math
import os
from itertools import pairwise

import pytest
import torch

from landscape.loss import evaluation
from landscape.measurement import before_work
from landscape.problem import Problem
from landscape.threads import compared_with_one, cpu_quota, n_threads, usable_cpus

V2 = "cgroup2 cgroup2 rw,nsdelegate"
DATA = {n: (torch.ones(3, n), torch.zeros(3, 1)) for n in (1, 2)}
V1 = "cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture
def machine(tmp_path):
    """Write what Linux says of a process, with folders of control groups below tmp_path."""

    def build(groups, mounts, quotas):
        proc = tmp_path / "proc"
        proc.mkdir()
        (proc / "cgroup").write_text("".join(f"{group}\n" for group in groups))
        lines = [
            f"31 23 0:{k} {root} {tmp_path}{point} rw,relatime shared:9 - {kind}\n"
            for k, (root, point, kind) in enumerate(mounts)
        ]
        (proc / "mountinfo").write_text("".join(lines))
        for file, text in quotas.items():
            at = tmp_path / file.lstrip("/").replace("\\040", " ")
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(f"{text}\n")
        return proc

    return build


def test_a_quota_of_version_2(machine):
    proc = machine(["0::/job"], [("/", "/cg", V2)], {"/cg/job/cpu.max": "250000 100000"})
    assert cpu_quota(proc) == 2.5


@pytest.mark.parametrize(("outer", "inner", "quota"), [(3, 1, 1), (1, 3, 1), (2, "max", 2)])
def test_the_smallest_quota_of_nested_groups_counts(machine, outer, inner, quota):
    inner = f"{inner}00000" if inner != "max" else inner
    files = {"/cg/a/cpu.max": f"{outer}00000 100000", "/cg/a/b/c/cpu.max": f"{inner} 100000"}
    assert cpu_quota(machine(["0::/a/b/c"], [("/", "/cg", V2)], files)) == quota


def test_a_quota_of_version_1_beside_other_controllers(machine):
    files = {"/cpu/a/cpu.cfs_quota_us": "150000", "/cpu/a/cpu.cfs_period_us": "50000"}
    files |= {"/set/a/cpu.cfs_quota_us": "1", "/set/a/cpu.cfs_period_us": "1"}
    groups = ["9:cpuset:/a", "4:cpu,cpuacct:/a/b", "1:name=systemd:/", "0::/"]
    mounts = [("/", "/set", "cgroup cgroup rw,cpuset"), ("/", "/cpu", V1), ("/", "/v2", V2)]
    assert cpu_quota(machine(groups, mounts, files)) == 3.0


def test_in_a_container_the_group_itself_is_mounted(machine):
    """Without a namespace of its own, the path is that of the host."""
    files = {"/cg/cpu.cfs_quota_us": "200000", "/cg/cpu.cfs_period_us": "100000"}
    mounts = [("/docker/4f2a", "/cg", V1)]
    assert cpu_quota(machine(["2:cpu,cpuacct:/docker/4f2a"], mounts, files)) == 2.0


def test_a_path_outside_of_what_is_mounted_means_the_mount(machine):
    proc = machine(["0::/../other"], [("/", "/cg", V2)], {"/cg/cpu.max": "400000 100000"})
    assert cpu_quota(proc) == 4.0


def test_a_mount_with_a_space_in_its_name(machine):
    proc = machine(["0::/"], [("/", "/c\\040g", V2)], {"/c\\040g/cpu.max": "50000 100000"})
    assert cpu_quota(proc) == 0.5
    assert usable_cpus(proc) == 1


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"/cg/cpu.max": "max 100000"},
        {"/cg/cpu.max": "nonsense"},
        {"/cg/cpu.cfs_quota_us": "-1", "/cg/cpu.cfs_period_us": "100000"},
    ],
)
def test_without_a_quota_the_processors_count(machine, files):
    proc = machine(["0::/", "3:cpu:/"], [("/", "/cg", V2), ("/", "/cg", V1)], files)
    assert cpu_quota(proc) == math.inf
    assert usable_cpus(proc) == len(os.sched_getaffinity(0))


def test_a_quota_is_rounded_down_and_affinity_counts_too(machine, monkeypatch):
    proc = machine(["0::/"], [("/", "/cg", V2)], {"/cg/cpu.max": "370000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert usable_cpus(proc) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 6})
    assert usable_cpus(proc) == 2


def test_another_system_has_no_quota(tmp_path):
    assert cpu_quota(tmp_path) == math.inf


# -- the comparison --------------------------------------------------------------------------------


class Clock:
    """A clock that a call sets forward, by the number of threads that it is made with."""

    def __init__(self, *seconds: dict[int, float]) -> None:
        self.now, self.calls = 0.0, list[int]()
        self._seconds = seconds

    def __call__(self) -> float:
        return self.now

    def call(self) -> None:
        n = torch.get_num_threads()
        turn = self.calls.count(n)
        self.calls.append(n)
        self.now += self._seconds[min(turn, len(self._seconds) - 1)][n]


def test_threads_take_turns_and_the_best_warm_time_counts():
    clock = Clock({3: 0.09, 1: 0.08}, {3: 0.02, 1: 0.015}, {3: 0.025, 1: 0.01})
    before = torch.get_num_threads()
    assert compared_with_one(clock.call, 3, clock=clock) == pytest.approx((0.02, 0.01))
    assert clock.calls == [3, 1, 3, 1, 3, 1]
    assert torch.get_num_threads() == before


def test_two_rounds_are_enough_for_what_takes_long():
    clock = Clock({2: 6.0, 1: 0.3})
    assert compared_with_one(clock.call, 2, clock=clock) == pytest.approx((6.0, 0.3))
    assert clock.calls == [2, 1, 2, 1]


def test_short_work_is_not_compared():
    clock = Clock({2: 0.5, 1: 0.5}, {2: 0.005, 1: 0.001})
    assert compared_with_one(clock.call, 2, at_least=0.01, clock=clock) is None
    assert clock.calls == [2, 1, 2]


def test_the_number_of_threads_comes_back_after_an_error():
    before = torch.get_num_threads()
    counts = []

    def fail():
        counts.append(torch.get_num_threads())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compared_with_one(fail, before + 1)
    assert counts == [before + 1]
    assert torch.get_num_threads() == before


# -- on the command line ---------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """Note the number of threads of every gradient, and let comparisons find what they are told."""
    from landscape.evaluate import Evaluator

    counts = []
    gradient = Evaluator.gradient

    def noting(self, *args, **kwargs):
        counts.append(torch.get_num_threads())
        return gradient(self, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "gradient", noting)

    def told(seconds):
        monkeypatch.setattr("landscape.threads.compared_with_one", lambda *a, **k: seconds)
        return counts

    return told


SHARPNESS = "sharpness", "a.pt", "--problem", "task.py", "--rho", "0.01", "--study"


@pytest.fixture
def several(monkeypatch):
    """As on a machine where torch starts with four threads, and all of them may run."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("landscape.threads.usable_cpus", lambda: 8)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several")
def test_a_number_is_taken_and_given_back(here, run, counted):
    counts = counted((1.0, 0.1))
    ran = run(*SHARPNESS, "1.db", "--threads", "2")
    assert ran.code == 0
    assert set(counts) == {2}
    assert "threads" not in ran.err  # what is asked for is not advised against
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("several")
def test_one_thread_is_recommended_and_not_taken(here, run, counted):
    counts = counted((0.25, 0.2))
    assert run(*SHARPNESS, "1.db").err == ""
    counts = counted((6.4, 0.26))
    ran = run(*SHARPNESS, "2.db")
    expected = (
        "A gradient of one batch takes 6.4 s with 4 threads, 0.26 s with one: add --threads 1\n"
    )
    assert ran.err == expected
    assert set(counts) == {4}


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("asked", [(), ("--threads", "auto")])
def test_nothing_is_compared_where_all_is_recalled(here, run, counted, asked):
    counted((6.4, 0.26))
    assert "6.4 s with 4 threads" in run(*SHARPNESS, "1.db", *asked).err
    assert run(*SHARPNESS, "1.db", *asked).err == ""
    both = SHARPNESS[0], "a.pt", "b.pt", *SHARPNESS[2:]
    assert run(*both, "1.db", *asked).err.count("6.4 s with 4 threads") == 1


def test_what_waits_for_work_sees_the_first_problem_only():
    problems = [Problem(torch.nn.Linear(n, 1), torch.nn.MSELoss(), DATA[n]) for n in (1, 2)]
    seen = []
    with before_work(seen.append):
        for problem in problems:
            evaluation(problem)
    evaluation(problems[1])
    assert seen == problems[:1]


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize(("seconds", "n"), [((0.2, 0.1), 1), ((0.1, 0.2), 4)])
def test_auto_takes_what_is_faster(here, run, counted, seconds, n):
    counts = counted(seconds)
    ran = run(*SHARPNESS, "1.db", "--threads", "auto")
    assert f": {n} taken (--threads auto)" in ran.err
    assert set(counts) == {n}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("several")
def test_a_quota_is_respected_unless_the_environment_says_otherwise(
    here, run, counted, monkeypatch
):
    monkeypatch.setattr("landscape.threads.usable_cpus", lambda: 3)
    counts = counted(None)
    run(*SHARPNESS, "1.db")
    assert set(counts) == {3}
    counts.clear()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    run(*SHARPNESS, "2.db")
    assert set(counts) == {4}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("several")
def test_what_has_no_gradient_is_measured_all_the_same(here, run):
    text = (here / "task.py").read_text()
    (here / "step.py").write_text(f"{text}\nloss = lambda o, t: (o.argmax(1) != t).float()\n")
    measured = "line", "a.pt", "--problem", "step.py", "--points", "3"
    losses = [
        run(*measured, "--study", f"{n}.db", "--threads", n, "--json").out.split('"loss"')[1][:80]
        for n in ("auto", "1")
    ]
    assert all(a == b for a, b in pairwise(losses))


def test_one_thread_is_compared_with_nothing(here, run, counted):
    counted((1.0, 0.1))
    with n_threads(1):
        assert run(*SHARPNESS, "1.db", "--threads", "auto").err == ""


@pytest.mark.parametrize("bad", ["0", "-1", "two", "1.5", ""])
def test_refuses_what_is_no_number_of_threads(here, run, bad):
    ran = run(*SHARPNESS, "1.db", "--threads", bad)
    assert ran.code == 2
    assert "expected a number of threads, at least 1, or auto" in ran.err


def test_training_and_the_demo_have_the_option(run):
    for verb in ("train", "surface", "eigs", "compare", "doctor", "path"):
        assert "--threads" in run(verb, "--help").out
