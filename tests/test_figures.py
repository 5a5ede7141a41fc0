"""Figure scripts: no run twice, the same numbers from any number of processes, all is drawn."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import noise
import numpy as np
import prediction
import pytest
import runs
import seeds
import torch
from runs import Run, Runner, RunRecords, evidence, in_processes
from work import angry, held_out_loss, suicidal

from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.errors import InvalidArgumentError, LandscapeError, StudyError
from landscape.loss import evaluation
from landscape.problem import load_task
from landscape.results import Evaluation, Sharpness
from landscape.study import Study
from landscape.training import train

pytest.importorskip("sklearn")

FIGURES = Path(__file__).parents[1] / "figures"
NAMES = ("minima", "spectra", "noise", "radius", "prediction", "seeds", "edges")


@pytest.fixture(autouse=True)
def one_thread():
    """As the scripts train, so that a training by itself has the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(name: str = "a", *, seed: int = 0, epochs: int = 1, **settings) -> Run:
    given = {"optimizer": "sgd", "epochs": epochs, "seed": seed, **settings}
    return Run(problem="digits-mlp", settings=given, name=name)


def runner(folder: Path, study: Study, **options) -> Runner:
    return Runner(study=study, folder=folder / "build", progress=False, **options)


def test_a_run_is_what_the_training_gives_by_itself(tmp_path: Path) -> None:
    with Study(tmp_path / "s.db") as study:
        (found,) = runner(tmp_path, study).run([run(epochs=2)], held_out_loss)
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
        before = runner(tmp_path, study).run(asked, held_out_loss)
    monkeypatch.setattr(runs, "_train_and_measure", None)  # whoever works now fails
    with Study(file) as study:
        after = runner(tmp_path / "elsewhere", study).run(asked, held_out_loss)
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
        (first,) = runner(tmp_path, study).run([run("a")], held_out_loss)
        (second,) = runner(tmp_path, study).run([run("b", **other)], held_out_loss)
    assert first.log.provenance.checkpoint_hash != second.log.provenance.checkpoint_hash


def test_the_same_training_said_in_full_is_the_same(tmp_path: Path, monkeypatch) -> None:
    with Study(tmp_path / "s.db") as study:
        work = runner(tmp_path, study)
        work.run([run("a")], held_out_loss)
        monkeypatch.setattr(runs, "_train_and_measure", None)
        (again,) = work.run([run("a", lr=0.05, momentum=0.9)], held_out_loss)
    assert again.log.settings["lr"] == 0.05


def test_two_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    asked = [run(f"seed {seed}", seed=seed) for seed in range(3)]
    losses = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        with Study(folder / "s.db") as study:
            found = runner(folder, study, workers=workers).run(asked, held_out_loss)
        assert [one.run for one in found] == asked
        losses.append([one.get(Evaluation, split="test").loss for one in found])
    assert losses[0] == losses[1]


def test_a_failure_keeps_what_was_done_before(tmp_path: Path) -> None:
    asked = [run("good"), run("bad", lr=1e30)]
    with Study(tmp_path / "s.db") as study:
        with pytest.raises(LandscapeError, match=r"^bad: the training loss of epoch 1 is"):
            runner(tmp_path, study).run(asked, held_out_loss)
        held = study.entries()
    assert {entry.name for entry in held} == {"good"}


def test_the_first_failure_ends_the_other_processes_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(InvalidArgumentError, match="no zero"):
        list(in_processes(angry, [1, 0], workers=2))
    assert time.monotonic() - started < 50
    assert not multiprocessing.active_children()


def test_a_process_that_was_killed_is_said_in_words() -> None:
    with pytest.raises(LandscapeError, match=r"ended from outside.*--workers 1"):
        list(in_processes(suicidal, [1, 2], workers=2))


