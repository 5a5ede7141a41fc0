"""Results taken apart into JSON values and arrays, and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from landscape.results.averages import AverageSharpness, Flatness
from landscape.results.base import Cost, Provenance, Result, Signature
from landscape.results.blocks import BlockSpectra
from landscape.results.diagnoses import Check, Diagnosis
from landscape.results.evaluations import Differences, Evaluation
from landscape.results.paths import LossPath, TrainedCurve
from landscape.results.sharpness import Profile, Sharpness, StepwiseSharpness, SubsetSharpness
from landscape.results.spectra import Density, Eigenpairs, TraceEstimate
from landscape.results.stability import BatchSharpness, UpdateSharpness
from landscape.results.surfaces import Line, Surface
from landscape.results.training import TrainingLog, Trajectory

KINDS: Mapping[str, type[Result]] = {
    cls.kind: cls
    for cls in (
        *(Evaluation, Sharpness, Eigenpairs, Line, Surface),
        *(TrainingLog, Density, TraceEstimate),
        *(Profile, SubsetSharpness, StepwiseSharpness, AverageSharpness, Flatness),
        *(BlockSpectra, UpdateSharpness, BatchSharpness),
        *(LossPath, TrainedCurve, Trajectory),
        *(Differences, Diagnosis),
    )
}
"""Every kind of record, in the order in which a report shows them.

A kind is its class alone: its columns are `Result.table`, its rows in the terminal `Result.rows`,
its part of a report has its ``heading``, its part of a comparison is its ``role``, and its picture
is the function ``plot_KIND`` (``explore_KIND``) of `landscape.plots`.
"""


def to_record(result: Result) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Split a record into scalar fields, as JSON values, and array fields by dotted name."""
    scalars: dict[str, Any] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for item in dataclasses.fields(result):
        value = getattr(result, item.name)
        if isinstance(value, np.ndarray):
            arrays[item.name] = value
        elif isinstance(value, (Cost, Provenance)):
            scalars[item.name] = dataclasses.asdict(value)
        elif isinstance(value, tuple) and value and isinstance(value[0], Check):
            scalars[item.name] = [dataclasses.asdict(check) for check in value]
        elif isinstance(value, Mapping) and any(isinstance(v, np.ndarray) for v in value.values()):
            arrays |= {f"{item.name}.{key}": array for key, array in value.items()}
        else:
            scalars[item.name] = value
    return scalars, arrays


def from_record(
    kind: str, scalars: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> Result:
    """Build a record of a kind again from what `to_record` split it into."""
    cls = KINDS[kind]
    values: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        nested = {
            key.split(".", 1)[1]: array
            for key, array in arrays.items()
            if key.startswith(f"{item.name}.")
        }
        if nested:
            values[item.name] = nested
        elif item.name in arrays:
            values[item.name] = arrays[item.name]
        elif item.name in scalars:
            values[item.name] = _typed(item.name, scalars[item.name])
    return cls(**values)


def provenance_from(value: Mapping[str, Any]) -> Provenance:
    """Build a provenance again from its fields."""
    numbers = value.get("signature")
    signature = numbers and Signature(**{**numbers, "losses": tuple(numbers["losses"])})
    return Provenance(**{**value, "signature": signature})


def _typed(name: str, value: Any) -> Any:
    if name == "cost":
        return Cost(**value)
    if name == "provenance":
        return provenance_from(value)
    if name == "checks":
        return tuple(Check(**check) for check in value)
    return tuple(value) if isinstance(value, list) else value
