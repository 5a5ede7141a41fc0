"""Experiments: nothing is done twice, nothing depends on how many processes work, all is drawn."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from landscape.cli import cli
from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.errors import InvalidArgumentError, LandscapeError, StudyError
from landscape.experiments import EXPERIMENTS, Bench, Found, Run, noise, perform, runs, seeds
from landscape.experiments.processes import side_by_side
from landscape.experiments.runs import evidence
from landscape.loss import evaluation
from landscape.problem import load_task
from landscape.results import Evaluation, Sharpness
from landscape.study import Study
from landscape.training import train

pytest.importorskip("sklearn")

FIGURES = Path(__file__).parents[1] / "figures"


@pytest.fixture(autouse=True)
def one_thread():
    """As experiments train, so that a training by itself has the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(name: str = "a", *, seed: int = 0, epochs: int = 1, **settings) -> Run:
    given = {"optimizer": "sgd", "epochs": epochs, "seed": seed, **settings}
    return Run(problem="digits-mlp", settings=given, name=name)


def held_out_loss(trained) -> list:
    return [evaluation(trained.problem(split="test"))]


def bench(folder: Path, study: Study, **options) -> Bench:
    return Bench(study=study, folder=folder / "build", progress=False, **options)


def test_a_run_is_what_the_training_gives_by_itself(tmp_path: Path) -> None:
    with Study(tmp_path / "s.db") as study:
        (found,) = bench(tmp_path, study).do([run(epochs=2)], held_out_loss, what="")
    task = load_task("digits-mlp")
    trained = train(task, optimizer="sgd", epochs=2, seed=0, progress=False)
    alone = evaluation(task.problem(split="test").at(trained.model))
    assert found.get(Evaluation, split="test").loss == alone.loss
    assert found.log.train_loss.tolist() == [epoch.train_loss for epoch in trained.log]
    assert found.log.settings["problem"] == "digits-mlp"
    assert found.log.gradients == trained.gradients == 46


def test_what_the_study_holds_is_not_done_again(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "s.db"
    asked = [run("a"), run("b", seed=1)]
    with Study(file) as study:
        before = bench(tmp_path, study).do(asked, held_out_loss, what="")
    monkeypatch.setattr(runs, "_work_on", None)  # whoever works now fails
    with Study(file) as study:
        after = bench(tmp_path / "elsewhere", study).do(asked, held_out_loss, what="")
    losses = [
        [one.get(Evaluation, split="test").loss for one in found] for found in (before, after)
    ]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"epochs": 2}, {"lr": 0.01}, {"optimizer": "sam"}, {"label_noise": 0.2}]
)
def test_another_training_is_not_taken_for_this_one(tmp_path: Path, other) -> None:
    with Study(tmp_path / "s.db") as study:
        (first,) = bench(tmp_path, study).do([run("a")], held_out_loss, what="")
        (second,) = bench(tmp_path, study).do([run("b", **other)], held_out_loss, what="")
    assert first.log.provenance.checkpoint_hash != second.log.provenance.checkpoint_hash


def test_the_same_training_said_in_full_is_the_same(tmp_path: Path, monkeypatch) -> None:
    with Study(tmp_path / "s.db") as study:
        work = bench(tmp_path, study)
        work.do([run("a")], held_out_loss, what="")
        monkeypatch.setattr(runs, "_work_on", None)
        (again,) = work.do([run("a", lr=0.05, momentum=0.9)], held_out_loss, what="")
    assert again.log.settings["lr"] == 0.05


def test_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    asked = [run(f"seed {seed}", seed=seed) for seed in range(3)]
    losses = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        with Study(folder / "s.db") as study:
            found = bench(folder, study, workers=workers).do(asked, held_out_loss, what="")
        assert [one.run for one in found] == asked
        losses.append([one.get(Evaluation, split="test").loss for one in found])
    assert losses[0] == losses[1]


def test_a_failure_keeps_what_was_done_before(tmp_path: Path) -> None:
    asked = [run("good"), run("bad", lr=1e30)]
    with Study(tmp_path / "s.db") as study:
        with pytest.raises(LandscapeError, match=r"^bad: the training loss of epoch 1 is"):
            bench(tmp_path, study).do(asked, held_out_loss, what="")
        held = study.entries()
    assert {entry.name for entry in held} == {"good"}


