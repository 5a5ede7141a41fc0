"""``landscape trajectory``, and what ``landscape plot`` draws of runs, differences and bands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import samples
import torch
from matplotlib.figure import Figure
from test_plots_areas import bundle
from test_plots_runs import grid, run_on

from landscape import plots
from landscape.errors import StudyError
from landscape.study import Study


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The figures that were saved, in order."""
    figures: list[object] = []
    save = plots.save_figure

    def kept(figure: object, path: str) -> list[Path]:
        figures.append(getattr(figure, "figure", figure))
        return save(figure, path)

    monkeypatch.setattr(plots, "save_figure", kept, raising=False)
    return figures


def paths(figure: Figure) -> list[list[float]]:
    """The x of every path of a run on a map."""
    return [
        list(line.get_xdata())
        for axes in figure.axes
        for line in axes.lines
        if line.get_path_effects() and axes.name != "3d"
    ]


def filled(path: Path, *records: object) -> Path:
    with Study(path) as study:
        for record in records:
            study.save(record)  # type: ignore[arg-type]
    return path


def interpolate(share: float, name: str) -> None:
    """A checkpoint between a.pt and b.pt."""
    a, b = torch.load("a.pt"), torch.load("b.pt")
    torch.save({k: a[k] + share * (b[k] - a[k]) for k in a}, name)


# --- landscape trajectory ----------------------------------------------------------------------


def test_a_run_is_measured_and_drawn_on_the_surface_of_the_same_plane(
    here: Path, run, drawn: list[Figure]
) -> None:
    for share, name in ((0.3, "e1.pt"), (0.7, "e2.pt")):
        interpolate(share, name)
    torch.manual_seed(9)
    torch.save({k: v + 0.1 * torch.randn_like(v) for k, v in torch.load("e1.pt").items()}, "c.pt")
    plane = ("--problem", "task.py", "--plane", "through", "--via", "b.pt", "--via", "c.pt")
    ran = run("trajectory", "a.pt", *plane, "--run", "A=a.pt,e1.pt,e2.pt,b.pt", "--json")
    assert ran.code == 0, ran.err
    (record,) = json.loads(ran.out)
    assert (record["run"], record["names"]) == ("A", ["a", "e1", "e2", "b"])
    assert record["x"] == pytest.approx([0.0, 0.3, 0.7, 1.0], abs=1e-5)
    assert record["y"] == pytest.approx([0.0] * 4, abs=1e-5)
    assert record["loss"] == pytest.approx(record["projected_loss"], rel=1e-5)

    assert run("surface", "a.pt", *plane, "--points", "5").code == 0
    for number, what in enumerate(("surface", "contrast")):
        assert run("plot", "--what", what, "-o", "x.png").code == 0
        assert paths(drawn[number]) == [pytest.approx(record["x"])]
    assert run("plot", "--what", "trajectory", "-o", "x.html").code == 0


def test_a_run_is_by_default_that_of_via(here: Path, run) -> None:
    interpolate(0.4, "e1.pt")
    plane = ("--plane", "trajectory", "--via", "e1.pt", "--via", "c.pt")
    torch.manual_seed(9)
    torch.save({k: v + torch.randn_like(v) for k, v in torch.load("b.pt").items()}, "c.pt")
    ran = run("trajectory", "a.pt", "--problem", "task.py", *plane, "--json")
    (record,) = json.loads(ran.out)
    assert record["names"] == ["e1", "c", "a"]
    assert (record["x"][-1], record["y"][-1], record["off_plane"][-1]) == (0.0, 0.0, 0.0)
    assert record["off_plane"] == pytest.approx([0.0] * 3, abs=1e-5)  # two span the plane


def test_a_dry_run_prices_both_losses_of_each_checkpoint(here: Path, run) -> None:
    ran = run("trajectory", "a.pt", "--problem", "task.py", "--run", "a.pt,b.pt", "--dry-run")
    assert "5 forward passes" in ran.out
    assert not Path("landscape.db").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("a.pt",), 2, "name the checkpoints of a run"),
        (("a.pt", "b.pt", "--run", "a.pt"), 2, "one checkpoint as its origin"),
        (("a.pt", "--run", "a.pt,,b.pt"), 2, "separated by commas"),
        (("a.pt", "--run", "A="), 2, "separated by commas"),
        (("a.pt", "--run", "no.pt"), 1, "no.pt"),
        (("a.pt", "--run", "b.pt", "--plane", "through"), 2, "via two checkpoints; got 0"),
    ],
)
def test_bad_input_is_named(here: Path, run, args: tuple[str, ...], code: int, message) -> None:
    ran = run("trajectory", *args, "--problem", "task.py")
    assert ran.code == code
    assert message in ran.err


