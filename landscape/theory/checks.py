"""Checks of the theory's arguments: shapes, symmetry and stable step sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from landscape.checks import positive, real
from landscape.errors import InvalidArgumentError, NonFiniteError
from landscape.results import FloatArray
from landscape.wording import number


def array(value: Any, *, name: str, shape: tuple[int | None, ...]) -> FloatArray:
    """Return an array in float64 if it has the expected shape and no value of it is NaN or inf."""
    values = np.asarray(value, dtype=np.float64)
    fits = values.ndim == len(shape) and all(
        n > 0 if expected is None else n == expected
        for n, expected in zip(values.shape, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        msg = f"{name} has the shape {values.shape}; expected ({sizes}): check what was passed"
        raise InvalidArgumentError(msg)
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        msg = f"{name} holds {n_bad} values that are not finite; leave them out or replace them"
        raise NonFiniteError(msg)
    return values


def symmetric(value: Any, *, name: str) -> FloatArray:
    """Return a square matrix in float64 if it is symmetric to rounding."""
    matrix = array(value, name=name, shape=(None, None))
    matrix = array(matrix, name=name, shape=(len(matrix), len(matrix)))
    gap = float(np.abs(matrix - matrix.T).max())
    if gap > 1e-10 * float(np.abs(matrix).max()):
        msg = f"{name} is not symmetric: entries differ by {number(gap)}; pass (A + Aᵀ)/2 if meant"
        raise InvalidArgumentError(msg)
    return matrix


def stable(top: float, *, eta: float, rho: float, curvature: str = "d₁") -> None:
    """Refuse a step size with which the iteration does not converge."""
    positive("eta", eta)
    real("rho", rho, least=0.0)
    effective = top + rho * top**2
    if not eta * effective < 2.0:
        msg = (
            f"eta = {eta:g} with rho = {rho:g} diverges: η({curvature} + ρ{curvature}²) = "
            f"{number(eta * effective)} at the largest curvature {curvature} = {number(top)}; "
            f"expected below 2: take eta below {number(2.0 / effective)}, or a smaller rho"
        )
        raise InvalidArgumentError(msg)