SCRIPT = """
from work import patient
from runs import in_processes
if __name__ == "__main__":
    for _ in in_processes(patient, [0.0, 600.0, 600.0], workers=2):
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
        (found,) = runner(tmp_path, study).run([asked], losses_of_epochs)
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
            found += runner(tmp_path, study).run([asked], losses_of_epochs)
    losses = [[one.get(Evaluation, epoch=epoch).loss for epoch in (None, 1)] for one in found]
    assert len({loss for pair in losses for loss in pair}) == 4


def test_what_was_measured_otherwise_is_measured_again(tmp_path: Path) -> None:
    with Study(tmp_path / "s.db") as study:
        work = runner(tmp_path, study)
        plan = dataclasses.replace(seeds.TINY, seeds=1, epochs=1)
        tables = [
            seeds.figure(work, dataclasses.replace(plan, radii=radii))[1][0]
            for radii in ((0.1,), (0.2,), (0.1,))
        ]
    assert tables[0] == tables[2]
    rises = [float(table[2][1].split()[0]) for table in tables]
    assert rises[1] > 1.5 * rises[0]


@pytest.fixture(scope="module")
def few_seeds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of the smallest figure of seeds, which tests only read, and its notes."""
    folder = tmp_path_factory.mktemp("seeds")
    plan = dataclasses.replace(seeds.TINY, seeds=1, epochs=1)
    with Study(folder / "s.db") as study:
        _, _, notes = seeds.figure(runner(folder, study), plan)
    return folder, notes


def test_what_lacks_its_vectors_is_not_taken_for_a_whole_measurement(
    few_seeds, tmp_path: Path
) -> None:
    folder = shutil.copytree(few_seeds[0], tmp_path / "own")
    with Study(folder / "s.db") as study:
        problem = load_task("digits-mlp").problem()
        (file, *_) = sorted((folder / "build").glob("*.pt"))
        pairs = top_eigenpairs(problem.at(file), 1, study=study, progress=False)
    assert pairs.vectors.shape == (1, problem.space.n)


@contextmanager
def other_data(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """Let trainings of a problem see its data 1.5 times as large."""
    task = load_task(name)

    def louder(split: str):
        x, y = task.data(split)
        return 1.5 * x, y

    changed = dataclasses.replace(task, data=louder)
    monkeypatch.setattr(runs, "load_task", lambda name: changed)
    runs._start_of.cache_clear()
    try:
        yield
    finally:
        runs._start_of.cache_clear()


def test_a_state_of_other_data_is_begun_anew(tmp_path: Path, monkeypatch) -> None:
    with Study(tmp_path / "s.db") as study:
        (before,) = runner(tmp_path, study).run([run("a")], held_out_loss)
    with other_data(monkeypatch, "digits-mlp"):
        with Study(tmp_path / "s.db") as study:
            (after,) = runner(tmp_path, study).run([run("a")], held_out_loss)
    hashes = {one.log.provenance.checkpoint_hash for one in (before, after)}
    assert len(hashes) == 2


def test_the_evidence_counts_what_did_not_converge(few_seeds) -> None:
    folder, notes = few_seeds
    with Study(folder / "s.db", readonly=True) as study:
        records = [study.load(entry.id) for entry in study.entries("sharpness")]
        (log,) = [study.load(entry.id) for entry in study.entries("training")][:1]
    assert notes[0].startswith("Sharpness is found by search, a lower bound: 0 of 2 searches")
    assert notes[1].startswith("λmax: 0 of 2 did not converge")
    lost = dataclasses.replace(records[0], converged=False, gap=0.25)
    found = RunRecords(run("a"), log, (lost, records[1]))
    (said,) = evidence([found])
    assert "1 of 2 searches did not converge, largest gap 2e-01" in said


@pytest.mark.parametrize("name", NAMES)
def test_a_published_figure_is_drawn_from_its_study_alone(
    tmp_path: Path, name: str, monkeypatch, capsys
) -> None:
    pytest.importorskip("mnist1d")
    published = (FIGURES / f"{name}.db").read_bytes()
    (tmp_path / f"{name}.db").write_bytes(published)
    monkeypatch.setattr(runs, "_trained", None)  # training or measuring fails
    module = importlib.import_module(name)
    arguments = ["--workers", "1", "-o", str(tmp_path)]  # one process, where the patch holds
    runs.main(module.figure, full=module.FULL, small=module.TINY, arguments=arguments)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}.{s}" for s in ("db", "pdf", "png")
    }
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{name}.db").read_bytes() == published
    assert ("schema version 1" in capsys.readouterr().err) == (name != "edges")


