"""Planes that are not random: eigenvectors, the worst case, other checkpoints, a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from landscape.errors import InvalidArgumentError
from landscape.problem import Problem
from landscape.processes import check_split, norm_over_shards
from landscape.results import Eigenpairs, Sharpness
from landscape.surface._directions import Direction, Plane, given_direction, orthogonalised

if TYPE_CHECKING:
    from typing_extensions import Unpack

Checkpoint = str | PathLike[str] | Mapping[str, Any] | nn.Module | Problem
Floats = npt.NDArray[np.float64]


class Reading(TypedDict, total=False):
    """How checkpoint files are read, see `Problem.at`."""

    key: str | None
    unsafe_pickle: bool
    partial: bool


# Weight vectors of a training run that are in memory at once.
_BLOCK = 8


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Checkpoints as seen in a plane.

    Attributes:
        coordinates: least-squares coordinates of each checkpoint, shape (m, 2).
        off_plane: Euclidean distance of each from the plane, shape (m,).
        distances: Euclidean distance of each from the origin of the plane, shape (m,).
        names: of the checkpoints.
        hashes: digest of the weights and buffers of each.
    """

    coordinates: Floats
    off_plane: Floats
    distances: Floats
    names: tuple[str, ...]
    hashes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PrincipalPlane:
    """The plane that holds most of a training run.

    Attributes:
        plane: unit vectors, so that coordinates are distances.
        trajectory: the checkpoints in it.
        explained: share of Σ ‖wᵢ − w‖² along each of the two directions, shape (2,).
    """

    plane: Plane
    trajectory: Projection
    explained: Floats


def eigenvector_plane(problem: Problem, pairs: Eigenpairs) -> Plane:
    """Span a plane by the eigenvectors of the two largest eigenvalues.

    Args:
        problem: what they were measured on.
        pairs: at least two eigenpairs, with their vectors.

    Returns:
        The plane; its axes are unit vectors, so that coordinates are distances.

    Raises:
        InvalidArgumentError: if there are less than two, or they are of other parameters or of a
            rescaled operator.
    """
    if pairs.provenance.parameters != problem.parameters:
        theirs, ours = (of or "all" for of in (pairs.provenance.parameters, problem.parameters))
        msg = (
            f"the eigenvectors are of the parameters {theirs}, and {problem.name} explores {ours}: "
            "measure them on the same parameters, with the same .only(...)"
        )
        raise InvalidArgumentError(msg)
    scale = pairs.settings.get("scale", "none")
    if scale != "none":
        msg = (
            f"the eigenvectors v are of THT, rescaled {scale}, and no directions of the weights, "
            "as Tv are: measure with scale='none', or give Tv as directions of your own"
        )
        raise InvalidArgumentError(msg)
    if pairs.n_top < 2:
        msg = f"a plane takes two eigenvectors, and there are {pairs.n_top}: measure with k=2"
        raise InvalidArgumentError(msg)
    x, y = (
        given_direction(problem, vector, kind="eigenvector", description=f"eigenvector of λ{i + 1}")
        for i, vector in enumerate(pairs.vectors[:2])
    )
    return Plane(x, y, f"plane of the two top eigenvectors of the {pairs.operator}")


def worst_case_plane(problem: Problem, found: Sharpness, second: Direction) -> Plane:
    """Span a plane by the maximiser that a sharpness measurement found and another direction.

    Args:
        problem: what was measured.
        found: its sharpness, with ε.
        second: the other direction, such as a random one.

    Returns:
        The plane: ε/‖ε‖₂, and the other orthogonal to it and of length 1, so that coordinates
        are distances.

    Raises:
        InvalidArgumentError: if there is no ε, or the other is parallel to it.
    """
    size = norm_over_shards(float(torch.linalg.vector_norm(second.vector, dtype=torch.float64)))
    unit = second.vector.double() / size
    plane = Plane(
        worst_case_direction(problem, found),
        given_direction(problem, unit, kind=second.kind, description=second.description),
        f"plane of the worst case (ρ = {found.rho:g}, p = {found.p:g}) and a {second.description}",
    )
    return orthogonalised(problem, plane)


