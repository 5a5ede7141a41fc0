"""How sharp is this minimum? Sharpness, Hessian spectra and loss surfaces of PyTorch checkpoints.

>>> import landscape as ls
>>> ls.__version__.count(".")
2

The public names below are imported when first used, so that ``import landscape`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from landscape._version import __version__

if TYPE_CHECKING:
    from landscape.comparison import compare as compare
    from landscape.directions import Plane as Plane
    from landscape.directions import eigenvector_plane as eigenvector_plane
    from landscape.directions import plane_through as plane_through
    from landscape.directions import principal_plane as principal_plane
    from landscape.directions import random_direction as random_direction
    from landscape.directions import random_plane as random_plane
    from landscape.directions import worst_case_plane as worst_case_plane
    from landscape.doctor import diagnose as diagnose
    from landscape.errors import LandscapeError as LandscapeError
    from landscape.measure.averages import average_profile as average_profile
    from landscape.measure.averages import average_sharpness as average_sharpness
    from landscape.measure.densities import spectral_density as spectral_density
    from landscape.measure.differences import differences as differences
    from landscape.measure.eigenpairs import eigenpairs_by_layer as eigenpairs_by_layer
    from landscape.measure.eigenpairs import top_eigenpairs as top_eigenpairs
    from landscape.measure.evaluation import evaluation as evaluation
    from landscape.measure.flatness import flatness as flatness
    from landscape.measure.overlaps import overlap as overlap
    from landscape.measure.paired_differences import paired_difference as paired_difference
    from landscape.measure.paths import path as path
    from landscape.measure.profiles import sharpness_profile as sharpness_profile
    from landscape.measure.sharpness import sharpness as sharpness
    from landscape.measure.steps import stepwise_sharpness as stepwise_sharpness
    from landscape.measure.subsets import m_sharpness as m_sharpness
    from landscape.measure.surfaces import line as line
    from landscape.measure.surfaces import surface as surface
    from landscape.measure.traces import trace as trace
    from landscape.measure.trajectories import trajectory as trajectory
    from landscape.measured import Comparison as Comparison
    from landscape.optim import SAM as SAM
    from landscape.problem import Problem as Problem
    from landscape.problem import load_problem as load_problem
    from landscape.study import Study as Study

_HOME = {
    # the problem
    "Problem": "landscape.problem",
    "load_problem": "landscape.problem",
    # measurements
    "average_profile": "landscape.measure.averages",
    "average_sharpness": "landscape.measure.averages",
    "compare": "landscape.comparison",
    "diagnose": "landscape.doctor",
    "eigenpairs_by_layer": "landscape.measure.eigenpairs",
    "differences": "landscape.measure.differences",
    "evaluation": "landscape.measure.evaluation",
    "flatness": "landscape.measure.flatness",
    "line": "landscape.measure.surfaces",
    "m_sharpness": "landscape.measure.subsets",
    "overlap": "landscape.measure.overlaps",
    "paired_difference": "landscape.measure.paired_differences",
    "path": "landscape.measure.paths",
    "sharpness": "landscape.measure.sharpness",
    "sharpness_profile": "landscape.measure.profiles",
    "stepwise_sharpness": "landscape.measure.steps",
    "spectral_density": "landscape.measure.densities",
    "surface": "landscape.measure.surfaces",
    "top_eigenpairs": "landscape.measure.eigenpairs",
    "trace": "landscape.measure.traces",
    "trajectory": "landscape.measure.trajectories",
    # directions
    "Plane": "landscape.directions",
    "eigenvector_plane": "landscape.directions",
    "plane_through": "landscape.directions",
    "principal_plane": "landscape.directions",
    "random_direction": "landscape.directions",
    "random_plane": "landscape.directions",
    "worst_case_plane": "landscape.directions",
    # results, their file, and what can go wrong
    "Comparison": "landscape.measured",
    "LandscapeError": "landscape.errors",
    "Study": "landscape.study",
    # training
    "SAM": "landscape.optim",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'landscape' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
