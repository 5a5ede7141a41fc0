"""The command line: what it prints, what it stores, and its exit codes."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TASK
from torch import nn

from landscape.cli import VERBS
from landscape.cli.measuring import MAX_MATVECS
from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.results import Eigenpairs
from landscape.study import Study
from landscape.wording import Quantity


def test_every_verb_has_help_with_an_example(run) -> None:
    for verb, line in VERBS.items():
        ran = run(verb, "--help")
        assert ran.code == 0
        assert f"\n  landscape {verb}" in ran.out.replace("    landscape", "  landscape")
        assert "\\b" not in ran.out
        assert line


def test_help_and_drawing_verbs_do_not_import_torch() -> None:
    code = (
        "import sys; from landscape.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "import landscape.cli.plot, landscape.cli.report, landscape.cli.list_, landscape.cli.show\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_sharpness_prints_a_table_and_stores_the_result(here: Path, run) -> None:
    ran = run("sharpness", "a.pt", "b.pt", "--problem", "task.py", "--rho", "0.1")
    assert ran.code == 0
    assert ran.out.splitlines()[0].split("  ")[0] == "checkpoint"
    assert "sharpness, ρ = 0.1, p = 2" in ran.out
    assert ran.out.count("≥") == 2
    assert "details: landscape show a.pt b.pt" in ran.out
    shown = run("show", "a", "b").out
    for words in ("≥", "one-step SAM value", "optimality gap", "gradient passes", "cost"):
        assert shown.count(words) == 2
    with Study("landscape.db", readonly=True) as study:
        assert [(e.name, e.kind) for e in study.entries()] == [
            ("a.pt", "sharpness"),
            ("b.pt", "sharpness"),
        ]
        result = study.load(study.entries()[0].id)
    assert str(Quantity(result.value, result.value_se, bound="≥")) in ran.out


def test_what_the_study_holds_is_not_measured_again(here: Path, run) -> None:
    first = run("eigs", "a.pt", "--problem", "task.py", "--json")
    again = run("eigs", "a.pt", "--problem", "task.py", "--json")
    assert again.out == first.out  # the time of measuring among it


def test_a_changed_model_is_measured_again(here: Path, run) -> None:
    first = json.loads(run("eigs", "a.pt", "--problem", "task.py", "--json").out)[0]
    Path("task.py").write_text(TASK.replace("nn.Tanh()", "nn.Sigmoid()"))
    again = json.loads(run("eigs", "a.pt", "--problem", "task.py", "--json").out)[0]
    assert again["provenance"]["checkpoint_hash"] == first["provenance"]["checkpoint_hash"]
    assert again["values"] != first["values"]


def test_what_is_kept_from_before_is_said(here: Path, run) -> None:
    assert "recalled" not in run("eigs", "a.pt", "--problem", "task.py").out
    time.sleep(1.1)  # the record of when has seconds
    assert "1 of 1 recalled from an earlier run" in run("eigs", "a.pt", "--problem", "task.py").out


def test_output_paths_are_checked_before_measuring(here: Path, run) -> None:
    args = ("compare", "a.pt", "--problem", "task.py")
    assert "does not exist" in run(*args, "--report", "nodir/x.html").err
    assert ".gif" in run(*args, "--figure", "x.gif").err
    assert not Path("landscape.db").exists()


def test_a_copy_under_another_name_is_recognised(here: Path, run) -> None:
    first = run("eigs", "a.pt", "--problem", "task.py", "--json")
    Path("a.pt").rename("renamed.pt")
    again = json.loads(run("eigs", "renamed.pt", "--problem", "task.py", "--json").out)[0]
    assert again["provenance"]["checkpoint"] == "renamed.pt"
    assert again["values"] == json.loads(first.out)[0]["values"]
    assert again["cost"] == json.loads(first.out)[0]["cost"]


def test_json_is_one_list_on_stdout(here: Path, run) -> None:
    ran = run("line", "a.pt", "b.pt", "--problem", "task.py", "--points", "5", "--json")
    records = json.loads(ran.out)
    assert [r["kind"] for r in records] == ["line", "line"]
    assert len(records[0]["loss"]) == 5
    assert records[0]["loss"][2] == records[0]["origin_loss"]


@pytest.mark.parametrize("direction", ["random", "worst-case", "eigenvector"])
def test_lines(here: Path, run, direction: str) -> None:
    ran = run(
        "line", "a.pt", "--problem", "task.py", "--direction", direction, "--points", "5", "--json"
    )
    record = json.loads(ran.out)[0]
    assert record["settings"]["direction"] == direction
    reach = 1.0 if direction == "random" else 0.1
    assert record["x"] == pytest.approx([-reach, -reach / 2, 0, reach / 2, reach])


def test_surface_has_its_first_index_along_x(here: Path, run) -> None:
    args = ("--points", "5", "--points-y", "3", "--range-y", "0.5", "--json")
    record = json.loads(run("surface", "a.pt", "--problem", "task.py", *args).out)[0]
    assert np.shape(record["loss"]) == (5, 3)
    assert record["y"] == [-0.5, 0.0, 0.5]


def test_dry_run_prices_and_stores_nothing(here: Path, run) -> None:
    ran = run("surface", "a.pt", "b.pt", "--problem", "task.py", "--points", "7", "--dry-run")
    assert ran.code == 0
    assert ran.out.count("50 forward passes") == 2
    assert not Path("landscape.db").exists()


def test_compare_takes_what_was_measured_by_itself(here: Path, run) -> None:
    given = ("a.pt", "--problem", "task.py")
    assert run("sharpness", *given, "--rho", "0.1").code == 0
    assert run("eigs", *given).code == 0
    before = {entry["id"] for entry in json.loads(run("list", "--json").out)}
    assert run("compare", *given, "--rho", "0.1", "--points", "3").code == 0
    kinds = [e["kind"] for e in json.loads(run("list", "--json").out) if e["id"] not in before]
    assert sorted(kinds) == ["line", "line", "loss", "loss", "surface"]


def test_checkpoints_with_the_same_weights_are_named(here: Path, run) -> None:
    Path("copy.pt").write_bytes(Path("a.pt").read_bytes())
    ran = run("eigs", "a.pt", "b.pt", "copy.pt", "--problem", "task.py")
    assert ran.code == 0
    assert "a.pt and copy.pt hold the same weights; the study keeps one measurement" in ran.err
    assert "hold the same weights" not in run("eigs", "a.pt", "b.pt", "--problem", "task.py").err


def test_measurements_of_some_parameters_are_drawn_and_reported(here: Path, run) -> None:
    given = ("a.pt", "b.pt", "--problem", "task.py")
    for part in ("0", "2.*"):
        ran = run(
            "compare", *given, "--params", part, "--points", "3", "--report", f"{part[0]}.html"
        )
        assert ran.code == 0, ran.err
        assert run("density", *given, "--params", part, "--probes", "2").code == 0

    def shown(*words: str) -> str:
        assert run("report", "-o", "page.html", *words).code == 0
        return Path("page.html").read_text()

    # The newest of them where nothing was measured of all, and those that are asked for.
    parts = {part: f"parameters matching {part}" for part in ("0", "2.*")}
    newest, older = shown(), shown("--params", "0")
    assert parts["2.*"] in newest
    assert parts["0"] not in newest
    assert parts["0"] in older
    assert "sharpness, ρ = 0.05" in older
    for what in ("contrast", "eigs", "random-line", "density", "surface"):
        assert run("plot", "--what", what, "-o", "x.png").code == 0
        assert run("plot", "--what", what, "--params", "0", "-o", "x.png").code == 0
    # A diagnosis is of no choice of parameters, and what was not asked for decides nothing.
    assert run("doctor", "a.pt", "--problem", "task.py").code == 0
    assert parts["2.*"] in shown()
    refused = run("report", "-o", "x.html", "--params", "9")
    assert refused.code == 1
    assert "nothing was measured of the parameters 9; it was of: 0; 2.*" in refused.err
    assert run("eigs", "a.pt", "--problem", "task.py").code == 0
    refused = run("report", "a", "b", "-o", "x.html")
    assert refused.code == 1
    assert "b.pt and the others were measured with other parameters" in refused.err
    assert run("eigs", *given).code == 0
    assert parts["2.*"] not in shown()
    missing = run("plot", "--what", "eigs", "--params", "1", "-o", "x.png")
    assert missing.code == 1
    assert "nothing was measured of the parameters 1; it was of: (all); 0; 2.*" in missing.err
    missing = run("plot", "--what", "density", "--params", "1", "-o", "x.png")
    assert missing.code == 1
    assert "holds no finished density; it holds those with --params 0, 2.*; measure" in missing.err


@pytest.mark.parametrize(
    "words",
    [
        "surface a.pt b.pt --points 7",
        "eigs a.pt b.pt --layers",
        "compare a.pt b.pt --no-test",
        "path a.pt b.pt",
        "trajectory a.pt --run b.pt",
    ],
)
def test_a_dry_run_prints_json_for_programs(here: Path, run, words) -> None:
    ran = run(*words.split(), "--problem", "task.py", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["dry_run"] is True
    assert told["seconds"] == pytest.approx(sum(one["seconds"] for one in told["at_most"].values()))
    if words.startswith("surface"):
        forwards = [one["forwards"] for one in told["at_most"].values()]
        assert forwards == [7 * 7 + 1, 7 * 7 + 1]  # and the origin
    assert not Path("landscape.db").exists()


def test_a_dry_run_says_what_a_search_usually_takes(here: Path, run) -> None:
    """Within three times of what it took, and below the most."""
    args = ("a.pt", "--problem", "task.py", "--split", "train")
    for verb in ("eigs", "sharpness"):
        told = json.loads(run(verb, *args, "--dry-run", "--json").out)["at_most"]["a.pt"]
        assert told["usual_seconds"] < told["seconds"]
        assert "usually about" in run(verb, *args, "--dry-run").out
    assert "usual" not in run("loss", *args, "--dry-run").out


def test_stability_holds_the_step_against_the_curvature(here: Path, run) -> None:
    args = ("a.pt", "--problem", "task.py", "--lr", "0.1", "--sgd-batch", "5", "--batches", "8")
    records = json.loads(run("stability", *args, "--json").out)
    assert [record["kind"] for record in records] == ["update-sharpness", "batch-sharpness"]
    assert records[0]["lr"] == 0.1
    assert len(records[1]["values"]) == 8
    table = run("stability", *args).out
    for words in ("critical sharpness", "batch sharpness", "gradient noise scale"):
        assert words in table
    assert run("plot", "--what", "sweep", "--of", "batch-sharpness", "-o", "x.png").code == 0
    assert run("stability", *args[:3], "--sgd-batch", "31").code == 2


def test_the_list_tells_balls_grids_and_losses_apart(here: Path, run) -> None:
    args = ("a.pt", "--problem", "task.py")
    run("sharpness", *args, "--rho", "0.1")
    run("sharpness", *args, "--rho", "0.1", "--adaptive", "filterwise")
    run("sharpness", *args, "--rho", "0.1", "--normalise-logits")
    for points in ("3", "5"):
        run("surface", *args, "--points", points)
    rows = [line.split("  train")[0].split() for line in run("list").out.splitlines()[2:]]
    settings = [" ".join(row[1:]) for row in rows]
    assert len(settings) == len(set(settings)) == 5
    for words in ("adaptive filterwise", "normalised logits", "9 points", "25 points"):
        assert sum(words in text for text in settings) == 1


def a_crowded_spectrum(n: int) -> str:
    """A problem whose eigenvalues lie so close that Lanczos takes many products."""
    return (
        "import torch\nfrom torch import nn\n"
        f"def model():\n    return nn.Linear({n}, 1, bias=False).double()\n"
        "def data(split):\n"
        f"    x = torch.diag(torch.linspace(1, 1.01, {n}, dtype=torch.float64))\n"
        f"    return x, torch.zeros({n}, 1, dtype=torch.float64)\n"
        "loss = nn.MSELoss()\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        "eigs a.pt -k 2",
        "line a.pt --direction eigenvector --points 3",
        "surface a.pt --plane eigenvectors --points 3",
        "compare a.pt b.pt -k 3 --points 3 --no-test",
    ],
)
def test_no_search_for_eigenpairs_takes_more_than_its_price(here: Path, run, words) -> None:
    Path("flat.py").write_text(a_crowded_spectrum(200))
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        torch.save(nn.Linear(200, 1, bias=False).double().state_dict(), f"{name}.pt")
    asked = (*words.split(), "--problem", "flat.py")
    assert MAX_MATVECS == signature(top_eigenpairs).parameters["max_matvecs"].default
    priced = json.loads(run(*asked, "--dry-run", "--json").out)["at_most"]
    assert run(*asked).code == 0
    with Study("landscape.db", readonly=True) as study:
        spent = [study.load(entry.id) for entry in study.entries()]
    pairs = [result.cost for result in spent if isinstance(result, Eigenpairs)]
    assert len(pairs) == len(priced)
    for cost, most in zip(pairs, priced.values(), strict=True):
        assert 60 < cost.hvps <= most["hvps"]


def test_delete_takes_out_what_is_named_and_no_more(here: Path, run, monkeypatch) -> None:
    for name in ("a.pt", "b.pt"):
        assert run("eigs", name, "--problem", "task.py", "--study", "s.db").code == 0

    def held() -> list[int]:
        return [entry["id"] for entry in json.loads(run("list", "--study", "s.db", "--json").out)]

    first, second = held()
    refused = run("delete", str(first), "99", "--study", "s.db", "--yes")
    assert refused.code == 1
    assert f"s.db holds no measurement 99; it holds {first}, {second}" in refused.err
    assert held() == [first, second]
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    asked = run("delete", str(first), "--study", "s.db")
    assert asked.code == 0
    assert "Nothing was deleted." in asked.out
    assert "a " in asked.out
    assert "Delete from s.db? [y/N]" in asked.out
    assert held() == [first, second]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert run("delete", str(first), "--study", "s.db").code == 0
    assert held() == [second]
    gone = run("delete", str(second), str(second), "--study", "s.db", "--yes")
    assert f"Deleted from s.db: {second}." in gone.out
    assert held() == []
    assert run("delete", "1", "--study", "none.db").code == 1
    assert not Path("none.db").exists()


def test_list_of_a_checkpoint_that_is_not_there_names_the_nearest(here: Path, run) -> None:
    assert run("eigs", "a.pt", "--problem", "task.py").code == 0
    ran = run("list", "aa")
    assert ran.code == 2
    assert "unknown checkpoint in landscape.db: 'aa'; known: a.pt" in ran.err
    assert run("list", "a", "--kind", "trace").out == "Nothing of that in landscape.db.\n"


def test_compare_plot_report_list_show(here: Path, run) -> None:
    figures = ("--figure", "c.svg", "--report", "c.html", "--points", "5", "--rho", "0.1")
    ran = run("compare", "a.pt", "b.pt", "--problem", "task.py", *figures)
    assert ran.code == 0, ran.err
    for words in ("train loss", "test loss", "λmax of the Hessian", "sharpness, ρ = 0.1"):
        assert words in ran.out
    assert Path("c.svg").read_text().startswith("<?xml")
    assert "<html" in Path("c.html").read_text()[:500]

    listed = run("list")
    assert listed.out.count("surface") == 2
    assert run("list", "a", "--kind", "eigs").out.count("eigs") == 1
    entries = json.loads(run("list", "--json").out)
    shown = run("show", str(entries[0]["id"]))
    assert "checkpoint_hash" in shown.out
    assert json.loads(run("show", str(entries[0]["id"]), "--json").out)["kind"]

    for what in ("contrast", "surface", "worst-line", "random-line", "eigs", "sharpness"):
        assert run("plot", "--what", what, "-o", f"{what}.png").code == 0
        assert Path(f"{what}.png").read_bytes().startswith(b"\x89PNG")
    assert run("plot", "--id", str(entries[-1]["id"]), "-o", "one.html").code == 0
    assert run("report", "b", "-o", "b.html").code == 0
    assert "Written" not in run("report", "a", "b", "-o", "ab.html").err


def test_a_comparison_reaches_to_where_every_loss_has_risen(here: Path, run) -> None:
    given = ("compare", "a.pt", "b.pt", "--problem", "task.py", "--points", "3")
    assert run(*given, "--range", "auto", "--dry-run").code == 0
    ran = run(*given, "--range", "auto", "--json")
    assert ran.code == 0, ran.err
    models = json.loads(ran.out)["models"]
    for model in models.values():
        surface = model["surface"]
        x, y, losses = (surface[key] for key in ("x", "y", "loss"))
        assert x == y == models["a.pt"]["surface"]["x"]
        assert x[0] == -x[-1]
        assert min(losses[1][0], losses[1][2], losses[0][1], losses[2][1]) >= 10 * losses[1][1]


def test_train_writes_a_checkpoint_that_can_be_measured(here: Path, run) -> None:
    for name in ("t.pt", "t.safetensors"):
        ran = run(
            "train", "--problem", "task.py", "--epochs", "2", "--optimizer", "sam", "-o", name
        )
        assert ran.code == 0
        assert name in ran.out
    one, two = (
        json.loads(run("eigs", name, "--problem", "task.py", "--json").out)[0]["values"]
        for name in ("t.pt", "t.safetensors")
    )
    assert one == two


def test_the_log_of_a_training_is_kept_shown_drawn_and_exported(here: Path, run) -> None:
    common = ("train", "--problem", "task.py", "--epochs", "3", "--study", "s.db")
    for name in ("sgd", "sam"):
        ran = run(*common, "--optimizer", name, "-o", f"{name}.pt", "--json")
        assert json.loads(ran.out)["study"] == "s.db"
    entries = json.loads(run("list", "--study", "s.db", "--json").out)
    assert [(entry["kind"], entry["name"]) for entry in entries] == [
        ("training", "sgd.pt"),
        ("training", "sam.pt"),
    ]
    measured = json.loads(
        run("eigs", "sam.pt", "--problem", "task.py", "--study", "s.db", "--json").out
    )
    shown = json.loads(run("show", str(entries[1]["id"]), "--study", "s.db", "--json").out)
    assert shown["provenance"]["checkpoint_hash"] == measured[0]["provenance"]["checkpoint_hash"]
    assert shown["settings"]["optimizer"] == "sam"
    assert shown["settings"]["problem"] == "task"
    assert shown["epochs"] == [1, 2, 3]
    losses = [float(loss) for loss in shown["train_loss"]]
    assert losses[2] < losses[0]
    drawn = run("plot", "--what", "training", "--study", "s.db", "-o", "log.png")
    assert drawn.code == 0, drawn.err
    assert run("export", str(entries[0]["id"]), "--study", "s.db", "-o", "log.csv").code == 0
    assert Path("log.csv").read_text().splitlines()[0] == "epoch,train_loss,lr,seconds"


def test_the_log_of_a_loader_that_shuffles_is_kept_too(here: Path, run) -> None:
    task = Path("task.py").read_text()
    Path("shuffled.py").write_text(
        f"{task}\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "plain = data\n"
        "def data(split):\n"
        "    return DataLoader(TensorDataset(*plain(split)), batch_size=8, shuffle=True)\n"
    )
    ran = run("train", "--problem", "shuffled.py", "--epochs", "1", "-o", "w.pt")
    assert ran.code == 0, ran.err
    (entry,) = json.loads(run("list", "--json").out)
    assert (entry["kind"], entry["name"]) == ("training", "w.pt")


def test_a_training_that_diverged_leaves_nothing_in_the_way(here: Path, run) -> None:
    command = ("train", "--problem", "task.py", "--epochs", "3", "-o", "w.pt", "-q")
    bad = run(*command, "--lr", "1e30")
    assert bad.code == 1
    assert "smaller learning rate" in bad.err
    assert run(*command, "--lr", "0.01").code == 0


def test_trainings_of_every_kind_are_drawn_together_and_told_apart(here: Path, run) -> None:
    for name in ("sgd", "sam", "asam"):
        args = ("--optimizer", name, "--label-noise", "0.2", "-o", f"{name}.pt", "-q")
        assert run("train", "--problem", "task.py", "--epochs", "1", *args).code == 0
    drawn = run("plot", "sgd", "sam", "asam", "--what", "training", "-o", "t.png")
    assert drawn.code == 0, drawn.err
    assert "optimizer asam, epochs 1, lr 0.05, rho 0.5" in run("list").out
    assert run("report", "-o", "r.html").code == 0


def test_an_error_of_the_users_data_shows_the_users_own_line(here: Path, run) -> None:
    task = Path("task.py").read_text()
    Path("picky.py").write_text(
        f"{task}\nplain = data\ndef data(split):\n    return {{'train': plain('train')}}[split]\n"
    )
    ran = run("train", "--problem", "picky.py", "--split", "foo", "-o", "w.pt")
    assert ran.code == 1
    assert "picky.py, line" in ran.err
    assert "KeyError: 'foo'" in ran.err


def test_float64_and_seed_are_recorded(here: Path, run) -> None:
    args = ("--problem", "task.py", "--dtype", "float64", "--seed", "3", "--json")
    record = json.loads(run("sharpness", "a.pt", *args).out)[0]
    assert record["provenance"]["dtype"] == "float64"
    assert record["settings"]["seed"] == 3


def test_two_files_of_one_stem_are_told_apart(here: Path, run) -> None:
    for folder in ("one", "two"):
        Path(folder).mkdir()
    Path("a.pt").rename("one/last.pt")
    Path("b.pt").rename("two/last.pt")
    args = ("--problem", "task.py", "--json")
    records = json.loads(run("eigs", "one/last.pt", "two/last.pt", *args).out)
    assert [r["provenance"]["checkpoint"] for r in records] == ["one/last.pt", "two/last.pt"]


def test_eigs_print_their_evidence_and_the_overlap(here: Path, run) -> None:
    ran = run("eigs", "a.pt", "b.pt", "--problem", "task.py", "-k", "2", "--ggn-split")
    assert ran.code == 0
    assert ran.err == ""
    for words in ("λ1", "±", "residual", "none above"):
        assert words in ran.out
    shown = run("show", "a", "b").out
    for words in ("residual", "GGN", "no eigenvalue above", "products", "noise"):
        assert shown.count(words) >= 2
    assert "overlap of a.pt and b.pt" in ran.out
    records = json.loads(
        run("eigs", "a.pt", "b.pt", "--problem", "task.py", "-k", "2", "--ggn-split", "--json").out
    )
    assert [r["start"] for r in records] == ["random", "a.pt and a random vector"]
    assert "settings" in run("list").out
    assert "k 2" in run("list").out


def test_a_table_that_is_too_wide_is_turned(here: Path, run) -> None:
    wide = run("flatness", "a.pt", "b.pt", "--problem", "task.py", "-q").out.splitlines()
    assert wide[0].split() == ["checkpoint", "a.pt", "b.pt"]
    assert [line for line in wide if line.startswith("gradient norm")]
    narrow = run("loss", "a.pt", "b.pt", "--problem", "task.py", "-q").out.splitlines()
    assert narrow[0].split()[:2] == ["checkpoint", "loss"]


@pytest.mark.slow
def test_the_demo_trains_measures_and_draws_once(here: Path, run) -> None:
    pytest.importorskip("sklearn")
    ran = run("demo", "-o", "demo", "--epochs", "1", "--points", "3")
    assert ran.code == 0, ran.err
    assert "λmax of the Hessian" in ran.out
    assert {path.name for path in Path("demo").iterdir()} >= {
        *("sgd.pt", "sam.pt", "demo.db", "report.html"),
        *("contrast.png", "contrast.pdf", "contrast.svg"),
    }
    with Study("demo/demo.db", readonly=True) as study:
        before = {(entry.id, entry.created) for entry in study.entries()}
        assert study.comparison(["SGD", "SAM"])["SAM"].surface is not None
        assert all(entry.status == "complete" for entry in study.entries())
    again = run("demo", "-o", "demo", "--epochs", "1", "--points", "3", "-q")
    assert again.code == 0, again.err
    assert again.out == ran.out
    with Study("demo/demo.db", readonly=True) as study:
        assert {(entry.id, entry.created) for entry in study.entries()} == before


def test_a_sweep_that_was_stopped_goes_on(here: Path, run) -> None:
    run("eigs", "a.pt", "--problem", "task.py", "-k", "2")
    before = json.loads(run("list", "--json").out)
    ran = run("eigs", "a.pt", "b.pt", "--problem", "task.py", "-k", "2")
    after = json.loads(run("list", "--json").out)
    assert after[0] == before[0]  # not measured again
    assert len(after) == 2
    assert "1 of 2 recalled" in ran.out
    assert run("plot", "--what", "sweep", "-o", "sweep.png").code == 0
    assert run("plot", "--what", "sweep", "-o", "sweep.html").code == 0


def test_eigs_of_each_layer(here: Path, run) -> None:
    args = ("eigs", "a.pt", "--problem", "task.py", "--layers", "--operator", "ggn")
    ran = run(*args)
    assert ran.code == 0
    layers = json.loads(run(*args, "--json").out)
    assert len(layers) == 2
    for record in layers:
        assert f"{record['values'][0]:.2g}" in ran.out
        assert record["provenance"]["parameters"] in ran.out
    priced = run(*args, "--dry-run", "--study", "other.db")
    assert "2 forward passes" in priced.out
    assert not Path("other.db").exists()


@pytest.mark.parametrize("verb", ["eigs", "sharpness", "trace", "line"])
def test_some_of_the_parameters(here: Path, run, verb: str) -> None:
    ran = run(verb, "a.pt", "--problem", "task.py", "--params", "*.weight")
    assert ran.code == 0
    assert "parameters matching *.weight" in ran.out
    wrong = run(verb, "a.pt", "--problem", "task.py", "--params", "nothing")
    assert wrong.code == 2
    assert "no parameter matches 'nothing'" in wrong.err
    assert ".bias" in wrong.err


def test_trace_and_density(here: Path, run) -> None:
    args = ("--problem", "task.py", "--operator", "ggn", "--memory", "500MB")
    ran = run("trace", "a.pt", "b.pt", *args, "--layers")
    assert ran.code == 0
    assert "95% low  95% high" in ran.out
    ran = run("density", "a.pt", *args, "--probes", "2", "--steps", "8")
    assert ran.code == 0
    assert "share below zero" in ran.out
    for what in ("trace", "density"):
        assert run("plot", "--what", what, "-o", f"{what}.png").code == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--memory", "lots"), 2, "'lots' is no size; expected bytes, as in 500MB or 4GiB"),
        (("--memory", "5KB"), 2, "a budget of 0 MB"),
        (("--memory", "nan"), 2, "'nan' is no size"),
        (("--tol", "1e-12"), 2, "below the noise floor of the products in float32"),
        (("-k", "0"), 2, "k must be from 1"),
        (("--both-ends", "--method", "power"), 2, "use method='lanczos'"),
        (("--operator", "kfca"), 2, "unknown operator 'kfca'; known: hessian, ggn, fisher"),
    ],
)
def test_eigs_refuses(here: Path, run, args: tuple[str, ...], code: int, words: str) -> None:
    ran = run("eigs", "a.pt", "--problem", "task.py", *args)
    assert ran.code == code
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_a_part_of_a_checkpoint_does_not_stand_for_it(here: Path, run) -> None:
    args = ("--problem", "task.py")
    run("eigs", "a.pt", "b.pt", *args)
    run("eigs", "a.pt", *args, "--layers")
    run("eigs", "a.pt", *args, "--operator", "ggn")
    run("trace", "a.pt", *args)
    run("trace", "a.pt", *args, "--params", "*.bias")
    with Study("landscape.db", readonly=True) as study:
        comparison = study.comparison()
        whole = comparison["a.pt"].eigenpairs
    assert comparison.names == ("a.pt", "b.pt")
    assert whole is not None
    assert whole.provenance.parameters == ""
    assert whole.operator == "Hessian"
    assert "of *.bias" in run("list").out
    for what in ("eigs", "trace"):
        assert run("plot", "a", "--what", what, "-o", "x.svg").code == 0
    assert "matching" not in Path("x.svg").read_text()
    ran = run("plot", "a", "b", "--what", "sweep", "-o", "x.png")
    assert "holds no finished eigs of b.pt; it holds those of a.pt" in ran.err  # the newest is ggn


@pytest.mark.parametrize(
    ("args", "words", "x"),
    [
        (("--plane", "eigenvectors"), "two top eigenvectors of the Hessian", (-0.1, 0.1)),
        (("--plane", "worst-case", "--rho", "0.2"), "worst case (ρ = 0.2", (-0.4, 0.4)),
        (("--plane", "through", "--via", "b.pt", "--via", "c.pt"), "through a", (-0.5, 1.5)),
        (("--plane", "trajectory", "--via", "b.pt", "--via", "c.pt"), "a run of 3", None),
        (("--normalisation", "layer", "--orthogonal", "filter"), "orthogonal (filter)", (-1, 1)),
        (("--biases", "--range", "0.5"), "biases and gains too", (-0.5, 0.5)),
    ],
)
def test_planes(here: Path, run, args: tuple[str, ...], words: str, x: tuple[float, float]) -> None:
    state = torch.load("b.pt", weights_only=True)
    torch.save({name: 1.1 * value.sin() for name, value in state.items()}, "c.pt")
    ran = run("surface", "a.pt", "--problem", "task.py", "--points", "3", "--json", *args)
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)[0]
    assert words in record["plane"]
    if x is None:
        assert record["x"][0] < 0 < record["x"][-1]
        assert "The plane holds" in ran.err
    else:
        assert (record["x"][0], record["x"][-1]) == pytest.approx(x)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--plane", "through", "--via", "b.pt"), "via two checkpoints; got 1: b.pt"),
        (("--plane", "trajectory"), "via at least two checkpoints; got 0"),
        (("--via", "b.pt"), "--plane random goes via none; got 1"),
        (
            ("--plane", "through", "--via", "b.pt", "--via", "b.pt"),
            "axes of the plane are parallel",
        ),
        (
            ("--plane", "through", "--via", "b.pt", "--via", "copy.pt"),
            "--via copy.pt has the weights of the checkpoint a.pt itself",
        ),
        (("--plane", "sideways"), "'sideways' is not one of"),
    ],
)
def test_planes_that_are_none(here: Path, run, args: tuple[str, ...], words: str) -> None:
    shutil.copy("a.pt", "copy.pt")
    ran = run("surface", "a.pt", "--problem", "task.py", "--points", "3", *args)
    assert ran.code == 2
    assert words in ran.err


TWO = ("--via", "b.pt", "--via", "c.pt")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("line --rho 3", "--rho is read by --direction worst-case and eigenvector"),
        ("line --direction random --rho 0.05", "--rho is read by --direction worst-case"),
        ("line --rise 10", "--rise is of an automatic range: give --range auto too"),
        ("surface --range 1 --rise 2", "--rise is of an automatic range"),
        ("surface --criterion log", "--criterion is of an interpolated surface: give --tolerance"),
        (
            "surface --rho 0.1",
            "--rho is read by --plane eigenvectors and worst-case, not by random",
        ),
        (
            "surface --plane eigenvectors --normalisation layer",
            "--normalisation is read by --plane random and worst-case, not by eigenvectors",
        ),
        ("surface --plane eigenvectors --biases", "--biases is read by --plane random and worst-"),
        (
            "surface --plane worst-case --orthogonal filter",
            "--orthogonal is read by --plane random,",
        ),
        ("trajectory --plane eigenvectors --biases --run b.pt", "--biases is read by"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(here: Path, run, args: str, words: str) -> None:
    verb, *extra = args.split()
    ran = run(verb, "none.pt", "--problem", "none.py", *extra)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"Error: {words}")


@pytest.mark.parametrize("plane", ["through", "trajectory"])
@pytest.mark.parametrize(
    "idle", ["--rho 1", "--biases", "--orthogonal none", "--normalisation none"]
)
def test_planes_of_checkpoints_read_no_other_option(here: Path, run, plane: str, idle: str) -> None:
    ran = run("surface", "a.pt", "--problem", "task.py", "--plane", plane, *TWO, *idle.split())
    assert ran.code == 2
    assert f"{idle.split()[0]} is read by --plane " in ran.err
    assert f"not by {plane}" in ran.err


def test_what_is_read_by_a_kind_is_taken(here: Path, run) -> None:
    asked = ("a.pt", "--problem", "task.py", "--points", "3", "--dry-run")
    for args in (
        "line --direction eigenvector --rho 0.1",
        "line --range auto --rise 3",
        "surface --plane worst-case --rho 0.1 --biases --normalisation layer",
        "surface --tolerance 0.1 --criterion log --orthogonal euclidean",
    ):
        verb, *extra = args.split()
        assert run(verb, *asked, *extra).code == 0


def test_a_comparison_names_its_own_options(here: Path, run) -> None:
    for option, value, words in (
        ("--points", "1", "Invalid value for '--points': 1 is not in the range x>=2"),
        (
            "--range",
            "nan",
            "--range takes auto or a finite number above 0, half of the width; got nan",
        ),
        (
            "--range",
            "-1",
            "--range takes auto or a finite number above 0, half of the width; got -1",
        ),
        ("--range", "wide", "half of the width; got wide"),
    ):
        ran = run("compare", "a.pt", "b.pt", "--problem", "task.py", option, value)
        assert ran.code == 2
        assert words in ran.err


def test_no_loss_is_said_of_no_epoch(here: Path, run) -> None:
    args = ("train", "--problem", "task.py", "--epochs", "0", "-o", "t.pt", "-q")
    ran = run(*args)
    assert ran.code == 0
    assert "t.pt: sgd, 0 epochs, 0 batch gradients in" in ran.out
    assert json.loads(run(*args, "--json").out)["last_train_loss"] is None


def test_a_training_makes_the_folder_of_its_checkpoint(here: Path, run) -> None:
    args = ("train", "--problem", "task.py", "--epochs", "1", "-q")
    assert run(*args, "-o", "runs/one/t.pt").code == 0
    assert Path("runs/one/t.pt").is_file()
    Path("file").write_text("")
    ran = run(*args, "-o", "file/t.pt")
    assert ran.code == 1
    assert "file" in ran.err


def test_what_a_study_does_not_hold_is_one_failure(here: Path, run) -> None:
    assert run("eigs", "a.pt", "--problem", "task.py").code == 0
    for args in (("show", "999"), ("show", "999", "--json"), ("delete", "999", "--yes")):
        ran = run(*args)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err == "Error: landscape.db holds no measurement 999; it holds 1\n"
