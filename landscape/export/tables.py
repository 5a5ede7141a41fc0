r"""Records as tables of comma-separated values, one row of names first.

Numbers are written by repr, which is exact; NaN and infinity read ``nan``, ``inf`` and ``-inf``;
what was not measured is an empty cell. Lines end in ``\n``, text is UTF-8.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from landscape.results import (
    AverageSharpness,
    Density,
    Diagnosis,
    Differences,
    Eigenpairs,
    Evaluation,
    Flatness,
    FloatArray,
    Line,
    LossPath,
    Profile,
    Result,
    Sharpness,
    StepwiseSharpness,
    SubsetSharpness,
    Surface,
    TraceEstimate,
    TrainedCurve,
    TrainingLog,
    Trajectory,
)

Columns = dict[str, list[Any]]


def table_bytes(result: Result) -> bytes:
    """Return a record as a table of comma-separated values.

    The columns, by kind of record; those of the further means over the examples bear their names:

    - ``line``: x, distance, loss, loss_se, means; a row for each point, as they were measured.
    - ``surface``: x, y, loss, loss_se, measured (1, or 0 where it was interpolated), means; a row
      for each point, y running fastest.
    - ``path``: t, loss, loss_se, means; a row for each point.
    - ``curve``: epoch, loss; the mean loss along a curve in each epoch of its training.
    - ``trajectory``: name, x, y, distance, off_plane, loss, loss_se, projected_loss,
      projected_loss_se; a row for each checkpoint.
    - ``eigs``: label, value, residual, error, data_error, gauss_newton.
    - ``trace``: layer, size, value, standard_error, low, high; the first row is of the whole, and
      its layer is empty.
    - ``density``: grid, density, low, high.
    - ``sharpness``: start, value, gap; where each start of the search ended.
    - ``m-sharpness``: subset, value, one_step, gap, loss; a row for each subset of the data.
    - ``profile``: rho, relative_rho, value, one_step, gap, norm, prediction, quadratic_maximum.
    - ``steps``: steps, rise, norm; a row for each climb.
    - ``average``: draw, rise_plus, rise_minus; a row for each draw of ε, tried with both signs.
    - ``flatness``: measure, value, standard_error; a row for each measure.
    - ``doctor``: check, verdict, finding, advice, number, value; a row for each number of a check.
    - ``differences``: measure, own, other, difference, standard_error, low, high.
    - ``training``: epoch, train_loss, lr, seconds; a row for each epoch.
    - ``loss``: loss, loss_se, gradient_norm, means; one row.
    """
    columns = _COLUMNS[result.kind](result)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return stream.getvalue().encode()


def named_metrics(metrics: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """Name each metric so that it is not mistaken for another column."""
    return {f"metrics.{name}" if name in taken else name: v for name, v in metrics.items()}


def _line(line: Line) -> Columns:
    columns = {
        "x": _floats(line.x),
        "distance": _floats(line.distance),
        "loss": _floats(line.loss),
        "loss_se": _floats(line.loss_se),
    }
    return columns | _metrics(line.metrics, columns)


def _surface(surface: Surface) -> Columns:
    columns: Columns = {
        "x": _floats(np.repeat(surface.x, surface.y.size)),
        "y": _floats(np.tile(surface.y, surface.x.size)),
        "loss": _floats(surface.loss),
        "loss_se": _floats(surface.loss_se),
        "measured": [int(value) for value in surface.is_measured.ravel()],
    }
    return columns | _metrics(surface.metrics, columns)


def _eigenpairs(pairs: Eigenpairs) -> Columns:
    n = len(pairs.values)
    return {
        "label": pairs.labels(),
        "value": _floats(pairs.values),
        "residual": _floats(pairs.residuals),
        "error": _floats(pairs.errors) or [""] * n,
        "data_error": _floats(pairs.data_errors) or [""] * n,
        "gauss_newton": _floats(pairs.gauss_newton) or [""] * n,
    }


def _trace(trace: TraceEstimate) -> Columns:
    return {
        "layer": ["", *trace.layers],
        "size": [trace.provenance.n_parameters, *(int(size) for size in trace.layer_sizes)],
        "value": _floats([trace.value, *trace.layer_values]),
        "standard_error": _floats([trace.standard_error, *trace.layer_standard_errors]),
        "low": _floats([trace.low, *trace.layer_low]),
        "high": _floats([trace.high, *trace.layer_high]),
    }


def _density(density: Density) -> Columns:
    names = ("grid", "density", "low", "high")
    return {name: _floats(getattr(density, name)) for name in names}


def _sharpness(sharpness: Sharpness) -> Columns:
    return {
        "start": list(sharpness.starts),
        "value": _floats(sharpness.start_values),
        "gap": _floats(sharpness.start_gaps),
    }


def _subset_sharpness(sharpness: SubsetSharpness) -> Columns:
    return {
        "subset": list(range(1, sharpness.values.size + 1)),
        "value": _floats(sharpness.values),
        "one_step": _floats(sharpness.one_steps),
        "gap": _floats(sharpness.gaps),
        "loss": _floats(sharpness.losses),
    }


def _profile(profile: Profile) -> Columns:
    return {
        "rho": _floats(profile.rhos),
        "relative_rho": _floats(profile.relative_rhos),
        "value": _floats(profile.values),
        "one_step": _floats(profile.one_steps),
        "gap": _floats(profile.gaps),
        "norm": _floats(profile.norms),
        "prediction": _floats(profile.predictions),
        "quadratic_maximum": _floats(profile.quadratic_maxima),
    }


def _average(average: AverageSharpness) -> Columns:
    return {
        "draw": list(range(1, len(average.rises) + 1)),
        "rise_plus": _floats(average.rises[:, 0]),
        "rise_minus": _floats(average.rises[:, 1]),
    }


def _flatness(flatness: Flatness) -> Columns:
    columns = flatness.columns()
    return {
        "measure": list(columns),
        "value": _floats([value for value, _ in columns.values()]),
        "standard_error": _floats([error for _, error in columns.values()]),
    }


def _diagnosis(diagnosis: Diagnosis) -> Columns:
    rows = [
        (check, name, repr(float(value)) if name else "")
        for check in diagnosis.checks
        for name, value in (check.numbers or {"": 0.0}).items()
    ]
    return {
        "check": [check.name for check, _, _ in rows],
        "verdict": [check.verdict for check, _, _ in rows],
        "finding": [check.finding for check, _, _ in rows],
        "advice": [check.advice for check, _, _ in rows],
        "number": [name for _, name, _ in rows],
        "value": [value for _, _, value in rows],
    }


def _evaluation(evaluation: Evaluation) -> Columns:
    names = ("loss", "loss_se", "gradient_norm")
    columns = {name: _floats([getattr(evaluation, name)]) for name in names}
    return columns | _metrics(evaluation.metrics, columns)


def _differences(found: Differences) -> Columns:
    names = ("own", "other", "difference", "standard_error", "low", "high")
    columns: Columns = {name: _floats(getattr(found, name)) for name in names}
    return {"measure": list(found.names), **columns}


def _steps(found: StepwiseSharpness) -> Columns:
    columns = {"rise": _floats(found.rises), "norm": _floats(found.norms)}
    return {"steps": [int(k) for k in found.steps], **columns}


def _training(log: TrainingLog) -> Columns:
    columns = {name: _floats(getattr(log, name)) for name in ("train_loss", "lr", "seconds")}
    return {"epoch": [int(epoch) for epoch in log.epochs], **columns}


def _path(path: LossPath) -> Columns:
    columns = {name: _floats(getattr(path, name)) for name in ("t", "loss", "loss_se")}
    return columns | _metrics(path.metrics, columns)


def _curve(curve: TrainedCurve) -> Columns:
    return {"epoch": list(range(1, curve.losses.size + 1)), "loss": _floats(curve.losses)}


def _trajectory(trajectory: Trajectory) -> Columns:
    names = ("x", "y", "distances", "off_plane", "loss", "loss_se")
    columns = {name: _floats(getattr(trajectory, name)) for name in names}
    columns["distance"] = columns.pop("distances")
    projected = ("projected_loss", "projected_loss_se")
    columns |= {name: _floats(getattr(trajectory, name)) for name in projected}
    return {"name": list(trajectory.names), **columns}


def _metrics(metrics: Mapping[str, Any], taken: Collection[str]) -> Columns:
    return {name: _floats(values) for name, values in named_metrics(metrics, taken).items()}


def _floats(values: FloatArray | Iterable[float] | float) -> list[str]:
    return [repr(float(value)) for value in np.ravel(values)]  # type: ignore[arg-type]


_COLUMNS: Mapping[str, Any] = {
    "line": _line,
    "surface": _surface,
    "eigs": _eigenpairs,
    "trace": _trace,
    "density": _density,
    "sharpness": _sharpness,
    "m-sharpness": _subset_sharpness,
    "profile": _profile,
    "steps": _steps,
    "average": _average,
    "flatness": _flatness,
    "doctor": _diagnosis,
    "loss": _evaluation,
    "training": _training,
    "path": _path,
    "differences": _differences,
    "curve": _curve,
    "trajectory": _trajectory,
}
