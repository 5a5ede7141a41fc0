"""Spectra of the blocks of a network side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landscape.results.base import Columns, FloatArray, Result, Summary
from landscape.wording import Quantity, number, with_error


@dataclass(frozen=True, kw_only=True, repr=False)
class BlockSpectra(Result):
    """Largest eigenvalue, trace and spectral distance of the diagonal blocks of the Hessian.

    Attributes:
        blocks: names of the blocks, b of them.
        sizes: parameters of each, shape (b,).
        largest: largest eigenvalue of each, shape (b,).
        residuals: ‖Hv − λv‖ of each.
        traces: estimated trace of each.
        trace_errors: standard errors of these, over the probes.
        distances: Jensen-Shannon distance of the spectral densities of two blocks, 0 to 1, shape
            (b, b); on the diagonal that of two halves of a block's probes, which is noise.
        matvecs: products that were spent.
    """

    kind, heading = "blocks", "Spectra of the blocks"
    blocks: tuple[str, ...]
    sizes: FloatArray
    largest: FloatArray
    residuals: FloatArray
    traces: FloatArray
    trace_errors: FloatArray
    distances: FloatArray
    matvecs: int

    @property
    def shares(self) -> FloatArray:
        """Share of each block in the sum of the traces, which is the trace of the Hessian."""
        return np.asarray(self.traces / self.traces.sum())

    @property
    def mean_distance(self) -> float:
        """Mean of the distances of two blocks; NaN for one block."""
        b = len(self.blocks)
        off = self.distances.sum() - self.distances.trace()
        return float(off / (b * (b - 1))) if b > 1 else float("nan")

    def table(self) -> Columns:
        """Return a row for each block."""
        return {
            "block": self.blocks,
            "parameters": self.sizes,
            "largest": self.largest,
            "residual": self.residuals,
            "trace": self.traces,
            "trace_se": self.trace_errors,
            **{f"distance to {b}": row for b, row in zip(self.blocks, self.distances, strict=True)},
        }

    def summary(self) -> Summary:
        """Return λmax and the share in the trace of each block, and the mean distance."""
        found: dict[str, Quantity | float | str] = {}
        for i, block in enumerate(self.blocks):
            found[f"λ1 of {block}"] = float(self.largest[i])
            found[f"trace share of {block}"] = float(self.shares[i])
        return {**found, "mean distance": self.mean_distance}

    def rows(self) -> list[tuple[str, str]]:
        """Return a line for each block, and the mean distance with its noise."""
        rows = []
        for i, block in enumerate(self.blocks):
            trace = with_error(float(self.traces[i]), float(self.trace_errors[i]))
            text = (
                f"λ1 {number(float(self.largest[i]))}, trace {trace} ({self.shares[i]:.1%} of all)"
            )
            rows.append((f"{block} ({int(self.sizes[i]):,})", text))
        noise = number(float(self.distances.diagonal().mean()))
        mean = f"{number(self.mean_distance)} (of two halves of the probes: {noise})"
        return [*rows, ("mean spectral distance", mean), ("products", f"{self.matvecs:,}")]
