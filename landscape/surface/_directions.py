"""A direction, a plane of two, and how they are made of given values."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError, one_of
from landscape.linalg.krylov import dot, norm
from landscape.problem import Problem
from landscape.problem._filters import filter_norms_of
from landscape.processes import Spread, norm_over_shards, over_shards

METRICS = ("euclidean", "filter")
_PARALLEL = 0.9999


@dataclass(frozen=True)
class Direction:
    """A direction in parameter space.

    Attributes:
        vector: shape (n,), on the problem's device and in its dtype; what is held here of it where
            the parameters are split over processes.
        kind: one word that names how it came about: ``random``, ``worst-case``, ``eigenvector``
            or ``given``.
        description: the same in words, for a caption.
        seed: of a random one.
        treatment: what each tensor of a random one received, in words, by its name.
        buffers: buffers of the checkpoint at coordinate 1, where there is one, by their names.
        spread: which entries are held here; None: all.
    """

    vector: Tensor
    kind: str
    description: str
    seed: int | None = None
    treatment: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    spread: Spread | None = None

    @property
    def norm(self) -> float:
        """Euclidean norm."""
        return norm(self.vector)

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """The vectors that span the line: one."""
        return (self.vector,)

    def settings(self) -> dict[str, Any]:
        """Return what identifies the direction: kind, seed and a digest of the vector."""
        whole = self.vector if self.spread is None else self.spread.whole(self.vector)
        digest = hashlib.sha256(whole.detach().cpu().contiguous().numpy().data)
        return {"kind": self.kind, "seed": self.seed, "digest": digest.hexdigest()[:16]}

    def identity(self) -> dict[str, Any]:
        """Return what identifies the line along it, as a part of settings."""
        return {"direction": self.kind, "d": self.settings()}

    def at(self, origin: Tensor, x: float, y: float = 0.0) -> Tensor:
        """Return origin + x d, shape (n,); y is not used: a line is a plane of one axis."""
        return origin.add(self.vector, alpha=x)

    def spanning(self, x: float, y: float = 0.0) -> list[tuple[float, Mapping[str, Tensor]]]:
        """Return the coordinate x and the buffers of the checkpoint that it leads to, if any."""
        return [(x, self.buffers)] if self.buffers else []


@dataclass(frozen=True)
class Plane:
    """Two directions; a point of the plane is w + x d₁ + y d₂.

    Attributes:
        x: the first direction.
        y: the second direction.
        description: what the plane is, for a caption.
    """

    x: Direction
    y: Direction
    description: str

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """The vectors that span the plane, each of shape (n,)."""
        return self.x.vector, self.y.vector

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the directions."""
        return dot(self.x.vector, self.y.vector) / (self.x.norm * self.y.norm)

    def identity(self) -> dict[str, Any]:
        """Return what identifies the plane, as a part of settings."""
        return {"plane": self.x.kind, "d1": self.x.settings(), "d2": self.y.settings()}

    def spanning(self, x: float, y: float) -> list[tuple[float, Mapping[str, Tensor]]]:
        """Return each coordinate and the buffers of the checkpoint that its axis leads to."""
        return [*self.x.spanning(x), *self.y.spanning(y)]

    def check(self) -> None:
        """Refuse a plane whose axes are parallel."""
        if abs(self.cosine) > _PARALLEL:
            msg = (
                f"the axes of the plane are parallel (cosine {self.cosine:+.6f}): {self.x.kind} "
                f"and {self.y.kind} span only a line; choose another second direction"
            )
            raise InvalidArgumentError(msg)

    def at(self, origin: Tensor, x: float, y: float) -> Tensor:
        """Return origin + x d₁ + y d₂, shape (n,); the origin itself, bit for bit, at (0, 0)."""
        return origin.add(self.x.vector, alpha=x).add_(self.y.vector, alpha=y)


def orthogonalised(problem: Problem, plane: Plane, *, metric: str = "euclidean") -> Plane:
    """Make the second axis of a plane orthogonal to the first, and keep its norm.

    Args:
        problem: gives the weights, for the metric.
        plane: two axes that are not parallel.
        metric: ``euclidean``, or ``filter``: Σⱼ aⱼ·bⱼ / ‖wⱼ‖² over the filters.

    Returns:
        The plane, which says so in its description.

    Raises:
        InvalidArgumentError: if the metric is unknown, or the axes are parallel.
    """
    one_of(metric, METRICS, what="metric")
    plane.check()
    x, y = (axis.vector.double() for axis in (plane.x, plane.y))
    weighted = x
    if metric == "filter":
        norms = filter_norms_of(problem).double()
        weighted = torch.where(norms > 0, x / norms.square(), 0.0)
    along = over_shards(weighted @ y) / over_shards(weighted @ x)
    rest = y - along * x
    rest *= plane.y.norm / norm_over_shards(float(torch.linalg.vector_norm(rest)))
    second = dataclasses.replace(plane.y, vector=rest.to(plane.y.vector.dtype))
    return Plane(plane.x, second, f"{plane.description}, orthogonal ({metric})")


def given_direction(
    problem: Problem,
    values: Tensor | np.ndarray[Any, Any] | Mapping[str, Tensor],
    *,
    kind: str = "given",
    description: str = "given direction",
    buffers: Mapping[str, Tensor] | None = None,
) -> Direction:
    """Make a direction of a flat vector or of named tensors.

    Args:
        problem: gives the architecture.
        values: a vector of shape (n,), or a tensor for every parameter.
        kind: see `Direction`.
        description: see `Direction`.
        buffers: see `Direction`.

    Returns:
        The direction, with the values as they are.

    Raises:
        InvalidArgumentError: if the size does not fit, or the values are all zero or not finite.
    """
    if isinstance(values, Mapping):
        _check_names(problem, values)
        values = problem.space.flatten(values)
    vector, spread = torch.as_tensor(values), problem.space.spread
    if spread is not None and vector.shape == (spread.n,):
        vector = spread.part(vector)
    if vector.shape != (problem.space.length,):
        msg = (
            f"the direction has shape {tuple(vector.shape)}, the model has {problem.space.n:,} "
            "parameters; is it of another architecture?"
        )
        raise InvalidArgumentError(msg)
    # A copy: what the caller does to the values later must not change the direction.
    own = vector.detach().to(problem.device, problem.dtype, copy=True)
    direction = Direction(own, kind, description, buffers=dict(buffers or {}), spread=spread)
    if not (np.isfinite(direction.norm) and direction.norm > 0):
        msg = f"the direction has norm {direction.norm:g}; expected a finite one above zero"
        raise InvalidArgumentError(msg)
    return direction


def _check_names(problem: Problem, tensors: Mapping[str, Tensor]) -> None:
    space = problem.space
    absent = [name for name in space.names if name not in tensors]
    if absent:
        msg = f"the direction lacks the parameters {', '.join(absent[:8])}"
        raise InvalidArgumentError(msg)
    state = problem.state()
    for name in space.names:
        shape = state[name].shape
        if tensors[name].shape != shape:
            msg = (
                f"the direction has shape {tuple(tensors[name].shape)} for {name}, the model has "
                f"{tuple(shape)}; is it of another architecture?"
            )
            raise InvalidArgumentError(msg)