def worst_case_direction(problem: Problem, found: Sharpness) -> Direction:
    """Return the direction of the maximiser that a sharpness measurement found.

    Args:
        problem: what was measured.
        found: its sharpness, with ε.

    Returns:
        ε / ‖ε‖₂, so that coordinates along it are distances in parameter space.

    Raises:
        InvalidArgumentError: if ε was not kept, or no point of the ball lay above its centre.
    """
    size = float(np.linalg.norm(found.epsilon.astype(np.float64)))
    if found.epsilon.size == 0 or size == 0.0:
        msg = f"there is no worst-case direction of {problem.name}: " + (
            "ε was not kept" if found.epsilon.size == 0 else "nothing in the ball rises"
        )
        raise InvalidArgumentError(msg)
    return given_direction(
        problem,
        (found.epsilon / size).astype(found.epsilon.dtype),
        kind="worst-case",
        description=f"worst-case direction (ρ = {found.rho:g}, p = {found.p:g})",
    )


def plane_through(
    problem: Problem,
    second: Checkpoint,
    third: Checkpoint,
    **reading: Unpack[Reading],
) -> Plane:
    """Span the plane through three checkpoints.

    Args:
        problem: at the first of them, which is the origin.
        second: the checkpoint at (1, 0).
        third: the checkpoint at (0, 1).
        **reading: key, unsafe_pickle and partial, as for `Problem.at`.

    Returns:
        The plane, its axes the differences themselves; they know the checkpoints' buffers.

    Raises:
        InvalidArgumentError: if two of them are the same, all three lie on a line, or they differ
            in parameters that are not explored.
    """
    origin, read = problem.weights, reader(problem, **reading)
    others = [read(checkpoint) for checkpoint in (second, third)]
    for other in others:
        require_same_elsewhere(problem, other)
    x, y = (
        given_direction(
            problem,
            other.weights - origin,
            kind="checkpoint",
            description=f"from {problem.name} to {other.name}",
            buffers={k: other.state()[k] for k, _ in other.model.named_buffers()},
        )
        for other in others
    )
    names = ", ".join([problem.name, *(other.name for other in others)])
    plane = Plane(x, y, f"plane through {names}")
    plane.check()
    return plane


def principal_plane(
    problem: Problem,
    checkpoints: Sequence[Checkpoint],
    **reading: Unpack[Reading],
) -> PrincipalPlane:
    """Find the plane through the weights w that holds most of a training run.

    The principal directions of the differences wᵢ − w, from the eigenvectors of their Gram
    matrix; never more than a few weight vectors are in memory at once.

    Args:
        problem: at w, such as the last checkpoint of the run.
        checkpoints: the others, at least two, in order.
        **reading: key, unsafe_pickle and partial, as for `Problem.at`.

    Returns:
        The plane, the checkpoints in it, and how much of the run it holds.

    Raises:
        InvalidArgumentError: if there are less than two, or they span only a line.

    Cost: no passes over the data; every checkpoint is read about (number / 8 + 2) times.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), section 7, arXiv:1712.09913; Gallagher, Downs
        (2003), IEEE Trans. Neural Networks 14.
    """
    check_split("principal plane")
    if len(checkpoints) < 2:
        msg = f"a plane takes a run of at least two checkpoints beside w; got {len(checkpoints)}"
        raise InvalidArgumentError(msg)
    read, origin = reader(problem, **reading), problem.weights.double()

    def difference(checkpoint: Checkpoint) -> Tensor:
        return read(checkpoint).weights.double() - origin

    gram = _gram(difference, checkpoints)
    values, vectors = np.linalg.eigh(gram)
    top, a = values[::-1][:2], vectors[:, ::-1][:, :2]
    if not top[1] > 1e-12 * top[0]:
        msg = "the checkpoints lie on a line through w: they span no plane"
        raise InvalidArgumentError(msg)
    a = a * np.sign(a[np.abs(a).argmax(axis=0), range(2)])
    sums = [torch.zeros(problem.space.n, dtype=torch.float64, device=problem.device)] * 2
    for i, vector in enumerate(map(difference, checkpoints)):
        sums = [total + float(a[i, k]) * vector for k, total in enumerate(sums)]
    x, y = (
        given_direction(
            problem,
            total / float(torch.linalg.vector_norm(total)),
            kind="principal",
            description=f"principal direction {k + 1} of the run",
        )
        for k, total in enumerate(sums)
    )
    n_apart = np.count_nonzero(gram.diagonal())  # w may be among the checkpoints
    plane = Plane(x, y, f"principal plane of a run of {n_apart + 1} checkpoints")
    run = project(problem, plane, checkpoints, **reading)
    return PrincipalPlane(plane=plane, trajectory=run, explained=top / gram.trace())


