"""The one place that runs a user's model: loss, gradient, BatchNorm, many points fast."""

from landscape.evaluate._accumulators import (
    GradientSum,
    LossSums,
    LossValue,
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
    differentiate,
    graph_nodes,
    needing_derivatives,
    noting_reentrant,
    twice_differentiable,
)
from landscape.evaluate._displaced import Displaced, Weights
from landscape.evaluate._engine import Engine
from landscape.evaluate._evaluator import Evaluator, require_finite
from landscape.evaluate._layers import LayerTrial, layer_trials
from landscape.evaluate._plans import PLAIN, PRECISIONS, Plan
from landscape.evaluate._selftest import (
    check_gradient,
    check_hessian,
    in_type,
    rounding_of_products,
    sample,
)
from landscape.evaluate._signature import measure_signature, provenance_of
from landscape.evaluate._stand_ins import stand_ins, substituted

__all__ = [
    "PLAIN",
    "PRECISIONS",
    "STATISTICS",
    "Displaced",
    "Engine",
    "Evaluator",
    "GradientSum",
    "LayerTrial",
    "LossSums",
    "LossValue",
    "Plan",
    "Weights",
    "check_gradient",
    "check_hessian",
    "check_variances",
    "choose_plan",
    "differentiate",
    "error_of_mean",
    "final_divisor",
    "float_buffers",
    "graph_nodes",
    "in_type",
    "interpolated",
    "layer_trials",
    "measure_signature",
    "needing_derivatives",
    "normalisers",
    "noting_reentrant",
    "provenance_of",
    "recalibrated",
    "require_finite",
    "rounding_of_products",
    "sample",
    "stand_ins",
    "substituted",
    "twice_differentiable",
]
