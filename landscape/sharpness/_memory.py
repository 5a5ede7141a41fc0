"""How much of a search for sharpness fits into memory, in vectors of the model's size."""

from __future__ import annotations

from dataclasses import dataclass

from landscape.errors import InvalidArgumentError
from landscape.sharpness._ascent import HISTORY

PRODUCTS = 16  # with the Hessian at w, at most
VECTORS = 12  # beyond the model, its checkpoint and the graph
SMALL = 2**26  # bytes that are always used, so that small models are searched with all means
# The gradient at w, the best point, two points with their gradients less one, and a direction.
_CLIMB = 8
# The gradient at w, the best point, and what a product and the next vector take.
_PRODUCT = 6


@dataclass(frozen=True)
class Room:
    """What there is memory for."""

    pairs: int = HISTORY  # of the L-BFGS history
    products: int = PRODUCTS  # vectors of a quadratic model's subspace
    keeps_model: bool = True  # whether the subspace can stay while the search climbs
    note: str = ""  # what was shortened and left out for lack of memory; empty: nothing


def room(vector_bytes: int, memory: float | None, *, scaled: bool) -> Room:
    """Divide memory among the history and the quadratic model."""
    bytes_there = max(VECTORS * vector_bytes, SMALL) if memory is None else memory
    vectors, least = int(bytes_there // vector_bytes), _CLIMB + scaled
    if vectors < least:
        msg = (
            f"memory = {bytes_there:,.0f} bytes holds {vectors} vectors of the model's size, and a "
            f"search takes {least} at least: give {least * vector_bytes:,} bytes"
        )
        raise InvalidArgumentError(msg)
    pairs = min(HISTORY, (vectors - least) // 2)
    products = min(PRODUCTS, vectors - _PRODUCT - 2 * scaled)
    keeps = vectors >= least + 2 * HISTORY + PRODUCTS + 2  # more than history and model need
    note = (
        f"memory for {vectors} vectors of the model's size: a quadratic model of at most "
        f"{products} products, an L-BFGS history of {pairs} pairs, no starts along the top "
        "eigenvector"
    )
    return Room(pairs, products, keeps, "" if keeps else note)
