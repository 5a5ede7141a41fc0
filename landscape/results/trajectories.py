"""The checkpoints of a training run, as seen in a plane of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from landscape.results.base import Columns, FloatArray, Result, Summary
from landscape.results.surfaces import Surface
from landscape.wording import Quantity, number


@dataclass(frozen=True, kw_only=True, repr=False)
class Trajectory(Result):
    """A run of checkpoints wᵢ beside the plane w + x d₁ + y d₂.

    A run does not lie in a plane: each checkpoint has its own loss, and its projection, the
    nearest point of the plane, has another.

    Attributes:
        run: what to call the run; empty: no name.
        names: of the checkpoints, in order, m of them.
        x: least-squares coordinate of each along the first direction, shape (m,).
        y: the same along the second direction, shape (m,).
        distances: Euclidean distance ‖wᵢ − w‖ of each from the origin, shape (m,).
        off_plane: Euclidean distance of each from the plane, shape (m,).
        loss: raw loss of each checkpoint with its own buffers, shape (m,); NaN and infinity stay.
        loss_se: standard error of each over the examples, shape (m,).
        projected_loss: raw loss of each projection, with the buffers of the origin, shape (m,).
        projected_loss_se: standard error of each over the examples, shape (m,).
        plane: what the plane is, in words.
        direction_norms: ‖d₁‖ and ‖d₂‖.
        cosine: cosine of the angle between the directions.
        origin_loss: the plain loss L(w).
    """

    kind: ClassVar[str] = "trajectory"
    heading: ClassVar[str] = "Training runs in a plane"
    run: str = ""
    names: tuple[str, ...]
    x: FloatArray
    y: FloatArray
    distances: FloatArray
    off_plane: FloatArray
    loss: FloatArray
    loss_se: FloatArray
    projected_loss: FloatArray
    projected_loss_se: FloatArray
    plane: str
    direction_norms: tuple[float, float]
    cosine: float
    origin_loss: float

    @property
    def difference(self) -> FloatArray:
        """Loss of each checkpoint less that of its projection, shape (m,)."""
        return np.asarray(self.loss - self.projected_loss)

    @property
    def off_share(self) -> FloatArray:
        """Part of each distance from the origin that lies off the plane, 0 to 1, shape (m,)."""
        known = self.distances > 0
        return np.asarray(
            np.divide(self.off_plane, self.distances, out=np.zeros(known.shape), where=known)
        )

    @property
    def label(self) -> str:
        """What to call the run in a picture."""
        return self.run or f"run of {len(self.names)} checkpoints"

    def lies_in(self, surface: Surface) -> bool:
        """Return whether a surface was measured in the same plane, and of the same losses."""
        digests = ("checkpoint_hash", "data_fingerprint", "problem_fingerprint")
        same = all(
            getattr(self.provenance, name) == getattr(surface.provenance, name)
            for name in (*digests, "mode", "parameters")
        )
        # The projections of a run are measured with frozen statistics.
        same = same and surface.statistics == "frozen"
        ours, theirs = (
            [record.settings.get(axis) for axis in ("d1", "d2")] for record in (self, surface)
        )
        return same and None not in ours and ours == theirs

    def table(self) -> Columns:
        """Return a row for each checkpoint."""
        return {
            "name": self.names,
            "x": self.x,
            "y": self.y,
            "off_plane": self.off_plane,
            "loss": self.loss,
            "loss_se": self.loss_se,
            "distance": self.distances,
            "projected_loss": self.projected_loss,
            "projected_loss_se": self.projected_loss_se,
        }

    def summary(self) -> Summary:
        """Return the run, how far it lies off the plane, and its first and last loss."""
        return {
            "run": self.run,
            "checkpoints": len(self.names),
            "off the plane": float(self.off_plane.max()),
            "first loss": Quantity(float(self.loss[0]), float(self.loss_se[0])),
            "last loss": Quantity(float(self.loss[-1]), float(self.loss_se[-1])),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return where the run lies and how its losses differ from those of the plane as rows."""
        worst = int(np.argmax(self.off_plane))
        off, share = float(self.off_plane[worst]), float(self.off_share[worst])
        return [
            *([("run", self.run)] if self.run else []),
            ("plane", self.plane),
            ("checkpoints", f"{len(self.names)}, from {self.names[0]} to {self.names[-1]}"),
            (
                "off the plane",
                f"up to {number(off)}, {share:.0%} of the distance from the origin "
                f"({self.names[worst]})",
            ),
            ("loss at the origin", number(self.origin_loss)),
            ("losses", f"{number(float(self.loss[0]))} to {number(float(self.loss[-1]))}"),
            (
                "losses of the projections",
                f"{number(float(self.projected_loss[0]))} to "
                f"{number(float(self.projected_loss[-1]))}",
            ),
        ]
