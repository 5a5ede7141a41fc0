"""``landscape sharpness`` in all its ways: what it prints, keeps, and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import trained_on_digits
from oracles import Quadratic, quadratic_problem, spectrum
from torch import nn

from landscape.cli.sharpness import _price_of_search as price_of
from landscape.problem import Problem, load_problem
from landscape.sharpness._profile import sharpness_profile
from landscape.sharpness._worst_case import sharpness
from landscape.study import Study

ASKED = ("--problem", "task.py", "--max-gradients", "10")


def records(out: str) -> list[dict]:
    return json.loads(out)


def test_an_adaptive_ball_is_in_the_table_and_in_the_settings(here: Path, run) -> None:
    ran = run("sharpness", "a.pt", *ASKED, "--adaptive", "elementwise", "--eta", "0.01")
    assert ran.code == 0
    assert "sharpness, ρ = 0.05, p = 2, adaptive elementwise, η = 0.01" in ran.out
    shown = run("show", "a").out
    assert "sharpness (ρ = 0.05, p = 2, adaptive elementwise, η = 0.01)" in shown
    for label in ("one-step SAM value", "quadratic model", "optimality gap", "over the starts"):
        assert label in shown
    with Study("landscape.db", readonly=True) as study:
        (entry,) = study.entries("sharpness")
        assert study.load(entry.id).settings["adaptive"] == "elementwise"


def test_whole_data_and_subsets_come_from_one_call(here: Path, run) -> None:
    args = ("sharpness", "a.pt", *ASKED, "--m", "8")
    whole, parts = records(run(*args, "--json").out)
    assert (whole["kind"], parts["kind"]) == ("sharpness", "m-sharpness")
    assert len(parts["values"]) == 3
    assert parts["n_left_out"] == 6
    bounded = records(run(*args, "--memory", "1GB", "--json").out)
    assert [record["settings"]["memory"] for record in bounded] == [1e9, 1e9]
    assert np.mean(parts["values"]) >= whole["value"] * (1 - 1e-6)
    out = run(*args).out
    assert out.count("\ncheckpoint") == 1  # a table for each kind
    assert "m-sharpness, m = 8, ρ = 0.05, p = 2" in out
    assert "3 of 8; 6 at the end left out" in run("show", "a", "--kind", "m-sharpness").out


def test_a_profile_at_given_radii(here: Path, run) -> None:
    ran = run("sharpness", "a.pt", "b.pt", *ASKED, "--profile", "--rhos", "0.01,0.1", "--json")
    both = records(ran.out)
    assert [record["kind"] for record in both] == ["profile", "profile"]
    assert both[0]["rhos"] == [0.01, 0.1]
    assert both[0]["values"][0] < both[0]["values"][1]
    assert "ρ = 0.1" in run("sharpness", "a.pt", *ASKED, "--profile", "--rhos", "0.01,0.1").out


def test_keskars_box_is_that_of_weights_plus_one(here: Path, run) -> None:
    args = ("sharpness", "a.pt", *ASKED, "--protocol", "keskar", "--rho", "0.001")
    (record,) = records(run(*args, "--json").out)
    assert (record["p"], record["adaptive"], record["eta"]) == ("inf", "elementwise", 1.0)
    weights = torch.load("a.pt")
    flat = torch.cat([w.flatten() for w in weights.values()]).abs().numpy()
    assert (np.abs(record["epsilon"]) <= 1e-3 * (flat + 1) * (1 + 1e-6)).all()
    phi = 100 * record["value"] / (1 + record["loss"])
    (line,) = [line for line in run("show", "a").out.splitlines() if "Keskar" in line]
    assert line.split("≥")[1].strip() == f"{phi:.4g}"
    assert f"≥ {phi:.4g}" in run(*args).out


def test_the_published_protocol_needs_its_examples(here: Path, run) -> None:
    ran = run("sharpness", "a.pt", "--problem", "task.py", "--protocol", "auto-pgd")
    assert ran.code == 2
    assert "1,024 examples were asked for" in ran.err
    assert "have 30" in ran.err


def test_the_published_protocol_on_enough_of_them(here: Path, run) -> None:
    task = (here / "task.py").read_text().replace("torch.randn(30", "torch.randn(1100")
    (here / "big.py").write_text(task)
    ran = run("sharpness", "a.pt", "--problem", "big.py", "--protocol", "auto-pgd", "--json")
    (record,) = records(ran.out)
    assert (record["m"], len(record["values"]), record["gradients"]) == (128, 8, 8 * 21)
    assert record["protocol"] == "auto-pgd"


def test_normalised_logits_are_measured_apart(here: Path, run) -> None:
    (plain,) = records(run("sharpness", "a.pt", *ASKED, "--json").out)
    (normal,) = records(run("sharpness", "a.pt", *ASKED, "--normalise-logits", "--json").out)
    prints = [record["provenance"]["problem_fingerprint"] for record in (plain, normal)]
    assert prints[0] != prints[1]
    problem = load_problem("task.py").at("a.pt")
    ((x, y),) = list(problem.batches)
    with torch.no_grad():
        z = problem.model(x)
    centred = z - z.mean(1, keepdim=True)
    expected = nn.functional.cross_entropy(centred / centred.norm(dim=1, keepdim=True), y)
    assert normal["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_price_of_each_way_is_said_and_nothing_measured(here: Path, run) -> None:
    for extra in ([], ["--m", "8"], ["--profile"], ["--protocol", "auto-pgd"]):
        ran = run("sharpness", "a.pt", "--problem", "task.py", *extra, "--dry-run")
        assert ran.code == 0
        assert "Dry run" in ran.out
    assert not Path("landscape.db").exists()


def curved(n: int) -> Problem:
    """Ill-conditioned, of both signs: no search of it meets its tolerance soon."""
    rng = np.random.default_rng(0)
    values = np.geomspace(1e-4, 1.0, n) * rng.choice([-1, 1], n)
    return quadratic_problem(Quadratic(spectrum(values, 0), 1e-2 * rng.standard_normal(n)))


def assert_within_its_price(problem: Problem, rho: float, ball: dict, *, profile: bool) -> None:
    price = (price_of(problem, ball | {"eta": 0.0}, from_below=profile) * (1 + profile)).most
    if profile:
        cost = sharpness_profile(problem, [rho / 10, rho], **ball).cost
    else:
        cost = sharpness(problem, rho, **ball).cost
    for kind in ("forwards", "gradients", "hvps"):
        assert getattr(cost, kind) <= getattr(price, kind)


@pytest.mark.parametrize("profile", [False, True])
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
@pytest.mark.parametrize("n", [7, 40])
def test_nothing_costs_more_than_its_price(p, n, profile):
    for budget in (1, 20, 60):
        ball = {"p": p, "adaptive": "none", "tol": 1e-13, "max_gradients": budget}
        assert_within_its_price(curved(n), 1.0, ball, profile=profile)


@pytest.mark.parametrize("adaptive", ["none", "elementwise"])
def test_second_order_steps_are_in_the_price(adaptive):
    # In float32, where rounding ends climbs and second-order steps follow.
    problem = trained_on_digits(torch.arange(64))
    for rho in (0.02, 0.1, 1.0):
        length = problem.space.n**0.5 if adaptive == "elementwise" else problem.weights.norm()
        ball = {"p": 2.0, "adaptive": adaptive, "tol": 1e-9, "max_gradients": 200}
        assert_within_its_price(problem, rho * float(length), ball, profile=False)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--rhos", "0.1"], "add --profile"),
        (["--profile", "--rhos", "0.2,0.1"], "rhos must be finite radii above zero in ascending"),
        (["--profile", "--rhos", "0,0.1"], "rhos must be finite radii above zero in ascending"),
        (["--profile", "--rhos", "a"], "--rhos takes numbers with a comma between two, got 'a'"),
        (["--profile", "--m", "4"], "leave out --m"),
        (["--protocol", "auto-pgd", "--m", "4"], "--protocol auto-pgd has m = 128"),
        (["--m", "31"], "m must be from 1 to the number of examples, 30; got 31"),
        (["--m", "0"], "m must be from 1 to the number of examples, 30; got 0"),
        (["--eta", "0.1"], "eta = 0.1 belongs to an adaptive ball"),
        (["--adaptive", "elementwise", "--eta", "-1"], "eta must be a finite number of at least 0"),
        (["--p", "nan"], "p must be at least 1"),
        (["--params", "nothing"], "no parameter matches 'nothing'"),
    ],
)
def test_bad_input_is_named(here: Path, run, extra: list[str], words: str) -> None:
    ran = run("sharpness", "a.pt", *ASKED, *extra)
    assert ran.code == 2
    assert words in ran.err


KESKAR = "is fixed by --protocol keskar"
PUBLISHED = "is of a search, and --protocol auto-pgd takes 20 steps"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--protocol", "keskar", "--p", "2"], f"--p {KESKAR}"),
        (["--protocol", "keskar", "--adaptive", "none"], f"--adaptive {KESKAR}"),
        (["--protocol", "keskar", "--eta", "0"], f"--eta {KESKAR}"),
        (["--protocol", "keskar", "--profile", "--eta", "1"], f"--eta {KESKAR}"),
        (["--profile", "--rho", "3"], "--rho is one radius, and --profile has many"),
        (["--protocol", "auto-pgd", "--tol", "0.1"], f"--tol {PUBLISHED}"),
        (["--protocol", "auto-pgd", "--max-gradients", "9"], f"--max-gradients {PUBLISHED}"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(here: Path, run, extra: list[str], words: str):
    """Also at its default, for the protocol has another value; before anything is loaded."""
    ran = run("sharpness", "none.pt", "--problem", "none.py", *extra)
    assert ran.code == 2
    assert ran.err.startswith(f"Error: {words}")


def test_a_seed_that_is_none_is_said_in_our_words(here: Path, run) -> None:
    ran = run("sharpness", "a.pt", *ASKED, "--seed", "99999999999999999999999")
    assert ran.code == 2
    assert "seed must be a whole number of at most 64 bits, got 99999999999999999999999" in ran.err
