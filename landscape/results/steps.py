"""What a climb of a few steps finds of the sharpness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from landscape.results.base import Columns, FloatArray, Result
from landscape.wording import number


@dataclass(frozen=True, kw_only=True, repr=False)
class StepwiseSharpness(Result):
    """The rise of the loss at the end of a climb of k steps, for several k.

    Each is a climb of its own, of k equal steps of ρ/k along the dual of the gradient, as SAM with
    k inner steps makes it. None of them is the maximum over the ball, which `Sharpness` seeks.

    Attributes:
        rho: radius of the ball.
        p: its norm.
        loss: L(w).
        steps: numbers of steps k, ascending, shape (m,).
        rises: L(w + ε) − L(w) at the end of each climb, shape (m,).
        norms: ‖ε‖ₚ at the end of each climb, at most ρ, shape (m,).
    """

    kind: ClassVar[str] = "steps"
    heading: ClassVar[str] = "Sharpness by number of steps"
    rho: float
    p: float
    loss: float
    steps: FloatArray
    rises: FloatArray
    norms: FloatArray

    def table(self) -> Columns:
        """Return a row for each climb."""
        return {"steps": list(map(int, self.steps)), "rise": self.rises, "norm": self.norms}

    def rows(self) -> list[tuple[str, str]]:
        """Return the radius, and the rise after each number of steps, as rows."""
        rows = [("radius ρ", f"{self.rho:g} (p = {self.p:g})")]
        rows += [
            (
                f"rise after {int(k)} step{'' if k == 1 else 's'}",
                f"{number(float(rise))}, ε of {norm:.3g}",
            )
            for k, rise, norm in zip(self.steps, self.rises, self.norms, strict=True)
        ]
        return rows
