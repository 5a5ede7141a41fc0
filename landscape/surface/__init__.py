"""The loss along lines, planes and paths, and the directions that span them."""

from landscape.surface._automatic_range import automatic_range
from landscape.surface._directions import Direction, Plane, given_direction, orthogonalised
from landscape.surface._path import CurveTraining, path
from landscape.surface._planes import (
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
from landscape.surface._points import PointOptions
from landscape.surface._random_directions import NORMALISATIONS, random_direction, random_plane
from landscape.surface._surface import line, span, surface
from landscape.surface._trajectory import trajectory

__all__ = [
    "NORMALISATIONS",
    "CurveTraining",
    "Direction",
    "Plane",
    "PointOptions",
    "PrincipalPlane",
    "Projection",
    "automatic_range",
    "eigenvector_plane",
    "given_direction",
    "line",
    "orthogonalised",
    "path",
    "plane_through",
    "principal_plane",
    "project",
    "random_direction",
    "random_plane",
    "require_same_elsewhere",
    "span",
    "surface",
    "trajectory",
    "worst_case_direction",
    "worst_case_plane",
]
