"""Directions and planes in parameter space.

Random ones, normalised filter by filter (Li et al., 2018) or otherwise; eigenvectors; the worst
case; through other checkpoints; the principal plane of a training run.
"""

from landscape.directions.drawn import NORMALISATIONS, random_direction, random_plane
from landscape.directions.filters import filter_norms, filters, normalise_filterwise
from landscape.directions.planes import (
    PrincipalPlane,
    Projection,
    eigenvector_plane,
    plane_through,
    principal_plane,
    project,
    require_same_elsewhere,
    worst_case_direction,
    worst_case_plane,
)
from landscape.directions.vectors import (
    Direction,
    Plane,
    filter_norms_of,
    given_direction,
    orthogonalised,
)

__all__ = [
    "NORMALISATIONS",
    "Direction",
    "Plane",
    "PrincipalPlane",
    "Projection",
    "eigenvector_plane",
    "filter_norms",
    "filter_norms_of",
    "filters",
    "given_direction",
    "normalise_filterwise",
    "orthogonalised",
    "plane_through",
    "principal_plane",
    "project",
    "random_direction",
    "random_plane",
    "require_same_elsewhere",
    "worst_case_direction",
    "worst_case_plane",
]
