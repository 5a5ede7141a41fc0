from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st

import landscape.study.claims as claims_module
import landscape.study.codec as codec
import landscape.study.file as file_module
from landscape.errors import InvalidArgumentError, NetworkFolderWarning, StudyError
from landscape.report.verdict import verdict
from landscape.results import (
    KINDS,
    Cost,
    Eigenpairs,
    Evaluation,
    Line,
    Provenance,
    Result,
    Sharpness,
    Surface,
)
from landscape.results.comparison import Measured
from landscape.study import (
    APPLICATION_ID,
    SCHEMA_VERSION,
    ArrayNotStoredWarning,
    Study,
    content_key,
)

ROOT = Path(__file__).parents[1]
NOBODY = 65534
PROVENANCE = Provenance(
    checkpoint="sgd.pt",
    checkpoint_hash="aaaaaaaa11111111",
    data_fingerprint="data",
    problem_fingerprint="problem",
    split="train",
    mode="eval",
    device="cpu",
    dtype="float64",
    n_parameters=3,
    n_examples=7,
    versions={"torch": "2.4"},
    created="2025-01-01T00:00:00+00:00",
)


def provenance(**changes: Any) -> Provenance:
    return dataclasses.replace(PROVENANCE, **changes)


def common(asked: Mapping[str, Any] | None = None, **origin: Any) -> dict[str, Any]:
    return {
        "settings": {"seed": 0} if asked is None else asked,
        "cost": Cost(forwards=2, gradients=1, seconds=0.125),
        "provenance": provenance(**origin),
    }


def an_evaluation(asked: Mapping[str, Any] | None = None, **origin: Any) -> Evaluation:
    return Evaluation(
        **common(asked, **origin),
        loss=0.1,
        loss_se=math.nan,
        gradient_norm=math.inf,
        metrics={"top.5": -0.0, "accuracy": 0.9, "$float": -math.inf},
    )


def a_sharpness(asked: Mapping[str, Any] | None = None, **origin: Any) -> Sharpness:
    return Sharpness(
        **common(asked, **origin),
        value=0.3,
        one_step=0.2,
        gap=1e-9,
        gradients=12,
        rho=0.05,
        p=math.inf,
        loss=0.1,
        norm=0.05,
        converged=True,
        epsilon=np.array([0.05, -0.05, 0.0], np.float32),
        starts=("gradient", "random 1"),
        start_values=np.array([0.3, math.nan]),
        start_gaps=np.array([1e-9, 0.5]),
    )


def eigenpairs(asked: Mapping[str, Any] | None = None, **origin: Any) -> Eigenpairs:
    return Eigenpairs(
        **common(asked, **origin),
        values=np.array([2.0, 1.0]),
        residuals=np.array([1e-8, 1e-7]),
        vectors=np.eye(3)[:2],
        matvecs=40,
        converged=False,
        method="lanczos",
    )


def a_line(asked: Mapping[str, Any] | None = None, **origin: Any) -> Line:
    return Line(
        **common(asked, **origin),
        x=np.linspace(-1, 1, 5),
        loss=np.array([math.inf, 2.0, 1.0, math.nan, -0.0]),
        loss_se=np.zeros(5),
        metrics={"top.5": np.arange(5.0), "accuracy": np.ones(5)},
        direction="filter-normalised random",
        direction_norm=2.5,
        origin_loss=1.0,
    )


def a_surface(asked: Mapping[str, Any] | None = None, **origin: Any) -> Surface:
    return Surface(
        **common(asked, **origin),
        x=np.linspace(-1, 1, 2),
        y=np.linspace(-1, 1, 3),
        loss=np.arange(6.0).reshape(3, 2).T,
        loss_se=np.full((2, 3), math.nan),
        plane="random",
        direction_norms=(1.0, 2.0),
        cosine=0.01,
        origin_loss=0.5,
    )


MAKERS = (
    an_evaluation,
    a_sharpness,
    samples.subset_sharpness,
    samples.profile,
    samples.stepwise,
    samples.blocks,
    samples.update_sharpness,
    samples.batch_sharpness,
    samples.training,
    samples.average,
    samples.flatness,
    eigenpairs,
    samples.trace,
    samples.density,
    a_line,
    a_surface,
    samples.path,
    samples.differences,
    samples.trained_curve,
    samples.trajectory,
    samples.diagnosis,
)


def same(got: Any, expected: Any) -> bool:
    """Equal to the bit, types included: -0.0 is not 0.0, and NaN equals a NaN of its own bits."""
    if type(got) is not type(expected):
        return False
    if isinstance(expected, np.ndarray):
        alike = (got.dtype, got.shape) == (expected.dtype, expected.shape)
        return alike and got.tobytes() == expected.tobytes()
    if isinstance(expected, float):
        return struct.pack("d", got) == struct.pack("d", expected)
    if isinstance(expected, Mapping):
        return list(got) == list(expected) and all(same(got[key], expected[key]) for key in got)
    if isinstance(expected, (list, tuple)):
        return len(got) == len(expected) and all(map(same, got, expected))
    if dataclasses.is_dataclass(expected):
        return same(vars(got), vars(expected))
    return bool(got == expected)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


