"""Spectra of a symmetric operator that is known only by its products with vectors.

Top eigenpairs, trace, diagonal and spectral density, each with its evidence. Nothing here knows
of networks or data: a function v ↦ Hv, its size, a dtype and a device.
"""

from landscape.linalg.bounds import FAILURE_PROBABILITY
from landscape.linalg.density import SpectralDensity, spectral_density
from landscape.linalg.diagonal import DiagonalSolution, estimate_diagonal
from landscape.linalg.krylov import AsymmetryError, EigenSolution
from landscape.linalg.lanczos import lanczos
from landscape.linalg.power import power_iteration
from landscape.linalg.symmetric import SymmetricOperator
from landscape.linalg.trace import (
    TraceOptions,
    TraceSolution,
    hutchinson_trace,
    hutchpp_trace,
    krylov_trace,
    xtrace,
)

__all__ = [
    "FAILURE_PROBABILITY",
    "AsymmetryError",
    "DiagonalSolution",
    "EigenSolution",
    "SpectralDensity",
    "SymmetricOperator",
    "TraceOptions",
    "TraceSolution",
    "estimate_diagonal",
    "hutchinson_trace",
    "hutchpp_trace",
    "krylov_trace",
    "lanczos",
    "power_iteration",
    "spectral_density",
    "xtrace",
]
