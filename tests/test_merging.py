"""Several studies become one: what each of them measured, once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from test_study import a_surface, an_evaluation, eigenpairs, provenance, same

from landscape.errors import InvalidArgumentError, StudyError
from landscape.results import Provenance, Signature
from landscape.study import Merged, Study, merge


@pytest.fixture
def pair(tmp_path: Path):
    (tmp_path / "there").mkdir()
    with Study(tmp_path / "a.db") as study, Study(tmp_path / "there" / "b.db") as other:
        yield study, other


def test_what_is_finished_is_kept_once_and_the_newest(pair: tuple[Study, Study]) -> None:
    study, other = pair
    old = dataclasses.replace(an_evaluation(), loss=0.5)
    new = dataclasses.replace(an_evaluation(created="2026-01-01T00:00:00+00:00"), loss=0.25)
    study.save(eigenpairs())
    study.save(old)
    other.save(new)
    other.save(a_surface())
    assert merge(study, other) == Merged(finished=2)
    assert merge(study, other) == Merged(known=2)
    assert merge(other, study) == Merged(finished=1, known=2)
    for each in pair:
        assert len(each.entries()) == 3
        for expected in (new, a_surface(), eigenpairs()):
            found = each.find(expected.kind, expected.provenance, expected.settings)
            assert same(found, expected)


def test_points_of_unfinished_ones_are_united_and_finished_ones_win(
    pair: tuple[Study, Study],
) -> None:
    study, other = pair
    surface = a_surface()
    grids = [
        each.grid("surface", surface.provenance, surface.settings, shape=(2, 3)) for each in pair
    ]
    grids[0].record_all({(0, 0): {"loss": 1.0}, (0, 1): {"loss": 2.0}})
    grids[1].record_all({(0, 1): {"loss": 7.0}, (1, 2): {"loss": 3.0}})
    assert merge(study, other) == Merged(points=1)
    assert grids[0].done == {(0, 0): {"loss": 1.0}, (0, 1): {"loss": 2.0}, (1, 2): {"loss": 3.0}}
    assert merge(study, other) == Merged(known=1)
    other.save(surface)
    assert merge(study, other) == Merged(finished=1)
    assert study.entries()[0].status == "complete"
    assert study.entries()[0].id == grids[0].id
    assert same(study.load(grids[0].id), surface)
    study.delete(grids[0].id)
    study.grid("surface", surface.provenance, surface.settings, shape=(2, 3))
    assert merge(other, study) == Merged(known=1)
    assert other.entries()[0].status == "complete"


def test_names_and_runs_come_along_and_none_is_taken_twice(pair: tuple[Study, Study]) -> None:
    study, other = pair
    folder = other.path.parent
    study.set_name("last.pt", "aaaa", str(study.path.parent / "last.pt"))
    other.set_name("last.pt", "bbbbbbbbbb", str(folder / "last.pt"))
    other.set_name("first.pt", "cccc", str(folder / "first.pt"))
    other.set_run("sam", {"first.pt": 1.0, "last.pt": 2.0})
    other.save(an_evaluation(checkpoint="last.pt", checkpoint_hash="bbbbbbbbbb"))
    assert merge(study, other).renamed == {"last.pt": "last.pt@bbbbbbbb"}
    named = {name.name: (name.path, name.checkpoint_hash) for name in study.names()}
    assert named["last.pt"] == (str(study.path.parent / "last.pt"), "aaaa")
    assert named["last.pt@bbbbbbbb"] == (str(folder / "last.pt"), "bbbbbbbbbb")
    assert named["first.pt"] == (str(folder / "first.pt"), "cccc")
    assert study.runs() == {"sam": {"first.pt": 1.0, "last.pt@bbbbbbbb": 2.0}}
    (entry,) = study.entries()
    assert (entry.name, study.load(entry.id).name) == ("last.pt@bbbbbbbb",) * 2


def signed(identity: str, loss: float) -> Provenance:
    """What one problem computed on two computers: equal to rounding."""
    signature = Signature(losses=(loss, 0.5, 0.7), slope=0.1, metrics={})
    return provenance(problem_fingerprint=identity, signature=signature)


def test_one_computation_is_one_whatever_computer_it_ran_on(pair: tuple[Study, Study]) -> None:
    study, other = pair
    ours, theirs = signed("p1", 1.0), signed("p2", 1.0 + 1e-14)
    assert study.identify(ours).problem_fingerprint == "p1"
    settings = {"held_out": {"problem": "p2"}}
    result = dataclasses.replace(an_evaluation(settings), provenance=theirs)
    other.save(result)
    assert merge(study, other).finished == 1
    found = study.find("loss", ours, {"held_out": {"problem": "p1"}})
    assert found is not None
    assert found.provenance.problem_fingerprint == "p1"


def test_a_study_is_not_merged_with_itself(pair: tuple[Study, Study], tmp_path: Path) -> None:
    study, _ = pair
    with pytest.raises(InvalidArgumentError, match="cannot be merged with itself"):
        merge(study, study)
    with Study(study.path, readonly=True) as reading, pytest.raises(StudyError, match="reading"):
        merge(reading, pair[1])


def test_the_command_merges_and_a_surface_goes_on(here: Path, run) -> None:
    task = ("--problem", "task.py", "-q")
    surface = ("surface", "a.pt", "--points", "4", *task)
    assert run("loss", "b.pt", *task, "--study", "one.db").code == 0
    assert run(*surface, "--study", "alone.db").code == 0
    with Study("alone.db") as study:
        (entry,) = study.entries()
        alone = study.load(entry.id)
        points = study.grid("surface", alone.provenance, alone.settings, shape=(4, 4)).done
    for name, half in (("one.db", list(points)[:10]), ("two.db", list(points)[6:])):
        with Study(name) as study:
            grid = study.grid("surface", alone.provenance, alone.settings, shape=(4, 4))
            grid.record_all({point: points[point] for point in half})
    ran = run("merge", "one.db", "two.db", "-o", "both.db")
    assert (ran.code, ran.err) == (0, "")
    assert "both.db holds 2 measurements" in ran.out
    assert run("merge", "one.db", "two.db", "-o", "one.db").code == 0  # one of them
    for name in ("both.db", "one.db"):
        assert "partial (16 of 16 points)" in run("list", "--study", name).out
        assert run(*surface, "--study", name).code == 0
        with Study(name) as study:
            found = next(study.load(e.id) for e in study.entries("surface"))
        np.testing.assert_array_equal(found.loss, alone.loss)


def test_what_is_no_study_is_named_before_anything_is_written(here: Path, run) -> None:
    assert run("loss", "a.pt", "--problem", "task.py", "-q", "--study", "one.db").code == 0
    before = Path("one.db").read_bytes()
    for bad, message in (("task.py", "task.py is not a study file"), ("no.db", "no study file no")):
        for output in ("new.db", "one.db"):
            ran = run("merge", "one.db", bad, "-o", output)
            assert (ran.code, ran.out) == (1, "")
            assert message in ran.err
    assert not Path("new.db").exists()
    assert Path("one.db").read_bytes() == before
    assert run("merge", "one.db", "-o", "task.py").code == 1
    assert run("merge", "one.db").code == 2
