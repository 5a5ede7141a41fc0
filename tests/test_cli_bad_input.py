"""Bad input: one clear message, exit 1 or 2, no traceback, and nothing lost."""

from __future__ import annotations

import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TASK
from torch import nn

from landscape.study import SCHEMA_VERSION, Study
from landscape.tasks import digits

EIGS = ("--problem", "task.py", "-k", "1")


def _says(ran, code: int, *words: str) -> None:
    assert ran.code == code, ran
    assert ran.err.startswith(("Error", "Usage", "Warning"))
    for word in words:
        assert word in ran.err
    assert not ran.out


def _edit(old: str, new: str) -> None:
    assert old in TASK
    Path("task.py").write_text(TASK.replace(old, new))


# ---------------------------------------------------------------------------- checkpoints


def test_no_such_file(here, run) -> None:
    _says(run("eigs", "aa.pt", *EIGS), 1, "no such checkpoint file: aa.pt", "nearest: a.pt")


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file\n", b"\x89PNG\r\n\x1a\n" * 9])
def test_a_file_that_is_no_checkpoint(here, run, content: bytes) -> None:
    Path("x.pt").write_bytes(content)
    _says(run("eigs", "x.pt", *EIGS), 1, "x.pt", "empty" if not content else "no checkpoint")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file(here, run, keep: float, legacy: bool) -> None:
    state = torch.load("a.pt", weights_only=True)
    torch.save(state, "x.pt", _use_new_zipfile_serialization=not legacy)
    whole = Path("x.pt").read_bytes()
    Path("x.pt").write_bytes(whole[: int(len(whole) * keep)])
    _says(run("eigs", "x.pt", *EIGS), 1, "x.pt", "truncated")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def test_a_pickle_that_would_run_code_does_not_run(here, run) -> None:
    torch.save({"state_dict": {}, "payload": Payload()}, "x.pt")
    _says(run("eigs", "x.pt", *EIGS), 1, "run code", "mkdir", "--unsafe-pickle")
    Path("y.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    assert run("eigs", "y.pt", *EIGS).code == 1
    assert not Path("it-ran").exists()


def test_a_checkpoint_of_another_architecture(here, run) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).state_dict(), "x.pt")
    _says(run("eigs", "x.pt", *EIGS), 1, "does not fit", "wrong shape", "0.weight (7, 4)")
    torch.save({"0.wieght": torch.zeros(6, 4)}, "y.pt")
    _says(run("eigs", "y.pt", *EIGS), 1, "missing", "unexpected", "nearest: 0.weight")


def test_nan_weights(here, run) -> None:
    state = torch.load("a.pt", weights_only=True)
    state["2.bias"][1] = float("nan")
    torch.save(state, "x.pt")
    _says(run("eigs", "x.pt", *EIGS), 1, "NaN", "2.bias")


def test_the_second_checkpoint_is_checked_before_the_first_is_measured(here, run) -> None:
    assert run("eigs", "a.pt", "nope.pt", *EIGS).code == 1
    assert not Path("landscape.db").exists()


# ----------------------------------------------------------------------------------- data


def test_an_empty_data_set(here, run) -> None:
    _edit("30, 4", "0, 4")
    _says(run("eigs", "a.pt", *EIGS), 1, "data set is empty")


def test_a_one_shot_generator(here, run) -> None:
    _edit("return x, (x @", "return (b for b in [(x, x)]), (x @")
    _edit("    return x, (x @ torch.arange(12.0).reshape(4, 3).sin()).argmax(1)",
          "    return ((x, x.argmax(1)) for _ in range(2))")  # fmt: skip
    _says(run("eigs", "a.pt", *EIGS), 1, "one-shot", "DataLoader")


LOADER = """
    from torch.utils.data import DataLoader, TensorDataset
    y = (x @ torch.arange(12.0).reshape(4, 3).sin()).argmax(1)
    return DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)
"""


