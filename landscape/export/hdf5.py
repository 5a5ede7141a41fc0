"""Lines and surfaces in the HDF5 layout of the classic loss-landscape tool, and out of it again.

The layout (Li et al. 2018, https://github.com/tomgoldstein/loss-landscape): ``xcoordinates`` of
shape (nx,); ``ycoordinates`` of shape (ny,), which a line lacks; ``train_loss`` (or ``test_loss``)
and ``train_acc``, the accuracy in percent; −1 marks what is not measured yet.

The classic tool fills and draws the values of a plane row by row with y fixed in a row, as
``meshgrid(x, y)`` lists the points: on a square grid, ``train_loss[j, i]`` is the loss at
(x[i], y[j]). Where nx ≠ ny it lists them in the same order but declares the shape (nx, ny), which
its own plots then refuse. We write the shape (ny, nx): the same numbers in the same order, and
every reader of the classic tool takes them as they are meant. We read both.

What the layout has no place for stands in the group ``landscape``: ``record``, a text of JSON with
the settings, the provenance and all other scalars; ``loss_se``; and ``metrics.…``, the accuracy
as a fraction among them. All arrays of a plane have the shape (ny, nx). Where no accuracy was
measured, the classic dataset is all NaN, because the classic plot of a line insists on it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from landscape.errors import InvalidArgumentError, StudyError, missing_dependency, one_of
from landscape.results import (
    Cost,
    FloatArray,
    Line,
    Provenance,
    Surface,
    from_record,
    to_record,
)
from landscape.study.codec import MAX_ARRAY_BYTES, dumps, loads

_OURS = "landscape"
_COORDINATES = {"x": "xcoordinates", "y": "ycoordinates"}
_LOSS, _ACCURACY = "_loss", "_acc"
_UNMEASURED = -1.0
_EXPECTED = (
    "a classic surface file holds xcoordinates, ycoordinates (a line does not), and train_loss or "
    "test_loss"
)


def hdf5_bytes(result: Line | Surface) -> bytes:
    """Return a line or surface as an HDF5 file in the classic layout."""
    h5py = _h5py("writing an HDF5 file")
    scalars, arrays = to_record(result)
    coordinates = {_COORDINATES[name]: arrays.pop(name) for name in ("x", "y") if name in arrays}
    loss = arrays.pop("loss")
    accuracy = arrays.get("metrics.accuracy", np.full(loss.shape, np.nan))
    split = _escaped(result.provenance.split)
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, values in coordinates.items():
            file[name] = values
        file[split + _LOSS] = loss.T
        file[split + _ACCURACY] = 100.0 * accuracy.T
        ours = file.create_group(_OURS)
        ours["record"] = dumps({"kind": result.kind, **scalars})
        for name, values in arrays.items():
            if values.size:
                # Bytes in place of booleans, which HDF5 has not.
                numbers = values.astype(np.uint8) if values.dtype == bool else values
                ours[_escaped(name)] = numbers.T
        for name, values in arrays.items():  # losses on other data at the same points
            other = name.removeprefix("metrics.").removesuffix(" loss")
            if name == f"metrics.{other} loss" and other != result.provenance.split:
                accuracy = arrays.get(f"metrics.{other} accuracy", np.full(values.shape, np.nan))
                file[_escaped(other) + _LOSS] = values.T
                file[_escaped(other) + _ACCURACY] = 100.0 * accuracy.T
    return stream.getvalue()


def import_hdf5(
    path: str | os.PathLike[str], *, name: str | None = None, split: str | None = None
) -> Line | Surface:
    """Read a line or surface from an HDF5 file in the classic layout; the module's text has it.

    A file that `landscape.export.export_result` wrote gives its record back as it was. Of another
    program's, what it does not say is empty or NaN: who measured what, the standard errors, the
    norms of the directions. Points marked −1, not measured, become NaN; the accuracy becomes the
    metric ``accuracy``, from 0 to 1; the loss at the checkpoint is that of the point at the origin,
    if there is one. Values of a plane are read in the order in which the classic tool writes them.

    Args:
        path: the file.
        name: the checkpoint's name; None: the one in the file, or the file's name without suffix.
        split: part of the data, where the file has losses on several (``train``, ``test``).

    Returns:
        The record: a surface if the file has ``ycoordinates``, else a line.

    Raises:
        StudyError: if the file cannot be read, or is not laid out like this.
        InvalidArgumentError: if it does not have losses on that part of the data, or has losses
            on several and none is named.
        MissingDependencyError: if h5py is not installed.
    """
    h5py = _h5py("reading an HDF5 file")
    source = Path(path)
    try:
        content = source.read_bytes()
    except OSError as error:
        msg = f"cannot read {str(source)!r}: {error.strerror or error}"
        raise StudyError(msg) from error
    digest = hashlib.sha256(content).hexdigest()
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            result = _Reader(source, file, h5py.Dataset).read(split, digest)
    except (OSError, RuntimeError) as error:
        msg = f"{str(source)!r} is no HDF5 file, or is damaged ({error}); {_EXPECTED}"
        raise StudyError(msg) from error
    if name is None:
        return result
    provenance = dataclasses.replace(result.provenance, checkpoint=name)
    return dataclasses.replace(result, provenance=provenance)


@dataclass(frozen=True)
class _Reader:
    """What is read of one open file; every complaint names it."""

    path: Path
    file: Any
    dataset: Any

    def read(self, split: str | None, digest: str) -> Line | Surface:
        split, coordinates = self._split(split), self._coordinates()
        if _OURS in self.file:
            return self._ours(split, coordinates)
        return self._foreign(split, coordinates, digest)

    def _split(self, split: str | None) -> str:
        splits = [_plain(key.removesuffix(_LOSS)) for key in self.file if key.endswith(_LOSS)]
        if not splits:
            self._refuse(f"has no losses (it holds {', '.join(self.file) or 'nothing'})")
        if split is None and _OURS in self.file:  # that of the record in the file
            with suppress(AttributeError, KeyError, TypeError, ValueError):
                split = str(loads(self.file[_OURS]["record"].asstr()[()])["provenance"]["split"])
        if split is not None:
            return one_of(split, splits, what=f"part of the data in {str(self.path)!r}:")
        if len(splits) > 1:
            msg = (
                f"{str(self.path)!r} holds losses on {' and '.join(splits)}: name one as the split"
            )
            raise InvalidArgumentError(msg)
        return splits[0]

    def _coordinates(self) -> dict[str, FloatArray]:
        names = ("x", "y") if _COORDINATES["y"] in self.file else ("x",)
        coordinates = {}
        for name in names:
            key = _COORDINATES[name]
            values = self._array(key)
            if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
                content = values if values.ndim == 1 else f"shape {values.shape}"
                self._refuse(f"has {key} of {content} in place of 2 or more finite numbers")
            if (np.diff(values) <= 0).any():
                self._refuse(f"has {key} that do not ascend ({values})")
            coordinates[name] = values
        return coordinates

    def _array(self, key: str) -> FloatArray:
        item = self.file.get(key)
        if item is None:
            self._refuse(f"has no dataset {key} (it holds {', '.join(self.file)})")
        if not isinstance(item, self.dataset) or item.dtype.kind not in "fiu":
            self._refuse(f"has something else than an array of numbers as {key}")
        if item.size * 8 > MAX_ARRAY_BYTES:
            self._refuse(f"has {item.size:,} numbers in {key}, more than a study holds")
        values: FloatArray = np.asarray(item[()])
        return values if values.dtype.kind == "f" else values.astype(np.float64)

    def _over(self, coordinates: Mapping[str, FloatArray]) -> Callable[[str], FloatArray]:
        """Return what reads an array over these coordinates, with its first index along x."""
        shape = tuple(values.size for values in coordinates.values())[::-1]

        def read(key: str) -> FloatArray:
            values = self._array(key)
            if values.shape not in {shape, shape[::-1]}:
                wanted = " or ".join(str(one) for one in dict.fromkeys((shape, shape[::-1])))
                self._refuse(f"has {key} of shape {values.shape} in place of {wanted}")
            # The order of the numbers is what counts, not the shape that is declared.
            return np.ascontiguousarray(values.reshape(shape).T)

        return read

    def _ours(self, split: str, coordinates: Mapping[str, FloatArray]) -> Line | Surface:
        read = self._over(coordinates)
        arrays = {**coordinates, "loss": read(_escaped(split) + _LOSS)}
        try:
            keys = [key for key in self.file[_OURS] if key != "record"]
            arrays |= {_plain(key): read(f"{_OURS}/{key}") for key in keys}
            if "measured" in arrays:
                arrays["measured"] = arrays["measured"].astype(bool)
            record = loads(self.file[_OURS]["record"].asstr()[()])
            result = from_record(record["kind"], record, arrays)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            msg = (
                f"the group {_OURS} in {str(self.path)!r} cannot be read ({error}): it was written "
                "by another version of landscape-sharpness, or is damaged; upgrade, or delete it "
                "from the file to import the classic part alone"
            )
            raise StudyError(msg) from error
        if not isinstance(result, Surface if "y" in coordinates else Line):
            self._refuse(f"has coordinates that do not fit its {result.kind}")
        return result

    def _foreign(
        self, split: str, coordinates: Mapping[str, FloatArray], digest: str
    ) -> Line | Surface:
        read = self._over(coordinates)
        loss = read(_escaped(split) + _LOSS)
        key = _escaped(split) + _ACCURACY
        percent = read(key) if key in self.file else None
        unmeasured = loss == _UNMEASURED
        metrics = {}
        if percent is not None:
            unmeasured &= percent == _UNMEASURED
            metrics["accuracy"] = np.where(unmeasured, np.nan, percent / 100.0)
        loss = np.where(unmeasured, np.nan, loss)
        axes = "plane" if "y" in coordinates else "direction"
        settings = {name: values.tolist() for name, values in coordinates.items()}
        origin = [np.flatnonzero(values == 0.0) for values in coordinates.values()]
        at_origin = loss[tuple(i[0] for i in origin)] if all(i.size for i in origin) else np.nan
        shared: dict[str, Any] = {
            **coordinates,
            axes: f"imported from {self.path.name}",
            "loss": loss,
            "loss_se": np.full(loss.shape, np.nan),
            "metrics": metrics,
            "origin_loss": float(at_origin),
            "settings": {"sha256": digest, **settings, axes: "imported"},
            "cost": Cost(),
            "provenance": _provenance(self.path, split),
        }
        if axes == "plane":
            return Surface(**shared, direction_norms=(np.nan, np.nan), cosine=np.nan)
        return Line(**shared, direction_norm=np.nan)

    def _refuse(self, complaint: str) -> NoReturn:
        msg = f"{str(self.path)!r} {complaint}; {_EXPECTED}"
        raise StudyError(msg)


def _provenance(path: Path, split: str) -> Provenance:
    digests = ("checkpoint_hash", "data_fingerprint", "problem_fingerprint")
    unknown: dict[str, Any] = dict.fromkeys((*digests, "mode", "device", "dtype", "created"), "")
    return Provenance(
        checkpoint=path.stem,
        split=split,
        n_parameters=0,
        n_examples=0,
        versions={"imported from": path.name},
        **unknown,
    )


def _escaped(name: str) -> str:
    # A slash would begin a group.
    return name.replace("%", "%25").replace("/", "%2F")


def _plain(name: str) -> str:
    return name.replace("%2F", "/").replace("%25", "%")


def _h5py(purpose: str) -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        missing = missing_dependency("h5py", extra="hdf5", purpose=purpose)
        raise missing from error
