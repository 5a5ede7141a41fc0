from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch

from landscape.errors import CheckpointError, ProblemError
from landscape.evaluate import Evaluator
from landscape.problem import load_problem, load_task
from landscape.tasks import PROBLEMS

WHOLE = """
import torch
from torch import nn

def model():
    return nn.Linear(3, 2)

def data(split):
    n = {"train": 8, "test": 4}[split]
    return torch.randn(n, 3), torch.arange(n) % 2

loss = nn.CrossEntropyLoss()
metrics = {"accuracy": lambda o, t: o.argmax(1) == t}
"""


@pytest.fixture(autouse=True)
def own_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the search path and the loaded modules back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "landscape_problem_")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(source: str, name: str = "mine.py") -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(dedent(source))
        return tmp_path / name

    return write


def failure(source: Path | str, **options: str) -> str:
    with pytest.raises(ProblemError) as caught:
        load_problem(source, **options)
    return str(caught.value)


# What is read


def test_a_problem_file(write: Callable[..., Path]) -> None:
    file = write(WHOLE)
    problem = load_problem(file)
    assert (problem.name, problem.split) == ("mine", "train")
    assert problem.batches.n_examples == 8
    assert load_problem(str(file), split="test").batches.n_examples == 4
    with Evaluator(problem) as evaluator:
        assert 0 <= evaluator.loss().metrics["accuracy"] <= 1


def test_options_reach_the_problem(write: Callable[..., Path]) -> None:
    problem = load_problem(write(WHOLE), dtype="float64", mode="train", name="other", batch_size=3)
    assert (problem.dtype, problem.mode, problem.name) == (torch.float64, "train", "other")
    assert problem.batches.n_batches == 3


def test_a_loss_of_the_whole_batch(write: Callable[..., Path]) -> None:
    file = write(
        WHOLE.replace("loss = nn.CrossEntropyLoss()", "def batch_loss(model, batch):").replace(
            "metrics = {", "    return nn.functional.cross_entropy(model(batch[0]), batch[1])\n#"
        )
    )
    problem = load_problem(file, dtype="float64")
    reference = load_problem(write(WHOLE, "other.py"), dtype="float64")
    with Evaluator(problem) as one, Evaluator(reference) as other:
        assert one.loss().value == pytest.approx(other.loss().value, rel=1e-12)