def test_a_shuffled_loader(here, run) -> None:
    _edit("    return x, (x @ torch.arange(12.0).reshape(4, 3).sin()).argmax(1)", LOADER)
    _says(run("eigs", "a.pt", *EIGS), 1, "shuffled", "shuffle=False", "--freeze-data")
    assert run("eigs", "a.pt", *EIGS, "--freeze-data").code == 0


AUGMENTED = """
    y = (x @ torch.arange(12.0).reshape(4, 3).sin()).argmax(1)
    class Noisy(torch.utils.data.Dataset):
        def __len__(self): return 30
        def __getitem__(self, i): return x[i] + torch.randn(4), y[i]
    return Noisy()
"""


def test_an_augmenting_loader(here, run) -> None:
    _edit("    return x, (x @ torch.arange(12.0).reshape(4, 3).sin()).argmax(1)", AUGMENTED)
    _says(run("eigs", "a.pt", *EIGS), 1, "other data on every pass", "augmentation")


def test_labels_out_of_range(here, run) -> None:
    _edit(".argmax(1)\n\nloss", ".argmax(1) + 1\n\nloss")
    _says(run("eigs", "a.pt", *EIGS), 1, "labels out of range", "0 to 2", "contain 3")


# ----------------------------------------------------------------------------------- loss


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("lambda output, target: output", ("float32 tensor of shape (30, 3)", "scalar")),
        ("lambda output, target: 3", ("int", "scalar")),
        ("lambda output, target: output.argmax(1).float().mean()", ("differentiable",)),
        ("3", ("function", "int")),
    ],
)
def test_a_loss_that_is_none(here, run, loss: str, words: tuple[str, ...]) -> None:
    _edit("nn.CrossEntropyLoss()", loss)
    _says(run("eigs", "a.pt", *EIGS), 1, *words)


def test_a_model_that_fails_on_the_data(here, run) -> None:
    _edit("30, 4, generator", "30, 5, generator")
    _edit("x = torch.randn(30, 4, generator=generator)",
          "x = torch.randn(30, 4, generator=generator).repeat(1, 2)")  # fmt: skip
    ran = run("eigs", "a.pt", *EIGS)
    assert ran.code == 1


# ---------------------------------------------------------------------------- problem file


def test_no_such_problem(here, run) -> None:
    _says(run("eigs", "a.pt", "--problem", "tsk.py"), 1, "tsk.py", "nearest: task.py", "digits")
    _says(run("eigs", "a.pt", "--problem", "digit"), 1, "nearest: digits")


def test_an_error_in_the_problem_file_shows_the_users_own_line(here, run) -> None:
    _edit(
        "generator = torch.Generator().manual_seed(0", "generator = torch.Genrator().manual_seed(0"
    )
    _says(run("eigs", "a.pt", *EIGS), 1, "task.py, line 9", "torch.Genrator()", "AttributeError")


def test_a_syntax_error_in_the_problem_file(here, run) -> None:
    _edit("loss = nn", "loss == = nn")
    _says(run("eigs", "a.pt", *EIGS), 1, "task.py, line 13", "loss == = nn", "SyntaxError")


def test_a_problem_file_without_the_needed_names(here, run) -> None:
    _edit("def model", "def modle")
    _says(run("eigs", "a.pt", *EIGS), 1, "lacks: model", "nearest: modle")
    _edit("loss = nn", "los = nn")
    _says(run("eigs", "a.pt", *EIGS), 1, "lacks: loss")


def test_a_missing_optional_dependency(here, run, monkeypatch: pytest.MonkeyPatch) -> None:
    digits._images.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    ran = run("eigs", "a.pt", "--problem", "digits")
    _says(ran, 1, "scikit-learn", "pip install 'landscape-sharpness[demo]'")


# ------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("rho", ["0", "-1", "nan", "inf"])
def test_a_radius_that_is_none(here, run, rho: str) -> None:
    _says(run("sharpness", "a.pt", "--problem", "task.py", "--rho", rho), 2, "rho must be")


