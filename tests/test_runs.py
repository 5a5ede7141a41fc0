"""Training runs: their checkpoints, and the epoch of each."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from landscape.study import Study


@pytest.fixture
def runs(here: Path) -> Path:
    """Two runs of three checkpoints: one says its epochs, the other has them in the names."""
    for run in ("adam", "sam"):
        (here / run).mkdir()
        for epoch in (1, 2, 10):
            torch.manual_seed(epoch)
            state = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).state_dict()
            if run == "adam":
                torch.save({"model": state, "epoch": 3 * epoch}, here / run / f"e{epoch}.pt")
            else:
                state = {name: 0.5 * tensor for name, tensor in state.items()}
                torch.save(state, here / run / f"e{epoch}.pt")
    return here


def runs_drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that the runs of a sweep are added to as they are drawn."""
    from landscape.plots import sweeps

    drawn: list[Any] = []
    plain = sweeps.training_runs

    def watched(*given: Any, **options: Any) -> Any:
        result = plain(*given, **options)
        drawn.extend(result[0])
        return result

    monkeypatch.setattr(sweeps, "training_runs", watched)
    return drawn


def held(path: str = "landscape.db") -> dict[str, dict[str, float]]:
    with Study(path, readonly=True) as study:
        return study.runs()


def test_runs_are_saved_with_the_epoch_of_each_checkpoint(runs: Path, run) -> None:
    args = ("--run", "adam=adam/*.pt", "--run", "sam=sam/*.pt", "--problem", "task.py", "-q")
    ran = run("loss", *args)
    assert ran.code == 0, ran.err
    assert held() == {
        "adam": {"adam/e1.pt": 3.0, "adam/e2.pt": 6.0, "adam/e10.pt": 30.0},
        "sam": {"sam/e1.pt": 1.0, "sam/e2.pt": 2.0, "sam/e10.pt": 10.0},
    }
    records = json.loads(run("eigs", *args, "--json").out)
    assert [record["provenance"]["checkpoint"] for record in records] == [
        *("adam/e1.pt", "adam/e2.pt", "adam/e10.pt"),
        *("sam/e1.pt", "sam/e2.pt", "sam/e10.pt"),
    ]


def test_checkpoints_without_numbers_have_their_position(runs: Path, run) -> None:
    Path("sam/e1.pt").rename("sam/first.pt")
    args = ("--run", "sam=sam/first.pt,sam/e2.pt,sam/e10.pt", "--problem", "task.py", "-q")
    assert run("loss", *args).code == 0
    assert list(held()["sam"].values()) == [0.0, 1.0, 2.0]


def test_a_run_without_name_or_checkpoint_is_refused(runs: Path, run) -> None:
    unnamed = run("eigs", "--run", "sam/*.pt", "--problem", "task.py")
    assert unnamed.code == 2
    assert "--run takes NAME=FILES, such as adam='runs/adam/*.pt'; got 'sam/*.pt'" in unnamed.err
    nothing = run("eigs", "--problem", "task.py")
    assert nothing.code == 2
    assert "Missing argument '[NAME=]CHECKPOINT...'" in nothing.err


def test_a_study_of_version_2_is_read_as_it_stands_and_upgraded_when_written(
    here: Path, run
) -> None:
    assert run("loss", "a.pt", "--problem", "task.py", "-q").code == 0
    with closing(sqlite3.connect("landscape.db")) as plain:
        plain.executescript("DROP TABLE runs; DROP TABLE claims;")
        plain.execute("PRAGMA user_version = 2")
        plain.commit()
    assert held() == {}
    with closing(sqlite3.connect("landscape.db")) as plain:
        assert plain.execute("PRAGMA user_version").fetchone() == (2,)
    with Study("landscape.db") as study:
        assert [name.name for name in study.names()] == ["a.pt"]
        study.set_run("r", {"a.pt": 4.0})
    assert held() == {"r": {"a.pt": 4.0}}


def test_a_sweep_has_a_line_for_each_run_over_its_epochs(runs: Path, run, monkeypatch) -> None:
    args = ("--run", "adam=adam/*.pt", "--run", "sam=sam/*.pt", "--problem", "task.py", "-q")
    for verb in ("loss", "eigs"):
        assert run(verb, *args).code == 0
    drawn = runs_drawn(monkeypatch)
    for of in ("loss", "eigs"):
        drawn.clear()
        ran = run("plot", "--what", "sweep", "--of", of, "-o", f"{of}.png")
        assert ran.code == 0, ran.err
        assert {one.name: one.x.tolist() for one in drawn} == {
            "adam": [3.0, 6.0, 30.0],
            "sam": [1.0, 2.0, 10.0],
        }


def test_runs_share_weights_with_each_other_and_with_other_files(
    runs: Path, run, monkeypatch
) -> None:
    """The first checkpoint of both, and the last one of sam, which has two names."""
    shutil.copytree("sam", "asam")
    for epoch in (2, 10):
        state = torch.load(f"asam/e{epoch}.pt")
        torch.save({name: 0.5 * tensor for name, tensor in state.items()}, f"asam/e{epoch}.pt")
    shutil.copy("sam/e10.pt", "sam/last.pt")
    problem = ("--problem", "task.py", "-q")
    assert run("loss", "FINAL=sam/last.pt", *problem).code == 0
    assert run("loss", "--run", "sam=sam/*.pt", "--run", "asam=asam/*.pt", *problem).code == 0
    assert list(held()) == ["sam", "asam"]
    drawn = runs_drawn(monkeypatch)
    ran = run("plot", "--what", "sweep", "--of", "loss", "-o", "x.png")
    assert ran.code == 0, ran.err
    assert {one.name: one.x.tolist() for one in drawn} == {
        "sam": [1.0, 2.0, 10.0],
        "asam": [1.0, 2.0, 10.0],
    }
    losses = {one.name: [record.loss for record in one.records] for one in drawn}
    assert losses["sam"][0] == losses["asam"][0]
    assert losses["sam"][2] != losses["asam"][2]


def test_a_run_that_is_given_in_parts_is_one(runs: Path, run) -> None:
    args = ("--run", "sam=sam/e1.pt", "--run", "sam=sam/e2.pt", "--problem", "task.py", "-q")
    assert run("loss", *args).code == 0
    assert held() == {"sam": {"e1.pt": 1.0, "e2.pt": 2.0}}


def test_deleting_the_last_measurement_of_a_checkpoint_frees_its_name(runs: Path, run) -> None:
    args = ("--problem", "task.py", "-q")
    assert run("loss", "--run", "sam=sam/e1.pt,sam/e2.pt", *args).code == 0
    assert run("delete", "1", "-y").code == 0
    assert held() == {"sam": {"e2.pt": 2.0}}
    assert run("loss", "e1.pt=adam/e1.pt", *args).code == 0


def test_a_run_is_known_though_its_measurement_was_stopped(runs: Path, run, monkeypatch) -> None:
    from landscape import loss

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loss, "evaluation", stopped)
    ran = run("loss", "--run", "sam=sam/*.pt", "--problem", "task.py", "-q")
    assert ran.code == 130
    assert list(held()["sam"].values()) == [1.0, 2.0, 10.0]