# --- landscape plot ----------------------------------------------------------------------------


def test_runs_are_drawn_on_the_surfaces_that_were_asked_for(
    tmp_path: Path, run, drawn: list[Figure]
) -> None:
    surface = grid()
    two = (run_on(surface, "A"), dataclasses.replace(run_on(surface, "B"), settings={}))
    moved = dataclasses.replace(two[1], settings={**two[0].settings, "d1": {"digest": "other"}})
    study = str(filled(tmp_path / "s.db", surface, two[0], moved))
    out = str(tmp_path / "x.png")
    assert run("plot", "--study", study, "--id", "1", "--id", "2", "-o", out).code == 0
    assert paths(drawn[-1]) == [list(two[0].x)]
    assert run("plot", "--study", study, "--id", "1", "-o", out).code == 0
    assert paths(drawn[-1]) == []
    assert run("plot", "--study", study, "--what", "surface", "-o", out).code == 0
    assert paths(drawn[-1]) == [list(two[0].x)]
    ran = run("plot", "--study", study, "--id", "1", "--id", "3", "-o", out)
    assert ran.code == 2
    assert "B was projected on another plane" in ran.err


def test_a_checkpoint_has_one_colour_in_every_picture_of_a_study(
    tmp_path: Path, run, drawn: list[Figure]
) -> None:
    records = [make(name) for name in "abc" for make in (samples.eigenpairs, samples.profile)]
    study = str(filled(tmp_path / "s.db", *records))
    for what in ("eigs", "profile"):
        args = ("plot", "c", "b", "--study", study, "--what", what)
        assert run(*args, "-o", str(tmp_path / "x.png")).code == 0
        labels = dict(zip(*drawn[-1].axes[0].get_legend_handles_labels()[::-1], strict=True))
        lines = {name: getattr(labels[name], "lines", [labels[name]])[0] for name in "bc"}
        assert [lines[name].get_color() for name in "bc"] == ["#d55e00", "#009e73"]


def test_runs_of_two_folders_are_two_lines(here: Path, run, drawn: list[Figure]) -> None:
    for folder, first in (("adam", 1), ("sam", 4)):
        Path(folder).mkdir()
        for k in range(first, first + 3):
            interpolate(0.1 * k, f"{folder}/e{k}.pt")
    files = [str(path) for folder in ("adam", "sam") for path in sorted(Path(folder).iterdir())]
    assert run("eigs", *files, "--problem", "task.py", "-k", "1").code == 0
    assert run("plot", "--what", "sweep", "-o", "x.png").code == 0
    bars = {bars.get_label(): bars.lines[0] for bars in drawn[-1].axes[0].containers}
    x = {label: list(line.get_xdata()) for label, line in bars.items()}
    assert x == {"adam, λ1": [1, 2, 3], "sam, λ1": [4, 5, 6]}


def run_of_records(
    study: Study, run: str, n: int, *, data: str = "data-1", created: str = "2026-01-01T00:00:00"
) -> None:
    """Save eigenpairs of the n checkpoints of a run."""
    names = [f"{run}-epoch-{k}.pt" for k in range(n)]
    for k, name in enumerate(names):
        record = samples.eigenpairs(name, top=20.0 + k, k=1)
        origin = {"checkpoint_hash": name, "data_fingerprint": data, "created": created}
        study.save(
            dataclasses.replace(record, provenance=dataclasses.replace(record.provenance, **origin))
        )
    study.set_run(run, {name: k for k, name in enumerate(names)})