def test_more_eigenvalues_than_parameters(here, run) -> None:
    _says(run("eigs", "a.pt", "--problem", "task.py", "-k", "52"), 2, "k must be", "51", "got 52")
    _says(run("eigs", "a.pt", "--problem", "task.py", "-k", "0"), 2, "got 0")


@pytest.mark.parametrize(
    "args",
    [
        ("surface", "a.pt", "--problem", "task.py", "--points", "1"),
        ("surface", "a.pt", "--problem", "task.py", "--range", "nan"),
        ("line", "a.pt", "--problem", "task.py", "--range", "0"),
        ("sharpness", "a.pt", "--problem", "task.py", "--p", "0.5"),
        ("sharpness", "a.pt", "--problem", "task.py", "--tol", "0"),
        ("eigs", "a.pt", "--problem", "task.py", "--dtype", "float16"),
        ("eigs", "a.pt", "--problem", "task.py", "--device", "warp"),
        ("eigs", "a.pt"),
        ("eigs", "a.pt", "a.pt", "--problem", "task.py"),
        ("train", "--problem", "task.py", "-o", "weights.h5"),
        ("train", "--problem", "task.py", "-o", "w.pt", "--epochs", "-1"),
        ("list", "--kind", "nonsense"),
        ("plot", "-o", "picture.xyz"),
        ("show", "7"),
    ],
)
def test_wrong_usage(here, run, args: tuple[str, ...]) -> None:
    with Study("landscape.db") as study:
        assert not study.entries()
    ran = run(*args)
    assert ran.code in {1, 2}, ran
    assert ran.err
    assert not Path("weights.h5").exists()


# ----------------------------------------------------------------------------------- study


def test_an_unwritable_study(here, run) -> None:
    Path("folder").mkdir()
    _says(run("eigs", "a.pt", *EIGS, "--study", "folder"), 1, "folder")
    _says(run("eigs", "a.pt", *EIGS, "--study", "a.pt/x.db"), 1, "a.pt")
    _says(run("eigs", "a.pt", *EIGS, "--study", "task.py"), 1, "task.py")
    assert Path("task.py").read_text() == TASK


def test_a_study_of_a_newer_schema(here, run) -> None:
    assert run("eigs", "a.pt", *EIGS).code == 0
    with sqlite3.connect("landscape.db") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    _says(run("eigs", "b.pt", *EIGS), 1, str(SCHEMA_VERSION + 1), "upgrade")
    _says(run("list"), 1, "upgrade")


def test_a_missing_study(here, run) -> None:
    _says(run("list", "--study", "none.db"), 1, "none.db")
    _says(run("report", "--study", "none.db"), 1, "none.db")
    assert not Path("none.db").exists()


def test_a_study_with_nothing_in_it(here, run) -> None:
    Study("empty.db").close()
    _says(run("plot", "--study", "empty.db"), 1, "no finished measurement")
    _says(run("report", "--study", "empty.db"), 1, "no finished measurement")


def test_a_full_disk(here) -> None:
    # A limit on the size of files stands in for a disk that fills up during a surface.
    limited = 'ulimit -f 120; exec "$@"'
    command = [sys.executable, "-c", "from landscape.cli import main; main()"]
    args = ["surface", "a.pt", "--problem", "task.py", "--points", "40", "--quiet"]
    ran = subprocess.run(
        ["bash", "-c", limited, "bash", *command, *args], capture_output=True, text=True
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stderr.startswith("Error")
    assert "full" in ran.stderr
    with Study("landscape.db") as study:
        (entry,) = study.entries()
        assert 0 < entry.points_done < 1600  # nothing lost: the points before it are there


def test_a_figure_that_cannot_be_written(here, run) -> None:
    assert run("eigs", "a.pt", *EIGS).code == 0
    _says(run("plot", "--what", "eigs", "-o", "task.py/x.png"), 1, "task.py")
