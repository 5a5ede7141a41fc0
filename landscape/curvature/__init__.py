"""Eigenpairs, trace and spectral density of the Hessian and its relatives."""

from landscape.curvature._blocks import block_spectra
from landscape.curvature._density import spectral_density
from landscape.curvature._eigenpairs import (
    eigenpairs_by_layer,
    gradient_alignment,
    overlap,
    top_eigenpairs,
)
from landscape.curvature._trace import trace

__all__ = [
    "block_spectra",
    "eigenpairs_by_layer",
    "gradient_alignment",
    "overlap",
    "spectral_density",
    "top_eigenpairs",
    "trace",
]
