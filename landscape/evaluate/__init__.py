"""The one place that runs a user's model: loss, gradient, BatchNorm, many points fast."""

from landscape.evaluate._accumulators import (
    Displaced,
    LossSums,
    LossValue,
    Weights,
    error_of_mean,
    final_divisor,
)
from landscape.evaluate._batchnorm import (
    STATISTICS,
    check_variances,
    float_buffers,
    interpolated,
    normalisers,
    recalibrated,
)
from landscape.evaluate._choosing import choose_plan
from landscape.evaluate._derivatives import (
    DoubleBackward,
    NotTwiceDifferentiableError,
    differentiate,
    graph_bytes,
    graph_nodes,
    needing_derivatives,
    right_kernels,
    twice_differentiable,
)
from landscape.evaluate._engine import Engine, stand_ins, substituted
from landscape.evaluate._evaluator import Evaluator, require_finite
from landscape.evaluate._plans import PLAIN, Plan
from landscape.evaluate._selftest import (
    LayerTrial,
    check_gradient,
    check_hessian,
    in_type,
    layer_trials,
    rounding_of_products,
)
from landscape.evaluate._signature import measure_signature, provenance_of
from landscape.evaluate._values import evenly_cut, sample

__all__ = [
    "PLAIN",
    "STATISTICS",
    "Displaced",
    "DoubleBackward",
    "Engine",
    "Evaluator",
    "LayerTrial",
    "LossSums",
    "LossValue",
    "NotTwiceDifferentiableError",
    "Plan",
    "Weights",
    "check_gradient",
    "check_hessian",
    "check_variances",
    "choose_plan",
    "differentiate",
    "error_of_mean",
    "evenly_cut",
    "final_divisor",
    "float_buffers",
    "graph_bytes",
    "graph_nodes",
    "in_type",
    "interpolated",
    "layer_trials",
    "measure_signature",
    "needing_derivatives",
    "normalisers",
    "provenance_of",
    "recalibrated",
    "require_finite",
    "right_kernels",
    "rounding_of_products",
    "sample",
    "stand_ins",
    "substituted",
    "twice_differentiable",
]
