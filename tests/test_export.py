"""Records in files of other programs, and classic surface files in a study."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

from landscape.errors import (
    InvalidArgumentError,
    LandscapeError,
    MissingDependencyError,
    StudyError,
)
from landscape.export import FORMATS, export_result, import_hdf5
from landscape.results import KINDS, Line, Surface, from_record, to_record
from landscape.study import Study
from landscape.study.codec import loads

NX, NY = 5, 3


def tilted(nx=NX, ny=NY, **changes) -> Surface:
    """A surface on which no two points agree, so that a transposition shows; with NaN and ±inf."""
    surface = samples.surface(nx=nx, ny=ny, y_reach=0.5)
    loss = np.sqrt(surface.x[:, None] + 3) + 10 * surface.y[None, :] ** 3 / 3
    loss[0, 1], loss[-1, 0], loss[1, -1] = np.nan, np.inf, -np.inf
    metrics = {"accuracy": 1 / (3 + np.arange(nx * ny).reshape(nx, ny)), "top/5 %": -loss}
    return dataclasses.replace(surface, loss=loss, loss_se=loss / 7, metrics=metrics, **changes)


def bent() -> Line:
    line = samples.line(n=7)
    loss = line.loss.copy()
    loss[0], loss[-1] = np.nan, np.inf
    return dataclasses.replace(line, loss=loss, metrics={"accuracy": 1 / (3 + np.arange(7))})


RECORDS = {
    "line": bent(),
    "surface": tilted(),
    "eigs": samples.both_ends(),
    "trace": samples.trace(layers=("conv1", "a, b", 'say "x"')),
    "density": samples.density(),
    "sharpness": samples.sharpness(),
    "m-sharpness": samples.subset_sharpness(),
    "profile": samples.profile(),
    "steps": samples.stepwise(),
    "blocks": samples.blocks(),
    "update-sharpness": samples.update_sharpness(),
    "batch-sharpness": samples.batch_sharpness(),
    "average": samples.average(),
    "flatness": samples.flatness(),
    "doctor": samples.diagnosis(),
    "loss": samples.evaluation(),
    "training": samples.training(),
    "path": samples.path(),
    "differences": samples.differences(),
    "curve": samples.trained_curve(),
    "trajectory": samples.trajectory(),
}


def same(one, other) -> bool:
    """Whether two records are equal to the bit, NaN included."""
    scalars, arrays = to_record(one)
    others, other_arrays = to_record(other)
    return (
        type(one) is type(other)
        and repr(scalars) == repr(others)
        and arrays.keys() == other_arrays.keys()
        and all(bits(arrays[name]) == bits(other_arrays[name]) for name in arrays)
    )


def bits(array) -> tuple:
    return array.dtype.str, array.shape, array.tobytes()


def test_two_records_that_differ_in_one_bit_are_not_the_same() -> None:
    loss = tilted().loss.copy()
    loss[2, 2] = np.nextafter(loss[2, 2], np.inf)
    assert same(tilted(), tilted())
    assert not same(tilted(), dataclasses.replace(tilted(), loss=loss))
    assert not same(tilted(), dataclasses.replace(tilted(), cosine=0.0041))
    assert not same(tilted(), bent())


def test_there_is_a_sample_of_every_kind_of_record() -> None:
    assert RECORDS.keys() == KINDS.keys()
    assert all(record.table() for record in RECORDS.values())


# CSV


def table(result, path: Path) -> tuple[list[str], list[dict[str, str]]]:
    export_result(result, path)
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    return list(reader.fieldnames or ()), rows


def column(rows, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def unsigned_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.nan, values)  # text knows no NaN below zero


def test_csv_of_a_surface_has_every_point_to_the_bit(tmp_path: Path) -> None:
    surface = tilted()
    names, rows = table(surface, tmp_path / "s.csv")
    assert names == ["x", "y", "loss", "loss_se", "measured", "accuracy", "top/5 %"]
    assert len(rows) == NX * NY
    for k, row in enumerate(rows):
        i, j = divmod(k, NY)
        assert (float(row["x"]), float(row["y"])) == (surface.x[i], surface.y[j])
    for name, values in {
        "loss": surface.loss,
        "loss_se": surface.loss_se,
        **surface.metrics,
    }.items():
        assert bits(column(rows, name).reshape(NX, NY)) == bits(unsigned_nan(values))


def test_csv_of_a_line(tmp_path: Path) -> None:
    line = bent()
    names, rows = table(line, tmp_path / "l.csv")
    assert names == ["x", "distance", "loss", "loss_se", "accuracy"]
    for name in ("x", "distance", "loss", "loss_se"):
        assert bits(column(rows, name)) == bits(getattr(line, name))


def test_csv_of_eigenpairs(tmp_path: Path) -> None:
    pairs = RECORDS["eigs"]
    names, rows = table(pairs, tmp_path / "e.csv")
    assert names == ["label", "value", "residual", "error", "data_error", "gauss_newton"]
    assert [row["label"] for row in rows] == pairs.labels()
    assert bits(column(rows, "value")) == bits(pairs.values)
    assert bits(column(rows, "residual")) == bits(pairs.residuals)
    assert bits(column(rows, "data_error")) == bits(pairs.data_errors)
    assert {row["error"] for row in rows} == {""}  # not measured


def test_csv_of_a_trace_begins_with_the_whole(tmp_path: Path) -> None:
    trace = RECORDS["trace"]
    names, rows = table(trace, tmp_path / "t.csv")
    assert names == ["layer", "size", "value", "standard_error", "low", "high"]
    assert [row["layer"] for row in rows] == ["", *trace.layers]
    assert [row["size"] for row in rows] == ["77754", "100", "200", "300"]
    assert column(rows, "value").tolist() == [trace.value, *trace.layer_values]
    assert column(rows, "high").tolist() == [trace.high, *trace.layer_high]


def test_csv_of_a_density_a_sharpness_and_a_loss(tmp_path: Path) -> None:
    density, sharpness, loss = (RECORDS[kind] for kind in ("density", "sharpness", "loss"))
    names, rows = table(density, tmp_path / "d.csv")
    for name in ("grid", "density", "low", "high"):
        assert bits(column(rows, name)) == bits(getattr(density, name))
    assert len(names) == 4
    _, rows = table(sharpness, tmp_path / "s.csv")
    assert [row["start"] for row in rows] == list(sharpness.starts)
    assert column(rows, "value").tolist() == sharpness.start_values.tolist()
    _, (row,) = table(loss, tmp_path / "l.csv")
    assert row == {
        "loss": "0.05",
        "loss_se": "0.002",
        "gradient_norm": "0.012",
        "accuracy": "0.98",
    }


def test_a_metric_does_not_hide_another_column(tmp_path: Path) -> None:
    line = dataclasses.replace(bent(), metrics={"loss": np.zeros(7)})
    names, rows = table(line, tmp_path / "l.csv")
    assert names == ["x", "distance", "loss", "loss_se", "metrics.loss"]
    assert bits(column(rows, "loss")) == bits(line.loss)


def test_csv_is_plain(tmp_path: Path) -> None:
    content = export_result(bent(), tmp_path / "l.csv").read_bytes()
    assert content.startswith(b"x,distance,loss,")
    assert content.endswith(b"\n")
    assert b"\r" not in content
    assert b",inf," in content


# NumPy


@pytest.mark.parametrize("kind", KINDS)
def test_npz_holds_the_whole_record_without_pickles(kind: str, tmp_path: Path) -> None:
    path = export_result(RECORDS[kind], tmp_path / "r.npz")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    record = loads(str(arrays.pop("record")))
    assert same(from_record(record["kind"], record, arrays), RECORDS[kind])


# HDF5


@pytest.mark.parametrize("record", [tilted(), tilted(4, 4), bent()], ids=["5x3", "4x4", "line"])
@pytest.mark.parametrize("suffix", ["h5", "hdf5", "H5"])
def test_hdf5_gives_back_what_it_was_given(record, suffix: str, tmp_path: Path) -> None:
    assert same(import_hdf5(export_result(record, tmp_path / f"r.{suffix}")), record)


@given(shape=st.tuples(st.integers(2, 6), st.integers(2, 6)), split=st.text(max_size=8))
def test_hdf5_of_any_shape_and_split(tmp_path_factory, shape, split: str) -> None:
    surface = tilted(*shape)
    split = "".join(c for c in split if c.isprintable())
    provenance = dataclasses.replace(surface.provenance, split=split)
    surface = dataclasses.replace(surface, provenance=provenance)
    path = tmp_path_factory.mktemp("any") / "s.h5"
    assert same(import_hdf5(export_result(surface, path)), surface)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_classic_tool_finds_its_layout(split: str, tmp_path: Path) -> None:
    surface = dataclasses.replace(tilted(), provenance=samples.provenance(split=split))
    with h5py.File(export_result(surface, tmp_path / "s.h5")) as file:
        x, y = file["xcoordinates"][:], file["ycoordinates"][:]
        z, accuracy = file[f"{split}_loss"][:], file[f"{split}_acc"][:]
    across, along = np.meshgrid(x, y)  # as the classic tool draws contours
    assert across.shape == along.shape == z.shape == accuracy.shape == (NY, NX)
    for place in np.ndindex(NY, NX):
        i, j = (
            int(np.flatnonzero(surface.x == across[place])[0]),
            int(np.flatnonzero(surface.y == along[place])[0]),
        )
        assert np.array_equal(z[place], surface.loss[i, j], equal_nan=True)
        assert accuracy[place] == 100 * surface.metrics["accuracy"][i, j]
    with h5py.File(tmp_path / "s.h5") as file:
        record = json.loads(file["landscape/record"].asstr()[()])
    assert record["provenance"]["split"] == split


def test_a_classic_line_without_accuracy(tmp_path: Path) -> None:
    line = dataclasses.replace(bent(), metrics={})
    path = export_result(line, tmp_path / "l.h5")
    with h5py.File(path) as file:
        assert "ycoordinates" not in file
        assert file["train_loss"].shape == (7,)
        assert np.isnan(file["train_acc"][:]).all()
    assert same(import_hdf5(path), line)


# What the classic tool writes


def rise(x, y):
    return 0.3 + x**2 + 3 * (y - 0.2) ** 2 + 0.5 * x * y


def classic(path: Path, nx: int, ny: int, *, unmeasured: int = 0) -> Path:
    """A surface file, filled in the way of the classic tool: point k of the mesh into place k."""
    x, y = np.linspace(-1, 1, nx), np.linspace(-0.5, 1, ny)
    across, along = (mesh.ravel() for mesh in np.meshgrid(x, y))
    loss, accuracy = -np.ones((nx, ny)), -np.ones((nx, ny))
    for k in range(nx * ny - unmeasured):
        loss.ravel()[k] = rise(across[k], along[k])
        accuracy.ravel()[k] = 100.0 * k / (nx * ny)
    with h5py.File(path, "w") as file:
        file["dir_file"] = "directions.h5"
        file["xcoordinates"], file["ycoordinates"] = x, y
        file["train_loss"], file["train_acc"] = loss, accuracy
    return path


@pytest.mark.parametrize(("nx", "ny"), [(5, 4), (3, 7), (5, 5)])
def test_a_classic_file_is_read_as_it_is_meant(nx: int, ny: int, tmp_path: Path) -> None:
    path = classic(tmp_path / "resnet.h5", nx, ny, unmeasured=2)
    surface = import_hdf5(path)
    assert isinstance(surface, Surface)
    expected = rise(surface.x[:, None], surface.y[None, :])
    expected[-2:, -1] = np.nan
    assert np.array_equal(surface.loss, expected, equal_nan=True)
    assert surface.metrics["accuracy"][1, 0] == pytest.approx(1 / (nx * ny), rel=1e-15)
    assert np.isnan(surface.metrics["accuracy"][-2:, -1]).all()
    assert np.isnan(surface.loss_se).all()
    assert surface.loss_se.shape == surface.loss.shape == (nx, ny)
    assert surface.plane == "imported from resnet.h5"
    assert surface.provenance.checkpoint == "resnet"
    assert surface.provenance.split == "train"
    assert surface.provenance.versions == {"imported from": "resnet.h5"}
    assert surface.provenance.checkpoint_hash == surface.provenance.mode == ""


def test_a_classic_line_and_its_origin(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 51)
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["xcoordinates"] = x
        file["test_loss"] = (x - 0.1) ** 2
    line = import_hdf5(tmp_path / "l.h5", name="resnet56")
    assert isinstance(line, Line)
    assert line.loss.tolist() == ((x - 0.1) ** 2).tolist()
    assert line.origin_loss == line.loss[25]
    assert (line.name, line.provenance.split, line.metrics) == ("resnet56", "test", {})
    assert np.isnan(line.direction_norm)


def test_a_loss_of_minus_one_that_was_measured_stays(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["xcoordinates"] = [0.5, 1.0, 1.5]
        file["train_loss"], file["train_acc"] = [-1.0, -1.0, 2.0], [50.0, -1.0, 25.0]
    line = import_hdf5(tmp_path / "l.h5")
    assert np.array_equal(line.loss, [-1.0, np.nan, 2.0], equal_nan=True)
    assert np.array_equal(line.metrics["accuracy"], [0.5, np.nan, 0.25], equal_nan=True)
    assert np.isnan(line.origin_loss)
    ours = dataclasses.replace(bent(), loss=-np.ones(7), metrics={})
    assert (import_hdf5(export_result(ours, tmp_path / "o.h5")).loss == -1).all()


def test_the_split_is_chosen(tmp_path: Path) -> None:
    path = classic(tmp_path / "s.h5", 3, 4)
    with h5py.File(path, "a") as file:
        file["test_loss"] = file["train_loss"][:] + 1
    with pytest.raises(InvalidArgumentError, match="losses on test and train: name one"):
        import_hdf5(path)
    with pytest.raises(InvalidArgumentError, match=r"'tset' .*nearest: test.*known: test, train"):
        import_hdf5(path, split="tset")
    test = import_hdf5(path, split="test")
    assert np.array_equal(test.loss, import_hdf5(path, split="train").loss + 1)
    assert test.metrics == {}


def lacking(name):
    def change(file):
        del file[name]

    return change


def holding(name, values):
    def change(file):
        file.pop(name, None)
        file[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lacking("xcoordinates"),
            "has no dataset xcoordinates .it holds .*train_loss, ycoordinates.; a classic",
        ),
        (lacking("train_loss"), "has no losses .it holds dir_file, train_acc, xcoordinates"),
        (
            holding("train_loss", np.ones((5, 5))),
            r"of shape \(5, 5\) in place of \(4, 5\) or \(5, 4",
        ),
        (holding("train_acc", np.ones(20)), r"has train_acc of shape \(20,\)"),
        (lacking("ycoordinates"), r"train_loss of shape \(5, 4\) in place of \(5,\)"),
        (holding("xcoordinates", np.ones((5, 1))), r"xcoordinates of shape \(5, 1\) in place of 2"),
        (holding("xcoordinates", [0.0, np.nan, 1, 2, 3]), "xcoordinates of .*nan.* in place of 2"),
        (holding("xcoordinates", [1.0]), "in place of 2 or more finite numbers"),
        (holding("ycoordinates", [1.0, 2, 2, 3]), "ycoordinates that do not ascend"),
        (holding("xcoordinates", "abc"), "something else than an array of numbers as xcoord"),
        (holding("landscape/record", "{}"), "group landscape in .* cannot be read .'kind'"),
        (holding("landscape", 3.0), "group landscape in .* cannot be read"),
    ],
)
def test_what_is_not_laid_out_like_this_is_refused(change, words: str, tmp_path: Path) -> None:
    path = classic(tmp_path / "s.h5", 5, 4)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(StudyError, match=words):
        import_hdf5(path)


def test_a_line_that_became_a_surface_is_refused(tmp_path: Path) -> None:
    path = export_result(bent(), tmp_path / "l.h5")
    with h5py.File(path, "a") as file:
        for name in ("train_loss", "landscape/loss_se", "landscape/metrics.accuracy"):
            holding(name, np.ones((2, 7)))(file)
        file["ycoordinates"] = [0.0, 1.0]
    with pytest.raises(StudyError, match=r"coordinates that do not fit its line|cannot be read"):
        import_hdf5(path)


def test_arrays_too_large_for_a_study_are_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.create_dataset("xcoordinates", shape=(2**40,), chunks=(1024,), dtype="f8")
        file["train_loss"] = [1.0]
    with pytest.raises(StudyError, match="1,099,511,627,776 numbers in xcoordinates"):
        import_hdf5(tmp_path / "s.h5")


def test_no_hdf5_file(tmp_path: Path) -> None:
    (tmp_path / "s.h5").write_text("x,y\n")
    with pytest.raises(StudyError, match="is no HDF5 file, or is damaged"):
        import_hdf5(tmp_path / "s.h5")
    whole = export_result(tilted(), tmp_path / "t.h5").read_bytes()
    (tmp_path / "t.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StudyError, match="is no HDF5 file, or is damaged"):
        import_hdf5(tmp_path / "t.h5")
    with pytest.raises(StudyError, match=r"cannot read .*none.h5.: No such file"):
        import_hdf5(tmp_path / "none.h5")


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = classic(tmp_path / "s.h5", 5, 4)
    monkeypatch.setitem(sys.modules, "h5py", None)
    install = r"needs the package h5py.*pip install 'landscape-sharpness\[hdf5\]'"
    with pytest.raises(MissingDependencyError, match=f"reading an HDF5 file {install}"):
        import_hdf5(path)
    with pytest.raises(MissingDependencyError, match=f"writing an HDF5 file {install}"):
        export_result(tilted(), tmp_path / "new.h5")
    assert not (tmp_path / "new.h5").exists()


# VTK


def parse_vtk(content: bytes) -> tuple[tuple[int, ...], np.ndarray, dict[str, np.ndarray]]:
    """Read a legacy binary structured grid: its dimensions, points, and values at the points."""
    stream = io.BytesIO(content)

    def words() -> list[str]:
        return stream.readline().decode("ascii").split()

    def doubles(n: int) -> np.ndarray:
        values = np.frombuffer(stream.read(8 * n), ">f8").astype(float)
        assert stream.read(1) == b"\n"
        return values

    assert words() == ["#", "vtk", "DataFile", "Version", "3.0"]
    title = stream.readline()
    assert len(title) <= 256
    assert words() == ["BINARY"]
    assert words() == ["DATASET", "STRUCTURED_GRID"]
    _, *dimensions = words()
    _, count, _ = words()
    n = int(count)
    points = doubles(3 * n).reshape(n, 3)
    assert words() == ["POINT_DATA", count]
    assert words() == ["SCALARS", "loss", "double", "1"]
    assert words() == ["LOOKUP_TABLE", "default"]
    arrays = {"loss": doubles(n)}
    _, _, n_fields = words()
    for _ in range(int(n_fields)):
        name, components, tuples, _ = words()
        assert (components, tuples) == ("1", count)
        arrays[name] = doubles(n)
    assert stream.read() == b""
    return tuple(map(int, dimensions)), points, arrays


def test_vtk_holds_the_surface_the_right_way_round(tmp_path: Path) -> None:
    surface = tilted(plane="ε\nBINARY\n" + 300 * "x")
    dimensions, points, arrays = parse_vtk(export_result(surface, tmp_path / "s.vtk").read_bytes())
    assert dimensions == (NX, NY, 1)
    assert list(arrays) == ["loss", "loss_se", "accuracy", "top/5%20%25"]
    finite = surface.loss[np.isfinite(surface.loss)]
    for k, (x, y, z) in enumerate(points):
        i, j = k % NX, k // NX  # x runs fastest in VTK
        assert (x, y) == (surface.x[i], surface.y[j])
        raw = surface.loss[i, j]
        assert np.array_equal(arrays["loss"][k], raw, equal_nan=True)
        assert np.array_equal(arrays["loss_se"][k], surface.loss_se[i, j], equal_nan=True)
        assert arrays["accuracy"][k] == surface.metrics["accuracy"][i, j]
        assert z == (raw if np.isfinite(raw) else finite.min() if raw < 0 else finite.max())


def test_vtk_of_a_surface_without_a_finite_point(tmp_path: Path) -> None:
    surface = dataclasses.replace(tilted(), loss=np.full((NX, NY), np.nan), metrics={})
    _, points, arrays = parse_vtk(export_result(surface, tmp_path / "s.vtk").read_bytes())
    assert (points[:, 2] == 0).all()
    assert np.isnan(arrays["loss"]).all()


# Any format


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_record_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    one, two = (export_result(tilted(), tmp_path / f"{n}{suffix}").read_bytes() for n in "12")
    assert one == two


@pytest.mark.parametrize("name", ["s.txt", "s", "csv", "s.csv.gz"])
def test_unknown_suffixes_are_refused_and_the_known_ones_listed(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"\.csv, \.npz, \.h5, \.hdf5, \.vtk"):
        export_result(tilted(), tmp_path / name)


@pytest.mark.parametrize(("kind", "suffix"), [("eigs", ".h5"), ("line", ".vtk"), ("loss", ".vtk")])
def test_a_record_that_does_not_fit_the_format_is_refused(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"kind '{kind}': write it to \.csv or \.npz"):
        export_result(RECORDS[kind], tmp_path / f"r{suffix}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_unwritable_paths(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(LandscapeError, match="does not exist"):
        export_result(tilted(), tmp_path / "none" / f"s{suffix}")
    (tmp_path / f"s{suffix}").mkdir()
    with pytest.raises(LandscapeError, match="a folder of that name is in the way"):
        export_result(tilted(), tmp_path / f"s{suffix}")


# The command line


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with a record of every kind, in the working directory."""
    monkeypatch.chdir(tmp_path)
    with Study("landscape.db") as opened:
        for record in RECORDS.values():
            opened.save(record)
    return tmp_path


