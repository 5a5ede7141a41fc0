"""What a measurement returns: frozen records of plain NumPy values with their evidence.

Every record holds the values, the evidence for them (residual, gap or standard error), the
settings that were asked for, what it cost, and where it came from. Records know nothing of
networks, files or pictures: they travel from the measurement to the study file, and from there to
plots and reports. `Result.plot` and `Result.explore` are the one door out, opened at the call.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from landscape.wording import number, with_error

FloatArray = npt.NDArray[np.floating[Any]]
R = TypeVar("R", bound="Result")

KINDS: Mapping[str, type[Result]]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a measurement spent, in passes over the whole data set, and in seconds.

    Attributes:
        forwards: loss evaluations without derivative.
        gradients: loss and gradient together.
        hvps: Hessian-vector products.
        seconds: wall-clock time.
    """

    forwards: int = 0
    gradients: int = 0
    hvps: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [
            f"{count:,} {name}{'' if count == 1 else 's'}"
            for count, name in (
                (self.forwards, "forward pass"),
                (self.gradients, "gradient"),
                (self.hvps, "HVP"),
            )
            if count
        ]
        passes = ", ".join(parts).replace("passs", "passes") or "no passes"
        return f"{passes} in {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number came from; with the settings, enough to measure it again.

    Attributes:
        checkpoint: the name that people read (a file name, or the name given to the problem).
        checkpoint_hash: digest of the weights and buffers that were measured.
        data_fingerprint: digest of the batches that were measured.
        problem_fingerprint: digest of the loss, its metrics and the mode of the layers.
        split: which part of the data (``train``, ``test``).
        mode: ``eval`` (frozen statistics, no dropout) or ``train`` (statistics of the batch).
        device: type of the device that computed (``cpu``, ``cuda``).
        dtype: floating-point type that computed (``float32``, ``float64``).
        n_parameters: length of the flat parameter vector.
        n_examples: number of examples in the data.
        versions: versions of this package, torch, numpy and Python.
        created: when, in UTC, as ISO 8601.
    """

    checkpoint: str
    checkpoint_hash: str
    data_fingerprint: str
    problem_fingerprint: str
    split: str
    mode: str
    device: str
    dtype: str
    n_parameters: int
    n_examples: int
    versions: Mapping[str, str]
    created: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every measurement has in common.

    Attributes:
        settings: what was asked for, the seed among it; plain JSON values.
        cost: what it spent.
        provenance: where it came from.
    """

    kind: ClassVar[str] = ""
    settings: Mapping[str, Any]
    cost: Cost
    provenance: Provenance

    @property
    def name(self) -> str:
        """The checkpoint's name, as a person reads it."""
        return self.provenance.checkpoint

    def rows(self) -> list[tuple[str, str]]:
        """Return what a person wants to read, as (label, text) rows of a small table."""
        return []

    def plot(self, **kwargs: Any) -> Any:
        """Draw with matplotlib; the arguments are those of the function in `landscape.plots`.

        Args:
            **kwargs: passed on.

        Returns:
            The matplotlib figure.
        """
        return importlib.import_module("landscape.plots").draw(self, **kwargs)

    def explore(self, **kwargs: Any) -> Any:
        """Draw an interactive figure, for a notebook.

        Args:
            **kwargs: passed on to the function in `landscape.plots`.

        Returns:
            The plotly figure.
        """
        return importlib.import_module("landscape.plots").draw_interactive(self, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Result):
    """The loss of a checkpoint over the data set.

    Attributes:
        loss: Σ terms / Σ weights, accumulated in float64.
        loss_se: standard error of the loss over examples; NaN where the loss gives no terms.
        metrics: further means over the examples, accuracy among them.
        gradient_norm: Euclidean norm of the gradient of the loss.
    """

    kind: ClassVar[str] = "loss"
    loss: float
    loss_se: float
    gradient_norm: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str]]:
        """Return the loss, its metrics and the norm of the gradient as rows."""
        rows = [("loss", with_error(self.loss, self.loss_se))]
        rows += [(name, number(value)) for name, value in self.metrics.items()]
        rows.append(("gradient norm", number(self.gradient_norm)))
        return rows


