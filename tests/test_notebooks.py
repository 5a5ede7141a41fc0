"""Every notebook runs from top to bottom, with less data and less training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from landscape.tasks import digits

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    all_of_it = digits.data
    monkeypatch.setattr(digits, "data", lambda split: tuple(t[:96] for t in all_of_it(split)))
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    full, short = "EPOCHS, POINTS, RHO = 40, 15, 0.2", "EPOCHS, POINTS, RHO = 1, 2, 0.2"
    assert full in code[0]
    names: dict[str, Any] = {}
    for source in (code[0].replace(full, short), *code[1:]):
        exec(compile(source, str(path), "exec"), names)
    assert names["comparison"].names == ("SGD", "SAM")
    assert names["sharp"]["SGD"].value >= names["sharp"]["SGD"].one_step


def test_notebooks_are_kept_without_outputs() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
