"""What every measurement has in common: its settings, what it cost, and where it came from."""

from __future__ import annotations

import hashlib
import importlib
import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from landscape.results.frames import data_frame, html_table
from landscape.wording import Quantity

FloatArray = npt.NDArray[np.floating[Any]]
Columns = Mapping[str, Sequence[Any] | npt.NDArray[Any]]
Summary = Mapping[str, Quantity | float | str]


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

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __mul__(self, n: int) -> Cost:
        return Cost(**{name: n * value for name, value in vars(self).items()})

    def __str__(self) -> str:
        parts = [
            f"{count:,} {one if count == 1 else many}"
            for count, one, many in (
                (self.forwards, "forward pass", "forward passes"),
                (self.gradients, "gradient", "gradients"),
                (self.hvps, "HVP", "HVPs"),
            )
            if count
        ]
        return f"{', '.join(parts) or 'no passes'} in {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Numbers that tell what a problem computes, from its first examples.

    Attributes:
        losses: at w, and along one random direction at 1 % and at 30 % of ‖w‖.
        slope: derivative of the loss at w along the step to the nearer point.
        metrics: at w, by name.
    """

    losses: tuple[float, float, float]
    slope: float
    metrics: Mapping[str, float]

    @property
    def _tells_something(self) -> bool:
        return not all(map(math.isnan, (*self.losses, self.slope)))

    @property
    def identity(self) -> str:
        """Digest of the numbers, 16 hexadecimal digits; a random one where none is known."""
        if not self._tells_something:
            return secrets.token_hex(8)
        numbers = [*self.losses, self.slope, *sorted(self.metrics.items())]
        return hashlib.sha256(repr(numbers).encode()).hexdigest()[:16]

    def agrees(self, other: Signature, dtype: str) -> bool:
        """Return whether another signature has the same numbers to the rounding of a dtype."""
        if self.metrics.keys() != other.metrics.keys() or not self._tells_something:
            return False
        relative = 1e-9 if dtype == "float64" else 1e-5
        # Rounding does not shrink with a loss near zero; the near point says what is large here.
        size = abs(self.losses[1]) if math.isfinite(self.losses[1]) else 0.0
        pairs = [*zip(self.losses, other.losses, strict=True), (self.slope, other.slope)]
        pairs += [(value, other.metrics[name]) for name, value in self.metrics.items()]
        return all(
            (math.isnan(a) and math.isnan(b))
            or math.isclose(a, b, rel_tol=relative, abs_tol=0.01 * relative * size)
            for a, b in pairs
        )


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number came from; with the settings, enough to measure it again.

    Attributes:
        checkpoint: the name that people read (a file name, or the name given to the problem).
        checkpoint_hash: digest of the weights and buffers that were measured.
        data_fingerprint: digest of the batches that were measured.
        problem_fingerprint: identity of what was computed, see `Signature`; in a study, that of
            the first signature that agrees. In records of older versions a digest of code.
        split: which part of the data (``train``, ``test``).
        mode: ``eval`` (frozen statistics, no dropout) or ``train`` (statistics of the batch).
        device: type of the device that computed (``cpu``, ``cuda``).
        dtype: floating-point type that computed (``float32``, ``float64``).
        n_parameters: length of the flat parameter vector.
        n_examples: number of examples in the data.
        versions: versions of this package, torch, numpy and Python.
        created: when, in UTC, as ISO 8601.
        parameters: pattern of the parameters that were explored; empty: all of them.
        loss: class and settings of the loss, or the name of its function; empty: not known.
        signature: what the problem computed; None: not known.
        processes: how many of a launcher shared the work, and which of points, data and
            parameters; empty: one did it.
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
    parameters: str = ""
    loss: str = ""
    signature: Signature | None = None
    processes: str = ""

    @property
    def objective(self) -> str:
        """The loss, the same for all checkpoints; in records without it, their fingerprint."""
        return self.loss or self.problem_fingerprint


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """What every measurement has in common.

    A kind of record is a subclass that is listed in `landscape.results.KINDS`. Its picture, if it
    has one, is the function ``plot_KIND`` (``explore_KIND``) of `landscape.plots`.

    Attributes:
        kind: short name of the kind, as the study and the command line have it.
        heading: of its part of a report; empty: it is not shown.
        role: field of `Measured` that it fills; empty: it stands among the ``others``.
        csv_columns: fields that are columns of `table`, by the name of the column.
        distinguishing: names of the settings that tell measurements of this kind apart in a list.
        settings: what was asked for, the seed among it; plain JSON values.
        cost: what it spent.
        provenance: where it came from.
    """

    kind: ClassVar[str] = ""
    heading: ClassVar[str] = ""
    role: ClassVar[str] = ""
    csv_columns: ClassVar[Mapping[str, str]] = {}
    distinguishing: ClassVar[tuple[str, ...]] = (
        *("operator", "scale", "rho", "p", "adaptive", "k", "both_ends", "layers", "method"),
        *("direction", "plane", "curve", "bends", "epochs", "tolerance", "statistics"),
        *("precision", "distribution", "eta", "rise", "lr", "batch_size"),
    )
    settings: Mapping[str, Any]
    cost: Cost
    provenance: Provenance

    @property
    def name(self) -> str:
        """The checkpoint's name, as a person reads it."""
        return self.provenance.checkpoint

    def __repr__(self) -> str:
        """Say what was measured on what, in the lines that the command line prints."""
        where = self.provenance
        try:
            rows = [(label, text) for label, text in self.rows() if text]
        except (IndexError, TypeError, ValueError):  # of a record put together by hand
            rows = []
        width = max((len(label) for label, _ in rows), default=0)
        head = f"{type(self).__name__} of {self.name} ({where.split} data, {where.mode} mode)"
        return "\n".join([head, *(f"  {label.ljust(width)}  {text}" for label, text in rows)])

    def summary(self) -> Summary:
        """Return the main numbers by name: one row of a table of checkpoints."""
        return {}

    def rows(self) -> list[tuple[str, str]]:
        """Return what a person wants to read, as (label, text) rows of a small table."""
        return []

    def table(self) -> Columns:
        """Return the columns of the record as a ``.csv`` file, by name and of equal length."""
        columns = {column: getattr(self, name) for column, name in self.csv_columns.items()}
        return columns | metric_columns(getattr(self, "metrics", {}), columns)

    def to_pandas(self) -> Any:
        """Return `table` as a pandas DataFrame."""
        return data_frame(self.table())

    def _repr_html_(self) -> str:
        """Show the lines of `rows` as a table in a notebook."""
        head, *_ = repr(self).splitlines()
        rows = [{"": label, " ": text} for label, text in self.rows() if text]
        return html_table(rows, caption=head)

    def plot(self, **kwargs: Any) -> Any:
        """Draw with matplotlib and return the axes; arguments as in `landscape.plots`."""
        return output_function("plots", "draw")(self, **kwargs)

    def explore(self, **kwargs: Any) -> Any:
        """Draw with plotly and return the figure; arguments as in `landscape.plots`."""
        return output_function("plots", "draw_interactive")(self, **kwargs)


def output_function(module: str, name: str) -> Callable[..., Any]:
    """Return a function of `landscape.plots` or `landscape.report`, imported at the call."""
    function: Callable[..., Any] = getattr(importlib.import_module(f"landscape.{module}"), name)
    return function


def no_values() -> FloatArray:
    """Return an empty array, the default of what may not be measured."""
    return np.empty(0)


def metric_columns(metrics: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """Name each metric so that it is taken for no other column."""
    return {f"metrics.{name}" if name in taken else name: v for name, v in metrics.items()}