@pytest.fixture
def study(path: Path) -> Iterator[Study]:
    with Study(path) as study:
        yield study


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that an unprivileged user can reach, unlike pytest's own when root runs it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Obey permissions, as root would not."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions of this system are not those of POSIX")
    user = os.geteuid()
    os.seteuid(NOBODY if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def python(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a Python of its own, with the study and this file's PROVENANCE imported."""
    head = (
        "import sys, time\nfrom landscape.results import *\nfrom landscape.study import Study\n"
        f"PROVENANCE = Provenance(**{dataclasses.asdict(PROVENANCE)!r})\npath = sys.argv[1]\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", head + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return output


# --- what goes in comes out


def test_same_tells_apart_what_equality_does_not() -> None:
    assert same(math.nan, math.nan)
    assert not same(0.0, -0.0)
    assert not same(1, 1.0)
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not same(np.zeros(2), np.zeros((2, 1)))
    assert not same(an_evaluation(), dataclasses.replace(an_evaluation(), loss=0.2))


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_each_kind_comes_back_to_the_bit(path: Path, make: Any) -> None:
    result: Result = make()
    with Study(path) as study:
        number = study.save(result)
    with Study(path, readonly=True) as study:
        assert same(study.load(number), result)
        found = study.find(result.kind, result.provenance, result.settings)
        assert found is not None
        assert same(found, result)


def test_every_kind_is_among_those_tested() -> None:
    assert {make().kind for make in MAKERS} == set(KINDS)


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(
        *(
            hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
            for dtype in ("<f8", "<f4", "<f2", ">f8", "<i8", "<i4", "|u1", "|b1", "<c16")
        )
    ),
    st.dictionaries(st.text(max_size=5), st.floats(), max_size=3),
)
def test_arrays_and_metrics_of_every_sort_come_back(
    values: np.ndarray[Any, Any], metrics: dict[str, float]
) -> None:
    native = values.astype(values.dtype.newbyteorder("<"))
    with tempfile.TemporaryDirectory() as folder, Study(Path(folder) / "study.db") as study:
        line = dataclasses.replace(a_line(), x=values, metrics={"a.b": values.T})
        loaded: Any = study.load(study.save(line))
        assert same(loaded.x, native)
        assert same(loaded.metrics, {"a.b": native.T.copy()})
        evaluation = dataclasses.replace(an_evaluation(), metrics=metrics)
        loaded = study.load(study.save(evaluation))
        # A NaN in JSON is a NaN without its payload.
        plain = {key: math.nan if math.isnan(each) else each for key, each in metrics.items()}
        assert same(loaded.metrics, plain)


@pytest.mark.parametrize(
    "view",
    [
        np.array([0x7FF8000000000123, 0xFFF0000000000001], "<u8").view("<f8"),  # NaN with payload
        np.array([-0.0, math.inf, -math.inf, 5e-324]),
        np.arange(24.0).reshape(4, 6)[::2, ::-3],
        np.empty((0, 3), np.float32),
        np.array(2.5),
    ],
    ids=["payload", "special", "strided", "empty", "scalar"],
)
def test_bits_and_layout_are_kept(study: Study, view: np.ndarray[Any, Any]) -> None:
    loaded: Any = study.load(study.save(dataclasses.replace(a_line(), x=view)))
    assert same(loaded.x, view.copy())
    assert loaded.x.flags.writeable


@pytest.mark.parametrize("dtype", ["O", "U3", "M8[s]", "g"])
def test_an_array_of_another_dtype_is_refused(study: Study, dtype: str) -> None:
    odd = dataclasses.replace(a_line(), x=np.zeros(2).astype(dtype))
    with pytest.raises(InvalidArgumentError, match=r"array x has dtype .*convert it with \.astype"):
        study.save(odd)
    assert study.entries() == []


def test_an_array_that_is_too_large_is_left_out(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "MAX_ARRAY_BYTES", 47)
    with pytest.warns(ArrayNotStoredWarning, match="array vectors takes") as caught:
        number = study.save(eigenpairs())
    assert Path(caught[0].filename) == Path(__file__)
    loaded: Any = study.load(number)
    assert same(loaded.vectors, np.empty(0))
    assert same(loaded.values, eigenpairs().values)


def test_saving_again_replaces_and_keeps_number_and_name(study: Study) -> None:
    first = study.save(a_line())
    other = study.save(an_evaluation())
    newer = dataclasses.replace(a_line(checkpoint="renamed.pt"), x=np.ones(2), metrics={})
    assert study.save(newer) == first != other
    assert same(study.load(first, "renamed.pt"), newer)
    assert study.load(first).name == "sgd.pt"
    assert [(entry.id, entry.name) for entry in study.entries()] == [
        (first, "sgd.pt"),
        (other, "sgd.pt"),
    ]


def test_entries_list_and_filter(study: Study) -> None:
    a = study.save(an_evaluation())
    b = study.save(
        a_surface({"n": (2, 3), "p": math.inf}, checkpoint="sam.pt", checkpoint_hash="b")
    )
    study.grid("line", PROVENANCE, {}, shape=(5, 1)).record(0, 0, {"loss": 1.0})
    first, second, third = study.entries()
    assert (first.id, first.kind, first.name, first.status) == (a, "loss", "sgd.pt", "complete")
    assert (first.created, first.split) == (PROVENANCE.created, "train")
    assert first.cost == "2 forward passes, 1 gradient in 0.1 s"
    assert (first.points_done, first.points_total) == (0, 0)
    assert second.settings == {"n": [2, 3], "p": math.inf}
    assert (third.status, third.cost, third.points_done, third.points_total) == (
        "partial",
        "",
        1,
        5,
    )
    assert [entry.id for entry in study.entries("surface")] == [b]
    assert [entry.id for entry in study.entries(checkpoint="sam.pt")] == [b]
    assert [entry.id for entry in study.entries(checkpoint="b")] == [b]
    assert study.entries("loss", "sam.pt") == []
    with pytest.raises(InvalidArgumentError, match=r"unknown kind of result 'surfaces' \(nearest"):
        study.entries("surfaces")


def test_delete_takes_arrays_and_points_along(study: Study, path: Path) -> None:
    number = study.save(a_line())
    study.grid("line", PROVENANCE, a_line().settings, shape=(5, 1)).record(0, 0, {"loss": 1.0})
    study.delete(number)
    assert study.find("line", PROVENANCE, a_line().settings) is None
    with closing(sqlite3.connect(path)) as plain:
        for table in ("measurements", "arrays", "points"):
            assert plain.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert study.save(an_evaluation()) != number, "a number must not come to mean something else"


def test_undecodable_file_names_are_kept(study: Study) -> None:
    name = os.fsdecode(b"caf\xe9.pt")
    number = study.save(an_evaluation(checkpoint=name))
    assert study.load(number).name == name
    assert [entry.name for entry in study.entries(checkpoint=name)] == [r"caf\udce9.pt"]
    assert study.comparison([name]).names == (r"caf\udce9.pt",)


# --- the key


def test_key_is_a_digest_of_canonical_json() -> None:
    key = content_key("loss", PROVENANCE, {"b": (1, 2.0), "a": np.float64(0.1)})
    assert key == content_key("loss", PROVENANCE, {"a": 0.1, "b": [np.int64(1), np.float32(2)]})
    assert len(key) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "copy.pt"},
        {"versions": {}},
        {"created": "later"},
        {"n_parameters": 4},
        {"n_examples": 8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_key_ignores_what_people_call_it(change: dict[str, Any]) -> None:
    assert content_key("loss", provenance(**change), {}) == content_key("loss", PROVENANCE, {})


@pytest.mark.parametrize(
    "field",
    [
        "checkpoint_hash",
        "data_fingerprint",
        "problem_fingerprint",
        "split",
        "mode",
        "device",
        "dtype",
    ],
)
def test_key_changes_with_each_part_of_the_identity(field: str) -> None:
    other = content_key("loss", provenance(**{field: "other"}), {})
    assert other != content_key("loss", PROVENANCE, {})


def test_key_changes_with_kind_and_settings() -> None:
    asked: list[dict[str, Any]] = [
        {},
        {"a": None},
        {"a": True},
        {"a": 1},
        {"a": 1.0},
        {"a": "1.0"},
        {"a": math.nan},
        {"a": "nan"},
        {"a": {"$float": "nan"}},
        {"a": {"$$float": "nan"}},
        {"a": math.inf},
        {"a": -math.inf},
        {"a": 0.0},
        {"a": -0.0},
        {"a": [1]},
        {"a": [[1]]},
    ]
    keys = [content_key("loss", PROVENANCE, each) for each in asked]
    keys.append(content_key("eigs", PROVENANCE, {}))
    assert len(set(keys)) == len(keys)


def test_a_kind_that_is_misspelt_is_not_silently_unknown() -> None:
    with pytest.raises(InvalidArgumentError, match=r"unknown kind of result 'lines'.*known: loss"):
        content_key("lines", PROVENANCE, {})


@pytest.mark.parametrize("value", [{1, 2}, np.zeros(2), {1: 2}, b"x", 1j, object()])
def test_settings_that_are_not_json_are_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"\['settings'\]\['a'\]\[1\] is of type"):
        content_key("loss", PROVENANCE, {"a": [0, value]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$float", "$$float", "$", "a"]) | st.text(), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_json_comes_back_as_it_was(value: Any) -> None:
    text = codec.dumps(value)
    json.loads(text, parse_constant=pytest.fail)  # Python's reader alone would accept NaN
    assert text.isascii()
    assert same(codec.loads(text), value)


# --- points


def test_points_are_resumed_after_reopening(path: Path) -> None:
    values = {
        "loss": math.nan,
        "loss_se": -0.0,
        "accuracy": math.inf,
        "tiny": 5e-324,
        "third": 1 / 3,
        "$float": -math.inf,
    }
    with Study(path) as study:
        grid = study.grid("surface", PROVENANCE, {"n": 2}, shape=(2, 1))
        assert grid.done == {}
        grid.record(np.int64(1), 0, values)
        assert study.find("surface", PROVENANCE, {"n": 2}) is None
    with Study(path) as study:
        grid = study.grid("surface", provenance(checkpoint="moved.pt"), {"n": 2}, shape=(2, 1))
        assert same(grid.done, {(1, 0): values})
        grid.record(0, 0, {"loss": np.float32(0.5)})
        assert set(grid.done) == {(0, 0), (1, 0)}
        assert len(study.entries()) == 1


def test_the_first_to_record_a_point_wins(study: Study) -> None:
    grid = study.grid("line", PROVENANCE, {}, shape=(3, 1))
    grid.record(1, 0, {"loss": 1.0})
    grid.record(1, 0, {"loss": 2.0})
    assert grid.done == {(1, 0): {"loss": 1.0}}


def test_saving_the_result_completes_the_points_and_keeps_them(study: Study) -> None:
    surface = a_surface()
    grid = study.grid("surface", surface.provenance, surface.settings, shape=(2, 3))
    for i in range(2):
        for j in range(3):
            grid.record(i, j, {"loss": surface.loss[i, j]})
    assert study.entries()[0].status == "partial"
    assert study.save(surface) == grid.id
    (entry,) = study.entries()
    assert (entry.status, entry.points_done, entry.points_total) == ("complete", 6, 6)
    assert len(study.grid("surface", surface.provenance, surface.settings, shape=(2, 3)).done) == 6
    found = study.find("surface", surface.provenance, surface.settings)
    assert found is not None
    assert same(found, surface)


@pytest.mark.parametrize("point", [(2, 0), (0, 1), (-1, 0)])
def test_points_outside_the_grid_are_refused(study: Study, point: tuple[int, int]) -> None:
    grid = study.grid("line", PROVENANCE, {}, shape=(2, 1))
    with pytest.raises(InvalidArgumentError, match="lies outside the grid of 2 × 1"):
        grid.record(*point, {"loss": 1.0})


def test_a_grid_has_one_shape(study: Study) -> None:
    study.grid("line", PROVENANCE, {}, shape=(2, 1))
    with pytest.raises(InvalidArgumentError, match=r"holds 2 × 1 points .* 3 × 1 were asked for"):
        study.grid("line", PROVENANCE, {}, shape=(3, 1))


def test_points_of_a_deleted_grid_cannot_be_recorded(study: Study) -> None:
    grid = study.grid("line", PROVENANCE, {}, shape=(2, 1))
    study.delete(grid.id)
    with pytest.raises(StudyError, match=r"was deleted from .* begin anew"):
        grid.record(0, 0, {"loss": 1.0})


def test_an_unfinished_line_cannot_be_loaded(study: Study) -> None:
    grid = study.grid("line", PROVENANCE, {}, shape=(2, 1))
    with pytest.raises(StudyError, match=r"the line 1 of sgd\.pt is not finished yet; run"):
        study.load(grid.id)


# --- comparison


def test_comparison_takes_the_newest_of_each_role(study: Study) -> None:
    study.save(an_evaluation(checkpoint="sam.pt", checkpoint_hash="b"))
    results = {
        "evaluation": an_evaluation(),
        "test": an_evaluation(split="test", data_fingerprint="held out"),
        "eigenpairs": eigenpairs(),
        "sharpness": a_sharpness(),
        "surface": a_surface(),
        "worst_line": a_line({"direction": "worst-case"}),
        "random_line": a_line({"direction": "random"}),
    }
    study.save(a_sharpness({"rho": 1}))
    for result in results.values():
        study.save(result)
    study.save(a_line({"direction": "interpolation"}))
    study.grid("surface", PROVENANCE, {"n": 3}, shape=(3, 3))
    comparison = study.comparison()
    assert comparison.names == ("sam.pt", "sgd.pt")
    for role, result in results.items():
        assert same(getattr(comparison["sgd.pt"], role), result), role
    assert comparison["sam.pt"].sharpness is None
    assert study.comparison(["sgd.pt", "sam.pt", "sgd.pt"]).names == ("sgd.pt", "sam.pt")
    study.save(a_sharpness({"rho": 1}))
    sharpness = study.comparison()["sgd.pt"].sharpness
    assert sharpness is not None
    assert sharpness.settings == {"rho": 1}, "measured again, it is the newest"


def test_the_loss_beside_the_others_is_that_of_their_data(study: Study) -> None:
    study.save(an_evaluation({"a": 0}))
    study.save(an_evaluation({"a": 1}, data_fingerprint="more", split="train2"))
    evaluation = study.comparison()["sgd.pt"].evaluation
    assert evaluation is not None
    assert evaluation.provenance.split == "train2"
    study.save(a_sharpness())
    evaluation = study.comparison()["sgd.pt"].evaluation
    assert evaluation is not None
    assert evaluation.provenance.split == "train"


ORIGINS = (
    {"split": "test", "data_fingerprint": "held out"},
    {"mode": "train"},
    {"dtype": "float32"},
    {"problem_fingerprint": "smoothed"},
)
SAM = {"checkpoint": "sam.pt", "checkpoint_hash": "b"}
SIDE_BY_SIDE = {
    "evaluation": an_evaluation,
    "eigenpairs": eigenpairs,
    "sharpness": a_sharpness,
    "surface": a_surface,
    "random_line": partial(a_line, {"direction": "random"}),
}


def origins_of(model: Measured) -> list[dict[str, Any]]:
    """Where the parts of a checkpoint differ from what they were first measured on, each once."""
    wanted = dataclasses.replace(PROVENANCE, checkpoint="", checkpoint_hash="")
    found = []
    for role, result in model.roles().items():
        if role == "test":
            continue
        part = dataclasses.replace(result.provenance, checkpoint="", checkpoint_hash="")
        apart = {k: v for k, v in vars(part).items() if v != getattr(wanted, k)}
        found += [] if apart in found else [apart]
    return found


@pytest.mark.parametrize("origin", ORIGINS, ids=lambda origin: next(iter(origin)))
def test_all_checkpoints_are_compared_on_the_source_of_the_newest_loss(
    study: Study, origin: dict[str, Any]
) -> None:
    for who in ({}, SAM):
        for make in SIDE_BY_SIDE.values():
            study.save(make(**who))
    for role in list(SIDE_BY_SIDE)[1:]:
        study.save(SIDE_BY_SIDE[role](**SAM, **origin))
    for model in study.comparison().models:
        assert set(model.roles()) == set(SIDE_BY_SIDE)
        assert origins_of(model) == [{}]
    assert len(study.comparison().table()[1:]) == len(study.comparison()["sgd.pt"].facts())
    if origin.get("split") == "test":
        return  # a loss on held-out data draws nothing to it
    for who in ({}, SAM):
        for make in SIDE_BY_SIDE.values():
            study.save(make(**who, **origin))
    assert [origins_of(model) for model in study.comparison().models] == [[origin], [origin]]


@pytest.mark.parametrize("origin", ORIGINS[:3], ids=lambda origin: next(iter(origin)))
def test_what_is_measured_elsewhere_only_is_kept_and_told(
    study: Study, origin: dict[str, Any]
) -> None:
    for who, elsewhere in (({}, {}), (SAM, origin)):
        study.save(an_evaluation(**who))
        study.save(eigenpairs(**who, **elsewhere))
        study.save(a_sharpness(**who))
    comparison = study.comparison()
    assert origins_of(comparison["sgd.pt"]) == [{}]
    assert origins_of(comparison["sam.pt"]) == [{}, origin]
    label = {"split": "data", "mode": "mode", "dtype": "dtype"}[next(iter(origin))]
    (row,) = [row for row in comparison.table() if row[0].endswith("(not the same)")]
    texts = {
        "data": ("7 train examples, data", "7 test examples, held out"),
        "mode": ("eval", "train"),
        "dtype": ("float64", "float32"),
    }[label]
    assert row == (f"{label} (not the same)", texts[0], f"{texts[0]}; λmax: {texts[1]}")


def test_computations_of_one_checkpoint_are_not_mixed(study: Study) -> None:
    of_sgd = {"loss": "CrossEntropyLoss()", "problem_fingerprint": "one"}
    of_sam = SAM | of_sgd | {"problem_fingerprint": "two"}  # other weights, another signature
    other = of_sgd | {"problem_fingerprint": "three"}  # the same weights in another model
    for who in (of_sgd, of_sam):
        for make in SIDE_BY_SIDE.values():
            study.save(make(**who))
    study.save(an_evaluation(**other))
    comparison = study.comparison()
    for model, identity in zip(comparison.models, ("one", "two"), strict=True):
        found = {part.provenance.problem_fingerprint for part in model.roles().values()}
        assert found == {identity}
    assert not any("not the same" in row[0] for row in comparison.table())
    study.save(eigenpairs(**other))
    (row,) = [row for row in study.comparison().table() if "not the same" in row[0]]
    assert row == ("model (not the same)", "one; loss, λmax: three", "two")
    (caution,) = [c for c in verdict(study.comparison()).cautions if "something else" in c]
    assert caution.startswith("Some numbers of sgd.pt are of a model or loss that computes")


def test_a_loss_in_words_tells_the_plain_sharpness_from_another(study: Study) -> None:
    plain, normal = ({"loss": name, "problem_fingerprint": name} for name in ("CE", "CE of logits"))
    study.save(an_evaluation(**plain))
    study.save(a_sharpness(**plain))
    study.save(a_sharpness(**normal))
    found = study.comparison()["sgd.pt"].sharpness
    assert found is not None
    assert found.provenance.loss == "CE"


def test_weights_with_two_names_are_one_checkpoint_under_the_first(study: Study) -> None:
    study.save(an_evaluation(checkpoint="best.pt"))
    study.save(eigenpairs(checkpoint="last.pt"))
    assert study.comparison().names == ("best.pt",)
    assert study.comparison()["best.pt"].eigenpairs is not None
    assert study.comparison(["last.pt"])["last.pt"].evaluation is not None
    assert [entry.name for entry in study.entries(checkpoint="last.pt")] == ["last.pt"] * 2


def test_a_loss_on_other_data_alone_moves_nothing(study: Study) -> None:
    for make in (an_evaluation, eigenpairs):
        for who in ({}, SAM):
            study.save(make(**who))
    study.save(an_evaluation(**SAM, split="val", data_fingerprint="val"))
    assert [origins_of(model) for model in study.comparison().models] == [[{}], [{}]]


def test_without_a_loss_the_newest_result_says_where_from(study: Study) -> None:
    for mode in ("train", "eval"):
        for who in ({}, SAM):
            study.save(eigenpairs(**who, mode=mode))
    study.save(eigenpairs(mode="train"))
    assert [origins_of(model) for model in study.comparison().models] == [[{"mode": "train"}]] * 2


def test_checkpoints_that_are_not_shown_choose_nothing(study: Study) -> None:
    for name in ("a", "b", "c"):
        for origin in ({"mode": "train"}, {}) if name == "c" else ({}, {"mode": "train"}):
            for make in (an_evaluation, eigenpairs):
                study.save(make(checkpoint=name, checkpoint_hash=name, **origin))
    assert origins_of(study.comparison()["a"]) == [{}]
    assert [origins_of(m) for m in study.comparison(["b", "a"]).models] == [[{"mode": "train"}]] * 2


def test_another_model_is_compared_on_the_same_data_in_the_same_mode(study: Study) -> None:
    for make in (an_evaluation, eigenpairs, a_sharpness):
        for origin in ({"mode": "train"}, {}):
            study.save(make(**SAM, **origin, problem_fingerprint="another model"))
        study.save(make(**SAM, mode="train", problem_fingerprint="another model"))
        study.save(make())
    found = study.comparison()
    assert origins_of(found["sam.pt"]) == [{"problem_fingerprint": "another model"}]
    assert origins_of(found["sgd.pt"]) == [{}]


def test_losses_on_held_out_data_are_of_one_set(study: Study) -> None:
    for who in ({}, SAM):
        study.save(an_evaluation(**who, split="test", data_fingerprint="held out"))
    study.save(an_evaluation(split="test", data_fingerprint="fewer"))
    study.save(an_evaluation(**SAM, split="test", data_fingerprint="fewer", mode="train"))
    study.save(an_evaluation(**SAM, split="test", data_fingerprint="held out"))
    tests = [model.test for model in study.comparison().models]
    assert [test and test.provenance.data_fingerprint for test in tests] == ["held out"] * 2


def test_checkpoints_that_share_a_name_are_kept_apart(study: Study) -> None:
    study.save(an_evaluation())
    assert study.comparison().names == ("sgd.pt",)
    study.save(a_sharpness(checkpoint_hash="bbbbbbbb2222"))
    comparison = study.comparison()
    assert comparison.names == ("sgd.pt@aaaaaaaa", "sgd.pt")
    assert comparison["sgd.pt"].evaluation is None
    assert comparison["sgd.pt@aaaaaaaa"].sharpness is None
    assert study.comparison(["sgd.pt"]).names == ("sgd.pt",)
    for last in "345":  # the short hashes may agree
        study.save(a_sharpness(checkpoint_hash=f"bbbbbbbb222{last}"))
    assert len(study.comparison().models) == 5


def test_comparison_of_nothing(study: Study) -> None:
    assert study.comparison().models == ()
    study.save(an_evaluation())
    with pytest.raises(InvalidArgumentError, match=r"checkpoint 'sgd' \(nearest: sgd\.pt\)"):
        study.comparison(["sgd"])


# --- what can be wrong with the file


def test_strings_and_paths_open_the_same_file(path: Path) -> None:
    with Study(str(path)) as study:
        study.save(an_evaluation())
    with Study(path, create=False) as study:
        assert len(study.entries()) == 1
    assert repr(study) == f"Study({str(path)!r})"


@pytest.mark.parametrize("name", ["a b%20?mode=memory#.db", "größe.db", ":memory:"])
def test_odd_file_names_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    Study(tmp_path / name).close()
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("options", [{"create": False}, {"readonly": True}])
def test_a_missing_file_is_not_created_by_reading(path: Path, options: dict[str, bool]) -> None:
    with pytest.raises(StudyError, match=r"there is no study file .*study\.db; measure something"):
        Study(path, **options)
    assert not path.exists()


@pytest.mark.parametrize("options", [{"create": False}, {"readonly": True}])
def test_an_empty_file_holds_no_study(path: Path, options: dict[str, bool]) -> None:
    path.touch()
    with pytest.raises(StudyError, match="is empty: nothing was measured into it yet"):
        Study(path, **options)
    assert path.stat().st_size == 0
    with Study(path) as study:
        assert study.entries() == []


def test_creation_that_was_killed_halfway_is_finished(path: Path) -> None:
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("PRAGMA journal_mode = WAL")
    with Study(path) as study:
        study.save(an_evaluation())


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("size", [1, 5, 511, 512, 100_000])
def test_a_file_of_another_sort_is_refused(path: Path, size: int, readonly: bool) -> None:
    path.write_bytes(b"PK" * size)
    with pytest.raises(StudyError, match=r"is not a study file \(nor any SQLite file\); name"):
        Study(path, readonly=readonly)
    assert path.read_bytes() == b"PK" * size
    assert os.listdir(path.parent) == ["study.db"]


@pytest.mark.parametrize("readonly", [False, True])
def test_a_database_of_another_program_is_left_alone(path: Path, readonly: bool) -> None:
    with closing(sqlite3.connect(path)) as plain:
        plain.execute("CREATE TABLE theirs (x)")
        plain.commit()
    before = path.read_bytes()
    with pytest.raises(StudyError, match="is a SQLite file of another program, not a study"):
        Study(path, readonly=readonly)
    assert path.read_bytes() == before


@pytest.mark.parametrize("readonly", [False, True])
def test_a_newer_schema_asks_for_an_upgrade(path: Path, readonly: bool) -> None:
    Study(path).close()
    with closing(sqlite3.connect(path)) as plain:
        plain.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    message = rf"has version {SCHEMA_VERSION + 1} of .* up to {SCHEMA_VERSION}; upgrade landscape-"
    with pytest.raises(StudyError, match=message):
        Study(path, readonly=readonly)


@pytest.mark.parametrize("readonly", [False, True])
def test_a_folder_is_not_a_study(tmp_path: Path, readonly: bool) -> None:
    with pytest.raises(
        StudyError, match=r"is a folder; name a file in it, such as .*landscape\.db"
    ):
        Study(tmp_path, readonly=readonly)


def test_the_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"the folder .*absent does not exist; create it first"):
        Study(tmp_path / "absent" / "study.db")


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match=r"the folder .*file does not exist"):
        Study(tmp_path / "file" / "study.db")


def test_a_name_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"cannot be used .*name another file|cannot be opened"):
        Study(tmp_path / ("x" * 300))