def project(
    problem: Problem,
    plane: Plane,
    checkpoints: Sequence[Checkpoint],
    **reading: Unpack[Reading],
) -> Projection:
    """Find where checkpoints lie in a plane through the problem's weights.

    Args:
        problem: at the origin of the plane.
        plane: any two directions that are not parallel, of any norm.
        checkpoints: one or more of the same architecture; one is in memory at a time.
        **reading: key, unsafe_pickle and partial, as for `Problem.at`.

    Returns:
        Least-squares coordinates, in units of the axes, and the distances from the plane and from
        its origin.

    Raises:
        InvalidArgumentError: if the axes are parallel.
    """
    check_split("projection")
    plane.check()
    axes = torch.stack([plane.x.vector, plane.y.vector]).double()
    metric = (axes @ axes.T).cpu().numpy()
    origin, read = problem.weights, reader(problem, **reading)
    rows = []
    for checkpoint in checkpoints:
        other = read(checkpoint)
        difference = (other.weights - origin).double()
        found = np.linalg.solve(metric, (axes @ difference).cpu().numpy())
        rest = difference - torch.as_tensor(found).to(axes) @ axes
        sizes = (float(torch.linalg.vector_norm(vector)) for vector in (rest, difference))
        rows.append((found, *sizes, other.name, other.checkpoint_hash))
    coordinates, off_plane, distances, names, hashes = zip(*rows, strict=True) if rows else [()] * 5
    return Projection(
        coordinates=np.array(coordinates).reshape(-1, 2),
        off_plane=np.array(off_plane),
        distances=np.array(distances),
        names=names,
        hashes=hashes,
    )


def require_same_elsewhere(problem: Problem, other: Problem) -> None:
    """Refuse two checkpoints that differ in parameters which are not explored."""
    explored, ours, theirs = set(problem.space.names), problem.state(), other.state()
    apart = [
        name
        for name, _ in problem.model.named_parameters()
        if name not in explored and not torch.equal(ours[name], theirs[name].to(ours[name]))
    ]
    if apart:
        names = ", ".join(apart[:4]) + (", …" if len(apart) > 4 else "")
        msg = (
            f"{problem.name} and {other.name} differ in parameters that are not explored "
            f"({names}), so that no line joins them: explore these too"
        )
        raise InvalidArgumentError(msg)


def reader(problem: Problem, **reading: Unpack[Reading]) -> Callable[[Checkpoint], Problem]:
    """Return a function that puts the problem at a checkpoint, or at another problem's weights."""

    def read(checkpoint: Checkpoint) -> Problem:
        if isinstance(checkpoint, Problem):
            return problem.at(checkpoint)
        return problem.at(checkpoint, **reading)

    return read


def _gram(difference: Callable[[Checkpoint], Tensor], checkpoints: Sequence[Checkpoint]) -> Floats:
    """Return the inner products of the differences, with a few of them in memory at once."""
    m = len(checkpoints)
    gram = np.zeros((m, m))
    for start in range(0, m, _BLOCK):
        block = torch.stack([difference(c) for c in checkpoints[start : start + _BLOCK]])
        for j, other in enumerate(map(difference, checkpoints[start:])):
            products = (block @ other).cpu().numpy()
            gram[start : start + len(block), start + j] = products
            gram[start + j, start : start + len(block)] = products
    return gram