def test_of_a_run_the_last_checkpoint_is_shown_in_the_runs_colour(
    tmp_path: Path, run, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Study("landscape.db") as study:
        for name in ("sgd", "sam"):
            run_of_records(study, name, 12)
    ran = run("plot", "--what", "eigs", "-o", "x.png")
    assert "of each run the last checkpoint is shown" in ran.err
    shown = {bars.get_label(): bars[0].get_color() for bars in drawn[-1].axes[0].containers}
    assert list(shown) == ["sgd-epoch-11.pt", "sam-epoch-11.pt"]
    assert run("plot", "--what", "sweep", "-o", "x.png").err == ""
    axes = drawn[-1].axes[0]
    lines = {bars.get_label(): bars[0].get_color() for bars in axes.containers}
    assert list(lines) == ["sgd, λ1", "sam, λ1"]
    assert list(lines.values()) == list(shown.values())
    assert axes.get_xlabel() == "epoch"
    assert run("plot", "sam-epoch-3", "--what", "eigs", "-o", "x.png").err == ""
    assert [bars.get_label() for bars in drawn[-1].axes[0].containers] == ["sam-epoch-3.pt"]


def test_runs_on_other_data_are_left_out_and_named(
    tmp_path: Path, run, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Study("landscape.db") as study:
        run_of_records(study, "images", 3, created="2026-02-01T00:00:00")
        run_of_records(study, "words", 3, data="other")
    ran = run("plot", "--what", "sweep", "-o", "x.png")
    assert "left out, since they are of another model or other data: words;" in ran.err
    (bars,) = drawn[-1].axes[0].containers
    assert list(bars[0].get_ydata()) == [20.0, 21.0, 22.0]  # of the images, measured last
    names = [f"words-epoch-{k}" for k in range(3)]
    assert run("plot", *names, "--what", "sweep", "-o", "x.png").err == ""


def test_runs_of_h_and_of_its_preconditioned_kind_are_drawn_over_their_edges(
    tmp_path: Path, run, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Study("landscape.db") as study:
        for name, scale, edge in (("sgd", "none", 10.0), ("adam", "preconditioner", 1e4)):
            names = [f"{name}-step-{k}" for k in range(3)]
            for k, each in enumerate(names):
                record = samples.eigenpairs(each, top=edge * (0.5 + 0.1 * k), k=1)
                settings = {**record.settings, "scale": scale}
                origin = dataclasses.replace(record.provenance, checkpoint_hash=each)
                study.save(
                    dataclasses.replace(record, settings=settings, provenance=origin, edge=edge)
                )
            study.set_run(name, {each: k for k, each in enumerate(names)})
    assert run("plot", "--what", "sweep", "-o", "x.png").code == 0
    axes = drawn[-1].axes[0]
    assert axes.get_ylabel() == "λ1/edge"
    for bars in axes.containers:
        np.testing.assert_allclose(bars[0].get_ydata(), [0.5, 0.6, 0.7])
    assert run("plot", "adam", "--what", "sweep", "-o", "x.png").code == 0
    assert drawn[-1].axes[0].get_ylabel() == "eigenvalue λ of P⁻¹H"
    np.testing.assert_allclose(drawn[-1].axes[0].containers[0][0].get_ydata(), [5e3, 6e3, 7e3])


def test_a_surface_that_is_not_finished_can_be_looked_at(
    tmp_path: Path, run, drawn: list[Figure]
) -> None:
    whole = samples.surface("a", nx=5, ny=4)
    with Study(tmp_path / "s.db") as study:
        points = study.grid("surface", whole.provenance, whole.settings, shape=(5, 4))
        for i, j in ((0, 0), (2, 1), (4, 3)):
            points.record(i, j, {"loss": whole.loss[i, j], "loss_se": 0.1})
        (entry,) = study.entries()
        record = study.load_unfinished(entry.id)
        assert record.measured.sum() == 3
        assert (record.loss[2, 1], np.isnan(record.loss[1, 1])) == (whole.loss[2, 1], True)
    args = ("plot", "--study", str(tmp_path / "s.db"), "--id", str(entry.id), "--kind", "heatmap")
    assert run(*args, "-o", str(tmp_path / "x.png")).code == 0
    assert "Not finished: 3 of 20 points measured, the others blank" in samples.caption(drawn[-1])


def test_a_line_that_is_not_finished_can_be_looked_at(
    tmp_path: Path, run, drawn: list[Figure]
) -> None:
    whole = samples.line("a", n=9)
    bad = {2: np.nan}
    with Study(tmp_path / "s.db") as study:
        points = study.grid("line", whole.provenance, whole.settings, shape=(9, 1))
        for i in (0, 1, 2, 3, 5):
            points.record(i, 0, {"loss": bad.get(i, whole.loss[i]), "loss_se": 0.1})
        (entry,) = study.entries()
        record = study.load_unfinished(entry.id)
        assert list(record.is_measured.nonzero()[0]) == [0, 1, 2, 3, 5]
        with pytest.raises(StudyError, match=r"line 1 of a is not finished yet"):
            study.load(entry.id)
    args = ("plot", "--study", str(tmp_path / "s.db"), "--id", str(entry.id))
    assert run(*args, "-o", str(tmp_path / "x.png")).code == 0
    said = samples.caption(drawn[-1])
    assert "1 of 9 points not finite (1 NaN), marked × at the top" in said
    assert "Not finished: 5 of 9 points measured, the others blank" in said
    (axes,) = drawn[-1].axes
    assert axes.get_xlabel() == "x, in units of d"
    curve = axes.lines[0]
    shown = np.isfinite(curve.get_ydata())
    np.testing.assert_array_equal(curve.get_xdata()[shown], whole.x[[0, 1, 3, 5]])
    (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert list(crosses.get_xdata()) == [whole.x[2]]


def test_runs_are_drawn_on_surfaces_only(tmp_path: Path, run) -> None:
    study = str(filled(tmp_path / "s.db", samples.eigenpairs(), run_on(grid())))
    ran = run("plot", "--study", study, "--id", "1", "--id", "2", "-o", str(tmp_path / "x.png"))
    assert ran.code == 2
    assert "training runs are drawn on surfaces; 1 are none" in ran.err


@pytest.mark.parametrize("kind", ["contour", "contourf", "heatmap", "3d"])
@pytest.mark.parametrize("n", [1, 2])
def test_surfaces_are_drawn_in_the_kind_that_was_asked_for(
    tmp_path: Path, run, drawn: list[Figure], kind: str, n: int
) -> None:
    records = [samples.surface(name, nx=6, ny=5) for name in ("a", "b")[:n]]
    study = str(filled(tmp_path / "s.db", *records))
    args = ("plot", "--study", study, "--what", "surface", "--kind", kind)
    assert run(*args, "-o", str(tmp_path / "x.png")).code == 0
    reliefs = [axes for axes in drawn[-1].axes if axes.name == "3d"]
    assert len(reliefs) == (n if kind == "3d" else 0)
    ran = run(*args, "-o", str(tmp_path / "x.html"))
    assert ran.code == (0 if kind == "3d" else 2)
    assert kind == "3d" or "an interactive picture of a surface is a relief" in ran.err


def test_differences_and_areas(tmp_path: Path, run, drawn: list[Figure]) -> None:
    one, other = samples.surface("a", nx=6, ny=5), samples.surface("b", nx=6, ny=5, curvature=5)
    study = str(filled(tmp_path / "s.db", one, other, samples.surface("c", nx=4, ny=5)))
    out = str(tmp_path / "x.png")
    assert run("plot", "--study", study, "b", "a", "--what", "difference", "-o", out).code == 0
    args = ("--id", "1", "--id", "2", "--what", "difference", "--scale", "log-excess")
    assert run("plot", "--study", study, *args, "-o", out).code == 0
    first, second = (figure.axes[0].collections[0].get_array() for figure in drawn)
    np.testing.assert_allclose(first.ravel(), (other.loss - one.loss).T.ravel())
    np.testing.assert_allclose(second.ravel(), (one.loss - other.loss).T.ravel())  # equal L(w)
    ran = run("plot", "--study", study, "b", "a", "--what", "difference", "-o", out[:-3] + "html")
    assert (ran.code, "difference has no interactive picture" in ran.err) == (2, True)
    assert run("plot", "--study", study, "a", "b", "--what", "area", "-o", out).code == 0
    ran = run("plot", "--study", study, "--what", "difference", "-o", out)
    assert ran.code == 2
    assert "a difference takes two surfaces; got 3: a, b, c" in ran.err
    ran = run("plot", "--study", study, "a", "c", "--what", "difference", "-o", out)
    assert ran.code == 2
    assert "same coordinates" in ran.err


def moved(record, **origin):
    """The same record, measured elsewhere."""
    return dataclasses.replace(record, provenance=dataclasses.replace(record.provenance, **origin))


def test_a_difference_is_of_the_same_data_where_there_are_any(
    tmp_path: Path, run, drawn: list[Figure]
) -> None:
    one, other = samples.surface("a", nx=6, ny=5), samples.surface("b", nx=6, ny=5, curvature=5)
    held = {"split": "test", "data_fingerprint": "t", "created": "2027-01-01T00:00:00+00:00"}
    later = moved(other, **held)
    study = str(filled(tmp_path / "s.db", one, later))
    args = ("plot", "--study", study, "a", "b", "--what", "difference", "-o")
    ran = run(*args, str(tmp_path / "x.png"))
    assert ran.code == 1
    assert "a was measured on train data (data-1-t), b on test data (t)" in ran.err
    higher = dataclasses.replace(one, loss=one.loss + 1.0)
    filled(tmp_path / "s.db", dataclasses.replace(other, loss=other.loss + 2.0))
    assert run(*args, str(tmp_path / "x.png")).code == 0
    filled(tmp_path / "s.db", moved(higher, **{**held, "created": "2025-01-01"}))
    assert run(*args, str(tmp_path / "x.png")).code == 0
    for figure, expected in zip(
        drawn[-2:],
        (one.loss - other.loss - 2.0, higher.loss - other.loss),  # both on train, then on test
        strict=True,
    ):
        values = figure.axes[0].collections[0].get_array()
        np.testing.assert_allclose(values.ravel(), expected.T.ravel())


def test_an_older_checkpoint_of_the_same_name_is_not_taken_for_its_data(
    tmp_path: Path, run, drawn: list[Figure]
) -> None:
    one, old = (samples.surface(name, nx=6, ny=5) for name in ("a", "b"))
    held = {"split": "test", "data_fingerprint": "t"}
    new = moved(old, **held, checkpoint_hash="retrained", created="2025-06-01")
    old = moved(old, created="2025-01-01")
    study = str(filled(tmp_path / "s.db", one, old, new))
    args = ("plot", "--study", study, "a", "b", "--what", "difference")
    assert run(*args, "-o", str(tmp_path / "x.png")).code == 1


def random_line(line: object, seed: int, **settings: object) -> object:
    found = dataclasses.replace(line)  # type: ignore[type-var]
    d = {"kind": "random", "seed": seed, "digest": str(seed)}
    asked = {"direction": "random", "d": d, "x": found.x.tolist(), **settings}
    return dataclasses.replace(found, settings=asked)


def test_a_band_takes_the_random_lines_that_share_the_newest_x(
    tmp_path: Path, run, drawn: list[Figure]
) -> None:
    records = [
        *(random_line(line, k) for k, line in enumerate(bundle("a", n=11))),
        *(random_line(line, k) for k, line in enumerate(bundle("a"))),
        *(random_line(line, k) for k, line in enumerate(bundle("b"))),
        samples.line("a", n=9),  # along the worst case
    ]
    study = str(filled(tmp_path / "s.db", *records))
    out = str(tmp_path / "x.png")
    assert run("plot", "--study", study, "--what", "band", "-o", out).code == 0
    thin = [line for line in drawn[-1].axes[0].lines if line.get_linewidth() < 1]
    assert [len(line.get_xdata()) for line in thin] == [9] * 6
    ran = run("plot", "--study", study, "c", "--what", "band", "-o", out)
    assert (ran.code, "no finished line along a random direction of c" in ran.err) == (1, True)
    ids = [arg for k in (4, 5, 7, 8) for arg in ("--id", str(k))]
    assert run("plot", "--study", study, *ids, "--what", "band", "-o", out).code == 0
    ran = run("plot", "--study", study, "--id", "4", "--what", "area", "-o", out)
    assert ran.code == 2
    assert "unknown kind of record for --what area 'line'" in ran.err


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_records_without_a_picture_are_refused(tmp_path: Path, run, suffix: str) -> None:
    study = str(filled(tmp_path / "s.db", samples.evaluation(), samples.trained_curve()))
    for number, kind in (("1", "loss"), ("2", "curve")):
        ran = run("plot", "--study", study, "--id", number, "-o", str(tmp_path / f"x.{suffix}"))
        assert ran.code == 2
        assert f"a record of kind '{kind}' is a few numbers and has no picture" in ran.err


def test_what_is_not_there_is_said(tmp_path: Path, run) -> None:
    study = str(filled(tmp_path / "s.db", samples.eigenpairs("a")))
    out = str(tmp_path / "x.png")
    for what in ("difference", "area", "band", "trajectory", "surface", "path"):
        ran = run("plot", "--study", study, "a", "--what", what, "-o", out)
        assert ran.code in (1, 2)
        assert "measure" in ran.err
