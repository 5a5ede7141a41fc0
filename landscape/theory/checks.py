"""What the theory refuses: numbers out of range, shapes that do not fit, steps that diverge."""

from __future__ import annotations

from typing import Any

import numpy as np

from landscape.checks import positive, real
from landscape.errors import InvalidArgumentError, NonFiniteError
from landscape.results import FloatArray
from landscape.wording import number


def array(value: Any, *, name: str, shape: tuple[int | None, ...]) -> FloatArray:
    """Return an array in float64 if it has the shape that is expected."""
    given = np.asarray(value, dtype=np.float64)
    fits = given.ndim == len(shape) and all(
        have > 0 if want is None else have == want
        for have, want in zip(given.shape, shape, strict=True)
    )
    if not fits:
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        msg = f"{name} has the shape {given.shape}; expected ({expected}): check what was passed"
        raise InvalidArgumentError(msg)
    if not np.isfinite(given).all():
        n_bad = int((~np.isfinite(given)).sum())
        msg = f"{name} holds {n_bad} values that are not finite; leave them out or replace them"
        raise NonFiniteError(msg)
    return given


def stable(top: float, *, eta: float, rho: float, what: str = "d₁") -> None:
    """Refuse a step size with which the iteration does not converge."""
    positive("eta", eta)
    real("rho", rho, least=0.0)
    step = eta * (top + rho * top**2)
    if not step < 2.0:
        limit = 2.0 / (top + rho * top**2)
        msg = (
            f"eta = {eta:g} with rho = {rho:g} diverges: η({what} + ρ{what}²) = {number(step)} at "
            f"the largest curvature {what} = {number(top)}; expected below 2: take eta below "
            f"{number(limit)}, or a smaller rho"
        )
        raise InvalidArgumentError(msg)