def test_a_damaged_file_says_how_to_rescue_it(path: Path) -> None:
    with Study(path) as study:
        for seed in range(50):
            study.save(a_line({"seed": seed}))
    content = bytearray(path.read_bytes())
    content[4096:] = random.Random(0).randbytes(len(content) - 4096)
    path.write_bytes(content)
    with (
        pytest.raises(StudyError, match=r"is damaged; .*\.recover"),
        Study(path, readonly=True) as study,
    ):
        study.entries()


@pytest.mark.parametrize("damage", ["shape = '[7]'", "dtype = 'O'", "data = 'text'"])
def test_a_record_that_makes_no_sense_is_named(study: Study, path: Path, damage: str) -> None:
    number = study.save(a_line())
    with closing(sqlite3.connect(path)) as plain:
        plain.execute(f"UPDATE arrays SET {damage} WHERE name = 'x'")
        plain.commit()
    with pytest.raises(StudyError, match=rf"the line {number} in .* cannot be read .*upgrade"):
        study.load(number)


def test_an_unknown_number(study: Study) -> None:
    for use in (study.load, study.delete):
        with pytest.raises(StudyError, match="holds no measurement 7; list those"):
            use(7)


def test_a_closed_study_says_so(path: Path) -> None:
    for readonly in (False, True):
        with Study(path, readonly=readonly) as study:
            pass
        study.close()
        with pytest.raises(StudyError, match=r"study\.db is closed; open it again"):
            study.entries()