def test_a_seed_decides_all_that_the_file_draws(write: Callable[..., Path]) -> None:
    file = write(
        """
        import random
        import numpy as np, torch
        from torch import nn

        def model():
            return nn.Linear(2, 1)

        def data(split):
            return np.random.randn(4, 2).astype("f"), torch.tensor([[random.random()]] * 4)

        loss = nn.MSELoss()
        """
    )
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    found = [load_problem(file, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert found[0].checkpoint_hash == found[1].checkpoint_hash != found[2].checkpoint_hash
    prints = [problem.batches.fingerprint for problem in found]
    assert prints[0] == prints[1] != prints[2]
    with torch.random.fork_rng():
        torch.manual_seed(1)  # as the user's own script would do
        assert torch.equal(torch.nn.Linear(2, 1).weight, found[0].model.weight)


def test_neighbours_can_be_imported(write: Callable[..., Path]) -> None:
    write("from torch import nn\ndef build(): return nn.Linear(3, 2)", "my_networks.py")
    file = write(
        "from my_networks import build as model\n" + WHOLE.replace("def model", "def _old")
    )
    assert load_problem(file).space.n == 8


def test_a_folder_is_no_obstacle_to_a_name(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(WHOLE, "my_package/task.py").parents[1])
    write(WHOLE, "my_package/__init__.py")
    assert load_problem("my_package.task").batches.n_examples == 8
    assert load_problem("my_package").batches.n_examples == 8


def test_the_file_is_read_again_when_it_has_changed(write: Callable[..., Path]) -> None:
    assert load_problem(write(WHOLE)).space.n == 8
    assert load_problem(write(WHOLE.replace("(3, 2)", "(3, 5)"))).space.n == 20


def test_a_problem_at_a_checkpoint(write: Callable[..., Path], tmp_path: Path) -> None:
    problem = load_problem(write(WHOLE))
    torch.save({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, tmp_path / "a.pt")
    assert problem.at(tmp_path / "a.pt").weights.tolist() == [1.0] * 6 + [0.0] * 2
    with pytest.raises(CheckpointError, match=r"nearest: a\.pt"):
        problem.at(tmp_path / "aa.pt")


# What is refused


def test_a_file_that_is_not_there(write: Callable[..., Path]) -> None:
    file = write(WHOLE)
    message = failure(file.with_name("mnie.py"))
    assert message.startswith(f"no such problem file: {file.parent}/mnie.py (nearest: mine.py); ")
    assert message.endswith(f"built-in problems: {', '.join(PROBLEMS)}")
    assert "no such problem file" in failure(file.parent / "nowhere" / "mine.py")


@pytest.mark.parametrize("name", ["digit", "no_such_package.task", "not a name", "..", ".x", ""])
def test_a_name_that_is_not_known(name: str) -> None:
    message = failure(name)
    assert message.startswith(f"unknown problem {name!r}")
    assert "built-in problems: digits" in message
    assert ("(nearest: digits)" in message) == (name == "digit")


def test_a_file_that_is_no_python_file(write: Callable[..., Path]) -> None:
    assert "is no Python file (expected the suffix .py)" in failure(write(WHOLE, "mine.txt"))


def test_a_syntax_error(write: Callable[..., Path]) -> None:
    file = write("import torch\n\ndef model(:\n    return 1\n")
    message = failure(file)
    assert message.startswith(f"{file}, line 3: def model(:\n  SyntaxError: ")


def test_a_syntax_error_in_a_neighbour(write: Callable[..., Path]) -> None:
    neighbour = write("x = = 1", "my_neighbour.py")
    message = failure(write("import my_neighbour\n" + WHOLE))
    assert message.startswith(f"{neighbour}, line 1: x = = 1\n  SyntaxError: ")


def test_a_syntax_error_in_a_string(write: Callable[..., Path]) -> None:
    file = write("import torch\nlr = eval('1 +')\n")
    assert failure(file).startswith(f"{file}, line 2: lr = eval('1 +')\n  SyntaxError: ")


def test_an_exception_at_import(write: Callable[..., Path]) -> None:
    file = write("import torch\ntorch.zeros(2) @ torch.zeros(3)\n")
    message = failure(file)
    assert message.startswith(f"{file}, line 2: torch.zeros(2) @ torch.zeros(3)\n  RuntimeError: ")
    assert "landscape_problem_mine" not in " ".join(sys.modules)


def test_a_missing_package(write: Callable[..., Path]) -> None:
    file = write("import torch\nimport no_such_package\n")
    message = failure(file)
    assert message.startswith(f"{file}, line 2: import no_such_package\n  ModuleNotFoundError: ")


def test_a_missing_package_of_a_module(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("import torch\nimport no_such_package\n", "my_module.py")
    monkeypatch.chdir(file.parent)
    message = failure("my_module")
    assert message.startswith(f"{file}, line 2: import no_such_package\n  ModuleNotFoundError: ")


def test_a_package_that_fails(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write("import no_such_package", "my_broken/__init__.py")
    monkeypatch.chdir(write(WHOLE, "my_broken/task.py").parents[1])
    assert "ModuleNotFoundError: No module named 'no_such_package'" in failure("my_broken.task")


@pytest.mark.parametrize("name", ["model", "data"])
def test_an_exception_in_a_function(name: str, write: Callable[..., Path]) -> None:
    source = WHOLE.replace(f"def {name}(", f"def old_{name}(")
    argument = "split" if name == "data" else ""
    source += f"\ndef {name}({argument}):\n    return nn.Conv2d(3, 2, 3)(torch.zeros(1, 9, 8, 8))\n"
    file = write(source)
    message = failure(file)
    line = len(source.splitlines())
    assert message.startswith(f"{file}, line {line}: return nn.Conv2d(3, 2, 3)(torch.zeros(")
    assert "\n  RuntimeError: Given groups=1, weight of size [2, 3, 3, 3]" in message


def test_an_exception_in_a_neighbour(write: Callable[..., Path]) -> None:
    neighbour = write(
        "import torch\ndef model():\n    return torch.nn.Flatten(3)(torch.zeros(2))",
        "my_networks.py",
    )
    source = "from my_networks import model\n" + WHOLE.replace("def model", "def _old")
    message = failure(write(source))
    assert message.startswith(f"{neighbour}, line 3: return torch.nn.Flatten(3)(torch.zeros(2))\n")
    assert "Dimension out of range" in message


def test_a_split_that_the_file_does_not_know(write: Callable[..., Path]) -> None:
    message = failure(write(WHOLE), split="validation")
    assert message.endswith("[split]\n  KeyError: 'validation'")


def test_a_script_that_exits(write: Callable[..., Path]) -> None:
    file = write("import argparse, sys\nsys.exit(3)\n")
    message = failure(file)
    assert message.startswith(f"{file}, line 2: sys.exit(3)\n  SystemExit: exit code 3; ")


@pytest.mark.parametrize(
    ("old", "new", "lacking"),
    [
        ("def model", "def modle", "model (nearest: modle)"),
        ("def data", "def get", "data"),
        ("loss =", "los =", "loss (nearest: los)"),
        ("def model():", "model = 3\ndef other():", "model (it is no function)"),
    ],
)
def test_missing_names(old: str, new: str, lacking: str, write: Callable[..., Path]) -> None:
    file = write(WHOLE.replace(old, new))
    message = failure(file)
    assert message.startswith(
        f"{file} lacks: {lacking}. A problem file defines model(), data(split)"
    )


def test_both_losses_and_none(write: Callable[..., Path]) -> None:
    both = write(WHOLE + "\ndef batch_loss(model, batch): return 0\n")
    assert "give either loss(output, target) or batch_loss(model, batch); got both" in failure(both)
    neither = write(WHOLE.replace("nn.CrossEntropyLoss()", "None"))
    assert "got neither" in failure(neither)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (WHOLE.replace("nn.Linear(3, 2)", "3"), r"the model must be a torch\.nn\.Module, not int"),
        (WHOLE.replace("return torch.randn", "torch.randn"), "the problem has no data"),
        (WHOLE.replace('{"accuracy":', "[").replace("== t}", "== t]"), "not a list"),
    ],
)
def test_functions_that_return_something_else(
    source: str, message: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(ProblemError, match=message):
        load_problem(write(source))


def test_a_task_can_be_read_without_building_it(write: Callable[..., Path]) -> None:
    source = WHOLE.replace("return nn.Linear(3, 2)", "raise SystemError")
    task = load_task(write(source))
    assert task.name == "mine"
    assert set(task.metrics) == {"accuracy"}
