"""Theory of SAM on linear models, in closed form.

Least squares and kernel regression from zero: bias² and variance of gradient descent and of
unnormalised SAM at every iteration (`trade_off`), and the same by simulation (`simulate`). NumPy
only; it shares no code with the optimizers.
"""

from landscape.theory.closed_form import Risks, Stop, TradeOff, risks, trade_off
from landscape.theory.modes import DESCENTS, RISKS, Modes, kernel_regression, least_squares
from landscape.theory.simulation import DESIGNS, SIGNALS, Simulated, random_design, simulate

__all__ = [
    "DESCENTS",
    "DESIGNS",
    "RISKS",
    "SIGNALS",
    "Modes",
    "Risks",
    "Simulated",
    "Stop",
    "TradeOff",
    "kernel_regression",
    "least_squares",
    "random_design",
    "risks",
    "simulate",
    "trade_off",
]