def test_a_study_of_schema_1_is_not_taken_for_other_data(tmp_path: Path, monkeypatch) -> None:
    with other_data(monkeypatch, "digits"):
        with Study(FIGURES / "seeds.db", readonly=True) as study:
            with pytest.raises(runs.UnfinishedError):
                seeds.figure(runner(tmp_path, study), seeds.FULL)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with Study(tmp_path / "s.db") as study:
        (found,) = runner(tmp_path, study).run([run("a")], held_out_loss)
    with pytest.raises(StudyError, match=r"no sharpness of a on the train data with rho = 0.1"):
        found.get(Sharpness, rho=0.1)
    with pytest.raises(StudyError, match="no loss of a on the train data"):
        found.get(Evaluation)


def test_vectors_of_the_size_of_the_model_are_not_kept(few_seeds) -> None:
    with Study(few_seeds[0] / "s.db", readonly=True) as study:
        kept = [study.load(entry.id) for entry in study.entries("sharpness")]
    assert [one.epsilon.size for one in kept] == [0, 0]
    assert all(one.value > 0 for one in kept)


def test_the_radius_is_chosen_by_validation_accuracy_alone(tmp_path: Path, monkeypatch) -> None:
    plan = dataclasses.replace(noise.TINY, shares=(0.0,), rhos=(0.05, 5.0), epochs=4)
    with Study(tmp_path / "s.db") as study:
        work = runner(tmp_path, study)
        chosen = noise.choose_rhos(work, plan)
        tuned = [study.load(entry.id) for entry in study.entries("loss")]
    by_rho = {one.name.split()[2]: one.metrics["accuracy"] for one in tuned}
    assert {one.provenance.split for one in tuned} == {"validation"}
    assert by_rho["0.05"] > by_rho["5"]  # a radius of 5 learns nothing
    assert chosen == [0.05]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_figure_is_drawn_and_drawn_again_from_its_study_alone(
    tmp_path: Path, name: str, monkeypatch
) -> None:
    pytest.importorskip("mnist1d")
    module = importlib.import_module(name)
    with Study(tmp_path / "s.db") as study:
        picture, *first = module.figure(runner(tmp_path, study), module.TINY)
    monkeypatch.setattr(runs, "_trained", None)  # whoever trains now fails
    with Study(tmp_path / "s.db", readonly=True) as study:
        _, *again = module.figure(runner(tmp_path / "elsewhere", study), module.TINY)
    assert again == first
    for table in first[0]:
        assert len(table) >= 3
        assert len({len(row) for row in table}) == 1
    assert picture.axes


def test_a_script_draws_prints_and_resumes(tmp_path: Path, capsys) -> None:
    arguments = ["--small", "-o", str(tmp_path), "--workers", "2"]
    command = [sys.executable, FIGURES / "seeds.py", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 of 4 runs to do" in ran.stderr
    assert "λmax of the Hessian" in ran.stdout
    names = {file.name for file in tmp_path.iterdir() if file.is_file()}
    assert names == {f"seeds-small.{suffix}" for suffix in ("db", "pdf", "png")}
    # A script's functions are of the module __main__, and yet the same as those of the module.
    runs.main(seeds.figure, full=None, small=seeds.TINY, arguments=arguments)
    again = capsys.readouterr()
    assert again.out == ran.stdout
    assert "runs to do" not in again.err


def test_a_script_tells_its_errors_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "seeds-small.db").write_text("no study")
    with pytest.raises(SystemExit, match=r"^Error: .*is not a study file"):
        runs.main(
            seeds.figure, full=None, small=seeds.TINY, arguments=["--small", "-o", str(tmp_path)]
        )


def test_models_of_like_loss_form_groups_of_one_size() -> None:
    assert prediction.like_models(np.array([0.3, 0.1, 0.2, 0.4]), size=2) == [1, 0, 0, 1]
    groups = prediction.like_models(np.arange(11.0), size=3)
    assert groups == sorted(groups)
    assert sorted(map(groups.count, set(groups))) == [3, 4, 4]
