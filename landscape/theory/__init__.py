"""Theory of SAM on linear models, in closed form.

Least squares and kernel regression from zero: bias² and variance of gradient descent and of
unnormalised SAM at every iteration (`trade_off`), the same by simulation (`simulate`), one example
at a time (`stochastic_sam`), and normalised SAM (`normalised_path`). NumPy and SciPy only; it
shares no code with the optimizers.
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
from landscape.theory.modes import (
    DESCENTS,
    RISKS,
    Modes,
    kernel_regression,
    least_squares,
    polynomial_kernel,
    rbf_kernel,
)
from landscape.theory.simulation import DESIGNS, SIGNALS, Simulated, random_design, simulate
from landscape.theory.variants import (
    Stochastic,
    normalised_path,
    stochastic_sam,
    two_cycle_amplitude,
)

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
