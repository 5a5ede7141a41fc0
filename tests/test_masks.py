"""Dropout masks in train mode: one seed, one function, whatever is measured of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landscape.compare._compare import compare
from landscape.errors import InvalidArgumentError
from landscape.loss import evaluation
from landscape.problem import Problem, load_problem
from landscape.sharpness._worst_case import sharpness
from landscape.study import Study
from landscape.surface import random_direction, random_plane
from landscape.surface._automatic_range import automatic_range
from landscape.surface._surface import line, surface
from landscape.surface._trajectory import trajectory


def thinned(seed: int = 0, mode: str = "train", data: int = 9) -> Problem:
    """A network with dropout, at weights of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(3, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 2)
        ).double()
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(data), dtype=torch.float64)
    split = "train" if data == 9 else "test"
    return Problem(
        model,
        nn.CrossEntropyLoss(),
        (x, (x[:, 0] > 0).long()),
        mode=mode,
        batch_size=10,
        split=split,
        name=f"net {seed}",
    )


def plain(problem: Problem, seed: int) -> float:
    return evaluation(problem, seed=seed).loss


@pytest.mark.parametrize("tune", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_at_zero_a_line_and_a_surface_have_the_loss_of_the_evaluation(seed, tune):
    problem, held = thinned(), thinned(data=8)
    direction, plane = random_direction(problem, 3), random_plane(problem, 3)
    assert plain(problem, 0) != plain(problem, 1)
    along = line(problem, direction, x=[-1.0, 0.0, 1.0], seed=seed, held_out=held, tune=tune)
    over = surface(problem, plane, x=[0.0, 1.0], y=[-1.0, 0.0], seed=seed, tune=tune)
    assert along.loss[1] == along.origin_loss == plain(problem, seed)
    assert along.metrics["test loss"][1] == plain(held, seed)
    assert over.loss[0, 1] == over.origin_loss == plain(problem, seed)
    assert sharpness(problem, 0.1, seed=seed).loss == pytest.approx(plain(problem, seed), rel=1e-12)


def test_the_other_checkpoint_of_a_difference_has_the_same_masks():
    problem, other = thinned(0), thinned(1)
    direction = random_direction(problem, 3)
    there = other, random_direction(other, 3)
    found = line(problem, direction, x=[0.0, 1.0], seed=5, against=there)
    apart = plain(problem, 5) - plain(other, 5)
    assert found.metrics["difference"][0] == pytest.approx(apart, rel=1e-12)


def test_a_run_has_the_masks_of_its_seed():
    problem, others = thinned(), [thinned(1), thinned(2)]
    plane = random_plane(problem, 0)
    states = [other.model.state_dict() for other in others]
    found = trajectory(problem, plane, states, names=["1", "2"], seed=4)
    assert found.origin_loss == plain(problem, 4)
    assert found.loss.tolist() == [plain(other, 4) for other in others]
    ends = (float(found.x[0]), float(found.y[0]))
    point = surface(problem, plane, x=[ends[0], 1e3], y=[ends[1], 1e3], seed=4).loss[0, 0]
    assert found.projected_loss[0] == point


def test_a_comparison_is_of_one_function():
    (model,) = compare({"a": thinned()}, n=3, seed=2).models
    losses = {each.origin_loss for each in (model.worst_line, model.random_line, model.surface)}
    assert losses == {model.evaluation.loss} == {plain(thinned(), 2)}


def test_an_automatic_range_is_looked_for_in_the_function_of_its_seed(tmp_path: Path):
    problem = thinned()
    direction = random_direction(problem, 3)
    with Study(tmp_path / "s.db") as study:
        for seed in (0, 1, 1):
            automatic_range(problem, direction, multiple=1.5, seed=seed, study=study)
        kept = [study.load(entry.id) for entry in study.entries("line")]
    assert {each.settings["seed"]: each.origin_loss for each in kept} == {
        seed: plain(problem, seed) for seed in (0, 1)
    }
    with pytest.raises(InvalidArgumentError, match="multiple must be a number, got 'x'"):
        automatic_range(problem, direction, multiple="x")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_seed_is_a_setting_only_where_masks_are_drawn(mode: str, tmp_path: Path):
    problem = thinned(mode=mode)
    direction, plane = random_direction(problem, 3), random_plane(problem, 3)
    state = thinned(1).model.state_dict()
    with Study(tmp_path / "s.db") as study:
        for seed in (0, np.int64(1)):
            told = {"seed": seed, "study": study}
            records = (
                line(problem, direction, x=[0.0, 1.0], **told),
                surface(problem, plane, n=2, **told),
                trajectory(problem, plane, [state], names=["1"], **told),
            )
            for record in records:
                assert record.settings.get("seed") == (seed if mode == "train" else None)
        assert len(study.entries()) == (6 if mode == "train" else 3)


def test_held_out_masks_are_a_setting_too():
    problem, held = thinned(mode="eval"), thinned(data=8)
    direction = random_direction(problem, 3)
    settings = [
        line(problem, direction, x=[0.0, 1.0], seed=3, held_out=other).settings
        for other in (held, None)
    ]
    assert [each.get("seed") for each in settings] == [3, None]


TASK = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Dropout(0.5), nn.Linear(9, 3))

def data(split):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)

loss = nn.CrossEntropyLoss()
"""


@pytest.mark.parametrize(
    ("verb", "extra"),
    [("line", ()), ("line", ("--range", "auto", "--rise", "1.2")), ("surface", ("--range", "1"))],
)
def test_the_command_line_passes_its_seed_on(here: Path, run, verb: str, extra: tuple[str, ...]):
    Path("thin.py").write_text(TASK)
    task = load_problem("thin.py")
    torch.save(task.model.state_dict(), "t.pt")
    args = ("t.pt", "--problem", "thin.py", "--mode", "train", "--points", "3", "--seed", "6")
    ran = run(verb, *args, *extra, "--json")
    assert ran.code == 0, ran.err
    (record,) = json.loads(ran.out)
    expected = plain(load_problem("thin.py", mode="train").at("t.pt"), 6)
    assert record["origin_loss"] == expected
    assert expected != plain(load_problem("thin.py", mode="train").at("t.pt"), 0)
    with Study("landscape.db", readonly=True) as study:  # the search for a range too
        kept = [study.load(entry.id) for entry in study.entries()]
    assert {each.origin_loss for each in kept} == {expected}
