"""Every notebook runs from top to bottom, with less data and less training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


FULL = "EPOCHS, POINTS, RHO, EXAMPLES = 30, 21, 0.2, 1400"
SMALL = "EPOCHS, POINTS, RHO, EXAMPLES = 1, 3, 0.2, 96"


def cells_of(path: Path) -> list[dict[str, Any]]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("pandas")
    pytest.importorskip("xarray")
    monkeypatch.chdir(tmp_path)
    code = ["".join(cell["source"]) for cell in cells_of(path)]
    assert FULL in code[0]
    names: dict[str, Any] = {}
    for source in (code[0].replace(FULL, SMALL), *code[1:]):
        exec(compile(source, str(path), "exec"), names)
    assert names["comparison"].names == ("SGD", "SAM")
    assert names["sharp"]["SGD"].value >= names["sharp"]["SGD"].one_step
    assert Path("contrast.html").stat().st_size > 0


def test_notebooks_are_kept_with_their_outputs() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = cells_of(path)
        counts = [cell["execution_count"] for cell in cells]
        assert counts == list(range(1, len(cells) + 1))  # executed once, from top to bottom
        outputs = [output for cell in cells for output in cell["outputs"]]
        assert not [o for o in outputs if o["output_type"] in {"error", "stream"}]
        kinds = {kind for output in outputs for kind in output["data"]}
        assert {"image/png", "text/html", "application/vnd.plotly.v1+json"} <= kinds


def test_an_interactive_picture_is_shown_in_exported_html_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import plotly.io

    from landscape.plots.interactive.common import Page

    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")
    bundle = Page(data=[{"type": "scatter", "x": [1], "y": [2]}])._repr_mimebundle_()
    assert "application/vnd.plotly.v1+json" in bundle
    assert "plotly" in bundle["text/html"]
    assert Page._ipython_display_ is None  # else it would be the only one that is shown
