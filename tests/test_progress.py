"""Bars: where they are shown, what stands before and behind them."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import landscape as ls
from landscape import progress
from landscape.progress import counting, labelled, note_on_bar


@pytest.fixture
def problem() -> ls.Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(24, 3, dtype=torch.float64)
    return ls.Problem(model, nn.CrossEntropyLoss(), (x, (x[:, 0] > 0).long()), name="one")


def test_a_search_notes_how_far_it_is_from_its_tolerance(problem, monkeypatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(
        progress.tqdm, "set_postfix_str", lambda bar, text, refresh: notes.append(text)
    )
    ls.top_eigenpairs(problem, 2, tol=1e-6, progress=True)
    estimates = [float(note.split()[1]) for note in notes]
    assert len(estimates) > 1
    assert estimates[-1] <= 1e-6 < estimates[0]
    notes.clear()
    sharp = ls.sharpness(problem, progress=True)
    assert notes[-1] == f"rise {sharp.value:.4g}, gap {sharp.gap:.1e} of 1.0e-04"


def test_a_label_stands_before_every_bar(problem, capsys) -> None:
    with labelled("2 of 3: "):
        ls.sharpness(problem, progress=True)
    assert "2 of 3: sharpness of one" in capsys.readouterr().err


def test_bars_are_shown_in_notebooks_and_not_in_files(problem, capsys, monkeypatch) -> None:
    ls.evaluation(problem)
    ls.sharpness(problem)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    ls.sharpness(problem)
    assert "sharpness of one" in capsys.readouterr().err


def test_a_note_without_a_bar_is_dropped() -> None:
    note_on_bar("nothing")
    with counting("work", show=False, unit="step") as count:
        note_on_bar("hidden")
        assert count(lambda: 3)() == 3
