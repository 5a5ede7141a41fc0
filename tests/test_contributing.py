"""The example of CONTRIBUTING is a measure that works."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import landscape as ls
from landscape.results import records


def test_the_measure_of_the_recipe_is_saved_and_recalled(tmp_path: Path, monkeypatch) -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r" +```python\n(.*?)```", text, re.S)]
    record, function = (ModuleType(name) for name in ("gradients", "gradient"))
    monkeypatch.setitem(sys.modules, "landscape.results.gradients", record)
    for module, block in zip((record, function), blocks, strict=True):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(block, module.__dict__)
    kind = record.GradientCurvature
    monkeypatch.setitem(records.KINDS, kind.kind, kind)

    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.randn(12, 2, dtype=torch.float64)
    problem = ls.Problem(model, nn.MSELoss(), (x, torch.zeros(12, 1, dtype=torch.float64)))
    hessian = 2 * x.T @ x / 12
    g = hessian @ model.weight[0].detach()
    with ls.Study(tmp_path / "s.db") as study:
        measured = function.gradient_curvature(problem, study=study)
        again = function.gradient_curvature(problem, study=study)
    assert measured.value == pytest.approx(float(g @ hessian @ g / (g @ g)), rel=1e-12)
    assert again.value == measured.value
    assert again.provenance.created == measured.provenance.created
