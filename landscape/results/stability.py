"""How large a step the loss bears: along an update, and along the gradients of batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from landscape.results.base import Columns, FloatArray, Result, Summary
from landscape.wording import Quantity, number, with_error


@dataclass(frozen=True, kw_only=True, repr=False)
class UpdateSharpness(Result):
    """How far along an update u the loss falls, w ← w − η u, and the curvature on the way.

    Attributes:
        lr: η of the update that was given; 1 where none was named.
        critical_lr: η at which the loss is back at that of w, found from the one given; infinite
            where it never is.
        critical_lr_se: standard error of it over the examples; NaN where their losses are unknown.
        low: learning rate at which the loss was still below that of w.
        high: learning rate at which it was above.
        slope: uᵀg, g being the gradient of the data set's loss.
        curvature: uᵀHu; NaN where it was not asked for.
        loss: L(w).
    """

    kind, heading = "update-sharpness", "Sharpness along an update"
    lr: float
    critical_lr: float
    critical_lr_se: float
    low: float
    high: float
    slope: float
    curvature: float
    loss: float

    @property
    def critical(self) -> float:
        """Critical sharpness 2/η_c: the curvature of a quadratic whose edge is there."""
        return 2 / self.critical_lr if self.critical_lr else math.inf

    @property
    def critical_se(self) -> float:
        """Standard error of the critical sharpness."""
        relative = self.critical_lr_se / self.critical_lr if self.critical_lr else math.nan
        return self.critical * relative

    @property
    def directional(self) -> float:
        """Directional sharpness uᵀHu/(uᵀg): the critical one of the quadratic model."""
        return self.curvature / self.slope if self.slope else math.nan

    def summary(self) -> Summary:
        """Return both sharpnesses, and the learning rate that the loss bears."""
        return {
            "critical sharpness": Quantity(self.critical, self.critical_se),
            "uᵀHu/(uᵀg)": self.directional,
            "critical lr": Quantity(self.critical_lr, self.critical_lr_se),
            "lr": self.lr,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the learning rate that the loss bears, and both sharpnesses, as rows."""
        return [
            ("critical learning rate", with_error(self.critical_lr, self.critical_lr_se)),
            ("between", f"{number(self.low)} and {number(self.high)}"),
            ("critical sharpness 2/η", with_error(self.critical, self.critical_se)),
            ("directional sharpness uᵀHu/(uᵀg)", number(self.directional)),
            ("uᵀg", number(self.slope)),
            ("learning rate of the update", number(self.lr)),
        ]

    def table(self) -> Columns:
        """Return one row."""
        names = ("critical", "critical_se", "directional", "critical_lr", "critical_lr_se", "lr")
        return {name: [getattr(self, name)] for name in names}


@dataclass(frozen=True, kw_only=True, repr=False)
class BatchSharpness(Result):
    """The mean over batches B of gᵀHg/‖g‖², g and H being gradient and Hessian of the batch's loss.

    Attributes:
        value: the mean.
        standard_error: of it, over the batches; 0 where all batches of the size were measured.
        low: lower end of its 95 % interval.
        high: its upper end.
        noise: gradient noise scale tr Σ/‖∇L‖², Σ being the covariance of the gradients of single
            examples; NaN where a batch is all of the data.
        noise_se: standard error of it, over the batches.
        values: gᵀHg/‖g‖² of each batch, shape (b,).
        squared_norms: ‖g‖² of each, shape (b,).
        batch_size: examples in a batch.
        exhaustive: whether these are all batches of that size.
        loss: L(w).
    """

    kind, heading = "batch-sharpness", "Batch sharpness"
    value: float
    standard_error: float
    low: float
    high: float
    noise: float
    noise_se: float
    values: FloatArray
    squared_norms: FloatArray
    batch_size: int
    exhaustive: bool
    loss: float

    @property
    def critical_lr(self) -> float:
        """The learning rate η at which the batch sharpness is 2/η."""
        return 2 / self.value if self.value else math.inf

    def summary(self) -> Summary:
        """Return the batch sharpness with its interval, and the gradient noise scale."""
        return {
            "batch size": self.batch_size,
            "batch sharpness": Quantity(self.value, self.standard_error),
            "95 % low": self.low,
            "95 % high": self.high,
            "2/batch sharpness": self.critical_lr,
            "gradient noise scale": Quantity(self.noise, self.noise_se),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the batch sharpness, its interval and the gradient noise scale as rows."""
        every = "all batches" if self.exhaustive else f"{len(self.values)} random batches"
        value = with_error(self.value, self.standard_error)
        return [
            (f"batch sharpness, {self.batch_size} examples", value),
            ("95 % interval", f"{number(self.low)} to {number(self.high)} ({every})"),
            ("learning rate at whose edge it lies", number(self.critical_lr)),
            ("gradient noise scale", with_error(self.noise, self.noise_se)),
        ]

    def table(self) -> Columns:
        """Return a row for each batch."""
        return {"value": self.values, "squared_norm": self.squared_norms}