def test_export_writes_one_record(study: Path, run) -> None:
    ran = run("export", "2", "-o", "s.h5")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "The surface 2 of model.pt is in s.h5.\n"
    assert same(import_hdf5("s.h5"), RECORDS["surface"])


def test_export_writes_several_records(study: Path, run) -> None:
    ran = run("export", "1", "2", "5", "-o", "r-{id}.csv")
    assert ran.code == 0
    assert sorted(path.name for path in study.glob("r-*")) == ["r-1.csv", "r-2.csv", "r-5.csv"]
    assert Path("r-5.csv").read_text().startswith("grid,density,low,high\n")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("1", "2", "-o", "r.csv"), 2, "put {id} into the name"),
        (("2", "-o", "r.xlsx"), 2, "end it in .csv, .npz, .h5, .hdf5, .vtk"),
        (("2", "1", "-o", "r-{id}.vtk"), 2, "holds records of kind surface, and this one is of"),
        (("99", "-o", "r.csv"), 1, "holds no measurement 99"),
        (("2", "-o", "none/r.csv"), 1, "the folder"),
        (("-o", "r.csv"), 2, "Missing argument"),
        (("2",), 2, "Missing option '--output'"),
        (("2", "-o", "r.csv", "--study", "none.db"), 1, "there is no study file none.db"),
    ],
)
def test_export_refuses(study: Path, run, args: tuple[str, ...], code: int, words: str) -> None:
    ran = run("export", *args)
    assert ran.code == code
    assert words in ran.err
    assert list(study.glob("r*")) == []


