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
    from landscape.directions import random_direction as random_direction
    from landscape.directions import random_plane as random_plane
    from landscape.errors import LandscapeError as LandscapeError
    from landscape.measure.densities import spectral_density as spectral_density
    from landscape.measure.eigenpairs import eigenpairs_by_layer as eigenpairs_by_layer
    from landscape.measure.eigenpairs import top_eigenpairs as top_eigenpairs
    from landscape.measure.evaluation import evaluation as evaluation
    from landscape.measure.overlaps import overlap as overlap
    from landscape.measure.paths import path as path
    from landscape.measure.sharpness import sharpness as sharpness
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
    "compare": "landscape.comparison",
    "eigenpairs_by_layer": "landscape.measure.eigenpairs",
    "evaluation": "landscape.measure.evaluation",
    "line": "landscape.measure.surfaces",
    "overlap": "landscape.measure.overlaps",
    "path": "landscape.measure.paths",
    "sharpness": "landscape.measure.sharpness",
    "spectral_density": "landscape.measure.densities",
    "surface": "landscape.measure.surfaces",
    "top_eigenpairs": "landscape.measure.eigenpairs",
    "trace": "landscape.measure.traces",
    "trajectory": "landscape.measure.trajectories",
    # directions
    "Plane": "landscape.directions",
    "random_direction": "landscape.directions",
    "random_plane": "landscape.directions",
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