def patient(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def angry(number: int) -> int:
    if number == 0:
        message = "no zero, please"
        raise InvalidArgumentError(message)
    time.sleep(60)
    return number


def suicidal(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_first_failure_ends_the_other_processes_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(InvalidArgumentError, match="no zero"):
        list(side_by_side(angry, [1, 0], workers=2))
    assert time.monotonic() - started < 50
    assert not multiprocessing.active_children()


def test_a_process_that_was_killed_is_said_in_words() -> None:
    with pytest.raises(LandscapeError, match=r"ended from outside.*--workers 1"):
        list(side_by_side(suicidal, [1, 2], workers=2))


SCRIPT = """
from test_experiments import patient
from landscape.experiments.processes import side_by_side
if __name__ == "__main__":
    for _ in side_by_side(patient, [0.0, 600.0, 600.0], workers=2):
        print("one is done", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups of POSIX")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, how: int) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    # A group of its own, so that what is left of it can be counted.
    process = subprocess.Popen(
        [sys.executable, str(file)],
        env={**os.environ, **paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"one is done\n"
    os.kill(process.pid, how)
    process.wait(timeout=60)
    process.stdout.close()
    deadline = time.monotonic() + 60
    while is_alive(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(group: int) -> bool:
    """Whether a process of the group runs; one that ended and that nobody waits for does not."""
    if not Path("/proc/self/stat").is_file():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended meanwhile
            continue
        if int(its_group) == group and state not in {"Z", "X"}:
            return True
    return False


def test_an_epoch_that_was_kept_is_measured_with_its_own_weights(tmp_path: Path) -> None:
    asked = dataclasses.replace(run("a", epochs=3), epochs_kept=(1, 3))
    with Study(tmp_path / "s.db") as study:
        (found,) = bench(tmp_path, study).do([asked], losses_of_epochs, what="")
    task = load_task("digits-mlp")
    assert found.get(Evaluation).loss != found.get(Evaluation, epoch=1).loss
    early = train(
        task,
        optimizer="sgd",
        epochs=3,
        seed=0,
        progress=False,
        checkpoint=tmp_path / "c.pt",
        save_every=1,
    )
    at_1 = task.problem().at(tmp_path / "c-epoch-1.pt")
    assert found.get(Evaluation, epoch=1).loss == evaluation(at_1).loss
    assert found.get(Evaluation).loss == evaluation(task.problem().at(early.model)).loss


def losses_of_epochs(trained) -> list:
    return [evaluation(trained.problem(epoch=epoch)) for epoch in (1, 3)]


def test_epochs_of_two_trainings_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    found = []
    with Study(tmp_path / "s.db") as study:
        for lr in (0.01, 0.05):
            asked = dataclasses.replace(run("a", epochs=3, lr=lr), epochs_kept=(1, 3))
            found += bench(tmp_path, study).do([asked], losses_of_epochs, what="")
    losses = [[one.get(Evaluation, epoch=epoch).loss for epoch in (None, 1)] for one in found]
    assert len({loss for pair in losses for loss in pair}) == 4


def test_what_was_measured_otherwise_is_measured_again(tmp_path: Path) -> None:
    with Study(tmp_path / "s.db") as study:
        work = bench(tmp_path, study)
        plan = dataclasses.replace(seeds.SMALL, seeds=1, epochs=1)
        tables = [
            seeds.perform(work, dataclasses.replace(plan, radii=radii)).tables[0]
            for radii in ((0.1,), (0.2,), (0.1,))
        ]
    assert tables[0] == tables[2]
    rises = [float(table[2][1].split()[0]) for table in tables]
    assert rises[1] > 1.5 * rises[0]


def test_what_lacks_its_vectors_is_not_taken_for_a_whole_measurement(tmp_path: Path) -> None:
    plan = dataclasses.replace(seeds.SMALL, seeds=1, epochs=1)
    with Study(tmp_path / "s.db") as study:
        work = bench(tmp_path, study)
        seeds.perform(work, plan)
        problem = load_task("digits-mlp").problem()
        (file, *_) = sorted((tmp_path / "build").glob("*.pt"))
        pairs = top_eigenpairs(problem.at(file), 1, study=study, progress=False)
    assert pairs.vectors.shape == (1, problem.space.n)


def test_a_state_of_other_data_is_begun_anew(tmp_path: Path, monkeypatch) -> None:
    with Study(tmp_path / "s.db") as study:
        (before,) = bench(tmp_path, study).do([run("a")], held_out_loss, what="")
    task = load_task("digits-mlp")

    def louder(split: str):
        x, y = task.data(split)
        return 1.5 * x, y

    changed = dataclasses.replace(task, data=louder)
    monkeypatch.setattr(runs, "load_task", lambda name: changed)
    runs._start_of.cache_clear()
    try:
        with Study(tmp_path / "s.db") as study:
            (after,) = bench(tmp_path, study).do([run("a")], held_out_loss, what="")
    finally:
        runs._start_of.cache_clear()
    hashes = {one.log.provenance.checkpoint_hash for one in (before, after)}
    assert len(hashes) == 2


def test_the_evidence_counts_what_did_not_converge(tmp_path: Path) -> None:
    plan = dataclasses.replace(seeds.SMALL, seeds=1, epochs=1)
    with Study(tmp_path / "s.db") as study:
        notes = seeds.perform(bench(tmp_path, study), plan).notes
        records = [study.load(entry.id) for entry in study.entries("sharpness")]
        (log,) = [study.load(entry.id) for entry in study.entries("training")][:1]
    assert notes[0].startswith("Sharpness is found by search, a lower bound: 0 of 2 searches")
    assert notes[1].startswith("λmax: 0 of 2 did not converge")
    lost = dataclasses.replace(records[0], converged=False, gap=0.25)
    found = Found(run("a"), log, (lost, records[1]))
    (said,) = evidence([found])
    assert "1 of 2 searches did not converge, largest gap 2e-01" in said


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_study_files_beside_the_figures_are_of_these_data(name: str) -> None:
    # They are of the first version of the schema: they open, and their data are known again.
    with Study(FIGURES / f"{name}.db", readonly=True) as study:
        logs = [study.load(entry.id) for entry in study.entries("training")]
    (problem,) = {log.settings["problem"] for log in logs}
    splits = {log.settings.get("split", "train"): log.provenance.data_fingerprint for log in logs}
    for split, fingerprint in splits.items():
        assert load_task(problem).problem(split=split).batches.fingerprint == fingerprint


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with Study(tmp_path / "s.db") as study:
        (found,) = bench(tmp_path, study).do([run("a")], held_out_loss, what="")
    with pytest.raises(StudyError, match=r"no sharpness of a on the train data with rho = 0.1"):
        found.get(Sharpness, rho=0.1)
    with pytest.raises(StudyError, match="no loss of a on the train data"):
        found.get(Evaluation)


def test_vectors_of_the_size_of_the_model_are_not_kept(tmp_path: Path) -> None:
    plan = dataclasses.replace(seeds.SMALL, seeds=1, epochs=1)
    with Study(tmp_path / "s.db") as study:
        seeds.perform(bench(tmp_path, study), plan)
        kept = [study.load(entry.id) for entry in study.entries("sharpness")]
    assert [one.epsilon.size for one in kept] == [0, 0]
    assert all(one.value > 0 for one in kept)


def test_the_radius_is_chosen_by_validation_accuracy_alone(tmp_path: Path, monkeypatch) -> None:
    plan = dataclasses.replace(noise.SMALL, shares=(0.0,), rhos=(0.05, 5.0), epochs=4)
    with Study(tmp_path / "s.db") as study:
        work = bench(tmp_path, study)
        chosen = noise._chosen(work, plan)
        tuned = [study.load(entry.id) for entry in study.entries("loss")]
    by_rho = {one.name.split()[2]: one.metrics["accuracy"] for one in tuned}
    assert {one.provenance.split for one in tuned} == {"validation"}
    assert by_rho["0.05"] > by_rho["5"]  # a radius of 5 learns nothing
    assert chosen == [0.05]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_figure_is_drawn_and_drawn_again_from_its_study_alone(
    tmp_path: Path, name: str, monkeypatch
) -> None:
    pytest.importorskip("mnist1d")
    with Study(tmp_path / "s.db") as study:
        first = perform(name, bench(tmp_path, study), small=True)
    monkeypatch.setattr(runs, "_trained", None)  # whoever trains now fails
    with Study(tmp_path / "s.db") as study:
        again = perform(name, bench(tmp_path / "elsewhere", study), small=True)
    assert again.tables == first.tables
    assert again.notes == first.notes
    for table in first.tables:
        assert len(table) >= 3
        assert len({len(row) for row in table}) == 1
    assert first.figure.axes


def test_the_command_draws_keeps_and_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    command = ["figure", "seeds", "--small", "-o", "out", "--workers", "1", "--quiet"]
    first = runner.invoke(cli, command)
    assert first.exit_code == 0, first.output
    assert "λmax of the Hessian" in first.stdout
    assert {file.name for file in Path("out").iterdir() if file.is_file()} == {
        "seeds-small.db",
        "seeds-small.pdf",
        "seeds-small.png",
    }
    assert Path("out/seeds-small.png").read_bytes().startswith(b"\x89PNG")
    elsewhere = ["--json", "--study", "out/seeds-small.db", "-o", "other"]
    again = runner.invoke(cli, [*command[:3], *elsewhere])
    (said,) = json.loads(again.stdout)
    assert said["files"] == [str(Path("other") / f"seeds-small.{s}") for s in ("png", "pdf")]
    assert said["tables"][0][0]["SGD"] in first.stdout


def test_the_command_lists_and_refuses() -> None:
    runner = CliRunner()
    listed = runner.invoke(cli, ["figure"])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in EXPERIMENTS)
    with pytest.raises(InvalidArgumentError, match="seeds"):
        runner.invoke(cli, ["figure", "seedz"], catch_exceptions=False)
    two = runner.invoke(cli, ["figure", "seeds", "noise", "--study", "x.db"])
    assert two.exit_code == 2
    assert "one figure" in two.stderr