def test_a_readonly_study_refuses_to_write(path: Path) -> None:
    with Study(path) as study:
        made = study.grid("line", PROVENANCE, {}, shape=(2, 1))
        made.record(0, 0, {"loss": 1.0})
    with Study(path, readonly=True) as study:
        with pytest.raises(StudyError, match="was opened for reading only; open it without"):
            study.save(an_evaluation())
        with pytest.raises(StudyError, match="was opened for reading only"):
            study.delete(made.id)
        with pytest.raises(StudyError, match="holds no points of this surface"):
            study.grid("surface", PROVENANCE, {}, shape=(2, 1))
        grid = study.grid("line", PROVENANCE, {}, shape=(2, 1))
        assert len(grid.done) == 1
        with pytest.raises(StudyError, match="was opened for reading only"):
            grid.record(1, 0, {"loss": 1.0})


def test_a_full_disk_loses_nothing(study: Study) -> None:
    kept = study.save(an_evaluation())
    grid = study.grid("line", PROVENANCE, {}, shape=(1000, 1))
    connection = study._file.connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    recorded = 0

    def record_all() -> None:
        nonlocal recorded
        for recorded in range(1000):
            grid.record(recorded, 0, {"loss": 0.1})

    with pytest.raises(
        StudyError, match=r"the disk is full.*nothing measured so far is lost: free"
    ):
        record_all()
    with pytest.raises(StudyError, match="the disk is full"):
        study.save(dataclasses.replace(a_line(), x=np.zeros(100_000)))
    assert recorded > 0
    assert len(grid.done) == recorded
    assert same(study.load(kept), an_evaluation())
    connection.execute("PRAGMA max_page_count = 1000000")
    grid.record(recorded, 0, {"loss": 0.1})
    assert len(grid.done) == recorded + 1


