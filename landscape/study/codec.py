"""Values into text and bytes that any SQLite client can hold, and back without a bit of loss."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from landscape.errors import InvalidArgumentError, one_of
from landscape.results import KINDS, Provenance

MAX_ARRAY_BYTES = 256 * 2**20

_FLOAT = "$float"
_DTYPES = frozenset(
    ["|b1", "|i1", "|u1"]
    + [f"<{kind}{size}" for kind in "iu" for size in (2, 4, 8)]
    + ["<f2", "<f4", "<f8", "<c8", "<c16"]
)
# Fields of the provenance that say what was measured, and of what computation.
PLACE = ("checkpoint_hash", "data_fingerprint", "split", "mode", "device", "dtype")
_IDENTITY = (*PLACE, "problem_fingerprint")


class ArrayNotStoredWarning(UserWarning):
    """An array is too large for the study file and was left out of it."""


def content_key(kind: str, provenance: Provenance, settings: Mapping[str, Any]) -> str:
    """Digest what identifies a measurement: its kind, what was measured, and how.

    The checkpoint's name, the versions and the time do not enter: a renamed copy is the same
    checkpoint, and asking again is asking for the same thing. Numbers are told apart as JSON tells
    them, so that ``1`` and ``1.0`` differ.

    Args:
        kind: kind of the result, a key of `landscape.results.KINDS`.
        provenance: what was measured.
        settings: what was asked for; plain JSON values, NumPy scalars among them.

    Returns:
        A SHA-256 digest, 64 hexadecimal digits.
    """
    one_of(kind, KINDS, what="kind of result")
    identity = {field: getattr(provenance, field) for field in _IDENTITY}
    if provenance.parameters:
        identity["parameters"] = provenance.parameters
    text = dumps({"kind": kind, **identity, "settings": settings}, canonical=True)
    return hashlib.sha256(text.encode()).hexdigest()


def dumps(value: Any, *, canonical: bool = False) -> str:
    """Write a value as valid, pure-ASCII JSON.

    A float that is not finite, which JSON lacks, becomes ``{"$float": "nan"}`` (or ``inf``,
    ``-inf``); a key that begins with a dollar sign gets a second one, so that nothing else reads
    as such a mark. Finite floats are written by repr, which is exact.

    >>> dumps({"rho": np.float64(0.05), "p": math.inf})
    '{"rho":0.05,"p":{"$float":"inf"}}'
    """
    plain = _plain(value, where="value")
    return json.dumps(plain, sort_keys=canonical, separators=(",", ":"), allow_nan=False)


def loads(text: str) -> Any:
    """Read what `dumps` wrote.

    >>> loads('{"rho":0.05,"p":{"$float":"inf"}}')
    {'rho': 0.05, 'p': inf}
    """
    return json.loads(text, object_hook=_unmarked)


def _plain(value: Any, *, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where=f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {
            (f"${key}" if key.startswith("$") else key): _plain(item, where=f"{where}[{key!r}]")
            for key, item in value.items()
        }
    msg = (
        f"{where} is of type {type(value).__name__}, which a study file cannot hold; expected a "
        "number, text, a boolean, None, or a list or mapping (with text keys) of these: "
        "convert it first, an array with .tolist()"
    )
    raise InvalidArgumentError(msg)


def _unmarked(item: dict[str, Any]) -> Any:
    if item.keys() == {_FLOAT}:
        return float(item[_FLOAT])
    return {key.removeprefix("$"): value for key, value in item.items()}


def printable(text: str) -> str:
    """Return a name as valid Unicode; the bytes of a file name that are not show as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def pack(name: str, array: npt.NDArray[Any]) -> tuple[str, str, bytes | None]:
    """Turn an array into raw little-endian bytes in C order."""
    array = np.asarray(array)
    little = array.dtype.newbyteorder("<")
    if little.str not in _DTYPES:
        msg = (
            f"the array {name} has dtype {array.dtype}, which a study file cannot hold; expected "
            "booleans, integers, or floats of at most 64 bits: convert it with .astype"
        )
        raise InvalidArgumentError(msg)
    shape = json.dumps(array.shape)
    if array.nbytes > MAX_ARRAY_BYTES:
        msg = (
            f"the array {name} takes {array.nbytes / 2**20:,.0f} MiB, more than the "
            f"{MAX_ARRAY_BYTES / 2**20:,.0f} MiB that a study file holds: it is left out and will "
            "read as an array of shape (0,); keep it in a file of its own if it is needed later"
        )
        warnings.warn(msg, ArrayNotStoredWarning, stacklevel=3)
        return little.str, shape, None
    return little.str, shape, array.astype(little, copy=False).tobytes()


def unpack(dtype: str, shape: str, data: bytes | None) -> npt.NDArray[Any]:
    """Build the array again that `pack` took apart."""
    if dtype not in _DTYPES:
        msg = f"unknown dtype {dtype!r}"
        raise ValueError(msg)
    if data is None:
        return np.empty(0, dtype)
    array: npt.NDArray[Any] = np.frombuffer(data, dtype).reshape(json.loads(shape)).copy()
    return array
