"""Curvature of the data set's loss as symmetric operators: a matvec over flat vectors.

The Hessian, the generalised Gauss-Newton matrix and the empirical Fisher matrix, each of the whole
data set and exact; `noise_floor` tells how far their products can be trusted.
"""

from landscape.operators.curvature import GRAPH_BYTES, Curvature
from landscape.operators.hessian import Hessian
from landscape.operators.jacobians import EmpiricalFisher, GaussNewton
from landscape.operators.noise import Noise, noise_floor
from landscape.operators.scales import SCALES, parameter_scale

CURVATURES: dict[str, type[Curvature]] = {
    "hessian": Hessian,
    "ggn": GaussNewton,
    "fisher": EmpiricalFisher,
}
"""The operators by the names that verbs and settings give them."""

__all__ = [
    "CURVATURES",
    "GRAPH_BYTES",
    "SCALES",
    "Curvature",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "Noise",
    "noise_floor",
    "parameter_scale",
]
