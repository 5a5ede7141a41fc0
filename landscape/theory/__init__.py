"""Why SAM can help, where it can be worked out: linear models, in closed form.

Least squares and kernel regression from zero: bias² and variance of gradient descent and of
unnormalised SAM at every iteration (`trade_off`), the same by simulation (`simulate`), one example
at a time (`stochastic_sam`), and what normalised SAM does instead (`normalised_path`). NumPy and
SciPy only, sharing no code with the optimizers that it explains.
"""

from landscape.theory.closed_form import (
    Risks,
    Stop,
    TradeOff,
    edge_of_stability,
    risks,
    stability_limit,
    trade_off,
)
from landscape.theory.designs import DESIGNS, SIGNALS, random_design
from landscape.theory.modes import (
    DESCENTS,
    RISKS,
    Modes,
    kernel_regression,
    least_squares,
    polynomial_kernel,
    rbf_kernel,
)
from landscape.theory.normalised import normalised_path, two_cycle_amplitude
from landscape.theory.simulation import Simulated, simulate
from landscape.theory.stochastic import Stochastic, stochastic_sam

__all__ = [
    "DESCENTS",
    "DESIGNS",
    "RISKS",
    "SIGNALS",
    "Modes",
    "Risks",
    "Simulated",
    "Stochastic",
    "Stop",
    "TradeOff",
    "edge_of_stability",
    "kernel_regression",
    "least_squares",
    "normalised_path",
    "polynomial_kernel",
    "random_design",
    "rbf_kernel",
    "risks",
    "simulate",
    "stability_limit",
    "stochastic_sam",
    "trade_off",
    "two_cycle_amplitude",
]