@pytest.mark.parametrize(
    ("reported", "message"),
    [
        ("disk I/O error", "the disk is full or failing: .*nothing measured so far is lost"),
        ("something else", r"cannot be used; .*\(SQLite: something else\)"),
    ],
)
def test_other_failures_of_the_disk(study: Study, reported: str, message: str) -> None:
    real = study._file.connection

    def fail(statement: str) -> None:
        raise sqlite3.OperationalError(reported)

    study._file.connection = SimpleNamespace(execute=fail, in_transaction=False)  # type: ignore[assignment]
    try:
        with pytest.raises(StudyError, match=message):
            study.entries()
    finally:
        study._file.connection = real


def test_an_interrupted_transaction_leaves_nothing(study: Study) -> None:
    def interrupt() -> None:
        with study._file.writing() as connection:
            connection.execute("INSERT INTO about VALUES ('x', 'y')")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    with study._file.reading() as connection:
        assert not connection.execute("SELECT * FROM about WHERE topic = 'x'").fetchall()
    study.save(an_evaluation())


def test_a_file_that_stays_locked_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "BUSY_SECONDS", 0.05)
    with (
        Study(path) as study,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StudyError, match=r"another process has been writing to .* wait until"):
            study.save(an_evaluation())


def test_another_thread_is_told_to_open_its_own(study: Study) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(StudyError, match="was opened in another thread; open it in the one"),
    ):
        pool.submit(study.entries).result()


