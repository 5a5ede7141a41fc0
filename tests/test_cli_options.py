"""Options that are read from the library, files by patterns, and problem files to start from."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest
import torch

from landscape import choices
from landscape.cli import VERBS, cli
from landscape.cli.init import TEMPLATES
from landscape.cli.library_options import Parameter, parameters_of
from landscape.cli.options import expanded
from landscape.cli.sections import WHAT, Command
from landscape.problem import load_task
from landscape.training import TrainingSettings

FUNCTIONS = {
    "average": "sharpness.SamplingOptions",
    "compare": "compare.compare",
    "density": "curvature.spectral_density",
    "eigs": "curvature.top_eigenpairs",
    "flatness": "sharpness.flatness",
    "path": "surface.CurveTraining",
    "sharpness": "sharpness.sharpness",
    "surface": "surface.surface",
    "trace": "curvature.trace",
}


def command_of(verb: str) -> click.Command:
    found = cli.get_command(click.Context(cli), verb)
    assert found is not None
    return found


@pytest.mark.parametrize(("verb", "function"), FUNCTIONS.items())
def test_options_have_the_defaults_and_choices_of_the_library(verb: str, function: str) -> None:
    folder, name = function.split(".")
    called = getattr(importlib.import_module(f"landscape.{folder}"), name)
    own = inspect.signature(called).parameters
    parsed = parameters_of(function)
    options = {option.name: option for option in command_of(verb).params}
    shared = {
        name
        for name in options.keys() & parsed.keys()
        if name not in {"split", "seed", "study", "held_out", "plane"}
    }
    assert len(shared) >= 3
    for parameter in shared:
        assert parsed[parameter].default == own[parameter].default
        assert options[parameter].get_default(click.Context(command_of(verb))) == (
            own[parameter].default
        )
        annotation = str(own[parameter].annotation).removesuffix(" | None")
        if hasattr(choices, annotation):
            assert tuple(options[parameter].type.choices) == get_args(getattr(choices, annotation))


def test_settings_of_a_training_are_options() -> None:
    options = {option.name: option for option in command_of("train").params}
    types = get_type_hints(TrainingSettings)
    for name, field in TrainingSettings.__dataclass_fields__.items():
        context = click.Context(command_of("train"))
        assert options[name].get_default(context) == field.default
        assert name in types


def test_help_is_the_first_sentence_of_the_description() -> None:
    def described(text: str, default: object = 1) -> str:
        return Parameter(default=default, type=int, text=text).help

    assert described("radius of the ball. More of it.") == "Radius of the ball."
    assert described("η of T, see `parameter_scale`.") == "η of T."
    assert described("``a`` or ``b``; c.") == "a or b; c."
    assert described("width. None: 0.05, or 0.2 with Adam.", None) == (
        "Width.  [default: 0.05, or 0.2 with Adam]"
    )
    assert described("width; None: all of them.", None) == "Width.  [default: all of them]"


def test_every_option_has_help_and_a_section() -> None:
    for verb in VERBS:
        command = command_of(verb)
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.help, (verb, option.name)
                assert "`" not in option.help
                assert not option.help.startswith("Of "), (verb, option.name)


def test_help_lists_sections_with_the_common_options_last(run) -> None:
    text = run("eigs", "--help").out
    headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == [
        f"{WHAT}:",
        "How precisely:",
        "Model, data and device:",
        "Where it goes:",
    ]
    assert isinstance(command_of("eigs"), Command)


def test_patterns_are_expanded_in_natural_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("e-10.pt", "e-2.pt", "e-1.pt", "odd[1].pt"):
        Path(name).touch()
    assert expanded(["e-*.pt"]) == ("e-1.pt", "e-2.pt", "e-10.pt")
    assert expanded(["odd[1].pt", "no*.pt"]) == ("odd[1].pt", "no*.pt")


def test_a_missing_problem_names_the_command_that_writes_one(here: Path, run) -> None:
    ran = run("eigs", "a.pt")
    assert ran.code == 2
    assert "Missing option '--problem'" in ran.err
    assert "landscape init writes one" in ran.err


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_problem_file_runs_as_it_is_written(tmp_path: Path, monkeypatch, run, kind) -> None:
    if kind == "huggingface":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    assert run("init", "new/task.py", "--kind", kind).code == 0
    refused = run("init", "new/task.py")
    assert refused.code == 2
    assert "is there already" in refused.err
    torch.manual_seed(0)
    torch.save(load_task("new/task.py").model().state_dict(), "w.pt")
    ran = run("sharpness", "w.pt", "--problem", "new/task.py", "--max-gradients", "2", "-q")
    assert ran.code == 0, ran.err
    assert "≥" in ran.out


def test_a_table_in_every_format(here: Path, run) -> None:
    args = ("eigs", "a.pt", "b.pt", "--problem", "task.py", "-k", "2", "-q")
    assert run(*args).code == 0
    header, first, _ = run(*args, "--format", "csv").out.splitlines()
    assert header == "checkpoint,λ1,λ1 se,λ2,λ2 se,largest residual,none above,converged"
    records = json.loads(run(*args, "--format", "json").out)
    assert run(*args, "--json").out == run(*args, "--format", "json").out
    assert float(first.split(",")[1]) == records[0]["values"][0]
    assert float(first.split(",")[2]) == records[0]["data_errors"][0]
    markdown = run(*args, "--format", "markdown").out.splitlines()
    assert markdown[1] == "| --- | --- | --- | --- | --- | --- |"
    assert len(markdown) == 4
    latex = run(*args, "--format", "latex").out
    assert r"\begin{tabular}{lrrrrr}" in latex
    assert r"$\lambda$1" in latex
    assert r"$\pm$" in latex


def test_a_dry_run_counts_what_the_study_holds(here: Path, run) -> None:
    assert run("eigs", "a.pt", "--problem", "task.py").code == 0
    before = Path("landscape.db").read_bytes()
    ran = run("eigs", "a.pt", "b.pt", "--problem", "task.py", "--dry-run")
    assert ran.out.count("nothing: it is in the study") == 1
    assert ran.out.count("HVPs") == 1
    assert Path("landscape.db").read_bytes() == before


def test_show_takes_names_with_patterns(here: Path, run) -> None:
    assert run("eigs", "a.pt", "b.pt", "--problem", "task.py").code == 0
    assert run("sharpness", "a.pt", "--problem", "task.py").code == 0
    shown = run("show", "*.pt", "--kind", "eigs").out
    assert shown.count("provenance") == 2
    assert [r["kind"] for r in json.loads(run("show", "a", "--json").out)] == ["eigs", "sharpness"]
    missing = run("show", "c*")
    assert missing.code == 1
    assert "holds no finished measurement of c*" in missing.err
    assert (
        "holds no finished measurement of a.ptt (nearest: a.pt, b.pt)" in run("show", "a.ptt").err
    )
    unknown = run("show", "a.pt", "--kind", "eig")
    assert unknown.code == 2
    assert "unknown kind of record 'eig' (nearest: eigs); known: loss," in unknown.err


def test_a_dry_run_finds_the_range_of_a_line_that_the_study_holds(here: Path, run) -> None:
    args = ("line", "a.pt", "b.pt", "--problem", "task.py", "--points", "3", "-q")
    assert run(*args, "--range", "1").code == 0  # a study, with another line in it
    options = ("--range", "auto", "--paired")
    unknown = run(*args, *options, "--dry-run")
    assert unknown.code == 0, unknown.err
    assert "it is in the study" not in unknown.out
    assert run(*args, *options).code == 0
    known = json.loads(run(*args, *options, "--dry-run", "--json").out)
    assert known["seconds"] == 0.0
    assert all(cost["forwards"] == 0 for cost in known["at_most"].values())
    unpaired = run(*args, "--range", "auto", "--dry-run").out
    assert unpaired.count("it is in the study") == 1  # the first, which is its own reference