@dataclass(frozen=True, kw_only=True)
class Sharpness(Result):
    """The largest rise of the loss found inside a ball: max over ‖ε‖ₚ ≤ ρ of L(w+ε) − L(w).

    Attributes:
        value: the largest rise found; a lower bound on the maximum.
        one_step: the rise at ε = ρ · (dual of the gradient), SAM's one-step estimate; infinite or
            NaN where the loss overflows there.
        gap: relative Frank-Wolfe gap (ρ‖G‖_q − Gᵀε) / (ρ‖G‖_q) at the end, G = ∇L(w+ε);
            0 where ε meets the first-order conditions. Inside the ball, where G itself vanishes
            at a maximum, it is relative to ρ‖∇L(w)‖_q if that is larger. NaN where the gradient
            is not finite.
        gradients: gradient passes spent.
        rho: radius of the ball.
        p: its norm.
        loss: L(w).
        norm: ‖ε‖ₚ of the maximiser; on the boundary it equals ρ.
        converged: whether the gap met the tolerance.
        epsilon: the maximiser, shape (n,).
        starts: names of the starting points of the search.
        start_values: rise that each start ended at.
        start_gaps: relative gap that each start ended at.
    """

    kind: ClassVar[str] = "sharpness"
    value: float
    one_step: float
    gap: float
    gradients: int
    rho: float
    p: float
    loss: float
    norm: float
    converged: bool
    epsilon: FloatArray
    starts: tuple[str, ...]
    start_values: FloatArray
    start_gaps: FloatArray

    @property
    def boundary(self) -> bool:
        """Whether the maximiser lies on the boundary of the ball (to 1e-5 of the radius)."""
        return bool(abs(self.norm - self.rho) <= 1e-5 * self.rho)

    @property
    def spread(self) -> float:
        """Largest minus smallest value over the starts that were searched to the end."""
        finite = self.start_values[np.isfinite(self.start_values)]
        return float(finite.max() - finite.min()) if finite.size else math.nan

    def rows(self) -> list[tuple[str, str]]:
        """Return the value, its evidence and its cost as rows."""
        verdict = "converged" if self.converged else "NOT converged"
        return [
            (f"sharpness (ρ = {self.rho:g}, p = {self.p:g})", f"≥ {number(self.value)}"),
            ("one-step SAM value", number(self.one_step)),
            ("optimality gap", f"{self.gap:.1e} of ρ‖G‖ ({verdict})"),
            ("‖ε‖", f"{number(self.norm)} ({'boundary' if self.boundary else 'inside'})"),
            ("best start", self.best_start),
            (
                "over the starts",
                f"{number(float(np.nanmin(self.start_values)))} to "
                f"{number(float(np.nanmax(self.start_values)))}"
                f" ({len(self.starts)})",
            ),
            ("gradient passes", f"{self.gradients:,}"),
        ]

    @property
    def best_start(self) -> str:
        """Name of the start that led to the value."""
        return self.starts[int(np.nanargmax(self.start_values))]


@dataclass(frozen=True, kw_only=True)
class Eigenpairs(Result):
    """Largest (algebraic) eigenvalues of a symmetric operator, with their true residuals.

    Attributes:
        values: eigenvalues θ, descending, shape (k,).
        residuals: ‖Hv − θv‖ of each, computed with a product of its own; for a symmetric operator
            an eigenvalue lies within that distance of θ.
        vectors: orthonormal eigenvectors, shape (k, n).
        matvecs: products with the operator that were spent.
        converged: whether every residual met the tolerance.
        method: ``lanczos`` or ``power``.
    """

    kind: ClassVar[str] = "eigs"
    values: FloatArray
    residuals: FloatArray
    vectors: FloatArray
    matvecs: int
    converged: bool
    method: str

    def rows(self) -> list[tuple[str, str]]:
        """Return each eigenvalue with its residual, then the cost, as rows."""
        rows = [
            (f"λ{i + 1}", f"{number(float(v))} ± {float(r):.1e}")
            for i, (v, r) in enumerate(zip(self.values, self.residuals, strict=True))
        ]
        verdict = "converged" if self.converged else "NOT converged"
        rows.append((self.method, f"{verdict} after {self.matvecs:,} HVPs"))
        return rows


