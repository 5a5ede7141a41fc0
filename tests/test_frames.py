"""Records, comparisons and studies as pandas and xarray objects, and in notebooks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.errors import MissingDependencyError

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def problem() -> ls.Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(24, 3, dtype=torch.float64)
    return ls.Problem(model, nn.CrossEntropyLoss(), (x, (x[:, 0] > 0).long()), name=HOSTILE)


def test_records_become_data_frames(problem: ls.Problem) -> None:
    pairs = ls.top_eigenpairs(problem, 2, progress=False)
    frame = pairs.to_pandas()
    assert list(frame["label"]) == ["λ1", "λ2"]
    np.testing.assert_array_equal(frame["value"], pairs.values)


def test_surfaces_lines_and_densities_become_labelled_arrays(problem: ls.Problem) -> None:
    surface = ls.surface(problem, x=[-1, 0, 1], y=[0, 1], progress=False)
    data = surface.to_xarray()
    assert data["loss"].dims == ("x", "y")
    assert float(data["loss"].sel(x=0, y=0)) == surface.origin_loss
    assert data.attrs["plane"] == surface.plane
    line = ls.line(problem, x=[-1, 0, 1], progress=False)
    np.testing.assert_array_equal(line.to_xarray()["loss"], line.loss)
    density = ls.spectral_density(problem, n_probes=2, steps=8, progress=False)
    assert density.to_xarray()["density"].sizes == {"eigenvalue": density.grid.size}


def test_a_study_is_one_data_frame(problem: ls.Problem, tmp_path: Path) -> None:
    with ls.Study(tmp_path / "s.db") as study:
        sharp = ls.sharpness(problem, study=study, progress=False)
        ls.evaluation(problem, study=study)
        frame = study.to_pandas()
        assert list(frame["kind"]) == ["sharpness", "loss"]
        assert frame["sharpness, ρ = 0.05, p = 2"][0] == sharp.value
        assert frame["sharpness, ρ = 0.05, p = 2 se"][0] == sharp.value_se
        assert math.isnan(frame["loss"][0])
        assert len(study.to_pandas("loss")) == 1
        html = study._repr_html_()
    assert "sharpness" in html
    assert HOSTILE not in html


def test_records_and_comparisons_are_shown_as_html_in_notebooks(problem: ls.Problem) -> None:
    sharp = ls.sharpness(problem, progress=False)
    html = sharp._repr_html_()
    assert html.startswith("<table>")
    assert "optimality gap" in html
    assert HOSTILE not in html
    assert "&lt;script&gt;" in html
    comparison = ls.compare({"A": problem.named("A")}, n=3, progress=False)
    assert repr(comparison) == "Comparison of A"
    html = comparison._repr_html_()
    assert "λmax of the Hessian" in html
    assert html.count("<svg") == 1
    frame = comparison.to_pandas()
    assert frame["train loss"][0] == comparison["A"].evaluation.loss


def test_a_missing_package_is_named_with_its_extra(problem: ls.Problem, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match=r"landscape-sharpness\[tables\]"):
        ls.evaluation(problem).to_pandas()


@pytest.mark.parametrize(
    "measure", [ls.sharpness, ls.top_eigenpairs, ls.trace, ls.surface, ls.line]
)
def test_a_bare_model_is_told_to_be_wrapped(measure) -> None:
    with pytest.raises(ls.LandscapeError, match=r"ls\.Problem\(model, loss, data\)"):
        measure(nn.Linear(2, 1))


def test_a_surface_is_a_frame_with_a_row_for_each_point() -> None:
    pytest.importorskip("pandas")
    import torch

    import landscape as ls

    torch.manual_seed(0)
    data = torch.randn(8, 3), torch.randint(2, (8,))
    problem = ls.Problem(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), data)
    plane = ls.random_plane(problem, seed=0)
    surface = ls.surface(problem, plane=plane, x=[-1.0, 0.0, 1.0], y=[0.0, 1.0])
    frame = surface.to_pandas()
    assert frame.shape[0] == 6
    assert frame.loss.tolist() == surface.loss.ravel().tolist()
    assert frame.y.tolist() == [0.0, 1.0] * 3
