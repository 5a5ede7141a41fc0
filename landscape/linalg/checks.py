"""What eigensolvers refuse: requests that cannot be served, operators that are not symmetric."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import Operator, norm

# Largest |vᵢᵀHvⱼ − vⱼᵀHvᵢ| / ‖H‖ that may pass for rounding; see `check_symmetric`.
_ASYMMETRY = 1e-3


class AsymmetryError(InvalidArgumentError):
    """The products are not those of a symmetric matrix."""


def check_request(
    n: int, *, k: int, tol: float, dtype: torch.dtype, max_matvecs: int, least: int
) -> None:
    """Refuse a request that no eigensolver can serve."""
    if not 1 <= k <= n:
        remedy = "raise k to 1" if k < 1 else "lower k"
        msg = f"k = {k} eigenpairs of an operator of size n = {n}; expected 1 <= k <= n; {remedy}"
        raise InvalidArgumentError(msg)
    if not (math.isfinite(tol) and tol > 0.0):
        msg = f"tol = {tol}; expected a finite number above 0, such as 1e-6"
        raise InvalidArgumentError(msg)
    if not dtype.is_floating_point:
        msg = f"dtype = {dtype}; expected a real floating-point type, such as torch.float32"
        raise InvalidArgumentError(msg)
    if max_matvecs < least:
        msg = (
            f"max_matvecs = {max_matvecs}; expected at least {least} for k = {k}; "
            "raise max_matvecs or lower k"
        )
        raise InvalidArgumentError(msg)


def check_start(start: Tensor, n: int, *, several: bool = False) -> None:
    """Refuse a start vector that has no direction in the operator's space."""
    rows = start[None] if start.ndim == 1 else start
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != n or (start.ndim > 1 and not several):
        expected = f"({n},), one flat vector" + (f", or (b, {n}), b of them" if several else "")
        msg = f"start has shape {tuple(start.shape)}; expected {expected}"
        raise InvalidArgumentError(msg)
    for row in rows:
        length = norm(row)
        if not math.isfinite(length) or length == 0.0:
            msg = (
                f"start has norm {length}; expected a finite vector that is not zero, or start=None"
            )
            raise InvalidArgumentError(msg)


def check_symmetric(asymmetry: float, operator: Operator) -> None:
    """Refuse an operator that is not symmetric beyond any rounding.

    With an error e in H vⱼ, |vᵢᵀHvⱼ − vⱼᵀHvᵢ| is off by |vᵢᵀe| ≤ ‖e‖. Products of a network
    in float32 have errors of up to 1e-4 ‖H‖, those in half precision of a few eps, most of it in
    directions other than vᵢ. So ten eps, and at least 1e-3, pass for rounding; a matrix of
    independent entries, for which the ratio is about 2/√n, does not up to a million rows.
    """
    limit = max(_ASYMMETRY, 10.0 * operator.eps)
    if asymmetry > limit * operator.norm:
        msg = (
            f"the operator is not symmetric: after {operator.matvecs} products, u·Hv and v·Hu "
            f"differ by {asymmetry / operator.norm:.2g} of ‖H‖; expected at most {limit:.2g}, "
            "for rounding; check that the matvec is that of a symmetric matrix and that it gives "
            "the same product each time"
        )
        raise AsymmetryError(msg)
