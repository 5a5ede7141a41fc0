"""How sharp is this minimum? Sharpness, Hessian spectra and loss surfaces of PyTorch checkpoints.

>>> import landscape as ls
>>> ls.__version__.count(".")
2

The public names below are imported when first used, so that ``import landscape`` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from landscape._version import __version__

if TYPE_CHECKING:
    from landscape.compare import compare as compare
    from landscape.compare import differences as differences
    from landscape.compare import paired_difference as paired_difference
    from landscape.curvature import block_spectra as block_spectra
    from landscape.curvature import eigenpairs_by_layer as eigenpairs_by_layer
    from landscape.curvature import gradient_alignment as gradient_alignment
    from landscape.curvature import overlap as overlap
    from landscape.curvature import spectral_density as spectral_density
    from landscape.curvature import top_eigenpairs as top_eigenpairs
    from landscape.curvature import trace as trace
    from landscape.doctor import diagnose as diagnose
    from landscape.errors import LandscapeError as LandscapeError
    from landscape.loss import evaluation as evaluation
    from landscape.optim import SAM as SAM
    from landscape.problem import Problem as Problem
    from landscape.problem import load_problem as load_problem
    from landscape.results.comparison import Comparison as Comparison
    from landscape.sharpness import average_profile as average_profile
    from landscape.sharpness import average_sharpness as average_sharpness
    from landscape.sharpness import flatness as flatness
    from landscape.sharpness import m_sharpness as m_sharpness
    from landscape.sharpness import sharpness as sharpness
    from landscape.sharpness import sharpness_profile as sharpness_profile
    from landscape.sharpness import stepwise_sharpness as stepwise_sharpness
    from landscape.stability import batch_sharpness as batch_sharpness
    from landscape.stability import update_sharpness as update_sharpness
    from landscape.study import Study as Study
    from landscape.surface import Plane as Plane
    from landscape.surface import eigenvector_plane as eigenvector_plane
    from landscape.surface import line as line
    from landscape.surface import path as path
    from landscape.surface import plane_through as plane_through
    from landscape.surface import principal_plane as principal_plane
    from landscape.surface import random_direction as random_direction
    from landscape.surface import random_plane as random_plane
    from landscape.surface import surface as surface
    from landscape.surface import trajectory as trajectory
    from landscape.surface import worst_case_plane as worst_case_plane

_NAMES = {
    "landscape.problem": ("Problem", "chunked_cross_entropy", "load_problem"),
    "landscape.sharpness": (
        *("average_profile", "average_sharpness", "flatness", "m_sharpness", "sharpness"),
        *("sharpness_profile", "stepwise_sharpness"),
    ),
    "landscape.curvature": (
        *(
            "block_spectra",
            "eigenpairs_by_layer",
            "gradient_alignment",
            "overlap",
            "spectral_density",
            "top_eigenpairs",
            "trace",
        ),
    ),
    "landscape.surface": (
        *("Plane", "eigenvector_plane", "line", "path", "plane_through", "principal_plane"),
        *("random_direction", "random_plane", "surface", "trajectory", "worst_case_plane"),
    ),
    "landscape.stability": ("batch_sharpness", "update_sharpness"),
    "landscape.compare": ("compare", "differences", "paired_difference"),
    "landscape.doctor": ("diagnose",),
    "landscape.loss": ("evaluation",),
    "landscape.optim": ("SAM",),
    "landscape.results.comparison": ("Comparison",),
    "landscape.study": ("Study",),
    "landscape.errors": ("LandscapeError",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'landscape' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing a folder of the same name must not take the place of a public function.
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
