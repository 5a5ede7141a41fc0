"""What is examined: the measurements that several checks share, each made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from landscape.evaluate import Evaluator, LossValue, require_finite
from landscape.linalg import lanczos
from landscape.linalg.krylov import EigenSolution
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.results.diagnoses import Check

if TYPE_CHECKING:
    from landscape.doctor.invariance import Moved

MATVECS = 16
"""Products for the two ends of the spectrum: their sign and size, not their digits."""


@dataclass
class DiagnosticContext:
    """A checkpoint and a problem, inside of an entered evaluator."""

    evaluator: Evaluator  # what everything is measured with
    held_out: Problem | None  # the same model on other data; None: not given
    seed: int  # of every random choice
    moved: Moved | None = None  # what the test of invariance measured; None: nothing yet

    @property
    def problem(self) -> Problem:
        """The problem that is examined."""
        return self.evaluator.problem

    @cached_property
    def loss(self) -> LossValue:
        """The loss at the checkpoint. Cost: one forward pass."""
        return self.evaluator.loss()

    @property
    def finite_loss(self) -> float:
        """The loss at the checkpoint."""
        require_finite(self.loss.value, self.problem)
        return self.loss.value

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient at the checkpoint, shape (n,). Cost: one gradient pass."""
        _ = self.finite_loss
        return self.evaluator.gradient()[1]

    @cached_property
    def spectrum(self) -> EigenSolution:
        """The largest and the smallest eigenvalue of the Hessian, roughly. Cost: 16 products."""
        _ = self.finite_loss
        return self.ends(self.evaluator)

    def ends(
        self,
        evaluator: Evaluator,
        scale: Tensor | None = None,
        *,
        both: bool = True,
        matvecs: int = MATVECS,
    ) -> EigenSolution:
        """Find the ends of the spectrum of H or THT in a few steps of Lanczos."""
        hessian = Hessian(evaluator)
        operator = hessian if scale is None else hessian.reparametrised(scale)
        return lanczos(
            operator.matvec,
            operator.n,
            k=1,
            both_ends=both,
            tol=1e-2,
            max_matvecs=matvecs,
            seed=self.seed,
            dtype=operator.dtype,
            device=operator.device,
        )

    @property
    def curvature(self) -> float:
        """The largest eigenvalue of the Hessian in size, of either sign."""
        return float(np.abs(self.spectrum.values).max())


def check(
    verdict: str, finding: str, numbers: Mapping[str, float] | None = None, advice: str = ""
) -> Check:
    """Make a check, which `diagnose` gives its name."""
    return Check(name="", verdict=verdict, finding=finding, advice=advice, numbers=numbers or {})


def not_applicable(reason: str) -> Check:
    """Make a check that cannot be made."""
    return check("not applicable", reason)
