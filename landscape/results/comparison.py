"""Everything measured on one checkpoint, and several checkpoints side by side.

Plain bundles of the records in `landscape.results`: `landscape.compare` makes them, the study
rebuilds them, plots and reports read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

from landscape.errors import one_of
from landscape.results import (
    Eigenpairs,
    Evaluation,
    Line,
    Provenance,
    Result,
    Sharpness,
    Surface,
    Trajectory,
)
from landscape.results.base import output_function
from landscape.results.frames import data_frame, html_table, inline_svg
from landscape.wording import Quantity, cell_text

ABSENT = "–"
# What numbers must have in common to be compared; digests are short, as Git shows them.
_SOURCES: Mapping[str, Callable[[Provenance], str]] = {
    "data": lambda at: f"{at.n_examples:,} {at.split} examples, {at.data_fingerprint[:8]}",
    "loss or model": lambda at: at.loss or at.problem_fingerprint[:8],
    "mode": lambda at: at.mode,
    "dtype": lambda at: at.dtype,
    "parameters": lambda at: f"{at.n_parameters:,}",
}
_WORDS = {
    **{"evaluation": "loss", "eigenpairs": "λmax", "worst_line": "worst-case line"},
    "random_line": "random line",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of one checkpoint; a part that was not measured is None.

    Attributes:
        name: the name that people read, unique within a comparison.
        evaluation: loss on the data that everything else was measured on.
        test: loss on held-out data.
        eigenpairs: top of the Hessian's spectrum.
        sharpness: largest rise of the loss in a ball.
        surface: loss over a plane.
        worst_line: loss along the checkpoint's own worst-case direction.
        random_line: loss along a filter-normalised random direction.
        trajectories: training runs in the plane of the surface, to be drawn on it.
        others: the newest result of each kind that plays no part above.
    """

    name: str
    evaluation: Evaluation | None = None
    test: Evaluation | None = None
    eigenpairs: Eigenpairs | None = None
    sharpness: Sharpness | None = None
    surface: Surface | None = None
    worst_line: Line | None = None
    random_line: Line | None = None
    trajectories: tuple[Trajectory, ...] = ()
    others: tuple[Result, ...] = ()

    def roles(self) -> dict[str, Result]:
        """Return everything that was measured, by the part that it plays here."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return {role: part for role, part in parts.items() if isinstance(part, Result)}

    def sources(self) -> dict[str, Provenance]:
        """Return where each part comes from, but for the loss on held-out data."""
        return {role: part.provenance for role, part in self.roles().items() if role != "test"}

    def facts(self) -> dict[str, Quantity | float | str]:
        """Return the numbers of this checkpoint by label, for one column of a table."""
        facts: dict[str, Quantity | float | str] = {}
        for evaluation in (self.evaluation, self.test):
            if evaluation is None:
                continue
            split = evaluation.provenance.split
            facts[f"{split} loss"] = Quantity(evaluation.loss, evaluation.loss_se)
            facts |= {f"{split} {name}": value for name, value in evaluation.metrics.items()}
        if self.evaluation is not None:
            facts["gradient norm"] = self.evaluation.gradient_norm
        if self.eigenpairs is not None:
            facts |= self._largest_eigenvalue(self.eigenpairs)
        if self.sharpness is not None:
            facts |= self._sharpness(self.sharpness)
        return facts

    @staticmethod
    def _largest_eigenvalue(pairs: Eigenpairs) -> dict[str, Quantity | float | str]:
        top = pairs.quantity(0)
        return {
            "λmax of the Hessian": top if pairs.converged else f"{top} (not converged)",
            "residual of λmax": float(pairs.residuals[0]),
        }

    @staticmethod
    def _sharpness(record: Sharpness) -> dict[str, Quantity | float | str]:
        norm = "" if record.p == 2 else f", p = {record.p:g}"
        scale = "" if record.adaptive == "none" else f", {record.adaptive}"
        at = f"ρ = {record.rho:g}{norm}{scale}"
        value = Quantity(record.value, record.value_se, bound="≥")
        return {
            f"sharpness, {at}": value if record.converged else f"{value} (not converged)",
            "optimality gap": record.gap,
            f"one-step SAM value, {at}": record.one_step,
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Checkpoints side by side.

    Attributes:
        models: what was measured on each, in the order to show them.
    """

    models: tuple[Measured, ...]

    def __getitem__(self, name: str) -> Measured:
        one_of(name, self.names, what="checkpoint")
        return next(model for model in self.models if model.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the checkpoints, in order."""
        return tuple(model.name for model in self.models)

    def table(self) -> list[tuple[str, ...]]:
        """Return rows of a label and a text per checkpoint: header, differing sources, numbers."""
        columns = [model.facts() for model in self.models]
        labels = dict.fromkeys(label for column in columns for label in column)
        body = [
            (label, *(cell_text(column.get(label, ABSENT)) for column in columns))
            for label in labels
        ]
        return [("", *self.names), *self._differing_sources(), *body]

    def _differing_sources(self) -> list[tuple[str, ...]]:
        rows = []
        for label, describe in _SOURCES.items():
            columns = [_parts_by(describe, model.sources()) for model in self.models]
            if len({text for column in columns for text in column}) > 1:
                rows.append((f"{label} (not the same)", *map(_cell, columns)))
        columns = [
            _parts_by(lambda at: at.problem_fingerprint[:8], model.sources())
            for model in self.models
        ]
        if not rows and any(len(column) > 1 for column in columns):
            rows.append(("model (not the same)", *map(_cell, columns)))
        return rows

    def to_pandas(self) -> Any:
        """Return the numbers as a pandas DataFrame, a row for each checkpoint."""
        return data_frame([{"checkpoint": model.name, **model.facts()} for model in self.models])

    def __repr__(self) -> str:
        """Say which checkpoints are compared; `table` has the numbers."""
        return f"Comparison of {', '.join(self.names)}"

    def _repr_html_(self) -> str:
        """Show the table and the picture in a notebook."""
        header, *body = self.table()
        table = html_table([dict(zip(header, row, strict=True)) for row in body])
        drawn = [(m.surface, m.worst_line, m.random_line) for m in self.models]
        has_picture = any(part is not None for parts in drawn for part in parts)
        return f"{table}{inline_svg(self.plot())}" if has_picture else table

    def plot(self, **kwargs: Any) -> Any:
        """Draw the figure of `landscape.plots.plot_comparison`, which takes the arguments."""
        return output_function("plots", "plot_comparison")(self, **kwargs)

    def explore(self, **kwargs: Any) -> Any:
        """Draw the surfaces with `landscape.plots.explore_comparison`, on one scale."""
        return output_function("plots", "explore_comparison")(self, **kwargs)

    def report(self, path: str | PathLike[str], **kwargs: Any) -> Any:
        """Write one self-contained HTML file by `landscape.report.write_report`."""
        return output_function("report", "write_report")(self, path, **kwargs)


def _parts_by(
    describe: Callable[[Provenance], str], sources: Mapping[str, Provenance]
) -> dict[str, list[str]]:
    """Group the parts of a checkpoint by a description of where they come from."""
    parts: dict[str, list[str]] = {}
    for role, source in sources.items():
        parts.setdefault(describe(source), []).append(_WORDS.get(role, role))
    return parts


def _cell(parts: Mapping[str, Sequence[str]]) -> str:
    """Say where most comes from, and what comes from elsewhere."""
    most = max(parts, key=lambda text: len(parts[text]), default=ABSENT)
    others = [f"{', '.join(names)}: {text}" for text, names in parts.items() if text != most]
    return "; ".join([most, *others])
