"""What checkpoints are called: on the command line, in a study, and when they are asked for."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import nn

from landscape.errors import InvalidArgumentError
from landscape.loss import evaluation
from landscape.problem import Problem
from landscape.study import SCHEMA_VERSION, Name, Study, choose_names

RUN1, RUN2, OTHER = "/x/run1/sgd.pt", "/x/run2/sgd.pt", "/x/other.pt"


def name(name: str = "", path: str = "", digest: str = "") -> Name:
    return Name(name=name, path=path, checkpoint_hash=digest)


@pytest.mark.parametrize(
    ("known", "files", "expected"),
    [
        ([], [name(path=RUN1)], ["sgd.pt"]),
        ([], [name(path=RUN1), name(path=RUN2)], ["run1/sgd.pt", "run2/sgd.pt"]),
        ([], [name(path=RUN1), name(path=OTHER)], ["sgd.pt", "other.pt"]),
        ([], [name("SGD", RUN1), name(path=RUN2)], ["SGD", "run2/sgd.pt"]),
        ([name("sgd.pt", RUN1)], [name(path=RUN2)], ["run2/sgd.pt"]),
        ([name("sgd.pt", RUN1)], [name(path=RUN2), name(path=RUN1)], ["run2/sgd.pt", "sgd.pt"]),
        ([name("SGD", RUN1)], [name(path=RUN1)], ["SGD"]),
        ([name("SGD", RUN1)], [name("SGD", RUN1)], ["SGD"]),
        ([name("sgd.pt", RUN1)], [name("SGD", RUN1)], ["SGD"]),
        ([name("other.pt", RUN1)], [name(path=OTHER)], ["x/other.pt"]),
        # of older studies, and of Python: the path is not known, the weights are
        ([name("sgd", digest="h1")], [name(path=RUN1, digest="h1")], ["sgd"]),
        ([name("sgd.pt", digest="h1")], [name(path=RUN1, digest="h2")], ["run1/sgd.pt"]),
        ([name("last", digest="h1")], [name(path=RUN1, digest="h1")], ["sgd.pt"]),
        # the folder has moved
        ([name("SGD", RUN1, "h1")], [name(path=RUN2, digest="h1")], ["SGD"]),
        ([name("SGD", RUN1, "h1")], [name(path=OTHER, digest="h1")], ["other.pt"]),
        # what was imported from another program has a name and no weights
        ([name("net")], [name("net", RUN1, "h1")], ["net"]),
    ],
)
def test_names_that_are_chosen(known: list[Name], files: list[Name], expected: list[str]) -> None:
    assert choose_names(known, files) == expected


@pytest.mark.parametrize(
    ("known", "files", "message"),
    [
        ([name("SGD", RUN1)], [name("SGD", RUN2)], r"'SGD' belongs to /x/run1/sgd.pt in this"),
        ([name("SGD", digest="h1")], [name("SGD", RUN2, "h2")], r"belongs to other weights \(h1\)"),
        ([], [name("a", RUN1), name("a", RUN2)], r"two checkpoints are called 'a': give each"),
        ([name("a", RUN1)], [name(path=RUN1), name("a", RUN2)], r"'a' belongs to /x/run1"),
    ],
)
def test_names_that_are_refused(known: list[Name], files: list[Name], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        choose_names(known, files)


def listed(run: Any, *arguments: str) -> list[tuple[str, str]]:
    entries = json.loads(run("list", *arguments, "--json").out)
    return [(entry["name"], entry["kind"]) for entry in entries]


def test_names_on_the_command_line(here: Path, run) -> None:
    for folder, file in (("run1", "a.pt"), ("run2", "b.pt")):
        Path(folder).mkdir()
        shutil.copy(file, f"{folder}/sgd.pt")
    shutil.copy("a.pt", "copy.pt")
    problem = ("--problem", "task.py")
    assert run("eigs", "run1/sgd.pt", *problem).code == 0
    ran = run("eigs", "run1/sgd.pt", "run2/sgd.pt", "B=b.pt", *problem)
    assert ran.code == 0, ran.err
    assert ran.out.endswith("landscape show sgd.pt run2/sgd.pt B\n")
    assert "\nrun2/sgd.pt  " in ran.out
    assert "\nB  " in ran.out
    assert "run2/sgd.pt and B hold the same weights" in ran.err
    assert listed(run) == [("sgd.pt", "eigs"), ("run2/sgd.pt", "eigs")]
    assert listed(run, "B") == [("B", "eigs")]
    assert run("list").out.endswith("Same weights: run2/sgd.pt, B\n")
    for arguments in (["--what", "eigs"], ["--what", "sweep"]):
        assert run("plot", "B", "sgd", "run2/sgd.pt", *arguments, "-o", "x.svg").code == 0
        drawn = Path("x.svg").read_text()
        assert "run2/sgd.pt" in drawn
        assert ">B<" in drawn or " B" in drawn
    assert run("report", "B", "-o", "x.html").code == 0
    assert "run2/sgd.pt" not in Path("x.html").read_text()
    for arguments, message in (
        (["B=a.pt"], "the name 'B' belongs to"),
        (["x=a.pt", "x=copy.pt"], "two checkpoints are called 'x'"),
        (["=a.pt"], "expected FILE or NAME=FILE, got '=a.pt'"),
        (["a.pt", "again=./a.pt"], "a checkpoint is named twice"),
    ):
        refused = run("eigs", *arguments, *problem)
        assert refused.code in {1, 2}
        assert message in refused.err


def test_a_file_is_renamed_with_all_that_was_measured_on_it(here: Path, run) -> None:
    problem = ("--problem", "task.py")
    assert run("eigs", "--run", "r=a.pt,b.pt", *problem).code == 0
    assert run("loss", "A=a.pt", *problem).code == 0
    assert listed(run) == [("A", "eigs"), ("b.pt", "eigs"), ("A", "loss")]
    ran = run("eigs", "A=a.pt", *problem)
    assert ran.code == 0
    assert "recalled" in ran.out
    with Study("landscape.db") as study:
        assert {name.name for name in study.names()} == {"A", "b.pt"}
        assert list(study.runs()["r"]) == ["A", "b.pt"]
        assert study.load(1).provenance.checkpoint == "A"
    refused = run("loss", "A=b.pt", *problem)
    assert refused.code == 2
    assert "the name 'A' belongs to" in refused.err
    assert run("loss", "pt=b.pt", *problem).code == 0  # the end of a word is no end of a path
    assert listed(run) == [("A", "eigs"), ("pt", "eigs"), ("A", "loss"), ("pt", "loss")]


def test_a_path_with_an_equals_sign_is_a_path(here: Path, run) -> None:
    Path("lr=0.1").mkdir()
    shutil.copy("a.pt", "lr=0.1/a.pt")
    shutil.copy("b.pt", "b=1.pt")
    given = ("lr=0.1/a.pt", "B=b=1.pt", "--problem", "task.py")
    assert run("eigs", *given).code == 0
    assert listed(run) == [("a.pt", "eigs"), ("B", "eigs")]
    assert run("eigs", "b=1.pt", "--problem", "task.py").out.endswith("landscape show B\n")


def test_best_and_last_are_asked_for_under_both_names(here: Path, run) -> None:
    for file in ("best.pt", "last.pt"):
        shutil.copy("a.pt", file)
    assert run("eigs", "best.pt", "--problem", "task.py").code == 0
    assert run("sharpness", "last.pt", "b.pt", "--problem", "task.py").code == 0
    first = json.loads(run("eigs", "best.pt", "--problem", "task.py", "--json").out)[0]
    second = json.loads(run("eigs", "last.pt", "--problem", "task.py", "--json").out)[0]
    assert second["provenance"].pop("checkpoint") == "last.pt"
    assert first["provenance"].pop("checkpoint") == "best.pt"
    assert first == second  # not measured again
    assert listed(run) == [("best.pt", "eigs"), ("last.pt", "sharpness"), ("b.pt", "sharpness")]
    for asked in ("best.pt", "last.pt", "best", "last"):
        assert {kind for _, kind in listed(run, asked)} == {"eigs", "sharpness"}
    with Study("landscape.db", readonly=True) as study:
        assert study.comparison().names == ("best.pt", "b.pt")
        both = study.comparison(["last.pt", "b.pt", "best.pt"])
        assert both.names == ("last.pt", "b.pt", "best.pt")
        for of in ("best.pt", "last.pt"):
            assert both[of].eigenpairs is not None
            assert both[of].sharpness is not None
            assert both[of].sharpness.name == of


def test_a_file_that_is_trained_again_keeps_its_name(here: Path, run) -> None:
    arguments = ("eigs", "SGD=w.pt", "--problem", "task.py")
    shutil.copy("a.pt", "w.pt")
    assert run(*arguments).code == 0
    shutil.copy("b.pt", "w.pt")
    assert run(*arguments).code == 0
    assert listed(run) == [("SGD", "eigs"), ("SGD", "eigs")]
    with Study("landscape.db", readonly=True) as study:
        old, new = study.entries()
        assert study.comparison().names == (f"SGD@{old.checkpoint_hash[:8]}", "SGD")
        newest = study.comparison()["SGD"].eigenpairs
        assert newest is not None
        assert newest.provenance.checkpoint_hash == new.checkpoint_hash


def test_a_study_that_moves_with_its_checkpoints_knows_them(here: Path, run) -> None:
    Path("project").mkdir()
    shutil.copy("a.pt", "project/a.pt")
    given = ("--problem", "task.py", "--study")
    assert run("eigs", "A=project/a.pt", *given, "project/s.db").code == 0
    Path("project").rename("moved")
    ran = run("eigs", "moved/a.pt", *given, "moved/s.db")
    assert ran.out.endswith("show A --study moved/s.db\n")
    with Study("moved/s.db", readonly=True) as study:
        assert [one.name for one in study.names()] == ["A"]


def test_names_in_python_are_kept(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "x.pt")
    problem = Problem(nn.Linear(3, 3), nn.MSELoss(), (torch.ones(4, 3), torch.zeros(4, 3)))
    with Study(tmp_path / "s.db") as study:
        first = evaluation(problem.at(tmp_path / "x.pt", name="mine"), study=study)
        second = evaluation(problem.at(tmp_path / "x.pt"), study=study)
        assert (first.name, second.name) == ("mine", "x.pt")
        assert [entry.name for entry in study.entries()] == ["mine"]
        path = str(tmp_path / "x.pt")
        assert [(one.name, one.path) for one in study.names()] == [("mine", path), ("x.pt", path)]


def test_a_record_that_is_saved_or_imported_does_not_take_the_name_of_a_file(
    here: Path, run
) -> None:
    for file in ("a.pt", "b.pt"):
        assert run("line", file, "--problem", "task.py", "--points", "3").code == 0
    assert run("export", "1", "-o", "line.h5").code == 0
    assert run("import", "line.h5", "--name", "b.pt").code == 0
    with Study("landscape.db", readonly=True) as study:
        a, b = (one.checkpoint_hash for one in study.entries())
        assert {one.name: one.checkpoint_hash for one in study.names()} == {"a.pt": a, "b.pt": b}
        assert [entry.name for entry in study.entries()] == ["a.pt", "b.pt"]


def test_importing_renames_nothing(here: Path, run) -> None:
    for folder, slope in (("run1", 1.0), ("run2", 2.0)):
        Path(folder).mkdir()
        with h5py.File(f"{folder}/line.h5", "w") as file:
            file["xcoordinates"], file["train_loss"] = [-1.0, 0.0, 1.0], [0.0, slope, 3.0]
    for file in ("run1/line.h5", "run2/line.h5", "run2/line.h5"):
        assert run("import", file).code == 0
    assert listed(run) == [("line", "line"), ("run2/line", "line")]
    ran = run("import", "run1/line.h5", "--name", "resnet")
    assert ran.out.startswith("line: line")
    assert ran.out.endswith("Stored as number 1 in landscape.db.\n")
    assert listed(run) == [("line", "line"), ("run2/line", "line")]


# -- studies of the first version of the schema --------------------------------------------------

BEFORE = """
CREATE TABLE about (topic TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE measurements (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL, checkpoint TEXT NOT NULL, checkpoint_hash TEXT NOT NULL,
    data_fingerprint TEXT NOT NULL, split TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('partial', 'complete')), created TEXT NOT NULL,
    revision INTEGER NOT NULL, settings TEXT NOT NULL, provenance TEXT NOT NULL, cost TEXT,
    record TEXT, n_x INTEGER, n_y INTEGER);