@dataclass(frozen=True, kw_only=True)
class Line(Result):
    """Loss along one direction: L(w + x d).

    Attributes:
        x: coordinates, in units of the direction, shape (nx,).
        loss: raw losses, shape (nx,); NaN and infinity stay.
        loss_se: standard error of each over the examples.
        metrics: further means over the examples, each of shape (nx,).
        direction: what the direction is, in words (``filter-normalised random``, ``worst case``).
        direction_norm: ‖d‖, so that x · ‖d‖ is the distance in parameter space.
        origin_loss: the plain loss L(w), measured apart from the line.
    """

    kind: ClassVar[str] = "line"
    x: FloatArray
    loss: FloatArray
    loss_se: FloatArray
    metrics: Mapping[str, FloatArray] = field(default_factory=dict)
    direction: str
    direction_norm: float
    origin_loss: float

    @property
    def distance(self) -> FloatArray:
        """Signed Euclidean distance from the checkpoint, shape (nx,)."""
        return np.asarray(self.x * self.direction_norm)

    def rows(self) -> list[tuple[str, str]]:
        """Return what was measured and the range of the losses as rows."""
        return [
            ("direction", f"{self.direction}, ‖d‖ = {number(self.direction_norm)}"),
            ("points", f"{self.x.size} on [{self.x.min():g}, {self.x.max():g}]"),
            *_loss_rows(self.loss, self.loss_se, self.origin_loss),
        ]


@dataclass(frozen=True, kw_only=True)
class Surface(Result):
    """Loss over a plane: loss[i, j] = L(w + x[i] d₁ + y[j] d₂).

    Attributes:
        x: coordinates along the first direction, shape (nx,).
        y: coordinates along the second direction, shape (ny,).
        loss: raw losses, shape (nx, ny); NaN and infinity stay.
        loss_se: standard error of each over the examples, shape (nx, ny).
        metrics: further means over the examples, each of shape (nx, ny).
        plane: what the plane is, in words.
        direction_norms: ‖d₁‖ and ‖d₂‖.
        cosine: cosine of the angle between the directions.
        origin_loss: the plain loss L(w), measured apart from the grid.
    """

    kind: ClassVar[str] = "surface"
    x: FloatArray
    y: FloatArray
    loss: FloatArray
    loss_se: FloatArray
    metrics: Mapping[str, FloatArray] = field(default_factory=dict)
    plane: str
    direction_norms: tuple[float, float]
    cosine: float
    origin_loss: float

    def rows(self) -> list[tuple[str, str]]:
        """Return what was measured and the range of the losses as rows."""
        norms = " and ".join(number(v) for v in self.direction_norms)
        return [
            ("plane", f"{self.plane}, norms {norms}, cosine {self.cosine:+.3f}"),
            (
                "points",
                f"{self.x.size} × {self.y.size} on [{self.x.min():g}, {self.x.max():g}] × "
                f"[{self.y.min():g}, {self.y.max():g}]",
            ),
            *_loss_rows(self.loss, self.loss_se, self.origin_loss),
        ]


KINDS = {cls.kind: cls for cls in (Evaluation, Sharpness, Eigenpairs, Line, Surface)}


def _loss_rows(loss: FloatArray, se: FloatArray, origin: float) -> list[tuple[str, str]]:
    finite = loss[np.isfinite(loss)]
    span = f"{number(finite.min())} to {number(finite.max())}" if finite.size else "none finite"
    bad = loss.size - finite.size
    if bad:
        span += f"; {bad} of {loss.size} points not finite, kept as they are"
    known = se[np.isfinite(se)]
    errors = f"{number(known.min())} to {number(known.max())}" if known.size else "not known"
    return [
        ("loss at the checkpoint", number(origin)),
        ("losses", span),
        ("standard errors", errors),
    ]


def to_record(result: Result) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Split a result into JSON values and arrays.

    Args:
        result: any record of this module.

    Returns:
        The scalar fields (nested ones as dictionaries) and the array fields by dotted name.
    """
    scalars: dict[str, Any] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for item in dataclasses.fields(result):
        value = getattr(result, item.name)
        if isinstance(value, np.ndarray):
            arrays[item.name] = value
        elif isinstance(value, (Cost, Provenance)):
            scalars[item.name] = dataclasses.asdict(value)
        elif isinstance(value, Mapping) and any(isinstance(v, np.ndarray) for v in value.values()):
            arrays |= {f"{item.name}.{key}": array for key, array in value.items()}
        else:
            scalars[item.name] = value
    return scalars, arrays


def from_record(
    kind: str, scalars: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> Result:
    """Build a result again from what `to_record` split it into.

    Args:
        kind: one of the keys of `KINDS`.
        scalars: JSON values by field name.
        arrays: arrays by dotted name.

    Returns:
        The record, equal to the one that was split.
    """
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


def _typed(name: str, value: Any) -> Any:
    if name == "cost":
        return Cost(**value)
    if name == "provenance":
        return Provenance(**value)
    return tuple(value) if isinstance(value, list) else value
