"""Curvature of the data set's loss as symmetric operators: a matvec over flat vectors.

The Hessian, the generalised Gauss-Newton matrix and the empirical Fisher matrix, each of the whole
data set and exact.
"""

from landscape.operators._curvature import (
    GRAPH_BYTES,
    N_GROUPS,
    SCALES,
    Curvature,
    parameter_scale,
    pieces,
)
from landscape.operators._hessian import PRODUCTS, Hessian
from landscape.operators._jacobians import EmpiricalFisher, GaussNewton

CURVATURES: dict[str, type[Curvature]] = {
    "hessian": Hessian,
    "ggn": GaussNewton,
    "fisher": EmpiricalFisher,
}
"""The operators by the names that verbs and settings give them."""

__all__ = [
    "CURVATURES",
    "GRAPH_BYTES",
    "N_GROUPS",
    "PRODUCTS",
    "SCALES",
    "Curvature",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "parameter_scale",
    "pieces",
]
