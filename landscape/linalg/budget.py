"""How large a Lanczos basis fits a number of bytes."""

from __future__ import annotations

import math

import torch

from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import SCRATCH_BYTES

# In the search for missed eigenvalues: two vectors, a product and its copy in the storage dtype,
# and the argument in the operator's own. The results come after that, in their place.
_WORK = 5
# Four pieces in float64, of a basis of 64 vectors.
_SCRATCH_PER_ENTRY = 4 * 8 * 64
# The projection and what its dense eigensolver needs, in float64 matrices of the basis' size.
_SMALL = 5


def n_wanted(n: int, *, k: int, both_ends: bool) -> int:
    """Return how many pairs are sought: k, or k from each end, none of them twice."""
    return min(2 * k, n) if both_ends else k


def least_basis(n: int, wanted: int) -> int:
    """Return the smallest basis that restarted Lanczos can find so many pairs with."""
    return min(max(8, wanted + 3), n)


def basis_for(
    budget_bytes: float,
    n: int,
    *,
    k: int = 1,
    both_ends: bool = False,
    block: int = 1,
    dtype: torch.dtype,
) -> int:
    """Return the largest ``max_basis`` with which `lanczos` stays within a memory budget.

    In vectors of n entries of float32 (or float64 if ``dtype`` is): the basis, ``block`` pending
    vectors, and the larger of 5 and the number of results. To this come 67 MB of scratch for sums
    and five small matrices of the size of the basis, but not what operator and caller hold.

    >>> basis_for(500e6, 5_000_000, dtype=torch.float32)
    15
    """
    wanted = n_wanted(n, k=k, both_ends=both_ends)
    fixed, vector = _fixed_bytes(n, wanted, block, dtype)
    left = max(budget_bytes - fixed, 0.0)
    # The positive root m of 8·_SMALL·m² + vector·m = left, free of cancellation.
    fits = int(2.0 * left / (vector + math.sqrt(vector**2 + 32.0 * _SMALL * left)))
    least = least_basis(n, wanted)
    if min(fits, n) < least:
        needed = math.ceil(least_bytes(n, k=k, both_ends=both_ends, block=block, dtype=dtype) / 1e6)
        msg = (
            f"a budget of {budget_bytes / 1e6:.0f} MB for k = {k} eigenpairs of an operator of "
            f"size n = {n}; expected at least {needed} MB, for a basis of {least} vectors; raise "
            "the budget, lower k, or use power iteration"
        )
        raise InvalidArgumentError(msg)
    return min(fits, n)


def least_bytes(
    n: int, *, k: int = 1, both_ends: bool = False, block: int = 1, dtype: torch.dtype
) -> float:
    """Return the bytes that the smallest basis takes, see `basis_for`."""
    wanted = n_wanted(n, k=k, both_ends=both_ends)
    fixed, vector = _fixed_bytes(n, wanted, block, dtype)
    least = least_basis(n, wanted)
    return fixed + least * vector + 8 * _SMALL * least**2


def _fixed_bytes(n: int, wanted: int, block: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return what is needed beside the basis, and the size of a vector."""
    vector = n * torch.promote_types(dtype, torch.float32).itemsize
    # Sums are done in pieces of the basis, and those of a small one are small.
    scratch = min(SCRATCH_BYTES, _SCRATCH_PER_ENTRY * n)
    return (block + max(wanted, _WORK)) * vector + scratch, vector
