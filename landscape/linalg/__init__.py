"""Spectra of a symmetric operator that is known only by its products with vectors.

Top eigenpairs, trace and spectral density, each with its evidence. Nothing here knows
of networks or data: a function v ↦ Hv, its size, a dtype and a device.
"""

from landscape.linalg.basis import FAILURE_PROBABILITY
from landscape.linalg.density import SpectralDensity, spectral_density
from landscape.linalg.krylov import AsymmetryError, EigenSolution, SymmetricOperator
from landscape.linalg.lanczos import lanczos
from landscape.linalg.power import power_iteration
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
    "EigenSolution",
    "SpectralDensity",
    "SymmetricOperator",
    "TraceOptions",
    "TraceSolution",
    "hutchinson_trace",
    "hutchpp_trace",
    "krylov_trace",
    "lanczos",
    "power_iteration",
    "spectral_density",
    "xtrace",
]