CREATE TABLE arrays (measurement INTEGER NOT NULL REFERENCES measurements (id) ON DELETE CASCADE,
    name TEXT NOT NULL, dtype TEXT NOT NULL, shape TEXT NOT NULL, data BLOB,
    PRIMARY KEY (measurement, name));
CREATE TABLE points (measurement INTEGER NOT NULL REFERENCES measurements (id) ON DELETE CASCADE,
    i INTEGER NOT NULL, j INTEGER NOT NULL, measured TEXT NOT NULL,
    PRIMARY KEY (measurement, i, j));
PRAGMA application_id = 0x4C534850;
PRAGMA user_version = 1;
"""


@pytest.fixture
def old(here: Path, run) -> Path:
    """A study as the version before this one wrote it, of a.pt under the name of ``a``."""
    assert run("compare", "a=a.pt", "--problem", "task.py", "--points", "3").code == 0
    new, file = Path("landscape.db"), Path("old.db")
    with sqlite3.connect(file) as connection:
        connection.executescript(BEFORE)
        connection.execute("ATTACH ? AS new", (str(new),))
        for table in ("about", "measurements", "arrays", "points"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
        connection.execute(
            "UPDATE measurements SET provenance = json_set(json_remove(provenance,"
            " '$.signature', '$.loss'), '$.problem_fingerprint', 'of the code'),"
            " key = 'old ' || id"
        )
    connection.close()
    new.unlink()
    return file


def version_of(file: Path) -> int:
    connection = sqlite3.connect(file)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    return int(version)


def test_an_old_study_is_listed_and_drawn_and_left_as_it_is(old: Path, run) -> None:
    content = old.read_bytes()
    study = ("--study", str(old))
    kinds = [kind for _, kind in listed(run, *study)]
    assert sorted(kinds) == ["eigs", "line", "line", "loss", "loss", "sharpness", "surface"]
    assert listed(run, "a", *study) == listed(run, *study)
    assert run("plot", "a", *study, "-o", "x.png").code == 0
    assert run("report", *study, "-o", "x.html").code == 0
    assert "not strictly comparable" not in Path("x.html").read_text()
    assert run("show", "1", *study).code == 0
    assert old.read_bytes() == content
    old.chmod(0o444)
    with Study(old, readonly=True) as opened:
        assert [one.name for one in opened.names()] == ["a"]
        assert opened.comparison(["a"]).table()[0] == ("", "a")


def test_an_old_measurement_is_not_given_back_and_keeps_its_name(old: Path, run) -> None:
    problem = ("--problem", "task.py", "--study", str(old))
    n = len(listed(run, "--study", str(old)))
    ran = run("eigs", "a.pt", *problem)
    assert "details: landscape show a --study" in ran.out  # of these weights, so it was named
    assert version_of(old) == SCHEMA_VERSION
    after = listed(run, "--study", str(old))
    assert len(after) == n + 1
    assert after[-1] == ("a", "eigs")
    assert run("eigs", "a.pt", *problem).code == 0
    assert len(listed(run, "--study", str(old))) == n + 1
    assert run("plot", *problem[2:], "-o", "x.png").code == 0
    with Study(old, readonly=True) as study:
        assert study.comparison().names == ("a",)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "figures").glob("*.db")))
def test_the_published_studies_are_read(file: Path) -> None:
    assert 1 <= version_of(file) <= SCHEMA_VERSION
    with Study(file, readonly=True) as study:
        entries = study.entries()
        assert study.load(entries[0].id).kind == entries[0].kind
        assert set(study.comparison().names) <= {one.name for one in study.names()}