def test_import_puts_a_classic_surface_where_plot_finds_it(study: Path, run) -> None:
    for name, ny in (("one", 3), ("two", 4)):
        classic(study / f"{name}.h5", 5, ny, unmeasured=1)
        args = ("--study", "classic.db", "--name", f"resnet {name}")
        ran = run("import", f"{name}.h5", *args)
        assert (ran.code, ran.err) == (0, "")
    for words in ("resnet two: surface", "1 of 20 points not finite", "Stored as number"):
        assert words in ran.out
    assert "resnet one" in run("list", "--study", "classic.db").out
    for what in ("contrast", "surface"):
        for suffix in ("png", "html"):
            ran = run("plot", "--what", what, "--study", "classic.db", "-o", f"{what}.{suffix}")
            assert (ran.code, ran.err) == (0, "")
    assert run("report", "--study", "classic.db", "-o", "r.html").code == 0
    assert run("show", "1", "--study", "classic.db").code == 0


def test_a_classic_line_is_drawn_too(study: Path, run) -> None:
    with h5py.File("l.h5", "w") as file:
        file["xcoordinates"], file["train_loss"] = [-1.0, 0.0, 1.0, 2.0], [4.0, 0.5, 2.0, -1.0]
    ran = run("import", "l.h5", "--study", "classic.db")
    assert (ran.code, ran.err) == (0, "")
    assert "1 of 4 points not finite" in ran.out
    ran = run("plot", "--id", "1", "--study", "classic.db", "-o", "l.png")
    assert (ran.code, ran.err) == (0, "")