# --- permissions


@pytest.mark.parametrize("file_mode", [0o444, 0o666])
def test_a_protected_study_is_read_and_left_alone(open_folder: Path, file_mode: int) -> None:
    path = open_folder / "study.db"
    with Study(path) as study:
        study.save(an_evaluation())
    path.chmod(file_mode)
    open_folder.chmod(0o555)
    with unprivileged():
        with Study(path, readonly=True) as study:
            assert len(study.entries()) == 1
            assert same(study.comparison()["sgd.pt"].evaluation, an_evaluation())
        with pytest.raises(StudyError, match=r"cannot be written: .*readonly=True|folder can be"):
            Study(path)
    assert os.listdir(open_folder) == ["study.db"]


def test_a_protected_file_in_a_folder_that_is_not(open_folder: Path) -> None:
    path = open_folder / "study.db"
    with Study(path) as study:
        study.save(an_evaluation())
    path.chmod(0o444)
    open_folder.chmod(0o777)
    with unprivileged(), Study(path, readonly=True) as study:
        assert len(study.entries()) == 1
    assert os.listdir(open_folder) == ["study.db"]


def test_a_protected_folder_takes_no_new_study(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    with (
        unprivileged(),
        pytest.raises(StudyError, match="cannot be opened or created; check that its folder"),
    ):
        Study(open_folder / "study.db")


def test_a_protected_study_is_read_while_another_user_writes(open_folder: Path) -> None:
    path = open_folder / "study.db"
    code = (
        "with Study(path) as study:\n"
        "    grid = study.grid('line', PROVENANCE, {}, shape=(9, 1))\n"
        "    grid.record(0, 0, {'loss': 1.0}); print('recorded', flush=True); sys.stdin.read()\n"
        "    grid.record(1, 0, {'loss': 1.0})"
    )
    with python(code, path) as writer:
        assert line_of(writer) == "recorded"
        for name in os.listdir(open_folder):
            (open_folder / name).chmod(0o444)
        open_folder.chmod(0o555)
        with unprivileged(), Study(path, readonly=True) as study:
            assert study.entries()[0].points_done == 1
        open_folder.chmod(0o755)
        for name in os.listdir(open_folder):
            (open_folder / name).chmod(0o644)
        finished(writer)
    with Study(path, readonly=True) as study:
        assert study.entries()[0].points_done == 2


def test_a_log_that_cannot_be_read_is_not_ignored(open_folder: Path, tmp_path: Path) -> None:
    with Study(tmp_path / "study.db") as study:
        study.save(an_evaluation())
        for name in ("study.db", "study.db-wal"):  # as copied from a run that was killed
            (open_folder / name).write_bytes((tmp_path / name).read_bytes())
    open_folder.chmod(0o555)
    with unprivileged(), pytest.raises(StudyError, match="copy what is there to one that can"):
        Study(open_folder / "study.db", readonly=True)


# --- what other programs see


def test_the_file_explains_itself(study: Study, path: Path) -> None:
    study.save(an_evaluation())
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert plain.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        about = dict(plain.execute("SELECT topic, text FROM about"))
        assert "landscape-sharpness" in about["what"]
        assert len(plain.execute(about["start"]).fetchall()) == 1
        for table in ("about", "measurements", "arrays", "points"):
            (sql,) = plain.execute(
                "SELECT sql FROM sqlite_master WHERE name = ?", (table,)
            ).fetchone()
            columns = [row[1] for row in plain.execute(f"PRAGMA table_info({table})")]
            assert all(f"    {column} " in sql for column in columns)
            assert sql.count(" -- ") >= len(columns) - 2


def test_the_study_needs_no_torch() -> None:
    code = "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    with python(code, "unused") as process:
        finished(process)


# --- several processes


def test_claims_keep_processes_apart_and_pass_on_when_one_dies(
    study: Study, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = study.grid("line", PROVENANCE, {}, shape=(6, 1)).claims
    blocks = [[(i, 0), (i + 1, 0)] for i in (0, 2, 4)]
    study.grid("line", PROVENANCE, {}, shape=(6, 1)).record_all({(i, 0): {} for i in (0, 1, 2)})
    assert claims.claim(blocks) == (blocks[1:], [])  # what is recorded in full is nobody's
    me, now = claims_module._claimant(), time.time()
    with python("sys.stdin.readline()", "unused") as process:
        others = [f"{me.split()[0]} {process.pid}", "elsewhere 1"]
        for other in others:
            monkeypatch.setattr(claims_module, "_claimant", lambda other=other: other)
            assert claims.claim(blocks) == ([], blocks[1:])
            monkeypatch.setattr(claims_module.time, "time", lambda: now + 100)
            assert claims.claim(blocks) == (blocks[1:], [])  # expired
            monkeypatch.setattr(claims_module.time, "time", lambda: now)
            monkeypatch.setattr(claims_module, "_claimant", lambda: me)
            assert claims.claim(blocks) == ([], blocks[1:])
            with study._file.writing() as connection:
                connection.execute("DELETE FROM claims")
            assert claims.claim(blocks) == (blocks[1:], [])
        with study._file.writing() as connection:
            connection.execute("UPDATE claims SET claimant = ?", (others[0],))
        assert claims.claim(blocks) == ([], blocks[1:])
        process.kill()
    assert claims.claim(blocks) == (blocks[1:], [])  # at once, not when it expires


def test_claims_are_put_off_while_a_process_works(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "EXPIRY_SECONDS", 0.3)
    grid = study.grid("line", PROVENANCE, {}, shape=(2, 1))
    with grid.claims.kept():
        grid.claims.claim([[(0, 0)]])
        time.sleep(1.0)
        monkeypatch.setattr(claims_module, "_claimant", lambda: "elsewhere 1")
        assert grid.claims.claim([[(0, 0)]]) == ([], [[(0, 0)]])
    time.sleep(0.4)
    assert grid.claims.claim([[(0, 0)]]) == ([[(0, 0)]], [])


def test_a_network_folder_is_warned_of_once_it_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "far away"
    folder.mkdir()
    place = str(folder).replace(" ", "\\040")
    mounts = f"/dev/vda / ext4 rw 0 0\nhost:/x {place} nfs4 rw 0 0\nproc /proc proc rw 0 0\n"
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self: mounts if str(self) == "/proc/mounts" else read(self)
    )
    Study(tmp_path / "near.db").close()
    with pytest.warns(NetworkFolderWarning, match=r"in a network folder \(nfs4\).* local disk"):
        Study(folder / "study.db").close()
    Study(folder / "study.db", readonly=True).close()


WRITER = """
with Study(path) as study:
    grid = study.grid("line", PROVENANCE, {}, shape=(10**6, 1))
    print("ready", flush=True)
    end, i = time.monotonic() + 1.0, 0
    while time.monotonic() < end:
        grid.record(i, 0, {"loss": i / 3})
        i += 1
    print(i)
"""


def test_reading_while_another_process_writes(path: Path) -> None:
    seen = []
    with python(WRITER, path) as writer:
        assert line_of(writer) == "ready"
        while writer.poll() is None:
            with Study(path, readonly=True) as study:
                done = study.grid("line", PROVENANCE, {}, shape=(10**6, 1)).done
            assert list(done) == [(i, 0) for i in range(len(done))]
            assert all(values == {"loss": i / 3} for (i, _), values in done.items())
            seen.append(len(done))
        written = int(finished(writer))
    assert seen == sorted(seen)
    with Study(path, readonly=True) as study:
        assert study.entries()[0].points_done == written > 0
    assert os.listdir(path.parent) == ["study.db"], "the last to close tidies up"


PARTNER = """
backwards, start = sys.argv[2] == "1", float(sys.argv[3])
while time.time() < start:
    pass
with Study(path) as study:
    grid = study.grid("surface", PROVENANCE, {}, shape=(6, 6))
    for n in reversed(range(36)) if backwards else range(36):
        grid.record(n // 6, n % 6, {"loss": float(n)})
    assert len(grid.done) == 36
"""


def test_processes_create_and_fill_one_study_together(path: Path) -> None:
    start = time.time() + 1.0
    with (
        python(PARTNER, path, 0, start) as first,
        python(PARTNER, path, 1, start) as second,
        python(PARTNER, path, 2, start) as third,
    ):
        for process in (first, second, third):
            finished(process)
    with Study(path, readonly=True) as study:
        (entry,) = study.entries()
        assert (entry.points_done, entry.points_total) == (36, 36)
        done = study.grid("surface", PROVENANCE, {}, shape=(6, 6)).done
    assert done == {(i, j): {"loss": float(6 * i + j)} for i in range(6) for j in range(6)}


MORTAL = """
import itertools
import numpy as np
study = Study(path)
grid = study.grid("line", PROVENANCE, {}, shape=(10**9, 1))
for i in itertools.count(len(grid.done)):
    grid.record(i, 0, {"loss": i / 7})
    print(i, flush=True)
    if i % 50 == 0:
        study.save(Line(
            settings={"i": i}, cost=Cost(), provenance=PROVENANCE, x=np.full(9000, i),
            loss=np.zeros(1), loss_se=np.zeros(1), direction="", direction_norm=1.0,
            origin_loss=0.0,
        ))
"""


def test_a_kill_loses_no_point_that_was_recorded(path: Path) -> None:
    delays = random.Random(20)
    reported: set[int] = set()
    for n_kills in range(1, 31):
        with python(MORTAL, path) as child:
            if n_kills % 3:
                reported.add(int(line_of(child)))
                time.sleep(delays.uniform(0.0, 0.15))
            else:  # while it starts, opens the file, or goes through the log of the one before
                time.sleep(delays.uniform(0.1, 0.25))
            child.send_signal(signal.SIGKILL)
            # Not by communicate, which leaves out what readline has read ahead.
            reported |= {int(line) for line in child.stdout.read().split()}
            child.wait()
        assert child.returncode == -signal.SIGKILL
        with closing(sqlite3.connect(path)) as plain:
            assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        check_survivors(path, reported, n_kills=n_kills)
    assert len(reported) > 20


def check_survivors(path: Path, reported: set[int], *, n_kills: int) -> None:
    with Study(path, readonly=True) as study:
        done = study.grid("line", PROVENANCE, {}, shape=(10**9, 1)).done
        assert reported <= {i for i, _ in done}
        assert len(done) <= len(reported) + n_kills, "one point in flight, or not yet reported"
        assert all(values == {"loss": i / 7} for (i, _), values in done.items())
        for entry in study.entries("line"):
            if entry.status == "complete":
                line: Any = study.load(entry.id)
                assert np.array_equal(line.x, np.full(9000, entry.settings["i"]))
