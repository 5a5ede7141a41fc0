"""Sharpness-aware minimization: the optimizer that produces the wide minima."""

from __future__ import annotations

from landscape.optim.ascent import Ascent
from landscape.optim.edge import (
    Edge,
    edge_of_stability,
    is_preconditioned,
    next_update,
    preconditioner,
)
from landscape.optim.passes import frozen_statistics
from landscape.optim.sam import SAM

__all__ = [
    "SAM",
    "Ascent",
    "Edge",
    "edge_of_stability",
    "frozen_statistics",
    "is_preconditioned",
    "next_update",
    "preconditioner",
]