def test_import_tells_files_apart_by_content(study: Path, run) -> None:
    for name, unmeasured in (("one", 0), ("two", 1), ("copy", 0)):
        classic(study / f"{name}.h5", 5, 4, unmeasured=unmeasured)
    numbers = [
        run("import", f"{name}.h5", "--study", "c.db", "--name", "resnet").out.split()[-3]
        for name in ("one", "two", "copy")
    ]
    assert numbers == ["1", "2", "1"]


def test_what_was_exported_comes_back_as_it_was(study: Path, run) -> None:
    run("export", "2", "-o", "s.h5")
    assert run("import", "s.h5", "--study", "other.db").code == 0
    with Study("other.db", readonly=True) as other:
        assert same(other.load(1), RECORDS["surface"])


def test_import_refuses(study: Path, run) -> None:
    (study / "x.h5").write_text("nothing")
    for file, words in (("x.h5", "is no HDF5 file"), ("none.h5", "No such file")):
        ran = run("import", file, "--study", "new.db")
        assert ran.code == 1
        assert words in ran.err
    classic(study / "s.h5", 5, 4)
    assert run("import", "s.h5", "--study", "new.db", "--split", "test").code == 2
    assert not Path("new.db").exists()


def test_neither_verb_imports_torch(study: Path) -> None:
    classic(study / "c.h5", 5, 4)
    code = """
import sys
from landscape.cli import main
def call(*args):
    try: main(args)
    except SystemExit as end: assert not end.code, args
call('export', '--help')
call('import', '--help')
assert not {'matplotlib', 'h5py'} & set(sys.modules)
for suffix in ('csv', 'npz', 'h5', 'vtk'): call('export', '2', '-o', 'r.' + suffix)
call('import', 'c.h5')
assert not {'torch', 'safetensors'} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=study)


def test_an_export_that_would_overwrite_is_refused(here: Path, run) -> None:
    run("eigs", "a.pt", "--problem", "task.py")
    assert run("export", "1", "-o", "a.csv").code == 0
    Path("a.csv").write_text("mine")
    ran = run("export", "1", "-o", "a.csv")
    assert ran.code == 2
    assert "a.csv is there already" in ran.err
    assert Path("a.csv").read_text() == "mine"
    assert run("export", "1", "-o", "a.csv", "--overwrite").code == 0
    assert Path("a.csv").read_text() != "mine"


def test_held_out_losses_stand_beside_in_the_classic_layout(tmp_path):
    plain = tilted()
    columns = {
        "test loss": plain.loss + 1,
        "test loss_se": plain.loss,
        "test accuracy": plain.loss / 90,
    }
    measured = np.arange(plain.loss.size).reshape(plain.loss.shape) % 2 == 0
    record = dataclasses.replace(
        plain, metrics=dict(plain.metrics) | columns, measured=measured, tolerance=0.1
    )
    path = tmp_path / "s.h5"
    export_result(record, path)
    with h5py.File(path) as file:
        assert bits(file["test_loss"][()]) == bits((plain.loss + 1).T)
        assert bits(file["test_acc"][()]) == bits((100.0 * (plain.loss / 90)).T)
        assert bits(file["train_loss"][()]) == bits(plain.loss.T)
    back = import_hdf5(path)
    assert back.provenance.split == "train"
    assert back.measured.dtype == np.bool_
    assert back.measured.tolist() == measured.tolist()
    assert back.metrics.keys() == record.metrics.keys()
