"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import NamedTuple

import pytest

# Before torch, and for the processes that tests start: problems this small gain nothing from
# threads, which wait for each other in a loop, and for long where the cores are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings
from torch import nn

from landscape.cli import main

# No deadline: the first example of a test pays for imports, and the machine is shared.
settings.register_profile("landscape", deadline=None, max_examples=20)
settings.load_profile("landscape")

TASK = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

def data(split):
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    x = torch.randn(30, 4, generator=generator)
    return x, (x @ torch.arange(12.0).reshape(4, 3).sin()).argmax(1)

loss = nn.CrossEntropyLoss()

def accuracy(output, target):
    return (output.argmax(1) == target).float()

metrics = {"accuracy": accuracy}
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a problem file and two checkpoints in it, as the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    for seed, name in enumerate(("a.pt", "b.pt")):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        torch.save(model.state_dict(), tmp_path / name)
    return tmp_path


@pytest.fixture
def only_new_garbage():
    """Let `gc.collect` search what is made from now on, not all that the tests have loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def no_passes(monkeypatch: pytest.MonkeyPatch):
    """A function after whose call a pass over all data is a TypeError; few examples may pass."""
    from landscape.evaluate import Evaluator

    plain = Evaluator.loss

    def loss(self: Evaluator, vector=None, *, batches=None, **options):
        if batches is None:
            raise TypeError
        return plain(self, vector, batches=batches, **options)

    return lambda: monkeypatch.setattr(Evaluator, "loss", loss)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*args: str) -> Ran:
        with pytest.raises(SystemExit) as exit_info:
            main(args)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(int(exit_info.value.code or 0), captured.out, captured.err)

    return call
